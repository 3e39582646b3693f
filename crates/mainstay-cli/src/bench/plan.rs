//! The plan of a run, checked once, and the state that its threads share.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use mainstay::client::{Place, UrlError};
use mainstay_proto::ws::handshake::{Offer, accept_key};
use mainstay_proto::ws::{Kind, Limits};

use super::{Options, stamp};

/// Connections from one source address: the range of ephemeral ports is 28,232 wide by default.
const PER_SOURCE: u64 = 20_000;
/// The part of a session's window for messages in flight: the rest may wait for an acknowledgement.
const WINDOW: (usize, usize) = (768, 768 * 1024);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Idle,
    Echo,
    Fanout,
    Handshake,
    Storm,
}

impl Load {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Echo => "echo",
            Self::Fanout => "fanout",
            Self::Handshake => "handshake",
            Self::Storm => "storm",
        }
    }
}

/// A checked plan.
pub(super) struct Plan {
    pub(super) load: Load,
    pub(super) url: String,
    pub(super) target: SocketAddr,
    /// The opening handshake, the same for every connection.
    pub(super) request: Vec<u8>,
    /// The expected Sec-WebSocket-Accept.
    pub(super) accept: String,
    pub(super) session: bool,
    pub(super) connections: u32,
    pub(super) in_flight: u32,
    pub(super) kind: Kind,
    /// The bytes after the stamp in every message.
    pub(super) filler: Bytes,
    pub(super) limits: Limits,
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
    pub(super) rate: Option<u32>,
    pub(super) at_once: u32,
    pub(super) threads: u32,
}

impl Plan {
    /// Checks the flags and resolves the server's name.
    ///
    /// # Errors
    ///
    /// Names the flag and its range.
    pub(super) fn new(load: Load, options: Options) -> Result<Self, String> {
        let place: Place = options.url.parse().map_err(|error: UrlError| error.to_string())?;
        let target = resolve(&place)?;
        if options.size < stamp::LENGTH {
            return Err(format!("--size {}: must be at least {} bytes", options.size, stamp::LENGTH));
        }
        if options.duration.is_zero() {
            return Err("--duration: must be more than 0s".to_owned());
        }
        let in_flight = options.in_flight as usize;
        if options.session && (in_flight > WINDOW.0 || in_flight.saturating_mul(options.size) > WINDOW.1) {
            return Err("--in-flight: a session's window holds at most 768 messages and 768 KiB".to_owned());
        }
        let (request, accept) = request(&place, &options)?;
        Ok(Self {
            load,
            url: options.url,
            target,
            request,
            accept,
            session: options.session,
            connections: options.connections,
            in_flight: options.in_flight,
            kind: if options.text { Kind::Text } else { Kind::Binary },
            filler: Bytes::from(vec![b'.'; options.size - stamp::LENGTH]),
            limits: Limits { max_message: options.size.max(1 << 20) + 1, ..Limits::default() },
            warm_up: options.warm_up,
            duration: options.duration,
            rate: options.rate,
            at_once: options.at_once,
            threads: options.threads.min(options.connections),
        })
    }

    /// Returns the size of each message's payload.
    pub(super) fn size(&self) -> usize {
        stamp::LENGTH + self.filler.len()
    }

    /// Returns the source address of the connection of this number. On loopback one address has too few ports for many
    /// connections, but there are 16 million addresses.
    pub(super) fn source(&self, number: u64) -> Option<SocketAddr> {
        let many = self.load == Load::Handshake || u64::from(self.connections) > PER_SOURCE;
        match self.target.ip() {
            IpAddr::V4(address) if address.is_loopback() && many => {
                let host = (2 + number / PER_SOURCE % 60_000) as u32;
                let base = u32::from(Ipv4Addr::new(127, 0, 0, 0));
                Some((Ipv4Addr::from(base + host), 0).into())
            }
            _ => None,
        }
    }
}

fn resolve(place: &Place) -> Result<SocketAddr, String> {
    let url = &place.url;
    match url.scheme_str() {
        Some("ws") => {}
        Some("wss") => {
            return Err(format!(
                "{url}: bench speaks ws:// only; connect to the server behind its TLS proxy"
            ));
        }
        _ => return Err(format!("{url}: must start with ws://, for example ws://127.0.0.1:8080/echo")),
    }
    let (host, port) = place.host_and_port().map_err(|error| error.to_string())?;
    let mut found =
        (&*host, port).to_socket_addrs().map_err(|error| format!("{host}: {error}; check the name"))?;
    found.next().ok_or_else(|| format!("{host}: the name has no address"))
}

/// Builds one request for all connections: the key only guards against servers that do not speak WebSocket.
fn request(place: &Place, options: &Options) -> Result<(Vec<u8>, String), String> {
    let protocols: &[&str] = if options.session { &["mainstay.v1"] } else { &[] };
    let offer = Offer::new(*b"mainstay's bench", protocols, None).map_err(|error| error.to_string())?;
    let mut headers: HeaderMap = offer.headers();
    headers.extend(options.headers.iter().cloned());
    let path = place.url.path_and_query().map_or("/", |path| path.as_str());
    let host = place.host_field();
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
    for (name, value) in &headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    let key = headers.get(http::header::SEC_WEBSOCKET_KEY).map_or(&[][..], |key| key.as_bytes());
    Ok((head, accept_key(key)))
}

/// The current phase of all threads. Only the main thread changes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    Open,
    WarmUp,
    Measure,
    /// Close in order.
    Close,
    /// End at once.
    Abort,
}

/// Counters that all threads update, once a round.
pub(super) struct Shared {
    phase: AtomicU8,
    /// The start of the run.
    pub(super) started: Instant,
    pub(super) opened: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Connections that are open again after a storm.
    pub(super) back: AtomicU64,
    /// Messages, deliveries, heartbeats or handshakes, for the progress bar.
    pub(super) counted: AtomicU64,
    /// Deliveries since the load started.
    pub(super) delivered: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            phase: AtomicU8::new(Phase::Open as u8),
            started: Instant::now(),
            opened: zero(),
            failed: zero(),
            back: zero(),
            counted: zero(),
            delivered: zero(),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::WarmUp,
            2 => Phase::Measure,
            3 => Phase::Close,
            _ => Phase::Abort,
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

/// Describes a failed system call, with what to do.
pub(super) fn explain(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(24) => "too many open files; raise the limit with `ulimit -n`".to_owned(),
        _ if error.kind() == ErrorKind::AddrNotAvailable => {
            "no port left on this address; use fewer connections".to_owned()
        }
        _ if error.kind() == ErrorKind::ConnectionRefused => {
            "connection refused; is the server running?".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        options: Options,
    }

    fn plan(load: Load, words: &str) -> Result<Plan, String> {
        let words = Words::try_parse_from(["bench"].into_iter().chain(words.split(' ')));
        Plan::new(load, words.map_err(|error| error.to_string())?.options)
    }

    #[test]
    fn an_impossible_plan_is_an_error_that_names_the_flag() {
        for (words, expected) in [
            ("http://127.0.0.1:1/", "must start with ws://"),
            ("wss://127.0.0.1:1/", "ws:// only"),
            ("127.0.0.1", "must start with ws://"),
            ("ws://127.0.0.1:1/ --size 7", "--size 7: must be at least 8 bytes"),
            ("ws://127.0.0.1:1/ --duration 0s", "--duration: must be more than 0s"),
            ("ws://127.0.0.1:1/ --session --in-flight 769", "--in-flight: a session's window"),
            ("ws://127.0.0.1:1/ --connections 0", "1..=1000000"),
            ("ws://127.0.0.1:1/ --header nonsense", "write it as \"Name: value\""),
        ] {
            let error = plan(Load::Echo, words).err().unwrap();
            assert!(error.contains(expected), "{words}: {error}");
        }
    }

    #[test]
    fn many_connections_to_loopback_come_from_many_addresses() {
        let few = plan(Load::Idle, "ws://127.0.0.1:1/ --connections 20000").unwrap();
        assert_eq!(few.source(19_999), None);
        let many = plan(Load::Idle, "ws://127.0.0.1:1/ --connections 20001").unwrap();
        let source = |number| many.source(number).unwrap().to_string();
        assert_eq!(source(0), "127.0.0.2:0");
        assert_eq!(source(20_000), "127.0.0.3:0");
        assert_eq!(source(20_000 * 300), "127.0.1.46:0");
        let elsewhere = plan(Load::Idle, "ws://192.0.2.1:1/ --connections 20001").unwrap();
        assert_eq!(elsewhere.source(0), None);
    }

    #[test]
    fn the_request_has_the_path_the_host_and_the_users_headers() {
        let plan = plan(Load::Echo, "ws://127.0.0.1:81/a?b --session -H X-Who:ann").unwrap();
        let request = String::from_utf8(plan.request).unwrap();
        assert!(request.starts_with("GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:81\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n"));
        for header in ["x-who: ann", "sec-websocket-protocol: mainstay.v1", "upgrade: websocket"] {
            assert!(request.contains(&format!("\r\n{header}\r\n")), "{request}");
        }
    }
}
