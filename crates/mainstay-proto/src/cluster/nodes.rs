//! This node's part in the cluster: its heartbeat in the node table, its claims and its releases.
//!
//! A driver keeps this order: any mutation, then `poll_request` until `None`, then `poll_event` until `None`, then wait
//! until `poll_timeout`. Every request gets one response; [`Response::Unknown`] is one, and a lost connection
//! ([`EngineEvent::Unreachable`]) is that response to all that are open.
//!
//! The engine is *unreachable* while there is no connection to it, and once it has not answered for [`SILENT_AFTER`].
//! Meanwhile the node uses its last table, begins no claim, and keeps its releases for later.
//!
//! Without an engine ([`NodesConfig::engine`]) the same calls serve a node that keeps its released sessions in a file:
//! releases go to this node's own [records](super::records), and claims are answered from there.
//!
//! The way of one HELLO is in [`lookup`](super::lookup).
//!
//! Source: `docs/CLUSTER.md`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::claims::{ClaimOutcome, Claims};
use super::event::{Claimed, NodesEvent, NodesStatus};
use super::node_info::NodeInfo;
use super::notes::Notes;
use super::records::{LocalRecord, Records};
use super::releases::{ReleaseOutcome, Releases};
use super::request::{EngineEvent, Note, Request, RequestId, Response};
use super::table::{Change, Found, Other, Table};
use crate::due::earliest;
use crate::forward::Forward;
use crate::session::message::SessionId;
use crate::session::{NodeId, Record};

/// The time between two heartbeats of a node; each is up to a tenth shorter or longer, so that nodes that started
/// together do not write together.
pub const NODE_HEARTBEAT: Duration = Duration::from_secs(3);
/// How long the engine may leave a request without an answer before it counts as unreachable.
pub const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How long a request is open at most; then its outcome is unknown, whatever comes later.
const OPEN_FOR: Duration = Duration::from_secs(5);
/// The pause before a heartbeat of unknown outcome is repeated.
const REPEAT: Duration = Duration::from_millis(500);
/// The pause before a note that the engine refused is repeated: it may be short of memory.
const REPEAT_REFUSED: Duration = Duration::from_secs(30);

/// What a node is in its cluster.
#[derive(Debug, Clone)]
pub struct NodesConfig {
    /// This node's id: 8 random bytes, drawn at the start of the process.
    pub node: NodeId,
    /// Whether there is an engine. Without one the node serves alone and keeps its records itself.
    pub engine: bool,
    /// How long the engine keeps a record that this node has claimed: from then on it names the node that has the session.
    /// The caller takes twice the resume window and 60 s.
    pub keep: Duration,
    /// Draws the times of heartbeats.
    pub seed: u64,
}

/// This node's part in the cluster; the module describes it.
#[derive(Debug, Clone)]
pub struct Nodes {
    config: NodesConfig,
    /// What this node writes into the table; `None`: its peer listener does not listen yet.
    info: Option<NodeInfo>,
    forward: Forward,
    engine: Engine,
    beat: Beat,
    table: Table,
    forget: VecDeque<NodeId>,
    claims: Claims,
    releases: Releases,
    records: Records,
    notes: Notes,
    open: BTreeMap<RequestId, Open>,
    last_id: u64,
    events: VecDeque<NodesEvent>,
    /// The kinds of requests that the engine refused the last time.
    refuses: BTreeSet<Kind>,
    claimed: Claimed,
}

/// What this node knows of its engine.
#[derive(Debug, Clone)]
struct Engine {
    is_connected: bool,
    /// It was reported as answering.
    is_up: bool,
    incarnation: Option<Option<String>>,
    /// Since when requests wait without any answer.
    waiting_since: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Beat {
    /// When the next heartbeat is due.
    at: Instant,
    /// One is open.
    is_open: bool,
    leave: Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    No,
    Leaving,
    Left,
}

/// A request that waits for its response.
#[derive(Debug, Clone, Copy)]
struct Open {
    kind: Kind,
    sent: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Heartbeat,
    Forget,
    Claim,
    Release,
    Note,
    Notes,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Forget => "forget",
            Self::Claim => "claim",
            Self::Release => "release",
            Self::Note => "note",
            Self::Notes => "notes",
        }
    }
}

impl Nodes {
    /// Creates the part of a node that has not announced itself.
    #[must_use]
    pub fn new(now: Instant, config: NodesConfig) -> Self {
        Self {
            info: None,
            forward: Forward::default(),
            engine: Engine { is_connected: false, is_up: false, incarnation: None, waiting_since: None },
            beat: Beat { at: now, is_open: false, leave: Leave::No },
            table: Table::new(config.node, config.keep),
            forget: VecDeque::new(),
            claims: Claims::default(),
            releases: Releases::default(),
            records: Records::default(),
            notes: Notes::default(),
            open: BTreeMap::new(),
            last_id: 0,
            events: VecDeque::new(),
            refuses: BTreeSet::new(),
            claimed: Claimed::default(),
            config,
        }
    }

    /// Returns this node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.node
    }

    /// Returns whether there is an engine, reachable or not.
    #[must_use]
    pub fn has_engine(&self) -> bool {
        self.config.engine
    }

    /// Returns whether the engine answers.
    #[must_use]
    pub fn is_engine_up(&self) -> bool {
        self.engine.is_up
    }

    /// Returns whether an unlisted node id shows that its node has ended: the engine has answered for 10 s without a
    /// break. Without an engine there are no other nodes.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.config.engine || self.table.is_complete()
    }

    /// Returns the figures for metrics.
    #[must_use]
    pub fn status(&self) -> NodesStatus {
        let (alive, dead) = self.table.count();
        NodesStatus {
            engine_up: self.engine.is_up,
            is_complete: self.is_complete(),
            alive,
            dead,
            claims: self.claims.in_progress(),
            releases: self.releases.in_progress(),
            records: self.records.len(),
            claimed: self.claimed,
        }
    }

    /// Announces this node, or changes what it announces, with the next heartbeat, which is due now. Before the first
    /// call the node writes nothing and reads no table. `count` and `left` of `info` do not count.
    pub fn announce(&mut self, now: Instant, info: NodeInfo) {
        self.forward.check(now);
        self.table.set_mark(info.mark);
        let count = self.info.as_ref().map_or(0, |info| info.count);
        self.info = Some(NodeInfo { count, left: false, notes: 0, ..info });
        self.beat.at = now;
    }

    /// Announces that this node ends in order: its peer listener is closed or about to close, and every session that it
    /// released may be claimed without asking it. Its field stays in the table, as long as the engine may keep its
    /// records. [`NodesEvent::Left`] follows once the engine has answered; there are no heartbeats after that. While the
    /// engine is unreachable nothing follows: the caller has a deadline.
    pub fn leave(&mut self, now: Instant) {
        self.forward.check(now);
        if self.beat.leave == Leave::No {
            self.beat.leave = Leave::Leaving;
            self.beat.at = now;
        }
    }

    /// Adds records that the process before this one left in a file.
    pub fn records(&mut self, now: Instant, records: Vec<LocalRecord>) {
        self.forward.check(now);
        records.into_iter().for_each(|record| self.records.insert(now, record));
    }

    /// Takes the records that this node keeps itself, for the file: what it released, and what no client came for.
    pub fn take_records(&mut self, now: Instant) -> Vec<LocalRecord> {
        self.forward.check(now);
        self.records.take(now)
    }

    /// Releases a session, or the account of one that ended: the engine keeps the record for `keep`, and any node may
    /// claim it. [`NodesEvent::Released`] follows once the outcome is known.
    pub fn release(&mut self, now: Instant, session: SessionId, claim: u64, record: Record, keep: Duration) {
        self.forward.check(now);
        if self.config.engine {
            let owner = self.config.node;
            let request = Request::Release { session, owner, claim, number: 1, record, keep };
            self.releases.begin(session, request);
            self.claims.left(session);
        } else {
            self.records.insert(now, LocalRecord { session, claim, record, keep });
            let outcome = ReleaseOutcome::Stored;
            self.events.push_back(NodesEvent::Released { session, outcome });
        }
    }

    /// Notes that this node's registry has adopted what it claimed. The engine gives a record to the node that claimed it
    /// as often as the node asks, so that no answer is lost; from now on this node asks no more. Otherwise a copy of the
    /// client with an old token would begin again from the record, after the session has gone on or has ended.
    pub fn adopted(&mut self, now: Instant, session: SessionId) {
        self.forward.check(now);
        self.claims.adopted(now + self.config.keep, session);
    }

    /// Leaves a note for all other nodes, and for those that start within `keep` from now. Returns its number, which
    /// [`NodesEvent::Noted`] names once the engine has it; the node repeats it until then. `None`: there is no engine, or
    /// 10,000 notes wait for it.
    pub fn note(&mut self, now: Instant, note: Note, keep: Duration) -> Option<u64> {
        self.forward.check(now);
        if self.config.engine { self.notes.add(now, note, keep) } else { None }
    }

    /// From now on reads the notes of all nodes that are not older than `keep`, now and once there are new ones: each
    /// reading is one [`NodesEvent::Notes`].
    pub fn watch_notes(&mut self, keep: Duration) {
        self.notes.watch(keep);
    }

    /// Returns the other nodes that have not left, as far as the table shows.
    #[must_use]
    pub fn others(&self) -> Vec<Other> {
        self.table.others()
    }

    /// Gives every release up whose outcome is not known, at the deadline of a drain. Each is reported.
    pub fn give_up_releases(&mut self, now: Instant) {
        self.forward.check(now);
        for (session, outcome) in self.releases.give_up() {
            self.events.push_back(NodesEvent::Released { session, outcome });
        }
    }

    /// Reports whether the peer listener of a node refused TCP, after [`NodesEvent::CheckListener`].
    pub fn listener_checked(&mut self, now: Instant, node: NodeId, is_closed: bool) {
        self.forward.check(now);
        if is_closed && self.table.may_forget(node) {
            self.forget.push_back(node);
        }
    }

    /// Returns the next request to the engine.
    pub fn poll_request(&mut self, now: Instant) -> Option<(RequestId, Request)> {
        self.forward.check(now);
        if !self.engine.is_connected {
            return None;
        }
        let id = RequestId(self.last_id + 1);
        let (kind, request) = self.next_request(now, id)?;
        self.last_id = id.0;
        self.open.insert(id, Open { kind, sent: now });
        self.engine.waiting_since.get_or_insert(now);
        Some((id, request))
    }

    fn next_request(&mut self, now: Instant, id: RequestId) -> Option<(Kind, Request)> {
        if let Some(request) = self.heartbeat(now) {
            return Some((Kind::Heartbeat, request));
        }
        if let Some(request) = self.claims.poll(now, id) {
            return Some((Kind::Claim, request));
        }
        if let Some(request) = self.releases.poll(now, id) {
            return Some((Kind::Release, request));
        }
        if let Some(node) = self.forget.pop_front() {
            return Some((Kind::Forget, Request::Forget { node }));
        }
        if let Some(request) = self.notes.poll_write(now, id) {
            return Some((Kind::Note, request));
        }
        Some((Kind::Notes, self.notes.poll_read(now)?))
    }

    fn heartbeat(&mut self, now: Instant) -> Option<Request> {
        if self.beat.is_open || now < self.beat.at || self.beat.leave == Leave::Left {
            return None;
        }
        let info = self.info.as_mut()?;
        info.count += 1;
        info.left = self.beat.leave == Leave::Leaving;
        info.notes = self.notes.stored();
        self.beat.is_open = true;
        let value = info.to_bytes();
        let mut rng = StdRng::seed_from_u64(self.config.seed ^ info.count);
        let tenth = NODE_HEARTBEAT / 10;
        self.beat.at = now + rng.random_range(NODE_HEARTBEAT - tenth..=NODE_HEARTBEAT + tenth);
        Some(Request::Heartbeat { node: self.config.node, value })
    }

    /// Takes the engine's response to a request. One that comes after its request was given up changes nothing.
    pub fn handle_response(&mut self, now: Instant, id: RequestId, response: Response) {
        self.forward.check(now);
        let Some(open) = self.open.remove(&id) else { return };
        match response {
            Response::Unknown => self.repeat(now, id, open.kind),
            Response::Refused(reason) => self.refused(now, id, open.kind, reason),
            response => {
                self.answered(now, open.kind);
                match open.kind {
                    Kind::Heartbeat => self.handle_table(now, open.sent, response),
                    Kind::Claim => self.handle_claim(now, id, response),
                    Kind::Release => self.handle_release(id, response),
                    Kind::Forget => {}
                    Kind::Note => self.handle_noted(now, id),
                    Kind::Notes => self.handle_notes(now, response),
                }
            }
        }
    }

    /// Takes what the driver reports of its connection to the engine.
    pub fn handle_engine(&mut self, now: Instant, event: EngineEvent) {
        self.forward.check(now);
        match event {
            EngineEvent::Reachable { incarnation } => self.connected(now, incarnation),
            EngineEvent::Unreachable { reason } => self.disconnected(now, reason),
        }
    }

    fn connected(&mut self, now: Instant, incarnation: Option<String>) {
        let before = self.engine.incarnation.replace(incarnation.clone());
        let changed = before.is_some_and(|before| before != incarnation);
        if changed {
            self.table.interrupt();
            self.notes.write_again(now);
        }
        self.notes.read_again();
        if !self.engine.is_connected || changed {
            self.beat.at = now;
        }
        self.engine.is_connected = true;
        self.engine.waiting_since = (!self.open.is_empty()).then_some(now);
        if !self.engine.is_up || changed {
            self.engine.is_up = true;
            self.events.push_back(NodesEvent::EngineUp { incarnation, changed });
        }
    }

    fn disconnected(&mut self, now: Instant, reason: String) {
        for (id, open) in std::mem::take(&mut self.open) {
            self.repeat(now, id, open.kind);
        }
        self.engine.is_connected = false;
        self.engine.waiting_since = None;
        self.down(now, reason);
    }

    /// The engine answers no more: what depends on it waits, and says so to its clients.
    fn down(&mut self, now: Instant, reason: String) {
        self.table.interrupt();
        let given_up = self.claims.give_up(now);
        self.claims_given_up(given_up);
        if self.engine.is_up {
            self.engine.is_up = false;
            self.events.push_back(NodesEvent::EngineDown { reason });
        }
    }

    /// The engine has executed a request. It is up once it executes heartbeats, which other nodes see.
    fn answered(&mut self, now: Instant, kind: Kind) {
        self.engine.waiting_since = (!self.open.is_empty()).then_some(now);
        self.refuses.remove(&kind);
        if kind == Kind::Heartbeat && !self.engine.is_up {
            self.engine.is_up = true;
            let incarnation = self.engine.incarnation.clone().flatten();
            self.events.push_back(NodesEvent::EngineUp { incarnation, changed: false });
        }
    }

    /// The outcome of a request is unknown: it is repeated as it was.
    fn repeat(&mut self, now: Instant, id: RequestId, kind: Kind) {
        match kind {
            Kind::Heartbeat => {
                self.beat.is_open = false;
                self.beat.at = now + REPEAT;
                self.table.interrupt();
            }
            Kind::Claim => self.claims.repeat(now, id),
            Kind::Release => self.releases.repeat(now, id),
            Kind::Forget => {}
            Kind::Note | Kind::Notes => self.notes.repeat(now, kind == Kind::Note, REPEAT),
        }
    }

    /// The engine refuses a request. One that refuses heartbeats shows this node to no other: it counts as unreachable.
    fn refused(&mut self, now: Instant, id: RequestId, kind: Kind, reason: String) {
        self.engine.waiting_since = (!self.open.is_empty()).then_some(now);
        match kind {
            Kind::Heartbeat => {
                self.beat.is_open = false;
                self.down(now, reason.clone());
            }
            Kind::Claim => self.claim_answered(now, id, ClaimOutcome::Unavailable),
            // One that was sent before may have been executed then.
            Kind::Release => self.release_ended(id, |was_repeated| match was_repeated {
                true => ReleaseOutcome::Unknown,
                false => ReleaseOutcome::Refused(reason.clone()),
            }),
            Kind::Forget => {}
            Kind::Note | Kind::Notes => self.notes.repeat(now, kind == Kind::Note, REPEAT_REFUSED),
        }
        if self.refuses.insert(kind) {
            self.events.push_back(NodesEvent::EngineRefuses { request: kind.as_str(), reason });
        }
    }

    fn handle_table(&mut self, now: Instant, sent: Instant, response: Response) {
        self.beat.is_open = false;
        let Response::Table(fields) = response else { return self.table.interrupt() };
        if self.info.as_ref().is_some_and(|info| info.left) {
            self.beat.leave = Leave::Left;
            self.events.push_back(NodesEvent::Left);
        }
        self.compare_own(&fields);
        let changes = self.table.update(sent, now, fields);
        self.notes.compare(self.table.notes());
        for change in changes {
            let event = match change {
                Change::Seen { node, address } => NodesEvent::NodeSeen { node, address },
                Change::Dead(node) => NodesEvent::NodeDead { node },
                Change::Left(node) => NodesEvent::NodeLeft { node },
                Change::Bad { node, error } => NodesEvent::BadField { node, error },
                Change::Foreign { node, address } => NodesEvent::SameNameElsewhere { node, address },
                Change::Check { node, address } => NodesEvent::CheckListener { node, address },
                Change::Forget(node) => {
                    self.forget.push_back(node);
                    continue;
                }
            };
            self.events.push_back(event);
        }
    }

    fn handle_noted(&mut self, now: Instant, id: RequestId) {
        if let Some(number) = self.notes.stored_by(id) {
            self.events.push_back(NodesEvent::Noted { number });
            // The others read it once they see the count.
            self.beat.at = now;
        }
    }

    fn handle_notes(&mut self, now: Instant, response: Response) {
        match response {
            Response::Notes(notes) => {
                self.notes.was_read();
                self.events.push_back(NodesEvent::Notes(notes));
            }
            _ => self.notes.repeat(now, false, REPEAT_REFUSED),
        }
    }

    /// Another process may have this node's id, as after a copy of a virtual machine.
    fn compare_own(&mut self, fields: &[(NodeId, Bytes)]) {
        let node = self.config.node;
        let Some((_, field)) = fields.iter().find(|(other, _)| *other == node) else { return };
        let Ok(field) = NodeInfo::from_bytes(field.clone()) else { return };
        if self.info.as_ref().is_some_and(|info| info.key != field.key) {
            let address = Some(field.address);
            self.events.push_back(NodesEvent::SameNameElsewhere { node, address });
        }
    }

    fn handle_claim(&mut self, now: Instant, id: RequestId, response: Response) {
        let outcome = match response {
            Response::Claimed { claim, record } => ClaimOutcome::Claimed { claim, record },
            Response::Moved(node) => ClaimOutcome::Moved(node),
            Response::None => ClaimOutcome::None,
            _ => ClaimOutcome::Unavailable,
        };
        self.claim_answered(now, id, outcome);
    }

    fn claim_answered(&mut self, now: Instant, id: RequestId, outcome: ClaimOutcome) {
        let count = match &outcome {
            ClaimOutcome::Claimed { .. } => &mut self.claimed.taken,
            ClaimOutcome::Moved(_) => &mut self.claimed.moved,
            ClaimOutcome::None => &mut self.claimed.none,
            ClaimOutcome::Unavailable => &mut self.claimed.unavailable,
        };
        if let Some(session) = self.claims.answer(now, id, outcome) {
            *count += 1;
            self.events.push_back(NodesEvent::ClaimAnswered { session });
        }
    }

    fn claims_given_up(&mut self, sessions: Vec<SessionId>) {
        self.claimed.unavailable += sessions.len() as u64;
        self.events.extend(sessions.into_iter().map(|session| NodesEvent::ClaimAnswered { session }));
    }

    fn handle_release(&mut self, id: RequestId, response: Response) {
        self.release_ended(id, |was_repeated| match response {
            Response::Fenced(_) if was_repeated => ReleaseOutcome::Stored,
            Response::Fenced(node) => ReleaseOutcome::Fenced(node),
            _ => ReleaseOutcome::Stored,
        });
    }

    fn release_ended(&mut self, id: RequestId, outcome: impl FnOnce(bool) -> ReleaseOutcome) {
        if let Some((session, was_repeated)) = self.releases.end(id) {
            let outcome = outcome(was_repeated);
            self.events.push_back(NodesEvent::Released { session, outcome });
        }
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let engine = self.engine.is_connected.then(|| self.engine_timeout()).flatten();
        earliest([engine, self.claims.timeout(), self.records.timeout()])
    }

    fn engine_timeout(&self) -> Option<Instant> {
        let waits = self.info.is_some() && !self.beat.is_open && self.beat.leave != Leave::Left;
        let beat = waits.then_some(self.beat.at);
        let silent =
            self.engine.waiting_since.filter(|_| self.engine.is_up).map(|since| since + SILENT_AFTER);
        let oldest = self.open.values().next().map(|open| open.sent + OPEN_FOR);
        earliest([beat, silent, oldest, self.releases.timeout(), self.notes.timeout()])
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.forward.check(now);
        if self.engine.waiting_since.is_some_and(|since| since + SILENT_AFTER <= now) && self.engine.is_up {
            self.down(now, "no answer for 1 s".into());
        }
        let is_late = |open: &Open| open.sent + OPEN_FOR <= now;
        while let Some(entry) = self.open.first_entry().filter(|entry| is_late(entry.get())) {
            let (id, open) = entry.remove_entry();
            self.repeat(now, id, open.kind);
        }
        let given_up = self.claims.expire(now);
        self.claims_given_up(given_up);
        self.records.sweep(now);
    }

    /// Returns what the driver must know or do next.
    pub fn poll_event(&mut self) -> Option<NodesEvent> {
        self.events.pop_front()
    }

    /// Returns where a node is, as far as the table shows.
    pub(super) fn find(&self, node: NodeId) -> Found {
        if self.config.engine { self.table.find(node) } else { Found::Gone { listed: true } }
    }

    /// Returns whether a node has ended, as far as the table shows.
    pub(super) fn is_dead(&self, node: NodeId) -> bool {
        self.table.is_dead(node)
    }

    /// Returns whether this node claims the session, or got it just now.
    pub(super) fn is_claiming(&self, session: SessionId) -> bool {
        self.claims.is_busy(session)
    }

    /// Returns whether this node has adopted the session before: what the engine has of it is old.
    pub(super) fn has_adopted(&self, session: SessionId) -> bool {
        self.claims.has_adopted(session)
    }

    /// Begins a claim; false: it cannot be made now. Its outcome follows by [`claim_outcome`](Self::claim_outcome).
    pub(super) fn claim(
        &mut self,
        now: Instant,
        session: SessionId,
        (owner, disowned): (NodeId, bool),
        name: [u8; 16],
    ) -> bool {
        self.forward.check(now);
        let (claimant, keep) = (self.config.node, self.config.keep);
        let request = Request::Claim { session, owner, disowned, claimant, name, keep };
        self.engine.is_up && self.claims.begin(now, session, request)
    }

    /// Returns the outcome of a claim, once; `None`: it is in progress.
    pub(super) fn claim_outcome(&mut self, now: Instant, session: SessionId) -> Option<ClaimOutcome> {
        self.forward.check(now);
        self.claims.take(now, session)
    }

    /// Answers a claim from this node's own records, without an engine.
    pub(super) fn claim_here(&mut self, now: Instant, session: SessionId, name: &[u8; 16]) -> ClaimOutcome {
        self.forward.check(now);
        if self.claims.is_busy(session) {
            return ClaimOutcome::Unavailable;
        }
        match self.records.claim(now, session, name) {
            None => ClaimOutcome::None,
            Some((claim, record)) => {
                self.claims.settle(now, session);
                ClaimOutcome::Claimed { claim, record }
            }
        }
    }
}
