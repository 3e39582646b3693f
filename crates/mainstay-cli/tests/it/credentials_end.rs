//! The end of credentials ends what they opened: responses under way, WebSockets over HTTP/2, sessions that are parked or
//! whose links hibernate, and those that the connect hook admitted for a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::Method;
use mainstay::client::rustls::pki_types::ServerName;
use mainstay::client::rustls::{ClientConfig, RootCertStore};
use mainstay_proto::session::Control;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::credentials::{answer, welcome};
use crate::frames::{CLOSE, PING};
use crate::guarded::{Folder, Guarded, bearer, ended, serve, telling_backend, text, told};
use crate::operator::{INTENT, ask};
use crate::support::until;
use crate::tokens::{SECRET, Signer, in_seconds};

/// A backend whose responses take long, and how many of them are open.
#[derive(Clone, Default)]
struct Slow {
    open: Arc<AtomicUsize>,
}

impl Slow {
    async fn start() -> (Self, SocketAddr) {
        let slow = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = slow.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let slow = serving.clone();
                tokio::spawn(async move {
                    let _ = slow.respond(stream).await;
                });
            }
        });
        (slow, address)
    }

    async fn respond(self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        self.open.fetch_add(1, Relaxed);
        let path = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap().to_owned();
        let responded = respond(&path, &mut stream).await;
        self.open.fetch_sub(1, Relaxed);
        responded
    }
}

async fn respond(path: &str, stream: &mut TcpStream) -> std::io::Result<()> {
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    match path {
        "/stream" => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(b"9\r\ndata: 1\n\n\r\n").await?;
                pause.tick().await;
            }
        }
        "/known" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n").await?;
            for _ in 0..90 {
                stream.write_all(b"x").await?;
                pause.tick().await;
            }
            Ok(())
        }
        // A long poll: there is nothing to say yet.
        _ => stream.read_u8().await.map(drop),
    }
}

/// Requests a path and reads up to the end of the connection.
async fn whole(gateway: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    // The gateway may break off with a reset.
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8(response).unwrap()
}

fn broke_off(response: &str) -> bool {
    response.starts_with("HTTP/1.1 200")
        && response.contains("data: 1")
        && !response.ends_with("\r\n0\r\n\r\n")
}

async fn guarded_by_secret(backend: SocketAddr, credentials: &str) -> Guarded {
    let folder = Folder::new();
    let keys = folder.write("secret", SECRET);
    let settings =
        format!("{credentials}\n[routes.chat.credentials.jwt]\nkeys-file = {keys:?}\nleeway = \"0s\"");
    Guarded::start(backend, folder, &settings)
}

fn token(subject: &str, issued: i64, left: i64) -> String {
    let claims = json!({"sub": subject, "iat": in_seconds(issued), "exp": in_seconds(left)});
    Signer::secret().token(&claims)
}

#[tokio::test]
async fn the_expiry_breaks_off_a_stream_and_a_response_of_known_length_is_finished() {
    let (slow, backend) = Slow::start().await;
    let guarded = guarded_by_secret(backend, "").await;
    let gateway = guarded.gateway.address();
    let authorization = bearer(&token("alice", 0, 5));
    let known = {
        let authorization = authorization.clone();
        tokio::spawn(async move { whole(gateway, "/known", &authorization).await })
    };
    let stream = whole(gateway, "/stream", &authorization).await;
    assert!(broke_off(&stream), "{stream}");
    let known = known.await.unwrap();
    assert!(known.starts_with("HTTP/1.1 200") && known.ends_with(&"x".repeat(90)), "{known}");
    assert_eq!(guarded.gateway.metric("credentials_responses_ended_total{reason=\"expired\"}"), 1.0);
    until("the backend's stream ends, too", || slow.open.load(Relaxed) == 0).await;
}

#[tokio::test]
async fn a_revocation_ends_every_response_of_its_subject_also_one_that_has_not_begun() {
    let (slow, backend) = Slow::start().await;
    let guarded = guarded_by_secret(backend, "").await;
    let gateway = guarded.gateway.address();
    let of_alice = bearer(&token("alice", -5, 600));
    let upgrade =
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let requests: Vec<_> = ["/stream", "/known", "/poll"]
        .into_iter()
        .map(|path| {
            let headers = of_alice.clone();
            tokio::spawn(async move { whole(gateway, path, &headers).await })
        })
        .collect();
    // A stream in response to an opening handshake.
    let mut refused = TcpStream::connect(gateway).await.unwrap();
    let request =
        format!("GET /stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{upgrade}{of_alice}\r\n");
    refused.write_all(request.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    refused.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    let mut of_bob = TcpStream::connect(gateway).await.unwrap();
    let request = format!("GET /stream HTTP/1.1\r\nHost: x\r\n{}\r\n", bearer(&token("bob", -5, 600)));
    of_bob.write_all(request.as_bytes()).await.unwrap();
    until("all are under way", || slow.open.load(Relaxed) == 5).await;

    let (status, body) = ask(&guarded.gateway, "POST", "/subjects/alice/revoke", INTENT);
    assert_eq!((status, body.trim()), (200, r#"{"ended":4}"#));
    let mut responses = Vec::new();
    for request in requests {
        responses.push(request.await.unwrap());
    }
    let [stream, known, poll] = &responses[..] else { panic!("{responses:?}") };
    assert!(broke_off(stream), "{stream}");
    assert!(known.is_empty() || !known.ends_with(&"x".repeat(90)), "{known}");
    assert!(poll.starts_with("HTTP/1.1 401") && poll.ends_with("the credentials were revoked\n"), "{poll}");
    let mut rest = Vec::new();
    let _ = refused.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"));
    until("only the stream of bob is left", || slow.open.load(Relaxed) == 1).await;
    let mut more = [0; 1000];
    of_bob.read_exact(&mut more).await.unwrap();
    assert_eq!(guarded.gateway.metric("credentials_responses_ended_total{reason=\"revoked\"}"), 4.0);
}

#[tokio::test]
async fn a_client_that_was_away_over_the_expiry_comes_back_with_other_credentials_only() {
    let guarded = guarded_by_secret(telling_backend().await, "").await;
    let short = token("alice", 0, 4);
    let parked = welcome(answer(&guarded, 1, Some(&short), None).await);
    guarded.gateway.wait_for_metric("sessions_by_state{state=\"parked\"}", 1.0).await;
    while !guarded.http("/page", &bearer(&short)).await.starts_with("HTTP/1.1 401") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = answer(&guarded, 2, Some(&short), Some(parked.token.clone())).await;
    assert!(matches!(refused, Control::Refuse { code: 4501, temporary: false, .. }), "{refused:?}");
    // The session is still there for a fresh token.
    assert_eq!(guarded.gateway.metric("credentials_expired_total{outcome=\"ended\"}"), 0.0);
    assert!(welcome(answer(&guarded, 3, Some(&token("alice", 0, 600)), Some(parked.token)).await).resumed);
}

#[tokio::test]
async fn the_expiry_ends_a_session_whose_link_hibernates() {
    let (folder, backend) = (Folder::new(), telling_backend().await);
    let keys = folder.write("secret", SECRET);
    let routes = format!(
        "[routes.chat.upstream]\naddresses = [\"ws://{backend}\"]\nhibernate-after = \"1s\"\n\
         [routes.chat.profile]\non-backend-loss = \"keep\"\nprologue.record = [\"first=1\"]\nprologue.hide = [\"first=1\"]\n\
         [routes.chat.credentials]\ngrace = \"0s\"\n[routes.chat.credentials.jwt]\nkeys-file = {keys:?}\nleeway = \"0s\"\n"
    );
    let guarded = Guarded::of_routes(folder, &routes);
    let mut client = guarded.client(&token("alice", 0, 600));
    told(&mut client).await;
    client.send("login").await.unwrap();
    assert_eq!(text(&client.recv().await.unwrap()), "login");
    guarded.gateway.wait_for_metric("links_hibernated_total{route=\"chat\"}", 1.0).await;
    // New credentials do not wake the link either.
    client.authenticate(token("alice", 0, 5)).await.unwrap();
    assert_eq!(ended(&mut client).await.1, Some(4501));
    guarded.gateway.wait_for_metric("sessions", 0.0).await;
    assert_eq!(guarded.gateway.metric("links_hibernated_total{route=\"chat\"}"), 1.0);
    assert_eq!(guarded.gateway.metric("links{route=\"chat\"}"), 0.0);
}

#[tokio::test]
async fn what_the_hook_admits_for_a_time_ends_then() {
    let answers = post(|| async { r#"{"subject": "alice", "expires_in": 2.5}"# });
    let hook = serve(Router::new().route("/connect", answers)).await;
    let settings =
        format!("grace = \"8s\"\n[routes.chat.credentials.connect-hook]\nurl = \"http://{hook}/connect\"");
    let guarded = Guarded::start(telling_backend().await, Folder::new(), &settings);
    let (_, mut plain) = guarded.told("/chat", "").await;
    loop {
        match plain.read().await.unwrap() {
            (CLOSE, payload) => break assert_eq!(payload[..2], 4501_u16.to_be_bytes()),
            (PING, _) => {}
            other => panic!("{other:?}"),
        }
    }
    // A session is asked, comes back, and the hook admits it again.
    let mut client = guarded.client("x");
    told(&mut client).await;
    let again = || guarded.gateway.metric("attaches_total{outcome=\"resumed\"}") >= 1.0;
    until("it has come back", again).await;
    client.send("still here").await.unwrap();
    assert_eq!(text(&client.recv().await.unwrap()), "still here");
}

#[tokio::test]
async fn a_websocket_over_http_2_is_judged_by_its_request_and_closed_at_the_expiry() {
    let (folder, backend) = (Folder::new(), telling_backend().await);
    let own = crate::client_tls::certificate("localhost");
    let (keys, chain) = (folder.write("secret", SECRET), folder.write("chain.pem", &own.pem()));
    let key = folder.write("key.pem", &own.key().serialize_pem());
    let routes = format!(
        "[tls]\nhttp2 = true\ncertificates = [{{ chain = {chain:?}, key = {key:?} }}]\n\
         [routes.chat.upstream]\naddresses = [\"ws://{backend}\"]\n\
         [routes.chat.credentials.jwt]\nkeys-file = {keys:?}\nleeway = \"0s\"\n"
    );
    let guarded = Guarded::of_routes(folder, &routes);
    let mut roots = RootCertStore::empty();
    roots.add(own.der().clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(guarded.gateway.url.trim_start_matches("wss://")).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let sender = sender.ready().await.unwrap();
    while !sender.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let open = async |token: &str| {
        let request = http::Request::builder().method(Method::CONNECT).uri("https://localhost/chat");
        let request =
            request.header("sec-websocket-version", "13").header("authorization", format!("Bearer {token}"));
        let mut request = request.body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, outgoing): (_, h2::SendStream<Bytes>) =
            sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
        (response.await.unwrap(), outgoing)
    };
    let (refused, _outgoing) = open(&token("alice", 0, -600)).await;
    assert_eq!(refused.status(), 401);
    let (accepted, _outgoing) = open(&token("alice", 0, 5)).await;
    assert_eq!(accepted.status(), 200);
    let (mut incoming, mut bytes) = (accepted.into_body(), Vec::new());
    let close = [&[0x88, 30, 0x11, 0x95][..], b"the credentials have expired"].concat();
    while !bytes.ends_with(&close) {
        let piece = incoming.data().await.expect("a Close before the end").unwrap();
        incoming.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
}
