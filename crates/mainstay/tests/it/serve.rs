//! What `serve` accepts: listeners and applications; and how long connections wait for a next request.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request};
use axum::routing::{any, get};
use axum::{Router, ServiceExt};
use mainstay::server::{MakeService, Serve};
use mainstay::{Server, Session, SessionUpgrade};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hostile::frame;
use crate::support::{echo, until};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn app(mainstay: &Server) -> Router {
    let address = async |ConnectInfo(address): ConnectInfo<std::net::SocketAddr>| address.to_string();
    let page_or_socket = async |upgrade: Option<SessionUpgrade>| match upgrade {
        Some(upgrade) => upgrade.on_session(echo),
        None => axum::response::IntoResponse::into_response("a page"),
    };
    Router::new()
        .route("/ws", any(page_or_socket))
        .route("/address", get(address))
        .with_state(mainstay.clone())
}

/// The response to a request on a connection that closes then.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Opens a WebSocket by hand and has a message echoed.
async fn echoes(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    stream.write_all(UPGRADE.as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
    }
    stream.write_all(&frame(0x81, b"hello")).await.unwrap();
    let mut echo = [0; 7];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, *b"\x81\x05hello");
}

/// Serves on TCP whatever `make` makes of a router, and asks for `path`.
async fn served<M: MakeService<std::net::SocketAddr>>(make: fn(Router) -> M, path: &str) -> String {
    let mainstay = Server::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server: Serve<_, M> = mainstay::serve(listener, make(app(&mainstay)), &mainstay);
    tokio::spawn(server.into_future());
    echoes(TcpStream::connect(address).await.unwrap()).await;
    ask(TcpStream::connect(address).await.unwrap(), path).await
}

/// Takes the slash from the end of a path, as tower-http's `NormalizePath` does.
#[derive(Clone)]
struct WithoutSlash<S>(S);

impl<S: tower_service::Service<Request>> tower_service::Service<Request> for WithoutSlash<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        *request.uri_mut() = request.uri().path().trim_end_matches('/').parse().unwrap();
        self.0.call(request)
    }
}

#[tokio::test]
async fn an_application_is_a_router_a_make_service_or_a_layer_around_it() {
    for answer in [
        served(|app| app, "/address").await,
        served(Router::into_make_service, "/address").await,
        served(Router::into_make_service_with_connect_info::<std::net::SocketAddr>, "/address").await,
        served(|app| ServiceExt::<Request>::into_make_service(WithoutSlash(app)), "/address/").await,
    ] {
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("127.0.0.1:"), "{answer}");
    }
}

#[tokio::test]
async fn a_route_may_serve_a_page_and_a_socket() {
    let answer = served(|app| app, "/ws").await;
    assert!(answer.ends_with("a page"), "{answer}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn as_many_connections_may_wait_to_be_accepted_as_the_system_allows() {
    let system = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let most = system.trim().parse::<usize>().unwrap().min(300);
    let mainstay = Server::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _does_not_accept_yet = mainstay::serve(listener, app(&mainstay), &mainstay);
    let all = (0..most).map(|_| TcpStream::connect(address)).collect::<Vec<_>>();
    let mut waiting = Vec::new();
    let connected = tokio::time::timeout(Duration::from_secs(30), async {
        for one in all {
            waiting.push(one.await.unwrap());
        }
    });
    assert!(connected.await.is_ok(), "{} of {most} connected while nobody accepted", waiting.len());
}

#[tokio::test]
async fn a_listener_may_be_another_than_tcp() {
    let mainstay = Server::default();
    let path = std::env::temp_dir().join(format!("mainstay-serve-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let server = mainstay::serve(listener, app(&mainstay), &mainstay)
        .with_graceful_shutdown(async move { stopped.notified().await }, Duration::ZERO);
    let server = tokio::spawn(server.into_future());
    echoes(UnixStream::connect(&path).await.unwrap()).await;
    assert!(ask(UnixStream::connect(&path).await.unwrap(), "/ws").await.ends_with("a page"));
    stop.notify_one();
    server.await.unwrap().unwrap();
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn one_server_drains_all_servers_that_were_added_to_it() {
    let (first, second) = (Server::default(), Server::default());
    let route = |mainstay: &Server| app(mainstay);
    let routes = Router::new().nest("/a", route(&first)).nest("/b", route(&second));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let server = mainstay::serve(listener, routes, &first)
        .also_drain(&second)
        .with_graceful_shutdown(async move { stopped.notified().await }, Duration::ZERO);
    let server = tokio::spawn(server.into_future());
    let url = |path: &str| format!("ws://{address}{path}/ws");
    let _clients = ["/a", "/b"].map(|path| mainstay::Client::builder(&url(path)).unwrap().connect());
    until("both are there", || first.stats().sessions == 1 && second.stats().sessions == 1).await;
    stop.notify_one();
    server.await.unwrap().unwrap();
    assert_eq!((first.stats().sessions, second.stats().sessions), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_wait_for_its_next_request_longer_than_for_its_first() {
    let mainstay = Server::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(mainstay::serve(listener, app(&mainstay), &mainstay).into_future());
    let mut rest = Vec::new();
    let silent = Instant::now();
    TcpStream::connect(address).await.unwrap().read_to_end(&mut rest).await.unwrap();
    assert_eq!(silent.elapsed().as_secs(), 5);
    // And not for ever, whether the next one does not begin or does not end.
    for next in ["", "GET / HT"] {
        let mut kept = TcpStream::connect(address).await.unwrap();
        kept.write_all(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        rest.clear();
        while !rest.ends_with(b"a page") {
            rest.push(kept.read_u8().await.unwrap());
        }
        let idle = Instant::now();
        kept.write_all(next.as_bytes()).await.unwrap();
        kept.read_to_end(&mut rest).await.unwrap();
        assert_eq!(idle.elapsed().as_secs(), 75, "{next}");
    }
}

#[tokio::test]
async fn a_drain_of_zero_waits_for_a_handler_that_cleans_up_after_the_end() {
    let (address, mainstay) = crate::support::handled(Server::default(), |mut session: Session| async move {
        while session.recv().await.is_some() {}
        tokio::time::sleep(Duration::from_millis(200)).await;
    })
    .await;
    let _client = mainstay::Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    until("it is there", || mainstay.stats().sessions == 1).await;
    mainstay.drain(Duration::ZERO).await;
    assert_eq!(mainstay.stats().sessions, 0, "its cleanup ran");
}
