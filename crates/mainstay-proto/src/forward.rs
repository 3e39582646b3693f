//! An assertion: the times that a driver passes to a machine never run backwards.
//!
//! A machine derives deadlines from the times that it is given. A driver that passes an older time than before measures
//! negative round trips and misses deadlines, and nothing else would notice. Without debug assertions this is empty.
//!
//! A driver may read the clock once per poll, on several threads. A call of one thread may therefore be older than a call of
//! another by the duration of a poll, which is long where the machine is busy: see [`SLACK`].

#[cfg(debug_assertions)]
use std::time::Duration;
use std::time::Instant;

/// How much older a call may be than the one before it.
#[cfg(debug_assertions)]
pub(crate) const SLACK: Duration = Duration::from_secs(30);

/// The newest time that a machine was given.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Forward {
    #[cfg(debug_assertions)]
    newest: Option<Instant>,
}

impl Forward {
    /// Asserts that `now` is not before the newest time of the calls before, apart from [`SLACK`].
    #[inline]
    pub(crate) fn check(&mut self, now: Instant) {
        #[cfg(debug_assertions)]
        {
            let before = self.newest;
            self.newest = self.newest.max(Some(now));
            debug_assert!(
                before.is_none_or(|before| before <= now + SLACK),
                "time ran backwards: {before:?}, then {now:?}"
            );
        }
        let _ = now;
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;
    use crate::origin;

    #[test]
    #[should_panic(expected = "time ran backwards")]
    fn a_time_before_the_last_one_fails_the_assertion() {
        let (mut forward, now) = (Forward::default(), origin());
        forward.check(now + SLACK + Duration::from_nanos(1));
        forward.check(now);
    }

    #[test]
    fn the_same_time_again_and_an_older_one_within_the_slack_pass() {
        let (mut forward, now) = (Forward::default(), origin());
        forward.check(now + SLACK);
        forward.check(now + SLACK);
        forward.check(now);
    }
}
