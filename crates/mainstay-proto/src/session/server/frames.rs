//! What connections bring: frames, bytes, and their own loss.

use std::time::{Duration, Instant};

use super::ending::{Closed, Ending};
use super::{Auth, Life, ServerSession};
use crate::session::CLOSE_TIMEOUT;
use crate::session::end::EndCause;
use crate::session::error::SessionError;
use crate::session::message::{Control, Frame};
use crate::session::transmit::ConnectionId;
use crate::ws::CloseCode;

impl ServerSession {
    /// Takes one message that `connection` brought. One from a fenced connection is dropped.
    ///
    /// # Errors
    /// The peer broke the protocol: fail this connection with
    /// [`close_code`](SessionError::close_code). The session is kept, except after a
    /// [`PositionMismatch`](SessionError::PositionMismatch), which ends it: the counts of both ends
    /// differ, so nothing more can be promised.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        frame: Frame,
    ) -> Result<(), SessionError> {
        self.forward.check(now);
        let is_open = self.is_open();
        let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) else {
            return Ok(());
        };
        attached.heartbeat.handle_bytes(now);
        let (lane, acknowledged) = (&mut attached.lane, self.flow.outbox.acknowledged());
        match frame {
            Frame::Reserved => return Ok(()),
            Frame::Message(message) => {
                self.config.flow.check(&message)?;
                attached.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_message(now));
                // After our close, or an END, nothing is handed over any more, but the position moves.
                if !is_open {
                    lane.read += 1;
                    return Ok(());
                }
                return self.flow.read_message(lane, message);
            }
            Frame::Control(control) => {
                if !self.confirmed {
                    self.confirm_epoch();
                }
                self.handle_control(now, control)?;
            }
        }
        self.put_off_end(now, acknowledged);
        self.trim();
        self.queue_end_if_due(now);
        Ok(())
    }

    fn handle_control(&mut self, now: Instant, control: Control) -> Result<(), SessionError> {
        let Some(attached) = self.attached.as_mut() else { return Ok(()) };
        let outcome = match control {
            Control::Ack { acknowledged, window } => self.flow.read_acknowledgement(acknowledged, window),
            Control::Ping(beat) => self.flow.read_ping(&attached.lane, beat),
            Control::Pong(beat) => {
                attached.heartbeat.handle_pong(now, beat.nonce);
                self.flow.read_pong(&attached.lane, beat)
            }
            Control::Gap { first, count, cause } => {
                self.flow.read_gap(&mut attached.lane, first, count, cause)
            }
            Control::End { code, acknowledged, reason, .. } => {
                let outcome = self.flow.outbox.acknowledge(acknowledged);
                self.handle_end(code, reason);
                outcome
            }
            Control::Auth { .. } if attached.auth.is_some() => {
                Err(SessionError::Unexpected("AUTH before AUTH_RESULT"))
            }
            Control::Auth { credentials } => {
                attached.auth = Some(Auth::Asked(credentials));
                Ok(())
            }
            Control::Volatile(message) => {
                self.config.flow.check(&message)?;
                self.volatiles.push(message, self.config.volatile_queue);
                Ok(())
            }
            Control::Hello(_)
            | Control::Welcome(_)
            | Control::GoAway { .. }
            | Control::AuthResult { .. }
            | Control::Refuse { .. } => Err(SessionError::Unexpected(control.name())),
            // A type that ends before it ignore stays ignored where it means nothing.
            Control::Replaced { .. } => Ok(()),
        };
        if let Err(SessionError::PositionMismatch { .. }) = outcome {
            let (code, reason) = (CloseCode::PROTOCOL_VIOLATION, "positions differ");
            self.note_end(EndCause::ProtocolError, Some(code), reason);
            self.end_now(now, code.into(), reason.into(), CLOSE_TIMEOUT);
        }
        outcome
    }

    fn handle_end(&mut self, code: u64, reason: String) {
        match self.life {
            Life::EndSent { code, .. } => self.over(Closed::Ended { code, by_us: true }),
            Life::Closed(_) => {}
            _ => {
                let allowed = u16::try_from(code).ok().and_then(CloseCode::new);
                self.note_end(EndCause::Client, allowed, &reason);
                if !self.is_open() {
                    // We were about to end it ourselves.
                    self.flow.inbox.discard_queue();
                }
                self.life = Life::EndReceived { code };
                self.answer_end_if_delivered();
            }
        }
    }

    /// Any bytes arrived on the attached connection, for example an RFC 6455 Pong.
    pub fn handle_bytes(&mut self, now: Instant, connection: ConnectionId) {
        self.forward.check(now);
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.heartbeat.handle_bytes(now);
        }
    }

    /// The round trip that a PONG with this nonce measures, if `connection` brings it now; `None` if it answers no
    /// probe. Ask before [`handle_frame`](Self::handle_frame) takes it.
    #[must_use]
    pub fn round_trip(&self, now: Instant, connection: ConnectionId, nonce: u64) -> Option<Duration> {
        let attached = self.attached.as_ref().filter(|a| a.connection == connection)?;
        attached.heartbeat.round_trip(now, nonce)
    }

    /// Everything transmitted so far has left the process: probes count from here.
    pub fn handle_flushed(&mut self, now: Instant, connection: ConnectionId) {
        self.forward.check(now);
        let attached = self.attached.as_mut().filter(|a| a.connection == connection);
        // A probe that was not even polled has not left.
        if let Some(attached) = attached.filter(|a| a.probe.is_none()) {
            attached.heartbeat.handle_flushed(now);
        }
    }

    /// The socket took some of what was transmitted, but not all.
    pub fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        self.forward.check(now);
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.heartbeat.handle_write_progress(now);
        }
    }

    /// The connection is gone, however that came about. The session parks.
    pub fn handle_lost(&mut self, now: Instant, connection: ConnectionId) {
        self.forward.check(now);
        if self.attached.as_ref().is_none_or(|a| a.connection != connection) {
            return;
        }
        self.attached = None;
        self.flow.forget_owed();
        self.flow.outbox.trim(u64::MAX);
        self.life = match std::mem::replace(&mut self.life, Life::Attached) {
            Life::Attached | Life::Parked { .. } => Life::Parked { since: now },
            // The client may still come for what it did not acknowledge.
            Life::Closing { how, .. } if *how == Ending::Replaced => {
                Life::Closing { how, until: now + self.resume_window }
            }
            Life::Closing { how, .. } => {
                let until = how.waits_until(now + self.resume_window.max(CLOSE_TIMEOUT));
                Life::Closing { how, until }
            }
            // Our END may or may not have arrived; the tombstone tells a client that asks.
            Life::EndSent { code, .. } => Life::Closed(Closed::Ended { code, by_us: true }),
            Life::EndReceived { code } => Life::Closed(Closed::Ended { code, by_us: false }),
            over @ Life::Closed(_) => over,
        };
        if self.forgets {
            self.forget_undelivered();
        }
        if self.is_retired {
            self.evict();
        }
    }
}
