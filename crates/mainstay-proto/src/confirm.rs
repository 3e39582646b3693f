//! Sending to a peer that speaks plain WebSocket: the Ping is the acknowledgement.
//!
//! An unmodified endpoint answers a Ping after it has read every frame before it. Its Pong proves that its WebSocket
//! stack has *received* those messages, not that the application has. Therefore [`Confirm`] selects what ends the
//! keeping of a message.
//!
//! Messages are numbered from 1 for the life of the link and kept in order. `push` appends, `poll_transmit` writes
//! within the window and adds Pings, each of which names the last whole message before it. One Ping is open at a
//! time: some stacks end a connection over a few dozen. When the connection is lost, the messages that are kept are
//! written again or reported, as [`Guarantee`] says.
//!
//! Every number has one fate: the first [`Outcome`] that covers it.
//!
//! The queue is bounded, and [`WhenFull`] says what happens to a message that does not fit. Only a message that was
//! never written on any connection can be dropped: only then it is certain that the peer does not have it.
//!
//! **A message that ends the connection** (too large, not what the peer expects) would be sent for ever. Therefore
//! the message that is first in line when three connections end is given up. The first in line need not be the cause,
//! it is only the first of a window. So before the third attempt the suspects go out one by one, each with its own
//! Ping. That clears the others and leaves the cause first in line.
//!
//! **A peer that answers no Ping** violates RFC 6455 section 5.5.2, and would stop the link after 64 messages. Once
//! that is known ([`Confirmer::expect_no_pongs`]), the peer is served at-most-once: writing goes on, and a message
//! that has left is unknown and never written again. A Pong ends this mode.
//!
//! Not here: when a peer is dead (`heartbeat`), and what shows that it is alive and answers no Ping (`connect`). A
//! late Pong means a slow peer.
//!
//! # Cursors
//!
//! A *cursor* is a number up to which something holds. Some hold for the link, some for the current connection only.
//!
//! | Cursor | Scope | Everything up to it |
//! |---|---|---|
//! | `last` | link | was pushed |
//! | `reached` | link | was written on some connection, so it is not dropped when the queue is full |
//! | `confirmed` | link | was confirmed on some connection; the rest is the queue |
//! | `settled()` | link | has its fate and is not kept any more |
//! | `line.written` | connection | was written on this connection |
//! | `line.answered` | connection | was written on this connection when the peer's last message arrived |
//! | `line.confirmed` | connection | was confirmed on this connection |
//!
//! A new connection begins with `line.written = line.confirmed = settled`: it writes again what is kept.
//!
//! Source: `docs/PROTOCOL.md` "Plain peers: the ping is the acknowledgement".

mod config;

use std::time::{Duration, Instant};

pub use self::config::{Confirm, ConfirmConfig, Guarantee, WhenFull};
use crate::due::earliest;
use crate::queue::{ByteQueue, Counted};

/// How much may be written and not confirmed.
const WINDOW_MESSAGES: usize = 64;
const WINDOW_BYTES: usize = 256 * 1024;
/// How much makes a Ping due; fewer messages wait for `PING_DELAY`.
const PING_BYTES: usize = 64 * 1024;
const PING_DELAY: Duration = Duration::from_millis(250);
/// How much of the confirmed messages `pong+window` keeps; bounded in bytes too, because large messages would fill
/// the memory.
const KEPT_BACK_MESSAGES: usize = 64;
const KEPT_BACK_BYTES: usize = WINDOW_BYTES;
/// How many connections may end with the same message first in line.
const TRIES: u8 = 3;

/// What to write to the connection, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a, M> {
    /// A message and its number.
    Message(u64, &'a M),
    /// A Ping with this payload. It must leave after the last frame of the message before it; a Ping that overtakes a
    /// fragment would confirm bytes that are not written.
    Ping([u8; 8]),
}

/// What became of messages. A number that was reported before keeps its first fate.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<M> {
    /// The messages up to this number are confirmed, and not kept any more.
    Confirmed(u64),
    /// The messages from the first to the second number may or may not have been received, and are not written again.
    Unknown(u64, u64),
    /// The messages from the first to the second number were never written and never will be.
    NotDelivered(u64, u64),
    /// The connection ended three times with this message first in line. The message is given up.
    Undeliverable(u64, M),
}

/// The queue is full; contains the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the queue to the peer is full")]
pub struct Full<M>(pub M);

/// The sending side of a link to a plain peer. It outlives its connections; the module describes it.
#[derive(Debug)]
pub struct Confirmer<M> {
    config: ConfirmConfig,
    /// In the order of their numbers.
    kept: ByteQueue<Kept<M>>,
    /// The number of the last message.
    last: u64,
    /// The highest number that was written on any connection.
    reached: u64,
    /// The messages up to this number were confirmed on some connection; those behind it are the queue.
    confirmed: u64,
    queue: Load,
    line: Line,
    /// The number that was first in line when the last connection ended, and for how many connections.
    suspect: (u64, u8),
    /// The messages up to this number go out one by one.
    careful_until: u64,
    pongs: Pongs,
    /// The messages that were kept at the end.
    undelivered: Vec<M>,
}

/// Whether the peer answers Pings, on any connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pongs {
    /// No Pong has arrived yet.
    Unknown,
    Come,
    /// No Pong arrives, as far as is known.
    Missing,
}

#[derive(Debug)]
struct Kept<M> {
    number: u64,
    bytes: usize,
    message: M,
}

impl<M> Counted for Kept<M> {
    fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

/// The state of the current connection.
#[derive(Debug, Default)]
struct Line {
    /// Attached, and the peer has sent no Close.
    open: bool,
    /// The messages up to this number are written.
    written: u64,
    /// The messages up to this number are confirmed.
    confirmed: u64,
    /// The messages up to this number were written when the peer's last message arrived.
    answered: u64,
    /// Messages that are written and not confirmed.
    in_flight: Load,
    /// Messages that are confirmed and kept back.
    kept_back: Load,
    /// The position that the open Ping names.
    ping: Option<u64>,
    /// When the open Ping left the process.
    ping_left: Option<Instant>,
    last_ping: Option<Instant>,
    /// When the oldest message after the last Ping was written.
    unpinged: Option<Instant>,
    /// When `probe` was called.
    asked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes -= bytes;
    }
}

impl<M> Confirmer<M> {
    /// Creates a link without messages and without a connection.
    #[must_use]
    pub fn new(config: ConfirmConfig) -> Self {
        Self {
            config,
            kept: ByteQueue::default(),
            last: 0,
            reached: 0,
            confirmed: 0,
            queue: Load::default(),
            line: Line::default(),
            suspect: (0, 0),
            careful_until: 0,
            pongs: config.pongs,
            undelivered: Vec::new(),
        }
    }

    /// Numbers and keeps a message of `bytes` bytes, attached or not. The outcome is about messages that made room
    /// for it, or about the message itself.
    ///
    /// # Errors
    /// The queue is full; the error contains the message.
    pub fn push(&mut self, message: M, bytes: usize) -> Result<(u64, Option<Outcome<M>>), Full<M>> {
        if self.has_room(bytes) {
            return Ok((self.adopt(message, bytes), None));
        }
        if self.config.when_full != WhenFull::DropOldest {
            return Err(Full(message));
        }
        let oldest = self.index_after(self.reached);
        let first = self.kept.items().get(oldest).map_or(self.last + 1, |kept| kept.number);
        let mut dropped = first;
        while !self.has_room(bytes) {
            let Some(gone) = self.kept.remove(oldest) else {
                self.last += 1;
                return Ok((self.last, Some(Outcome::NotDelivered(first, self.last))));
            };
            self.queue.remove(gone.bytes);
            dropped = gone.number;
        }
        Ok((self.adopt(message, bytes), Some(Outcome::NotDelivered(first, dropped))))
    }

    /// Like [`push`](Self::push), whatever the queue holds: for messages that another machine had accepted.
    pub(crate) fn adopt(&mut self, message: M, bytes: usize) -> u64 {
        self.last += 1;
        self.kept.push(Kept { number: self.last, bytes, message });
        self.queue.add(bytes);
        self.last
    }

    /// A connection is attached: everything that is kept is written to it, oldest first.
    pub fn handle_attached(&mut self) {
        debug_assert!(!self.line.open, "the connection before was not reported lost");
        self.line = Line { open: true, ..self.rewound() };
    }

    /// Returns the next thing to write; `None` until something is pushed or confirmed, or time passes.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Output<'_, M>> {
        if self.poll_timeout().is_some_and(|due| due <= now) {
            self.line.ping = Some(self.line.written);
            self.line.last_ping = Some(now);
            (self.line.unpinged, self.line.asked) = (None, None);
            return Some(Output::Ping(self.line.written.to_be_bytes()));
        }
        if self.line.written == self.last {
            return None;
        }
        let index = self.index_after(self.line.written);
        let Kept { number, bytes, message } =
            self.kept.items().get(index).filter(|next| self.has_window(next.bytes))?;
        self.line.written = *number;
        self.reached = self.reached.max(*number);
        self.line.in_flight.add(*bytes);
        self.line.unpinged.get_or_insert(now);
        Some(Output::Message(*number, message))
    }

    /// Returns when a Ping is due; `poll_transmit` then returns it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Line { open: true, ping: None, last_ping, asked, .. } = self.line else { return None };
        if asked.is_none() && self.line.unpinged.is_none() {
            return None;
        }
        let due = earliest([asked, self.unpinged_due()])?;
        Some(last_ping.map_or(due, |last| due.max(last + self.config.min_ping_interval)))
    }

    /// Everything written so far has left the process. A peer that answers no Ping never confirms it.
    pub fn handle_flushed(&mut self, now: Instant) -> Option<Outcome<M>> {
        if self.line.ping.is_some() {
            self.line.ping_left.get_or_insert(now);
        }
        if self.is_without_pongs() { self.forget_written(self.line.written) } else { None }
    }

    /// A Pong arrived. It is ignored if it does not answer the open Ping, or follows the peer's Close.
    pub fn handle_pong(&mut self, payload: &[u8]) -> Option<Outcome<M>> {
        let answered = |position: &mut u64| payload == position.to_be_bytes();
        let position = self.line.ping.take_if(answered)?;
        self.line.ping_left = None;
        self.pongs = Pongs::Come;
        if self.config.confirm == Confirm::Reply {
            return None;
        }
        // Some of these messages were given up in the meantime.
        let position = position.max(self.line.confirmed);
        let covered = self.index_after(self.line.confirmed)..self.index_after(position);
        for Kept { number, bytes, .. } in self.kept.items().range(covered) {
            self.line.in_flight.remove(*bytes);
            self.line.kept_back.add(*bytes);
            if *number > self.confirmed {
                self.queue.remove(*bytes);
            }
        }
        self.line.confirmed = position;
        self.confirmed = self.confirmed.max(position);
        self.release()
    }

    /// With [`Confirm::Reply`]: the application answered the message `number`, or the oldest written message that it
    /// has not answered. An answer that matches no message, or arrives in another mode, is ignored.
    pub fn handle_reply(&mut self, number: Option<u64>) -> Option<Outcome<M>> {
        if self.config.confirm != Confirm::Reply || !self.line.open {
            return None;
        }
        let before = self.settled();
        self.take_written(number.or_else(|| self.first_in_line())?)?;
        self.catch_up(before)
    }

    /// A message of the peer arrived.
    pub fn handle_peer_message(&mut self) {
        self.line.answered = self.line.written;
    }

    /// The peer sent its Close: nothing more is written, and Pongs prove nothing any more. A message that the peer
    /// sent before its Close may answer everything that was written until then: a peer that reads, answers and closes
    /// has processed it. If the Pong is what confirms, none of these messages is written again, because a processed
    /// message must not be processed twice; their fate is unknown. `goes_on`: another connection will follow.
    pub fn handle_peer_close(&mut self, goes_on: bool) -> Option<Outcome<M>> {
        self.line.open = false;
        self.line.ping = None;
        if !goes_on || self.config.confirm != Confirm::Pong {
            return None;
        }
        self.forget_written(self.line.answered)
    }

    /// The connection is gone, for whatever reason.
    pub fn handle_lost(&mut self) -> Option<Outcome<M>> {
        let event = match self.config.guarantee {
            // Without Pongs all of it may have been received, and most of it was.
            _ if self.is_without_pongs() => self.forget_written(self.line.written),
            Guarantee::AtMostOnce => self.forget_written(self.line.written),
            Guarantee::AtLeastOnce => self.blame_first_in_line(),
        };
        self.line = self.rewound();
        event
    }

    /// Stops sending. Messages that are written and not confirmed are unknown; messages that were never written are
    /// not delivered. Both are reported in this order, and kept only for
    /// [`take_undelivered`](Self::take_undelivered).
    pub fn abandon(&mut self) -> [Option<Outcome<M>>; 2] {
        let (from, fresh) = (self.index_after(self.line.confirmed), self.index_after(self.reached));
        let span = |mut kept: std::collections::vec_deque::Iter<'_, Kept<M>>| {
            let first = kept.next()?.number;
            Some((first, kept.next_back().map_or(first, |last| last.number)))
        };
        let unknown = span(self.kept.items().range(from..fresh.max(from)));
        let not_delivered = span(self.kept.items().range(fresh.max(from)..));
        let kept = self.kept.take();
        self.undelivered = kept.into_iter().skip(from).map(|kept| kept.message).collect();
        (self.queue, self.line) = (Load::default(), Line::default());
        (self.confirmed, self.line.confirmed, self.line.written) = (self.last, self.last, self.last);
        [
            unknown.map(|(first, last)| Outcome::Unknown(first, last)),
            not_delivered.map(|(first, last)| Outcome::NotDelivered(first, last)),
        ]
    }

    /// After [`abandon`](Self::abandon): returns the messages that are unknown and those that are not delivered, in
    /// order, once.
    pub fn take_undelivered(&mut self) -> Vec<M> {
        std::mem::take(&mut self.undelivered)
    }

    /// Requests a Ping of the heartbeat, even if every message is confirmed. While a Ping is open no other leaves,
    /// and the open one serves.
    pub fn probe(&mut self, now: Instant) {
        if self.line.open && self.line.ping.is_none() {
            self.line.asked.get_or_insert(now);
        }
    }

    /// A Pong arrived that answers a Ping of the heartbeat: this peer answers Pings.
    pub fn handle_other_pong(&mut self) {
        self.pongs = Pongs::Come;
    }

    /// The peer is alive and answers no Ping, as its connection showed: no message waits for a Pong any more.
    pub fn expect_no_pongs(&mut self) {
        self.pongs = Pongs::Missing;
    }

    /// Whether no message waits for a Pong. Never with [`Confirm::Reply`], which needs no Pong.
    #[must_use]
    pub fn is_without_pongs(&self) -> bool {
        self.pongs == Pongs::Missing && self.config.confirm != Confirm::Reply
    }

    /// Whether the peer answers Pings; `None` if that is not known yet.
    #[must_use]
    pub fn answers_pings(&self) -> Option<bool> {
        match self.pongs {
            Pongs::Unknown => None,
            Pongs::Come => Some(true),
            Pongs::Missing => Some(false),
        }
    }

    /// Returns since when messages wait for the first Pong of a peer that has not answered a Ping: its window is
    /// full, and the Ping has left.
    #[must_use]
    pub fn stalled_since(&self) -> Option<Instant> {
        let since = self.line.ping_left.filter(|_| self.pongs == Pongs::Unknown)?;
        self.is_blocked().then_some(since)
    }

    /// Returns when the open Ping was made.
    #[must_use]
    pub fn pinged_at(&self) -> Option<Instant> {
        self.line.last_ping.filter(|_| self.line.ping.is_some())
    }

    /// Returns the number of the last message that was written to the current connection.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.line.written
    }

    /// This process was paused, so the wait was its own fault: the wait starts now.
    pub fn restart_stall(&mut self, now: Instant) {
        if let Some(since) = &mut self.line.ping_left {
            *since = now;
        }
    }

    /// Returns the number of the last message; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns the number up to which nothing is kept any more: each of these messages has its fate.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.kept.items().front().map_or(self.last, |oldest| oldest.number - 1)
    }

    /// Returns how many messages wait for their confirmation, written or not.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.queue.messages
    }

    /// Returns the bytes of the messages that are kept, including confirmed ones that are kept back.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept.bytes()
    }

    /// Returns how many messages are kept, including confirmed ones that are kept back.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.items().len()
    }

    /// Whether every message is confirmed, on this connection if it has to be written again. An orderly end waits for
    /// this.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.kept.items().back().is_none_or(|newest| newest.number <= self.line.confirmed)
    }

    /// Whether a sender that found the queue full has to wait for room.
    #[must_use]
    pub fn waits_when_full(&self) -> bool {
        self.config.when_full == WhenFull::Wait
    }

    /// Returns when the messages behind the last Ping are due for another.
    fn unpinged_due(&self) -> Option<Instant> {
        let since = self.line.unpinged.filter(|_| self.config.confirm != Confirm::Reply)?;
        let Load { messages, bytes } = self.line.in_flight;
        let enough = messages >= WINDOW_MESSAGES || bytes >= PING_BYTES;
        Some(if enough || self.is_blocked() { since } else { since + PING_DELAY })
    }

    /// Whether the next message waits for the window.
    fn is_blocked(&self) -> bool {
        let next = || self.kept.items().get(self.index_after(self.line.written));
        self.line.written < self.last && next().is_some_and(|next| !self.has_window(next.bytes))
    }

    /// Returns the oldest message that is written and not confirmed.
    fn first_in_line(&self) -> Option<u64> {
        let oldest = self.kept.items().get(self.index_after(self.line.confirmed))?;
        (oldest.number <= self.line.written).then_some(oldest.number)
    }

    fn has_room(&self, more: usize) -> bool {
        let Load { messages, bytes } = self.queue;
        let fits =
            messages < self.config.queue_messages && bytes.saturating_add(more) <= self.config.queue_bytes;
        messages == 0 || fits
    }

    fn has_window(&self, more: usize) -> bool {
        let Load { messages, bytes } = self.line.in_flight;
        let fits = messages < WINDOW_MESSAGES && bytes.saturating_add(more) <= WINDOW_BYTES;
        let goes = messages == 0 || (fits && !self.is_careful()) || self.is_without_pongs();
        self.line.open && goes
    }

    fn is_careful(&self) -> bool {
        self.line.confirmed < self.careful_until
    }

    /// The application lets the connection end in order, long after the last message: what is confirmed is not kept back.
    pub fn settle_confirmed(&mut self) -> Option<Outcome<M>> {
        self.release_from(false)
    }

    /// Stops keeping the oldest messages, as far as `confirm` allows.
    fn release(&mut self) -> Option<Outcome<M>> {
        self.release_from(self.config.confirm == Confirm::PongWindow)
    }

    fn release_from(&mut self, keeps_back: bool) -> Option<Outcome<M>> {
        let before = self.settled();
        while let Some(oldest) =
            self.kept.items().front().filter(|oldest| oldest.number <= self.line.confirmed)
        {
            let Load { messages, bytes } = self.line.kept_back;
            let fits = messages <= KEPT_BACK_MESSAGES && bytes <= KEPT_BACK_BYTES;
            if keeps_back && fits {
                break;
            }
            self.line.kept_back.remove(oldest.bytes);
            self.kept.pop();
        }
        self.catch_up(before)
    }

    /// Moves the cursors after messages were removed: no cursor stays behind the oldest kept message.
    fn catch_up(&mut self, before: u64) -> Option<Outcome<M>> {
        let settled = self.settled();
        self.confirmed = self.confirmed.max(settled);
        self.line.confirmed = self.line.confirmed.max(settled);
        self.line.written = self.line.written.max(settled);
        (settled > before).then_some(Outcome::Confirmed(settled))
    }

    /// Removes a written message from the line.
    fn take_written(&mut self, number: u64) -> Option<M> {
        let index = self.index_after(number.checked_sub(1)?);
        self.kept.items().get(index).filter(|kept| kept.number == number && number <= self.line.written)?;
        let Kept { bytes, message, .. } = self.kept.remove(index)?;
        if number > self.line.confirmed {
            self.line.in_flight.remove(bytes);
        } else {
            self.line.kept_back.remove(bytes);
        }
        if number > self.confirmed {
            self.queue.remove(bytes);
        }
        Some(message)
    }

    /// Gives up the messages that were written, up to and including `last`.
    fn forget_written(&mut self, last: u64) -> Option<Outcome<M>> {
        let before = self.settled();
        while let Some(first) =
            self.kept.items().front().map(|oldest| oldest.number).filter(|first| *first <= last)
        {
            if self.take_written(first).is_none() {
                break;
            }
        }
        self.catch_up(before).map(|_| Outcome::Unknown(before + 1, last))
    }

    fn blame_first_in_line(&mut self) -> Option<Outcome<M>> {
        let first = self.first_in_line()?;
        let (suspect, tries) = self.suspect;
        let tries = if suspect == first { tries + 1 } else { 1 };
        self.suspect = (first, tries);
        if tries == TRIES - 1 {
            self.careful_until = self.careful_until.max(self.line.written);
        }
        if tries < TRIES {
            return None;
        }
        let before = self.settled();
        let message = self.take_written(first)?;
        self.catch_up(before);
        Some(Outcome::Undeliverable(first, message))
    }

    /// Returns the state of a connection on which nothing has happened yet.
    fn rewound(&self) -> Line {
        Line { written: self.settled(), confirmed: self.settled(), ..Line::default() }
    }

    /// Returns the index of the first message with a higher number.
    fn index_after(&self, number: u64) -> usize {
        self.kept.items().partition_point(|kept| kept.number <= number)
    }
}

#[cfg(test)]
mod tests;
