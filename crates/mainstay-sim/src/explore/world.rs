//! One state of a small world, the events that may happen in it, and what each event does.
//!
//! States share their parts until one changes (`Rc`), so that a state costs little more than its difference to the
//! one before.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::heartbeat::{Action, HeartbeatConfig};
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{
    Answer, ClientConfig, ClientEvent, ClientSession, ConnectionId, Control, Delivery, FlowConfig, Frame,
    NodeId, Presenter, Registry, RegistryConfig, Resumed, Route, ServerConfig, ServerSession, SessionError,
    Sessions, Transmit, Window,
};
use mainstay_proto::ws::{CloseCode, Kind};

use super::facts::Facts;
use super::{Budget, Scenario};

/// Longer than any attempt in a run that makes progress.
const MOST_CONNECTIONS: usize = 12;
const HOUR: Duration = Duration::from_secs(3600);
const RESUME_WINDOW: Duration = Duration::from_secs(120);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// One event that may happen next. Clients, sessions and connections are named by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    ClientSends(usize),
    ServerSends(usize),
    /// One message leaves.
    ClientWrites(usize),
    ServerWrites(usize),
    /// One message leaves, the delay of acknowledgements having passed.
    ClientWritesLate(usize),
    ServerWritesLate(usize),
    /// The application receives one message.
    ClientTakes(usize),
    ServerTakes(usize),
    ServerConfirms(usize),
    /// The balancer picks the node.
    Opens(usize, usize),
    /// Make before break.
    Replaces(usize, usize),
    /// The pending connection takes too long; bytes that were written on it may still arrive.
    Abandons(usize),
    /// The oldest message of a connection arrives.
    ReachesServer(usize),
    ReachesClient(usize),
    /// Everything that is written from now on is lost.
    Cut {
        link: usize,
        up: bool,
        down: bool,
    },
    /// Bytes in transit on a cut connection are lost, too.
    DropUp(usize),
    DropDown(usize),
    ClientDetects(usize),
    ServerDetects(usize),
    ClientPings(usize),
    ServerPings(usize),
    ClientEnds(usize),
    ServerEnds(usize),
    Expires(usize),
    /// END gets no answer.
    EndRunsOut(usize),
    /// Both ends close, and neither delivers what the other waits for: this one sends END without waiting.
    PatienceRunsOut(usize),
    Buries(usize),
    Restarts,
    SecondTab,
    /// An attacker presents the key of a session.
    KeyIsPresented(usize),
}

impl Event {
    /// The events of a fault-free continuation.
    fn is_progress(self) -> bool {
        use Event::*;
        matches!(
            self,
            ClientWrites(_)
                | ServerWrites(_)
                | ClientWritesLate(_)
                | ServerWritesLate(_)
                | ClientTakes(_)
                | ServerTakes(_)
                | ServerConfirms(_)
                | Opens(..)
                | ReachesServer(_)
                | ReachesClient(_)
                | Buries(_)
                | PatienceRunsOut(_)
        )
    }
}

/// The part that all states of a run share.
pub(super) struct Setting {
    scenario: Scenario,
    start: Instant,
    config: Arc<ServerConfig>,
}

impl Hash for Setting {
    /// It is the same in every state, so it distinguishes none.
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// One state of a small world; the module describes it.
#[derive(Clone, Hash)]
pub(super) struct World {
    setting: Rc<Setting>,
    clients: Vec<Rc<Client>>,
    /// One for each node.
    registries: Vec<Rc<Registry<usize>>>,
    sessions: Arena,
    /// The node of each session.
    homes: Vec<usize>,
    links: Vec<Rc<Link>>,
    facts: Rc<Facts>,
    left: Budget,
    incarnation: u8,
    /// The HELLO that created each session, where an attacker has read it, and whether the first epoch is established.
    overheard: Vec<(Rc<Hello>, bool)>,
}

#[derive(Clone, Hash)]
struct Client {
    machine: ClientSession,
    /// Messages that its application sent; a copy continues the count of its original.
    count: u64,
    ending: bool,
}

#[derive(Clone, Hash, Default)]
struct Arena(Vec<Option<Rc<ServerSession>>>);

impl Sessions for Arena {
    type Handle = usize;

    fn with<R>(&mut self, handle: &usize, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        #[allow(clippy::expect_used, reason = "a dangling name is a bug that the run must stop at")]
        f(Rc::make_mut(self.0[*handle].as_mut().expect("the registry names a session that is gone")))
    }

    fn create(&mut self, session: ServerSession) -> usize {
        self.0.push(Some(Rc::new(session)));
        self.0.len() - 1
    }
}

/// One connection.
#[derive(Clone, Hash)]
struct Link {
    client: usize,
    /// The node that it reached.
    node: usize,
    client_open: bool,
    server: ServerEnd,
    up: Lane,
    down: Lane,
}

#[derive(Clone, Copy, Hash, PartialEq, Eq)]
enum ServerEnd {
    AwaitHello,
    Bound(usize),
    Closed,
}

#[derive(Clone, Hash, Default)]
struct Lane {
    cut: bool,
    packets: VecDeque<Packet>,
}

#[derive(Clone, Hash, Debug)]
enum Packet {
    Message(Kind, Bytes),
    Close { superseded: bool, reason: String },
}

type Step = Result<bool, String>;

impl World {
    pub(super) fn new(scenario: &Scenario) -> Self {
        #[allow(clippy::disallowed_methods, reason = "virtual time needs a start")]
        let now = Instant::now() + 100 * HOUR;
        let window = Window { messages: scenario.window, bytes: 1 << 20 };
        let keep = match scenario.drops_above {
            0 => Window::SERVER,
            messages => Window { messages, bytes: 1 << 20 },
        };
        let flow = FlowConfig { keep, accept: window, manual_ack: scenario.manual, max_message: None };
        let config = Arc::new(ServerConfig {
            flow,
            resume_window: RESUME_WINDOW,
            heartbeat: HeartbeatConfig::every(HOUR).unwrap_or_default(),
            ..ServerConfig::default()
        });
        let client = ClientConfig {
            flow: FlowConfig { manual_ack: false, keep: Window::CLIENT, ..flow },
            ..ClientConfig::default()
        };
        let registry = |node| {
            let (limits, seed) = (limits(scenario, node), [1 + node as u8; 32]);
            Rc::new(Registry::new(now - HOUR, limits, Arc::clone(&config), seed))
        };
        let registries = (0..scenario.nodes).map(registry).collect();
        let mut facts = Facts::default();
        facts.add_client();
        Self {
            setting: Rc::new(Setting { scenario: *scenario, start: now, config }),
            clients: vec![Rc::new(Client {
                machine: ClientSession::new(client, [100; 32]),
                count: 0,
                ending: false,
            })],
            registries,
            sessions: Arena::default(),
            homes: Vec::new(),
            links: Vec::new(),
            facts: Rc::new(facts),
            left: scenario.faults,
            incarnation: 1,
            overheard: Vec::new(),
        }
    }

    // ---- which events may happen ----------------------------------------------------------------

    /// Returns every event that may happen, and whether it belongs to a fault-free continuation. Some of them do
    /// nothing.
    pub(super) fn events(&self) -> Vec<(Event, bool)> {
        let mut events = Vec::with_capacity(32);
        (0..self.clients.len()).for_each(|client| self.client_events(client, &mut events));
        (0..self.sessions.0.len()).for_each(|session| self.session_events(session, &mut events));
        (0..self.links.len()).for_each(|link| self.link_events(link, &mut events));
        if self.left.restarts > 0 {
            events.push(Event::Restarts);
        }
        if self.left.tabs > 0 {
            events.push(Event::SecondTab);
        }
        let known = (0..).zip(&self.overheard).filter(|(_, (_, established))| *established);
        events.extend(known.map(|(session, _)| Event::KeyIsPresented(session)));
        let mut events: Vec<_> = events.into_iter().map(|event| (event, event.is_progress())).collect();
        (0..self.links.len()).for_each(|link| self.detections(link, &mut events));
        events
    }

    fn client_events(&self, index: usize, events: &mut Vec<Event>) {
        let (client, left, scenario) = (&self.clients[index], &self.left, &self.setting.scenario);
        if scenario.lazy {
            events.push(Event::ClientWrites(index));
        }
        if client.machine.poll_timeout().is_some() {
            events.push(Event::ClientWritesLate(index));
        }
        if scenario.slow {
            events.push(Event::ClientTakes(index));
        }
        if client.machine.is_closed() {
            return;
        }
        if client.count < scenario.client_messages && !client.ending {
            events.push(Event::ClientSends(index));
        }
        match (client.machine.current(), client.machine.pending()) {
            (_, Some(_)) if left.abandons > 0 => events.push(Event::Abandons(index)),
            (None, None) => events.extend((0..scenario.nodes).map(|node| Event::Opens(index, node))),
            (Some(_), None) if left.replacements > 0 => {
                events.extend((0..scenario.nodes).map(|node| Event::Replaces(index, node)));
            }
            _ => {}
        }
        if client.machine.current().is_some() && left.pings > 0 {
            events.push(Event::ClientPings(index));
        }
        if left.ends > 0 && !client.ending && client.machine.current().is_some() {
            events.push(Event::ClientEnds(index));
        }
    }

    fn session_events(&self, index: usize, events: &mut Vec<Event>) {
        let Some(session) = &self.sessions.0[index] else { return };
        let (left, scenario) = (&self.left, &self.setting.scenario);
        if session.connection().is_some() {
            if scenario.lazy {
                events.push(Event::ServerWrites(index));
            }
            events.push(Event::ServerWritesLate(index));
        }
        if scenario.slow {
            events.push(Event::ServerTakes(index));
        }
        if scenario.manual {
            events.push(Event::ServerConfirms(index));
        }
        if session.closed().is_some() {
            if session.connection().is_none() {
                events.push(Event::Buries(index));
            }
            return;
        }
        if session.is_open() && session.is_confirmed() && self.facts.sent(index) < scenario.server_messages {
            events.push(Event::ServerSends(index));
        }
        if session.connection().is_some() && left.pings > 0 {
            events.push(Event::ServerPings(index));
        }
        if session.is_open() && left.ends > 0 {
            events.push(Event::ServerEnds(index));
        }
        if session.connection().is_none() && left.expiries > 0 {
            events.push(Event::Expires(index));
        }
        if session.connection().is_some() && !session.is_open() && left.expiries > 0 {
            events.push(Event::EndRunsOut(index));
        }
        let is_flushing = !session.is_open() && !session.is_final() && session.connection().is_some();
        if is_flushing && self.clients.iter().any(|client| client.ending) {
            events.push(Event::PatienceRunsOut(index));
        }
    }

    fn link_events(&self, index: usize, events: &mut Vec<Event>) {
        let link = &self.links[index];
        if link.is_dead() {
            return;
        }
        if !link.up.packets.is_empty() {
            events.push(Event::ReachesServer(index));
            if link.up.cut {
                events.push(Event::DropUp(index));
            }
        }
        if !link.down.packets.is_empty() {
            events.push(Event::ReachesClient(index));
            if link.down.cut {
                events.push(Event::DropDown(index));
            }
        }
        if self.left.cuts > 0 && !link.down.cut {
            events.push(Event::Cut { link: index, up: true, down: true });
            if !link.up.cut {
                events.push(Event::Cut { link: index, up: true, down: false });
                events.push(Event::Cut { link: index, up: false, down: true });
            }
        }
    }

    /// An end notices what the other end or the network did: after everything else has arrived or, as a fault,
    /// before.
    fn detections(&self, index: usize, events: &mut Vec<(Event, bool)>) {
        let link = &self.links[index];
        let cut = link.up.cut || link.down.cut;
        if link.client_open && (cut || link.server == ServerEnd::Closed) {
            let quiet = link.down.packets.is_empty();
            if quiet || (link.server == ServerEnd::Closed && self.left.cuts > 0) {
                events.push((Event::ClientDetects(index), quiet));
            }
        }
        if link.server != ServerEnd::Closed && (cut || !link.client_open) {
            events.push((Event::ServerDetects(index), link.up.packets.is_empty()));
        }
    }

    // ---- what an event does ---------------------------------------------------------------------

    /// Returns the state after `event`; `None` if the event does nothing.
    pub(super) fn after(&self, event: Event) -> Result<Option<Self>, String> {
        let mut world = self.clone();
        Ok(world.apply(event)?.then_some(world))
    }

    fn apply(&mut self, event: Event) -> Step {
        let now = self.now();
        let late = now + Duration::from_millis(250);
        match event {
            Event::ClientSends(client) => return self.client_sends(client),
            Event::ServerSends(session) => {
                let message = self.facts().server_sends(session);
                if self.session(session).send(message).is_err() {
                    return Ok(false);
                }
                self.settle_session(session)?;
            }
            Event::ClientWrites(client) => return self.client_writes(client, now),
            Event::ServerWrites(session) => return self.server_writes(session, now),
            Event::ClientWritesLate(client) => return self.client_writes(client, late),
            Event::ServerWritesLate(session) => return self.server_writes(session, late),
            Event::ClientTakes(client) => {
                let received = self.client_takes(client)?;
                self.settle_client(client)?;
                return Ok(received);
            }
            Event::ServerTakes(session) => {
                let received = self.server_takes(session)?;
                self.settle_session(session)?;
                return Ok(received);
            }
            Event::ServerConfirms(session) => {
                let before = self.sessions.0[session].clone();
                let acknowledged = before.as_ref().map_or(0, |session| session.acknowledged_inbound());
                self.session(session).acknowledge(now, acknowledged + 1);
                self.settle_session(session)?;
                return Ok(before != self.sessions.0[session]);
            }
            Event::Opens(client, node) => self.opens(client, node)?,
            Event::Replaces(client, node) => {
                self.left.replacements -= 1;
                self.opens(client, node)?;
            }
            Event::Abandons(client) => {
                self.left.abandons -= 1;
                if let Some(connection) = self.clients[client].machine.pending() {
                    self.client_lost(connection.0 as usize)?;
                }
            }
            Event::ReachesServer(link) => self.reaches_server(link)?,
            Event::ReachesClient(link) => self.reaches_client(link)?,
            Event::Cut { link, up, down } => {
                self.left.cuts -= 1;
                let link = self.link(link);
                link.up.cut |= up;
                link.down.cut |= down;
            }
            Event::DropUp(link) => self.link(link).up.packets.clear(),
            Event::DropDown(link) => self.link(link).down.packets.clear(),
            Event::ClientDetects(link) => {
                if !self.links[link].down.packets.is_empty() {
                    self.left.cuts -= 1;
                }
                self.client_lost(link)?;
            }
            Event::ServerDetects(link) => self.server_lost(link)?,
            Event::ClientPings(client) => {
                let nonce = u64::from(self.left.pings);
                self.left.pings -= 1;
                self.client(client).machine.probe(nonce);
                self.settle_client(client)?;
            }
            Event::ServerPings(session) => return self.server_pings(session),
            Event::ClientEnds(client) => {
                self.left.ends -= 1;
                self.facts().excuse();
                let node = self.client(client);
                node.ending = true;
                node.machine.close(CloseCode::NORMAL, "");
                self.settle_client(client)?;
            }
            Event::ServerEnds(session) => {
                self.left.ends -= 1;
                self.facts().server_closes(session);
                self.session(session).close(now, CloseCode::NORMAL, "");
                self.settle_session(session)?;
            }
            Event::Expires(session) => {
                self.left.expiries -= 1;
                self.facts().excuse();
                self.session(session).handle_timeout(now + RESUME_WINDOW);
            }
            Event::PatienceRunsOut(session) => {
                let before = self.sessions.0[session].clone();
                self.session(session).handle_timeout(now + CLOSE_TIMEOUT);
                self.settle_session(session)?;
                return Ok(before != self.sessions.0[session]);
            }
            Event::EndRunsOut(session) => {
                self.left.expiries -= 1;
                let before = self.sessions.0[session].clone();
                self.session(session).handle_timeout(now + CLOSE_TIMEOUT);
                self.settle_session(session)?;
                return Ok(before != self.sessions.0[session]);
            }
            Event::Buries(session) => {
                let home = self.homes[session];
                if let Some(session) = self.sessions.0[session].take() {
                    self.registry(home).bury(now, &session);
                }
            }
            Event::Restarts => self.restarts(),
            Event::SecondTab => return Ok(self.opens_second_tab()),
            Event::KeyIsPresented(session) => return self.key_is_presented(session),
        }
        Ok(true)
    }

    fn client_sends(&mut self, index: usize) -> Step {
        let node = self.client(index);
        let mark = (index, node.count + 1);
        let Ok(number) = node.machine.send(Facts::client_message(mark)) else { return Ok(false) };
        node.count += 1;
        self.facts().accepted(index, mark, number)?;
        self.settle_client(index)?;
        Ok(true)
    }

    fn opens(&mut self, client: usize, node: usize) -> Result<(), String> {
        let connection = ConnectionId(self.links.len() as u64);
        if self.links.len() == MOST_CONNECTIONS {
            return Err("a client that dials for ever".into());
        }
        let (up, down) = (Lane::default(), Lane::default());
        let server = ServerEnd::AwaitHello;
        self.links.push(Rc::new(Link { client, node, client_open: true, server, up, down }));
        let now = self.now();
        self.client(client).machine.handle_opened(now, connection);
        self.client_writes(client, now)?;
        self.settle_client(client)
    }

    /// The heartbeat of an attached session fires, after a pause of any length.
    fn server_pings(&mut self, index: usize) -> Step {
        self.left.pings -= 1;
        let at = self.now();
        let session = self.session(index);
        let mut action = session.handle_timeout(at);
        if action == Some(Action::Drain) {
            action = session.handle_timeout(at);
        }
        self.settle_session(index)?;
        Ok(matches!(action, Some(Action::Probe { .. })))
    }

    /// Returns the time of the next event. Time stands still, except that each PING comes three hours after the event before.
    fn now(&self) -> Instant {
        let pings = self.setting.scenario.faults.pings - self.left.pings;
        self.setting.start + HOUR * 3 * u32::from(pings)
    }

    fn restarts(&mut self) {
        self.left.restarts -= 1;
        self.incarnation += 1;
        self.facts().excuse();
        let (now, config) = (self.now(), &self.setting.config);
        let seed = [self.incarnation; 32];
        let limits = limits(&self.setting.scenario, 0);
        self.registries[0] = Rc::new(Registry::new(now, limits, Arc::clone(config), seed));
        self.sessions.0.fill(None);
        (0..self.links.len()).for_each(|link| self.close_server_end(link));
    }

    fn opens_second_tab(&mut self) -> bool {
        let original = Rc::make_mut(&mut self.clients[0]);
        if original.machine.is_closed() {
            return false;
        }
        let Some(machine) = original.machine.restored([101; 32]) else { return false };
        let copy = Client { machine, count: original.count, ending: false };
        self.clients.push(Rc::new(copy));
        self.left.tabs -= 1;
        self.facts().add_copy();
        true
    }

    /// The attacker says to be the client, and later than it. A refusal changes nothing, so it makes no new state.
    fn key_is_presented(&mut self, session: usize) -> Step {
        let hello = Hello { attempt: u64::MAX >> 11, ..(*self.overheard[session].0).clone() };
        let (now, connection) = (self.now(), ConnectionId(u64::MAX));
        let registry = Rc::make_mut(&mut self.registries[0]);
        match registry.hello(now, connection, Presenter::default(), &hello, &mut self.sessions) {
            Answer::Attached { .. } => {
                Err(format!("session {session} was opened by a key that is no secret"))
            }
            Answer::Refused { .. } => Ok(false),
        }
    }

    // ---- connections ----------------------------------------------------------------------------

    fn reaches_server(&mut self, index: usize) -> Result<(), String> {
        let now = self.now();
        let Some(packet) = self.link(index).up.packets.pop_front() else { return Ok(()) };
        let Packet::Message(kind, payload) = packet else { return self.server_lost(index) };
        let frame = crate::payload::frame(kind, payload).map_err(broke)?;
        match self.links[index].server {
            ServerEnd::Closed => Ok(()),
            ServerEnd::AwaitHello => match frame {
                Frame::Control(Control::Hello(hello)) => self.hello(index, &hello),
                other => Err(format!("server expected HELLO, got {other:?}")),
            },
            ServerEnd::Bound(session) => {
                if let Frame::Control(Control::End { acknowledged, .. }) = &frame {
                    self.facts().client_ended(session, *acknowledged)?;
                }
                let is_control = matches!(frame, Frame::Control(_));
                self.session(session).handle_frame(now, ConnectionId(index as u64), frame).map_err(broke)?;
                if let Some((_, established)) = self.overheard.get_mut(session) {
                    *established |= is_control;
                }
                self.settle_session(session)
            }
        }
    }

    fn hello(&mut self, index: usize, hello: &Hello) -> Result<(), String> {
        match self.answer(index, hello)? {
            Answer::Attached { session, created, fenced, .. } => {
                if created {
                    self.homes.push(self.links[index].node);
                    let key = (self.setting.scenario.nodes > 1).then_some(hello.key.0);
                    self.facts().add_session(key);
                    if self.setting.scenario.overheard {
                        self.overheard.push((Rc::new(hello.clone()), false));
                    }
                    if self.setting.scenario.drops_above > 0 {
                        self.session(session).drop_oldest_when_full();
                    }
                }
                if let Some(fenced) = fenced {
                    let old = fenced.connection.0 as usize;
                    self.push_down(old, Packet::Close { superseded: true, reason: fenced.reason });
                    self.close_server_end(old);
                }
                self.link(index).server = ServerEnd::Bound(session);
                self.settle_session(session)
            }
            Answer::Refused { refuse, .. } => {
                self.push_down(index, Packet::Message(Kind::Binary, refuse.encode()));
                self.close_server_end(index);
                Ok(())
            }
        }
    }

    /// Asks the node that the token names, and opens at the node that the client reached.
    fn answer(&mut self, index: usize, hello: &Hello) -> Result<Answer<usize>, String> {
        let (now, connection) = (self.now(), ConnectionId(index as u64));
        let (who, entry) = (Presenter::default(), self.links[index].node);
        let route = hello.resume.as_ref().and_then(|resume| Route::of(&resume.token));
        let owner = route.map_or(entry, |route| usize::from(route.node.0[0]));
        let registry = Rc::make_mut(&mut self.registries[owner]);
        let account = match registry.resume(now, connection, who, hello, &mut self.sessions) {
            Resumed::Answer(answer) => return Ok(answer),
            Resumed::Lost(account) => account,
            other => return Err(format!("nothing moves, and {other:?}")),
        };
        let registry = Rc::make_mut(&mut self.registries[entry]);
        Ok(registry.open(now, connection, who, hello, account, &mut self.sessions))
    }

    fn reaches_client(&mut self, index: usize) -> Result<(), String> {
        let (client, connection) = (self.links[index].client, ConnectionId(index as u64));
        let Some(packet) = self.link(index).down.packets.pop_front() else { return Ok(()) };
        match packet {
            Packet::Message(kind, payload) => {
                let frame = crate::payload::frame(kind, payload).map_err(broke)?;
                self.client(client).machine.handle_frame(connection, frame).map_err(broke)?;
            }
            Packet::Close { superseded: true, reason } => {
                self.client(client).machine.handle_superseded(connection, &reason);
                self.close_client_end(index);
            }
            Packet::Close { superseded: false, .. } => {
                self.client(client).machine.handle_lost(connection);
                self.close_client_end(index);
            }
        }
        self.settle_client(client)
    }

    fn client_lost(&mut self, index: usize) -> Result<(), String> {
        let client = self.links[index].client;
        self.close_client_end(index);
        self.client(client).machine.handle_lost(ConnectionId(index as u64));
        self.settle_client(client)
    }

    fn server_lost(&mut self, index: usize) -> Result<(), String> {
        let (end, now) = (self.links[index].server, self.now());
        self.close_server_end(index);
        let ServerEnd::Bound(session) = end else { return Ok(()) };
        self.session(session).handle_lost(now, ConnectionId(index as u64));
        self.settle_session(session)
    }

    fn close_client_end(&mut self, index: usize) {
        let link = self.link(index);
        link.client_open = false;
        link.down.packets.clear();
        link.forget_if_dead();
    }

    fn close_server_end(&mut self, index: usize) {
        let link = self.link(index);
        link.server = ServerEnd::Closed;
        link.up.packets.clear();
        link.forget_if_dead();
    }

    fn push_up(&mut self, index: usize, packet: Packet) {
        let link = self.link(index);
        if link.client_open && link.server != ServerEnd::Closed && !link.up.cut {
            link.up.packets.push_back(packet);
        }
    }

    fn push_down(&mut self, index: usize, packet: Packet) {
        let link = self.link(index);
        if link.client_open && link.server != ServerEnd::Closed && !link.down.cut {
            link.down.packets.push_back(packet);
        }
    }

    // ---- what drivers and applications do after an event ----------------------------------------

    fn settle_client(&mut self, index: usize) -> Result<(), String> {
        let now = self.now();
        if !self.setting.scenario.slow {
            while self.client_takes(index)? {}
        }
        if !self.setting.scenario.lazy {
            while self.client_writes(index, now)? {}
        }
        while let Some(event) = self.client(index).machine.poll_event() {
            if let ClientEvent::Gap(fate) | ClientEvent::Ended { fate, .. } = event {
                self.facts().learned(index, &fate)?;
            }
        }
        // A connection that the machine does not use any more is closed.
        let machine = &self.clients[index].machine;
        let kept = [machine.current(), machine.pending()];
        self.facts.check_client(index, machine.acknowledged())?;
        for link in 0..self.links.len() {
            let open = self.links[link].client == index && self.links[link].client_open;
            if open && !kept.contains(&Some(ConnectionId(link as u64))) {
                self.close_client_end(link);
            }
        }
        Ok(())
    }

    fn settle_session(&mut self, index: usize) -> Result<(), String> {
        let now = self.now();
        if !self.setting.scenario.slow {
            while self.server_takes(index)? {}
        }
        if !self.setting.scenario.lazy {
            while self.server_writes(index, now)? {}
        }
        match &self.sessions.0[index] {
            Some(session) => self.facts.check_session(index, session.acknowledged(), session.is_open()),
            None => Ok(()),
        }
    }

    fn client_takes(&mut self, index: usize) -> Step {
        let now = self.now();
        match self.client(index).machine.deliver(now) {
            Some(Delivery::Message(message)) => self.facts().client_got(index, &message).map(|()| true),
            Some(Delivery::Gap { first, count, .. }) => {
                let dropped = self.sessions.0.iter().map(|session| Some(session.as_ref()?.dropped())).sum();
                self.facts().client_got_gap(index, first, count, dropped).map(|()| true)
            }
            Some(Delivery::Replaced { .. }) => Err("an unexpected replacement".into()),
            None => Ok(false),
        }
    }

    fn server_takes(&mut self, index: usize) -> Step {
        let now = self.now();
        if self.sessions.0[index].is_none() {
            return Ok(false);
        }
        match self.session(index).deliver(now) {
            Some(Delivery::Message(message)) => self.facts().server_got(index, &message).map(|()| true),
            Some(Delivery::Gap { .. } | Delivery::Replaced { .. }) => {
                Err("a gap in the stream that no policy made".into())
            }
            None => Ok(false),
        }
    }

    fn client_writes(&mut self, index: usize, at: Instant) -> Step {
        let Some((connection, transmit)) = self.client(index).machine.poll_transmit(at) else {
            return Ok(false);
        };
        let link = connection.0 as usize;
        match transmit {
            Transmit::Close { .. } | Transmit::Abort => {
                self.push_up(link, Packet::Close { superseded: false, reason: String::new() });
                self.close_client_end(link);
                self.client(index).machine.handle_lost(connection);
            }
            other => {
                if let Some(packet) = message(&other) {
                    self.push_up(link, packet);
                }
            }
        }
        Ok(true)
    }

    fn server_writes(&mut self, index: usize, at: Instant) -> Step {
        let now = self.now();
        let Some(connection) = self.sessions.0[index].as_ref().and_then(|session| session.connection())
        else {
            return Ok(false);
        };
        let Some(transmit) = self.session(index).poll_transmit(at, connection) else { return Ok(false) };
        let link = connection.0 as usize;
        match transmit {
            Transmit::Close { .. } | Transmit::Abort => {
                self.push_down(link, Packet::Close { superseded: false, reason: String::new() });
                self.close_server_end(link);
                self.session(index).handle_lost(now, connection);
            }
            other => {
                if let Some(packet) = message(&other) {
                    self.push_down(link, packet);
                }
            }
        }
        Ok(true)
    }

    // ---- facts ----------------------------------------------------------------------------------

    /// Whether every client that continues is attached to a living session over a working connection, and everything
    /// that was sent is delivered and acknowledged, in both directions.
    pub(super) fn is_good(&self) -> bool {
        self.clients.iter().all(|client| {
            let machine = &client.machine;
            if machine.is_closed() {
                return true;
            }
            let (Some(connection), None, false) = (machine.current(), machine.pending(), client.ending)
            else {
                return false;
            };
            let link = &self.links[connection.0 as usize];
            let ServerEnd::Bound(index) = link.server else { return false };
            let Some(session) = &self.sessions.0[index] else { return false };
            !link.up.cut
                && !link.down.cut
                && session.is_open()
                && session.connection() == Some(connection)
                && machine.acknowledged() == machine.last_sent()
                && session.acknowledged() == self.facts.sent(index)
        })
    }

    /// Returns what `event` is about, for a trace.
    pub(super) fn describe(&self, event: Event) -> String {
        let packet = match event {
            Event::ReachesServer(link) => self.links[link].up.packets.front(),
            Event::ReachesClient(link) => self.links[link].down.packets.front(),
            _ => None,
        };
        match packet {
            Some(Packet::Message(kind, payload)) => match crate::payload::frame(*kind, payload.clone()) {
                Ok(Frame::Message(message)) => {
                    format!("{event:?} {:?}", message.as_text().unwrap_or_default())
                }
                Ok(Frame::Control(control)) => format!("{event:?} {control:?}"),
                other => format!("{event:?} {other:?}"),
            },
            Some(close) => format!("{event:?} {close:?}"),
            None => format!("{event:?}"),
        }
    }

    fn client(&mut self, index: usize) -> &mut Client {
        Rc::make_mut(&mut self.clients[index])
    }

    fn session(&mut self, index: usize) -> &mut ServerSession {
        #[allow(clippy::expect_used, reason = "events name living sessions")]
        Rc::make_mut(self.sessions.0[index].as_mut().expect("a session that is gone"))
    }

    fn registry(&mut self, node: usize) -> &mut Registry<usize> {
        Rc::make_mut(&mut self.registries[node])
    }

    fn link(&mut self, index: usize) -> &mut Link {
        Rc::make_mut(&mut self.links[index])
    }

    fn facts(&mut self) -> &mut Facts {
        Rc::make_mut(&mut self.facts)
    }
}

impl Link {
    fn is_dead(&self) -> bool {
        !self.client_open && self.server == ServerEnd::Closed
    }

    /// Two states that differ only in how a dead connection died are equal.
    fn forget_if_dead(&mut self) {
        if self.is_dead() {
            (self.up, self.down) = (Lane::default(), Lane::default());
        }
    }
}

/// Returns the limits of a node; where there are several, a session is confirmed before it delivers anything.
fn limits(scenario: &Scenario, node: usize) -> RegistryConfig {
    let several = scenario.nodes > 1;
    let id = several.then_some(NodeId([node as u8; 8]));
    RegistryConfig { node: id, confirmation_first: several, ..RegistryConfig::default() }
}

fn message(transmit: &Transmit) -> Option<Packet> {
    let (kind, prefix, body) = transmit.as_message()?;
    let payload = if prefix.is_empty() { body.clone() } else { [prefix, body].concat().into() };
    Some(Packet::Message(kind, payload))
}

fn broke(error: SessionError) -> String {
    match error {
        SessionError::PositionMismatch { .. } => format!("integrity check fired on a correct run: {error}"),
        _ => format!("protocol error on a correct run: {error}"),
    }
}
