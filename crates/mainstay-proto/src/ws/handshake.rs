//! The rules of the opening handshake, for both roles.
//!
//! Reading and writing HTTP is somebody else's work (hyper's on a server); what the headers must say
//! is decided here.
//!
//! Source: RFC 6455 sections 1.3, 4.1 and 4.2.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use sha1::{Digest, Sha1};

use super::deflate::{self, DeflateParams};

const PROTOCOL_VERSION: &str = "13";

/// An upgrade request that a server may accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    accept: HeaderValue,
    /// The subprotocols that the client offers, in its order.
    pub subprotocols: Vec<String>,
    extensions: String,
}

/// Why an upgrade request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Section 4.1: GET only.
    #[error("a WebSocket opens with GET")]
    Method,
    /// Section 4.1: HTTP/1.1 or later.
    #[error("a WebSocket needs HTTP/1.1")]
    HttpVersion,
    /// No `Upgrade: websocket` with `Connection: Upgrade`: an ordinary request.
    #[error("this address speaks WebSocket: send Upgrade: websocket and Connection: Upgrade")]
    NoUpgrade,
    /// Section 4.4: only version 13.
    #[error("Sec-WebSocket-Version must be 13")]
    Version,
    /// Section 4.1: exactly one key, 16 bytes in base64.
    #[error("Sec-WebSocket-Key must be one base64 value of 16 bytes")]
    Key,
    /// An upgrade request has no body: what follows it would be read as frames by one and as a
    /// request by another.
    #[error("an upgrade request must have no body")]
    Body,
    /// RFC 9112 section 3.2: exactly one.
    #[error("exactly one Host header is needed")]
    Host,
}

impl RequestError {
    /// The status to answer with. 426 is answered together with `Sec-WebSocket-Version: 13`.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoUpgrade | Self::Version => StatusCode::UPGRADE_REQUIRED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks an upgrade request.
///
/// # Errors
/// Says what is wrong with it; see [`RequestError::status`].
pub fn check_request(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<Request, RequestError> {
    if *method != Method::GET {
        return Err(RequestError::Method);
    }
    if version < Version::HTTP_11 {
        return Err(RequestError::HttpVersion);
    }
    let upgrade = has_token(headers, &header::UPGRADE, "websocket");
    if !upgrade || !has_token(headers, &header::CONNECTION, "upgrade") {
        return Err(RequestError::NoUpgrade);
    }
    if headers.get_all(header::HOST).iter().count() != 1 {
        return Err(RequestError::Host);
    }
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if length || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(RequestError::Body);
    }
    if only(headers, &header::SEC_WEBSOCKET_VERSION).is_none_or(|value| value != PROTOCOL_VERSION) {
        return Err(RequestError::Version);
    }
    let key = only(headers, &header::SEC_WEBSOCKET_KEY).ok_or(RequestError::Key)?;
    let decoded = BASE64.decode(key.as_bytes()).map_err(|_| RequestError::Key)?;
    if decoded.len() != 16 {
        return Err(RequestError::Key);
    }
    Ok(Request {
        accept: accept_value(key.as_bytes()),
        subprotocols: list(headers, &header::SEC_WEBSOCKET_PROTOCOL),
        extensions: list(headers, &header::SEC_WEBSOCKET_EXTENSIONS).join(","),
    })
}

impl Request {
    /// The headers of the 101 response, and what was agreed on about compression.
    ///
    /// `subprotocol`: the chosen one, if any. `deflate`: whether compression may be agreed on.
    #[must_use]
    pub fn response(&self, subprotocol: Option<&str>, deflate: bool) -> (HeaderMap, Option<DeflateParams>) {
        let mut headers = HeaderMap::with_capacity(5);
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept.clone());
        if let Some(value) = subprotocol.and_then(|name| HeaderValue::from_str(name).ok()) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
        let agreed = deflate.then(|| DeflateParams::choose(&self.extensions)).flatten();
        let params = agreed.and_then(|(params, answer)| {
            headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_str(&answer).ok()?);
            Some(params)
        });
        (headers, params)
    }
}

/// What a client sends and what it then accepts.
#[derive(Debug, Clone)]
pub struct Offer {
    key: HeaderValue,
    subprotocols: Vec<String>,
    deflate: bool,
}

/// Why a response does not open a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// Not 101.
    #[error("the server answered {0} instead of 101")]
    Status(StatusCode),
    /// A header that must be there is missing or wrong.
    #[error("the server's {0} header is missing or wrong")]
    Header(&'static str),
    /// A subprotocol that was not offered.
    #[error("the server chose a subprotocol that was not offered")]
    Subprotocol,
    /// An extension that was not offered.
    #[error("the server chose an extension that was not offered")]
    Extension,
}

impl ResponseError {
    /// Whether another attempt may end otherwise: a server that is down or overloaded, or one that
    /// wants to be asked later. 4xx apart from 408, 425 and 429 would be answered the same again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Status(status) => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            _ => false,
        }
    }
}

/// What a 101 response agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The server's choice.
    pub subprotocol: Option<String>,
    /// Compression, if agreed on.
    pub deflate: Option<DeflateParams>,
}

impl Offer {
    /// An offer of these subprotocols, in order of preference. `nonce`: 16 random bytes.
    #[must_use]
    pub fn new(subprotocols: Vec<String>, deflate: bool, nonce: [u8; 16]) -> Self {
        let key = HeaderValue::from_str(&BASE64.encode(nonce)).unwrap_or(HeaderValue::from_static(""));
        Self { key, subprotocols, deflate }
    }

    /// Adds the headers of the request; Host is the caller's.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(PROTOCOL_VERSION));
        headers.insert(header::SEC_WEBSOCKET_KEY, self.key.clone());
        if let (false, Ok(list)) =
            (self.subprotocols.is_empty(), HeaderValue::from_str(&self.subprotocols.join(", ")))
        {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, list);
        }
        if self.deflate {
            let offer = HeaderValue::from_static(deflate::CLIENT_OFFER);
            headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, offer);
        }
    }

    /// Checks the response.
    ///
    /// # Errors
    /// Says why it does not open a WebSocket.
    pub fn check(&self, status: StatusCode, headers: &HeaderMap) -> Result<Agreed, ResponseError> {
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ResponseError::Status(status));
        }
        if !has_token(headers, &header::UPGRADE, "websocket") {
            return Err(ResponseError::Header("Upgrade"));
        }
        if !has_token(headers, &header::CONNECTION, "upgrade") {
            return Err(ResponseError::Header("Connection"));
        }
        let accept = only(headers, &header::SEC_WEBSOCKET_ACCEPT);
        if accept != Some(&accept_value(self.key.as_bytes())) {
            return Err(ResponseError::Header("Sec-WebSocket-Accept"));
        }
        let subprotocol = match list(headers, &header::SEC_WEBSOCKET_PROTOCOL).as_slice() {
            [] => None,
            [one] if self.subprotocols.contains(one) => Some(one.clone()),
            _ => return Err(ResponseError::Subprotocol),
        };
        let extensions = list(headers, &header::SEC_WEBSOCKET_EXTENSIONS).join(",");
        let deflate = match (extensions.as_str(), self.deflate) {
            ("", _) => None,
            (answer, true) => Some(DeflateParams::from_answer(answer).ok_or(ResponseError::Extension)?),
            (_, false) => return Err(ResponseError::Extension),
        };
        Ok(Agreed { subprotocol, deflate })
    }
}

/// Section 1.3: proves that the request was read as a WebSocket's.
fn accept_value(key: &[u8]) -> HeaderValue {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    HeaderValue::from_str(&BASE64.encode(digest)).unwrap_or(HeaderValue::from_static(""))
}

/// The value of a header that must come once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// The items of a comma-separated header, over all its lines. Values that are not ASCII are skipped.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("example.com"));
        Offer::new(vec!["mainstay.v1+chat".into(), "chat".into()], true, [7; 16]).write(&mut headers);
        headers
    }

    fn check(change: impl FnOnce(&mut HeaderMap)) -> Result<Request, RequestError> {
        let mut headers = upgrade();
        change(&mut headers);
        check_request(&Method::GET, Version::HTTP_11, &headers)
    }

    #[test]
    fn both_ends_agree_with_each_other() {
        let request = check(|_| {}).unwrap();
        assert_eq!(request.subprotocols, ["mainstay.v1+chat", "chat"]);
        let (headers, deflate) = request.response(Some("chat"), true);
        let offer = Offer::new(vec!["mainstay.v1+chat".into(), "chat".into()], true, [7; 16]);
        let agreed = offer.check(StatusCode::SWITCHING_PROTOCOLS, &headers).unwrap();
        assert_eq!(agreed, Agreed { subprotocol: Some("chat".into()), deflate });
        assert!(deflate.is_some());
    }

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        assert_eq!(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn requests_that_are_no_upgrade_are_refused_with_the_right_status() {
        let status =
            |result: Result<Request, RequestError>| result.map(|_| ()).map_err(|e| e.status().as_u16());
        let remove = |name: HeaderName| status(check(|headers| drop(headers.remove(name))));
        assert_eq!(status(check_request(&Method::POST, Version::HTTP_11, &upgrade())), Err(405));
        assert_eq!(status(check_request(&Method::GET, Version::HTTP_10, &upgrade())), Err(400));
        assert_eq!(remove(header::UPGRADE), Err(426));
        assert_eq!(remove(header::CONNECTION), Err(426));
        assert_eq!(remove(header::HOST), Err(400));
        assert_eq!(remove(header::SEC_WEBSOCKET_KEY), Err(400));
        assert_eq!(remove(header::SEC_WEBSOCKET_VERSION), Err(426));
        let set = |name: HeaderName, value: &'static [u8]| {
            status(check(|headers| drop(headers.insert(name, HeaderValue::from_bytes(value).unwrap()))))
        };
        assert_eq!(set(header::SEC_WEBSOCKET_VERSION, b"12"), Err(426));
        assert_eq!(set(header::SEC_WEBSOCKET_KEY, b"c2hvcnQ="), Err(400));
        assert_eq!(set(header::SEC_WEBSOCKET_KEY, b"not base64 at all!!"), Err(400));
        assert_eq!(set(header::CONTENT_LENGTH, b"5"), Err(400));
        assert_eq!(set(header::TRANSFER_ENCODING, b"chunked"), Err(400));
        assert_eq!(set(header::SEC_WEBSOCKET_PROTOCOL, b"caf\xe9"), Ok(()));
        let twice = check(|headers| {
            headers.append(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="));
        });
        assert_eq!(status(twice), Err(400));
    }

    #[test]
    fn an_answer_to_something_that_was_not_asked_is_refused() {
        let (headers, _) = check(|_| {}).unwrap().response(Some("chat"), true);
        let offer = |protocols: &[&str], deflate| {
            let protocols = protocols.iter().map(|&name| name.to_owned()).collect();
            Offer::new(protocols, deflate, [7; 16]).check(StatusCode::SWITCHING_PROTOCOLS, &headers)
        };
        assert_eq!(offer(&[], true), Err(ResponseError::Subprotocol));
        assert_eq!(offer(&["chat"], false), Err(ResponseError::Extension));
        let other_key = Offer::new(vec!["chat".into()], true, [8; 16]);
        let checked = other_key.check(StatusCode::SWITCHING_PROTOCOLS, &headers);
        assert_eq!(checked, Err(ResponseError::Header("Sec-WebSocket-Accept")));
        let busy = offer(&["chat"], true).and(other_key.check(StatusCode::SERVICE_UNAVAILABLE, &headers));
        assert!(busy.is_err_and(|error| error.is_retryable()));
    }
}
