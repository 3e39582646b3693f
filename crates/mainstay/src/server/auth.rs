//! Who a client is, by the credentials that it presents inside the session protocol.
//!
//! The application judges; the machine compares the principal, tells the client, and says when.
//!
//! Source: `docs/PROTOCOL.md` "Credentials".

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use mainstay_proto::session::{ConnectionId, RefuseReason};
use tokio::time::{Instant, timeout_at};

use super::core::CoreRef;

/// Why credentials prove nothing. Log the reason where you know it: the client is told no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// They are wrong, missing or expired. The client ends (4501): it would present the same again.
    #[error("the credentials are refused")]
    Refused,
    /// They cannot be judged now. The client comes back and presents them again (4414).
    #[error("the credentials cannot be judged now")]
    Unavailable,
}

/// The application's function.
pub(crate) type Authenticate = Arc<dyn Fn(Option<Bytes>) -> Judging + Send + Sync>;
pub(crate) type Judging = Pin<Box<dyn Future<Output = Result<Bytes, AuthError>> + Send>>;

/// Credentials that came on a live session.
pub(super) struct Asked {
    pub(super) connection: ConnectionId,
    pub(super) credentials: Bytes,
    pub(super) authenticate: Authenticate,
}

/// The principal that these credentials prove. A judge that panics, or does not answer by the deadline, is not the
/// client's fault.
pub(super) async fn judge(
    authenticate: &Authenticate,
    credentials: Option<Bytes>,
    deadline: Instant,
) -> Result<Bytes, RefuseReason> {
    // It is called in the first poll, which is where a panic is caught.
    let mut judging = Box::pin(async { authenticate(credentials).await });
    let caught = poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| judging.as_mut().poll(cx)));
        polled.unwrap_or(Poll::Ready(Err(AuthError::Unavailable)))
    });
    match timeout_at(deadline, caught).await {
        Ok(Ok(principal)) => Ok(principal),
        Ok(Err(AuthError::Refused)) => Err(RefuseReason::Unauthorized),
        Ok(Err(AuthError::Unavailable)) | Err(_) => Err(RefuseReason::NotJudged),
    }
}

/// Has new credentials judged beside the session, which goes on.
pub(super) fn judge_anew(core: &CoreRef, asked: Asked) {
    let shared = Arc::clone(&core.shared);
    let (core, deadline) = (Arc::clone(core), Instant::now() + shared.config.opening_deadline);
    let Asked { connection, credentials, authenticate } = asked;
    shared.tracker.spawn(async move {
        let principal = judge(&authenticate, Some(credentials), deadline).await.ok();
        let accepted = core.with_session(|session| session.handle_verdict(connection, principal.as_deref()));
        if accepted != Some(true) {
            tracing::info!(connection = connection.0, "new credentials refused");
        }
        core.signal.ask();
    });
}
