//! The result of `mainstay doctor`, and what `--json` prints: one object. Field names are stable; new ones may be added.
//!
//! Times end in `_ms` and are milliseconds. Text that a server sent is cut to a bound, and contains none of the values that the
//! user gave for the request. What a terminal would act on is escaped in it.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::judgement::Verdict;
pub(crate) use super::measured::ms;

use super::measured::Measured;

/// The whole result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The version of this form: 1.
    pub(crate) version: u32,
    pub(crate) target: TargetFacts,
    pub(crate) facts: Facts,
    /// `None` with `--quick`, and if no WebSocket could be opened.
    pub(crate) measured: Option<Measured>,
    /// The gravest first.
    pub(crate) findings: Vec<Finding>,
    pub(crate) verdict: Option<Verdict>,
    /// Whether nothing was left out: the command was not interrupted.
    pub(crate) complete: bool,
    /// How long everything took.
    pub(crate) took_ms: f64,
}

/// What was examined.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TargetFacts {
    /// The URL; the values of its query are replaced by dots.
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Whether the URL asks for TLS.
    pub(crate) secure: bool,
    /// The names of the header fields that the user added. Their values are never shown.
    pub(crate) added_fields: Vec<String>,
    pub(crate) subprotocols: Vec<String>,
    /// Whether each connection sends a first message. It is never shown.
    pub(crate) sends_first_message: bool,
    /// Whether the target is this machine or a private network.
    pub(crate) is_near: bool,
}

/// What one connection shows, without waiting.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Facts {
    /// `None`: a Unix socket.
    pub(crate) lookup: Option<LookupFacts>,
    /// One for each address of the name.
    pub(crate) addresses: Vec<AddressFacts>,
    /// The address that the following facts and all measurements use.
    pub(crate) used: Option<SocketAddr>,
    /// The variables of the environment that name a proxy for this URL. The doctor connects directly.
    pub(crate) proxy_variables: Vec<String>,
    /// `None`: `ws://`, or TCP failed.
    pub(crate) tls: Option<TlsFacts>,
    pub(crate) handshake: Option<HandshakeFacts>,
    pub(crate) http2: Option<Http2Facts>,
    /// `None`: no first message was given, or the connection ended before it was sent.
    pub(crate) first_message: Option<FirstMessageFacts>,
    pub(crate) pings: Option<PingFacts>,
    /// How the first connection ended, if it ended by itself while the facts were gathered.
    pub(crate) ended: Option<EndFacts>,
    /// The step at which the way to a WebSocket ended; `None`: a WebSocket was opened.
    pub(crate) failed: Option<OpenError>,
}

/// The look-up of the host's name by the system.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LookupFacts {
    pub(crate) took_ms: f64,
    pub(crate) ipv4: Vec<IpAddr>,
    pub(crate) ipv6: Vec<IpAddr>,
    pub(crate) error: Option<String>,
}

/// TCP to one address.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AddressFacts {
    pub(crate) address: SocketAddr,
    /// The time of TCP's handshake: one round trip to what answers there. `None`: it failed.
    pub(crate) connect_ms: Option<f64>,
    pub(crate) error: Option<String>,
}

/// The handshake of TLS.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct TlsFacts {
    pub(crate) took_ms: f64,
    /// `TLS 1.3` or `TLS 1.2`; `None`: the handshake failed before.
    pub(crate) version: Option<String>,
    pub(crate) cipher: Option<String>,
    /// The protocol that the server chose of those that were offered.
    pub(crate) alpn: Option<String>,
    /// The name that the client sent (SNI); `None` for an address.
    pub(crate) server_name: Option<String>,
    /// As the server sent it, its own certificate first.
    pub(crate) chain: Vec<CertificateFacts>,
    /// Why the certificate is not trusted; `None`: it is, or none was seen.
    pub(crate) untrusted: Option<Untrusted>,
    /// Why the handshake failed, if it did.
    pub(crate) error: Option<String>,
}

/// A certificate that the server sent.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CertificateFacts {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// The names and addresses that it is for.
    pub(crate) names: Vec<String>,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// Whole days until it expires; negative: since it expired.
    pub(crate) days_left: i64,
    pub(crate) is_self_signed: bool,
    pub(crate) is_authority: bool,
    /// Whether it says where its issuer's certificate is, from where browsers fetch one that the server does not send.
    pub(crate) says_where_issuer_is: bool,
}

/// Why a certificate is not trusted.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Untrusted {
    pub(crate) kind: UntrustedKind,
    pub(crate) words: String,
}

/// The kinds of [`Untrusted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UntrustedKind {
    Expired,
    NotYetValid,
    WrongName,
    /// The server sends only its own certificate, whose issuer is not among the trusted ones.
    MissingIntermediate,
    SelfSigned,
    UnknownIssuer,
    Other,
}

/// The opening handshake: what the server answered.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct HandshakeFacts {
    /// From the request's last byte to the end of the response's head.
    pub(crate) took_ms: f64,
    pub(crate) status: u16,
    /// `HTTP/1.1`, `HTTP/1.0`.
    pub(crate) http: String,
    /// The response's fields, in order; the first 64, each cut to 256 characters. Cookies are shown by name only.
    pub(crate) fields: Vec<Field>,
    /// How many fields came beyond those.
    pub(crate) more_fields: usize,
    pub(crate) server: Option<String>,
    pub(crate) via: Vec<String>,
    /// The products on the way that the fields give away.
    pub(crate) products: Vec<Product>,
    pub(crate) offered_subprotocols: Vec<String>,
    pub(crate) subprotocol: Option<String>,
    /// Compression (permessage-deflate) as it was offered; `None`: it was not.
    pub(crate) offered_extensions: Option<String>,
    /// The answer to it, as the server wrote it.
    pub(crate) extensions: Option<String>,
    /// Whether messages are compressed.
    pub(crate) compressed: bool,
    pub(crate) location: Option<String>,
    pub(crate) retry_after_ms: Option<f64>,
    /// Interim responses (1xx) before the final one.
    pub(crate) interim: u32,
    /// What is wrong with the response, if it opened no WebSocket.
    pub(crate) wrong: Option<Wrong>,
    /// The beginning of the body of a response that opened no WebSocket.
    pub(crate) body: Option<String>,
}

/// What keeps a response from opening a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wrong {
    /// Another status than 101.
    Status,
    /// 101 without `Upgrade: websocket`.
    NoUpgrade,
    /// 101 without `Connection: Upgrade`.
    NoConnection,
    /// 101 without `Sec-WebSocket-Accept`, or with several.
    NoAccept,
    /// `Sec-WebSocket-Accept` does not answer the key.
    Accept,
    /// A subprotocol that was not offered.
    Subprotocol,
    /// An extension that was not offered, or other parameters than were offered.
    Extension,
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// A product on the way, and the field that gives it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Product {
    /// For example `nginx`, `cloudflare`, `aws-alb`, `heroku`.
    pub(crate) name: &'static str,
    /// For example `server: nginx/1.25.3`.
    pub(crate) evidence: String,
}

/// WebSocket over HTTP/2 (RFC 8441).
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Http2Facts {
    /// Whether the server chose `h2` when it was offered.
    pub(crate) offered: bool,
    /// Whether its SETTINGS allow a CONNECT for another protocol.
    pub(crate) extended_connect: bool,
    /// The status of its answer to one; 200 opens a WebSocket.
    pub(crate) status: Option<u16>,
    /// Why there is no answer.
    pub(crate) error: Option<String>,
}

/// What became of the first message.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct FirstMessageFacts {
    /// Until the server's first message. `None`: none came in time.
    pub(crate) answered_ms: Option<f64>,
}

/// Answers to Pings.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct PingFacts {
    pub(crate) sent: u32,
    pub(crate) answered: u32,
    /// Answers whose payload was another than the Ping's.
    pub(crate) wrong_payload: u32,
    /// From a Ping to its Pong.
    pub(crate) rtt: Option<Spread>,
    /// From a message to its echo; only with `--echo`.
    pub(crate) echo: Option<EchoFacts>,
    /// Which end of the path answers.
    pub(crate) answered_by: AnsweredBy,
    /// Pings from the server while the facts were gathered.
    pub(crate) from_server: u32,
    /// The shortest time between two of them.
    pub(crate) server_interval_ms: Option<f64>,
}

/// Echoed messages.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct EchoFacts {
    pub(crate) sent: u32,
    pub(crate) returned: u32,
    pub(crate) rtt: Option<Spread>,
}

/// Several durations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min_ms: f64,
    pub(crate) median_ms: f64,
    pub(crate) max_ms: f64,
    /// The mean difference between neighbours.
    pub(crate) jitter_ms: f64,
}

impl Spread {
    /// Returns the spread of these times; `None`: there are none.
    pub(crate) fn of(times: &[f64]) -> Option<Self> {
        let mut sorted = times.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let steps = times.windows(2).filter_map(|pair| Some((pair.last()? - pair.first()?).abs()));
        let jitter = steps.clone().sum::<f64>() / steps.count().max(1) as f64;
        Some(Self {
            min_ms: *sorted.first()?,
            median_ms: *sorted.get(sorted.len() / 2)?,
            max_ms: *sorted.last()?,
            jitter_ms: (jitter * 1e3).round() / 1e3,
        })
    }
}

/// What answers Pings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AnsweredBy {
    /// No Ping was answered.
    Nothing,
    /// An echo takes about as long as a Pong: the same end answers both.
    Server,
    /// A Pong takes much less time than an echo: something in front of the server answers.
    Nearer,
    /// A Pong takes much longer than TCP's handshake: it comes from behind what accepts TCP.
    Behind,
    /// Without an echo the ends cannot be told apart.
    #[default]
    Unknown,
}

/// How a connection ended.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EndFacts {
    pub(crate) after_ms: f64,
    /// `close`, `fin`, `reset`, `tls-cut` or `error`.
    pub(crate) how: &'static str,
    pub(crate) code: Option<u16>,
    pub(crate) reason: Option<String>,
}

/// Something that an operator should know or change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Stable; for example `certificate-expired`.
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    /// What is so, in one sentence.
    pub(crate) words: String,
    /// What to do, one step each.
    pub(crate) advice: Vec<String>,
}

/// How grave a finding is. The exit code is that of the gravest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Severity {
    /// Good to know: exit code 0.
    Note,
    /// Users will meet it: exit code 1.
    Problem,
    /// No WebSocket can be opened: exit code 3.
    Unreachable,
}

/// The step at which a WebSocket could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    Lookup,
    Tcp,
    Tls,
    Handshake,
}

/// Why no WebSocket could be opened.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct OpenError {
    pub(crate) step: Step,
    pub(crate) words: String,
    /// The status of the response, if there was one.
    pub(crate) status: Option<u16>,
    pub(crate) retry_after_ms: Option<f64>,
    /// Whether the step's time ran out.
    pub(crate) timed_out: bool,
}

impl OpenError {
    pub(crate) fn new(step: Step, words: impl Into<String>) -> Self {
        Self { step, words: words.into(), status: None, retry_after_ms: None, timed_out: false }
    }

    pub(crate) fn timeout(step: Step, words: impl Into<String>) -> Self {
        Self { timed_out: true, ..Self::new(step, words) }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let step = match self.step {
            Step::Lookup => "name",
            Step::Tcp => "TCP",
            Step::Tls => "TLS",
            Step::Handshake => "opening handshake",
        };
        write!(f, "{step}: {}", self.words)
    }
}

impl Report {
    /// Returns the exit code: that of the gravest finding.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.findings.iter().map(|finding| finding.severity).max() {
            None | Some(Severity::Note) => 0,
            Some(Severity::Problem) => 1,
            Some(Severity::Unreachable) => 3,
        }
    }
}

/// Returns the words of a system's error without its number.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("failed to lookup address information: ");
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
