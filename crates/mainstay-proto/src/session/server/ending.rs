//! How a session ends, and what it leaves behind.
//!
//! Source: `docs/PROTOCOL.md` "Closing".

use std::time::{Duration, Instant};

use super::{BACKEND_LOST, Life, ServerSession};
use crate::session::end::{End, EndCause};
use crate::session::flow::Volatiles;
use crate::session::message::{Control, Delay, LossCause, Message};
use crate::session::plain::PeerClose;
use crate::session::transmit::Transmit;
use crate::session::{ABORT_TIMEOUT, CLOSE_TIMEOUT, FINAL_WRITES};
use crate::ws::CloseCode;

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// END passed, with this code.
    Ended {
        /// The code of the END.
        code: u64,
        /// Whether we sent it first.
        by_us: bool,
    },
    /// The resume window passed.
    Expired,
    /// The server needed the memory, or was told to forget it.
    Evicted,
    /// What stood behind the server lost its state.
    Replaced,
}

/// How a session ends that is flushed first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Ending {
    /// By END, whatever the client acknowledges by then.
    End { code: CloseCode, reason: String, by: Instant },
    /// By a Close of the connection: the client comes back, and its account is exact.
    Replaced,
}

impl Ending {
    /// How long a client has for what precedes the end, if it has until `at` by other reasons.
    pub(super) fn waits_until(&self, at: Instant) -> Instant {
        match self {
            Self::End { by, .. } => at.min(*by),
            Self::Replaced => at,
        }
    }
}

/// What a dead session leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::session) struct Remains {
    pub(in crate::session) acknowledged: u64,
    pub(in crate::session) delivered: u64,
    pub(in crate::session) sent: u64,
    pub(in crate::session) cause: LossCause,
    /// The code of an END that we sent.
    pub(in crate::session) ended: Option<u64>,
}

impl ServerSession {
    /// Ends the session in order: what was accepted before is delivered first, then END. Nothing more is handed over. A
    /// client that is attached and acknowledges nothing for 5 s, or not everything within the resume window (10 s at
    /// least), gets END without: nobody can put off its end. An END that is not answered within 10 s (5 s, if END could
    /// not wait for the client) ends the connection too.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.close_for(now, EndCause::Closed, code, reason);
    }

    /// As [`close`](Self::close), for a cause that the application is to see in [`end`](Self::end).
    pub fn close_for(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        self.forward.check(now);
        let (by, until) = match self.life {
            // It has the resume window to come back, and then time to take what waits.
            Life::Parked { since } => {
                (since + self.resume_window + CLOSE_TIMEOUT, since + self.resume_window)
            }
            Life::Attached => (now + self.resume_window.max(CLOSE_TIMEOUT), now + FINAL_WRITES),
            _ => return,
        };
        self.note_end(cause, Some(code), reason);
        let how = Box::new(Ending::End { code, reason: reason.to_owned(), by });
        self.stop_delivering();
        self.life = Life::Closing { how, until };
        self.queue_end_if_due(now);
    }

    /// Ends the session now: what was not written yet is not written, and a client that is attached gets END at once. It
    /// has a second to answer; then its connection is dropped. [`take_undelivered`](Self::take_undelivered) has the rest.
    pub fn abort(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.forward.check(now);
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
        self.note_end(EndCause::Closed, Some(code), reason);
        self.stop_delivering();
        if self.attached.is_some() {
            self.end_now(now, code.into(), reason.to_owned(), ABORT_TIMEOUT);
        } else {
            self.over(Closed::Ended { code: code.into(), by_us: true });
        }
    }

    /// A client that goes on acknowledging what precedes END has more time for it.
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

    /// The first who ends a session is who ended it.
    pub(super) fn note_end(&mut self, cause: EndCause, code: Option<CloseCode>, reason: &str) {
        self.end.get_or_insert_with(|| Box::new(End::new(cause, code, reason)));
    }

    /// Ends the session because what stands behind this server lost its state. What was accepted for the client is
    /// delivered first, for at most 10 s while it is attached; then its connection is closed with 1012. When it comes
    /// back it gets a fresh session and the exact account of this one. `passed_on`: how many messages went on to what
    /// stood there, of those that were handed over and are not confirmed, the oldest first; the others count as never
    /// handed over. Only for a session that confirms by hand; otherwise everything that was handed over is received.
    pub fn renew(&mut self, now: Instant, passed_on: u64) {
        self.forward.check(now);
        let until = match self.life {
            Life::Parked { since } => since + self.resume_window,
            Life::Attached => now + CLOSE_TIMEOUT,
            _ => return,
        };
        self.flow.inbox.retract(passed_on);
        self.note_end(EndCause::Replaced, None, "");
        self.stop_delivering();
        self.life = Life::Closing { how: Box::new(Ending::Replaced), until };
        self.queue_end_if_due(now);
    }

    /// Asks the client to leave this connection after a delay; nothing is lost. A connection that is still there
    /// after `close_in` is closed; zero: it is not, and the client is not told when. While parked it does nothing.
    pub fn go_away(&mut self, now: Instant, reason: &str, delay: Delay, close_in: Duration) {
        self.forward.check(now);
        if let Some(attached) = &mut self.attached {
            let control = Control::GoAway { reason: reason.to_owned(), delay, close_in, endpoint: None };
            attached.queue.push_back(Transmit::control(&control));
            attached.gone_by = if close_in.is_zero() { None } else { now.checked_add(close_in) };
        }
    }

    /// The server takes nobody in any more: the session is over once it has no connection, at once if it has
    /// none now.
    pub fn retire(&mut self) {
        self.is_retired = true;
        if self.attached.is_none() {
            self.evict();
        }
    }

    /// Whether [`retire`](Self::retire) was called.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// Gives the session up without END, as if its resume window had passed.
    pub fn evict(&mut self) {
        if !matches!(self.life, Life::Closed(_)) {
            self.over(Closed::Evicted);
        }
    }

    /// END leaves once everything is acknowledged, or when it was waited for long enough.
    pub(super) fn queue_end_if_due(&mut self, now: Instant) {
        let Life::Closing { how, until } = &mut self.life else { return };
        let is_due = self.flow.is_flushed() || (self.attached.is_some() && *until <= now);
        match &mut **how {
            Ending::End { code, reason, .. } if is_due && self.attached.is_some() => {
                let (code, reason) = (*code, std::mem::take(reason));
                let patience = if self.flow.is_flushed() { CLOSE_TIMEOUT } else { FINAL_WRITES };
                self.end_now(now, code.into(), reason, patience);
            }
            Ending::Replaced if is_due => self.over(Closed::Replaced),
            _ => {}
        }
    }

    /// Final: nothing more is written or handed over. The client has so long for its answer.
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
        self.over(Closed::Ended { code, by_us: false });
    }

    pub(super) fn over(&mut self, over: Closed) {
        self.stop_delivering();
        self.life = Life::Closed(over);
        if self.forgets {
            self.flow.outbox.discard();
        }
        if let Some(attached) = &mut self.attached {
            attached.queue.push_back(match over {
                Closed::Ended { .. } => Transmit::Close { code: CloseCode::NORMAL, reason: String::new() },
                Closed::Replaced => {
                    Transmit::Close { code: CloseCode::RESTART, reason: BACKEND_LOST.to_owned() }
                }
                Closed::Expired | Closed::Evicted => Transmit::Abort,
            });
        }
    }

    /// Set once the session is over.
    #[must_use]
    pub fn is_closed(&self) -> Option<Closed> {
        match self.life {
            Life::Closed(over) => Some(over),
            _ => None,
        }
    }

    /// Whether nothing that is sent from now on gets anywhere: END was sent, or the session is over.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.life, Life::EndSent { .. } | Life::Closed(_))
    }

    /// Whether the session is over since the last call: it is to be [buried](super::Registry::bury) then, even if its
    /// handler goes on for a while.
    pub fn poll_over(&mut self) -> bool {
        self.is_closed().is_some() && !std::mem::replace(&mut self.told_over, true)
    }

    /// What the client's END said; `None` while there was none, and where this end was the first to end the session.
    #[must_use]
    pub fn peer_close(&self) -> Option<PeerClose> {
        let end = self.end.as_ref().filter(|end| end.cause == EndCause::Client)?;
        Some(PeerClose { code: end.code, reason: end.reason.clone() })
    }

    /// Why nothing more is handed over; `None` while something may be.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        if let Some(end) = self.end.as_deref() {
            return (!self.is_open()).then(|| end.clone());
        }
        let cause = match self.is_closed()? {
            Closed::Expired => EndCause::Expired,
            Closed::Evicted if self.is_retired => EndCause::Drained,
            Closed::Evicted => EndCause::Evicted,
            Closed::Replaced => EndCause::Replaced,
            Closed::Ended { by_us: true, .. } => EndCause::Closed,
            Closed::Ended { by_us: false, .. } => EndCause::Client,
        };
        Some(End::new(cause, None, ""))
    }

    /// What the client never acknowledged, in order, once END was sent or the session is over; some of it may have
    /// arrived. Empty before, and the second time.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        match self.life {
            Life::EndSent { .. } | Life::Closed(_) => self.flow.outbox.take_unacknowledged(),
            _ => Vec::new(),
        }
    }

    /// The application will not ask for what is [undelivered](Self::take_undelivered): it is not kept once the session is over.
    pub fn forget_undelivered(&mut self) {
        self.forgets = true;
        if matches!(self.life, Life::Closed(_)) {
            self.flow.outbox.discard();
        }
    }

    pub(in crate::session) fn remains(&self) -> Remains {
        let (cause, ended) = match self.life {
            Life::Closed(Closed::Expired) => (LossCause::Expired, None),
            Life::Closed(Closed::Evicted) => (LossCause::Evicted, None),
            Life::Closed(Closed::Replaced) => (LossCause::Replaced, None),
            Life::Closed(Closed::Ended { code, by_us }) => (LossCause::Ended, by_us.then_some(code)),
            Life::EndSent { code, .. } => (LossCause::Ended, Some(code)),
            _ => (LossCause::Unknown, None),
        };
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        Remains { acknowledged, delivered, sent: self.flow.outbox.last(), cause, ended }
    }
}
