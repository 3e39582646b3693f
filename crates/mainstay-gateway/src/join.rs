//! One visitor's session joined to one link to the backend.
//!
//! The two legs fail apart: while a visitor that speaks `mainstay.v1` is away its link stays up, and what
//! the backend sends is kept within the session's window; while the backend is away the visitor stays, and
//! what it sends is kept in the link's queue. Full means waiting, on either leg, never dropping.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mainstay::client::{Connector, Event, Events};
use mainstay::server::{Session, SessionState};
use mainstay::{CloseCode, Confirm, Guarantee, HeartbeatConfig, Limits, Link};
use mainstay_proto::ws::DeflateParams;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::links::{Account, Links};
use crate::pass::Passing;
use crate::principal::Bound;
use crate::visit::{Refusal, Visit, answer, jitter};

/// Visitors that are sent away are asked to come back over this time, and not all at once.
const SPREAD: Duration = Duration::from_secs(10);

/// How links are made, and what is believed of who asks for one.
pub(crate) struct LinkConfig {
    /// Where requests go and how, those for a WebSocket too.
    pub(crate) passing: Passing,
    /// How the backend is reached.
    pub(crate) connector: Connector,
    /// How long a plain visitor is kept while the backend cannot be reached.
    pub(crate) upstream_wait: Duration,
    /// The compression that the backend is offered.
    pub(crate) deflate_upstream: Option<DeflateParams>,
    pub(crate) heartbeat: HeartbeatConfig,
    pub(crate) limits: Limits,
    pub(crate) confirm: Confirm,
    pub(crate) guarantee: Guarantee,
    /// What says who may resume a session.
    pub(crate) bound: Bound,
    pub(crate) links: Links,
}

/// The reason of a close; `docs/PROTOCOL.md` "Closing" says how it is read.
fn come_back() -> String {
    let after = Duration::from_secs(1) + jitter(SPREAD);
    format!("retry_ms={}, the backend cannot be reached", after.as_millis())
}

/// Asks the backend with the subprotocol that the visitor was promised; it must agree on that one. Until
/// then what the visitor sends waits in its session, not acknowledged.
pub(crate) async fn join_session(mut session: Session, visit: Visit, config: Arc<LinkConfig>) {
    let promised = session.peer().subprotocol.as_deref().map(str::to_owned);
    let link = match visit.link(promised.as_slice(), &config) {
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

/// Runs until the visitor or the backend ends it, or the backend was away for longer than `wait`. What the backend
/// did not certainly get is counted and told: the visitor was told that the gateway has it.
pub(crate) async fn join(
    mut session: Session,
    mut link: Link,
    config: Arc<LinkConfig>,
    wait: Option<Duration>,
) {
    let (to_visitor, to_backend) = (session.sender(), link.sender());
    let mut account = config.links.open(link.sender(), session.id());
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
        ((), end) = async { tokio::join!(down, end) } => Some(end),
        () = away.notified() => Some((CloseCode::TRY_AGAIN, come_back())),
    };
    if let Some((code, reason)) = told {
        session.close(code, &reason);
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
