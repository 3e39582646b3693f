//! The timeline of a client in words, with times: what happened, and why it reconnected.

use std::time::{Duration, Instant, SystemTime};

use mainstay::server::timeline::{Attach, Entry, Event};
use serde_json::{Value, json};

/// The times of a timeline as times of the day, by the clock as it is now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calendar {
    now: Instant,
    today: SystemTime,
}

impl Calendar {
    pub(super) fn now() -> Self {
        Self { now: Instant::now(), today: SystemTime::now() }
    }

    /// Returns a time as RFC 3339 writes it, in UTC, to the millisecond.
    pub(super) fn date(self, at: Instant) -> String {
        let ago = self.now.saturating_duration_since(at);
        let time = self.today.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        humantime::format_rfc3339_millis(time).to_string()
    }
}

/// Returns an entry as an object.
pub(super) fn object(entry: &Entry, calendar: Calendar) -> Value {
    let mut object = json!({
        "at": calendar.date(entry.at),
        "client": entry.client.map(|client| client.to_string()),
        "event": entry.event.as_str(),
        "text": entry.event.to_string(),
    });
    if let Some(why) = why(&entry.event) {
        object["why"] = why.into();
    }
    object
}

/// Returns the evidence or the reason of an event in one word.
pub(super) fn why(event: &Event) -> Option<&'static str> {
    match event {
        Event::Lost { why, .. } | Event::BackendLost(why) | Event::BackendUnreachable(why) => {
            Some(why.as_str())
        }
        Event::Ended { cause, .. } => Some(cause.as_str()),
        _ => None,
    }
}

/// Answers why a client reconnected: one sentence for each connection that was lost or replaced, with what became of it.
pub(super) fn reconnects(entries: &[Entry], calendar: Calendar) -> Vec<String> {
    let mut sentences = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let at = calendar.date(entry.at);
        match entry.event {
            Event::Lost { .. } => {
                let after = entries[index + 1..].iter().find_map(|later| afterwards(entry, later));
                let after = after.unwrap_or_else(|| "it has not come back since".to_owned());
                let asked = asked_before(&entries[..index]);
                sentences.push(format!("{at}: {}{asked}; {after}.", entry.event));
            }
            Event::Attached { epoch, how: Attach::Replaced, .. } => {
                let asked = asked_before(&entries[..index]);
                let before = epoch.saturating_sub(1);
                sentences.push(format!(
                    "{at}: the client replaced connection {before} by another, before the server found it lost{asked}."
                ));
            }
            Event::Attached { how: Attach::AfterLoss, .. } => {
                sentences.push(format!("{at}: {}.", entry.event));
            }
            _ => {}
        }
    }
    sentences
}

/// Returns what a later entry says of a lost connection's client.
fn afterwards(lost: &Entry, later: &Entry) -> Option<String> {
    let after = in_seconds(later.at.saturating_duration_since(lost.at));
    match later.event {
        Event::Attached { epoch, address, .. } => {
            let from = address.map_or_else(String::new, |address| format!(" from {address}"));
            Some(format!("the client was back after {after}, with connection {epoch}{from}"))
        }
        Event::Ended { .. } => {
            Some(format!("the client did not come back, and after {after} {}", later.event))
        }
        _ => None,
    }
}

/// Returns that the server asked the client to leave the connection that was lost or replaced, if it did.
fn asked_before(before: &[Entry]) -> &'static str {
    let on_this_connection =
        before.iter().rev().take_while(|entry| !matches!(entry.event, Event::Attached { .. }));
    let was_asked = on_this_connection.into_iter().any(|entry| matches!(entry.event, Event::AskedToLeave(_)));
    if was_asked { ", after the server had asked it to leave" } else { "" }
}

fn in_seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use mainstay::Evidence;
    use mainstay::server::EndCause;
    use mainstay::server::timeline::{ClientName, Loss};

    use super::*;

    /// The sentences about one client, to which this happened, each a second after the one before.
    fn sentences(events: &[Event]) -> Vec<String> {
        let start = Instant::now();
        let today = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let calendar = Calendar { now: start, today };
        let client = Some(ClientName::Plain { place: 0, came: 0 });
        let entry = |(number, event): (u64, &Event)| {
            // The latest happened at the calendar's time.
            let ago = Duration::from_secs(events.len() as u64 - number);
            Entry { at: start.checked_sub(ago).unwrap(), client, event: *event }
        };
        let entries: Vec<_> = (1..).zip(events).map(entry).collect();
        let sentences = reconnects(&entries, calendar);
        sentences.iter().map(|sentence| sentence.trim_start_matches("2027-01-15T").to_owned()).collect()
    }

    fn attached(epoch: u64, how: Attach) -> Event {
        Event::Attached { epoch, address: "10.0.0.7:5000".parse().ok(), how }
    }

    #[test]
    fn each_lost_connection_is_a_sentence_with_its_evidence_and_the_return() {
        let events = [
            attached(1, Attach::New),
            Event::Lost { epoch: 1, why: Loss::Dead(Evidence::Silent) },
            Event::BackendReached,
            attached(2, Attach::Resumed),
            Event::Lost { epoch: 2, why: Loss::Reset },
        ];
        assert_eq!(
            sentences(&events),
            [
                "07:59:57.000Z: connection 1 was lost: the client was silent: no byte came after a probe; the client was \
                 back after 2.0 s, with connection 2 from 10.0.0.7:5000.",
                "08:00:00.000Z: connection 2 was lost: the client or something between reset it; it has not come back since.",
            ]
        );
    }

    #[test]
    fn a_session_that_ended_says_after_how_long() {
        let events = [
            Event::Lost { epoch: 4, why: Loss::Ended },
            Event::Ended { cause: EndCause::Expired, code: None },
        ];
        assert_eq!(
            sentences(&events),
            [
                "07:59:59.000Z: connection 4 was lost: the client ended it without a Close; the client did not come back, and \
              after 1.0 s the session ended: the client was away for longer than the resume window."
            ]
        );
    }

    #[test]
    fn a_client_that_was_asked_to_leave_did_as_it_was_asked() {
        use mainstay_proto::session::Leave;
        let events = [
            attached(1, Attach::New),
            Event::AskedToLeave(Leave::Old),
            attached(2, Attach::Replaced),
            attached(3, Attach::Replaced),
        ];
        let found = sentences(&events);
        assert!(found[0].ends_with("found it lost, after the server had asked it to leave."), "{found:?}");
        assert!(
            found[1].ends_with("replaced connection 2 by another, before the server found it lost."),
            "{found:?}"
        );
    }
}
