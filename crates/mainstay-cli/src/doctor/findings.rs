//! Findings of the measurements beside the cuts of [`verdict`](super::verdict): sizes, closes, compression, many connections.

use super::cutters;
use super::measured::{
    ClosePassage, Compression, Crowd, CutHow, Idle, Largest, Limit, Measured, Reconnect, Refused,
};
use super::report::{Finding, Severity};
use super::words::{size, span};

/// Messages up to this size should pass everywhere.
const SMALL_MESSAGE: u64 = 64 * 1024;
/// A message of this many fragments should pass everywhere.
const FEW_FRAGMENTS: u64 = 16;
/// The status that asks a client to slow down.
const TOO_MANY: u16 = 429;

/// Returns them all. `is_beside`: the connection that showed the facts stayed open beside the measured ones.
pub(super) fn of(measured: &Measured, is_beside: bool) -> Vec<Finding> {
    let is_random = measured.crowd.as_ref().is_some_and(Crowd::is_refused_at_random);
    let found = [
        measured.idle.as_ref().and_then(unanswered_pings),
        restarts(measured),
        measured.largest_message.as_ref().and_then(messages),
        measured.fragments.as_ref().and_then(fragments),
        measured.compression.as_ref().and_then(compression),
        replaced_codes(&measured.close_codes),
        unanswered_closes(&measured.close_codes),
        measured.crowd.as_ref().and_then(|measured| crowd(measured, u32::from(is_beside))),
        // What refuses now and then refuses at any rate.
        measured.reconnect.as_ref().filter(|_| !is_random).and_then(reconnect),
    ];
    found.into_iter().flatten().collect()
}

fn finding<const N: usize>(
    id: &'static str,
    severity: Severity,
    words: String,
    advice: [&str; N],
) -> Finding {
    Finding { id, severity, words, advice: advice.map(str::to_owned).to_vec() }
}

fn unanswered_pings(idle: &Idle) -> Option<Finding> {
    let Limit::Cut { after, .. } = &idle.unanswered_pings else { return None };
    let words = format!(
        "The server ends connections whose client leaves its Pings unanswered, after {}.",
        span(*after)
    );
    let advice = ["Nothing: so it finds dead clients. A client that does not answer Pings is ended, too."];
    Some(finding("ends-unanswered-pings", Severity::Note, words, advice))
}

fn restarts(measured: &Measured) -> Option<Finding> {
    let times = &measured.lifetime.as_ref()?.restarts;
    let times: Vec<String> = times.iter().map(|&at| span(at)).collect();
    if times.is_empty() {
        return None;
    }
    let words = format!(
        "Connections of different ages ended at once, {} after the beginning: a restart, a deploy or a reload of a proxy.",
        times.join(" and ")
    );
    let advice = ["If it was none of yours, look for what restarts: the server, or a proxy in front of it."];
    Some(finding("restart", Severity::Problem, words, advice))
}

fn messages(largest: &Largest) -> Option<Finding> {
    if let Some(total) = largest.total {
        return Some(total_finding(&format!("{} of messages", size(total)), largest.how.as_ref()));
    }
    let refused = largest.refused?;
    if largest.accepted == 0 {
        let words = format!("The server returned no message{}.", refusal(largest.how.as_ref()));
        let advice =
            ["It does not echo what the doctor sends: leave out --echo, or name a path that echoes."];
        return Some(finding("no-echo", Severity::Problem, words, advice));
    }
    let severity = if refused <= SMALL_MESSAGE { Severity::Problem } else { Severity::Note };
    let words = format!(
        "Messages of {} pass, one of {} does not{}.",
        size(largest.accepted),
        size(refused),
        refusal(largest.how.as_ref())
    );
    let mut advice = vec![
        "If your messages are larger, raise the server's limit (mainstay serve --max-message).".to_owned(),
    ];
    if let Some(cutter) = cutters::of_message_limit(largest.accepted, refused) {
        advice.push(format!("{} has such a limit: {}.", cutter.name, cutter.source));
    }
    Some(Finding { id: "message-limit", severity, words, advice })
}

/// What ended the connection counts all that it carried.
fn total_finding(total: &str, how: Option<&CutHow>) -> Finding {
    let words = format!(
        "A connection ends after about {total} in each direction, whatever the size of one{}.",
        refusal(how)
    );
    let advice = [
        "Look for a limit of bytes for each connection, a quota of the server or of a proxy, or for a path that breaks under load.",
    ];
    finding("total-limit", Severity::Problem, words, advice)
}

fn fragments(largest: &Largest) -> Option<Finding> {
    if let Some(total) = largest.total {
        return Some(total_finding(&format!("{total} fragments"), largest.how.as_ref()));
    }
    let refused = largest.refused?;
    let severity = if refused <= FEW_FRAGMENTS { Severity::Problem } else { Severity::Note };
    let words = format!(
        "A message of {} fragments passes, one of {refused} does not{}.",
        largest.accepted,
        refusal(largest.how.as_ref())
    );
    let advice =
        ["A client that fragments its messages has to use fewer fragments, or the server to accept more."];
    Some(finding("fragment-limit", severity, words, advice))
}

fn refusal(how: Option<&CutHow>) -> String {
    match how {
        Some(CutHow::Close { code: Some(code), .. }) => format!(": code {code}"),
        Some(CutHow::Fin) => ": the connection ends without a Close".into(),
        Some(CutHow::Reset | CutHow::ResetOnSend) => ": the connection is reset without a Close".into(),
        Some(CutHow::Silent) => ": it gets no answer".into(),
        _ => String::new(),
    }
}

fn compression(compression: &Compression) -> Option<Finding> {
    if compression.returned_same != Some(false) {
        return None;
    }
    let words =
        "A compressed message did not come back, and one of that size without compression did: the server or something on the \
         way breaks permessage-deflate."
            .to_owned();
    let advice =
        ["Turn compression off at the server until that is found, and look for a proxy that changes frames."];
    Some(finding("compression-broken", Severity::Problem, words, advice))
}

fn replaced_codes(closes: &[ClosePassage]) -> Option<Finding> {
    let replaced: Vec<String> = closes
        .iter()
        .filter(|close| close.answered && close.returned != Some(close.sent))
        .map(|close| match close.returned {
            Some(code) => format!("{} as {code}", close.sent),
            None => format!("{} without a code", close.sent),
        })
        .collect();
    if replaced.is_empty() {
        return None;
    }
    let words = format!("Close codes do not come back as they were sent: {}.", replaced.join(", "));
    let advice = ["Do not let clients act on codes that they get back to their own Close."];
    Some(finding("close-code-replaced", Severity::Note, words, advice))
}

fn unanswered_closes(closes: &[ClosePassage]) -> Option<Finding> {
    let unanswered: Vec<String> =
        closes.iter().filter(|close| !close.answered).map(|close| close.sent.to_string()).collect();
    if unanswered.is_empty() {
        return None;
    }
    let words = format!("No Close answers a Close with code {}.", unanswered.join(", "));
    let advice = [
        "The server has to answer each Close (RFC 6455 section 5.5.1): clients wait for the answer until they give up, and report 1006.",
    ];
    Some(finding("close-unanswered", Severity::Note, words, advice))
}

fn crowd(crowd: &Crowd, beside: u32) -> Option<Finding> {
    if crowd.lost > 0 {
        let words = format!(
            "{} of {} connections from here ended by themselves while the others were opened; {} stayed open.",
            crowd.lost,
            crowd.opened,
            crowd.opened.saturating_sub(crowd.lost) + beside
        );
        let advice = [
            "Look for a limit of connections for each address, or a server that has too little memory or too few descriptors.",
        ];
        return Some(finding("crowd-lost", Severity::Problem, words, advice));
    }
    let refused = crowd.refused.as_ref()?;
    if crowd.is_refused_at_random() {
        let words = format!(
            "{} of {} openings from here were refused, and others between them accepted: {}.",
            crowd.refusals,
            crowd.refusals + crowd.opened,
            refused_words(refused)
        );
        let advice = [
            "It is no limit of connections. Look for one of several servers that refuses, or one that has too much to do; clients have to try again, at random times.",
        ];
        return Some(finding("refused-at-random", severity_of(refused), words, advice));
    }
    let words = format!(
        "No more than {} connections from here could be open at once: {}.",
        crowd.most_open + beside,
        refused_words(&Refused { number: refused.number + beside, ..refused.clone() })
    );
    let advice = [
        "Clients behind one address, such as an office, share that limit: raise it if it is meant for one client.",
    ];
    Some(finding("crowd-limit", severity_of(refused), words, advice))
}

fn reconnect(reconnect: &Reconnect) -> Option<Finding> {
    let refused = reconnect.refused.as_ref()?;
    let rate = reconnect.refused_rate.map_or_else(String::new, |rate| format!(" at {rate:.0} each second"));
    let words =
        format!("One client that reconnects again and again is refused{rate}: {}.", refused_words(refused));
    let advice = match refused.retry_after_ms {
        Some(_) => "Nothing: Retry-After says when to come back, and clients have to wait that long.",
        None => "Send Retry-After with the refusal, and let clients wait longer after each one, at random.",
    };
    Some(finding("reconnect-limit", severity_of(refused), words, [advice]))
}

/// A refusal by 429 is deliberate.
fn severity_of(refused: &Refused) -> Severity {
    if refused.status == Some(TOO_MANY) { Severity::Note } else { Severity::Problem }
}

fn refused_words(refused: &Refused) -> String {
    let wait =
        refused.retry_after_ms.map_or_else(String::new, |wait| format!(", Retry-After {:.0} s", wait / 1e3));
    match refused.status {
        Some(status) => format!("number {} got status {status}{wait}", refused.number),
        None => format!("number {} failed: {}", refused.number, refused.words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd_of(opened: u32, first: u32, refusals: u32) -> Measured {
        let refused = Refused { number: first, status: Some(503), ..Refused::default() };
        let crowd = Crowd {
            asked: 59,
            opened,
            most_open: opened,
            refused: Some(refused.clone()),
            refusals,
            ..Crowd::default()
        };
        let reconnect =
            Reconnect { refused: Some(refused), refused_rate: Some(10.0), ..Reconnect::default() };
        Measured { crowd: Some(crowd), reconnect: Some(reconnect), ..Measured::default() }
    }

    #[test]
    fn openings_that_are_refused_now_and_then_are_no_limit_of_connections_or_of_their_rate() {
        let found = of(&crowd_of(35, 1, 24), true);
        assert_eq!(found.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["refused-at-random"]);
        assert!(found[0].words.starts_with("24 of 59 openings"), "{found:?}");
    }

    #[test]
    fn a_limit_of_connections_counts_the_one_that_is_open_beside_them() {
        let found = of(&crowd_of(9, 10, 3), true);
        assert_eq!(
            found.iter().map(|finding| finding.id).collect::<Vec<_>>(),
            ["crowd-limit", "reconnect-limit"]
        );
        assert!(found[0].words.starts_with("No more than 10 connections"), "{found:?}");
        assert!(found[0].words.contains("number 11 got status 503"), "{found:?}");
        assert!(of(&crowd_of(9, 10, 3), false)[0].words.starts_with("No more than 9 connections"));
    }

    fn ids(largest: Largest) -> Vec<(&'static str, String)> {
        let found = of(&Measured { largest_message: Some(largest), ..Measured::default() }, true);
        found.into_iter().map(|finding| (finding.id, finding.words)).collect()
    }

    #[test]
    fn a_server_that_returns_nothing_and_a_limit_of_all_bytes_are_no_limit_of_one_message() {
        let closed = CutHow::Close { code: Some(4000), reason: "unknown message".into() };
        let largest = Largest { accepted: 0, refused: Some(8), how: Some(closed), total: None, ended: None };
        assert_eq!(ids(largest), [("no-echo", "The server returned no message: code 4000.".to_owned())]);
        let largest = Largest {
            accepted: 65_536,
            refused: None,
            how: Some(CutHow::Reset),
            total: Some(129_024),
            ended: None,
        };
        assert_eq!(ids(largest)[0].0, "total-limit");
    }
}
