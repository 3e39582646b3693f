//! Answers a visitor, and joins it to the backend.
//!
//! A plain visitor gets the backend's own answer: its request is answered after the backend's was. That
//! cannot be done for one that speaks `mainstay.v1`. Its request does not say whether it opens a session or
//! resumes one, and a backend asked for every resume would see connections that come and go. Nor can WELCOME
//! wait for the backend: a HELLO is answered in one step, or two attempts of one client could make two
//! sessions. Such a visitor is accepted first, and told by END what the backend says.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderMap};
use http::{StatusCode, Uri};
use mainstay::SessionUpgrade;
use mainstay::client::{Connector, EndsWith, Event, State};
use mainstay::server::Session;
use mainstay::{CloseCode, Confirm, Guarantee, HeartbeatConfig, Limits, Link};
use tokio::time::timeout;

use crate::access::{self, By};
use crate::backend::{Failure, Reason};
use crate::forward::{self, Network};
use crate::links::{Account, Links};
use crate::principal::Bound;
use crate::relay::{BackendLoss, relay};

/// How long a request may wait for the backend's answer: the server's own opening deadline.
const OPENING: Duration = Duration::from_secs(5);
/// Visitors that are sent away are asked to come back over this time, and not all at once.
pub(crate) const SPREAD: Duration = Duration::from_secs(10);

/// How links are made, and what is believed of who asks for one.
pub(crate) struct LinkConfig {
    pub(crate) upstream: Uri,
    pub(crate) connector: Connector,
    /// How long a plain visitor is kept while the backend cannot be reached.
    pub(crate) upstream_wait: Duration,
    pub(crate) heartbeat: HeartbeatConfig,
    pub(crate) limits: Limits,
    pub(crate) confirm: Confirm,
    pub(crate) guarantee: Guarantee,
    pub(crate) on_backend_loss: BackendLoss,
    /// Whose word is taken for who the visitor is.
    pub(crate) trusted_proxies: Vec<Network>,
    /// What says who may resume a session.
    pub(crate) bound: Bound,
    pub(crate) links: Links,
}

/// Answers a visitor, and joins it to the backend if both agree.
pub(crate) async fn visit(upgrade: SessionUpgrade, config: Arc<LinkConfig>) -> Response {
    let visit = match Visit::of(&upgrade, &config) {
        Ok(visit) => visit,
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    if upgrade.is_resumable() {
        let principal = config.bound.principal(upgrade.headers());
        return upgrade
            .principal(principal)
            .confirm_manually()
            .on_session(move |session| join_session(session, visit, config));
    }
    let offered: Vec<String> = upgrade.offered().map(str::to_owned).collect();
    let path: Box<str> = visit.path.clone();
    let link = match link(visit, &offered, &config, true) {
        Ok(link) => link,
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    let mut account = config.links.open(link.sender(), None);
    match timeout(OPENING.min(config.upstream_wait), answer(&link, &mut account)).await {
        Ok(Ok(())) => upgrade.subprotocols(link.subprotocol()).on_session(move |session| {
            let visitor = access::Visitor::new(&session, path);
            relay(session, link, account, visitor, config)
        }),
        Ok(Err(refusal)) => refusal.response(),
        Err(_) => {
            if matches!(link.state(), State::Connecting) {
                let why = format!(
                    "no answer to the opening handshake within {:?}",
                    OPENING.min(config.upstream_wait)
                );
                config.links.failed(Failure { reason: Reason::NoAnswer, why });
            }
            config.links.turned_away();
            unreachable_now()
        }
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
async fn answer(link: &Link, account: &mut Account) -> Result<(), Refusal> {
    while let Some(event) = link.event().await {
        account.note(&event);
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

fn cannot_be_forwarded(reason: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response()
}

fn unreachable_now() -> Response {
    let after = 1 + jitter(SPREAD).as_secs();
    let headers = [(header::RETRY_AFTER, after.to_string())];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "the backend cannot be reached, come back\n").into_response()
}

/// The reason of a close; `docs/PROTOCOL.md` "Closing" says how it is read.
pub(crate) fn come_back() -> String {
    let after = Duration::from_secs(1) + jitter(SPREAD);
    format!("retry_ms={}, the backend cannot be reached", after.as_millis())
}

/// Uniform below `spread`. The standard library's hasher is seeded with randomness, and nothing better is
/// needed to keep visitors apart.
pub(crate) fn jitter(spread: Duration) -> Duration {
    let part = RandomState::new().hash_one(0) >> 32;
    spread.mul_f64(part as f64 / f64::from(u32::MAX))
}

/// What a visitor's request asks for, as it is passed on.
struct Visit {
    /// As the visitor wrote it, for the log.
    path: Box<str>,
    url: Uri,
    headers: HeaderMap,
}

impl Visit {
    fn of(upgrade: &SessionUpgrade, config: &LinkConfig) -> Result<Self, String> {
        let url = forward::target(&config.upstream, upgrade.uri())?;
        let headers = forward::headers(upgrade.headers(), upgrade.address(), &config.trusted_proxies);
        Ok(Self { path: upgrade.uri().path().into(), url, headers })
    }
}

/// Asks the backend with the subprotocol that the visitor was promised; it must agree on that one. Until
/// then what the visitor sends waits in its session, not acknowledged.
async fn join_session(session: Session, visit: Visit, config: Arc<LinkConfig>) {
    let promised = session.peer().subprotocol.as_deref().map(str::to_owned);
    let visitor = access::Visitor::new(&session, visit.path.clone());
    let link = match link(visit, promised.as_slice(), &config, false) {
        Ok(link) => link,
        Err(reason) => return session.close(CloseCode::POLICY, &reason),
    };
    let mut account = config.links.open(link.sender(), session.id());
    let to_client = session.sender();
    let answered = tokio::select! {
        answered = answer(&link, &mut account) => answered,
        () = to_client.closed() => {
            return visitor.ended(By::Visitor, None, "left before the backend answered");
        }
    };
    match (answered, promised) {
        (Err(Refusal { status, reason }), _) => {
            let unauthorized = matches!(status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN));
            let code = if unauthorized { CloseCode::UNAUTHORIZED } else { CloseCode::POLICY };
            session.close(code, &format!("the backend refused: {reason}"));
            visitor.ended(By::Backend, Some(code), &reason);
        }
        (Ok(()), Some(name)) if link.subprotocol().as_ref() != Some(&name) => {
            let reason = format!("the backend does not agree on the subprotocol {name}");
            session.close(CloseCode::POLICY, &reason);
            visitor.ended(By::Gateway, Some(CloseCode::POLICY), &reason);
        }
        (Ok(()), _) => relay(session, link, account, visitor, config).await,
    }
}

/// A link for this visitor: its path, query, cookies, headers and subprotocols.
fn link(visit: Visit, subprotocols: &[String], config: &LinkConfig, is_plain: bool) -> Result<Link, String> {
    let ends_with = match (config.on_backend_loss, is_plain) {
        (BackendLoss::Renew, _) => EndsWith::Connection,
        (BackendLoss::Keep, true) => EndsWith::Close,
        (BackendLoss::Keep, false) => EndsWith::FinalClose,
    };
    let mut builder = Link::to(&visit.url.to_string())
        .map_err(|error| error.to_string())?
        .connector(config.connector.clone())
        .ends_with(ends_with)
        .heartbeat(config.heartbeat)
        .limits(config.limits)
        .confirm(config.confirm)
        .guarantee(config.guarantee);
    builder = builder.subprotocols(subprotocols).map_err(|error| error.to_string())?;
    for (name, value) in &visit.headers {
        builder = builder.header(name.clone(), value.clone());
    }
    if let Some(answers) = config.links.answers_pings() {
        builder = builder.expects_pongs(answers);
    }
    Ok(builder.connect())
}
