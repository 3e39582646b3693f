//! How a client ends.

use std::time::Instant;

use super::peer::Peer;
use super::{Client, Command, Dial, End, EndCause, Event, Lost, ReasonCode};
use crate::session::{CLOSE_TIMEOUT, ConnectionId, Transmit};
use crate::ws::CloseCode;

impl Client {
    /// Starts the closing handshake on the attached connection; the client itself does not wait for its end.
    pub(super) fn begin_close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if let Some(attached) = self.attached.take() {
            let close = Transmit::Close { code, reason: reason.to_owned() };
            self.commands.push_back(Command::Transmit(attached.connection, close));
            self.lingering = Some((attached.connection, now + CLOSE_TIMEOUT));
        }
    }

    pub(super) fn give_up(
        &mut self,
        cause: EndCause,
        code: Option<ReasonCode>,
        reason: String,
        lost: Option<Lost>,
    ) {
        if self.end.is_some() {
            return;
        }
        if let Dial::Connecting { connection, .. } | Dial::Attaching { connection, .. } = self.dial {
            self.abort_connection(connection);
        }
        if let Some(attached) = self.attached.take() {
            self.abort_connection(attached.connection);
        }
        self.dial = Dial::Rest;
        let fate = match &mut self.peer {
            Peer::Session(session) => Some(session.final_fate()),
            Peer::Plain(plain) => {
                let outcomes = plain.confirmer.abandon();
                outcomes.into_iter().for_each(|outcome| self.report(outcome));
                None
            }
        };
        self.end_with(End { cause, code, reason, fate, lost: lost.map(Box::new) });
    }

    pub(super) fn end_with(&mut self, end: End) {
        let end = Box::new(end);
        self.end = Some(end.clone());
        self.events.push_back(Event::Ended(end));
    }

    /// Drops the connection that is being opened, and the attempt to attach on it.
    pub(super) fn forget_attempt(&mut self, connection: ConnectionId) {
        if let Peer::Session(session) = &mut self.peer {
            session.handle_lost(connection);
        }
        self.abort_connection(connection);
    }

    pub(super) fn abort_connection(&mut self, connection: ConnectionId) {
        self.commands.push_back(Command::Transmit(connection, Transmit::Abort));
    }
}
