//! `POST /drain`: the order to drain, as SIGTERM gives it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::Notify;

use super::Operated;
use super::query::{Query, bad};

/// The order. Cheap to clone; clones are the same order.
#[derive(Debug, Clone, Default)]
pub(crate) struct DrainOrder(Arc<Notify>);

impl DrainOrder {
    /// Completes once the order is given, also if that was before.
    pub(crate) async fn given(&self) {
        self.0.notified().await;
    }

    fn give(&self) {
        self.0.notify_one();
    }
}

/// Gives the order, if `confirm=drain` is with it.
pub(super) async fn drain(State(operated): State<Operated>, request: Request) -> Response {
    let confirmed = Query::of(&request, &["confirm"]).and_then(|query| match query.get("confirm") {
        Some("drain") => Ok(()),
        _ => Err(bad("confirm: must be drain; POST /drain?confirm=drain asks all clients to leave, and then the process ends")),
    });
    if let Err(wrong) = confirmed {
        return wrong.into_response();
    }
    if operated.server.is_ready() {
        tracing::info!("an operator ordered the drain");
        operated.drain.give();
    }
    (StatusCode::ACCEPTED, "draining\n").into_response()
}
