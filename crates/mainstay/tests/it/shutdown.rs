//! `with_graceful_shutdown`: what the server loop waits for, and what it does not. Time is tokio's, which leaps whenever
//! nothing is left to do.

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::{any, get};
use mainstay::client::Event;
use mainstay::server::Config;
use mainstay::{Client, Link, Server, SessionUpgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::{echo, until_quiet};

const WITHIN: Duration = Duration::from_secs(30);

/// A server with sessions at `/echo` and a response at `/slow` that is as slow as the test asks for.
struct Stage {
    address: SocketAddr,
    mainstay: Server,
    stop: Arc<Notify>,
    server: JoinHandle<io::Result<()>>,
    /// Whether a request for `/slow` came, and whether it was answered.
    asked: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
}

impl Stage {
    async fn set(slow: Duration) -> Self {
        let (asked, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (came, done) = (Arc::clone(&asked), Arc::clone(&answered));
        let slowly = move || async move {
            came.store(true, Ordering::Relaxed);
            tokio::time::sleep(slow).await;
            done.store(true, Ordering::Relaxed);
            "slowly"
        };
        // No connection may end because of this deadline.
        let mainstay = Server::new(Config::new().opening_deadline(100 * WITHIN).unwrap());
        let sessions = any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) });
        let app = Router::new().route("/slow", get(slowly)).route("/echo", sessions);
        let app = app.with_state(mainstay.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let server = mainstay::serve(listener, app, &mainstay)
            .with_graceful_shutdown(async move { stopped.notified().await }, WITHIN);
        let server = tokio::spawn(server.into_future());
        Self { address, mainstay, stop, server, asked, answered }
    }

    async fn ask(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Shuts it down, and returns how long that took.
    async fn stop(&mut self) -> Duration {
        let start = Instant::now();
        self.stop.notify_one();
        (&mut self.server).await.unwrap().unwrap();
        start.elapsed()
    }
}

async fn rest_of(mut stream: TcpStream) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    rest
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_under_way_is_waited_for() {
    let mut stage = Stage::set(Duration::from_secs(10)).await;
    let asking = stage.ask("/slow").await;
    until_quiet("it is asked", || stage.asked.load(Ordering::Relaxed)).await;
    stage.stop().await;
    assert!(stage.answered.load(Ordering::Relaxed), "the server was there until then");
    let answer = rest_of(asking).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("slowly"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_does_not_end_is_waited_for_as_long_as_a_session() {
    let mut stage = Stage::set(100 * WITHIN).await;
    let _asking = stage.ask("/slow").await;
    until_quiet("it is asked", || stage.asked.load(Ordering::Relaxed)).await;
    assert_eq!(stage.stop().await.as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn connections_without_a_request_are_not_waited_for() {
    let mut stage = Stage::set(Duration::ZERO).await;
    let silent = TcpStream::connect(stage.address).await.unwrap();
    let mut kept_alive = stage.ask("/slow").await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"slowly") {
        answer.push(kept_alive.read_u8().await.unwrap());
    }
    assert!(stage.stop().await < WITHIN, "no connection was waited for");
    assert_eq!((rest_of(kept_alive).await, rest_of(silent).await), (String::new(), String::new()));
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_in_the_queue_or_are_on_their_way_are_answered_and_not_reset() {
    for arrives_late in [false, true] {
        let mut stage = Stage::set(Duration::ZERO).await;
        let mut silent = TcpStream::connect(stage.address).await.unwrap();
        // The first is accepted before the signal. Those behind it have not been, when it comes.
        tokio::task::yield_now().await;
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let stream = std::net::TcpStream::connect(stage.address).unwrap();
            (&stream).write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            waiting.push(TcpStream::from_std(stream).unwrap());
        }
        stage.stop.notify_one();
        if arrives_late {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        silent.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        waiting.push(silent);
        for stream in waiting {
            let answer = rest_of(stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("slowly"), "{answer:?}");
        }
        (&mut stage.server).await.unwrap().unwrap();
    }
}

/// A server whose listener a successor may take over, and the signal that it did.
async fn with_successor() -> (SocketAddr, std::net::TcpListener, Arc<Notify>, Stage) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let copy = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned().unwrap());
    let (stop, taken) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let mainstay = Server::default();
    let app = Router::new().route("/echo", any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) }));
    let (stopped, took) = (Arc::clone(&stop), Arc::clone(&taken));
    let server = mainstay::serve(listener, app.with_state(mainstay.clone()), &mainstay)
        .with_graceful_shutdown(async move { stopped.notified().await }, WITHIN)
        .with_successor(async move { took.notified().await });
    let server = tokio::spawn(server.into_future());
    let (asked, answered) = Default::default();
    (address, copy, taken, Stage { address, mainstay, stop, server, asked, answered })
}

#[tokio::test(start_paused = true)]
async fn new_connections_wait_until_a_successor_accepts_them() {
    let (address, copy, taken, stage) = with_successor().await;
    let _visitor = Link::builder(&format!("ws://{address}/echo")).unwrap().connect_once().await.unwrap();
    let _other = Link::builder(&format!("ws://{address}/echo")).unwrap().connect_once().await.unwrap();
    stage.stop.notify_one();
    until_quiet("it drains", || !stage.mainstay.is_ready()).await;
    let early = std::net::TcpStream::connect(address).unwrap();
    taken.notify_one();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // No other process accepted it meanwhile.
    let (_, from) = copy.accept().unwrap();
    assert_eq!(from, early.local_addr().unwrap());
    assert!(!stage.server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn without_a_successor_new_connections_are_refused_with_503_until_the_end() {
    let (address, copy, _taken, stage) = with_successor().await;
    drop(copy);
    let url = format!("ws://{address}/echo");
    let _visitor = Link::builder(&url).unwrap().connect_once().await.unwrap();
    let _other = Link::builder(&url).unwrap().connect_once().await.unwrap();
    stage.stop.notify_one();
    until_quiet("it drains", || !stage.mainstay.is_ready()).await;
    let refused = Client::builder(&url).unwrap().connect_once().await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("503"), "{refused}");
    stage.server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_time_still_tells_sessions_and_waits_for_their_handlers() {
    let mainstay = Server::default();
    let saved = Arc::new(AtomicBool::new(false));
    let saving = Arc::clone(&saved);
    let handler = any(async move |upgrade: SessionUpgrade| {
        upgrade.on_session(async move |mut session| {
            while session.recv().await.is_some() {}
            saving.store(true, Ordering::Relaxed);
        })
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let app = Router::new().route("/", handler).with_state(mainstay.clone());
    tokio::spawn(mainstay::serve(listener, app, &mainstay).into_future());
    let _client = Client::builder(&url).unwrap().connect_once().await.unwrap();
    mainstay.drain(Duration::ZERO).await;
    assert!(saved.load(Ordering::Relaxed), "its handler saw the end");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_drains_the_sessions_waits_for_them_and_accepts_no_other() {
    let mut stage = Stage::set(Duration::ZERO).await;
    let url = format!("ws://{}/echo", stage.address);
    let client = Client::builder(&url).unwrap().connect_once().await.unwrap();
    let took = stage.stop().await;
    assert!(took <= WITHIN, "it left within the time that it was given: {took:?}");
    assert_eq!((stage.mainstay.stats().sessions, stage.mainstay.is_ready()), (0, false));
    while !matches!(client.event().await, Some(Event::Ended(_)) | None) {}
    assert!(TcpStream::connect(stage.address).await.is_err());
}
