//! Hostile and honest clients of the same backend. The tests of `mainstay` show the response to each input; here the client
//! has a link too. `docs/HOSTILE.md` has every input with its outcome and its test.

mod admin;
mod backends;
mod doors;
mod families;
mod http2;
mod log;
mod slow;

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::client::{Event, Mode};
use mainstay::{Client, GapCause, Link, Message};
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{Control, Window};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::frames::{BINARY, Frames, PING, TEXT, encoded, hello};
use crate::support::{Gateway, backend, echo};

const SESSION: &str = "Sec-WebSocket-Protocol: mainstay.v1\r\n";
/// With the message after them, as many as the window holds.
const GAPS: u64 = 1023;

/// The bytes that each hostile client writes after its opening handshake.
fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let masked = |first: u8, payload: &[u8]| {
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        frame.extend(payload);
        frame
    };
    vec![
        ("", vec![TEXT, 1, b'x']),
        ("", masked(0x83, b"")),
        ("", masked(TEXT, b"\xff")),
        ("", [&[TEXT, 0xff][..], &[0x3f; 8], &[0; 4]].concat()),
        ("", vec![TEXT, 0x85, 0, 0, 0, 0, b'x']),
        ("", masked(PING, b"").repeat(5000)),
        ("", masked(0x01, b"").repeat(5000)),
        (SESSION, masked(BINARY, b"")),
        (SESSION, masked(BINARY, &[4, 1])),
        (SESSION, masked(TEXT, b"no HELLO")),
    ]
}

/// The HELLO of a new session with a small window, the same each time.
pub(crate) fn small_hello() -> Vec<u8> {
    encoded(Hello { window: Window { messages: 16, bytes: 1 << 16 }, ..hello(7) })
}

/// A client that drops its own messages and reports each one.
async fn reports_gaps(gateway: &Gateway) -> Frames {
    let (_, mut client) = Frames::connect(gateway.address(), "/", SESSION).await;
    client.write(BINARY, &small_hello()).await;
    for first in 1..=GAPS {
        let gap = Control::Gap { first, count: 1, cause: GapCause::Overflow };
        client.write(BINARY, &gap.encode()).await;
    }
    client.write(TEXT, b"after the gaps").await;
    assert_eq!(client.text().await.as_deref(), Some("after the gaps"));
    client
}

/// A client that writes until its writes block, and reads nothing.
async fn never_reads(gateway: &Gateway) -> Frames {
    let (_, mut client) = Frames::connect(gateway.address(), "/", "").await;
    let write_one = async |client: &mut Frames| {
        tokio::time::timeout(Duration::from_millis(100), client.write(TEXT, &[b'x'; 60_000])).await
    };
    // 60 MB fill every buffer between the two.
    for _ in 0..1_000 {
        if write_one(&mut client).await.is_err() {
            return client;
        }
    }
    panic!("the gateway reads on, or has closed the connection");
}

async fn begins_a_request(gateway: &Gateway) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    stream
}

#[tokio::test]
async fn honest_clients_lose_nothing_beside_hostile_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, Router::new().route("/", any(echo))).await;
    let mut gateway = Gateway::in_front_of(address, &["--admin", "127.0.0.1:0"]);
    let mut session = Client::builder(&gateway.url).unwrap().connect();
    let mut plain = Link::builder(&gateway.url).unwrap().connect_once().await.unwrap();
    let mut hostile = Vec::new();
    let mut silent = Vec::new();
    let mut sent = 0..;
    for (headers, input) in inputs() {
        let (_, mut client) = Frames::connect(gateway.address(), "/", headers).await;
        client.write_bytes(&input).await;
        hostile.push(client);
        silent.push(begins_a_request(&gateway).await);
        serve_both(&mut session, &mut plain, sent.next().unwrap()).await;
    }
    hostile.push(reports_gaps(&gateway).await);
    serve_both(&mut session, &mut plain, sent.next().unwrap()).await;
    hostile.push(never_reads(&gateway).await);
    for number in sent.take(200) {
        serve_both(&mut session, &mut plain, number).await;
    }
    assert_eq!(
        session.event().await,
        Some(Event::Attached { mode: Mode::Session, resumed: false, epoch: 1 })
    );
    assert_eq!(
        gateway.metric("attaches_total{outcome=\"resumed\"}"),
        0.0,
        "no honest client was disconnected"
    );
    assert_eq!(gateway.metric("gaps_total{cause=\"client\"}"), GAPS as f64);
    assert!(gateway.is_up());
    assert!(gateway.log().lines().count() <= 1, "no client fills the log: {}", gateway.log());
}

async fn serve_both(session: &mut Client, plain: &mut Link, number: u32) {
    let message = Message::text(number.to_string());
    session.send(message.clone()).await.unwrap();
    plain.send(message.clone()).await.unwrap();
    assert_eq!((session.recv().await, plain.recv().await), (Some(message.clone()), Some(message)));
}
