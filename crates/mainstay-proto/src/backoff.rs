//! How long to wait before the next attempt to connect.
//!
//! The first attempt after a loss comes soon, spread according to its cause: a cause of this client
//! alone (it woke up, came online, probed in vain) is spread over 0.2 s, a cause that others share
//! (the server restarted) over a second. After that each wait is drawn from (d/2, d) with
//! d = min(cap, base x 2^n): capped first, jittered after, so that the jitter survives the cap.
//! Advice of the server wins over both. A life resets the count only if it lasted.
//!
//! Source: `docs/DEFAULTS.md`.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

/// Bounds of the backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackoffConfig {
    base: Duration,
    cap: Duration,
    reset_after: Duration,
}

/// A backoff that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackoffConfigError {
    /// A base of zero would retry without a pause.
    #[error("backoff base must be at least 1 ms")]
    BaseTooSmall,
    /// The cap lies below the base.
    #[error("backoff cap must be at least the base, and at most 1 hour")]
    CapOutOfRange,
}

impl BackoffConfig {
    /// Checks and makes a backoff.
    ///
    /// `base`: the first wait. Default: 0.5 s. Range: 1 ms to `cap`.
    /// `cap`: the longest. Default: 30 s. Range: `base` to 1 hour.
    /// `reset_after`: how long a connection must live for the count to start again. Default: 50 s
    /// (two heartbeat intervals); at least 10 s is sensible, or servers that accept and drop are hammered.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn new(base: Duration, cap: Duration, reset_after: Duration) -> Result<Self, BackoffConfigError> {
        if base < Duration::from_millis(1) {
            return Err(BackoffConfigError::BaseTooSmall);
        }
        if cap < base || cap > Duration::from_secs(3600) {
            return Err(BackoffConfigError::CapOutOfRange);
        }
        Ok(Self { base, cap, reset_after })
    }
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            cap: Duration::from_secs(30),
            reset_after: Duration::from_secs(50),
        }
    }
}

/// Who else is likely to reconnect at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shared {
    /// Nobody: this client woke up, changed its network, or found its own connection dead.
    No,
    /// Every client of that server: it went away, restarted, is overloaded, or cannot be reached.
    Yes,
}

/// The longest that a server may send a client away for.
pub const LONGEST_ADVICE: Duration = Duration::from_secs(600);

const FIRST_ALONE: Duration = Duration::from_millis(200);
const FIRST_SHARED: Duration = Duration::from_secs(1);

/// Counts attempts and draws delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Backoff {
    config: BackoffConfig,
    attempts: u32,
    connected: Option<Instant>,
}

impl Backoff {
    /// A backoff before its first attempt.
    #[must_use]
    pub fn new(config: BackoffConfig) -> Self {
        Self { config, attempts: 0, connected: None }
    }

    /// How long to wait before the next attempt. Never zero.
    ///
    /// `advice`: the earliest and latest that the server asked for; it wins, up to [`LONGEST_ADVICE`].
    pub fn next_delay(
        &mut self,
        shared: Shared,
        advice: Option<(Duration, Duration)>,
        rng: &mut impl Rng,
    ) -> Duration {
        let attempt = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        let (from, to) = match (advice, attempt, shared) {
            (Some((min, max)), _, _) => (min.min(LONGEST_ADVICE), max.min(LONGEST_ADVICE)),
            (None, 0, Shared::No) => (Duration::ZERO, FIRST_ALONE),
            (None, 0, Shared::Yes) => (Duration::ZERO, FIRST_SHARED),
            (None, n, _) => {
                let longest = self.longest(n - 1);
                (longest / 2, longest)
            }
        };
        uniform(from, to.max(from), rng).max(Duration::from_millis(1))
    }

    /// min(cap, base x 2^n), without overflow for any n.
    fn longest(&self, doublings: u32) -> Duration {
        let factor = 1_u32.checked_shl(doublings).filter(|factor| *factor != 0).unwrap_or(u32::MAX);
        self.config.base.saturating_mul(factor).min(self.config.cap)
    }

    /// A connection works.
    pub fn handle_connected(&mut self, now: Instant) {
        self.connected = Some(now);
    }

    /// It is gone. The count starts again only if it lived long enough.
    pub fn handle_lost(&mut self, now: Instant) {
        let lived = self.connected.take().map(|since| now.saturating_duration_since(since));
        if lived.is_some_and(|lived| lived >= self.config.reset_after) {
            self.attempts = 0;
        }
    }

    /// Attempts since the last reset.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

fn uniform(from: Duration, to: Duration, rng: &mut impl Rng) -> Duration {
    let spread = u64::try_from((to - from).as_micros()).unwrap_or(u64::MAX);
    from + Duration::from_micros(rng.random_range(0..=spread))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    /// 4,000 draws of the delay that follows `before` earlier attempts.
    fn draws(before: u32, shared: Shared) -> Vec<Duration> {
        let mut rng = SmallRng::seed_from_u64(1);
        let backoff = Backoff { attempts: before, ..Backoff::new(BackoffConfig::default()) };
        (0..4000).map(|_| { backoff }.next_delay(shared, None, &mut rng)).collect()
    }

    /// Every tenth of the range gets its share: the draws are spread, at any attempt.
    fn check_spread(draws: &[Duration], from: Duration, to: Duration) {
        let mut tenths = [0_u32; 10];
        for draw in draws {
            assert!(
                *draw >= from.max(Duration::from_millis(1)) && *draw <= to,
                "{draw:?} outside {from:?}..{to:?}"
            );
            let tenth = (*draw - from).as_secs_f64() / (to - from).as_secs_f64() * 10.0;
            tenths[(tenth as usize).min(9)] += 1;
        }
        assert!(tenths.iter().all(|n| (280..=520).contains(n)), "{tenths:?}");
    }

    #[test]
    fn the_first_retry_is_spread_over_a_fifth_of_a_second_or_a_whole_one() {
        check_spread(&draws(0, Shared::No), Duration::ZERO, Duration::from_millis(200));
        check_spread(&draws(0, Shared::Yes), Duration::ZERO, Duration::from_secs(1));
    }

    #[test]
    fn every_later_attempt_is_spread_below_its_cap_and_never_overflows() {
        let seconds = Duration::from_secs_f64;
        check_spread(&draws(1, Shared::Yes), seconds(0.25), seconds(0.5));
        check_spread(&draws(5, Shared::Yes), seconds(4.0), seconds(8.0));
        for before in [50, 63, 64, 2_000, u32::MAX - 1, u32::MAX] {
            check_spread(&draws(before, Shared::Yes), seconds(15.0), seconds(30.0));
        }
    }

    #[test]
    fn a_server_that_accepts_and_drops_is_not_hammered() {
        let (now, mut rng) = (crate::session::tests::start(), SmallRng::seed_from_u64(2));
        let mut backoff = Backoff::new(BackoffConfig::default());
        for _ in 0..5 {
            backoff.next_delay(Shared::Yes, None, &mut rng);
            backoff.handle_connected(now);
            backoff.handle_lost(now + Duration::from_secs(49));
        }
        assert_eq!(backoff.attempts(), 5);
        backoff.handle_connected(now);
        backoff.handle_lost(now + Duration::from_secs(50));
        assert_eq!(backoff.attempts(), 0);
    }

    #[test]
    fn the_servers_advice_wins_but_cannot_park_a_client_for_ever() {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut backoff = Backoff::new(BackoffConfig::default());
        let seconds = Duration::from_secs;
        let delay = backoff.next_delay(Shared::Yes, Some((seconds(40), seconds(60))), &mut rng);
        assert!(delay >= seconds(40) && delay <= seconds(60));
        let delay = backoff.next_delay(Shared::Yes, Some((Duration::MAX, Duration::ZERO)), &mut rng);
        assert_eq!(delay, LONGEST_ADVICE);
        assert!(
            backoff.next_delay(Shared::No, Some((Duration::ZERO, Duration::ZERO)), &mut rng) > Duration::ZERO
        );
    }

    #[test]
    fn a_backoff_that_cannot_work_is_refused() {
        let ms = Duration::from_millis;
        assert_eq!(BackoffConfig::new(ms(0), ms(5), ms(5)), Err(BackoffConfigError::BaseTooSmall));
        assert_eq!(BackoffConfig::new(ms(9), ms(5), ms(5)), Err(BackoffConfigError::CapOutOfRange));
    }
}
