//! Attaching a connection to a session: which HELLO may, and the one step in which a session changes its connection.
//!
//! Source: `docs/PROTOCOL.md` "Attaching".

use std::collections::VecDeque;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::ending::Ending;
use super::{Attached, Established, Hold, Life, ServerSession};
use crate::heartbeat::Heartbeat;
use crate::session::flow::{Lane, Volatiles};
use crate::session::lifetime::Lifetime;
use crate::session::message::{Hello, Resume, ResumeToken, Welcome};
use crate::session::names::Name;
use crate::session::transmit::ConnectionId;
use crate::session::{CLOSE_TIMEOUT, FINAL_WRITES};

/// The outcome of an attempt to attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::session) enum Attach {
    /// The session has a new connection. The previous one, if there was one, is fenced. The names in `dropped` no
    /// longer lead to the session.
    Done { fenced: Option<Fenced>, dropped: [Option<Name>; 2] },
    /// A later attempt of the same instance holds the session already.
    Stale,
    /// The key is not a secret any more, or the name belongs to another instance.
    NotYours,
    /// The counts in HELLO are those of another copy of this client.
    Contradiction,
    /// The session leaves this node.
    Leaving,
    /// END was sent: no connection attaches to this session again.
    Ending { code: u64 },
}

/// A connection that lost its session to a later attach. The server closes it with this reason; the Close may get
/// lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// The fenced connection.
    pub connection: ConnectionId,
    /// The reason of the SUPERSEDED close: the instance that has the session now, and the number that this end has
    /// acknowledged.
    pub reason: String,
}

/// A HELLO that asks for a session, and what the session gets from the registry if the HELLO attaches.
pub(in crate::session) struct Attempt<'a> {
    pub(in crate::session) connection: ConnectionId,
    pub(in crate::session) hello: &'a Hello,
    /// The resume token that WELCOME issues, and the name under which the registry finds it.
    pub(in crate::session) token: ResumeToken,
    pub(in crate::session) name: Name,
    /// Seeds the phase of the heartbeat.
    pub(in crate::session) seed: u64,
}

impl ServerSession {
    /// Attaches by the key in HELLO: the HELLO has no `resume`, or the registry does not know its token.
    pub(in crate::session) fn attach_by_key(&mut self, now: Instant, attempt: Attempt<'_>) -> Attach {
        let hello = attempt.hello;
        if let Some(refusal) = self.refusal(hello) {
            return refusal;
        }
        if self.was_established() || hello.instance != self.instance {
            return Attach::NotYours;
        }
        // A client that sent `resume` has written no message and begins where WELCOME says. A client that did not
        // send `resume` is already writing from number 1.
        let read = if hello.resume.is_some() { self.flow.inbox.acknowledged() } else { 0 };
        self.take_over(now, attempt, Lane { wrote: 0, read }, None)
    }

    /// Attaches by a resume token of this session.
    pub(in crate::session) fn attach_by_token(
        &mut self,
        now: Instant,
        attempt: Attempt<'_>,
        presented: Name,
    ) -> Attach {
        let hello = attempt.hello;
        let Some(resume) = &hello.resume else { return Attach::NotYours };
        if let Some(refusal) = self.refusal_by_token(hello, resume, presented) {
            return refusal;
        }
        let lane = Lane { wrote: resume.acknowledged, read: self.flow.inbox.acknowledged() };
        // `acknowledged` was checked against `written` above.
        let _ = self.flow.outbox.acknowledge(resume.acknowledged);
        self.take_over(now, attempt, lane, Some(presented))
    }

    /// Returns why a HELLO with this token attaches nothing; `None` if it may attach.
    pub(in crate::session) fn refusal_by_token(
        &self,
        hello: &Hello,
        resume: &Resume,
        presented: Name,
    ) -> Option<Attach> {
        if self.presented != Some(presented) && self.issued != Some(presented) {
            return Some(Attach::NotYours);
        }
        if let Some(refusal) = self.refusal(hello) {
            return Some(refusal);
        }
        let contradiction = resume.acknowledged > self.flow.outbox.written()
            || resume.acknowledged < self.flow.outbox.acknowledged()
            || resume.sent < self.flow.inbox.received()
            || resume.first_held > self.flow.inbox.acknowledged() + 1;
        contradiction.then_some(Attach::Contradiction)
    }

    fn refusal(&self, hello: &Hello) -> Option<Attach> {
        match self.life {
            Life::EndSent { code, .. } | Life::EndReceived { code } => return Some(Attach::Ending { code }),
            Life::Closed(_) => return Some(Attach::NotYours),
            _ => {}
        }
        let stale = hello.instance == self.instance && hello.attempt <= self.attempt;
        stale.then_some(Attach::Stale).or_else(|| self.is_leaving().then_some(Attach::Leaving))
    }

    /// Moves the session to a new connection, in one step: it fences the old connection first, and reads its own
    /// counts after that.
    fn take_over(
        &mut self,
        now: Instant,
        attempt: Attempt<'_>,
        lane: Lane,
        presented: Option<Name>,
    ) -> Attach {
        let Attempt { connection, hello, token, name, seed } = attempt;
        let old = self.attached.take();
        self.flow.forget_owed();
        self.epoch += 1;
        if self.established == Established::Current {
            self.established = Established::Earlier;
        }
        // Two tokens were valid; only the presented one stays valid.
        let other = [self.presented, self.issued].into_iter().flatten().find(|name| Some(*name) != presented);
        let dropped = [self.spent.take(), other];
        self.presented = presented;
        self.issued = Some(name);
        self.instance = hello.instance;
        self.attempt = hello.attempt;
        let fenced = old.map(|old| Fenced { connection: old.connection, reason: self.superseded_reason() });
        self.flow.outbox.set_peer_window(hello.window);
        // A message above the client's limit becomes a gap in the client's stream, and counts as dropped.
        self.flow.outbox.set_largest(hello.max_message);
        self.flow.outbox.trim(lane.wrote);
        let most = self.config.resume_window;
        self.resume_window = hello.resume_window.map_or(most, |asked| asked.min(most));
        let welcome = self.welcome(token, presented.is_some(), lane.wrote + 1);
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
        self.rare.as_mut().into_iter().for_each(|rare| rare.replaced.begin_connection(lane.wrote));
        self.continue_life(now);
        self.queue_end_if_due(now);
        Attach::Done { fenced, dropped }
    }

    /// Makes the WELCOME of this attach. It acknowledges what was delivered so far.
    fn welcome(&mut self, token: ResumeToken, resumed: bool, first: u64) -> Welcome {
        Welcome {
            id: self.id,
            token,
            epoch: self.epoch,
            resumed,
            acknowledged: self.flow.inbox.ack(),
            first,
            resume_window: self.resume_window,
            heartbeat_interval: self.config.heartbeat.interval(),
            window: self.flow.inbox.window(),
            account: self.account.as_deref().copied(),
            resume_at: self.config.resume_at.clone(),
            max_message: self.config.flow.max_message,
        }
    }

    /// A session that is being ended gives its client time for what precedes the end; any other is attached now.
    fn continue_life(&mut self, now: Instant) {
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
    }

    /// Returns the reason of a SUPERSEDED close: the instance that has the session now, and the number that this end
    /// has acknowledged.
    #[must_use]
    pub fn superseded_reason(&self) -> String {
        format!("{} {}", self.instance, self.flow.inbox.acknowledged())
    }

    /// Handles the client's first control message after WELCOME: the epoch is established, and the presented token is
    /// spent.
    pub(super) fn establish_epoch(&mut self) {
        self.established = Established::Current;
        if self.hold == Hold::Unconfirmed {
            self.hold = Hold::No;
        }
        self.spent = self.presented.take();
        self.account = None;
    }

    /// Returns the names under which a client may attach to this session now, its key included.
    pub(in crate::session) fn names(&self) -> impl Iterator<Item = Name> + '_ {
        [Some(self.key), self.presented, self.issued].into_iter().flatten()
    }

    /// Whether an epoch was ever established, at any node.
    pub(in crate::session) fn was_established(&self) -> bool {
        self.established != Established::Never
    }

    /// Returns a name that no other session ever has: that of the newest token. A session that no connection attached
    /// to has only its key.
    pub(in crate::session) fn own_name(&self) -> Name {
        self.issued.unwrap_or(self.key)
    }

    /// Returns the names of the valid tokens.
    pub(in crate::session) fn tokens(&self) -> [Option<Name>; 2] {
        [self.presented, self.issued]
    }

    pub(in crate::session) fn spent(&self) -> Option<Name> {
        self.spent
    }
}
