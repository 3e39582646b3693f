//! Messages that may not have reached the backend: counted, and logged once.

use axum::Router;
use axum::routing::any;
use mainstay::{Client, CloseCode, Link, Message};
use tokio::net::TcpListener;

use crate::frames::Frames;
use crate::support::{Gateway, Proxy, backend, echo, until};

const UNKNOWN: &str = "link_messages_total{fate=\"unknown\"}";
const NOT_DELIVERED: &str = "link_messages_total{fate=\"not_delivered\"}";
const UNDELIVERABLE: &str = "link_messages_total{fate=\"undeliverable\"}";
const KEPT: &str = "queue_bytes{leg=\"backend\"}";

async fn bare(arguments: &[&str]) -> (Gateway, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let arguments = [&["--admin", "127.0.0.1:0", "--on-backend-loss", "keep"], arguments].concat();
    (Gateway::in_front_of(listener.local_addr().unwrap(), &arguments), listener)
}

fn count_lines(gateway: &Gateway, what: &str) -> usize {
    gateway.log().lines().filter(|line| line.contains(what)).count()
}

#[tokio::test]
async fn with_at_most_once_messages_that_a_killed_backend_may_have_received_are_counted_and_logged() {
    let (gateway, listener) = bare(&["--delivery", "at-most-once"]).await;
    let client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text("a")).await.unwrap();
    let (_, mut killed) = Frames::serve(&listener).await;
    assert_eq!(killed.text().await.as_deref(), Some("a"));
    drop(killed);
    gateway.wait_for_metric(UNKNOWN, 1.0).await;
    client.send(Message::text("b")).await.unwrap();
    let (_, mut next) = Frames::serve(&listener).await;
    assert_eq!(next.text().await.as_deref(), Some("b"), "at most once");
    tokio::join!(client.close(CloseCode::NORMAL, ""), async { while next.text().await.is_some() {} });
    until("the loss is logged", || count_lines(&gateway, "unknown=1 not_delivered=0 undeliverable=0") == 1)
        .await;
    assert_eq!(gateway.log().lines().count(), 1, "{}", gateway.log());
    assert_eq!(gateway.metric(UNKNOWN) + gateway.metric(NOT_DELIVERED), 1.0);
}

#[tokio::test]
async fn a_message_that_ends_three_connections_is_counted_and_logged() {
    let (gateway, listener) = bare(&[]).await;
    let client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text("poison")).await.unwrap();
    for _ in 0..3 {
        let (_, mut poisoned) = Frames::serve(&listener).await;
        assert_eq!(poisoned.text().await.as_deref(), Some("poison"));
    }
    gateway.wait_for_metric(UNDELIVERABLE, 1.0).await;
    client.send(Message::text("bread")).await.unwrap();
    let (_, mut next) = Frames::serve(&listener).await;
    assert_eq!(next.text().await.as_deref(), Some("bread"));
    tokio::join!(client.close(CloseCode::NORMAL, ""), async { while next.text().await.is_some() {} });
    until("the loss is logged", || count_lines(&gateway, "unknown=0 not_delivered=0 undeliverable=1") == 1)
        .await;
}

#[tokio::test]
async fn messages_that_a_client_left_for_an_unreachable_backend_are_counted_and_logged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap());
    backend(listener, Router::new().route("/", any(echo))).await;
    let gateway =
        Gateway::in_front_of(proxy.address, &["--admin", "127.0.0.1:0", "--on-backend-loss", "keep"]);
    let connect = || Link::builder(&gateway.url).unwrap().connect_once();
    let (mut first, mut second) = (connect().await.unwrap(), connect().await.unwrap());
    for client in [&mut first, &mut second] {
        client.send(Message::text("delivered")).await.unwrap();
        assert_eq!(client.recv().await, Some(Message::text("delivered")));
    }
    gateway.wait_for_metric(KEPT, 0.0).await;
    assert_eq!(gateway.metric("messages_total{direction=\"in\"}"), 2.0, "control messages do not count");
    proxy.cut();
    gateway.wait_for_metric("links_lost_total", 2.0).await;
    first.send(Message::text("left")).await.unwrap();
    second.send(Message::text("left")).await.unwrap();
    gateway.wait_for_metric(KEPT, 8.0).await;
    tokio::join!(first.close(CloseCode::NORMAL, ""), second.close(CloseCode::NORMAL, ""));
    // The link waits 10 s for the backend.
    gateway.wait_for_metric(NOT_DELIVERED, 2.0).await;
    until("each loss is logged", || count_lines(&gateway, "unknown=0 not_delivered=1 undeliverable=0") == 2)
        .await;
    assert_eq!((gateway.metric(UNKNOWN), gateway.metric(KEPT)), (0.0, 0.0));
}

#[tokio::test]
async fn a_gateway_that_is_ended_at_once_logs_the_bytes_that_it_drops() {
    let (mut gateway, listener) = bare(&["--confirm", "reply"]).await;
    let client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text("kept")).await.unwrap();
    let (_, mut served) = Frames::serve(&listener).await;
    assert_eq!(served.text().await.as_deref(), Some("kept"));
    assert_eq!(gateway.metric(KEPT), 4.0, "the message is not answered");
    gateway.signal("TERM");
    until("the gateway drains", || count_lines(&gateway, "draining") == 1).await;
    gateway.signal("TERM");
    until("the dropped bytes are logged", || count_lines(&gateway, "bytes=4") == 1).await;
    while gateway.is_up() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_closes_before_the_backend_answers_loses_nothing() {
    let (gateway, listener) = bare(&["--confirm", "reply"]).await;
    let client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text("a")).await.unwrap();
    let (_, mut served) = Frames::serve(&listener).await;
    assert_eq!(served.text().await.as_deref(), Some("a"));
    // The link closes after the backend has answered, not before.
    tokio::join!(client.close(CloseCode::NORMAL, ""), async {
        served.write(crate::frames::TEXT, b"answer").await;
        assert_eq!(served.text().await, None, "closed in order");
    });
    gateway.wait_for_metric("sessions", 0.0).await;
    assert_eq!((gateway.metric(UNKNOWN), gateway.metric(NOT_DELIVERED)), (0.0, 0.0));
    assert_eq!(gateway.log(), "");
}

#[tokio::test]
async fn with_reply_a_message_is_kept_until_the_backend_answered_it() {
    let (gateway, listener) = bare(&["--confirm", "reply", "--heartbeat", "100ms"]).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text("a")).await.unwrap();
    let (_, mut unanswered) = Frames::serve(&listener).await;
    assert_eq!(unanswered.text().await.as_deref(), Some("a"));
    // More than enough for a confirming Ping, if there were one.
    for _ in 0..6 {
        ping(&mut unanswered).await;
    }
    drop(unanswered);
    let (_, mut answered) = Frames::serve(&listener).await;
    assert_eq!(answered.text().await.as_deref(), Some("a"), "a Pong does not confirm");
    answered.write(crate::frames::TEXT, b"answer").await;
    assert_eq!(client.recv().await, Some(Message::text("answer")));
    drop(answered);
    client.send(Message::text("b")).await.unwrap();
    let (_, mut next) = Frames::serve(&listener).await;
    assert_eq!(next.text().await.as_deref(), Some("b"), "an answer does");
}

#[tokio::test]
async fn with_pong_and_window_the_last_confirmed_messages_are_sent_again() {
    for (confirm, again) in [("pong", "b"), ("pong+window", "a")] {
        let (gateway, listener) = bare(&["--confirm", confirm, "--heartbeat", "100ms"]).await;
        let client = Client::builder(&gateway.url).unwrap().connect();
        client.send(Message::text("a")).await.unwrap();
        let (_, mut confirmed) = Frames::serve(&listener).await;
        assert_eq!(confirmed.text().await.as_deref(), Some("a"));
        while ping(&mut confirmed).await != 1_u64.to_be_bytes() {}
        // The next Ping is sent after the Pong was read.
        ping(&mut confirmed).await;
        drop(confirmed);
        client.send(Message::text("b")).await.unwrap();
        let (_, mut next) = Frames::serve(&listener).await;
        assert_eq!(next.text().await.as_deref(), Some(again), "{confirm}");
    }
}

/// Answers the next Ping; returns its payload, which is a position if the Pong confirms messages.
async fn ping(backend: &mut Frames) -> Vec<u8> {
    loop {
        let (first, payload) = backend.read().await.unwrap();
        if first == crate::frames::PING {
            backend.write(crate::frames::PONG, &payload).await;
            return payload;
        }
    }
}

/// Reads `count` messages and answers no Ping.
async fn read_messages(backend: &mut Frames, count: usize) {
    let mut received = 0;
    while received < count {
        let (first, _) = backend.read().await.unwrap();
        received += usize::from(first == 0x81);
    }
}

#[tokio::test]
async fn a_backend_that_answers_no_ping_receives_every_message_once_and_is_logged_once() {
    let (gateway, listener) = bare(&[]).await;
    let run = async |is_known: bool| {
        let client = Client::builder(&gateway.url).unwrap().connect();
        for _ in 0..100 {
            client.send(Message::text("x")).await.unwrap();
        }
        let (_, mut backend) = Frames::serve(&listener).await;
        read_messages(&mut backend, 64).await;
        if !is_known {
            // A message shows that the backend is alive.
            assert_eq!(backend.read().await.unwrap().0, 0x89);
            backend.write(0x81, b"news").await;
        }
        read_messages(&mut backend, 36).await;
        client.close(CloseCode::NORMAL, "").await;
        gateway.wait_for_metric("links_pings_unanswered_total", 1.0).await;
        let rest = backend.text().await;
        assert_eq!(rest, None, "no message arrives twice");
    };
    run(false).await;
    run(true).await;
    assert_eq!(count_lines(&gateway, "answers no Ping"), 1);
}
