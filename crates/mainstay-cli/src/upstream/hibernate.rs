//! Hibernation: the link of an idle client is closed, and opened again for the next message.
//!
//! The backend needs no connection for a client that is idle or away. It receives a Close, and later a new connection on
//! which the prologue is replayed, as after a lost one. What it would have sent meanwhile does not reach the client, and the
//! session's mark of a replaced connection says so.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mainstay::CloseCode;
use mainstay::client::{Sender, State};
use mainstay::server::{Sender as ToClient, SessionState};
use tokio::time::{Instant, sleep, sleep_until};

/// The pause before another attempt to close a link that was not ready for it: it has unconfirmed messages, or dials.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a client has been idle.
pub(crate) struct Idle {
    after: Duration,
    start: Instant,
    /// The last message, in milliseconds since the start.
    last: AtomicU64,
}

impl Idle {
    pub(crate) fn new(after: Duration) -> Self {
        Self { after, start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// A message passed in either direction.
    pub(crate) fn note_message(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Relaxed);
    }

    /// Returns when the client will have been idle for long enough.
    fn until(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed)) + self.after
    }
}

/// Lets the link rest whenever its client was idle for long enough, and opens it when the client comes back. A message of the
/// client opens it in any case.
pub(crate) async fn hibernate(idle: &Idle, to_client: &ToClient, to_backend: &Sender) -> Infallible {
    let mut changes = to_client.changes();
    loop {
        let until = idle.until();
        if until > Instant::now() {
            sleep_until(until).await;
        } else if to_backend.rest(CloseCode::GOING_AWAY, "hibernating") {
            came_back(&mut changes, to_backend).await;
            idle.note_message();
        } else {
            sleep(AGAIN).await;
        }
    }
}

/// Waits until the client is connected again, or its message has opened the link. Opens the link in the first case.
async fn came_back(changes: &mut mainstay::server::Changes, to_backend: &Sender) {
    let mut states = to_backend.changes();
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(SessionState::Attached { .. }) => return to_backend.probe_now(),
                Some(_) => {}
                None => return std::future::pending().await,
            },
            state = states.next() => match state {
                Some(State::Resting) => {}
                Some(_) => return,
                None => return std::future::pending().await,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_idle_when_no_message_passed_for_long_enough() {
        let minute = Duration::from_secs(60);
        let idle = Idle::new(minute);
        let start = Instant::now();
        assert_eq!(idle.until(), start + minute);
        tokio::time::advance(minute / 2).await;
        idle.note_message();
        assert_eq!(idle.until(), start + minute / 2 + minute);
    }
}
