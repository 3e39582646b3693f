//! What happens to connections: they open, carry bytes and messages, and get lost.

use std::time::Instant;

use super::peer::Peer;
use super::{Attached, Client, Dial, EndsOn, Event, HEARTBEAT_PING, Lost, Mode, Pulse};
use crate::session::{ConnectionId, Control, Delivery, Frame, Message, SessionError};
use crate::ws::CloseCode;

impl Client {
    /// Checks whether the client can continue on a new connection whose peer selected `subprotocol`. Call it before
    /// [`handle_opened`](Self::handle_opened), and report an error with [`handle_lost`](Self::handle_lost).
    ///
    /// # Errors
    /// A plain peer selected another subprotocol than on the first connection, and the application is in the middle
    /// of that one.
    ///
    /// Source: RFC 6455 section 4.2.2: the subprotocol that was agreed on is the connection's.
    pub fn check_subprotocol(&mut self, mode: Mode, subprotocol: Option<&str>) -> Result<(), Lost> {
        if mode != Mode::Plain {
            return Ok(());
        }
        let agreed = self.agreed.get_or_insert_with(|| subprotocol.map(str::to_owned));
        if agreed.as_deref() == subprotocol {
            return Ok(());
        }
        let name = |name: Option<&str>| name.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
        let reason = format!(
            "the peer agrees on another subprotocol than before: {} instead of {}",
            name(subprotocol),
            name(agreed.as_deref())
        );
        Err(Lost::Refused { status: None, reason })
    }

    /// A dialled connection finished its opening handshake.
    pub fn handle_opened(&mut self, now: Instant, connection: ConnectionId, mode: Mode) {
        self.forward.check(now);
        let Dial::Connecting { connection: dialled, until } = self.dial else {
            return self.abort_connection(connection);
        };
        if dialled != connection {
            return self.abort_connection(connection);
        }
        match (mode, &mut self.peer) {
            (Mode::Session, Peer::Session(session)) => {
                self.dial = Dial::Attaching { connection, until };
                session.handle_opened(now, connection);
                if session.pending() != Some(connection) {
                    // END was sent or received: no connection attaches any more.
                    self.abort_connection(connection);
                    self.dial = Dial::Rest;
                }
            }
            (Mode::Plain, Peer::Plain(_)) => self.attach_plain(now, connection),
            (Mode::Plain, Peer::Session(_)) if self.epoch == 0 => {
                self.become_plain();
                self.attach_plain(now, connection);
            }
            // The server spoke sessions before and does not any more, or the other way round. A guarantee of the one
            // protocol cannot be kept under the other.
            _ => {
                self.abort_connection(connection);
                let why = Lost::NotOpened("the server changed the protocol it speaks".into());
                self.dial_failed(now, why, None);
            }
        }
        self.collect(now);
    }

    /// A connection is gone, or could not be opened.
    pub fn handle_lost(&mut self, now: Instant, connection: ConnectionId, why: Lost) {
        self.forward.check(now);
        if let Peer::Session(session) = &mut self.peer {
            match &why {
                Lost::Closed { code: Some(CloseCode::SUPERSEDED), reason } => {
                    session.handle_superseded(connection, reason);
                }
                _ => session.handle_lost(connection),
            }
        }
        self.collect(now);
        if self.is_dialled(connection) {
            self.dial_failed(now, why, None);
        } else if self.attached.as_ref().is_some_and(|a| a.connection == connection) {
            self.lose_attached(now, why);
        }
        self.collect(now);
    }

    /// Bytes of any kind arrived.
    pub fn handle_bytes(&mut self, now: Instant, connection: ConnectionId) {
        self.forward.check(now);
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.replace_at = None;
            attached.signs.handle_bytes(now);
            match &mut attached.pulse {
                Pulse::Watched(watch) => watch.handle_bytes(now),
                Pulse::Driven(beat, _) => beat.handle_bytes(now),
            }
        }
    }

    /// Everything written so far has left the process.
    pub fn handle_flushed(&mut self, now: Instant, connection: ConnectionId) {
        self.forward.check(now);
        let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) else { return };
        // A probe that was not polled has not left.
        match (&mut attached.pulse, &mut self.peer) {
            (Pulse::Watched(watch), Peer::Session(session)) if !session.owes_probe() => {
                watch.handle_flushed(now)
            }
            (Pulse::Driven(beat, None), _) => beat.handle_flushed(now),
            _ => {}
        }
        match &mut self.peer {
            Peer::Session(session) => self.left = self.left.max(session.wrote().unwrap_or(0)),
            Peer::Plain(plain) => {
                self.left = self.left.max(plain.confirmer.written());
                let outcome = plain.confirmer.handle_flushed(now);
                self.report(outcome);
                self.close_plain_if_done(now);
            }
        }
    }

    /// The socket accepted part of what waited.
    pub fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        self.forward.check(now);
        match self.attached.as_mut().filter(|a| a.connection == connection).map(|a| &mut a.pulse) {
            Some(Pulse::Driven(beat, _)) => beat.handle_write_progress(now),
            Some(Pulse::Watched(watch)) => watch.handle_write_progress(now),
            None => {}
        }
    }

    /// A message arrived.
    ///
    /// # Errors
    /// The peer violated `mainstay.v1`: fail that connection and report it lost.
    pub fn handle_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
    ) -> Result<(), SessionError> {
        self.forward.check(now);
        self.handle_bytes(now, connection);
        if let Peer::Plain(_) = self.peer {
            self.handle_plain_message(now, connection, message);
            return Ok(());
        }
        self.handle_session_message(now, connection, message)
    }

    fn handle_plain_message(&mut self, now: Instant, connection: ConnectionId, message: Message) {
        let delivers = self.closing.is_none() || self.reads_while_closing();
        let attached = self.attached.as_mut().filter(|attached| attached.connection == connection);
        let (Some(attached), Peer::Plain(plain)) = (attached, &mut self.peer) else { return };
        (attached.quiet_since, attached.is_judging) = (now, false);
        self.backoff.handle_progress(now);
        plain.restarts |= self.config.announces_restart.is_some_and(|announces| announces(&message));
        if !delivers {
            // Nothing more is delivered, and the inbox must not fill up: the confirming Pongs are still to come.
            return;
        }
        plain.inbox.push(Delivery::Message(message));
        plain.progressed = true;
        plain.confirmer.handle_peer_message();
    }

    fn handle_session_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
    ) -> Result<(), SessionError> {
        let Peer::Session(session) = &mut self.peer else { return Ok(()) };
        let frame = Frame::decode(message)?;
        let attached = self.attached.as_mut().filter(|attached| attached.connection == connection);
        let is_attached = attached.is_some();
        let progressed = attached.is_some_and(|attached| attached.note_frame(now, &frame));
        let before = session.acknowledged();
        let outcome = session.handle_frame(connection, frame);
        // Messages that WELCOME acknowledges were received on an earlier connection.
        if progressed || (is_attached && session.acknowledged() > before) {
            self.note_progress(now);
        }
        self.collect(now);
        outcome
    }

    /// An RFC 6455 Pong arrived.
    pub fn handle_pong(&mut self, now: Instant, connection: ConnectionId, payload: &[u8]) {
        self.forward.check(now);
        self.handle_bytes(now, connection);
        let Ok(nonce) = payload.try_into().map(u64::from_be_bytes) else { return };
        let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) else { return };
        let (Pulse::Driven(beat, _), Peer::Plain(plain)) = (&mut attached.pulse, &mut self.peer) else {
            return;
        };
        let missed = plain.confirmer.answers_pings() == Some(false);
        let outcome = if nonce & HEARTBEAT_PING != 0 {
            beat.handle_pong(now, nonce & !HEARTBEAT_PING);
            plain.confirmer.handle_other_pong();
            None
        } else {
            plain.confirmer.handle_pong(payload)
        };
        if outcome.is_some() {
            plain.progressed = true;
            self.backoff.handle_progress(now);
        }
        if missed && plain.confirmer.answers_pings() == Some(true) {
            self.events.push_back(Event::PingsAnswered);
        }
        self.report(outcome);
        self.close_plain_if_done(now);
    }

    /// The peer started the closing handshake: Pongs prove nothing any more.
    pub fn handle_peer_close(&mut self, connection: ConnectionId, code: Option<CloseCode>) {
        let is_attached = self.attached.as_ref().is_some_and(|a| a.connection == connection);
        let Some(plain) = self.peer.plain_mut().filter(|_| is_attached) else { return };
        let goes_on = match self.config.ends_on {
            EndsOn::Nothing => true,
            EndsOn::FinalClose => plain.restarts || CloseCode::is_restart(code),
            EndsOn::Close | EndsOn::Connection => false,
        };
        let outcome = plain.confirmer.handle_peer_close(goes_on);
        self.report(outcome);
    }
}

impl Attached {
    /// Records what a frame of a session's server shows about the connection. Returns whether it is a message.
    fn note_frame(&mut self, now: Instant, frame: &Frame) -> bool {
        match frame {
            Frame::Control(Control::Pong(beat)) => {
                self.unproven.handle_pong(beat.nonce);
                if let Pulse::Watched(watch) = &mut self.pulse {
                    watch.handle_pong(now, beat.nonce);
                }
                false
            }
            Frame::Message(_) | Frame::Control(Control::Volatile(_)) => {
                (self.quiet_since, self.is_judging) = (now, false);
                true
            }
            _ => false,
        }
    }
}
