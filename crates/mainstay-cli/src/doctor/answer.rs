//! The response to the opening handshake: read within bounds, turned into facts, put into words.

use std::time::Duration;

use http::header::{
    CONNECTION, LOCATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SERVER, SET_COOKIE, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use mainstay_proto::ws::handshake::{Agreed, Offer, ResponseError};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::products;
use super::report::{Field, HandshakeFacts, Wrong, ms, plain};
use super::target::{Target, without_values};

/// The largest head of a response, with the interim responses before it, and the largest number of fields in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 256;
/// How many fields the report shows.
const SHOWN_FIELDS: usize = 64;
/// The part of a body that is read, and the time for it.
const MAX_BODY: usize = 4 * 1024;
const BODY_TIME: Duration = Duration::from_secs(2);

/// The words for a server that asks for a certificate.
pub(super) const CLIENT_CERTIFICATE: &str =
    "the server requires a certificate of the client, which the doctor cannot send";

/// The head of a response.
pub(super) struct Head {
    pub(super) status: StatusCode,
    /// `HTTP/1.1` or `HTTP/1.0`.
    http: &'static str,
    pub(super) headers: HeaderMap,
    /// All fields in order, also those that a [`HeaderMap`] does not accept.
    fields: Vec<(String, Vec<u8>)>,
    interim: u32,
    /// The bytes behind the head.
    pub(super) rest: Vec<u8>,
}

/// Reads the head of the final response.
///
/// # Errors
/// In words: what came is no response, or too large, or nothing came.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), target: &Target) -> Result<Head, String> {
    let (mut bytes, mut taken, mut interim) = (Vec::with_capacity(1024), 0, 0);
    loop {
        if taken + bytes.len() >= MAX_HEAD {
            return Err("the head of the response is larger than 64 KiB".to_owned());
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return Err(nothing_came(&bytes, target)),
            Ok(_) => {}
            Err(_) if !bytes.is_empty() => return Err(nothing_came(&bytes, target)),
            // In TLS 1.3 the server says so after the handshake.
            Err(error) if error.to_string().contains("CertificateRequired") => {
                return Err(CLIENT_CERTIFICATE.to_owned());
            }
            Err(error) => return Err(format!("no response came: {}", plain(&error))),
        }
        while let Some(mut head) = parse(&bytes, target)? {
            let size = bytes.len() - head.rest.len();
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                head.interim = interim;
                return Ok(head);
            }
            interim += 1;
            taken += size;
            bytes = head.rest;
        }
    }
}

/// Returns the head and what follows it; `None`: more bytes are needed.
fn parse(bytes: &[u8], target: &Target) -> Result<Option<Head>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut slots);
    let size = match response.parse(bytes) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(format!("the response has more than {MAX_FIELDS} fields"));
        }
        Err(error) => return Err(not_http(bytes, target, &error.to_string())),
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or("the response has no status")?;
    let mut headers = HeaderMap::new();
    let mut fields = Vec::new();
    for field in response.headers.iter() {
        fields.push((field.name.to_owned(), field.value.to_vec()));
        let name = HeaderName::from_bytes(field.name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
            headers.append(name, value);
        }
    }
    let http = if response.version == Some(0) { "HTTP/1.0" } else { "HTTP/1.1" };
    let rest = bytes.get(size..).unwrap_or_default().to_vec();
    Ok(Some(Head { status, http, headers, fields, interim: 0, rest }))
}

/// Says what a server speaks that does not answer in HTTP.
fn not_http(bytes: &[u8], target: &Target, error: &str) -> String {
    match bytes {
        [0x15, ..] => "the server speaks TLS at this port: write wss://".to_owned(),
        [0, 0, _, 4, ..] => {
            "the server speaks HTTP/2 at this port, and no HTTP/1.1; a WebSocket over HTTP/1.1 is not possible".to_owned()
        }
        _ => {
            let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(64)).unwrap_or_default());
            format!("the answer is no HTTP ({error}); it begins with {:?}", target.shown(&text))
        }
    }
}

/// Says that the stream ended before a head was complete.
fn nothing_came(bytes: &[u8], target: &Target) -> String {
    match bytes {
        [] if target.is_secure() => "the server closed the connection without a response".to_owned(),
        [] => {
            "the server closed the connection without a response; if it speaks TLS at this port, write wss://"
                .to_owned()
        }
        [0x15, ..] => "the server speaks TLS at this port: write wss://".to_owned(),
        _ => "the server closed the connection in the middle of the response's head".to_owned(),
    }
}

/// Makes the facts of a response.
pub(super) fn facts(
    head: &Head,
    target: &Target,
    offer: &Offer,
    checked: &Result<Agreed, ResponseError>,
) -> HandshakeFacts {
    let text = |value: &HeaderValue| target.shown(&String::from_utf8_lossy(value.as_bytes()));
    let first = |name: &HeaderName| head.headers.get(name).map(text);
    let fields: Vec<Field> =
        head.fields.iter().take(SHOWN_FIELDS).map(|field| shown(field, target)).collect();
    let agreed = checked.as_ref().ok();
    let retry_after =
        head.headers.get(http::header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
    HandshakeFacts {
        took_ms: 0.0,
        status: head.status.as_u16(),
        http: head.http.to_owned(),
        products: products::find(&fields),
        more_fields: head.fields.len().saturating_sub(SHOWN_FIELDS),
        fields,
        server: first(&SERVER),
        via: head.headers.get_all(VIA).iter().map(text).collect(),
        offered_subprotocols: target.subprotocols().to_vec(),
        offered_extensions: offer.extensions().as_ref().map(text),
        subprotocol: agreed.and_then(|agreed| agreed.protocol.clone()),
        extensions: first(&SEC_WEBSOCKET_EXTENSIONS),
        compressed: agreed.is_some_and(|agreed| agreed.deflate.is_some()),
        location: head
            .headers
            .get(LOCATION)
            .map(|value| target.shown(&without_values(&String::from_utf8_lossy(value.as_bytes())))),
        retry_after_ms: retry_after.map(ms),
        interim: head.interim,
        wrong: checked.as_ref().err().map(|error| wrong(*error, &head.headers)),
        body: None,
    }
}

/// Returns a field as the report shows it: cookies by their names only, and places without the values of their query.
fn shown((name, value): &(String, Vec<u8>), target: &Target) -> Field {
    let value = String::from_utf8_lossy(value);
    let name = target.shown(name);
    let value = match &name {
        name if name.eq_ignore_ascii_case(SET_COOKIE.as_str()) => {
            format!("{}=...", value.split('=').next().unwrap_or_default())
        }
        name if name.eq_ignore_ascii_case(LOCATION.as_str()) => without_values(&value),
        _ => value.into_owned(),
    };
    Field { value: target.shown(&value), name }
}

fn wrong(error: ResponseError, headers: &HeaderMap) -> Wrong {
    match error {
        ResponseError::Refused { .. } => Wrong::Status,
        ResponseError::Upgrade if !lists(headers, &UPGRADE, "websocket") => Wrong::NoUpgrade,
        ResponseError::Upgrade if !lists(headers, &CONNECTION, "upgrade") => Wrong::NoConnection,
        ResponseError::Accept if headers.get_all(SEC_WEBSOCKET_ACCEPT).iter().count() != 1 => Wrong::NoAccept,
        ResponseError::Protocol => Wrong::Subprotocol,
        ResponseError::Extension => Wrong::Extension,
        _ => Wrong::Accept,
    }
}

fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// Reads `Retry-After`, in seconds or as a date.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    let until = || httpdate::parse_http_date(text).ok()?.duration_since(std::time::SystemTime::now()).ok();
    seconds.or_else(until)
}

/// Reads the beginning of the body of a refusal.
pub(super) async fn read_body(
    head: Head,
    stream: &mut (impl AsyncRead + Unpin),
    target: &Target,
) -> Option<String> {
    let mut body = head.rest;
    let length = head.headers.get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.trim().parse().ok()).unwrap_or(MAX_BODY);
    let reading = async {
        while body.len() < length.min(MAX_BODY) && matches!(stream.read_buf(&mut body).await, Ok(1..)) {}
    };
    let _ = timeout(BODY_TIME, reading).await;
    let text = String::from_utf8_lossy(&body);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then(|| target.shown(&text))
}

/// Says in one sentence why a response opens no WebSocket.
pub(super) fn words(facts: &HandshakeFacts) -> String {
    let reason = StatusCode::from_u16(facts.status).ok().and_then(|status| status.canonical_reason());
    match facts.wrong {
        Some(Wrong::NoUpgrade) => "the response is 101 and has no `Upgrade: websocket`",
        Some(Wrong::NoConnection) => "the response is 101 and has no `Connection: Upgrade`",
        Some(Wrong::NoAccept) => "the response is 101 and has not exactly one Sec-WebSocket-Accept",
        Some(Wrong::Accept) => "the response's Sec-WebSocket-Accept does not answer the key of the request",
        Some(Wrong::Subprotocol) => "the server chose a subprotocol that was not offered",
        Some(Wrong::Extension) => "the server chose an extension that was not offered",
        Some(Wrong::Status) | None => {
            return format!("the server answered {} {}", facts.status, reason.unwrap_or_default())
                .trim_end()
                .to_owned();
        }
    }
    .to_owned()
}
