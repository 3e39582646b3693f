//! What the application does: send, receive, acknowledge, reconnect, end.

use std::time::Instant;

use bytes::Bytes;

use super::peer::Peer;
use super::{Client, Closing, Command, Dial, EndCause, Event, Incoming, Lost, Pulse, REPLACE_AFTER, Reads};
use crate::confirm;
use crate::queue::ByteQueue;
use crate::session::{CLOSE_TIMEOUT, Delivery, Message, Transmit};
use crate::ws::CloseCode;

impl Client {
    /// Accepts a message and returns its number.
    ///
    /// # Errors
    /// Returns the message if the buffer is full ([`waits_when_full`] says whether to wait for room), or if nothing
    /// more is sent.
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

    /// Sends a message that is not numbered, kept or sent again. It is dropped while no connection is attached.
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

    /// Returns the next message, or what stands between two messages, in order. Returns nothing after
    /// [`close`](Self::close).
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

    /// Whether the application has ended the client: nothing that arrives is delivered any more.
    #[must_use]
    pub fn delivers_nothing(&self) -> bool {
        let is_aborted = self.end().is_some_and(|end| end.cause == EndCause::Aborted);
        is_aborted || (self.closing.is_some() && !self.reads_while_closing())
    }

    pub(super) fn reads_while_closing(&self) -> bool {
        self.peer.is_plain() && (self.config.reads_while_closing || self.reads_to_the_end())
    }

    /// In manual mode: acknowledges everything that was delivered. Does nothing towards a plain peer.
    pub fn acknowledge(&mut self, now: Instant) {
        self.forward.check(now);
        if let Peer::Session(session) = &mut self.peer {
            session.acknowledge(now, u64::MAX);
        }
    }

    /// Presents new credentials: on the attached connection, or in the next HELLO if there is none.
    /// [`Event::Authenticated`] reports the verdict. Does nothing towards a plain peer.
    pub fn authenticate(&mut self, now: Instant, credentials: Bytes) {
        self.forward.check(now);
        if let Peer::Session(session) = &mut self.peer {
            session.authenticate(credentials);
            self.collect(now);
        }
    }

    /// Sets the credentials that every HELLO presents from now on, except while others wait for their verdict. Does
    /// nothing towards a plain peer.
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

    /// The network may have changed: connects now if the client waits or [rests](Self::rest), probes if it is attached.
    pub fn probe_now(&mut self, now: Instant) {
        self.forward.check(now);
        if self.wake(now) {
            return;
        }
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

    /// Drops the connection, whatever its state, and connects again at once. An attempt in progress starts again.
    pub fn reconnect(&mut self, now: Instant) {
        self.forward.check(now);
        if self.end.is_some() || self.wake(now) {
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
                // For a session's server a Close would mean no more than the loss of a connection.
                Peer::Session(_) => Transmit::Abort,
            };
            self.commands.push_back(Command::Transmit(connection, goodbye));
            self.handle_lost(now, connection, Lost::Asked);
        }
    }

    /// Ends the client in order: the peer receives everything that was accepted before, and nothing more is delivered
    /// to the application. Messages that are not acknowledged or confirmed within 10 s are unknown.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.close_with(now, code, reason, Reads::UntilOurClose);
    }

    /// As [`close`](Self::close), and delivers what a plain peer sends until its own Close: the peer answers the Close behind
    /// everything that it sent before. No other connection is made for it: one that is lost meanwhile ends the client, and so
    /// does the call if there is none. Towards a server of sessions it is `close`.
    pub fn close_and_read(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.close_with(now, code, reason, Reads::UntilTheirs);
        if self.attached.is_none() && self.reads_to_the_end() {
            self.give_up(EndCause::Closed, None, reason.to_owned(), None);
        }
    }

    fn close_with(&mut self, now: Instant, code: CloseCode, reason: &str, reads: Reads) {
        self.forward.check(now);
        if self.end.is_some() || self.closing.is_some() {
            return;
        }
        self.closing = Some(Closing { code, reason: reason.to_owned(), until: now + CLOSE_TIMEOUT, reads });
        self.close_rest(now);
        let reads = self.reads_while_closing();
        let is_unused = match &mut self.peer {
            Peer::Plain(plain) => {
                if !reads {
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

    /// Ends the client at once: the peer receives END or Close if a connection is attached, and the client waits for
    /// nothing. Messages that were written and not acknowledged or confirmed are unknown; the rest is not delivered.
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

    /// Ends the client at once and sends nothing, because no task drives it any more, or its connection is of no use.
    /// Messages that were written and not confirmed are reported as unknown, the rest as not delivered.
    pub fn abandon(&mut self, reason: &str) {
        self.give_up(EndCause::Abandoned, None, reason.to_owned(), None);
    }

    /// After the end: returns the messages that were accepted and are not known to be delivered, in order, once.
    /// First those that may have been delivered, by the reports or the [`Fate`](crate::session::Fate), then those
    /// that certainly were not.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        match &mut self.peer {
            _ if self.end.is_none() => Vec::new(),
            Peer::Plain(plain) => plain.confirmer.take_undelivered(),
            Peer::Session(session) => session.take_undelivered(),
        }
    }
}
