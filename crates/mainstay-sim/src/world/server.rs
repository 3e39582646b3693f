//! A server's process: its registry, the connections that reach it, and what its sessions do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::heartbeat::{Action, Evidence, HeartbeatConfig};
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{
    Answer, ConnectionId, Control, Frame, NodeId, Presenter, RefuseReason, Registry, RegistryConfig,
    ServerConfig, ServerSession, Transmit,
};
use mainstay_proto::ws::{CloseCode, Kind};
use rand::RngExt;

use super::client::show;
use super::member::Member;
use super::network::{Key, Packet, ServerEnd, Wire, Written};
use super::{OPENING_DEADLINE, Process, World};
use crate::judge::{self, Observed};
use crate::payload::Payload;
use crate::plan::Plan;

pub(super) struct Server {
    pub(super) registry: Registry<usize>,
    config: Arc<ServerConfig>,
    limits: RegistryConfig,
    next_send: Instant,
    pub(super) process: Process,
    /// Its process was killed, or exited after a drain.
    pub(super) is_dead: bool,
    /// Its machine died with it: nothing answers there.
    pub(super) vanished: bool,
    pub(super) member: Option<Box<Member>>,
    /// AUTHs that are being judged: when the verdict comes, for which session and connection, and the credentials.
    auths: Vec<(Instant, usize, ConnectionId, Bytes)>,
}

impl Server {
    pub(super) fn new(
        now: Instant,
        plan: &Plan,
        config: &Arc<ServerConfig>,
        node: Option<[u8; 32]>,
        seed: [u8; 32],
    ) -> Self {
        let mut limits = RegistryConfig::default();
        limits.sessions = plan.spare_room.map_or(limits.sessions, |spare| plan.clients + spare);
        limits.tombstones = plan.tombstones.unwrap_or(limits.tombstones);
        limits.node = node.map(node_id);
        limits.confirmation_first = node.is_some();
        Self {
            registry: Registry::new(now, limits, Arc::clone(config), seed),
            config: Arc::clone(config),
            limits,
            next_send: now,
            process: Process::new(now),
            is_dead: false,
            vanished: false,
            member: None,
            auths: Vec::new(),
        }
    }

    /// Whether its process exists.
    pub(super) fn lives(&self) -> bool {
        !self.is_dead
    }

    /// Whether its process exists and is not paused.
    pub(super) fn runs(&self, now: Instant) -> bool {
        self.lives() && self.process.is_awake(now)
    }

    pub(super) fn restart(&mut self, now: Instant, seed: [u8; 32]) {
        self.auths.clear();
        self.registry = Registry::new(now, self.limits, Arc::clone(&self.config), seed);
        self.process = Process { paused_until: now, ..self.process };
    }
}

/// Returns the id of a node that is born from these random bytes.
pub(super) fn node_id(random: [u8; 32]) -> NodeId {
    let mut id = [0; 8];
    id.copy_from_slice(&random[..8]);
    NodeId(id)
}

/// Returns the configuration of all sessions of a run.
pub(super) fn config(plan: &Plan) -> Arc<ServerConfig> {
    let heartbeat = HeartbeatConfig::every(plan.heartbeat.max(Duration::from_secs(1))).unwrap_or_default();
    let mut config = ServerConfig { heartbeat, resume_window: plan.resume_window, ..ServerConfig::default() };
    if let Some(window) = plan.windows {
        (config.flow.keep, config.flow.accept) = (window, window);
    }
    if let Some(messages) = plan.drops_above {
        config.flow.keep.messages = messages;
    }
    config.flow.manual_ack = plan.manual;
    Arc::new(config)
}

/// Returns the principal that these credentials prove.
fn principal(credentials: Option<&Bytes>) -> Option<Vec<u8>> {
    let words = std::str::from_utf8(credentials?).ok()?;
    let mut words = words.split(' ');
    let (role, who) = (words.next()?, words.next()?);
    (role == "user").then(|| who.as_bytes().to_vec())
}

impl World {
    pub(super) fn next_of_server(&self, node: usize) -> impl Iterator<Item = Instant> {
        let server = &self.servers[node];
        let hosted = self.sessions.active().map(|(_, hosted)| hosted);
        let hosted = hosted.filter(move |hosted| hosted.node == node);
        let sessions = hosted.clone().filter_map(|session| session.machine.as_ref()?.poll_timeout());
        let hosted = hosted.filter(|session| session.machine.is_some());
        // An application that may receive, and runs, has received what there is.
        let (now, runs) = (self.now, server.runs(self.now));
        let takes =
            hosted.clone().filter_map(move |session| session.next_take.filter(|at| *at > now || !runs));
        let takes = takes.chain(hosted.filter_map(|session| session.confirms_at));
        let sends = (!self.healing).then_some(server.next_send);
        let auths = server.auths.iter().map(|(at, ..)| *at);
        let wires = self.wires.values().filter(move |wire| wire.node == node);
        let openings = wires.filter_map(|wire| match wire.server {
            ServerEnd::Opening(until) => Some(until),
            ServerEnd::Judging { at, until, .. } => Some(at.min(until)),
            _ => None,
        });
        sessions.chain(takes).chain(sends).chain(auths).chain(openings)
    }

    pub(super) fn server_turn(&mut self, node: usize) -> Result<(), String> {
        self.server_sends(node);
        self.judge_hellos(node)?;
        self.judge_auths(node);
        for session in self.sessions.of_node(node) {
            let hosted = &mut self.sessions.hosted[session];
            if let (Some(machine), Some(_)) =
                (&mut hosted.machine, hosted.confirms_at.take_if(|at| *at <= self.now))
            {
                machine.acknowledge(self.now, u64::MAX);
                let confirmed = std::mem::take(&mut hosted.unconfirmed);
                let owner = self.sessions.streams[hosted.stream].owner;
                if let Some(client) = self.clients.get_mut(owner.0) {
                    client.sent.confirmed(confirmed);
                }
            }
            self.old_handler(session)?;
            self.keep_time(session)?;
        }
        Ok(())
    }

    fn server_sends(&mut self, node: usize) {
        let (now, longest) = (self.now, self.plan.longest);
        if self.healing || self.servers[node].next_send > now {
            return;
        }
        let pause = self.plan.message_every.mul_f64(self.rng.random_range(0.0..1.0));
        self.servers[node].next_send = now + pause + Duration::from_millis(1);
        let mine = self.sessions.of_node(node);
        let count = mine.len().max(1);
        let chosen = self.rng.random_range(0..count);
        let Some(hosted) = mine.get(chosen).and_then(|session| self.sessions.hosted.get_mut(*session)) else {
            return;
        };
        let Some(machine) = hosted.machine.as_mut().filter(|machine| machine.is_confirmed()) else { return };
        let (owner, stream) = (hosted.stream, &mut self.sessions.streams[hosted.stream]);
        let payload = |from, number| Payload { from, owner, number }.write(longest);
        if self.plan.volatile && self.rng.random_bool(0.3) {
            self.volatile_sent += 1;
            machine.send_volatile(payload('S', self.volatile_sent));
        }
        if machine.send(payload('s', stream.sent + 1)).is_ok() {
            stream.sent += 1;
            self.counts.messages += 1;
            if self.plan.cluster.is_some() {
                machine.save(Bytes::copy_from_slice(&stream.sent.to_be_bytes()));
            }
        } else {
            self.counts.full += 1;
        }
    }

    /// A handler that was told to return and did not: nothing of its session is there for it.
    fn old_handler(&mut self, session: usize) -> Result<(), String> {
        let (now, longest) = (self.now, self.plan.longest);
        let hosted = &mut self.sessions.hosted[session];
        let Some(mut machine) = hosted.released.take() else { return Ok(()) };
        let (owner, stream) = (hosted.stream, &mut self.sessions.streams[hosted.stream]);
        if machine.send(Payload { from: 's', owner, number: stream.sent + 1 }.write(longest)).is_ok() {
            stream.sent += 1;
        }
        while let Some(delivery) = machine.deliver(now) {
            let payload = Payload::from_delivery(&delivery, 'c', longest)?;
            self.clients[payload.owner].sent.delivered(owner, payload.number)?;
        }
        Ok(())
    }

    // ---- time -----------------------------------------------------------------------------------

    fn keep_time(&mut self, session: usize) -> Result<(), String> {
        let now = self.now;
        let Some(machine) = self.sessions.hosted[session].machine.as_mut() else { return Ok(()) };
        if machine.poll_timeout().is_none_or(|at| at > now) {
            return Ok(());
        }
        let connection = machine.connection();
        let mut verdict = None;
        while verdict.is_none() {
            let Some(machine) = self.sessions.hosted[session].machine.as_mut() else { return Ok(()) };
            match machine.handle_timeout(now) {
                // Everything readable was delivered before this turn.
                Some(Action::Drain) => drop(self.session_writes(session)?),
                Some(action @ (Action::NotListening | Action::Dead(_))) => verdict = Some(action),
                Some(Action::Probe { .. }) => {}
                None => break,
            }
        }
        let aborts = self.sessions.hosted[session].machine.as_ref().is_some_and(ServerSession::wants_abort);
        let Some(connection) = connection else { return Ok(()) };
        if let Some(Action::Dead(evidence)) = verdict {
            self.judge_server_verdict(session, connection, evidence)?;
        }
        // A driver drops the transport at once: a queued command would wait behind a full socket.
        if aborts || verdict == Some(Action::NotListening) {
            self.drop_wire(session, connection);
        }
        Ok(())
    }

    fn judge_server_verdict(
        &mut self,
        session: usize,
        connection: ConnectionId,
        evidence: Evidence,
    ) -> Result<(), String> {
        self.note(|| format!("server calls {connection:?} dead: {evidence:?}"));
        self.counts.dead[evidence as usize] += 1;
        let rtt = self.sessions.hosted[session].machine.as_ref().and_then(ServerSession::rtt);
        let Some((key, wire)) = self.wires.iter().find(|(_, wire)| wire.server_id == connection) else {
            return Err("a verdict on a connection that is over".into());
        };
        let judge = judge::Server { interval: self.config.heartbeat.interval(), rtt };
        if let Some(wrong) = judge.too_early(self.now, &wire.server_observed, evidence) {
            return Err(format!(
                "verdict {evidence:?} too early: {wrong}; {}",
                wire.server_observed.describe(self.now)
            ));
        }
        let since = self.now - judge.patience(evidence) - self.plan.round_trip();
        let own = &self.servers[wire.node].process;
        let is_excused = self.clients.get(key.client).is_none_or(|client| {
            let others = self.relaying(*key).chain([&client.process]);
            self.is_excused(*key, &wire.server_observed, own, others, since)
                || self.asks_elsewhere(*key, since)
        });
        if !is_excused {
            return Err(format!("false verdict {evidence:?} on a connection without a fault"));
        }
        Ok(())
    }

    /// Whether the client waits for the answer to a HELLO on another connection, which does not come as it should: until
    /// then it only reads this one.
    fn asks_elsewhere(&self, key: Key, since: Instant) -> bool {
        self.wires.iter().any(|(other, wire)| {
            let same =
                (other.client, other.life) == (key.client, key.life) && other.connection != key.connection;
            same && wire.asks && (wire.up.had_trouble(since) || wire.down.had_trouble(since))
        })
    }

    /// Drops the transport; the session stays, if it is not over.
    fn drop_wire(&mut self, session: usize, connection: ConnectionId) {
        self.note(|| format!("server drops the connection of session {session}"));
        if let Some(machine) = self.sessions.hosted[session].machine.as_mut() {
            machine.handle_lost(self.now, connection);
        }
        if let Some(key) = self.key_of(connection) {
            self.reset(key, false);
            self.set_server_end(key, ServerEnd::Closed);
        }
    }

    // ---- what arrives ---------------------------------------------------------------------------

    pub(super) fn arrive_at_server(&mut self, key: Key, arrived: Option<Packet>) -> Result<(), String> {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&key) else { return Ok(()) };
        wire.server_observed.read_bytes(now);
        let (id, session) = match wire.server {
            ServerEnd::Closed
            | ServerEnd::Judging { .. }
            | ServerEnd::Routing(_)
            | ServerEnd::Moving(..)
            | ServerEnd::Relay(_) => return Ok(()),
            ServerEnd::Mute => {
                if matches!(arrived, Some(Packet::Reset)) {
                    self.set_server_end(key, ServerEnd::Closed);
                }
                return Ok(());
            }
            ServerEnd::Peer(..) => return self.arrive_at_peer(key, arrived),
            ServerEnd::Opening(_) => return self.arrive_at_opening(key, arrived),
            ServerEnd::Bound(session) | ServerEnd::Fenced(session) => (wire.server_id, session),
        };
        if let Some(Control::Pong(beat)) = arrived.as_ref().and_then(|packet| packet.control(&[5])) {
            wire.server_observed.answered(beat.nonce);
        }
        self.note(|| format!("session {session} conn {} <- {arrived:?}", id.0));
        let Some(machine) = self.sessions.hosted[session].machine.as_mut() else { return Ok(()) };
        match arrived {
            Some(Packet::Message(kind, payload)) => {
                let outcome =
                    crate::payload::frame(kind, payload).and_then(|f| machine.handle_frame(now, id, f));
                if let Err(error) = outcome {
                    return Err(format!("server: client {} broke the protocol: {error}", key.client));
                }
            }
            Some(Packet::Ping(nonce)) => {
                machine.handle_bytes(now, id);
                self.answer_ping(key, false, nonce);
            }
            Some(Packet::Close(..) | Packet::Reset) => {
                machine.handle_lost(now, id);
                self.set_server_end(key, ServerEnd::Closed);
            }
            None | Some(Packet::Pong(_) | Packet::Opened | Packet::Block(_)) => machine.handle_bytes(now, id),
        }
        Ok(())
    }

    fn arrive_at_opening(&mut self, key: Key, arrived: Option<Packet>) -> Result<(), String> {
        let now = self.now;
        let Some(packet) = arrived else { return Ok(()) };
        self.note(|| format!("server client {} conn {} <- {packet:?}", key.client, key.connection.0));
        match packet {
            // The opening handshake is answered unless the listener is closed.
            Packet::Opened if now < self.refuse_until => {
                self.set_server_end(key, ServerEnd::Closed);
                self.reset(key, false);
            }
            Packet::Opened => {
                self.set_server_end(key, ServerEnd::Opening(now + OPENING_DEADLINE));
                self.write(key, false, Packet::Opened);
            }
            Packet::Message(kind, payload) => match crate::payload::frame(kind, payload) {
                Ok(Frame::Control(Control::Hello(hello))) => self.begin_hello(key, hello),
                other => return Err(format!("server expected HELLO, got {other:?}")),
            },
            Packet::Close(..) | Packet::Reset => self.set_server_end(key, ServerEnd::Closed),
            Packet::Ping(_) | Packet::Pong(_) | Packet::Block(_) => {}
        }
        Ok(())
    }

    // ---- attaching ------------------------------------------------------------------------------

    fn begin_hello(&mut self, key: Key, hello: Box<Hello>) {
        let at = self.now + self.judging();
        let until = match self.wires.get(&key).map(|wire| &wire.server) {
            Some(ServerEnd::Opening(until)) => *until,
            _ => self.now,
        };
        self.set_server_end(key, ServerEnd::Judging { hello, at, until });
    }

    /// Returns how long a verdict on credentials takes.
    fn judging(&mut self) -> Duration {
        let longest = self.plan.judged_within.unwrap_or_default();
        longest.mul_f64(self.rng.random_range(0.0..1.0))
    }

    /// Handles verdicts that are due, and openings that took too long.
    pub(super) fn judge_hellos(&mut self, node: usize) -> Result<(), String> {
        let mine = |(key, wire): (&Key, &Wire)| (wire.node == node).then_some(*key);
        let keys: Vec<_> = self.wires.iter().filter_map(mine).collect();
        for key in keys {
            let Some(wire) = self.wires.get_mut(&key) else { continue };
            match &wire.server {
                ServerEnd::Opening(until) if *until <= self.now => {
                    self.write(key, false, Packet::Close(4412, "no HELLO".into()));
                    self.set_server_end(key, ServerEnd::Closed);
                }
                ServerEnd::Judging { hello, at, until } if (*at).min(*until) <= self.now => {
                    let (hello, in_time, until) = (hello.clone(), at <= until, *until);
                    self.judge_hello(key, hello, in_time, until)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn judge_hello(
        &mut self,
        key: Key,
        hello: Box<Hello>,
        in_time: bool,
        until: Instant,
    ) -> Result<(), String> {
        let judges = self.plan.judged_within.is_some();
        let principal = if judges {
            principal(hello.credentials.as_ref().map(|credentials| &credentials.0))
        } else {
            Some(Vec::new())
        };
        match principal {
            _ if judges && (!in_time || self.no_judge_until > self.now) => {
                self.refuse(key, &RefuseReason::NotJudged.refuse());
            }
            None => self.refuse(key, &RefuseReason::Unauthorized.refuse()),
            Some(principal) if self.plan.cluster.is_some() && hello.resume.is_some() => {
                self.begin_route(key, hello, principal, until.max(self.now + Duration::from_secs(1)));
            }
            Some(principal) => return self.hello(key, &hello, principal),
        }
        Ok(())
    }

    pub(super) fn refuse(&mut self, key: Key, refuse: &Control) {
        self.counts.refused += 1;
        self.write(key, false, Packet::Message(Kind::Binary, refuse.encode()));
        self.write(key, false, Packet::Close(1000, String::new()));
        self.set_server_end(key, ServerEnd::Closed);
    }

    fn hello(&mut self, key: Key, hello: &Hello, principal: Vec<u8>) -> Result<(), String> {
        let Some((id, node)) = self.wires.get(&key).map(|wire| (wire.server_id, wire.node)) else {
            return Ok(());
        };
        let who = Presenter { principal: &principal, ..Presenter::default() };
        self.sessions.creator = node;
        let answer = self.servers[node].registry.hello(self.now, id, who, hello, &mut self.sessions);
        self.note(|| format!("answer {answer:?}"));
        self.attach(key, hello, principal, answer)
    }

    /// Does what the registry answered to a HELLO.
    pub(super) fn attach(
        &mut self,
        key: Key,
        hello: &Hello,
        principal: Vec<u8>,
        answer: Answer<usize>,
    ) -> Result<(), String> {
        let Some(node) = self.wires.get(&key).map(|wire| wire.node) else { return Ok(()) };
        let (session, created, evicted, fenced) = match answer {
            Answer::Attached { session, created, evicted, fenced, lost: _ } => {
                (session, created, evicted, fenced)
            }
            Answer::Refused { refuse, .. } => {
                self.refuse(key, &refuse);
                return Ok(());
            }
        };
        if let Some(evicted) = evicted {
            self.bury_if_over(evicted);
        }
        let (live, limit) = (self.sessions.live(node), self.servers[node].limits.sessions);
        let stream = self.sessions.stream_of(session);
        if created {
            (stream.owner, stream.principal) = ((key.client, key.life), principal);
            stream.key = Some(Bytes::copy_from_slice(&hello.key.0));
            if let Some(machine) = self.sessions.machine(session)
                && self.plan.cluster.is_some_and(|cluster| cluster.movable)
            {
                machine.set_movable();
            }
            if let (Some(_), Some(machine)) = (self.plan.drops_above, self.sessions.machine(session)) {
                machine.drop_oldest_when_full();
            }
            if live > limit {
                return Err(format!("{live} sessions live, of {limit}"));
            }
        } else {
            self.counts.resumed += 1;
            if key.is_of_copy() {
                stream.copied = Some(self.now);
            }
            let owner = (key.client, key.life);
            if (stream.owner != owner && !key.is_of_copy()) || stream.principal != principal {
                return Err(format!("session {session} was opened to another principal"));
            }
        }
        if let Some(fenced) = fenced
            && let Some(old) = self.key_of(fenced.connection)
        {
            self.write(old, false, Packet::Close(u16::from(CloseCode::SUPERSEDED), fenced.reason));
            self.set_server_end(old, ServerEnd::Fenced(session));
        }
        self.set_server_end(key, ServerEnd::Bound(session));
        if let Some(wire) = self.wires.get_mut(&key) {
            wire.server_observed = Observed::new(self.now);
        }
        Ok(())
    }

    fn judge_auths(&mut self, node: usize) {
        let now = self.now;
        while let Some(at) = self.servers[node].auths.iter().position(|(at, ..)| *at <= now) {
            let (_, session, connection, credentials) = self.servers[node].auths.swap_remove(at);
            let Some(machine) = &mut self.sessions.hosted[session].machine else { continue };
            let available = self.plan.judged_within.is_some() && self.no_judge_until <= now;
            let principal = principal(Some(&credentials)).filter(|_| available);
            let proof = principal.as_deref().map(|principal| (principal, None));
            machine.handle_verdict(now, connection, proof);
            self.counts.judged += 1;
        }
    }

    pub(super) fn key_of(&self, connection: ConnectionId) -> Option<Key> {
        self.wires.iter().find(|(_, wire)| wire.server_id == connection).map(|(key, _)| *key)
    }

    pub(super) fn set_server_end(&mut self, key: Key, end: ServerEnd) {
        if let Some(wire) = self.wires.get_mut(&key) {
            if matches!(end, ServerEnd::Closed) {
                wire.up.drop_flying();
            }
            wire.server = end;
        }
    }

    // ---- what it says ---------------------------------------------------------------------------

    pub(super) fn settle_session(&mut self, session: usize) -> Result<(), String> {
        let (now, node) = (self.now, self.sessions.hosted[session].node);
        loop {
            self.session_takes(session)?;
            let Some(machine) = self.sessions.hosted[session].machine.as_mut() else { return Ok(()) };
            if let Some((connection, credentials)) = machine.poll_auth() {
                let at = now + self.judging();
                self.servers[node].auths.push((at, session, connection, credentials));
            }
            if !self.session_writes(session)? {
                break;
            }
        }
        self.bury_if_over(session);
        Ok(())
    }

    fn session_takes(&mut self, session: usize) -> Result<(), String> {
        let (now, longest) = (self.now, self.plan.longest);
        loop {
            let pause = self.handling();
            let hosted = &mut self.sessions.hosted[session];
            let stream = &mut self.sessions.streams[hosted.stream];
            let Some(machine) = &mut hosted.machine else { return Ok(()) };
            while let Some(message) = machine.deliver_volatile() {
                let payload = Payload::read(&message, 'C', longest)?;
                if payload.owner != stream.owner.0 {
                    return Err(format!("{payload:?} in a session of client {}", stream.owner.0));
                }
                stream.volatile.delivered(payload.number)?;
                self.counts.volatile += 1;
            }
            if hosted.next_take.is_some_and(|at| at > now) {
                return Ok(());
            }
            let leaves = machine.is_leaving();
            let Some(delivery) = machine.deliver(now) else { return Ok(()) };
            if leaves {
                return Err(format!("session {session} leaves, and its handler received a message"));
            }
            hosted.next_take = Some(now + pause);
            if self.plan.manual {
                hosted.confirms_at.get_or_insert(now + pause + Duration::from_millis(700));
            }
            let payload = Payload::from_delivery(&delivery, 'c', longest)?;
            if payload.owner != stream.owner.0 {
                return Err(format!("{payload:?} in a session of client {}", stream.owner.0));
            }
            let (stream, manual) = (hosted.stream, self.plan.manual);
            if manual {
                hosted.unconfirmed.push(payload.number);
            }
            let sent = &mut self.clients[payload.owner].sent;
            sent.delivered(stream, payload.number)?;
            if !manual {
                sent.confirmed([payload.number]);
            }
            self.check_key(stream)?;
        }
    }

    /// Writes the stream, as far as the socket accepts it. Returns `true` if bytes were written, so there may be
    /// more.
    fn session_writes(&mut self, session: usize) -> Result<bool, String> {
        let (now, mut any) = (self.now, false);
        loop {
            self.check_acknowledged(session)?;
            let hosted = &mut self.sessions.hosted[session];
            let Some(machine) = &mut hosted.machine else { return Ok(any) };
            let Some(connection) = machine.connection() else { return Ok(any) };
            let found = self.wires.iter_mut().find(|(_, wire)| wire.server_id == connection);
            let Some((key, wire)) = found else {
                return Err(format!("session {session} has a connection that is over"));
            };
            let (key, waits) = (*key, wire.down.waits());
            let next = if waits { None } else { machine.poll_transmit(now, connection) };
            let Some(transmit) = next else {
                match wire.down.outcome() {
                    Written::All => machine.handle_flushed(now, connection),
                    Written::Some => machine.handle_write_progress(now, connection),
                    Written::None => {}
                }
                return Ok(any);
            };
            // One writer in one epoch, and no way back.
            let (epoch, before) = (machine.epoch(), hosted.writer.replace((machine.epoch(), connection)));
            if before.is_some_and(|(old, was)| epoch < old || (epoch == old && was != connection)) {
                return Err(format!("session {session} writes two connections in epoch {epoch}"));
            }
            any = true;
            self.note(|| format!("session {session} conn {} -> {}", connection.0, show(&transmit)));
            self.session_transmits(session, key, connection, &transmit);
        }
    }

    /// Checks that the client's application received what the client acknowledged. (The application cannot observe
    /// to which session an initial gap belongs.)
    fn check_acknowledged(&self, session: usize) -> Result<(), String> {
        let hosted = &self.sessions.hosted[session];
        let acknowledged = hosted.machine.as_ref().map_or(0, ServerSession::acknowledged);
        let delivered = self.sessions.streams[hosted.stream].delivered;
        let known = delivered > 0 || self.plan.drops_above.is_none();
        if acknowledged > delivered && known {
            return Err(format!("{acknowledged} acknowledged, {delivered} delivered, session {session}"));
        }
        Ok(())
    }

    fn session_transmits(&mut self, session: usize, key: Key, connection: ConnectionId, transmit: &Transmit) {
        let Some(packet) = Packet::of(transmit) else { return };
        if matches!(packet, Packet::Reset) {
            return self.drop_wire(session, connection);
        }
        let last = matches!(packet, Packet::Close(..));
        self.write(key, false, packet);
        if last {
            if let Some(machine) = &mut self.sessions.hosted[session].machine {
                machine.handle_lost(self.now, connection);
            }
            self.set_server_end(key, ServerEnd::Closed);
        }
    }

    pub(super) fn bury_if_over(&mut self, session: usize) {
        let hosted = &mut self.sessions.hosted[session];
        let node = hosted.node;
        let Some(machine) = hosted.machine.take_if(|machine| machine.closed().is_some()) else { return };
        self.note(|| format!("session {session} is over: {:?}", machine.closed()));
        self.servers[node].registry.bury(self.now, &machine);
        let bound = |end: &ServerEnd| match end {
            ServerEnd::Bound(bound) | ServerEnd::Fenced(bound) => *bound == session,
            _ => false,
        };
        let keys: Vec<_> =
            self.wires.iter().filter(|(_, wire)| bound(&wire.server)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.set_server_end(key, ServerEnd::Closed));
    }

    pub(super) fn handling(&mut self) -> Duration {
        if self.plan.handling.is_zero() {
            return Duration::ZERO;
        }
        self.plan.handling.mul_f64(self.rng.random_range(0.0..1.0))
    }
}
