//! A link to a plain server, over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use mainstay::client::{Connector, Event, Report, Request, State};
use mainstay::server::Config;
use mainstay::{CloseCode, HeartbeatConfig, Link, Message, Outcome, SendError, WhenFull};

use crate::support::{echo_server, silence};

async fn reports(link: &Link) -> Vec<Report> {
    let mut reports = Vec::new();
    while let Some(event) = link.event().await {
        if let Event::Report(report) = event {
            reports.push(report);
        }
    }
    reports
}

#[tokio::test]
async fn a_receipt_resolves_when_the_peers_websocket_stack_has_the_message() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    // The first heartbeat comes at a random moment within its interval: with 25 s it would fall into this test once in a
    // hundred runs.
    let heartbeat = HeartbeatConfig::every(Duration::from_secs(3600)).unwrap();
    let link = Link::builder(&format!("ws://{address}/echo")).unwrap().heartbeat(heartbeat).connect();
    let tracked = link.send_tracked(Message::text("x")).await.unwrap();
    assert_eq!(tracked.await, Outcome::Delivered);
    assert!(link.rtt().is_none(), "only a heartbeat measures it");
    link.close(CloseCode::NORMAL, "").await;
    assert_eq!(reports(&link).await, []);
}

#[test]
fn a_pause_between_pings_is_at_most_a_minute() {
    let link =
        |pause| Link::builder("ws://127.0.0.1:1/").unwrap().min_ping_interval(Duration::from_secs(pause));
    assert!(link(60).is_ok());
    assert_eq!(link(61).err().map(|error| error.field), Some("confirm.min_ping_interval"));
}

#[tokio::test(start_paused = true)]
async fn a_link_that_ends_before_it_connects_reports_every_message_as_not_delivered() {
    let (_listener, url) = silence().await;
    let link = Link::builder(&url).unwrap().connect();
    let first = link.send_tracked(Message::text("a")).await.unwrap();
    let second = link.send_tracked(Message::text("b")).await.unwrap();
    link.close(CloseCode::NORMAL, "").await;
    assert_eq!((first.await, second.await), (Outcome::NotDelivered, Outcome::NotDelivered));
    assert_eq!(link.state(), State::Ended);
    assert_eq!(reports(&link).await, [Report::NotDelivered(1..=2)]);
}

#[tokio::test]
async fn a_full_queue_waits_fails_or_drops_the_oldest_as_configured() {
    let (_listener, url) = silence().await;
    let link =
        |when_full| Link::builder(&url).unwrap().queue(2, 1024).unwrap().when_full(when_full).connect();
    let waiting = link(WhenFull::Wait);
    let failing = link(WhenFull::Fail);
    let dropping = link(WhenFull::DropOldest);
    for link in [&waiting, &failing, &dropping] {
        link.send(Message::text("a")).await.unwrap();
        link.send(Message::text("b")).await.unwrap();
    }
    let third = Message::text("c");
    let sending = waiting.send(third.clone());
    let waited = tokio::time::timeout(Duration::from_millis(50), sending).await;
    assert!(waited.is_err(), "there is no room");
    assert_eq!(failing.send(third.clone()).await, Err(SendError::Full(third.clone())));
    let mut tracked = Vec::new();
    for _ in 0..3 {
        tracked.push(dropping.send_tracked(third.clone()).await.unwrap());
    }
    assert_eq!(tracked.remove(0).await, Outcome::NotDelivered);
    assert_eq!(dropping.event().await, Some(Event::Report(Report::NotDelivered(1..=3))), "one report");
}

#[tokio::test]
async fn a_link_at_rest_has_no_connection_and_its_next_message_opens_one() {
    let (address, _server) = echo_server(Config::default()).await;
    let mut link = Link::builder(&format!("ws://{address}/echo")).unwrap().connect();
    assert!(!link.rest(CloseCode::GOING_AWAY, "idle"), "it has no connection yet");
    let tracked = link.send_tracked(Message::text("one")).await.unwrap();
    assert_eq!((tracked.await, link.recv().await), (Outcome::Delivered, Some(Message::text("one"))));
    assert!(link.sender().rest(CloseCode::GOING_AWAY, "idle"));
    let events = link.events();
    while !matches!(events.next().await, Some(Event::Rested)) {}
    assert_eq!(link.state(), State::Resting);
    link.send(Message::text("two")).await.unwrap();
    assert_eq!(link.recv().await, Some(Message::text("two")));
    link.close(CloseCode::NORMAL, "").await;
    assert_eq!(reports(&link).await, []);
}

#[tokio::test]
async fn each_attempt_may_have_an_address_and_a_connector_of_its_own() {
    let (address, _server) = echo_server(Config::default()).await;
    let connector = Connector::default().open_with(move |_| tokio::net::TcpStream::connect(address));
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&attempts);
    let request = move || {
        let (connector, first) = (connector.clone(), counted.fetch_add(1, Relaxed) == 0);
        async move {
            // Nothing listens at the first one; the second is reached in another way.
            let url = if first { "ws://127.0.0.1:1/echo" } else { "ws://elsewhere.invalid/echo" };
            let request = Request::default().url(url.parse()?);
            Ok(if first { request } else { request.connector(connector) })
        }
    };
    let mut link = Link::builder("ws://127.0.0.1:1/").unwrap().request(request).connect();
    link.send(Message::text("there")).await.unwrap();
    assert_eq!((link.recv().await, attempts.load(Relaxed)), (Some(Message::text("there")), 2));
}
