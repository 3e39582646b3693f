//! One visitor's session joined to one link to the backend.
//!
//! The two legs fail apart: while a visitor that speaks `mainstay.v1` is away its link stays up, and what
//! the backend sends is kept within the session's window; while the backend is away the visitor stays, and
//! what it sends is kept in the link's queue. Full means waiting, on either leg, never dropping.
//!
//! A plain visitor gets the backend's own answer: its request is answered after the backend's was. That
//! cannot be done for one that speaks `mainstay.v1`. Its request does not say whether it opens a session or
//! resumes one, and a backend asked for every resume would see connections that come and go. Nor can WELCOME
//! wait for the backend: a HELLO is answered in one step, or two attempts of one client could make two
//! sessions. Such a visitor is accepted first, and told by END what the backend says.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use mainstay::SessionUpgrade;
use mainstay::client::{Event, Events};
use mainstay::server::{Session, SessionState};
use mainstay::{CloseCode, Confirm, Guarantee, HeartbeatConfig, Limits, Link};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a request may wait for the backend's answer: the server's own opening deadline.
const OPENING: Duration = Duration::from_secs(5);
/// Visitors that are sent away are asked to come back over this time, and not all at once.
const SPREAD: Duration = Duration::from_secs(10);

/// How links are made.
#[derive(Clone)]
pub(crate) struct LinkConfig {
    pub(crate) upstream: Uri,
    /// How long a plain visitor is kept while the backend cannot be reached.
    pub(crate) upstream_wait: Duration,
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

/// Answers a visitor, and joins it to the backend if both agree.
pub(crate) async fn visit(upgrade: SessionUpgrade, config: LinkConfig) -> Response {
    let visit = Visit::of(&upgrade);
    if upgrade.is_resumable() {
        return upgrade.on_session(move |session| join_session(session, visit, config));
    }
    let offered: Vec<String> = upgrade.offered().map(str::to_owned).collect();
    let link = match link(visit, &offered, &config) {
        Ok(link) => link,
        Err(reason) => return (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
    };
    match timeout(OPENING.min(config.upstream_wait), answer(&link)).await {
        Ok(Ok(())) => {
            let wait = Some(config.upstream_wait);
            upgrade
                .subprotocols(link.subprotocol())
                .on_session(move |session| join(session, link, config, wait))
        }
        Ok(Err(refusal)) => refusal.response(),
        Err(_) => unreachable_now(),
    }
}

/// What the backend said instead of accepting.
struct Refusal {
    status: Option<StatusCode>,
    reason: String,
}

impl Refusal {
    /// A client's error is the visitor's; anything else (a redirect, a broken answer) is the backend's.
    fn response(self) -> Response {
        let status = self.status.filter(StatusCode::is_client_error).unwrap_or(StatusCode::BAD_GATEWAY);
        (status, format!("the backend refused: {}\n", self.reason)).into_response()
    }
}

/// The backend's answer to the opening handshake, however many attempts it takes.
async fn answer(link: &Link) -> Result<(), Refusal> {
    while let Some(event) = link.event().await {
        match event {
            Event::Attached { .. } => return Ok(()),
            Event::Ended { code, reason, .. } => {
                let status = code.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
                return Err(Refusal { status, reason });
            }
            _ => {}
        }
    }
    Err(Refusal { status: None, reason: "the link ended".into() })
}

fn unreachable_now() -> Response {
    let after = 1 + jitter(SPREAD).as_secs();
    let headers = [(header::RETRY_AFTER, after.to_string())];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "the backend cannot be reached, come back\n").into_response()
}

/// Uniform below `spread`. The standard library's hasher is seeded with randomness, and nothing better is
/// needed to keep visitors apart.
fn jitter(spread: Duration) -> Duration {
    let part = RandomState::new().hash_one(0) >> 32;
    spread.mul_f64(part as f64 / f64::from(u32::MAX))
}

/// What a visitor's request asks for, as it is passed on.
struct Visit {
    uri: Uri,
    headers: HeaderMap,
}

impl Visit {
    fn of(upgrade: &SessionUpgrade) -> Self {
        Self { uri: upgrade.uri().clone(), headers: forwarded(upgrade.headers(), upgrade.address()) }
    }
}

/// Asks the backend with the subprotocol that the visitor was promised; it must agree on that one. Until
/// then what the visitor sends waits in its session, not acknowledged.
async fn join_session(mut session: Session, visit: Visit, config: LinkConfig) {
    let promised = session.peer().subprotocol.as_deref().map(str::to_owned);
    let link = match link(visit, promised.as_slice(), &config) {
        Ok(link) => link,
        Err(reason) => return session.close(CloseCode::POLICY, &reason),
    };
    let answered = tokio::select! {
        answered = answer(&link) => answered,
        () = over(&mut session) => return,
    };
    match (answered, promised) {
        (Err(Refusal { status, reason }), _) => {
            let unauthorized = matches!(status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN));
            let code = if unauthorized { CloseCode::UNAUTHORIZED } else { CloseCode::POLICY };
            session.close(code, &format!("the backend refused: {reason}"));
        }
        (Ok(()), Some(name)) if link.subprotocol().as_ref() != Some(&name) => {
            session
                .close(CloseCode::POLICY, &format!("the backend does not agree on the subprotocol {name}"));
        }
        (Ok(()), _) => join(session, link, config, None).await,
    }
}

async fn over(session: &mut Session) {
    while session.changed().await != SessionState::Over {}
}

/// Runs until the visitor or the backend ends it, or the backend was away for longer than `wait`.
async fn join(mut session: Session, mut link: Link, config: LinkConfig, wait: Option<Duration>) {
    let (to_visitor, to_backend) = (session.sender(), link.sender());
    let away = Notify::new();
    let end = watch(link.events(), &config.stats, wait, &away);
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
        biased; // all three are polled on every message: no dice are thrown for who is first
        () = up => link.close(CloseCode::NORMAL, "").await,
        // The backend ended it: the visitor is told with the backend's own words.
        ((), (code, reason)) = async { tokio::join!(down, end) } => session.close(code, &reason),
        () = away.notified() => session.close(CloseCode::TRY_AGAIN, "the backend cannot be reached"),
    }
}

/// Counts what the link loses, as it happens, and says when the backend was away for too long; returns
/// what the link ended with.
async fn watch(
    events: Events,
    stats: &LinkStats,
    wait: Option<Duration>,
    away: &Notify,
) -> (CloseCode, String) {
    let mut give_up: Option<Instant> = None;
    loop {
        let too_long = async {
            match give_up {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            () = too_long => {
                away.notify_one();
                give_up = None;
                continue;
            }
        };
        match event {
            Some(Event::Detached { why, .. }) => {
                stats.lost.fetch_add(1, Relaxed);
                tracing::info!(?why, "backend connection lost");
                // Visitors that lost their backend together are not sent away together.
                give_up = wait.map(|wait| Instant::now() + wait + jitter(SPREAD.min(wait)));
            }
            Some(Event::Attached { .. }) => give_up = None,
            Some(Event::Ended { code, reason, .. }) => {
                let code = code.and_then(|code| u16::try_from(code).ok()).and_then(CloseCode::new);
                // Without a code it was refused by HTTP: a visitor cannot mend that by asking again.
                return (code.unwrap_or(CloseCode::POLICY), reason);
            }
            Some(_) => {}
            None => return (CloseCode::NORMAL, String::new()),
        }
    }
}

/// A link for this visitor: its path, query, cookies, headers and subprotocols.
fn link(visit: Visit, subprotocols: &[String], config: &LinkConfig) -> Result<Link, String> {
    let url = url(&config.upstream, &visit.uri)?;
    let mut builder = Link::to(&url.to_string())
        .map_err(|error| error.to_string())?
        .ends_with_peer(true)
        .heartbeat(config.heartbeat)
        .limits(config.limits)
        .confirm(config.confirm)
        .guarantee(config.guarantee);
    for name in subprotocols {
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
