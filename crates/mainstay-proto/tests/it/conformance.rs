//! The vectors of `conformance/`: bytes, close codes, and exchanges with the transcript as the peer.
//!
//! The format, and how an exchange is run, stand in `conformance/README.md`.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::{
    Answer, ClientConfig, ClientEvent, ClientSession, Closed, ConnectionId, Delivery, Frame, Malformed,
    Message, Presenter, Registry, RegistryConfig, ServerConfig, SessionError, Transmit,
};
use mainstay_proto::ws::close::CloseAction;
use mainstay_proto::ws::{CloseCode, Kind};
use serde_json::{Value, json};

use super::json::{self, Fields, from_json, hex, to_json, unhex};
use super::pair::{Arena, start};

pub(crate) fn vectors(name: &str) -> Value {
    let path = format!("{}/../../conformance/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// The WebSocket message that carries this.
fn on_the_wire(frame: &Frame) -> (Kind, Bytes) {
    match frame {
        Frame::Control(control) => (Kind::Binary, control.encode()),
        Frame::Message(message) => {
            let transmit = Transmit::Message(message.clone());
            let (kind, head, body) = transmit.as_message().unwrap();
            (kind, [head, body.as_ref()].concat().into())
        }
        Frame::Reserved => panic!("reserved types are never sent"),
    }
}

#[test]
fn messages_decode_to_their_fields_and_encode_to_their_bytes() {
    for vector in list(&vectors("messages")) {
        let kind = if vector["kind"] == "text" { Kind::Text } else { Kind::Binary };
        let payload = unhex(vector["hex"].as_str().unwrap());
        let decoded = Frame::decode(Message::new(kind, payload.clone()).unwrap())
            .unwrap_or_else(|error| panic!("{vector}: {error}"));
        assert_eq!(to_json(&decoded), vector["message"], "{}", vector["name"]);
        assert_eq!(from_json(&vector["message"]), decoded, "{}", vector["name"]);
        if vector["only"] != "decode" {
            let (encoded_kind, encoded) = on_the_wire(&from_json(&vector["message"]));
            assert_eq!((encoded_kind, hex(&encoded)), (kind, hex(&payload)), "{}", vector["name"]);
        }
    }
}

#[test]
fn malformed_messages_are_refused_for_what_is_wrong_with_them() {
    let vectors = vectors("malformed");
    for vector in list(&vectors["errors"]) {
        let error = Frame::decode(Message::Binary(unhex(vector["hex"].as_str().unwrap()))).map_err(name_of);
        assert_eq!(error, Err(vector["error"].as_str().unwrap()), "{}", vector["name"]);
    }
    for whole in list(&vectors["truncated"]) {
        let whole = unhex(whole.as_str().unwrap());
        Frame::decode(Message::Binary(whole.clone()))
            .unwrap_or_else(|error| panic!("{}: {error}", hex(&whole)));
        for length in 1..whole.len() {
            let error = Frame::decode(Message::Binary(whole.slice(..length))).map_err(name_of);
            assert_eq!(error, Err("Truncated"), "{} cut to {length}", hex(&whole));
        }
    }
}

#[test]
fn every_way_a_message_can_be_malformed_has_a_vector() {
    let vectors = vectors("malformed");
    let seen: HashSet<_> = list(&vectors["errors"]).iter().map(|v| v["error"].as_str().unwrap()).collect();
    let all = [
        "Empty",
        "UnknownType",
        "Truncated",
        "IntegerTooLarge",
        "BadValue",
        "RepeatedField",
        "TooManyFields",
        "Version",
    ];
    assert_eq!(seen, HashSet::from(all));
}

fn name_of(error: SessionError) -> &'static str {
    match error {
        SessionError::Malformed(Malformed::Empty) => "Empty",
        SessionError::Malformed(Malformed::UnknownType(_)) => "UnknownType",
        SessionError::Malformed(Malformed::Truncated) => "Truncated",
        SessionError::Malformed(Malformed::IntegerTooLarge) => "IntegerTooLarge",
        SessionError::Malformed(Malformed::BadValue) => "BadValue",
        SessionError::Malformed(Malformed::RepeatedField) => "RepeatedField",
        SessionError::Malformed(Malformed::TooManyFields) => "TooManyFields",
        SessionError::Version(_) => "Version",
        other => panic!("{other} is not about bytes"),
    }
}

#[test]
fn close_codes_determine_what_a_client_does() {
    for vector in list(&vectors("close-codes")) {
        let code = CloseCode::new(u16::try_from(vector["code"].as_u64().unwrap()).unwrap());
        assert_eq!(json!(code.is_some()), vector["sendable"], "{vector}");
        // A code that cannot stand in a Close frame is what a browser reports when there was none.
        let action = match CloseCode::action(code) {
            CloseAction::Reconnect => "reconnect",
            CloseAction::ReconnectAlone => "reconnect-alone",
            CloseAction::Stop => "stop",
        };
        assert_eq!(vector["action"], action, "{vector}");
    }
}

#[test]
fn a_client_takes_its_part_in_every_exchange() {
    for exchange in list(&vectors("exchanges")) {
        play(exchange, ClientEnd::new(exchange));
    }
}

#[test]
fn a_server_takes_its_part_in_every_exchange() {
    for exchange in list(&vectors("exchanges")) {
        play(exchange, ServerEnd::new(exchange));
    }
}

// ---- playing an exchange ------------------------------------------------------------------------

/// What an end put on a connection.
enum Output {
    Message(Frame),
    Close(u64, String),
}

/// The end under test.
trait End {
    const NAME: &str;
    fn open(&mut self, now: Instant, connection: ConnectionId);
    fn read(&mut self, now: Instant, connection: ConnectionId, frame: Frame);
    fn lose(&mut self, now: Instant, connection: ConnectionId, close: Option<(u64, String)>);
    fn wait_until(&mut self, until: Instant);
    /// What the application does. `false`: this end does not know the step.
    fn act(&mut self, now: Instant, step: &Value) -> bool;
    fn receive(&mut self, now: Instant) -> Option<Delivery>;
    /// The application's next message from outside the stream. A client gets it as an event.
    fn receive_volatile(&mut self) -> Option<Message> {
        None
    }
    fn event(&mut self) -> Option<Value>;
    fn write(&mut self, now: Instant) -> Vec<(ConnectionId, Output)>;
    fn restart(&mut self) {}
}

struct Player<'a, E> {
    exchange: &'a Value,
    end: E,
    now: Instant,
    names: Names,
    connections: Vec<String>,
    /// Written by the end under test, not yet found in the transcript.
    written: BTreeMap<ConnectionId, VecDeque<Output>>,
    held: BTreeMap<ConnectionId, Vec<Value>>,
}

fn play(exchange: &Value, end: impl End) {
    let mut player = Player {
        exchange,
        end,
        now: start(),
        names: Names::default(),
        connections: Vec::new(),
        written: BTreeMap::new(),
        held: BTreeMap::new(),
    };
    for (number, step) in list(&exchange["steps"]).iter().enumerate() {
        let outcome = player.step(step);
        assert!(
            outcome.is_ok(),
            "{}: {}, step {number} {step}: {outcome:?}",
            player.name(),
            exchange["name"]
        );
        player.collect();
    }
    let end = player.name();
    assert!(player.written.values().all(VecDeque::is_empty), "{end}: {}: wrote more", exchange["name"]);
    assert_eq!(player.end.receive(player.now), None, "{end}: {}", exchange["name"]);
    assert_eq!(player.end.receive_volatile(), None, "{end}: {}", exchange["name"]);
    assert_eq!(player.end.event(), None, "{end}: {}", exchange["name"]);
}

impl<E: End> Player<'_, E> {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn step(&mut self, step: &Value) -> Result<(), String> {
        if let Some(from) = ["client", "server"].into_iter().find(|end| step.get(end).is_some()) {
            return self.transcript(from, step);
        }
        if let Some(connection) = step["open"].as_str() {
            self.connections.push(connection.to_owned());
            let id = self.connection(connection);
            if self.concerns_us(connection) {
                self.end.open(self.now, id);
            }
        } else if let Some(connection) = step["cut"].as_str() {
            if step.get("at").is_none_or(|end| end == E::NAME) && self.concerns_us(connection) {
                self.end.lose(self.now, self.connection(connection), None);
            }
        } else if let Some(connection) = step["deliver"].as_str() {
            if step["to"] == E::NAME {
                let connection = self.connection(connection);
                for held in self.held.remove(&connection).unwrap_or_default() {
                    self.arrive(connection, &held);
                }
            }
        } else if let Some(wait) = step["wait_ms"].as_u64() {
            self.now += Duration::from_millis(wait);
            self.end.wait_until(self.now);
        } else if step["restart"] == E::NAME {
            self.end.restart();
        } else if step["at"] == E::NAME {
            return self.application(step);
        } else if step.get("at").is_none() && step.get("restart").is_none() {
            return Err("unknown step".into());
        }
        Ok(())
    }

    fn transcript(&mut self, from: &str, step: &Value) -> Result<(), String> {
        let name = step[from].as_str().unwrap();
        let connection = self.connection(name);
        if !self.concerns_us(name) {
            return Ok(());
        }
        if from == E::NAME {
            let output = self.written.get_mut(&connection).and_then(VecDeque::pop_front);
            return match output {
                Some(Output::Message(frame)) => {
                    self.names.unify(&with_defaults(&step["writes"], self.exchange), &to_json(&frame))
                }
                Some(Output::Close(code, reason)) => {
                    let expected = json!({"code": step["closes"], "reason": step["reason"]});
                    self.names.unify(&expected, &json!({"code": code, "reason": reason}))
                }
                None => Err("nothing was written".into()),
            };
        }
        match step["fate"].as_str() {
            None => self.arrive(connection, step),
            Some("held") => self.held.entry(connection).or_default().push(step.clone()),
            Some("lost") => {}
            Some(other) => return Err(format!("no message has the fate {other}")),
        }
        Ok(())
    }

    /// Something that the absent end wrote arrives.
    fn arrive(&mut self, connection: ConnectionId, step: &Value) {
        if let Some(code) = step["closes"].as_u64() {
            let reason = self.names.fill("reason", &step["reason"]).as_str().unwrap().to_owned();
            return self.end.lose(self.now, connection, Some((code, reason)));
        }
        let message = self.names.fill("", &with_defaults(&step["writes"], self.exchange));
        let (kind, payload) = on_the_wire(&from_json(&message));
        self.end.read(self.now, connection, Frame::decode(Message::new(kind, payload).unwrap()).unwrap());
    }

    fn application(&mut self, step: &Value) -> Result<(), String> {
        if let Some(text) = step.get("receives") {
            return match self.end.receive(self.now).ok_or("nothing to receive")? {
                Delivery::Message(message) => {
                    self.names.unify(&json!({"text": text}), &json::message_to_json(&message))
                }
                gap @ (Delivery::Gap { .. } | Delivery::Replaced { .. }) => Err(format!("{gap:?}")),
            };
        }
        if let Some(expected) = step.get("receives_gap") {
            return match self.end.receive(self.now) {
                Some(Delivery::Gap { first, count, .. }) if json!([first, count]) == *expected => Ok(()),
                other => Err(format!("{other:?} is not that gap")),
            };
        }
        if let Some(expected) = step.get("receives_replaced") {
            return match self.end.receive(self.now) {
                Some(Delivery::Replaced { count }) if json!(count) == *expected => Ok(()),
                other => Err(format!("{other:?} is not that replacement")),
            };
        }
        if let Some(text) = step.get("receives_volatile") {
            let message = self.end.receive_volatile().ok_or("nothing to receive")?;
            return self.names.unify(&json!({"text": text}), &json::message_to_json(&message));
        }
        if let Some(expected) = step.get("event") {
            let event = self.end.event().ok_or("no event")?;
            return self.names.unify(expected, &event);
        }
        if self.end.act(self.now, step) { Ok(()) } else { Err(format!("no {} does this", E::NAME)) }
    }

    fn collect(&mut self) {
        for (connection, output) in self.end.write(self.now) {
            self.written.entry(connection).or_default().push_back(output);
        }
    }

    fn connection(&self, name: &str) -> ConnectionId {
        let index = self.connections.iter().position(|known| known == name);
        ConnectionId(index.unwrap_or_else(|| panic!("{name} was never opened")) as u64 + 1)
    }

    fn concerns_us(&self, connection: &str) -> bool {
        E::NAME == "server" || connection.starts_with('c')
    }
}

/// Values that one end chose, by the names that the exchange gives them.
#[derive(Default)]
struct Names(HashMap<String, Value>);

impl Names {
    /// Compares, and binds the names that are seen for the first time.
    fn unify(&mut self, expected: &Value, actual: &Value) -> Result<(), String> {
        match (expected, actual) {
            (Value::Object(left), Value::Object(right)) if left.len() == right.len() => left
                .iter()
                .try_for_each(|(name, value)| self.unify(value, right.get(name).unwrap_or(&Value::Null))),
            (Value::String(name), _) if name.starts_with('$') && !name.contains(' ') => {
                match self.0.get(name) {
                    Some(bound) if bound == actual => Ok(()),
                    Some(bound) => Err(format!("{name} is {bound}, got {actual}")),
                    None if self.0.values().any(|other| other == actual) => Err(format!("{name} is not new")),
                    None => {
                        self.0.insert(name.clone(), actual.clone());
                        Ok(())
                    }
                }
            }
            _ if self.fill("", expected) == *actual => Ok(()),
            _ => Err(format!("expected {expected}, got {actual}")),
        }
    }

    /// Puts values in the place of names; one of the absent end gets a value made from its name.
    fn fill(&mut self, field: &str, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| (name.clone(), self.fill(name, value))).collect()
            }
            Value::String(text) if text.contains(' ') => {
                let words = text.split(' ').map(|word| match self.0.get(word) {
                    Some(Value::String(bound)) => bound.clone(),
                    _ => word.to_owned(),
                });
                Value::String(words.collect::<Vec<_>>().join(" "))
            }
            Value::String(name) if name.starts_with('$') => {
                self.0.entry(name.clone()).or_insert_with(|| invent(field, name)).clone()
            }
            other => other.clone(),
        }
    }
}

fn invent(field: &str, name: &str) -> Value {
    let length = match field {
        "key" => 16,
        "token" => 24,
        "id" | "instance" => 8,
        "nonce" => return json!(name.bytes().fold(0_u64, |sum, byte| sum * 31 + u64::from(byte)) % 100_000),
        other => panic!("{other} is not a field that an end chooses"),
    };
    json!(hex(&name.bytes().cycle().take(length).collect::<Vec<_>>()))
}

fn with_defaults(message: &Value, exchange: &Value) -> Value {
    let mut message = message.clone();
    let mut default = |name: &str, field: &str, value: Value| {
        if let Some(fields) = message.get_mut(name).and_then(Value::as_object_mut) {
            fields.entry(field).or_insert(value);
        }
    };
    default("HELLO", "window", json!([1024, 4_194_304]));
    default("HELLO", "key_age_ms", json!(0));
    default("WELCOME", "window", json!([1024, 1_048_576]));
    default("WELCOME", "resume_window_ms", json!(120_000));
    default("WELCOME", "heartbeat_interval_ms", json!(heartbeat_ms(exchange)));
    default("REFUSE", "delay_ms", json!([0, 0]));
    message
}

fn heartbeat_ms(exchange: &Value) -> u64 {
    exchange["heartbeat_ms"].as_u64().unwrap_or(3_600_000)
}

/// What a transmit is in a transcript; RFC 6455 Pings are not in it.
fn output(transmit: &Transmit) -> Option<Output> {
    if let Some((kind, head, body)) = transmit.as_message() {
        let frame =
            Frame::decode(Message::new(kind, [head, body.as_ref()].concat().into()).unwrap()).unwrap();
        return Some(Output::Message(frame));
    }
    match transmit {
        Transmit::Close { code, reason } => Some(Output::Close((*code).into(), reason.clone())),
        Transmit::Ping(_) => None,
        // The transport is dropped without a Close.
        Transmit::Abort => None,
        other => panic!("{other:?} in an exchange"),
    }
}

fn close_of(step: &Value) -> (CloseCode, String) {
    let code = CloseCode::new(u16::try_from(Fields(step).integer("closes")).unwrap()).unwrap();
    (code, Fields(step).text("reason"))
}

fn text_of(step: &Value, field: &str) -> Option<Message> {
    step.get(field).map(|text| Message::text(text.as_str().unwrap()))
}

// ---- the client ---------------------------------------------------------------------------------

struct ClientEnd(ClientSession);

impl ClientEnd {
    fn new(exchange: &Value) -> Self {
        let resume_window = exchange["client_resume_window_ms"].as_u64().map(Duration::from_millis);
        Self(ClientSession::new(ClientConfig { resume_window, ..ClientConfig::default() }, [1; 32]))
    }
}

impl End for ClientEnd {
    const NAME: &str = "client";

    fn open(&mut self, now: Instant, connection: ConnectionId) {
        self.0.handle_opened(now, connection);
    }

    fn read(&mut self, _: Instant, connection: ConnectionId, frame: Frame) {
        self.0.handle_frame(connection, frame).unwrap();
    }

    fn lose(&mut self, _: Instant, connection: ConnectionId, close: Option<(u64, String)>) {
        match close {
            Some((4409, reason)) => self.0.handle_superseded(connection, &reason),
            _ => self.0.handle_lost(connection),
        }
    }

    // What is due is an acknowledgement, and those are looked for whenever something may be written.
    fn wait_until(&mut self, _: Instant) {}

    fn act(&mut self, _: Instant, step: &Value) -> bool {
        if let Some(message) = text_of(step, "sends") {
            self.0.send(message).unwrap();
        } else if let Some(message) = text_of(step, "sends_volatile") {
            self.0.send_volatile(message);
        } else if let Some(credentials) = step["authenticates"].as_str() {
            self.0.authenticate(unhex(credentials));
        } else if step.get("closes").is_some() {
            let (code, reason) = close_of(step);
            self.0.close(code, &reason);
        } else {
            return false;
        }
        true
    }

    fn receive(&mut self, now: Instant) -> Option<Delivery> {
        self.0.deliver(now)
    }

    fn event(&mut self) -> Option<Value> {
        Some(match self.0.poll_event()? {
            ClientEvent::Attached { epoch, resumed, .. } => {
                json!({"attached": {"epoch": epoch, "resumed": resumed}})
            }
            ClientEvent::Gap(fate) => json!({"gap": {
                "delivered": fate.delivered,
                "unknown": fate.unknown,
                "last": fate.last,
                "resent": fate.resent,
                "lost": fate.lost.map(|lost| json!([lost.first, lost.count])),
                "cause": json::cause_to_json(fate.cause),
            }}),
            ClientEvent::Refused { code, temporary, .. } => {
                json!({"refused": {"code": code, "temporary": temporary}})
            }
            ClientEvent::GoAway { delay, .. } => json!({"go_away": {"delay_ms": json::delay_to_json(delay)}}),
            ClientEvent::Authenticated { accepted } => json!({"authenticated": accepted}),
            ClientEvent::TooLarge { number } => json!({"too_large": number}),
            ClientEvent::Volatile(message) => json!({"volatile": json::message_to_json(&message)}),
            ClientEvent::Ended { code, fate, .. } => json!({"ended": {
                "code": code, "delivered": fate.delivered, "unknown": fate.unknown, "last": fate.last,
            }}),
        })
    }

    fn write(&mut self, now: Instant) -> Vec<(ConnectionId, Output)> {
        let mut written = Vec::new();
        while let Some((connection, transmit)) = self.0.poll_transmit(now) {
            written.extend(output(&transmit).map(|output| (connection, output)));
        }
        written
    }
}

// ---- the server ---------------------------------------------------------------------------------

struct ServerEnd {
    registry: Registry<usize>,
    config: Arc<ServerConfig>,
    /// Its sessions drop the oldest when they are full.
    drops: bool,
    /// Its application acknowledges by itself.
    confirms: bool,
    sessions: Arena,
    now: Instant,
    bound: BTreeMap<ConnectionId, Option<usize>>,
    /// The session that the application serves: the newest.
    served: Option<usize>,
    written: Vec<(ConnectionId, Output)>,
}

impl ServerEnd {
    fn new(exchange: &Value) -> Self {
        let heartbeat = HeartbeatConfig::every(Duration::from_millis(heartbeat_ms(exchange))).unwrap();
        let mut config = ServerConfig { heartbeat, ..ServerConfig::default() };
        let drops_above = exchange["server_drops_above"].as_u64();
        if let Some(messages) = drops_above {
            config.flow.keep.messages = messages;
        }
        let config = Arc::new(config);
        let age = Duration::from_millis(exchange["server_age_ms"].as_u64().unwrap_or(3_600_000));
        Self {
            registry: Registry::new(start() - age, RegistryConfig::default(), Arc::clone(&config), [2; 32]),
            config,
            drops: drops_above.is_some(),
            confirms: exchange["server_acknowledges"] == true,
            sessions: Arena::default(),
            now: start(),
            bound: BTreeMap::new(),
            served: None,
            written: Vec::new(),
        }
    }

    fn hello(&mut self, now: Instant, connection: ConnectionId, frame: &Frame) {
        let Frame::Control(mainstay_proto::session::Control::Hello(hello)) = frame else {
            panic!("{frame:?} comes before HELLO")
        };
        match self.registry.hello(now, connection, Presenter::default(), hello, &mut self.sessions) {
            Answer::Attached { session, fenced, .. } => {
                self.bound.insert(connection, Some(session));
                self.served = Some(session);
                if self.drops {
                    self.sessions.get(session).drop_oldest_when_full();
                }
                if self.confirms {
                    self.sessions.get(session).manual_ack();
                }
                if let Some(fenced) = fenced {
                    let close = Output::Close(CloseCode::SUPERSEDED.into(), fenced.reason);
                    self.written.push((fenced.connection, close));
                }
            }
            Answer::Refused { refuse, .. } => {
                self.bound.remove(&connection);
                self.written.push((connection, Output::Message(Frame::Control(refuse))));
            }
        }
    }
}

impl End for ServerEnd {
    const NAME: &str = "server";

    fn open(&mut self, _: Instant, connection: ConnectionId) {
        self.bound.insert(connection, None);
    }

    fn read(&mut self, now: Instant, connection: ConnectionId, frame: Frame) {
        match self.bound.get(&connection) {
            Some(Some(session)) => self.sessions.get(*session).handle_frame(now, connection, frame).unwrap(),
            Some(None) => self.hello(now, connection, &frame),
            // Refused or closed: what is still on its way is not read.
            None => {}
        }
    }

    fn lose(&mut self, now: Instant, connection: ConnectionId, _: Option<(u64, String)>) {
        if let Some(Some(session)) = self.bound.remove(&connection) {
            self.sessions.get(session).handle_lost(now, connection);
        }
    }

    fn wait_until(&mut self, until: Instant) {
        for index in 0..self.sessions.len() {
            while let Some(due) = self.sessions.get(index).poll_timeout().filter(|due| *due <= until) {
                self.now = due.max(self.now);
                let session = self.sessions.get(index);
                session.handle_timeout(self.now);
                if session.closed().is_some() {
                    break;
                }
                let connection = session.connection();
                self.written = self.write(self.now);
                if let Some(connection) = connection {
                    self.sessions.get(index).handle_flushed(self.now, connection);
                }
            }
        }
        self.now = until;
    }

    fn act(&mut self, now: Instant, step: &Value) -> bool {
        let session = self.sessions.get(self.served.expect("no session is served"));
        if let Some(message) = text_of(step, "sends") {
            session.send(message).unwrap();
        } else if let Some(message) = text_of(step, "sends_volatile") {
            session.send_volatile(message);
        } else if let Some(expected) = step["judges"].as_str() {
            let (connection, credentials) = session.poll_auth().expect("nothing to judge");
            assert_eq!(credentials, unhex(expected));
            let principal: &[u8] = b"";
            let proof = (step["accepted"] == true).then_some((principal, None));
            session.handle_verdict(now, connection, proof);
        } else if step.get("closes").is_some() {
            let (code, reason) = close_of(step);
            session.close(now, code, &reason);
        } else if let Some(fields) = step.get("goes_away") {
            let fields = Fields(fields);
            session.go_away(now, &fields.text("reason"), fields.delay(), fields.duration("close_in_ms"));
        } else if let Some(count) = step["acknowledges"].as_u64() {
            session.acknowledge_oldest(now, count);
        } else if step.get("notes_replaced").is_some() {
            session.note_replaced();
        } else if let Some(passed_on) = step["renews"].as_u64() {
            session.renew(now, passed_on);
        } else if let Some(over) = step.get("over") {
            match session.closed() {
                Some(Closed::Ended { .. }) => assert_eq!(over, "ended"),
                Some(Closed::Expired) => assert_eq!(over, "expired"),
                Some(Closed::Replaced) => assert_eq!(over, "replaced"),
                other => panic!("{other:?}"),
            }
            self.registry.bury(now, session);
        } else {
            return false;
        }
        true
    }

    fn receive(&mut self, now: Instant) -> Option<Delivery> {
        self.sessions.get(self.served?).deliver(now)
    }

    fn receive_volatile(&mut self) -> Option<Message> {
        self.sessions.get(self.served?).deliver_volatile()
    }

    fn event(&mut self) -> Option<Value> {
        None
    }

    fn write(&mut self, now: Instant) -> Vec<(ConnectionId, Output)> {
        let mut written = std::mem::take(&mut self.written);
        for (connection, session) in self.bound.clone() {
            let Some(session) = session else { continue };
            while let Some(transmit) = self.sessions.get(session).poll_transmit(now, connection) {
                written.extend(output(&transmit).map(|output| (connection, output)));
            }
        }
        written
    }

    fn restart(&mut self) {
        let registry = Registry::new(self.now, RegistryConfig::default(), Arc::clone(&self.config), [3; 32]);
        (self.registry, self.sessions, self.served) = (registry, Arena::default(), None);
        self.bound.clear();
    }
}
