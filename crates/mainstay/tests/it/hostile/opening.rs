//! Openings that are none: slow, large, broken or from the wrong page.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::server::{Config, Origins};
use mainstay::{Server, SessionUpgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::{Raw, Stage, frame, upgrade};
use crate::support::echo;

fn impatient() -> Config {
    Config::new().opening_deadline(Duration::from_millis(100)).unwrap()
}

#[tokio::test]
async fn a_silent_connection_is_dropped_at_the_opening_deadline() {
    let stage = Stage::set(impatient()).await;
    assert_eq!(stage.answer(b"").await, "");
    assert_eq!(stage.mainstay.stats().openings_failed, 1);
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_given_up_at_the_opening_deadline() {
    let stage = Stage::set(impatient()).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let head = upgrade("");
    let mut bytes = head.bytes().cycle();
    let trickle = async {
        while stream.write_all(&[bytes.next().unwrap()]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(super::LIMIT, trickle).await.expect("the server closes");
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_head_out_of_bounds_is_refused_unread() {
    let stage = Stage::set(Config::default()).await;
    let long = stage.answer(upgrade(&format!("X: {}\r\n", "x".repeat(20_000))).as_bytes()).await;
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
    let many: String = (0..65).map(|n| format!("X-{n}: x\r\n")).collect();
    let many = stage.answer(upgrade(&many).as_bytes()).await;
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_request_may_name_its_resource_by_a_whole_url() {
    let stage = Stage::set(Config::default()).await;
    let whole = upgrade("Connection: close\r\n").replace("/echo", "http://example.com/echo?a=b");
    let answer = stage.answer(whole.replace("Upgrade: websocket", "Upgrade: other").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 426 "), "the path was found: {answer}");
    stage.ends_unharmed().await;
}

/// Each is answered once with its status, and the connection is closed: what follows is not read as a request.
#[tokio::test]
async fn a_request_that_opens_no_websocket_is_answered_with_its_status_and_closed() {
    let stage = Stage::set(Config::default()).await;
    let good = upgrade("");
    let cases = [
        ("no Host", good.replace("Host: x\r\n", ""), "400"),
        ("two Hosts", good.replace("Host: x", "Host: x\r\nHost: y"), "400"),
        ("HTTP/1.0", good.replace("HTTP/1.1", "HTTP/1.0"), "400"),
        ("POST", good.replace("GET", "POST"), "405"),
        ("no version", good.replace("Sec-WebSocket-Version: 13\r\n", ""), "426"),
        ("version 12", good.replace(": 13", ": 12"), "426"),
        ("no key", good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), "400"),
        ("a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="), "400"),
        (
            "a key that is no base64",
            good.replace("dGhlIHNhbXBsZSBub25jZQ==", "????????????????????????"),
            "400",
        ),
        ("two keys", upgrade("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), "400"),
        ("no Connection: Upgrade", good.replace("Connection: Upgrade", "Connection: keep-alive"), "400"),
        ("no Upgrade", good.replace("Upgrade: websocket\r\n", ""), "426"),
        ("another Upgrade", good.replace("Upgrade: websocket", "Upgrade: h2c"), "426"),
        ("a body", upgrade("Content-Length: 5\r\n") + "hello", "400"),
        ("a chunked body", upgrade("Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", "400"),
        ("both", upgrade("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", "400"),
        ("CR in a value", upgrade("X: a\rb\r\n"), "400"),
        ("NUL in a value", upgrade("X: a\0b\r\n"), "400"),
        ("a folded value", upgrade("X: a\r\n b\r\n"), "400"),
        ("garbage", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\r\n\r\n".to_owned(), "400"),
        ("no path", good.replace("/echo", "echo"), "400"),
        ("no path but all", good.replace("/echo", "*"), "400"),
        ("a URL of another kind", good.replace("/echo", "ftp://x/echo"), "400"),
        ("CONNECT", good.replace("GET /echo", "CONNECT x:80"), "400"),
        ("a Host that is none", good.replace("Host: x", "Host: x/y?z"), "400"),
        ("a Host of two words", good.replace("Host: x", "Host: x y"), "400"),
    ];
    for (what, request, status) in cases {
        // A second request in the same packet: a proxy may have meant it for another client.
        let answer = stage.answer((request + "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.contains(&format!(" {status} ")), "{what}: {line:?} for {status}");
        assert_eq!(answer.lines().filter(|line| line.starts_with("HTTP/")).count(), 1, "{what}: {answer}");
        if status == "426" {
            assert!(answer.contains("sec-websocket-version: 13"), "{what}: {answer}");
        }
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn paths_are_routed_once_or_not_at_all() {
    let stage = Stage::set(Config::default()).await;
    for path in ["http://x/echo", "/%65cho", "/./echo", "//echo", "/echo/../echo", "/echo%00", "*"] {
        let request = upgrade("").replace("/echo", path) + "\u{88}";
        let answer = tokio::time::timeout(Duration::from_secs(10), async {
            let mut stream = TcpStream::connect(stage.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut line = [0; 12];
            stream.read_exact(&mut line).await.unwrap();
            String::from_utf8(line.to_vec()).unwrap()
        });
        let answer = answer.await.unwrap();
        assert!(
            ["HTTP/1.1 101", "HTTP/1.1 400", "HTTP/1.1 404"].contains(&answer.as_str()),
            "{path}: {answer}"
        );
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn subprotocols_that_cannot_be_read_are_as_good_as_none() {
    let stage = Stage::set(Config::default()).await;
    let spaces = " ".repeat(10_000);
    let commas = ", ,".repeat(3_000);
    for list in ["\u{e4}\u{f6}\u{fc}", spaces.as_str(), commas.as_str()] {
        let mut raw = Raw::open(stage.address, &format!("Sec-WebSocket-Protocol: {list}\r\n")).await;
        assert!(!raw.head.contains("sec-websocket-protocol"), "{}", raw.head);
        raw.echoes("x").await;
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn extensions_that_are_unknown_or_contradict_themselves_are_declined() {
    for deflate in [false, true] {
        let stage = Stage::set(Config::new().deflate(deflate)).await;
        for offer in [
            "x-webkit-deflate-frame",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=99",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=08",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; unknown",
            ";;;=,",
            "\u{e4}",
        ] {
            let mut raw = Raw::open(stage.address, &format!("Sec-WebSocket-Extensions: {offer}\r\n")).await;
            assert!(!raw.head.contains("sec-websocket-extensions"), "{offer}: {}", raw.head);
            raw.echoes("x").await;
        }
        stage.ends_unharmed().await;
    }
}

#[tokio::test]
async fn a_page_of_another_host_may_not_use_cookies() {
    let stage = Stage::set(Config::default()).await;
    for origin in ["https://evil.org", "https://evil-x", "http://x.evil.org", "null"] {
        let answer = stage.answer(upgrade(&format!("Origin: {origin}\r\nCookie: a=b\r\n")).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{origin}: {answer}");
    }
    assert_eq!(stage.mainstay.stats().refused_origin, 4);
    for fine in ["Origin: http://x\r\nCookie: a=b\r\n", "Origin: https://evil.org\r\n", "Cookie: a=b\r\n"] {
        Raw::open(stage.address, fine).await.echoes("x").await;
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn only_pages_on_the_list_may_open_a_websocket() {
    let origins = Origins::Only(vec!["https://example.com".to_owned()]);
    let stage = Stage::set(Config::new().origins(origins)).await;
    let answer = stage.answer(upgrade("Origin: http://x\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    Raw::open(stage.address, "Origin: https://example.com\r\n").await.echoes("x").await;
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn frames_sent_before_the_answer_are_read_after_it() {
    let stage = Stage::set(Config::default()).await;
    let stream = TcpStream::connect(stage.address).await.unwrap();
    let mut raw = Raw::over(stream, &[upgrade("").as_bytes(), &frame(0x81, b"early")].concat()).await;
    assert_eq!(raw.frame().await.unwrap(), (0x81, b"early".to_vec()));
    // Bad ones as well.
    let stream = TcpStream::connect(stage.address).await.unwrap();
    let mut bad = Raw::over(stream, &[upgrade("").as_bytes(), &[0x81, 1, b'x']].concat()).await;
    assert_eq!(bad.close_code().await, Some(1002));
    drop(raw);
    stage.ends_unharmed().await;
}

/// What remains of it after the request is for HELLO.
#[tokio::test(start_paused = true)]
async fn one_deadline_holds_from_accept_to_hello() {
    let stage = Stage::set(Config::default()).await;
    let start = Instant::now();
    let stream = TcpStream::connect(stage.address).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut raw = Raw::over(stream, upgrade("Sec-WebSocket-Protocol: mainstay.v1\r\n").as_bytes()).await;
    assert_eq!(raw.close_code().await, Some(4412));
    assert_eq!(start.elapsed().as_secs(), 5);
    stage.ends_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn each_request_of_a_kept_alive_connection_has_the_full_deadline() {
    let stage = Stage::set(Config::default()).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
    }
    let start = Instant::now();
    let mut raw = Raw::over(stream, upgrade("Sec-WebSocket-Protocol: mainstay.v1\r\n").as_bytes()).await;
    assert_eq!((raw.close_code().await, start.elapsed().as_secs()), (Some(4412), 5));
    stage.ends_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_application_before_101_does_not_count_against_the_client() {
    let mainstay = Server::default();
    let slowly = any(|upgrade: SessionUpgrade| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        upgrade.on_session(echo)
    });
    let app = Router::new().route("/echo", slowly).with_state(mainstay.clone());
    let (address, listener) = listener().await;
    tokio::spawn(async move { mainstay::serve(listener, app, &mainstay).await.unwrap() });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(upgrade("Sec-WebSocket-Protocol: mainstay.v1\r\n").as_bytes()).await.unwrap();
    let start = Instant::now();
    let mut raw = Raw::over(stream, b"").await;
    assert_eq!((raw.close_code().await, start.elapsed().as_secs()), (Some(4412), 65));
}

#[tokio::test(start_paused = true)]
async fn behind_another_server_the_deadline_holds_from_the_answer_on() {
    let mainstay = Server::default();
    let sessions = any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) });
    let app = Router::new().route("/echo", sessions).with_state(mainstay.clone());
    let (address, listener) = listener().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let mut honest = Raw::open(address, "").await;
    let start = Instant::now();
    let mut raw = Raw::open(address, "Sec-WebSocket-Protocol: mainstay.v1\r\n").await;
    assert_eq!((raw.close_code().await, start.elapsed().as_secs()), (Some(4412), 5));
    honest.echoes("x").await;
    assert_eq!(mainstay.stats().openings_failed, 1);
}

async fn listener() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener)
}
