//! How long to wait before the next attempt to connect.
//!
//! The wait after a loss is short at first and spread by its [`Scope`]: over 0.2 s if only this client lost its
//! connection, over 1 s if others did too. Every later wait has a ceiling d = min(cap, base x 2^n) and is drawn below
//! it: capped first, jittered after, so that clients at the cap stay spread. A client on its own draws from (d/2, d).
//! One of many draws from all of (0, d), because the width of the range is what spreads them. The server's [`Advice`]
//! takes precedence over all of this.
//!
//! A connection that lived for 10 s clears the count. So does a message that is delivered or acknowledged once the
//! connection is 2 s old: on a train connections are short and good. A connection that was merely accepted clears
//! nothing; otherwise clients would hammer a server that accepts and drops. Attempts to replace a living connection
//! do not count once that connection is lost: they failed for other reasons.
//!
//! Source: `docs/DEFAULTS.md`.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use crate::ConfigError;

/// The longest wait that advice may cause; longer advice is cut to this.
pub const LONGEST_ADVICE: Duration = Duration::from_secs(600);

/// The shortest wait: zero would be a loop without a pause.
const SHORTEST: Duration = Duration::from_millis(1);
/// The life of a connection after which the count is cleared. No shorter life can be configured.
const LIFE: Duration = Duration::from_secs(10);
/// The age of a connection at which a delivered or acknowledged message clears the count, too.
const BUSY_LIFE: Duration = Duration::from_secs(2);

/// Bounds of the waits, checked by the setters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    base: Duration,
    cap: Duration,
    first_individual: Duration,
    first_shared: Duration,
    reset_after: Option<Duration>,
}

impl BackoffConfig {
    /// Sets the ceilings: they double from `base`, the ceiling of the second wait, up to `cap`, which bounds every
    /// wait. Default: 0.5 s and 30 s. Range: 1 ms to `cap`, and `base` to 1 hour.
    ///
    /// # Errors
    /// One of them is out of range.
    pub fn new(base: Duration, cap: Duration) -> Result<Self, ConfigError> {
        let Self { first_individual, first_shared, reset_after, .. } = Self::default();
        let (first_individual, first_shared) = (first_individual.min(cap), first_shared.min(cap));
        Self { base, cap, first_individual, first_shared, reset_after }.checked()
    }

    /// Sets the ceilings of the first wait: `individual` if only this client lost its connection (it woke up, came
    /// online, or found the connection dead), `shared` if others may have, too (the server restarted). Default: 0.2 s
    /// and 1 s. Range: 1 ms to the cap.
    ///
    /// # Errors
    /// One of them is out of range.
    pub fn first(self, individual: Duration, shared: Duration) -> Result<Self, ConfigError> {
        Self { first_individual: individual, first_shared: shared, ..self }.checked()
    }

    /// Sets how long a connection must live to clear the count, messages or not. Default: 10 s, or 2 s and then a
    /// message that is delivered or acknowledged. Range: at least 10 s.
    ///
    /// # Errors
    /// It is out of range.
    pub fn reset_after(self, life: Duration) -> Result<Self, ConfigError> {
        Self { reset_after: Some(life), ..self }.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let upto_cap = SHORTEST..=self.cap;
        if !(SHORTEST..=Duration::from_secs(3600)).contains(&self.cap) {
            return Err(ConfigError { field: "backoff.cap", bound: "between 1 ms and 1 hour" });
        }
        if !upto_cap.contains(&self.base) {
            return Err(ConfigError { field: "backoff.base", bound: "between 1 ms and backoff.cap" });
        }
        if !upto_cap.contains(&self.first_individual) {
            return Err(ConfigError {
                field: "backoff.first_individual",
                bound: "between 1 ms and backoff.cap",
            });
        }
        if !upto_cap.contains(&self.first_shared) {
            return Err(ConfigError { field: "backoff.first_shared", bound: "between 1 ms and backoff.cap" });
        }
        if self.reset_after.is_some_and(|life| life < LIFE) {
            return Err(ConfigError { field: "backoff.reset_after", bound: "at least 10 s" });
        }
        Ok(self)
    }
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            cap: Duration::from_secs(30),
            first_individual: Duration::from_millis(200),
            first_shared: Duration::from_secs(1),
            reset_after: None,
        }
    }
}

/// Which clients lost a connection at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Only this one: it woke up, came online, or found its own connection dead.
    Individual,
    /// Perhaps all: close codes 1001, 1006, 1012 and 1013, a 5xx response, and everything else that a restart of the
    /// server explains.
    Shared,
}

/// When the server wants the client back: GOAWAY, REFUSE, `Retry-After`, or 1013 with a delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Advice {
    /// The earliest time.
    pub min: Duration,
    /// The latest time, if that leaves room to spread clients.
    pub max: Duration,
}

/// Counts the attempts of one client and draws the wait before each.
#[derive(Debug, Clone)]
pub struct Backoff {
    config: BackoffConfig,
    attempts: u32,
    connected: Option<Connected>,
}

/// The attached connection.
#[derive(Debug, Clone, Copy)]
struct Connected {
    since: Instant,
    /// The count when the connection was attached.
    attempts: u32,
}

impl Backoff {
    /// Creates a backoff before the first attempt.
    #[must_use]
    pub fn new(config: BackoffConfig) -> Self {
        Self { config, attempts: 0, connected: None }
    }

    /// Draws the wait before the next attempt and counts that attempt.
    ///
    /// The wait is never zero, never the same for all clients, and never above the cap; with advice never above
    /// [`LONGEST_ADVICE`]. Advice that is too narrow to spread clients (`Retry-After` names one moment) is widened by
    /// `first_shared` or by a tenth of its own length, whichever is longer.
    pub fn next_delay(&mut self, cause: Scope, advice: Option<Advice>, rng: &mut impl Rng) -> Duration {
        let attempt = self.attempts;
        self.attempts = attempt.saturating_add(1);
        let (from, to) = match (advice, attempt, cause) {
            (Some(advice), _, _) => self.spread(advice),
            (None, 0, Scope::Individual) => (SHORTEST, self.config.first_individual),
            (None, 0, Scope::Shared) => (SHORTEST, self.config.first_shared),
            (None, n, Scope::Individual) => (self.ceiling(n - 1) / 2, self.ceiling(n - 1)),
            (None, n, Scope::Shared) => (SHORTEST, self.ceiling(n - 1)),
        };
        uniform(from.max(SHORTEST), to.max(SHORTEST), rng)
    }

    /// Returns the number of attempts since the count was last cleared.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A connection is attached (its whole opening, WELCOME included). This alone clears nothing.
    pub fn handle_connected(&mut self, now: Instant) {
        self.connected = Some(Connected { since: now, attempts: self.attempts });
    }

    /// A message was delivered or acknowledged on the attached connection. Cheap while the count is clear.
    pub fn handle_progress(&mut self, now: Instant) {
        let is_counting = |up: &&mut Connected| up.attempts > 0 && self.config.reset_after.is_none();
        if let Some(up) = self.connected.as_mut().filter(is_counting)
            && now.saturating_duration_since(up.since) >= BUSY_LIFE
        {
            (self.attempts, up.attempts) = (0, 0);
        }
    }

    /// The connection is gone. The count is cleared if the connection lived for long enough; otherwise it returns to
    /// what it was when the connection was attached.
    pub fn handle_lost(&mut self, now: Instant) {
        let Some(up) = self.connected.take() else { return };
        let lived = now.saturating_duration_since(up.since) >= self.config.reset_after.unwrap_or(LIFE);
        self.attempts = if lived { 0 } else { up.attempts };
    }

    /// Returns min(cap, base x 2^n) in integers, for any n.
    fn ceiling(&self, n: u32) -> Duration {
        let factor = 1_u32.checked_shl(n).unwrap_or(u32::MAX);
        self.config.base.saturating_mul(factor).min(self.config.cap)
    }

    fn spread(&self, advice: Advice) -> (Duration, Duration) {
        let min = advice.min.min(LONGEST_ADVICE);
        let width = self.config.first_shared.max(min / 10).min(LONGEST_ADVICE);
        let to = advice.max.max(min + width).min(LONGEST_ADVICE);
        (min.min(to - width), to)
    }
}

fn uniform(from: Duration, to: Duration, rng: &mut impl Rng) -> Duration {
    // Both are at most an hour, so the nanoseconds fit.
    let width = u64::try_from(to.saturating_sub(from).as_nanos()).unwrap_or(u64::MAX);
    from + Duration::from_nanos(rng.random_range(0..=width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    const SECOND: Duration = Duration::from_secs(1);

    fn backoff() -> Backoff {
        Backoff::new(BackoffConfig::default())
    }

    /// Returns the waits after `before` attempts, drawn by 4,000 clients with a seed each.
    fn crowd(before: u32, cause: Scope, advice: Option<Advice>) -> Vec<Duration> {
        let draw = |seed| {
            let mut client = Backoff { attempts: before, ..backoff() };
            client.next_delay(cause, advice, &mut SmallRng::seed_from_u64(seed))
        };
        (0..4000).map(draw).collect()
    }

    /// Checks that all draws lie in the range, and that every tenth of the range gets its share of them.
    #[track_caller]
    fn check_spread(draws: &[Duration], from: Duration, to: Duration) {
        let mut tenths = [0_u32; 10];
        for draw in draws {
            assert!(!draw.is_zero() && *draw >= from && *draw <= to, "{draw:?} outside {from:?}..{to:?}");
            let place = (*draw - from).as_secs_f64() / (to - from).as_secs_f64();
            tenths[((place * 10.0) as usize).min(9)] += 1;
        }
        assert!(tenths.iter().all(|n| (300..=500).contains(n)), "{tenths:?}");
    }

    #[test]
    fn the_first_retry_is_spread_over_a_fifth_of_a_second_or_a_whole_one() {
        check_spread(&crowd(0, Scope::Individual, None), Duration::ZERO, SECOND / 5);
        check_spread(&crowd(0, Scope::Shared, None), Duration::ZERO, SECOND);
    }

    #[test]
    fn later_retries_are_spread_below_a_ceiling_that_doubles_up_to_the_cap() {
        let attempts = [(1, SECOND / 2), (2, SECOND), (5, 8 * SECOND), (6, 16 * SECOND), (7, 30 * SECOND)];
        for (before, ceiling) in attempts {
            check_spread(&crowd(before, Scope::Individual, None), ceiling / 2, ceiling);
            check_spread(&crowd(before, Scope::Shared, None), Duration::ZERO, ceiling);
        }
    }

    /// In other implementations the doubling overflowed into no delay, a panic, or the same delay for all.
    #[test]
    fn an_outage_of_days_neither_overflows_nor_loses_its_jitter() {
        for before in [31, 32, 33, 50, 62, 63, 64, 65, 1_015, 2_000, u32::MAX - 1, u32::MAX] {
            check_spread(&crowd(before, Scope::Individual, None), 15 * SECOND, 30 * SECOND);
            check_spread(&crowd(before, Scope::Shared, None), Duration::ZERO, 30 * SECOND);
        }
    }

    #[test]
    fn a_client_never_stops_waiting_between_attempts() {
        let (mut client, mut rng) = (backoff(), SmallRng::seed_from_u64(1));
        let total: Duration = (0..2000).map(|_| client.next_delay(Scope::Shared, None, &mut rng)).sum();
        assert_eq!(client.attempts(), 2000);
        assert!(total > 2000 * 14 * SECOND && total < 2000 * 16 * SECOND, "{total:?}");
        client.attempts = u32::MAX;
        client.next_delay(Scope::Shared, None, &mut rng);
        assert_eq!(client.attempts(), u32::MAX, "the count must not start again by wrapping");
    }

    /// Returns the count after one connection that was attached at a count of 5, lived for `life`, and made progress
    /// or not.
    fn count_after(config: BackoffConfig, lived: Duration, message_at: Option<Duration>) -> u32 {
        let mut client = Backoff { attempts: 5, ..Backoff::new(config) };
        let now = crate::origin();
        client.handle_connected(now);
        message_at.into_iter().for_each(|at| client.handle_progress(now + at));
        client.handle_lost(now + lived);
        client.attempts()
    }

    #[test]
    fn a_life_of_10_s_clears_the_count_and_so_does_a_message_after_2_s() {
        let (short, ms) = (BackoffConfig::default(), Duration::from_millis(1));
        let check = |lived, message_at, expected| assert_eq!(count_after(short, lived, message_at), expected);
        check(10 * SECOND, None, 0);
        check(10 * SECOND - ms, None, 5);
        check(3 * SECOND, Some(2 * SECOND), 0);
        check(3 * SECOND, Some(2 * SECOND - ms), 5);
        let own = short.reset_after(60 * SECOND).unwrap();
        assert_eq!(count_after(own, 60 * SECOND, None), 0);
        assert_eq!(count_after(own, 59 * SECOND, Some(30 * SECOND)), 5, "what was asked for alone counts");
    }

    #[test]
    fn a_server_that_accepts_and_drops_is_not_hammered() {
        let (mut client, mut rng, mut now) = (backoff(), SmallRng::seed_from_u64(2), crate::origin());
        for attempt in 1..=5 {
            client.next_delay(Scope::Shared, None, &mut rng);
            client.handle_connected(now);
            now += SECOND;
            client.handle_progress(now);
            client.handle_lost(now);
            assert_eq!(client.attempts(), attempt);
        }
        client.handle_lost(now + 3600 * SECOND);
        assert_eq!(client.attempts(), 5, "a failed attempt is no life");
    }

    #[test]
    fn replacements_that_failed_do_not_count_once_the_connection_itself_is_lost() {
        let (mut client, mut rng, now) = (backoff(), SmallRng::seed_from_u64(3), crate::origin());
        client.next_delay(Scope::Shared, None, &mut rng);
        client.handle_connected(now);
        for _ in 0..6 {
            client.next_delay(Scope::Shared, None, &mut rng);
        }
        client.handle_lost(now + SECOND);
        assert_eq!(client.attempts(), 1);
    }

    #[test]
    fn the_servers_advice_wins_over_the_own_delay() {
        for before in [0, 5, u32::MAX] {
            let advice = Some(Advice { min: 40 * SECOND, max: 60 * SECOND });
            check_spread(&crowd(before, Scope::Individual, advice), 40 * SECOND, 60 * SECOND);
        }
    }

    #[test]
    fn advice_that_names_one_moment_does_not_gather_the_crowd_there() {
        let at = |seconds| Some(Advice { min: seconds * SECOND, max: seconds * SECOND });
        check_spread(&crowd(0, Scope::Shared, at(0)), Duration::ZERO, SECOND);
        check_spread(&crowd(0, Scope::Shared, at(5)), 5 * SECOND, 6 * SECOND);
        check_spread(&crowd(0, Scope::Shared, at(120)), 120 * SECOND, 132 * SECOND);
    }

    #[test]
    fn a_hostile_server_delays_a_client_by_at_most_ten_minutes() {
        let for_ever = Some(Advice { min: Duration::MAX, max: Duration::MAX });
        check_spread(&crowd(0, Scope::Shared, for_ever), 540 * SECOND, LONGEST_ADVICE);
        let upside_down = Some(Advice { min: Duration::MAX, max: Duration::ZERO });
        check_spread(&crowd(0, Scope::Shared, upside_down), 540 * SECOND, LONGEST_ADVICE);
        let wide = Some(Advice { min: Duration::ZERO, max: Duration::MAX });
        check_spread(&crowd(0, Scope::Shared, wide), Duration::ZERO, LONGEST_ADVICE);
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let check = |config: BackoffConfig| config.checked().map_err(|error| error.field).err();
        let good = BackoffConfig::default();
        assert_eq!(check(good), None);
        assert_eq!(check(BackoffConfig { base: Duration::ZERO, ..good }), Some("backoff.base"));
        assert_eq!(check(BackoffConfig { base: 31 * SECOND, ..good }), Some("backoff.base"));
        assert_eq!(check(BackoffConfig { cap: Duration::MAX, ..good }), Some("backoff.cap"));
        let first_individual = Duration::ZERO;
        assert_eq!(check(BackoffConfig { first_individual, ..good }), Some("backoff.first_individual"));
        assert_eq!(check(BackoffConfig { first_shared: 31 * SECOND, ..good }), Some("backoff.first_shared"));
        assert_eq!(check(BackoffConfig { reset_after: Some(SECOND), ..good }), Some("backoff.reset_after"));
    }

    proptest! {
        #[test]
        fn no_wait_is_zero_or_above_its_bound(
            base in 1_u64..3_600_000, cap in 1_u64..=3_600_000, before: u32, seed: u64, shared: bool,
            advice in proptest::option::of((any::<u64>(), any::<u64>())),
        ) {
            let ms = Duration::from_millis;
            let (base, cap) = (ms(base.min(cap)), ms(cap));
            let config = BackoffConfig { base, cap, first_individual: base, first_shared: cap, ..Default::default() };
            let mut client = Backoff { attempts: before, ..Backoff::new(config) };
            let advice = advice.map(|(min, max)| Advice { min: ms(min), max: ms(max) });
            let cause = if shared { Scope::Shared } else { Scope::Individual };
            let wait = client.next_delay(cause, advice, &mut SmallRng::seed_from_u64(seed));
            prop_assert!(wait >= SHORTEST);
            let bound = advice.map_or(cap, |_| LONGEST_ADVICE);
            prop_assert!(wait <= bound, "{wait:?}");
        }
    }
}
