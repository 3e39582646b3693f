//! Binding a connection to a session: who may, and the one step in which a session changes hands.
//!
//! Source: `docs/PROTOCOL.md` "Attaching".

use std::collections::VecDeque;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::ending::Ending;
use super::{Attached, Life, ServerSession};
use crate::heartbeat::Heartbeat;
use crate::session::flow::{Lane, Volatiles};
use crate::session::lifetime::Lifetime;
use crate::session::message::{Hello, ResumeToken, Welcome};
use crate::session::names::Name;
use crate::session::transmit::ConnectionId;
use crate::session::{CLOSE_TIMEOUT, FINAL_WRITES};

/// What an attempt to attach came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::session) enum Attach {
    /// The session has a new connection. The one before it, if any, is fenced; the names in `dropped`
    /// lead here no longer.
    Done { fenced: Option<Fenced>, dropped: [Option<Name>; 2] },
    /// A later attempt of the same instance holds it already.
    Stale,
    /// The name is only a name by now, or belongs to another instance.
    NotYours,
    /// The counts are those of another copy of this client.
    Contradiction,
    /// END was sent: nobody attaches to this session again.
    Ending { code: u64 },
}

/// A connection that lost its session to a later attach. Close it with this, best effort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// Which connection.
    pub connection: ConnectionId,
    /// The reason of the SUPERSEDED close: the winner's instance, and what was received.
    pub reason: String,
}

/// A HELLO that asks for a session, and what the session gets if the HELLO may have it.
pub(in crate::session) struct Attempt<'a> {
    pub(in crate::session) connection: ConnectionId,
    pub(in crate::session) hello: &'a Hello,
    /// The resume token that WELCOME issues, and the name it has here.
    pub(in crate::session) token: ResumeToken,
    pub(in crate::session) name: Name,
    /// Seeds the phase of the heartbeat.
    pub(in crate::session) seed: u64,
}

impl ServerSession {
    /// A HELLO without `resume`, or whose token led nowhere: it names this session by its key.
    pub(in crate::session) fn attach_by_key(&mut self, now: Instant, attempt: Attempt<'_>) -> Attach {
        let hello = attempt.hello;
        if let Some(refusal) = self.refusal(hello) {
            return refusal;
        }
        if self.confirmed || hello.instance != self.instance {
            return Attach::NotYours;
        }
        // A client that sent `resume` has written nothing and starts where WELCOME says; one that did
        // not is already writing from 1.
        let read = if hello.resume.is_some() { self.flow.inbox.acknowledged() } else { 0 };
        self.take_over(now, attempt, Lane { wrote: 0, read }, None)
    }

    /// A HELLO that presents a token of this session.
    pub(in crate::session) fn attach_by_token(
        &mut self,
        now: Instant,
        attempt: Attempt<'_>,
        presented: Name,
    ) -> Attach {
        let hello = attempt.hello;
        let Some(resume) = &hello.resume else { return Attach::NotYours };
        if self.presented != Some(presented) && self.issued != Some(presented) {
            return Attach::NotYours;
        }
        if let Some(refusal) = self.refusal(hello) {
            return refusal;
        }
        let contradiction = resume.acknowledged > self.flow.outbox.written()
            || resume.acknowledged < self.flow.outbox.acknowledged()
            || resume.sent < self.flow.inbox.received()
            || resume.first_held > self.flow.inbox.acknowledged() + 1;
        if contradiction {
            return Attach::Contradiction;
        }
        let lane = Lane { wrote: resume.acknowledged, read: self.flow.inbox.acknowledged() };
        // `acknowledged` was checked against `written` above.
        let _ = self.flow.outbox.acknowledge(resume.acknowledged);
        self.take_over(now, attempt, lane, Some(presented))
    }

    fn refusal(&self, hello: &Hello) -> Option<Attach> {
        match self.life {
            Life::EndSent { code, .. } | Life::EndReceived { code } => return Some(Attach::Ending { code }),
            Life::Closed(_) => return Some(Attach::NotYours),
            _ => {}
        }
        let stale = hello.instance == self.instance && hello.attempt <= self.attempt;
        stale.then_some(Attach::Stale)
    }

    /// The one step in which a session changes hands: fence first, then look at our own `acknowledged`.
    fn take_over(
        &mut self,
        now: Instant,
        attempt: Attempt<'_>,
        lane: Lane,
        presented: Option<Name>,
    ) -> Attach {
        self.forward.check(now);
        let Attempt { connection, hello, token, name, seed } = attempt;
        let old = self.attached.take();
        self.flow.forget_owed();
        self.epoch += 1;
        self.confirmed = false;
        // Of the two that were valid, only the one that was presented stays so.
        let other = [self.presented, self.issued].into_iter().flatten().find(|name| Some(*name) != presented);
        let dropped = [self.spent.take(), other];
        self.presented = presented;
        self.issued = Some(name);
        self.instance = hello.instance;
        self.attempt = hello.attempt;
        let fenced = old.map(|old| Fenced { connection: old.connection, reason: self.superseded_reason() });
        self.flow.outbox.set_peer_window(hello.window);
        // What this client does not take stands as a gap in its stream, and is counted as dropped.
        self.flow.outbox.set_largest(hello.max_message);
        self.flow.outbox.trim(lane.wrote);
        let most = self.config.resume_window;
        self.resume_window = hello.resume_window.map_or(most, |asked| asked.min(most));
        let welcome = Welcome {
            id: self.id,
            token,
            epoch: self.epoch,
            resumed: presented.is_some(),
            acknowledged: self.flow.inbox.ack(),
            first: lane.wrote + 1,
            resume_window: self.resume_window,
            heartbeat_interval: self.config.heartbeat.interval(),
            window: self.flow.inbox.window(),
            account: self.account.as_deref().copied(),
            resume_at: None,
            max_message: self.config.flow.max_message,
        };
        let mut rng = StdRng::seed_from_u64(seed);
        self.attached = Some(Box::new(Attached {
            connection,
            lane,
            welcome: Some(Box::new(welcome)),
            heartbeat: Heartbeat::new(now, &self.config.heartbeat, &mut rng),
            lifetime: Lifetime::new(now, &self.config.lifetime, &mut rng),
            gone_by: None,
            probe: None,
            queue: VecDeque::new(),
            volatiles: Volatiles::default(),
            auth: None,
        }));
        self.replaced.as_mut().into_iter().for_each(|replaced| replaced.begin_connection());
        self.life = match std::mem::replace(&mut self.life, Life::Attached) {
            Life::Closing { how, .. } if *how == Ending::Replaced => {
                Life::Closing { how, until: now + CLOSE_TIMEOUT }
            }
            Life::Closing { how, .. } => {
                let until = how.waits_until(now + FINAL_WRITES);
                Life::Closing { how, until }
            }
            _ => Life::Attached,
        };
        self.queue_end_if_due(now);
        Attach::Done { fenced, dropped }
    }

    /// The reason of a SUPERSEDED close: who has the session now, and what was received.
    #[must_use]
    pub fn superseded_reason(&self) -> String {
        format!("{} {}", self.instance, self.flow.inbox.acknowledged())
    }

    /// The client's first control message after WELCOME: the token it presented is spent.
    pub(super) fn confirm_epoch(&mut self) {
        self.confirmed = true;
        self.spent = self.presented.take();
        self.account = None;
    }

    /// The names under which this session may be attached now, its key included.
    pub(in crate::session) fn names(&self) -> impl Iterator<Item = Name> + '_ {
        [Some(self.key), self.presented, self.issued].into_iter().flatten()
    }

    pub(in crate::session) fn spent(&self) -> Option<Name> {
        self.spent
    }
}
