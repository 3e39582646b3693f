//! What is written next, and what is due at which time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ending::{Closed, Ending};
use super::moving::UNCONFIRMED_LIFE;
use super::{Auth, Life, Probe, ServerSession};
use crate::due::earliest;
use crate::heartbeat::Action;
use crate::session::end::EndCause;
use crate::session::lifetime::{self, Leave};
use crate::session::message::{Control, Delay};
use crate::session::transmit::{ConnectionId, Transmit};
use crate::ws::CloseCode;

impl ServerSession {
    /// Returns the next thing to do to `connection`. A fenced connection gets nothing.
    pub fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) else {
            return self.close_fenced(connection);
        };
        if let Some(welcome) = attached.welcome.take() {
            return Some(Transmit::control(&Control::Welcome(welcome)));
        }
        match attached.probe.take() {
            Some(Probe::Both(nonce)) => {
                attached.probe = Some(Probe::Ping(nonce));
                return Some(Transmit::Ping(nonce));
            }
            Some(Probe::Ping(nonce)) => return Some(self.flow.write_ping(nonce, &attached.lane)),
            None => {}
        }
        if let Some(Auth::Judged { accepted, expires_in }) = attached.auth {
            attached.auth = None;
            let result = Control::AuthResult { accepted, expires_in };
            return Some(Transmit::control(&result));
        }
        if let Some(transmit) = attached.queue.pop_front() {
            return Some(transmit);
        }
        match self.life {
            // A client that still delivers what came before END may probe this end.
            Life::EndSent { .. } => return self.flow.write_pong(&attached.lane),
            Life::Closed(_) => return None,
            _ => {}
        }
        if let Some(transmit) =
            attached.volatiles.transmit().or_else(|| self.flow.write_owed(now, &attached.lane))
        {
            return Some(transmit);
        }
        if let Some(rare) = &mut self.rare
            && let Some(mark) = rare.replaced.transmit(attached.lane.wrote)
        {
            return Some(mark);
        }
        let message = self.flow.write_message(&mut attached.lane)?;
        attached.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_message(now));
        Some(message)
    }

    /// Whether the driver must drop the transport now, even if bytes wait to be written. A socket that accepts no
    /// bytes must not keep [`Transmit::Abort`] from being polled.
    #[must_use]
    pub fn wants_abort(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.queue.contains(&Transmit::Abort))
    }

    /// Does what is due. Call it once [`poll_timeout`](Self::poll_timeout) has passed, until it returns `None` or
    /// [`Action::Dead`]; an earlier call does nothing. After [`Action::NotListening`] drop the transport and call
    /// [`handle_lost`](Self::handle_lost), unless the client is in the middle of a frame: the session parks, and a
    /// client that is alive resumes it.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        if self.expires_at().is_some_and(|at| at <= now) {
            let replaced = matches!(&self.life, Life::Closing { how, .. } if **how == Ending::Replaced);
            self.finish(if replaced { Closed::Replaced } else { Closed::Expired });
        }
        self.queue_end_if_due(now);
        if let Life::EndSent { code, until } = self.life
            && until <= now
        {
            self.finish(Closed::Ended { code, by_us: true });
            let attached = self.attached.as_mut()?;
            (attached.probe, attached.queue) = (None, VecDeque::from([Transmit::Abort]));
            return None;
        }
        self.flow.inbox.handle_timeout(now);
        self.leave_if_due(now);
        let attached = self.attached.as_mut()?;
        let action = attached.heartbeat.handle_timeout(now, &self.config.heartbeat);
        match &action {
            Some(Action::Probe { nonce }) => attached.probe = Some(Probe::Both(*nonce)),
            Some(Action::Dead(_)) => attached.queue.push_front(Transmit::Abort),
            _ => {}
        }
        action
    }

    /// Ends a connection that has been idle for too long, drains one that has lived for too long, and asks for credentials
    /// where they have expired.
    fn leave_if_due(&mut self, now: Instant) {
        let Some(attached) = &mut self.attached else { return };
        if attached.gone_by.take_if(|at| *at <= now).is_some() {
            let code = CloseCode::RESTART;
            attached.queue.push_back(Transmit::Close { code, reason: lifetime::STILL_THERE.to_owned() });
        }
        let leave = attached.lifetime.as_mut().and_then(|lifetime| lifetime.handle_timeout(now));
        match leave {
            None => {}
            Some(Leave::Idle) => {
                self.close_for(now, EndCause::Idle, CloseCode::SESSION_ENDED, lifetime::IDLE);
            }
            Some(Leave::Old) => {
                self.go_away(now, lifetime::OLD, lifetime::GO_AWAY_WITHIN, lifetime::GONE_BY);
            }
            Some(Leave::Expiring) => self.ask_for_credentials(now),
            Some(Leave::Unauthorized) => {
                let cause = EndCause::Unauthorized;
                self.close_for(now, cause, CloseCode::UNAUTHORIZED, lifetime::EXPIRED);
            }
        }
    }

    /// Asks the client to come back with other credentials within the grace. The end that follows is an END, which
    /// [`Lifetime`](crate::session::lifetime::Lifetime) times: no Close precedes it.
    fn ask_for_credentials(&mut self, now: Instant) {
        let Some(attached) = &mut self.attached else { return };
        let until = attached.lifetime.as_ref().and_then(|lifetime| lifetime.poll_unauthorized());
        let close_in = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        // In its first half, so that a second attempt still comes in time.
        let delay = Delay { min: Duration::ZERO, max: close_in / 2 };
        let reason = lifetime::EXPIRING.to_owned();
        let control = Control::GoAway { reason, delay, close_in, endpoint: None };
        attached.queue.push_back(Transmit::control(&control));
    }

    /// Returns why the server ends the connection, once, for metrics.
    pub fn poll_leave(&mut self) -> Option<Leave> {
        self.attached.as_mut()?.lifetime.as_mut()?.poll_leave()
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let end = match self.life {
            Life::EndSent { until, .. } | Life::Closing { until, .. } => Some(until),
            _ => self.expires_at(),
        };
        let Some(attached) = &self.attached else { return end };
        let leave = attached.lifetime.as_ref().and_then(|lifetime| lifetime.poll_timeout());
        let (beat, acknowledge) = (attached.heartbeat.poll_timeout(), self.flow.inbox.acknowledge_by());
        earliest([Some(beat), leave, attached.gone_by, acknowledge, end])
    }

    fn expires_at(&self) -> Option<Instant> {
        match self.life {
            Life::Parked { since } if self.was_never_confirmed() => {
                Some(since + self.resume_window.min(UNCONFIRMED_LIFE))
            }
            Life::Parked { since } => Some(since + self.resume_window),
            Life::Closing { until, .. } if self.attached.is_none() => Some(until),
            _ => None,
        }
    }

    pub(super) fn trim(&mut self) {
        self.flow.outbox.trim(self.attached.as_ref().map_or(u64::MAX, |a| a.lane.wrote));
    }

    /// Whether WELCOME waits to be written. Write it before you read more: a frame behind HELLO may end the
    /// connection, and the client must learn why.
    #[must_use]
    pub fn owes_welcome(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.welcome.is_some())
    }

    /// Returns how many messages the current connection has to write again. An earlier connection wrote them, and the
    /// client has not acknowledged them.
    #[must_use]
    pub fn to_replay(&self) -> u64 {
        self.attached.as_ref().map_or(0, |a| self.flow.outbox.written().saturating_sub(a.lane.wrote))
    }
}
