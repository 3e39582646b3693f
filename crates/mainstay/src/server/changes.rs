//! The changes of a session's state, to be awaited beside its messages.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::core::{Core, CoreRef};
use super::peer::SessionState;

/// Changes of a session's state, apart from the [`Session`](crate::Session), so that one `select!` can wait for both. It is
/// a [`Stream`], too. It does not keep the session open.
///
/// ```no_run
/// # use mainstay::{Session, server::SessionState};
/// # async fn presence(session: &Session) {
/// let mut changes = session.changes();
/// while let Some(state) = changes.next().await {
///     match state {
///         SessionState::Attached { epoch } => println!("here, on connection {epoch}"),
///         SessionState::Parked => println!("away"),
///         _ => println!("gone"),
///     }
/// }
/// # }
/// ```
pub struct Changes {
    core: CoreRef,
    seen: Seen,
}

/// A [`SessionState`] in half of its size: every session has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen(u64);

impl Seen {
    pub(super) fn of(state: SessionState) -> Self {
        match state {
            SessionState::Attached { epoch } => Self(epoch),
            SessionState::Parked => Self(0),
            SessionState::Closed => Self(u64::MAX),
        }
    }

    pub(super) fn poll_change(&mut self, core: &Core, cx: &mut Context<'_>) -> Poll<SessionState> {
        let mut inner = core.lock();
        let state = inner.peer.state();
        if Self::of(state) == *self {
            inner.wait_for_change(cx.waker());
            return Poll::Pending;
        }
        *self = Self::of(state);
        Poll::Ready(state)
    }
}

impl Changes {
    pub(super) fn new(core: &CoreRef) -> Self {
        let seen = Seen::of(core.lock().peer.state());
        Self { core: Arc::clone(core), seen }
    }

    /// Returns the next state that differs from the one before; `None` after [`Closed`](SessionState::Closed). States that
    /// came and went meanwhile are left out.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<SessionState> {
        poll_fn(|cx| self.poll_change(cx)).await
    }

    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Option<SessionState>> {
        if self.seen == Seen::of(SessionState::Closed) {
            return Poll::Ready(None);
        }
        self.seen.poll_change(&self.core, cx).map(Some)
    }
}

impl Stream for Changes {
    type Item = SessionState;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SessionState>> {
        self.poll_change(cx)
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes(..)")
    }
}
