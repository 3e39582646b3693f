//! What time makes due: attempts, probes, verdicts, the end of a close.

use std::time::Instant;

use super::peer::Peer;
use super::{Client, Closing, Command, Dial, EndCause, HEARTBEAT_PING, Lost, Pulse, REPLACE_AFTER};
use crate::due::earliest;
use crate::heartbeat::Action;
use crate::session::{ConnectionId, Transmit};

impl Client {
    /// Does what is due. After the end: drops a connection that did not accept the last bytes within 10 s. Returns
    /// `true` if this process was paused: read everything readable, then call it again.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.forward.check(now);
        if self.end.is_some() {
            if let Some((connection, _)) = self.lingering.take_if(|(_, until)| *until <= now) {
                self.abort_connection(connection);
            }
            return false;
        }
        if self.closing.as_ref().is_some_and(|closing| closing.until <= now) {
            if let Peer::Session(session) = &mut self.peer {
                let attached = self.attached.as_ref().map(|attached| attached.connection);
                session.abandon();
                self.collect(now);
                // The end of an attempt has dropped it already.
                let is_kept = |connection: &ConnectionId| {
                    !self.commands.contains(&Command::Transmit(*connection, Transmit::Abort))
                };
                let kept = attached.filter(is_kept);
                kept.into_iter().for_each(|connection| self.abort_connection(connection));
            }
            if let Some(Closing { code, reason, .. }) = &self.closing {
                self.give_up(EndCause::Closed, Some((*code).into()), reason.clone(), None);
            }
            return false;
        }
        match self.dial {
            Dial::Waiting { until } if until <= now => self.dial(now),
            Dial::Connecting { connection, until } | Dial::Attaching { connection, until }
                if until <= now =>
            {
                self.forget_attempt(connection);
                let within = self.config.opening_timeout;
                self.dial_failed(now, Lost::NoAnswer { within }, None);
            }
            Dial::Resting { until } if self.rest_due(until).is_some_and(|due| due <= now) => {
                self.end_rest(now)
            }
            _ => {}
        }
        if let Peer::Session(session) = &mut self.peer {
            session.handle_timeout(now);
        }
        self.judge_pings(now);
        self.probe_for_unproven(now);
        let drain = self.beat(now) || self.judge_quiet(now);
        self.collect(now);
        drain
    }

    /// Returns when the connection has carried no message for too long.
    fn quiet_at(&self) -> Option<Instant> {
        Some(self.attached.as_ref()?.quiet_since + self.config.silence?.get())
    }

    /// Returns `true` if everything readable must be read first.
    fn judge_quiet(&mut self, now: Instant) -> bool {
        // Messages that wait for the application keep the peer from sending more.
        let is_held_up = self.held().unread > 0 || !self.wants_input();
        let due = self.quiet_at().is_some_and(|at| at <= now);
        let (Some(attached), Some(silence)) = (self.attached.as_mut().filter(|_| due), self.config.silence)
        else {
            return false;
        };
        if is_held_up {
            (attached.quiet_since, attached.is_judging) = (now, false);
            return false;
        }
        if !std::mem::replace(&mut attached.is_judging, true) {
            return true;
        }
        let connection = attached.connection;
        self.abort_connection(connection);
        self.handle_lost(now, connection, Lost::NoMessage { within: silence.get() });
        false
    }

    fn beat(&mut self, now: Instant) -> bool {
        let Some(attached) = &mut self.attached else { return false };
        if attached.replace_at.is_some_and(|at| at <= now) {
            attached.replace_at = None;
            if self.dial == Dial::Rest {
                self.dial = Dial::Waiting { until: now };
            }
        }
        match attached.signs.doubt_until() {
            Some(until) if until > now => return false,
            Some(_) => {
                self.end_doubt(now);
                return false;
            }
            None => {}
        }
        loop {
            let action = match &mut attached.pulse {
                Pulse::Watched(watch) => watch.handle_timeout(now),
                Pulse::Driven(beat, _) => beat.handle_timeout(now, &self.config.heartbeat),
            };
            match (action, &mut attached.pulse) {
                (None, _) => return false,
                (Some(Action::Drain), _) => return true,
                (Some(Action::Probe { nonce }), Pulse::Driven(_, ping)) => {
                    *ping = Some(nonce | HEARTBEAT_PING);
                }
                (Some(Action::Probe { nonce }), Pulse::Watched(_)) => {
                    attached.replace_at = Some(now + REPLACE_AFTER);
                    if let Peer::Session(session) = &mut self.peer {
                        attached.unproven.note_probe(nonce, session.wrote().unwrap_or(0));
                        session.probe(nonce);
                    }
                }
                // No verdict: a plain peer that answers no Ping stays attached for what it sends.
                (Some(Action::NotListening), _) => {
                    self.expect_no_pongs(now);
                    return false;
                }
                (Some(Action::Dead(evidence)), _) => {
                    let connection = attached.connection;
                    if self.is_spared(now, evidence) {
                        return false;
                    }
                    self.allow_for_verdict();
                    self.abort_connection(connection);
                    self.handle_lost(now, connection, Lost::Dead(evidence));
                    return false;
                }
            }
        }
    }

    /// Whether every command and event was polled. An application on another thread may cause one at any time.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.commands.is_empty() && self.events.is_empty()
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout). Ask before you wait, after the last command, transmit and
    /// event were polled.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        debug_assert!(self.is_polled(), "the driver waits, and has not polled every command and event");
        self.due()
    }

    /// Whether [`handle_timeout`](Self::handle_timeout) has something to do at `now`.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    fn due(&self) -> Option<Instant> {
        if self.end.is_some() {
            return self.lingering.map(|(_, until)| until);
        }
        let dial = match self.dial {
            Dial::Rest => None,
            Dial::Waiting { until } | Dial::Connecting { until, .. } | Dial::Attaching { until, .. } => {
                Some(until)
            }
            Dial::Resting { until } => self.rest_due(until),
        };
        let pulse =
            self.attached.as_ref().map(|attached| match (attached.signs.doubt_until(), &attached.pulse) {
                (Some(until), _) => until,
                (None, Pulse::Watched(watch)) => watch.poll_timeout(),
                (None, Pulse::Driven(beat, _)) => beat.poll_timeout(),
            });
        let pings = self.pings_judged_at();
        let replace = self.attached.as_ref().and_then(|attached| attached.replace_at);
        let owed = self.peer.poll_timeout();
        let closing = self.closing.as_ref().map(|closing| closing.until);
        let (unproven, quiet) = (self.unproven_at(), self.quiet_at());
        earliest([dial, pulse, pings, replace, owed, closing, unproven, quiet])
    }
}
