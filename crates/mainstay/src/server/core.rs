//! What a server, the tasks of its sessions and the handles of the application share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Wake};
use std::time::{Duration, Instant};

use mainstay_proto::admission::Source;
use mainstay_proto::budget::{Candidate, Pressure, in_order};
use mainstay_proto::session::server::{Fenced, ServerConfig};
use mainstay_proto::session::{
    Answer, ConnectionId, Control, EndCause, Expiry, FlowConfig, Message, RefuseReason, Registry,
    RegistryConfig, ServerSession, Sessions, Window,
};
use mainstay_proto::timeline::{Attach, ClientName, Event, Resource};
use mainstay_proto::ws::{CloseCode, CloseFrame};
use slab::Slab;
use tokio_util::task::TaskTracker;
use tracing::Span;
use tracing::field::Empty;

use super::auth::Authenticate;
use super::config::Config;
#[cfg(feature = "fault-injection")]
use super::fault::Fault;
use super::group::{Group, Groups};
use super::inner::{Extras, Incoming, Inner, Origin};
use super::limits::Gate;
#[cfg(feature = "http2")]
use super::paced_log::PacedLog;
use super::paths::Paths;
use super::peer::{Peer, PeerInfo};
use super::stats::Counters;
use super::timeline::Timeline;
use crate::SendError;
use crate::budget::Holder;
use crate::clock::now;
#[cfg(feature = "cluster")]
use crate::cluster::Node;
use crate::driver::Wire;
use crate::worker::{self, Mailbox, Signal};

/// One session. What changes is behind one lock, held only for calls into the machine.
pub(crate) struct Core {
    /// Wakes the session's task. The handler's waker is the core itself.
    pub(super) signal: Signal,
    pub(super) shared: Arc<Shared>,
    pub(super) info: PeerInfo,
    inner: Mutex<Inner>,
}

pub(crate) type CoreRef = Arc<Core>;

impl Core {
    /// `path`: where its session is opened.
    pub(super) fn new(
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        mut info: PeerInfo,
        peer: Peer,
        path: Option<&str>,
    ) -> CoreRef {
        info.came = shared.tenths();
        if let Some(path) = path.filter(|_| shared.timeline.is_on()) {
            info.path = shared.paths.take(path);
        }
        Arc::new(Self { signal: Signal::new(mailbox), shared, info, inner: Mutex::new(Inner::new(peer)) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the machine, then has the session's task look at it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Peer) -> R) -> R {
        let changed = change(&mut self.lock().peer);
        self.signal.ask();
        changed
    }

    /// As [`change`](Self::change), and wakes the tasks that wait for the session.
    pub(super) fn change_state<R>(&self, change: impl FnOnce(&mut Peer) -> R) -> R {
        let mut inner = self.lock();
        let changed = change(&mut inner.peer);
        inner.wake_application();
        drop(inner);
        self.signal.ask();
        changed
    }

    /// Calls `f` if the client speaks `mainstay.v1`.
    pub(crate) fn with_session<R>(&self, f: impl FnOnce(&mut ServerSession) -> R) -> Option<R> {
        self.lock().peer.session_mut().map(f)
    }

    /// Has the session's task and the application look at a change that another task made.
    pub(super) fn notify(&self) {
        self.change_state(|_| ());
    }

    // ---- what the application does --------------------------------------------------------------

    pub(super) fn try_send(&self, message: Message) -> Result<(), SendError> {
        let pressure = self.shared.config.budget.pressure();
        self.change(|peer| peer.send(message, pressure)).map(drop)
    }

    /// Sends `sending`, or keeps it there until there is room. Calls `sent` with the number of the message, which a plain
    /// client's have not.
    pub(super) fn poll_send<R>(
        self: &Arc<Self>,
        sending: &mut Option<Message>,
        cx: &mut Context<'_>,
        sent: impl FnOnce(&mut Inner, Option<u64>) -> R,
    ) -> Poll<Result<R, SendError>> {
        // A future that is polled after it has returned.
        let Some(message) = sending.take() else { return Poll::Pending };
        let mut inner = self.lock();
        let pressure = self.shared.config.budget.pressure();
        match inner.peer.send(message, pressure) {
            Err(SendError::Full(message)) => {
                *sending = Some(message);
                inner.wait_for_room(cx.waker());
                if pressure.is_some() && self.wait_for_memory(&mut inner).is_none() {
                    // It fell just now, and no other task would wake this one.
                    inner.wake_senders();
                }
                Poll::Pending
            }
            done => {
                let done = done.map(|number| sent(&mut inner, number));
                drop(inner);
                self.signal.ask();
                Poll::Ready(done)
            }
        }
    }

    /// The window of a plain client, to which no gap can be reported, may be full.
    pub(super) fn send_dropping_oldest(&self, message: Message) -> Result<(), SendError> {
        let pressure = self.shared.config.budget.pressure();
        self.change(|peer| peer.send_dropping_oldest(message, pressure)).map(drop)
    }

    pub(super) fn close(&self, cause: EndCause, code: CloseCode, reason: &str) {
        self.change_state(|peer| peer.close(now(), cause, code, reason));
    }

    pub(super) fn abort(&self, code: CloseCode, reason: &str) {
        self.change_state(|peer| peer.abort(now(), EndCause::Closed, code, reason));
    }

    #[cfg(feature = "fault-injection")]
    pub(super) fn inject(&self, fault: Fault, at: std::time::Instant) {
        self.lock().inject(fault, at);
        self.signal.ask();
    }

    // ---- the timeline ---------------------------------------------------------------------------

    /// Returns the client's name. `place`: its place in the list of all sessions.
    pub(super) fn name_of(&self, peer: &Peer, place: u32) -> ClientName {
        match peer.id() {
            Some(id) => ClientName::Session(id),
            None => ClientName::Plain { place, came: self.info.came },
        }
    }

    /// Notes an event of a session of `mainstay.v1`.
    pub(super) fn note(&self, event: impl FnOnce(&ServerSession) -> Event) {
        let timeline = &self.shared.timeline;
        if timeline.is_on()
            && let Some((id, event)) = self.with_session(|session| (session.id(), event(session)))
        {
            timeline.note(Some(ClientName::Session(id)), event);
        }
    }

    /// Notes that a connection from this address was attached to a session of `mainstay.v1`.
    pub(super) fn note_attached(&self, address: Option<SocketAddr>, how: Attach) {
        self.note(|session| Event::Attached { epoch: session.epoch(), address, how });
    }

    // ---- what connections do --------------------------------------------------------------------

    /// Notes that a connection was attached: from here on its `authenticate` judges credentials, and the handler runs in
    /// its span.
    pub(super) fn begin_epoch(&self, authenticate: Option<Authenticate>) {
        let span = self.epoch_span();
        let extras = authenticate.is_some() || span.is_some();
        self.lock().extras = extras.then(|| Box::new(Extras { authenticate, span }));
    }

    /// Sets how long the credentials hold with which this connection was attached.
    pub(super) fn set_expiry(&self, connection: ConnectionId, expiry: Option<Expiry>) {
        if expiry.is_some() {
            self.with_session(|session| session.set_expiry(now(), connection, expiry));
        }
    }

    /// As [`begin_epoch`](Self::begin_epoch), for a client that another node relays: the judge of its credentials stays.
    #[cfg(feature = "cluster")]
    pub(super) fn begin_relayed_epoch(&self) {
        let authenticate = self.lock().extras.take().and_then(|extras| extras.authenticate);
        self.begin_epoch(authenticate);
    }

    fn epoch_span(&self) -> Option<Span> {
        let span = match self.with_session(|session| (session.id(), session.epoch())) {
            Some((id, epoch)) => tracing::info_span!("session", session = %id, epoch, principal = Empty),
            None => tracing::info_span!("session", principal = Empty),
        };
        if span.is_disabled() {
            return None;
        }
        if self.shared.config.log_principal && !self.info.principal.is_empty() {
            span.record("principal", tracing::field::display(self.info.principal.escape_ascii()));
        }
        Some(span)
    }

    /// Gives the session the connection of a later attach, which replaces the one before and sends a Close there.
    ///
    /// The registry decides attaches one at a time, under its lock. They come here after it, in any order, and perhaps two
    /// before the session's task looks. The machine knows the connection that it is bound to. This returns the other one,
    /// with the Close for it.
    pub(super) fn supersede(
        &self,
        fenced: Option<Fenced>,
        connection: ConnectionId,
        wire: Wire,
        from: Origin,
    ) -> Option<(Wire, CloseFrame)> {
        let superseded = |reason| CloseFrame { code: CloseCode::SUPERSEDED, reason };
        let fenced = fenced.map(|fenced| superseded(fenced.reason));
        let incoming = Incoming { connection, wire, fenced, from };
        let mut inner = self.lock();
        let session = inner.peer.session()?;
        let is_bound = session.connection() == Some(connection) && session.closed().is_none();
        let reason = session.superseded_reason();
        if is_bound && cfg!(feature = "cluster") {
            inner.set_entry(incoming.from.entry);
        }
        let loser = if is_bound {
            inner.incoming.replace(Box::new(incoming)).map(|earlier| earlier.wire)
        } else {
            Some(incoming.wire)
        };
        inner.wake_application();
        drop(inner);
        self.signal.ask();
        loser.map(|wire| (wire, superseded(reason)))
    }

    // ---- memory ---------------------------------------------------------------------------------

    /// Whether nothing more may be read before the level of the memory budget falls. Then the session is woken.
    pub(super) fn must_wait_for_memory(self: &Arc<Self>, inner: &mut Inner, wire: &Wire) -> bool {
        let lets = |inner: &Inner, pressure: Option<Pressure>| {
            pressure.is_none_or(|pressure| inner.peer.lets_read(pressure, wire.assembling()))
        };
        if lets(inner, self.shared.config.budget.pressure()) {
            return false;
        }
        let pressure = self.wait_for_memory(inner);
        !lets(inner, pressure)
    }

    /// Has the session woken when the level of the memory budget falls. Returns the pressure after that.
    pub(super) fn wait_for_memory(self: &Arc<Self>, inner: &mut Inner) -> Option<Pressure> {
        if inner.charge.begin_to_wait() {
            return self.shared.config.budget.pressure();
        }
        let holder: Weak<Self> = Arc::downgrade(self);
        self.shared.config.budget.wait(holder)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.paths.release(self.info.path);
    }
}

impl Holder for Core {
    fn go_on(self: Arc<Self>) {
        let mut inner = self.lock();
        inner.charge.end_waiting();
        inner.wake_senders();
        drop(inner);
        self.signal.ask();
    }

    fn charged(&self) -> u64 {
        self.lock().charge.bytes()
    }

    /// Ends a session as if its resume window had passed, and closes a plain connection with 1013.
    fn give_up(self: Arc<Self>) {
        if !self.shared.evict(&self) {
            self.close(EndCause::Evicted, CloseCode::TRY_AGAIN, "the server is out of memory");
        }
    }
}

/// The handler is polled with this as its waker, so a session needs no task of its own to be woken.
impl Wake for Core {
    fn wake(self: Arc<Self>) {
        self.signal.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.signal.wake();
    }
}

// ---- the server -----------------------------------------------------------------------------------------

/// What all sessions of one server share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) sessions: Arc<ServerConfig>,
    /// Settings of sessions whose routes have some of their own, while there are any.
    own_settings: Mutex<Vec<Weak<ServerConfig>>>,
    registry: Mutex<Registry<CoreRef>>,
    pub(crate) tracker: TaskTracker,
    pub(super) gate: Arc<Gate>,
    /// Every session that has a task, so that a drain reaches all of them.
    cores: Mutex<Slab<Weak<Core>>>,
    /// Set once draining began: over which time the sessions leave.
    pub(super) draining: OnceLock<Duration>,
    /// This server's part in a cluster.
    #[cfg(feature = "cluster")]
    pub(crate) node: Option<Arc<Node>>,
    logged_too_big: AtomicBool,
    /// The log of floods over HTTP/2.
    #[cfg(feature = "http2")]
    pub(super) floods: PacedLog,
    pub(crate) stats: Counters,
    pub(super) timeline: Timeline,
    /// The paths of all sessions, while the timeline is on.
    pub(super) paths: Paths,
    started: Instant,
}

impl Shared {
    pub(super) fn new(config: Config) -> Arc<Self> {
        let least = Window::BEFORE_WELCOME;
        let accept = Window {
            messages: config.accept.messages.max(least.messages),
            bytes: config.accept.bytes.max(least.bytes),
        };
        let max_message = Some(config.limits.max_message as u64);
        let sessions = Arc::new(ServerConfig {
            flow: FlowConfig { keep: config.keep, accept, manual_ack: false, max_message },
            resume_window: config.resume_window,
            heartbeat: config.heartbeat,
            lifetime: config.lifetime,
            #[cfg(feature = "cluster")]
            resume_at: config.cluster.as_ref().and_then(|cluster| cluster.url.clone()),
            ..ServerConfig::default()
        });
        #[cfg(feature = "cluster")]
        let node = config.cluster.clone().map(|cluster| Node::new(cluster, config.resume_window));
        let names = RegistryConfig {
            sessions: config.max_sessions,
            parked_per_source: config.max_parked_per_address,
            #[cfg(feature = "cluster")]
            node: node.as_ref().map(|node| node.id),
            #[cfg(feature = "cluster")]
            confirmation_first: node.as_ref().is_some_and(|node| node.has_engine()),
            ..RegistryConfig::default()
        };
        let registry = Registry::new(now(), names, Arc::clone(&sessions), crate::random_seed());
        // The times in Retry-After are no secret.
        let gate = Gate::new(&config, u64::from(std::process::id()));
        let started = now();
        let timeline = Timeline::new(started, config.timeline);
        let shared = Arc::new(Self {
            config,
            sessions,
            own_settings: Mutex::default(),
            registry: Mutex::new(registry),
            tracker: TaskTracker::new(),
            gate,
            cores: Mutex::new(Slab::new()),
            draining: OnceLock::new(),
            #[cfg(feature = "cluster")]
            node,
            logged_too_big: AtomicBool::new(false),
            #[cfg(feature = "http2")]
            floods: PacedLog::default(),
            stats: Counters::default(),
            timeline,
            paths: Paths::default(),
            started,
        });
        let server = Arc::downgrade(&shared);
        shared
            .config
            .budget
            .add_reclaimer(move |away_for, bytes| Some(server.upgrade()?.give_up_parked(away_for, bytes)));
        shared
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry<CoreRef>> {
        // A panic while it was held left no broken promise that a later call could make worse.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registry, told whether the memory budget admits new sessions.
    pub(super) fn registry_for_hello(&self) -> MutexGuard<'_, Registry<CoreRef>> {
        let mut registry = self.registry();
        registry.set_closed(!self.config.budget.level().admits());
        registry
    }

    /// The groups that a client of this route belongs to.
    pub(super) fn groups<'a>(&'a self, route: Option<&'a Group>) -> Groups<'a> {
        Groups { server: &self.gate.openings, route }
    }

    /// Has the registry answer a HELLO that may create a session. It creates none if memory or a limit on opening
    /// WebSockets forbids it.
    pub(super) fn answer(
        &self,
        cores: &mut Cores,
        route: Option<&Group>,
        ask: impl FnOnce(&mut Registry<CoreRef>, &mut Cores) -> Answer<CoreRef>,
    ) -> Answer<CoreRef> {
        let groups = self.groups(route);
        // Judged and counted with the registry held: two clients never get the same place.
        let mut registry = self.registry_for_hello();
        let exceeded = groups.judge(cores.info.opener()).err();
        if exceeded.is_some() {
            registry.set_closed(true);
        }
        let mut answer = ask(&mut registry, cores);
        match (&mut answer, exceeded) {
            (Answer::Attached { created: true, .. }, _) => groups.open(cores.info.opener()),
            (
                Answer::Refused { refuse: Control::Refuse { delay, .. }, why: RefuseReason::NoRoom },
                Some(over),
            ) => {
                self.gate.note_refused(over.why, over.is_of_route, &self.stats);
                *delay = over.refuse(cores.info.opener());
            }
            _ => {}
        }
        answer
    }

    /// Returns these settings as all sessions with the same settings share them.
    pub(crate) fn share(&self, settings: Arc<ServerConfig>) -> Arc<ServerConfig> {
        if Arc::ptr_eq(&settings, &self.sessions) || settings == self.sessions {
            return Arc::clone(&self.sessions);
        }
        let mut known = self.own_settings.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|config| config.strong_count() > 0);
        let found = known.iter().filter_map(Weak::upgrade).find(|config| *config == settings);
        found.unwrap_or_else(|| {
            known.push(Arc::downgrade(&settings));
            settings
        })
    }

    /// Whether a session delivers nothing, and has no handler, before its client is confirmed.
    #[cfg(feature = "cluster")]
    pub(crate) fn confirms_first(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.has_engine())
    }

    /// Ends a session without its client, as if its resume window had passed, and has its task look.
    #[cfg(feature = "cluster")]
    pub(super) fn end_now(self: &Arc<Self>, core: &CoreRef) {
        self.registry().evict_this(now(), core, &mut Cores::without_client(self));
        core.notify();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }

    /// Lists a session until [`unlist`](Self::unlist) is called with the slot that this returns.
    pub(crate) fn list(&self, core: &CoreRef) -> u32 {
        let slot = self.cores.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::downgrade(core));
        // Four thousand million sessions do not fit any machine.
        u32::try_from(slot).unwrap_or(u32::MAX)
    }

    pub(crate) fn unlist(&self, slot: u32) {
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.try_remove(slot as usize);
        if cores.is_empty() {
            *cores = Slab::new();
        }
    }

    /// Returns the sessions behind a place of the list, with their places, at most `most`.
    pub(super) fn cores_after(&self, after: Option<u32>, most: usize) -> Vec<(u32, Weak<Core>)> {
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        let from = after.map_or(0, |after| after as usize + 1);
        let places = from..cores.capacity();
        let listed = places.filter_map(|place| Some((u32::try_from(place).ok()?, cores.get(place)?)));
        listed.map(|(place, core)| (place, Weak::clone(core))).take(most).collect()
    }

    /// Tenths of a second since the start.
    fn tenths(&self) -> u32 {
        let tenths = now().saturating_duration_since(self.started).as_millis() / 100;
        u32::try_from(tenths).unwrap_or(u32::MAX)
    }

    /// How long ago a session began.
    pub(super) fn age(&self, came: u32) -> Duration {
        Duration::from_millis(100) * self.tenths().saturating_sub(came)
    }

    pub(super) fn cores(&self) -> Vec<Weak<Core>> {
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.iter().map(|(_, core)| Weak::clone(core)).collect()
    }

    /// Gives up the session whose client has been away for the longest, of a sample. Returns `false` if there is none.
    pub(super) fn make_room(self: &Arc<Self>) -> bool {
        let evicted = self.registry().evict(now(), &mut Cores::without_client(self));
        if let Some(core) = &evicted {
            Counters::add(&self.stats.evicted_resource, 1);
            core.note(|_| Event::Evicted(Resource::System));
            core.notify();
        }
        evicted.is_some()
    }

    /// Gives a session up for its memory. Returns `false` for a plain connection.
    pub(crate) fn evict(self: &Arc<Self>, core: &CoreRef) -> bool {
        let is_session = core.lock().peer.is_session();
        if is_session {
            self.registry().evict_this(now(), core, &mut Cores::without_client(self));
            Counters::add(&self.stats.evicted_memory, 1);
            core.note(|_| Event::Evicted(Resource::Memory));
            core.notify();
        }
        is_session
    }

    /// Gives up sessions whose clients have been away for at least `away_for`, the largest first, until `bytes` are free.
    /// Returns how many bytes are.
    fn give_up_parked(self: &Arc<Self>, away_for: Duration, bytes: u64) -> u64 {
        if bytes == 0 {
            return 0;
        }
        let now = now();
        let parked = |core: Arc<Core>| {
            let inner = core.lock();
            let since = inner.peer.session()?.parked_since()?;
            let (charged, is_away) = (inner.charge.bytes(), now.saturating_duration_since(since) >= away_for);
            drop(inner);
            let source = core.info.address.map(|address| Source::of(address.ip()));
            (charged > 0 && is_away).then_some(Candidate { source, bytes: charged, since, holder: core })
        };
        let mut candidates: Vec<_> =
            self.cores().iter().filter_map(Weak::upgrade).filter_map(parked).collect();
        in_order(&mut candidates);
        let (mut freed, mut count) = (0, 0_u32);
        for Candidate { bytes: charged, holder: core, .. } in candidates {
            if freed >= bytes {
                break;
            }
            self.evict(&core);
            (freed, count) = (freed + charged, count + 1);
        }
        if count > 0 {
            tracing::warn!(count, freed, "memory budget: sessions whose clients are away are given up");
        }
        freed
    }

    /// Logs a warning for the first client that sends a larger message than it may; the others are logged at `debug` and
    /// counted with the errors.
    pub(crate) fn log_too_big(&self, peer: &PeerInfo, limit: Option<u64>) {
        let address = peer.address;
        if self.logged_too_big.swap(true, Ordering::Relaxed) {
            tracing::debug!(limit, ?address, "a message is larger than max_message");
        } else {
            tracing::warn!(
                limit,
                ?address,
                "a message is larger than max_message (--max-message of `mainstay serve`): its sender is closed with \
                 1009; later ones are logged at debug"
            );
        }
    }

    /// Replaces the names of a session that is over by a tombstone.
    pub(crate) fn bury(&self, core: &Core) {
        let mut registry = self.registry();
        core.with_session(|session| registry.bury(now(), session));
    }
}

/// The registry's view of the cores: only sessions of `mainstay.v1` have names. One value for each HELLO, because a session
/// that it creates gets the properties of its client.
pub(super) struct Cores {
    pub(super) shared: Arc<Shared>,
    pub(super) info: PeerInfo,
    /// The settings of the session that the client's route opens.
    pub(super) settings: Arc<ServerConfig>,
    /// The path of the request; `None`: no session is created.
    pub(super) path: Option<Box<str>>,
}

impl Cores {
    /// For calls that create no session.
    pub(super) fn without_client(shared: &Arc<Shared>) -> Self {
        let settings = Arc::clone(&shared.sessions);
        Self { shared: Arc::clone(shared), info: PeerInfo::new(None), settings, path: None }
    }
}

impl Sessions for Cores {
    type Handle = CoreRef;

    fn with<R>(&mut self, handle: &CoreRef, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        match handle.lock().peer.session_mut() {
            Some(session) => f(session),
            None => unreachable!("a plain connection has no name in the registry"),
        }
    }

    fn create(&mut self, session: ServerSession) -> CoreRef {
        let peer = Peer::Session(Box::new(session));
        let (shared, info) = (Arc::clone(&self.shared), self.info.clone());
        Core::new(shared, worker::mailbox(), info, peer, self.path.as_deref())
    }

    fn config(&mut self) -> Option<Arc<ServerConfig>> {
        Some(self.shared.share(Arc::clone(&self.settings)))
    }

    fn source(&mut self, handle: &CoreRef) -> Option<Source> {
        handle.info.address.map(|address| Source::of(address.ip()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mainstay_proto::session::message::{ClientKey, Control, Hello, Instance, Resume, ResumeToken};
    use mainstay_proto::session::{Answer, Frame, Message, Presenter, Window};
    use mainstay_proto::ws::{Connection, Kind, Limits, Role};

    use super::*;
    use crate::Server;
    use crate::transport::Transport;

    fn hello(attempt: u64, token: Option<ResumeToken>) -> Hello {
        Hello {
            window: Window { messages: 16, bytes: 1 << 16 },
            key: ClientKey([1; 16]),
            key_age: Duration::from_secs(1),
            instance: Instance([7; 8]),
            attempt,
            resume: token.map(|token| Resume { token, acknowledged: 0, sent: 0, first_held: 1 }),
            credentials: None,
            resume_window: None,
            max_message: None,
        }
    }

    fn wire() -> Wire {
        let (ours, _) = tokio::io::duplex(16);
        let codec = Connection::new(Role::Server, Limits::default(), None, [0; 32]);
        Wire::new(Transport::other(ours), codec, Bytes::new())
    }

    /// Decides an attach, as `open` does under the registry's lock.
    fn attach(
        shared: &Arc<Shared>,
        connection: u64,
        hello: &Hello,
    ) -> (CoreRef, Option<Fenced>, ResumeToken) {
        let info = PeerInfo { resumable: true, ..PeerInfo::new(None) };
        let settings = Arc::clone(&shared.sessions);
        let mut cores = Cores { shared: Arc::clone(shared), info, settings, path: None };
        let (now, connection, who) = (now(), ConnectionId(connection), Presenter::default());
        let answer = shared.registry().hello(now, connection, who, hello, &mut cores);
        let Answer::Attached { session, fenced, .. } = answer else { panic!("{connection:?} was refused") };
        let welcome = session.with_session(|session| session.poll_transmit(now, connection)).flatten();
        let (kind, _, bytes) = welcome.as_ref().and_then(|welcome| welcome.as_message()).unwrap();
        let Ok(Frame::Control(Control::Welcome(welcome))) =
            Frame::decode(Message::new(kind, bytes.clone()).unwrap())
        else {
            panic!("{kind:?}: no WELCOME, {}", Kind::Binary == kind)
        };
        (session, fenced, welcome.token)
    }

    #[tokio::test]
    async fn the_later_of_two_racing_attaches_gets_the_session_in_any_order_of_arrival() {
        // The order of events: `d` decides an attach, `t` brings it to the session.
        for schedule in ["d2 d3 t2 t3", "d2 d3 t3 t2", "d2 t2 d3 t3"] {
            let shared = Arc::clone(&Server::default().shared);
            let first = Hello { key_age: Duration::ZERO, ..hello(1, None) };
            let (core, _, mut token) = attach(&shared, 1, &first);
            let (mut fenced, mut losers) = ([None, None], Vec::new());
            for step in schedule.split(' ') {
                let attempt = if step.ends_with('2') { 2 } else { 3 };
                let decided = &mut fenced[attempt as usize - 2];
                if step.starts_with('d') {
                    (_, *decided, token) = attach(&shared, attempt, &hello(attempt, Some(token)));
                } else {
                    losers.extend(core.supersede(
                        decided.take(),
                        ConnectionId(attempt),
                        wire(),
                        Origin::default(),
                    ));
                }
            }
            let frames: Vec<_> =
                losers.iter().map(|(_, frame)| (frame.code, frame.reason.as_str())).collect();
            assert_eq!(frames, [(CloseCode::SUPERSEDED, "0707070707070707 0")], "{schedule}");
            let incoming = core.lock().incoming.take().unwrap();
            assert_eq!(incoming.connection, ConnectionId(3), "{schedule}");
        }
    }
}
