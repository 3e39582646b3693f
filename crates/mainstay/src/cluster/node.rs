//! This server's part in a cluster: one value for each server, which joins once and leaves at the end of its drain.
//!
//! [`Nodes`] decides; this module moves its requests to the engine, its timers, and its events into the log. No code waits for
//! a response with the lock held: a HELLO or a drain that needs one waits until the machine reports it.
//!
//! Source: `docs/CLUSTER.md`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use mainstay_proto::cluster::peer::Leave;
use mainstay_proto::cluster::{
    LocalRecord, Lookup, Mark, NodeInfo, Nodes, NodesConfig, NodesEvent, NodesStatus, Note, Other, PeerKey,
    PeerOutcome, ReleaseOutcome, Step,
};
use mainstay_proto::session::message::{ResumeToken, SessionId};
use mainstay_proto::session::{NodeId, Record, Released, Route};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::ask::Answering;
use super::config::Store;
use super::engine::Host;
use super::entry::Speech;
use super::listener::{Listening, bind};
use super::redis::{self, Driver, Report};
use super::relay::{Beginning, Relays};
use super::state_dir::{LOCK_INTERVAL, StateDir};
use super::state_file::{Entry, State};
use super::{ClusterConfig, ClusterFigures, Engine, EngineError, Figures, StateDirError};
use crate::clock::now;
use crate::server::Shared;

/// How long the engine keeps the account of a session that ended in a drain.
const ACCOUNT_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long a node may take to accept TCP that is looked after.
const LOOKS_WITHIN: Duration = Duration::from_secs(1);
/// How long sessions that leave have until those that are released by then are written into a file.
const FIRST_FILE: Duration = Duration::from_secs(1);
/// How long a node that leaves waits for the engine.
const LEAVES_WITHIN: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(super) key: PeerKey,
    pub(crate) figures: Arc<Figures>,
    /// How this node speaks to others.
    pub(crate) speech: Arc<Speech>,
    /// Answers the questions of other nodes.
    pub(super) answering: Answering,
    /// Takes the notes of all nodes.
    take_notes: OnceLock<TakeNotes>,
    config: ClusterConfig,
    relays: Arc<Relays>,
    machine: Mutex<Machine>,
    /// Wakes the task that keeps the machine's time.
    timers: Arc<Notify>,
    /// Wakes the end of a drain: a client got the account of what the engine does not have.
    accounted: Notify,
    /// Wakes HELLOs that wait for a state file: one was read.
    file_read: Notify,
    /// Sessions that leave, until they are released or over.
    pub(crate) leaving: TaskTracker,
    /// Held while a state file is written.
    writing: tokio::sync::Mutex<()>,
    /// The accounts of sessions that ended here are with the engine, which reports each to one client only.
    gave_accounts: AtomicBool,
    is_leaving: AtomicBool,
    joined: OnceCell<()>,
    me: Weak<Self>,
}

type TakeNotes = Box<dyn Fn(Vec<Note>) + Send + Sync>;

struct Machine {
    nodes: Nodes,
    link: Option<Link>,
    /// Lookups that wait for the answer to a claim.
    claiming: HashMap<SessionId, Vec<oneshot::Sender<()>>>,
    /// Releases whose outcome is not known, and what waits for it.
    releasing: HashMap<SessionId, Vec<oneshot::Sender<()>>>,
    /// Notes that the engine may not have yet, and what waits for it.
    noting: HashMap<u64, oneshot::Sender<()>>,
    /// Sessions and accounts that the engine certainly does not have: this node answers for them itself. `true`: its client got
    /// the account.
    unreleased: HashMap<SessionId, bool>,
    state_dir: Option<StateDir>,
    /// The process before this one still has the state file.
    waits_for_file: bool,
    /// The peer listeners of owners to which this node relays, or relayed.
    asked: HashMap<NodeId, (SocketAddr, PeerKey)>,
    /// What this node announces; `None` before it has joined, and without an engine.
    info: Option<NodeInfo>,
    incarnation: Option<String>,
    /// The engine has answered since the start.
    was_reached: bool,
    /// Completes once the engine knows that this node has left.
    leaving: Option<oneshot::Sender<()>>,
    tasks: Vec<AbortHandle>,
}

/// The way to the engine.
enum Link {
    Redis(Driver),
    #[cfg(test)]
    Memory(super::tests::Link),
}

/// A HELLO on its way to its session.
pub(crate) struct Seeking {
    lookup: Lookup,
    session: SessionId,
}

/// What a search can do now.
enum Tried {
    Step(Step),
    /// A claim is in progress: its answer, and until when it may come.
    Claim(oneshot::Receiver<()>, Option<Instant>),
    /// The process before this one may still write the session into a file.
    File,
}

/// What a node is and does, for a banner, for metrics, and for health checks. See [`Server::cluster`](crate::Server::cluster).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// The id of this node: 16 digits. A restarted server is another node.
    pub node: String,
    /// Where other nodes reach this one; `None` before it has joined, and without an engine.
    pub address: Option<SocketAddr>,
    /// Nodes encrypt what they send to each other.
    pub tls: bool,
    /// The engine's URL without its password; `None`: sessions go through a folder.
    pub engine: Option<String>,
    /// The lifetime of the engine's primary; `None`: it was never reached, or does not allow INFO.
    pub incarnation: Option<String>,
    /// The engine has answered since the start: the check before the first connection counts.
    pub was_reached: bool,
    /// The engine answers.
    pub engine_up: bool,
    /// Every living node is in the table.
    pub is_complete: bool,
    /// Other nodes that live.
    pub alive: usize,
    /// Other nodes that died without leaving.
    pub dead: usize,
    /// Claims and releases without an answer.
    pub in_progress: usize,
    /// Sessions that this node holds for clients that may come, without an engine.
    pub records: usize,
    /// Claims by outcome: this node got the session, another has it, none has it, the engine did not answer.
    pub claims: [u64; 4],
    /// Counts since the start.
    pub figures: ClusterFigures,
}

/// Why a server cannot join: one line that names what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The engine cannot serve, and waiting changes nothing.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The peer listener cannot listen there.
    #[error(
        "the peer listener cannot listen on {address}: {error}; choose another address (--cluster-listen)"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What failed.
        #[source]
        error: std::io::Error,
    },
    /// The folder cannot keep the sessions.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
}

impl Node {
    pub(crate) fn new(config: ClusterConfig, resume_window: Duration) -> Arc<Self> {
        let [id, key, seed] = drawn();
        let id = NodeId(id.0);
        let nodes = NodesConfig {
            node: id,
            engine: config.has_engine(),
            keep: 2 * resume_window + Duration::from_secs(60),
            seed: u64::from_be_bytes(seed.0),
        };
        let machine = Machine {
            nodes: Nodes::new(now(), nodes),
            link: None,
            claiming: HashMap::new(),
            releasing: HashMap::new(),
            noting: HashMap::new(),
            unreleased: HashMap::new(),
            state_dir: None,
            waits_for_file: false,
            asked: HashMap::new(),
            info: None,
            incarnation: None,
            was_reached: false,
            leaving: None,
            tasks: Vec::new(),
        };
        Arc::new_cyclic(|me| Self {
            id,
            key: PeerKey(key.1),
            figures: Arc::default(),
            speech: Arc::new(Speech::new(config.tls.clone())),
            answering: Answering::default(),
            take_notes: OnceLock::new(),
            config,
            relays: Arc::default(),
            machine: Mutex::new(machine),
            timers: Arc::default(),
            accounted: Notify::new(),
            file_read: Notify::new(),
            leaving: TaskTracker::new(),
            writing: tokio::sync::Mutex::default(),
            gave_accounts: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            joined: OnceCell::new(),
            me: Weak::clone(me),
        })
    }

    pub(crate) fn has_engine(&self) -> bool {
        self.config.has_engine()
    }

    pub(crate) fn status(&self) -> ClusterStatus {
        let machine = self.lock();
        let NodesStatus { engine_up, is_complete, alive, dead, claims, releases, records, claimed, .. } =
            machine.nodes.status();
        ClusterStatus {
            node: self.id.to_string(),
            address: machine.info.as_ref().map(|info| info.address),
            tls: self.config.tls.is_some(),
            engine: match &self.config.store {
                Store::Engine(engine) => Some(engine.to_string()),
                Store::StateDir(_) => None,
                #[cfg(test)]
                Store::Memory(_) => Some("memory".to_owned()),
            },
            incarnation: machine.incarnation.clone(),
            was_reached: machine.was_reached,
            engine_up,
            is_complete,
            alive,
            dead,
            in_progress: claims + releases,
            records,
            claims: [claimed.taken, claimed.moved, claimed.none, claimed.unavailable],
            figures: self.figures.snapshot(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the machine, moves its requests to the engine, and reports its events.
    fn change<R>(&self, change: impl FnOnce(Instant, &mut Machine) -> R) -> R {
        let changed = self.change_in_time(change);
        self.timers.notify_one();
        changed
    }

    fn change_in_time<R>(&self, change: impl FnOnce(Instant, &mut Machine) -> R) -> R {
        let mut machine = self.lock();
        let now = now();
        let changed = change(now, &mut machine);
        while let Some((id, request)) = machine.nodes.poll_request(now) {
            match &machine.link {
                Some(Link::Redis(driver)) => driver.send(id, request),
                #[cfg(test)]
                Some(Link::Memory(link)) => link.send(id, request),
                None => {}
            }
        }
        let events: Vec<_> = std::iter::from_fn(|| machine.nodes.poll_event()).collect();
        events.iter().for_each(|event| machine.note(event));
        drop(machine);
        events.into_iter().for_each(|event| self.report(event));
        changed
    }

    /// Takes what the engine's task reports.
    fn handle(&self, report: Report) {
        self.change(|now, machine| match report {
            Report::Response(id, response) => machine.nodes.handle_response(now, id, response),
            Report::Event(event) => machine.nodes.handle_engine(now, event),
        });
    }
}

impl Machine {
    /// Wakes what waits for this event.
    fn note(&mut self, event: &NodesEvent) {
        let waiting = match event {
            NodesEvent::Left => self.leaving.take().map(|leaving| vec![leaving]),
            NodesEvent::ClaimAnswered { session } => self.claiming.remove(session),
            NodesEvent::Released { session, outcome } => {
                if outcome.is_certain_failure() {
                    self.unreleased.insert(*session, false);
                }
                self.releasing.remove(session)
            }
            NodesEvent::Noted { number } => self.noting.remove(number).map(|noting| vec![noting]),
            NodesEvent::EngineUp { incarnation, .. } => {
                self.incarnation.clone_from(incarnation);
                self.was_reached = true;
                None
            }
            _ => None,
        };
        // A receiver that is gone waits no more.
        waiting.into_iter().flatten().for_each(|waiting| {
            let _ = waiting.send(());
        });
    }
}

/// Joining.
impl Node {
    /// Joins the cluster, once: the first call decides, and later ones wait for it.
    pub(crate) async fn join(&self, server: &Arc<Shared>) -> Result<(), JoinError> {
        self.joined.get_or_try_init(|| self.join_now(Arc::downgrade(server))).await.map(|_| ())
    }

    async fn join_now(&self, server: Weak<Shared>) -> Result<(), JoinError> {
        match &self.config.store {
            Store::Engine(engine) => {
                let facts = match engine.check(&self.config.name).await {
                    Ok(facts) => Some(facts),
                    Err(error) if error.is_permanent() => return Err(error.into()),
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            "the engine does not answer: this node serves alone, and joins when it does"
                        );
                        None
                    }
                };
                if let Some(facts) = &facts {
                    let mut machine = self.lock();
                    machine.incarnation.clone_from(&facts.incarnation);
                    machine.was_reached = true;
                }
                for warning in facts.iter().flat_map(|facts| &facts.warnings) {
                    tracing::warn!(%engine, "{warning}");
                }
                let local = local_address(engine).await;
                let address = self.listen(local, server)?;
                let incarnation = facts.as_ref().and_then(|facts| facts.incarnation.as_deref());
                let reached = facts.as_ref().and_then(|facts| facts.server.as_deref());
                tracing::info!(
                    node = %self.id, peer_listener = %address, %engine, server = reached, incarnation,
                    cluster = self.config.name, tls = self.config.tls.is_some(), "joins the cluster"
                );
                // Locked first: the task may report, and be sent a request, before this line is done.
                let mut machine = self.lock();
                let link = redis::start(engine.clone(), &self.config.name, self.reporter());
                machine.link = Some(Link::Redis(link));
            }
            Store::StateDir(folder) => {
                let folder = folder.clone();
                let opened = tokio::task::spawn_blocking(move || StateDir::open(&folder)).await;
                let opened = opened.map_err(|error| self.unusable(std::io::Error::other(error)))??;
                self.lock().state_dir = Some(opened);
                if !self.try_take_files().map_err(|error| self.unusable(error))? {
                    tracing::info!(
                        "the process before this one drains: its sessions follow when it has released them"
                    );
                    self.lock().waits_for_file = true;
                    self.spawn(Self::wait_for_files(Weak::clone(&self.me)));
                }
            }
            #[cfg(test)]
            Store::Memory(memory) => {
                self.listen(IpAddr::V4(Ipv4Addr::LOCALHOST), server)?;
                let link = memory.start(Box::new(self.reporter()));
                self.lock().link = Some(Link::Memory(link));
            }
        }
        self.spawn(keep_time(Weak::clone(&self.me), Arc::clone(&self.timers)));
        Ok(())
    }

    /// Returns what takes the reports of the engine's task, as long as there is this node.
    fn reporter(&self) -> impl Fn(Report) + Send + Sync + 'static {
        let me = Weak::clone(&self.me);
        move |report| {
            if let Some(node) = me.upgrade() {
                node.handle(report);
            }
        }
    }

    fn unusable(&self, error: std::io::Error) -> JoinError {
        let folder = match &self.config.store {
            Store::StateDir(folder) => folder.clone(),
            _ => Default::default(),
        };
        JoinError::StateDir(StateDirError::Unusable { folder, error })
    }

    /// Opens the peer listener and announces it. Returns the address that it announces.
    fn listen(&self, local: IpAddr, server: Weak<Shared>) -> Result<SocketAddr, JoinError> {
        let wanted = self.config.listen.unwrap_or(SocketAddr::new(local, 0));
        let bound = bind(wanted).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (bound, listener): (SocketAddr, TcpListener) =
            bound.map_err(|error| JoinError::Listen { address: wanted, error })?;
        let reachable =
            if bound.ip().is_unspecified() { SocketAddr::new(local, bound.port()) } else { bound };
        let address = self.config.advertise.unwrap_or(reachable);
        let info = NodeInfo {
            address,
            key: self.key,
            mark: Mark::of(&[self.config.mark.as_bytes()]),
            url: self.config.url.clone(),
            count: 0,
            left: false,
            notes: 0,
        };
        self.change(|now, machine| {
            machine.info = Some(info.clone());
            machine.nodes.announce(now, info);
        });
        let listening = Listening::new(self, server, self.config.tls.clone());
        self.spawn(listening.accept(listener));
        Ok(address)
    }

    /// Has the node write its heartbeat now.
    #[cfg(test)]
    pub(super) fn beat(&self) {
        self.change(|now, machine| {
            let info = machine.info.clone();
            info.into_iter().for_each(|info| machine.nodes.announce(now, info));
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task).abort_handle();
        self.lock().tasks.push(task);
    }

    /// Reads what the process before this one has written by now. Returns `false` while that process may still write.
    fn try_take_files(&self) -> std::io::Result<bool> {
        let mut machine = self.lock();
        let Some(folder) = machine.state_dir.as_mut() else { return Ok(true) };
        let is_held = folder.try_hold()?;
        let entries = folder.take(SystemTime::now());
        if !is_held && entries.is_empty() {
            return Ok(false);
        }
        machine.waits_for_file = !is_held;
        let records = entries.into_iter().map(|entry| {
            let Entry { session, claim, record, keep } = entry;
            LocalRecord { session, claim, record, keep }
        });
        machine.nodes.records(now(), records.collect());
        drop(machine);
        self.file_read.notify_waiters();
        self.timers.notify_one();
        Ok(is_held)
    }

    async fn wait_for_files(node: Weak<Self>) {
        loop {
            tokio::time::sleep(LOCK_INTERVAL).await;
            let Some(node) = node.upgrade() else { return };
            match node.try_take_files() {
                Ok(false) => {}
                Ok(true) => return,
                Err(error) => {
                    tracing::error!(%error, "the state file cannot be read: its sessions begin anew");
                    node.lock().waits_for_file = false;
                    node.file_read.notify_waiters();
                    return;
                }
            }
        }
    }
}

/// What concerns all nodes.
impl Node {
    /// Returns the other nodes, and whether these are all.
    pub(super) fn others(&self) -> (Vec<Other>, bool) {
        let machine = self.lock();
        (machine.nodes.others(), machine.nodes.is_complete())
    }

    /// Gives the engine a note; returns its number, unless nothing keeps it. `noted`: completes once the engine has it.
    pub(super) fn begin_note(&self, note: Note, noted: oneshot::Sender<()>) -> Option<u64> {
        self.change(|now, machine| {
            let number = machine.nodes.note(now, note, self.config.notes_kept)?;
            machine.noting.insert(number, noted);
            Some(number)
        })
    }

    /// No caller waits for this note any more.
    pub(super) fn forget_noting(&self, number: u64) {
        self.lock().noting.remove(&number);
    }

    pub(super) fn watch_notes(&self, take: TakeNotes) {
        if self.take_notes.set(take).is_ok() {
            self.change(|_, machine| machine.nodes.watch_notes(self.config.notes_kept));
        }
    }
}

/// One HELLO.
impl Node {
    /// Begins the lookup of a HELLO that presents this token under this name.
    pub(crate) fn begin(&self, token: &ResumeToken, name: [u8; 16], is_here: bool) -> Seeking {
        let session = Route::of(token).map_or(SessionId([0; 8]), |route| route.session);
        let lookup = self.lock().nodes.begin(now(), token, name, is_here, false);
        Seeking { lookup, session }
    }

    /// Returns the next step, once a claim in progress is answered, and a state file is read that may have the session.
    ///
    /// # Cancel safety
    /// Safe: the engine gives the answer to a claim again.
    pub(crate) async fn step(&self, seeking: &mut Seeking) -> Step {
        loop {
            let mut file_read = std::pin::pin!(self.file_read.notified());
            // Before the look at the records, so that no file is read in between.
            file_read.as_mut().enable();
            match self.try_step(seeking) {
                Tried::Step(step) => return step,
                Tried::File => file_read.await,
                Tried::Claim(answered, until) => {
                    let until = tokio::time::Instant::from_std(until.unwrap_or_else(now));
                    let _ = tokio::time::timeout_at(until, answered).await;
                }
            }
        }
    }

    fn try_step(&self, seeking: &mut Seeking) -> Tried {
        let (sender, answered) = oneshot::channel();
        let tried = self.change(|now, machine| {
            let before = machine.waits_for_file.then(|| seeking.lookup.clone());
            match (seeking.lookup.poll(now, &mut machine.nodes), before) {
                (Step::Claiming, _) => {
                    machine.claiming.entry(seeking.session).or_default().push(sender);
                    None
                }
                // The session may be in a file of the process before.
                (Step::Unknown, Some(before)) => {
                    seeking.lookup = before;
                    Some(Tried::File)
                }
                (step, _) => Some(Tried::Step(step)),
            }
        });
        tried.unwrap_or_else(|| Tried::Claim(answered, seeking.lookup.deadline()))
    }

    /// Returns what to do for a HELLO that came through the peer listener, with a token that this node's registry does not know.
    pub(crate) fn step_of_peer(&self, token: &ResumeToken, name: [u8; 16]) -> Step {
        self.change(|now, machine| {
            let mut lookup = machine.nodes.begin(now, token, name, false, true);
            lookup.poll(now, &mut machine.nodes)
        })
    }

    /// The node that was asked did not attach the client.
    pub(crate) fn handle_peer(&self, seeking: &mut Seeking, outcome: PeerOutcome) {
        seeking.lookup.handle_peer(now(), outcome);
    }

    /// Forwards a client to the owner of its session from now on. `owner`: its peer listener.
    pub(crate) fn relay(&self, beginning: Beginning, owner: (SocketAddr, PeerKey), token: TaskTrackerToken) {
        self.lock().asked.insert(beginning.node, owner);
        self.relays.begin(beginning, &self.figures, token);
    }
}

/// Leaving.
impl Node {
    /// Gives a session up: the engine keeps it until another node claims it.
    pub(crate) fn release(&self, released: Released) {
        let Released { session, claim, record, keep } = released;
        self.release_record(session, claim, record, keep);
    }

    /// Notes that this server's registry has adopted what the node claimed.
    pub(crate) fn adopted(&self, session: SessionId) {
        self.change(|now, machine| machine.nodes.adopted(now, session));
    }

    /// Notes which sessions are about to be released, while the registry is still locked: a HELLO that finds one of them
    /// released waits for the engine. Otherwise its node would claim what the engine does not have yet.
    pub(crate) fn expect_releases(&self, sessions: impl IntoIterator<Item = SessionId>) {
        let mut machine = self.lock();
        for session in sessions {
            machine.releasing.entry(session).or_default();
            machine.unreleased.remove(&session);
        }
    }

    /// Returns the sessions and accounts that the engine certainly does not have.
    pub(crate) fn unreleased(&self) -> Vec<SessionId> {
        self.lock().unreleased.keys().copied().collect()
    }

    /// The same for the accounts that the registry gave up.
    pub(crate) fn expect_accounts(&self, accounts: &[(SessionId, u64, Record)]) {
        self.expect_releases(accounts.iter().map(|(session, ..)| *session));
        self.gave_accounts.store(true, Ordering::Release);
    }

    /// Leaves the accounts of sessions that ended in a drain to the other nodes.
    pub(crate) fn release_accounts(&self, accounts: Vec<(SessionId, u64, Record)>) {
        Figures::add(&self.figures.accounts, accounts.len() as u64);
        for (session, claim, record) in accounts {
            self.release_record(session, claim, record, ACCOUNT_KEPT);
        }
    }

    /// Whether a client that asks for an ended session has to ask the engine for its account.
    pub(crate) fn gave_accounts(&self) -> bool {
        self.gave_accounts.load(Ordering::Acquire)
    }

    fn release_record(&self, session: SessionId, claim: u64, record: Record, keep: Duration) {
        self.change(|now, machine| {
            machine.releasing.entry(session).or_default();
            machine.nodes.release(now, session, claim, record, keep);
        });
    }

    /// Waits until the outcome of a release is known, if one is in progress. Returns `false` if the engine certainly does not
    /// have the record.
    pub(crate) async fn released(&self, session: SessionId) -> bool {
        let waiting = {
            let mut machine = self.lock();
            machine.releasing.get_mut(&session).map(|waiting| {
                let (sender, released) = oneshot::channel();
                waiting.push(sender);
                released
            })
        };
        if let Some(released) = waiting {
            let _ = released.await;
        }
        !self.lock().unreleased.contains_key(&session)
    }

    /// Notes that a client got the account of what the engine does not have.
    pub(crate) fn note_accounted(&self, session: SessionId) {
        if let Some(is_accounted) = self.lock().unreleased.get_mut(&session) {
            *is_accounted = true;
            self.accounted.notify_one();
        }
    }

    /// Waits, until this deadline, until each client whose session the engine does not have got its account, if another node
    /// lives that its client can reach.
    pub(crate) async fn all_accounted(&self, until: tokio::time::Instant) {
        let is_waiting = || {
            let machine = self.lock();
            machine.nodes.status().alive > 0 && machine.unreleased.values().any(|is_accounted| !is_accounted)
        };
        while is_waiting() {
            if tokio::time::timeout_at(until, self.accounted.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Waits until the outcome of every release is known, until this deadline; the others are given up then.
    pub(crate) async fn all_released(&self, until: tokio::time::Instant) {
        loop {
            let next = self.lock().releasing.keys().next().copied();
            let Some(session) = next else { return };
            if tokio::time::timeout_at(until, self.released(session)).await.is_err() {
                self.change(|now, machine| machine.nodes.give_up_releases(now));
                return;
            }
        }
    }

    /// Whether this is the first call.
    pub(crate) fn begin_to_leave(&self) -> bool {
        !self.is_leaving.swap(true, Ordering::AcqRel)
    }

    /// One line about what became of this node's sessions.
    pub(crate) fn log_departure(&self) {
        let ClusterFigures { released, accounts, not_returned, unreleased, .. } = self.figures.snapshot();
        if unreleased > 0 || not_returned > 0 {
            tracing::warn!(
                released,
                accounts,
                not_returned,
                unreleased,
                "this node has left: sessions released, accounts of ended ones, handlers that did not return in 5 s, and \
                 what the engine did not accept, whose clients get a gap"
            );
        } else {
            tracing::info!(
                released,
                accounts,
                "this node has left: sessions released, and accounts of ended ones"
            );
        }
    }

    /// Gives up the relays of this node over this time: their owners ask the clients to replace their connections over
    /// the first half, and what is left of them in the last quarter is cut, one by one.
    pub(crate) async fn end_relays(&self, spread: Duration) {
        let (half, quarter) = (spread / 2, spread / 4);
        let owners: Vec<_> = {
            let asked = &self.lock().asked;
            let known = |owner| asked.get(&owner).map(|(address, key)| (owner, *address, *key));
            self.relays.owners().into_iter().filter_map(known).collect()
        };
        if !owners.is_empty() {
            for (to, address, key) in owners {
                let (speech, leave) =
                    (Arc::clone(&self.speech), Leave { from: self.id, to, key, within: half });
                self.spawn(async move { speech.announce_leave(address, leave).await });
            }
            tokio::time::sleep(half + quarter).await;
        }
        self.relays.cut_over(quarter).await;
    }

    /// Announces the drain to a process that waits for the state file.
    pub(crate) fn announce_drain(&self) {
        if let Some(folder) = &self.lock().state_dir {
            folder.announce_drain();
        }
    }

    /// Ends this node's part: the table says that it has left, or the state file is written. The peer listener closes.
    pub(crate) async fn leave(&self) {
        if !self.joined.initialized() {
            return;
        }
        if self.has_engine() {
            let (sender, left) = oneshot::channel();
            self.change(|now, machine| {
                machine.leaving = Some(sender);
                machine.nodes.leave(now);
            });
            if tokio::time::timeout(LEAVES_WITHIN, left).await.is_err() {
                tracing::warn!(
                    "the engine did not answer: other nodes find this one gone by its closed listener"
                );
            }
        } else {
            self.write_rest().await;
        }
        let tasks = std::mem::take(&mut self.lock().tasks);
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Without an engine: writes what is released, once no session leaves any more or [`FIRST_FILE`] has passed, so that the
    /// next process need not wait for the other clients of this one. What is left follows at the end.
    pub(crate) async fn write_released(&self) {
        if self.has_engine() || !self.joined.initialized() {
            return;
        }
        self.leaving.close();
        let _ = tokio::time::timeout(FIRST_FILE, self.leaving.wait()).await;
        let _one = self.writing.lock().await;
        // Gone: the drain is over by now, and everything is in the first file.
        let Some(folder) = self.lock().state_dir.take() else { return };
        let (folder, unwritten) = self.write_file(folder).await;
        let mut machine = self.lock();
        machine.state_dir = folder;
        if let Some((error, records)) = unwritten {
            tracing::debug!(%error, "the state file cannot be written now; the end of the drain tries again");
            machine.nodes.records(now(), records);
        }
    }

    /// Writes what is left, and gives the folder up.
    async fn write_rest(&self) {
        let _one = self.writing.lock().await;
        let Some(folder) = self.lock().state_dir.take() else { return };
        // The lock ends with the folder: the next process reads this file then.
        if let (_, Some((error, records))) = self.write_file(folder).await {
            Figures::add(&self.figures.unreleased, records.len() as u64);
            let records = records.len();
            tracing::error!(%error, records, "the state file cannot be written: its sessions are lost");
        }
    }

    /// Writes what this node released, and what no client came for. Returns the folder, and what could not be written.
    async fn write_file(&self, mut folder: StateDir) -> (Option<StateDir>, Option<Unwritten>) {
        let records = self.lock().nodes.take_records(now());
        let count = records.len();
        if count == 0 {
            return (Some(folder), None);
        }
        let entry = |LocalRecord { session, claim, record, keep }| Entry { session, claim, record, keep };
        let entries = records.iter().cloned().map(entry).collect();
        let state = State { node: self.id, written: SystemTime::now(), entries };
        let written = tokio::task::spawn_blocking(move || {
            let written = match folder.try_hold() {
                Ok(true) => folder.put(&state),
                Ok(false) => Err(std::io::Error::other("another process has the folder")),
                Err(error) => Err(error),
            };
            (folder, written)
        });
        match written.await {
            Ok((folder, Ok(()))) => {
                tracing::info!(records = count, "state file written");
                (Some(folder), None)
            }
            Ok((folder, Err(error))) => (Some(folder), Some((error, records))),
            Err(error) => (None, Some((std::io::Error::other(error), records))),
        }
    }
}

/// Why a state file could not be written, and what should have been in it.
type Unwritten = (std::io::Error, Vec<LocalRecord>);

impl Drop for Node {
    fn drop(&mut self) {
        self.lock().tasks.iter().for_each(AbortHandle::abort);
    }
}

/// The log.
impl Node {
    /// One line and a figure for each event.
    fn report(&self, event: NodesEvent) {
        match event {
            NodesEvent::EngineUp { incarnation, changed: false } => {
                tracing::info!(incarnation, "the engine answers");
            }
            NodesEvent::EngineUp { incarnation, changed: true } => tracing::warn!(
                incarnation,
                "the engine is another one than before, or has restarted: sessions that were released there and not \
                 claimed may be lost"
            ),
            NodesEvent::EngineDown { reason } => tracing::warn!(
                reason,
                "the engine does not answer: this node's sessions continue; clients of nodes that it does not know wait"
            ),
            NodesEvent::NodeSeen { node, address } => {
                let address = address.map(tracing::field::display);
                tracing::info!(%node, address, "node seen");
            }
            NodesEvent::NodeDead { node } => tracing::warn!(%node, "node dead: it wrote nothing for 10 s"),
            NodesEvent::NodeLeft { node } => tracing::info!(%node, "node left"),
            NodesEvent::BadField { node, error } => {
                tracing::warn!(%node, %error, "the field of a node cannot be read: clients of its sessions wait until it is dead");
            }
            NodesEvent::SameNameElsewhere { node, address } => {
                let address = address.map(tracing::field::display);
                tracing::error!(
                    %node, address, name = self.config.name,
                    "another cluster uses the same engine under the same name: give each a name of its own \
                     (--cluster-name)"
                );
            }
            NodesEvent::Released { session, outcome } => self.report_released(session, &outcome),
            NodesEvent::EngineRefuses { request, reason } => {
                tracing::error!(request, reason, "the engine refuses requests of this kind");
            }
            NodesEvent::CheckListener { node, address } => self.check_listener(node, address),
            NodesEvent::Notes(notes) => {
                if let Some(take) = self.take_notes.get() {
                    take(notes);
                }
            }
            _ => {}
        }
    }

    fn report_released(&self, session: SessionId, outcome: &ReleaseOutcome) {
        match outcome {
            ReleaseOutcome::Stored => tracing::debug!(%session, "released"),
            outcome => {
                Figures::add(&self.figures.unreleased, 1);
                tracing::debug!(%session, outcome = outcome.as_str(), "not released: its client gets a gap");
            }
        }
    }

    /// Looks whether the peer listener of a dead node is closed.
    fn check_listener(&self, node: NodeId, address: SocketAddr) {
        let me = Weak::clone(&self.me);
        self.spawn(async move {
            let connected = tokio::time::timeout(LOOKS_WITHIN, tokio::net::TcpStream::connect(address)).await;
            let is_closed = matches!(
                connected,
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused
            );
            if let Some(this) = me.upgrade() {
                this.change(|now, machine| machine.nodes.listener_checked(now, node, is_closed));
            }
        });
    }
}

/// Keeps the machine's time.
async fn keep_time(node: Weak<Node>, changed: Arc<Notify>) {
    const FAR: Duration = Duration::from_secs(3600);
    loop {
        let until = {
            let Some(node) = node.upgrade() else { return };
            let until = node.lock().nodes.poll_timeout();
            until.map_or_else(|| tokio::time::Instant::now() + FAR, tokio::time::Instant::from_std)
        };
        tokio::select! {
            biased;
            () = changed.notified() => continue,
            () = tokio::time::sleep_until(until) => {}
        }
        let Some(node) = node.upgrade() else { return };
        node.change_in_time(|now, machine| machine.nodes.handle_timeout(now));
    }
}

/// The local address by which this node reaches the engine.
async fn local_address(engine: &Engine) -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some(Host { name: host, port }) = engine.hosts().first() else { return loopback };
    let route = async {
        let to = tokio::net::lookup_host((host.as_str(), *port))
            .await?
            .next()
            .ok_or(std::io::ErrorKind::NotFound)?;
        let from: SocketAddr = if to.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(from).await?;
        // No packet is sent: the system only chooses the route.
        socket.connect(to).await?;
        socket.local_addr()
    };
    match route.await {
        Ok(address) => address.ip(),
        Err(error) => {
            tracing::warn!(
                %error, host,
                "no route to the engine is known: the peer listener is on a loopback address, which other machines \
                 do not reach; set its address (--cluster-listen)"
            );
            loopback
        }
    }
}

/// Random bytes for the node's id, its key and its seed.
fn drawn() -> [([u8; 8], [u8; 16]); 3] {
    std::array::from_fn(|_| {
        let random = crate::random_seed();
        let (mut short, mut long) = ([0; 8], [0; 16]);
        short.iter_mut().zip(&random).for_each(|(to, from)| *to = *from);
        long.iter_mut().zip(&random[8..]).for_each(|(to, from)| *to = *from);
        (short, long)
    })
}
