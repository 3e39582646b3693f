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

/// Returns them all.
pub(super) fn of(measured: &Measured) -> Vec<Finding> {
    let found = [
        measured.idle.as_ref().and_then(unanswered_pings),
        restarts(measured),
        measured.largest_message.as_ref().and_then(messages),
        measured.fragments.as_ref().and_then(fragments),
        measured.compression.as_ref().and_then(compression),
        replaced_codes(&measured.close_codes),
        unanswered_closes(&measured.close_codes),
        measured.crowd.as_ref().and_then(crowd),
        measured.reconnect.as_ref().and_then(reconnect),
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
    let refused = largest.refused?;
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

fn fragments(largest: &Largest) -> Option<Finding> {
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
        "A compressed message came back changed: something on the way breaks permessage-deflate.".to_owned();
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

fn crowd(crowd: &Crowd) -> Option<Finding> {
    if crowd.lost > 0 {
        let words = format!(
            "{} of {} connections from here ended by themselves while the others were opened.",
            crowd.lost, crowd.opened
        );
        let advice = [
            "Look for a limit of connections for each address, or a server that has too little memory or too few descriptors.",
        ];
        return Some(finding("crowd-lost", Severity::Problem, words, advice));
    }
    let refused = crowd.refused.as_ref()?;
    let words = format!(
        "No more than {} of {} connections from here could be open at once: {}.",
        crowd.most_open,
        crowd.asked,
        refused_words(refused)
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
