//! A session leaves this server: its handler returns, and the node releases it.
//!
//! Source: `docs/CLUSTER.md`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mainstay_proto::session::message::Delay;
use mainstay_proto::session::{NodeId, ServerSession};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::core::{Core, CoreRef, Shared};
use super::drain::REASON;
use super::inner::Inner;
use crate::clock::now;
use crate::cluster::Figures;

/// How long a handler has to return.
const HANDLER_RETURNS: Duration = Duration::from_secs(5);
/// How long the engine has, at least, for what is released at the end of a drain.
const FINAL_RELEASES: Duration = Duration::from_secs(1);
/// How long clients have, after that, to ask for the accounts that the engine did not get: an entry node has asked each of
/// them to come back within 2 s.
const FINAL_ACCOUNTS: Duration = Duration::from_millis(2500);

impl Core {
    /// Has a session leave this server: once its handler has returned, it is released, or ends with its account if it may not
    /// move. Returns `false` for one that need not leave before it ends, or that the application has closed.
    pub(super) fn leave(self: &Arc<Self>) -> bool {
        let mut inner = self.lock();
        let Some(session) = inner.peer.session_mut().filter(|session| session.leaves_first()) else {
            return false;
        };
        if session.is_leaving() {
            return true;
        }
        if !session.is_open() {
            return false;
        }
        session.leave(now());
        let returned = inner.begin_to_leave();
        inner.wake_application();
        drop(inner);
        // A handler that is not started yet has nothing to wait for.
        self.signal.wake();
        let release = release_when_returned(Arc::clone(self), returned);
        match &self.shared.node {
            Some(node) => self.shared.tracker.spawn(node.leaving.track_future(release)),
            None => self.shared.tracker.spawn(release),
        };
        true
    }

    /// Waits until a session that leaves is released, or ends here.
    pub(super) async fn left(&self) {
        std::future::poll_fn(|cx| {
            let mut inner = self.lock();
            if !inner.peer.session().is_some_and(ServerSession::is_leaving) {
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

/// The drain of a node.
impl Shared {
    /// Begins the drain: from now on the registry gives sessions up that may move, and ends the others when their clients ask
    /// for them elsewhere.
    pub(super) fn begin_to_leave(self: &Arc<Self>, spread: Duration) {
        let Some(node) = &self.node else { return };
        self.registry().set_draining(true);
        node.announce_drain();
        let (node, server) = (Arc::clone(node), Arc::clone(self));
        tokio::spawn(async move { node.end_relays(spread).await });
        tokio::spawn(async move {
            tokio::time::sleep(spread).await;
            // Clients that stayed come back to a session that has left.
            for core in server.cores().iter().filter_map(Weak::upgrade) {
                core.leave();
            }
        });
    }

    /// All sessions have been asked to leave: those that do are written into the state file as soon as they are released.
    pub(super) async fn write_released(&self) {
        if let Some(node) = &self.node {
            node.write_released().await;
        }
    }

    /// Asks the clients that this node relays to replace their connections over this time.
    pub(crate) fn ask_relayed_to_leave(&self, entry: NodeId, within: Duration) {
        let delay = Delay { min: Duration::ZERO, max: within };
        for core in self.cores().iter().filter_map(Weak::upgrade) {
            let mut inner = core.lock();
            if inner.is_relayed_by(entry)
                && let Some(session) = inner.peer.session_mut()
            {
                // The entry node ends the connections of those that stay.
                session.go_away(now(), REASON, delay, Duration::ZERO);
                drop(inner);
                core.signal.ask();
            }
        }
    }

    /// Ends the drain: what has not left by now ends, with its account. Then this node leaves the cluster.
    pub(super) async fn finish_leaving(self: &Arc<Self>, until: Instant) {
        let Some(node) = self.node.as_ref().filter(|node| node.begin_to_leave()) else { return };
        for core in self.cores().iter().filter_map(Weak::upgrade) {
            core.end_in_drain();
        }
        let accounts = {
            let mut registry = self.registry();
            // What the engine refused may be small enough as an account.
            node.unreleased().into_iter().for_each(|session| registry.end_released(session));
            let accounts = registry.take_accounts();
            node.expect_accounts(&accounts);
            accounts
        };
        node.release_accounts(accounts);
        node.all_released(until.max(Instant::now() + FINAL_RELEASES)).await;
        node.all_accounted(Instant::now() + FINAL_ACCOUNTS).await;
        node.leave().await;
        node.log_departure();
    }
}

impl Core {
    /// Prepares a session to leave, in a drain. Returns `false` for one that need not leave before it ends.
    pub(super) fn begin_to_move(self: &Arc<Self>, spread: Duration) -> bool {
        let Some(node) = &self.shared.node else { return false };
        let stays_for_its_client = node.has_engine()
            && self.with_session(|session| {
                // Its client is asked to leave, and the session follows when the client has reached another node.
                let is_attached =
                    session.leaves_first() && session.is_open() && session.connection().is_some();
                let delay = Delay { min: Duration::ZERO, max: spread };
                if is_attached {
                    session.go_away(now(), REASON, delay, spread);
                }
                is_attached
            }) == Some(true);
        if stays_for_its_client {
            self.notify();
            return true;
        }
        self.leave()
    }
}

async fn release_when_returned(core: CoreRef, returned: oneshot::Receiver<()>) {
    // An error is as good: the handler is gone.
    if tokio::time::timeout(HANDLER_RETURNS, returned).await.is_err() {
        let id = core.lock().peer.id().map(tracing::field::display);
        tracing::debug!(session = id, "the handler of a session that leaves did not return within 5 s");
        if let Some(node) = &core.shared.node {
            Figures::add(&node.figures.not_returned, 1);
        }
        return core.end_in_drain();
    }
    let (shared, now) = (&core.shared, now());
    let released = {
        let mut registry = shared.registry();
        // The registry's lock comes before the core's, and before the node's.
        let released = core.with_session(|session| registry.release(now, session)).flatten();
        if let (Some(released), Some(node)) = (&released, &shared.node) {
            node.expect_releases([released.session]);
        }
        released
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
