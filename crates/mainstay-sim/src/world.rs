//! The world of one seed: machines, a network between them, and time.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::connect::{Client, Command, ConnectConfig, Event, Lost, Mode};
use mainstay_proto::heartbeat::{Action, HeartbeatConfig};
use mainstay_proto::session::message::Delay;
use mainstay_proto::session::{
    Answer, ConnectionId, Control, Delivery, Frame, Message, Presenter, Registry, RegistryConfig,
    ServerConfig, ServerSession, Sessions, Transmit,
};
use mainstay_proto::ws::{CloseCode, Kind};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::oracle::{Got, Sent};
use crate::plan::{Fault, Plan};

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What broke, and when.
    pub failure: Option<String>,
    /// Hash of everything that happened: the same seed gives the same.
    pub trace: u64,
    /// Messages accepted from both sides.
    pub messages: u64,
    /// Attaches that resumed a session with messages still to be replayed, and gaps that were told.
    pub resumed: u64,
    /// Sessions lost and told.
    pub gaps: u64,
    /// The last events, for a failing seed.
    pub log: Vec<String>,
}

/// Plays one seed.
#[must_use]
pub fn run(plan: &Plan, keep_log: bool) -> Outcome {
    let mut world = World::new(plan.clone(), keep_log);
    let failure = world.play().err().map(|what| format!("at {:?}: {what}", world.now - world.start));
    Outcome {
        failure,
        trace: world.hasher.finish(),
        messages: world.clients.iter().map(|client| client.sent.counts().0).sum::<u64>() + world.server_sent,
        resumed: world.resumed,
        gaps: world.gaps,
        log: world.log.into(),
    }
}

/// How long healing may take: the longest wait between attempts, the longest detection and the
/// connect timeout, twice over, and then time for the backlog.
const HEALING: Duration = Duration::from_secs(400);

struct World {
    plan: Plan,
    rng: SmallRng,
    start: Instant,
    now: Instant,
    server: Server,
    clients: Vec<ClientNode>,
    wires: BTreeMap<(usize, ConnectionId), Wire>,
    next_wire: u64,
    refuse_until: Instant,
    faults: Vec<(Instant, Fault, Duration)>,
    healing: bool,
    server_sent: u64,
    resumed: u64,
    gaps: u64,
    hasher: DefaultHasher,
    log: VecDeque<String>,
    keep_log: bool,
}

struct Server {
    registry: Registry<usize>,
    config: Arc<ServerConfig>,
    sessions: Arena,
    /// Per session: the number of the last message its application sent.
    sent: Vec<u64>,
    /// Per session: the client that it belongs to, known from its messages or HELLO.
    owner: Vec<usize>,
    next_send: Instant,
    /// When each session's application takes its next message.
    next_take: Vec<Instant>,
    paused_until: Instant,
    incarnation: u8,
}

#[derive(Default)]
struct Arena(Vec<Option<ServerSession>>);

impl Sessions for Arena {
    type Handle = usize;

    fn with<R>(&mut self, handle: &usize, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        #[allow(clippy::expect_used, reason = "a dangling name is a bug that the run must stop at")]
        f(self.0[*handle].as_mut().expect("the registry names a session that is gone"))
    }

    fn create(&mut self, session: ServerSession) -> usize {
        self.0.push(Some(session));
        self.0.len() - 1
    }
}

struct ClientNode {
    machine: Client,
    sent: Sent,
    got: Got,
    next_send: Instant,
    next_take: Instant,
    paused_until: Instant,
    closed: bool,
}

/// One connection, seen by the network.
struct Wire {
    server_id: ConnectionId,
    up: Lane,
    down: Lane,
    client_open: bool,
    server: ServerEnd,
    dialled: Instant,
    faulty: bool,
    silent_since: Option<Instant>,
}

enum ServerEnd {
    AwaitHello,
    Bound(usize),
    Closed,
}

#[derive(Default)]
struct Lane {
    packets: VecDeque<(Instant, Packet)>,
    black_hole: bool,
    stalled_until: Option<Instant>,
}

#[derive(Debug, Clone, Hash)]
enum Packet {
    Opened,
    Message(Kind, Bytes),
    Ping(u64),
    Pong(u64),
    Close(u16, String),
    Reset,
}

impl World {
    fn new(plan: Plan, keep_log: bool) -> Self {
        #[allow(clippy::disallowed_methods, reason = "virtual time needs a start")]
        let start = Instant::now() + Duration::from_secs(100_000);
        let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0x5eed);
        let heartbeat =
            HeartbeatConfig::every(plan.heartbeat.max(Duration::from_secs(1))).unwrap_or_default();
        let mut config =
            ServerConfig { heartbeat, resume_window: plan.resume_window, ..ServerConfig::default() };
        if let Some(messages) = plan.drops_above {
            config.flow.keep.messages = messages;
        }
        let config = Arc::new(config);
        let clients = (0..plan.clients)
            .map(|_| ClientNode {
                machine: Client::new(start, ConnectConfig::default(), rng.random()),
                sent: Sent::default(),
                got: Got::default(),
                next_send: start,
                next_take: start,
                paused_until: start,
                closed: false,
            })
            .collect();
        let mut faults = Vec::new();
        for (kind, mean) in &plan.faults {
            faults.push((start + mean.mul_f64(rng.random_range(0.0..2.0)), *kind, *mean));
        }
        Self {
            server: Server {
                registry: Registry::new(start, RegistryConfig::default(), Arc::clone(&config), rng.random()),
                config,
                sessions: Arena::default(),
                sent: Vec::new(),
                owner: Vec::new(),
                next_send: start,
                next_take: Vec::new(),
                paused_until: start,
                incarnation: 0,
            },
            plan,
            rng,
            start,
            now: start,
            clients,
            wires: BTreeMap::new(),
            next_wire: 1,
            refuse_until: start,
            faults,
            healing: false,
            server_sent: 0,
            resumed: 0,
            gaps: 0,
            hasher: DefaultHasher::new(),
            log: VecDeque::new(),
            keep_log,
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.play_until(self.start + self.plan.length)?;
        self.heal();
        self.play_until(self.now + HEALING)?;
        self.check_converged()?;
        self.close_all();
        // Resume windows pass, and then the tombstones' day.
        self.play_until(self.now + Duration::from_secs(300))?;
        self.check_empty()
    }

    fn play_until(&mut self, end: Instant) -> Result<(), String> {
        let mut steps = 0_u64;
        loop {
            self.settle()?;
            let next = self.next_event();
            if next > end {
                self.now = end;
                return Ok(());
            }
            self.now = next.max(self.now);
            steps += 1;
            if steps > 2_000_000 {
                return Err("two million events: something spins".into());
            }
            self.step()?;
        }
    }

    /// When the next thing happens.
    fn next_event(&self) -> Instant {
        let far = self.now + Duration::from_secs(1_000_000);
        let faults = self.faults.iter().map(|(at, ..)| *at);
        let clients = self.clients.iter().flat_map(|client| {
            let take =
                (self.plan.handling > Duration::ZERO).then_some(client.next_take).filter(|at| *at > self.now);
            let send = (!self.healing).then_some(client.next_send);
            [client.machine.poll_timeout(), send, take]
                .into_iter()
                .flatten()
                .map(|at| at.max(client.paused_until))
        });
        let sessions = self.server.sessions.0.iter().flatten().filter_map(ServerSession::poll_timeout);
        let takes = self.server.next_take.iter().copied().filter(|at| *at > self.now);
        let sends = (!self.healing).then_some(self.server.next_send);
        let server = sessions.chain(takes).chain(sends).map(|at| at.max(self.server.paused_until));
        let packets = self.wires.iter().flat_map(|((client, _), wire)| {
            let down = wire.down.packets.front().map(|(at, _)| (*at).max(self.clients[*client].paused_until));
            let up = wire.up.packets.front().map(|(at, _)| (*at).max(self.server.paused_until));
            [down, up].into_iter().flatten()
        });
        faults.chain(clients).chain(server).chain(packets).fold(far, Instant::min)
    }

    fn step(&mut self) -> Result<(), String> {
        self.strike()?;
        self.deliver()?;
        for index in 0..self.clients.len() {
            if self.clients[index].paused_until <= self.now {
                self.client_turn(index)?;
            }
        }
        if self.server.paused_until <= self.now {
            self.server_turn()?;
        }
        self.check_detection()
    }

    // ---- the network ----------------------------------------------------------------------------

    fn deliver(&mut self) -> Result<(), String> {
        let keys: Vec<_> = self.wires.keys().copied().collect();
        for key in keys {
            while let Some(wire) = self.wires.get_mut(&key) {
                let client_awake = self.clients[key.0].paused_until <= self.now;
                let server_awake = self.server.paused_until <= self.now;
                let due = |lane: &Lane| lane.packets.front().is_some_and(|(at, _)| *at <= self.now);
                if client_awake && due(&wire.down) {
                    if let Some((_, packet)) = wire.down.packets.pop_front() {
                        self.arrive_at_client(key, packet)?;
                    }
                } else if server_awake && due(&wire.up) {
                    if let Some((_, packet)) = wire.up.packets.pop_front() {
                        self.arrive_at_server(key, packet)?;
                    }
                } else {
                    break;
                }
            }
        }
        self.wires.retain(|_, wire| {
            wire.client_open
                || !matches!(wire.server, ServerEnd::Closed)
                || !wire.up.packets.is_empty()
                || !wire.down.packets.is_empty()
        });
        Ok(())
    }

    fn push(&mut self, key: (usize, ConnectionId), up: bool, packet: Packet) {
        let latency = self.plan.latency.0 + self.plan.latency.1.mul_f64(self.rng.random_range(0.0..1.0));
        let Some(wire) = self.wires.get_mut(&key) else { return };
        let lane = if up { &mut wire.up } else { &mut wire.down };
        if lane.black_hole {
            return;
        }
        let earliest =
            lane.packets.back().map_or(self.now, |(at, _)| *at).max(lane.stalled_until.unwrap_or(self.now));
        lane.packets.push_back(((self.now + latency).max(earliest), packet));
    }

    fn arrive_at_client(&mut self, key: (usize, ConnectionId), packet: Packet) -> Result<(), String> {
        self.note(|| format!("client {} conn {} <- {packet:?}", key.0, key.1.0));
        let (now, machine) = (self.now, &mut self.clients[key.0].machine);
        if !self.wires.get(&key).is_some_and(|wire| wire.client_open) {
            return Ok(());
        }
        match packet {
            Packet::Opened => machine.handle_opened(now, key.1, Mode::Session),
            Packet::Message(kind, payload) => {
                if let Err(error) = machine.handle_message(now, key.1, Message { kind, payload }) {
                    return Err(format!("client {} says the server broke the protocol: {error}", key.0));
                }
            }
            Packet::Ping(nonce) => {
                machine.handle_bytes(now, key.1);
                self.push(key, true, Packet::Pong(nonce));
            }
            Packet::Pong(nonce) => machine.handle_pong(now, key.1, &nonce.to_be_bytes()),
            Packet::Close(code, reason) => {
                self.close_client_end(key);
                let code = CloseCode::new(code);
                self.clients[key.0].machine.handle_lost(now, key.1, Lost::Closed { code, reason });
            }
            Packet::Reset => {
                self.close_client_end(key);
                self.clients[key.0].machine.handle_lost(now, key.1, Lost::Broken("reset".into()));
            }
        }
        Ok(())
    }

    fn arrive_at_server(&mut self, key: (usize, ConnectionId), packet: Packet) -> Result<(), String> {
        self.note(|| format!("server client {} conn {} <- {packet:?}", key.0, key.1.0));
        let now = self.now;
        let Some(wire) = self.wires.get(&key) else { return Ok(()) };
        let id = wire.server_id;
        match (&wire.server, packet) {
            (ServerEnd::Closed, _) => {}
            (_, Packet::Opened) => {
                // The opening handshake: answered unless the listener is closed.
                let answer = if now < self.refuse_until { Packet::Reset } else { Packet::Opened };
                if matches!(answer, Packet::Reset) {
                    self.set_server_end(key, ServerEnd::Closed);
                }
                self.push(key, false, answer);
            }
            (ServerEnd::AwaitHello, Packet::Message(kind, payload)) => match Frame::decode(kind, payload) {
                Ok(Frame::Control(Control::Hello(hello))) => self.hello(key, id, &hello),
                other => return Err(format!("server expected HELLO, got {other:?}")),
            },
            (ServerEnd::Bound(session), packet) => {
                let session = *session;
                let Some(machine) = self.server.sessions.0[session].as_mut() else { return Ok(()) };
                match packet {
                    Packet::Message(kind, payload) => {
                        let outcome =
                            Frame::decode(kind, payload).and_then(|f| machine.handle_frame(now, id, f));
                        if let Err(error) = outcome {
                            return Err(format!("server says client {} broke the protocol: {error}", key.0));
                        }
                    }
                    Packet::Ping(nonce) => {
                        machine.handle_bytes(now, id);
                        self.push(key, false, Packet::Pong(nonce));
                    }
                    Packet::Close(..) | Packet::Reset => {
                        machine.handle_lost(now, id);
                        self.set_server_end(key, ServerEnd::Closed);
                    }
                    Packet::Pong(_) | Packet::Opened => machine.handle_bytes(now, id),
                }
            }
            (ServerEnd::AwaitHello, Packet::Close(..) | Packet::Reset) => {
                self.set_server_end(key, ServerEnd::Closed);
            }
            (ServerEnd::AwaitHello, _) => {}
        }
        Ok(())
    }

    fn hello(
        &mut self,
        key: (usize, ConnectionId),
        id: ConnectionId,
        hello: &mainstay_proto::session::message::Hello,
    ) {
        let server = &mut self.server;
        let answer = server.registry.hello(self.now, id, Presenter::default(), hello, &mut server.sessions);
        self.note(|| format!("answer {answer:?}"));
        match answer {
            Answer::Attached { session, created, fenced, lost: _, evicted: _ } => {
                if created {
                    self.server.sent.push(0);
                    self.server.owner.push(key.0);
                    self.server.next_take.push(self.now);
                    if let (Some(_), Some(machine)) =
                        (self.plan.drops_above, &mut self.server.sessions.0[session])
                    {
                        machine.drop_oldest_when_full();
                    }
                } else {
                    self.resumed += 1;
                }
                if let Some(fenced) = fenced {
                    let old = self.wires.iter().find(|(_, wire)| wire.server_id == fenced.connection);
                    if let Some(old) = old.map(|(key, _)| *key) {
                        self.push(old, false, Packet::Close(u16::from(CloseCode::SUPERSEDED), fenced.reason));
                        self.set_server_end(old, ServerEnd::Closed);
                    }
                }
                self.set_server_end(key, ServerEnd::Bound(session));
            }
            Answer::Refused { refuse, .. } => {
                self.push(key, false, Packet::Message(Kind::Binary, refuse.encode()));
                self.push(key, false, Packet::Close(1000, String::new()));
                self.set_server_end(key, ServerEnd::Closed);
            }
        }
    }

    fn set_server_end(&mut self, key: (usize, ConnectionId), end: ServerEnd) {
        if let Some(wire) = self.wires.get_mut(&key) {
            if matches!(end, ServerEnd::Closed) {
                wire.up.packets.clear();
                wire.silent_since = None;
            }
            wire.server = end;
        }
    }

    fn close_client_end(&mut self, key: (usize, ConnectionId)) {
        if let Some(wire) = self.wires.get_mut(&key) {
            wire.client_open = false;
            wire.down.packets.clear();
        }
    }

    // ---- the processes --------------------------------------------------------------------------

    fn client_turn(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        let mean = self.plan.message_every;
        // Numbers belong to a session: an application that counts reads its events before it sends.
        self.client_events(index)?;
        let client = &mut self.clients[index];
        if !self.healing && client.next_send <= now {
            client.next_send = now + mean.mul_f64(self.rng.random_range(0.0..2.0)) + Duration::from_millis(1);
            let text = format!("c {index} {}", client.sent.next_index());
            if let Ok(number) = client.machine.send(Message::text(text)) {
                client.sent.accepted(number)?;
            }
        }
        if client.machine.poll_timeout().is_some_and(|at| at <= now) && client.machine.handle_timeout(now) {
            // What was readable was delivered before this turn; a driver yields once and comes back.
            self.clients[index].machine.handle_timeout(now);
        }
        Ok(())
    }

    fn server_turn(&mut self) -> Result<(), String> {
        let now = self.now;
        if !self.healing && self.server.next_send <= now {
            let pause = self.plan.message_every.mul_f64(self.rng.random_range(0.0..1.0));
            self.server.next_send = now + pause + Duration::from_millis(1);
            let count = self.server.sessions.0.len().max(1);
            let session = self.rng.random_range(0..count);
            if let Some(Some(machine)) = self.server.sessions.0.get_mut(session) {
                let number = self.server.sent[session] + 1;
                if machine.send(Message::text(format!("s {session} {number}"))).is_ok() {
                    self.server.sent[session] = number;
                    self.server_sent += 1;
                }
            }
        }
        for session in 0..self.server.sessions.0.len() {
            let Some(machine) = self.server.sessions.0[session].as_mut() else { continue };
            if machine.poll_timeout().is_none_or(|at| at > now) {
                continue;
            }
            let connection = machine.connection();
            let mut verdict = None;
            while verdict.is_none()
                && let Some(action) = machine.handle_timeout(now)
            {
                // What was readable was delivered before this turn, so a drain is done.
                verdict = matches!(action, Action::NotListening | Action::Dead(_)).then_some(action);
            }
            if let (Some(Action::NotListening), Some(connection)) = (verdict, connection) {
                self.park(session, connection);
            }
            if let (Some(Action::Dead(evidence)), Some(connection)) = (verdict, connection) {
                self.note(|| format!("server calls {connection:?} dead: {evidence:?}"));
                // A client that waits for WELCOME on a broken connection may not write on this one.
                let client =
                    self.wires.iter().find(|(_, wire)| wire.server_id == connection).map(|(key, _)| key.0);
                let faulty =
                    |(key, wire): (&(usize, ConnectionId), &Wire)| wire.faulty && Some(key.0) == client;
                if client.is_some() && !self.wires.iter().any(faulty) {
                    return Err(format!("false verdict: {evidence:?} on a connection without a fault"));
                }
            }
        }
        Ok(())
    }

    /// The driver's part of "bytes, but no answer": drops the transport, the session stays.
    fn park(&mut self, session: usize, connection: ConnectionId) {
        self.note(|| format!("server parks session {session}: not listening"));
        let now = self.now;
        if let Some(machine) = self.server.sessions.0[session].as_mut() {
            machine.handle_lost(now, connection);
        }
        let key = self.wires.iter().find(|(_, wire)| wire.server_id == connection).map(|(key, _)| *key);
        if let Some(key) = key {
            self.push(key, false, Packet::Reset);
            self.set_server_end(key, ServerEnd::Closed);
        }
    }

    /// Lets every machine that is awake say what it has to say.
    fn settle(&mut self) -> Result<(), String> {
        for index in 0..self.clients.len() {
            if self.clients[index].paused_until <= self.now {
                self.settle_client(index)?;
            }
        }
        if self.server.paused_until <= self.now {
            for session in 0..self.server.sessions.0.len() {
                self.settle_session(session)?;
            }
        }
        Ok(())
    }

    fn settle_client(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        while let Some(command) = self.next_command(index) {
            self.note(|| format!("client {index} -> {command:?}"));
            match command {
                Command::Dial(id) => {
                    let server_id = ConnectionId(self.next_wire);
                    self.next_wire += 1;
                    let wire = Wire {
                        server_id,
                        up: Lane::default(),
                        down: Lane::default(),
                        client_open: true,
                        server: ServerEnd::AwaitHello,
                        dialled: now,
                        faulty: false,
                        silent_since: None,
                    };
                    self.wires.insert((index, id), wire);
                    self.push((index, id), true, Packet::Opened);
                }
                Command::Transmit(id, transmit) => {
                    let key = (index, id);
                    match packet_of(&transmit) {
                        Some(packet) => {
                            let last = matches!(packet, Packet::Close(..) | Packet::Reset);
                            self.push(key, true, packet);
                            if last {
                                self.close_client_end(key);
                            } else {
                                self.clients[index].machine.handle_flushed(now, id);
                            }
                        }
                        None => return Err(format!("client {index} transmits {transmit:?}")),
                    }
                }
            }
        }
        self.client_events(index)?;
        while self.clients[index].next_take <= now {
            let Some(delivery) = self.clients[index].machine.hand_over(now) else { break };
            let pause = self.handling();
            let client = &mut self.clients[index];
            client.next_take = now + pause;
            if let Delivery::Gap { first, count, .. } = delivery {
                client.got.dropped(first, count)?;
                continue;
            }
            let (session, number) = read(&delivery, "s")?;
            client.got.received(session as usize, number)?;
        }
        // Handing over may have filled a threshold.
        let writer = self.clients[index].machine.writer();
        if let Some(id) = writer
            && let Some(transmit) = self.clients[index].machine.poll_transmit(now, id)
            && let Some(packet) = packet_of(&transmit)
        {
            self.push((index, id), true, packet);
            self.clients[index].machine.handle_flushed(now, id);
            return self.settle_client(index);
        }
        Ok(())
    }

    fn next_command(&mut self, index: usize) -> Option<Command> {
        let (now, machine) = (self.now, &mut self.clients[index].machine);
        machine.poll_command().or_else(|| {
            let writer = machine.writer()?;
            machine.poll_transmit(now, writer).map(|transmit| Command::Transmit(writer, transmit))
        })
    }

    fn client_events(&mut self, index: usize) -> Result<(), String> {
        while let Some(event) = self.clients[index].machine.poll_event() {
            self.note(|| format!("client {index} event {event:?}"));
            let client = &mut self.clients[index];
            match event {
                Event::Gap(fate) => {
                    self.gaps += 1;
                    client.sent.lost(&fate)?;
                    client.got.gap();
                }
                Event::Ended { fate, reason, .. } => {
                    if !client.closed {
                        return Err(format!("client {index} ended by itself: {reason}"));
                    }
                    if let Some(fate) = fate {
                        client.sent.lost(&fate)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn settle_session(&mut self, session: usize) -> Result<(), String> {
        let now = self.now;
        loop {
            let Some(machine) = self.server.sessions.0[session].as_mut() else { return Ok(()) };
            while self.server.next_take[session] <= now {
                let Some(delivery) = machine.hand_over(now) else { break };
                let pause = if self.plan.handling.is_zero() {
                    Duration::ZERO
                } else {
                    self.plan.handling.mul_f64(self.rng.random_range(0.0..1.0))
                };
                self.server.next_take[session] = now + pause;
                let (client, index) = read(&delivery, "c")?;
                self.clients[client as usize].sent.received(session, index)?;
            }
            let Some(connection) = machine.connection() else { break };
            let Some(transmit) = machine.poll_transmit(now, connection) else { break };
            let key = self.wires.iter().find(|(_, wire)| wire.server_id == connection).map(|(key, _)| *key);
            self.note(|| format!("session {session} -> {transmit:?}"));
            let (Some(key), Some(packet)) = (key, packet_of(&transmit)) else { continue };
            let last = matches!(packet, Packet::Close(..) | Packet::Reset);
            self.push(key, false, packet);
            if let Some(machine) = self.server.sessions.0[session].as_mut() {
                machine.handle_flushed(now, connection);
                if last {
                    machine.handle_lost(now, connection);
                    self.set_server_end(key, ServerEnd::Closed);
                }
            }
        }
        let over =
            self.server.sessions.0[session].as_ref().is_some_and(|machine| machine.is_over().is_some());
        if over && let Some(machine) = self.server.sessions.0[session].take() {
            self.note(|| format!("session {session} is over: {:?}", machine.is_over()));
            self.server.registry.bury(now, &machine);
            let bound = |wire: &Wire| matches!(wire.server, ServerEnd::Bound(bound) if bound == session);
            let keys: Vec<_> =
                self.wires.iter().filter(|(_, wire)| bound(wire)).map(|(key, _)| *key).collect();
            keys.into_iter().for_each(|key| self.set_server_end(key, ServerEnd::Closed));
        }
        Ok(())
    }

    fn handling(&mut self) -> Duration {
        if self.plan.handling.is_zero() {
            return Duration::ZERO;
        }
        self.plan.handling.mul_f64(self.rng.random_range(0.0..1.0))
    }

    // ---- faults ---------------------------------------------------------------------------------

    fn strike(&mut self) -> Result<(), String> {
        for slot in 0..self.faults.len() {
            let (at, fault, mean) = self.faults[slot];
            if at > self.now {
                continue;
            }
            let next = mean.mul_f64(self.rng.random_range(0.0..2.0)) + Duration::from_millis(10);
            self.faults[slot].0 = self.now + next;
            self.note(|| format!("fault {fault:?}"));
            self.inflict(fault)?;
        }
        Ok(())
    }

    fn inflict(&mut self, fault: Fault) -> Result<(), String> {
        let now = self.now;
        let pause = Duration::from_millis(self.rng.random_range(1..40_000));
        let client = self.rng.random_range(0..self.clients.len());
        let keys: Vec<_> =
            self.wires.iter().filter(|(_, wire)| wire.client_open).map(|(key, _)| *key).collect();
        let key = if keys.is_empty() { None } else { Some(keys[self.rng.random_range(0..keys.len())]) };
        match (fault, key) {
            (Fault::Reset, Some(key)) => self.reset(key),
            (Fault::BlackHole, Some(key)) => self.black_hole(key, true, true),
            (Fault::BlackHoleUp, Some(key)) => self.black_hole(key, true, false),
            (Fault::BlackHoleDown, Some(key)) => self.black_hole(key, false, true),
            (Fault::Stall, Some(key)) => {
                if let Some(wire) = self.wires.get_mut(&key) {
                    wire.faulty = true;
                    for lane in [&mut wire.up, &mut wire.down] {
                        lane.stalled_until = Some(now + pause);
                        lane.packets.iter_mut().for_each(|(at, _)| *at = (*at).max(now + pause));
                    }
                }
            }
            (Fault::PauseClient, _) => {
                self.clients[client].paused_until = now + pause;
                self.wires
                    .iter_mut()
                    .filter(|(key, _)| key.0 == client)
                    .for_each(|(_, wire)| wire.faulty = true);
            }
            (Fault::PauseServer, _) => {
                self.server.paused_until = now + pause;
                self.wires.values_mut().for_each(|wire| wire.faulty = true);
            }
            (Fault::Refuse, _) => self.refuse_until = now + pause,
            (Fault::Restart, _) => self.restart(),
            (Fault::GoAway, _) => {
                let delay = Delay { min: Duration::ZERO, max: Duration::from_secs(2) };
                for machine in self.server.sessions.0.iter_mut().flatten() {
                    machine.go_away(now, "maintenance", delay, Duration::from_secs(5));
                }
            }
            (Fault::Online, _) if self.clients[client].paused_until <= now => {
                self.clients[client].machine.retry_now(now);
            }
            _ => {}
        }
        Ok(())
    }

    fn reset(&mut self, key: (usize, ConnectionId)) {
        for up in [true, false] {
            if let Some(wire) = self.wires.get_mut(&key) {
                wire.faulty = true;
                if up { wire.up.packets.clear() } else { wire.down.packets.clear() }
            }
            self.push(key, up, Packet::Reset);
        }
    }

    fn black_hole(&mut self, key: (usize, ConnectionId), up: bool, down: bool) {
        let Some(wire) = self.wires.get_mut(&key) else { return };
        wire.faulty = true;
        wire.up.black_hole |= up;
        wire.down.black_hole |= down;
        if up {
            wire.up.packets.clear();
        }
        if down {
            wire.down.packets.clear();
        }
        if wire.up.black_hole && wire.down.black_hole {
            wire.silent_since.get_or_insert(self.now);
        }
    }

    fn restart(&mut self) {
        let keys: Vec<_> = self.wires.keys().copied().collect();
        for key in keys {
            self.push(key, false, Packet::Reset);
            self.set_server_end(key, ServerEnd::Closed);
        }
        self.server.sessions.0.iter_mut().for_each(|session| *session = None);
        self.server.incarnation += 1;
        let config = Arc::clone(&self.server.config);
        let seed = self.rng.random();
        self.server.registry = Registry::new(self.now, RegistryConfig::default(), config, seed);
        self.server.paused_until = self.now;
    }

    fn heal(&mut self) {
        self.note(|| "healing".into());
        self.healing = true;
        self.faults.clear();
        self.refuse_until = self.now;
        // What is black-holed stays so: a dead connection is not brought back, it is replaced.
    }

    fn close_all(&mut self) {
        let now = self.now;
        for client in &mut self.clients {
            client.closed = true;
            client.machine.close(now, CloseCode::NORMAL, "done");
        }
    }

    // ---- invariants -----------------------------------------------------------------------------

    /// A connection that is silent both ways is found by both ends in bounded time.
    fn check_detection(&self) -> Result<(), String> {
        let interval = self.server.config.heartbeat.interval();
        let bound =
            (interval * 2 + Duration::from_secs(5)).max(interval.mul_f64(1.1) + Duration::from_secs(20));
        // Pauses of up to 40 s delay either end, and one fresh probe follows each.
        let slack = if self
            .plan
            .faults
            .iter()
            .any(|(fault, _)| matches!(fault, Fault::PauseClient | Fault::PauseServer))
        {
            Duration::from_secs(400)
        } else {
            Duration::from_secs(1)
        };
        for (key, wire) in &self.wires {
            let Some(since) = wire.silent_since else { continue };
            let attached = match wire.server {
                ServerEnd::Bound(session) => self.server.sessions.0[session]
                    .as_ref()
                    .is_some_and(|machine| machine.connection() == Some(wire.server_id)),
                _ => false,
            };
            if attached && self.now > since + bound + slack {
                return Err(format!("server still holds {key:?}, silent for {:?}", self.now - since));
            }
            if wire.client_open
                && self.now > since.max(wire.dialled) + bound + slack + Duration::from_secs(10)
            {
                return Err(format!("client still holds {key:?}, silent for {:?}", self.now - since));
            }
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
            if let Some(session) = session.filter(|session| self.server.sessions.0[*session].is_some())
                && last != self.server.sent[session]
            {
                return Err(format!(
                    "client {index} got {last} of {} messages of session {session}",
                    self.server.sent[session]
                ));
            }
        }
        Ok(())
    }

    fn check_empty(&mut self) -> Result<(), String> {
        if let Some(index) = self.clients.iter().position(|client| !client.machine.is_ended()) {
            return Err(format!("client {index} did not end"));
        }
        let live = self.server.sessions.0.iter().flatten().count();
        if live > 0 {
            return Err(format!("{live} sessions live after everyone left"));
        }
        let (names, _) = self.server.registry.size();
        let tombstoned = self.server.registry.tombstoned_names();
        if names != tombstoned {
            return Err(format!("{} names lead nowhere", names - tombstoned));
        }
        Ok(())
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let line = line();
        line.hash(&mut self.hasher);
        if self.keep_log {
            if self.log.len() == 4_000 {
                self.log.pop_front();
            }
            self.log.push_back(format!("{:>9.3} {line}", (self.now - self.start).as_secs_f64()));
        }
    }
}

fn packet_of(transmit: &Transmit) -> Option<Packet> {
    if let Some((kind, head, body)) = transmit.as_message() {
        return Some(Packet::Message(kind, [head, body.as_ref()].concat().into()));
    }
    match transmit {
        Transmit::Ping(nonce) => Some(Packet::Ping(*nonce)),
        Transmit::Close { code, reason } => Some(Packet::Close(u16::from(*code), reason.clone())),
        Transmit::Abort => Some(Packet::Reset),
        Transmit::Message(_) | Transmit::Control(_) => None,
    }
}

fn read(delivery: &Delivery, side: &str) -> Result<(u64, u64), String> {
    let Delivery::Message(message) = delivery else { return Err(format!("unexpected {delivery:?}")) };
    let words: Vec<_> = message.as_text().unwrap_or_default().split(' ').collect();
    match words.as_slice() {
        [from, whose, number] if *from == side => {
            Ok((whose.parse().map_err(|_| "bad message")?, number.parse().map_err(|_| "bad message")?))
        }
        _ => Err(format!("corrupt message {message:?}")),
    }
}
