//! The world of one seed: machines, a network between them, and time.
//!
//! A run is load under faults, then healing, then every client leaves, then the day of the tombstones passes. Within
//! a moment the order is that of a driver: faults occur, readable bytes are read, timers are checked, and then every
//! machine that is awake writes. The two processes are in `client` and `server`, the network between them in
//! `network`, the faults in `faults`. A cluster has several servers: `sessions` has the sessions of all of them,
//! `cluster` finds the way of a HELLO and relays, `drain` empties a node, `engine` is what the nodes share.

mod client;
mod cluster;
mod drain;
mod engine;
mod faults;
mod member;
mod network;
mod server;
mod sessions;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_proto::session::{ConnectionId, Fate, NodeId, ServerConfig};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::judge::{self, Observed};
use crate::plan::{Fault, Plan};
use client::ClientNode;
use cluster::Cluster;
use network::{Key, Packet, ServerEnd, Wire};
use server::Server;
use sessions::Arena;

/// The outcome of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What broke, and when.
    pub failure: Option<String>,
    /// Hash of all events: the same seed gives the same.
    pub trace: u64,
    /// How often what happened.
    pub counts: Counts,
    /// The last events, for a failing seed.
    pub log: Vec<String>,
}

/// How often what happened: whether the faults reach their targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Messages accepted from both sides.
    pub messages: u64,
    /// Messages outside the stream that arrived.
    pub volatile: u64,
    /// Attaches that resumed a session.
    pub resumed: u64,
    /// Sessions that were lost and reported.
    pub gaps: u64,
    /// Gaps in the stream, for messages that the server dropped.
    pub dropped: u64,
    /// Sessions that ended, on purpose or with their client.
    pub ended: u64,
    /// Verdicts of servers, by evidence: silent, frozen, stalled.
    pub dead: [u64; 3],
    /// Verdicts of clients.
    pub given_up: u64,
    /// Sends that were returned because a buffer was full.
    pub full: u64,
    /// Writes that a socket accepted in part.
    pub partial: u64,
    /// HELLOs that were refused.
    pub refused: u64,
    /// Credentials that were judged on a live session.
    pub judged: u64,
    /// Sessions that a node took over.
    pub moved: u64,
    /// Connections that a node relayed.
    pub relayed: u64,
    /// Relayed clients that were asked to replace their connections, because the node that relays them drains.
    pub asked: u64,
    /// Faults that occurred, in the order of [`Fault::ALL`].
    pub faults: Struck,
}

/// How often each fault occurred, in the order of [`Fault::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Struck(pub [u64; Fault::ALL.len()]);

impl Default for Struck {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl Counts {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.volatile += other.volatile;
        self.resumed += other.resumed;
        self.gaps += other.gaps;
        self.dropped += other.dropped;
        self.ended += other.ended;
        self.given_up += other.given_up;
        self.full += other.full;
        self.partial += other.partial;
        self.refused += other.refused;
        self.judged += other.judged;
        self.moved += other.moved;
        self.relayed += other.relayed;
        self.asked += other.asked;
        self.dead.iter_mut().zip(other.dead).for_each(|(sum, count)| *sum += count);
        self.faults.0.iter_mut().zip(other.faults.0).for_each(|(sum, count)| *sum += count);
    }
}

/// Plays one seed.
#[must_use]
pub fn run(plan: &Plan, keep_log: bool) -> Outcome {
    let mut world = World::new(plan.clone(), keep_log);
    let failure = world.play().err().map(|what| format!("at {:?}: {what}", world.now - world.start));
    Outcome { failure, trace: world.hasher.finish(), counts: world.counts, log: world.log.into() }
}

/// How long healing may take: the longest wait between attempts, the longest detection and the connect timeout,
/// twice, and then time for the backlog.
const HEALING: Duration = Duration::from_secs(400);
/// How long resume windows and orderly ends may take.
const LEAVING: Duration = Duration::from_secs(300);
/// How long a state must last that a run waits for: a dead connection is detected meanwhile.
const PAUSE: Duration = Duration::from_secs(60);
/// How long tombstones are kept.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// From the attempt to WELCOME, the client's limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From accept to HELLO and its verdict, the limit of the server's driver.
const OPENING_DEADLINE: Duration = Duration::from_secs(5);

/// When a driver checks again a timer that is due and did nothing.
const TICK: Duration = Duration::from_millis(100);

struct World {
    plan: Plan,
    rng: SmallRng,
    start: Instant,
    now: Instant,
    config: Arc<ServerConfig>,
    /// Every node that ever ran; without a cluster, one.
    servers: Vec<Server>,
    sessions: Arena,
    /// Messages outside the stream, of all sessions.
    volatile_sent: u64,
    clients: Vec<ClientNode>,
    wires: BTreeMap<Key, Wire>,
    next_wire: u64,
    /// What several nodes share; nothing of it happens without a cluster.
    cluster: Cluster,
    refuse_until: Instant,
    no_judge_until: Instant,
    faults: Vec<(Instant, Fault, Duration)>,
    healing: bool,
    counts: Counts,
    hasher: DefaultHasher,
    log: VecDeque<String>,
    keep_log: bool,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy)]
struct Process {
    paused_until: Instant,
    /// It was paused and has not run since.
    sleeps: bool,
    /// Until then no answer can be expected of it.
    hampered_until: Option<Instant>,
    /// Its machine slept: bytes that were sent to it arrive until then.
    late_until: Option<Instant>,
}

impl Process {
    fn new(now: Instant) -> Self {
        Self { paused_until: now, sleeps: false, hampered_until: None, late_until: None }
    }

    fn is_awake(&self, now: Instant) -> bool {
        self.paused_until <= now
    }

    fn pause(&mut self, until: Instant, hampered_until: Instant) {
        self.paused_until = self.paused_until.max(until);
        self.sleeps = true;
        self.hampered_until = Some(self.hampered_until.map_or(hampered_until, |at| at.max(hampered_until)));
    }

    fn was_hampered(&self, since: Instant) -> bool {
        self.hampered_until.is_some_and(|at| at >= since)
    }
}

impl World {
    fn new(plan: Plan, keep_log: bool) -> Self {
        #[allow(clippy::disallowed_methods, reason = "virtual time needs a start")]
        let start = Instant::now() + Duration::from_secs(100_000);
        let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0x5eed);
        let clients =
            (0..plan.clients).map(|index| ClientNode::new(start, &plan, index, rng.random())).collect();
        let mut faults = Vec::new();
        for (kind, mean) in &plan.faults {
            faults.push((start + mean.mul_f64(rng.random_range(0.0..2.0)), *kind, *mean));
        }
        let config = server::config(&plan);
        Self {
            servers: vec![Server::new(start, &plan, &config, None, rng.random())],
            sessions: Arena::default(),
            volatile_sent: 0,
            config,
            cluster: Cluster::new(start, &plan),
            plan,
            rng,
            start,
            now: start,
            clients,
            wires: BTreeMap::new(),
            next_wire: 1,
            refuse_until: start,
            no_judge_until: start,
            faults,
            healing: false,
            counts: Counts::default(),
            hasher: DefaultHasher::new(),
            log: VecDeque::new(),
            keep_log,
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.start_nodes();
        self.play_until(self.start + self.plan.length)?;
        self.heal();
        self.play_within(HEALING, Self::check_converged)?;
        self.leave_all();
        self.play_within(LEAVING, Self::check_empty)?;
        if self.plan.cluster.is_some() {
            self.play_within(cluster::STUCK, Self::check_rest)?;
            return self.forget_nodes();
        }
        // The registry forgets when a HELLO arrives, so one arrives: nothing older is left.
        self.play_until(self.now + DAY)?;
        self.clients.truncate(1);
        self.clients[0].renew(self.now, &self.plan, self.rng.random());
        self.play_until(self.now + Duration::from_secs(60))?;
        self.leave_all();
        self.play_until(self.now + LEAVING)?;
        self.check_empty()?;
        match self.servers[0].registry.size() {
            (_, 1) => Ok(()),
            (names, tombstones) => Err(format!("{tombstones} tombstones, {names} names after their day")),
        }
    }

    /// Plays until `check` holds twice in a row, with a pause between; at the latest at the end of `limit` it must.
    fn play_within(&mut self, limit: Duration, check: fn(&Self) -> Result<(), String>) -> Result<(), String> {
        let end = self.now + limit;
        let mut held = false;
        while self.now < end {
            self.play_until(end.min(self.now + PAUSE))?;
            let holds = check(self).is_ok();
            if holds && held {
                return Ok(());
            }
            held = holds;
        }
        check(self)
    }

    /// Nodes delete fields after a day, which takes long to play. The engine has the fields of living nodes then.
    fn forget_nodes(&mut self) -> Result<(), String> {
        if self.plan.seed % 500 != 2 {
            return Ok(());
        }
        self.play_until(self.now + DAY + DAY / 12)?;
        let living = |id: &NodeId| {
            let is_its = |server: &&Server| server.member.as_ref().is_some_and(|member| member.id == *id);
            self.servers.iter().filter(|server| server.lives()).any(|server| is_its(&server))
        };
        if let Some(dead) = self.cluster.engine.state.table.keys().find(|id| !living(id)) {
            return Err(format!("the field of node {dead} is left"));
        }
        let records = self.cluster.engine.state.records.len();
        if records > 0 {
            return Err(format!("{records} records are left"));
        }
        Ok(())
    }

    /// A cluster at rest keeps no relay, no claim and no release.
    fn check_rest(&self) -> Result<(), String> {
        let is_open = |wire: &Wire| wire.client_open || !matches!(wire.server, ServerEnd::Closed);
        if let Some((leg, wire)) = self.wires.iter().find(|(key, wire)| !key.is_outer() && is_open(wire)) {
            return Err(format!("{leg:?} is left: {}", wire.describe()));
        }
        for member in self.servers.iter().filter(|server| server.lives()).filter_map(|s| s.member.as_ref()) {
            let status = member.nodes.status();
            if status.claims + status.releases > 0 {
                return Err(format!("node {} still waits for the engine: {status:?}", member.id));
            }
        }
        Ok(())
    }

    fn play_until(&mut self, end: Instant) -> Result<(), String> {
        let mut steps = 0_u64;
        let most = 400_000 + 10 * (end - self.now).as_secs();
        self.step()?;
        loop {
            self.settle()?;
            self.check_detection()?;
            let next = self.next_event();
            if next > end {
                self.now = end;
                return Ok(());
            }
            self.now = next.max(self.now);
            steps += 1;
            if steps > most {
                return Err(format!("{most} events: something spins"));
            }
            self.step()?;
        }
    }

    /// Returns when the next event happens.
    fn next_event(&self) -> Instant {
        let far = self.now + DAY * 10;
        let faults = self.faults.iter().map(|(at, ..)| *at);
        let clients = self.clients.iter().flat_map(|client| self.next_of_client(client));
        let awake = |node: usize| move |at: Instant| at.max(self.servers[node].process.paused_until);
        let running = (0..self.servers.len()).filter(|node| self.servers[*node].lives());
        let server = running.flat_map(|node| self.next_of_server(node).map(awake(node)));
        let packets = self.wires.iter().flat_map(|(key, wire)| {
            let asleep_until = match wire.entry {
                Some(entry) => self.servers[entry].process.paused_until,
                None => self.client_sleeps_until(*key),
            };
            let down = wire.down.next_arrival().filter(|_| self.has_room(*key, false));
            let down = down.map(|at| at.max(asleep_until));
            let room_up = wire.up.next_room(self.now).map(|at| at.max(asleep_until));
            let up = wire.up.next_arrival().filter(|_| wire.is_read() && self.has_room(*key, true));
            let up = up.map(awake(wire.node));
            let room_down = wire.down.next_room(self.now).map(awake(wire.node));
            [down, room_up, up, room_down].into_iter().flatten()
        });
        let times = faults.chain(clients).chain(server).chain(packets).chain(self.next_of_cluster());
        // A timer that is due was handled: it waits for something else, for example for a socket. A driver checks it
        // again all the same, because it does not know for what.
        times.map(|at| if at > self.now { at } else { self.now + TICK }).fold(far, Instant::min)
    }

    fn step(&mut self) -> Result<(), String> {
        self.strike();
        self.engine_reports();
        self.read_all()?;
        self.wake();
        // Before a verdict a driver reads what is readable and writes what the socket accepts.
        self.drain_all();
        self.relay_all()?;
        for index in 0..self.clients.len() {
            if self.clients[index].process.is_awake(self.now) {
                self.client_turn(index)?;
            }
        }
        for node in 0..self.servers.len() {
            if self.servers[node].runs(self.now) {
                self.server_turn(node)?;
                self.member_turn(node)?;
            }
        }
        self.drain_all();
        self.relay_all()
    }

    /// Lets every machine that is awake write and report.
    fn settle(&mut self) -> Result<(), String> {
        for index in 0..self.clients.len() {
            if self.clients[index].process.is_awake(self.now) && !self.clients[index].crashed {
                self.settle_client(index)?;
            }
        }
        self.sessions.sweep();
        let sessions: Vec<_> = self.sessions.active().map(|(session, _)| session).collect();
        for session in sessions {
            if self.servers[self.sessions.hosted[session].node].runs(self.now) {
                self.settle_session(session)?;
            }
        }
        Ok(())
    }

    // ---- the network ----------------------------------------------------------------------------

    fn read_all(&mut self) -> Result<(), String> {
        let keys: Vec<_> = self.wires.keys().copied().collect();
        for key in keys {
            while self.read_one(key)? {}
        }
        self.wires.retain(|_, wire| !wire.is_closed());
        Ok(())
    }

    /// Reads one piece of one connection, in either direction; `false`: there is none that its end reads.
    fn read_one(&mut self, key: Key) -> Result<bool, String> {
        let (client_reads, server_reads) = (self.client_reads(key), self.server_reads(key));
        let Some(wire) = self.wires.get_mut(&key) else { return Ok(false) };
        if client_reads && let Some((bytes, arrived)) = wire.down.arrive(self.now) {
            if key.is_outer() {
                self.arrive_at_client(key, arrived)?
            } else {
                self.arrive_at_entry(key, bytes, arrived)?
            }
        } else if server_reads && let Some((bytes, arrived)) = wire.up.arrive(self.now) {
            match wire.server {
                ServerEnd::Relay(leg) => self.relay(leg, true, bytes, arrived),
                _ => self.arrive_at_server(key, arrived)?,
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// A dead client reads everything: its kernel drops it. A dead node's connections are over.
    fn client_reads(&self, key: Key) -> bool {
        let Some(wire) = self.wires.get(&key) else { return false };
        match wire.entry {
            Some(entry) => self.servers[entry].is_dead || (self.reads(entry) && self.has_room(key, false)),
            None => self.clients.get(key.client).is_none_or(|client| client.process.is_awake(self.now)),
        }
    }

    fn server_reads(&self, key: Key) -> bool {
        let Some(wire) = self.wires.get(&key) else { return false };
        self.reads(wire.node) && wire.is_read() && self.has_room(key, true)
    }

    /// Whether the node's process runs, or its kernel drops what arrives.
    fn reads(&self, node: usize) -> bool {
        self.servers[node].is_dead || self.servers[node].process.is_awake(self.now)
    }

    /// Returns how long bytes are in transit: between clients and nodes as planned, between nodes as in one data centre.
    fn latency(&mut self, key: Key) -> Duration {
        if !key.is_outer() {
            return Duration::from_micros(self.rng.random_range(50..3_000));
        }
        self.plan.latency.0 + self.plan.latency.1.mul_f64(self.rng.random_range(0.0..1.0))
    }

    /// Writes a packet behind those that wait already.
    fn write(&mut self, key: Key, up: bool, packet: Packet) {
        let Some(wire) = self.wires.get_mut(&key) else { return };
        if packet.control(&[4]).is_some() {
            wire.writer(up).beats(self.now);
        }
        wire.lane(up).push(packet);
        self.drain(key, up);
    }

    /// The socket accepts what it can.
    fn drain(&mut self, key: Key, up: bool) {
        let (at, now, socket) = (self.now + self.latency(key), self.now, self.plan.socket);
        let Some(wire) = self.wires.get_mut(&key) else { return };
        let (progress, left) = wire.lane(up).drain(now, at, socket);
        for packet in left {
            if let Some(mainstay_proto::session::Control::Ping(beat)) = packet.control(&[4]) {
                wire.writer(up).probe_left(now, beat.nonce);
            }
        }
        let waits = wire.lane(up).waits();
        wire.writer(up).wrote(now, progress, waits);
        if waits {
            self.counts.partial += u64::from(progress);
        } else if let Some(nonce) = wire.lane(up).pong.take() {
            self.write(key, up, Packet::Pong(nonce));
        }
    }

    /// Bytes that wait are offered again, where the process runs.
    fn drain_all(&mut self) {
        let keys: Vec<_> = self.wires.keys().copied().collect();
        for key in keys {
            for up in [true, false] {
                let now = self.now;
                let Some(wire) = self.wires.get_mut(&key) else { continue };
                let awake = match (wire.entry, self.clients.get(key.client)) {
                    (Some(entry), _) if up => self.servers[entry].runs(now),
                    (None, Some(client)) if up => client.process.is_awake(now),
                    _ => up || self.servers[wire.node].process.is_awake(now),
                };
                if awake && wire.lane(up).waits() {
                    self.drain(key, up);
                }
            }
        }
    }

    /// An end drops the connection: waiting bytes are lost, bytes in transit arrive before the reset.
    fn reset(&mut self, key: Key, up: bool) {
        if let Some(wire) = self.wires.get_mut(&key) {
            wire.lane(up).drop_unsent();
        }
        self.fly(key, up, Packet::Reset);
    }

    /// Sends a packet that needs no room.
    fn fly(&mut self, key: Key, up: bool, packet: Packet) {
        let at = self.now + self.latency(key);
        if let Some(wire) = self.wires.get_mut(&key) {
            wire.lane(up).fly(at, 0, Some(packet));
        }
    }

    // ---- invariants -----------------------------------------------------------------------------

    /// Processes that slept and woke have read everything readable by now.
    fn wake(&mut self) {
        let now = self.now;
        let interval = self.config.heartbeat.interval();
        for (index, client) in self.clients.iter_mut().enumerate() {
            if client.process.is_awake(now) && std::mem::take(&mut client.process.sleeps) {
                let judge = judge::Client { interval, rtt: client.machine.rtt() };
                let wires = self.wires.iter_mut().filter(|(key, _)| key.is_outer() && key.client == index);
                wires.for_each(|(_, wire)| judge.woke(now, &mut wire.client));
            }
        }
        for node in 0..self.servers.len() {
            let process = &mut self.servers[node].process;
            if !process.is_awake(now) || !std::mem::take(&mut process.sleeps) {
                continue;
            }
            for wire in self.wires.values_mut().filter(|wire| wire.node == node) {
                let rtt = match wire.server {
                    ServerEnd::Bound(session) => {
                        self.sessions.hosted[session].machine.as_ref().and_then(|machine| machine.rtt())
                    }
                    _ => None,
                };
                judge::Server { interval, rtt }.woke(now, &mut wire.server_observed);
            }
        }
    }

    /// Whether something since then explains that an end received nothing: the network, or the other process. What
    /// the end itself did explains nothing, with one exception: a sleep that ended before its deadline, so that the
    /// rule about late timers does not apply, although the answer is still in transit.
    fn is_excused<'a>(
        &'a self,
        key: Key,
        observed: &Observed,
        own: &Process,
        mut others: impl Iterator<Item = &'a Process>,
        since: Instant,
    ) -> bool {
        let overslept = own.late_until.is_some_and(|at| at >= since) && !observed.is_fresh();
        let trouble = |wire: &Wire| wire.up.had_trouble(since) || wire.down.had_trouble(since);
        overslept || self.legs(key).any(trouble) || others.any(|process| process.was_hampered(since))
    }

    /// An end that receives nothing gives up in time, whatever the cause.
    fn check_detection(&mut self) -> Result<(), String> {
        self.note_hindered();
        for (key, wire) in &self.wires {
            self.check_server_detection(*key, wire)?;
            if key.is_outer() {
                self.check_client_detection(*key, wire)?;
            }
        }
        Ok(())
    }

    /// Whether the client has another open connection: its probe may wait.
    fn is_hindered(&self, key: Key) -> bool {
        let mut others = self.wires.range(Key { connection: ConnectionId(0), ..key }..);
        others.any(|(other, wire)| {
            let same = other.is_outer() && (other.client, other.life) == (key.client, key.life);
            same && *other != key && wire.client_open
        })
    }

    fn note_hindered(&mut self) {
        let open = |(key, wire): (&Key, &Wire)| (key.is_outer() && wire.client_open).then_some(*key);
        let open: Vec<_> = self.wires.iter().filter_map(open).collect();
        for key in open {
            if self.is_hindered(key)
                && let Some(wire) = self.wires.get_mut(&key)
            {
                wire.client.hindered(self.now);
            }
        }
    }

    fn check_server_detection(&self, key: Key, wire: &Wire) -> Result<(), String> {
        let ServerEnd::Bound(session) = wire.server else { return Ok(()) };
        let Some(machine) = &self.sessions.hosted[session].machine else { return Ok(()) };
        let attached = machine.connection() == Some(wire.server_id);
        if !attached || !self.servers[wire.node].runs(self.now) {
            return Ok(());
        }
        let judge = judge::Server { interval: self.config.heartbeat.interval(), rtt: machine.rtt() };
        if self.now > judge.bound(&wire.server_observed) {
            return Err(format!(
                "server still holds {key:?}, late: {}",
                wire.server_observed.describe(self.now)
            ));
        }
        Ok(())
    }

    fn check_client_detection(&self, key: Key, wire: &Wire) -> Result<(), String> {
        let Some(client) = self.clients.get(key.client) else { return Ok(()) };
        if !wire.client_open || client.life != key.life || !client.process.is_awake(self.now) {
            return Ok(());
        }
        let late = match wire.opening {
            Some(until) => self.now > until,
            None => {
                let interval = self.config.heartbeat.interval();
                let judge = judge::Client { interval, rtt: client.machine.rtt() };
                self.now > judge.bound(&wire.client, self.is_hindered(key))
            }
        };
        if late {
            Err(format!("client still holds {key:?}, late: {}", wire.client.describe(self.now)))
        } else {
            Ok(())
        }
    }

    /// Where every fault is gentle, nodes and their engine answer, and handlers return, a drain costs no movable session;
    /// of any other session it reports each message as delivered or not.
    fn check_gentle(&self, client: usize, fate: &Fate) -> Result<(), String> {
        let Some(cluster) = self.plan.cluster else { return Ok(()) };
        if !self.plan.is_gentle() || cluster.hangs || cluster.returns_within > Duration::from_secs(4) {
            return Ok(());
        }
        // A session that was never confirmed, and in which nothing was delivered, ends early.
        if cluster.movable && (fate.unknown > 0 || fate.lost.is_some()) {
            return Err(format!("client {client} lost its session, and only drains occurred"));
        }
        if !self.plan.manual && fate.unknown > fate.delivered {
            return Err(format!(
                "client {client} does not know what was delivered: {fate:?}, and only drains occurred"
            ));
        }
        Ok(())
    }

    fn check_converged(&self) -> Result<(), String> {
        for (index, client) in self.clients.iter().enumerate() {
            if !client.machine.is_attached() {
                return Err(format!("client {index} is not attached after healing"));
            }
            client.sent.settled()?;
            let (session, last) = client.got.position();
            if let Some(stream) = session.filter(|stream| self.sessions.lives(*stream)) {
                let sent = self.sessions.streams[stream].sent;
                if last != sent {
                    return Err(format!("client {index} got {last} of {sent} messages"));
                }
            }
        }
        Ok(())
    }

    fn check_empty(&self) -> Result<(), String> {
        if let Some(index) = self.clients.iter().position(|client| !client.machine.is_ended()) {
            return Err(format!("client {index} did not end"));
        }
        for (node, server) in self.servers.iter().enumerate().filter(|(_, server)| server.lives()) {
            let live = self.sessions.live(node);
            if live > 0 {
                return Err(format!("{live} sessions live after everyone left"));
            }
            let (names, _) = server.registry.size();
            let tombstoned = server.registry.tombstoned_names();
            if names != tombstoned {
                return Err(format!("{} names lead nowhere", names - tombstoned));
            }
        }
        Ok(())
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let line = line();
        line.hash(&mut self.hasher);
        if self.keep_log {
            if self.log.len() == 400_000 {
                self.log.pop_front();
            }
            self.log.push_back(format!("{:>9.3} {line}", (self.now - self.start).as_secs_f64()));
        }
    }
}
