//! How a session ends or is lost, and what became of what was sent in it.
//!
//! Source: `docs/PROTOCOL.md` "Closing".

use super::{ClientEvent, ClientSession, EndedBy, Fate, Life, LostMessages};
use crate::session::flow::Flow;
use crate::session::message::{Account, Control, LossCause, Message, Window};
use crate::session::outbox::Outbox;
use crate::session::transmit::Transmit;
use crate::ws::CloseCode;

impl ClientSession {
    /// Ends the session in order: the server receives everything that was accepted before, then END. From now on
    /// nothing is delivered to the application.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        if self.life == Life::Open {
            self.life = Life::Closing { code: code.into(), reason: reason.to_owned() };
            self.queue_end_if_flushed();
        }
    }

    /// Stops waiting for an orderly end: the fate of unacknowledged messages is unknown.
    pub fn abandon(&mut self) {
        let (code, reason) = match std::mem::replace(&mut self.life, Life::Open) {
            Life::Closed => {
                self.life = Life::Closed;
                return;
            }
            Life::Closing { code, reason } | Life::EndSent { code, reason } => (code, reason),
            Life::EndReceived { code, reason, .. } => (code, reason),
            Life::Open => (CloseCode::GOING_AWAY.into(), "abandoned".into()),
        };
        let fate = self.fate(None, false);
        self.end(EndedBy::Us, code, reason, fate);
    }

    /// Ends the session now: END is sent if a connection is attached, and the client waits for nothing. Messages that
    /// were written and not acknowledged are unknown; the rest is not delivered.
    pub fn abort(&mut self, code: CloseCode, reason: &str) {
        match self.life {
            Life::Closed => return,
            Life::EndSent { .. } | Life::EndReceived { .. } => {}
            Life::Open | Life::Closing { .. } => {
                // The server ignores END on a connection that a HELLO may have fenced.
                if self.pending.take().is_none() {
                    self.end_now(code.into(), reason.to_owned());
                }
            }
        }
        self.close_current();
        let fate = self.fate(None, false);
        self.end(EndedBy::Abort, code.into(), reason.to_owned(), fate);
    }

    /// Returns, once the session is over, the messages that were accepted and are not known to be delivered, in
    /// order, once. The first `unknown - delivered` of them, by the [`Fate`], may have been delivered.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        let delivered = self.flow.outbox.acknowledged().max(self.delivered_at_the_end);
        let fresh = Outbox::new(self.config.flow.keep, Window::BEFORE_WELCOME);
        std::mem::replace(&mut self.flow.outbox, fresh).into_messages_after(delivered).collect()
    }

    /// The peer does not speak `mainstay.v1`: returns the messages that were never written, and the fate of the
    /// others. (Messages may have left on an attempt that got no WELCOME.)
    pub fn take_unsent(&mut self) -> (Fate, Vec<Message>) {
        let (written, last) = (self.flow.outbox.written(), self.flow.outbox.last());
        let delivered = self.flow.outbox.acknowledged();
        let fate = Fate {
            delivered,
            unknown: written,
            last,
            resent: written < last,
            lost: None,
            cause: LossCause::Unknown,
        };
        let fresh = Flow::new(&self.config.flow, Window::BEFORE_WELCOME);
        let unsent = std::mem::replace(&mut self.flow, fresh).outbox.into_messages_after(written);
        (fate, unsent.collect())
    }

    /// Declares that the session is not driven any more, and returns the fate of what was sent. Messages that were
    /// received are still delivered.
    pub fn final_fate(&mut self) -> Fate {
        let fate = self.fate(None, false);
        self.delivered_at_the_end = fate.delivered;
        fate
    }

    pub(super) fn queue_end_if_flushed(&mut self) {
        // While an attempt is pending the current connection is not written, and WELCOME would drop an END on it.
        let writable = self.current.is_some() && self.pending.is_none();
        if !matches!(self.life, Life::Closing { .. }) || !writable || !self.flow.is_flushed() {
            return;
        }
        if let Life::Closing { code, reason } = std::mem::replace(&mut self.life, Life::Open) {
            self.end_now(code, reason);
        }
    }

    pub(super) fn end_now(&mut self, code: u64, reason: String) {
        self.flow.inbox.discard_queue();
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        if let Some(current) = &mut self.current {
            let end = Control::End { code, reason: reason.clone(), acknowledged, delivered };
            current.queue.push_back(Transmit::control(&end));
        }
        self.life = Life::EndSent { code, reason };
    }

    pub(super) fn answer_end_if_delivered(&mut self) {
        if !matches!(self.life, Life::EndReceived { .. }) || !self.flow.inbox.is_empty() {
            return;
        }
        let Life::EndReceived { code, reason, acknowledged, delivered } =
            std::mem::replace(&mut self.life, Life::Closed)
        else {
            return;
        };
        let (ours, our_delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        if let Some(current) = &mut self.current {
            let end =
                Control::End { code, reason: String::new(), acknowledged: ours, delivered: our_delivered };
            current.queue.push_back(Transmit::control(&end));
        }
        self.close_current();
        let fate = self.fate(Some(self.final_account(acknowledged, delivered)), false);
        self.end(EndedBy::Server, code, reason, fate);
    }

    pub(super) fn close_current(&mut self) {
        if let Some(current) = &mut self.current {
            current.queue.push_back(Transmit::Close { code: CloseCode::NORMAL, reason: String::new() });
        }
    }

    pub(super) fn final_account(&self, acknowledged: u64, delivered: u64) -> Account {
        let first_lost = self.flow.inbox.received() + 1;
        Account { acknowledged, delivered, first_lost, count: 0, cause: LossCause::Ended }
    }

    /// The session is lost: reports one gap event. A new session takes over the messages that were certainly not
    /// delivered.
    pub(super) fn start_over(&mut self, account: Option<Account>) {
        let fate = self.fate(account, self.config.resend_undelivered);
        let fresh = Flow::new(&self.config.flow, Window::BEFORE_WELCOME);
        let lost = std::mem::replace(&mut self.flow, fresh);
        // If nothing is sent again, the new session only takes over the limit of the server.
        self.flow.outbox.adopt_after(lost.outbox, if fate.resent { fate.unknown } else { u64::MAX });
        self.token = None;
        self.replaced = 0;
        // The server may know the key from a HELLO that asked to resume. It would then report a loss that it has
        // reported already.
        self.renew_key();
        self.events.push_back(ClientEvent::Gap(fate));
    }

    pub(super) fn fate(&self, account: Option<Account>, resend: bool) -> Fate {
        let (last, known) = (self.flow.outbox.last(), self.flow.outbox.acknowledged());
        // Messages that were never written exist only here, whatever the account says.
        let written = self.flow.outbox.written();
        let (acknowledged, handled) =
            account.map_or((0, written), |a| (a.acknowledged.min(written), a.delivered.min(written)));
        let delivered = acknowledged.max(known);
        let unknown = handled.max(delivered);
        Fate {
            delivered,
            unknown,
            last,
            resent: resend && unknown < last,
            lost: account.and_then(|account| self.lost(account)),
            cause: account.map_or(LossCause::Unknown, |a| a.cause),
        }
    }

    /// The peer's messages that will never come. The account counts from what HELLO stated; what the old connection brought
    /// after that, and was delivered, is not lost.
    fn lost(&self, account: Account) -> Option<LostMessages> {
        let first = account.first_lost.max(self.flow.inbox.delivered() + 1);
        let end = account.first_lost.saturating_add(account.count);
        (first < end).then(|| LostMessages { first, count: end - first })
    }

    pub(super) fn end(&mut self, by: EndedBy, code: u64, reason: String, fate: Fate) {
        self.life = Life::Closed;
        self.flow.inbox.discard_queue();
        self.pending = None;
        self.delivered_at_the_end = fate.delivered;
        self.events.push_back(ClientEvent::Ended { code, reason, fate, by });
    }
}
