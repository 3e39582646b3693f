//! What the server allocates: for a message in steady state, for an idle connection, for a parked session.
//!
//! Counts and bytes that were asked for, not what an allocator makes of them: the same on every machine, and so
//! limits with little slack. The server of a test runs on the test's thread, which alone is counted; its clients
//! are our own, on a thread of theirs. Resident memory is measured by `cargo xtask test memory`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::future::ready;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use mainstay::client::{Builder, ClientHandle, Connector, UrlError};
use mainstay::server::rustls::pki_types::PrivateKeyDer;
use mainstay::server::rustls::{ClientConfig, RootCertStore, ServerConfig};
use mainstay::server::{Config, Sender, Tls};
use mainstay::{Client, CloseCode, Link, Message, Server, Session, SessionUpgrade};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio::task::JoinSet;

/// A kind of work, and the most allocations that one message (a delivery in the fan-out) may cost: of a plain
/// client, and of one that speaks mainstay.v1. A plain client's Pings and lists that still grow are in it: the slack
/// leaves room for them, but not for one allocation more.
const WORK: [(Work, f64, f64); 4] = [
    (Work::echo("echo of 64 bytes, one at a time", 1, 64), 3.3, 3.3),
    (Work::echo("echo of 64 bytes, 16 in flight", 16, 64), 1.3, 2.3),
    (Work::echo("echo of 16 KiB, one at a time", 1, 16 * 1024), 4.8, 7.2),
    (Work { about: "delivery of 64 bytes to 64", connections: 64, in_flight: 1, size: 64 }, 1.1, 0.2),
];

/// The most that one may hold while nothing happens: a connection, a session, and one whose client is away. With debug
/// assertions a machine also holds the newest time that it was given.
const IDLE_PLAIN: Held = (3.1, 720.0 + if cfg!(debug_assertions) { 16.0 } else { 0.0 });
const IDLE_SESSION: Held = (4.6, 1_400.0);
const PARKED_SESSION: Held = (3.6, 1_190.0);
/// The most that TLS may add to an idle connection.
const IDLE_TLS: Held = (16.0, 8.0 * 1024.0);

/// The most bytes that are allocated to deliver a compressed message to one of 64 clients, and to return one to its sender:
/// a compressor allocates 400,000.
const PACKED_DELIVERY: f64 = 2_300.0;
const PACKED_ECHO: f64 = 60_000.0;
/// The most that one of many connections holds of eight compressed messages of 36 KiB each that its socket does not accept:
/// its part of the one copy, and references.
const SLOW_RECEIVER: Held = (4.5, 2_200.0);

/// The most bytes that one of 1,000 connections leaves behind: the growth of lists, and a tombstone for each session, which is
/// kept for a day; the server keeps 100,000 tombstones.
const LEFT_BEHIND_PLAIN: f64 = 4.0;
const LEFT_BEHIND_SESSION: f64 = 400.0;

/// Allocations, and the bytes that were asked for.
type Held = (f64, f64);

/// Connections that are open before counting begins. With the counted ones they are a power of two, so that lists which
/// double are full; otherwise half of their growth would belong to no connection.
const BEFORE: usize = 8;
const COUNTED: usize = 248;

/// For everything that is waited for.
const LIMIT: Duration = Duration::from_secs(20);

struct Work {
    about: &'static str,
    connections: usize,
    in_flight: usize,
    size: usize,
}

impl Work {
    const fn echo(about: &'static str, in_flight: usize, size: usize) -> Self {
        Self { about, connections: 1, in_flight, size }
    }
}

#[test]
fn a_message_costs_no_more_allocations_than_it_did() {
    let mut verdict = Verdict::default();
    for (work, plain, session) in &WORK {
        verdict.judge(&format!("{}, plain", work.about), per_message(work, Link::builder), *plain);
        verdict.judge(&format!("{}, session", work.about), per_message(work, Client::builder), *session);
    }
    verdict.give();
}

#[test]
fn an_idle_connection_holds_no_more_than_it_did() {
    let mut verdict = Verdict::default();
    let (idle, _) = held(Link::builder);
    verdict.judge_held("idle plain connection", idle, IDLE_PLAIN);
    verdict.give();
}

#[test]
fn an_idle_connection_over_tls_holds_at_most_8_kib_more() {
    let mut verdict = Verdict::default();
    let (plain, _) = held(Link::builder);
    let (bench, connector) = Bench::over_tls();
    let (tls, _) = held_at(bench, Link::builder, connector);
    verdict.judge_held("what TLS adds to an idle connection", (tls.0 - plain.0, tls.1 - plain.1), IDLE_TLS);
    verdict.give();
}

#[test]
fn a_session_holds_no_more_than_it_did_whether_its_client_is_there_or_not() {
    let mut verdict = Verdict::default();
    let (idle, parked) = held(Client::builder);
    verdict.judge_held("idle session", idle, IDLE_SESSION);
    verdict.judge_held("parked session", parked, PARKED_SESSION);
    verdict.give();
}

/// A thousand that end in order, after a hundred that made every list as long as it gets.
#[test]
fn r11_connections_that_come_and_go_leave_nothing_and_sessions_a_tombstone() {
    let mut verdict = Verdict::default();
    verdict.judge("left by a plain connection, bytes", left_behind(Link::builder), LEFT_BEHIND_PLAIN);
    verdict.judge("left by a session, bytes", left_behind(Client::builder), LEFT_BEHIND_SESSION);
    verdict.give();
}

#[test]
fn a_message_to_many_is_compressed_once() {
    let mut verdict = Verdict::default();
    for (kind, bytes) in [("plain", packed_bytes(Link::builder)), ("session", packed_bytes(Client::builder))]
    {
        verdict.judge(&format!("compressed delivery, bytes, {kind}"), bytes, PACKED_DELIVERY);
    }
    verdict.give();
}

#[test]
fn a_compressor_is_not_set_up_for_each_message() {
    static WORK: Work = Work::echo("compressed echo", 1, 1024);
    const ROUNDS: usize = 64;
    let bench = Bench::compressing();
    let clients = bench.counted(open(bench.url("echo"), Link::builder, 1)).0;
    let clients = bench.counted(exchange(clients, &WORK, ROUNDS)).0;
    let (_clients, counted) = bench.counted(exchange(clients, &WORK, ROUNDS));
    let mut verdict = Verdict::default();
    verdict.judge("compressed echo, bytes", counted.bytes_total as f64 / ROUNDS as f64, PACKED_ECHO);
    verdict.give();
}

#[test]
fn slow_receivers_of_a_compressed_message_share_one_copy_of_it() {
    let mut verdict = Verdict::default();
    let held = held_by_slow_receivers();
    verdict.judge_held("slow receiver of a compressed message", held, SLOW_RECEIVER);
    assert!(held.0 > 1.0, "their sockets took it all");
    verdict.give();
}

/// Allocations of a message once everything that grows has grown.
fn per_message<P: 'static>(work: &'static Work, to: fn(&str) -> Result<Builder<P>, UrlError>) -> f64 {
    let bench = Bench::new();
    let path = if work.connections == 1 { "echo" } else { "broadcast" };
    let clients = bench.counted(open(bench.url(path), to, work.connections)).0;
    let in_a_round = work.in_flight * work.connections;
    let rounds = (1_024 / in_a_round).max(128);
    let clients = bench.counted(exchange(clients, work, rounds)).0;
    let (_clients, counted) = bench.counted(exchange(clients, work, rounds));
    counted.count_total as f64 / (rounds * in_a_round) as f64
}

/// Bytes that are asked for to deliver one compressed message to one of many.
fn packed_bytes<P: 'static>(to: fn(&str) -> Result<Builder<P>, UrlError>) -> f64 {
    const ROUNDS: usize = 4;
    static WORK: Work = Work { about: "compressed delivery", connections: 64, in_flight: 4, size: 16 * 1024 };
    let bench = Bench::compressing();
    let clients = bench.counted(open(bench.url("broadcast"), to, WORK.connections)).0;
    let clients = bench.counted(exchange(clients, &WORK, ROUNDS)).0;
    let (_clients, counted) = bench.counted(exchange(clients, &WORK, ROUNDS));
    counted.bytes_total as f64 / (ROUNDS * WORK.in_flight * WORK.connections) as f64
}

/// What each of many holds of one message that was compressed for them and that their sockets do not take.
fn held_by_slow_receivers() -> Held {
    let bench = Bench::compressing();
    let slow = bench.counted(open_slow(bench.address)).0;
    // The last member of the room: when it gets the messages back, every other member was polled.
    let mut sender = bench.counted(open(bench.url("broadcast"), Link::builder, 1)).0;
    bench.settle(COUNTED + 1);
    // The compressor belongs to the worker, not to the connections.
    let exchanged = bench.counted(async move {
        sender[0].send(Message::binary(compressible(1024))).await.unwrap();
        sender[0].recv().await.unwrap();
        sender
    });
    let mut sender = exchanged.0;
    let (_sender, sent) = bench.counted(async move {
        // More than the kernel accepts for a peer that reads nothing.
        for _ in 0..8 {
            sender[0].send(Message::binary(compressible(48 * 1024))).await.unwrap();
        }
        for _ in 0..8 {
            sender[0].recv().await.unwrap();
        }
        sender
    });
    let settled = bench.settle(COUNTED + 1);
    drop(slow);
    let each = |of: fn(&AllocationInfo) -> i64| (of(&sent) + of(&settled)) as f64 / COUNTED as f64;
    (each(|part| part.count_current), each(|part| part.bytes_current))
}

/// Bytes of which compression saves a quarter.
fn compressible(len: usize) -> Bytes {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b' ' + (state >> 58) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// What a connection holds while it is idle, and what remains when its client is gone without a word.
fn held<P: 'static>(to: fn(&str) -> Result<Builder<P>, UrlError>) -> (Held, Held) {
    held_at(Bench::new(), to, Connector::default())
}

fn held_at<P: 'static>(
    mut bench: Bench,
    to: fn(&str) -> Result<Builder<P>, UrlError>,
    connector: Connector,
) -> (Held, Held) {
    let url = bench.url("echo");
    let before = bench.counted(open_by(connector.clone(), url.clone(), to, BEFORE)).0;
    let (clients, opened) = bench.counted(open_by(connector, url, to, COUNTED));
    let settled = bench.settle(BEFORE + COUNTED);
    bench.kill_clients();
    let left = bench.settle(0);
    drop((before, clients));
    let each = |parts: &[AllocationInfo]| {
        let sum = |of: fn(&AllocationInfo) -> i64| parts.iter().map(of).sum::<i64>() as f64 / COUNTED as f64;
        (sum(|part| part.count_current), sum(|part| part.bytes_current))
    };
    (each(&[opened, settled]), each(&[opened, settled, left]))
}

/// A server on the thread that is counted, and a thread for clients.
struct Bench {
    server: Runtime,
    clients: Option<Runtime>,
    address: SocketAddr,
    scheme: &'static str,
    mainstay: Server,
}

impl Bench {
    fn new() -> Self {
        Self::of(Config::default(), None)
    }

    fn compressing() -> Self {
        Self::of(Config::new().deflate(true), None)
    }

    /// Returns the connector of its clients, too.
    fn over_tls() -> (Self, Connector) {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![own.der().clone()], secret).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.der().clone()).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let tls = Tls::new(Arc::new(server));
        (Self::of(Config::default(), Some(tls)), Connector::default().tls(Arc::new(client)))
    }

    fn of(config: Config, tls: Option<Tls>) -> Self {
        let server = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let clients = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mainstay = Server::new(config);
        let listener = server.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = mainstay.clone();
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        server.spawn(async move {
            let room = Room::default();
            let routes = Router::new()
                .route("/echo", any(|upgrade: SessionUpgrade| ready(upgrade.on_session(echo))))
                .route(
                    "/broadcast",
                    any(move |upgrade: SessionUpgrade| {
                        let room = Arc::clone(&room);
                        ready(upgrade.on_session(|session| broadcast(session, room)))
                    }),
                )
                .with_state(serving.clone());
            let serve = mainstay::serve(listener, routes, &serving);
            match tls {
                Some(tls) => serve.tls(tls).await.unwrap(),
                None => serve.await.unwrap(),
            }
        });
        Self { server, clients: Some(clients), address, scheme, mainstay }
    }

    fn url(&self, path: &str) -> String {
        format!("{}://{}/{path}", self.scheme, self.address)
    }

    /// Lets the clients do something, and counts what the server allocates until they are done.
    fn counted<T: Send + 'static>(
        &self,
        clients: impl Future<Output = T> + Send + 'static,
    ) -> (T, AllocationInfo) {
        let mut running = self.clients.as_ref().unwrap().spawn(clients);
        let mut done = None;
        let info = measure(|| done = Some(self.server.block_on(&mut running)));
        (done.unwrap().unwrap(), info)
    }
}

impl Bench {
    /// Counts until the server has this many connections and nothing is under way any more.
    fn settle(&self, connections: usize) -> AllocationInfo {
        let settling = async {
            while self.mainstay.stats().connections != connections as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        measure(|| self.server.block_on(async { tokio::time::timeout(LIMIT, settling).await.unwrap() }))
    }

    /// Their connections end as those of a process that is killed.
    fn kill_clients(&mut self) {
        drop(self.clients.take());
    }
}

/// What the server still holds for one that came and went.
fn left_behind<P: 'static>(to: fn(&str) -> Result<Builder<P>, UrlError>) -> f64 {
    let bench = Bench::new();
    bench.counted(come_and_go(bench.url("echo"), to, 2));
    bench.settle(0);
    let cycles = bench.counted(come_and_go(bench.url("echo"), to, 20)).1;
    (cycles.bytes_current + bench.settle(0).bytes_current) as f64 / 1_000.0
}

/// Fifty at a time, each with a message and an end in order.
async fn come_and_go<P: 'static>(url: String, to: fn(&str) -> Result<Builder<P>, UrlError>, rounds: usize) {
    for _ in 0..rounds {
        let mut cycles = JoinSet::new();
        for _ in 0..50 {
            cycles.spawn(one_message(to(&url).unwrap()));
        }
        cycles.join_all().await;
    }
}

async fn one_message<P: 'static>(builder: Builder<P>) {
    let mut client = builder.connect_once().await.unwrap();
    client.send(Message::text("x")).await.unwrap();
    client.recv().await.unwrap();
    client.close(CloseCode::NORMAL, "").await;
}

/// Compression is offered, and agreed on where the server likes it.
async fn open<P>(
    url: String,
    to: fn(&str) -> Result<Builder<P>, UrlError>,
    count: usize,
) -> Vec<ClientHandle<P>> {
    open_by(Connector::default(), url, to, count).await
}

async fn open_by<P>(
    connector: Connector,
    url: String,
    to: fn(&str) -> Result<Builder<P>, UrlError>,
    count: usize,
) -> Vec<ClientHandle<P>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let builder = to(&url).unwrap().connector(connector.clone()).deflate(true);
        clients.push(builder.connect_once().await.unwrap());
    }
    clients
}

/// Clients in the room that agree on compression and then read nothing.
async fn open_slow(address: SocketAddr) -> Vec<TcpStream> {
    const REQUEST: &[u8] = b"GET /broadcast HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    let mut clients = Vec::new();
    for _ in 0..COUNTED {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let mut client = socket.connect(address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        assert!(String::from_utf8_lossy(&head).contains("permessage-deflate"));
        clients.push(client);
    }
    clients
}

/// The first client sends, everyone receives.
async fn exchange<P>(
    mut clients: Vec<ClientHandle<P>>,
    work: &'static Work,
    rounds: usize,
) -> Vec<ClientHandle<P>> {
    let payload = compressible(work.size);
    for _ in 0..rounds {
        for _ in 0..work.in_flight {
            clients[0].send(Message::binary(payload.clone())).await.unwrap();
        }
        for client in &mut clients {
            for _ in 0..work.in_flight {
                assert!(client.recv().await.unwrap().into_payload() == payload);
            }
        }
    }
    clients
}

async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            return;
        }
    }
}

type Room = Arc<Mutex<Vec<Sender>>>;

async fn broadcast(mut session: Session, room: Room) {
    room.lock().unwrap().push(session.sender());
    while let Some(message) = session.recv().await {
        for sender in room.lock().unwrap().iter() {
            sender.try_send(message.clone()).unwrap();
        }
    }
}

/// What is above its limit.
#[derive(Default)]
struct Verdict {
    above: Vec<String>,
}

impl Verdict {
    fn judge(&mut self, what: &str, found: f64, limit: f64) {
        let line = format!("{what:45} {found:10.3}, at most {limit}");
        println!("{line}");
        if found > limit {
            self.above.push(line);
        }
    }

    fn judge_held(&mut self, what: &str, found: Held, limit: Held) {
        self.judge(&format!("{what}, allocations"), found.0, limit.0);
        self.judge(&format!("{what}, bytes"), found.1, limit.1);
    }

    fn give(self) {
        assert!(self.above.is_empty(), "above the limit:\n{}", self.above.join("\n"));
    }
}
