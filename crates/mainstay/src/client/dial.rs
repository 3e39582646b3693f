//! Opening one connection: a byte stream to the server, and the opening handshake on it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, Uri};
use mainstay_proto::connect::{Lost, Mode};
use mainstay_proto::failure::Failure;
use mainstay_proto::session::Message;
use mainstay_proto::ws::handshake::{Agreed, Offer, ResponseError};
use mainstay_proto::ws::{Connection, DeflateParams, Limits, Role};
use tokio::io::AsyncWriteExt;

use super::BoxError;
use super::connector::Connector;
use super::place::host_field;
use super::rejection::{Head, Rejection, read_head};
use super::stream::ServerStream;
use crate::driver::Wire;
use crate::subprotocol;

/// The parts of one attempt.
pub(super) struct Attempt {
    pub(super) url: Uri,
    pub(super) headers: HeaderMap,
    pub(super) subprotocols: Vec<String>,
    /// Whether `mainstay.v1` is among them.
    pub(super) resumable: bool,
    pub(super) credentials: Option<Bytes>,
    pub(super) deflate: bool,
    pub(super) limits: Limits,
    pub(super) connector: Connector,
    pub(super) answer_timeout: Option<Duration>,
    pub(super) give_up: Option<GiveUp>,
    pub(super) keeps_response: bool,
}

/// Decides whether an HTTP status ends the client.
pub(super) type GiveUp = Arc<dyn Fn(StatusCode) -> bool + Send + Sync>;

/// Makes the first messages to a plain peer.
pub(super) type Greeting =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Vec<Message>, BoxError>> + Send>> + Send + Sync>;

/// An attempt that brought a connection.
pub(super) struct Opened {
    pub(super) wire: Wire,
    pub(super) mode: Mode,
    /// The subprotocol of the application that both agreed on.
    pub(super) subprotocol: Option<String>,
    /// The credentials of the attempt, for HELLO.
    pub(super) credentials: Option<Bytes>,
    /// Towards a plain peer: the system breaks the socket after this time without an acknowledgement of TCP.
    pub(super) guard: Option<Duration>,
    /// The header fields of the response, if they are kept.
    pub(super) response: Option<Box<HeaderMap>>,
    /// The first messages to a plain peer.
    pub(super) greeting: Vec<Message>,
}

/// An attempt that failed.
pub(super) struct Failed {
    pub(super) why: Lost,
    /// The response, if it opened no WebSocket.
    pub(super) rejection: Option<Box<Rejection>>,
}

impl From<Lost> for Failed {
    fn from(why: Lost) -> Self {
        Self { why, rejection: None }
    }
}

/// Opens a connection.
pub(super) async fn dial(attempt: Attempt) -> Result<Opened, Failed> {
    let protocols: Vec<&str> = attempt.subprotocols.iter().map(String::as_str).collect();
    let nonce = first_16(&crate::random_seed());
    // What cannot be dialled is reported before anything is dialled.
    let offer = Offer::new(nonce, &protocols, attempt.deflate.then(DeflateParams::default))
        .map_err(|error| refused(error.to_string()))?;
    attempt.connector.check(&attempt.url).map_err(|error| refused(error.to_string()))?;
    let stream = attempt.connector.connect(&attempt.url).await.map_err(Lost::NotConnected)?;
    let opening = open(stream, &attempt, &offer);
    let (stream, agreed, response, early) = match attempt.answer_timeout {
        None => opening.await?,
        Some(limit) => {
            tokio::time::timeout(limit, opening).await.map_err(|_| Lost::NoAnswer { within: limit })??
        }
    };
    let upgraded = Upgraded { stream, early, subprotocol: agreed.protocol, deflate: agreed.deflate };
    let mut opened = upgraded.opened(attempt.limits, attempt.resumable);
    opened.credentials = attempt.credentials;
    opened.response = attempt.keeps_response.then(|| Box::new(response));
    Ok(opened)
}

/// Makes the first messages to a plain peer.
pub(super) async fn greet(make: &Greeting) -> Result<Vec<Message>, Lost> {
    let failed = |error| Lost::NotOpened(Failure::from(error).context("the greeting could not be made"));
    make().await.map_err(failed)
}

/// No attempt can succeed.
fn refused(reason: String) -> Lost {
    Lost::Refused { status: None, reason }
}

/// The opening handshake: what both agreed on, and what came behind the answer.
async fn open(
    mut stream: ServerStream,
    attempt: &Attempt,
    offer: &Offer,
) -> Result<(ServerStream, Agreed, HeaderMap, Bytes), Failed> {
    let mut headers = attempt.headers.clone();
    headers.extend(offer.headers());
    let broken = |failure: Failure| Lost::NotOpened(failure.context("opening handshake"));
    // A response may come before the server has read the request.
    let written = stream.write_all(&request_head(&attempt.url, &headers)).await;
    let head = match (read_head(&mut stream).await, written) {
        (Ok(head), _) => head,
        (Err(_), Err(error)) => return Err(broken(error.into()).into()),
        (Err(failure), Ok(())) => return Err(broken(failure).into()),
    };
    match offer.check_response(head.status, &head.headers) {
        Ok(agreed) => Ok((stream, agreed, head.headers, Bytes::from(head.rest))),
        Err(error) => Err(rejected(error, head, &mut stream, attempt.give_up.as_ref()).await),
    }
}

async fn rejected(
    error: ResponseError,
    head: Head,
    stream: &mut ServerStream,
    give_up: Option<&GiveUp>,
) -> Failed {
    let reason = error.to_string();
    let ResponseError::Refused { status, retry_after } = error else { return refused(reason).into() };
    let is_final = give_up.map_or(!error.is_retryable(), |give_up| give_up(status));
    let why = match is_final {
        true => Lost::Refused { status: Some(status), reason },
        false => Lost::Unavailable { code: status.into(), retry_after, reason },
    };
    Failed { why, rejection: Some(Box::new(Rejection::read(head, stream).await)) }
}

/// A connection whose opening handshake is done, for [`Builder::adopt`](super::Builder::adopt).
///
/// ```no_run
/// use mainstay::Link;
/// use mainstay::client::{ServerStream, Upgraded};
///
/// # async fn run(stream: tokio::net::TcpStream) -> Result<(), mainstay::client::UrlError> {
/// // A gateway has passed a client's handshake on, and the server's response has agreed on the subprotocol.
/// let subprotocol = Some("chat.v2".to_owned());
/// let upgraded = Upgraded { stream: stream.into(), early: bytes::Bytes::new(), subprotocol, deflate: None };
/// let link = Link::builder("ws://127.0.0.1:3000/chat")?.subprotocol("chat.v2").adopt(upgraded);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Upgraded {
    /// The byte stream.
    pub stream: ServerStream,
    /// The bytes that came from the server behind its response.
    pub early: Bytes,
    /// The subprotocol that both agreed on.
    pub subprotocol: Option<String>,
    /// The compression that both agreed on.
    pub deflate: Option<DeflateParams>,
}

impl Upgraded {
    pub(super) fn opened(self, limits: Limits, resumable: bool) -> Opened {
        let (mode, subprotocol) = match self.subprotocol {
            Some(name) if resumable && subprotocol::is_session(&name) => {
                (Mode::Session, subprotocol::application(&name).map(str::to_owned))
            }
            name => (Mode::Plain, name),
        };
        let guard = (mode == Mode::Plain).then(|| self.stream.guard()).flatten();
        let codec = Connection::new(Role::Client, limits, self.deflate, crate::random_seed());
        let mut wire = Wire::new(self.stream.into_transport(), codec, self.early);
        if mode == Mode::Session {
            wire.begin_session(limits);
        }
        Opened { wire, mode, subprotocol, credentials: None, guard, response: None, greeting: Vec::new() }
    }
}

fn request_head(url: &Uri, headers: &HeaderMap) -> Vec<u8> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut head = format!("GET {path} HTTP/1.1\r\n").into_bytes();
    if !headers.contains_key(http::header::HOST) {
        head.extend_from_slice(format!("Host: {}\r\n", host_field(url)).as_bytes());
    }
    for (name, value) in headers {
        spell(name, &mut head);
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Writes the name of a field as RFC 6455 and browsers spell it: some servers accept no other spelling.
fn spell(name: &HeaderName, out: &mut Vec<u8>) {
    for (at, word) in name.as_str().split('-').enumerate() {
        if at > 0 {
            out.push(b'-');
        }
        if word == "websocket" {
            out.extend_from_slice(b"WebSocket");
            continue;
        }
        let mut bytes = word.bytes();
        out.extend(bytes.next().map(|first| first.to_ascii_uppercase()));
        out.extend(bytes);
    }
}

fn first_16(seed: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.iter_mut().zip(seed).for_each(|(to, from)| *to = *from);
    out
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn field_names_are_spelled_as_in_the_rfc() {
        let offer = Offer::new([1; 16], &["a"], Some(DeflateParams::default())).unwrap();
        let mut headers = offer.headers();
        headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        let head = String::from_utf8(request_head(&Uri::from_static("ws://h:81/a?b"), &headers)).unwrap();
        let mut names: Vec<_> = head.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "Connection",
                "Host",
                "Sec-WebSocket-Extensions",
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Protocol",
                "Sec-WebSocket-Version",
                "Upgrade",
                "X-Forwarded-For",
            ]
        );
        assert!(
            head.starts_with("GET /a?b HTTP/1.1\r\nHost: h:81\r\n") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
    }
}
