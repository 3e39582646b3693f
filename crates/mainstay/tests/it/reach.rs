//! How a client reaches a server, and the responses that open no WebSocket.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{AUTHORIZATION, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE};
use mainstay::client::{
    Connector, Event, FailureKind, Lost, ReasonCode, Rejection, ServerStream, State, Upgraded,
};
use mainstay::server::Config;
use mainstay::{Client, CloseCode, Link, Message, Outcome, SessionUpgrade};
use mainstay_proto::ws::handshake::Offer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::support::{Proxy, echo, echo_server, server, until};

/// The path of a Unix socket. Its drop removes the socket.
struct SocketPath(PathBuf);

impl SocketPath {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mainstay-{}-{name}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(path)
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Forwards connections at a Unix socket to `to`.
fn unix_in_front_of(path: &SocketPath, to: std::net::SocketAddr) {
    let listener = UnixListener::bind(&path.0).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut down, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut up = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut down, &mut up).await;
            });
        }
    });
}

#[tokio::test]
async fn clients_and_links_reach_a_server_by_its_unix_socket() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let path = SocketPath::new("echo");
    unix_in_front_of(&path, address);
    let url = format!("unix:{}:/echo", path.0.display());
    let mut client = Client::builder(&url).unwrap().connect_once().await.unwrap();
    let mut link = Link::builder(&url).unwrap().connect_once().await.unwrap();
    for message in [Message::text("x"), Message::binary(vec![7; 60_000])] {
        client.send(message.clone()).await.unwrap();
        assert_eq!(client.recv().await.as_ref(), Some(&message));
        let tracked = link.send_tracked(message.clone()).await.unwrap();
        assert_eq!(link.recv().await.as_ref(), Some(&message));
        assert_eq!(tracked.await, Outcome::Delivered);
    }
    client.close(CloseCode::NORMAL, "").await;
    assert_eq!(client.recv().await, None);
    // Or by a connector with the socket.
    let connector = Connector::default().unix(&path.0);
    let link = Link::builder("ws://any.example/echo").unwrap().connector(connector).connect_once().await;
    assert!(link.is_ok());
}

#[tokio::test]
async fn a_failure_to_reach_a_server_has_a_kind() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let path = SocketPath::new("no-listener");
    let unix = format!("unix:{}", path.0.display());
    for (url, kind) in [
        (format!("ws://{closed}/"), FailureKind::Refused),
        (unix, FailureKind::Refused),
        ("ws://no-such-host.invalid/".to_owned(), FailureKind::UnknownName),
    ] {
        let client = Link::builder(&url).unwrap().connect();
        let Some(Event::AttemptFailed { why: Lost::NotConnected(failure), .. }) = client.event().await else {
            panic!("{url}");
        };
        assert_eq!(failure.kind, kind, "{failure}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_attempt_at_an_address_that_never_answers_ends_after_the_connectors_timeout() {
    // Its queue of connections has room for one and is full, so the system drops further requests to connect.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _full = TcpStream::connect(address).await.unwrap();
    let connector = Connector::default().timeout(Duration::from_millis(100)).unwrap();
    let failure = connector.connect(&format!("http://{address}/").parse().unwrap()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut, "{failure}");
    assert!(failure.to_string().contains(&address.to_string()), "{failure}");
}

#[tokio::test]
async fn a_connector_opens_streams_for_other_requests() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let url = format!("http://{address}/echo").parse().unwrap();
    let mut stream = Connector::default().connect(&url).await.unwrap();
    stream.write_all(b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

/// A server that answers each request with the next of these responses, and shows the last request.
async fn scripted(answers: Vec<Vec<u8>>) -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(String::new()));
    let show = Arc::clone(&seen);
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                socket.read_buf(&mut request).await.unwrap();
            }
            *show.lock().unwrap() = String::from_utf8(request).unwrap();
            socket.write_all(&answer).await.unwrap();
        }
    });
    (url, seen)
}

async fn refused(answer: &str) -> (Option<u64>, Rejection) {
    let (url, _) = scripted(vec![answer.as_bytes().to_vec()]).await;
    let error = Client::builder(&url).unwrap().connect_once().await.unwrap_err();
    (error.code().map(ReasonCode::get), error.rejection().unwrap().clone())
}

#[tokio::test]
async fn a_rejection_has_the_header_fields_and_the_body_of_the_response() {
    let (code, rejection) = refused(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\n\
         Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nlog in\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!((code, rejection.status.as_u16()), (Some(401), 401));
    assert_eq!(rejection.headers[WWW_AUTHENTICATE], "Basic");
    assert_eq!(rejection.headers.get_all(SET_COOKIE).iter().count(), 2);
    assert_eq!((rejection.body.as_ref(), rejection.is_complete), (&b"log in"[..], true));
    let (code, rejection) =
        refused("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!((code, rejection.headers["location"].to_str().unwrap()), (Some(302), "/login"));
}

#[tokio::test]
async fn a_rejection_for_now_can_be_read_beside_the_attempt_that_failed() {
    for (answer, retry_after) in [
        ("HTTP/1.1 429 Slow down\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nwait", Some(7)),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nwait", None),
        ("HTTP/1.1 503 Later\r\nContent-Length: 4\r\n\r\nwait", None),
    ] {
        let (url, _) = scripted(vec![answer.into()]).await;
        let client = Link::builder(&url).unwrap().connect();
        let Some(Event::AttemptFailed { why, .. }) = client.event().await else { panic!("{answer}") };
        let asked = matches!(why, Lost::Unavailable { retry_after, .. } if retry_after == Some(Duration::from_secs(7)));
        assert_eq!(asked, retry_after.is_some(), "{why:?}");
        let rejection = client.rejection().unwrap();
        assert_eq!(
            (rejection.body.as_ref(), rejection.headers.get(RETRY_AFTER).is_some()),
            (&b"wait"[..], asked)
        );
    }
}

#[tokio::test]
async fn the_application_chooses_the_statuses_that_end_a_client() {
    let (address, _mainstay) = server(Config::default(), |upgrade: SessionUpgrade| {
        if upgrade.headers().get(AUTHORIZATION).is_none_or(|token| token == "0") {
            return axum::response::IntoResponse::into_response(http::StatusCode::UNAUTHORIZED);
        }
        upgrade.on_session(echo)
    })
    .await;
    let next = std::sync::atomic::AtomicU32::new(0);
    let client = Client::builder(&format!("ws://{address}/echo"))
        .unwrap()
        .request(move || {
            let token = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string().parse().unwrap();
            let mut request = mainstay::client::Request::default();
            request.headers = http::HeaderMap::from_iter([(AUTHORIZATION, token)]);
            async { Ok(request) }
        })
        .give_up(|status| status == http::StatusCode::FORBIDDEN)
        .connect();
    assert!(matches!(client.event().await, Some(Event::AttemptFailed { .. })));
    assert_eq!(client.rejection().map(|rejection| rejection.status), Some(http::StatusCode::UNAUTHORIZED));
    assert!(matches!(client.event().await, Some(Event::Attached { .. })));
    assert_eq!(client.rejection(), None, "the server did not respond this time");
    let (url, _) = scripted(vec![b"HTTP/1.1 503 Never\r\nContent-Length: 0\r\n\r\n".to_vec()]).await;
    let client = Client::builder(&url).unwrap().give_up(|_| true).connect();
    let Some(Event::Ended(end)) = client.event().await else { panic!("it ends") };
    assert_eq!(end.code, Some(http::StatusCode::SERVICE_UNAVAILABLE.into()));
}

#[tokio::test]
async fn a_request_spells_field_names_as_the_rfc_does_and_a_response_may_have_many_fields() {
    let fields: String = (0..100).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let link = Link::builder(&url).unwrap().connect();
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        socket.read_buf(&mut request).await.unwrap();
    }
    let request = String::from_utf8(request).unwrap();
    for name in
        ["Host: ", "Upgrade: websocket\r\n", "Connection: Upgrade\r\n", "Sec-WebSocket-Version: 13\r\n"]
    {
        assert!(request.contains(name), "{request}");
    }
    let (_, key) = request.split_once("\r\nSec-WebSocket-Key: ").unwrap();
    let accept = mainstay_proto::ws::handshake::accept_key(key.split("\r\n").next().unwrap().as_bytes());
    let answer = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n{fields}Upgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    socket.write_all(answer.as_bytes()).await.unwrap();
    assert!(matches!(link.event().await, Some(Event::Attached { .. })));
}

#[tokio::test]
async fn a_subprotocol_that_is_no_token_ends_a_client_before_anything_is_dialled() {
    let name = "eyJh/b+c==";
    let builder = || Link::builder("ws://127.0.0.1:1/").unwrap();
    assert!(builder().subprotocols(["jwt", name]).unwrap_err().to_string().contains(name));
    let error = builder().subprotocol(name).connect_once().await.unwrap_err();
    assert!(error.to_string().contains(name), "{error}");
    let client = builder().subprotocol(name).connect();
    assert!(matches!(client.event().await, Some(Event::Ended(_))));
}

#[tokio::test]
async fn a_panic_of_the_request_function_is_an_attempt_that_failed() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let mut client = Client::builder(&format!("ws://{address}/echo"))
        .unwrap()
        .request(move || {
            let panics = is_first.swap(false, std::sync::atomic::Ordering::Relaxed);
            async move {
                assert!(!panics, "on purpose");
                Ok(mainstay::client::Request::default())
            }
        })
        .connect();
    client.send(Message::text("x")).await.unwrap();
    let Some(Event::AttemptFailed { why, .. }) = client.event().await else { panic!("it failed") };
    assert!(matches!(&why, Lost::NotOpened(failure) if failure.message().contains("panicked")), "{why:?}");
    assert_eq!(client.recv().await, Some(Message::text("x")));
}

#[test]
fn a_client_whose_runtime_has_shut_down_has_ended() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (client, tracked) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Link::builder(&format!("ws://{}/", listener.local_addr().unwrap())).unwrap().connect();
        let tracked = client.send_tracked(Message::text("x")).await.unwrap();
        until("it has its worker", || client.state() == State::Connecting).await;
        (client, tracked)
    });
    drop(runtime);
    assert_eq!(client.state(), State::Ended);
    assert!(client.try_send(Message::text("y")).is_err());
    let other = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(other.block_on(tracked), Outcome::NotDelivered);
    let ended = other.block_on(async {
        while let Some(event) = client.event().await {
            if matches!(event, Event::Ended(_)) {
                return true;
            }
        }
        false
    });
    assert!(ended);
}

/// Opens a WebSocket by hand, as a gateway does for its client.
async fn upgraded(address: std::net::SocketAddr, subprotocol: &str) -> Upgraded {
    let offer = Offer::new([3; 16], &[subprotocol], None).unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut request = format!("GET /echo HTTP/1.1\r\nHost: {address}\r\n");
    for (name, value) in &offer.headers() {
        request.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    let subprotocol = Some(subprotocol.to_owned());
    Upgraded { stream: stream.into(), early: bytes::Bytes::new(), subprotocol, deflate: None }
}

#[tokio::test]
async fn a_link_adopts_an_open_connection_and_dials_when_that_is_lost() {
    let (address, _mainstay) =
        server(Config::default(), |upgrade| upgrade.subprotocols(["chat"]).on_session(echo)).await;
    let proxy = Proxy::to(address).await;
    let upgraded = upgraded(proxy.address, "chat").await;
    let builder = Link::builder(&format!("ws://{}/echo", proxy.address)).unwrap().subprotocol("chat");
    let mut link = builder.adopt(upgraded);
    assert!(matches!(link.state(), State::Attached { epoch: 1, .. }), "at once");
    assert_eq!(link.subprotocol().as_deref(), Some("chat"));
    assert!(matches!(link.event().await, Some(Event::Attached { epoch: 1, .. })));
    let tracked = link.send_tracked(Message::text("x")).await.unwrap();
    assert_eq!(link.recv().await, Some(Message::text("x")));
    assert_eq!(tracked.await, Outcome::Delivered);
    proxy.cut();
    assert!(matches!(link.event().await, Some(Event::Detached { .. })));
    assert!(matches!(link.event().await, Some(Event::Attached { epoch: 2, .. })));
    link.send(Message::text("y")).await.unwrap();
    assert_eq!(link.recv().await, Some(Message::text("y")));
    link.close(CloseCode::NORMAL, "").await;
}

#[tokio::test]
async fn a_link_adopts_any_stream_with_the_bytes_that_came_early() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let early = bytes::Bytes::from_static(b"\x81\x05early");
    let upgraded = Upgraded { stream: ServerStream::other(ours), early, subprotocol: None, deflate: None };
    let mut link = Link::builder("ws://127.0.0.1:1/").unwrap().adopt(upgraded);
    assert_eq!(link.recv().await, Some(Message::text("early")));
    theirs.write_all(b"\x81\x05later").await.unwrap();
    assert_eq!(link.recv().await, Some(Message::text("later")));
}
