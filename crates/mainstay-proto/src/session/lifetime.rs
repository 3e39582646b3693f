//! When a connection has to end: it carried no message for the idle timeout, its lifetime has passed, or the credentials that
//! opened it have expired.
//!
//! All are off by default. An idle session ends, because no client would resume it. A connection that is too old
//! ends and its session stays: GOAWAY moves a client of `mainstay.v1` to a new connection, a plain peer gets 1012.
//! Lifetimes are jittered, so that connections made together do not end together. Where credentials expire, GOAWAY asks a
//! client of `mainstay.v1` to come back with others; a session whose client does not, and a plain peer at once, end with
//! 4501.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::message::Delay;
use crate::ConfigError;
use crate::due::earliest;

/// How long a connection may be idle, and how long it may live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LifetimeConfig {
    idle: Option<Duration>,
    lifetime: Option<Duration>,
}

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leave {
    /// No application message passed for the idle timeout, in either direction.
    Idle,
    /// Its lifetime has passed.
    Old,
    /// The credentials have expired, and the client is asked for others.
    Expiring,
    /// The credentials have expired, and the client presented no others in time.
    Unauthorized,
}

/// How long the credentials of a connection hold, from the verdict on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Expiry {
    /// The time until they expire.
    pub expires_in: Duration,
    /// How long after that a client of `mainstay.v1` may still present others. A plain peer has no way to do so.
    pub grace: Duration,
}

/// The delay in GOAWAY, over which clients spread.
pub(super) const GO_AWAY_WITHIN: Delay = Delay { min: Duration::ZERO, max: Duration::from_secs(5) };
/// A client that has not left by then is closed.
pub(super) const GONE_BY: Duration = Duration::from_secs(15);
pub(super) const IDLE: &str = "idle: no message for too long";
pub(super) const STILL_THERE: &str = "asked to leave, and still there";
pub(super) const OLD: &str = "this connection is old, come back with a new one";
pub(super) const EXPIRING: &str = "the credentials have expired, present others";
pub(super) const EXPIRED: &str = "the credentials have expired";

impl LifetimeConfig {
    /// Ends a connection that carried no application message for this long. Default: off. Range: 1 second to 1 week.
    ///
    /// # Errors
    /// The time is out of range.
    pub fn idle_timeout(self, idle: Duration) -> Result<Self, ConfigError> {
        in_range("idle_timeout", idle).map(|idle| Self { idle: Some(idle), ..self })
    }

    /// Drains a connection after this long, +-20 %. Default: off. Range: 1 second to 1 week.
    ///
    /// # Errors
    /// The time is out of range.
    pub fn max_lifetime(self, lifetime: Duration) -> Result<Self, ConfigError> {
        in_range("max_lifetime", lifetime).map(|lifetime| Self { lifetime: Some(lifetime), ..self })
    }
}

fn in_range(field: &'static str, time: Duration) -> Result<Duration, ConfigError> {
    let range = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);
    let bound = "between 1 second and 1 week";
    if range.contains(&time) { Ok(time) } else { Err(ConfigError { field, bound }) }
}

/// The times of one connection; the module describes them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lifetime {
    /// When the last message passed.
    spoke: Instant,
    idle: Option<Duration>,
    old_at: Option<Instant>,
    /// When the credentials expire, until the client was asked for others.
    expires_at: Option<Instant>,
    /// When the session ends, if the client has not presented others.
    unauthorized_at: Option<Instant>,
    /// A message is being written.
    writing: bool,
    /// What became due and was not polled, for metrics.
    left: Option<Leave>,
}

impl Lifetime {
    /// Returns `None` if neither time is limited: such a connection keeps no times.
    pub(super) fn new(now: Instant, config: &LifetimeConfig, rng: &mut impl Rng) -> Option<Box<Self>> {
        if *config == LifetimeConfig::default() {
            return None;
        }
        let old_at = config.lifetime.map(|lifetime| now + lifetime.mul_f64(rng.random_range(0.8..=1.2)));
        Some(Box::new(Self { idle: config.idle, old_at, ..Self::unlimited(now) }))
    }

    fn unlimited(now: Instant) -> Self {
        Self {
            spoke: now,
            idle: None,
            old_at: None,
            expires_at: None,
            unauthorized_at: None,
            writing: false,
            left: None,
        }
    }

    /// Sets how long the credentials hold; `None`: for as long as the connection. A time that no clock reaches is no limit.
    pub(super) fn set_expiry(lifetime: &mut Option<Box<Self>>, now: Instant, expiry: Option<Expiry>) {
        let expires_at = expiry.and_then(|expiry| now.checked_add(expiry.expires_in));
        if expires_at.is_none() && lifetime.is_none() {
            return;
        }
        let lifetime = lifetime.get_or_insert_with(|| Box::new(Self::unlimited(now)));
        lifetime.expires_at = expires_at;
        lifetime.unauthorized_at =
            expires_at.zip(expiry).and_then(|(at, expiry)| at.checked_add(expiry.grace));
    }

    /// An application message passed, in either direction.
    pub(super) fn handle_message(&mut self, now: Instant) {
        self.spoke = now;
    }

    /// Records a write where the caller has no `now`.
    pub(super) fn handle_writing(&mut self) {
        self.writing = true;
    }

    /// The socket accepted part of the write.
    pub(super) fn handle_progress(&mut self, now: Instant) {
        if std::mem::take(&mut self.writing) {
            self.handle_message(now);
        }
    }

    /// Returns what is due at `now`, once for each.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Leave> {
        let leave = if self.idle_at().is_some_and(|at| at <= now) {
            self.idle = None;
            Leave::Idle
        } else if self.old_at.take_if(|at| *at <= now).is_some() {
            Leave::Old
        } else if self.unauthorized_at.take_if(|at| *at <= now).is_some() {
            self.expires_at = None;
            Leave::Unauthorized
        } else {
            self.expires_at.take_if(|at| *at <= now).map(|_| Leave::Expiring)?
        };
        self.left = Some(leave);
        Some(leave)
    }

    /// Returns what became due since the last call.
    pub(super) fn poll_leave(&mut self) -> Option<Leave> {
        self.left.take()
    }

    /// Returns when the session ends for want of other credentials.
    pub(super) fn poll_unauthorized(&self) -> Option<Instant> {
        self.unauthorized_at
    }

    /// Returns when the next thing is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        earliest([self.idle_at(), self.old_at, self.expires_at, self.unauthorized_at])
    }

    fn idle_at(&self) -> Option<Instant> {
        self.idle.map(|idle| self.spoke + idle)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::origin;

    fn lifetime(config: LifetimeConfig, seed: u64) -> Option<Box<Lifetime>> {
        Lifetime::new(origin(), &config, &mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn without_limits_nothing_is_kept() {
        assert_eq!(lifetime(LifetimeConfig::default(), 1), None);
    }

    #[test]
    fn every_message_moves_the_idle_timeout() {
        let config = LifetimeConfig::default().idle_timeout(Duration::from_secs(10)).unwrap();
        let mut lifetime = lifetime(config, 1).unwrap();
        let start = lifetime.spoke;
        lifetime.handle_message(start + Duration::from_secs(7));
        assert_eq!(lifetime.handle_timeout(start + Duration::from_secs(16)), None);
        assert_eq!(lifetime.handle_timeout(start + Duration::from_secs(17)), Some(Leave::Idle));
        assert_eq!(lifetime.poll_timeout(), None, "it is said once");
    }

    #[test]
    fn lifetimes_of_connections_made_together_are_spread_by_a_fifth_each_way() {
        let config = LifetimeConfig::default().max_lifetime(Duration::from_secs(100)).unwrap();
        let ages: Vec<_> = (0..1000)
            .map(|seed| lifetime(config, seed).unwrap())
            .map(|lifetime| lifetime.poll_timeout().unwrap() - lifetime.spoke)
            .collect();
        let (first, last) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!((Duration::from_secs(80)..Duration::from_secs(82)).contains(first), "{first:?}");
        assert!((Duration::from_secs(118)..=Duration::from_secs(120)).contains(last), "{last:?}");
    }

    #[test]
    fn times_out_of_range_are_refused() {
        let config = LifetimeConfig::default();
        assert!(config.idle_timeout(Duration::from_millis(999)).is_err());
        assert!(config.max_lifetime(Duration::from_secs(8 * 24 * 3600)).is_err());
    }
}
