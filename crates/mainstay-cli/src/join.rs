//! A session of `mainstay.v1` that gets its link to the backend, and what all links are made with.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mainstay::client::Connector;
use mainstay::{CloseCode, Limits, Server, Session};
use mainstay_proto::ws::DeflateParams;
use tokio::time::sleep;

use crate::access::{By, Visitor};
use crate::heartbeats::Heartbeats;
use crate::links::Links;
use crate::pass::Passing;
use crate::principal::Bound;
use crate::profiles::Settings;
use crate::relay::{UNLOADING, relay};
use crate::visit::{Refusal, Visit, answer};

/// Visitors that are sent away are asked to come back over this time, and not all at once.
pub(crate) const SPREAD: Duration = Duration::from_secs(10);

/// How links are made, and what is believed of who asks for one.
pub(crate) struct LinkConfig {
    /// Where requests go and how, those for a WebSocket too.
    pub(crate) passing: Passing,
    /// How the backend is reached.
    pub(crate) connector: Connector,
    /// The compression that the backend is offered.
    pub(crate) deflate_upstream: Option<DeflateParams>,
    /// How long a plain visitor is kept while the backend cannot be reached.
    pub(crate) upstream_wait: Duration,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) limits: Limits,
    /// What is right for the backend's protocol.
    pub(crate) settings: Settings,
    /// What says who may resume a session.
    pub(crate) bound: Bound,
    pub(crate) links: Links,
    /// What gives up a session where a link finds no local port.
    pub(crate) mainstay: Server,
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

/// Asks the backend with the subprotocol that the visitor was promised; it must agree on that one. Until
/// then what the visitor sends waits in its session, not acknowledged.
pub(crate) async fn join_session(session: Session, visit: Visit, config: Arc<LinkConfig>) {
    let promised = session.peer().subprotocol.as_deref().map(str::to_owned);
    let visitor = Visitor::new(&session, visit.path.clone());
    let link = match visit.link(promised.as_slice(), &config) {
        Ok(link) => link,
        Err(reason) => return session.close(CloseCode::POLICY, &reason),
    };
    let mut account = config.links.open(link.sender(), session.id());
    let to_client = session.sender();
    let answered = tokio::select! {
        answered = answer(&link, &mut account, &config) => answered,
        // A client that left meanwhile still has its last words: they go where it asked to go.
        () = async { to_client.closed().await; sleep(UNLOADING).await } => {
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
