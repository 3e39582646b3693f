//! What arrives on a connection: frames, bytes, and the loss of the connection.

use std::time::{Duration, Instant};

use super::ending::{Closed, Ending};
use super::{Auth, Established, Life, ServerSession};
use crate::session::CLOSE_TIMEOUT;
use crate::session::end::EndCause;
use crate::session::error::SessionError;
use crate::session::message::{Control, Frame};
use crate::session::transmit::ConnectionId;
use crate::ws::CloseCode;

impl ServerSession {
    /// Handles a message that arrived on `connection`. A message from a fenced connection is dropped.
    ///
    /// # Errors
    /// The peer violated the protocol: fail this connection with [`close_code`](SessionError::close_code). The
    /// session is kept, except after a [`PositionMismatch`](SessionError::PositionMismatch), which ends it: both ends
    /// counted differently, so no guarantee holds any more.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        frame: Frame,
    ) -> Result<(), SessionError> {
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
                // After an END of either end nothing is delivered any more, but the position still advances.
                if !is_open {
                    lane.read += 1;
                    return Ok(());
                }
                return self.flow.read_message(lane, message);
            }
            Frame::Control(control) => {
                if self.established != Established::Current {
                    self.establish_epoch();
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
            // A message of a type that clients without that type ignore: the server ignores it too.
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
            Life::EndSent { code, .. } => self.finish(Closed::Ended { code, by_us: true }),
            Life::Closed(_) => {}
            _ => {
                let allowed = u16::try_from(code).ok().and_then(CloseCode::new);
                self.note_end(EndCause::Client, allowed, &reason);
                if !self.is_open() {
                    // This end was about to end the session itself.
                    self.flow.inbox.discard_queue();
                }
                self.life = Life::EndReceived { code };
                self.answer_end_if_delivered();
            }
        }
    }

    /// Bytes arrived on the attached connection, for example an RFC 6455 Pong.
    pub fn handle_bytes(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.heartbeat.handle_bytes(now);
        }
    }

    /// Returns the round trip that a PONG with this nonce measures if it arrives on `connection` now; `None` if it
    /// answers no probe. Call it before [`handle_frame`](Self::handle_frame).
    #[must_use]
    pub fn round_trip(&self, now: Instant, connection: ConnectionId, nonce: u64) -> Option<Duration> {
        let attached = self.attached.as_ref().filter(|a| a.connection == connection)?;
        attached.heartbeat.round_trip(now, nonce)
    }

    /// Everything that was transmitted so far has left the process. The deadlines of probes count from here.
    pub fn handle_flushed(&mut self, now: Instant, connection: ConnectionId) {
        let attached = self.attached.as_mut().filter(|a| a.connection == connection);
        // A probe that was not polled has not left.
        if let Some(attached) = attached.filter(|a| a.probe.is_none()) {
            attached.heartbeat.handle_flushed(now);
        }
    }

    /// The socket accepted part of what was transmitted.
    pub fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.heartbeat.handle_write_progress(now);
        }
    }

    /// The connection is gone, for whatever reason. The session parks.
    pub fn handle_lost(&mut self, now: Instant, connection: ConnectionId) {
        if self.attached.as_ref().is_none_or(|a| a.connection != connection) {
            return;
        }
        self.attached = None;
        self.flow.forget_owed();
        self.flow.outbox.trim(u64::MAX);
        self.life = match std::mem::replace(&mut self.life, Life::Attached) {
            Life::Attached | Life::Parked { .. } => Life::Parked { since: now },
            // The client may still come back for what it has not acknowledged.
            Life::Closing { how, .. } if *how == Ending::Replaced => {
                Life::Closing { how, until: now + self.resume_window }
            }
            Life::Closing { how, .. } => {
                let until = how.waits_until(now + self.resume_window.max(CLOSE_TIMEOUT));
                Life::Closing { how, until }
            }
            // END may or may not have arrived. A client that comes back gets its answer from the tombstone.
            Life::EndSent { code, .. } => Life::Closed(Closed::Ended { code, by_us: true }),
            Life::EndReceived { code } => Life::Closed(Closed::Ended { code, by_us: false }),
            closed @ Life::Closed(_) => closed,
        };
        if self.forgets {
            self.forget_undelivered();
        }
        if self.is_retired {
            self.end_in_drain();
        }
    }
}
