//! What a handle does to a session's connection on purpose, and what the client makes of it.

use std::time::Duration;

use mainstay::client::{Event, Lost, Mode, State};
use mainstay::server::{Config, Sender, SessionState};
use mainstay::{Client, CloseCode, Link, Message, Server, Session};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::support::{Proxy, echo, handled, until, until_quiet};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// An echo server, the handles of whose sessions come out in order.
async fn echo_server_with_handles(
    mainstay: Server,
) -> (std::net::SocketAddr, Server, mpsc::UnboundedReceiver<Sender>) {
    let (came, handles) = mpsc::unbounded_channel();
    let (address, mainstay) = handled(mainstay, move |session: Session| {
        came.send(session.sender()).unwrap();
        echo(session)
    })
    .await;
    (address, mainstay, handles)
}

/// A client that was attached, and the server's handle on its session.
async fn attached() -> (Client, Sender, Server) {
    let (address, mainstay, mut handles) = echo_server_with_handles(Server::default()).await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    assert_eq!(client.event().await, Some(is_attached(1)));
    (client, handles.recv().await.unwrap(), mainstay)
}

/// As [`attached`], with something in between that can be closed.
async fn attached_through_a_proxy() -> (Client, Sender, Server, Proxy) {
    let (address, mainstay, mut handles) = echo_server_with_handles(Server::default()).await;
    let proxy = Proxy::to(address).await;
    let client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    assert_eq!(client.event().await, Some(is_attached(1)));
    (client, handles.recv().await.unwrap(), mainstay, proxy)
}

fn is_attached(epoch: u64) -> Event {
    Event::Attached { mode: Mode::Session, resumed: epoch > 1, epoch }
}

async fn comes_back(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text(text)));
}

#[tokio::test]
async fn a_connection_that_is_cut_is_resumed_and_nothing_is_lost() {
    let (mut client, handle, mainstay) = attached().await;
    for epoch in 2..6 {
        // What is under way at the cut is sent again.
        for n in 0..10 {
            client.send(Message::text(n.to_string())).await.unwrap();
        }
        handle.cut();
        let detached = client.event().await;
        let Some(Event::Detached { why: Lost::Broken(_), .. }) = &detached else { panic!("{detached:?}") };
        while client.event().await != Some(is_attached(epoch)) {}
        for n in 0..10 {
            assert_eq!(client.recv().await, Some(Message::text(n.to_string())));
        }
    }
    assert_eq!((mainstay.stats().attached_resumed, mainstay.stats().attached_lost), (4, 0));
}

#[tokio::test]
async fn a_handler_cuts_its_own_connection_before_another_byte_is_written() {
    let (address, _mainstay) = handled(Server::default(), |mut session: Session| async move {
        while let Some(message) = session.recv().await {
            if session.state() == (SessionState::Attached { epoch: 1 }) {
                session.sender().cut();
            }
            session.send(message).await.unwrap();
        }
    })
    .await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    assert_eq!(client.event().await, Some(is_attached(1)));
    comes_back(&mut client, "once").await;
    assert_eq!(client.state(), State::Attached { mode: Mode::Session, epoch: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_held_is_silent_and_then_goes_on() {
    let (mut client, handle, mainstay) = attached().await;
    handle.hold(2 * SECOND);
    let start = Instant::now();
    comes_back(&mut client, "late").await;
    assert!(start.elapsed() >= 2 * SECOND);
    assert_eq!(mainstay.stats().connections_opened, 1);
    comes_back(&mut client, "at once").await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_over_several_heartbeats_is_no_evidence_against_the_client() {
    let every = |interval| mainstay::HeartbeatConfig::every(interval).unwrap();
    let mainstay = Server::new(Config::new().heartbeat(every(10 * SECOND)));
    let (address, mainstay, mut handles) = echo_server_with_handles(mainstay).await;
    // It asks for nothing itself, and so does not mind.
    let link = Link::builder(&format!("ws://{address}/echo")).unwrap().heartbeat(every(HOUR));
    let mut client = link.connect_once().await.unwrap();
    handles.recv().await.unwrap().hold(45 * SECOND);
    tokio::time::sleep(120 * SECOND).await;
    let stats = mainstay.stats();
    assert_eq!((stats.connections, stats.dead_silent + stats.dead_frozen + stats.dead_stalled), (1, 0));
    client.send(Message::text("hello")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("hello")));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_finds_its_connection_held_resumes_on_another_that_is_not() {
    let (mut client, handle, mainstay) = attached().await;
    handle.hold(HOUR);
    let start = Instant::now();
    comes_back(&mut client, "over the next").await;
    // What it sent is unacknowledged for 3 s; a replacement follows a second after the probe.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    while client.event().await != Some(is_attached(2)) {}
    until_quiet("the held one is gone", || mainstay.stats().connections == 1).await;
    comes_back(&mut client, "at once").await;
}

#[tokio::test]
async fn holding_again_replaces_the_time_and_zero_ends_it() {
    let (mut client, handle, _mainstay) = attached().await;
    handle.hold(HOUR);
    handle.hold(Duration::ZERO);
    comes_back(&mut client, "soon").await;
    handle.hold(HOUR);
    handle.cut();
    comes_back(&mut client, "over the next").await;
}

#[tokio::test]
async fn a_hold_does_not_keep_the_connection_of_a_client_that_hung_up() {
    let (_client, handle, mainstay, proxy) = attached_through_a_proxy().await;
    handle.hold(HOUR);
    proxy.close();
    until("the session is parked", || mainstay.stats().connections == 0).await;
    assert_eq!(mainstay.stats().sessions, 1);
}

#[tokio::test]
async fn a_fault_on_a_parked_session_does_not_wait_for_its_next_connection() {
    let (mut client, handle, mainstay, proxy) = attached_through_a_proxy().await;
    proxy.close();
    until("the session is parked", || mainstay.stats().connections == 0).await;
    handle.cut();
    handle.hold(HOUR);
    handle.go_away("restart", Duration::ZERO..=Duration::ZERO, HOUR);
    proxy.open();
    comes_back(&mut client, "hello").await;
    while client.event().await != Some(is_attached(2)) {}
}

#[tokio::test]
async fn a_client_that_gets_goaway_replaces_its_connection_and_keeps_its_session() {
    let (mut client, handle, _mainstay) = attached().await;
    handle.go_away("restart", Duration::ZERO..=Duration::ZERO, HOUR);
    assert_eq!(client.event().await, Some(is_attached(2)), "attached to the next before it left the first");
    comes_back(&mut client, "hello").await;
}

#[tokio::test]
async fn a_plain_session_ends_when_its_connection_is_cut_or_asked_to_leave() {
    let (address, mainstay, mut handles) = echo_server_with_handles(Server::default()).await;
    let mut code = async |end: fn(&Sender)| {
        let url = format!("ws://{address}/echo");
        let mut client = Link::builder(&url).unwrap().connect_once().await.unwrap();
        end(&handles.recv().await.unwrap());
        while client.recv().await.is_some() {}
        until("the session is over", || mainstay.stats().sessions == 0).await;
        loop {
            if let Event::Ended(end) = client.event().await.unwrap() {
                return end.code;
            }
        }
    };
    assert_eq!(code(Sender::cut).await, None);
    assert_eq!(
        code(|handle| handle.go_away("restart", Duration::ZERO..=SECOND, SECOND)).await,
        Some(CloseCode::RESTART.into())
    );
}
