//! A client session and a server in one process, with connections that a test cuts where it likes.
//!
//! Time stands still unless a test moves it. Messages travel only in [`Pair::run`], so a test decides
//! what was under way when a connection was cut; [`Pair::lose_written`] drops what was written.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::admission::Source;
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{
    Answer, ClientConfig, ClientEvent, ClientSession, Closed, ConnectionId, Control, Delivery, Expiry, Frame,
    Message, Presenter, RefuseReason, Registry, RegistryConfig, ServerConfig, ServerSession, SessionError,
    Sessions, Transmit,
};
use mainstay_proto::ws::{CloseCode, Kind};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// The resume window of the pair's server.
pub(crate) const RESUME_WINDOW: Duration = Duration::from_secs(120);

/// Some instant, the same in every test; days lie before it.
pub(crate) fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(|| Instant::now() + 1_000_000 * SECOND)
}

/// The server's sessions; one that is dropped leaves its place empty.
#[derive(Default)]
pub(crate) struct Arena {
    sessions: Vec<ServerSession>,
    sources: Vec<Option<Source>>,
    /// Where the HELLOs of new sessions come from.
    pub(crate) source: Option<Source>,
}

impl Arena {
    pub(crate) fn get(&mut self, index: usize) -> &mut ServerSession {
        &mut self.sessions[index]
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }
}

impl Sessions for Arena {
    type Handle = usize;

    fn with<R>(&mut self, handle: &usize, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        f(&mut self.sessions[*handle])
    }

    fn create(&mut self, session: ServerSession) -> usize {
        self.sessions.push(session);
        self.sources.push(self.source);
        self.sessions.len() - 1
    }

    fn source(&mut self, handle: &usize) -> Option<Source> {
        self.sources[*handle]
    }
}

pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) client: ClientSession,
    pub(crate) server: Server,
    wires: BTreeMap<ConnectionId, Wire>,
    opened: u64,
    /// All that the client's application got, and what happened to it.
    pub(crate) client_got: Vec<String>,
    pub(crate) events: Vec<ClientEvent>,
    /// The texts that either end wrote, and where.
    written: Vec<(ConnectionId, String)>,
}

pub(crate) struct Server {
    pub(crate) registry: Registry<usize>,
    pub(crate) sessions: Arena,
    pub(crate) principal: Bytes,
    pub(crate) path: &'static str,
    /// What the applications got, per session.
    pub(crate) got: BTreeMap<usize, Vec<String>>,
    /// Whether the applications receive what has arrived.
    pub(crate) takes: bool,
    /// Whether credentials that a client sends for its live session are judged when they come.
    pub(crate) judges: bool,
    /// How long the credentials of the next attach or verdict hold.
    pub(crate) expiry: Option<Expiry>,
    /// Errors that ended a connection, and refusals.
    pub(crate) errors: Vec<SessionError>,
    pub(crate) refusals: Vec<RefuseReason>,
}

#[derive(Default)]
struct Wire {
    up: VecDeque<Packet>,
    down: VecDeque<Packet>,
    bound: Option<usize>,
    closed: bool,
}

#[derive(Debug, Clone)]
enum Packet {
    Message(Kind, Bytes),
    Close(CloseCode, String),
}

impl Default for Pair {
    fn default() -> Self {
        Self::new(ClientConfig::default(), server_config(), RegistryConfig::default())
    }
}

/// A server that keeps parked sessions for two minutes and never beats while a test looks.
pub(crate) fn server_config() -> ServerConfig {
    let heartbeat = HeartbeatConfig::every(Duration::from_secs(3600)).unwrap();
    ServerConfig { heartbeat, resume_window: RESUME_WINDOW, ..ServerConfig::default() }
}

impl Pair {
    /// The server has been running for a day when the client begins.
    pub(crate) fn new(client: ClientConfig, server: ServerConfig, registry: RegistryConfig) -> Self {
        let now = start();
        Self {
            now,
            client: ClientSession::new(client, [1; 32]),
            server: Server {
                registry: Registry::new(now - 86_400 * SECOND, registry, Arc::new(server), [2; 32]),
                sessions: Arena::default(),
                principal: Bytes::from_static(b"alice"),
                path: "/chat",
                got: BTreeMap::new(),
                takes: true,
                judges: true,
                expiry: None,
                errors: Vec::new(),
                refusals: Vec::new(),
            },
            wires: BTreeMap::new(),
            opened: 0,
            client_got: Vec::new(),
            events: Vec::new(),
            written: Vec::new(),
        }
    }

    /// Attached to the one session that the server has room for.
    pub(crate) fn with_room_for_one() -> Self {
        let registry = RegistryConfig { sessions: 1, ..RegistryConfig::default() };
        let mut pair = Self::new(ClientConfig::default(), server_config(), registry);
        pair.connect();
        pair
    }

    /// Returns an attached pair with its epoch established.
    pub(crate) fn attached() -> Self {
        let mut pair = Self::default();
        pair.connect();
        pair
    }

    /// Opens a connection and lets everything arrive.
    pub(crate) fn connect(&mut self) -> ConnectionId {
        let connection = self.open();
        self.run();
        connection
    }

    /// Opens a connection. The client has written what it may; nothing of it has arrived.
    pub(crate) fn open(&mut self) -> ConnectionId {
        let connection = self.wire();
        self.client.handle_opened(self.now, connection);
        self.write();
        connection
    }

    /// A connection that another client opened.
    pub(crate) fn wire(&mut self) -> ConnectionId {
        self.opened += 1;
        let connection = ConnectionId(self.opened);
        self.wires.insert(connection, Wire::default());
        connection
    }

    /// Both ends learn that the connection is gone; what was under way is lost.
    pub(crate) fn cut(&mut self, connection: ConnectionId) {
        self.cut_at_client(connection);
        self.cut_at_server(connection);
    }

    pub(crate) fn cut_at_client(&mut self, connection: ConnectionId) {
        self.client.handle_lost(connection);
        self.take_events();
    }

    pub(crate) fn cut_at_server(&mut self, connection: ConnectionId) {
        let Some(wire) = self.wires.remove(&connection) else { return };
        if let Some(session) = wire.bound {
            self.server.sessions.get(session).handle_lost(self.now, connection);
            self.bury();
        }
    }

    pub(crate) fn client_sends(&mut self, text: &str) -> u64 {
        self.client.send(Message::text(text)).unwrap()
    }

    /// Sends each number as a text.
    pub(crate) fn client_sends_numbers(&mut self, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            self.client_sends(&number.to_string());
        }
    }

    pub(crate) fn server_sends(&mut self, text: &str) -> u64 {
        self.session().send(Message::text(text)).unwrap()
    }

    /// The application of the newest session ends it.
    pub(crate) fn server_closes(&mut self, code: CloseCode, reason: &str) {
        let now = self.now;
        self.session().close(now, code, reason);
    }

    /// The newest session.
    pub(crate) fn session(&mut self) -> &mut ServerSession {
        let newest = self.server.sessions.len() - 1;
        self.server.sessions.get(newest)
    }

    /// What the application of the newest session got.
    pub(crate) fn server_got(&self) -> &[String] {
        let newest = self.server.sessions.len() - 1;
        self.server.got.get(&newest).map_or(&[], Vec::as_slice)
    }

    /// Both ends write, and nothing of it ever arrives.
    pub(crate) fn lose_written(&mut self, connection: ConnectionId) {
        self.write();
        if let Some(wire) = self.wires.get_mut(&connection) {
            wire.up.clear();
            wire.down.clear();
        }
    }

    /// Time passes, and what is due is done.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
        for index in 0..self.server.sessions.len() {
            self.server.sessions.get(index).handle_timeout(self.now);
        }
        self.bury();
        self.run();
    }

    /// Writes, moves and delivers everything, until nothing changes.
    pub(crate) fn run(&mut self) {
        loop {
            self.write();
            let connections: Vec<_> = self.wires.keys().copied().collect();
            let mut moved = false;
            for connection in connections {
                moved |= self.deliver_up(connection) | self.deliver_down(connection);
            }
            self.deliver();
            if !moved && !self.write() {
                return;
            }
        }
    }

    /// Lets one message of the client arrive.
    pub(crate) fn deliver_up(&mut self, connection: ConnectionId) -> bool {
        let Some(packet) = self.wires.get_mut(&connection).and_then(|wire| wire.up.pop_front()) else {
            return false;
        };
        match packet {
            Packet::Message(kind, payload) => self.at_server(connection, kind, payload),
            Packet::Close(..) => self.cut_at_server(connection),
        }
        true
    }

    /// Lets one message of the server arrive.
    pub(crate) fn deliver_down(&mut self, connection: ConnectionId) -> bool {
        let Some(packet) = self.wires.get_mut(&connection).and_then(|wire| wire.down.pop_front()) else {
            return false;
        };
        match packet {
            Packet::Message(kind, payload) => {
                let frame = Frame::decode(Message::new(kind, payload).unwrap()).unwrap();
                self.client.handle_frame(connection, frame).unwrap();
            }
            Packet::Close(CloseCode::SUPERSEDED, reason) => {
                self.client.handle_superseded(connection, &reason)
            }
            Packet::Close(..) => self.client.handle_lost(connection),
        }
        self.take_events();
        true
    }

    /// A message of any make arrives at the server.
    pub(crate) fn at_server(&mut self, connection: ConnectionId, kind: Kind, payload: Bytes) {
        let Some(wire) = self.wires.get(&connection).filter(|wire| !wire.closed) else { return };
        let outcome = match (Frame::decode(Message::new(kind, payload).unwrap()), wire.bound) {
            (Ok(frame), Some(session)) => {
                self.server.sessions.get(session).handle_frame(self.now, connection, frame)
            }
            (Ok(Frame::Control(Control::Hello(hello))), None) => {
                self.hello(connection, &hello);
                Ok(())
            }
            (Ok(_), None) => Err(SessionError::Unexpected("a message before HELLO")),
            (Err(error), _) => Err(error),
        };
        if let (Some(session), true) = (wire_bound(&self.wires, connection), self.server.judges) {
            self.judge(session);
        }
        if let Err(error) = outcome {
            self.server.errors.push(error);
            // END, if there is one, leaves before the Close.
            self.write();
            self.close(connection, error.close_code(), error.to_string());
        }
        self.bury();
    }

    /// Sends a HELLO of any client; the answer goes down this connection.
    pub(crate) fn hello(&mut self, connection: ConnectionId, hello: &Hello) -> Answer<usize> {
        let Server { registry, sessions, principal: usual, path, refusals, expiry, .. } = &mut self.server;
        let principal = match &hello.credentials {
            Some(credentials) => principal_of(&credentials.0),
            None => Some(usual.clone()),
        };
        let answer = match principal {
            Some(principal) => {
                let who = Presenter { principal: &principal, path };
                registry.hello(self.now, connection, who, hello, sessions)
            }
            None => Answer::Refused {
                refuse: RefuseReason::Unauthorized.refuse(),
                why: RefuseReason::Unauthorized,
            },
        };
        match &answer {
            Answer::Attached { session, fenced, .. } => {
                sessions.get(*session).set_expiry(self.now, connection, *expiry);
                if let Some(wire) = self.wires.get_mut(&connection) {
                    wire.bound = Some(*session);
                }
                if let Some(fenced) = fenced {
                    self.close(fenced.connection, CloseCode::SUPERSEDED, fenced.reason.clone());
                }
            }
            Answer::Refused { refuse, why } => {
                refusals.push(*why);
                if let Some(wire) = self.wires.get_mut(&connection) {
                    wire.down.push_back(Packet::Message(Kind::Binary, refuse.encode()));
                }
                self.close(connection, why.code(), String::new());
            }
        }
        answer
    }

    /// The application judges what the client of a session sent.
    pub(crate) fn judge(&mut self, session: usize) {
        let (now, session) = (self.now, self.server.sessions.get(session));
        if let Some((connection, credentials)) = session.poll_auth() {
            let principal = principal_of(&credentials);
            let proof = principal.as_deref().map(|principal| (principal, self.server.expiry));
            session.handle_verdict(now, connection, proof);
        }
    }

    fn close(&mut self, connection: ConnectionId, code: CloseCode, reason: String) {
        let Some(wire) = self.wires.get_mut(&connection) else { return };
        wire.down.push_back(Packet::Close(code, reason));
        wire.closed = true;
        if let Some(session) = wire.bound.take() {
            self.server.sessions.get(session).handle_lost(self.now, connection);
        }
    }

    /// Both ends write what they may; nothing arrives.
    pub(crate) fn write(&mut self) -> bool {
        let mut wrote = false;
        while let Some((connection, transmit)) = self.client.poll_transmit(self.now) {
            wrote = true;
            self.written.extend(text_written(connection, &transmit));
            if let (Some(wire), Some(packet)) = (self.wires.get_mut(&connection), packet_of(&transmit)) {
                wire.up.push_back(packet);
            }
        }
        for (connection, wire) in &mut self.wires {
            let Some(session) = wire.bound else { continue };
            while let Some(transmit) = self.server.sessions.get(session).poll_transmit(self.now, *connection)
            {
                wrote = true;
                self.written.extend(text_written(*connection, &transmit));
                wire.down.extend(packet_of(&transmit));
            }
        }
        self.take_events();
        wrote
    }

    fn deliver(&mut self) {
        while let Some(delivery) = self.client.deliver(self.now) {
            self.client_got.push(text_of(&delivery));
        }
        self.take_events();
        for index in 0..if self.server.takes { self.server.sessions.len() } else { 0 } {
            while let Some(delivery) = self.server.sessions.get(index).deliver(self.now) {
                self.server.got.entry(index).or_default().push(text_of(&delivery));
            }
        }
        self.bury();
    }

    fn bury(&mut self) {
        let Server { registry, sessions, .. } = &mut self.server;
        sessions.sessions.iter().for_each(|session| registry.bury(self.now, session));
    }

    fn take_events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            self.events.push(event);
        }
    }

    // ---- what tests ask -------------------------------------------------------------------------

    /// How often the client was attached, and whether each time it was the same session.
    pub(crate) fn attaches(&self) -> Vec<(u64, bool)> {
        let attaches = self.events.iter().filter_map(|event| match event {
            ClientEvent::Attached { epoch, resumed, .. } => Some((*epoch, *resumed)),
            _ => None,
        });
        attaches.collect()
    }

    /// Returns the gaps that the client received.
    pub(crate) fn gaps(&self) -> Vec<mainstay_proto::session::Fate> {
        let gaps = self.events.iter().filter_map(|event| match event {
            ClientEvent::Gap(fate) => Some(*fate),
            _ => None,
        });
        gaps.collect()
    }

    /// Returns the event with which the client ended.
    pub(crate) fn ended(&self) -> Option<(u64, mainstay_proto::session::Fate)> {
        self.events.iter().find_map(|event| match event {
            ClientEvent::Ended { code, fate, .. } => Some((*code, *fate)),
            _ => None,
        })
    }

    /// How the newest session ended.
    pub(crate) fn over(&mut self) -> Option<Closed> {
        self.session().closed()
    }

    /// The texts that either end wrote to a connection, sorted.
    pub(crate) fn texts(&self, connection: ConnectionId) -> Vec<&str> {
        let texts = self.written.iter().filter(|(on, _)| *on == connection);
        let mut texts: Vec<_> = texts.map(|(_, text)| text.as_str()).collect();
        texts.sort_unstable();
        texts
    }

    /// The messages that wait at the server's end of a connection, as the client wrote them.
    pub(crate) fn under_way_up(&self, connection: ConnectionId) -> Vec<Frame> {
        let packets = self.wires.get(&connection).map(|wire| &wire.up);
        let frames = packets.into_iter().flatten().filter_map(|packet| match packet {
            Packet::Message(kind, payload) => {
                Some(Frame::decode(Message::new(*kind, payload.clone()).unwrap()).unwrap())
            }
            Packet::Close(..) => None,
        });
        frames.collect()
    }

    /// The HELLO that waits at the server's end.
    pub(crate) fn hello_under_way(&self, connection: ConnectionId) -> Hello {
        match self.under_way_up(connection).into_iter().next() {
            Some(Frame::Control(Control::Hello(hello))) => *hello,
            other => panic!("{other:?} is no HELLO"),
        }
    }
}

/// Returns the principal that these credentials prove: the word before the slash. `wrong` proves none.
fn principal_of(credentials: &Bytes) -> Option<Bytes> {
    let name = credentials.split(|byte| *byte == b'/').next()?;
    (name != b"wrong").then(|| Bytes::copy_from_slice(name))
}

fn wire_bound(wires: &BTreeMap<ConnectionId, Wire>, connection: ConnectionId) -> Option<usize> {
    wires.get(&connection)?.bound
}

fn packet_of(transmit: &Transmit) -> Option<Packet> {
    match transmit {
        Transmit::Close { code, reason } => Some(Packet::Close(*code, reason.clone())),
        other => {
            let (kind, head, body) = other.as_message()?;
            Some(Packet::Message(kind, [head, body.as_ref()].concat().into()))
        }
    }
}

fn text_written(connection: ConnectionId, transmit: &Transmit) -> Option<(ConnectionId, String)> {
    match transmit {
        Transmit::Message(message) => message.as_text().map(|text| (connection, text.to_owned())),
        _ => None,
    }
}

fn text_of(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Message(message) => message.as_text().unwrap().to_owned(),
        Delivery::Gap { first, count, .. } => format!("gap {first} {count}"),
        Delivery::Replaced { count } => format!("replaced {count}"),
    }
}
