//! Limits on what clients make the gateway keep, and what happens when a resource runs out.

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::{Message, SessionUpgrade};
use tokio::net::TcpListener;

use crate::frames::{BINARY, CLOSE, Frames, TEXT, encoded, hello};
use crate::support::{Gateway, backend, until};

const SESSION: &str = "Sec-WebSocket-Protocol: mainstay.v1\r\n";
const MIB: f64 = (1 << 20) as f64;

/// Opens a session of mainstay.v1 and disconnects without a Close.
async fn abandon_session(gateway: &Gateway, number: u64) {
    let (_, mut client) = Frames::connect(gateway.address(), "/", SESSION).await;
    client.write(BINARY, &encoded(hello(number))).await;
    // WELCOME, or a refusal.
    let _ = client.read().await;
}

/// A gateway in front of a backend that never stops sending.
async fn before_a_feed(flags: &[&str]) -> Gateway {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let feed = any(|upgrade: SessionUpgrade| async {
        upgrade.on_session(|session| async move {
            let message = Message::binary(vec![7; 60_000]);
            while session.send(message.clone()).await.is_ok() {}
        })
    });
    backend(listener, Router::new().route("/", feed)).await;
    Gateway::in_front_of(address, &[&["--admin", "127.0.0.1:0"], flags].concat())
}

/// Sums the samples of a family.
fn sum(gateway: &Gateway, family: &str) -> f64 {
    let metrics = gateway.get("/metrics", "");
    let samples = metrics.lines().filter(|line| line.starts_with(&format!("mainstay_{family}{{")));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn an_abandoned_feed_keeps_little_more_than_its_window_and_frees_all_of_it() {
    let gateway = before_a_feed(&["--resume-window", "3s"]).await;
    for number in 0..20 {
        abandon_session(&gateway, number).await;
    }
    let kept = || sum(&gateway, "queue_bytes");
    until("their windows are full", || kept() >= 20.0 * 0.9 * MIB || gateway.metric("sessions ") < 20.0)
        .await;
    assert!(sum(&gateway, "budget_bytes") < 20.0 * 1.25 * MIB, "{}", sum(&gateway, "budget_bytes"));
    gateway.wait_for_metric("sessions", 0.0).await;
    until("nothing is kept", || sum(&gateway, "queue_bytes") + sum(&gateway, "budget_bytes") == 0.0).await;
}

#[tokio::test]
async fn abandoned_feeds_together_stay_within_the_memory_budget() {
    let gateway = before_a_feed(&["--memory-budget", "8MiB", "--resume-window", "3s"]).await;
    let mut most: f64 = 0.0;
    for number in 0..200 {
        abandon_session(&gateway, number).await;
        if number % 20 == 0 {
            most = most.max(sum(&gateway, "budget_bytes"));
        }
    }
    assert!(gateway.metric("attaches_total{outcome=\"refused\"}") > 0.0, "new clients are refused meanwhile");
    assert!(most < 10.0 * MIB, "{most}");
    gateway.wait_for_metric("sessions", 0.0).await;
    until("nothing is kept", || sum(&gateway, "budget_bytes") == 0.0).await;
    assert_eq!(gateway.metric("budget_level"), 0.0);
    abandon_session(&gateway, 1000).await;
    gateway.wait_for_metric("sessions", 1.0).await;
    assert!(gateway.log().contains("memory budget: the level rose"), "{}", gateway.log());
}

#[tokio::test]
async fn messages_that_wait_for_an_unreachable_backend_are_in_the_metrics() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Gateway::in_front_of(closed, &["--admin", "127.0.0.1:0"]);
    let (_, mut client) = Frames::connect(gateway.address(), "/", SESSION).await;
    client.write(BINARY, &encoded(hello(1))).await;
    client.read().await.unwrap();
    for _ in 0..10 {
        client.write(TEXT, &[b'x'; 50_000]).await;
    }
    gateway.wait_for_metric("queue_bytes{leg=\"backend\"}", 500_000.0).await;
    assert_eq!(gateway.metric("queue_bytes{leg=\"client\"}"), 0.0);
}

/// Reads up to the next Close; returns its code.
async fn close_code(client: &mut Frames) -> u16 {
    loop {
        let (first, payload) = client.read().await.unwrap();
        if first == CLOSE {
            return u16::from_be_bytes([payload[0], payload[1]]);
        }
    }
}

#[tokio::test]
async fn a_backends_message_above_the_limit_closes_its_client_with_1009_and_is_not_requested_again() {
    for policy in ["renew", "keep"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let flags = ["--max-message", "1000", "--on-backend-loss", policy];
        let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), &flags);
        let serving = tokio::spawn(async move {
            let (_, mut first) = Frames::serve(&listener).await;
            first.write(TEXT, &[b'x'; 1000]).await;
            first.write(TEXT, &[b'x'; 1001]).await;
            let code = close_code(&mut first).await;
            (code, listener)
        });
        let (_, mut client) = Frames::connect(gateway.address(), "/", "").await;
        assert_eq!(client.text().await.map(|text| text.len()), Some(1000), "{policy}");
        assert_eq!(close_code(&mut client).await, 1009, "{policy}");
        let (code, listener) = serving.await.unwrap();
        assert_eq!(code, 1009, "{policy}");
        // A probe of the backend, which sends nothing, is no request.
        let again = tokio::time::timeout(Duration::from_millis(1500), Frames::serve(&listener)).await;
        assert!(again.is_err(), "{policy}: the link dialled again");
        assert!(gateway.log().contains("--max-message"), "{policy}: {}", gateway.log());
    }
}

#[tokio::test]
async fn a_client_that_sends_a_message_above_the_limit_is_closed_with_1009_and_logged_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), &["--max-message", "1000"]);
    let serving = tokio::spawn(async move { Frames::serve(&listener).await });
    let (_, mut client) = Frames::connect(gateway.address(), "/", "").await;
    let (_, mut served) = serving.await.unwrap();
    client.write(TEXT, &[b'x'; 1000]).await;
    assert_eq!(served.text().await.map(|text| text.len()), Some(1000));
    client.write(TEXT, &[b'x'; 1001]).await;
    assert_eq!(close_code(&mut client).await, 1009);
    until("the log has a line", || gateway.log().contains("--max-message")).await;
}
