//! What bad input gets: that connection closed, and nothing else.

use std::time::Duration;

use mainstay::server::Config;
use mainstay::{Client, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{echo_server, until};

/// Sends `bytes` and returns all that comes back until the server closes.
async fn answer(address: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut out = Vec::new();
    let all = stream.read_to_end(&mut out);
    let _ = tokio::time::timeout(Duration::from_secs(10), all).await.expect("the server closes");
    out
}

fn upgrade(protocol: &str) -> Vec<u8> {
    format!(
        "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
    )
    .into_bytes()
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_dropped_at_the_opening_deadline() {
    let config = Config { opening_deadline: Duration::from_millis(100), ..Config::default() };
    let (address, mainstay) = echo_server(config).await;
    assert_eq!(answer(address, b"").await, b"");
    assert_eq!(mainstay.stats().openings_failed, 1);
    // One that says half a head is dropped as well.
    answer(address, b"GET /echo HTTP/1.1\r\nHost").await;
}

#[tokio::test]
async fn a_client_that_sends_no_hello_is_closed_and_another_goes_on() {
    let config = Config { opening_deadline: Duration::from_millis(100), ..Config::default() };
    let (address, _mainstay) = echo_server(config).await;
    let mut neighbour = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    neighbour.send(Message::text("a")).await.unwrap();
    assert_eq!(neighbour.recv().await, Some(Message::text("a")));
    let out = answer(address, &upgrade("Sec-WebSocket-Protocol: mainstay.v1\r\n")).await;
    let end = out.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(out[end..end + 1], [0x88], "a Close frame: {:?}", &out[end..]);
    assert_eq!(out[end + 2..end + 4], 4412_u16.to_be_bytes());
    neighbour.send(Message::text("b")).await.unwrap();
    assert_eq!(neighbour.recv().await, Some(Message::text("b")));
}

#[tokio::test]
async fn a_broken_frame_closes_its_own_connection_with_the_code_of_the_rfc() {
    let (address, mainstay) = echo_server(Config::default()).await;
    // Unmasked text.
    let out = answer(address, &[upgrade(""), vec![0x81, 1, b'x']].concat()).await;
    let end = out.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(out[end + 2..end + 4], 1002_u16.to_be_bytes());
    until("the failure is counted", || mainstay.stats().protocol_errors == 1).await;
    until("nothing is left", || mainstay.stats().connections == 0).await;
}

#[tokio::test]
async fn requests_that_are_no_upgrade_are_answered_with_one_line() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let plain = answer(address, b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let text = String::from_utf8_lossy(&plain).into_owned();
    assert!(text.starts_with("HTTP/1.1 426 "), "{text}");
    assert!(text.contains("sec-websocket-version: 13"), "{text}");
    let large =
        [b"GET /echo HTTP/1.1\r\nHost: x\r\nX: ".to_vec(), vec![b'x'; 20_000], b"\r\n\r\n".to_vec()].concat();
    assert!(answer(address, &large).await.starts_with(b"HTTP/1.1 431 "));
}
