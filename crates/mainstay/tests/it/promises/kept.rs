//! R12, R13, R15 and R17: what is kept and for how long, what an account reports, and how a server begins and ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use mainstay::client::Event;
use mainstay::server::{AdmissionConfig, Config, LifetimeConfig};
use mainstay::{Budget, Client, Level, Message, Outcome, Server, Session, SessionUpgrade};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Dice, SECOND, client_at, comes_back, small_leaps};
use crate::hostile::{Raw, frame, upgrade};
use crate::support::{Proxy, echo, handled, number, until_quiet};

/// Readers that are slow or gone, in front of handlers that send without end.
#[tokio::test(start_paused = true)]
async fn r12_slow_readers_stay_within_the_budget_others_are_served_and_a_drain_ends_it_in_time() {
    const MIB: u64 = 1 << 20;
    small_leaps(SECOND / 100);
    let config = Config::new().budget(Budget::new(8 * MIB));
    let mainstay = Server::new(config);
    let feed = any(|upgrade: SessionUpgrade| async {
        upgrade.on_session(|session| async move {
            while session.send(Message::binary(vec![7; 16 * 1024])).await.is_ok() {}
        })
    });
    let echoed = any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/feed", feed).route("/echo", echoed).with_state(mainstay.clone());
    let (end, ended) = oneshot::channel::<()>();
    let server = mainstay::serve(listener, app, &mainstay)
        .with_graceful_shutdown(async { drop(ended.await) }, 5 * SECOND);
    let server = tokio::spawn(async move { server.await });
    let mut honest = client_at(address);
    comes_back(&mut honest, "before").await;
    let mut slow = Vec::new();
    for _ in 0..24 {
        slow.push(Client::builder(&format!("ws://{address}/feed")).unwrap().connect());
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let plain = socket.connect(address).await.unwrap();
    slow.push(client_at(address));
    let raw = Raw::over(plain, upgrade("").replace("/echo", "/feed").as_bytes()).await;
    let mut most = 0;
    for _ in 0..600 {
        tokio::time::sleep(SECOND / 10).await;
        most = most.max(mainstay.budget().used());
    }
    // Where it is used up each that waits keeps 64 KiB at most.
    assert!(most > 4 * MIB && most <= 8 * MIB + 26 * 64 * 1024, "{most}");
    assert_ne!(mainstay.budget().level(), Level::Calm);
    comes_back(&mut honest, "meanwhile").await;
    let begin = Instant::now();
    end.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert!(begin.elapsed() <= 5 * SECOND + SECOND / 2, "{:?}", begin.elapsed());
    drop((slow, raw));
}

/// What the server's handlers received, session by session.
type Received = Arc<Mutex<Vec<u64>>>;

/// One run over random faults. Returns the outcome of 300 messages by their receipts, the received messages, and the number
/// of gaps that were reported to the client.
async fn fuzz(seed: u64) -> (BTreeMap<u64, Outcome>, Vec<u64>, usize) {
    let mut dice = Dice(seed);
    let received: Received = Arc::default();
    let log = Arc::clone(&received);
    let config = Config::new().resume_window(8 * SECOND).unwrap();
    let (address, _mainstay) = handled(Server::new(config), move |mut session: Session| {
        let log = Arc::clone(&log);
        async move {
            while let Some(message) = session.recv().await {
                log.lock().unwrap().push(number(&message));
                let _ = session.send(message).await;
            }
        }
    })
    .await;
    let proxy = Proxy::to(address).await;
    let client = client_at(proxy.address);
    let (sender, events) = (client.sender(), client.events());
    let gaps = tokio::spawn(async move {
        let mut gaps = 0;
        while let Some(event) = events.next().await {
            gaps += usize::from(matches!(event, Event::Gap(_)));
        }
        gaps
    });
    let taking = tokio::spawn(async move {
        let mut client = client;
        while client.recv().await.is_some() {}
    });
    let mut receipts = Vec::new();
    for n in 0..300 {
        receipts.push(sender.send_tracked(Message::text(n.to_string())).await.unwrap());
        tokio::time::sleep(Duration::from_millis(dice.roll(100))).await;
        match dice.roll(40) {
            0..2 => proxy.cut(),
            2 => {
                proxy.close();
                // Longer than the resume window at times.
                let away = Duration::from_millis(dice.roll(20_000));
                let door = tokio::spawn(tokio::time::sleep(away));
                door.await.unwrap();
                proxy.open();
            }
            _ => {}
        }
    }
    let mut outcomes = BTreeMap::new();
    for (n, receipt) in (0..).zip(receipts) {
        outcomes.insert(n, receipt.await);
    }
    drop((sender, taking.abort()));
    let received = received.lock().unwrap().clone();
    (outcomes, received, gaps.await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn r13_over_random_faults_each_message_arrives_once_and_in_order_or_a_gap_reports_it_as_unknown() {
    small_leaps(SECOND / 100);
    let mut lost_sessions = 0;
    for seed in 0..6 {
        let (outcomes, received, gaps) = fuzz(seed).await;
        assert!(received.is_sorted_by(|a, b| a < b), "seed {seed}: twice, or out of order: {received:?}");
        for (n, outcome) in &outcomes {
            let arrived = received.binary_search(n).is_ok();
            match outcome {
                Outcome::Delivered => assert!(arrived, "seed {seed}: {n} was called delivered"),
                Outcome::NotDelivered => assert!(!arrived, "seed {seed}: {n} was called lost"),
                _ => assert!(gaps > 0, "seed {seed}: {n} is unknown, and no gap was reported"),
            }
        }
        let missing = outcomes.len() - received.len();
        assert!(missing == 0 || gaps > 0, "seed {seed}: {missing} are missing, and no gap was reported");
        lost_sessions += gaps;
    }
    assert!(lost_sessions > 0, "some outages were longer than the resume window");
}

async fn status(stream: &mut TcpStream, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).await.unwrap();
    String::from_utf8_lossy(&line[9..]).into_owned()
}

/// Returns the code that closes a peer which answers each Ping, and sends a message each time where it `talks`.
async fn closed(raw: &mut Raw, talks: bool) -> Option<u16> {
    loop {
        match raw.frame().await.ok()? {
            (0x89, payload) => {
                raw.write(&frame(0x8a, &payload)).await;
                if talks {
                    raw.write(&frame(0x81, b"x")).await;
                }
            }
            (0x88, code) => return code.first_chunk().map(|code| u16::from_be_bytes(*code)),
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r15_idle_old_and_excess_peers_are_ended_or_refused_each_with_its_code() {
    small_leaps(SECOND / 100);
    let lifetime = LifetimeConfig::default();
    let lifetime =
        lifetime.idle_timeout(60 * SECOND).and_then(|both| both.max_lifetime(600 * SECOND)).unwrap();
    let admission = AdmissionConfig { connections: Some(4), per_address: Some(2) };
    let (address, mainstay) =
        handled(Server::new(Config::new().lifetime(lifetime).admission(admission)), echo).await;
    let from = async |local: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(local.parse().unwrap()).unwrap();
        socket.connect(address).await.unwrap()
    };
    let begin = Instant::now();
    let mut idle = Raw::over(from("127.0.0.2:0").await, upgrade("").as_bytes()).await;
    let mut busy = Raw::over(from("127.0.0.2:0").await, upgrade("").as_bytes()).await;
    // A third of that address is refused, because it resumes no session.
    let mut third = from("127.0.0.2:0").await;
    let refused = async { status(&mut third, &upgrade("")).await == "429" };
    assert!(tokio::time::timeout(SECOND, refused).await.is_ok_and(|refused| refused));
    assert_eq!(mainstay.stats().refused_address, 1);
    let mut others = Vec::new();
    for host in ["127.0.0.3:0", "127.0.0.4:0"] {
        others.push(Raw::over(from(host).await, upgrade("").as_bytes()).await);
    }
    assert_eq!(status(&mut from("127.0.0.5:0").await, &upgrade("")).await, "503");
    assert_eq!(mainstay.stats().refused_full, 1);
    drop(others);
    assert_eq!(tokio::join!(closed(&mut idle, false), closed(&mut busy, false)), (Some(4500), Some(4500)));
    let after = begin.elapsed();
    assert!(after >= 55 * SECOND && after <= 62 * SECOND, "{after:?}");
    drop((idle, busy, third));
    until_quiet("they left", || mainstay.stats().connections == 0).await;
    // A peer that talks is ended for its age.
    let mut busy = Raw::over(from("127.0.0.2:0").await, upgrade("").as_bytes()).await;
    let begin = Instant::now();
    let code = closed(&mut busy, true).await;
    assert_eq!(code, Some(1012));
    let age = begin.elapsed();
    assert!(age >= 480 * SECOND && age <= 722 * SECOND, "{age:?}");
    let stats = mainstay.stats();
    assert_eq!((stats.left_idle, stats.left_old), (2, 1), "{stats:?}");
}

/// A hook of an axum application in front of the upgrade, which authenticates clients by a cookie.
async fn checks_the_cookie(request: Request<axum::body::Body>, next: Next) -> Response {
    match request.headers().get(header::COOKIE) {
        Some(cookie) if cookie == "sid=1" => next.run(request).await,
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

#[tokio::test]
async fn r17_one_line_makes_a_route_hooks_run_before_the_upgrade_and_a_shutdown_ends_every_session_in_order()
{
    // The example that the README shows, whole.
    let example = include_str!("../../../examples/echo.rs");
    let lines = example.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("//"));
    assert!(lines.clone().count() <= 17, "{example}");
    assert_eq!(lines.filter(|line| line.contains(".route(")).count(), 1);

    let mainstay = Server::default();
    let echoed = any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) });
    let app = Router::new().route("/echo", echoed).layer(from_fn(checks_the_cookie));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let server = mainstay::serve(listener, app.with_state(mainstay.clone()), &mainstay)
        .with_graceful_shutdown(async { drop(ended.await) }, SECOND);
    let server = tokio::spawn(async move { server.await });
    let stranger = Client::builder(&format!("ws://{address}/echo")).unwrap().connect_once().await;
    assert_eq!(stranger.unwrap_err().code(), Some(http::StatusCode::UNAUTHORIZED.into()));
    let cookie = (header::COOKIE, "sid=1".parse().unwrap());
    let url = format!("ws://{address}/echo");
    let mut client = Client::builder(&url).unwrap().header(cookie.0, cookie.1).connect();
    let mut plain = Raw::open(address, "Cookie: sid=1\r\n").await;
    comes_back(&mut client, "x").await;
    end.send(()).unwrap();
    assert_eq!(plain.close_code().await, Some(1012));
    server.await.unwrap().unwrap();
    let stats = mainstay.stats();
    assert_eq!((stats.connections, stats.sessions), (0, 0), "{stats:?}");
    drop(client);
}
