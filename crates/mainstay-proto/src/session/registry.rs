//! The server's directory: which session a HELLO may attach to, and what became of sessions that are gone.
//!
//! Attach, END and expiry of a session happen one at a time: each is one call of this module, made while the caller
//! holds the registry. The caller stores the live sessions ([`Sessions`]). The registry stores their names, and a
//! *tombstone* with the final counts of each ended session: for a day, in bounded number.
//!
//! Source: `docs/PROTOCOL.md` "Attaching".

mod moving;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::moving::{Adopted, Released};
use super::message::{Account, Control, Delay, Hello, Instance, LossCause, Resume, ResumeToken, SessionId};
use super::names::{Name, Presenter, Secrets};
use super::route::{NodeId, Route};
use super::server::{Attach, Attempt, Closed, Fenced, FinalCounts, Identity, ServerConfig, ServerSession};
use super::transmit::ConnectionId;
use crate::admission::Source;
use crate::ws::CloseCode;

/// The store of live sessions, and access to one of them.
pub trait Sessions {
    /// A cheap reference to a session: an index, an `Arc`.
    type Handle: Clone;
    /// Calls `f` with exclusive access to the session.
    fn with<R>(&mut self, handle: &Self::Handle, f: impl FnOnce(&mut ServerSession) -> R) -> R;
    /// Stores a new session.
    fn create(&mut self, session: ServerSession) -> Self::Handle;
    /// Returns the configuration of a session that is created now; `None`: the registry's configuration.
    fn config(&mut self) -> Option<Arc<ServerConfig>> {
        None
    }
    /// Returns the source from which the client opened the session; `None` if it is unknown.
    fn source(&mut self, handle: &Self::Handle) -> Option<Source> {
        let _ = handle;
        None
    }
}

/// Bounds of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegistryConfig {
    /// Maximum number of live sessions, parked ones included. Above it a new session evicts one whose client has been
    /// away for at least 10 s; if there is none, the new session is refused. Default: 1,000,000.
    pub sessions: usize,
    /// Maximum number of parked sessions of one source. A source above it loses the session whose client has been
    /// away for the longest, whenever it opens another. Default: no limit.
    pub parked_per_source: Option<usize>,
    /// How long a tombstone is kept. Default: 24 hours.
    pub tombstone_life: Duration,
    /// Maximum number of tombstones; the oldest are dropped first. Default: 100,000 (about 128 bytes each).
    pub tombstones: usize,
    /// The node whose tokens these are: each token names it and the session ([`Route`]). Default: none, and a token is
    /// its secret alone.
    pub node: Option<NodeId>,
    /// Whether a session delivers nothing before a control message of its client has confirmed an epoch of it.
    ///
    /// A client key has no route, so two nodes may each make a session under one key. A client that has read WELCOME
    /// presents its token and never the key again: at most one of those sessions is confirmed, and only that one
    /// delivers. So no key is refused for its age, and a session that was never confirmed ends 10 s after its
    /// connection. Default: `false`.
    pub confirmation_first: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            sessions: 1_000_000,
            parked_per_source: None,
            tombstone_life: Duration::from_secs(24 * 60 * 60),
            tombstones: 100_000,
            node: None,
            confirmation_first: false,
        }
    }
}

/// The longest time that a HELLO is in transit: after it the client gives the attempt up.
const HELLO_TRANSIT: Duration = Duration::from_secs(10);
/// A client that was just cut off is probably reconnecting; its session is not evicted before this.
const ON_THE_WAY_BACK: Duration = Duration::from_secs(10);
/// How many live names an eviction compares to find the client that has been away for the longest, and how many names
/// it looks at to find them: names of dead sessions stand between the live ones.
const COMPARED: usize = 32;
const LOOKED_AT: usize = 1024;
/// Number of sources without a session, above twice the number of sessions, at which the registry removes them.
const SOURCES_BEFORE_A_SWEEP: usize = 1024;
/// When a client that was refused for lack of room may try again: late enough to cost little, spread enough that
/// clients do not return at once.
const NO_ROOM: Delay = Delay { min: Duration::from_secs(1), max: Duration::from_secs(30) };
/// When a client may try again whose session is on its way to another node: soon, because it moves in milliseconds.
const ON_ITS_WAY: Delay = Delay { min: Duration::from_millis(200), max: Duration::from_secs(2) };

/// The registry; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Registry<H> {
    config: RegistryConfig,
    sessions: Arc<ServerConfig>,
    secrets: Secrets,
    names: BTreeMap<Name, Entry<H>>,
    /// Number of sessions that were created and not buried.
    live: usize,
    /// New sessions are refused, whatever room there is.
    is_closed: bool,
    /// What a drain needs; `None` where there is none.
    drain: Option<Box<moving::Drain>>,
    /// The keys of live sessions by source, only if the sessions of a source are limited. Keys of dead sessions may
    /// be among them.
    by_source: BTreeMap<Source, Vec<Name>>,
    tombstones: VecDeque<Tombstone>,
    /// The number of the oldest tombstone.
    first_tombstone: u64,
    /// A key older than this may have named a session that is forgotten by now.
    remembers_since: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Entry<H> {
    Live(H),
    Tombstone(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Tombstone {
    names: Vec<Name>,
    final_counts: FinalCounts,
    /// The session goes on elsewhere.
    is_released: bool,
    buried: Instant,
    /// The instance that got the account and may send again what was not delivered. A copy of this instance holds the
    /// same messages, and gets no account.
    reported_to: Option<Instance>,
}

/// What became of the session that a HELLO asks for.
#[derive(Debug, Clone)]
pub enum Resumed<H> {
    /// The HELLO is answered.
    Answer(Answer<H>),
    /// No such session is here. With its account if it was here and ended; [`open`](Registry::open) another with it.
    Lost(Option<Account>),
    /// This node released the session: ask the engine, or the node that has it by now.
    Released,
    /// The session is here and has to [leave](ServerSession::leave): ask again once it is [released](Registry::release).
    Leaving(H),
}

/// The answer to a HELLO.
#[derive(Debug, Clone)]
pub enum Answer<H> {
    /// The connection is attached to a session; WELCOME is its first transmit.
    Attached {
        /// The session.
        session: H,
        /// Whether the session was created for this HELLO: start its handler.
        created: bool,
        /// Whether the client asked for a session and got another one.
        lost: bool,
        /// The session that was evicted for this one. It is over and buried; notify its owner.
        evicted: Option<H>,
        /// The connection that this one replaces.
        fenced: Option<Fenced>,
    },
    /// No session was changed: send this and close.
    Refused {
        /// The REFUSE.
        refuse: Control,
        /// The reason, for logs and metrics.
        why: RefuseReason,
    },
}

/// Why a HELLO was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefuseReason {
    /// A later attempt of the same client arrived first.
    Stale,
    /// The key is not a secret any more, belongs to another instance, or named a session that is dead.
    KeyUsed,
    /// The key is older than the server's memory: it may have named a session.
    KeyTooOld,
    /// The session was ended on purpose.
    Ended,
    /// The maximum number of sessions is reached.
    NoRoom,
    /// The credentials were refused.
    Unauthorized,
    /// The credentials could not be judged now.
    NotJudged,
    /// The session is on its way to another node, or its node cannot be reached yet.
    Moving,
}

impl RefuseReason {
    /// Returns the code in REFUSE, from the table in `docs/PROTOCOL.md` "Closing".
    #[must_use]
    pub fn code(self) -> CloseCode {
        match self {
            Self::Stale => CloseCode::STALE_ATTEMPT,
            Self::KeyUsed | Self::KeyTooOld => CloseCode::KEY_REFUSED,
            Self::Ended => CloseCode::SESSION_ENDED,
            Self::NoRoom => CloseCode::OVERLOADED,
            Self::Unauthorized => CloseCode::UNAUTHORIZED,
            Self::NotJudged | Self::Moving => CloseCode::UPSTREAM_UNAVAILABLE,
        }
    }

    /// Returns the reason in words, as the rest of a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "a later attempt of the same client arrived first",
            Self::KeyUsed => "its key cannot name a new session",
            Self::KeyTooOld => "its key is older than the server's memory",
            Self::Ended => "its session was ended on purpose",
            Self::NoRoom => "there is no room for another session",
            Self::Unauthorized => "its credentials were refused",
            Self::NotJudged => "its credentials could not be judged",
            Self::Moving => "its session is on its way to another node",
        }
    }

    /// Returns the REFUSE for a HELLO that did not reach the registry.
    #[must_use]
    pub fn refuse(self) -> Control {
        self.with_account(None)
    }

    /// As [`refuse`](Self::refuse), with the time at which the client may try again.
    #[must_use]
    pub fn refuse_until(self, delay: Delay) -> Control {
        let mut refuse = self.refuse();
        if let Control::Refuse { delay: told, .. } = &mut refuse {
            *told = delay;
        }
        refuse
    }

    fn with_account(self, account: Option<Account>) -> Control {
        Control::Refuse {
            code: self.code().into(),
            temporary: matches!(self, Self::Stale | Self::NoRoom | Self::NotJudged | Self::Moving),
            delay: match self {
                Self::NoRoom => NO_ROOM,
                Self::Moving => ON_ITS_WAY,
                _ => Delay::default(),
            },
            account,
        }
    }
}

impl<H: Clone> Registry<H> {
    /// Creates an empty registry. All secrets are derived from `seed`: 32 bytes of the operating system's randomness.
    #[must_use]
    pub fn new(now: Instant, config: RegistryConfig, sessions: Arc<ServerConfig>, seed: [u8; 32]) -> Self {
        Self {
            config,
            sessions,
            secrets: Secrets::new(seed),
            names: BTreeMap::new(),
            live: 0,
            is_closed: false,
            drain: None,
            by_source: BTreeMap::new(),
            tombstones: VecDeque::new(),
            first_tombstone: 0,
            remembers_since: now,
        }
    }

    /// Refuses new sessions from now on, as if there were no room (`true`), or accepts them again (`false`). Default:
    /// accepts.
    pub fn set_closed(&mut self, is_closed: bool) {
        self.is_closed = is_closed;
    }

    /// Answers a HELLO that `who` sent on `connection`: [`resume`](Self::resume), if it asks for a session, and then
    /// [`open`](Self::open).
    ///
    /// Unknown, wrong and foreign tokens get the same answer: a new session. The client of a session that leaves comes
    /// back later.
    pub fn hello<S: Sessions<Handle = H>>(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        who: Presenter<'_>,
        hello: &Hello,
        sessions: &mut S,
    ) -> Answer<H> {
        let account = match self.resume(now, connection, who, hello, sessions) {
            Resumed::Answer(answer) => return answer,
            Resumed::Lost(account) => account,
            Resumed::Released | Resumed::Leaving(_) => return refuse(RefuseReason::Moving, None),
        };
        self.open(now, connection, who, hello, account, sessions)
    }

    /// Attaches to the session that the token in HELLO names, or returns what became of it. A HELLO without a token
    /// asks for no session: `Lost(None)`.
    pub fn resume<S: Sessions<Handle = H>>(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        who: Presenter<'_>,
        hello: &Hello,
        sessions: &mut S,
    ) -> Resumed<H> {
        self.forget_old(now);
        let Some(resume) = &hello.resume else { return Resumed::Lost(None) };
        let presented = who.name(&resume.token.0);
        self.bury_if_over(now, presented, sessions);
        if let Some(moves) = self.resume_leaving(now, presented, hello, resume, sessions) {
            return moves;
        }
        match self.names.get(&presented).cloned() {
            None => Resumed::Lost(None),
            Some(Entry::Tombstone(number)) => self.answer_from_tombstone(number, hello.instance, resume),
            Some(Entry::Live(handle)) => {
                let id = sessions.with(&handle, |session| session.id());
                let (token, name) = self.new_token(who, id);
                let seed = Self::connection_seed(connection);
                let attempt = Attempt { connection, hello, token, name, seed };
                let attach =
                    sessions.with(&handle, |session| session.attach_by_token(now, attempt, presented));
                if let Attach::Done { fenced, dropped } = attach {
                    self.rename(&handle, name, dropped);
                    let (created, lost, evicted) = (false, false, None);
                    return Resumed::Answer(Answer::Attached {
                        session: handle,
                        created,
                        lost,
                        evicted,
                        fenced,
                    });
                }
                Self::not_resumed(&handle, attach, resume, sessions)
            }
        }
    }

    /// Returns the answer to a HELLO that attached nothing.
    fn not_resumed<S: Sessions<Handle = H>>(
        handle: &H,
        attach: Attach,
        resume: &Resume,
        sessions: &mut S,
    ) -> Resumed<H> {
        match attach {
            Attach::Stale => Resumed::Answer(refuse(RefuseReason::Stale, None)),
            Attach::Leaving => Resumed::Leaving(handle.clone()),
            Attach::Ending { .. } => {
                let final_counts = sessions.with(handle, |session| session.final_counts());
                Resumed::Answer(refuse_ended(final_counts, resume.acknowledged))
            }
            Attach::NotYours | Attach::Contradiction | Attach::Done { .. } => Resumed::Lost(None),
        }
    }

    fn answer_from_tombstone(&mut self, number: u64, instance: Instance, resume: &Resume) -> Resumed<H> {
        let Some(tombstone) = self.tombstone(number) else { return Resumed::Lost(None) };
        if tombstone.is_released {
            return Resumed::Released;
        }
        let final_counts = tombstone.final_counts;
        if final_counts.ended.is_some() {
            return Resumed::Answer(refuse_ended(final_counts, resume.acknowledged));
        }
        let first = self.may_have_account(number, instance);
        Resumed::Lost(first.then(|| account_of(final_counts, resume.acknowledged)))
    }

    /// Attaches to the session that the client's key names, or creates one under that key. `account`: what became of
    /// the session that the client asked for; each WELCOME of the new one carries it until an epoch is established.
    pub fn open<S: Sessions<Handle = H>>(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        who: Presenter<'_>,
        hello: &Hello,
        account: Option<Account>,
        sessions: &mut S,
    ) -> Answer<H> {
        let key = who.name(&hello.key.0);
        let lost = hello.resume.is_some();
        self.bury_if_over(now, key, sessions);
        let found = self.names.get(&key).cloned();
        let mut evicted = None;
        let (handle, created) = match found {
            Some(Entry::Tombstone(number)) => {
                let ended = self.tombstone(number).filter(|tombstone| !tombstone.is_released);
                let account = ended.map(|tombstone| account_of(tombstone.final_counts, 0));
                return refuse(RefuseReason::KeyUsed, account);
            }
            Some(Entry::Live(handle)) => (handle, false),
            None if !lost && self.may_have_lived(now, hello.key_age) => {
                return refuse(RefuseReason::KeyTooOld, None);
            }
            None if self.is_closed => return refuse(RefuseReason::NoRoom, None),
            None => {
                if self.live >= self.config.sessions {
                    evicted = self.evict(now, sessions);
                    if evicted.is_none() {
                        // The account is kept for the HELLO that gets a session.
                        return refuse(RefuseReason::NoRoom, None);
                    }
                }
                self.live += 1;
                let id = self.secrets.session_id();
                let confirmation_first = self.config.confirmation_first;
                let identity = Identity { id, principal: who.principal(), key, account, confirmation_first };
                let config = sessions.config().unwrap_or_else(|| Arc::clone(&self.sessions));
                let session = ServerSession::new(config, now, identity, hello);
                let handle = sessions.create(session);
                self.names.insert(key, Entry::Live(handle.clone()));
                (handle, true)
            }
        };
        let id = sessions.with(&handle, |session| session.id());
        let (token, name) = self.new_token(who, id);
        let seed = Self::connection_seed(connection);
        let attach = sessions.with(&handle, |session| {
            session.attach_by_key(now, Attempt { connection, hello, token, name, seed })
        });
        match attach {
            Attach::Done { fenced, dropped } => {
                self.rename(&handle, name, dropped);
                if created {
                    evicted = evicted.or(self.bound_source(now, (&handle, key), sessions));
                }
                Answer::Attached { session: handle, created, lost, evicted, fenced }
            }
            Attach::Stale => refuse(RefuseReason::Stale, None),
            Attach::Leaving => refuse(RefuseReason::Moving, None),
            Attach::Ending { .. } => {
                refuse_ended(sessions.with(&handle, |session| session.final_counts()), 0)
            }
            Attach::NotYours | Attach::Contradiction => {
                let final_counts = sessions.with(&handle, |session| session.final_counts());
                refuse(RefuseReason::KeyUsed, Some(account_of(final_counts, 0)))
            }
        }
    }

    /// Evicts a session whose client has been away for at least 10 s, and buries it, because a resource that all
    /// sessions share is exhausted. Returns the evicted session, whose owner must be notified; `None` if there is no
    /// such session.
    ///
    /// Samples 32 live names from a random start. The source with most of the sampled sessions loses the one whose
    /// client has been away for the longest. So a client that opens and abandons sessions evicts its own first and
    /// cannot lock others out. Behind a proxy all clients have one source, and the longest absence alone decides.
    pub fn evict<S: Sessions<Handle = H>>(&mut self, now: Instant, sessions: &mut S) -> Option<H> {
        let from = self.secrets.name();
        let around = self.names.range(from..).chain(self.names.range(..from)).take(LOOKED_AT);
        let live = around.filter_map(|(_, entry)| match entry {
            Entry::Live(handle) => Some(handle),
            Entry::Tombstone(_) => None,
        });
        let mut parked = Vec::with_capacity(COMPARED);
        for handle in live.take(COMPARED) {
            let since = sessions.with(handle, |session| session.parked_since());
            if let Some(since) = since.filter(|at| now.saturating_duration_since(*at) >= ON_THE_WAY_BACK) {
                parked.push((sessions.source(handle), since, handle));
            }
        }
        let of_source = |source| parked.iter().filter(|(other, ..)| *other == source).count();
        let victim = parked.iter().max_by_key(|(source, since, _)| (of_source(*source), Reverse(*since)));
        let victim = victim.map(|(.., handle)| (*handle).clone())?;
        self.evict_this(now, &victim, sessions);
        Some(victim)
    }

    /// Evicts this session, and buries it. Does nothing to a session that is over and buried.
    pub fn evict_this<S: Sessions<Handle = H>>(&mut self, now: Instant, session: &H, sessions: &mut S) {
        sessions.with(session, |session| {
            session.evict();
            self.bury(now, session);
        });
    }

    /// A source opened another session, under this key. If more of its sessions are parked than allowed, the one
    /// whose client has been away for the longest is evicted.
    fn bound_source<S: Sessions<Handle = H>>(
        &mut self,
        now: Instant,
        (opened, key): (&H, Name),
        sessions: &mut S,
    ) -> Option<H> {
        let (limit, source) = (self.config.parked_per_source?, sessions.source(opened)?);
        if self.by_source.len() > 2 * self.live + SOURCES_BEFORE_A_SWEEP {
            let is_live = |name: &Name| matches!(self.names.get(name), Some(Entry::Live(_)));
            self.by_source.retain(|_, keys| keys.iter().any(is_live));
        }
        let keys = self.by_source.entry(source).or_default();
        let mut parked = Vec::new();
        keys.retain(|key| {
            let Some(Entry::Live(handle)) = self.names.get(key) else { return false };
            let since = sessions.with(handle, |session| session.parked_since());
            parked.extend(since.map(|since| (since, handle.clone())));
            true
        });
        keys.push(key);
        if parked.len() <= limit {
            return None;
        }
        let (_, victim) = parked.into_iter().min_by_key(|(since, _)| *since)?;
        self.evict_this(now, &victim, sessions);
        Some(victim)
    }

    /// Buries a session that is over: its names lead to a tombstone from now on. Call it for every session whose
    /// [`closed`](ServerSession::closed) is set, before you drop the session. Does nothing for other sessions, nor for
    /// one that was [released](Self::release): its names may be here again.
    pub fn bury(&mut self, now: Instant, session: &ServerSession) {
        // The tombstone may be forgotten by now. Then no name is left, and the session must not count as live. Another
        // session may have its key by now, but none its token.
        let is_live = matches!(self.names.get(&session.own_name()), Some(Entry::Live(_)));
        if session.closed().is_none_or(|closed| closed == Closed::Moved) || !is_live {
            return;
        }
        self.forget_old(now);
        self.live = self.live.saturating_sub(1);
        let names = self.take_names(session);
        self.note_ended_in_drain(session);
        self.entomb(Tombstone {
            names,
            final_counts: session.final_counts(),
            is_released: false,
            buried: now,
            reported_to: None,
        });
    }

    /// Removes the names that lead nowhere once this session is gone, and returns those for its tombstone.
    fn take_names(&mut self, session: &ServerSession) -> Vec<Name> {
        let mut names: Vec<Name> = session.names().collect();
        let spent = session.spent();
        let freed = self.frees_key(session).then_some(session.key);
        names.retain(|name| Some(*name) != freed);
        for name in [spent, freed].into_iter().flatten() {
            self.names.remove(&name);
        }
        names
    }

    /// Lets its names lead to a tombstone from now on.
    fn entomb(&mut self, tombstone: Tombstone) {
        let number = self.next_tombstone();
        for name in &tombstone.names {
            self.names.insert(*name, Entry::Tombstone(number));
        }
        self.tombstones.push_back(tombstone);
        while self.tombstones.len() > self.config.tombstones {
            self.forget_first();
        }
    }

    /// Answers from its tombstone for a session that is over and that its owner has not buried yet.
    fn bury_if_over<S: Sessions<Handle = H>>(&mut self, now: Instant, name: Name, sessions: &mut S) {
        if let Some(Entry::Live(handle)) = self.names.get(&name).cloned() {
            sessions.with(&handle, |session| self.bury(now, session));
        }
    }

    /// Returns the number of names and the number of tombstones; both are zero when all is at rest.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.names.len(), self.tombstones.len())
    }

    /// Returns how many of the names lead to tombstones.
    #[must_use]
    pub fn tombstoned_names(&self) -> usize {
        self.names.values().filter(|entry| matches!(entry, Entry::Tombstone(_))).count()
    }

    fn rename(&mut self, handle: &H, issued: Name, dropped: [Option<Name>; 2]) {
        for name in dropped.into_iter().flatten() {
            self.names.remove(&name);
        }
        self.names.insert(issued, Entry::Live(handle.clone()));
    }

    fn next_tombstone(&self) -> u64 {
        self.first_tombstone + self.tombstones.len() as u64
    }

    /// Whether the key of this session may name another one once it is over: nothing was delivered in it.
    fn frees_key(&self, session: &ServerSession) -> bool {
        self.config.confirmation_first
            && !session.was_established()
            && session.final_counts().ended.is_none()
            && session.own_name() != session.key
    }

    /// Whether a key that a client presented before may have named a session that is forgotten. The client counts the
    /// age of the key and does not know the transit time, so the limit has a margin: a HELLO that is not the first
    /// (age 0) and whose key is nearly as old as the server's memory is too old. Where confirmation comes first, a
    /// forgotten session of a key that is still presented delivered nothing.
    fn may_have_lived(&self, now: Instant, key_age: Duration) -> bool {
        !self.config.confirmation_first
            && !key_age.is_zero()
            && now.checked_sub(key_age).is_none_or(|made| made < self.remembers_since + HELLO_TRANSIT)
    }

    fn tombstone(&self, number: u64) -> Option<&Tombstone> {
        let index = usize::try_from(number.checked_sub(self.first_tombstone)?).ok()?;
        self.tombstones.get(index)
    }

    /// Whether `instance` may have the account: it is the first instance that asks, or the same again.
    fn may_have_account(&mut self, number: u64, instance: Instance) -> bool {
        let index = usize::try_from(number - self.first_tombstone).ok();
        let Some(tombstone) = index.and_then(|index| self.tombstones.get_mut(index)) else { return false };
        *tombstone.reported_to.get_or_insert(instance) == instance
    }

    fn forget_old(&mut self, now: Instant) {
        while self
            .tombstones
            .front()
            .is_some_and(|t| now.saturating_duration_since(t.buried) >= self.config.tombstone_life)
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some(tombstone) = self.tombstones.pop_front() else { return };
        for name in &tombstone.names {
            if self
                .names
                .get(name)
                .is_some_and(|e| matches!(e, Entry::Tombstone(n) if *n == self.first_tombstone))
            {
                self.names.remove(name);
            }
        }
        self.drain.as_mut().into_iter().for_each(|drain| drain.forget(self.first_tombstone));
        self.first_tombstone += 1;
        self.remembers_since = self.remembers_since.max(tombstone.buried);
    }

    fn new_token(&mut self, who: Presenter<'_>, session: SessionId) -> (ResumeToken, Name) {
        let token = self.secrets.token(self.config.node.map(|node| Route { node, session }));
        let name = who.name(&token.0);
        (token, name)
    }

    /// Seeds the phase of a connection's heartbeat. The seeds only have to differ.
    fn connection_seed(connection: ConnectionId) -> u64 {
        connection.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

fn refuse<H>(why: RefuseReason, account: Option<Account>) -> Answer<H> {
    Answer::Refused { refuse: why.with_account(account), why }
}

fn refuse_ended<H>(final_counts: FinalCounts, acknowledged: u64) -> Answer<H> {
    let refuse = Control::Refuse {
        code: final_counts.ended.unwrap_or_else(|| CloseCode::SESSION_ENDED.into()),
        temporary: false,
        delay: Delay::default(),
        account: Some(account_of(final_counts, acknowledged)),
    };
    Answer::Refused { refuse, why: RefuseReason::Ended }
}

/// `acknowledged`: the client's own count, from which the messages that it lacks are counted.
fn account_of(final_counts: FinalCounts, acknowledged: u64) -> Account {
    Account {
        acknowledged: final_counts.acknowledged,
        delivered: final_counts.delivered,
        first_lost: acknowledged + 1,
        count: final_counts.sent.saturating_sub(acknowledged),
        cause: if final_counts.ended.is_some() { LossCause::Ended } else { final_counts.cause },
    }
}
