//! Sending to a peer that speaks plain WebSocket: the Ping is the acknowledgement.
//!
//! An unmodified endpoint answers a Ping after it has read every frame before it, so its Pong proves
//! that its WebSocket stack has *taken in* those messages; not that the application has seen them. A
//! Ping names the position of the last whole message before it, Pongs confirm cumulatively, and no
//! more than a small window goes unconfirmed. What is unconfirmed when the connection is lost is
//! sent again (`at-least-once`) or reported as unknown (`at-most-once`).
//!
//! One confirming Ping is open at a time: some stacks end a connection over many of them.
//!
//! Source: `docs/PROTOCOL.md` "Plain peers".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::session::{Message, Window};

/// What ends a message's keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Confirm {
    /// The Pong: for stacks that hand a message over before they read the next.
    #[default]
    Pong,
    /// The Pong, and 64 later messages confirmed: covers stacks that read ahead by no more.
    PongWindow,
    /// The application's answer, counted by [`Confirmer::handle_reply`].
    Reply,
}

/// What becomes of unconfirmed messages when the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Guarantee {
    /// They are sent again; the peer may see them twice.
    #[default]
    AtLeastOnce,
    /// They are reported as unknown.
    AtMostOnce,
}

/// How to send to a plain peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConfirmConfig {
    /// What ends a message's keeping. Default: the Pong.
    pub confirm: Confirm,
    /// What becomes of unconfirmed messages. Default: at least once.
    pub guarantee: Guarantee,
    /// What is kept while waiting to be sent. Default: 1,024 messages, 4 MiB.
    pub keep: Window,
}

impl Default for ConfirmConfig {
    fn default() -> Self {
        Self { confirm: Confirm::Pong, guarantee: Guarantee::AtLeastOnce, keep: Window::CLIENT }
    }
}

/// What to write to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A message.
    Message(Message),
    /// A Ping with this position as its eight bytes.
    Ping(u64),
}

/// What the owner of the messages should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Report {
    /// From the first to the second: they may or may not have arrived, and are not sent again.
    Unknown(u64, u64),
    /// This message was first in line when the connection ended three times; it is given up.
    Undeliverable(u64),
}

const WINDOW: Window = Window { messages: 64, bytes: 256 * 1024 };
const PING_AFTER: Window = Window { messages: 64, bytes: 64 * 1024 };
const PING_DELAY: Duration = Duration::from_millis(250);
const PING_PAUSE: Duration = Duration::from_millis(20);
/// How many confirmed messages `pong+window` keeps.
const KEEP_BACK: u64 = 64;
/// Connections that a message may be first in line for.
const TRIES: u8 = 3;

/// See the module. Messages are numbered from 1 for the life of the link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Confirmer {
    config: ConfirmConfig,
    kept: VecDeque<Kept>,
    /// The number before the first kept one.
    base: u64,
    kept_bytes: u64,
    /// Position on the current connection.
    written: u64,
    /// What Pongs of the current connection confirmed, or what was kept back before it.
    confirmed: u64,
    unconfirmed_bytes: u64,
    attached: bool,
    ping: Option<u64>,
    pinged: Option<Instant>,
    unconfirmed_since: Option<Instant>,
    reports: VecDeque<Report>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kept {
    message: Message,
    tries: u8,
}

impl Confirmer {
    /// Nothing sent yet, no connection.
    #[must_use]
    pub fn new(config: ConfirmConfig) -> Self {
        Self {
            config,
            kept: VecDeque::new(),
            base: 0,
            kept_bytes: 0,
            written: 0,
            confirmed: 0,
            unconfirmed_bytes: 0,
            attached: false,
            ping: None,
            pinged: None,
            unconfirmed_since: None,
            reports: VecDeque::new(),
        }
    }

    /// Numbers a message and keeps it.
    ///
    /// # Errors
    /// Gives it back when the queue is full.
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        if !self.has_room(message.payload.len()) {
            return Err(message);
        }
        self.kept_bytes += message.payload.len() as u64;
        self.kept.push_back(Kept { message, tries: 0 });
        Ok(self.last())
    }

    /// Whether `send` would accept a message of this many bytes.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        let Window { messages, bytes } = self.config.keep;
        self.kept.is_empty()
            || ((self.kept.len() as u64) < messages && self.kept_bytes + length as u64 <= bytes)
    }

    /// A connection is up: everything kept is written to it, in order.
    pub fn handle_attached(&mut self) {
        self.attached = true;
        (self.written, self.confirmed, self.unconfirmed_bytes) = (self.base, self.base, 0);
        (self.ping, self.pinged, self.unconfirmed_since) = (None, None, None);
    }

    /// The connection is gone, or the peer sent its Close: no Pong counts any more.
    pub fn handle_lost(&mut self) {
        if !std::mem::take(&mut self.attached) {
            return;
        }
        match self.config.guarantee {
            Guarantee::AtMostOnce => {
                if self.written > self.confirmed {
                    self.reports.push_back(Report::Unknown(self.confirmed + 1, self.written));
                }
                self.drop_until(self.written);
            }
            Guarantee::AtLeastOnce => {
                // The first that is not confirmed may be what ends the connection each time.
                let first = self.confirmed.max(self.base) - self.base;
                let was_written = self.written > self.confirmed;
                let Some(kept) = self.kept.get_mut(first as usize).filter(|_| was_written) else { return };
                kept.tries += 1;
                if kept.tries >= TRIES {
                    self.reports.push_back(Report::Undeliverable(self.confirmed + 1));
                    self.drop_until(self.confirmed + 1);
                }
            }
        }
    }

    /// A Pong with this position. Unknown positions are ignored.
    pub fn handle_pong(&mut self, now: Instant, position: u64) {
        if !self.attached || position <= self.confirmed || position > self.written {
            return;
        }
        self.unconfirmed_bytes = self.bytes_between(position, self.written);
        self.confirmed = position;
        if self.ping.is_some_and(|open| open <= position) {
            self.ping = None;
        }
        self.unconfirmed_since = (self.written > position).then_some(now);
        match self.config.confirm {
            Confirm::Pong => self.drop_until(position),
            Confirm::PongWindow => self.drop_until(position.saturating_sub(KEEP_BACK)),
            Confirm::Reply => {}
        }
    }

    /// The application answered the oldest unanswered message (with `confirm = reply`).
    pub fn handle_reply(&mut self) {
        if self.config.confirm == Confirm::Reply && self.base < self.written {
            self.drop_until(self.base + 1);
        }
    }

    /// The next thing to write, if the window has room for it.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Write> {
        if !self.attached {
            return None;
        }
        if self.ping_due().is_some_and(|due| due <= now) {
            self.ping = Some(self.written);
            self.pinged = Some(now);
            return Some(Write::Ping(self.written));
        }
        let next = self.kept.get((self.written - self.base) as usize)?;
        let length = next.message.payload.len() as u64;
        // With `reply`, what the application has not answered counts, not what its stack took in.
        let open = match self.config.confirm {
            Confirm::Reply => self.written - self.base,
            _ => self.written - self.confirmed,
        };
        if open >= WINDOW.messages || (open > 0 && self.unconfirmed_bytes + length > WINDOW.bytes) {
            return None;
        }
        self.written += 1;
        self.unconfirmed_bytes += length;
        self.unconfirmed_since.get_or_insert(now);
        Some(Write::Message(next.message.clone()))
    }

    /// When a Ping becomes due without anything else happening.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ping_due()
    }

    fn ping_due(&self) -> Option<Instant> {
        if !self.attached || self.ping.is_some() || self.written == self.confirmed {
            return None;
        }
        let since = self.unconfirmed_since?;
        let enough = self.written - self.confirmed >= PING_AFTER.messages
            || self.unconfirmed_bytes >= PING_AFTER.bytes;
        let due = if enough { since } else { since + PING_DELAY };
        Some(self.pinged.map_or(due, |last| due.max(last + PING_PAUSE)))
    }

    /// The next report.
    pub fn poll_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// The last number given.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.base + self.kept.len() as u64
    }

    /// Everything up to here needs no keeping any more.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.base
    }

    fn drop_until(&mut self, number: u64) {
        while self.base < number {
            let Some(kept) = self.kept.pop_front() else { return };
            self.base += 1;
            self.kept_bytes -= kept.message.payload.len() as u64;
        }
    }

    fn bytes_between(&self, after: u64, until: u64) -> u64 {
        let skip = after.saturating_sub(self.base) as usize;
        let take = until.saturating_sub(after) as usize;
        self.kept.iter().skip(skip).take(take).map(|kept| kept.message.payload.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::start;

    fn confirmer(confirm: Confirm, guarantee: Guarantee, messages: u32) -> Confirmer {
        let mut confirmer = Confirmer::new(ConfirmConfig { confirm, guarantee, ..ConfirmConfig::default() });
        for n in 0..messages {
            confirmer.send(Message::text(n.to_string())).unwrap();
        }
        confirmer.handle_attached();
        confirmer
    }

    /// Writes all it may; the numbers of the messages and the pings.
    fn drain(confirmer: &mut Confirmer, now: Instant) -> (Vec<String>, Vec<u64>) {
        let (mut texts, mut pings) = (Vec::new(), Vec::new());
        while let Some(write) = confirmer.poll_transmit(now) {
            match write {
                Write::Message(message) => texts.push(message.as_text().unwrap().to_owned()),
                Write::Ping(position) => pings.push(position),
            }
        }
        (texts, pings)
    }

    #[test]
    fn at_most_64_go_unconfirmed_and_one_ping_is_open() {
        let now = start();
        let mut link = confirmer(Confirm::Pong, Guarantee::AtLeastOnce, 200);
        let (texts, pings) = drain(&mut link, now);
        assert_eq!((texts.len(), pings), (64, vec![64]));
        link.handle_pong(now, 99);
        assert_eq!(drain(&mut link, now).0.len(), 0, "an unknown position confirms nothing");
        link.handle_pong(now, 64);
        let (texts, pings) = drain(&mut link, now);
        assert_eq!((texts.len(), pings), (64, vec![]), "the next ping waits 20 ms");
        assert_eq!(drain(&mut link, now + PING_PAUSE).1, [128]);
    }

    #[test]
    fn few_messages_are_confirmed_after_a_quarter_of_a_second() {
        let now = start();
        let mut link = confirmer(Confirm::Pong, Guarantee::AtLeastOnce, 2);
        assert_eq!(drain(&mut link, now).1, []);
        assert_eq!(link.poll_timeout(), Some(now + PING_DELAY));
        assert_eq!(drain(&mut link, now + PING_DELAY).1, [2]);
        link.handle_pong(now, 2);
        assert_eq!((link.settled(), link.poll_timeout()), (2, None));
    }

    #[test]
    fn what_is_unconfirmed_is_sent_again_or_reported() {
        let now = start();
        let mut again = confirmer(Confirm::Pong, Guarantee::AtLeastOnce, 3);
        drain(&mut again, now);
        again.handle_pong(now, 1);
        again.handle_lost();
        again.handle_attached();
        assert_eq!(drain(&mut again, now).0, ["1", "2"]);

        let mut once = confirmer(Confirm::Pong, Guarantee::AtMostOnce, 3);
        drain(&mut once, now);
        once.handle_pong(now, 1);
        once.handle_lost();
        assert_eq!(once.poll_report(), Some(Report::Unknown(2, 3)));
        once.handle_attached();
        assert_eq!(drain(&mut once, now).0, [""; 0]);
    }

    #[test]
    fn the_window_is_kept_back_where_stacks_read_ahead() {
        let now = start();
        let mut link = confirmer(Confirm::PongWindow, Guarantee::AtLeastOnce, 100);
        drain(&mut link, now);
        link.handle_pong(now, 64);
        drain(&mut link, now + PING_PAUSE + PING_DELAY);
        link.handle_pong(now, 100);
        assert_eq!(link.settled(), 36);
        link.handle_lost();
        link.handle_attached();
        assert_eq!(drain(&mut link, now).0.len(), 64);
    }

    #[test]
    fn replies_end_the_keeping_and_open_the_window() {
        let now = start();
        let mut link = confirmer(Confirm::Reply, Guarantee::AtLeastOnce, 100);
        assert_eq!(drain(&mut link, now).0.len(), 64);
        link.handle_pong(now, 64);
        assert_eq!(drain(&mut link, now).0.len(), 0);
        link.handle_reply();
        assert_eq!((drain(&mut link, now).0.len(), link.settled()), (1, 1));
    }

    #[test]
    fn a_message_that_ends_three_connections_is_given_up() {
        let now = start();
        let mut link = confirmer(Confirm::Pong, Guarantee::AtLeastOnce, 2);
        for _ in 0..3 {
            drain(&mut link, now);
            link.handle_lost();
            link.handle_attached();
        }
        assert_eq!(link.poll_report(), Some(Report::Undeliverable(1)));
        assert_eq!(drain(&mut link, now).0, ["1"]);
    }

    #[test]
    fn a_pong_after_the_connection_is_gone_confirms_nothing() {
        let now = start();
        let mut link = confirmer(Confirm::Pong, Guarantee::AtLeastOnce, 1);
        drain(&mut link, now);
        link.handle_lost();
        link.handle_pong(now, 1);
        assert_eq!(link.settled(), 0);
    }
}
