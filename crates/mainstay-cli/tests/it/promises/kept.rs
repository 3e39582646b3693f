//! R12, R13, R15 and R17: memory, fates of messages, limits of connections, start and shutdown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::any;
use mainstay::client::Event;
use mainstay::{Client, CloseCode, Message, Outcome, SessionUpgrade};
use tokio::net::{TcpListener, TcpSocket};

use super::{Dice, SECOND, attached, before_an_echo, comes_back};
use crate::frames::{CLOSE, Frames, PING, PONG, TEXT, encoded, hello};
use crate::support::{Gateway, Proxy, backend};

#[tokio::test]
async fn r12_slow_readers_stay_within_the_memory_budget_and_a_drain_ends_the_process_in_time_with_0() {
    const MIB: f64 = (1 << 20) as f64;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let feed = any(|upgrade: SessionUpgrade| async {
        upgrade.on_session(|session| async move {
            while session.send(Message::binary(vec![7; 60_000])).await.is_ok() {}
        })
    });
    backend(listener, Router::new().fallback(feed)).await;
    let flags = ["--admin", "127.0.0.1:0", "--memory-budget", "8MiB", "--drain", "2s"];
    let mut gateway = Gateway::in_front_of(address, &flags);
    let (mut slow, mut most) = (Vec::new(), 0.0_f64);
    for number in 0..40 {
        // Each client reads nothing after its WELCOME; when the budget is nearly used up, new clients are refused.
        let (_, mut client) = Frames::connect(gateway.address(), "/", super::SESSION).await;
        client.write(crate::frames::BINARY, &encoded(hello(number))).await;
        slow.push(client);
        tokio::time::sleep(SECOND / 20).await;
        let used: f64 = ["sessions", "links", "sockets"]
            .map(|kind| gateway.metric(&format!("budget_bytes{{kind=\"{kind}\"}}")))
            .iter()
            .sum();
        most = most.max(used);
    }
    assert!(most > 4.0 * MIB && most < 10.5 * MIB, "{most}");
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await, Some(0), "{}", gateway.log());
}

/// One run over random faults on both legs. Returns the outcomes of 150 messages, the messages that the backend received,
/// and the number of gaps that the client received.
async fn fuzz(seed: u64) -> (BTreeMap<u64, Outcome>, Vec<u64>, usize) {
    let mut dice = Dice(seed);
    let received: Arc<Mutex<Vec<u64>>> = Arc::default();
    let log = Arc::clone(&received);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let logging = any(move |upgrade: SessionUpgrade| {
        let log = Arc::clone(&log);
        std::future::ready(upgrade.on_session(|mut session| async move {
            while let Some(message) = session.recv().await {
                log.lock().unwrap().push(crate::support::number(&message));
            }
        }))
    });
    backend(listener, Router::new().fallback(logging)).await;
    let behind = Proxy::to(address);
    // A message that may have reached the backend is not written again, so none arrives twice.
    let gateway = Gateway::in_front_of(behind.address, &["--delivery", "at-most-once"]);
    let front = Proxy::to(gateway.address());
    let client = Client::builder(&format!("ws://{}/", front.address)).unwrap().connect();
    let events = client.events();
    let gaps = tokio::spawn(async move {
        let mut gaps = 0;
        while let Some(event) = events.next().await {
            gaps += usize::from(matches!(event, Event::Gap(_)));
        }
        gaps
    });
    let mut receipts = Vec::new();
    for _ in 0..150 {
        let n = receipts.len() as u64;
        receipts.push(client.send_tracked(Message::text(n.to_string())).await.unwrap());
        tokio::time::sleep(Duration::from_millis(dice.roll(10))).await;
        client.probe_now();
        match dice.roll(25) {
            0 => front.cut(),
            1 => behind.cut(),
            _ => {}
        }
        front.restore();
        behind.restore();
    }
    let mut outcomes = BTreeMap::new();
    for (n, mut receipt) in (0..).zip(receipts) {
        let outcome = loop {
            match tokio::time::timeout(SECOND / 10, &mut receipt).await {
                Ok(outcome) => break outcome,
                Err(_) => client.probe_now(),
            }
        };
        outcomes.insert(n, outcome);
    }
    drop(client);
    let gaps = gaps.await.unwrap();
    let received = received.lock().unwrap().clone();
    (outcomes, received, gaps)
}

#[tokio::test]
async fn r13_over_random_faults_of_both_legs_each_message_arrives_once_or_a_gap_reports_it_as_unknown() {
    let mut lost_sessions = 0;
    for seed in 0..3 {
        let (outcomes, mut received, gaps) = fuzz(seed).await;
        // Handlers of several connections run concurrently in the backend.
        received.sort_unstable();
        assert!(received.is_sorted_by(|a, b| a < b), "seed {seed}: twice: {received:?}");
        for (n, outcome) in &outcomes {
            let arrived = received.binary_search(n).is_ok();
            match outcome {
                Outcome::Delivered => assert!(arrived, "seed {seed}: {n} was reported delivered"),
                Outcome::NotDelivered => assert!(!arrived, "seed {seed}: {n} was reported not delivered"),
                _ => assert!(gaps > 0, "seed {seed}: {n} is unknown, and no gap was reported"),
            }
        }
        lost_sessions += gaps;
    }
    assert!(lost_sessions > 0, "the backend was lost in some runs");
}

/// Answers each Ping, and sends a message each time if `talks`. Returns the code that the client is closed with.
async fn closed(client: &mut Frames, talks: bool) -> Option<u16> {
    loop {
        match client.read().await.ok()? {
            (PING, payload) => {
                client.write(PONG, &payload).await;
                if talks {
                    client.write(TEXT, b"x").await;
                }
            }
            (CLOSE, code) => {
                client.write(CLOSE, &code).await;
                return code.first_chunk().map(|code| u16::from_be_bytes(*code));
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn r15_clients_that_are_idle_old_or_too_many_are_closed_or_refused_with_the_code_of_the_reason() {
    let gateway = before_an_echo(&[
        "--heartbeat",
        "100ms",
        "--idle-timeout",
        "1s",
        "--max-lifetime",
        "3s",
        "--max-connections",
        "3",
        "--max-per-ip",
        "2",
    ])
    .await;
    let (_, mut idle) = Frames::connect(gateway.address(), "/", "").await;
    let (_, mut busy) = Frames::connect(gateway.address(), "/", "").await;
    let (head, _) = Frames::connect(gateway.address(), "/", "").await;
    assert!(head.starts_with("HTTP/1.1 429") && head.to_ascii_lowercase().contains("retry-after:"), "{head}");
    assert_eq!(gateway.metric("refused_total{reason=\"address\"}"), 1.0);
    let other = |host: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(host.parse().unwrap()).unwrap();
        socket.connect(gateway.address())
    };
    let _third = other("127.0.0.2:0").await.unwrap();
    let (head, _) = Frames::connect_over(other("127.0.0.3:0").await.unwrap(), "/", "").await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(gateway.metric("refused_total{reason=\"full\"}"), 1.0);
    let (idle, busy) = tokio::join!(closed(&mut idle, false), closed(&mut busy, true));
    assert_eq!((idle, busy), (Some(4500), Some(1012)));
    assert_eq!(gateway.metric("connections_drained_total{reason=\"idle\"}"), 1.0);
    assert_eq!(gateway.metric("connections_drained_total{reason=\"lifetime\"}"), 1.0);
}

/// A backend that authenticates its clients by a cookie.
async fn guarded(headers: axum::http::HeaderMap, upgrade: SessionUpgrade) -> axum::response::Response {
    match headers.get(header::COOKIE) {
        Some(cookie) if cookie == "sid=1" => upgrade.on_session(|mut session| async move {
            while let Some(message) = session.recv().await {
                let _ = session.send(message).await;
            }
        }),
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

#[tokio::test]
async fn r17_one_command_serves_an_unchanged_backend_whose_hooks_decide_first_and_a_shutdown_is_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, Router::new().fallback(any(guarded))).await;
    let mut gateway = Gateway::in_front_of(address, &["--drain", "2s"]);
    let (head, _) = Frames::connect(gateway.address(), "/", "").await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    let stranger = Client::builder(&gateway.url).unwrap().connect();
    let code = loop {
        if let Event::Ended(end) = stranger.event().await.unwrap() {
            break end.code;
        }
    };
    assert_eq!(
        code,
        Some(CloseCode::UNAUTHORIZED.into()),
        "the refusal arrives in band, and the client does not try again"
    );
    let mut client =
        Client::builder(&gateway.url).unwrap().header(header::COOKIE, "sid=1".parse().unwrap()).connect();
    attached(&client, 1).await;
    comes_back(&mut client, "hello").await;
    let (_, mut plain) = Frames::connect(gateway.address(), "/", "Cookie: sid=1\r\n").await;
    gateway.signal("TERM");
    assert_eq!(closed(&mut plain, false).await, Some(1012));
    assert_eq!(gateway.ended().await, Some(0), "{}", gateway.log());
}
