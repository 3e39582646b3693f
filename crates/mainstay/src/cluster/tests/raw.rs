//! Clients that do what no client of this crate does: one that stays silent behind its WELCOME, and one that compresses with
//! context takeover.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use mainstay_proto::cluster::peer::{Head, PeerAnswer};
use mainstay_proto::session::message::{
    Beat, ClientKey, Credentials, Hello, Instance, Resume, ResumeToken, Welcome,
};
use mainstay_proto::session::{Control, Frame, NodeId, Window};
use mainstay_proto::ws::{Connection, DeflateParams, Incoming, Kind, Limits, Role, SendQueue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Memory;
use super::setup::{Balancer, TestNode, echoes, exchange, meet, until};
use crate::server::Identity;
use crate::{CloseCode, SessionUpgrade};

/// A connection of such a client.
struct Raw {
    stream: TcpStream,
    codec: Connection,
    /// What was read and not parsed.
    input: BytesMut,
}

impl Raw {
    /// Opens a WebSocket at the node.
    async fn open(node: &TestNode) -> Self {
        let mut stream = TcpStream::connect(node.address).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Protocol: mainstay.v1\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Self::on(stream, None)
    }

    fn on(stream: TcpStream, deflate: Option<DeflateParams>) -> Self {
        let codec = Connection::new(Role::Client, Limits::default(), deflate, [7; 32]);
        Self { stream, codec, input: BytesMut::new() }
    }

    /// The bytes of a control message.
    fn encode(&mut self, control: &Control) -> Bytes {
        let mut queue = SendQueue::new();
        self.codec.send(Kind::Binary, b"", &control.encode(), &mut queue);
        queue.copy_to_bytes(queue.remaining())
    }

    async fn send(&mut self, control: &Control) {
        let bytes = self.encode(control);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next control message.
    async fn next(&mut self) -> Control {
        loop {
            let mut input = std::mem::take(&mut self.input);
            let mut rest = &mut input[..];
            let received = self.codec.receive(&mut rest).unwrap();
            let message = match received {
                Some(Incoming::Message(payload)) => Some(payload.into_message()),
                _ => None,
            };
            self.input = BytesMut::from(&rest[..]);
            if let Some(message) = message {
                let Ok(Frame::Control(control)) = Frame::decode(message) else {
                    panic!("no control message")
                };
                return control;
            }
            assert_ne!(self.stream.read_buf(&mut self.input).await.unwrap(), 0, "the connection ended");
        }
    }

    async fn welcome(&mut self) -> Welcome {
        match self.next().await {
            Control::Welcome(welcome) => *welcome,
            other => panic!("{other:?}"),
        }
    }
}

fn hello(attempt: u64, resume: Option<ResumeToken>) -> Control {
    Control::Hello(Box::new(Hello {
        window: Window { messages: 16, bytes: 1 << 16 },
        key: ClientKey([1; 16]),
        key_age: Duration::ZERO,
        instance: Instance([7; 8]),
        attempt,
        resume: resume.map(|token| Resume { token, acknowledged: 0, sent: 0, first_held: 1 }),
        credentials: Some(words()),
        resume_window: None,
        max_message: None,
    }))
}

/// Credentials that compress well, and better the second time.
fn words() -> Credentials {
    let words: String = (0..200_u32).map(|n| format!("{:08x}", n.wrapping_mul(2_654_435_761))).collect();
    Credentials(Bytes::from(words))
}

fn ping() -> Control {
    Control::Ping(Beat { nonce: 1, sent: 0, acknowledged: 0 })
}

#[tokio::test]
async fn no_handler_starts_before_its_client_has_confirmed_the_session() {
    let memory = Memory::default();
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let node = TestNode::start(&memory, move |upgrade: SessionUpgrade| {
        let count = Arc::clone(&count);
        upgrade.on_session(async move |session| {
            count.fetch_add(1, SeqCst);
            session.closed().await;
        })
    })
    .await;
    let mut raw = Raw::open(&node).await;
    raw.send(&hello(1, None)).await;
    raw.welcome().await;
    assert_eq!((started.load(SeqCst), node.server.sessions().attached), (0, 1));
    raw.send(&ping()).await;
    until("the handler starts", || started.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn compression_with_context_takeover_goes_through_a_relay_from_the_first_byte() {
    let memory = Memory::default();
    let node = TestNode::start(&memory, echoes).await;
    let mut raw = Raw::open(&node).await;
    raw.send(&hello(1, None)).await;
    let token = raw.welcome().await.token;
    let node_of = node.server.shared.node.as_ref().unwrap();
    let deflate = DeflateParams {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        ..DeflateParams::default()
    };
    let head = Head {
        from: NodeId([9; 8]),
        to: node_of.id,
        key: node_of.key,
        path: "/".to_owned(),
        principal: Bytes::new(),
        subprotocol: None,
        deflate: Some(deflate),
        client: ([127, 0, 0, 1], 1).into(),
        expiry: None,
    };
    let mut relayed = Raw::on(TcpStream::connect(node.peer_address()).await.unwrap(), Some(deflate));
    let resume = relayed.encode(&hello(2, Some(token)));
    relayed.stream.write_all(&[&head.encode().unwrap()[..], &resume].concat()).await.unwrap();
    let answer = loop {
        if let Some(answer) = PeerAnswer::decode(&mut relayed.input).unwrap() {
            break answer;
        }
        relayed.stream.read_buf(&mut relayed.input).await.unwrap();
    };
    assert_eq!(answer, PeerAnswer::Accepted);
    assert!(relayed.welcome().await.resumed);
    // The same words once more are a reference to the first: without the context nobody can read them.
    let again = relayed.encode(&Control::Auth { credentials: words() });
    assert!(again.len() < resume.len() / 4, "{} against {}", again.len(), resume.len());
    relayed.stream.write_all(&again).await.unwrap();
    assert!(matches!(relayed.next().await, Control::AuthResult { .. }));
}

#[tokio::test]
async fn credentials_of_a_relayed_client_are_renewed_and_ended_by_the_owner_as_without_a_relay() {
    let memory = Memory::default();
    let holds = Arc::new(AtomicUsize::new(60_000));
    let judging = {
        let holds = Arc::clone(&holds);
        move |upgrade: SessionUpgrade| {
            let holds = Arc::clone(&holds);
            let judge = move |_| {
                let millis = holds.load(SeqCst) as u64;
                let identity = Identity::new("ann").expires_in(Duration::from_millis(millis));
                std::future::ready(Ok(identity.grace(Duration::from_millis(300))))
            };
            echoes(upgrade.authenticate(judge))
        }
    };
    let owner = TestNode::start(&memory, judging.clone()).await;
    let entry = TestNode::start(&memory, judging).await;
    meet(&[&owner, &entry]).await;
    let mut first = Raw::open(&owner).await;
    first.send(&hello(1, None)).await;
    let token = first.welcome().await.token;
    drop(first);
    until("its session is parked", || owner.server.sessions().parked == 1).await;
    // The entry node judged the HELLO, and its verdict goes to the owner with the connection.
    let mut relayed = Raw::open(&entry).await;
    relayed.send(&hello(2, Some(token))).await;
    assert!(relayed.welcome().await.resumed);
    assert_eq!((entry.figures().relayed, owner.figures().accepted), (1, 1));
    holds.store(300, SeqCst);
    relayed.send(&Control::Auth { credentials: words() }).await;
    let mut answers = Vec::new();
    let ended = loop {
        match relayed.next().await {
            Control::AuthResult { accepted: true, expires_in } => {
                answers.push("renewed");
                assert_eq!(expires_in, Duration::from_millis(300));
            }
            Control::GoAway { .. } => answers.push("asked"),
            Control::End { code, .. } => break code,
            _ => {}
        }
    };
    assert_eq!((answers, ended), (vec!["renewed", "asked"], CloseCode::UNAUTHORIZED.get().into()));
    let stats = owner.server.stats();
    assert_eq!((stats.credentials_expired, stats.left_unauthorized), (1, 1));
    until("no session is left", || owner.server.stats().sessions == 0).await;
}

#[tokio::test]
async fn the_expiry_that_an_entry_node_finds_is_the_owners_and_a_client_with_other_credentials_goes_on() {
    let memory = Memory::default();
    let holds = Arc::new(AtomicUsize::new(60_000));
    let judging = {
        let holds = Arc::clone(&holds);
        move |upgrade: SessionUpgrade| {
            let holds = Arc::clone(&holds);
            echoes(upgrade.authenticate(move |_| {
                let millis = holds.load(SeqCst) as u64;
                std::future::ready(Ok(Identity::new("ann").expires_in(Duration::from_millis(millis))))
            }))
        }
    };
    let owner = TestNode::start(&memory, judging.clone()).await;
    let entry = TestNode::start(&memory, judging).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "at its owner").await;
    holds.store(300, SeqCst);
    balancer.pick(1);
    balancer.cut();
    until("it is relayed", || entry.figures().relayed >= 1).await;
    holds.store(60_000, SeqCst);
    until("the owner asks for others", || owner.server.stats().credentials_expired >= 1).await;
    until("it has come back with them", || entry.figures().relayed >= 2).await;
    exchange(&mut client, "still the same session").await;
    let stats = owner.server.stats();
    assert_eq!((stats.left_unauthorized, stats.attached_new + entry.server.stats().attached_new), (0, 1));
}
