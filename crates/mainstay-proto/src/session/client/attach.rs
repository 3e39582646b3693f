//! Attaching a connection to the session: HELLO, its answer, and the loss of a connection.
//!
//! Source: `docs/PROTOCOL.md` "Attaching".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{ClientEvent, ClientSession, Current, EndedBy, Life, Pending};
use crate::session::error::SessionError;
use crate::session::flow::{Lane, Volatiles};
use crate::session::message::{Account, Control, Delay, Frame, Hello, LossCause, Resume, Welcome, Window};
use crate::session::transmit::ConnectionId;
use crate::ws::CloseCode;

/// How many connections in a row may end after WELCOME without progress. Then the client gives the session up.
const BARREN_LIMIT: u32 = 5;
/// How many attempts in a row may end without an answer after messages followed HELLO. From then on HELLO goes alone:
/// one of the messages may be what ends the connection.
const HASTY_LIMIT: u32 = 3;

impl ClientSession {
    /// `connection` is open and speaks `mainstay.v1`: asks for the session on it. A previous attempt that still waits
    /// for WELCOME is ignored from now on; close its connection. The call does nothing once END was sent or received:
    /// close every connection that is neither [`current`](Self::current) nor [`pending`](Self::pending).
    pub fn handle_opened(&mut self, now: Instant, connection: ConnectionId) {
        // A session that sent or received END is not attached again.
        if !matches!(self.life, Life::Open | Life::Closing { .. }) {
            return;
        }
        self.attempt += 1;
        self.forget_pending();
        let resume = self.token.clone().map(|token| Resume {
            token,
            acknowledged: self.flow.inbox.acknowledged(),
            sent: self.flow.outbox.last(),
            first_held: self.flow.outbox.acknowledged() + 1,
        });
        // Age 0 means "never sent before". A second HELLO in the same millisecond must not say it.
        let key_age = match self.key_sent {
            None => Duration::ZERO,
            Some(sent) => now.saturating_duration_since(sent).max(Duration::from_millis(1)),
        };
        self.key_sent.get_or_insert(now);
        let opening = resume.is_none().then(Lane::default);
        if opening.is_some() {
            self.flow.outbox.set_peer_window(Window::BEFORE_WELCOME);
        }
        let waits = self.hasty >= HASTY_LIMIT;
        let credentials = match &mut self.fresh {
            Some(fresh) => {
                fresh.on = Some(connection);
                Some(fresh.credentials.clone())
            }
            None => self.config.credentials.clone(),
        };
        let hello = Hello {
            window: self.flow.inbox.window(),
            key: self.key,
            key_age,
            instance: self.instance,
            attempt: self.attempt,
            resume,
            credentials,
            resume_window: self.config.resume_window,
            max_message: self.config.flow.max_message,
        };
        self.pending = Some(Pending { connection, hello: Some(Box::new(hello)), opening, waits });
    }

    /// The connection is gone, for whatever reason.
    pub fn handle_lost(&mut self, connection: ConnectionId) {
        if let Some(pending) = self.pending.take_if(|pending| pending.connection == connection) {
            self.key_may_name |= pending.hello.is_none();
            self.hasty += u32::from(pending.opening.is_some_and(|lane| lane.wrote > 0));
            self.present_again(connection);
            self.queue_end_if_flushed();
        }
        if self.current.as_ref().is_some_and(|c| c.connection == connection) {
            self.drop_current();
        }
    }

    /// The server closed `connection` with SUPERSEDED and this reason: the instance that has the session now, and the
    /// number that the server has acknowledged.
    pub fn handle_superseded(&mut self, connection: ConnectionId, reason: &str) {
        let mut words = reason.split_ascii_whitespace();
        let by_us = words.next() == Some(self.instance.to_string().as_str());
        // A pending connection counts too: the server accepted its HELLO, although WELCOME did not arrive. A client
        // that came back would take the session from the other instance, which would come back as well, for ever.
        let ours = [self.current(), self.pending()].contains(&Some(connection));
        if by_us || !ours || words.next().is_none() {
            return self.handle_lost(connection);
        }
        let acknowledged = reason.rsplit(' ').next().and_then(|count| count.parse().ok());
        let account = acknowledged.map(|acknowledged| Account {
            acknowledged,
            delivered: u64::MAX,
            first_lost: self.flow.inbox.received() + 1,
            count: 0,
            cause: LossCause::Unknown,
        });
        let fate = self.fate(account, false);
        let words = "another instance took the session".into();
        self.end(EndedBy::OtherInstance, CloseCode::SUPERSEDED.into(), words, fate);
    }

    fn drop_current(&mut self) {
        if self.current.take().is_none() {
            return;
        }
        self.flow.forget_owed();
        // A heartbeat shows that the session is sound, unless a message is under way that may be what ends connections.
        let is_sound = self.had_beat && self.flow.outbox.acknowledged() == self.flow.outbox.last();
        let mark = (self.flow.outbox.acknowledged(), self.flow.inbox.received());
        self.barren = if mark == self.mark && !is_sound { self.barren + 1 } else { 0 };
        self.flow.outbox.trim(u64::MAX);
        match std::mem::replace(&mut self.life, Life::Open) {
            // END gets no answer any more.
            Life::EndSent { code, reason } => {
                let fate = self.fate(None, false);
                self.end(EndedBy::Us, code, reason, fate);
            }
            life => self.life = life,
        }
        if self.barren >= BARREN_LIMIT {
            self.barren = 0;
            self.start_over(None);
        }
    }

    /// Handles WELCOME or REFUSE on the pending connection; any other message is a protocol error there.
    pub(super) fn handle_answer(&mut self, frame: Frame) -> Result<(), SessionError> {
        match frame {
            Frame::Control(Control::Welcome(welcome)) => self.handle_welcome(*welcome),
            Frame::Control(Control::Refuse { code, temporary, delay, account }) => {
                self.handle_refuse(code, temporary, delay, account);
                Ok(())
            }
            Frame::Reserved => Ok(()),
            Frame::Control(control) => Err(SessionError::Unexpected(control.name())),
            Frame::Message(_) => Err(SessionError::Unexpected("a message before WELCOME")),
        }
    }

    fn handle_welcome(&mut self, welcome: Welcome) -> Result<(), SessionError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.hasty = 0;
        if pending.hello.is_some() {
            return Err(SessionError::Unexpected("WELCOME before HELLO"));
        }
        // The server has fenced the old connection; everything that still arrives there is a repetition.
        self.drop_old_connection();
        let lane = match (&pending.opening, welcome.resumed) {
            (Some(lane), false) => {
                self.flow.outbox.acknowledge(welcome.acknowledged)?;
                Lane { wrote: lane.wrote, read: welcome.first - 1 }
            }
            (None, true) => {
                if !self.is_continued_by(&welcome) {
                    self.start_over(None);
                    return Err(SessionError::Unexpected("WELCOME with impossible counts"));
                }
                self.flow.outbox.acknowledge(welcome.acknowledged)?;
                Lane { wrote: welcome.acknowledged, read: welcome.first - 1 }
            }
            (None, false) => {
                self.start_over(welcome.account);
                Lane { wrote: welcome.acknowledged, read: welcome.first - 1 }
            }
            (Some(_), true) => return Err(SessionError::Unexpected("resumed without being asked")),
        };
        self.flow.outbox.set_peer_window(welcome.window);
        for number in self.flow.outbox.set_largest(welcome.max_message) {
            self.events.push_back(ClientEvent::TooLarge { number });
        }
        self.flow.outbox.trim(lane.wrote);
        self.token = Some(welcome.token);
        self.restored = false;
        // The key has done its work. If this session is lost, the next one gets another key.
        if !welcome.resumed {
            self.renew_key();
        }
        self.mark = (self.flow.outbox.acknowledged(), self.flow.inbox.received());
        self.had_beat = false;
        // ACK precedes everything else on this connection: it establishes the epoch.
        let queue = VecDeque::from([self.flow.write_acknowledgement()]);
        let volatiles = Volatiles::default();
        let connection = pending.connection;
        self.current = Some(Current { connection, lane, ping: None, queue, volatiles, judging: false });
        self.events.push_back(ClientEvent::Attached {
            id: welcome.id,
            epoch: welcome.epoch,
            resumed: welcome.resumed,
            heartbeat_interval: welcome.heartbeat_interval,
            resume_window: welcome.resume_window,
            resume_at: welcome.resume_at,
        });
        self.judged(connection, true);
        self.queue_end_if_flushed();
        Ok(())
    }

    /// Whether the counts in WELCOME are possible for the session that this end knows.
    fn is_continued_by(&self, welcome: &Welcome) -> bool {
        let outbox = &self.flow.outbox;
        welcome.acknowledged >= outbox.acknowledged()
            && welcome.acknowledged <= outbox.written()
            && welcome.first - 1 <= self.flow.inbox.received()
    }

    fn handle_refuse(&mut self, code: u64, temporary: bool, delay: Delay, account: Option<Account>) {
        let Some(pending) = self.pending.take() else { return };
        let asked_to_resume = pending.opening.is_none();
        if temporary {
            self.handle_key_unused(code);
            self.present_again(pending.connection);
            self.events.push_back(ClientEvent::Refused { code, temporary, delay });
            self.queue_end_if_flushed();
            return;
        }
        if code == u64::from(CloseCode::KEY_REFUSED) {
            // The key may have named an earlier session. If the client has a token, only the key is at fault.
            if asked_to_resume {
                self.renew_key();
            } else {
                self.start_over(account);
            }
            self.present_again(pending.connection);
            self.queue_end_if_flushed();
            self.events.push_back(ClientEvent::Refused { code, temporary: true, delay });
            return;
        }
        let fate = self.fate(account, false);
        self.end(EndedBy::Refusal, code, format!("the server refused the session with code {code}"), fate);
    }

    /// A HELLO gets no answer any more: a session may have its key.
    fn forget_pending(&mut self) {
        self.key_may_name |= self.pending.take().is_some_and(|pending| pending.hello.is_none());
    }

    /// A HELLO was refused for now. If all were that had this key, it names nothing, and another one, which has no age, serves
    /// better: a server that has begun to remember only now would refuse the old one for its age.
    fn handle_key_unused(&mut self, code: u64) {
        self.key_may_name |= code == u64::from(CloseCode::STALE_ATTEMPT);
        if !self.key_may_name {
            self.renew_key();
        }
    }

    pub(super) fn renew_key(&mut self) {
        self.key = self.secrets.client_key();
        (self.key_sent, self.key_may_name) = (None, false);
    }

    fn drop_old_connection(&mut self) {
        // A connection that was replaced while it lived made progress. One that was lost before was counted at that
        // time.
        if self.current.take().is_some() {
            self.barren = 0;
        }
        self.flow.forget_owed();
    }
}
