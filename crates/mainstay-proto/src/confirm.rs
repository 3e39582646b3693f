//! Sending to a peer that speaks plain WebSocket: the Ping is the acknowledgement.
//!
//! An unmodified endpoint answers a Ping after it has read every frame before it. Its Pong proves that
//! its WebSocket stack has *taken in* those messages, not that the application has seen them; what a
//! message's keeping ends with is therefore a choice, [`Confirm`].
//!
//! Messages are numbered from 1 for the life of the link and kept in order. `push` appends,
//! `poll_transmit` writes within the window and puts a Ping in between, which names the last whole
//! message before it. One Ping is open at a time: some stacks end a connection over a few dozen.
//! When the connection is lost, what is kept is written again or reported, by [`Guarantee`].
//!
//! Every number meets one fate: the [`Outcome`] that covers it first.
//!
//! The queue is bounded, and [`WhenFull`] says what happens to a message that does not fit. Only what was
//! never written on any connection can be dropped: of that, and of nothing else, it is certain that the
//! peer does not have it.
//!
//! **A message that ends the connection** (too large, not what the peer expects) would be sent for
//! ever, so whoever is first in line when three connections end is given up. The first in line need not
//! be the guilty one, only the first of a window; before the third try the suspects therefore go out
//! one by one, each with its own Ping. That clears the innocent and leaves the guilty one in front.
//!
//! **A peer that answers no Ping** breaks RFC 6455 section 5.5.2, and would stop the link at 64 messages. Once that is
//! found ([`Confirmer::expect_no_pongs`]) it is served with what remains possible, at-most-once: writing goes on, and what
//! has left is unknown and never written again. A Pong ends that.
//!
//! Not here: when a peer is dead (`heartbeat`), and what shows that it lives and answers no Ping (`connect`). A late Pong
//! means a slow peer.
//!
//! Source: `docs/PROTOCOL.md` "Plain peers: the ping is the acknowledgement".

use std::time::{Duration, Instant};

use crate::ConfigError;
use crate::queue::{ByteQueue, Counted};

/// What may be written and not confirmed.
const WINDOW_MESSAGES: usize = 64;
const WINDOW_BYTES: usize = 256 * 1024;
/// What makes a Ping due; fewer messages wait `PING_DELAY`.
const PING_BYTES: usize = 64 * 1024;
const PING_DELAY: Duration = Duration::from_millis(250);
/// What `pong+window` keeps of the confirmed; in bytes too, or large messages would fill the memory.
const KEPT_BACK_MESSAGES: usize = 64;
const KEPT_BACK_BYTES: usize = WINDOW_BYTES;
/// Connections that may end with the same message first in line.
const TRIES: u8 = 3;

/// What ends a message's keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Confirm {
    /// The Pong: for stacks that hand over a message before they read the next.
    #[default]
    Pong,
    /// The Pong, and then 64 more messages or 256 KiB confirmed: for stacks that read ahead by no more.
    PongWindow,
    /// The application's matching answer. Nothing but this shows that the application has handled it.
    Reply,
}

/// What becomes of a message that is kept when the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Guarantee {
    /// It is written again; the peer may see it twice.
    #[default]
    AtLeastOnce,
    /// It is not, and is reported as unknown: it may or may not have arrived.
    AtMostOnce,
}

/// What happens to a message that does not fit the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhenFull {
    /// Its sender waits for room.
    #[default]
    Wait,
    /// It is given back.
    Fail,
    /// The oldest messages that were never written make room for it, and are reported as not delivered. Where there are none it is itself the oldest. No sender waits.
    DropOldest,
}

/// How to send to a plain peer, checked where it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmConfig {
    confirm: Confirm,
    guarantee: Guarantee,
    when_full: WhenFull,
    queue_messages: usize,
    queue_bytes: usize,
    min_ping_interval: Duration,
    pongs: Pongs,
}

impl ConfirmConfig {
    /// What ends a message's keeping. Default: the Pong.
    #[must_use]
    pub fn confirm(self, confirm: Confirm) -> Self {
        Self { confirm, ..self }
    }

    /// What becomes of what is kept when the connection is lost. Default: it is written again.
    #[must_use]
    pub fn guarantee(self, guarantee: Guarantee) -> Self {
        Self { guarantee, ..self }
    }

    /// What happens to a message that does not fit the queue. Default: its sender waits.
    #[must_use]
    pub fn when_full(self, when_full: WhenFull) -> Self {
        Self { when_full, ..self }
    }

    /// Messages that may wait for confirmation, written or not, and their bytes; one larger message
    /// alone is accepted. Default: 1,024 and 4 MiB. Range: at least 1 each.
    ///
    /// # Errors
    /// One of them is 0.
    pub fn queue(self, messages: usize, bytes: usize) -> Result<Self, ConfigError> {
        Self { queue_messages: messages, queue_bytes: bytes, ..self }.checked()
    }

    /// Shortest time between two Pings; longer where the peer counts frames. It bounds what a link carries to 64
    /// messages or 256 KiB in that time. Default: none, so that one Ping follows 64 messages, 64 KiB or 250 ms.
    /// Range: up to 1 minute.
    ///
    /// # Errors
    /// It is out of range.
    pub fn min_ping_interval(self, min_ping_interval: Duration) -> Result<Self, ConfigError> {
        Self { min_ping_interval, ..self }.checked()
    }

    /// Whether the peer answers Pings, where that is known beforehand. If not, it is served at-most-once from the first
    /// message on, and until its first Pong; if so, its silence is never taken for that. Default: not known.
    #[must_use]
    pub fn expects_pongs(self, expects_pongs: bool) -> Self {
        Self { pongs: if expects_pongs { Pongs::Come } else { Pongs::Missing }, ..self }
    }

    fn checked(self) -> Result<Self, ConfigError> {
        if self.queue_messages == 0 {
            return Err(ConfigError { field: "confirm.queue_messages", bound: "at least 1" });
        }
        if self.queue_bytes == 0 {
            return Err(ConfigError { field: "confirm.queue_bytes", bound: "at least 1 byte" });
        }
        if self.min_ping_interval > Duration::from_secs(60) {
            return Err(ConfigError { field: "confirm.min_ping_interval", bound: "at most 1 minute" });
        }
        Ok(self)
    }
}

impl Default for ConfirmConfig {
    fn default() -> Self {
        Self {
            confirm: Confirm::default(),
            guarantee: Guarantee::default(),
            when_full: WhenFull::default(),
            queue_messages: 1024,
            queue_bytes: 4 * 1024 * 1024,
            min_ping_interval: Duration::ZERO,
            pongs: Pongs::Unknown,
        }
    }
}

/// What to write to the connection, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a, M> {
    /// A message and its number.
    Message(u64, &'a M),
    /// A Ping with this payload. It must leave after the last frame of the message before it; one that
    /// overtakes a fragment would confirm what is not written.
    Ping([u8; 8]),
}

/// What became of messages. A number that was reported before keeps its first fate.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<M> {
    /// All up to this number are kept no longer.
    Confirmed(u64),
    /// From the first to the second number: they may or may not have been taken in, and are not written again.
    Unknown(u64, u64),
    /// From the first to the second number: they were never written and never will be.
    NotDelivered(u64, u64),
    /// The connection ended three times with this message first in line. It is given up.
    Undeliverable(u64, M),
}

/// The queue is full; gives the message back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the queue to the peer is full")]
pub struct Full<M>(pub M);

/// The outgoing side of a link to a plain peer; outlives its connections. See the module.
#[derive(Debug)]
pub struct Confirmer<M> {
    config: ConfirmConfig,
    /// In the order of their numbers.
    kept: ByteQueue<Kept<M>>,
    /// The number given last.
    last: u64,
    /// The highest number ever written, on whatever connection.
    reached: u64,
    /// Up to here confirmed on some connection: what is after it is the queue.
    confirmed: u64,
    queue: Load,
    line: Line,
    /// First in line when the last connection ended, and for how many connections.
    suspect: (u64, u8),
    /// Up to here messages go out one by one.
    careful_until: u64,
    pongs: Pongs,
    /// What was still kept at the end.
    undelivered: Vec<M>,
}

/// Whether the peer answers Pings, on whatever connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pongs {
    /// None has come yet.
    Unknown,
    Come,
    /// None comes, as far as is known.
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

/// What is known of the current connection.
#[derive(Debug, Default)]
struct Line {
    /// Attached, and the peer has sent no Close.
    open: bool,
    /// Up to here written.
    written: u64,
    /// Up to here confirmed.
    confirmed: u64,
    /// Up to here written when the peer's last message came.
    answered: u64,
    /// Written and not confirmed.
    in_flight: Load,
    /// Confirmed and kept back.
    kept_back: Load,
    /// The position that the open Ping names.
    ping: Option<u64>,
    /// When it left the process.
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
    /// Nothing pushed, no connection.
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

    /// Numbers a message of `bytes` bytes and keeps it, attached or not. The event is about messages that
    /// had to make room for it, or about itself.
    ///
    /// # Errors
    /// The queue is full; the message comes back.
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

    /// As [`push`](Self::push), whatever the queue holds: for what another machine had accepted.
    pub(crate) fn adopt(&mut self, message: M, bytes: usize) -> u64 {
        self.last += 1;
        self.kept.push(Kept { number: self.last, bytes, message });
        self.queue.add(bytes);
        self.last
    }

    /// A connection is up: all that is kept is written to it, oldest first.
    pub fn handle_attached(&mut self) {
        debug_assert!(!self.line.open, "the connection before was not reported lost");
        self.line = Line { open: true, ..self.rewound() };
    }

    /// The next thing to write; `None` until something is pushed or confirmed, or time passes.
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

    /// When a Ping is due; `poll_transmit` then returns it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Line { open: true, ping: None, last_ping, asked, .. } = self.line else { return None };
        if asked.is_none() && self.line.unpinged.is_none() {
            return None;
        }
        let due = [asked, self.unpinged_due()].into_iter().flatten().min()?;
        Some(last_ping.map_or(due, |last| due.max(last + self.config.min_ping_interval)))
    }

    /// Everything written so far has left the process. From a peer that answers no Ping nothing more will be known of it.
    pub fn handle_flushed(&mut self, now: Instant) -> Option<Outcome<M>> {
        if self.line.ping.is_some() {
            self.line.ping_left.get_or_insert(now);
        }
        if self.is_without_pongs() { self.forget_written(self.line.written) } else { None }
    }

    /// A Pong. Any that does not answer the open Ping is ignored, and so is one after the peer's Close.
    pub fn handle_pong(&mut self, payload: &[u8]) -> Option<Outcome<M>> {
        let answered = |position: &mut u64| payload == position.to_be_bytes();
        let position = self.line.ping.take_if(answered)?;
        self.line.ping_left = None;
        self.pongs = Pongs::Come;
        if self.config.confirm == Confirm::Reply {
            return None;
        }
        // Some of that was let go meanwhile.
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

    /// With [`Confirm::Reply`]: the application answered the message `number`, or the oldest one written
    /// that it has not answered yet. An answer that matches nothing, or comes in another mode, is ignored.
    pub fn handle_reply(&mut self, number: Option<u64>) -> Option<Outcome<M>> {
        if self.config.confirm != Confirm::Reply || !self.line.open {
            return None;
        }
        let before = self.settled();
        self.take_written(number.or_else(|| self.first_in_line())?)?;
        self.catch_up(before)
    }

    /// A message of the peer came.
    pub fn handle_peer_message(&mut self) {
        self.line.answered = self.line.written;
    }

    /// The peer sent its Close: nothing more is written, and Pongs prove nothing any more. A message that the peer sent
    /// before it may be the answer to all that was written by then: a peer that reads, answers and closes has handled it.
    /// None of that is written again where the Pong is what confirms, for what is handled once must not be handled twice;
    /// it is unknown. `goes_on`: another connection will follow.
    pub fn handle_peer_close(&mut self, goes_on: bool) -> Option<Outcome<M>> {
        self.line.open = false;
        self.line.ping = None;
        if !goes_on || self.config.confirm != Confirm::Pong {
            return None;
        }
        self.forget_written(self.line.answered)
    }

    /// The connection is gone, however that came about.
    pub fn handle_lost(&mut self) -> Option<Outcome<M>> {
        let event = match self.config.guarantee {
            // Without Pongs all of it may have been taken in, and most of it was.
            _ if self.is_without_pongs() => self.forget_written(self.line.written),
            Guarantee::AtMostOnce => self.forget_written(self.line.written),
            Guarantee::AtLeastOnce => self.blame_first_in_line(),
        };
        self.line = self.rewound();
        event
    }

    /// Nothing more is sent. What is written and not confirmed is unknown, what was never written is not
    /// delivered; both are told, in this order, and kept only to be [taken](Self::take_undelivered).
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

    /// After [`abandon`](Self::abandon): what is unknown and what is not delivered, in order, once.
    pub fn take_undelivered(&mut self) -> Vec<M> {
        std::mem::take(&mut self.undelivered)
    }

    /// Asks for a Ping although nothing may be unconfirmed: the heartbeat's. While one is open no other
    /// leaves, and the open one serves.
    pub fn probe(&mut self, now: Instant) {
        if self.line.open && self.line.ping.is_none() {
            self.line.asked.get_or_insert(now);
        }
    }

    /// A Pong came that answers a Ping of somebody else's, the heartbeat's: this peer answers Pings.
    pub fn handle_other_pong(&mut self) {
        self.pongs = Pongs::Come;
    }

    /// The peer lives and answers no Ping, by what is known outside: nothing waits for one any more.
    pub fn expect_no_pongs(&mut self) {
        self.pongs = Pongs::Missing;
    }

    /// Whether nothing waits for a Pong any more. Never so with [`Confirm::Reply`], which needs none.
    #[must_use]
    pub fn is_without_pongs(&self) -> bool {
        self.pongs == Pongs::Missing && self.config.confirm != Confirm::Reply
    }

    /// Whether the peer answers Pings; `None`: it has not shown yet.
    #[must_use]
    pub fn answers_pings(&self) -> Option<bool> {
        match self.pongs {
            Pongs::Unknown => None,
            Pongs::Come => Some(true),
            Pongs::Missing => Some(false),
        }
    }

    /// Since when messages wait for the first Pong of a peer that has answered no Ping so far: its window is full, and
    /// the Ping has left.
    #[must_use]
    pub fn stalled_since(&self) -> Option<Instant> {
        let since = self.line.ping_left.filter(|_| self.pongs == Pongs::Unknown)?;
        self.is_blocked().then_some(since)
    }

    /// When the Ping was made that is open.
    #[must_use]
    pub fn pinged_at(&self) -> Option<Instant> {
        self.line.last_ping.filter(|_| self.line.ping.is_some())
    }

    /// The number of the last message that was written to the current connection.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.line.written
    }

    /// What made it wait so far was our own pause: it begins now.
    pub fn restart_stall(&mut self, now: Instant) {
        if let Some(since) = &mut self.line.ping_left {
            *since = now;
        }
    }

    /// The number given last; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Up to here nothing is kept any more: every message met its fate.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.kept.items().front().map_or(self.last, |oldest| oldest.number - 1)
    }

    /// Messages that wait for their confirmation, written or not.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.queue.messages
    }

    /// Bytes of the messages that are kept, confirmed ones that are kept back included.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept.bytes()
    }

    /// Messages that are kept, confirmed ones that are kept back included.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.items().len()
    }

    /// Whether everything is confirmed, on this connection where it has to be written again. An orderly
    /// end waits for this.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.kept.items().back().is_none_or(|newest| newest.number <= self.line.confirmed)
    }

    /// Whether a sender that found the queue full is to wait for room.
    #[must_use]
    pub fn waits_when_full(&self) -> bool {
        self.config.when_full == WhenFull::Wait
    }

    /// When the messages after the last Ping want one.
    fn unpinged_due(&self) -> Option<Instant> {
        let since = self.line.unpinged.filter(|_| self.config.confirm != Confirm::Reply)?;
        let Load { messages, bytes } = self.line.in_flight;
        let enough = messages >= WINDOW_MESSAGES || bytes >= PING_BYTES;
        Some(if enough || self.is_blocked() { since } else { since + PING_DELAY })
    }

    /// The next message waits for the window.
    fn is_blocked(&self) -> bool {
        let next = || self.kept.items().get(self.index_after(self.line.written));
        self.line.written < self.last && next().is_some_and(|next| !self.has_window(next.bytes))
    }

    /// The oldest message that is written and not confirmed.
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

    /// Ends the keeping of the oldest messages, as far as `confirm` allows.
    fn release(&mut self) -> Option<Outcome<M>> {
        let before = self.settled();
        while let Some(oldest) =
            self.kept.items().front().filter(|oldest| oldest.number <= self.line.confirmed)
        {
            let Load { messages, bytes } = self.line.kept_back;
            let fits = messages <= KEPT_BACK_MESSAGES && bytes <= KEPT_BACK_BYTES;
            if self.config.confirm == Confirm::PongWindow && fits {
                break;
            }
            self.line.kept_back.remove(oldest.bytes);
            self.kept.pop();
        }
        self.catch_up(before)
    }

    /// After messages were taken out: nothing stands before what is still kept.
    fn catch_up(&mut self, before: u64) -> Option<Outcome<M>> {
        let settled = self.settled();
        self.confirmed = self.confirmed.max(settled);
        self.line.confirmed = self.line.confirmed.max(settled);
        self.line.written = self.line.written.max(settled);
        (settled > before).then_some(Outcome::Confirmed(settled))
    }

    /// Takes a written message out of the line.
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

    /// Gives up what was written up to and including `last`.
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

    /// A connection on which nothing has happened yet.
    fn rewound(&self) -> Line {
        Line { written: self.settled(), confirmed: self.settled(), ..Line::default() }
    }

    /// Where the first message with a higher number is kept.
    fn index_after(&self, number: u64) -> usize {
        self.kept.items().partition_point(|kept| kept.number <= number)
    }
}

#[cfg(test)]
mod tests;
