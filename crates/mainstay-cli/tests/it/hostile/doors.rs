//! The ways into a gateway: TCP, TLS, a Unix socket, and a proxy with its PROXY header; and what stays behind in it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay::client::rustls::ClientConfig;
use mainstay::client::rustls::pki_types::ServerName;
use mainstay_proto::session::{Control, Frame, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::client_tls::{certificate, trusting, write};
use crate::frames::{BINARY, CLOSE, PING, PONG, TEXT};
use crate::listeners::Folder;
use crate::support::{Gateway, mainstay, until};

/// Far longer than any step needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A stream of either kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Tcp,
    Tls,
    Unix,
    Proxied,
}

/// A gateway with one door.
pub(crate) struct House {
    pub(crate) gateway: Gateway,
    door: Door,
    trusts: Arc<ClientConfig>,
    folder: Folder,
}

impl House {
    /// Starts a gateway in front of this backend, with these further flags.
    pub(crate) fn new(door: Door, backend: SocketAddr, flags: &[&str]) -> Self {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let folder = Folder::new(&format!("door-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let own = certificate("localhost");
        let [chain, key] = write(&folder, &own);
        let upstream = format!("ws://{backend}");
        let mut command = mainstay(&["serve", "--upstream", &upstream, "--admin", "127.0.0.1:0"]);
        command.args(flags);
        let socket = format!("unix:{}", folder.path("a.sock"));
        match door {
            Door::Unix => command.args(["--listen", &socket]),
            _ => command.args(["--listen", "127.0.0.1:0"]),
        };
        if door == Door::Tls {
            command.args(["--tls-certificate", &chain, "--tls-key", &key]);
            command.env("MAINSTAY_TLS__HTTP2", "true");
        }
        if door == Door::Proxied {
            command.args(["--trusted-proxy", "127.0.0.1"]).env("MAINSTAY_PROXIES__PROXY_PROTOCOL", "any");
        }
        Self { gateway: Gateway::begin(command), door, trusts: trusting(&own), folder }
    }

    /// Connects as far as TCP, or the Unix socket.
    pub(crate) async fn knock(&self) -> Box<dyn Io> {
        match self.door {
            Door::Unix => Box::new(UnixStream::connect(self.folder.path("a.sock")).await.unwrap()),
            _ => Box::new(self.tcp().await),
        }
    }

    async fn tcp(&self) -> TcpStream {
        let (_, address) = self.gateway.url.split_once("://").unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Connects up to the point where HTTP begins.
    pub(crate) async fn connect(&self) -> Box<dyn Io> {
        match self.door {
            Door::Tcp | Door::Unix => self.knock().await,
            Door::Proxied => {
                let mut stream = self.tcp().await;
                stream.write_all(b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n").await.unwrap();
                Box::new(stream)
            }
            Door::Tls => self.connect_with(b"http/1.1").await,
        }
    }

    /// Connects over TLS, with this protocol of ALPN.
    pub(crate) async fn connect_with(&self, protocol: &[u8]) -> Box<dyn Io> {
        let mut config = (*self.trusts).clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        Box::new(TlsConnector::from(Arc::new(config)).connect(name, self.tcp().await).await.unwrap())
    }

    /// Sends bytes on a connection of their own, and reads up to a Close or the end.
    pub(crate) async fn ask(&self, bytes: &[u8]) -> Answer {
        let (mut reader, mut writer) = tokio::io::split(self.connect().await);
        let writing = async {
            // The gateway may close before it has read all of it.
            let _ = writer.write_all(bytes).await;
            std::future::pending::<()>().await;
        };
        let reading = async {
            let mut answer = Answer::default();
            let mut buffer = vec![0; 65_536];
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                answer.bytes.extend_from_slice(&buffer[..count]);
                if answer.code().is_some() || answer.end().is_some() {
                    break;
                }
            }
            answer
        };
        let both = async {
            tokio::select! {
                answer = reading => answer,
                () = writing => unreachable!(),
            }
        };
        tokio::time::timeout(LIMIT, both).await.expect("the gateway closes")
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures::of(&self.gateway)
    }

    /// Waits until everything that hostile clients and backends took is given back. The promise is 5 s; the time itself is not
    /// asserted, as the machine may be busy.
    pub(crate) async fn is_back_at(&self, before: &Figures, after: &str) {
        until(&format!("all is given back after {after}: {before:?}"), || self.figures().is_at(before)).await;
    }
}

/// All that came back on one connection.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    /// The status of the first response; empty without one.
    pub(crate) fn status(&self) -> String {
        String::from_utf8_lossy(self.bytes.get(9..12).unwrap_or_default()).into_owned()
    }

    /// The number of responses.
    pub(crate) fn responses(&self) -> usize {
        String::from_utf8_lossy(&self.bytes).lines().filter(|line| line.starts_with("HTTP/1.")).count()
    }

    /// The frames behind a 101.
    pub(crate) fn frames(&self) -> Vec<(u8, &[u8])> {
        let end = self.bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let mut rest = end.and_then(|end| self.bytes.get(end + 4..)).unwrap_or_default();
        let mut frames = Vec::new();
        while let [first, length, after @ ..] = rest {
            let (length, after) = match (length, after) {
                (126, [a, b, after @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), after),
                (length @ ..=125, after) => (usize::from(*length), after),
                _ => break,
            };
            let Some((payload, after)) = after.split_at_checked(length) else { break };
            frames.push((*first, payload));
            rest = after;
        }
        frames
    }

    /// The code of the Close.
    pub(crate) fn code(&self) -> Option<u16> {
        let frames = self.frames();
        let (_, payload) = frames.iter().find(|(first, _)| *first == CLOSE)?;
        Some(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)))
    }

    /// The code with which a session was ended in band.
    pub(crate) fn end(&self) -> Option<u64> {
        self.frames().into_iter().filter(|(first, _)| *first == BINARY).find_map(|(_, payload)| {
            match Frame::decode(Message::Binary(payload.to_vec().into())) {
                Ok(Frame::Control(Control::End { code, .. })) => Some(code),
                _ => None,
            }
        })
    }
}

/// What a gateway holds.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    connections: f64,
    sessions: f64,
    links: f64,
    /// Messages that are kept, and what the memory budget counts.
    bytes: f64,
    files: f64,
    resident: f64,
}

/// Messages of the honest clients that may be on their way, in bytes.
const UNDER_WAY: f64 = 4096.0;
/// Connections to the backend for plain HTTP that stay open for the next request, and one of the test to the admin listener.
const POOLED: f64 = 8.0;
/// Memory that the allocator keeps.
const KEPT: f64 = 48.0 * 1024.0 * 1024.0;

/// The sum of a family, over its labels.
pub(crate) fn sum(metrics: &str, family: &str) -> f64 {
    let is_sample = |line: &&str| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let samples = metrics.lines().filter(is_sample);
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

impl Figures {
    pub(crate) fn of(gateway: &Gateway) -> Self {
        let metrics = gateway.get("/metrics", "");
        let sum = |family: &str| sum(&metrics, family);
        Self {
            connections: sum("mainstay_connections"),
            sessions: sum("mainstay_sessions"),
            links: sum("mainstay_links"),
            bytes: f64::max(sum("mainstay_queue_bytes"), sum("mainstay_budget_bytes")),
            files: sum("process_open_fds"),
            resident: sum("process_resident_memory_bytes"),
        }
    }

    fn is_at(&self, before: &Self) -> bool {
        let counts = |figures: &Self| (figures.connections, figures.sessions, figures.links);
        counts(self) == counts(before)
            && self.bytes <= before.bytes + UNDER_WAY
            && self.files <= before.files + POOLED
            && self.resident <= before.resident + KEPT
    }
}

/// Reads until the other end is done.
pub(crate) async fn reads_to_the_end(mut reader: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
}

/// The head of a good opening handshake.
pub(crate) fn opening(path: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
}

/// A masked frame.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(first, payload.len() as u64);
    out.extend([0; 4]);
    out.extend(payload);
    out
}

/// The header of a masked frame, without the key, in its shortest form.
pub(crate) fn header(first: u8, length: u64) -> Vec<u8> {
    let mut out = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..=125), _) => out.push(0x80 | length),
        (_, Ok(length)) => {
            out.push(0x80 | 126);
            out.extend(length.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend(length.to_be_bytes());
        }
    }
    out
}

/// A well-behaved client that exchanges messages all the while.
pub(crate) struct Neighbour {
    is_done: Arc<AtomicBool>,
    served: JoinHandle<u64>,
}

impl Neighbour {
    /// Connects it, and waits for its first message.
    pub(crate) async fn at(house: &House, path: &str) -> Self {
        let mut stream = house.connect().await;
        stream.write_all(opening(path, "").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        exchange(&mut stream, 0).await;
        let is_done = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&is_done);
        let served = tokio::spawn(async move {
            let mut count = 1;
            while !done.load(Ordering::Relaxed) {
                tokio::time::timeout(LIMIT, exchange(&mut stream, count)).await.expect("it is served");
                count += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            count
        });
        Self { is_done, served }
    }

    /// Stops it. Every message came back in its turn, or this fails.
    pub(crate) async fn was_served(self) {
        self.is_done.store(true, Ordering::Relaxed);
        assert!(self.served.await.unwrap() > 1);
    }
}

/// Sends a number and waits for it; answers Pings.
async fn exchange(stream: &mut Box<dyn Io>, number: u64) {
    let text = number.to_string();
    stream.write_all(&masked(TEXT, text.as_bytes())).await.unwrap();
    loop {
        let (first, length) = (stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap());
        let mut payload = vec![0; usize::from(length)];
        stream.read_exact(&mut payload).await.unwrap();
        match first {
            PING => stream.write_all(&masked(PONG, &payload)).await.unwrap(),
            first => return assert_eq!((first, payload.as_slice()), (TEXT, text.as_bytes())),
        }
    }
}
