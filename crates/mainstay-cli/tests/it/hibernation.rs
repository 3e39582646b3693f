//! Hibernation: the link of an idle client is closed, and opened again for the next message.

use std::net::SocketAddr;
use std::time::Duration;

use mainstay::client::{Event, Incoming};
use mainstay::{Client, Message};
use tokio::net::TcpListener;

use crate::frames::{CLOSE, Frames, PING, PONG, TEXT};
use crate::support::{Gateway, Proxy, mainstay};

/// A gateway whose idle clients hibernate, and its backend.
async fn gateway(profile: &str) -> (Gateway, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nadmin.listen = \"127.0.0.1:0\"\n[routes.r.upstream]\naddresses = [\"ws://{}\"]\n\
         hibernate-after = \"1s\"\n[routes.r.profile]\n{profile}\n",
        listener.local_addr().unwrap()
    );
    let name = format!("mainstay-idle-{}-{:?}.toml", std::process::id(), std::thread::current().id());
    let file = std::env::temp_dir().join(name);
    std::fs::write(&file, text).unwrap();
    let gateway = Gateway::begin(mainstay(&["serve", "--config", file.to_str().unwrap()]));
    std::fs::remove_file(file).unwrap();
    (gateway, listener)
}

const LOGIN: &str =
    "on-backend-loss = \"keep\"\nprologue.record = [\"first=1\"]\nprologue.hide = [\"first=1\"]";

/// Reads the Close of a connection that hibernates, answers it, and expects the end.
async fn hibernates(mut backend: Frames) {
    loop {
        match backend.read().await.unwrap() {
            (CLOSE, payload) => {
                assert_eq!(payload, [&1001_u16.to_be_bytes()[..], b"hibernating"].concat());
                backend.write(CLOSE, &payload).await;
                return assert!(backend.read().await.is_err(), "the gateway ends the connection");
            }
            (PING, payload) => backend.write(PONG, &payload).await,
            other => panic!("{other:?}"),
        }
    }
}

/// A session that has logged in.
async fn logged_in(address: SocketAddr, listener: &TcpListener) -> (Client, Frames) {
    let mut session = Client::builder(&format!("ws://{address}")).unwrap().connect();
    session.send(Message::text("login")).await.unwrap();
    let (_, mut backend) = Frames::serve(listener).await;
    assert_eq!(backend.text().await.as_deref(), Some("login"));
    backend.write(TEXT, b"welcome").await;
    assert_eq!(session.recv().await, Some(Message::text("welcome")));
    (session, backend)
}

#[tokio::test]
async fn an_idle_session_needs_no_connection_to_the_backend_and_its_next_message_opens_one_with_the_prologue()
{
    let (gateway, listener) = gateway(LOGIN).await;
    let (mut session, backend) = logged_in(gateway.address(), &listener).await;
    hibernates(backend).await;
    gateway.wait_for_metric("links_hibernated_total{route=\"r\"}", 1.0).await;
    assert_eq!(gateway.metric("links{route=\"r\"}"), 0.0);
    assert_eq!(gateway.metric("links_lost_total{route=\"r\"}"), 0.0);
    assert_eq!(gateway.metric("sessions"), 1.0, "the session is as it was");
    session.send(Message::text("question")).await.unwrap();
    let (_, mut backend) = Frames::serve(&listener).await;
    assert_eq!(backend.text().await.as_deref(), Some("login"), "the prologue comes first");
    backend.write(TEXT, b"welcome").await;
    assert_eq!(backend.text().await.as_deref(), Some("question"));
    backend.write(TEXT, b"answer").await;
    // The mark says that messages of the backend may be missing; the second welcome is hidden.
    assert_eq!(session.recv_any().await, Some(Incoming::Replaced { count: 1 }));
    assert_eq!(session.recv().await, Some(Message::text("answer")));
    hibernates(backend).await;
}

#[tokio::test]
async fn a_parked_session_hibernates_and_the_return_of_its_client_opens_the_connection() {
    let (gateway, listener) = gateway(LOGIN).await;
    let proxy = Proxy::to(gateway.address());
    let (session, backend) = logged_in(proxy.address, &listener).await;
    proxy.cut();
    gateway.wait_for_metric("sessions_by_state{state=\"parked\"}", 1.0).await;
    hibernates(backend).await;
    proxy.restore();
    let (_, mut backend) = Frames::serve(&listener).await;
    assert_eq!(backend.text().await.as_deref(), Some("login"), "without a message of the client");
    let states = session.events();
    drop(session);
    while let Some(event) = states.next().await {
        assert!(!matches!(event, Event::Gap(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_message_that_the_backend_has_not_confirmed_keeps_the_connection() {
    let (gateway, listener) = gateway("on-backend-loss = \"keep\"").await;
    let session = Client::builder(&gateway.url).unwrap().connect();
    let (_, mut backend) = Frames::serve(&listener).await;
    session.send(Message::text("unconfirmed")).await.unwrap();
    // Far longer than an idle client keeps its connection. It might be lost with it.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(gateway.metric("links{route=\"r\"}"), 1.0);
    assert_eq!(backend.text().await.as_deref(), Some("unconfirmed"));
    hibernates(backend).await;
}

#[tokio::test]
async fn a_plain_client_hibernates_too_and_its_close_needs_no_connection() {
    let (gateway, listener) = gateway("on-backend-loss = \"keep\"").await;
    let (connected, served) =
        tokio::join!(Frames::connect(gateway.address(), "/", ""), Frames::serve(&listener));
    let mut client = connected.1;
    hibernates(served.1).await;
    client.write(TEXT, b"awake").await;
    let (_, mut backend) = Frames::serve(&listener).await;
    assert_eq!(backend.text().await.as_deref(), Some("awake"));
    hibernates(backend).await;
    client.write(CLOSE, &1000_u16.to_be_bytes()).await;
    assert_eq!(client.read().await.unwrap(), (CLOSE, 1000_u16.to_be_bytes().to_vec()));
    gateway.wait_for_metric("connections", 0.0).await;
}
