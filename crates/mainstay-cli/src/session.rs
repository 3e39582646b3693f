//! A session of `mainstay.v1` that gets its link to the backend, and what all links are made with.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mainstay::client::Connector;
use mainstay::server::Session;
use mainstay::{CloseCode, Limits, Server};
use mainstay_proto::ws::DeflateParams;
use tokio::time::sleep;

use crate::access_log::{AccessEntry, EndedBy};
use crate::handshake::{ClientRequest, Refusal, answer};
use crate::heartbeats::Heartbeats;
use crate::http_proxy::HttpProxy;
use crate::links::Links;
use crate::principal::PrincipalSource;
use crate::profiles::Settings;
use crate::relay::{UNLOADING, relay};

/// How links are made, and what is believed of who asks for one.
pub(crate) struct LinkConfig {
    /// Where requests go and how, those for a WebSocket too.
    pub(crate) proxy: HttpProxy,
    /// How the backend is reached.
    pub(crate) connector: Connector,
    /// The compression that the backend is offered.
    pub(crate) deflate_upstream: Option<DeflateParams>,
    /// How long a plain client is kept while the backend cannot be reached.
    pub(crate) upstream_wait: Duration,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) limits: Limits,
    /// What is right for the backend's protocol.
    pub(crate) settings: Settings,
    /// What says who may resume a session.
    pub(crate) bound: PrincipalSource,
    pub(crate) links: Links,
    /// What gives up a session where a link finds no local port.
    pub(crate) mainstay: Server,
}

/// Asks the backend with the subprotocol that the client was promised; it must agree on that one. Until
/// then what the client sends waits in its session, not acknowledged.
pub(crate) async fn serve_session(session: Session, request: ClientRequest, config: Arc<LinkConfig>) {
    let promised = session.peer().subprotocol.as_deref().map(str::to_owned);
    let entry = AccessEntry::new(&session, request.path.clone());
    let link = match request.link(promised.as_slice(), &config) {
        Ok(link) => link,
        Err(reason) => return session.close(CloseCode::POLICY, &reason),
    };
    let mut monitor = config.links.open(link.sender(), session.id());
    let to_client = session.sender();
    let answered = tokio::select! {
        answered = answer(&link, &mut monitor, &config) => answered,
        // A client that left meanwhile still has its last words: they go where it asked to go.
        () = async { to_client.closed().await; sleep(UNLOADING).await } => {
            return entry.ended(EndedBy::Client, None, "left before the backend answered");
        }
    };
    match (answered, promised) {
        (Err(Refusal { status, reason }), _) => {
            let unauthorized = matches!(status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN));
            let code = if unauthorized { CloseCode::UNAUTHORIZED } else { CloseCode::POLICY };
            session.close(code, &format!("the backend refused: {reason}"));
            entry.ended(EndedBy::Backend, Some(code), &reason);
        }
        (Ok(()), Some(name)) if link.subprotocol().as_ref() != Some(&name) => {
            let reason = format!("the backend does not agree on the subprotocol {name}");
            session.close(CloseCode::POLICY, &reason);
            entry.ended(EndedBy::Gateway, Some(CloseCode::POLICY), &reason);
        }
        (Ok(()), _) => relay(session, link, monitor, entry, config).await,
    }
}
