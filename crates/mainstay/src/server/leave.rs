//! A session leaves this server: its handler returns, and the node releases it.
//!
//! Source: `docs/CLUSTER.md`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::core::{Core, CoreRef};
use super::inner::Inner;
use crate::clock::now;
use crate::cluster::Figures;

/// How long a handler has to return.
const HANDLER_RETURNS: Duration = Duration::from_secs(5);

impl Core {
    /// Has a session that may move leave this server: it is released once its handler has returned. Does nothing to one that
    /// leaves already, or that may not move. Returns `false` for that.
    pub(super) fn leave(self: &Arc<Self>) -> bool {
        let mut inner = self.lock();
        let Some(session) = inner.peer.session_mut().filter(|session| session.is_movable()) else {
            return false;
        };
        if session.is_leaving() || !session.is_open() {
            return true;
        }
        session.leave(now());
        let returned = inner.begin_to_leave();
        inner.wake_application();
        drop(inner);
        // A handler that is not started yet has nothing to wait for.
        self.signal.wake();
        self.shared.tracker.spawn(release_when_returned(Arc::clone(self), returned));
        true
    }

    /// Waits until a session that leaves is released, or has ended.
    pub(super) async fn left(&self) {
        std::future::poll_fn(|cx| {
            let mut inner = self.lock();
            if inner.peer.is_closed() {
                return std::task::Poll::Ready(());
            }
            inner.wait_for_change(cx.waker());
            std::task::Poll::Pending
        })
        .await;
    }

    /// Ends a session because its server goes away, now: its client gets the exact account.
    pub(super) fn end_in_drain(self: &Arc<Self>) {
        let ended = self.with_session(|session| {
            let was_open = session.closed().is_none();
            session.retire();
            was_open
        });
        if ended == Some(true) {
            self.shared.end_now(self);
        }
    }
}

async fn release_when_returned(core: CoreRef, returned: oneshot::Receiver<()>) {
    // An error is as good: the handler is gone.
    if tokio::time::timeout(HANDLER_RETURNS, returned).await.is_err() {
        let session = core.lock().peer.id().map(tracing::field::display);
        tracing::warn!(
            session,
            "the handler of a movable session did not return within 5 s, so the session ends with an account"
        );
        return core.end_in_drain();
    }
    let (shared, now) = (&core.shared, now());
    let released = {
        let mut registry = shared.registry();
        let leaves = |session: &mut mainstay_proto::session::ServerSession| session.is_leaving();
        // The registry's lock comes before the core's.
        core.with_session(|session| leaves(session).then(|| registry.release(now, session))).flatten()
    };
    if let (Some(released), Some(node)) = (released, &shared.node) {
        Figures::add(&node.figures.released, 1);
        node.release(released);
    }
    core.notify();
}

impl Inner {
    /// Returns what completes once the handler has returned.
    fn begin_to_leave(&mut self) -> oneshot::Receiver<()> {
        let (sender, returned) = oneshot::channel();
        self.set_leaving(sender);
        returned
    }
}
