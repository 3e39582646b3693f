//! A client's process: its machine, its application, and the state of that application.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::connect::{Client, Command, ConnectConfig, Event, Incoming, Lost, Mode};
use mainstay_proto::heartbeat::Evidence;
use mainstay_proto::session::{ConnectionId, Control, Credentials, Message, Transmit};
use mainstay_proto::ws::CloseCode;
use rand::RngExt;

use super::network::{Key, Packet, Wire, Written};
use super::{CONNECT_TIMEOUT, OPENING_DEADLINE, Process, World};
use crate::judge;
use crate::oracle::{Got, Sent, Volatile};
use crate::payload::Payload;
use crate::plan::{Fault, Plan};

pub(super) struct ClientNode {
    index: usize,
    pub(super) machine: Client,
    /// Counts the instances.
    pub(super) life: u64,
    pub(super) sent: Sent,
    pub(super) got: Got,
    pub(super) volatile: Volatile,
    pub(super) volatile_sent: u64,
    next_send: Instant,
    next_take: Instant,
    /// Its application receives nothing until then, when its process dies.
    deaf_until: Option<Instant>,
    /// How often the connection behind its session was replaced, as it was last announced.
    replaced: u64,
    pub(super) process: Process,
    /// The connection that it is attached to, and the round-trip time there.
    attached: Option<ConnectionId>,
    rtt: Option<Duration>,
    epoch: (Option<[u8; 8]>, u64),
    /// The session before, if WELCOME named another one.
    lost: Option<[u8; 8]>,
    /// The newest credentials, and whether they are good; announced once.
    fresh: Option<Grade>,
    /// Its session may belong to another client's principal.
    was_foreign: bool,
    /// A fault occurred that may end it.
    pub(super) may_end: bool,
    /// No instance follows when it ends.
    pub(super) leaves: bool,
    /// When the next instance begins, if this one is over.
    reborn_at: Option<Instant>,
    /// Its process died, and writes nothing more.
    pub(super) crashed: bool,
}

/// The value of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grade {
    Good,
    /// Those of another client: good in HELLO, for a session of its own.
    Foreign,
    Bad,
}

impl ClientNode {
    pub(super) fn new(now: Instant, plan: &Plan, index: usize, seed: [u8; 32]) -> Self {
        Self {
            index,
            machine: Client::new(now, config(plan, index), seed),
            life: 0,
            sent: Sent::default(),
            got: Got::default(),
            volatile: Volatile::default(),
            volatile_sent: 0,
            next_send: now,
            next_take: now,
            deaf_until: None,
            replaced: 0,
            process: Process::new(now),
            attached: None,
            rtt: None,
            epoch: (None, 0),
            lost: None,
            fresh: None,
            was_foreign: false,
            may_end: false,
            leaves: false,
            reborn_at: None,
            crashed: false,
        }
    }

    /// A new instance begins, without the state of the one before.
    pub(super) fn renew(&mut self, now: Instant, plan: &Plan, seed: [u8; 32]) {
        self.sent.forgotten();
        *self = Self {
            life: self.life + 1,
            sent: std::mem::take(&mut self.sent),
            volatile: std::mem::take(&mut self.volatile),
            volatile_sent: self.volatile_sent,
            process: self.process,
            next_send: self.next_send.max(now),
            ..Self::new(now, plan, self.index, seed)
        };
    }

    /// Its application receives nothing more; its process dies at that time.
    pub(super) fn stops_reading(&mut self, until: Instant) {
        (self.next_take, self.deaf_until) = (until, Some(until));
    }

    /// It survives after all.
    pub(super) fn reads_again(&mut self, now: Instant) {
        if self.deaf_until.take().is_some() {
            self.next_take = now;
        }
    }

    /// Its process exists: no new instance is due.
    pub(super) fn lives(&self) -> bool {
        self.reborn_at.is_none()
    }

    /// Its session may belong to another client's principal.
    pub(super) fn is_foreign(&self) -> bool {
        self.was_foreign
    }

    /// Presents credentials, and records their value.
    pub(super) fn authenticate(&mut self, now: Instant, grade: Grade, credentials: String) {
        self.fresh = Some(grade);
        self.may_end |= grade == Grade::Bad;
        self.was_foreign |= grade == Grade::Foreign;
        self.machine.authenticate(now, Bytes::from(credentials));
    }
}

fn config(plan: &Plan, index: usize) -> ConnectConfig {
    let mut config = ConnectConfig::default();
    if let Some(window) = plan.windows {
        (config.session.flow.keep, config.session.flow.accept) = (window, window);
    }
    config.session.credentials =
        plan.judged_within.map(|_| Credentials(Bytes::from(format!("user {index}"))));
    config
}

impl World {
    pub(super) fn next_of_client(&self, client: &ClientNode) -> impl Iterator<Item = Instant> {
        // An application that may receive has received what there is.
        let take = Some(client.next_take).filter(|at| *at > self.now);
        let send = (!self.healing).then_some(client.next_send);
        let times = match client.reborn_at {
            Some(at) => [Some(at).filter(|_| !client.leaves), None, None],
            // A process that is paused polls nothing.
            None if !client.process.is_awake(self.now) => [Some(client.process.paused_until), None, None],
            None => [client.machine.poll_timeout(), send, take],
        };
        let paused_until = client.process.paused_until;
        times
            .into_iter()
            .chain([client.deaf_until.filter(|_| client.reborn_at.is_none())])
            .flatten()
            .map(move |at| at.max(paused_until))
    }

    pub(super) fn client_sleeps_until(&self, key: Key) -> Instant {
        self.clients.get(key.client).map_or(self.start, |client| client.process.paused_until)
    }

    pub(super) fn client_turn(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        if let Some(at) = self.clients[index].reborn_at {
            if at > now || self.clients[index].leaves {
                return Ok(());
            }
            let seed = self.rng.random();
            self.clients[index].renew(now, &self.plan, seed);
            self.note(|| format!("client {index} begins anew"));
        }
        if self.clients[index].deaf_until.is_some_and(|at| at <= now) {
            let silently = self.rng.random_bool(0.3);
            self.crash_client(index, silently);
            return Ok(());
        }
        // Numbers belong to a session: an application that counts reads its events before it sends.
        self.client_events(index)?;
        self.client_sends(index)?;
        let client = &mut self.clients[index];
        client.rtt = client.machine.rtt();
        // A timer may make another one due, as often as a driver would come back.
        for _ in 0..4 {
            let machine = &mut self.clients[index].machine;
            let is_due = machine.is_due(now);
            // Everything readable was delivered before this turn.
            if is_due && machine.handle_timeout(now) {
                self.client_commands(index)?;
                self.client_writes(index)?;
            }
        }
        Ok(())
    }

    fn client_sends(&mut self, index: usize) -> Result<(), String> {
        let (now, longest) = (self.now, self.plan.longest);
        let client = &mut self.clients[index];
        if self.healing || client.next_send > now {
            return Ok(());
        }
        let pause = self.plan.message_every.mul_f64(self.rng.random_range(0.0..2.0));
        client.next_send = now + pause + Duration::from_millis(1);
        if self.plan.volatile && self.rng.random_bool(0.3) {
            client.volatile_sent += 1;
            let payload = Payload { from: 'C', owner: index, number: client.volatile_sent };
            client.machine.send_volatile(payload.write(longest));
        }
        let payload = Payload { from: 'c', owner: index, number: client.sent.next_index() };
        match client.machine.send(payload.write(longest)) {
            Ok(number) => {
                self.counts.messages += 1;
                client.sent.accepted(number)
            }
            Err(_) => {
                self.counts.full += 1;
                Ok(())
            }
        }
    }

    // ---- what arrives ---------------------------------------------------------------------------

    pub(super) fn arrive_at_client(&mut self, key: Key, arrived: Option<Packet>) -> Result<(), String> {
        let (now, id) = (self.now, key.connection);
        let Some(wire) = self.wires.get_mut(&key).filter(|wire| wire.client_open) else { return Ok(()) };
        let client = self.clients.get_mut(key.client).filter(|client| client.life == key.life);
        let Some(client) = client else { return Ok(()) };
        wire.client.read_bytes(now);
        let Some(packet) = arrived else {
            client.machine.handle_bytes(now, id);
            return Ok(());
        };
        self.note(|| format!("client {} conn {} <- {packet:?}", key.client, id.0));
        let machine = &mut self.clients[key.client].machine;
        match packet {
            Packet::Opened => machine.handle_opened(now, id, Mode::Session),
            Packet::Message(kind, ref payload) => {
                let message = Message::new(kind, payload.clone()).map_err(|error| error.to_string())?;
                if let Err(error) = machine.handle_message(now, id, message) {
                    return Err(format!("client {}: the server broke the protocol: {error}", key.client));
                }
                self.client_read(key, &packet)?;
            }
            Packet::Block(_) => return Err(format!("client {} got a block", key.client)),
            Packet::Ping(nonce) => {
                machine.handle_bytes(now, id);
                self.answer_ping(key, true, nonce);
            }
            Packet::Pong(nonce) => machine.handle_pong(now, id, &nonce.to_be_bytes()),
            Packet::Close(code, reason) => {
                self.close_client_end(key);
                let lost = Lost::Closed { code: CloseCode::new(code), reason };
                self.clients[key.client].machine.handle_lost(now, id, lost);
            }
            Packet::Reset => {
                self.close_client_end(key);
                self.clients[key.client].machine.handle_lost(now, id, Lost::Broken("reset".into()));
            }
        }
        Ok(())
    }

    /// Records what a message shows to the network's bookkeeping.
    fn client_read(&mut self, key: Key, packet: &Packet) -> Result<(), String> {
        let (now, Some(wire)) = (self.now, self.wires.get_mut(&key)) else { return Ok(()) };
        match packet.control(&[2, 5, 12]) {
            Some(Control::Welcome(welcome)) if wire.opening.is_some() => {
                (wire.opening, wire.asks, wire.client) = (None, false, judge::Observed::new(now));
                let client = &mut self.clients[key.client];
                (client.attached, client.rtt) = (Some(key.connection), None);
                let (before, epoch) = client.epoch;
                client.epoch = (Some(welcome.id.0), welcome.epoch);
                client.lost = before.filter(|before| *before != welcome.id.0).or(client.lost);
                if before == Some(welcome.id.0) && welcome.epoch <= epoch {
                    return Err(format!("epoch {} after {epoch}", welcome.epoch));
                }
            }
            Some(Control::Refuse { .. }) => wire.asks = false,
            Some(Control::Pong(beat)) => wire.client.answered(beat.nonce),
            _ => {}
        }
        Ok(())
    }

    /// Behind a full socket only the last Ping is answered.
    pub(super) fn answer_ping(&mut self, key: Key, up: bool, nonce: u64) {
        let Some(wire) = self.wires.get_mut(&key) else { return };
        let lane = wire.lane(up);
        if !lane.waits() {
            self.write(key, up, Packet::Pong(nonce));
        } else {
            lane.pong = Some(nonce);
        }
    }

    pub(super) fn close_client_end(&mut self, key: Key) {
        if let Some(wire) = self.wires.get_mut(&key) {
            (wire.client_open, wire.asks) = (false, false);
            wire.down.drop_flying();
        }
    }

    // ---- what it says ---------------------------------------------------------------------------

    pub(super) fn settle_client(&mut self, index: usize) -> Result<(), String> {
        loop {
            let mut wrote = self.client_commands(index)?;
            self.client_events(index)?;
            self.client_takes(index)?;
            // What the application takes may be an event, too.
            self.client_events(index)?;
            wrote |= self.client_writes(index)?;
            if !wrote {
                break;
            }
        }
        let client = &mut self.clients[index];
        if client.machine.is_ended() {
            // A driver that is done drops what is still open.
            for key in self.open_of(index) {
                self.close_client_end(key);
                self.reset(key, true);
            }
            return Ok(());
        }
        if client.machine.is_closing() {
            return Ok(());
        }
        client.sent.acknowledged(client.machine.settled())
    }

    /// Connects, writes the last transmits and drops connections.
    fn client_commands(&mut self, index: usize) -> Result<bool, String> {
        let mut any = false;
        while let Some(command) = self.clients[index].machine.poll_command() {
            self.note(|| format!("client {index} -> {}", describe(&command)));
            any = true;
            let life = self.clients[index].life;
            let key = |connection| Key { client: index, life, connection, leg: 0 };
            match command {
                Command::Dial(id) => {
                    let key = key(id);
                    let server_id = ConnectionId(self.next_wire);
                    self.next_wire += 1;
                    // The server's deadline starts when it accepts.
                    let opening = CONNECT_TIMEOUT + OPENING_DEADLINE;
                    let node = self.balance();
                    let end = (server_id, node.unwrap_or(0));
                    self.wires.insert(key, Wire::new(self.now, end, CONNECT_TIMEOUT, opening));
                    if node.is_some() {
                        self.fly(key, true, Packet::Opened);
                    } else {
                        self.drop_server_end(key);
                    }
                }
                Command::Transmit(id, Transmit::Abort) => {
                    self.close_client_end(key(id));
                    self.reset(key(id), true);
                }
                Command::Transmit(id, transmit) => self.client_transmits(key(id), &transmit)?,
            }
        }
        Ok(any)
    }

    /// Writes the stream, as far as the socket accepts it.
    fn client_writes(&mut self, index: usize) -> Result<bool, String> {
        let (now, mut any) = (self.now, false);
        let life = self.clients[index].life;
        while let Some(connection) = self.clients[index].machine.writer() {
            let key = Key { client: index, life, connection, leg: 0 };
            if self.wires.get_mut(&key).is_some_and(|wire| wire.up.waits()) {
                break;
            }
            let Some(transmit) = self.clients[index].machine.poll_transmit(now, connection) else { break };
            self.note(|| format!("client {index} conn {} -> {}", connection.0, show(&transmit)));
            any = true;
            self.client_transmits(key, &transmit)?;
        }
        let client = &mut self.clients[index];
        for connection in [client.machine.writer(), client.attached].into_iter().flatten() {
            let key = Key { client: index, life, connection, leg: 0 };
            let Some(wire) = self.wires.get_mut(&key) else { continue };
            match wire.up.outcome() {
                Written::All => client.machine.handle_flushed(now, connection),
                Written::Some => client.machine.handle_write_progress(now, connection),
                Written::None => {}
            }
        }
        Ok(any)
    }

    fn client_transmits(&mut self, key: Key, transmit: &Transmit) -> Result<(), String> {
        let Some(packet) = Packet::of(transmit) else {
            return Err(format!("client {} transmits {transmit:?}", key.client));
        };
        if packet.control(&[1]).is_some() {
            if let Some(wire) = self.wires.get_mut(&key) {
                wire.asks = true;
            }
        } else if matches!(packet, Packet::Message(..)) && packet.control(&[8]).is_none() {
            // From a HELLO on, an older connection is only read. (The answer to END makes the HELLO void.)
            let asks = |(other, wire): (&Key, &Wire)| {
                let same = other.is_outer() && (other.client, other.life) == (key.client, key.life);
                same && *other != key && wire.asks
            };
            if self.wires.iter().any(asks) {
                return Err(format!("client {} writes {packet:?} on two connections", key.client));
            }
        }
        let last = matches!(packet, Packet::Close(..));
        self.write(key, true, packet);
        if last {
            self.close_client_end(key);
        }
        Ok(())
    }

    fn client_takes(&mut self, index: usize) -> Result<(), String> {
        let (now, longest) = (self.now, self.plan.longest);
        while self.clients[index].next_take <= now {
            let Some(incoming) = self.clients[index].machine.deliver(now) else { break };
            if let Incoming::Gap(_) = incoming {
                // The event was reported before.
                continue;
            }
            let pause = self.handling();
            let client = &mut self.clients[index];
            client.next_take = now + pause;
            if let Incoming::Replaced { count } = incoming {
                if std::mem::replace(&mut client.replaced, count) >= count {
                    return Err(format!("client {index} receives replacement {count} again"));
                }
                continue;
            }
            if let Incoming::Dropped { first, count, .. } = incoming {
                self.counts.dropped += count;
                client.got.dropped(first, count)?;
                if let (Some(session), last) = client.got.position() {
                    self.sessions.streams[session].delivered(last);
                }
                continue;
            }
            let Incoming::Message(message) = incoming else { return Err(format!("{incoming:?}")) };
            let payload = Payload::read(&message, 's', longest)?;
            client.got.delivered(payload.owner, payload.number)?;
            let life = client.life;
            self.check_reader(payload, index, life)?;
            self.check_key(payload.owner)?;
        }
        Ok(())
    }

    /// The client's application received a message of a session.
    fn check_reader(&mut self, payload: Payload, client: usize, life: u64) -> Result<(), String> {
        let stream = self.sessions.streams.get_mut(payload.owner).ok_or("a message of no session")?;
        if stream.owner != (client, life) {
            return Err(format!("client {client} got {payload:?}, which is for {:?}", stream.owner));
        }
        stream.delivered(payload.number);
        Ok(())
    }

    fn client_events(&mut self, index: usize) -> Result<(), String> {
        while let Some(event) = self.clients[index].machine.poll_event() {
            self.note(|| format!("client {index} event {event:?}"));
            let client = &mut self.clients[index];
            match event {
                Event::Gap(fate) => {
                    self.counts.gaps += 1;
                    client.sent.lost(&fate)?;
                    client.got.gap();
                    client.replaced = 0;
                    let lost = client.lost.take().and_then(|id| self.sessions.by_id(id));
                    if let Some(lost) = lost.filter(|_| self.plan.cluster.is_some()) {
                        self.check_loss(index, lost)?;
                    }
                    self.check_gentle(index, &fate)?;
                }
                Event::Ended(end) => {
                    if !client.may_end {
                        return Err(format!("client {index} ended by itself: {:?} {end}", end.code));
                    }
                    if let Some(fate) = end.fate {
                        client.sent.lost(&fate)?;
                    }
                    self.counts.ended += 1;
                    let pause = Duration::from_millis(self.rng.random_range(0..3_000));
                    client.reborn_at = Some(self.now + pause);
                }
                Event::Detached { why: Lost::Dead(evidence), .. } => {
                    self.counts.given_up += 1;
                    self.judge_client_verdict(index, evidence)?;
                }
                Event::Volatile(message) => {
                    let payload = Payload::read(&message, 'S', self.plan.longest)?;
                    client.volatile.delivered(payload.number)?;
                    self.counts.volatile += 1;
                }
                Event::Authenticated { accepted } => {
                    let grade =
                        client.fresh.take().ok_or("a verdict on credentials that were not presented")?;
                    let judged = !self.plan.has(Fault::NoJudge) && !client.was_foreign;
                    match (grade, accepted) {
                        (Grade::Bad, true) => return Err("bad credentials were accepted".into()),
                        (Grade::Good, false) if judged => return Err("good credentials were refused".into()),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn judge_client_verdict(&mut self, index: usize, evidence: Evidence) -> Result<(), String> {
        let (now, client) = (self.now, &self.clients[index]);
        let Some(connection) = client.attached else { return Err("a verdict without a connection".into()) };
        let key = Key { client: index, life: client.life, connection, leg: 0 };
        let Some(wire) = self.wires.get(&key) else {
            return Err("a verdict on a connection that is over".into());
        };
        let judge = judge::Client { interval: self.config.heartbeat.interval(), rtt: client.rtt };
        if let Some(wrong) = judge.too_early(now, &wire.client, evidence) {
            return Err(format!("client {index} gave up too early: {wrong}; {}", wire.client.describe(now)));
        }
        // A server does not answer on a connection that it has left.
        if matches!(wire.server, super::network::ServerEnd::Closed) {
            return Ok(());
        }
        if self.legs(key).any(|leg| matches!(leg.server, super::network::ServerEnd::Closed)) {
            return Ok(());
        }
        let since = now - judge.patience(now, &wire.client, evidence) - self.plan.round_trip();
        let others = self.legs(key).map(|leg| &self.servers[leg.node].process);
        if !self.is_excused(key, &wire.client, &client.process, others, since) {
            return Err(format!("false verdict of client {index} on a connection without a fault"));
        }
        Ok(())
    }

    // ---- the end --------------------------------------------------------------------------------

    /// Every client ends in order, and no instance follows.
    pub(super) fn leave_all(&mut self) {
        let now = self.now;
        for client in &mut self.clients {
            (client.may_end, client.leaves) = (true, true);
            client.machine.close(now, CloseCode::NORMAL, "done");
        }
    }

    /// The process is gone without notice. Returns its open connections.
    pub(super) fn crash(&mut self, index: usize, back_at: Instant) -> Vec<Key> {
        let client = &mut self.clients[index];
        (client.reborn_at, client.crashed) = (Some(back_at), true);
        self.open_of(index)
    }

    fn open_of(&self, index: usize) -> Vec<Key> {
        let life = self.clients[index].life;
        let mine = |(key, wire): (&Key, &Wire)| {
            let mine = key.is_outer() && (key.client, key.life) == (index, life);
            (mine && wire.client_open).then_some(*key)
        };
        self.wires.iter().filter_map(mine).collect()
    }
}

fn describe(command: &Command) -> String {
    match command {
        Command::Dial(id) => format!("dial {}", id.0),
        Command::Transmit(id, transmit) => format!("{}: {}", id.0, show(transmit)),
    }
}

/// Returns a form that is short enough for a trace.
pub(super) fn show(transmit: &Transmit) -> String {
    Packet::of(transmit).map_or_else(|| format!("{transmit:?}"), |packet| format!("{packet:?}"))
}
