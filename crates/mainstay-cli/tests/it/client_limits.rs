//! Limits by address, subject and route; clients that send too fast; clients that take too little.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use axum::Router;
use axum::routing::any;
use mainstay::{Client, SessionUpgrade};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::frames::{CLOSE, Frames, TEXT};
use crate::routes::Folder;
use crate::support::{Gateway, backend, echo, until};

const LOST: &str = "slow_client_messages_total{route=\"only\"}";
const CLOSED: &str = "slow_clients_closed_total{route=\"only\"}";

/// A backend at these paths.
async fn serving(app: Router<mainstay::Server>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, app).await;
    address
}

fn gateway(file: &Path) -> Gateway {
    Gateway::start(&["--config", file.to_str().unwrap(), "--admin", "127.0.0.1:0"])
}

/// A gateway in front of an echo, with these sections.
pub(crate) async fn limited(folder: &Folder, route: &str, others: &str) -> Gateway {
    let backend = serving(Router::new().fallback(any(echo))).await;
    gateway(&folder.write("mainstay.toml", &settings(backend, route, others)))
}

fn settings(backend: SocketAddr, route: &str, others: &str) -> String {
    format!("{others}\n[routes.only]\nupstream.addresses = [\"ws://{backend}\"]\n{route}\n")
}

/// Opens a WebSocket from this local address, with further headers. Returns the status too.
pub(crate) async fn open_from(local: &str, to: SocketAddr, headers: &str) -> (String, String, Frames) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{local}:0").parse().unwrap()).unwrap();
    let (head, frames) = Frames::connect_over(socket.connect(to).await.unwrap(), "/", headers).await;
    (head[9..12].to_owned(), head.to_ascii_lowercase(), frames)
}

#[tokio::test]
async fn a_handshake_over_the_rate_of_its_address_is_refused_and_a_reload_changes_the_limit() {
    let folder = Folder::new("rates");
    let others = |count: u32| format!("[limits]\nhandshakes-per-minute-per-address = {count}\n");
    let backend = serving(Router::new().fallback(any(echo))).await;
    let gateway = gateway(&folder.write("mainstay.toml", &settings(backend, "", &others(2))));
    let open = async || open_from("127.0.0.1", gateway.address(), "").await.0;
    assert_eq!([open().await, open().await, open().await], ["101", "101", "429"]);
    // A session is refused in band: the handshake passes, and HELLO gets a REFUSE.
    let client = Client::builder(&format!("ws://{}/", gateway.address())).unwrap().connect();
    gateway.wait_for_metric("attaches_total{outcome=\"refused\"}", 1.0).await;
    assert_eq!(gateway.metric("refused_total{reason=\"address_rate\"}"), 2.0);
    folder.write("mainstay.toml", &settings(backend, "", &others(1000)));
    gateway.signal("HUP");
    gateway.wait_for_metric("config_reloads_total{outcome=\"done\"}", 1.0).await;
    assert_eq!(open().await, "101");
    client.close(mainstay::CloseCode::NORMAL, "").await;
}

#[tokio::test]
async fn a_route_has_its_own_limit_of_connections_and_of_those_of_one_subject() {
    let folder = Folder::new("route");
    let route = "session.headers = [\"X-User\"]\nlimits.connections = 3\nlimits.connections-per-subject = 2";
    let gateway = limited(&folder, route, "").await;
    let open = async |user: &str| {
        let (status, _, frames) =
            open_from("127.0.0.1", gateway.address(), &format!("X-User: {user}\r\n")).await;
        (status, frames)
    };
    let (one, two, three) = (open("ann").await, open("ann").await, open("ann").await);
    assert_eq!([&one.0, &two.0, &three.0], ["101", "101", "429"]);
    let (four, five) = (open("bob").await, open("eve").await);
    assert_eq!([&four.0, &five.0], ["101", "503"], "the route is full");
    assert_eq!(gateway.metric("refused_total{reason=\"route\"}"), 2.0);
    drop((one, four));
    gateway.wait_for_metric("connections", 1.0).await;
    assert_eq!(open("eve").await.0, "101");
}

#[tokio::test]
async fn a_client_that_sends_too_fast_waits_and_is_closed_if_it_never_slows_down() {
    let folder = Folder::new("fast");
    let route = "limits.messages-per-second = 20\nlimits.burst = \"500ms\"\nlimits.too-fast-for = \"1s\"";
    let gateway = limited(&folder, route, "").await;
    let (_, mut client) = Frames::connect(gateway.address(), "/", "").await;
    for n in 0..15 {
        client.write(TEXT, n.to_string().as_bytes()).await;
    }
    for n in 0..15 {
        assert_eq!(client.text().await, Some(n.to_string()), "none is lost");
    }
    assert!(gateway.metric("client_pauses_total") >= 1.0);
    let (_, mut client) = Frames::connect(gateway.address(), "/", "").await;
    for _ in 0..500 {
        client.write(TEXT, b"x").await;
    }
    let code = loop {
        if let (CLOSE, payload) = client.read().await.unwrap() {
            break u16::from_be_bytes([payload[0], payload[1]]);
        }
    };
    assert_eq!((code, gateway.metric("clients_too_fast_total")), (1008, 1.0));
}

/// A gateway in front of a backend that sends a price of each of three symbols, again and again, and then "end": how often is
/// counted.
async fn before_prices(folder: &Folder, rounds: u32, limits: &str) -> (Gateway, Arc<AtomicU32>) {
    let ended = Arc::new(AtomicU32::new(0));
    let ends = Arc::clone(&ended);
    let prices = async move |upgrade: SessionUpgrade| {
        let ends = Arc::clone(&ends);
        upgrade.on_session(move |mut session| async move {
            for round in 0..rounds {
                for symbol in ["a", "b", "c"] {
                    let pad = "x".repeat(10_000);
                    let price = format!(r#"{{"symbol":"{symbol}","round":{round},"pad":"{pad}"}}"#);
                    if session.send(price).await.is_err() {
                        return;
                    }
                }
            }
            let _ = session.send("end").await;
            ends.fetch_add(1, Relaxed);
            while session.recv().await.is_some() {}
        })
    };
    let backend = serving(Router::new().fallback(any(prices))).await;
    (gateway(&folder.write("mainstay.toml", &settings(backend, limits, ""))), ended)
}

/// The symbol and the round of a price.
fn price(text: &str) -> (&str, u32) {
    let field =
        |name: &str| text.split_once(&format!("\"{name}\":")).unwrap().1.split([',', '}']).next().unwrap();
    (field("symbol").trim_matches('"'), field("round").parse().unwrap())
}

#[tokio::test]
async fn a_slow_plain_client_gets_the_latest_price_of_each_symbol_and_the_backend_never_waits() {
    let folder = Folder::new("latest");
    let limits = "limits.slow-client = \"latest\"\nlimits.slow-client-key = \"/symbol\"";
    let (gateway, ended) = before_prices(&folder, 800, limits).await;
    let (_, mut client) = Frames::connect_slowly(gateway.address(), "/", 4096).await;
    // 24 MB, and the client takes nothing.
    until("the backend has sent all", || ended.load(Relaxed) == 1).await;
    let mut last = std::collections::HashMap::new();
    let mut count = 0;
    loop {
        let text = client.text().await.unwrap();
        if text == "end" {
            break;
        }
        let (symbol, round) = price(&text);
        let before = last.insert(symbol.to_owned(), round);
        assert!(before.is_none_or(|before| before < round), "never an older price after a newer one");
        count += 1;
    }
    assert!(last.len() == 3 && last.values().all(|round| *round == 799), "{last:?}");
    assert_eq!(f64::from(count) + gateway.metric(LOST), 2400.0);
}

#[tokio::test]
async fn a_slow_session_is_told_how_many_messages_it_lost() {
    use mainstay::client::Incoming;
    for limits in [
        "limits.slow-client = \"latest\"\nlimits.slow-client-key = \"/symbol\"",
        "limits.slow-client = \"drop-oldest\"",
    ] {
        let folder = Folder::new("gap");
        let (gateway, ended) = before_prices(&folder, 400, limits).await;
        let mut client = Client::builder(&format!("ws://{}/", gateway.address())).unwrap().connect();
        until("the backend has sent all", || ended.load(Relaxed) == 1).await;
        let (mut received, mut lost) = (0, 0);
        loop {
            match client.recv_any().await.unwrap() {
                Incoming::Message(message) if message.as_text() == Some("end") => break,
                Incoming::Message(_) => received += 1,
                Incoming::Dropped { count, .. } => lost += count,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received + lost, 1200, "{limits}");
        assert!(lost > 300, "{lost} {limits}");
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_closed_after_the_time_with_the_code() {
    let folder = Folder::new("close");
    let limits = "limits.slow-client = \"close\"\nlimits.slow-client-after = \"500ms\"\nlimits.slow-client-code = 4000";
    let (gateway, _) = before_prices(&folder, 800, limits).await;
    let (_, client) = Frames::connect_slowly(gateway.address(), "/", 4096).await;
    gateway.wait_for_metric(CLOSED, 1.0).await;
    gateway.wait_for_metric("sessions", 0.0).await;
    drop(client);
    // One that reads is served to the end.
    let (_, mut client) = Frames::connect(gateway.address(), "/", "").await;
    while client.text().await.unwrap() != "end" {}
    assert_eq!(gateway.metric(CLOSED), 1.0);
}

#[tokio::test]
async fn a_trusted_peer_that_sends_a_proxy_header_has_the_address_in_it() {
    use tokio::io::AsyncWriteExt;
    let folder = Folder::new("proxy");
    let others = "[limits]\nconnections-per-address = 1\n[proxies]\ntrusted = [\"127.0.0.0/8\"]\nproxy-protocol = \"v1\"";
    let gateway = limited(&folder, "", others).await;
    let open = async |client: &str| {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let line = format!("PROXY TCP4 {client} 127.0.0.1 5000 80\r\n");
        stream.write_all(line.as_bytes()).await.unwrap();
        let (head, frames) = Frames::connect_over(stream, "/", "").await;
        (head[9..12].to_owned(), frames)
    };
    let (one, two, three) = (open("203.0.113.1").await, open("203.0.113.1").await, open("203.0.113.2").await);
    assert_eq!([&one.0, &two.0, &three.0], ["101", "429", "101"]);
}
