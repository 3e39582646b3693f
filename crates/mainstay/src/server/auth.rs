//! The identity of a client, by the credentials that it presents inside the session protocol.
//!
//! The application judges; the machine decides when, compares the principal and answers the client.
//!
//! Source: `docs/PROTOCOL.md` "Credentials".

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use mainstay_proto::session::RefuseReason;
use tokio::time::{Instant, timeout_at};

/// Why credentials prove no principal. Log the reason where you know it: the client learns no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// They are wrong, missing or expired. The client ends (4501), because it would present the same ones again.
    #[error("the credentials are refused")]
    Refused,
    /// They cannot be judged now. The client comes back and presents them again (4414).
    #[error("the credentials cannot be judged now")]
    Unavailable,
}

/// The application's function that judges credentials.
pub(crate) type Authenticate = Arc<dyn Fn(Option<Bytes>) -> Judging + Send + Sync>;
pub(crate) type Judging = Pin<Box<dyn Future<Output = Result<Bytes, AuthError>> + Send>>;

/// Returns the principal that these credentials prove. If the application's function panics or misses the deadline, that is
/// not the client's fault.
pub(super) async fn judge(
    authenticate: &Authenticate,
    credentials: Option<Bytes>,
    deadline: Instant,
) -> Result<Bytes, RefuseReason> {
    // The function is called in the first poll, where a panic is caught.
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
