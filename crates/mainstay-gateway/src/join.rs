//! One visitor's session joined to one link to the backend.
//!
//! The two legs fail apart: while the visitor is away its link stays up, and what the backend sends
//! is kept within the session's window; while the backend is away the visitor stays, and what it
//! sends is kept in the link's queue. Full means waiting, on either leg, never dropping.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use mainstay::SessionUpgrade;
use mainstay::client::{Event, Events};
use mainstay::server::Session;
use mainstay::{CloseCode, Confirm, Guarantee, HeartbeatConfig, Limits, Link};

/// How links are made.
#[derive(Clone)]
pub(crate) struct LinkConfig {
    pub(crate) upstream: Uri,
    pub(crate) heartbeat: HeartbeatConfig,
    pub(crate) limits: Limits,
    pub(crate) confirm: Confirm,
    pub(crate) guarantee: Guarantee,
    pub(crate) stats: LinkStats,
}

/// Figures of all links.
#[derive(Clone, Default)]
pub(crate) struct LinkStats {
    lost: Arc<AtomicU64>,
}

impl LinkStats {
    /// Connections to the backend that were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// What a visitor's request asks for, as it is passed on.
pub(crate) struct Visit {
    uri: Uri,
    headers: HeaderMap,
}

impl Visit {
    pub(crate) fn of(upgrade: &SessionUpgrade) -> Self {
        Self { uri: upgrade.uri().clone(), headers: forwarded(upgrade.headers(), upgrade.address()) }
    }
}

/// Runs until the visitor or the backend ends it.
pub(crate) async fn join(session: Session, visit: Visit, config: LinkConfig) {
    let link = match link(visit, session.peer().subprotocol.as_deref(), &config) {
        Ok(link) => link,
        Err(reason) => return session.close(CloseCode::POLICY, &reason),
    };
    let (to_visitor, to_backend) = (session.sender(), link.sender());
    let end = watch(link.events(), &config.stats);
    let mut session = session;
    let mut link = link;
    let replies = config.confirm == Confirm::Reply;
    let up = async {
        while let Some(message) = session.recv().await {
            if to_backend.send(message).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        while let Some(message) = link.recv().await {
            if replies {
                link.confirm_reply();
            }
            if to_visitor.send(message).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => link.close(CloseCode::NORMAL, "").await,
        // The backend ended it: the visitor is told with the backend's own words.
        ((), (code, reason)) = async { tokio::join!(down, end) } => session.close(code, &reason),
    }
}

/// Counts what the link loses, as it happens; returns what it ended with.
async fn watch(events: Events, stats: &LinkStats) -> (CloseCode, String) {
    let mut end = (CloseCode::NORMAL, String::new());
    while let Some(event) = events.next().await {
        match event {
            Event::Detached { why, .. } => {
                stats.lost.fetch_add(1, Relaxed);
                tracing::info!(?why, "backend connection lost");
            }
            Event::Ended { code, reason, .. } => {
                let code = code.and_then(|code| u16::try_from(code).ok()).and_then(CloseCode::new);
                // Without a code it was refused by HTTP: a visitor cannot mend that by asking again.
                end = (code.unwrap_or(CloseCode::POLICY), reason);
            }
            _ => {}
        }
    }
    end
}

/// A link for this visitor: its path, query, cookies, headers and subprotocol.
fn link(visit: Visit, subprotocol: Option<&str>, config: &LinkConfig) -> Result<Link, String> {
    let url = url(&config.upstream, &visit.uri)?;
    let mut builder = Link::to(&url.to_string())
        .map_err(|error| error.to_string())?
        .ends_with_peer(true)
        .heartbeat(config.heartbeat)
        .limits(config.limits)
        .confirm(config.confirm)
        .guarantee(config.guarantee);
    if let Some(name) = subprotocol {
        builder = builder.subprotocol(name);
    }
    for (name, value) in &visit.headers {
        builder = builder.header(name.clone(), value.clone());
    }
    Ok(builder.connect())
}

/// The visitor's path behind the backend's.
fn url(upstream: &Uri, visited: &Uri) -> Result<Uri, String> {
    let prefix = upstream.path().trim_end_matches('/');
    let path = visited.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut parts = upstream.clone().into_parts();
    let joined = format!("{prefix}{path}").parse().map_err(|_| "the path cannot be forwarded".to_owned())?;
    parts.path_and_query = Some(joined);
    Uri::from_parts(parts).map_err(|_| "the path cannot be forwarded".to_owned())
}

/// The visitor's headers, without those that speak of its own connection, and with those that tell
/// the backend who is behind it.
fn forwarded(asked: &HeaderMap, address: Option<SocketAddr>) -> HeaderMap {
    let named = |value: &HeaderValue| -> Vec<String> {
        value.to_str().unwrap_or_default().split(',').map(|name| name.trim().to_ascii_lowercase()).collect()
    };
    let listed: Vec<String> = asked.get_all(header::CONNECTION).iter().flat_map(named).collect();
    let mut headers = HeaderMap::new();
    for (name, value) in asked {
        if !is_hop_by_hop(name) && !listed.iter().any(|listed| listed == name.as_str()) {
            headers.append(name.clone(), copied(value));
        }
    }
    let mut add = |name: &'static str, value: Option<HeaderValue>| {
        if let Some(value) = value {
            headers.append(HeaderName::from_static(name), value);
        }
    };
    let address = address.map(|address| address.ip().to_string());
    add("x-forwarded-for", address.and_then(|address| address.parse().ok()));
    add("x-forwarded-host", asked.get(header::HOST).map(copied));
    add("x-forwarded-proto", Some(HeaderValue::from_static("ws")));
    headers
}

/// A value as it came shares the buffer of its whole request, which would live as long as the link.
fn copied(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// RFC 9110 section 7.6.1, and the opening handshake's own (RFC 6455 section 4.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "content-length"
            | "host"
    ) || name.as_str().starts_with("sec-websocket-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "example.com"),
            ("connection", "Upgrade, X-Mine"),
            ("upgrade", "websocket"),
            ("x-mine", "hop"),
            ("cookie", "a=b"),
            ("authorization", "Bearer t"),
            ("sec-websocket-key", "k"),
            ("x-forwarded-for", "10.0.0.1"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_speaks_of_the_visitors_connection_is_not_forwarded() {
        let headers = forwarded(&asked(), Some(([127, 0, 0, 1], 5000).into()));
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected =
            ["authorization", "cookie", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(names, expected);
        let chain: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        assert_eq!(chain, ["10.0.0.1", "127.0.0.1"]);
    }

    #[test]
    fn the_visitors_path_goes_behind_the_backends() {
        let join = |upstream: &'static str| {
            url(&Uri::from_static(upstream), &Uri::from_static("/room/7?user=x")).unwrap().to_string()
        };
        assert_eq!(join("ws://backend:3000"), "ws://backend:3000/room/7?user=x");
        assert_eq!(join("ws://backend:3000/app/"), "ws://backend:3000/app/room/7?user=x");
    }
}
