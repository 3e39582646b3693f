//! Clients that open too many WebSockets, or too often, by address, principal and route, also behind a proxy.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use mainstay::client::State;
use mainstay::server::{
    AcceptRate, AdmissionConfig, Config, ForwardedBy, Group, Network, OpeningConfig, Origins, Proxies,
};
use mainstay::{Client, Limits, Message, SessionUpgrade};
use tokio::net::TcpStream;

use super::{Raw, Stage, frame, upgrade};
use crate::support::{Proxy, echo, echo_server, quick, server, until};

/// The tests connect from 127.0.0.1.
fn behind(proxies: &str) -> Proxies {
    Proxies::new(Network::parse(proxies), ForwardedBy::XForwardedFor)
}

fn from(client: &str) -> String {
    format!("X-Forwarded-For: {client}\r\n")
}

fn a_minute(count: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(count)
}

/// The status of the answer and its `Retry-After`.
fn refusal(answer: &str) -> (&str, u64) {
    let status = answer.split(' ').nth(1).unwrap();
    let wait = answer.lines().find_map(|line| line.strip_prefix("retry-after: "));
    (status, wait.unwrap_or_else(|| panic!("{answer}")).parse().unwrap())
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_the_limits_of_its_own_address() {
    let admission = AdmissionConfig { connections: None, per_address: Some(1) };
    let stage = Stage::set(Config::new().admission(admission).proxies(behind("127.0.0.0/8"))).await;
    let mut one = Raw::open(stage.address, &from("203.0.113.1")).await;
    let answer = stage.answer(upgrade(&from("198.51.100.9, 203.0.113.1")).as_bytes()).await;
    assert_eq!(refusal(&answer).0, "429", "{answer}");
    let mut other = Raw::open(stage.address, &from("203.0.113.2")).await;
    one.echoes("x").await;
    other.echoes("x").await;
    assert_eq!(stage.mainstay.stats().refused_address, 1);
    drop(one);
    until("it is gone", || stage.mainstay.stats().connections == 2).await;
    let again = Raw::open(stage.address, &from("203.0.113.1")).await;
    drop((other, again));
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn what_a_client_claims_that_is_no_trusted_proxy_is_not_its_address() {
    let admission = AdmissionConfig { connections: None, per_address: Some(2) };
    let stage = Stage::set(Config::new().admission(admission).proxies(behind("10.0.0.0/8"))).await;
    // The honest client has one.
    let raw = Raw::open(stage.address, &from("203.0.113.1")).await;
    let answer = stage.answer(upgrade(&from("203.0.113.2")).as_bytes()).await;
    assert_eq!(refusal(&answer).0, "429", "{answer}");
    drop(raw);
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn an_address_over_its_limit_resumes_its_sessions_and_opens_no_new_one() {
    let admission = AdmissionConfig { connections: None, per_address: Some(2) };
    let (address, mainstay) = echo_server(Config::new().admission(admission)).await;
    let proxy = Proxy::to(address).await;
    let url = format!("ws://{}/echo", proxy.address);
    let mut client = Client::builder(&url).unwrap().backoff(quick()).connect();
    client.send(Message::text("1")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("1")));
    proxy.close();
    until("it is away", || mainstay.stats().connections == 0).await;
    let taken = [Raw::open(address, "").await, Raw::open(address, "").await];
    proxy.open();
    client.send(Message::text("2")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("2")));
    assert_eq!(mainstay.stats().attached_resumed, 1);
    // Now three are open. A new session is refused in the session's own words, and comes once there is room.
    let mut new = Client::builder(&format!("ws://{address}/echo")).unwrap().backoff(quick()).connect();
    until("it is refused", || mainstay.stats().attach_refused > 0).await;
    assert_eq!(mainstay.stats().refused_address, 1);
    drop((taken, client));
    echoes_once_attached(&mut new).await;
}

/// A server that was just started refuses a key that a client has presented before, so nothing is sent under it.
async fn echoes_once_attached(client: &mut Client) {
    while !matches!(client.state(), State::Attached { .. }) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.send(Message::text("x")).await.unwrap();
    let echoed = tokio::time::timeout(super::LIMIT, client.recv()).await;
    assert_eq!(echoed.expect("it is served"), Some(Message::text("x")));
}

#[tokio::test]
async fn an_address_that_opens_too_often_gets_429_and_the_time_until_it_may() {
    let openings = OpeningConfig { per_address: a_minute(4), ..OpeningConfig::default() };
    let stage = Stage::set(Config::new().openings(openings)).await;
    // The honest client was the first.
    for _ in 0..3 {
        Raw::open(stage.address, "").await.echoes("x").await;
    }
    let answer = stage.answer(upgrade("").as_bytes()).await;
    let (status, wait) = refusal(&answer);
    assert!(status == "429" && (10..=20).contains(&wait), "{answer}");
    assert_eq!(stage.mainstay.stats().refused_address_rate, 1);
    // Another limit holds at once.
    stage.mainstay.set_limits(AdmissionConfig::default(), OpeningConfig::default());
    stage.open().await.echoes("x").await;
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_crowd_of_new_sessions_is_refused_in_band_and_comes_in_one_after_the_other() {
    let rate = AcceptRate::PerSecond(NonZeroU32::new(20).unwrap());
    let (address, mainstay) =
        echo_server(Config::new().openings(OpeningConfig { rate, ..OpeningConfig::default() })).await;
    let url = format!("ws://{address}/echo");
    let mut clients: Vec<_> = (0..60).map(|_| Client::builder(&url).unwrap().connect()).collect();
    for client in &mut clients {
        echoes_once_attached(client).await;
    }
    let stats = mainstay.stats();
    assert!(stats.refused_rate >= 1 && stats.attached_new == 60, "{stats:?}");
    assert_eq!(mainstay.accept_rate(), Some(20.0));
}

/// Accepts a client as the principal that its header says.
fn by_principal(upgrade: SessionUpgrade, group: &Group) -> Response {
    let principal = upgrade.headers().get("x-user").map(|user| user.as_bytes().to_vec());
    let upgrade = upgrade.principal(principal.unwrap_or_default()).group(group);
    match upgrade.judge() {
        Ok(upgrade) => upgrade.on_session(echo),
        Err(rejection) => rejection.into_response(),
    }
}

#[tokio::test]
async fn a_principal_and_a_route_have_limits_of_their_own() {
    let openings = OpeningConfig { connections_per_principal: Some(1), ..OpeningConfig::default() };
    let group = Group::new(OpeningConfig { connections: Some(3), ..OpeningConfig::default() });
    let of_route = group.clone();
    let (address, mainstay) =
        server(Config::new().openings(openings), move |upgrade| by_principal(upgrade, &of_route)).await;
    let status = async |user: &str| {
        let (stage, request) = (address, upgrade(&format!("X-User: {user}\r\n")));
        let mut stream = TcpStream::connect(stage).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut head).await.unwrap();
        (String::from_utf8_lossy(&head[9..]).into_owned(), stream)
    };
    let (ann, first) = status("ann").await;
    assert_eq!((ann.as_str(), status("ann").await.0.as_str()), ("101", "429"));
    let (others, held) = (status("bob").await, status("").await);
    assert_eq!((others.0.as_str(), held.0.as_str()), ("101", "101"));
    assert_eq!((status("eve").await.0.as_str(), group.connections()), ("503", 3));
    let stats = mainstay.stats();
    assert_eq!((stats.refused_principal, stats.refused_route), (1, 1));
    drop((first, others, held));
    until("all are gone", || group.connections() == 0).await;
    assert_eq!(status("ann").await.0, "101");
}

/// A route where a message has at most 10 bytes, only pages of one origin may connect, and messages may be compressed.
fn with_own_settings(upgrade: SessionUpgrade) -> Response {
    let limits = Limits { max_message: 10, ..Limits::default() };
    let origins = Origins::Only(vec!["https://example.com".to_owned()]);
    let upgrade = match upgrade.origins(&origins) {
        Ok(upgrade) => upgrade.limits(limits).unwrap().deflate(true),
        Err(rejection) => return rejection.into_response(),
    };
    upgrade.resume_window(Duration::ZERO).unwrap().on_session(echo)
}

#[tokio::test]
async fn a_route_has_limits_compression_origins_and_a_resume_window_of_its_own() {
    let (address, mainstay) = server(Config::new().origins(Origins::Any), with_own_settings).await;
    let mut raw = Raw::open(address, "Sec-WebSocket-Extensions: permessage-deflate\r\n").await;
    assert!(raw.head.contains("permessage-deflate"), "{}", raw.head);
    raw.write(&frame(0x82, &[0; 11])).await;
    assert_eq!(raw.close_code().await, Some(1009));
    let other = upgrade("Origin: https://evil.example\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, other.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 403");
    assert_eq!(mainstay.stats().refused_origin, 1);
    let proxy = Proxy::to(address).await;
    let url = format!("ws://{}/echo", proxy.address);
    let mut client = Client::builder(&url).unwrap().backoff(quick()).connect();
    client.send(Message::text("x")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("x")));
    let sent = client.try_send(Message::text("more than ten"));
    assert!(
        matches!(sent, Err(mainstay::SendError::TooLarge { limit: 10, .. })),
        "WELCOME announced it: {sent:?}"
    );
    proxy.cut();
    until("the session is not kept", || mainstay.stats().expired == 1).await;
}
