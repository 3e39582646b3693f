//! Which clients may open a WebSocket: so many at a time and so many a minute, by address and by principal, and so many a
//! second altogether.
//!
//! A client that resumes its session is refused by the rate of all clients only: it has had its place, and the
//! connection that it lost may still hold it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::meter::Meter;
use super::pace::{AcceptRate, Pace};
use super::{LONGEST_WAIT, Refused, Source};
use crate::session::message::Delay;

/// Limits on opening WebSockets; 0 open ones reject all. Default: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct OpeningConfig {
    /// Open WebSockets. Default: no limit.
    pub connections: Option<usize>,
    /// Open WebSockets of one IPv4 address or one /64 of IPv6. Default: no limit.
    pub connections_per_address: Option<usize>,
    /// Open WebSockets of one principal. Anonymous clients do not count. Default: no limit.
    pub connections_per_principal: Option<usize>,
    /// Opening handshakes a minute of one IPv4 address or one /64 of IPv6; as many may come at once. Resumes do not
    /// count. Default: no limit.
    pub per_address: Option<NonZeroU32>,
    /// Opening handshakes a minute of one principal; as many may come at once. Resumes do not count. Default: no limit.
    pub per_principal: Option<NonZeroU32>,
    /// New clients a second. Resumes have four times this rate for themselves. Default: no limit.
    pub rate: AcceptRate,
}

/// A client that opens a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opener<'a> {
    /// Where it comes from, if that is known.
    pub source: Option<Source>,
    /// The client's name by its credentials; empty: anonymous.
    pub principal: &'a [u8],
}

/// What an open WebSocket counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    source: Option<Source>,
    principal: Option<u64>,
}

/// The open WebSockets and the opening handshakes; the module describes it.
#[derive(Debug)]
pub struct Openings {
    config: OpeningConfig,
    /// Hashes principals, and decides where the meters keep a key: a client must not know it.
    seed: u64,
    open: usize,
    by_address: HashMap<Source, usize>,
    by_principal: HashMap<u64, usize>,
    address_meter: Option<Meter>,
    principal_meter: Option<Meter>,
    pace: Pace,
}

/// When a client may try again that was refused because too many WebSockets are open.
const LATER: Delay = Delay { min: Duration::from_secs(1), max: Duration::from_secs(LONGEST_WAIT) };

impl Openings {
    /// Creates the counts, without any WebSocket. `seed` is a secret.
    #[must_use]
    pub fn new(config: OpeningConfig, seed: u64, now: Instant) -> Self {
        let mut openings = Self {
            config,
            seed,
            open: 0,
            by_address: HashMap::new(),
            by_principal: HashMap::new(),
            address_meter: None,
            principal_meter: None,
            pace: Pace::new(config.rate, now),
        };
        openings.set_meters(now);
        openings
    }

    /// Changes the limits. Open WebSockets stay, and count where they counted when they were opened.
    pub fn set_config(&mut self, config: OpeningConfig, now: Instant) {
        if config.rate != self.config.rate {
            self.pace = Pace::new(config.rate, now);
        }
        self.config = config;
        self.set_meters(now);
    }

    fn set_meters(&mut self, now: Instant) {
        let set = |meter: &mut Option<Meter>, limit: Option<NonZeroU32>| match (meter, limit) {
            (meter, None) => *meter = None,
            (Some(meter), Some(limit)) => meter.set_limit(now, limit),
            (none, Some(limit)) => *none = Some(Meter::new(limit, self.seed, now)),
        };
        set(&mut self.address_meter, self.config.per_address);
        set(&mut self.principal_meter, self.config.per_principal);
    }

    /// Returns whether a client may open a WebSocket now. Call [`open`](Self::open) if it does, and
    /// [`refuse`](Self::refuse) if it is refused.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub fn judge(&self, now: Instant, opener: Opener<'_>) -> Result<(), Refused> {
        let principal = self.key(opener.principal);
        let open = |count: Option<&usize>, limit: Option<usize>| {
            limit.is_some_and(|limit| count.copied().unwrap_or(0) >= limit)
        };
        let by_address = opener.source.and_then(|source| self.by_address.get(&source));
        let by_principal = principal.and_then(|principal| self.by_principal.get(&principal));
        let waits = |meter: &Option<Meter>, key: Option<u64>| {
            key.zip(meter.as_ref()).is_some_and(|(key, meter)| meter.wait(now, key).is_some())
        };
        let config = &self.config;
        match () {
            () if open(Some(&self.open), config.connections) => Err(Refused::Full),
            () if opener.source.is_some() && open(by_address, config.connections_per_address) => {
                Err(Refused::Address)
            }
            () if principal.is_some() && open(by_principal, config.connections_per_principal) => {
                Err(Refused::Principal)
            }
            () if waits(&self.address_meter, opener.source.map(|source| source.0)) => {
                Err(Refused::AddressRate)
            }
            () if waits(&self.principal_meter, principal) => Err(Refused::PrincipalRate),
            () if !self.pace.admits_new(now) => Err(Refused::Rate),
            () => Ok(()),
        }
    }

    /// Returns whether a client may ask for its session now.
    ///
    /// # Errors
    /// Too many do.
    pub fn judge_resume(&self, now: Instant) -> Result<(), Refused> {
        if self.pace.admits_resume(now) { Ok(()) } else { Err(Refused::Rate) }
    }

    /// A new client opened a WebSocket, for which [`enter`](Self::enter) is called too.
    pub fn open(&mut self, now: Instant, opener: Opener<'_>) {
        let principal = self.key(opener.principal);
        let spend = |meter: &mut Option<Meter>, key: Option<u64>| {
            if let Some((key, meter)) = key.zip(meter.as_mut()) {
                meter.spend(now, key);
            }
        };
        spend(&mut self.address_meter, opener.source.map(|source| source.0));
        spend(&mut self.principal_meter, principal);
        self.pace.spend_new(now);
    }

    /// A client that asks for its session passed.
    pub fn open_resume(&mut self, now: Instant) {
        self.pace.spend_resume(now);
    }

    /// Counts a WebSocket that is open from now on, of a new client or of one that resumed. Call
    /// [`leave`](Self::leave) with its place when it is gone.
    #[must_use]
    pub fn enter(&mut self, opener: Opener<'_>) -> Place {
        let source = opener.source.filter(|_| self.config.connections_per_address.is_some());
        let principal =
            self.key(opener.principal).filter(|_| self.config.connections_per_principal.is_some());
        self.open += 1;
        source.into_iter().for_each(|source| *self.by_address.entry(source).or_default() += 1);
        principal.into_iter().for_each(|principal| *self.by_principal.entry(principal).or_default() += 1);
        Place { source, principal }
    }

    /// A WebSocket is gone.
    pub fn leave(&mut self, place: Place) {
        self.open = self.open.saturating_sub(1);
        place.source.into_iter().for_each(|source| leave(self.by_address.entry(source)));
        place.principal.into_iter().for_each(|principal| leave(self.by_principal.entry(principal)));
    }

    /// A client was refused for this limit. Returns when it may try again.
    #[must_use]
    pub fn refuse(&mut self, now: Instant, why: Refused, opener: Opener<'_>) -> Delay {
        let principal = self.key(opener.principal);
        let metered = |meter: &Option<Meter>, key: Option<u64>| {
            key.zip(meter.as_ref()).and_then(|(key, meter)| meter.wait(now, key)).unwrap_or_default()
        };
        let min = match why {
            Refused::Full | Refused::Address | Refused::Principal => return LATER,
            Refused::AddressRate => metered(&self.address_meter, opener.source.map(|source| source.0)),
            Refused::PrincipalRate => metered(&self.principal_meter, principal),
            Refused::Rate => {
                let wait = self.pace.wait(now);
                self.pace.take_place(now);
                return Delay { min: wait, max: wait };
            }
        };
        // Several clients of one address must not come back at the same moment.
        Delay { min, max: min + (min / 4).max(Duration::from_secs(1)) }
    }

    /// An accepted connection was served for the first time, `waited` after it was accepted: what the measured rate is
    /// measured by.
    pub fn handle_served(&mut self, now: Instant, waited: Duration) {
        self.pace.handle_served(now, waited);
    }

    /// Returns the number of open WebSockets.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open
    }

    /// Returns how many new clients a second are accepted, as configured or measured; `None`: no limit.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.pace.rate()
    }

    fn key(&self, principal: &[u8]) -> Option<u64> {
        if principal.is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (self.seed, principal).hash(&mut hasher);
        Some(hasher.finish())
    }
}

fn leave<K>(entry: Entry<'_, K, usize>) {
    if let Entry::Occupied(mut there) = entry {
        *there.get_mut() -= 1;
        if *there.get() == 0 {
            there.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;

    fn from<'a>(address: &str, principal: &'a str) -> Opener<'a> {
        let source = Some(Source::of(address.parse().unwrap()));
        Opener { source, principal: principal.as_bytes() }
    }

    fn many(limit: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(limit)
    }

    /// Opens a WebSocket if that is allowed.
    fn open(now: Instant, openings: &mut Openings, opener: Opener<'_>) -> Result<Place, Refused> {
        openings.judge(now, opener)?;
        openings.open(now, opener);
        Ok(openings.enter(opener))
    }

    #[test]
    fn open_websockets_count_by_address_by_principal_and_altogether_until_they_leave() {
        let config = OpeningConfig {
            connections: Some(4),
            connections_per_address: Some(2),
            connections_per_principal: Some(1),
            ..OpeningConfig::default()
        };
        let now = origin();
        let mut openings = Openings::new(config, 1, now);
        let first = open(now, &mut openings, from("2001:db8::1", "ann")).unwrap();
        assert_eq!(open(now, &mut openings, from("10.0.0.1", "ann")), Err(Refused::Principal));
        let second = open(now, &mut openings, from("2001:db8::2", "")).unwrap();
        assert_eq!(open(now, &mut openings, from("2001:db8::3", "")), Err(Refused::Address));
        let third = open(now, &mut openings, from("10.0.0.1", "")).unwrap();
        let fourth = open(now, &mut openings, from("10.0.0.2", "")).unwrap();
        assert_eq!(open(now, &mut openings, from("10.0.0.3", "")), Err(Refused::Full));
        [first, second, third, fourth].into_iter().for_each(|place| openings.leave(place));
        assert_eq!(openings.connections(), 0);
        assert!(openings.by_address.is_empty() && openings.by_principal.is_empty());
        assert!(open(now, &mut openings, from("2001:db8::3", "ann")).is_ok());
    }

    #[test]
    fn a_resumed_connection_counts_and_is_never_refused_for_its_address() {
        let config = OpeningConfig {
            connections_per_address: Some(1),
            per_address: many(1),
            ..OpeningConfig::default()
        };
        let now = origin();
        let mut openings = Openings::new(config, 1, now);
        let opener = from("10.0.0.1", "");
        let lost = open(now, &mut openings, opener).unwrap();
        assert_eq!(openings.judge(now, opener), Err(Refused::Address));
        assert_eq!(openings.judge_resume(now), Ok(()));
        openings.open_resume(now);
        let back = openings.enter(opener);
        assert_eq!(openings.connections(), 2);
        openings.leave(lost);
        assert_eq!(openings.judge(now, opener), Err(Refused::Address));
        openings.leave(back);
        assert_eq!(openings.judge(now, opener), Err(Refused::AddressRate));
    }

    #[test]
    fn handshakes_count_by_address_and_principal_and_the_delay_ends_when_one_may_pass() {
        let config =
            OpeningConfig { per_address: many(6), per_principal: many(3), ..OpeningConfig::default() };
        let now = origin();
        let mut openings = Openings::new(config, 1, now);
        let ann = from("10.0.0.1", "ann");
        (0..3).for_each(|_| assert!(open(now, &mut openings, ann).is_ok()));
        assert_eq!(openings.judge(now, ann), Err(Refused::PrincipalRate));
        assert_eq!(openings.judge(now, from("10.0.0.2", "ann")), Err(Refused::PrincipalRate));
        assert_eq!(openings.refuse(now, Refused::PrincipalRate, ann).min.as_secs(), 20);
        (0..3).for_each(|_| assert!(open(now, &mut openings, from("10.0.0.1", "")).is_ok()));
        assert_eq!(openings.judge(now, from("10.0.0.1", "bob")), Err(Refused::AddressRate));
        let Delay { min, max } = openings.refuse(now, Refused::AddressRate, ann);
        assert_eq!((min.as_millis(), max.as_millis()), (10_000, 12_500));
        let later = now + min;
        assert_eq!(openings.judge(later, from("10.0.0.1", "bob")), Ok(()));
    }

    #[test]
    fn refused_clients_are_told_one_place_after_the_other() {
        let rate = AcceptRate::PerSecond(NonZeroU32::new(10).unwrap());
        let now = origin();
        let mut openings = Openings::new(OpeningConfig { rate, ..OpeningConfig::default() }, 1, now);
        let client = from("10.0.0.1", "");
        (0..10).for_each(|_| assert!(open(now, &mut openings, client).is_ok()));
        assert_eq!(openings.judge(now, client), Err(Refused::Rate));
        let waits: Vec<_> =
            (0..3).map(|_| openings.refuse(now, Refused::Rate, client).min.as_millis()).collect();
        assert_eq!(waits, [100, 200, 300]);
    }

    #[test]
    fn limits_change_while_connections_are_open() {
        let now = origin();
        let mut openings = Openings::new(OpeningConfig::default(), 1, now);
        let client = from("10.0.0.1", "ann");
        let before = open(now, &mut openings, client).unwrap();
        let config = OpeningConfig {
            connections_per_address: Some(1),
            per_address: many(100),
            ..OpeningConfig::default()
        };
        openings.set_config(config, now);
        // The one before was not counted by its address.
        let counted = open(now, &mut openings, client).unwrap();
        assert_eq!(open(now, &mut openings, client), Err(Refused::Address));
        openings.set_config(OpeningConfig::default(), now);
        assert!(open(now, &mut openings, client).is_ok());
        openings.leave(before);
        openings.leave(counted);
        assert!(openings.by_address.is_empty());
    }
}
