//! The clock of the machines: a worker reads it once for each poll of a task.
//!
//! So a poll happens at one moment, and a message costs no reading of the clock. Outside of polls, and where a test has
//! paused tokio's clock, this is tokio's clock.

use std::cell::Cell;
use std::time::Instant;

thread_local! {
    /// When the poll began that runs on this thread.
    static POLL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time now or, inside a poll, the time at which it began.
pub(crate) fn now() -> Instant {
    POLL.get().unwrap_or_else(read)
}

/// Reads the clock: [`now`] returns this moment until [`end_poll`]. A poll that ran code of the application reads it again.
pub(crate) fn begin_poll() {
    POLL.set(Some(read()));
}

/// Ends the poll: the clock runs again.
pub(crate) fn end_poll() {
    POLL.set(None);
}

fn read() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_poll_happens_at_one_moment() {
        begin_poll();
        let start = now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(now(), start);
        end_poll();
        assert_eq!(now(), start + Duration::from_secs(1));
    }
}
