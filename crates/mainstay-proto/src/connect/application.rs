//! What the application does: send, receive, acknowledge, reconnect, end.

use std::time::Instant;

use bytes::Bytes;

use super::peer::Peer;
use super::{Client, Closing, Command, Dial, EndCause, Event, Incoming, Lost, Pulse, REPLACE_AFTER};
use crate::confirm;
use crate::queue::ByteQueue;
use crate::session::{CLOSE_TIMEOUT, Delivery, Message, Transmit};
use crate::ws::CloseCode;

impl Client {
    /// Accepts a message and returns its number.
    ///
    /// # Errors
    /// Gives the message back when what may be kept is kept already ([`waits_when_full`] says whether to
    /// wait for room), or nothing more is sent.
    ///
    /// [`waits_when_full`]: Self::waits_when_full
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        match &mut self.peer {
            _ if self.end.is_some() || self.closing.is_some() => Err(message),
            Peer::Plain(plain) => {
                let length = message.len();
                let (number, dropped) =
                    plain.confirmer.push(message, length).map_err(|confirm::Full(message)| message)?;
                self.report(dropped);
                Ok(number)
            }
            Peer::Session(session) => session.send(message),
        }
    }

    /// Writes a message that is not numbered, kept or sent again. Dropped while nobody is attached.
    pub fn send_volatile(&mut self, message: Message) {
        match &mut self.peer {
            _ if self.end.is_some() || self.closing.is_some() => {}
            Peer::Plain(plain) if self.attached.is_some() => {
                plain.volatiles.push(message, self.config.session.volatile_queue);
            }
            Peer::Plain(_) => {}
            Peer::Session(session) => session.send_volatile(message),
        }
    }

    /// The next message, or what stands between two of them, in order. Nothing after [`close`](Self::close).
    pub fn deliver(&mut self, now: Instant) -> Option<Incoming> {
        self.forward.check(now);
        if self.delivers_nothing() {
            return None;
        }
        if let Some(fate) = self.gap.take() {
            return Some(Incoming::Gap(fate));
        }
        let delivery = match &mut self.peer {
            Peer::Plain(plain) => plain.inbox.pop(),
            Peer::Session(session) => session.deliver(now),
        };
        let incoming = match delivery {
            None => None,
            Some(Delivery::Message(message)) => Some(Incoming::Message(message)),
            Some(Delivery::Gap { first, count, cause }) => {
                self.events.push_back(Event::Dropped { first, count, cause });
                Some(Incoming::Dropped { first, count, cause })
            }
            Some(Delivery::Replaced { count }) if self.peer.is_plain() => {
                self.report_fresh_peer(count);
                Some(Incoming::FreshPeer { count })
            }
            Some(Delivery::Replaced { count }) => {
                self.events.push_back(Event::Replaced { count });
                Some(Incoming::Replaced { count })
            }
        };
        self.collect(now);
        incoming
    }

    /// The application has ended it: whatever comes is not for it any more.
    #[must_use]
    pub fn delivers_nothing(&self) -> bool {
        let is_aborted = self.end().is_some_and(|end| end.cause == EndCause::Aborted);
        is_aborted || (self.closing.is_some() && !self.reads_while_closing())
    }

    fn reads_while_closing(&self) -> bool {
        self.peer.is_plain() && self.config.reads_while_closing
    }

    /// In manual mode: everything that was handed over is handled. Nothing to a plain peer.
    pub fn acknowledge(&mut self, now: Instant) {
        self.forward.check(now);
        if let Peer::Session(session) = &mut self.peer {
            session.acknowledge(now, u64::MAX);
        }
    }

    /// Presents new credentials: at once where a connection is attached, else in the next HELLO. See
    /// [`Event::Authenticated`]. Nothing to a plain peer.
    pub fn authenticate(&mut self, now: Instant, credentials: Bytes) {
        self.forward.check(now);
        if let Peer::Session(session) = &mut self.peer {
            session.authenticate(credentials);
            self.collect(now);
        }
    }

    /// What every HELLO from here on presents, except while others wait for their verdict. Nothing to a plain peer.
    pub fn set_credentials(&mut self, credentials: Bytes) {
        if let Peer::Session(session) = &mut self.peer {
            session.set_credentials(credentials);
        }
    }

    /// The application answered the oldest unanswered message (plain peers with `confirm = reply`).
    pub fn handle_reply(&mut self, now: Instant) {
        self.forward.check(now);
        if let Peer::Plain(plain) = &mut self.peer {
            let outcome = plain.confirmer.handle_reply(None);
            self.report(outcome);
            self.close_plain_if_done(now);
        }
    }

    /// Something suggests that the network changed: dial now if waiting, probe if attached.
    pub fn probe_now(&mut self, now: Instant) {
        self.forward.check(now);
        if let Dial::Waiting { until } = &mut self.dial {
            *until = now;
        }
        if let Some(attached) = &mut self.attached {
            attached.replace_at.get_or_insert(now + REPLACE_AFTER);
            match &mut attached.pulse {
                Pulse::Watched(watch) => watch.probe(),
                Pulse::Driven(beat, _) => beat.probe(now),
            }
        }
    }

    /// Another connection, whatever the present one is worth: that is dropped and the next one dialled, at once. An attempt
    /// under way begins anew.
    pub fn reconnect(&mut self, now: Instant) {
        self.forward.check(now);
        if self.end.is_some() {
            return;
        }
        if let Dial::Connecting { connection, .. } | Dial::Attaching { connection, .. } = self.dial {
            self.forget_attempt(connection);
        }
        self.dial = Dial::Waiting { until: now };
        if let Some(attached) = self.attached.as_ref() {
            let connection = attached.connection;
            let goodbye = match self.peer {
                Peer::Plain(_) => Transmit::Close { code: CloseCode::GOING_AWAY, reason: String::new() },
                // To a session's server that would be no more than the loss of a connection.
                Peer::Session(_) => Transmit::Abort,
            };
            self.commands.push_back(Command::Transmit(connection, goodbye));
            self.handle_lost(now, connection, Lost::Asked);
        }
    }

    /// Ends in order: what was accepted is delivered first, and nothing more is handed over. What is not within 10 s is
    /// unknown.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.forward.check(now);
        if self.end.is_some() || self.closing.is_some() {
            return;
        }
        self.closing = Some(Closing { code, reason: reason.to_owned(), until: now + CLOSE_TIMEOUT });
        let is_unused = match &mut self.peer {
            Peer::Plain(plain) => {
                if !self.config.reads_while_closing {
                    plain.inbox = ByteQueue::default();
                }
                false
            }
            Peer::Session(session) => {
                session.close(code, reason);
                self.epoch == 0 && session.last_sent() == 0
            }
        };
        if is_unused {
            self.give_up(EndCause::Closed, None, reason.to_owned(), None);
        }
        self.collect(now);
        self.close_plain_if_done(now);
    }

    /// Ends at once: the peer is told so where a connection is attached, and nothing is waited for. What was written and
    /// not acknowledged or confirmed is unknown, the rest is not delivered.
    pub fn abort(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.forward.check(now);
        if self.end.is_some() {
            return;
        }
        match &mut self.peer {
            Peer::Session(session) if self.attached.is_some() => {
                session.abort(code, reason);
                return self.collect(now);
            }
            Peer::Session(_) => {}
            Peer::Plain(plain) => plain.inbox = ByteQueue::default(),
        }
        self.begin_close(now, code, reason);
        self.give_up(EndCause::Aborted, Some(code.into()), reason.to_owned(), None);
    }

    /// Ends at once, without a word to the peer, where nobody drives this client any more or its connection is of no use:
    /// what was written and not confirmed is reported as unknown, the rest as not delivered.
    pub fn abandon(&mut self, reason: &str) {
        self.give_up(EndCause::Abandoned, None, reason.to_owned(), None);
    }

    /// After the end: what was accepted and is not known to be delivered, in order, once. First what may have arrived, by
    /// the reports or the [`Fate`], then what certainly did not.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        match &mut self.peer {
            _ if self.end.is_none() => Vec::new(),
            Peer::Plain(plain) => plain.confirmer.take_undelivered(),
            Peer::Session(session) => session.take_undelivered(),
        }
    }
}
