//! Draining: every session leaves in order, and the server waits for that.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mainstay_proto::session::EndCause;
use mainstay_proto::session::message::Delay;
use mainstay_proto::timeline::Event;
use mainstay_proto::ws::CloseCode;

use super::core::{Core, CoreRef, Shared};
use super::handle::Server;
use crate::clock::now;

pub(super) const REASON: &str = "the server is going away, come back";

impl Server {
    /// Drains the server: asks every client to leave and waits until all sessions have ended, at most for `within`. The
    /// usual choice is 5 s: a drain without another server to go to only lengthens the outage.
    ///
    /// New connections are refused with 503. The last two fifths of `within`, at most 5 s, are for the closing; the clients
    /// leave over the time before. The server asks clients that speak `mainstay.v1` to come back within that time, and
    /// closes plain ones with 1012, spread over it. A session without a connection ends, because its client cannot come
    /// back to it. Connections that are still open afterwards are dropped. With less than 1 s, the clients leave over three
    /// fifths of it, and the closing has the rest of that second. A second call changes nothing.
    ///
    /// With `Config::cluster`, sessions that may [move](crate::SessionUpgrade) go on at another node, or in the next process
    /// with the same folder, and so do the exact accounts of the others. Without an engine there is nowhere to go before this
    /// process has ended, so sessions that may move leave at once.
    ///
    /// # Cancel safety
    /// Safe: draining goes on, only the waiting ends.
    pub async fn drain(&self, within: Duration) {
        self.drain_after(std::future::ready(()), within).await;
    }

    /// As [`drain`](Self::drain); waits for `requests` first, which may still open sessions.
    pub(super) async fn drain_after(&self, requests: impl Future<Output = ()>, within: Duration) {
        let closing = (within * 2 / 5).min(Duration::from_secs(5));
        // A zero in GOAWAY means that nothing is known about the end.
        let spread = (within - closing).max(Duration::from_millis(1));
        #[cfg(feature = "cluster")]
        let until = tokio::time::Instant::now() + within;
        if self.shared.draining.set(spread).is_ok() {
            self.shared.timeline.note(None, Event::DrainBegan);
            #[cfg(feature = "cluster")]
            self.shared.begin_to_leave(spread);
            tokio::spawn(drain_all(Arc::clone(&self.shared), self.shared.cores(), spread));
        }
        self.shared.tracker.close();
        let left = async {
            requests.await;
            self.shared.tracker.wait().await;
        };
        if tokio::time::timeout(within.max(Duration::from_secs(1)), left).await.is_err() {
            tracing::warn!(
                tasks = self.shared.tracker.len(),
                "drain is over; the remaining connections are dropped"
            );
        }
        #[cfg(feature = "cluster")]
        self.shared.finish_leaving(until).await;
    }
}

/// Asks clients that speak `mainstay.v1` at once, and they spread themselves. Plain ones cannot be asked, so their closing
/// is spread.
async fn drain_all(shared: Arc<Shared>, cores: Vec<Weak<Core>>, spread: Duration) {
    let is_plain = |core: &Weak<Core>| core.upgrade().is_some_and(|core| !core.drain(spread));
    let plain: Vec<_> = cores.into_iter().filter(is_plain).collect();
    #[cfg(not(feature = "cluster"))]
    drop(shared);
    #[cfg(feature = "cluster")]
    tokio::spawn(async move { shared.write_released().await });
    let pause = spread / u32::try_from(plain.len()).unwrap_or(u32::MAX).max(1);
    for core in plain {
        if let Some(core) = core.upgrade() {
            core.close(EndCause::Drained, CloseCode::RESTART, REASON);
        }
        tokio::time::sleep(pause).await;
    }
}

impl Shared {
    /// Drains a session whose handshake began before the drain and finished during it.
    pub(super) fn drain_if_draining(&self, core: &CoreRef) {
        if let Some(spread) = self.draining.get()
            && !core.drain(*spread)
        {
            core.close(EndCause::Drained, CloseCode::RESTART, REASON);
        }
    }
}

impl Core {
    /// Asks the client to leave this server. Returns `false` for a plain peer, which cannot be asked.
    fn drain(self: &Arc<Self>, spread: Duration) -> bool {
        let delay = Delay { min: Duration::ZERO, max: spread };
        #[cfg(feature = "cluster")]
        if self.begin_to_move(spread) {
            return true;
        }
        self.change_state(|peer| {
            let Some(session) = peer.session_mut() else { return false };
            session.go_away(now(), REASON, delay, spread);
            session.retire();
            true
        })
    }
}
