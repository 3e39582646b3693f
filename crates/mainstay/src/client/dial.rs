//! Opening one connection: TCP, TLS, the opening handshake.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use mainstay_proto::connect::{Lost, Mode};
use mainstay_proto::ws::handshake::Offer;
use mainstay_proto::ws::{Connection, DeflateParams, Limits, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::driver::Wire;
use crate::transport::{Stream, Transport};

/// The largest head of a response, and the most headers in it.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// What one attempt asks for.
pub(super) struct Attempt {
    pub(super) url: Uri,
    pub(super) headers: HeaderMap,
    pub(super) subprotocols: Vec<String>,
    pub(super) credentials: Option<Bytes>,
    pub(super) deflate: bool,
    pub(super) limits: Limits,
    pub(super) tls: Tls,
}

/// What it came to.
pub(super) struct Opened {
    pub(super) wire: Wire,
    pub(super) mode: Mode,
    /// What was agreed on.
    pub(super) subprotocol: Option<String>,
    /// Of the attempt, for HELLO.
    pub(super) credentials: Option<Bytes>,
}

/// How TLS is spoken; `None`: as the system trusts.
#[cfg(feature = "tls")]
pub(super) type Tls = Option<std::sync::Arc<rustls::ClientConfig>>;
#[cfg(not(feature = "tls"))]
#[derive(Clone, Default)]
pub(super) struct Tls {}

/// Opens a connection.
pub(super) async fn dial(attempt: Attempt) -> Result<Opened, Lost> {
    let (host, port, secure) = target(&attempt.url).map_err(refused)?;
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => Lost::NoPort(format!("{host}:{port}: no local port is left")),
        _ => Lost::Unreachable(format!("{host}:{port}: {error}")),
    })?;
    let _ = tcp.set_nodelay(true);
    if secure {
        open(secure_stream(tcp, &host, &attempt.tls).await?, attempt).await
    } else {
        open(tcp, attempt).await
    }
}

/// Checks a URL before anything is dialled.
pub(super) fn check_url(url: &Uri) -> Result<(), String> {
    target(url).map(|_| ())
}

fn target(url: &Uri) -> Result<(String, u16, bool), String> {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    if let Some((_, place)) = authority.rsplit_once('@') {
        // The rest of the URL is a secret.
        return Err(format!(
            "the URL of {place} has credentials, which are not sent: use a header, as `Authorization`"
        ));
    }
    let (secure, usual) = match url.scheme_str() {
        Some("ws" | "http") => (false, 80),
        Some("wss" | "https") => (true, 443),
        _ => return Err(format!("{url}: the URL must start with ws:// or wss://")),
    };
    let host = url.host().ok_or_else(|| format!("{url}: the URL names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = match port_of(authority) {
        "" => usual,
        port => {
            parse_port(port).ok_or_else(|| format!("{url}: the port `{port}` is not one of 1 to 65535"))?
        }
    };
    Ok((host.to_owned(), port, secure))
}

/// As it is written: `Uri` takes any text there, and then knows of no port at all.
fn port_of(authority: &str) -> &str {
    let behind_ipv6 = authority.rsplit(']').next().unwrap_or_default();
    behind_ipv6.rsplit_once(':').map_or("", |(_, port)| port)
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0)
}

/// No attempt can succeed.
fn refused(reason: String) -> Lost {
    Lost::Refused { status: None, reason }
}

async fn open(mut stream: impl IntoTransport, attempt: Attempt) -> Result<Opened, Lost> {
    let seed = crate::random_seed();
    let (nonce, mask_seed) = (first_16(&seed), crate::random_seed());
    let protocols: Vec<&str> = attempt.subprotocols.iter().map(String::as_str).collect();
    let offer = Offer::new(nonce, &protocols, attempt.deflate.then(DeflateParams::default))
        .map_err(|error| refused(error.to_string()))?;
    let mut headers = attempt.headers;
    headers.extend(offer.headers());
    let request = request_head(&attempt.url, &headers);
    let broken = |error: io::Error| Lost::Unreachable(format!("opening handshake: {error}"));
    stream.write_all(&request).await.map_err(broken)?;
    let (status, headers, early) = read_response(&mut stream).await?;
    let agreed = offer.check_response(status, &headers).map_err(|error| {
        let reason = error.to_string();
        if let (true, Some(retry_after)) = (error.is_retryable(), retry_after(&headers)) {
            Lost::Unavailable { retry_after, reason }
        } else if error.is_retryable() {
            Lost::Unreachable(reason)
        } else {
            let answered = status != StatusCode::SWITCHING_PROTOCOLS;
            Lost::Refused { status: answered.then(|| status.as_u16()), reason }
        }
    })?;
    let ours = agreed.protocol.as_deref().is_some_and(|name| name.starts_with(super::SUBPROTOCOL));
    let codec = Connection::new(Role::Client, attempt.limits, agreed.deflate, mask_seed);
    let wire = Wire::new(stream.into_transport(), codec, early);
    let mode = if ours { Mode::Session } else { Mode::Plain };
    Ok(Opened { wire, mode, subprotocol: agreed.protocol, credentials: attempt.credentials })
}

/// Seconds; a date is not understood, as it would need a clock that both ends agree on.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn request_head(url: &Uri, headers: &HeaderMap) -> Vec<u8> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut head = format!("GET {path} HTTP/1.1\r\n").into_bytes();
    if !headers.contains_key(http::header::HOST) {
        let host = url.authority().map_or("", |authority| authority.as_str());
        head.extend_from_slice(format!("Host: {host}\r\n").as_bytes());
    }
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Reads the response's head, and whatever came after it.
async fn read_response(stream: &mut impl IntoTransport) -> Result<(StatusCode, HeaderMap, Bytes), Lost> {
    let broken = |what: String| Lost::Unreachable(format!("opening handshake: {what}"));
    let mut head = Vec::with_capacity(1024);
    loop {
        if head.len() >= MAX_HEAD {
            return Err(broken("the response's head is larger than 16 KiB".into()));
        }
        if stream.read_buf(&mut head).await.map_err(|error| broken(error.to_string()))? == 0 {
            return Err(broken("the server closed the connection".into()));
        }
        let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut slots);
        let parsed = response.parse(&head).map_err(|error| broken(error.to_string()))?;
        let httparse::Status::Complete(size) = parsed else { continue };
        let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or_else(|| broken("the response has no status".into()))?;
        let mut headers = HeaderMap::new();
        for header in response.headers.iter() {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(header.value)) {
                headers.append(name, value);
            }
        }
        let early = Bytes::copy_from_slice(head.get(size..).unwrap_or_default());
        return Ok((status, headers, early));
    }
}

fn first_16(seed: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.iter_mut().zip(seed).for_each(|(to, from)| *to = *from);
    out
}

trait IntoTransport: Stream {
    fn into_transport(self) -> Transport;
}

impl IntoTransport for TcpStream {
    fn into_transport(self) -> Transport {
        Transport::tcp(self)
    }
}

#[cfg(feature = "tls")]
type Secure = tokio_rustls::client::TlsStream<TcpStream>;

#[cfg(feature = "tls")]
impl IntoTransport for Secure {
    fn into_transport(self) -> Transport {
        Transport::other(self)
    }
}

#[cfg(feature = "tls")]
async fn secure_stream(tcp: TcpStream, host: &str, tls: &Tls) -> Result<Secure, Lost> {
    use std::sync::{Arc, OnceLock};
    static USUAL: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let usual = || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    };
    let config = tls.as_ref().unwrap_or_else(|| USUAL.get_or_init(usual));
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|_| refused(format!("{host} is not a name that TLS can check")))?;
    tokio_rustls::TlsConnector::from(Arc::clone(config))
        .connect(name, tcp)
        .await
        .map_err(|error| Lost::Unreachable(format!("TLS: {error}")))
}

#[cfg(not(feature = "tls"))]
async fn secure_stream(_: TcpStream, _: &str, _: &Tls) -> Result<TcpStream, Lost> {
    Err(refused("wss:// needs the feature `tls` of the crate `mainstay`".into()))
}
