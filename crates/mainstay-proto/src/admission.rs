//! Who may connect: so many at a time altogether, and so many from one address.
//!
//! An address of IPv6 counts by its /64, which is what one subscriber gets. Who is one too many is answered, so that
//! honest clients learn when to come back; how many are being answered at a time is bounded too, and whoever comes
//! above that is dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How many may be there at a time. 0 is nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AdmissionConfig {
    /// Altogether. Default: no limit.
    pub connections: Option<usize>,
    /// From one address of IPv4 or one /64 of IPv6. Default: no limit.
    pub per_address: Option<usize>,
}

/// Refusals that are being written at a time.
const REFUSING: usize = 256;
/// A client that was refused is asked to wait for this at most; uniform, so that a crowd does not come back at once.
const LONGEST_WAIT: u64 = 10;

/// See the module.
#[derive(Debug)]
pub struct Admission {
    config: AdmissionConfig,
    admitted: usize,
    refusing: usize,
    per_address: HashMap<Source, usize>,
    rng: StdRng,
}

/// What one subscriber has: an address of IPv4, a /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(u64);

/// What becomes of a connection that was just accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It may go on. Call [`leave`](Admission::leave) with the same address when it is gone.
    Yes,
    /// Answer it with 503 and how long to wait. Call [`refused`](Admission::refused) when that is done.
    No(Refused, Duration),
    /// Drop it.
    Dropped(Refused),
}

/// Which limit a connection is above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// All that may connect have.
    Full,
    /// All that may connect from its address have.
    Address,
}

impl Admission {
    /// Nobody is there yet. `seed` draws the waits of those who are refused.
    #[must_use]
    pub fn new(config: AdmissionConfig, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { config, admitted: 0, refusing: 0, per_address: HashMap::new(), rng }
    }

    /// Somebody connected.
    pub fn arrive(&mut self, address: IpAddr) -> Admitted {
        if self.config.connections.is_some_and(|limit| self.admitted >= limit) {
            return self.refuse(Refused::Full);
        }
        if let Some(limit) = self.config.per_address {
            let there = self.per_address.get(&Source::of(address)).copied().unwrap_or(0);
            if there >= limit {
                return self.refuse(Refused::Address);
            }
            self.per_address.insert(Source::of(address), there + 1);
        }
        self.admitted += 1;
        Admitted::Yes
    }

    /// Somebody who was admitted is gone.
    pub fn leave(&mut self, address: IpAddr) {
        self.admitted = self.admitted.saturating_sub(1);
        if let Entry::Occupied(mut there) = self.per_address.entry(Source::of(address)) {
            *there.get_mut() -= 1;
            if *there.get() == 0 {
                there.remove();
            }
        }
    }

    /// A refusal was written, or given up.
    pub fn refused(&mut self) {
        self.refusing = self.refusing.saturating_sub(1);
    }

    fn refuse(&mut self, why: Refused) -> Admitted {
        if self.refusing >= REFUSING {
            return Admitted::Dropped(why);
        }
        self.refusing += 1;
        Admitted::No(why, Duration::from_secs(self.rng.random_range(1..=LONGEST_WAIT)))
    }
}

impl Source {
    /// The source of a connection from `address`. An IPv4 address mapped into IPv6 is that address, else a /64 would
    /// hold all of them.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.to_bits().into()),
            // The highest 64 bits; shifted, they fit.
            IpAddr::V6(address) => Self((address.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: Option<usize>, per_address: Option<usize>) -> Admission {
        Admission::new(AdmissionConfig { connections, per_address }, 7)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_refused(admitted: Admitted, why: Refused) -> bool {
        matches!(admitted, Admitted::No(reason, _) if reason == why)
    }

    #[test]
    fn without_limits_everybody_comes_in_and_nothing_is_remembered() {
        let mut admission = admission(None, None);
        assert!((0..10_000).all(|_| admission.arrive(ip("10.0.0.1")) == Admitted::Yes));
        assert!(admission.per_address.is_empty());
    }

    #[test]
    fn whoever_leaves_makes_room_for_the_next() {
        let mut admission = admission(Some(2), None);
        assert_eq!(admission.arrive(ip("10.0.0.1")), Admitted::Yes);
        assert_eq!(admission.arrive(ip("10.0.0.2")), Admitted::Yes);
        assert!(is_refused(admission.arrive(ip("10.0.0.3")), Refused::Full));
        admission.leave(ip("10.0.0.1"));
        assert_eq!(admission.arrive(ip("10.0.0.3")), Admitted::Yes);
    }

    #[test]
    fn one_address_cannot_keep_others_out() {
        let mut admission = admission(None, Some(2));
        for _ in 0..2 {
            assert_eq!(admission.arrive(ip("10.0.0.1")), Admitted::Yes);
        }
        assert!(is_refused(admission.arrive(ip("10.0.0.1")), Refused::Address));
        assert!(is_refused(admission.arrive(ip("::ffff:10.0.0.1")), Refused::Address));
        assert_eq!(admission.arrive(ip("10.0.0.2")), Admitted::Yes);
        (0..2).for_each(|_| admission.leave(ip("10.0.0.1")));
        admission.leave(ip("10.0.0.2"));
        assert!(admission.per_address.is_empty());
    }

    #[test]
    fn a_subscribers_64_bits_of_ipv6_are_one_address() {
        let mut admission = admission(None, Some(1));
        assert_eq!(admission.arrive(ip("2001:db8:1:2::1")), Admitted::Yes);
        assert!(is_refused(admission.arrive(ip("2001:db8:1:2:ffff::9")), Refused::Address));
        assert_eq!(admission.arrive(ip("2001:db8:1:3::1")), Admitted::Yes);
    }

    #[test]
    fn refusals_are_spread_over_seconds_and_bounded_in_number() {
        let mut admission = admission(Some(0), None);
        let mut waits = [0; 11];
        for _ in 0..REFUSING {
            let Admitted::No(Refused::Full, wait) = admission.arrive(ip("10.0.0.1")) else { panic!() };
            waits[usize::try_from(wait.as_secs()).unwrap()] += 1;
        }
        assert!(waits[0] == 0 && waits[1..].iter().all(|count| *count > 0), "{waits:?}");
        assert_eq!(admission.arrive(ip("10.0.0.1")), Admitted::Dropped(Refused::Full));
        admission.refused();
        assert!(is_refused(admission.arrive(ip("10.0.0.1")), Refused::Full));
    }
}
