//! Backends that break the rules: in their response, in their frames, by silence. Each ends the link, and with it its own client;
//! clients of the same backend on other connections are served.

use std::time::Duration;

use bytes::{Buf, Bytes};
use mainstay::{Kind, Limits};
use mainstay_proto::ws::handshake::accept_key;
use mainstay_proto::ws::{Connection, DeflateParams, Role, SendQueue};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::doors::{Door, House, Neighbour, masked, opening, reads_to_the_end, sum};
use super::families::fresh_hello;
use crate::frames::{CLOSE, Frames, PING, PONG, TEXT, head};
use crate::support::until;

/// Paths whose opening handshake is wrong, and the status that a plain client gets. A session waits, as for a backend that is
/// away.
const REFUSED: &[(&str, &str)] = &[
    ("/endless-head", "502"),
    ("/large-head", "502"),
    ("/many-fields", "502"),
    ("/endless-interim", "504"),
    ("/byte-by-byte", "504"),
    ("/wrong-accept", "502"),
    ("/no-accept", "502"),
    ("/another-upgrade", "502"),
    ("/extension", "502"),
    ("/two-extensions", "502"),
    ("/subprotocol", "502"),
    ("/no-http", "502"),
];

/// Paths whose frames are wrong, and the code with which a client is closed, or a session ended.
const BROKEN: &[(&str, u16)] = &[
    ("/masked", 1012),
    ("/reserved-bit", 1012),
    ("/reserved-opcode", 1012),
    ("/two-to-the-63", 1012),
    ("/continuation", 1012),
    ("/no-utf8", 1012),
    ("/wrong-code", 1012),
    ("/fragments", 1012),
    ("/pings", 1012),
    ("/pongs", 1012),
    ("/a-gigabyte", 1009),
    ("/bomb", 1009),
    ("/broken-deflate", 1012),
];

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first, u8::try_from(payload.len()).unwrap()];
    out.extend(payload);
    out
}

fn bomb() -> Vec<u8> {
    let mut server =
        Connection::new(Role::Server, Limits::default(), Some(DeflateParams::default()), [7; 32]);
    let mut out = SendQueue::new();
    server.send(Kind::Binary, b"", &Bytes::from(vec![0; 10 << 20]), &mut out);
    out.copy_to_bytes(out.remaining()).to_vec()
}

/// The bytes that a backend writes behind a right 101.
fn frames_of(path: &str) -> Option<Vec<u8>> {
    Some(match path {
        "/masked" => masked(TEXT, b"x"),
        "/reserved-bit" => frame(0xa1, b"x"),
        "/reserved-opcode" => frame(0x83, b"x"),
        "/two-to-the-63" => [&[0x82, 127][..], &(1_u64 << 63).to_be_bytes()].concat(),
        "/continuation" => frame(0x80, b"x"),
        "/no-utf8" => frame(TEXT, &[0xff]),
        "/wrong-code" => frame(CLOSE, &1006_u16.to_be_bytes()),
        "/fragments" => [frame(0x02, b"x"), frame(0x00, b"x").repeat(2000)].concat(),
        "/pings" => frame(PING, b"?").repeat(5000),
        "/pongs" => frame(PONG, b"!").repeat(5000),
        "/a-gigabyte" => [&[0x82, 127][..], &(1_u64 << 30).to_be_bytes()].concat(),
        "/bomb" => bomb(),
        "/broken-deflate" => frame(0xc2, &[0x07]),
        _ => return None,
    })
}

/// The head of a response that is wrong.
fn head_of(path: &str, accept: &str) -> Option<String> {
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n";
    let good = format!("{switching}Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n");
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    Some(match path {
        "/large-head" => format!("{good}X: {}\r\n\r\n", "x".repeat(1_000_000)),
        "/many-fields" => {
            let fields: String = (0..200).map(|number| format!("X-{number}: x\r\n")).collect();
            format!("{good}{fields}\r\n")
        }
        "/wrong-accept" => format!("{switching}Upgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n"),
        "/no-accept" => format!("{switching}Upgrade: websocket\r\n\r\n"),
        "/another-upgrade" => format!("{switching}Upgrade: h2c\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"),
        "/extension" => format!("{good}Sec-WebSocket-Extensions: x-never-offered\r\n\r\n"),
        "/two-extensions" => format!("{good}{deflate}{deflate}\r\n"),
        "/subprotocol" => format!("{good}Sec-WebSocket-Protocol: never.offered\r\n\r\n"),
        "/no-http" => "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(),
        _ => return None,
    })
}

async fn serve(mut stream: TcpStream) {
    // A probe, or an attempt that was cancelled, is an empty connection.
    let Ok(request) = head(&mut stream).await else { return };
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap_or_default();
    let accept = accept_key(key.as_bytes());
    if let Some(head) = head_of(&path, &accept) {
        let _ = stream.write_all(head.as_bytes()).await;
        return reads_to_the_end(stream).await;
    }
    let endless: Option<(&[u8], Duration)> = match path.as_str() {
        "/endless-head" => Some((&[b'x'; 10_000], Duration::from_millis(1))),
        "/endless-interim" => Some((b"HTTP/1.1 100 Continue\r\n\r\n", Duration::from_millis(1))),
        "/byte-by-byte" => Some((b"x", Duration::from_millis(50))),
        _ => None,
    };
    if let Some((piece, pause)) = endless {
        if path != "/endless-interim" {
            let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nX: ").await;
        }
        while stream.write_all(piece).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
        return;
    }
    let is_compressed = ["/bomb", "/broken-deflate"].contains(&path.as_str());
    let parameters = "server_no_context_takeover; client_no_context_takeover";
    let agreed = format!("Sec-WebSocket-Extensions: permessage-deflate; {parameters}\r\n");
    let deflate = if is_compressed { agreed.as_str() } else { "" };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{deflate}\r\n"
    );
    let _ = stream.write_all(head.as_bytes()).await;
    match frames_of(&path) {
        Some(bytes) => {
            let (mut reader, mut writer) = stream.into_split();
            let writing = async {
                let _ = writer.write_all(&bytes).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = reads_to_the_end(&mut reader) => {}
                () = writing => {}
            }
        }
        None => echo(Frames::from(stream), &path).await,
    }
}

/// Repeats every message. `/stays` never answers a Close, and never ends its connection by itself.
async fn echo(mut frames: Frames, path: &str) {
    while let Ok((first, payload)) = frames.read().await {
        match first {
            PING => frames.write(PONG, &payload).await,
            CLOSE if path == "/stays" => {}
            CLOSE => return frames.write(CLOSE, &payload).await,
            PONG => {}
            _ => frames.write(first, &payload).await,
        }
    }
    if path == "/stays" {
        // Its end of the connection stays open.
        tokio::time::sleep(Duration::from_secs(120)).await;
    }
}

async fn house(flags: &[&str]) -> House {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    let own = ["--upstream-answer-timeout", "2s", "--upstream-deflate", "--resume-window", "1s"];
    let limits = ["--max-message", "1MiB", "--max-fragments", "1024"];
    House::new(Door::Tcp, address, &[&own[..], &limits, flags].concat())
}

const SESSION: &str = "Sec-WebSocket-Protocol: mainstay.v1\r\n";

#[tokio::test]
async fn a_backend_whose_opening_handshake_is_wrong_ends_its_own_client_and_no_other() {
    let mut house = house(&[]).await;
    let neighbour = Neighbour::at(&house, "/honest").await;
    let before = house.figures();
    for (path, status) in REFUSED {
        let answer = house.ask(opening(path, "").as_bytes()).await;
        assert_eq!((answer.status().as_str(), answer.responses()), (*status, 1), "{path}");
    }
    let attempts = || sum(&house.gateway.get("/metrics", ""), "mainstay_link_attempts_failed_total");
    let plain = attempts();
    let mut sessions = Vec::new();
    for (path, _) in REFUSED {
        let mut session = house.connect().await;
        session.write_all(&[opening(path, SESSION).as_bytes(), &fresh_hello()].concat()).await.unwrap();
        sessions.push(session);
    }
    until("each was tried twice", || attempts() >= plain + 2.0 * REFUSED.len() as f64).await;
    drop(sessions);
    house.is_back_at(&before, "hostile backends").await;
    neighbour.was_served().await;
    assert!(house.gateway.is_up() && !house.gateway.log().contains("panic"), "{}", house.gateway.log());
}

#[tokio::test]
async fn a_backend_that_breaks_the_rules_ends_its_own_client_and_no_other() {
    let mut house = house(&[]).await;
    let neighbour = Neighbour::at(&house, "/honest").await;
    let before = house.figures();
    for (path, code) in BROKEN {
        let answer = house.ask(opening(path, "").as_bytes()).await;
        assert_eq!((answer.status().as_str(), answer.code()), ("101", Some(*code)), "{path}");
        let answer = house.ask(&[opening(path, SESSION).as_bytes(), &fresh_hello()].concat()).await;
        let ended = answer.end().or(answer.code().map(u64::from));
        assert_eq!((answer.status().as_str(), ended), ("101", Some(u64::from(*code))), "{path}");
    }
    house.is_back_at(&before, "hostile backends").await;
    neighbour.was_served().await;
    assert!(house.gateway.is_up() && !house.gateway.log().contains("panic"), "{}", house.gateway.log());
}

#[tokio::test]
async fn a_backend_that_never_answers_a_close_holds_nothing() {
    let house = house(&[]).await;
    let neighbour = Neighbour::at(&house, "/honest").await;
    let before = house.figures();
    for _ in 0..20 {
        let bytes = [opening("/stays", "").into_bytes(), masked(TEXT, b"x"), masked(CLOSE, &[3, 0xe8])];
        assert_eq!(house.ask(&bytes.concat()).await.code(), Some(1000));
        let bytes = [opening("/stays", SESSION).into_bytes(), fresh_hello(), vec![TEXT, 1, b'x']];
        assert_eq!(house.ask(&bytes.concat()).await.code(), Some(1002));
    }
    house.is_back_at(&before, "clients whose backend stays").await;
    neighbour.was_served().await;
}
