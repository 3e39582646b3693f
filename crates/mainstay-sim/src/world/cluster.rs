//! Several nodes: the way of a HELLO to its session, and relays.
//!
//! A node that a client reaches asks [`Lookup`](mainstay_proto::cluster::Lookup) where the client's session is. It may
//! connect to another node's peer listener: such a connection is a *leg*, a wire of its own between two processes. Once the
//! owner accepts the client, the entry node forwards what it reads, piece by piece, and keeps nothing: it reads a side only
//! while nothing waits for the other. The engine is in `engine`, drains are in `drain`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::peer::{ANSWER_TIME, Admit, BLOCK_TIME, First, Head, PeerAnswer};
use mainstay_proto::cluster::{
    COMPLETE_AFTER, Mark, NodeInfo, Nodes, NodesConfig, NodesEvent, PeerKey, PeerOutcome, Step, lookup,
};
use mainstay_proto::session::message::{Account, Hello, Instance, SessionId};
use mainstay_proto::session::{
    Adopted, Answer, ConnectionId, Control, Frame, Presenter, RefuseReason, Resumed, Route, Sessions,
};
use mainstay_proto::ws::Kind;
use rand::RngExt;

use super::drain::{Drain, Leaving};
use super::engine::{Engine, Report};
use super::member::Member;
use super::network::{Ask, Key, Packet, Routing, ServerEnd, Wire};
use super::server::Server;
use super::sessions::Hosted;
use super::{Process, World};
use crate::plan::Plan;

/// When the entry node's keepalive notices that the owner's host vanished.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(11);

/// A claim is answered within this time, or not at all.
const CLAIM_ANSWERED: Duration = Duration::from_secs(2);

/// An engine that has forgotten the node table has it again after this time.
const TABLE_RESTORED: Duration = Duration::from_secs(15);

/// How many HELLOs of a session copies present.
const REMEMBERED: usize = 4;

/// How long a relay waits for a side that accepts no bytes: it does not read the other one meanwhile, and so does not
/// notice that it has ended. It is the longest time that a server gives such a client.
pub(super) const STUCK: Duration = Duration::from_secs(480);

/// What the nodes of a run share.
pub(super) struct Cluster {
    pub(super) engine: Engine,
    /// Nodes that do not reach each other, until then.
    cuts: BTreeMap<[usize; 2], Instant>,
    /// The balancer picks this node, until then.
    pub(super) one_node: Option<(usize, Instant)>,
    /// When nodes start, and where they listen.
    births: Vec<(Instant, u16)>,
    next_slot: u16,
    pub(super) next_leg: u64,
    /// Until then two nodes may not hear of each other.
    pub(super) peers_hampered_until: Option<Instant>,
    /// Until then a node may not be seen in the table.
    pub(super) engine_hampered_until: Option<Instant>,
    /// The session of each key that delivered something.
    pub(super) delivering: BTreeMap<Bytes, usize>,
    /// The last HELLOs with a token of each session.
    presented: BTreeMap<[u8; 8], VecDeque<Presented>>,
    copies: usize,
    /// The instance that got the account of a session.
    accounts: BTreeMap<usize, (Instance, Instant)>,
    /// Sessions that a node told as lost while they waited in the engine.
    abandoned: BTreeSet<usize>,
}

/// A HELLO with a token.
#[derive(Clone)]
struct Presented {
    client: usize,
    at: Instant,
    hello: Box<Hello>,
    principal: Vec<u8>,
}

impl Cluster {
    pub(super) fn new(now: Instant, plan: &Plan) -> Self {
        Self {
            engine: Engine::new(now, plan),
            cuts: BTreeMap::new(),
            one_node: None,
            births: Vec::new(),
            next_slot: 0,
            next_leg: 1,
            peers_hampered_until: None,
            engine_hampered_until: None,
            delivering: BTreeMap::new(),
            presented: BTreeMap::new(),
            copies: 0,
            accounts: BTreeMap::new(),
            abandoned: BTreeSet::new(),
        }
    }

    fn are_cut(&self, now: Instant, one: usize, other: usize) -> bool {
        self.cuts.get(&[one.min(other), one.max(other)]).is_some_and(|until| *until > now)
    }

    pub(super) fn heal(&mut self, now: Instant) {
        self.engine.heal(now);
        self.cuts.clear();
        self.one_node = None;
    }
}

impl Server {
    /// Makes it a node.
    pub(super) fn join(&mut self, now: Instant, (slot, window): (u16, Duration), seed: [u8; 32]) {
        let mut key = [0; 16];
        key.copy_from_slice(&seed[8..24]);
        let (id, key) = (super::server::node_id(seed), PeerKey(key));
        let keep = window * 2 + Duration::from_secs(60);
        let mut nodes = Nodes::new(now, NodesConfig { node: id, engine: true, keep, seed: u64::from(slot) });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, slot));
        nodes.announce(
            now,
            NodeInfo { address, key, mark: Mark::default(), url: None, count: 0, left: false, notes: 0 },
        );
        self.member = Some(Box::new(Member {
            id,
            slot,
            key,
            nodes,
            mute_until: now,
            asked: BTreeMap::new(),
            drain: None,
            leaving: BTreeMap::new(),
            releasing: BTreeMap::new(),
        }));
    }
}

impl World {
    // ---- nodes ----------------------------------------------------------------------------------

    pub(super) fn start_nodes(&mut self) {
        let Some(cluster) = self.plan.cluster else { return };
        self.servers.clear();
        (0..cluster.nodes).for_each(|_| self.bear_elsewhere(self.now));
        self.give_birth();
    }

    /// A node starts at that time where none listened before.
    pub(super) fn bear_elsewhere(&mut self, at: Instant) {
        self.cluster.next_slot += 1;
        self.cluster.births.push((at, self.cluster.next_slot));
    }

    /// A node takes the place of one whose process is gone.
    pub(super) fn bear_again(&mut self, at: Instant, node: usize) {
        match self.servers[node].member.as_ref().map(|member| member.slot) {
            Some(slot) if self.rng.random_bool(0.5) => self.cluster.births.push((at, slot)),
            _ => self.bear_elsewhere(at),
        }
    }

    pub(super) fn give_birth(&mut self) {
        while let Some(due) = self.cluster.births.iter().position(|(at, _)| *at <= self.now) {
            let (_, slot) = self.cluster.births.swap_remove(due);
            let (seed, id) = (self.rng.random(), self.rng.random());
            let mut server = Server::new(self.now, &self.plan, &self.config, Some(id), seed);
            server.join(self.now, (slot, self.plan.resume_window), id);
            self.servers.push(server);
            let node = self.servers.len() - 1;
            self.cluster.engine.join(self.now, node);
            self.note(|| format!("node {node} starts at {slot}"));
        }
    }

    /// A node's process is gone; if its machine is, too, no end is notified.
    pub(super) fn kill(&mut self, node: usize, silently: bool) {
        self.note(|| format!("node {node} is gone, silently: {silently}"));
        self.servers[node].is_dead = true;
        let hosted = self.sessions.hosted.iter_mut().filter(|hosted| hosted.node == node);
        hosted.for_each(|hosted| (hosted.machine, hosted.released) = (None, None));
        self.cluster.engine.part(node);
        let keys: Vec<_> = self.wires.keys().copied().collect();
        for key in keys {
            let Some(wire) = self.wires.get_mut(&key) else { continue };
            let (serves, enters) = (wire.node == node, wire.entry == Some(node));
            if !serves && !enters {
                continue;
            }
            if silently {
                wire.gone_at = Some(self.now + KEEPALIVE);
                wire.swallow();
                wire.lane(enters).drop_unsent();
            } else {
                self.reset(key, enters);
            }
            if serves {
                self.set_server_end(key, ServerEnd::Closed);
            }
            if enters {
                self.close_client_end(key);
            }
        }
    }

    pub(super) fn cut_nodes(&mut self, one: usize, other: usize, until: Instant) {
        self.cluster.cuts.insert([one.min(other), one.max(other)], until);
        self.hamper_peers(until);
        for wire in self.wires.values_mut() {
            if wire
                .entry
                .is_some_and(|entry| [[entry, wire.node], [wire.node, entry]].contains(&[one, other]))
            {
                if until > self.now + KEEPALIVE {
                    wire.swallow();
                    wire.gone_at = Some(self.now + KEEPALIVE);
                } else {
                    for lane in [&mut wire.up, &mut wire.down] {
                        lane.hold(until);
                        lane.trouble(until);
                    }
                }
            }
        }
    }

    pub(super) fn hamper_peers(&mut self, until: Instant) {
        let before = self.cluster.peers_hampered_until.unwrap_or(until);
        self.cluster.peers_hampered_until = Some(before.max(until));
    }

    pub(super) fn hamper_engine(&mut self, until: Instant) {
        let before = self.cluster.engine_hampered_until.unwrap_or(until);
        self.cluster.engine_hampered_until = Some(before.max(until));
    }

    pub(super) fn next_of_cluster(&self) -> impl Iterator<Item = Instant> {
        let births = self.cluster.births.iter().map(|(at, _)| *at);
        let engine = self.cluster.engine.next_event(|node| self.servers[node].process.paused_until);
        let members = (0..self.servers.len()).filter(|node| self.servers[*node].lives());
        let members = members.filter_map(|node| {
            let at = self.next_of_member(node)?;
            Some(at.max(self.servers[node].process.paused_until))
        });
        births.chain(engine).chain(members)
    }

    fn next_of_member(&self, node: usize) -> Option<Instant> {
        let member = self.servers[node].member.as_ref()?;
        let leaving = member.leaving.values().map(Leaving::next);
        let drain = member.drain.as_ref().map(Drain::next);
        let wires = self.wires.values().filter_map(|wire| match &wire.server {
            ServerEnd::Routing(routing) if wire.node == node => {
                let ask = routing.ask.as_ref().map(|ask| ask.at);
                [Some(routing.until), ask, routing.lookup.deadline()].into_iter().flatten().min()
            }
            ServerEnd::Peer(until, _) | ServerEnd::Moving(_, until) if wire.node == node => Some(*until),
            _ => None,
        });
        let mine = self.wires.values().filter(|wire| wire.entry == Some(node) && wire.client_open);
        let gone = mine.filter_map(|wire| wire.gone_at);
        let relays =
            self.wires.values().filter(|wire| wire.node == node).filter_map(|wire| self.stuck_at(wire));
        member
            .nodes
            .poll_timeout()
            .into_iter()
            .chain(leaving)
            .chain(drain)
            .chain(wires)
            .chain(gone)
            .chain(relays)
            .min()
    }

    pub(super) fn engine_reports(&mut self) {
        if self.plan.cluster.is_none() {
            return;
        }
        self.give_birth();
        let now = self.now;
        while let Some((node, report)) = {
            let servers = &self.servers;
            self.cluster.engine.poll(now, |node| servers[node].process.is_awake(now))
        } {
            let Some(member) = self.servers[node].member.as_mut() else { continue };
            match report {
                Report::Response(id, response) => {
                    let line = format!("node {node} <- engine {id:?} {}", super::engine::show(&response));
                    member.nodes.handle_response(now, id, response);
                    self.note(|| line);
                }
                Report::Event(event) => {
                    let line = format!("node {node} <- engine {event:?}");
                    member.nodes.handle_engine(now, event);
                    self.note(|| line);
                }
            }
            self.ask_engine(node);
        }
    }

    pub(super) fn ask_engine(&mut self, node: usize) {
        let now = self.now;
        while let Some(request) =
            self.servers[node].member.as_mut().and_then(|member| member.nodes.poll_request(now))
        {
            self.note(|| {
                format!("node {node} -> engine {:?} {}", request.0, super::engine::show_request(&request.1))
            });
            self.cluster.engine.ask(now, node, request, &mut self.rng);
        }
    }

    /// Everything that a node does beside its sessions.
    pub(super) fn member_turn(&mut self, node: usize) -> Result<(), String> {
        let now = self.now;
        let Some(member) = self.servers[node].member.as_mut() else { return Ok(()) };
        if member.nodes.poll_timeout().is_some_and(|at| at <= now) {
            member.nodes.handle_timeout(now);
        }
        self.ask_engine(node);
        self.member_events(node)?;
        self.end_lost_relays(node)?;
        let waits = |(key, wire): (&Key, &Wire)| {
            let routes =
                matches!(wire.server, ServerEnd::Routing(_) | ServerEnd::Peer(..) | ServerEnd::Moving(..));
            (wire.node == node && routes).then_some(*key)
        };
        let keys: Vec<_> = self.wires.iter().filter_map(waits).collect();
        for key in keys {
            self.route(key)?;
        }
        self.handlers_return(node)?;
        self.drain_turn(node)?;
        self.ask_engine(node);
        self.member_events(node)
    }

    fn member_events(&mut self, node: usize) -> Result<(), String> {
        let now = self.now;
        while let Some(event) =
            self.servers[node].member.as_mut().and_then(|member| member.nodes.poll_event())
        {
            self.note(|| format!("node {node} event {event:?}"));
            match event {
                NodesEvent::Released { session, outcome } => self.handle_released(node, session.0, &outcome),
                NodesEvent::CheckListener { node: dead, address } => {
                    let is_closed = self.listening_at(address.port()).is_none();
                    if let Some(member) = self.servers[node].member.as_mut() {
                        member.nodes.listener_checked(now, dead, is_closed);
                    }
                }
                NodesEvent::Left => self.note_left(node),
                NodesEvent::SameNameElsewhere { .. } | NodesEvent::BadField { .. } => {
                    return Err(format!("node {node}: an unexpected {event:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn listening_at(&self, slot: u16) -> Option<usize> {
        let listens = |server: &Server| {
            server.lives() && server.member.as_ref().is_some_and(|member| member.slot == slot)
        };
        self.servers.iter().position(listens)
    }

    // ---- the way of a HELLO ---------------------------------------------------------------------

    /// A HELLO with a token, at the node that its client or another node reached.
    pub(super) fn begin_route(&mut self, key: Key, hello: Box<Hello>, principal: Vec<u8>, until: Instant) {
        let now = self.now;
        let (Some(wire), Some(resume)) = (self.wires.get(&key), &hello.resume) else { return };
        if let Some(id) = route_of(&hello).filter(|_| key.is_outer() && !key.is_of_copy()) {
            let (client, hello, principal) = (key.client, hello.clone(), principal.clone());
            let presented = Presented { client, at: now, hello, principal };
            let last = self.cluster.presented.entry(id).or_default();
            last.truncate(REMEMBERED - 1);
            last.push_front(presented);
        }
        let server = &mut self.servers[wire.node];
        let who = Presenter { principal: &principal, ..Presenter::default() };
        let known = server.registry.knows(who, &resume.token);
        let Some(member) = &mut server.member else { return };
        let lookup =
            member.nodes.begin(now, &resume.token, who.token_name(&resume.token), known, !key.is_outer());
        let routing = Routing { hello, principal, lookup, known, until, ask: None };
        self.set_server_end(key, ServerEnd::Routing(Box::new(routing)));
    }

    /// A copy of a client, as a restored tab, presents a token of the client under an instance and a key of its own: one of
    /// its last, of a session whose account is known, or of one before. It reads and writes nothing more.
    pub(super) fn present_a_copy(&mut self, node: usize) -> bool {
        let Some(Presented { client, mut hello, principal, .. }) = self.some_presented() else {
            return false;
        };
        hello.instance = Instance(self.rng.random());
        hello.key.0 = self.rng.random();
        self.clients[client].may_end = true;
        let id = ConnectionId(self.next_wire);
        self.next_wire += 1;
        self.cluster.copies += 1;
        let key =
            Key { client: Key::COPIES + self.cluster.copies, life: 0, connection: ConnectionId(0), leg: 0 };
        let mut wire = Wire::new(self.now, (id, node), BLOCK_TIME, BLOCK_TIME);
        (wire.client_open, wire.opening) = (false, None);
        wire.swallow();
        self.wires.insert(key, wire);
        self.note(|| format!("a copy of client {client} is client {}", key.client));
        self.begin_route(key, hello, principal, self.now + BLOCK_TIME * 4);
        true
    }

    fn some_presented(&mut self) -> Option<Presented> {
        let (of, client) = (self.rng.random_range(0..3), self.rng.random_range(0..=self.clients.len()));
        let recent = self.now - Duration::from_secs(40);
        let newest = |left: &&VecDeque<Presented>, right: &&VecDeque<Presented>| left[0].at.cmp(&right[0].at);
        let has_account = |id: &[u8; 8]| {
            self.sessions.by_id(*id).is_some_and(|stream| self.cluster.accounts.contains_key(&stream))
        };
        let all = || self.cluster.presented.iter();
        let ended = all().filter(|(id, _)| of == 0 && has_account(id)).map(|(_, presented)| presented);
        let older = all().map(|(_, presented)| presented);
        let older = older.filter(|presented| of == 1 && presented[0].at >= recent);
        let last = all().map(|(_, presented)| presented).filter(|presented| presented[0].client == client);
        let presented =
            ended.max_by(newest).or_else(|| older.min_by(newest)).or_else(|| last.max_by(newest))?;
        presented.get(self.rng.random_range(0..presented.len())).cloned()
    }

    fn routing(&mut self, key: Key) -> Option<&mut Routing> {
        match &mut self.wires.get_mut(&key)?.server {
            ServerEnd::Routing(routing) => Some(routing),
            _ => None,
        }
    }

    /// A peer listener answers once the engine has what this HELLO asks for.
    fn answer_once_released(&mut self, key: Key, hello: &Hello) {
        let Some(node) = self.wires.get(&key).map(|wire| wire.node) else { return };
        match route_of(hello).filter(|id| self.is_releasing(node, *id)) {
            Some(id) => self.set_server_end(key, ServerEnd::Moving(id, self.now + ANSWER_TIME)),
            None => self.answer_peer(key, &PeerAnswer::Released),
        }
    }

    /// Whether the node has released the session, and the outcome is not known.
    fn is_releasing(&self, node: usize, id: [u8; 8]) -> bool {
        self.servers[node].member.as_ref().is_some_and(|member| member.releasing.contains_key(&id))
    }

    fn knows(&self, node: usize, hello: &Hello, who: Presenter<'_>) -> bool {
        let registry = &self.servers[node].registry;
        hello.resume.as_ref().is_some_and(|resume| registry.knows(who, &resume.token))
    }

    /// Goes on as far as it can.
    fn route(&mut self, key: Key) -> Result<(), String> {
        let now = self.now;
        match self.wires.get(&key).map(|wire| &wire.server) {
            Some(ServerEnd::Peer(until, _)) if *until <= now => self.drop_server_end(key),
            Some(ServerEnd::Moving(_, until)) if *until <= now => {
                self.refuse_route(key, RefuseReason::Moving.refuse());
            }
            _ => {}
        }
        loop {
            let Some(node) = self.wires.get(&key).map(|wire| wire.node) else { return Ok(()) };
            let Some(routing) = self.routing(key) else { return Ok(()) };
            if routing.until <= now {
                self.give_up_route(key);
                return Ok(());
            }
            if let Some(ask) = &routing.ask {
                if ask.at > now {
                    return Ok(());
                }
                if ask.leg.is_none() {
                    self.dial_peer(key);
                    return Ok(());
                }
                self.peer_answered(key, PeerOutcome::Silent);
                continue;
            }
            let mut lookup = routing.lookup.clone();
            let Some(member) = self.servers[node].member.as_mut() else { return Ok(()) };
            let step = lookup.poll(now, &mut member.nodes);
            if let Some(routing) = self.routing(key) {
                routing.lookup = lookup;
                if std::mem::take(&mut routing.known) && step != Step::Here {
                    return Err(format!("a resume at its owner is delayed: {step:?}"));
                }
            }
            if !matches!(step, Step::Claiming) {
                self.note(|| {
                    format!("node {node} client {} leg {} {}", key.client, key.leg, show_step(&step))
                });
            }
            match step {
                Step::Claiming => return Ok(()),
                Step::Ask { node, address, key: secret, pause } => {
                    let ask = Ask { node, slot: address.port(), key: secret, at: now + pause, leg: None };
                    if let Some(routing) = self.routing(key) {
                        routing.ask = Some(ask);
                    }
                }
                Step::Here => {
                    if !self.ask_registry(key)? {
                        return Ok(());
                    }
                }
                Step::Adopt { session, claim, record } => {
                    self.adopt(key, node, (session, claim), &record)?;
                    return Ok(());
                }
                Step::Unknown => return self.route_lost(key, None),
                Step::Wait => {
                    self.refuse_route(key, lookup::wait());
                    return Ok(());
                }
                Step::Elsewhere => {
                    self.answer_peer(key, &PeerAnswer::Released);
                    return Ok(());
                }
            }
        }
    }

    /// Returns `true` if the lookup goes on: the session was released.
    fn ask_registry(&mut self, key: Key) -> Result<bool, String> {
        let Some((id, node)) = self.wires.get(&key).map(|wire| (wire.server_id, wire.node)) else {
            return Ok(false);
        };
        let Some(routing) = self.routing(key) else { return Ok(false) };
        let (hello, principal) = (routing.hello.clone(), routing.principal.clone());
        let who = Presenter { principal: &principal, ..Presenter::default() };
        self.sessions.creator = node;
        let resumed = self.servers[node].registry.resume(self.now, id, who, &hello, &mut self.sessions);
        self.note(|| format!("node {node} resumes {resumed:?}"));
        match resumed {
            Resumed::Answer(Answer::Refused { refuse, .. }) => self.refuse_route(key, refuse),
            Resumed::Answer(answer) => {
                if !key.is_outer() {
                    self.write(key, false, Packet::Block(PeerAnswer::Accepted.encode()));
                }
                self.attach(key, &hello, principal, answer)?;
            }
            Resumed::Lost(_)
                if !key.is_outer() && self.gave_accounts(node) && self.knows(node, &hello, who) =>
            {
                self.answer_once_released(key, &hello);
            }
            Resumed::Lost(account) => self.route_lost(key, account)?,
            // A node that drains takes nothing over.
            Resumed::Released | Resumed::Leaving(_) if key.is_outer() && self.drains(node) => {
                if let Resumed::Leaving(session) = resumed {
                    self.leave_node(session);
                }
                self.refuse_route(key, RefuseReason::Moving.refuse());
            }
            Resumed::Released if !key.is_outer() => self.answer_once_released(key, &hello),
            Resumed::Released => {
                let server = &mut self.servers[node];
                if let (Some(ServerEnd::Routing(routing)), Some(member)) =
                    (self.wires.get_mut(&key).map(|wire| &mut wire.server), &server.member)
                {
                    routing.lookup.released(self.now, &member.nodes);
                }
                return Ok(true);
            }
            Resumed::Leaving(session) => {
                let id = self.sessions.with(&session, |machine| machine.id().0);
                self.leave_node(session);
                self.set_server_end(key, ServerEnd::Moving(id, self.now + ANSWER_TIME));
            }
        }
        Ok(false)
    }

    fn adopt(
        &mut self,
        key: Key,
        node: usize,
        (id, claim): (SessionId, u64),
        record: &mainstay_proto::session::Record,
    ) -> Result<(), String> {
        self.sessions.creator = node;
        let adopted = self.servers[node].registry.adopt(self.now, record, claim, &mut self.sessions);
        self.note(|| format!("node {node} adopts {adopted:?} by claim {claim}"));
        if let Some(member) = &mut self.servers[node].member {
            member.nodes.adopted(self.now, id);
        }
        match adopted {
            Ok(Adopted::Session { session, evicted }) => {
                if let Some(evicted) = evicted {
                    self.bury_if_over(evicted);
                }
                self.counts.moved += 1;
                self.sessions.with(&session, |machine| machine.set_movable());
                self.check_saved(session)?;
            }
            Ok(Adopted::Account) => {}
            Err(error) => return Err(format!("node {node} cannot read a record: {error}")),
        }
        self.ask_registry(key).map(drop)
    }

    /// What the application saved comes with the session. (Only a copy of its client, with an old token, may begin again
    /// from an older record, and only if the engine forgot that a node took it over.)
    fn check_saved(&mut self, session: usize) -> Result<(), String> {
        let saved = self.sessions.with(&session, |machine| machine.saved().cloned());
        let saved =
            saved.map_or(0, |bytes| u64::from_be_bytes(bytes.as_ref().try_into().unwrap_or_default()));
        let of = self.sessions.hosted[session].stream;
        let before = self.sessions.streams[of].adopted.replace(self.now);
        if before.is_some_and(|at| self.has_engine_forgotten(at)) {
            self.sessions.streams[of].is_forked = true;
        }
        let stream = &self.sessions.streams[of];
        let lives = |(other, hosted): &(usize, &Hosted)| {
            *other != session
                && hosted.stream == of
                && hosted.machine.as_ref().is_some_and(|machine| machine.is_open())
        };
        match self.sessions.active().find(lives) {
            _ if stream.is_forked => Ok(()),
            Some((_, other)) => Err(format!("session {session} lives at node {} too", other.node)),
            None if saved == stream.sent => Ok(()),
            None => Err(format!("session {session} was saved at {saved}, {} were sent", stream.sent)),
        }
    }

    /// No node has the session: the entry node opens another one.
    fn route_lost(&mut self, key: Key, account: Option<Account>) -> Result<(), String> {
        if !key.is_outer() {
            self.answer_peer(key, &PeerAnswer::Lost(account));
            return Ok(());
        }
        let Some((id, node)) = self.wires.get(&key).map(|wire| (wire.server_id, wire.node)) else {
            return Ok(());
        };
        let Some(routing) = self.routing(key) else { return Ok(()) };
        let (hello, principal) = (routing.hello.clone(), routing.principal.clone());
        if let Some(stream) = self.waits_in_engine(node, &hello, &principal).filter(|_| !key.is_of_copy()) {
            self.note(|| format!("node {node} does not find session {stream}, which waits in the engine"));
            self.cluster.abandoned.insert(stream);
        }
        self.open_session(key, (id, node), &hello, principal, account)
    }

    /// Returns the session that this HELLO asks for, if the engine has it and no other node claimed it.
    fn waits_in_engine(&self, node: usize, hello: &Hello, principal: &[u8]) -> Option<usize> {
        let token = &hello.resume.as_ref()?.token;
        let who = Presenter { principal, ..Presenter::default() };
        let id = route_of(hello)?;
        let stream = self.sessions.by_id(id)?;
        let last = self.sessions.hosted.iter().rev().find(|hosted| hosted.stream == stream)?;
        let left = last.left.as_ref()?;
        if self.is_releasing(last.node, id) {
            let releasing = &self.servers[last.node];
            let recent = self.now - Duration::from_secs(60);
            let hampered = |until: Option<Instant>| until.is_some_and(|until| until >= recent);
            let is_excused = releasing.process.was_hampered(recent)
                || hampered(self.cluster.peers_hampered_until)
                || hampered(self.cluster.engine_hampered_until);
            return (releasing.lives() && !is_excused).then_some(stream);
        }
        let entry = self.servers[node].member.as_ref()?.id;
        let owner = self.cluster.engine.state.records.get(&id).and_then(|kept| kept.owner);
        let stored_for = self.now.saturating_duration_since(left.stored?);
        let waits = (CLAIM_ANSWERED..left.keep).contains(&stored_for)
            && left.names.contains(&who.token_name(token))
            && owner.is_none_or(|owner| owner == entry)
            && !self.has_engine_forgotten(self.now - stored_for - TABLE_RESTORED);
        waits.then_some(stream)
    }

    pub(super) fn open_session(
        &mut self,
        key: Key,
        (id, node): (ConnectionId, usize),
        hello: &Hello,
        principal: Vec<u8>,
        account: Option<Account>,
    ) -> Result<(), String> {
        let who = Presenter { principal: &principal, ..Presenter::default() };
        self.sessions.creator = node;
        let answer = self.servers[node].registry.open(self.now, id, who, hello, account, &mut self.sessions);
        if let (Some(_), Answer::Attached { .. }) = (&account, &answer)
            && let Some(lost) = route_of(hello).and_then(|id| self.sessions.by_id(id))
        {
            self.check_account(lost, hello.instance)?;
        }
        self.note(|| format!("node {node} opens {answer:?}"));
        self.attach(key, hello, principal, answer)
    }

    fn refuse_route(&mut self, key: Key, refuse: Control) {
        if key.is_outer() {
            self.refuse(key, &refuse);
        } else {
            self.answer_peer(key, &PeerAnswer::Refused(refuse));
        }
    }

    fn answer_peer(&mut self, key: Key, answer: &PeerAnswer) {
        self.note(|| format!("client {} leg {} gets {answer:?}", key.client, key.leg));
        self.write(key, false, Packet::Block(answer.encode()));
        self.set_server_end(key, ServerEnd::Closed);
    }

    /// The opening took too long.
    fn give_up_route(&mut self, key: Key) {
        self.drop_leg(key);
        if key.is_outer() {
            self.refuse(key, &lookup::wait());
        } else {
            self.drop_server_end(key);
        }
    }

    /// A node drops a connection.
    pub(super) fn drop_server_end(&mut self, key: Key) {
        self.reset(key, false);
        self.set_server_end(key, ServerEnd::Closed);
    }

    // ---- legs -----------------------------------------------------------------------------------

    fn dial_peer(&mut self, outer: Key) {
        let now = self.now;
        let Some(entry) = self.wires.get(&outer).map(|wire| wire.node) else { return };
        let leg = Key { leg: self.cluster.next_leg, ..outer };
        let Some(ask) = self.routing(outer).and_then(|routing| routing.ask.as_mut()) else { return };
        (ask.leg, ask.at) = (Some(leg), now + BLOCK_TIME);
        let (slot, owner, peer) = (ask.slot, ask.node, (ask.slot, ask.key));
        if let Some(member) = &mut self.servers[entry].member {
            member.asked.insert(owner, peer);
        }
        self.connect_to_peer(leg, entry, slot);
    }

    /// A node connects to whichever node listens there.
    pub(super) fn connect_to_peer(&mut self, leg: Key, entry: usize, slot: u16) {
        let now = self.now;
        self.cluster.next_leg += 1;
        let found = self.listening_at(slot);
        let node = found.unwrap_or(entry);
        let id = ConnectionId(self.next_wire);
        self.next_wire += 1;
        let mut wire = Wire::new(now, (id, node), BLOCK_TIME, BLOCK_TIME * 2);
        wire.entry = Some(entry);
        wire.opening = None;
        wire.server = ServerEnd::Peer(now + BLOCK_TIME * 2, None);
        let vanished = self.servers.iter().any(|server| {
            !server.lives()
                && server.vanished
                && server.member.as_ref().is_some_and(|member| member.slot == slot)
        });
        if self.cluster.are_cut(now, entry, node) || (found.is_none() && vanished) {
            wire.swallow();
            wire.server = ServerEnd::Closed;
        }
        self.wires.insert(leg, wire);
        if found.is_none() {
            self.drop_server_end(leg);
        } else {
            self.fly(leg, true, Packet::Opened);
        }
    }

    fn drop_leg(&mut self, outer: Key) {
        let ask = self.routing(outer).and_then(|routing| routing.ask.take());
        if let Some(leg) = ask.and_then(|ask| ask.leg) {
            self.close_client_end(leg);
            self.reset(leg, true);
        }
    }

    fn peer_answered(&mut self, outer: Key, outcome: PeerOutcome) {
        self.note(|| format!("client {}: the other node {outcome:?}", outer.client));
        self.drop_leg(outer);
        let now = self.now;
        if let Some(routing) = self.routing(outer) {
            routing.lookup.handle_peer(now, outcome);
        }
    }

    /// Something arrives at the peer listener of a node.
    pub(super) fn arrive_at_peer(&mut self, leg: Key, arrived: Option<Packet>) -> Result<(), String> {
        let now = self.now;
        let Some(packet) = arrived else { return Ok(()) };
        let Some(wire) = self.wires.get_mut(&leg) else { return Ok(()) };
        let node = wire.node;
        let Some(member) = &self.servers[node].member else { return Ok(()) };
        let ServerEnd::Peer(until, head) = &mut wire.server else { return Ok(()) };
        let until = *until;
        match packet {
            Packet::Opened if member.mute_until > now => {
                wire.server = ServerEnd::Mute;
                self.write(leg, false, Packet::Opened);
            }
            Packet::Opened => self.write(leg, false, Packet::Opened),
            Packet::Block(block) => {
                let mut buffer = BytesMut::from(block.as_ref());
                let Ok(Some(first)) = First::decode(&mut buffer) else {
                    return Err("a block that cannot be read".into());
                };
                let admitted = match &first {
                    First::Head(decoded) => decoded.admit(member.id, &member.key),
                    First::Leave(leave) => leave.admit(member.id, &member.key),
                    First::Question(_) => return Err("no node of this world asks a question".into()),
                };
                match (admitted, first) {
                    (Ok(Admit::Hello), First::Head(decoded)) => *head = Some(Box::new(decoded)),
                    (Ok(Admit::Hello), First::Leave(leave)) => self.handle_leave(leg, &leave),
                    (Ok(Admit::OtherNode), _) => self.answer_peer(leg, &PeerAnswer::OtherNode),
                    (Ok(_), First::Question(_)) => {}
                    (Err(error), _) => return Err(format!("a block that is not admitted: {error}")),
                }
            }
            Packet::Message(kind, payload) => {
                let head = head.take().ok_or("a HELLO without a head")?;
                match crate::payload::frame(kind, payload) {
                    Ok(Frame::Control(Control::Hello(hello))) => {
                        self.begin_route(leg, hello, head.principal.to_vec(), until + BLOCK_TIME * 4);
                    }
                    other => return Err(format!("a peer listener expected HELLO, got {other:?}")),
                }
            }
            Packet::Close(..) | Packet::Reset => self.set_server_end(leg, ServerEnd::Closed),
            Packet::Ping(_) | Packet::Pong(_) => {}
        }
        Ok(())
    }

    /// Something arrives at an entry node from another node.
    pub(super) fn arrive_at_entry(
        &mut self,
        leg: Key,
        bytes: usize,
        arrived: Option<Packet>,
    ) -> Result<(), String> {
        let outer = Key { leg: 0, ..leg };
        if !self.wires.get(&leg).is_some_and(|wire| wire.client_open) {
            return Ok(());
        }
        if leg.is_of_leave() {
            self.arrive_at_leaving(leg, arrived);
            return Ok(());
        }
        match self.wires.get(&outer).map(|wire| &wire.server) {
            Some(ServerEnd::Relay(relayed)) if *relayed == leg => {
                self.relay(leg, false, bytes, arrived);
                Ok(())
            }
            Some(ServerEnd::Routing(routing))
                if routing.ask.as_ref().is_some_and(|ask| ask.leg == Some(leg)) =>
            {
                self.answer_at_entry(outer, leg, arrived)
            }
            _ => Ok(()),
        }
    }

    fn answer_at_entry(&mut self, outer: Key, leg: Key, arrived: Option<Packet>) -> Result<(), String> {
        let answer = match arrived {
            Some(Packet::Opened) => {
                self.write_head(outer, leg);
                return Ok(());
            }
            Some(Packet::Block(block)) => PeerAnswer::decode(&mut BytesMut::from(block.as_ref())),
            Some(Packet::Reset) => {
                let opened = self.wires.get(&leg).is_some_and(|wire| wire.asks);
                let outcome = if opened { PeerOutcome::Silent } else { PeerOutcome::Refused };
                self.peer_answered(outer, outcome);
                return self.route(outer);
            }
            None => return Ok(()),
            Some(other) => return Err(format!("an entry node got {other:?} from another node")),
        };
        self.note(|| format!("client {} leg {} answers {answer:?}", leg.client, leg.leg));
        match answer {
            Ok(Some(PeerAnswer::Accepted)) => {
                self.counts.relayed += 1;
                self.set_server_end(outer, ServerEnd::Relay(leg));
            }
            Ok(Some(PeerAnswer::Lost(account))) => {
                self.drop_leg(outer);
                self.route_lost(outer, account)?;
            }
            Ok(Some(PeerAnswer::Refused(refuse))) => {
                self.drop_leg(outer);
                self.refuse(outer, &refuse);
            }
            Ok(Some(PeerAnswer::OtherNode)) => self.peer_answered(outer, PeerOutcome::OtherNode),
            Ok(Some(PeerAnswer::Released)) => self.peer_answered(outer, PeerOutcome::Released),
            other => return Err(format!("an answer that cannot be read: {other:?}")),
        }
        self.route(outer)
    }

    /// The other node accepted TCP: the head and the client's HELLO leave.
    fn write_head(&mut self, outer: Key, leg: Key) {
        let Some(entry) = self.wires.get(&outer).map(|wire| wire.node) else { return };
        let Some(from) = self.servers[entry].member.as_ref().map(|member| member.id) else { return };
        let Some(routing) = self.routing(outer) else { return };
        let Some(ask) = &routing.ask else { return };
        let head = Head {
            from,
            to: ask.node,
            key: ask.key,
            path: String::new(),
            principal: Bytes::from(routing.principal.clone()),
            subprotocol: None,
            deflate: None,
            client: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            expiry: None,
        };
        let hello = Control::Hello(routing.hello.clone()).encode();
        if let Ok(head) = head.encode() {
            self.write(leg, true, Packet::Block(head));
        }
        self.write(leg, true, Packet::Message(Kind::Binary, hello));
        if let Some(wire) = self.wires.get_mut(&leg) {
            wire.asks = true;
        }
    }

    // ---- relays ---------------------------------------------------------------------------------

    /// Whether what arrives in this direction may be read: a relay reads no further while unsent bytes wait.
    pub(super) fn has_room(&self, key: Key, up: bool) -> bool {
        let Some(wire) = self.wires.get(&key) else { return true };
        let waits = match &wire.server {
            ServerEnd::Relay(leg) if up => self.wires.get(leg).is_some_and(|wire| wire.up.waits()),
            _ if !up && !key.is_outer() => {
                let outer = self.wires.get(&Key { leg: 0, ..key });
                outer.is_some_and(|outer| matches!(outer.server, ServerEnd::Relay(_)) && outer.down.waits())
            }
            _ => false,
        };
        !waits
    }

    /// Forwards what the entry node has read.
    pub(super) fn relay(&mut self, leg: Key, up: bool, bytes: usize, packet: Option<Packet>) {
        let to = if up { leg } else { Key { leg: 0, ..leg } };
        let is_reset = matches!(packet, Some(Packet::Reset));
        let ends = is_reset || matches!(packet, Some(Packet::Close(..)));
        if is_reset {
            self.reset(to, up);
        } else if let Some(wire) = self.wires.get_mut(&to) {
            wire.lane(up).push_piece(bytes, packet);
            self.drain(to, up);
        }
        if ends {
            self.end_relay(leg);
        }
    }

    /// Neither side is read any more; what was written to them still leaves.
    fn end_relay(&mut self, leg: Key) {
        self.note(|| format!("the relay of client {} over leg {} ends", leg.client, leg.leg));
        self.close_client_end(leg);
        self.set_server_end(Key { leg: 0, ..leg }, ServerEnd::Closed);
    }

    /// A relay's node drops both sides.
    pub(super) fn cut_relay(&mut self, leg: Key) {
        self.reset(leg, true);
        self.reset(Key { leg: 0, ..leg }, false);
        self.end_relay(leg);
    }

    /// Returns when a relay gives up a side that accepts nothing.
    fn stuck_at(&self, outer: &Wire) -> Option<Instant> {
        let ServerEnd::Relay(leg) = outer.server else { return None };
        let up = self.wires.get(&leg).and_then(|leg| leg.client.stuck_since());
        let since = [up, outer.server_observed.stuck_since()].into_iter().flatten().min()?;
        Some(since + STUCK)
    }

    fn end_lost_relays(&mut self, node: usize) -> Result<(), String> {
        let stuck = self
            .wires
            .values()
            .filter(|wire| wire.node == node && self.stuck_at(wire).is_some_and(|at| at <= self.now));
        let stuck: Vec<_> = stuck
            .filter_map(|wire| match wire.server {
                ServerEnd::Relay(leg) => Some(leg),
                _ => None,
            })
            .collect();
        stuck.into_iter().for_each(|leg| self.cut_relay(leg));
        let lost = |(key, wire): (&Key, &Wire)| {
            let is_due = wire.gone_at.is_some_and(|at| at <= self.now);
            (wire.entry == Some(node) && wire.client_open && is_due).then_some(*key)
        };
        let legs: Vec<_> = self.wires.iter().filter_map(lost).collect();
        for leg in legs {
            if let Some(wire) = self.wires.get_mut(&leg) {
                wire.gone_at = None;
            }
            self.arrive_at_entry(leg, 1, Some(Packet::Reset))?;
        }
        Ok(())
    }

    /// Relays read and write until nothing moves.
    pub(super) fn relay_all(&mut self) -> Result<(), String> {
        if self.plan.cluster.is_none() {
            return Ok(());
        }
        loop {
            let relayed = |(key, wire): (&Key, &Wire)| {
                (!key.is_outer() || matches!(wire.server, ServerEnd::Relay(_))).then_some(*key)
            };
            let keys: Vec<_> = self.wires.iter().filter_map(relayed).collect();
            let mut any = false;
            for key in keys {
                while self.read_one(key)? {
                    any = true;
                }
            }
            if !any {
                return Ok(());
            }
            self.drain_all();
        }
    }

    /// The legs of a client's connection, itself among them.
    pub(super) fn legs(&self, key: Key) -> impl Iterator<Item = &Wire> {
        self.wires.range(Key { leg: 0, ..key }..=Key { leg: u64::MAX, ..key }).map(|(_, wire)| wire)
    }

    /// The processes on the way of a client's connection, without those at its ends.
    pub(super) fn relaying(&self, key: Key) -> impl Iterator<Item = &Process> {
        self.legs(key).filter_map(|wire| wire.entry).map(|entry| &self.servers[entry].process)
    }

    // ---- invariants -----------------------------------------------------------------------------

    /// At most one of all sessions under one key delivers anything.
    pub(super) fn check_key(&mut self, stream: usize) -> Result<(), String> {
        let Some(key) = self.sessions.streams[stream].key.clone() else { return Ok(()) };
        match *self.cluster.delivering.entry(key).or_insert(stream) {
            first if first == stream => Ok(()),
            first => Err(format!("sessions {first} and {stream} have one key, and both deliver")),
        }
    }

    /// Over all nodes, an account is reported to one instance only. (The engine knows which node has it. Where
    /// the engine forgot that, a second node may get the account.)
    pub(super) fn check_account(&mut self, lost: usize, instance: Instance) -> Result<(), String> {
        let (first, at) = *self.cluster.accounts.entry(lost).or_insert((instance, self.now));
        if first == instance || self.has_engine_forgotten(at) || self.sessions.streams[lost].is_forked {
            return Ok(());
        }
        Err(format!("the account of session {lost} was reported to two instances"))
    }

    fn has_engine_forgotten(&self, since: Instant) -> bool {
        self.cluster.engine.forgot.is_some_and(|at| at >= since)
    }

    /// A session is lost only with its node, or where its node cannot be reached and may seem dead.
    /// One that waits in the engine is not lost.
    pub(super) fn check_loss(&self, client: usize, lost: usize) -> Result<(), String> {
        if self.cluster.abandoned.contains(&lost) {
            return Err(format!("client {client} lost session {lost}, which waits in the engine"));
        }
        let lives = |hosted: &&Hosted| {
            hosted.stream == lost && hosted.machine.as_ref().is_some_and(|machine| machine.is_open())
        };
        let Some(hosted) = self.sessions.hosted.iter().find(lives) else { return Ok(()) };
        let recent = self.now - Duration::from_secs(60);
        let hampered = |until: Option<Instant>| until.is_some_and(|until| until >= recent);
        let node = &self.servers[hosted.node];
        let silent = node.process.was_hampered(recent) || hampered(self.cluster.peers_hampered_until);
        let unseen = node.process.was_hampered(recent)
            || hampered(self.cluster.engine_hampered_until)
            || self.has_engine_forgotten(recent);
        let stream = &self.sessions.streams[lost];
        let is_forgotten = stream.adopted.is_some_and(|at| self.has_engine_forgotten(at));
        let is_copied = stream.copied.is_some_and(|at| at >= recent);
        if stream.is_forked
            || is_forgotten
            || is_copied
            || (silent && unseen)
            || self.is_unlisted(hosted.node)
            || self.clients[client].is_foreign()
        {
            return Ok(());
        }
        Err(format!("client {client} lost session {lost}, which lives at node {}", hosted.node))
    }

    /// Whether the engine has lost the field of this node, which could not write it again for so long that a node that
    /// started since takes it for gone.
    fn is_unlisted(&self, node: usize) -> bool {
        let Some(listed_by) = self.cluster.engine.forgot.map(|at| at + COMPLETE_AFTER) else { return false };
        let reached = self.cluster.engine.reached_since(node);
        let was_away = reached.is_none_or(|since| since > listed_by && since + COMPLETE_AFTER > self.now);
        was_away && listed_by <= self.now
    }
}

/// Returns the session that this HELLO asks for.
fn route_of(hello: &Hello) -> Option<[u8; 8]> {
    Some(Route::of(&hello.resume.as_ref()?.token)?.session.0)
}

fn show_step(step: &Step) -> String {
    match step {
        Step::Adopt { claim, .. } => format!("adopts, claim {claim}"),
        Step::Ask { node, address, pause, .. } => {
            format!("asks {node} at {} after {pause:?}", address.port())
        }
        other => format!("{other:?}"),
    }
}
