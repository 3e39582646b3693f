//! What arrives on the attached connection.

use super::{ClientEvent, ClientSession, EndedBy, Life};
use crate::session::error::SessionError;
use crate::session::message::{Control, Frame};
use crate::session::transmit::ConnectionId;
use crate::ws::CloseCode;

impl ClientSession {
    /// Handles a message that arrived on `connection`. A message from a connection that is neither current nor
    /// pending is dropped.
    ///
    /// # Errors
    /// The peer violated the protocol: fail this connection. The session continues on the next one.
    pub fn handle_frame(&mut self, connection: ConnectionId, frame: Frame) -> Result<(), SessionError> {
        if self.pending.as_ref().is_some_and(|p| p.connection == connection) {
            return self.handle_answer(frame);
        }
        let Some(current) = self.current.as_mut().filter(|c| c.connection == connection) else {
            return Ok(());
        };
        match frame {
            Frame::Reserved => return Ok(()),
            Frame::Message(message) => {
                self.config.flow.check(&message)?;
                if matches!(self.life, Life::EndSent { .. } | Life::EndReceived { .. } | Life::Closed) {
                    current.lane.read += 1;
                    return Ok(());
                }
                return self.flow.read_message(&mut current.lane, message);
            }
            Frame::Control(control) => {
                self.had_beat |= matches!(control, Control::Ping(_) | Control::Pong(_));
                self.handle_control(control)?;
            }
        }
        self.trim();
        self.queue_end_if_flushed();
        Ok(())
    }

    fn handle_control(&mut self, control: Control) -> Result<(), SessionError> {
        let Some(current) = self.current.as_mut() else { return Ok(()) };
        let outcome = match control {
            Control::Ack { acknowledged, window } => self.flow.read_acknowledgement(acknowledged, window),
            Control::Ping(beat) => self.flow.read_ping(&current.lane, beat),
            Control::Pong(beat) => self.flow.read_pong(&current.lane, beat),
            Control::Gap { first, count, cause } => {
                self.flow.read_gap(&mut current.lane, first, count, cause)
            }
            Control::GoAway { delay, close_in, endpoint, .. } => {
                let connection = current.connection;
                self.events.push_back(ClientEvent::GoAway { connection, delay, close_in, endpoint });
                Ok(())
            }
            Control::Volatile(message) => {
                self.config.flow.check(&message)?;
                self.events.push_back(ClientEvent::Volatile(message));
                Ok(())
            }
            Control::AuthResult { accepted, .. } if current.judging => {
                current.judging = false;
                let connection = current.connection;
                self.judged(connection, accepted);
                Ok(())
            }
            Control::End { code, reason, acknowledged, delivered } => {
                self.handle_end(code, reason, acknowledged, delivered)
            }
            Control::Replaced { after, .. } if after != current.lane.read => {
                Err(SessionError::PositionMismatch { sent: after, read: current.lane.read })
            }
            Control::Replaced { count, .. } => {
                // A session that ends delivers nothing more. After a resume the server writes a mark again that the
                // client may not have received.
                if count > self.replaced && matches!(self.life, Life::Open | Life::Closing { .. }) {
                    self.replaced = count;
                    self.flow.inbox.receive_replaced(count);
                }
                Ok(())
            }
            Control::Hello(_)
            | Control::Welcome(_)
            | Control::Auth { .. }
            | Control::AuthResult { .. }
            | Control::Refuse { .. } => Err(SessionError::Unexpected(control.name())),
        };
        if let Err(SessionError::PositionMismatch { .. }) = outcome {
            let fate = self.fate(None, false);
            self.end_now(CloseCode::PROTOCOL_VIOLATION.into(), "positions differ".into());
            let words = "the two ends counted differently".into();
            self.end(EndedBy::Protocol, CloseCode::PROTOCOL_VIOLATION.into(), words, fate);
        }
        outcome
    }

    fn handle_end(
        &mut self,
        code: u64,
        reason: String,
        acknowledged: u64,
        delivered: u64,
    ) -> Result<(), SessionError> {
        self.flow.outbox.acknowledge(acknowledged)?;
        match std::mem::replace(&mut self.life, Life::Closed) {
            // This answers the END of this end: the code and the reason are those that this end sent.
            Life::EndSent { code, reason } => {
                let fate = self.fate(Some(self.final_account(acknowledged, delivered)), false);
                self.close_current();
                self.end(EndedBy::Us, code, reason, fate);
            }
            Life::Closed => {}
            before => {
                if matches!(before, Life::Closing { .. }) {
                    // After `close` nothing is delivered.
                    self.flow.inbox.discard_queue();
                }
                self.life = Life::EndReceived { code, reason, acknowledged, delivered };
                self.answer_end_if_delivered();
            }
        }
        Ok(())
    }
}
