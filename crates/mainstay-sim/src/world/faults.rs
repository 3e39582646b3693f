//! What goes wrong, and when it stops.

use std::time::{Duration, Instant};

use mainstay_proto::session::message::Delay;
use mainstay_proto::ws::CloseCode;
use rand::RngExt;

use super::World;
use super::client::Grade;
use super::network::{Key, Packet, ServerEnd};
use crate::plan::Fault;

impl World {
    pub(super) fn strike(&mut self) {
        for slot in 0..self.faults.len() {
            let (at, fault, mean) = self.faults[slot];
            if at > self.now {
                continue;
            }
            let next = mean.mul_f64(self.rng.random_range(0.0..2.0)) + Duration::from_millis(10);
            self.faults[slot].0 = self.now + next;
            let until = self.now + Duration::from_millis(self.rng.random_range(1..40_000));
            self.note(|| format!("fault {fault:?}"));
            let struck = match fault {
                Fault::Reset
                | Fault::BlackHole
                | Fault::BlackHoleUp
                | Fault::BlackHoleDown
                | Fault::Stall
                | Fault::Jam
                | Fault::Trickle => self.strike_wire(fault, until),
                Fault::PauseServer
                | Fault::SleepServer
                | Fault::Restart
                | Fault::GoAway
                | Fault::End
                | Fault::Renew
                | Fault::Replace => self.strike_server(fault, until),
                Fault::Refuse => {
                    self.refuse_until = until;
                    true
                }
                Fault::NoJudge => {
                    self.no_judge_until = until;
                    true
                }
                Fault::Kill
                | Fault::Drain
                | Fault::CutEngine
                | Fault::CutNodes
                | Fault::CutBoth
                | Fault::Mute
                | Fault::SlowEngine
                | Fault::LossyEngine
                | Fault::NoEngine
                | Fault::EmptyEngine
                | Fault::FailOver
                | Fault::OneNode
                | Fault::Copy => self.strike_cluster(fault, until),
                _ => self.strike_client(fault, until),
            };
            let kind = Fault::ALL.iter().position(|kind| *kind == fault);
            if let Some(count) = kind.and_then(|kind| self.counts.faults.0.get_mut(kind)).filter(|_| struck) {
                *count += 1;
            }
        }
    }

    /// Returns `false` if there is no connection to affect.
    fn strike_wire(&mut self, fault: Fault, until: Instant) -> bool {
        let open: Vec<_> =
            self.wires.iter().filter(|(_, wire)| wire.client_open).map(|(key, _)| *key).collect();
        if open.is_empty() {
            return false;
        }
        let key = open[self.rng.random_range(0..open.len())];
        let up = self.rng.random_bool(0.5);
        if !key.is_outer() {
            self.hamper_peers(until);
        }
        let Some(wire) = self.wires.get_mut(&key) else { return false };
        match fault {
            Fault::Reset => {
                wire.up.drop_flying();
                wire.down.drop_flying();
                wire.up.trouble(self.now);
                self.fly(key, true, Packet::Reset);
                self.fly(key, false, Packet::Reset);
            }
            Fault::BlackHoleUp => wire.up.swallow(),
            Fault::BlackHoleDown => wire.down.swallow(),
            Fault::Stall => {
                for lane in [&mut wire.up, &mut wire.down] {
                    lane.hold(until);
                    lane.trouble(until);
                }
            }
            Fault::Jam => {
                wire.lane(up).jammed_until = Some(until);
                wire.lane(up).trouble(until);
            }
            Fault::Trickle => {
                wire.lane(up).trickles_until = Some(until);
                wire.lane(up).trouble(until);
            }
            _ => wire.swallow(),
        }
        if let Some(wire) = self.wires.get_mut(&key).filter(|wire| wire.entry.is_some() && wire.has_hole()) {
            wire.gone_at = Some(self.now + super::cluster::KEEPALIVE);
        }
        true
    }

    fn strike_server(&mut self, fault: Fault, until: Instant) -> bool {
        match fault {
            Fault::PauseServer => {
                let node = self.some_node();
                self.servers[node].process.pause(until, until);
            }
            Fault::SleepServer => {
                let node = self.some_node();
                let late = until + self.retransmission();
                self.servers[node].process.pause(until, late);
                self.servers[node].process.late_until = Some(late);
                let mine = self.wires.values_mut().filter(|wire| wire.node == node);
                mine.for_each(|wire| wire.up.hold(late));
            }
            Fault::Restart => self.restart(),
            Fault::GoAway => {
                let delay = Delay { min: Duration::ZERO, max: Duration::from_secs(2) };
                for machine in self.sessions.hosted.iter_mut().filter_map(|hosted| hosted.machine.as_mut()) {
                    machine.go_away(self.now, "maintenance", delay, Duration::from_secs(5));
                }
            }
            Fault::Replace => {
                for machine in self.sessions.hosted.iter_mut().filter_map(|hosted| hosted.machine.as_mut()) {
                    machine.note_replaced();
                }
            }
            Fault::Renew => return self.renew_a_session(),
            _ => return self.end_a_session(),
        }
        true
    }

    fn strike_client(&mut self, fault: Fault, until: Instant) -> bool {
        let index = self.rng.random_range(0..self.clients.len());
        let silently = self.rng.random_bool(0.3);
        if !self.clients[index].lives() {
            return false;
        }
        let now = self.now;
        let awake = self.clients[index].process.is_awake(now);
        match fault {
            Fault::PauseClient => self.clients[index].process.pause(until, until),
            Fault::SleepClient => {
                let late = until + self.retransmission();
                self.clients[index].process.pause(until, late);
                self.clients[index].process.late_until = Some(late);
                let mine = self.wires.iter_mut().filter(|(key, _)| key.is_outer() && key.client == index);
                mine.for_each(|(_, wire)| wire.down.hold(late));
            }
            Fault::Crash => self.crash_client(index, silently),
            Fault::StopReading => self.clients[index].stops_reading(until),
            Fault::Leave if awake => {
                self.clients[index].may_end = true;
                self.clients[index].machine.close(now, CloseCode::NORMAL, "bye");
            }
            Fault::Online if awake => self.clients[index].machine.probe_now(now),
            Fault::Credentials if awake && self.plan.judged_within.is_some() => self.renew_credentials(index),
            _ => return false,
        }
        true
    }

    /// Bytes that were sent to a machine that slept arrive a little after it woke.
    fn retransmission(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(0..900))
    }

    /// The sockets of a process close with it; if its machine dies, no end is notified.
    pub(super) fn crash_client(&mut self, index: usize, silently: bool) {
        let back_at = self.now + Duration::from_millis(self.rng.random_range(0..10_000));
        for key in self.crash(index, back_at) {
            self.close_client_end(key);
            if silently && let Some(wire) = self.wires.get_mut(&key) {
                wire.swallow();
                wire.up.drop_unsent();
            } else {
                self.reset(key, true);
            }
        }
    }

    fn renew_credentials(&mut self, index: usize) {
        let (now, number) = (self.now, self.rng.random_range(0..1_000));
        let other = (index + 1) % self.clients.len().max(2);
        let (grade, words) = match self.rng.random_range(0..10) {
            0 => (Grade::Bad, format!("unknown {number}")),
            // A key belongs to one principal: a client that becomes another before WELCOME has two sessions.
            1 | 2 if self.clients[index].machine.is_attached() => {
                (Grade::Foreign, format!("user {other} {number}"))
            }
            _ => (Grade::Good, format!("user {index} {number}")),
        };
        self.clients[index].authenticate(now, grade, words);
    }

    fn strike_cluster(&mut self, fault: Fault, until: Instant) -> bool {
        let now = self.now;
        let Some(node) = self.some_serving_node() else { return false };
        let others = |other: &usize| *other != node && self.servers[*other].lives();
        let others: Vec<_> = (0..self.servers.len()).filter(others).collect();
        let other = (!others.is_empty()).then(|| others[self.rng.random_range(0..others.len())]);
        if matches!(fault, Fault::CutNodes | Fault::CutBoth) && other.is_none() {
            return false;
        }
        match fault {
            Fault::Kill => {
                let silently = self.rng.random_bool(0.3);
                let back_at = now + Duration::from_millis(self.rng.random_range(0..8_000));
                self.servers[node].vanished = silently;
                self.kill(node, silently);
                self.bear_again(back_at, node);
            }
            Fault::Drain => {
                self.drain_and_replace(node);
                // A hasty deploy leaves one node.
                if self.rng.random_bool(0.3) {
                    let mut others = self.serving();
                    others.pop();
                    others.into_iter().for_each(|node| self.drain_and_replace(node));
                }
            }
            Fault::Mute => {
                if let Some(member) = &mut self.servers[node].member {
                    member.mute_until = until;
                }
                self.hamper_peers(until);
            }
            Fault::OneNode => self.cluster.one_node = Some((node, until)),
            Fault::Copy => return self.present_a_copy(node),
            _ => {
                let cuts_nodes = matches!(fault, Fault::CutNodes | Fault::CutBoth);
                if let Some(other) = other.filter(|_| cuts_nodes) {
                    self.cut_nodes(node, other, until);
                }
                if fault != Fault::CutNodes {
                    self.strike_engine(fault, node, until);
                }
            }
        }
        true
    }

    fn strike_engine(&mut self, fault: Fault, node: usize, until: Instant) {
        let now = self.now;
        self.hamper_engine(until);
        let (engine, rng) = (&mut self.cluster.engine, &mut self.rng);
        match fault {
            Fault::SlowEngine => engine.slow_until = until,
            Fault::LossyEngine => engine.loses_until = until,
            Fault::NoEngine => engine.away(now, until, rng),
            Fault::EmptyEngine => {
                let back_at = now + Duration::from_millis(rng.random_range(0..5_000));
                let restarts = rng.random_bool(0.5);
                engine.empty(now, restarts.then_some(back_at), rng);
            }
            Fault::FailOver => {
                engine.fail_over(now, rng);
            }
            _ => engine.cut(now, node, until, rng),
        }
    }

    fn drain_and_replace(&mut self, node: usize) {
        let back_at = self.now + Duration::from_millis(self.rng.random_range(0..4_000));
        self.bear_elsewhere(back_at);
        self.drain_node(node);
    }

    /// Returns the nodes that live and do not drain.
    fn serving(&self) -> Vec<usize> {
        let serves = |node: &usize| self.servers[*node].lives() && !self.drains(*node);
        (0..self.servers.len()).filter(serves).collect()
    }

    /// Picks a node that lives and does not drain.
    fn some_serving_node(&mut self) -> Option<usize> {
        let serving = self.serving();
        (!serving.is_empty()).then(|| serving[self.rng.random_range(0..serving.len())])
    }

    /// Picks a node that lives.
    fn some_node(&mut self) -> usize {
        let living: Vec<_> = (0..self.servers.len()).filter(|node| self.servers[*node].lives()).collect();
        if living.len() < 2 {
            living.first().copied().unwrap_or(0)
        } else {
            living[self.rng.random_range(0..living.len())]
        }
    }

    /// The balancer picks the node that gets a connection.
    pub(super) fn balance(&mut self) -> Option<usize> {
        if self.plan.cluster.is_none() {
            return Some(0);
        }
        match self.cluster.one_node {
            Some((node, until)) if until > self.now && self.servers[node].lives() && !self.drains(node) => {
                Some(node)
            }
            _ => self.some_serving_node(),
        }
    }

    /// Picks any open session, while the server runs.
    fn some_open_session(&mut self) -> Option<usize> {
        let open = |hosted: &super::sessions::Hosted| {
            hosted.machine.as_ref().is_some_and(mainstay_proto::session::ServerSession::is_open)
        };
        let sessions = &self.sessions.hosted;
        let runs = |session: &usize| self.servers[sessions[*session].node].runs(self.now);
        let live: Vec<_> =
            (0..sessions.len()).filter(|session| open(&sessions[*session]) && runs(session)).collect();
        (!live.is_empty()).then(|| live[self.rng.random_range(0..live.len())])
    }

    /// Every delivered message was passed on to the backend that is lost.
    fn renew_a_session(&mut self) -> bool {
        let Some(session) = self.some_open_session() else { return false };
        let now = self.now;
        if let Some(machine) = self.sessions.machine(session) {
            machine.renew(now, u64::MAX);
        }
        true
    }

    fn end_a_session(&mut self) -> bool {
        let Some(session) = self.some_open_session() else { return false };
        let now = self.now;
        let (client, life) = self.sessions.stream_of(session).owner;
        if let Some(machine) = self.sessions.machine(session) {
            machine.close(now, CloseCode::SESSION_ENDED, "over");
        }
        if let Some(client) = self.clients.get_mut(client).filter(|client| client.life == life) {
            client.may_end = true;
        }
        true
    }

    fn restart(&mut self) {
        let keys: Vec<Key> = self.wires.keys().copied().collect();
        for key in keys {
            self.set_server_end(key, ServerEnd::Closed);
            self.reset(key, false);
        }
        let seed = self.rng.random();
        self.sessions.hosted.iter_mut().for_each(|session| session.machine = None);
        self.servers[0].restart(self.now, seed);
    }

    pub(super) fn heal(&mut self) {
        self.note(|| "healing".into());
        self.healing = true;
        self.faults.clear();
        (self.refuse_until, self.no_judge_until) = (self.now, self.now);
        let now = self.now;
        self.cluster.heal(now);
        for member in self.servers.iter_mut().filter_map(|server| server.member.as_mut()) {
            member.mute_until = now;
        }
        for wire in self.wires.values_mut().filter(|wire| matches!(wire.server, ServerEnd::Mute)) {
            wire.server = ServerEnd::Closed;
        }
        self.clients.iter_mut().for_each(|client| client.reads_again(now));
        // A black hole stays one: a dead connection is not revived, it is replaced.
    }
}
