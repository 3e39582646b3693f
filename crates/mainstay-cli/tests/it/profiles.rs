//! The effect of each profile on a client whose backend connection is lost. The test is the backend.
//!
//! `cargo xtask test ecosystems` runs the real clients and servers of each protocol.

use std::time::Duration;

use mainstay::client::{Event, ReasonCode};
use mainstay::{Client, CloseCode, Message};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::flags::check;
use crate::frames::{CLOSE, Frames, PING, PONG, TEXT};
use crate::support::{Gateway, until};

/// A gateway, and the listener of its backend.
async fn gateway(arguments: &[&str]) -> (Gateway, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let arguments = [&["--admin", "127.0.0.1:0"], arguments].concat();
    let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), &arguments);
    (gateway, listener)
}

/// A plain client and its connection to the backend.
async fn join(gateway: &Gateway, listener: &TcpListener) -> (Frames, Frames) {
    let address = gateway.address();
    let (connected, (_, served)) = tokio::join!(Frames::connect(address, "/", ""), Frames::serve(listener));
    assert!(connected.0.starts_with("HTTP/1.1 101"), "{}", connected.0);
    (connected.1, served)
}

/// Waits for something that happens at once or never.
async fn soon<T>(coming: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), coming).await.expect("it does not happen")
}

/// The next connection to the backend.
async fn serve(listener: &TcpListener) -> Frames {
    soon(Frames::serve(listener)).await.1
}

async fn send(frames: &mut Frames, text: &str) {
    frames.write(TEXT, text.as_bytes()).await;
}

/// Checks that the next text is this one.
async fn receives(frames: &mut Frames, text: &str) {
    assert_eq!(soon(frames.text()).await.as_deref(), Some(text));
}

/// Checks that the next frame, apart from Pings, is a Close. Returns its code; 1005: no code.
async fn closed(frames: &mut Frames) -> u16 {
    loop {
        match soon(frames.read()).await.unwrap() {
            (CLOSE, payload) => {
                return payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
            }
            (PING, payload) => frames.write(PONG, &payload).await,
            (_, payload) => panic!("{:?}", String::from_utf8_lossy(&payload)),
        }
    }
}

/// Answers Pings up to the one that confirms message `last`.
async fn confirm(backend: &mut Frames, last: u64) {
    soon(backend.confirm(last)).await;
}

const LOGIN: [&str; 6] =
    ["--on-backend-loss", "keep", "--prologue", "match=^(login|join)", "--prologue-hide", "match=^welcome"];

#[tokio::test]
async fn the_prologue_is_replayed_to_a_new_backend_connection_before_anything_else() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    send(&mut client, "login").await;
    receives(&mut backend, "login").await;
    send(&mut backend, "welcome").await;
    receives(&mut client, "welcome").await;
    send(&mut client, "join").await;
    receives(&mut backend, "join").await;
    confirm(&mut backend, 2).await;
    send(&mut client, "unconfirmed").await;
    receives(&mut backend, "unconfirmed").await;
    drop(backend);
    send(&mut client, "while away").await;

    let mut backend = serve(&listener).await;
    receives(&mut backend, "login").await;
    send(&mut backend, "news").await;
    receives(&mut client, "news").await;
    send(&mut backend, "welcome").await;
    for expected in ["join", "unconfirmed", "while away"] {
        receives(&mut backend, expected).await;
    }
    send(&mut backend, "flows").await;
    receives(&mut client, "flows").await;
    gateway.wait_for_metric("prologues_total{outcome=\"done\"}", 1.0).await;
    assert_eq!(gateway.metric("prologues_total{outcome=\"failed\"}"), 0.0);
}

#[tokio::test]
async fn recorded_frames_and_messages_that_the_link_keeps_are_written_once() {
    let (gateway, listener) = gateway(&[&LOGIN[..], &["--delivery", "at-most-once"]].concat()).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    send(&mut client, "login").await;
    receives(&mut backend, "login").await;
    send(&mut backend, "welcome").await;
    receives(&mut client, "welcome").await;
    send(&mut client, "order").await;
    receives(&mut backend, "order").await;
    drop(backend);
    send(&mut client, "join").await;
    let mut backend = serve(&listener).await;
    receives(&mut backend, "login").await;
    send(&mut backend, "welcome").await;
    // This frame was recorded and never written: the link writes it, not the replay.
    receives(&mut backend, "join").await;
    send(&mut client, "next").await;
    receives(&mut backend, "next").await;
}

#[tokio::test]
async fn a_session_receives_replaced_in_order_and_no_answer_twice() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text("login")).await.unwrap();
    let mut backend = serve(&listener).await;
    receives(&mut backend, "login").await;
    send(&mut backend, "welcome").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("welcome")));
    confirm(&mut backend, 1).await;
    drop(backend);
    let mut backend = serve(&listener).await;
    receives(&mut backend, "login").await;
    send(&mut backend, "welcome").await;
    send(&mut backend, "flows").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("flows")));
    loop {
        match soon(client.event()).await {
            Some(Event::Replaced { count }) => break assert_eq!(count, 1),
            Some(_) => {}
            None => panic!("the event does not arrive"),
        }
    }
}

#[tokio::test]
async fn a_greeting_is_not_delivered_twice() {
    let (gateway, listener) = gateway(&["--on-backend-loss", "keep", "--prologue-hide", "first=1"]).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    send(&mut backend, "RFB 003.008").await;
    receives(&mut client, "RFB 003.008").await;
    drop(backend);
    send(&mut client, "while away").await;
    let mut backend = serve(&listener).await;
    send(&mut backend, "RFB 003.008").await;
    send(&mut backend, "next").await;
    receives(&mut client, "next").await;
    receives(&mut backend, "while away").await;
}

#[tokio::test]
async fn a_backend_that_refuses_a_replayed_frame_ends_the_client_as_renew_does() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    send(&mut client, "login").await;
    receives(&mut backend, "login").await;
    send(&mut backend, "welcome").await;
    receives(&mut client, "welcome").await;
    confirm(&mut backend, 1).await;
    drop(backend);
    let mut backend = serve(&listener).await;
    receives(&mut backend, "login").await;
    backend.write(CLOSE, &[&4401_u16.to_be_bytes()[..], b"token expired"].concat()).await;
    assert_eq!(closed(&mut client).await, 1012, "4401 does not answer a frame of the client");
    gateway.wait_for_metric("prologues_total{outcome=\"failed\"}", 1.0).await;
    until("the failure is logged once", || gateway.log().matches("has to start again").count() == 1).await;
}

#[tokio::test]
async fn messages_of_a_client_that_closed_follow_the_prologue_and_end_with_the_backend() {
    for refuses in [false, true] {
        let (gateway, listener) = gateway(&LOGIN).await;
        let (mut client, mut backend) = join(&gateway, &listener).await;
        send(&mut client, "login").await;
        receives(&mut backend, "login").await;
        send(&mut backend, "welcome").await;
        receives(&mut client, "welcome").await;
        confirm(&mut backend, 1).await;
        drop(backend);
        // Otherwise the message could be written to the old connection.
        gateway.wait_for_metric("links_lost_total", 1.0).await;
        send(&mut client, "last message").await;
        client.write(CLOSE, &1000_u16.to_be_bytes()).await;
        let mut backend = serve(&listener).await;
        receives(&mut backend, "login").await;
        if refuses {
            backend.write(CLOSE, &4501_u16.to_be_bytes()).await;
        } else {
            send(&mut backend, "welcome").await;
            receives(&mut backend, "last message").await;
            confirm(&mut backend, 2).await;
        }
        gateway.wait_for_metric("queue_bytes{leg=\"backend\"}", 0.0).await;
        let lost = if refuses { 1.0 } else { 0.0 };
        gateway.wait_for_metric("link_messages_total{fate=\"not_delivered\"}", lost).await;
    }
}

#[tokio::test]
async fn a_client_with_more_recorded_frames_than_the_limit_starts_again() {
    let (gateway, listener) = gateway(&["--on-backend-loss", "keep", "--prologue", "match=."]).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    for number in 0..257 {
        send(&mut client, &number.to_string()).await;
        receives(&mut backend, &number.to_string()).await;
    }
    drop(backend);
    let _backend = serve(&listener).await;
    assert_eq!(closed(&mut client).await, 1012);
    until("the failure is logged", || gateway.log().contains("256 frames")).await;
    gateway.wait_for_metric("queue_bytes{leg=\"backend\"}", 0.0).await;
}

#[tokio::test]
async fn recorded_frames_count_as_kept() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    send(&mut client, "login").await;
    receives(&mut backend, "login").await;
    confirm(&mut backend, 1).await;
    gateway.wait_for_metric("queue_bytes{leg=\"backend\"}", 5.0).await;
    client.write(CLOSE, &1000_u16.to_be_bytes()).await;
    gateway.wait_for_metric("queue_bytes{leg=\"backend\"}", 0.0).await;
}

const WELCOME: &str = r#"{"type":"welcome"}"#;
const SUBSCRIBE: &str = r#"{"command":"subscribe","identifier":"{\"channel\":\"Room\"}"}"#;
const CONFIRM: &str = r#"{"identifier":"{\"channel\":\"Room\"}","type":"confirm_subscription"}"#;
const PERFORM: &str = r#"{"command":"message","identifier":"{\"channel\":\"Room\"}","data":"{}"}"#;

/// A client of Action Cable that has subscribed.
async fn subscribed(gateway: &Gateway, listener: &TcpListener) -> (Frames, Frames) {
    let (mut client, mut backend) = join(gateway, listener).await;
    send(&mut backend, WELCOME).await;
    receives(&mut client, WELCOME).await;
    send(&mut client, SUBSCRIBE).await;
    receives(&mut backend, SUBSCRIBE).await;
    send(&mut backend, CONFIRM).await;
    receives(&mut client, CONFIRM).await;
    (client, backend)
}

/// Accepts the next connection, on which the subscription is replayed and confirmed to the client again.
async fn subscribed_again(client: &mut Frames, listener: &TcpListener) -> Frames {
    let mut backend = serve(listener).await;
    send(&mut backend, WELCOME).await;
    receives(&mut backend, SUBSCRIBE).await;
    send(client, PERFORM).await;
    send(&mut backend, CONFIRM).await;
    receives(client, CONFIRM).await;
    receives(&mut backend, PERFORM).await;
    backend
}

#[tokio::test]
async fn action_cable_is_subscribed_again_before_its_actions_and_its_client_receives_the_confirmation() {
    let (gateway, listener) = gateway(&["--profile", "actioncable"]).await;
    let (mut client, mut backend) = subscribed(&gateway, &listener).await;
    send(&mut client, PERFORM).await;
    receives(&mut backend, PERFORM).await;
    // Lost while the action is not confirmed: it may have been carried out, and is not sent again.
    drop(backend);
    let mut backend = subscribed_again(&mut client, &listener).await;
    send(&mut backend, "news").await;
    receives(&mut client, "news").await;
}

#[tokio::test]
async fn an_orderly_restart_of_action_cable_keeps_its_clients_too() {
    let (gateway, listener) = gateway(&["--profile", "actioncable"]).await;
    let (mut client, mut backend) = subscribed(&gateway, &listener).await;
    for code in [1000_u16, 1001, 1012] {
        if code == 1000 {
            send(&mut backend, r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#).await;
        }
        backend.write(CLOSE, &code.to_be_bytes()).await;
        backend = subscribed_again(&mut client, &listener).await;
    }
    let unauthorized = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
    send(&mut backend, unauthorized).await;
    backend.write(CLOSE, &1000_u16.to_be_bytes()).await;
    receives(&mut client, unauthorized).await;
    assert_eq!(closed(&mut client).await, 1000);
}

#[tokio::test]
async fn action_cable_does_not_replay_a_channel_that_was_unsubscribed_or_rejected() {
    let (gateway, listener) = gateway(&["--profile", "actioncable"]).await;
    let (mut client, mut backend) = subscribed(&gateway, &listener).await;
    send(&mut client, r#"{"command":"unsubscribe","identifier":"{\"channel\":\"Room\"}"}"#).await;
    assert!(backend.text().await.is_some_and(|text| text.contains("unsubscribe")));
    let refused = r#"{"command":"subscribe","identifier":"refused"}"#;
    send(&mut client, refused).await;
    receives(&mut backend, refused).await;
    let rejection = r#"{"identifier":"refused","type":"reject_subscription"}"#;
    send(&mut backend, rejection).await;
    receives(&mut client, rejection).await;
    drop(backend);
    gateway.wait_for_metric("links_lost_total", 1.0).await;
    send(&mut client, "next").await;
    let mut backend = serve(&listener).await;
    send(&mut backend, WELCOME).await;
    receives(&mut backend, "next").await;
}

#[tokio::test]
async fn messages_that_the_backend_may_have_executed_are_unknown_to_a_session_and_not_sent_again() {
    for profile in ["mqtt", "signalr"] {
        let (gateway, listener) = gateway(&["--profile", profile]).await;
        let client = Client::builder(&gateway.url).unwrap().connect();
        client.send(Message::text("confirmed")).await.unwrap();
        let mut backend = serve(&listener).await;
        receives(&mut backend, "confirmed").await;
        confirm(&mut backend, 1).await;
        client.send(Message::text("order")).await.unwrap();
        receives(&mut backend, "order").await;
        drop(backend);
        let mut backend = serve(&listener).await;
        let gap = loop {
            match soon(client.event()).await {
                Some(Event::Gap(fate)) => break fate,
                Some(_) => {}
                None => panic!("the event does not arrive"),
            }
        };
        // With pong+window the last Pong does not confirm the newest messages.
        let delivered = if profile == "signalr" { 0 } else { 1 };
        assert_eq!((gap.delivered, gap.unknown), (delivered, 2), "{profile}: {gap:?}");
        client.send(Message::text("next")).await.unwrap();
        receives(&mut backend, "next").await;
    }
}

#[tokio::test]
async fn a_kept_session_whose_next_backend_connection_is_refused_is_renewed() {
    let (gateway, listener) = gateway(&["--on-backend-loss", "keep"]).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    let mut backend = serve(&listener).await;
    send(&mut backend, "hello").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("hello")));
    backend.write(CLOSE, &1012_u16.to_be_bytes()).await;
    let (mut refused, _) = soon(listener.accept()).await.unwrap();
    refused.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let mut backend = serve(&listener).await;
    send(&mut backend, "hello again").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("hello again")));
    loop {
        match soon(client.event()).await {
            Some(Event::Gap(_)) => break,
            Some(Event::Ended(end)) => panic!("{:?} {end}", end.code),
            Some(_) => {}
            None => panic!("the event does not arrive"),
        }
    }
}

const MUTATION: &str = r#"{"id":"m","type":"subscribe","payload":{"query":"mutation { pay }"}}"#;

#[tokio::test]
async fn a_graphql_mutation_in_flight_is_answered_before_the_client_is_closed() {
    let (gateway, listener) = gateway(&["--profile", "graphql-transport-ws"]).await;
    for close in [None, Some(1001_u16), Some(1011)] {
        let (mut client, mut backend) = join(&gateway, &listener).await;
        let ticks = r#"{"id":"t","type":"subscribe","payload":{"query":"subscription { ticks }"}}"#;
        for message in [MUTATION, ticks] {
            send(&mut client, message).await;
            receives(&mut backend, message).await;
        }
        match close {
            Some(code) => backend.write(CLOSE, &code.to_be_bytes()).await,
            None => drop(backend),
        }
        let answer = soon(client.text()).await.unwrap();
        assert!(answer.contains(r#""id":"m""#) && answer.contains("OUTCOME_UNKNOWN"), "{answer}");
        assert_eq!(closed(&mut client).await, close.unwrap_or(1012));
    }
}

#[tokio::test]
async fn a_session_gets_the_answer_of_its_mutation_before_the_gap() {
    let (gateway, listener) = gateway(&["--profile", "graphql-transport-ws"]).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text(MUTATION)).await.unwrap();
    let mut backend = serve(&listener).await;
    receives(&mut backend, MUTATION).await;
    drop(backend);
    let answer = soon(client.recv()).await.unwrap();
    assert!(answer.as_text().unwrap().contains("OUTCOME_UNKNOWN"), "{answer:?}");
    loop {
        match soon(client.event()).await {
            Some(Event::Gap(fate)) => break assert_eq!((fate.delivered, fate.unknown), (0, 1)),
            Some(_) => {}
            None => panic!("the event does not arrive"),
        }
    }
}

#[tokio::test]
async fn a_session_gets_the_codes_of_graphql_as_they_are() {
    let (gateway, listener) = gateway(&["--profile", "graphql-transport-ws"]).await;
    let client = Client::builder(&gateway.url).unwrap().connect();
    let mut backend = serve(&listener).await;
    backend.write(CLOSE, &[&4401_u16.to_be_bytes()[..], b"Unauthorized"].concat()).await;
    loop {
        match soon(client.event()).await {
            Some(Event::Ended(end)) => {
                let code = CloseCode::new(4401).map(ReasonCode::Close);
                break assert_eq!((end.code, end.reason.as_str()), (code, "Unauthorized"));
            }
            Some(_) => {}
            None => panic!("the event does not arrive"),
        }
    }
}

#[tokio::test]
async fn a_client_whose_protocol_rejoins_by_itself_is_closed_with_1012() {
    for profile in ["graphql-transport-ws", "phoenix", "mqtt", "engine.io", "signalr", "jupyter", "yjs"] {
        let (gateway, listener) = gateway(&["--profile", profile]).await;
        let (mut client, mut backend) = join(&gateway, &listener).await;
        send(&mut client, "join").await;
        receives(&mut backend, "join").await;
        drop(backend);
        assert_eq!(closed(&mut client).await, 1012, "{profile}");
    }
}

#[test]
fn invalid_rules_and_profiles_are_usage_errors() {
    let serve = |flags: &[&str], expected: &[&str]| {
        check(&[&["serve", "--upstream", "ws://127.0.0.1:1"], flags].concat(), expected);
    };
    serve(&["--profile", "stomp"], &["--profile", "graphql-transport-ws", "engine.io", "yjs"]);
    serve(&["--profile", "mqtt", "--on-backend-loss", "keep"], &["--on-backend-loss keep", "mqtt"]);
    serve(&["--profile", "mqtt", "--confirm", "reply"], &["--confirm reply", "pong+window"]);
    serve(&["--profile", "actioncable", "--delivery", "at-least-once"], &["--delivery", "twice"]);
    serve(&["--profile", "actioncable", "--prologue", "first=1"], &["--prologue", "actioncable"]);
    serve(&["--prologue", "first=1"], &["--prologue", "--on-backend-loss keep"]);
    serve(&["--on-backend-loss", "keep", "--prologue", "last=1"], &["--prologue", "first=N"]);
    serve(&["--on-backend-loss", "keep", "--prologue-hide", "match=("], &["--prologue-hide", "expression"]);
    serve(&["--on-backend-loss", "keep", "--prologue-key", "id"], &["--prologue-key", "/type"]);
    serve(&["--on-backend-loss", "keep", "--prologue-forget", "json=/a"], &["--prologue-key"]);
    check(&["serve", "--profile", "mqtt"], &["--upstream"]);
    check(&["serve", "--prologue", "first=1"], &["--upstream"]);
}
