//! What was seen, a row for each: for the page of the report.

use super::measured::{ClosePassage, Crowd, CutHow, Idle, Largest, Limit, Measured, Reconnect};
use super::progress::State;
use super::report::{AnsweredBy, Facts, FirstMessageFacts, HandshakeFacts, PingFacts, Report, TlsFacts};
use super::words::{bounds, size, span};

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) state: State,
    pub(super) words: String,
}

fn row(name: &'static str, state: State, words: impl Into<String>) -> Row {
    Row { name, state, words: words.into() }
}

fn good_if(is_good: bool) -> State {
    if is_good { State::Good } else { State::Bad }
}

/// Returns the rows of what one connection showed.
pub(super) fn of_facts(report: &Report) -> Vec<Row> {
    let facts = &report.facts;
    let mut rows = Vec::new();
    rows.extend(name(facts));
    rows.extend(tcp(facts));
    rows.extend(facts.tls.as_ref().map(tls));
    if let Some(handshake) = &facts.handshake {
        rows.extend(of_handshake(handshake));
    }
    if let Some(http2) = &facts.http2 {
        let words = match (http2.offered, http2.extended_connect) {
            (_, true) => "the server opens WebSockets over HTTP/2, too",
            (true, false) => "the server speaks it, but opens no WebSockets over it",
            (false, false) => "the server does not offer it",
        };
        rows.push(row("HTTP/2", State::Done, words));
    }
    rows.extend(facts.first_message.as_ref().map(first_message));
    rows.extend(facts.pings.as_ref().map(pings));
    if let Some(error) = &facts.failed {
        rows.push(row("failed", State::Bad, error.to_string()));
    }
    rows
}

fn name(facts: &Facts) -> Option<Row> {
    let lookup = facts.lookup.as_ref()?;
    if let Some(error) = &lookup.error {
        return Some(row("name", State::Bad, error.clone()));
    }
    let addresses: Vec<String> = lookup.ipv4.iter().chain(&lookup.ipv6).map(ToString::to_string).collect();
    Some(row("name", State::Good, format!("{} ({})", addresses.join(", "), millis(lookup.took_ms))))
}

fn tcp(facts: &Facts) -> Option<Row> {
    let tried: Vec<String> = facts
        .addresses
        .iter()
        .filter_map(|address| match (address.connect_ms, &address.error) {
            (Some(took), _) => Some(format!("{} in {}", address.address, millis(took))),
            // It begins with the address.
            (None, Some(error)) => Some(error.clone()),
            (None, None) => None,
        })
        .collect();
    let is_good = facts.addresses.iter().all(|address| address.error.is_none());
    (!tried.is_empty()).then(|| row("TCP", good_if(is_good), tried.join(", ")))
}

fn tls(tls: &TlsFacts) -> Row {
    let mut words = vec![tls.version.clone().unwrap_or_else(|| "no TLS".into())];
    words.extend(tls.alpn.as_ref().map(|alpn| format!("ALPN {alpn}")));
    words.extend(tls.chain.first().map(|own| match own.days_left {
        left @ 0.. => format!("certificate valid for {left} days more"),
        left => format!("certificate expired {} days ago", -left),
    }));
    words.extend(tls.untrusted.as_ref().map(|untrusted| format!("not trusted: {}", untrusted.words)));
    words.push(tls.error.clone().unwrap_or_else(|| millis(tls.took_ms)));
    row("TLS", good_if(tls.error.is_none() && tls.untrusted.is_none()), words.join(", "))
}

fn of_handshake(handshake: &HandshakeFacts) -> Vec<Row> {
    let mut words = vec![format!("{} {}", handshake.http, handshake.status)];
    words.extend(handshake.subprotocol.as_ref().map(|name| format!("subprotocol {name}")));
    words.extend(handshake.compressed.then(|| "compressed".to_owned()));
    words.push(millis(handshake.took_ms));
    let mut rows = vec![row("handshake", good_if(handshake.wrong.is_none()), words.join(", "))];
    let products: Vec<String> =
        handshake.products.iter().map(|product| format!("{} ({})", product.name, product.evidence)).collect();
    let words = match &handshake.server {
        _ if !products.is_empty() => products.join(", "),
        Some(server) => format!("no product that is known; server: {server}"),
        None => "no field names a product".to_owned(),
    };
    rows.push(row("on the way", State::Done, words));
    rows
}

fn first_message(facts: &FirstMessageFacts) -> Row {
    match facts.answered_ms {
        Some(took) => row("first message", State::Good, format!("answered by a message in {}", millis(took))),
        None => row("first message", State::Done, "sent; no message answers it"),
    }
}

fn pings(pings: &PingFacts) -> Row {
    let mut words = vec![format!("{} of {} answered", pings.answered + pings.wrong_payload, pings.sent)];
    if pings.wrong_payload > 0 {
        words.push(format!("{} of them with another payload", pings.wrong_payload));
    }
    words.extend(
        pings
            .rtt
            .map(|rtt| format!("round trip {}, jitter {}", millis(rtt.median_ms), millis(rtt.jitter_ms))),
    );
    words.extend(match pings.answered_by {
        AnsweredBy::Nearer => Some("by something in front of the server".to_owned()),
        AnsweredBy::Server => Some("by the end that echoes".to_owned()),
        AnsweredBy::Behind => Some("from behind what accepts TCP".to_owned()),
        AnsweredBy::Nothing | AnsweredBy::Unknown => None,
    });
    if let Some(interval) = pings.server_interval_ms {
        words.push(format!("the server sends one every {}", millis(interval)));
    }
    row("Pings", good_if(pings.answered > 0 && pings.wrong_payload == 0), words.join(", "))
}

/// Returns the rows of what the experiments measured.
pub(super) fn of_measured(measured: &Measured) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(idle) = &measured.idle {
        rows.extend(of_idle(idle));
    }
    if let Some(lifetime) = &measured.lifetime {
        rows.push(limit("age", &lifetime.limit));
        for &at in &lifetime.restarts {
            rows.push(row(
                "restart",
                State::Bad,
                format!("many connections ended at once after {}", span(at)),
            ));
        }
    }
    rows.extend(measured.largest_message.as_ref().map(|largest| largest_row("message", largest, size)));
    rows.extend(
        measured
            .fragments
            .as_ref()
            .map(|largest| largest_row("fragments", largest, |count| count.to_string())),
    );
    rows.extend(closes(&measured.close_codes));
    if let Some(compression) = &measured.compression {
        let words = match (compression.accepted, compression.returned_same) {
            (false, _) => "not accepted",
            (true, Some(false)) => "accepted, but a compressed message does not come back",
            (true, _) => "accepted",
        };
        let is_broken = compression.returned_same == Some(false);
        rows.push(row("compression", if is_broken { State::Bad } else { State::Done }, words));
    }
    rows.extend(measured.crowd.as_ref().map(crowd));
    rows.extend(measured.reconnect.as_ref().map(reconnect));
    rows
}

fn of_idle(idle: &Idle) -> Vec<Row> {
    let mut rows = vec![
        limit("idle, silent", &idle.silent),
        limit("idle, our Pings", &idle.our_pings),
        limit("idle, only we send", &idle.up_only),
    ];
    rows.extend(idle.our_messages.as_ref().map(|messages| limit("idle, our messages", messages)));
    if idle.server.is_regular() {
        rows.push(limit("idle, server sends", &idle.server_sends));
        // That is what a heartbeat is for, and no fault.
        let unanswered = limit("its Pings unanswered", &idle.unanswered_pings);
        let is_cut = unanswered.state == State::Bad;
        rows.push(Row { state: if is_cut { State::Done } else { unanswered.state }, ..unanswered });
    }
    rows
}

fn limit(name: &'static str, limit: &Limit) -> Row {
    match limit {
        Limit::Cut { after, between, how, .. } => {
            let range = bounds(between.0, between.1);
            row(name, State::Bad, format!("cut after {}, {range}, {}", span(*after), how_words(how)))
        }
        Limit::Holds { for_at_least } => row(name, State::Good, format!("held for {}", span(*for_at_least))),
        Limit::Unknown { why } => row(name, State::Done, format!("not known: {why}")),
    }
}

fn how_words(how: &CutHow) -> String {
    match how {
        CutHow::Close { code: Some(code), reason } if reason.is_empty() => {
            format!("by a Close with code {code}")
        }
        CutHow::Close { code: Some(code), reason } => format!("by a Close with code {code}, \"{reason}\""),
        CutHow::Close { code: None, .. } => "by a Close without a code".into(),
        CutHow::Fin => "by FIN".into(),
        CutHow::Reset => "by a reset".into(),
        CutHow::ResetOnSend => "in silence; a reset answers the next byte".into(),
        CutHow::Silent => "in silence".into(),
        CutHow::Error { words } => words.clone(),
    }
}

fn largest_row(name: &'static str, largest: &Largest, show: impl Fn(u64) -> String) -> Row {
    let accepted = show(largest.accepted);
    let how = largest.how.as_ref().map_or_else(String::new, |how| format!(" {}", how_words(how)));
    if let Some(total) = largest.total {
        let total = show(total);
        return row(
            name,
            State::Bad,
            format!("{accepted} passes; a connection ends after about {total} in total{how}"),
        );
    }
    match (&largest.refused, &largest.ended) {
        (Some(refused), _) => {
            row(name, State::Done, format!("{accepted} passes, {} is refused{how}", show(*refused)))
        }
        (None, Some(ended)) => {
            row(name, State::Done, format!("{accepted} passes; no larger one was tried: {ended}"))
        }
        (None, None) => row(name, State::Good, format!("{accepted} passes, the largest that was tried")),
    }
}

fn closes(closes: &[ClosePassage]) -> Option<Row> {
    if closes.is_empty() {
        return None;
    }
    let words: Vec<String> = closes
        .iter()
        .map(|close| match close.returned {
            Some(code) if code == close.sent => code.to_string(),
            Some(code) => format!("{} as {code}", close.sent),
            None if close.answered => format!("{} without a code", close.sent),
            None => format!("{} unanswered", close.sent),
        })
        .collect();
    let is_same = closes.iter().all(|close| close.returned == Some(close.sent));
    let state = if is_same { State::Good } else { State::Done };
    Some(row("close codes", state, format!("come back: {}", words.join(", "))))
}

fn crowd(crowd: &Crowd) -> Row {
    let mut words =
        format!("{} of {} open at once, {:.0} each second", crowd.most_open, crowd.asked, crowd.rate);
    if crowd.expired > 0 {
        words = format!("{} of {} opened, {:.0} each second", crowd.opened, crowd.asked, crowd.rate);
        words += &format!("; {} of them were cut at the limit above", crowd.expired);
    }
    let is_good = crowd.refused.is_none() && crowd.lost == 0;
    let refused =
        crowd.refused.as_ref().map_or_else(String::new, |refused| format!("; refused: {}", refused.words));
    row("connections", good_if(is_good), words + &refused)
}

fn reconnect(reconnect: &Reconnect) -> Row {
    let words = match (reconnect.accepted_rate, reconnect.refused_rate) {
        (Some(accepted), Some(refused)) => {
            format!("{accepted:.0} each second accepted, {refused:.0} refused")
        }
        (Some(accepted), None) => format!("{accepted:.0} each second accepted"),
        (None, Some(refused)) => format!("{refused:.0} each second refused"),
        (None, None) => format!("{} opened", reconnect.opened),
    };
    row("reconnects", good_if(reconnect.refused.is_none()), words)
}

fn millis(ms: f64) -> String {
    match ms {
        10_000.0.. => format!("{:.0} s", ms / 1e3),
        1_000.0.. => format!("{:.1} s", ms / 1e3),
        10.0.. => format!("{ms:.0} ms"),
        _ => format!("{ms:.1} ms"),
    }
}
