//! What becomes of the backend's messages for a client that does not take them in time, per route.
//!
//! By default the backend waits. The alternatives are for data where one slow client must not hold the backend up: the client
//! is closed after a time, or it loses messages: the oldest, or all but the latest for each key. A session gets a gap in
//! place of what it lost.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use mainstay::client::Incoming;
use mainstay::server::{Sender as ToClient, SessionState};
use mainstay::{CloseCode, Kept, Link, Message};
use tokio::time::timeout;

use crate::config::limits::SlowClients;
use crate::protocols::message_filter::MessageFilter;
use crate::protocols::prologue::ReplayError;
use crate::request::retry_after::{SPREAD, jitter};
use crate::routes::route::Route;
use crate::upstream::links::Links;

/// How many messages, and bytes of them, wait for a client that loses messages. The oldest are dropped above it.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 1 << 20;

/// Messages that wait for room, beside the queue that holds them.
struct Waiting<'a> {
    policy: &'a SlowClients,
    messages: &'a mut VecDeque<Message>,
    /// The key of each message, in the same order.
    keys: VecDeque<Option<String>>,
    /// Where a key is: its place, counted from the first message that ever waited.
    places: HashMap<String, u64>,
    /// The place of the first message.
    first: u64,
    bytes: usize,
    kept: Kept,
}

impl<'a> Waiting<'a> {
    fn new(policy: &'a SlowClients, messages: &'a mut VecDeque<Message>, kept: Kept) -> Self {
        let begun = std::mem::take(messages);
        let (keys, places) = (VecDeque::new(), HashMap::new());
        let mut waiting = Self { policy, messages, keys, places, first: 0, bytes: 0, kept };
        begun.into_iter().for_each(|message| _ = waiting.push(message));
        waiting
    }

    /// Adds a message. Returns how many others were left out for it.
    fn push(&mut self, message: Message) -> u64 {
        let key = self.key(&message);
        let place = key.as_ref().and_then(|key| self.places.get(key));
        let index = place.and_then(|place| usize::try_from(place - self.first).ok());
        let left_out = match index.and_then(|index| self.messages.get_mut(index)) {
            // In its place: a key that changes often would never reach the front otherwise.
            Some(older) => {
                self.bytes = self.bytes + message.len() - older.len();
                *older = message;
                1
            }
            None => {
                if let Some(key) = &key {
                    self.places.insert(key.clone(), self.first + self.messages.len() as u64);
                }
                self.bytes += message.len();
                self.keys.push_back(key);
                self.messages.push_back(message);
                self.shrink()
            }
        };
        self.kept.set(self.bytes as u64);
        left_out
    }

    /// Drops the oldest until the rest fits. One message stays in any case.
    fn shrink(&mut self) -> u64 {
        let mut dropped = 0;
        while self.messages.len() > 1 && (self.messages.len() > WAITING || self.bytes > WAITING_BYTES) {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    /// Removes the first message: it was sent, or is dropped.
    fn pop(&mut self) {
        let Some(message) = self.messages.pop_front() else { return };
        self.bytes -= message.len();
        if let Some(key) = self.keys.pop_front().flatten() {
            self.places.remove(&key);
        }
        self.first += 1;
        self.kept.set(self.bytes as u64);
    }

    async fn send_all(&mut self, to_client: &ToClient) {
        send_waiting(to_client, self.messages).await;
        while self.keys.pop_front().is_some() {
            self.first += 1;
        }
        self.places.clear();
        self.bytes = 0;
        self.kept.set(0);
    }

    /// The value at the pointer, as JSON. `None`: the message replaces none, and none replaces it.
    fn key(&self, message: &Message) -> Option<String> {
        let SlowClients::Latest { pointer } = self.policy else { return None };
        let json: serde_json::Value = serde_json::from_slice(message.payload()).ok()?;
        json.pointer(pointer).map(ToString::to_string)
    }
}

/// How delivering to a slow client ended, other than by having sent everything.
pub(crate) enum Ended {
    /// The link has ended.
    Link,
    /// The prologue could not be replayed.
    Replay(ReplayError),
}

/// Sends what waits for a client whose window is full, and does meanwhile what the route says.
///
/// # Errors
/// The link has ended; everything that waited was sent, unless a replay failed.
pub(crate) async fn deliver(
    route: &Route,
    link: &mut Link,
    to_client: &ToClient,
    filter: &MessageFilter,
    unsent: &mut VecDeque<Message>,
) -> Result<(), Ended> {
    match &route.slow_clients {
        SlowClients::Pause => send_waiting(to_client, unsent).await,
        SlowClients::Close { after, code } => {
            send_or_close(to_client, unsent, *after, *code, &route.links).await
        }
        policy @ (SlowClients::DropOldest | SlowClients::Latest { .. }) => {
            let waiting = Waiting::new(policy, unsent, route.server.budget().keep());
            return send_the_latest(waiting, link, to_client, filter, &route.links).await;
        }
    }
    Ok(())
}

/// Sends what waits for room. Dropped while it waits, it leaves the message where it is.
pub(crate) async fn send_waiting(to_client: &ToClient, unsent: &mut VecDeque<Message>) {
    while let Some(message) = unsent.front() {
        let _ = to_client.send(message.clone()).await;
        unsent.pop_front();
    }
}

/// Closes the client if it has taken nothing for `after` while it was connected. A client that is away is not slow.
async fn send_or_close(
    to_client: &ToClient,
    unsent: &mut VecDeque<Message>,
    after: Duration,
    code: CloseCode,
    links: &Links,
) {
    let is_there = || matches!(to_client.state(), SessionState::Attached { .. });
    loop {
        let was_there = is_there();
        if timeout(after, send_waiting(to_client, unsent)).await.is_ok() {
            return;
        }
        if was_there && is_there() {
            let reason = match code {
                CloseCode::TRY_AGAIN => {
                    let wait = Duration::from_secs(1) + jitter(SPREAD);
                    format!("retry_ms={}, the client takes too little", wait.as_millis())
                }
                _ => "the client takes too little".to_owned(),
            };
            if links.slow_closed() == 0 {
                tracing::warn!(%code, "a client was closed because it takes too little; later ones are only counted");
            }
            return to_client.abort(code, &reason);
        }
    }
}

async fn send_the_latest(
    mut waiting: Waiting<'_>,
    link: &mut Link,
    to_client: &ToClient,
    filter: &MessageFilter,
    links: &Links,
) -> Result<(), Ended> {
    while let Some(message) = waiting.messages.front().cloned() {
        let next = tokio::select! {
            biased;
            _ = to_client.send(message) => {
                waiting.pop();
                continue;
            }
            next = filter.next(link) => next,
        };
        match next {
            Ok(Some(Incoming::Message(message))) => {
                let left_out = waiting.push(message);
                if left_out > 0 {
                    to_client.skip(left_out);
                    links.slow_lost(left_out);
                }
            }
            Ok(Some(Incoming::FreshPeer { .. })) => {
                // What waits is from before.
                waiting.send_all(to_client).await;
                to_client.note_replaced();
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                waiting.send_all(to_client).await;
                return Err(Ended::Link);
            }
            Err(error) => return Err(Ended::Replay(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mainstay::Budget;

    use super::*;

    fn texts(messages: &VecDeque<Message>) -> Vec<String> {
        messages.iter().map(|message| String::from_utf8_lossy(message.payload()).into_owned()).collect()
    }

    /// What waits after these messages came, and how many were left out.
    fn waits(policy: &SlowClients, came: &[&str]) -> (Vec<String>, u64) {
        let (mut messages, budget) = (VecDeque::new(), Budget::unlimited());
        let mut waiting = Waiting::new(policy, &mut messages, budget.keep());
        let left_out = came.iter().map(|text| waiting.push(Message::text(*text))).sum();
        assert_eq!(waiting.bytes, waiting.messages.iter().map(Message::len).sum::<usize>());
        drop(waiting);
        (texts(&messages), left_out)
    }

    fn latest() -> SlowClients {
        SlowClients::Latest { pointer: "/symbol".to_owned() }
    }

    #[test]
    fn the_latest_message_of_a_key_takes_the_place_of_the_one_that_waits() {
        let came = [
            r#"{"symbol":"A","price":1}"#,
            r#"{"symbol":"B","price":2}"#,
            r#"{"symbol":"A","price":3}"#,
            r#"{"symbol":"A","price":4}"#,
        ];
        assert_eq!(waits(&latest(), &came), (vec![came[3].to_owned(), came[1].to_owned()], 2));
    }

    #[test]
    fn a_message_without_the_key_replaces_none() {
        let came =
            ["1", "not JSON", r#"{"other":1}"#, r#"{"other":1}"#, r#"{"symbol":1}"#, r#"{"symbol":"1"}"#];
        assert_eq!(waits(&latest(), &came), (came.map(str::to_owned).to_vec(), 0));
    }

    #[test]
    fn above_the_bound_the_oldest_messages_are_dropped_and_counted() {
        let came: Vec<String> = (0..WAITING + 10).map(|n| n.to_string()).collect();
        let came: Vec<&str> = came.iter().map(String::as_str).collect();
        for policy in [SlowClients::DropOldest, latest()] {
            let (left, left_out) = waits(&policy, &came);
            assert_eq!((left.len(), left[0].as_str(), left_out), (WAITING, "10", 10));
        }
        let large = "x".repeat(WAITING_BYTES - 10);
        assert_eq!(waits(&SlowClients::DropOldest, &[&large, "1234567890", "y"]).1, 1);
    }

    #[test]
    fn a_key_that_was_sent_waits_anew_and_the_places_of_others_stay() {
        let (policy, mut messages, budget) = (latest(), VecDeque::new(), Budget::new(1 << 30));
        let mut waiting = Waiting::new(&policy, &mut messages, budget.keep());
        let message = |symbol: &str, n: u32| Message::text(format!(r#"{{"symbol":"{symbol}","n":{n}}}"#));
        waiting.push(message("A", 1));
        waiting.push(message("B", 1));
        waiting.pop();
        assert_eq!((waiting.push(message("A", 2)), waiting.push(message("B", 2))), (0, 1));
        waiting.pop();
        waiting.pop();
        assert!(waiting.messages.is_empty() && waiting.places.is_empty() && waiting.bytes == 0);
        assert_eq!(budget.used(), 0);
    }
}
