//! A session that moves to another node, or to the next process: what it takes along, and how it leaves.
//!
//! A link cannot move, so the session's next handler opens a new one. It continues where this one ends:
//!
//! - What the backend sent before it answered this link's Close is passed on to the client. What the session has no room for
//!   moves along, and goes first.
//! - What the backend confirmed is acknowledged to the client. The rest comes again from the client, unless `--delivery
//!   at-most-once` forbids to send it a second time.
//! - The recorded prologue, as it was behind the last acknowledged message.
//!
//! The handler has 5 s to return, so a backend that does not answer the Close is given up before that. What it sends then is
//! lost, as with any lost connection: the client gets the mark of a replaced connection in any case.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainstay::client::{EndCause, Event, Incoming, Lost, Report};
use mainstay::server::Sender as ToClient;
use mainstay::{CloseCode, Guarantee, Link, Message, SendError, Session};
use tokio::time::{Instant, sleep_until};

use crate::protocols::backend_end::BackendEnd;
use crate::protocols::message_filter::MessageFilter;
use crate::protocols::prologue::{Prologue, Rules};
use crate::protocols::saved::{Malformed, Reader, Writer};
use crate::routes::route::Route;
use crate::upstream::links::LinkMonitor;

/// How long the backend has to answer the Close of a session that leaves.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum payload of the messages that move along because the session has no room for them.
const MAX_UNSENT: usize = 1024 * 1024;

/// What a session brings along from another node.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Messages of the backend that the client has not got, the oldest first.
    pub(crate) unsent: VecDeque<Message>,
    pub(crate) prologue: Option<Box<Prologue>>,
}

impl Restored {
    /// Reads what [`save`] wrote.
    ///
    /// # Errors
    /// Another version of the gateway wrote it, or one with other rules; or it is damaged.
    pub(crate) fn read(saved: &[u8], rules: Option<&Arc<Rules>>) -> Result<Self, Malformed> {
        let mut from = Reader::new(saved)?;
        let unsent = (0..from.number()?).map(|_| from.message()).collect::<Result<_, _>>()?;
        let prologue = match (from.flag()?, rules) {
            (true, Some(rules)) => Some(Box::new(Prologue::restore(Arc::clone(rules), &mut from)?)),
            (false, None) => None,
            _ => return Err(Malformed),
        };
        from.finish()?;
        Ok(Self { unsent, prologue })
    }
}

/// Returns the bytes of what a session takes along; `settled` is the last message that its client will not send again.
fn save(unsent: &VecDeque<Message>, filter: &MessageFilter, settled: u64) -> Vec<u8> {
    let mut to = Writer::new();
    to.number(unsent.len() as u64);
    unsent.iter().for_each(|message| to.message(message));
    filter.save(settled, &mut to);
    to.into_bytes()
}

/// Where the exchange of a session stands when the session leaves.
pub(crate) struct Underway {
    /// Messages of the client that the link accepted.
    pub(crate) sent: u64,
    /// How many of them are acknowledged to the client.
    pub(crate) acknowledged: u64,
    /// Messages of the backend that the session had no room for.
    pub(crate) unsent: VecDeque<Message>,
    /// What the link's events showed so far.
    pub(crate) end: BackendEnd,
}

/// Closes the link in order, and saves what the session takes along. One that may not move ends here: then the backend's answer makes
/// its account exact. Returns how the backend ended the link, if the backend
/// did that first: the session then ends here.
pub(crate) async fn leave(
    session: &Session,
    mut link: Link,
    filter: &MessageFilter,
    monitor: &mut LinkMonitor,
    route: &Route,
    underway: Underway,
) -> Option<BackendEnd> {
    let Underway { sent, acknowledged, mut unsent, mut end } = underway;
    link.close_and_read(CloseCode::GOING_AWAY, "");
    pass_on_the_rest(&session.sender(), &mut link, filter, &mut unsent).await;
    let (mut is_backends, mut closed) = (false, None);
    while let Some(event) = link.event().await {
        // What was not confirmed comes again from the client: no message is missing for that.
        let comes_again = route.movable
            && match &event {
                Event::Report(Report::Unknown(_)) => route.settings.guarantee == Guarantee::AtLeastOnce,
                Event::Report(Report::NotDelivered(_)) => true,
                _ => false,
            };
        is_backends |= matches!(&event, Event::Ended(ended) if ended.cause == EndCause::Peer);
        if is_backends && let Some(closed) = closed.take() {
            monitor.observe(&closed);
        }
        match &event {
            // The backend's answer to this Close is no lost connection, unless it is a Close of its own.
            Event::Detached { why: Lost::Closed { .. }, .. } => closed = Some(event.clone()),
            _ if comes_again => {}
            _ => monitor.observe(&event),
        }
        if end.handle_event(event) {
            break;
        }
    }
    if is_backends {
        return Some(end);
    }
    let (delivered, unknown) = end.fates(sent);
    let passed_on = match route.settings.guarantee {
        // No message goes out a second time. (A session that ends here reports what is unknown.)
        Guarantee::AtMostOnce if route.movable => delivered + unknown,
        _ => delivered,
    };
    let settled = passed_on.max(acknowledged);
    session.ack_oldest(settled - acknowledged);
    session.save(save(&unsent, filter, settled));
    None
}

/// Passes on what the backend sends until it answers the Close, or until it is given up.
async fn pass_on_the_rest(
    to_client: &ToClient,
    link: &mut Link,
    filter: &MessageFilter,
    unsent: &mut VecDeque<Message>,
) {
    let until = Instant::now() + ANSWER_TIMEOUT;
    let mut bytes: usize = unsent.iter().map(Message::len).sum();
    loop {
        let incoming = tokio::select! {
            biased;
            incoming = filter.next(link) => incoming,
            () = sleep_until(until) => {
                return link.abandon("the backend did not answer the Close of a session that leaves");
            }
        };
        match incoming {
            Ok(Some(Incoming::Message(message))) => {
                bytes += message.len();
                keep_in_order(to_client, message, unsent);
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => return link.abandon(&error.to_string()),
        }
        if bytes > MAX_UNSENT && !unsent.is_empty() {
            return link.abandon("the backend sends more than a session takes along that leaves");
        }
    }
}

/// Sends a message to the client behind those that wait, or has it wait.
fn keep_in_order(to_client: &ToClient, message: Message, unsent: &mut VecDeque<Message>) {
    if !unsent.is_empty() {
        return unsent.push_back(message);
    }
    if let Err(SendError::Full(message)) = to_client.try_send(message) {
        unsent.push_back(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_without_room_are_read_as_they_were_saved_and_nothing_else_is_read() {
        let unsent = [Message::text("a"), Message::binary(&b"\xff"[..])];
        let mut to = Writer::new();
        to.number(2);
        unsent.iter().for_each(|message| to.message(message));
        to.flag(false);
        let bytes = to.into_bytes();
        let restored = Restored::read(&bytes, None).unwrap();
        assert!(restored.unsent == unsent && restored.prologue.is_none());
        let rules = Arc::new(Rules::default());
        assert!(
            Restored::read(&bytes, Some(&rules)).is_err(),
            "saved without rules, and continued with some"
        );
        for length in 0..bytes.len() {
            assert!(Restored::read(&bytes[..length], None).is_err(), "{length}");
        }
    }
}
