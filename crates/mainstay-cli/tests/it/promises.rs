//! R1 to R17 for the gateway as a process, in front of a backend that does not know about it. `docs/GUARANTEES.md`
//! "R1 to R17" has each promise, and the tests of the library and the plugin.
//!
//! Time is real here: tests that need a dead peer wait for the shortest deadline, 5 s.

mod heartbeat;
mod kept;
mod life;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::client::Event;
use mainstay::{Client, Message};
use mainstay_proto::session::message::{Hello, Resume, Welcome};
use mainstay_proto::session::{Control, Frame};
use tokio::net::TcpListener;

use crate::frames::{BINARY, Frames, encoded, hello};
use crate::support::{Gateway, backend, echo};

const SECOND: Duration = Duration::from_secs(1);
const SESSION: &str = "Sec-WebSocket-Protocol: mainstay.v1\r\n";

/// A backend that returns each message.
async fn echo_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, Router::new().fallback(any(echo))).await;
    address
}

/// A gateway with an admin listener in front of an echo.
async fn before_an_echo(flags: &[&str]) -> Gateway {
    Gateway::in_front_of(echo_backend().await, &[&["--admin", "127.0.0.1:0"], flags].concat())
}

/// A gateway with an admin listener whose backend is the test.
async fn before_a_listener(flags: &[&str]) -> (Gateway, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let flags = [&["--admin", "127.0.0.1:0"], flags].concat();
    (Gateway::in_front_of(listener.local_addr().unwrap(), &flags), listener)
}

/// Returns a metric of the process.
fn of_process(gateway: &Gateway, name: &str) -> f64 {
    let metrics = gateway.get("/metrics", "");
    let sample = metrics.lines().find_map(|line| line.strip_prefix("process_")?.strip_prefix(name));
    sample.unwrap_or_else(|| panic!("no {name} in {metrics}")).trim().parse().unwrap()
}

/// A client that speaks mainstay.v1 frame by frame, and its WELCOME.
async fn session(gateway: &Gateway, path: &str, number: u64, resume: Option<Resume>) -> (Frames, Welcome) {
    let (head, mut client) = Frames::connect(gateway.address(), path, SESSION).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    // Each attempt of a client has a higher number than those before it.
    static ATTEMPT: AtomicU64 = AtomicU64::new(1);
    let attempt = ATTEMPT.fetch_add(1, Relaxed);
    client.write(BINARY, &encoded(Hello { attempt, resume, ..hello(number) })).await;
    let (_, payload) = client.read().await.unwrap();
    match Frame::decode(Message::binary(payload)) {
        Ok(Frame::Control(Control::Welcome(welcome))) => {
            client.write(BINARY, &Control::Ack { acknowledged: 0, window: None }.encode()).await;
            (client, *welcome)
        }
        other => panic!("{other:?}"),
    }
}

async fn comes_back(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text(text)));
}

/// Waits for the attach with this epoch, probing meanwhile; returns whether it resumed the session.
async fn attached(client: &Client, meant: u64) -> bool {
    loop {
        client.probe_now();
        let event = tokio::time::timeout(SECOND / 20, client.event()).await;
        if let Ok(Some(Event::Attached { epoch, resumed, .. })) = event
            && epoch == meant
        {
            return resumed;
        }
    }
}

/// Pseudo-random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    /// Returns a number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}
