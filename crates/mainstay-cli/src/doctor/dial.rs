//! The way to an open WebSocket, step by step: the look-up of the name, TCP, TLS, the opening handshake. Each step has
//! [`STEP_TIME`].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mainstay::client::DeflateParams;
use mainstay::client::rustls::client::ClientConfig;
use mainstay::client::rustls::pki_types::ServerName;
use mainstay::client::rustls::{self, AlertDescription};
use mainstay_proto::ws::handshake::{Agreed, Offer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::answer::{self, Head};
use super::report::{HandshakeFacts, OpenError, Step, Wrong, ms, plain};
use super::target::{Target, seed};

/// The longest time of each step.
pub(crate) const STEP_TIME: Duration = Duration::from_secs(10);
/// What the doctor calls itself, so that an operator recognizes its requests.
pub(super) const AGENT: &str = concat!("mainstay-doctor/", env!("CARGO_PKG_VERSION"));
/// How many of the first bytes of a server are kept, to recognize what it speaks.
const FIRST_BYTES: usize = 64;

/// A byte stream: TCP, a Unix socket, TLS over either.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection whose opening handshake is done.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    /// The bytes behind the response.
    pub(crate) early: Vec<u8>,
    pub(crate) deflate: Option<DeflateParams>,
    pub(crate) handshake: HandshakeFacts,
}

/// Opens a WebSocket.
///
/// # Errors
/// A step failed, or its time ran out.
///
/// # Cancel safety
/// Safe.
pub(crate) async fn open(target: &Target, compression: bool) -> Result<Opened, OpenError> {
    let stream = connect(target).await?;
    let stream: Box<dyn Stream> = match target.is_secure() {
        true => Box::new(secure(target, stream, target.config()).await?.0),
        false => stream,
    };
    let (handshake, opened) = shake_hands(target, stream, compression).await?;
    match opened {
        Ok(Upgraded { stream, early, deflate }) => Ok(Opened { stream, early, deflate, handshake }),
        Err(error) => Err(error),
    }
}

/// Opens a byte stream to the target's address; if that is not known yet, to the first one that answers.
pub(super) async fn connect(target: &Target) -> Result<Box<dyn Stream>, OpenError> {
    if let Some(path) = target.socket() {
        let connecting = timeout(STEP_TIME, UnixStream::connect(path)).await;
        return match connecting {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => {
                Err(OpenError::new(Step::Tcp, format!("unix:{}: {}", path.display(), plain(&error))))
            }
            Err(_) => Err(timed_out(Step::Tcp, "the socket's queue of connections is full")),
        };
    }
    let addresses = match target.address() {
        Some(address) => vec![address],
        None => look_up(target).await?,
    };
    let mut last = OpenError::new(Step::Lookup, "the name has no address");
    for address in addresses {
        match tcp(address).await {
            Ok((stream, _)) => return Ok(Box::new(stream)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Looks up all addresses of the target's name, in the system's order.
///
/// # Errors
/// The name is not known, has no address, or was not looked up in time.
pub(super) async fn look_up(target: &Target) -> Result<Vec<SocketAddr>, OpenError> {
    let host = target.host();
    let mut found: Vec<SocketAddr> = match timeout(STEP_TIME, lookup_host((host, target.port()))).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            let words = format!("{host} cannot be looked up: {}", plain(&error));
            return Err(OpenError::new(Step::Lookup, words));
        }
        Err(_) => return Err(timed_out(Step::Lookup, &format!("{host} was not looked up"))),
    };
    let mut known = std::collections::HashSet::new();
    found.retain(|address| known.insert(*address));
    match found.is_empty() {
        true => Err(OpenError::new(Step::Lookup, format!("{host} has no address"))),
        false => Ok(found),
    }
}

/// Connects to one address, and returns how long that took.
///
/// # Errors
/// It was refused, or nothing answered.
pub(super) async fn tcp(address: SocketAddr) -> Result<(TcpStream, Duration), OpenError> {
    let began = Instant::now();
    match timeout(STEP_TIME, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            let took = began.elapsed();
            let _ = stream.set_nodelay(true);
            Ok((stream, took))
        }
        Ok(Err(error)) => Err(OpenError::new(Step::Tcp, format!("{address}: {}", plain(&error)))),
        Err(_) => Err(timed_out(Step::Tcp, &format!("{address} does not answer"))),
    }
}

/// Speaks TLS on a stream, and returns how long the handshake took.
///
/// # Errors
/// The handshake failed; the words say what the server speaks instead, if that is known.
pub(super) async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    target: &Target,
    stream: S,
    config: &Arc<ClientConfig>,
) -> Result<(TlsStream<FirstBytes<S>>, Duration), OpenError> {
    let Some(name) = target.server_name() else {
        let words =
            format!("{} is neither a DNS name nor an address: no certificate can be for it", target.host());
        return Err(OpenError::new(Step::Tls, words));
    };
    let began = Instant::now();
    let connector = TlsConnector::from(Arc::clone(config));
    let connecting = connector.connect(name, FirstBytes::new(stream)).into_fallible();
    match timeout(STEP_TIME, connecting).await {
        Ok(Ok(stream)) => Ok((stream, began.elapsed())),
        Ok(Err((error, stream))) => Err(OpenError::new(Step::Tls, tls_words(target, &error, &stream.first))),
        Err(_) => Err(timed_out(
            Step::Tls,
            "the server accepts TCP and says nothing in the handshake of TLS; if it speaks no TLS, write ws://",
        )),
    }
}

/// Says why a handshake of TLS failed, from the error and the first bytes of the server.
fn tls_words(target: &Target, error: &io::Error, first: &[u8]) -> String {
    match first {
        [] if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "the server closed the connection instead of an answer to the handshake of TLS; if it speaks no TLS, \
             write ws://"
                .to_owned()
        }
        // A record of TLS: handshake, alert, change of cipher.
        [0x14..=0x17, 3, ..] | [] => alert_words(target, error),
        _ if first.starts_with(b"HTTP/") => {
            "the server speaks HTTP without TLS at this port: write ws://".to_owned()
        }
        _ => {
            let text = target.shown(&String::from_utf8_lossy(first));
            format!("the server speaks no TLS at this port; it sent {text:?}")
        }
    }
}

/// Says what an alert of the server means.
fn alert_words(target: &Target, error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = inner else { return target.shown(&plain(error)) };
    let is_address = matches!(target.server_name(), Some(ServerName::IpAddress(_)));
    match alert {
        AlertDescription::ProtocolVersion => {
            "the server speaks neither TLS 1.2 nor 1.3; older versions are not safe".to_owned()
        }
        AlertDescription::UnrecognisedName
        | AlertDescription::HandshakeFailure
        | AlertDescription::InternalError
            if is_address =>
        {
            format!(
                "the server refuses TLS ({alert:?}); to an address no name is sent (SNI), so write the host's name"
            )
        }
        AlertDescription::UnrecognisedName => {
            format!("the server does not know the name {} (SNI)", target.host())
        }
        AlertDescription::HandshakeFailure => {
            "the server accepts none of the ciphers and curves that are offered".to_owned()
        }
        AlertDescription::CertificateRequired => answer::CLIENT_CERTIFICATE.to_owned(),
        AlertDescription::NoApplicationProtocol => {
            "the server speaks no HTTP/1.1 (ALPN), with which a WebSocket begins".to_owned()
        }
        alert => format!("the server ended the handshake of TLS with the alert {alert:?}"),
    }
}

/// A stream that speaks WebSocket from now on.
pub(super) struct Upgraded {
    pub(super) stream: Box<dyn Stream>,
    pub(super) early: Vec<u8>,
    pub(super) deflate: Option<DeflateParams>,
}

/// Does the opening handshake. The facts are returned whatever the server answered.
///
/// # Errors
/// No response came.
pub(super) async fn shake_hands(
    target: &Target,
    mut stream: Box<dyn Stream>,
    compression: bool,
) -> Result<(HandshakeFacts, Result<Upgraded, OpenError>), OpenError> {
    let offer = offer(target, compression)?;
    let request = request(target, &offer);
    let began = Instant::now();
    let exchange = async {
        // A response may come before the server has read the request.
        let written = stream.write_all(&request).await.and(stream.flush().await);
        match (answer::read(&mut stream, target).await, written) {
            (Ok(head), _) => Ok(head),
            (Err(_), Err(error)) => Err(OpenError::new(Step::Handshake, plain(&error))),
            (Err(words), Ok(())) => Err(OpenError::new(Step::Handshake, words)),
        }
    };
    let head = match timeout(STEP_TIME, exchange).await {
        Ok(head) => head?,
        Err(_) => {
            return Err(timed_out(Step::Handshake, "the server sent no response to the opening handshake"));
        }
    };
    let checked = offer.check_response(head.status, &head.headers);
    let mut facts = answer::facts(&head, target, &offer, &checked);
    facts.took_ms = ms(began.elapsed());
    match checked {
        Ok(Agreed { deflate, .. }) => Ok((facts, Ok(Upgraded { stream, early: head.rest, deflate }))),
        Err(_) => {
            let error = refused(target, &mut facts, head, &mut stream).await;
            Ok((facts, Err(error)))
        }
    }
}

/// Says why a response opens no WebSocket.
async fn refused(
    target: &Target,
    facts: &mut HandshakeFacts,
    head: Head,
    stream: &mut Box<dyn Stream>,
) -> OpenError {
    if facts.wrong == Some(Wrong::Status) {
        facts.body = answer::read_body(head, stream, target).await;
    }
    let words = answer::words(facts);
    OpenError {
        status: Some(facts.status),
        retry_after_ms: facts.retry_after_ms,
        ..OpenError::new(Step::Handshake, words)
    }
}

/// Makes the offer of an opening handshake.
fn offer(target: &Target, compression: bool) -> Result<Offer, OpenError> {
    let names: Vec<&str> = target.subprotocols().iter().map(String::as_str).collect();
    let [key @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = seed();
    let offer = Offer::new(key, &names, compression.then(DeflateParams::default));
    offer.map_err(|error| OpenError::new(Step::Handshake, error.to_string()))
}

/// Writes the request as browsers do: some servers accept no other spelling.
fn request(target: &Target, offer: &Offer) -> Vec<u8> {
    let url = target.url();
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut head = format!("GET {slash}{path} HTTP/1.1\r\n").into_bytes();
    if !target.headers().contains_key(http::header::HOST) {
        head.extend_from_slice(format!("Host: {}\r\n", target.host_field()).as_bytes());
    }
    if !target.headers().contains_key(http::header::USER_AGENT) {
        head.extend_from_slice(format!("User-Agent: {AGENT}\r\n").as_bytes());
    }
    for (name, value) in target.headers().iter().chain(&offer.headers()) {
        head.extend_from_slice(spelled(name.as_str()).as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Returns the name of a field with the capitals of RFC 6455.
fn spelled(name: &str) -> String {
    let words = name.split('-').map(|word| match word.split_at_checked(1) {
        _ if word == "websocket" => "WebSocket".to_owned(),
        Some((first, rest)) => format!("{}{rest}", first.to_ascii_uppercase()),
        None => String::new(),
    });
    words.collect::<Vec<_>>().join("-")
}

fn timed_out(step: Step, words: &str) -> OpenError {
    OpenError::timeout(step, format!("{words} within {} s", STEP_TIME.as_secs()))
}

/// A stream that keeps the first bytes that arrive.
pub(super) struct FirstBytes<S> {
    stream: S,
    first: Vec<u8>,
}

impl<S> FirstBytes<S> {
    fn new(stream: S) -> Self {
        Self { stream, first: Vec::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstBytes<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if self.first.len() < FIRST_BYTES {
            let room = FIRST_BYTES - self.first.len();
            let new = out.filled().get(before..).unwrap_or_default();
            self.first.extend(new.iter().take(room));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstBytes<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
