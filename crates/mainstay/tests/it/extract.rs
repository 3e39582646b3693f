//! How `SessionUpgrade` finds its server, and what a request gets that is no upgrade.

use axum::extract::{FromRequestParts, State};
use axum::routing::{any, get};
use axum::{Extension, Router};
use mainstay::server::UpgradeRejection;
use mainstay::{Client, CloseCode, Server, SessionUpgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::echo;

/// The application's state, which says nothing about servers.
#[derive(Clone)]
struct App(&'static str);

fn routes() -> Router {
    let upgrade = async |State(App(greeting)): State<App>, upgrade: SessionUpgrade| {
        assert_eq!(greeting, "hello");
        upgrade.on_session(echo)
    };
    Router::new().route("/ws", any(upgrade)).route("/page", get("a page")).with_state(App("hello"))
}

async fn listen() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn echoes(address: std::net::SocketAddr, path: &str) {
    let mut client = Client::builder(&format!("ws://{address}{path}")).unwrap().connect();
    client.send("hello").await.unwrap();
    assert_eq!(client.recv().await, Some("hello".into()));
    client.close(CloseCode::NORMAL, "").await;
}

/// What a request for `/ws` is answered that does everything right.
async fn answer(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_server_that_serves_is_the_server_of_the_sessions_whatever_the_routers_state_is() {
    let (listener, address) = listen().await;
    let server = Server::default();
    let app = Router::new().merge(routes()).nest("/nested", routes());
    tokio::spawn(mainstay::serve(listener, app, &server).into_future());
    echoes(address, "/ws").await;
    echoes(address, "/nested/ws").await;
    assert_eq!(server.stats().attached_new, 2);
}

#[tokio::test]
async fn behind_axums_own_server_a_layer_names_the_server_of_the_sessions() {
    let (listener, address) = listen().await;
    let server = Server::default();
    let app = Router::new().nest("/nested", routes()).merge(routes()).layer(server.layer());
    tokio::spawn(axum::serve(listener, app).into_future());
    echoes(address, "/ws").await;
    echoes(address, "/nested/ws").await;
    assert_eq!(server.stats().attached_new, 2);
}

#[tokio::test]
async fn a_layer_and_a_routers_own_state_come_before_the_server_that_serves() {
    let (listener, address) = listen().await;
    let (serving, layered, state) = (Server::default(), Server::default(), Server::default());
    let of_state = any(async |upgrade: SessionUpgrade| upgrade.on_session(echo));
    let of_state = Router::new().route("/state", of_state).with_state(state.clone());
    let app = routes().layer(layered.layer()).merge(of_state);
    tokio::spawn(mainstay::serve(listener, app, &serving).into_future());
    echoes(address, "/ws").await;
    echoes(address, "/state").await;
    let counts = [&serving, &layered, &state].map(|server| server.stats().attached_new);
    assert_eq!(counts, [0, 1, 1]);
}

#[tokio::test]
async fn without_a_server_the_answer_says_in_one_line_what_to_add() {
    let (listener, address) = listen().await;
    tokio::spawn(axum::serve(listener, routes()).into_future());
    let answer = answer(address).await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    let line =
        "no server for sessions: use `mainstay::serve`, or add `.layer(server.layer())` to the router\n";
    assert!(answer.ends_with(line), "{answer}");
}

#[tokio::test]
async fn an_extension_of_the_request_is_enough_for_an_extractor_that_is_called_by_hand() {
    let request = http::Request::get("/ws").extension(Server::default()).body(()).unwrap();
    let (mut parts, ()) = request.into_parts();
    let rejection = SessionUpgrade::from_request_parts(&mut parts, &App("hello")).await.err().unwrap();
    let shown: &dyn std::error::Error = &rejection;
    assert!(matches!(rejection, UpgradeRejection::Request(_)), "{shown}");
    let none = Option::<SessionUpgrade>::from_request_parts(&mut parts, &()).await.unwrap();
    assert!(none.is_none(), "it asks for no WebSocket");
    // The extension is an ordinary one.
    let Extension(_) = Extension::<Server>::from_request_parts(&mut parts, &()).await.unwrap();
}
