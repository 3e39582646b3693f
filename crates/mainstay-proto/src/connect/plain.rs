//! Towards a plain peer: messages ahead of the stream, confirmations, and the reports about them.
//!
//! Source: `docs/PROTOCOL.md` "Plain peers".

use std::time::Instant;

use super::peer::{Ahead, Peer, Plain};
use super::{Client, Command, EndCause, Event, Mode, Pulse, Reads, Report};
use crate::confirm;
use crate::heartbeat::Heartbeat;
use crate::session::{ConnectionId, Delivery, Message, Transmit, Volatiles};

impl Client {
    /// Sends the first messages to the plain peer that [`handle_opened`](Self::handle_opened) has just attached:
    /// ahead of the stream, in this order, not numbered, not kept, lost with the connection. Does nothing on another
    /// connection.
    pub fn greet(&mut self, connection: ConnectionId, words: Vec<Message>) {
        let is_current = self.attached.as_ref().is_some_and(|attached| attached.connection == connection);
        if let Some(plain) = self.peer.plain_mut().filter(|_| is_current && !words.is_empty()) {
            let ahead =
                plain.ahead.get_or_insert_with(|| Box::new(Ahead { released: true, ..Ahead::default() }));
            words.into_iter().for_each(|word| ahead.queue.push(word));
        }
    }

    /// Sends a message ahead of the stream: not numbered, not kept, lost with the connection. With
    /// [`ConnectConfig::holds_replaced`](super::ConnectConfig::holds_replaced) a connection that replaced another
    /// carries nothing else until it is [released](Self::release), so that the peer can first receive what it knew on
    /// the previous connection. `replacement`: the count of the [`Incoming::FreshPeer`](super::Incoming::FreshPeer)
    /// that announced the connection. Does nothing if that connection is not held back any more, or was replaced
    /// itself.
    pub fn send_ahead(&mut self, replacement: u64, message: Message) {
        if let Some(ahead) = self.held_back(replacement) {
            ahead.queue.push(message);
        }
    }

    /// Releases the connection that was held back: the stream follows what was sent ahead.
    pub fn release(&mut self, replacement: u64) {
        if let Some(ahead) = self.held_back(replacement) {
            ahead.released = true;
        }
    }

    /// Reports a fresh peer, once for each attach: at once if no earlier message waits, otherwise after the earlier
    /// messages were delivered.
    pub(super) fn report_fresh_peer(&mut self, count: u64) {
        if let Some(plain) = self.peer.plain_mut().filter(|plain| plain.reported_fresh < count) {
            plain.reported_fresh = count;
            self.events.push_back(Event::FreshPeer);
        }
    }

    pub(super) fn poll_plain_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        if self.awaits_close(connection) {
            return None;
        }
        let attached = self.attached.as_mut().filter(|attached| attached.connection == connection)?;
        if let Pulse::Driven(_, ping) = &mut attached.pulse
            && let Some(ping) = ping.take()
        {
            return Some(Transmit::Ping(ping));
        }
        let plain = self.peer.plain_mut()?;
        if let Some(ahead) = &mut plain.ahead {
            match ahead.queue.pop() {
                Some(message) => return Some(Transmit::Message(message)),
                None if ahead.released => plain.ahead = None,
                None => return None,
            }
        }
        if let Some(message) = plain.volatiles.pop() {
            return Some(Transmit::Message(message));
        }
        Some(match plain.confirmer.poll_transmit(now)? {
            confirm::Output::Message(_, message) => Transmit::Message(message.clone()),
            confirm::Output::Ping(position) => Transmit::Ping(u64::from_be_bytes(position)),
        })
    }

    /// The first connection showed that the peer does not speak `mainstay.v1`: messages that were sent before go to
    /// the plain peer.
    pub(super) fn become_plain(&mut self) {
        let Peer::Session(session) = &mut self.peer else { return };
        let (fate, unsent) = session.take_unsent();
        if fate.unknown > 0 {
            self.gap = Some(Box::new(fate));
            self.events.push_back(Event::Gap(fate));
        }
        self.left = 0;
        let mut plain = Plain::new(self.config.confirm);
        for message in unsent {
            let length = message.len();
            plain.confirmer.adopt(message, length);
        }
        self.peer = Peer::Plain(plain);
    }

    pub(super) fn attach_plain(&mut self, now: Instant, connection: ConnectionId) {
        let replaced = self.earlier_connections();
        let first = replaced == 0;
        let delivers = self.closing.is_none() || self.reads_while_closing();
        let Peer::Plain(plain) = &mut self.peer else { return };
        plain.volatiles = Volatiles::default();
        (plain.progressed, plain.restarts) = (false, false);
        plain.ahead = (self.config.holds_replaced && !first).then(Box::default);
        let is_next = !plain.inbox.items().iter().any(|delivery| matches!(delivery, Delivery::Message(_)));
        if !first && delivers {
            // Marks that follow each other become one.
            match plain.inbox.newest_mut() {
                Some(Delivery::Replaced { count: before }) => *before = replaced,
                _ => plain.inbox.push(Delivery::Replaced { count: replaced }),
            }
        }
        // A replacement: messages that were written to the old connection and not confirmed are written again.
        let outcome = self.attached.is_some().then(|| plain.confirmer.handle_lost()).flatten();
        plain.confirmer.handle_attached();
        self.report(outcome);
        let beat = Heartbeat::new(now, &self.config.heartbeat, &mut self.rng);
        self.set_attached(now, connection, Pulse::Driven(beat, None));
        self.epoch += 1;
        self.events.push_back(Event::Attached { mode: Mode::Plain, resumed: false, epoch: self.epoch });
        if !first && is_next {
            self.report_fresh_peer(replaced);
        }
    }

    /// Returns how many connections there were to the peer, those of a client that this one continues as one.
    fn earlier_connections(&self) -> u64 {
        self.epoch + u64::from(self.config.continues)
    }

    /// Returns what goes ahead on the connection that `replacement` announced, if that is the current one.
    fn held_back(&mut self, replacement: u64) -> Option<&mut Ahead> {
        let is_current = self.attached.is_some() && self.earlier_connections() == replacement + 1;
        let ahead = self.peer.plain_mut().filter(|_| is_current)?.ahead.as_deref_mut();
        ahead.filter(|ahead| !ahead.released)
    }

    /// Reports an outcome of the confirmer.
    pub(super) fn report(&mut self, outcome: Option<confirm::Outcome<Message>>) {
        let report = match outcome {
            // `settled` shows it.
            None | Some(confirm::Outcome::Confirmed(_)) => return,
            Some(confirm::Outcome::Unknown(first, last)) => Report::Unknown(first..=last),
            Some(confirm::Outcome::NotDelivered(first, last)) => Report::NotDelivered(first..=last),
            Some(confirm::Outcome::Undeliverable(number, message)) => {
                Report::Undeliverable { number, message }
            }
        };
        self.events.push_back(Event::Report(report));
    }

    pub(super) fn close_plain_if_done(&mut self, now: Instant) {
        let (Peer::Plain(plain), Some(closing), false) = (&self.peer, &self.closing, self.end.is_some())
        else {
            return;
        };
        if !plain.confirmer.is_flushed() {
            return;
        }
        let (code, reason) = (closing.code, closing.reason.clone());
        match (closing.reads, &self.attached) {
            (Reads::OnlyTheirs, _) => {}
            (Reads::UntilTheirs, Some(attached)) => {
                let close = Transmit::Close { code, reason };
                self.commands.push_back(Command::Transmit(attached.connection, close));
                if let Some(closing) = &mut self.closing {
                    closing.reads = Reads::OnlyTheirs;
                }
            }
            _ => {
                self.begin_close(now, code, &reason);
                self.give_up(EndCause::Closed, Some(code.into()), reason, None);
            }
        }
    }

    /// Whether a plain peer is read until its own Close; see [`close_and_read`](Self::close_and_read).
    pub(super) fn reads_to_the_end(&self) -> bool {
        let reads = self.closing.as_ref().map(|closing| closing.reads);
        self.peer.is_plain() && reads.is_some_and(|reads| reads != Reads::UntilOurClose)
    }

    /// Whether this connection has sent its Close and is read until the peer's.
    #[must_use]
    pub fn awaits_close(&self, connection: ConnectionId) -> bool {
        let is_attached = self.attached.as_ref().is_some_and(|attached| attached.connection == connection);
        let is_closed = self.closing.as_ref().is_some_and(|closing| closing.reads == Reads::OnlyTheirs);
        is_attached && (is_closed || self.is_resting())
    }
}
