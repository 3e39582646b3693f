//! How fast a connection may send.
//!
//! What arrives is paid over time: each message and each byte costs the part of a second that its limit says. A peer
//! may be ahead by a *burst* of time. If it is further ahead, its connection is not read until it is ahead by the burst
//! again: nothing is lost, and TCP holds the peer back. A peer that is held back for the whole *patience*, without
//! having paid everything in between, is not going to slow down, and its connection is closed.
//!
//! There is no timer: two times are kept, and the driver asks after each read.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

/// How fast a connection may send. Default: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThrottleConfig {
    /// Application messages a second. Default: no limit.
    pub messages: Option<NonZeroU32>,
    /// Bytes of their payloads a second. Default: no limit.
    pub bytes: Option<NonZeroU64>,
    /// How far a peer may be ahead. Default: 5 s, so that 1,000 messages a second allow 5,000 at once.
    pub burst: Duration,
    /// How long a peer may be held back before its connection is closed; `None`: for ever. Default: 1 minute.
    pub patience: Option<Duration>,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        let patience = Some(Duration::from_secs(60));
        Self { messages: None, bytes: None, burst: Duration::from_secs(5), patience }
    }
}

/// What one connection has sent; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    config: ThrottleConfig,
    /// When everything that arrived is paid, by messages and by bytes; `None`: it is.
    paid: Option<Instant>,
    messages_paid: Option<Instant>,
    /// Since when the peer is held back without having paid everything in between.
    held_back: Option<Instant>,
}

/// What to do with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Read on.
    Read,
    /// Read nothing before this time.
    Pause(Instant),
    /// Close the connection: its peer does not slow down.
    Close,
}

impl Throttle {
    /// Creates the account of a connection that has sent nothing; `None` without a limit.
    #[must_use]
    pub fn new(config: ThrottleConfig) -> Option<Self> {
        let is_limited = config.messages.is_some() || config.bytes.is_some();
        is_limited.then_some(Self { config, paid: None, messages_paid: None, held_back: None })
    }

    /// Returns how many messages one read may bring, so that a buffer full of tiny messages does not pause the connection
    /// for long: those of a burst, and at least one.
    #[must_use]
    pub fn messages_per_read(&self) -> u64 {
        let of_burst = |rate: NonZeroU32| (self.config.burst.as_secs_f64() * f64::from(rate.get())) as u64;
        self.config.messages.map_or(u64::MAX, |rate| of_burst(rate).max(1))
    }

    /// Notes what arrived in one read.
    pub fn spend(&mut self, now: Instant, messages: u64, bytes: u64) {
        if self.messages_paid.max(self.paid).is_none_or(|paid| paid <= now) {
            self.held_back = None;
        }
        let ConfigLimits { messages: per_message, bytes: per_byte } = ConfigLimits::of(&self.config);
        if let Some(cost) = per_message {
            self.messages_paid = Some(after(self.messages_paid, now, cost.of(messages)));
        }
        if let Some(cost) = per_byte {
            self.paid = Some(after(self.paid, now, cost.of(bytes)));
        }
    }

    /// Returns whether to read now.
    pub fn pace(&mut self, now: Instant) -> Pace {
        let Some(paid) = self.messages_paid.max(self.paid) else { return Pace::Read };
        if paid.saturating_duration_since(now) <= self.config.burst {
            return Pace::Read;
        }
        let since = *self.held_back.get_or_insert(now);
        match self.config.patience {
            Some(patience) if now.saturating_duration_since(since) >= patience => Pace::Close,
            _ => Pace::Pause(paid.checked_sub(self.config.burst).unwrap_or(paid)),
        }
    }
}

/// The costs of a message and of a byte.
struct ConfigLimits {
    messages: Option<Cost>,
    bytes: Option<Cost>,
}

impl ConfigLimits {
    fn of(config: &ThrottleConfig) -> Self {
        Self {
            messages: config.messages.map(|rate| Cost { rate: u64::from(rate.get()) }),
            bytes: config.bytes.map(|rate| Cost { rate: rate.get() }),
        }
    }
}

/// The time that one unit costs: a second divided by the rate.
struct Cost {
    rate: u64,
}

impl Cost {
    fn of(&self, count: u64) -> Duration {
        let nanos = u128::from(count) * 1_000_000_000 / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(LONGEST)
    }
}

/// No single read costs more: a message of 1 GiB at a byte a second pauses its peer for a day.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

fn after(paid: Option<Instant>, now: Instant, cost: Duration) -> Instant {
    paid.map_or(now, |paid| paid.max(now)) + cost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;

    fn limited(messages: u32, bytes: u64) -> ThrottleConfig {
        ThrottleConfig {
            messages: NonZeroU32::new(messages),
            bytes: NonZeroU64::new(bytes),
            ..ThrottleConfig::default()
        }
    }

    /// Sends reads of 10 messages of 100 bytes as fast as it may, for this long. Returns how many messages passed, and
    /// whether the connection was closed.
    fn send(config: ThrottleConfig, seconds: u64) -> (u64, bool) {
        let (start, mut throttle) = (origin(), Throttle::new(config).unwrap());
        let (mut now, mut passed) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            match throttle.pace(now) {
                Pace::Read => {
                    throttle.spend(now, 10, 1000);
                    passed += 10;
                }
                Pace::Pause(until) => {
                    assert!(until > now);
                    now = until;
                }
                Pace::Close => return (passed, true),
            }
        }
        (passed, false)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        for (config, expected) in [(limited(1000, 0), 15_000), (limited(0, 100_000), 15_000)] {
            let (passed, closed) = send(config, 10);
            assert!((expected..=expected + 20).contains(&passed) && !closed, "{passed}");
        }
        let (passed, _) = send(limited(1000, 10_000), 10);
        assert!((1500..=1520).contains(&passed), "the lower limit counts: {passed}");
    }

    #[test]
    fn a_peer_that_does_not_slow_down_is_closed_after_the_patience() {
        let (passed, closed) = send(limited(1000, 0), 1000);
        assert!(closed && (64_000..=66_020).contains(&passed), "{passed}");
        let patient = ThrottleConfig { patience: None, ..limited(1000, 0) };
        assert!(!send(patient, 1000).1);
    }

    #[test]
    fn a_peer_that_pays_everything_in_between_is_never_closed() {
        let (mut now, mut throttle) = (origin(), Throttle::new(limited(10, 0)).unwrap());
        for _ in 0..1000 {
            throttle.spend(now, 100, 0);
            assert!(matches!(throttle.pace(now), Pace::Pause(_)));
            now += Duration::from_secs(5);
            assert_eq!(throttle.pace(now), Pace::Read);
            now += Duration::from_secs(5);
        }
    }

    #[test]
    fn a_peer_below_its_rate_is_never_held_back() {
        let (mut now, mut throttle) = (origin(), Throttle::new(limited(10, 1000)).unwrap());
        for _ in 0..10_000 {
            assert_eq!(throttle.pace(now), Pace::Read);
            throttle.spend(now, 1, 100);
            now += Duration::from_millis(100);
        }
    }

    #[test]
    fn without_a_limit_there_is_no_account_and_a_huge_read_costs_at_most_a_day() {
        assert_eq!(Throttle::new(ThrottleConfig::default()), None);
        let (now, mut throttle) = (origin(), Throttle::new(limited(1, 1)).unwrap());
        throttle.spend(now, u64::MAX, u64::MAX);
        let Pace::Pause(until) = throttle.pace(now) else { panic!() };
        assert!(until - now <= LONGEST);
    }
}
