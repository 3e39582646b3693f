//! What a profile does for its client when the backend's connection is lost, with backends that do what the test says.
//!
//! The real clients and servers of each protocol are tried by `cargo xtask test ecosystems`.

use std::time::Duration;

use mainstay::client::Event;
use mainstay::{Client, Message};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::flags::check;
use crate::frames::{CLOSE, Frames, PING, PONG, TEXT};
use crate::support::{Gateway, until};

/// A gateway, and the listener behind it.
async fn gateway(arguments: &[&str]) -> (Gateway, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let arguments = [&["--admin", "127.0.0.1:0"], arguments].concat();
    let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), &arguments);
    (gateway, listener)
}

/// A plain client and its connection to the backend.
async fn join(gateway: &Gateway, listener: &TcpListener) -> (Frames, Frames) {
    let address = gateway.address();
    let (visited, (_, served)) = tokio::join!(Frames::connect(address, "/", ""), Frames::serve(listener));
    assert!(visited.0.starts_with("HTTP/1.1 101"), "{}", visited.0);
    (visited.1, served)
}

/// What a test waits for comes at once, or never.
async fn soon<T>(coming: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), coming).await.expect("it does not come")
}

/// The next connection to the backend.
async fn serve(listener: &TcpListener) -> Frames {
    soon(Frames::serve(listener)).await.1
}

async fn say(frames: &mut Frames, text: &str) {
    frames.write(TEXT, text.as_bytes()).await;
}

/// The next text is this one.
async fn hears(frames: &mut Frames, text: &str) {
    assert_eq!(soon(frames.text()).await.as_deref(), Some(text));
}

/// The next frame but Pings is a Close; its code, 1005 if it has none.
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

/// Answers Pings until one asks about the whole of what was read: from then on it is confirmed.
async fn confirm(backend: &mut Frames, last: u64) {
    loop {
        let (first, payload) = soon(backend.read()).await.unwrap();
        assert_eq!(first, PING, "{:?}", String::from_utf8_lossy(&payload));
        backend.write(PONG, &payload).await;
        if payload == last.to_be_bytes() {
            return;
        }
    }
}

const LOGIN: [&str; 6] =
    ["--on-backend-loss", "keep", "--prologue", "match=^(login|join)", "--prologue-hide", "match=^welcome"];

#[tokio::test]
async fn a_new_backend_connection_is_told_what_it_must_know_before_anything_else() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    say(&mut client, "login").await;
    hears(&mut backend, "login").await;
    say(&mut backend, "welcome").await;
    hears(&mut client, "welcome").await;
    say(&mut client, "join").await;
    hears(&mut backend, "join").await;
    confirm(&mut backend, 2).await;
    say(&mut client, "unconfirmed").await;
    hears(&mut backend, "unconfirmed").await;
    drop(backend);
    say(&mut client, "while away").await;

    let mut backend = serve(&listener).await;
    hears(&mut backend, "login").await;
    say(&mut backend, "news").await;
    hears(&mut client, "news").await;
    say(&mut backend, "welcome").await;
    for expected in ["join", "unconfirmed", "while away"] {
        hears(&mut backend, expected).await;
    }
    say(&mut backend, "flows").await;
    hears(&mut client, "flows").await;
    gateway.reaches("prologues_total{outcome=\"done\"}", 1.0).await;
    assert_eq!(gateway.metric("prologues_total{outcome=\"failed\"}"), 0.0);
}

#[tokio::test]
async fn what_is_recorded_and_what_the_link_keeps_are_each_written_once() {
    let (gateway, listener) = gateway(&[&LOGIN[..], &["--delivery", "at-most-once"]].concat()).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    say(&mut client, "login").await;
    hears(&mut backend, "login").await;
    say(&mut backend, "welcome").await;
    hears(&mut client, "welcome").await;
    say(&mut client, "order").await;
    hears(&mut backend, "order").await;
    drop(backend);
    say(&mut client, "join").await;
    let mut backend = serve(&listener).await;
    hears(&mut backend, "login").await;
    say(&mut backend, "welcome").await;
    // Recorded, and never written before: the link has it, and the replay has not.
    hears(&mut backend, "join").await;
    say(&mut client, "next").await;
    hears(&mut backend, "next").await;
}

#[tokio::test]
async fn a_session_is_told_of_the_replacement_in_its_place_and_not_answered_twice() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    client.send(Message::text("login")).await.unwrap();
    let mut backend = serve(&listener).await;
    hears(&mut backend, "login").await;
    say(&mut backend, "welcome").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("welcome")));
    confirm(&mut backend, 1).await;
    drop(backend);
    let mut backend = serve(&listener).await;
    hears(&mut backend, "login").await;
    say(&mut backend, "welcome").await;
    say(&mut backend, "flows").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("flows")));
    loop {
        match soon(client.event()).await {
            Some(Event::Replaced { count }) => break assert_eq!(count, 1),
            Some(_) => {}
            None => panic!("not told"),
        }
    }
}

#[tokio::test]
async fn a_greeting_is_not_delivered_twice() {
    let (gateway, listener) = gateway(&["--on-backend-loss", "keep", "--prologue-hide", "first=1"]).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    say(&mut backend, "RFB 003.008").await;
    hears(&mut client, "RFB 003.008").await;
    drop(backend);
    say(&mut client, "while away").await;
    let mut backend = serve(&listener).await;
    say(&mut backend, "RFB 003.008").await;
    say(&mut backend, "next").await;
    hears(&mut client, "next").await;
    hears(&mut backend, "while away").await;
}

#[tokio::test]
async fn a_backend_that_refuses_what_it_took_before_ends_a_client_as_renew_does() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    say(&mut client, "login").await;
    hears(&mut backend, "login").await;
    say(&mut backend, "welcome").await;
    hears(&mut client, "welcome").await;
    confirm(&mut backend, 1).await;
    drop(backend);
    let mut backend = serve(&listener).await;
    hears(&mut backend, "login").await;
    backend.write(CLOSE, &[&4401_u16.to_be_bytes()[..], b"token expired"].concat()).await;
    assert_eq!(closed(&mut client).await, 1012, "4401 answers nothing of what the client did");
    gateway.reaches("prologues_total{outcome=\"failed\"}", 1.0).await;
    until("it is told once", || gateway.said().matches("has to begin anew").count() == 1).await;
}

#[tokio::test]
async fn what_a_client_left_behind_goes_behind_the_prologue_and_ends_with_the_backend() {
    for refuses in [false, true] {
        let (gateway, listener) = gateway(&LOGIN).await;
        let (mut client, mut backend) = join(&gateway, &listener).await;
        say(&mut client, "login").await;
        hears(&mut backend, "login").await;
        say(&mut backend, "welcome").await;
        hears(&mut client, "welcome").await;
        confirm(&mut backend, 1).await;
        drop(backend);
        // Or it would be written to the old connection.
        gateway.reaches("links_lost_total", 1.0).await;
        say(&mut client, "left behind").await;
        client.write(CLOSE, &1000_u16.to_be_bytes()).await;
        let mut backend = serve(&listener).await;
        hears(&mut backend, "login").await;
        if refuses {
            backend.write(CLOSE, &4501_u16.to_be_bytes()).await;
        } else {
            say(&mut backend, "welcome").await;
            hears(&mut backend, "left behind").await;
            confirm(&mut backend, 2).await;
        }
        gateway.reaches("queue_bytes{leg=\"backend\"}", 0.0).await;
        let lost = if refuses { 1.0 } else { 0.0 };
        gateway.reaches("link_messages_total{fate=\"not_delivered\"}", lost).await;
    }
}

#[tokio::test]
async fn a_client_that_said_more_than_can_be_told_again_begins_anew() {
    let (gateway, listener) = gateway(&["--on-backend-loss", "keep", "--prologue", "match=."]).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    for number in 0..257 {
        say(&mut client, &number.to_string()).await;
        hears(&mut backend, &number.to_string()).await;
    }
    drop(backend);
    let _backend = serve(&listener).await;
    assert_eq!(closed(&mut client).await, 1012);
    until("it is told", || gateway.said().contains("256 frames")).await;
    gateway.reaches("queue_bytes{leg=\"backend\"}", 0.0).await;
}

#[tokio::test]
async fn what_is_recorded_counts_as_kept() {
    let (gateway, listener) = gateway(&LOGIN).await;
    let (mut client, mut backend) = join(&gateway, &listener).await;
    say(&mut client, "login").await;
    hears(&mut backend, "login").await;
    confirm(&mut backend, 1).await;
    gateway.reaches("queue_bytes{leg=\"backend\"}", 5.0).await;
    client.write(CLOSE, &1000_u16.to_be_bytes()).await;
    gateway.reaches("queue_bytes{leg=\"backend\"}", 0.0).await;
}

const WELCOME: &str = r#"{"type":"welcome"}"#;
const SUBSCRIBE: &str = r#"{"command":"subscribe","identifier":"{\"channel\":\"Room\"}"}"#;
const CONFIRM: &str = r#"{"identifier":"{\"channel\":\"Room\"}","type":"confirm_subscription"}"#;
const PERFORM: &str = r#"{"command":"message","identifier":"{\"channel\":\"Room\"}","data":"{}"}"#;

/// A client of Action Cable that has subscribed.
async fn subscribed(gateway: &Gateway, listener: &TcpListener) -> (Frames, Frames) {
    let (mut client, mut backend) = join(gateway, listener).await;
    say(&mut backend, WELCOME).await;
    hears(&mut client, WELCOME).await;
    say(&mut client, SUBSCRIBE).await;
    hears(&mut backend, SUBSCRIBE).await;
    say(&mut backend, CONFIRM).await;
    hears(&mut client, CONFIRM).await;
    (client, backend)
}

/// The next connection is subscribed, and the client hears of that once more.
async fn subscribed_again(client: &mut Frames, listener: &TcpListener) -> Frames {
    let mut backend = serve(listener).await;
    say(&mut backend, WELCOME).await;
    hears(&mut backend, SUBSCRIBE).await;
    say(client, PERFORM).await;
    say(&mut backend, CONFIRM).await;
    hears(client, CONFIRM).await;
    hears(&mut backend, PERFORM).await;
    backend
}

#[tokio::test]
async fn action_cable_is_subscribed_again_before_its_actions_and_its_client_hears_connected() {
    let (gateway, listener) = gateway(&["--profile", "actioncable"]).await;
    let (mut client, mut backend) = subscribed(&gateway, &listener).await;
    say(&mut client, PERFORM).await;
    hears(&mut backend, PERFORM).await;
    // Lost while the action is not confirmed: it may have been carried out, and is not sent again.
    drop(backend);
    let mut backend = subscribed_again(&mut client, &listener).await;
    say(&mut backend, "news").await;
    hears(&mut client, "news").await;
}

#[tokio::test]
async fn action_cable_that_restarts_in_order_keeps_its_clients_too() {
    let (gateway, listener) = gateway(&["--profile", "actioncable"]).await;
    let (mut client, mut backend) = subscribed(&gateway, &listener).await;
    for code in [1000_u16, 1001, 1012] {
        if code == 1000 {
            say(&mut backend, r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#).await;
        }
        backend.write(CLOSE, &code.to_be_bytes()).await;
        backend = subscribed_again(&mut client, &listener).await;
    }
    let unauthorized = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
    say(&mut backend, unauthorized).await;
    backend.write(CLOSE, &1000_u16.to_be_bytes()).await;
    hears(&mut client, unauthorized).await;
    assert_eq!(closed(&mut client).await, 1000);
}

#[tokio::test]
async fn action_cable_forgets_a_channel_that_was_left_or_rejected() {
    let (gateway, listener) = gateway(&["--profile", "actioncable"]).await;
    let (mut client, mut backend) = subscribed(&gateway, &listener).await;
    say(&mut client, r#"{"command":"unsubscribe","identifier":"{\"channel\":\"Room\"}"}"#).await;
    assert!(backend.text().await.is_some_and(|text| text.contains("unsubscribe")));
    let refused = r#"{"command":"subscribe","identifier":"refused"}"#;
    say(&mut client, refused).await;
    hears(&mut backend, refused).await;
    let rejection = r#"{"identifier":"refused","type":"reject_subscription"}"#;
    say(&mut backend, rejection).await;
    hears(&mut client, rejection).await;
    drop(backend);
    gateway.reaches("links_lost_total", 1.0).await;
    say(&mut client, "next").await;
    let mut backend = serve(&listener).await;
    say(&mut backend, WELCOME).await;
    hears(&mut backend, "next").await;
}

#[tokio::test]
async fn what_the_backend_may_have_carried_out_is_unknown_to_a_session_and_not_sent_again() {
    for profile in ["mqtt", "signalr"] {
        let (gateway, listener) = gateway(&["--profile", profile]).await;
        let client = Client::builder(&gateway.url).unwrap().connect();
        client.send(Message::text("confirmed")).await.unwrap();
        let mut backend = serve(&listener).await;
        hears(&mut backend, "confirmed").await;
        confirm(&mut backend, 1).await;
        client.send(Message::text("order")).await.unwrap();
        hears(&mut backend, "order").await;
        drop(backend);
        let mut backend = serve(&listener).await;
        let gap = loop {
            match soon(client.event()).await {
                Some(Event::Gap(fate)) => break fate,
                Some(_) => {}
                None => panic!("not told"),
            }
        };
        // pong+window does not take the last Pong's word for it.
        let delivered = if profile == "signalr" { 0 } else { 1 };
        assert_eq!((gap.delivered, gap.unknown), (delivered, 2), "{profile}: {gap:?}");
        client.send(Message::text("next")).await.unwrap();
        hears(&mut backend, "next").await;
    }
}

#[tokio::test]
async fn a_kept_session_whose_next_backend_connection_is_refused_begins_anew() {
    let (gateway, listener) = gateway(&["--on-backend-loss", "keep"]).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    let mut backend = serve(&listener).await;
    say(&mut backend, "hello").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("hello")));
    backend.write(CLOSE, &1012_u16.to_be_bytes()).await;
    let (mut refused, _) = soon(listener.accept()).await.unwrap();
    refused.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let mut backend = serve(&listener).await;
    say(&mut backend, "hello again").await;
    assert_eq!(soon(client.recv()).await, Some(Message::text("hello again")));
    loop {
        match soon(client.event()).await {
            Some(Event::Gap(_)) => break,
            Some(Event::Ended { code, reason, .. }) => panic!("{code:?} {reason}"),
            Some(_) => {}
            None => panic!("not told"),
        }
    }
}

const MUTATION: &str = r#"{"id":"m","type":"subscribe","payload":{"query":"mutation { pay }"}}"#;

#[tokio::test]
async fn a_graphql_mutation_in_flight_is_answered_before_the_client_asks_again() {
    let (gateway, listener) = gateway(&["--profile", "graphql-transport-ws"]).await;
    for close in [None, Some(1001_u16), Some(1011)] {
        let (mut client, mut backend) = join(&gateway, &listener).await;
        let ticks = r#"{"id":"t","type":"subscribe","payload":{"query":"subscription { ticks }"}}"#;
        for said in [MUTATION, ticks] {
            say(&mut client, said).await;
            hears(&mut backend, said).await;
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
    hears(&mut backend, MUTATION).await;
    drop(backend);
    let answer = soon(client.recv()).await.unwrap();
    assert!(answer.as_text().unwrap().contains("OUTCOME_UNKNOWN"), "{answer:?}");
    loop {
        match soon(client.event()).await {
            Some(Event::Gap(fate)) => break assert_eq!((fate.delivered, fate.unknown), (0, 1)),
            Some(_) => {}
            None => panic!("not told"),
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
            Some(Event::Ended { code, reason, .. }) => {
                break assert_eq!((code, reason.as_str()), (Some(4401), "Unauthorized"));
            }
            Some(_) => {}
            None => panic!("not told"),
        }
    }
}

#[tokio::test]
async fn a_client_of_a_protocol_that_joins_again_by_itself_is_asked_to() {
    for profile in ["graphql-transport-ws", "phoenix", "mqtt", "engine.io", "signalr", "jupyter", "yjs"] {
        let (gateway, listener) = gateway(&["--profile", profile]).await;
        let (mut client, mut backend) = join(&gateway, &listener).await;
        say(&mut client, "join").await;
        hears(&mut backend, "join").await;
        drop(backend);
        assert_eq!(closed(&mut client).await, 1012, "{profile}");
    }
}

#[test]
fn rules_and_profiles_that_cannot_be_used_are_told() {
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
