//! Sessions and accounts that leave this node, and those that it takes over.
//!
//! A drain that ends sessions leaves their accounts to other nodes, so it remembers which tombstones it made. Without a
//! drain and without accounts of other nodes, nothing of this is kept.
//!
//! Source: `docs/CLUSTER.md`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Entry, Registry, Resumed, Sessions, Tombstone};
use crate::session::message::{Hello, LossCause, Resume, ResumeToken, SessionId};
use crate::session::names::{Name, Presenter};
use crate::session::record::Record;
use crate::session::server::{Attach, FinalCounts, ServerSession};
use crate::session::state::{AccountState, BadRecord, Content, SessionState};

/// A record has to outlive its client's way to another node, however long that takes.
const ON_THE_WAY: Duration = Duration::from_secs(60);

/// A session that left its node, for the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The session.
    pub session: SessionId,
    /// The claim by which this node had it.
    pub claim: u64,
    /// What another node needs to continue it.
    pub record: Record,
    /// How long the engine keeps it: twice the resume window, and 60 s.
    pub keep: Duration,
}

/// What became of a record that this node claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted<H> {
    /// The session is here now, parked, and needs a handler.
    Session {
        /// The session.
        session: H,
        /// A session that was never confirmed and had the same key: it is over and buried. Notify its owner.
        evicted: Option<H>,
    },
    /// The session had ended; its account is here now.
    Account,
}

/// What a drain remembers, and what has left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Drain {
    is_draining: bool,
    /// Accounts that other nodes may be asked for, and sessions that were released, in the order of their tombstones.
    accounts: VecDeque<Left>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Left {
    tombstone: u64,
    session: SessionId,
    claim: u64,
    tokens: [Option<Name>; 2],
}

impl Drain {
    /// The tombstone with this number, the oldest, is forgotten.
    pub(super) fn forget(&mut self, tombstone: u64) {
        while self.accounts.front().is_some_and(|left| left.tombstone <= tombstone) {
            self.accounts.pop_front();
        }
    }
}

impl<H: Clone> Registry<H> {
    /// Begins a drain (`true`), or ends it. While this node drains, a HELLO that may resume a session that
    /// [leaves first](ServerSession::leaves_first) gets [`Leaving`](Resumed::Leaving). Any other session ends when
    /// its client asks for it, with the exact account, cause
    /// [`Restarted`](crate::session::message::LossCause::Restarted). Default: no drain.
    pub fn set_draining(&mut self, is_draining: bool) {
        if is_draining || self.drain.is_some() {
            self.drain.get_or_insert_default().is_draining = is_draining;
        }
    }

    fn is_draining(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.is_draining)
    }

    /// Whether this registry has the name of this token, as presented by `who`: for a session or for a tombstone.
    #[must_use]
    pub fn knows(&self, who: Presenter<'_>, token: &ResumeToken) -> bool {
        self.names.contains_key(&who.name(&token.0))
    }

    /// Answers for a session that leaves, or that a drain ends now; `None`: the token names no such session, or it
    /// gets the usual answer.
    pub(super) fn resume_leaving<S: Sessions<Handle = H>>(
        &mut self,
        now: Instant,
        presented: Name,
        hello: &Hello,
        resume: &Resume,
        sessions: &mut S,
    ) -> Option<Resumed<H>> {
        if !self.is_draining() {
            return None;
        }
        let Some(Entry::Live(handle)) = self.names.get(&presented).cloned() else { return None };
        let leaves = sessions.with(&handle, |session| {
            match session.refusal_by_token(hello, resume, presented) {
                None | Some(Attach::Leaving) => {}
                Some(_) => return None,
            }
            let leaves = session.is_open() && session.leaves_first();
            if !leaves {
                session.end_in_drain();
                self.bury(now, session);
            }
            Some(leaves)
        })?;
        if leaves {
            return Some(Resumed::Leaving(handle));
        }
        let Some(Entry::Tombstone(number)) = self.names.get(&presented) else { return None };
        Some(self.answer_from_tombstone(*number, hello.instance, resume))
    }

    /// Gives up a session that [leaves](ServerSession::leave): it is over here, its names lead to
    /// [`Released`](Resumed::Released), and another node may continue it from the record. One that is not
    /// [movable](ServerSession::set_movable) ends now, with its account. `None`: that, or the session does not leave, or
    /// it ended meanwhile.
    pub fn release(&mut self, now: Instant, session: &mut ServerSession) -> Option<Released> {
        if !session.is_leaving() {
            return None;
        }
        if !session.is_movable() {
            session.end_in_drain();
            self.bury(now, session);
            return None;
        }
        let state = session.to_state(now);
        let released = Released {
            session: session.id(),
            claim: session.claim(),
            record: state.to_record(session.saved().cloned()),
            keep: 2 * state.resume_window + ON_THE_WAY,
        };
        self.forget_old(now);
        self.live = self.live.saturating_sub(1);
        let names = self.take_names(session);
        // In case that no other node can have it.
        let final_counts = FinalCounts { cause: LossCause::Restarted, ..session.final_counts() };
        let left = self.left(session);
        self.drain.get_or_insert_default().accounts.push_back(left);
        self.entomb(Tombstone { names, final_counts, is_released: true, buried: now, reported_to: None });
        session.handle_released();
        Some(released)
    }

    /// Ends a session that was released although no other node can have it: the engine never got the record, or
    /// refused it. From now on its client gets the exact account, cause
    /// [`Restarted`](crate::session::message::LossCause::Restarted). Do not call it where the outcome is unknown: an
    /// account must not contradict a session that goes on. Does nothing if the session was not released here.
    pub fn end_released(&mut self, session: SessionId) {
        let released = self.drain.as_ref().and_then(|drain| {
            let left = drain.accounts.iter().rev().find(|left| left.session == session)?;
            usize::try_from(left.tombstone.checked_sub(self.first_tombstone)?).ok()
        });
        if let Some(tombstone) = released.and_then(|index| self.tombstones.get_mut(index)) {
            tombstone.is_released = false;
        }
    }

    /// Takes over what another node released, and this one claimed: a session is here from now on, parked, with what
    /// is left of its resume window; an account becomes a tombstone. The same record may be adopted twice. The maximum
    /// number of sessions does not stop a session that another node accepted.
    ///
    /// # Errors
    /// The record is of another version, or damaged: the session is lost.
    pub fn adopt<S: Sessions<Handle = H>>(
        &mut self,
        now: Instant,
        record: &Record,
        claim: u64,
        sessions: &mut S,
    ) -> Result<Adopted<H>, BadRecord> {
        match record.content()? {
            Content::Account(state) => {
                self.adopt_account(now, &state, claim);
                Ok(Adopted::Account)
            }
            Content::Session(state) => {
                Ok(self.adopt_session(now, *state, record.saved.clone(), claim, sessions))
            }
        }
    }

    fn adopt_session<S: Sessions<Handle = H>>(
        &mut self,
        now: Instant,
        state: SessionState,
        saved: Option<bytes::Bytes>,
        claim: u64,
        sessions: &mut S,
    ) -> Adopted<H> {
        let key = Name(state.key);
        let mut evicted = None;
        if let Some(Entry::Live(other)) = self.names.get(&key).cloned() {
            if sessions.with(&other, |session| session.id()) == state.id {
                return Adopted::Session { session: other, evicted };
            }
            self.evict_this(now, &other, sessions);
            evicted = Some(other);
        }
        let config = sessions.config().unwrap_or_else(|| Arc::clone(&self.sessions));
        let how = (claim, self.config.confirmation_first);
        let session = ServerSession::from_state(config, now, state, saved, how);
        let names: Vec<Name> = session.names().collect();
        let handle = sessions.create(session);
        self.live += 1;
        for name in names {
            self.names.insert(name, Entry::Live(handle.clone()));
        }
        if self.config.parked_per_source.is_some()
            && let Some(source) = sessions.source(&handle)
        {
            self.by_source.entry(source).or_default().push(key);
        }
        Adopted::Session { session: handle, evicted }
    }

    fn adopt_account(&mut self, now: Instant, state: &AccountState, claim: u64) {
        let tokens = state.tokens.map(|name| name.map(Name));
        let names: Vec<Name> = tokens.into_iter().flatten().collect();
        let is_here = |name: &Name| match self.names.get(name) {
            Some(Entry::Tombstone(number)) => {
                self.tombstone(*number).is_some_and(|tombstone| !tombstone.is_released)
            }
            Some(Entry::Live(_)) => true,
            None => false,
        };
        if names.iter().any(is_here) {
            return;
        }
        let final_counts = FinalCounts {
            acknowledged: state.acknowledged,
            delivered: state.delivered,
            sent: state.sent,
            cause: state.cause,
            ended: state.ended,
        };
        let left = Left { tombstone: self.next_tombstone(), session: state.id, claim, tokens };
        self.drain.get_or_insert_default().accounts.push_back(left);
        let reported_to = state.reported_to;
        self.entomb(Tombstone { names, final_counts, is_released: false, buried: now, reported_to });
    }

    /// Remembers the account of a session that is buried next, if this node drains.
    pub(super) fn note_ended_in_drain(&mut self, session: &ServerSession) {
        let left = self.left(session);
        if let Some(drain) = self.drain.as_mut().filter(|drain| drain.is_draining) {
            drain.accounts.push_back(left);
        }
    }

    /// How the next tombstone, which is this session's, may be passed on.
    fn left(&self, session: &ServerSession) -> Left {
        let (id, claim, tokens) = (session.id(), session.claim(), session.tokens());
        Left { tombstone: self.next_tombstone(), session: id, claim, tokens }
    }

    /// Takes the accounts of the sessions that ended in the drain, each with the claim by which this node had the
    /// session: for the engine, to be kept for a day. An account that was reported names the instance that got it, which
    /// may ask again. Accounts that this node took over from others are among them; those of released sessions are
    /// not, unless [`end_released`](Self::end_released) ended them.
    pub fn take_accounts(&mut self) -> Vec<(SessionId, u64, Record)> {
        let Some(mut drain) = self.drain.take() else { return Vec::new() };
        let is_released = |left: &Left| self.tombstone(left.tombstone).is_some_and(|one| one.is_released);
        let (released, left): (VecDeque<_>, VecDeque<_>) = drain.accounts.into_iter().partition(is_released);
        drain.accounts = released;
        self.drain = Some(drain);
        let account = |left: &Left| {
            let tombstone = self.tombstone(left.tombstone)?;
            let FinalCounts { acknowledged, delivered, sent, cause, ended } = tombstone.final_counts;
            let tokens = left.tokens.map(|name| name.map(|name| name.0));
            let (id, reported_to) = (left.session, tombstone.reported_to);
            let state = AccountState { tokens, id, acknowledged, delivered, sent, cause, ended, reported_to };
            Some((left.session, left.claim, state.to_record()))
        };
        left.iter().filter_map(account).collect()
    }
}
