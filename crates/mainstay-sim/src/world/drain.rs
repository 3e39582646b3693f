//! Drains: sessions leave a node, or end with an account, and then the node exits.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mainstay_proto::cluster::ReleaseOutcome;
use mainstay_proto::cluster::peer::{Leave, PeerAnswer};
use mainstay_proto::session::message::{Delay, SessionId};
use mainstay_proto::session::{ConnectionId, Transmit};
use rand::RngExt;

use super::World;
use super::network::{Key, Packet, ServerEnd, Wire};
use super::sessions::Left;

/// How long a handler may take to return once its session leaves.
const HANDLER_RETURNS: Duration = Duration::from_secs(5);
/// How long the engine keeps the account of a session that ended in a drain.
const ACCOUNT: Duration = Duration::from_secs(24 * 60 * 60);

/// A session that leaves, until its handler returns.
pub(super) struct Leaving {
    /// `None`: its handler never returns.
    returns_at: Option<Instant>,
    deadline: Instant,
}

impl Leaving {
    pub(super) fn next(&self) -> Instant {
        self.returns_at.map_or(self.deadline, |at| at.min(self.deadline))
    }
}

/// How far a drain is.
pub(super) struct Drain {
    phase: Phase,
    /// When the next phase begins, whatever happens.
    next: Instant,
    /// Relays that are cut, and when.
    relays: Vec<(Instant, Key)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Clients are asked to come back elsewhere.
    Asked,
    /// Sessions that are left leave or end.
    Leaves,
    /// The engine gets the accounts.
    Accounts,
    /// The engine learns that the node leaves.
    Parts,
    Exits,
}

impl Drain {
    pub(super) fn next(&self) -> Instant {
        self.relays.iter().map(|(at, _)| *at).fold(self.next, Instant::min)
    }
}

impl World {
    /// Whether the accounts of sessions that ended at this node are with the engine.
    pub(super) fn gave_accounts(&self, node: usize) -> bool {
        let drain = self.servers[node].member.as_ref().and_then(|member| member.drain.as_ref());
        drain.is_some_and(|drain| !matches!(drain.phase, Phase::Asked | Phase::Leaves))
    }

    pub(super) fn drains(&self, node: usize) -> bool {
        self.servers[node].member.as_ref().is_some_and(|member| member.drain.is_some())
    }

    /// Begins a drain.
    pub(super) fn drain_node(&mut self, node: usize) {
        let Some(cluster) = self.plan.cluster else { return };
        let (now, close_in) = (self.now, cluster.drain.mul_f64(0.7));
        let server = &mut self.servers[node];
        server.registry.set_draining(true);
        server.registry.set_closed(true);
        let relayed = |wire: &Wire| match wire.server {
            ServerEnd::Relay(leg) if wire.node == node => Some(leg),
            _ => None,
        };
        let legs: Vec<_> = self.wires.values().filter_map(relayed).collect();
        self.tell_owners(node, &legs, close_in / 2);
        let relays = legs
            .into_iter()
            .map(|leg| (now + close_in.mul_f64(self.rng.random_range(0.75..1.0)), leg))
            .collect();
        if let Some(member) = &mut self.servers[node].member {
            member.drain = Some(Drain { phase: Phase::Asked, next: now + close_in, relays });
        }
        let delay = Delay { min: Duration::ZERO, max: close_in / 2 };
        for session in self.sessions.of_node(node) {
            let Some(machine) = self.sessions.machine(session) else { continue };
            let moves = machine.leaves_first() && machine.is_open();
            machine.go_away(now, "deploy", delay, close_in);
            if moves && machine.connection().is_none() {
                self.leave_node(session);
            }
        }
    }

    // ---- relays ---------------------------------------------------------------------------------

    /// Tells the owners of these relays that they are cut soon.
    fn tell_owners(&mut self, node: usize, relays: &[Key], within: Duration) {
        let owners: BTreeSet<_> =
            relays.iter().filter_map(|leg| self.wires.get(leg)).map(|wire| wire.node).collect();
        for owner in owners {
            let Some(to) = self.servers[owner].member.as_ref().map(|member| member.id) else { continue };
            let Some(member) = &mut self.servers[node].member else { continue };
            let Some(&(slot, key)) = member.asked.get(&to) else { continue };
            let block = Leave { from: member.id, to, key, within }.encode();
            let leg =
                Key { client: Key::LEAVES, life: 0, connection: ConnectionId(0), leg: self.cluster.next_leg };
            self.connect_to_peer(leg, node, slot);
            self.note(|| format!("node {node} tells node {owner} that it leaves, over leg {}", leg.leg));
            self.write(leg, true, Packet::Block(block));
        }
    }

    /// The connection of LEAVE ends behind it.
    pub(super) fn arrive_at_leaving(&mut self, leg: Key, arrived: Option<Packet>) {
        if matches!(arrived, Some(Packet::Reset | Packet::Block(_))) {
            self.close_client_end(leg);
            self.reset(leg, true);
        }
    }

    /// Another node cuts its relays soon: their clients replace their connections.
    pub(super) fn handle_leave(&mut self, leg: Key, leave: &Leave) {
        let Some(node) = self.wires.get(&leg).map(|wire| wire.node) else { return };
        let (now, delay) = (self.now, Delay { min: Duration::ZERO, max: leave.within });
        let is_from =
            |entry: usize| self.servers[entry].member.as_ref().is_some_and(|member| member.id == leave.from);
        let relayed: Vec<_> = self
            .wires
            .values()
            .filter(|wire| wire.node == node && wire.entry.is_some_and(is_from))
            .filter_map(|wire| match wire.server {
                ServerEnd::Bound(session) => Some((session, wire.server_id)),
                _ => None,
            })
            .collect();
        for (session, connection) in relayed {
            let machine = self.sessions.machine(session);
            let Some(machine) = machine.filter(|machine| machine.connection() == Some(connection)) else {
                continue;
            };
            machine.go_away(now, "deploy", delay, Duration::ZERO);
            self.counts.asked += 1;
            self.note(|| format!("session {session} is asked to leave the relay of {}", leave.from));
        }
        self.drop_server_end(leg);
    }

    // ---- sessions -------------------------------------------------------------------------------

    /// The session leaves its node, once its handler returns.
    pub(super) fn leave_node(&mut self, session: usize) {
        let Some(cluster) = self.plan.cluster else { return };
        let now = self.now;
        let hangs = cluster.hangs && self.rng.random_bool(0.3);
        let takes = cluster.returns_within.mul_f64(self.rng.random_range(0.0..1.0));
        let node = self.sessions.hosted[session].node;
        let Some(machine) = self.sessions.machine(session) else { return };
        if !machine.is_open() || machine.is_leaving() {
            return;
        }
        let has_handler = machine.is_confirmed();
        let connection = machine.connection();
        machine.leave(now);
        self.note(|| format!("session {session} leaves node {node}"));
        if let Some(connection) = connection {
            self.write_last(session, connection);
        }
        let returns_at = if has_handler { (!hangs).then_some(now + takes) } else { Some(now) };
        if let Some(member) = &mut self.servers[node].member {
            member.leaving.insert(session, Leaving { returns_at, deadline: now + HANDLER_RETURNS });
        }
    }

    /// The connection that a session left gets its Close.
    fn write_last(&mut self, session: usize, connection: ConnectionId) {
        let Some(key) = self.key_of(connection) else { return };
        let now = self.now;
        while let Some(transmit) =
            self.sessions.machine(session).and_then(|machine| machine.poll_transmit(now, connection))
        {
            if let (Some(packet), true) = (Packet::of(&transmit), matches!(transmit, Transmit::Close { .. }))
            {
                self.write(key, false, packet);
            }
        }
        self.set_server_end(key, ServerEnd::Closed);
    }

    /// Sessions whose handlers have returned are released; those whose handlers take too long end.
    pub(super) fn handlers_return(&mut self, node: usize) -> Result<(), String> {
        let now = self.now;
        let Some(member) = &self.servers[node].member else { return Ok(()) };
        let due: Vec<_> = member
            .leaving
            .iter()
            .filter(|(_, leaving)| leaving.next() <= now)
            .map(|(session, leaving)| (*session, leaving.returns_at.is_some_and(|at| at <= now)))
            .collect();
        for (session, returned) in due {
            if let Some(member) = &mut self.servers[node].member {
                member.leaving.remove(&session);
            }
            if returned {
                self.release(node, session);
            } else {
                self.note(|| format!("the handler of session {session} does not return"));
                self.end_in_drain(session);
            }
        }
        Ok(())
    }

    fn release(&mut self, node: usize, session: usize) {
        let now = self.now;
        let Some(mut machine) = self.sessions.hosted[session].machine.take() else { return };
        let server = &mut self.servers[node];
        let released = server.registry.release(now, &mut machine);
        self.sessions.hosted[session].machine = Some(machine);
        let Some(released) = released else { return };
        self.note(|| format!("session {session} is released by claim {}", released.claim));
        let head = released.record.head.as_ref();
        let name =
            |from: usize| head.get(from..).and_then(|head| head.first_chunk()).copied().unwrap_or_default();
        let names = [name(0), name(16)];
        let hosted = &mut self.sessions.hosted[session];
        hosted.left = Some(Left { names, keep: released.keep, stored: None });
        hosted.released = hosted.machine.take();
        let unconfirmed = std::mem::take(&mut hosted.unconfirmed);
        let (stream, owner) = (hosted.stream, self.sessions.streams[hosted.stream].owner);
        if let Some(client) = self.clients.get_mut(owner.0) {
            client.sent.moved(stream, &unconfirmed);
        }
        if let Some(member) = &mut self.servers[node].member {
            member.releasing.insert(released.session.0, session);
            member.nodes.release(now, released.session, released.claim, released.record, released.keep);
        }
        self.ask_engine(node);
    }

    /// The outcome of a release: nodes that asked for the session are answered.
    pub(super) fn handle_released(&mut self, node: usize, session: [u8; 8], outcome: &ReleaseOutcome) {
        let Some(member) = &mut self.servers[node].member else { return };
        let Some(index) = member.releasing.remove(&session) else { return };
        if matches!(outcome, ReleaseOutcome::Unsent | ReleaseOutcome::Refused(_)) {
            self.servers[node].registry.end_released(SessionId(session));
            self.drop_waiting(session);
            return;
        }
        if let (ReleaseOutcome::Stored, Some(hosted)) = (outcome, self.sessions.hosted.get_mut(index))
            && let Some(left) = &mut hosted.left
        {
            left.stored = Some(self.now);
        }
        let legs = self.waiting(session);
        for leg in legs {
            self.write(leg, false, Packet::Block(PeerAnswer::Released.encode()));
            self.set_server_end(leg, ServerEnd::Closed);
        }
    }

    /// Entry nodes that wait for this session ask again.
    fn drop_waiting(&mut self, session: [u8; 8]) {
        self.waiting(session).into_iter().for_each(|leg| self.drop_server_end(leg));
    }

    fn waiting(&self, session: [u8; 8]) -> Vec<Key> {
        let waits = |(key, wire): (&Key, &Wire)| {
            matches!(wire.server, ServerEnd::Moving(waits, _) if waits == session).then_some(*key)
        };
        self.wires.iter().filter_map(waits).collect()
    }

    /// The session ends with an exact account.
    fn end_in_drain(&mut self, session: usize) {
        let now = self.now;
        let Some(machine) = self.sessions.machine(session) else { return };
        let id = machine.id().0;
        machine.retire();
        if let Some(connection) = machine.connection() {
            machine.handle_lost(now, connection);
            if let Some(key) = self.key_of(connection) {
                self.drop_server_end(key);
            }
        }
        self.bury_if_over(session);
        self.drop_waiting(id);
    }

    pub(super) fn note_left(&mut self, node: usize) {
        let now = self.now;
        if let Some(drain) = self.servers[node].member.as_mut().and_then(|member| member.drain.as_mut()) {
            (drain.phase, drain.next) = (Phase::Exits, now);
        }
    }

    pub(super) fn drain_turn(&mut self, node: usize) -> Result<(), String> {
        let (now, Some(cluster)) = (self.now, self.plan.cluster) else { return Ok(()) };
        let Some(member) = &mut self.servers[node].member else { return Ok(()) };
        let Some(drain) = &mut member.drain else { return Ok(()) };
        let due: Vec<_> = drain.relays.extract_if(.., |(at, _)| *at <= now).map(|(_, leg)| leg).collect();
        let is_over = match drain.phase {
            Phase::Leaves | Phase::Accounts => member.leaving.is_empty() && member.releasing.is_empty(),
            _ => false,
        };
        let (phase, is_due) = (drain.phase, drain.next <= now);
        for leg in due {
            self.cut_relay(leg);
        }
        if !is_over && !is_due {
            return Ok(());
        }
        let limit = cluster.drain.mul_f64(0.3) + HANDLER_RETURNS;
        let next = match phase {
            Phase::Asked => {
                self.leave_all_sessions(node);
                (Phase::Leaves, now + limit)
            }
            Phase::Leaves => {
                self.release_accounts(node, !is_over);
                (Phase::Accounts, now + limit)
            }
            Phase::Accounts => {
                if let Some(member) = &mut self.servers[node].member {
                    member.nodes.give_up_releases(now);
                    member.nodes.leave(now);
                }
                (Phase::Parts, now + Duration::from_secs(2))
            }
            Phase::Parts | Phase::Exits => {
                self.kill(node, false);
                return Ok(());
            }
        };
        self.note(|| format!("the drain of node {node}: {:?}", next.0));
        if let Some(drain) = self.servers[node].member.as_mut().and_then(|member| member.drain.as_mut()) {
            (drain.phase, drain.next) = next;
        }
        Ok(())
    }

    /// What did not leave by itself leaves, or ends.
    fn leave_all_sessions(&mut self, node: usize) {
        for session in self.sessions.of_node(node) {
            let Some(machine) = self.sessions.machine(session) else { continue };
            if machine.is_open() && machine.leaves_first() {
                self.leave_node(session);
            } else {
                self.end_in_drain(session);
            }
        }
    }

    fn release_accounts(&mut self, node: usize, gives_up: bool) {
        let now = self.now;
        if gives_up && let Some(member) = &mut self.servers[node].member {
            member.nodes.give_up_releases(now);
        }
        let accounts = self.servers[node].registry.take_accounts();
        let Some(member) = &mut self.servers[node].member else { return };
        for (session, claim, record) in accounts {
            let SessionId(id) = session;
            member.releasing.insert(id, usize::MAX);
            member.nodes.release(now, session, claim, record, ACCOUNT);
        }
    }
}
