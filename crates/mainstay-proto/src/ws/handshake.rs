//! The opening handshake as rules over HTTP headers. The driver that owns the socket parses and writes the HTTP.
//!
//! A server passes a request's head to [`check_request`] and gets either an [`Accept`], which makes the headers of
//! its 101 response, or a [`HandshakeError`], which states how to refuse. A client makes an [`Offer`], sends its
//! headers, and passes it the response.
//!
//! Not here: limits on the head's size (the HTTP parser), origins ([`Origins`](super::Origins)), credentials (the
//! server's hooks).
//!
//! Source: RFC 6455 section 4.

use std::time::Duration;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{
        ALLOW, CONNECTION, CONTENT_LENGTH, HOST, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
    },
};
use sha1::{Digest, Sha1};

use super::DeflateParams;

/// What both ends agreed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The subprotocol.
    pub protocol: Option<String>,
    /// Compression, for [`Connection::new`](super::Connection::new).
    pub deflate: Option<DeflateParams>,
}

// ---------------------------------------------------------------------------------------- server

/// A valid opening request, ready to be accepted.
#[derive(Debug, Clone)]
pub struct Accept {
    /// The answer to the key; `None` over HTTP/2 from a client that sends no key.
    accept: Option<HeaderValue>,
    /// The response is that of HTTP/2: 200, without `Connection` and `Upgrade`.
    over_http2: bool,
    protocols: Vec<HeaderValue>,
    extensions: Vec<HeaderValue>,
}

/// Checks an opening request.
///
/// # Errors
///
/// The request opens no WebSocket; the error states how to answer it.
///
/// Source: RFC 6455 sections 4.1 and 4.2.1.
pub fn check_request(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<Accept, HandshakeError> {
    if method != Method::GET {
        return Err(HandshakeError::Method);
    }
    if version != Version::HTTP_11 {
        return Err(HandshakeError::HttpVersion);
    }
    if single(headers, &HOST).is_none() {
        return Err(HandshakeError::Host);
    }
    // A body could smuggle a second request past a proxy, or pass for frames.
    let no_body = headers.get_all(CONTENT_LENGTH).iter().all(|length| length == "0");
    if !no_body || headers.contains_key(TRANSFER_ENCODING) {
        return Err(HandshakeError::Body);
    }
    if !has_token(headers, &UPGRADE, "websocket") {
        return Err(HandshakeError::Upgrade);
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(HandshakeError::Connection);
    }
    if single(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::WebSocketVersion);
    }
    let accept = answer_to_key(headers).ok_or(HandshakeError::Key)?;
    Ok(Accept { accept: Some(accept), ..Accept::new(headers) })
}

/// Checks an opening request of HTTP/2: CONNECT with `:protocol`, whose value is `protocol`.
///
/// A key has no meaning over HTTP/2 and is not required. It is answered where there is one, because a proxy that carries a client's
/// HTTP/1.1 over HTTP/2 passes on the client's key, and the client needs the answer.
///
/// # Errors
///
/// As [`check_request`].
///
/// Source: RFC 8441 sections 4 and 5.
pub fn check_connect(protocol: &str, headers: &HeaderMap) -> Result<Accept, HandshakeError> {
    if !protocol.eq_ignore_ascii_case("websocket") {
        return Err(HandshakeError::Protocol);
    }
    if single(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::WebSocketVersion);
    }
    Ok(Accept { accept: answer_to_key(headers), over_http2: true, ..Accept::new(headers) })
}

/// Returns the value of `Sec-WebSocket-Accept`, if there is one valid key.
fn answer_to_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let key = single(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes()))?;
    HeaderValue::try_from(accept_key(key.as_bytes())).ok()
}

impl Accept {
    fn new(headers: &HeaderMap) -> Self {
        let all = |name: HeaderName| headers.get_all(name).iter().cloned().collect();
        Self {
            accept: None,
            over_http2: false,
            protocols: all(SEC_WEBSOCKET_PROTOCOL),
            extensions: all(SEC_WEBSOCKET_EXTENSIONS),
        }
    }

    /// Returns the status of the response that accepts: 101, and 200 over HTTP/2.
    pub fn status(&self) -> StatusCode {
        if self.over_http2 { StatusCode::OK } else { StatusCode::SWITCHING_PROTOCOLS }
    }

    /// Returns the offered subprotocols, the client's favourite first. Values that are not ASCII are left out.
    pub fn protocols(&self) -> impl Iterator<Item = &str> {
        elements(&self.protocols)
    }

    /// Returns the headers of the response that accepts, and what they agree on.
    ///
    /// `protocol` is left out unless the client offered it, because a client must refuse one that it did not offer.
    /// `deflate` is what the server prefers; `None` declines compression.
    pub fn response(&self, protocol: Option<&str>, deflate: Option<DeflateParams>) -> (HeaderMap, Agreed) {
        let mut headers = HeaderMap::new();
        if !self.over_http2 {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        if let Some(accept) = &self.accept {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept.clone());
        }
        let mut agreed = Agreed::default();
        if let Some(protocol) = protocol.filter(|wanted| self.protocols().any(|p| p == *wanted))
            && let Ok(value) = HeaderValue::from_str(protocol)
        {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
            agreed.protocol = Some(protocol.to_owned());
        }
        if let Some((params, answer)) = deflate.and_then(|wish| wish.accept(elements(&self.extensions)))
            && let Ok(value) = HeaderValue::try_from(answer)
        {
            headers.insert(SEC_WEBSOCKET_EXTENSIONS, value);
            agreed.deflate = Some(params);
        }
        (headers, agreed)
    }
}

/// A request that opens no WebSocket. Displays as one line that helps its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Another method than GET.
    #[error("a WebSocket is opened with GET")]
    Method,
    /// Another version than HTTP/1.1.
    #[error("a WebSocket is opened over HTTP/1.1")]
    HttpVersion,
    /// No Host header, or several.
    #[error("the request needs exactly one Host header")]
    Host,
    /// A request with a body.
    #[error("the request may not have a body")]
    Body,
    /// Not a request for a WebSocket.
    #[error("this address speaks WebSocket: the request needs the header Upgrade: websocket")]
    Upgrade,
    /// No `Connection: Upgrade`.
    #[error("the request needs the header Connection: Upgrade; a proxy may have removed it")]
    Connection,
    /// CONNECT of HTTP/2 for another protocol.
    #[error("CONNECT opens a WebSocket here: its :protocol must be websocket")]
    Protocol,
    /// Another version of WebSocket than 13.
    #[error("the request needs the header Sec-WebSocket-Version: 13")]
    WebSocketVersion,
    /// From a page that may not open a WebSocket here; see [`Origins`](super::Origins).
    #[error("pages of this origin may not open a WebSocket here; the server's allowed origins say which may")]
    Origin,
    /// No valid key.
    #[error("the request needs exactly one Sec-WebSocket-Key header: 16 bytes in base64")]
    Key,
}

impl HandshakeError {
    /// Returns the status to answer with: 400, 403, 405, 426 or 501.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::Protocol => StatusCode::NOT_IMPLEMENTED,
            Self::Upgrade | Self::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Returns the headers to answer with.
    ///
    /// They include `Connection: close`: what follows a failed upgrade may be frames that a proxy let through, and
    /// must not be read as requests.
    pub fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::from_iter([(CONNECTION, HeaderValue::from_static("close"))]);
        match self.status() {
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(ALLOW, HeaderValue::from_static("GET"));
            }
            StatusCode::UPGRADE_REQUIRED => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            _ => {}
        }
        headers
    }
}

/// Returns the value of `Sec-WebSocket-Accept` that answers this `Sec-WebSocket-Key`.
///
/// Source: RFC 6455 section 4.2.2, item 5.
pub fn accept_key(key: &[u8]) -> String {
    let hash = Sha1::new().chain_update(key).chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(hash.finalize())
}

// ---------------------------------------------------------------------------------------- client

/// A client's opening handshake.
#[derive(Debug, Clone)]
pub struct Offer {
    key: String,
    protocols: Vec<String>,
    deflate: Option<DeflateParams>,
}

impl Offer {
    /// Creates an offer of these subprotocols, the favourite first, and of compression as the client prefers it.
    ///
    /// `key` must be random.
    ///
    /// # Errors
    ///
    /// A subprotocol is not a token of HTTP.
    pub fn new(
        key: [u8; 16],
        protocols: &[&str],
        deflate: Option<DeflateParams>,
    ) -> Result<Self, InvalidProtocol> {
        protocols.iter().try_for_each(|protocol| InvalidProtocol::check(protocol))?;
        let protocols = protocols.iter().map(|protocol| protocol.to_string()).collect();
        Ok(Self { key: BASE64.encode(key), protocols, deflate })
    }

    /// Returns the offer that a request makes, for a gateway that passes the request on and must check the answer:
    /// its key and its subprotocols, including those that are not tokens. Extensions belong to one hop: `deflate` is
    /// what the gateway offers instead of the request's. `None` if the request does not have exactly one key.
    pub fn of_request(headers: &HeaderMap, deflate: Option<DeflateParams>) -> Option<Self> {
        let key = single(headers, &SEC_WEBSOCKET_KEY)?.to_str().ok()?.trim().to_owned();
        let values: Vec<_> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().cloned().collect();
        Some(Self { key, protocols: elements(&values).map(str::to_owned).collect(), deflate })
    }

    /// Returns the value of `Sec-WebSocket-Extensions`, if any is offered.
    pub fn extensions(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.deflate?.offer()).ok()
    }

    /// Returns the request's headers, without `Host` and what the application adds.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::from_iter([
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static("websocket")),
            (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        ]);
        let own = [
            (SEC_WEBSOCKET_KEY, Some(self.key.clone())),
            (SEC_WEBSOCKET_PROTOCOL, Some(self.protocols.join(", ")).filter(|p| !p.is_empty())),
            (SEC_WEBSOCKET_EXTENSIONS, self.deflate.map(DeflateParams::offer)),
        ];
        for (name, value) in own {
            // Tokens, base64 and constants: always valid.
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        headers
    }

    /// Checks the server's response.
    ///
    /// # Errors
    ///
    /// The server refused, or its answer does not fit the offer: close TCP.
    ///
    /// Source: RFC 6455 section 4.1, after the second list.
    pub fn check_response(&self, status: StatusCode, headers: &HeaderMap) -> Result<Agreed, ResponseError> {
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ResponseError::Refused { status, retry_after: retry_after(headers) });
        }
        if !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
            return Err(ResponseError::Upgrade);
        }
        let accept = single(headers, &SEC_WEBSOCKET_ACCEPT).ok_or(ResponseError::Accept)?;
        if accept.as_bytes().trim_ascii() != accept_key(self.key.as_bytes()).as_bytes() {
            return Err(ResponseError::Accept);
        }
        Ok(Agreed { protocol: self.agreed_protocol(headers)?, deflate: self.agreed_deflate(headers)? })
    }

    fn agreed_protocol(&self, headers: &HeaderMap) -> Result<Option<String>, ResponseError> {
        if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            return Ok(None);
        }
        let chosen = single(headers, &SEC_WEBSOCKET_PROTOCOL).map(|chosen| chosen.as_bytes());
        let offered = |offer: &&String| Some(offer.as_bytes()) == chosen.map(<[u8]>::trim_ascii);
        match self.protocols.iter().find(offered) {
            Some(protocol) => Ok(Some(protocol.clone())),
            None => Err(ResponseError::Protocol),
        }
    }

    fn agreed_deflate(&self, headers: &HeaderMap) -> Result<Option<DeflateParams>, ResponseError> {
        let values: Vec<_> = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().cloned().collect();
        if values.iter().any(|value| value.to_str().is_err()) {
            return Err(ResponseError::Extension);
        }
        let mut extensions = elements(&values);
        match (extensions.next(), extensions.next()) {
            (None, _) => Ok(None),
            (Some(answer), None) => self
                .deflate
                .and_then(|wish| wish.check_answer(answer))
                .map(Some)
                .ok_or(ResponseError::Extension),
            (Some(_), Some(_)) => Err(ResponseError::Extension),
        }
    }
}

/// A subprotocol that cannot be offered: it is not a token of HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name for a subprotocol: letters, digits and !#$%&'*+-.^_`|~ are allowed")]
pub struct InvalidProtocol(String);

impl InvalidProtocol {
    /// Checks whether a subprotocol of this name can be offered.
    ///
    /// # Errors
    ///
    /// It is not a token of HTTP.
    pub fn check(name: &str) -> Result<(), Self> {
        if is_token(name) { Ok(()) } else { Err(Self(name.to_owned())) }
    }
}

/// A response that opens no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// Another status than 101.
    #[error("the server answered {status}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// `Retry-After`, if it was given in seconds.
        retry_after: Option<Duration>,
    },
    /// Not an upgrade to WebSocket.
    #[error("the server switched to another protocol than WebSocket")]
    Upgrade,
    /// `Sec-WebSocket-Accept` does not answer the client's key.
    #[error("the server's Sec-WebSocket-Accept does not answer the client's key")]
    Accept,
    /// A subprotocol that was not offered, or several.
    #[error("the server chose a subprotocol that was not offered")]
    Protocol,
    /// An extension that was not offered, or parameters that do not fit the offer.
    #[error("the server chose an extension that was not offered")]
    Extension,
}

impl ResponseError {
    /// Whether the same attempt may succeed later: 408, 425, 426, 429 and 5xx, except 501 and 505. (A server of
    /// Node's `ws` answers 426 to every upgrade while it closes.)
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Refused { status, .. } => match status.as_u16() {
                408 | 425 | 426 | 429 => true,
                501 | 505 => false,
                status => status >= 500,
            },
            _ => false,
        }
    }
}

// --------------------------------------------------------------------------------------- headers

/// Some clients draw 22 base64 digits instead of 16 bytes: the surplus bits are theirs to set.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

fn is_key(key: &[u8]) -> bool {
    let mut bytes = [0; 18];
    key.len() == 24 && BASE64.decode_slice(key, &mut bytes) == Ok(16)
}

/// The value of a header that may come once only.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The elements of comma-separated lists; a comma inside quotes separates nothing.
fn elements(values: &[HeaderValue]) -> impl Iterator<Item = &str> {
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| {
            let mut quoted = false;
            value.split(move |c| {
                quoted ^= c == '"';
                c == ',' && !quoted
            })
        })
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

fn is_token(text: &str) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || special.contains(&b))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = single(headers, &RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
