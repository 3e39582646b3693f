//! When to connect, and what follows a failed attempt or a lost connection.

use std::time::{Duration, Instant};

use super::peer::Peer;
use super::pings::Signs;
use super::unproven::Unproven;
use super::{Attached, Client, Command, Dial, EndCause, EndsOn, Event, Lost, Pulse, ReasonCode};
use crate::backoff::{Advice, Scope};
use crate::reach::{ConnectFailure, FailureKind};
use crate::session::ConnectionId;
use crate::session::message::Delay;
use crate::ws::CloseCode;
use crate::ws::close::CloseAction;

/// How long the client waits for a free local port. A port becomes free when a connection ends, and the peer is not
/// contacted meanwhile.
const PORT_AGAIN: Duration = Duration::from_millis(100);
/// With [`EndsOn::FinalClose`]: how many connections in a row the peer may close without having sent a message or a
/// confirmation.
const BARREN_LIMIT: u32 = 5;

impl Client {
    pub(super) fn dial(&mut self, now: Instant) {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        self.dial = Dial::Connecting { connection, until: now + self.config.opening_timeout };
        self.commands.push_back(Command::Dial(connection));
    }

    pub(super) fn set_attached(&mut self, now: Instant, connection: ConnectionId, pulse: Pulse) {
        let attached = Attached {
            connection,
            pulse,
            replace_at: None,
            signs: Signs::default(),
            unproven: Unproven::default(),
            quiet_since: now,
            is_judging: false,
        };
        if let Some(old) = self.attached.replace(attached) {
            self.abort_connection(old.connection);
            self.backoff.handle_lost(now);
        }
        (self.dial, self.failed, self.unwanted_until) = (Dial::Rest, 0, None);
        self.backoff.handle_connected(now);
    }

    pub(super) fn lose_attached(&mut self, now: Instant, why: Lost) {
        let is_over = self.attached.as_ref().is_some_and(|attached| self.awaits_close(attached.connection));
        self.attached = None;
        self.backoff.handle_lost(now);
        let outcome = self.peer.plain_mut().and_then(|plain| plain.confirmer.handle_lost());
        self.report(outcome);
        if self.is_resting() && self.closing.is_none() {
            return self.handle_rested(now);
        }
        if !is_over && self.ends_on(&why) {
            let (code, reason) = match &why {
                Lost::Closed { code, reason } => (code.map(ReasonCode::from), reason.clone()),
                Lost::TooBig { .. } => (Some(CloseCode::TOO_BIG.into()), why.to_string()),
                _ => (None, why.to_string()),
            };
            self.events.push_back(Event::Detached { why: why.clone(), next_attempt_in: Duration::ZERO });
            let cause = if matches!(why, Lost::Closed { .. }) { EndCause::Peer } else { EndCause::Lost };
            return self.give_up(cause, code, reason, Some(why));
        }
        if self.reads_to_the_end() {
            self.events.push_back(Event::Detached { why, next_attempt_in: Duration::ZERO });
            return self.give_up(EndCause::Closed, None, String::new(), None);
        }
        if self.ends_here(&why) {
            return;
        }
        let next_attempt_in = match self.dial {
            Dial::Rest => self.schedule(now, &why, None),
            // A replacement was planned for later, or failed before: the loss starts a new wait.
            Dial::Waiting { until } => {
                let own = (now + self.schedule(now, &why, None)).max(self.unwanted_until.unwrap_or(now));
                let until = own.min(until);
                self.dial = Dial::Waiting { until };
                until.saturating_duration_since(now)
            }
            // An attempt is in progress.
            Dial::Connecting { .. } | Dial::Attaching { .. } | Dial::Resting { .. } => Duration::ZERO,
        };
        self.events.push_back(Event::Detached { why, next_attempt_in });
    }

    pub(super) fn dial_failed(&mut self, now: Instant, why: Lost, advice: Option<Delay>) {
        self.dial = Dial::Rest;
        self.endpoint = None;
        if self.end.is_some()
            || (self.attached.is_none() && (self.ends_here(&why) || self.is_last_attempt(&why)))
        {
            return;
        }
        let next_attempt_in = self.schedule(now, &why, advice);
        self.events.push_back(Event::AttemptFailed { why, next_attempt_in });
    }

    /// Whether this was the last of the allowed attempts in a row.
    fn is_last_attempt(&mut self, why: &Lost) -> bool {
        self.failed = self.failed.saturating_add(1);
        let Some(limit) = self.config.max_attempts.filter(|limit| self.failed >= limit.get()) else {
            return false;
        };
        let reason = match limit.get() {
            1 => format!("the only attempt failed: {why}"),
            limit => format!("{limit} attempts in a row failed; the last one: {why}"),
        };
        self.give_up(EndCause::Attempts, None, reason, Some(why.clone()));
        true
    }

    fn schedule(&mut self, now: Instant, why: &Lost, delay: Option<Delay>) -> Duration {
        let cause = match why {
            Lost::Dead(_) | Lost::NoMessage { .. } | Lost::Asked => Scope::Individual,
            Lost::Closed { code, .. } if CloseCode::action(*code) == CloseAction::ReconnectAlone => {
                Scope::Individual
            }
            _ => Scope::Shared,
        };
        let at = match why {
            Lost::Unavailable { retry_after, .. } => *retry_after,
            Lost::Closed { code, reason } => code.and_then(|code| code.retry_after(reason)),
            _ => None,
        };
        let no_port = |failure: &ConnectFailure| failure.kind == FailureKind::NoLocalPort;
        let at = at.or(matches!(why, Lost::NotConnected(failure) if no_port(failure)).then_some(PORT_AGAIN));
        let delay = at.map(|at| Delay { min: at, max: at }).or(delay.filter(|delay| !delay.max.is_zero()));
        let advice = delay.map(advice);
        let wait = self.backoff.next_delay(cause, advice, &mut self.rng);
        self.dial = Dial::Waiting { until: now + wait };
        wait
    }

    /// Whether the configuration makes the end of a plain peer's connection the end of this client.
    fn ends_on(&mut self, why: &Lost) -> bool {
        let Peer::Plain(plain) = &mut self.peer else { return false };
        if let Lost::Closed { .. } = why {
            plain.barren = if plain.progressed { 0 } else { plain.barren + 1 };
        }
        match (self.config.ends_on, why) {
            (EndsOn::Connection, _) | (EndsOn::Close, Lost::Closed { .. }) => true,
            // The next connection would bring the same message again.
            (EndsOn::Close | EndsOn::FinalClose, Lost::TooBig { .. }) => true,
            (EndsOn::FinalClose, Lost::Closed { code, .. }) => {
                let restarts = plain.restarts || CloseCode::is_restart(*code);
                !restarts || plain.barren >= BARREN_LIMIT
            }
            _ => false,
        }
    }

    /// Whether this loss ends the client: the peer's code says so, or the application wanted one connection only.
    fn ends_here(&mut self, why: &Lost) -> bool {
        let (cause, code, reason) = match why {
            Lost::Refused { status, reason } => {
                (EndCause::Refused, status.map(ReasonCode::from), reason.clone())
            }
            Lost::Closed { code, reason } if CloseCode::action(*code) == CloseAction::Stop => {
                (EndCause::Peer, code.map(ReasonCode::from), reason.clone())
            }
            Lost::TooBig { .. } if self.config.once => {
                (EndCause::Lost, Some(CloseCode::TOO_BIG.into()), why.to_string())
            }
            Lost::Closed { code, reason } if self.config.once => {
                (EndCause::Peer, code.map(ReasonCode::from), reason.clone())
            }
            _ if self.config.once => (EndCause::Lost, None, why.to_string()),
            _ => return false,
        };
        self.give_up(cause, code, reason, Some(why.clone()));
        true
    }

    pub(super) fn is_dialled(&self, connection: ConnectionId) -> bool {
        matches!(self.dial,
            Dial::Connecting { connection: dialled, .. } | Dial::Attaching { connection: dialled, .. }
            if dialled == connection)
    }
}

pub(super) fn advice(delay: Delay) -> Advice {
    Advice { min: delay.min, max: delay.max }
}
