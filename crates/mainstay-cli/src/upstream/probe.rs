//! Probes of the addresses of a backend: whether each of them can be reached, or also serves.
//!
//! A probe by TCP opens a connection, with TLS for wss://, and closes it: without a byte of HTTP. One by HTTP or WebSocket
//! asks the backend itself, for one that accepts connections while it cannot serve.

use std::time::Duration;

use axum::body::Body;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mainstay::client::{ConnectError, Connector, Lost};
use mainstay::{CloseCode, Link};
use tokio::time::timeout;

use crate::upstream::Upstream;
use crate::upstream::backend_health::{Failure, Reason};
use crate::upstream::links::Links;

/// What a probe asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A connection.
    #[default]
    Connection,
    /// A response to GET with a status below 400.
    Http(PathAndQuery),
    /// An opening handshake.
    WebSocket(PathAndQuery),
}

/// The probes of all addresses of a backend.
#[derive(Clone)]
pub(crate) struct Prober {
    pub(crate) ask: Ask,
    /// How long one probe may take.
    pub(crate) timeout: Duration,
    /// The fields of a request, `Host` among them.
    pub(crate) fields: HeaderMap,
}

impl Default for Prober {
    /// A connection, within 5 s.
    fn default() -> Self {
        Self { ask: Ask::Connection, timeout: Duration::from_secs(5), fields: HeaderMap::new() }
    }
}

impl Prober {
    /// Probes every address whenever that is due, in a task for each. Does nothing if they are probed already.
    pub(crate) fn start(&self, upstream: &Upstream, links: &Links) {
        links.start_probing(|| {
            let probe = |number| {
                let address = upstream.address(number)?;
                let connector = address.connector.clone().timeout(self.timeout).ok()?;
                let probe = Probe { prober: self.clone(), url: address.url.clone(), connector };
                let (due, links) = (links.probes(number), links.clone());
                let probing = async move {
                    loop {
                        due.next().await;
                        probe.run(&links, number).await;
                    }
                };
                Some(tokio::spawn(probing).abort_handle())
            };
            (0..links.count()).filter_map(probe).collect()
        });
    }
}

struct Probe {
    prober: Prober,
    url: Uri,
    connector: Connector,
}

impl Probe {
    /// Probes an address once, and reports how that ended.
    async fn run(&self, links: &Links, address: usize) {
        let answered = match &self.prober.ask {
            Ask::Connection => {
                return match self.connector.connect(&self.url).await {
                    Ok(_) => links.reached(address),
                    Err(failure) => links.failed(address, failure.into()),
                };
            }
            Ask::Http(path) => timeout(self.prober.timeout, self.get(path)).await,
            Ask::WebSocket(path) => Ok(self.open(path).await),
        };
        let silent = || Failure {
            reason: Reason::NoAnswer,
            why: format!("the probe got no response within {:?}", self.prober.timeout),
        };
        match answered.unwrap_or_else(|_| Err(silent())) {
            Ok(()) => links.answered(address),
            Err(failure) => {
                let was_reached = !failure.reason.is_down();
                links.failed(address, failure);
                if was_reached {
                    links.reached(address);
                }
            }
        }
    }

    async fn get(&self, path: &PathAndQuery) -> Result<(), Failure> {
        let stream = self.connector.connect(&self.url).await?;
        let broken = |error: hyper::Error| Failure {
            reason: Reason::Handshake,
            why: format!("the probe GET {path} got no response: {error}"),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = tokio::spawn(connection);
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::from(path.clone());
        *request.headers_mut() = self.fields();
        let response = sender.send_request(request).await.map_err(broken);
        connection.abort();
        match response?.status() {
            status if status.as_u16() < 400 => Ok(()),
            status => Err(refused("GET", path, status)),
        }
    }

    async fn open(&self, path: &PathAndQuery) -> Result<(), Failure> {
        let wrong = |why: String| Failure { reason: Reason::Handshake, why };
        let mut parts = self.url.clone().into_parts();
        parts.path_and_query = Some(path.clone());
        let url = Uri::from_parts(parts).map_err(|error| wrong(error.to_string()))?;
        let mut builder = Link::builder(&url.to_string())
            .map_err(|error| wrong(error.to_string()))?
            .connector(self.connector.clone())
            .answer_timeout(self.prober.timeout)
            .map_err(|error| wrong(error.to_string()))?
            .keep_response(false);
        for (name, value) in &self.fields() {
            builder = builder.header(name.clone(), value.clone());
        }
        match builder.connect_once().await {
            Ok(link) => {
                link.close(CloseCode::NORMAL, "probe").await;
                Ok(())
            }
            Err(ConnectError::Ended { end, .. }) => Err(match end.lost.as_deref() {
                Some(Lost::Unavailable { code, .. }) if code.status().is_some() => {
                    refused("WebSocket", path, code.status().unwrap_or_default())
                }
                Some(Lost::Refused { status: Some(status), .. }) => refused("WebSocket", path, *status),
                Some(lost) => Failure::of(lost).unwrap_or_else(|| wrong(lost.to_string())),
                None => wrong(end.reason),
            }),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    fn fields(&self) -> HeaderMap {
        let mut fields = self.prober.fields.clone();
        let own = self.url.authority().and_then(|own| HeaderValue::try_from(own.as_str()).ok());
        if let (false, Some(own)) = (fields.contains_key(HOST), own) {
            fields.insert(HOST, own);
        }
        fields
    }
}

fn refused(how: &str, path: &PathAndQuery, status: StatusCode) -> Failure {
    Failure { reason: Reason::Handshake, why: format!("the probe {how} {path} got {status}") }
}
