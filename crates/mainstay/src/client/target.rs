//! What the attempts of a client are made from, and the request of each.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, InvalidHeaderValue};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use mainstay_proto::endpoint::Follow;
use mainstay_proto::ws::Limits;

use super::BoxError;
use super::connector::Connector;
use super::dial::{Attempt, GiveUp, Greeting};
use super::place::Server;
use crate::subprotocol;

/// The request of one attempt. The function of [`Builder::request`](super::Builder::request) makes one before each attempt.
///
/// ```
/// use mainstay::client::Request;
///
/// let request = Request::default().bearer("token")?.subprotocols(["chat.v2"]);
/// assert_eq!(request.headers["authorization"], "Bearer token");
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Request {
    /// The URL to dial; `None`: the URL that the client was built with.
    pub url: Option<Uri>,
    /// Header fields to send beside those of [`Builder::header`](super::Builder::header). A field replaces those of the same name there.
    pub headers: HeaderMap,
    /// The application's subprotocols to offer, in order of preference; `None`: those of [`Builder::subprotocol`](super::Builder::subprotocol).
    pub subprotocols: Option<Vec<String>>,
    /// Credentials to send inside the session's HELLO, as [`Builder::credentials`](super::Builder::credentials) does. Later attempts that bring none
    /// send them again. Credentials of [`ClientHandle::authenticate`](super::ClientHandle::authenticate) that the server has not judged yet come first. A plain
    /// peer gets none.
    pub credentials: Option<Bytes>,
    /// The connector of this attempt, where one server has several addresses that are reached in different ways: a Unix
    /// socket beside TCP, another name in the certificate. `None`: the client's own, [`Builder::connector`](super::Builder::connector).
    /// Its [timeout](Connector::timeout) should be the same.
    pub connector: Option<Connector>,
}

impl Request {
    /// Sets the [`url`](Self::url).
    #[must_use]
    pub fn url(mut self, url: Uri) -> Self {
        self.url = Some(url);
        self
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the header field `Authorization` to this bearer token.
    ///
    /// # Errors
    /// The token contains a control character or a character that is not ASCII.
    pub fn bearer(mut self, token: &str) -> Result<Self, InvalidHeaderValue> {
        self.headers.insert(AUTHORIZATION, bearer(token)?);
        Ok(self)
    }

    /// Sets the [`subprotocols`](Self::subprotocols).
    #[must_use]
    pub fn subprotocols<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.subprotocols = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the [`connector`](Self::connector).
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = Some(connector);
        self
    }

    /// Sets the [`credentials`](Self::credentials).
    #[must_use]
    pub fn credentials(mut self, credentials: impl Into<Bytes>) -> Self {
        self.credentials = Some(credentials.into());
        self
    }
}

/// The value of `Authorization` for this token, which no log shows.
pub(super) fn bearer(token: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

pub(super) type Factory =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Request, BoxError>> + Send>> + Send + Sync>;

/// The parts that every attempt is made from.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) url: Uri,
    pub(super) headers: HeaderMap,
    pub(super) subprotocols: Vec<String>,
    /// Whether `mainstay.v1` is offered.
    pub(super) resumable: bool,
    pub(super) deflate: bool,
    pub(super) limits: Limits,
    pub(super) follow: Follow,
    pub(super) factory: Option<Factory>,
    pub(super) greeting: Option<Greeting>,
    pub(super) keeps_response: bool,
    pub(super) connector: Connector,
    pub(super) answer_timeout: Option<Duration>,
    pub(super) give_up: Option<GiveUp>,
}

impl Target {
    /// The attempt at `endpoint`, if the server named one and it may be followed; otherwise at the request's or the own URL.
    pub(super) fn attempt(&self, request: Request, endpoint: Option<&str>) -> Attempt {
        let mut headers = self.headers.clone();
        headers.extend(request.headers);
        let names = request.subprotocols.as_ref().unwrap_or(&self.subprotocols);
        let ours = self.resumable.then(|| subprotocol::session_names(names));
        let subprotocols = ours.into_iter().flatten().chain(names.iter().cloned()).collect();
        let own = request.url.unwrap_or_else(|| self.url.clone());
        let named = endpoint.and_then(|endpoint| {
            let named = self.follow.allows(&own, endpoint).filter(|named| Server::of(named).is_ok());
            if named.is_none() {
                tracing::warn!(endpoint, "the server names an endpoint that is not followed");
            }
            named
        });
        Attempt {
            url: named.unwrap_or(own),
            headers,
            subprotocols,
            resumable: self.resumable,
            credentials: request.credentials,
            deflate: self.deflate,
            limits: self.limits,
            connector: request.connector.unwrap_or_else(|| self.connector.clone()),
            answer_timeout: self.answer_timeout,
            give_up: self.give_up.clone(),
            keeps_response: self.keeps_response,
        }
    }
}

impl std::fmt::Debug for Request {
    /// Shows only the names of header fields: values are often secrets, and credentials always are.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("url", &self.url)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("subprotocols", &self.subprotocols)
            .finish_non_exhaustive()
    }
}
