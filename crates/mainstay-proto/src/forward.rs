//! An assertion: the times that a driver passes to a machine never run backwards.
//!
//! A machine derives deadlines from the times that it is given. A driver that passes an older time than before measures
//! negative round trips and misses deadlines, and nothing else would notice. Without debug assertions this is empty.

use std::time::Instant;

/// The newest time that a machine was given.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Forward {
    #[cfg(debug_assertions)]
    newest: Option<Instant>,
}

impl Forward {
    /// Asserts that `now` is not before the time of the call before.
    #[inline]
    pub(crate) fn check(&mut self, now: Instant) {
        #[cfg(debug_assertions)]
        {
            let before = self.newest.replace(now);
            debug_assert!(
                before.is_none_or(|before| before <= now),
                "time ran backwards: {before:?}, then {now:?}"
            );
        }
        let _ = now;
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::origin;

    #[test]
    #[should_panic(expected = "time ran backwards")]
    fn a_time_before_the_last_one_fails_the_assertion() {
        let mut forward = Forward::default();
        forward.check(origin() + Duration::from_secs(1));
        forward.check(origin());
    }

    #[test]
    fn the_same_time_again_passes() {
        let (mut forward, now) = (Forward::default(), origin());
        forward.check(now);
        forward.check(now);
    }
}
