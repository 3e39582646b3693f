//! When an issuer's keys are fetched, and for how long they are used. Time is an argument.
//!
//! Keys are fetched again before they are stale, so that no client waits for them. While that fails they stay in use, but not
//! for ever: a key that the issuer has withdrawn must not be accepted because someone keeps this gateway from the issuer.

use std::time::Duration;

use tokio::time::Instant;

/// The least time between two fetches.
const PAUSE: Duration = Duration::from_secs(10);
/// The wait after the first failure; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long before they are stale the keys are fetched again: a tenth of their time, and at most this.
const LONGEST_LEAD: Duration = Duration::from_secs(30);

/// For how long keys are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lives {
    /// How long they are fresh, where the issuer does not say.
    pub(crate) unsaid: Duration,
    /// The bounds of what the issuer says.
    pub(crate) least: Duration,
    pub(crate) most: Duration,
    /// How long they are used when they are not fresh any more.
    pub(crate) stale: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    lives: Lives,
    next: Instant,
    /// Until when the keys are fresh, and until when they are used.
    fresh_until: Option<Instant>,
    used_until: Option<Instant>,
    failures: u32,
    /// When the last fetch began.
    began: Option<Instant>,
    is_fetching: bool,
    /// Other settings took this one's place: nothing is fetched.
    is_replaced: bool,
}

/// What becomes of a token that names an unknown key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The keys are fetched for it.
    Begins,
    /// They are being fetched, since before it came.
    UnderWay,
    /// They were fetched just now.
    TooSoon,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// The keys are fetched; [`Schedule::handle_fetched`] follows.
    Fetch,
    /// The keys are too old to be used.
    Forget,
    Nothing,
}

impl Schedule {
    pub(super) fn new(now: Instant, lives: Lives) -> Self {
        Self {
            lives,
            next: now,
            fresh_until: None,
            used_until: None,
            failures: 0,
            began: None,
            is_fetching: false,
            is_replaced: false,
        }
    }

    /// Returns the schedule of keys that were in use under other settings, which are fetched at once.
    pub(super) fn continuing(now: Instant, lives: Lives, before: &Self) -> Self {
        let (fresh_until, used_until) = (before.fresh_until, before.used_until);
        Self { fresh_until, used_until, ..Self::new(now, lives) }
    }

    /// Other settings take the place of these.
    pub(super) fn handle_replaced(&mut self) {
        self.is_replaced = true;
    }

    /// A token names an unknown key.
    pub(super) fn handle_unknown_key(&mut self, now: Instant) -> Asked {
        if self.is_fetching {
            return Asked::UnderWay;
        }
        if self.is_replaced || self.began.is_some_and(|began| now < began + PAUSE) {
            return Asked::TooSoon;
        }
        self.next = now;
        Asked::Begins
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Due {
        if self.used_until.is_some_and(|until| until <= now) {
            self.used_until = None;
            return Due::Forget;
        }
        if self.is_replaced || self.is_fetching || now < self.next {
            return Due::Nothing;
        }
        (self.began, self.is_fetching) = (Some(now), true);
        Due::Fetch
    }

    /// The fetch has ended. `fresh_for`: what the issuer says, if it does; the outer `None`: the keys did not come.
    pub(super) fn handle_fetched(&mut self, now: Instant, fresh_for: Option<Option<Duration>>) {
        self.is_fetching = false;
        let Some(said) = fresh_for else {
            self.failures += 1;
            let doubled = FIRST_WAIT * 2_u32.saturating_pow(self.failures - 1).min(1024);
            self.next = now + doubled.min(LONGEST_WAIT).min(self.lives.unsaid);
            return;
        };
        self.failures = 0;
        let Lives { unsaid, least, most, stale } = self.lives;
        let fresh_for = said.map_or(unsaid, |said| said.clamp(least, most));
        let lead = (fresh_for / 10).min(LONGEST_LEAD);
        self.next = now + (fresh_for - lead).max(PAUSE);
        self.fresh_until = Some(now + fresh_for);
        self.used_until = Some(now + fresh_for + stale);
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) has something to do. `None`: never again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = (!self.is_replaced).then_some(self.next);
        next.into_iter().chain(self.used_until).min()
    }

    /// Whether the keys should have been replaced by newer ones. `None` before the first fetch.
    pub(super) fn is_stale(&self, now: Instant) -> Option<bool> {
        self.fresh_until.map(|until| until < now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const LIVES: Lives = Lives {
        unsaid: Duration::from_secs(600),
        least: MINUTE,
        most: Duration::from_secs(3600),
        stale: MINUTE,
    };

    /// A schedule whose first fetch ended at once, with this answer.
    fn fetched(start: Instant, said: Option<Duration>) -> Schedule {
        let mut schedule = Schedule::new(start, LIVES);
        assert_eq!(schedule.poll_timeout(), Some(start));
        assert_eq!(schedule.handle_timeout(start), Due::Fetch);
        schedule.handle_fetched(start, Some(said));
        schedule
    }

    #[test]
    fn keys_are_fetched_at_once_and_again_before_they_are_stale() {
        let start = Instant::now();
        let check = |said: Option<u64>, next: u32, stale: u32| {
            let schedule = fetched(start, said.map(Duration::from_secs));
            assert_eq!(schedule.poll_timeout(), Some(start + next * SECOND), "{said:?}");
            let is_stale = |at| schedule.is_stale(start + at * SECOND);
            assert_eq!((is_stale(stale), is_stale(stale + 1)), (Some(false), Some(true)), "{said:?}");
        };
        check(None, 570, 600);
        check(Some(120), 108, 120);
        check(Some(1800), 1770, 1800);
        // No less than the least, and no more than the most.
        check(Some(0), 54, 60);
        check(Some(u64::MAX), 3570, 3600);
        assert_eq!(Schedule::new(start, LIVES).is_stale(start), None);
    }

    #[test]
    fn two_fetches_are_never_closer_than_ten_seconds() {
        let start = Instant::now();
        let lives = Lives { unsaid: 10 * SECOND, least: 10 * SECOND, ..LIVES };
        for said in [None, Some(Duration::ZERO)] {
            let mut schedule = Schedule::new(start, lives);
            schedule.handle_timeout(start);
            schedule.handle_fetched(start, Some(said));
            assert_eq!(schedule.poll_timeout(), Some(start + 10 * SECOND));
        }
    }

    #[test]
    fn an_unknown_key_has_them_fetched_once_and_at_most_every_ten_seconds() {
        let start = Instant::now();
        let mut schedule = fetched(start, None);
        assert_eq!(schedule.handle_unknown_key(start + 9 * SECOND), Asked::TooSoon);
        assert_eq!(schedule.handle_timeout(start + 9 * SECOND), Due::Nothing);
        assert_eq!(schedule.handle_unknown_key(start + 10 * SECOND), Asked::Begins);
        assert_eq!(schedule.handle_timeout(start + 10 * SECOND), Due::Fetch);
        assert_eq!(schedule.handle_unknown_key(start + 11 * SECOND), Asked::UnderWay);
        assert_eq!(schedule.handle_timeout(start + 11 * SECOND), Due::Nothing, "one at a time");
        schedule.handle_fetched(start + 12 * SECOND, Some(None));
        assert_eq!(schedule.handle_unknown_key(start + 12 * SECOND), Asked::TooSoon);
    }

    #[test]
    fn a_failure_is_repeated_after_doubling_waits_of_at_most_a_minute() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, LIVES);
        let mut waits = Vec::new();
        for _ in 0..9 {
            schedule.handle_fetched(start, None);
            waits.push((schedule.poll_timeout().unwrap() - start).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let mut often = Schedule::new(start, Lives { unsaid: 10 * SECOND, ..LIVES });
        (0..40).for_each(|_| often.handle_fetched(start, None));
        assert_eq!(often.poll_timeout(), Some(start + 10 * SECOND), "never later than without a failure");
    }

    #[test]
    fn stale_keys_are_used_for_a_bounded_time_while_the_issuer_is_away() {
        let start = Instant::now();
        let mut schedule = fetched(start, Some(MINUTE));
        let now = loop {
            let now = schedule.poll_timeout().unwrap();
            match schedule.handle_timeout(now) {
                Due::Fetch => schedule.handle_fetched(now, None),
                Due::Forget => break now,
                Due::Nothing => panic!("nothing was due at {:?}", now - start),
            }
        };
        assert_eq!(now - start, 2 * MINUTE);
        assert_eq!(schedule.is_stale(now), Some(true));
        // It goes on trying, and the keys of the next answer are used again.
        let next = schedule.poll_timeout().unwrap();
        assert!(next > now && next <= now + MINUTE);
        assert_eq!(schedule.handle_timeout(next), Due::Fetch);
        schedule.handle_fetched(next, Some(None));
        assert_eq!(schedule.is_stale(next), Some(false));
        assert_eq!(schedule.poll_timeout(), Some(next + 570 * SECOND));
    }

    #[test]
    fn keys_go_on_under_other_settings_and_the_earlier_ones_fetch_nothing_more() {
        let start = Instant::now();
        let mut before = fetched(start, Some(MINUTE));
        let now = start + 30 * SECOND;
        let mut after = Schedule::continuing(now, LIVES, &before);
        before.handle_replaced();
        assert_eq!(before.poll_timeout(), Some(start + 2 * MINUTE), "only its keys end");
        assert_eq!(before.handle_unknown_key(now), Asked::TooSoon);
        assert_eq!(before.handle_timeout(now), Due::Nothing);
        assert_eq!(before.handle_timeout(start + 2 * MINUTE), Due::Forget);
        assert_eq!(before.poll_timeout(), None);
        assert_eq!(after.handle_timeout(now), Due::Fetch);
        after.handle_fetched(now, None);
        assert_eq!(after.handle_timeout(start + 2 * MINUTE), Due::Forget, "as old as they are");
    }
}
