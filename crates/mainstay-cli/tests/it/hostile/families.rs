//! Each family of hostile inputs at each door of a gateway, as a plain client and as one that speaks `mainstay.v1`: the answer,
//! a neighbour that is served meanwhile, and what is held afterwards.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::routing::any;
use bytes::{Buf, Bytes};
use mainstay::{Kind, Limits};
use mainstay_proto::session::message::{Beat, Hello, Resume, ResumeToken};
use mainstay_proto::session::{Control, Frame, Message, Window};
use mainstay_proto::ws::{Connection, DeflateParams, Role, SendQueue};
use tokio::net::TcpListener;

use super::doors::{Door, House, Neighbour, header, masked, opening};
use crate::frames::{BINARY, CLOSE, PING, PONG, TEXT, encoded, hello};
use crate::support::{backend, echo};

const SESSION: &str = "Sec-WebSocket-Protocol: mainstay.v1\r\n";
const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const FLAGS: [&str; 7] =
    ["--max-message", "1MiB", "--max-fragments", "1024", "--deflate", "--resume-window", "1s"];

/// A request behind a refused one: a proxy may have meant it for another client.
const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

/// Openings that are none, and the status of each.
fn openings() -> Vec<(&'static str, String, &'static str)> {
    let good = opening("/", "");
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let field = |field: &str| opening("/", field);
    let many: String = (0..101).map(|number| format!("X-{number}: x\r\n")).collect();
    vec![
        ("a head of 40 KB", field(&format!("X: {}\r\n", "x".repeat(40_000))), "431"),
        ("110 fields", field(&many), "431"),
        ("no Host", good.replace("Host: x\r\n", ""), "400"),
        ("two Hosts", field("Host: y\r\n"), "400"),
        ("HTTP/1.0", good.replace("HTTP/1.1", "HTTP/1.0"), "400"),
        ("POST", good.replace("GET", "POST"), "405"),
        ("version 12", good.replace(": 13", ": 12"), "426"),
        ("no key", good.replace(key, ""), "400"),
        ("a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="), "400"),
        ("two keys", field(key), "400"),
        ("no Connection: Upgrade", good.replace("Connection: Upgrade", "Connection: keep-alive"), "400"),
        ("a body", field("Content-Length: 5\r\n") + "hello", "400"),
        ("a chunked body", field("Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", "400"),
        ("a body of both kinds", field("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), "400"),
        ("CR in a value", field("X: a\rb\r\n"), "400"),
        ("NUL in a value", field("X: a\0b\r\n"), "400"),
        ("a folded value", field("X: a\r\n b\r\n"), "400"),
        ("another site with cookies", field("Origin: https://evil.example\r\nCookie: a=b\r\n"), "403"),
        ("no origin with cookies", field("Origin: null\r\nCookie: a=b\r\n"), "403"),
        ("an origin that begins alike", field("Origin: http://x.evil.example\r\nCookie: a=b\r\n"), "403"),
        ("no path", good.replace("GET / ", "GET * "), "400"),
        ("bytes that are no HTTP", "\u{16}\u{3}\u{1}\0\r\n\r\n".to_owned(), "400"),
    ]
}

/// Frames that end their connection, and the code of each.
fn frames() -> Vec<(String, Vec<u8>, u16)> {
    let mut cases: Vec<(String, Vec<u8>, u16)> = [
        ("an unmasked frame", vec![TEXT, 1, b'x'], 1002),
        ("a fragmented ping", masked(0x09, b"x"), 1002),
        ("a ping of 126 bytes", masked(PING, &[b'x'; 126]), 1002),
        ("125 bytes in 16 bits", [&[BINARY, 0xfe, 0, 125, 0, 0, 0, 0][..], &[0; 125]].concat(), 1002),
        ("2^63 bytes", [header(BINARY, 1 << 63), vec![0; 4]].concat(), 1002),
        ("2^64 - 1 bytes", [header(BINARY, u64::MAX), vec![0; 4]].concat(), 1002),
        ("1 GB", [header(BINARY, 1 << 30), vec![0; 4]].concat(), 1009),
        ("a continuation of nothing", masked(0x80, b"x"), 1002),
        ("a message inside another", [masked(0x01, b"a"), masked(TEXT, b"b")].concat(), 1002),
        ("a message above the limit", masked(BINARY, &vec![0; (1 << 20) + 2]), 1009),
        ("1,025 fragments", [masked(0x02, b"x"), masked(0x00, b"x").repeat(1024)].concat(), 1008),
        ("endless empty fragments", [masked(0x02, b""), masked(0x00, b"").repeat(20_000)].concat(), 1008),
        ("text that is no UTF-8", masked(TEXT, &[0xce, 0xba, 0xff]), 1007),
        ("half a close code", masked(CLOSE, &[3]), 1002),
        ("a close reason that is no UTF-8", masked(CLOSE, &[3, 0xe8, 0xff]), 1007),
        ("a flood of pings", masked(PING, b"?").repeat(5_000), 1008),
        ("a flood of pongs", masked(PONG, b"!").repeat(5_000), 1008),
    ]
    .map(|(what, bytes, code)| (what.to_owned(), bytes, code))
    .into();
    cases.extend([0x40, 0x20, 0x10].map(|bit| (format!("bit {bit:#x}"), masked(TEXT | bit, b"x"), 1002)));
    cases.extend([3, 7, 11, 15].map(|code| (format!("opcode {code}"), masked(0x80 | code, b"x"), 1002)));
    let close = |code: u16| (format!("close code {code}"), masked(CLOSE, &code.to_be_bytes()), 1002);
    cases.extend([0, 999, 1004, 1005, 1006, 1015, 2999, 5000].map(close));
    cases
}

/// Compressed messages that are not what they look like.
fn compressed() -> Vec<(String, Vec<u8>, u16)> {
    let mut client =
        Connection::new(Role::Client, Limits::default(), Some(DeflateParams::default()), [7; 32]);
    let mut out = SendQueue::new();
    client.send(Kind::Binary, b"", &Bytes::from(vec![0; 10 << 20]), &mut out);
    let bomb = out.copy_to_bytes(out.remaining()).to_vec();
    assert!(bomb.len() < 20_000);
    [
        ("a bomb", bomb, 1009),
        ("a reserved block", masked(0xc2, &[0x07]), 1007),
        ("a stored block that ends early", masked(0xc2, &[0x00, 0xff, 0x00, 0x00, 0xff, b'x']), 1007),
        ("a distance before the start", masked(0xc2, &[0x4b, 0x04, 0x62, 0x00]), 1007),
        ("a compressed ping", masked(0xc9, b"x"), 1002),
        ("a compressed continuation", [masked(0x42, b"x"), masked(0xc0, b"x")].concat(), 1002),
    ]
    .map(|(what, bytes, code)| (what.to_owned(), bytes, code))
    .into()
}

/// The HELLO of another client each time.
pub(crate) fn fresh_hello() -> Vec<u8> {
    static NUMBER: AtomicU64 = AtomicU64::new(1000);
    let own = hello(NUMBER.fetch_add(1, Ordering::Relaxed));
    masked(BINARY, &encoded(Hello { window: Window { messages: 16, bytes: 1 << 16 }, ..own }))
}

fn control(control: &Control) -> Vec<u8> {
    masked(BINARY, &control.encode())
}

/// What is no session: in place of HELLO, and behind it.
fn messages() -> Vec<(String, Vec<u8>, u16)> {
    let ack = control(&Control::Ack { acknowledged: 0, window: None });
    let then = |bytes: Vec<u8>| [fresh_hello(), ack.clone(), bytes].concat();
    [
        ("text", masked(TEXT, b"{\"a\":{\"a\":{\"a\":NaN}},\"a\":1e999}"), 4400),
        ("no bytes", masked(BINARY, b""), 4400),
        ("an unknown type", masked(BINARY, &[0x7f]), 4400),
        ("half a HELLO", masked(BINARY, &[1, 1]), 4400),
        ("an ACK before HELLO", ack.clone(), 4400),
        ("a second HELLO", then(fresh_hello()), 4400),
        (
            "an ACK of what was never written",
            then(control(&Control::Ack { acknowledged: 9, window: None })),
            4400,
        ),
        ("an ACK of 2^53", then(masked(BINARY, &[3, 0xc0, 0x20, 0, 0, 0, 0, 0, 0])), 4400),
        ("a field that ends early", then(masked(BINARY, &[4, 1])), 4400),
        (
            "a jump in positions",
            then(control(&Control::Ping(Beat { nonce: 1, sent: 7, acknowledged: 0 }))),
            4400,
        ),
    ]
    .map(|(what, bytes, code)| (what.to_owned(), bytes, code))
    .into()
}

/// Sends each input behind this opening and expects its code.
async fn check(house: &House, fields: &str, cases: &[(String, Vec<u8>, u16)]) {
    let is_plain = !fields.contains("mainstay.v1");
    for (what, bytes, code) in cases {
        let hello = if is_plain { Vec::new() } else { fresh_hello() };
        let answer = house.ask(&[opening("/", fields).as_bytes(), &hello, bytes].concat()).await;
        assert_eq!((answer.status().as_str(), answer.code()), ("101", Some(*code)), "{what} {fields}");
    }
}

/// All families at one door.
async fn every_input_is_answered_at(door: Door) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, Router::new().fallback(any(echo))).await;
    let mut house = House::new(door, address, &FLAGS);
    let neighbour = Neighbour::at(&house, "/").await;
    let before = house.figures();
    for (what, request, status) in openings() {
        let answer = house.ask((request + NEXT).as_bytes()).await;
        assert_eq!((answer.status().as_str(), answer.responses()), (status, 1), "{what}");
    }
    house.is_back_at(&before, "openings").await;
    for fields in ["", SESSION] {
        check(&house, fields, &frames()).await;
    }
    house.is_back_at(&before, "frames").await;
    for fields in [DEFLATE.to_owned(), format!("{SESSION}{DEFLATE}")] {
        check(&house, &fields, &compressed()).await;
    }
    house.is_back_at(&before, "compression").await;
    for (what, bytes, code) in messages() {
        let answer = house.ask(&[opening("/", SESSION).as_bytes(), &bytes].concat()).await;
        assert_eq!((answer.status().as_str(), answer.code()), ("101", Some(code)), "{what}");
    }
    guesses(&house).await;
    house.is_back_at(&before, "messages of a session").await;
    neighbour.was_served().await;
    assert!(house.gateway.is_up());
    let log = house.gateway.log();
    assert!(!log.contains("panic") && log.lines().count() < 20, "no client fills the log: {log}");
}

/// Guessed resume tokens: each gets a session of its own.
async fn guesses(house: &House) {
    for guess in 0..20_u64 {
        let token = ResumeToken(guess.to_be_bytes().repeat(3).into());
        let resume = Some(Resume { token, acknowledged: 0, sent: 0, first_held: 1 });
        let own = Hello { resume, ..hello(100 + guess) };
        // The broken frame behind it ends the connection.
        let bytes = [masked(BINARY, &encoded(own)), vec![TEXT, 1, b'x']].concat();
        let answer = house.ask(&[opening("/", SESSION).as_bytes(), &bytes].concat()).await;
        let (_, first) = answer.frames()[0];
        match Frame::decode(Message::Binary(first.to_vec().into())) {
            Ok(Frame::Control(Control::Welcome(welcome))) => assert!(!welcome.resumed),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn every_hostile_input_is_answered_over_tcp_beside_a_neighbour_and_leaves_nothing() {
    every_input_is_answered_at(Door::Tcp).await;
}

#[tokio::test]
async fn every_hostile_input_is_answered_over_tls_beside_a_neighbour_and_leaves_nothing() {
    every_input_is_answered_at(Door::Tls).await;
}

#[tokio::test]
async fn every_hostile_input_is_answered_over_a_unix_socket_beside_a_neighbour_and_leaves_nothing() {
    every_input_is_answered_at(Door::Unix).await;
}

#[tokio::test]
async fn every_hostile_input_is_answered_behind_a_proxy_beside_a_neighbour_and_leaves_nothing() {
    every_input_is_answered_at(Door::Proxied).await;
}
