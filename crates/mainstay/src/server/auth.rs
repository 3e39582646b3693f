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
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::{Expiry, RefuseReason};
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

/// How long a client may take to present other credentials once its own have expired, unless the application says otherwise.
const GRACE: Duration = Duration::from_secs(30);

/// What credentials prove: a principal, and for how long. Anything that converts into bytes is a principal for as long as its
/// connection lasts.
///
/// ```no_run
/// # use std::time::Duration;
/// # use mainstay::{SessionUpgrade, server::{AuthError, Identity}};
/// # fn verified(_: &[u8]) -> Option<(String, Duration)> { None }
/// async fn chat(upgrade: SessionUpgrade) -> axum::response::Response {
///     let upgrade = upgrade.authenticate(|token| async move {
///         let (user, left) = token.and_then(|token| verified(&token)).ok_or(AuthError::Refused)?;
///         Ok(Identity::new(user).expires_in(left))
///     });
///     upgrade.on_session(|session| async move { session.closed().await })
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub(super) principal: Bytes,
    /// How many bytes at the end of the principal limits do not count by.
    pub(super) uncounted: u8,
    expires_in: Option<Duration>,
    grace: Duration,
}

impl Identity {
    /// Creates the identity of a principal, which does not expire.
    #[must_use]
    pub fn new(principal: impl Into<Bytes>) -> Self {
        Self { principal: principal.into(), uncounted: 0, expires_in: None, grace: GRACE }
    }

    /// Appends bytes to the principal that limits do not count by. A resume must present the same bytes; a client that presents
    /// others for each session, such as a cookie that nobody checks, is still one client for the limits by principal. Without a
    /// principal limits count by these bytes. Range: up to 255 bytes, such as a hash; of more, the last 255 do not count. Default:
    /// none.
    #[must_use]
    pub fn bound_to(mut self, bytes: &[u8]) -> Self {
        if !self.principal.is_empty() {
            let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
            self.uncounted = self.uncounted.saturating_add(length);
        }
        self.principal = [&self.principal, bytes].concat().into();
        self
    }

    /// Sets after which time the credentials expire. GOAWAY then asks a client that speaks `mainstay.v1` to come back, and the
    /// credentials that it presents are judged; new ones that it presents before, on the live connection, count from their
    /// verdict. A session whose client does neither within the [grace](Self::grace) ends with 4501, and so does a plain
    /// connection at once. While a client is away nothing expires: its next HELLO is judged. Default: never.
    ///
    /// Source: `docs/PROTOCOL.md` "Credentials".
    #[must_use]
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_in = Some(time);
        self
    }

    /// Sets how long after their expiry a client that speaks `mainstay.v1` may still present other credentials. Default: 30 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    pub(super) fn expiry(&self) -> Option<Expiry> {
        self.expires_in.map(|expires_in| Expiry { expires_in, grace: self.grace })
    }
}

impl<P: Into<Bytes>> From<P> for Identity {
    fn from(principal: P) -> Self {
        Self::new(principal)
    }
}

/// The application's function that judges credentials.
pub(crate) type Authenticate = Arc<dyn Fn(Option<Bytes>) -> Judging + Send + Sync>;
pub(crate) type Judging = Pin<Box<dyn Future<Output = Result<Identity, AuthError>> + Send>>;

/// Returns what these credentials prove. If the application's function panics or misses the deadline, that is
/// not the client's fault.
pub(super) async fn judge(
    authenticate: &Authenticate,
    credentials: Option<Bytes>,
    deadline: Instant,
) -> Result<Identity, RefuseReason> {
    // The function is called in the first poll, where a panic is caught.
    let mut judging = Box::pin(async { authenticate(credentials).await });
    let caught = poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| judging.as_mut().poll(cx)));
        polled.unwrap_or(Poll::Ready(Err(AuthError::Unavailable)))
    });
    match timeout_at(deadline, caught).await {
        Ok(Ok(identity)) => Ok(identity),
        Ok(Err(AuthError::Refused)) => Err(RefuseReason::Unauthorized),
        Ok(Err(AuthError::Unavailable)) | Err(_) => Err(RefuseReason::NotJudged),
    }
}
