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
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderMap};
use http::{StatusCode, Uri};
use mainstay::SessionUpgrade;
use mainstay::client::{Connector, Event, Events, State};
use mainstay::server::{Session, SessionState};
use mainstay::{CloseCode, Confirm, Guarantee, HeartbeatConfig, Limits, Link};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::access::{self, By};
use crate::backend::{Failure, Reason};
use crate::forward::{self, Network};
use crate::links::{Account, Links};
use crate::principal::Bound;

/// How long a request may wait for the backend's answer: the server's own opening deadline.
const OPENING: Duration = Duration::from_secs(5);
/// Visitors that are sent away are asked to come back over this time, and not all at once.
const SPREAD: Duration = Duration::from_secs(10);

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
        return upgrade.principal(principal).on_session(move |session| join_session(session, visit, config));
    }
    let offered: Vec<String> = upgrade.offered().map(str::to_owned).collect();
    let path: Box<str> = visit.path.clone();
    let link = match link(visit, &offered, &config) {
        Ok(link) => link,
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    let mut account = config.links.open(link.sender(), None);
    match timeout(OPENING.min(config.upstream_wait), answer(&link, &mut account)).await {
        Ok(Ok(())) => {
            let wait = Some(config.upstream_wait);
            upgrade.subprotocols(link.subprotocol()).on_session(move |session| {
                let visitor = access::Visitor::new(&session, path);
                join(session, link, account, visitor, config, wait)
            })
        }
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
fn come_back() -> String {
    let after = Duration::from_secs(1) + jitter(SPREAD);
    format!("retry_ms={}, the backend cannot be reached", after.as_millis())
}

/// Uniform below `spread`. The standard library's hasher is seeded with randomness, and nothing better is
/// needed to keep visitors apart.
fn jitter(spread: Duration) -> Duration {
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
async fn join_session(mut session: Session, visit: Visit, config: Arc<LinkConfig>) {
    let promised = session.peer().subprotocol.as_deref().map(str::to_owned);
    let visitor = access::Visitor::new(&session, visit.path.clone());
    let link = match link(visit, promised.as_slice(), &config) {
        Ok(link) => link,
        Err(reason) => return session.close(CloseCode::POLICY, &reason),
    };
    let mut account = config.links.open(link.sender(), session.id());
    let answered = tokio::select! {
        answered = answer(&link, &mut account) => answered,
        () = over(&mut session) => {
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
        (Ok(()), _) => join(session, link, account, visitor, config, None).await,
    }
}

async fn over(session: &mut Session) {
    while session.changed().await != SessionState::Over {}
}

/// Runs until the visitor or the backend ends it, or the backend was away for longer than `wait`. What the backend
/// did not certainly get is counted and told: the visitor was told that the gateway has it.
async fn join(
    mut session: Session,
    mut link: Link,
    mut account: Account,
    visitor: access::Visitor,
    config: Arc<LinkConfig>,
    wait: Option<Duration>,
) {
    let (to_visitor, to_backend) = (session.sender(), link.sender());
    let away = Notify::new();
    let end = watch(link.events(), &mut account, wait, &away);
    let replies = config.confirm == Confirm::Reply;
    let mut in_hand = false;
    let up = async {
        while let Some(message) = session.recv().await {
            in_hand = true;
            if to_backend.send(message).await.is_err() {
                // The link has ended, and with what is told by `end`.
                return std::future::pending().await;
            }
            in_hand = false;
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
    let told = tokio::select! {
        biased; // all three are polled on every message: no dice are thrown for who is first
        () = up => None,
        // The backend ended it: the visitor is told with the backend's own words.
        ((), (code, reason)) = async { tokio::join!(down, end) } => Some((By::Backend, code, reason)),
        () = away.notified() => {
            config.links.turned_away();
            Some((By::Gateway, CloseCode::TRY_AGAIN, come_back()))
        }
    };
    match told {
        Some((by, code, reason)) => {
            session.close(code, &reason);
            visitor.ended(by, Some(code), &reason);
        }
        None => visitor.ended(By::Visitor, None, "left, or did not come back"),
    }
    account.not_delivered(in_hand.into());
    finish(link, replies, &mut account).await;
}

/// Ends the link in order, and hears to the end what became of what it had.
async fn finish(mut link: Link, replies: bool, account: &mut Account) {
    // Begun, and not waited for: until the backend is read nothing more of it would confirm anything.
    let _ = timeout(Duration::ZERO, link.close(CloseCode::NORMAL, "")).await;
    while link.recv().await.is_some() {
        if replies {
            link.confirm_reply();
        }
    }
    while let Some(event) = link.event().await {
        account.note(&event);
    }
}

/// Notes what the link loses, as it happens, and says when the backend was away for too long; returns what the link
/// ended with.
async fn watch(
    events: Events,
    account: &mut Account,
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
        let Some(event) = event else { return (CloseCode::NORMAL, String::new()) };
        account.note(&event);
        match event {
            Event::Detached { why, .. } => {
                tracing::info!(?why, "backend connection lost");
                // Visitors that lost their backend together are not sent away together.
                give_up = wait.map(|wait| Instant::now() + wait + jitter(SPREAD.min(wait)));
            }
            Event::Attached { .. } => give_up = None,
            Event::Ended { code, reason, .. } => {
                let code = code.and_then(|code| u16::try_from(code).ok()).and_then(CloseCode::new);
                // Without a code it was refused by HTTP: a visitor cannot mend that by asking again.
                return (code.unwrap_or(CloseCode::POLICY), reason);
            }
            _ => {}
        }
    }
}

/// A link for this visitor: its path, query, cookies, headers and subprotocols.
fn link(visit: Visit, subprotocols: &[String], config: &LinkConfig) -> Result<Link, String> {
    let mut builder = Link::to(&visit.url.to_string())
        .map_err(|error| error.to_string())?
        .connector(config.connector.clone())
        .ends_with_peer(true)
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
