//! The clock that machines are told of: read once a turn.
//!
//! What a turn does happens at one moment, and a message costs no reading. Outside of turns, and with tokio's
//! clock paused in a test, it is tokio's clock.

use std::cell::Cell;
use std::time::Instant;

thread_local! {
    /// The moment of the turn that this thread is at.
    static TURN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time now, or of the turn that is under way.
pub(crate) fn now() -> Instant {
    TURN.get().unwrap_or_else(read)
}

/// From here on, and until [`end_turn`], it is this moment. Again in a turn that waited for somebody else's code.
pub(crate) fn begin_turn() {
    TURN.set(Some(read()));
}

/// The clock runs again.
pub(crate) fn end_turn() {
    TURN.set(None);
}

fn read() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_happens_at_one_moment_and_ends() {
        begin_turn();
        let start = now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(now(), start);
        end_turn();
        assert_eq!(now(), start + Duration::from_secs(1));
    }
}
