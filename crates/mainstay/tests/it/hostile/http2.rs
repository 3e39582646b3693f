//! Clients of HTTP/2 that flood their connection, send heads that are none, or are slow. An honest client of the same server
//! has its own connection and is served until the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::{any, get};
use mainstay::server::Config;
use mainstay::{Server, Session, SessionUpgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::client::TlsStream;

use super::{LIMIT, frame};
use crate::serve_tls::{WebSocket, connect, http2, open_at, serve_app, trusting};
use crate::support::{echo, until};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;

/// One frame of HTTP/2.
fn h2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals that no table keeps; the name of each is its text.
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let literal = |(name, value): &(&str, &str)| [vec![0], text(name), text(value)].concat();
    fields.iter().flat_map(literal).collect()
}

fn get_of(path: &str) -> Vec<u8> {
    fields(&[(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", path)])
}

/// The fields of a WebSocket's opening handshake.
fn opening(more: &[(&str, &str)]) -> Vec<u8> {
    let own = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/ws")];
    let rest = [(":authority", "localhost"), ("sec-websocket-version", "13")];
    fields(&[&own[..], &rest, more].concat())
}

/// A server with an honest WebSocket over HTTP/2, and what its hostile clients need.
struct Stage {
    address: SocketAddr,
    mainstay: Server,
    trusts: mainstay::client::rustls::pki_types::CertificateDer<'static>,
    honest: Honest,
    /// Requests for `/waits`, which are never answered.
    waiting: Arc<AtomicUsize>,
}

impl Stage {
    async fn set(config: Config) -> Self {
        Self::with(config, Router::new()).await
    }

    async fn with(config: Config, more: Router<()>) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&waiting);
        let waits = get(async move || {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        });
        let (address, mainstay, trusts) = serve_app(config, more.route("/waits", waits)).await;
        let honest = open_at(&http2(address, &trusts).await, "/ws", "websocket").await.unwrap();
        let stage = Self { address, mainstay, trusts, honest: Honest::exchanges(honest), waiting };
        stage.honest_client_is_served().await;
        stage
    }

    async fn honest_client_is_served(&self) {
        let before = self.honest.served.load(Ordering::Relaxed);
        until("the honest client is served", || self.honest.served.load(Ordering::Relaxed) > before + 2)
            .await;
    }

    async fn raw(&self) -> Raw {
        let mut stream = connect(self.address, trusting(&self.trusts, "h2")).await;
        stream.write_all(&[PREFACE, &h2(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        Raw { stream, next: 1 }
    }

    /// Nothing is left of the hostile clients, and the honest one is served.
    async fn ends_unharmed(self) {
        self.honest_client_is_served().await;
        until("only the honest client is left", || {
            let stats = self.mainstay.stats();
            (stats.connections, stats.sessions) == (1, 1)
        })
        .await;
        assert!(!self.honest.task.is_finished());
    }
}

/// A client that exchanges messages all the while.
struct Honest {
    served: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Honest {
    fn exchanges(mut socket: WebSocket) -> Self {
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let task = tokio::spawn(async move {
            loop {
                let number = count.fetch_add(1, Ordering::Relaxed).to_string();
                socket.0.send_data(frame(0x81, number.as_bytes()).into(), false).unwrap();
                assert_eq!(messages(&mut socket, 1).await, [number.as_bytes()]);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { served, task }
    }
}

/// Reads so many short messages, and answers Pings.
async fn messages((outgoing, incoming): &mut WebSocket, count: usize) -> Vec<Vec<u8>> {
    let (mut bytes, mut messages) = (Vec::new(), Vec::new());
    while messages.len() < count {
        let read = tokio::time::timeout(LIMIT, incoming.data()).await.expect("it is served");
        let piece = read.unwrap().unwrap();
        incoming.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
        let mut rest = &bytes[..];
        while let [first, length, after @ ..] = rest
            && let Some((payload, after)) = after.split_at_checked(usize::from(*length))
        {
            match first {
                0x89 => outgoing.send_data(frame(0x8a, payload).into(), false).unwrap(),
                _ => messages.push(payload.to_vec()),
            }
            rest = after;
        }
        bytes = rest.to_vec();
    }
    messages
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// With a GOAWAY of this code.
    GoAway(u32),
    /// Without one, or before it could be read.
    Cut,
    /// The server answered the last PING.
    Lives,
}

struct Raw {
    stream: TlsStream<TcpStream>,
    /// The next stream to open.
    next: u32,
}

impl Raw {
    /// Writes all of it and reads until the connection ends or a PING after it is answered.
    async fn send(&mut self, bytes: &[u8]) -> Ended {
        const LAST: &[u8] = b"the last";
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let writing = async {
            // The server may close before it has read all of it.
            let _ = writer.write_all(bytes).await;
            let _ = writer.write_all(&h2(PING, 0, 0, LAST)).await;
            std::future::pending::<Ended>().await
        };
        let reading = async {
            loop {
                let mut head = [0; 9];
                if reader.read_exact(&mut head).await.is_err() {
                    return Ended::Cut;
                }
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; usize::try_from(length).unwrap()];
                if reader.read_exact(&mut payload).await.is_err() {
                    return Ended::Cut;
                }
                match head[3] {
                    GOAWAY => return Ended::GoAway(u32::from_be_bytes(*payload[4..].first_chunk().unwrap())),
                    PING if payload == LAST => return Ended::Lives,
                    _ => {}
                }
            }
        };
        let both = async {
            tokio::select! {
                ended = reading => ended,
                ended = writing => ended,
            }
        };
        tokio::time::timeout(LIMIT, both).await.expect("the server answers or closes")
    }

    /// Opens a stream with these fields; returns the frame and the stream's number.
    fn open(&mut self, fields: &[u8]) -> (Vec<u8>, u32) {
        let stream = self.next;
        self.next += 2;
        (h2(HEADERS, END_HEADERS | END_STREAM, stream, fields), stream)
    }
}

#[tokio::test]
async fn a_client_that_cancels_requests_without_end_loses_its_http_2_connection() {
    let stage = Stage::set(Config::default()).await;
    let mut raw = stage.raw().await;
    let mut ended = Ended::Lives;
    for _ in 0..100 {
        let (begun, streams): (Vec<_>, Vec<_>) = (0..50).map(|_| raw.open(&get_of("/waits"))).unzip();
        let before = stage.waiting.load(Ordering::Relaxed);
        ended = raw.send(&begun.concat()).await;
        if ended != Ended::Lives {
            break;
        }
        until("all are served", || stage.waiting.load(Ordering::Relaxed) == before + 50).await;
        let cancels = streams.iter().flat_map(|stream| h2(RESET, 0, *stream, &CANCEL));
        ended = raw.send(&cancels.collect::<Vec<_>>()).await;
    }
    assert_eq!(ended, Ended::Cut);
    until("it is counted", || stage.mainstay.stats().http2_floods == 1).await;
    let served = stage.waiting.load(Ordering::Relaxed);
    // 20 a second are returned meanwhile.
    assert!((1000..4000).contains(&served), "{served} requests were begun");
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_page_that_is_closed_cancels_its_requests_and_keeps_its_http_2_connection() {
    let stage = Stage::set(Config::default()).await;
    let mut raw = stage.raw().await;
    for _ in 0..5 {
        let before = stage.waiting.load(Ordering::Relaxed);
        let (begun, streams): (Vec<_>, Vec<_>) = (0..50).map(|_| raw.open(&get_of("/waits"))).unzip();
        assert_eq!(raw.send(&begun.concat()).await, Ended::Lives);
        until("all are served", || stage.waiting.load(Ordering::Relaxed) == before + 50).await;
        let cancels = streams.iter().flat_map(|stream| h2(RESET, 0, *stream, &CANCEL));
        assert_eq!(raw.send(&cancels.collect::<Vec<_>>()).await, Ended::Lives);
    }
    assert_eq!(stage.mainstay.stats().http2_floods, 0);
    stage.ends_unharmed().await;
}

/// Makes the bytes of a flood on this connection.
type Flood<'a> = dyn Fn(&mut Raw) -> Vec<u8> + 'a;

/// What h2 itself counts.
#[tokio::test]
async fn a_flood_of_frames_of_no_use_ends_its_http_2_connection() {
    let stage = Stage::set(Config::default()).await;
    let resets = |raw: &mut Raw| -> Vec<u8> {
        let each = |_| {
            let (begun, stream) = raw.open(&get_of("/waits"));
            [begun, h2(RESET, 0, stream, &CANCEL)].concat()
        };
        (0..2_000).flat_map(each).collect()
    };
    let headers_without_end = |_: &mut Raw| {
        let more = fields(&[("x", &"x".repeat(100))]);
        [h2(HEADERS, END_STREAM, 1, &get_of("/about")), h2(CONTINUATION, 0, 1, &more).repeat(20_000)].concat()
    };
    let empty_headers_without_end = |_: &mut Raw| {
        [h2(HEADERS, END_STREAM, 1, &get_of("/about")), h2(CONTINUATION, 0, 1, &[]).repeat(20_000)].concat()
    };
    let empty_data = |_: &mut Raw| {
        [h2(HEADERS, END_HEADERS, 1, &opening(&[])), h2(DATA, 0, 1, &[]).repeat(20_000)].concat()
    };
    let floods: [(&str, &Flood); 4] = [
        ("requests that are reset at once", &resets),
        ("headers without end", &headers_without_end),
        ("empty headers without end", &empty_headers_without_end),
        ("empty data", &empty_data),
    ];
    for (count, (what, flood)) in (1..).zip(floods) {
        let mut raw = stage.raw().await;
        let bytes = flood(&mut raw);
        let ended = raw.send(&bytes).await;
        // The GOAWAY is lost if the server closed while the client wrote on.
        assert!([Ended::GoAway(ENHANCE_YOUR_CALM), Ended::Cut].contains(&ended), "{what}: {ended:?}");
        until(what, || stage.mainstay.stats().http2_floods == count).await;
    }
    stage.ends_unharmed().await;
}

/// Each is answered before the next is read, so they cost their sender as much as the server.
#[tokio::test]
async fn a_flood_of_frames_that_are_answered_takes_nothing_from_others() {
    let stage = Stage::set(Config::default()).await;
    for (what, each) in [
        ("settings", h2(SETTINGS, 0, 0, &[])),
        ("pings", h2(PING, 0, 0, b"12345678")),
        ("priorities", h2(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("window updates", h2(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    ] {
        let mut raw = stage.raw().await;
        let bytes = each.repeat(20_000);
        let flooding = raw.send(&bytes);
        let (ended, ()) = tokio::join!(flooding, stage.honest_client_is_served());
        assert_eq!(ended, Ended::Lives, "{what}");
    }
    stage.ends_unharmed().await;
}

/// The status of the response, or `None` if the server resets the stream.
async fn status(stage: &Stage, fields: &[u8]) -> Option<String> {
    let mut raw = stage.raw().await;
    let (head, stream) = (h2(HEADERS, END_HEADERS, raw.next, fields), raw.next);
    raw.stream.write_all(&head).await.unwrap();
    let answer = async {
        loop {
            let mut head = [0; 9];
            raw.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            raw.stream.read_exact(&mut payload).await.ok()?;
            let is_ours = head[5..] == stream.to_be_bytes();
            match head[3] {
                HEADERS if is_ours => return Some(status_in(&payload)),
                RESET if is_ours => return None,
                GOAWAY => return None,
                _ => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, answer).await.expect("the server answers")
}

/// The first field of a response is its status.
fn status_in(block: &[u8]) -> String {
    // An update of the table's size may stand before it.
    let block: Vec<_> = block.iter().skip_while(|byte| (0x20..0x40).contains(*byte)).collect();
    let known = ["200", "204", "206", "304", "400", "404", "500"];
    match block[..] {
        [index @ 0x88..=0x8e, ..] => known[usize::from(*index - 0x88)].to_owned(),
        // The name from the table; the digits are short in Huffman's code.
        [0x08 | 0x48, 0x83, 0x69, 0x90, 0xff, ..] => "431".to_owned(),
        _ => format!("{block:02x?}"),
    }
}

#[tokio::test]
async fn a_head_of_http_2_that_is_none_opens_no_websocket() {
    let stage = Stage::set(Config::default()).await;
    assert_eq!(status(&stage, &opening(&[])).await.as_deref(), Some("200"), "the right one");
    let own = |method: &'static str, protocol: &'static str| {
        let own = [(":method", method), (":protocol", protocol), (":scheme", "https"), (":path", "/ws")];
        fields(&[&own[..], &[(":authority", "localhost"), ("sec-websocket-version", "13")]].concat())
    };
    let without = |name: &str| {
        let all = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", "/ws"),
            (":authority", "localhost"),
            ("sec-websocket-version", "13"),
        ];
        fields(&all.into_iter().filter(|(known, _)| *known != name).collect::<Vec<_>>())
    };
    let cases = [
        ("two methods", fields(&[(":method", "CONNECT")]).into_iter().chain(opening(&[])).collect()),
        ("two paths", fields(&[(":path", "/ws")]).into_iter().chain(opening(&[])).collect()),
        ("two protocols", fields(&[(":protocol", "websocket")]).into_iter().chain(opening(&[])).collect()),
        ("a pseudo-field at the end", opening(&[(":path", "/ws")])),
        ("an unknown pseudo-field", opening(&[(":colour", "red")])),
        ("a name in capitals", opening(&[("X-Name", "x")])),
        ("Connection", opening(&[("connection", "upgrade")])),
        ("Transfer-Encoding", opening(&[("transfer-encoding", "chunked")])),
        ("a newline in a value", opening(&[("x", "a\nb")])),
        ("a NUL in a value", opening(&[("x", "a\0b")])),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("no authority", without(":authority")),
        ("another Host", opening(&[("host", "evil.example")])),
        ("two Hosts", opening(&[("host", "localhost"), ("host", "evil.example")])),
        ("no version", without("sec-websocket-version")),
        ("GET with a protocol", own("GET", "websocket")),
        ("another protocol", own("CONNECT", "connect-udp")),
    ];
    for (what, head) in cases {
        let status = status(&stage, &head).await;
        assert!(status.as_deref().is_none_or(|status| status != "200"), "{what}: {status:?}");
    }
    let many: Vec<_> = (0..65).map(|_| ("x", "x")).collect();
    assert_eq!(status(&stage, &opening(&many)).await.as_deref(), Some("431"));
    // 40 KiB of fields: refused with 431, or by ending the connection.
    let long = "x".repeat(120);
    let many: Vec<_> = (0..300).map(|_| ("x", long.as_str())).collect();
    let mut raw = stage.raw().await;
    let block = opening(&many);
    let (first, rest) = block.split_at(16_000);
    let mut bytes = h2(HEADERS, 0, raw.next, first);
    let pieces: Vec<_> = rest.chunks(16_000).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let flags = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
        bytes.extend(h2(CONTINUATION, flags, raw.next, piece));
    }
    raw.send(&bytes).await;
    assert_eq!(stage.mainstay.stats().attached_new, 0);
    drop(raw);
    stage.ends_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_speaks_http_2_slowly_is_dropped_at_the_opening_deadline() {
    let (address, mainstay, trusts) = serve_app(Config::default(), Router::new()).await;
    let head = [PREFACE, &h2(SETTINGS, 0, 0, &[]), &h2(HEADERS, 5, 1, &get_of("/about"))].concat();
    // Nothing at all, the greeting alone, and all of it at a byte a second.
    for (bytes, pause) in [(0, None), (PREFACE.len() + 9, None), (head.len(), Some(Duration::from_secs(1)))] {
        let before = mainstay.stats().openings_failed;
        let mut stream = connect(address, trusting(&trusts, "h2")).await;
        let start = tokio::time::Instant::now();
        match pause {
            None => stream.write_all(&head[..bytes]).await.unwrap(),
            Some(pause) => {
                for byte in &head[..bytes] {
                    if stream.write_all(&[*byte]).await.is_err() || start.elapsed().as_secs() > 20 {
                        break;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(start.elapsed().as_secs() <= 20, "{:?}", start.elapsed());
        crate::support::until_quiet("it is counted", || mainstay.stats().openings_failed == before + 1).await;
    }
    assert_eq!(mainstay.stats().connections, 0);
}

/// A handler that reads nothing before it may.
fn patient(may: &Arc<Semaphore>) -> Router<()> {
    let may = Arc::clone(may);
    let handler = move |session: Session| {
        let may = Arc::clone(&may);
        async move {
            may.acquire().await.unwrap().forget();
            echo(session).await;
        }
    };
    Router::new().route("/patient", any(async move |upgrade: SessionUpgrade| upgrade.on_session(handler)))
}

/// The smallest messages that fill the stream's window, each in a DATA frame of its own, are no flood of frames.
#[tokio::test]
async fn a_websocket_in_http_2_whose_handler_waits_keeps_its_connection_however_small_its_messages() {
    let may = Arc::new(Semaphore::new(0));
    let stage = Stage::with(Config::default(), patient(&may)).await;
    let sender = http2(stage.address, &stage.trusts).await;
    let mut patient = open_at(&sender, "/patient", "websocket").await.unwrap();
    let mut other = open_at(&sender, "/ws", "websocket").await.unwrap();
    let count = 12_000;
    for _ in 0..count {
        patient.0.send_data(frame(0x82, b"x").into(), false).unwrap();
    }
    for _ in 0..20 {
        other.0.send_data(frame(0x81, b"beside").into(), false).unwrap();
        assert_eq!(messages(&mut other, 1).await, [b"beside"]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    may.add_permits(1);
    assert!(messages(&mut patient, count).await.iter().all(|message| message == b"x"));
    assert_eq!(stage.mainstay.stats().http2_floods, 0);
    drop((patient, other, sender));
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn websockets_whose_handlers_wait_hold_up_no_other_in_their_http_2_connection() {
    let may = Arc::new(Semaphore::new(0));
    let stage = Stage::with(Config::default(), patient(&may)).await;
    let sender = http2(stage.address, &stage.trusts).await;
    let mut other = open_at(&sender, "/ws", "websocket").await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let (mut outgoing, incoming) = open_at(&sender, "/patient", "websocket").await.unwrap();
        // More than the session's window and that of the stream.
        for _ in 0..40 {
            outgoing.send_data(frame(0x82, &[7; 60_000]).into(), false).unwrap();
        }
        waiting.push((outgoing, incoming));
    }
    for _ in 0..50 {
        other.0.send_data(frame(0x81, b"beside").into(), false).unwrap();
        assert_eq!(messages(&mut other, 1).await, [b"beside"]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    may.add_permits(waiting.len());
    drop((waiting, other, sender));
    stage.ends_unharmed().await;
}
