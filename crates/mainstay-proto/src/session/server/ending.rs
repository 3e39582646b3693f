//! How a session ends, and the counts that it leaves to its tombstone.
//!
//! Source: `docs/PROTOCOL.md` "Closing".

use std::time::{Duration, Instant};

use super::{BACKEND_LOST, Life, ServerSession};
use crate::session::end::{End, EndCause, PeerClose};
use crate::session::flow::Volatiles;
use crate::session::message::{Control, Delay, LossCause, Message};
use crate::session::transmit::Transmit;
use crate::session::{ABORT_TIMEOUT, CLOSE_TIMEOUT, FINAL_WRITES};
use crate::ws::CloseCode;

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// One end sent END with this code.
    Ended {
        /// The code of the END.
        code: u64,
        /// Whether this end sent END first.
        by_us: bool,
    },
    /// The resume window passed.
    Expired,
    /// The server needed the memory, or the operator evicted the session.
    Evicted,
    /// The backend behind the server lost its state.
    Replaced,
    /// This node released it: another node may claim it.
    Moved,
}

/// How a session ends after everything is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Ending {
    /// By END. At `by` END is sent, whatever the client has acknowledged.
    End { code: CloseCode, reason: String, by: Instant },
    /// By a Close of the connection: the client comes back and receives the exact account of this session.
    Replaced,
}

impl Ending {
    /// Returns until when the client may acknowledge what precedes the end, where other limits allow it until `at`.
    pub(super) fn waits_until(&self, at: Instant) -> Instant {
        match self {
            Self::End { by, .. } => at.min(*by),
            Self::Replaced => at,
        }
    }
}

/// The final counts of a session, kept in its tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::session) struct FinalCounts {
    pub(in crate::session) acknowledged: u64,
    pub(in crate::session) delivered: u64,
    pub(in crate::session) sent: u64,
    pub(in crate::session) cause: LossCause,
    /// The code of an END that this end sent.
    pub(in crate::session) ended: Option<u64>,
}

impl ServerSession {
    /// Ends the session in order: the client receives everything that was accepted before, then END. From now on
    /// nothing is delivered to the application. An attached client that acknowledges nothing for 5 s gets END without
    /// waiting for the rest, and so does a client that has not acknowledged everything within the resume window (at
    /// least 10 s). So no client can postpone the end without limit. If the client does not answer END within 10 s,
    /// the connection ends too; after 5 s where END did not wait for the client.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.close_for(now, EndCause::Closed, code, reason);
    }

    /// Like [`close`](Self::close), with the cause that [`end`](Self::end) reports to the application.
    pub fn close_for(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        let (by, until) = match self.life {
            // The client has the resume window to come back, and then time to receive what is kept.
            Life::Parked { since } => {
                (since + self.resume_window + CLOSE_TIMEOUT, since + self.resume_window)
            }
            Life::Attached => (now + self.resume_window.max(CLOSE_TIMEOUT), now + FINAL_WRITES),
            _ => return,
        };
        self.note_end(cause, Some(code), reason);
        self.stay();
        let how = Box::new(Ending::End { code, reason: reason.to_owned(), by });
        self.stop_delivering();
        self.life = Life::Closing { how, until };
        self.queue_end_if_due(now);
    }

    /// Ends the session now. Messages that are not written stay unwritten, and an attached client gets END at once.
    /// It has one second to answer; then its connection is dropped. [`take_undelivered`](Self::take_undelivered)
    /// returns the rest.
    pub fn abort(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.abort_for(now, EndCause::Closed, code, reason);
    }

    /// As [`abort`](Self::abort), with the cause that [`end`](Self::end) reports to the application.
    pub fn abort_for(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        match self.life {
            Life::Closed(_) => return,
            Life::EndSent { code, until } => {
                self.life = Life::EndSent { code, until: until.min(now + ABORT_TIMEOUT) };
                return;
            }
            Life::EndReceived { .. } => {
                self.flow.inbox.discard_queue();
                return self.answer_end_if_delivered();
            }
            Life::Parked { .. } | Life::Attached | Life::Closing { .. } => {}
        }
        self.end = None;
        self.note_end(cause, Some(code), reason);
        self.stop_delivering();
        if self.attached.is_some() {
            self.end_now(now, code.into(), reason.to_owned(), ABORT_TIMEOUT);
        } else {
            self.finish(Closed::Ended { code: code.into(), by_us: true });
        }
    }

    /// Extends the time for a client that goes on acknowledging what precedes END.
    pub(super) fn put_off_end(&mut self, now: Instant, acknowledged: u64) {
        if let Life::Closing { how, until } = &mut self.life
            && self.flow.outbox.acknowledged() > acknowledged
        {
            *until = how.waits_until(now + FINAL_WRITES).max(*until);
        }
    }

    fn stop_delivering(&mut self) {
        self.flow.inbox.discard_queue();
        self.volatiles = Volatiles::default();
    }

    /// Records the end that ended the session first; later ends do not replace it.
    pub(super) fn note_end(&mut self, cause: EndCause, code: Option<CloseCode>, reason: &str) {
        self.end.get_or_insert_with(|| Box::new(End::new(cause, code, reason)));
    }

    /// Ends the session because the backend behind this server lost its state. The client first receives everything
    /// that was accepted for it, for at most 10 s while it is attached; then its connection is closed with 1012. When
    /// the client comes back, it gets a new session and the exact account of this one.
    ///
    /// `passed_on`: how many of the delivered, unacknowledged messages reached the lost backend, counted from the
    /// oldest. The others count as never delivered. Use it only in manual mode; otherwise everything that was
    /// delivered is acknowledged.
    pub fn renew(&mut self, now: Instant, passed_on: u64) {
        let until = match self.life {
            Life::Parked { since } => since + self.resume_window,
            Life::Attached => now + CLOSE_TIMEOUT,
            _ => return,
        };
        self.flow.inbox.retract(passed_on);
        self.note_end(EndCause::Replaced, None, "");
        self.stay();
        self.stop_delivering();
        self.life = Life::Closing { how: Box::new(Ending::Replaced), until };
        self.queue_end_if_due(now);
    }

    /// Asks the client to leave this connection after `delay`; nothing is lost. The server closes a connection that
    /// still exists after `close_in`. With a `close_in` of zero the server does not close it, and GOAWAY announces no
    /// time. Does nothing while the session is parked.
    pub fn go_away(&mut self, now: Instant, reason: &str, delay: Delay, close_in: Duration) {
        if let Some(attached) = &mut self.attached {
            let control = Control::GoAway { reason: reason.to_owned(), delay, close_in, endpoint: None };
            attached.queue.push_back(Transmit::control(&control));
            attached.gone_by = if close_in.is_zero() { None } else { now.checked_add(close_in) };
        }
    }

    /// Stops the session from being resumed: it is over once it has no connection, which may be at once.
    pub fn retire(&mut self) {
        self.is_retired = true;
        if self.attached.is_none() {
            self.end_in_drain();
        }
    }

    /// Whether [`retire`](Self::retire) was called.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// Drops the session without END, as if its resume window had passed.
    pub fn evict(&mut self) {
        if !matches!(self.life, Life::Closed(_)) {
            self.finish(Closed::Evicted);
        }
    }

    /// Queues END once everything is acknowledged, or once the time for that is over.
    pub(super) fn queue_end_if_due(&mut self, now: Instant) {
        let Life::Closing { how, until } = &mut self.life else { return };
        let is_due = self.flow.is_flushed() || (self.attached.is_some() && *until <= now);
        match &mut **how {
            Ending::End { code, reason, .. } if is_due && self.attached.is_some() => {
                let (code, reason) = (*code, std::mem::take(reason));
                let patience = if self.flow.is_flushed() { CLOSE_TIMEOUT } else { FINAL_WRITES };
                self.end_now(now, code.into(), reason, patience);
            }
            Ending::Replaced if is_due => self.finish(Closed::Replaced),
            _ => {}
        }
    }

    /// Sends END: after this nothing is written or delivered. The client has `patience` to answer.
    pub(super) fn end_now(&mut self, now: Instant, code: u64, reason: String, patience: Duration) {
        self.flow.inbox.discard_queue();
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        self.life = Life::EndSent { code, until: now + patience };
        if let Some(attached) = &mut self.attached {
            let end = Control::End { code, reason, acknowledged, delivered };
            attached.queue.push_back(Transmit::control(&end));
        }
    }

    pub(super) fn answer_end_if_delivered(&mut self) {
        let Life::EndReceived { code } = self.life else { return };
        if !self.flow.inbox.is_empty() {
            return;
        }
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        if let Some(attached) = &mut self.attached {
            let end = Control::End { code, reason: String::new(), acknowledged, delivered };
            attached.queue.push_back(Transmit::control(&end));
        }
        self.finish(Closed::Ended { code, by_us: false });
    }

    pub(super) fn finish(&mut self, closed: Closed) {
        self.stop_delivering();
        self.life = Life::Closed(closed);
        if self.forgets {
            self.flow.outbox.discard();
        }
        if let Some(attached) = &mut self.attached {
            attached.queue.push_back(match closed {
                Closed::Ended { .. } => Transmit::Close { code: CloseCode::NORMAL, reason: String::new() },
                Closed::Replaced => {
                    Transmit::Close { code: CloseCode::RESTART, reason: BACKEND_LOST.to_owned() }
                }
                Closed::Expired | Closed::Evicted | Closed::Moved => Transmit::Abort,
            });
        }
    }

    /// Returns why the session is over; `None` while it is not.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        match self.life {
            Life::Closed(closed) => Some(closed),
            _ => None,
        }
    }

    /// Whether no message that is sent from now on is written: END was sent, or the session is over.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.life, Life::EndSent { .. } | Life::Closed(_))
    }

    /// Returns `true` once after the session is over. [Bury](crate::session::Registry::bury) the session then, even if its
    /// handler keeps running for a while.
    pub fn poll_closed(&mut self) -> bool {
        self.closed().is_some() && !std::mem::replace(&mut self.reported_closed, true)
    }

    /// Returns what the client's END said; `None` without one, and `None` if this end ended the session first.
    #[must_use]
    pub fn peer_close(&self) -> Option<PeerClose> {
        let end = self.end.as_ref().filter(|end| end.cause == EndCause::Client)?;
        Some(PeerClose { code: end.code, reason: end.reason.clone() })
    }

    /// Returns why nothing more is delivered; `None` while a delivery is still possible.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        if let Some(end) = self.end.as_deref() {
            return (!self.is_open()).then(|| end.clone());
        }
        if self.is_leaving() {
            return Some(End::new(EndCause::Moved, None, ""));
        }
        let cause = match self.closed()? {
            Closed::Expired => EndCause::Expired,
            Closed::Evicted if self.is_retired => EndCause::Drained,
            Closed::Evicted => EndCause::Evicted,
            Closed::Replaced => EndCause::Replaced,
            Closed::Moved => EndCause::Moved,
            Closed::Ended { by_us: true, .. } => EndCause::Closed,
            Closed::Ended { by_us: false, .. } => EndCause::Client,
        };
        Some(End::new(cause, None, ""))
    }

    /// Returns the messages that the client never acknowledged, in order, once END was sent or the session is over.
    /// Some of them may have arrived. Returns nothing before that, and nothing on a second call.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        match self.life {
            Life::EndSent { .. } | Life::Closed(_) => self.flow.outbox.take_unacknowledged(),
            _ => Vec::new(),
        }
    }

    /// Declares that the application will not ask for [undelivered messages](Self::take_undelivered): they are freed
    /// once the session is over.
    pub fn forget_undelivered(&mut self) {
        self.forgets = true;
        if matches!(self.life, Life::Closed(_)) {
            self.flow.outbox.discard();
        }
    }

    pub(in crate::session) fn final_counts(&self) -> FinalCounts {
        let (cause, ended) = match self.life {
            Life::Closed(Closed::Expired) => (LossCause::Expired, None),
            Life::Closed(Closed::Evicted) if self.is_retired => (LossCause::Restarted, None),
            Life::Closed(Closed::Evicted) => (LossCause::Evicted, None),
            Life::Closed(Closed::Replaced) => (LossCause::Replaced, None),
            Life::Closed(Closed::Ended { code, by_us }) => (LossCause::Ended, by_us.then_some(code)),
            Life::EndSent { code, .. } => (LossCause::Ended, Some(code)),
            _ => (LossCause::Unknown, None),
        };
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        FinalCounts { acknowledged, delivered, sent: self.flow.outbox.last(), cause, ended }
    }
}
