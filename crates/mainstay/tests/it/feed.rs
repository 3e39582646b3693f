//! A client of a feed: it logs in on each connection, replaces one that has fallen silent, and connects through a proxy.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use mainstay::client::{Connector, Event, Incoming, Lost, Proxy};
use mainstay::server::Config;
use mainstay::{Client, Link, Message, Server, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{echo_server, handled, quick, server, until};

type Received = Arc<Mutex<Vec<Vec<String>>>>;

/// A server that records the messages of each connection, and cuts the first one after its first message.
async fn listener() -> (String, Received) {
    let received = Received::default();
    let list = Arc::clone(&received);
    let (address, _mainstay) = handled(Server::default(), move |mut session: Session| {
        let list = Arc::clone(&list);
        async move {
            let n = {
                let mut list = list.lock().unwrap();
                list.push(Vec::new());
                list.len() - 1
            };
            while let Some(message) = session.recv().await {
                list.lock().unwrap()[n].push(message.as_text().unwrap().to_owned());
                if n == 0 {
                    session.sender().cut();
                }
            }
        }
    })
    .await;
    (format!("ws://{address}/echo"), received)
}

#[tokio::test]
async fn a_greeting_is_made_anew_for_each_connection_and_is_the_first_that_it_carries() {
    let (url, received) = listener().await;
    let made = Arc::new(AtomicU32::new(0));
    let link = Link::builder(&url)
        .unwrap()
        .backoff(quick())
        .greeting(move || {
            let n = made.fetch_add(1, Ordering::Relaxed) + 1;
            async move { Ok([format!("auth {n}"), "subscribe".to_owned()]) }
        })
        .connect();
    while !matches!(link.event().await, Some(Event::Detached { .. })) {}
    for n in 0..3 {
        link.send(format!("order {n}")).await.unwrap();
    }
    until("all have come", || received.lock().unwrap().get(1).is_some_and(|second| second.len() == 5)).await;
    let received = received.lock().unwrap();
    assert_eq!(received[0][0], "auth 1");
    assert_eq!(received[1], ["auth 2", "subscribe", "order 0", "order 1", "order 2"]);
}

#[tokio::test]
async fn a_greeting_that_cannot_be_made_is_an_attempt_that_failed() {
    let (url, received) = listener().await;
    let made = AtomicU32::new(0);
    let link = Link::builder(&url).unwrap().backoff(quick()).greeting(move || {
        let is_first = made.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if is_first { Err("no token today".into()) } else { Ok(["auth"]) } }
    });
    let link = link.connect();
    let Some(Event::AttemptFailed { why, .. }) = link.event().await else { panic!("it failed") };
    assert_eq!(why, Lost::NotOpened("the greeting could not be made: no token today".into()));
    until("the next one came about", || received.lock().unwrap().iter().any(|one| one == &["auth"])).await;
}

#[tokio::test]
async fn a_session_gets_no_greeting() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let url = format!("ws://{address}/echo");
    let mut client = Client::builder(&url).unwrap().greeting(|| async { Ok(["auth"]) }).connect();
    client.send("x").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("x")));
}

#[tokio::test]
async fn a_connection_that_has_fallen_silent_is_replaced() {
    let (address, mainstay) = handled(Server::default(), |mut session: Session| async move {
        session.send("one tick").await.unwrap();
        while session.recv().await.is_some() {}
    })
    .await;
    let link = Link::builder(&format!("ws://{address}/echo")).unwrap().backoff(quick());
    let mut link = link.silence(Duration::from_millis(300)).unwrap().connect();
    let mut ticks = 0;
    while ticks < 3 {
        ticks += u32::from(matches!(link.recv_any().await, Some(Incoming::Message(_))));
    }
    let quiet = |event| matches!(event, Some(Event::Detached { why: Lost::NoMessage { .. }, .. }));
    while !quiet(link.event().await) {}
    assert!(mainstay.stats().connections_opened >= 3);
    for limit in [Duration::ZERO, Duration::MAX] {
        let error = Link::builder("ws://h/").unwrap().silence(limit).unwrap_err();
        assert_eq!(error.field, "silence");
    }
}

#[tokio::test]
async fn reconnect_replaces_a_connection_that_works_and_the_queue_moves_to_the_new_one() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let url = format!("ws://{address}/echo");
    let mut link = Link::builder(&url).unwrap().connect();
    let mut client = Client::builder(&url).unwrap().connect();
    for round in 0..3 {
        link.send(format!("{round}")).await.unwrap();
        client.send(format!("{round}")).await.unwrap();
        loop {
            match link.recv_any().await.unwrap() {
                Incoming::Message(message) => break assert_eq!(message, Message::text(format!("{round}"))),
                other => assert!(matches!(other, Incoming::FreshPeer { .. }), "{other:?}"),
            }
        }
        assert_eq!(client.recv_any().await, Some(Incoming::Message(Message::text(format!("{round}")))));
        until("all is confirmed", || link.sender().kept_bytes() + client.sender().kept_bytes() == 0).await;
        link.reconnect();
        client.sender().reconnect();
    }
    until("each dialled again", || mainstay.stats().connections_opened == 8).await;
    assert_eq!(mainstay.stats().attached_new, 1, "one session");
}

#[tokio::test]
async fn the_header_fields_of_the_response_can_be_read() {
    let (address, _mainstay) = server(Config::default(), |upgrade| {
        let mut response = upgrade.on_session(crate::support::echo);
        response.headers_mut().insert("x-limit", HeaderValue::from_static("7"));
        response
    })
    .await;
    let url = format!("ws://{address}/echo");
    let client = Client::builder(&url).unwrap().connect_once().await.unwrap();
    assert_eq!(client.response_headers().unwrap()["x-limit"], "7");
    let client = Client::builder(&url).unwrap().keep_response(false).connect_once().await.unwrap();
    assert_eq!(client.response_headers(), None);
}

/// A proxy that opens tunnels for these credentials, and the requests that it received.
async fn connect_proxy(credentials: &'static str) -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let list = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut down, _) = listener.accept().await.unwrap();
            let list = Arc::clone(&list);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(down.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let to = head.split(' ').nth(1).unwrap().to_owned();
                list.lock().unwrap().push(head.clone());
                if !head.contains(credentials) {
                    return down.write_all(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                }
                let mut up = TcpStream::connect(to).await.unwrap();
                down.write_all(b"HTTP/1.1 200 Fine\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut down, &mut up).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_server_is_reached_through_a_proxy_that_asks_for_credentials() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let (proxy, asked) = connect_proxy("Proxy-Authorization: Basic YTpi\r\n").await;
    let url = format!("ws://{address}/echo");
    let through = |user: &str| Proxy::at(&format!("http://{user}{proxy}")).unwrap();
    let mut client = Client::builder(&url).unwrap().proxy(through("a:b@")).connect();
    client.send("x").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("x")));
    assert!(
        asked.lock().unwrap()[0].starts_with(&format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n"))
    );
    let refused = Link::builder(&url).unwrap().proxy(through("")).connect_once().await.unwrap_err();
    assert!(refused.to_string().contains("it asks for a user and a password"), "{refused}");
    // An excepted server is reached directly.
    let count = asked.lock().unwrap().len();
    let direct = Link::builder(&url).unwrap().proxy(through("").except("127.0.0.0/8")).connect_once().await;
    drop(direct.unwrap());
    assert_eq!((asked.lock().unwrap().len(), mainstay.stats().connections_opened), (count, 2));
    let closed_port = Proxy::at("http://127.0.0.1:1").unwrap();
    let error = Link::builder(&url).unwrap().proxy(closed_port).connect_once().await.unwrap_err();
    assert!(error.to_string().contains("the proxy 127.0.0.1:1"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_client_and_a_server_meet_over_a_duplex_in_paused_time() {
    let mainstay = Server::default();
    let route = axum::routing::any(|upgrade: mainstay::SessionUpgrade| async {
        upgrade.on_session(crate::support::echo)
    });
    let app = axum::Router::new().route("/", route).with_state(mainstay.clone());
    let connector = Connector::default().open_with(move |url| {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let service = hyper_util::service::TowerToHyperService::new(app.clone());
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(hyper_util::rt::TokioIo::new(theirs), service)
            .with_upgrades();
        tokio::spawn(serving);
        async move {
            assert_eq!(url, "ws://test/");
            Ok(ours)
        }
    });
    let mut client = Client::builder("ws://test/").unwrap().connector(connector).connect();
    client.send("x").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("x")));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    client.reconnect();
    client.send("an hour later").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("an hour later")));
    assert_eq!(mainstay.stats().attached_new, 1, "one session");
}
