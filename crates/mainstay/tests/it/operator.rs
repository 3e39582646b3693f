//! What an operator learns of a server's clients: the list, and the timeline. Time is tokio's, which leaps.

use std::net::SocketAddr;
use std::time::Duration;

use mainstay::server::timeline::{Attach, ClientName, Event, Loss, Resource};
use mainstay::server::{ClientInfo, Config, EndCause, Presence};
use mainstay::{Client, CloseCode, Link, Server, SessionId, SessionUpgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Proxy, echo, echo_server, quick, server, until_quiet};

fn url(address: SocketAddr) -> String {
    format!("ws://{address}/echo")
}

/// A client whose session has begun.
async fn client(address: SocketAddr, server: &Server) -> (Client, SessionId) {
    let before = names(server);
    let mut client = Client::builder(&url(address)).unwrap().backoff(quick()).connect();
    client.send("hello").await.unwrap();
    client.recv().await.unwrap();
    let new = names(server).into_iter().find(|name| !before.contains(name)).unwrap();
    let ClientName::Session(id) = new else { panic!("{new}") };
    (client, id)
}

fn names(server: &Server) -> Vec<ClientName> {
    server.list(None, 1000, |_| true).clients.iter().map(|client| client.name).collect()
}

/// What happened to a session, without the addresses.
fn events(server: &Server, id: SessionId) -> Vec<Event> {
    let entries = server.timeline().of(ClientName::Session(id));
    let without_address = entries.iter().map(|entry| match entry.event {
        Event::Attached { epoch, how, .. } => Event::Attached { epoch, address: None, how },
        event => event,
    });
    without_address.collect()
}

fn attached(epoch: u64, how: Attach) -> Event {
    Event::Attached { epoch, address: None, how }
}

/// A connection that completed an opening handshake and sends nothing more.
async fn silent(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 12]).await.unwrap();
    stream
}

#[tokio::test(start_paused = true)]
async fn the_timeline_has_the_evidence_the_return_and_the_end_of_a_session() {
    let (address, server) = echo_server(Config::new().timeline(100)).await;
    let proxy = Proxy::to(address).await;
    let (client, id) = client(proxy.address, &server).await;
    proxy.close();
    until_quiet("it is parked", || server.sessions().parked == 1).await;
    let found = server.client(ClientName::Session(id)).unwrap();
    assert_eq!((found.presence, found.epoch, found.path().as_deref()), (Presence::Parked, 1, Some("/echo")));
    let before = found.away.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let found = server.client(ClientName::Session(id)).unwrap();
    assert!(found.away.unwrap() >= before + Duration::from_secs(7) && found.age >= Duration::from_secs(7));
    proxy.open();
    until_quiet("it is back", || server.sessions().attached == 1).await;
    client.close(CloseCode::NORMAL, "").await;
    until_quiet("it is gone", || names(&server).is_empty()).await;
    let [first, Event::Lost { epoch: 1, why: Loss::Ended | Loss::Reset }, second, last] =
        events(&server, id)[..]
    else {
        panic!("{:?}", events(&server, id))
    };
    assert_eq!((first, second), (attached(1, Attach::New), attached(2, Attach::Resumed)));
    assert!(matches!(last, Event::Ended { cause: EndCause::Client, .. }), "{last:?}");
    let times: Vec<_> = server.timeline().of(ClientName::Session(id)).iter().map(|entry| entry.at).collect();
    assert!(times[2] - times[1] >= Duration::from_secs(7), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_is_noted_with_the_heartbeats_evidence() {
    let (address, server) = echo_server(Config::new().timeline(100)).await;
    let _silent = silent(address).await;
    until_quiet("it is there", || names(&server).len() == 1).await;
    let name = names(&server)[0];
    assert!(matches!(name, ClientName::Plain { .. }), "{name}");
    until_quiet("it is found dead", || names(&server).is_empty()).await;
    let events: Vec<_> = server.timeline().of(name).iter().map(|entry| entry.event).collect();
    let [
        Event::Attached { .. },
        Event::Lost { why: Loss::Dead(_), .. },
        Event::Ended { cause: EndCause::Lost, .. },
    ] = events[..]
    else {
        panic!("{events:?}")
    };
}

#[tokio::test(start_paused = true)]
async fn a_session_that_no_client_comes_back_for_has_expired() {
    let config = Config::new().timeline(100).resume_window(Duration::from_secs(5)).unwrap();
    let (address, server) = echo_server(config).await;
    let proxy = Proxy::to(address).await;
    let (_client, id) = client(proxy.address, &server).await;
    proxy.close();
    until_quiet("it has expired", || server.stats().expired == 1).await;
    assert_eq!(events(&server, id).last(), Some(&Event::Ended { cause: EndCause::Expired, code: None }));
}

#[tokio::test(start_paused = true)]
async fn an_eviction_names_the_resource() {
    let config = Config::new().timeline(100).max_sessions(1).unwrap();
    let (address, server) = echo_server(config).await;
    let proxy = Proxy::to(address).await;
    let (_first, id) = client(proxy.address, &server).await;
    proxy.close();
    until_quiet("it is parked", || server.sessions().parked == 1).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let _second = Client::builder(&url(address)).unwrap().connect();
    until_quiet("another has its place", || server.stats().evicted == 1).await;
    until_quiet("its end is noted", || events(&server, id).len() == 4).await;
    let [.., evicted, ended] = events(&server, id)[..] else { panic!("{:?}", events(&server, id)) };
    assert_eq!(evicted, Event::Evicted(Resource::Place));
    assert_eq!(ended, Event::Ended { cause: EndCause::Evicted, code: None });
}

#[tokio::test(start_paused = true)]
async fn without_a_timeline_nothing_is_noted_and_the_list_works() {
    let (address, server) = echo_server(Config::default()).await;
    let (_client, id) = client(address, &server).await;
    let found = server.client(ClientName::Session(id)).unwrap();
    assert_eq!((found.presence, found.path()), (Presence::Attached, None));
    assert!(!server.timeline().is_on() && server.timeline().of(found.name).is_empty());
    assert_eq!(server.timeline().counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_page_goes_on_where_the_last_one_ended_though_others_have_gone() {
    let (address, server) = echo_server(Config::default()).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Some(client(address, &server).await));
    }
    let first = server.list(None, 2, |_| true);
    assert_eq!(first.clients.len(), 2);
    let gone = clients[3].take().unwrap();
    gone.0.close(CloseCode::NORMAL, "").await;
    until_quiet("one has gone", || names(&server).len() == 5).await;
    let second = server.list(first.next, 100, |_| true);
    let found = first.clients.iter().chain(&second.clients).map(|client| client.name);
    let stayed = clients.iter().flatten().map(|(_, id)| ClientName::Session(*id));
    assert_eq!(found.collect::<Vec<_>>(), stayed.collect::<Vec<_>>());
    assert_eq!(second.next, None);
    assert_eq!(server.list(None, 100, |client| client.epoch > 1).clients.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_the_sessions_of_one_principal_and_of_no_other() {
    let principal_of = |upgrade: &SessionUpgrade| upgrade.uri().query().unwrap_or_default().to_owned();
    let (address, server) = server(Config::default(), move |upgrade| {
        let principal = principal_of(&upgrade);
        upgrade.principal(principal).on_session(echo)
    })
    .await;
    let connect = async |query: &str| {
        let mut client = Client::builder(&format!("{}{query}", url(address))).unwrap().connect();
        client.send("hello").await.unwrap();
        client.recv().await.unwrap();
        client
    };
    let (mut alice, bob, anyone) = (connect("?alice").await, connect("?bob").await, connect("").await);
    let _also_alice = connect("?alice").await;
    let end_alice = || {
        let is_alice = |client: &ClientInfo| *client.peer().principal == *b"alice";
        server.end_clients(is_alice, CloseCode::SESSION_ENDED, "out")
    };
    assert_eq!(end_alice(), 2);
    assert_eq!(alice.recv().await, None);
    for mut stays in [bob, anyone] {
        stays.send("still here").await.unwrap();
        assert!(stays.recv().await.is_some());
    }
    until_quiet("they have gone", || names(&server).len() == 2).await;
    assert_eq!(end_alice(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_plain_client_at_the_place_of_another_has_another_name() {
    let (address, server) = echo_server(Config::default()).await;
    let first = Link::builder(&url(address)).unwrap().connect_once().await.unwrap();
    until_quiet("it is there", || names(&server).len() == 1).await;
    let name = names(&server)[0];
    first.close(CloseCode::NORMAL, "").await;
    until_quiet("it has gone", || names(&server).is_empty()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _second = Link::builder(&url(address)).unwrap().connect_once().await.unwrap();
    until_quiet("another is there", || names(&server).len() == 1).await;
    assert_ne!(names(&server)[0], name);
    assert!(!server.end_client(name, CloseCode::SESSION_ENDED, ""), "the first has gone");
    assert_eq!(server.sessions().attached, 1);
}
