//! What is written next, and to which connection.

use std::time::Instant;

use super::{ClientEvent, ClientSession, Life};
use crate::session::message::Control;
use crate::session::transmit::{ConnectionId, Transmit};

impl ClientSession {
    /// Sends a PING on the current connection, to find out whether the server is alive.
    pub fn probe(&mut self, nonce: u64) {
        if let Some(current) = &mut self.current {
            current.ping = Some(nonce);
        }
    }

    /// Whether a requested probe waits to be transmitted.
    #[must_use]
    pub fn owes_probe(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.ping.is_some())
    }

    /// Returns the connection that may be written now.
    #[must_use]
    pub fn writer(&self) -> Option<ConnectionId> {
        self.pending().or_else(|| self.current())
    }

    /// Returns the next thing to do, and to which connection.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(ConnectionId, Transmit)> {
        if let Some(pending) = &mut self.pending {
            let connection = pending.connection;
            if let Some(hello) = pending.hello.take() {
                return Some((connection, Transmit::control(&Control::Hello(hello))));
            }
            // Nothing is written to the current connection from here on.
            let lane = pending.opening.as_mut().filter(|_| !pending.waits)?;
            let transmit = self.flow.write_message(lane)?;
            return Some((connection, transmit));
        }
        let current = self.current.as_mut()?;
        let connection = current.connection;
        if let Some(transmit) = current.queue.pop_front() {
            return Some((connection, transmit));
        }
        if matches!(self.life, Life::EndSent { .. } | Life::Closed) {
            return None;
        }
        if let Some(nonce) = current.ping.take() {
            return Some((connection, self.flow.write_ping(nonce, &current.lane)));
        }
        let owed = current.volatiles.transmit().or_else(|| self.flow.write_owed(now, &current.lane));
        owed.or_else(|| self.flow.write_message(&mut current.lane)).map(|transmit| (connection, transmit))
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Does what is due. Call it once [`poll_timeout`](Self::poll_timeout) has passed; an earlier call does nothing.
    /// Without the call `poll_timeout` keeps returning a time in the past while the socket is full.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.flow.inbox.handle_timeout(now);
    }

    /// Returns when an acknowledgement is due even if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        // While an attempt is pending nothing is written, so nothing is due.
        let writable = self.current.is_some() && self.pending.is_none();
        writable.then(|| self.flow.inbox.acknowledge_by()).flatten()
    }

    pub(super) fn trim(&mut self) {
        let current = self.current.as_ref().map_or(u64::MAX, |c| c.lane.wrote);
        let pending = self.pending.as_ref().and_then(|p| p.opening).map_or(u64::MAX, |lane| lane.wrote);
        self.flow.outbox.trim(current.min(pending));
    }
}
