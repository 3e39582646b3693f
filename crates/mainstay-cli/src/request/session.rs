//! A `mainstay.v1` session and its link to the backend.

use std::sync::Arc;

use http::StatusCode;
use mainstay::CloseCode;
use mainstay::Session;
use tokio::time::sleep;

use crate::observe::access_log::{self, AccessEntry, EndedBy};
use crate::protocols::moving::Restored;
use crate::request::client_request::{BackendRefusal, ClientRequest, accepted};
use crate::request::exchange::{FORWARD_TIMEOUT, exchange};
use crate::routes::route::Route;
use crate::upstream::links::Dialled;

/// Opens a link for a session and exchanges messages. The backend must agree on the subprotocol that the client already received.
/// Until it does, the client's messages wait in the session, unacknowledged. A session that moved here brings along what the
/// link has to continue.
pub(crate) async fn serve_session(session: Session, request: ClientRequest, route: Arc<Route>) {
    let subprotocol = session.peer().subprotocol.as_deref().map(str::to_owned);
    let entry = AccessEntry::new(&session, request.path.clone());
    let saved = session.restored();
    let restored = saved.as_ref().map(|saved| Restored::read(saved, route.settings.prologue.as_ref()));
    let restored = match restored.transpose() {
        Ok(restored) => restored.unwrap_or_default(),
        Err(error) => {
            let session_name = access_log::session_name(session.id());
            tracing::warn!(session = %session_name, %error, "the session moved here and cannot continue; its client has to start again");
            entry.ended(EndedBy::Gateway, None, "the session could not be continued here");
            return session.renew(0);
        }
    };
    let dialled = (route.links.count() > 1).then(Arc::<Dialled>::default);
    let spans = request.spans.clone();
    let link = match request.link(subprotocol.as_slice(), &route, saved.is_some(), dialled.as_ref()) {
        Ok(link) => link,
        Err(reason) => return session.close(CloseCode::POLICY, &reason),
    };
    let mut monitor = route.links.open(link.sender(), session.id(), dialled, spans);
    let to_client = session.sender();
    let answered = tokio::select! {
        answered = accepted(&link, &mut monitor, &route) => answered,
        // A client that closed meanwhile may have sent messages: the backend has this long to accept them.
        () = async { to_client.closed().await; sleep(FORWARD_TIMEOUT).await } => {
            return entry.ended(EndedBy::Client, None, "closed before the backend responded");
        }
        // Nothing was passed on here, so the session goes as it came.
        () = to_client.leaving() => {
            return entry.ended(EndedBy::Gateway, None, "the session leaves this node");
        }
    };
    match (answered, subprotocol) {
        (Err(BackendRefusal { is_away: true, reason, .. }), _) => {
            route.links.refused_unreachable();
            restored.unsent.into_iter().for_each(|message| drop(to_client.try_send(message)));
            session.close(CloseCode::TRY_AGAIN, &reason);
            entry.ended(EndedBy::Gateway, Some(CloseCode::TRY_AGAIN), "the backend cannot be reached");
        }
        (Err(BackendRefusal { status, reason, .. }), _) => {
            // What the backend before sent is not part of the refusal.
            restored.unsent.into_iter().for_each(|message| drop(to_client.try_send(message)));
            let unauthorized = matches!(status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN));
            let code = if unauthorized { CloseCode::UNAUTHORIZED } else { CloseCode::POLICY };
            session.close(code, &format!("the backend refused: {reason}"));
            entry.ended(EndedBy::Backend, Some(code), &reason);
        }
        (Ok(()), Some(name)) if link.subprotocol().as_ref() != Some(&name) => {
            let reason = format!("the backend did not agree on the subprotocol {name}");
            session.close(CloseCode::POLICY, &reason);
            entry.ended(EndedBy::Gateway, Some(CloseCode::POLICY), &reason);
        }
        (Ok(()), _) => exchange(session, link, monitor, entry, route, restored).await,
    }
}
