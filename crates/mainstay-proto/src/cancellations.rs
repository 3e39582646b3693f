//! How many requests of one connection its client may cancel before they are answered.
//!
//! A connection of HTTP/2 carries many requests, and a client cancels one with a few bytes, while the server has begun to
//! serve it. A limit on requests at the same time does not hold such a client back, because a cancelled request counts no
//! more (CVE-2023-44487, "rapid reset"). A page that is closed cancels all its requests once; only a client that goes on
//! cancelling exceeds this limit.

use std::time::{Duration, Instant};

/// The requests that may be cancelled at once: many pages full of them.
const BURST: u32 = 1000;
/// The time after which one more may be cancelled.
const ONE_MORE_AFTER: Duration = Duration::from_millis(50);

/// The count of one connection; the module describes it.
///
/// ```
/// use std::time::Instant;
/// use mainstay_proto::cancellations::Cancellations;
///
/// # #[allow(clippy::disallowed_methods)]
/// let now = Instant::now();
/// let mut cancelled = Cancellations::default();
/// assert!((0..1000).all(|_| cancelled.cancel(now)));
/// assert!(!cancelled.cancel(now));
/// ```
#[derive(Debug, Default)]
pub struct Cancellations {
    /// When all of them are returned.
    returned_at: Option<Instant>,
}

impl Cancellations {
    /// Counts a request that the client cancelled. Returns whether that is within the limit; if not, the connection must be
    /// closed.
    pub fn cancel(&mut self, now: Instant) -> bool {
        let from = self.returned_at.map_or(now, |at| at.max(now));
        let at = from + ONE_MORE_AFTER;
        self.returned_at = Some(at);
        at.saturating_duration_since(now) <= ONE_MORE_AFTER * BURST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;

    #[test]
    fn a_thousand_may_be_cancelled_at_once_and_then_twenty_a_second() {
        let (mut cancelled, mut now) = (Cancellations::default(), origin());
        assert!((0..1000).all(|_| cancelled.cancel(now)));
        for _ in 0..100 {
            now += ONE_MORE_AFTER;
            assert!(cancelled.cancel(now));
        }
        assert!(!cancelled.cancel(now));
    }

    #[test]
    fn a_pause_returns_no_more_than_was_spent() {
        let (mut cancelled, now) = (Cancellations::default(), origin());
        assert!(cancelled.cancel(now));
        let later = now + Duration::from_secs(3600);
        assert!((0..1000).all(|_| cancelled.cancel(later)));
        assert!(!cancelled.cancel(later));
    }
}
