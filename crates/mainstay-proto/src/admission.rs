//! Which connections are admitted: a maximum in total, and a maximum from one address.
//!
//! An IPv6 address counts by its /64, which one subscriber gets. A connection over the limit gets a response, so that
//! honest clients know when to retry. The number of responses in progress is bounded too; a connection above that
//! bound is dropped.
//!
//! A connection over the limit of its address may be that of a client that resumes its session, and whose lost
//! connection still counts. So as many connections again are read until that shows: [`Admitted::Resume`].
//!
//! This is decided when a connection is accepted, before a byte is read. [`Openings`] decide when its request asks for a
//! WebSocket: by then the address of a client behind proxies is known, and perhaps its principal.

mod meter;
mod openings;
mod pace;

pub use self::openings::{Opener, OpeningConfig, Openings, Place};
pub use self::pace::AcceptRate;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Limits on concurrent connections; 0 rejects all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AdmissionConfig {
    /// The limit in total. Default: none.
    pub connections: Option<usize>,
    /// The limit for one IPv4 address or one /64 of IPv6. Default: none.
    pub per_address: Option<usize>,
}

/// Maximum number of refusals in progress. An eighth of the limit if that is less, but at least 8: refusals need file
/// descriptors, too.
const REFUSING: usize = 256;
/// The longest `Retry-After` of a refusal; drawn uniformly, so that refused clients do not return at once.
const LONGEST_WAIT: u64 = 10;
/// How many connections over its limit an address may have in any case, to resume sessions.
const FEWEST_RESUMES: usize = 8;

/// The counts of admitted connections; the module describes them.
#[derive(Debug)]
pub struct Admission {
    config: AdmissionConfig,
    admitted: usize,
    refusing: usize,
    per_address: HashMap<Source, usize>,
    rng: StdRng,
}

/// What one subscriber has: an IPv4 address, a /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(u64);

/// The verdict on a connection that was just accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Admit it. Call [`leave`](Admission::leave) with the same address when it is gone.
    Yes,
    /// Admit it to resume a session; answer any other request as for [`No`](Self::No). Call
    /// [`leave`](Admission::leave) with the same address when it is gone.
    Resume(Refused, Duration),
    /// Answer it with a refusal and this `Retry-After`. Call [`refused`](Admission::refused) when that is done.
    No(Refused, Duration),
    /// Drop it without an answer.
    Dropped(Refused),
}

/// The limit that a connection exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The limit in total.
    Full,
    /// The limit for one address.
    Address,
    /// The limit for one principal.
    Principal,
    /// The opening handshakes a minute of one address.
    AddressRate,
    /// The opening handshakes a minute of one principal.
    PrincipalRate,
    /// The clients a second of all.
    Rate,
}

impl Refused {
    /// Whether the client alone is concerned, and not the server.
    #[must_use]
    pub fn is_of_client(self) -> bool {
        !matches!(self, Self::Full | Self::Rate)
    }
}

impl Admission {
    /// Creates the counts, without any connection. `seed` draws the waits of refused clients.
    #[must_use]
    pub fn new(config: AdmissionConfig, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { config, admitted: 0, refusing: 0, per_address: HashMap::new(), rng }
    }

    /// Counts a connection that was just accepted, and returns the verdict.
    pub fn arrive(&mut self, address: IpAddr) -> Admitted {
        self.arrive_beside(address, 0)
    }

    /// Like [`arrive`](Self::arrive), with `elsewhere` connections that were admitted and are counted elsewhere since
    /// they [left](Self::leave) here.
    pub fn arrive_beside(&mut self, address: IpAddr, others: usize) -> Admitted {
        if self.config.connections.is_some_and(|limit| self.admitted + others >= limit) {
            return self.refuse(Refused::Full);
        }
        let mut admitted = Admitted::Yes;
        if let Some(limit) = self.config.per_address {
            let there = self.per_address.get(&Source::of(address)).copied().unwrap_or(0);
            if there >= limit.saturating_add(limit.max(FEWEST_RESUMES)) {
                return self.refuse(Refused::Address);
            }
            if there >= limit {
                admitted = Admitted::Resume(Refused::Address, self.draw_wait());
            }
            self.per_address.insert(Source::of(address), there + 1);
        }
        self.admitted += 1;
        admitted
    }

    /// Counts a connection that was just accepted in total only, because its clients are not known yet: that of a proxy.
    /// When it is gone, call [`leave_total`](Self::leave_total).
    pub fn arrive_in_total(&mut self, others: usize) -> Admitted {
        if self.config.connections.is_some_and(|limit| self.admitted + others >= limit) {
            return self.refuse(Refused::Full);
        }
        self.admitted += 1;
        Admitted::Yes
    }

    /// A connection is gone that counted in total only.
    pub fn leave_total(&mut self) {
        self.admitted = self.admitted.saturating_sub(1);
    }

    /// Changes the limits. Connections that are there stay, and count where they counted when they came.
    pub fn set_config(&mut self, config: AdmissionConfig) {
        self.config = config;
    }

    /// An admitted connection is gone.
    pub fn leave(&mut self, address: IpAddr) {
        self.admitted = self.admitted.saturating_sub(1);
        if let Entry::Occupied(mut there) = self.per_address.entry(Source::of(address)) {
            *there.get_mut() -= 1;
            if *there.get() == 0 {
                there.remove();
            }
        }
    }

    /// A refusal was written, or its connection is gone.
    pub fn refused(&mut self) {
        self.refusing = self.refusing.saturating_sub(1);
    }

    fn refuse(&mut self, why: Refused) -> Admitted {
        let eighth = self.config.connections.map_or(REFUSING, |limit| (limit / 8).max(8));
        if self.refusing >= REFUSING.min(eighth) {
            return Admitted::Dropped(why);
        }
        self.refusing += 1;
        Admitted::No(why, self.draw_wait())
    }

    fn draw_wait(&mut self) -> Duration {
        Duration::from_secs(self.rng.random_range(1..=LONGEST_WAIT))
    }
}

impl Source {
    /// Returns the source of a connection from `address`. An IPv4 address that is mapped into IPv6 counts as the IPv4
    /// address; otherwise a single /64 would contain all of them.
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
        matches!(admitted, Admitted::No(reason, _) | Admitted::Resume(reason, _) if reason == why)
    }

    #[test]
    fn without_limits_every_connection_is_admitted_and_nothing_is_remembered() {
        let mut admission = admission(None, None);
        assert!((0..10_000).all(|_| admission.arrive(ip("10.0.0.1")) == Admitted::Yes));
        assert!(admission.per_address.is_empty());
    }

    #[test]
    fn a_connection_that_leaves_makes_room_for_the_next() {
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
        (0..4).for_each(|_| admission.leave(ip("10.0.0.1")));
        admission.leave(ip("10.0.0.2"));
        assert!(admission.per_address.is_empty());
    }

    #[test]
    fn an_address_at_its_limit_may_have_as_many_connections_again_that_only_resume() {
        for (limit, resumes) in [(0, 8), (2, 8), (20, 20)] {
            let mut admission = admission(None, Some(limit));
            let arrived: Vec<_> =
                (0..limit + resumes + 1).map(|_| admission.arrive(ip("10.0.0.1"))).collect();
            assert!(arrived[..limit].iter().all(|admitted| *admitted == Admitted::Yes));
            let over = &arrived[limit..limit + resumes];
            assert!(over.iter().all(|admitted| matches!(admitted, Admitted::Resume(Refused::Address, _))));
            assert!(matches!(arrived[limit + resumes], Admitted::No(Refused::Address, _)));
            assert_eq!(admission.arrive(ip("10.0.0.2")) == Admitted::Yes, limit > 0);
        }
    }

    #[test]
    fn a_connection_of_a_proxy_counts_in_total_alone() {
        let mut admission = admission(Some(3), Some(1));
        assert_eq!(admission.arrive_in_total(0), Admitted::Yes);
        assert_eq!(admission.arrive_in_total(1), Admitted::Yes);
        assert!(is_refused(admission.arrive_in_total(1), Refused::Full));
        admission.leave_total();
        assert_eq!(admission.arrive(ip("10.0.0.1")), Admitted::Yes);
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
        let limit = 8 * REFUSING;
        let mut admission = admission(Some(limit), None);
        (0..limit).for_each(|_| assert_eq!(admission.arrive(ip("10.0.0.1")), Admitted::Yes));
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
    #[test]
    fn those_that_are_counted_elsewhere_have_their_places() {
        let mut admission = admission(Some(3), None);
        assert_eq!(admission.arrive_beside(ip("10.0.0.1"), 2), Admitted::Yes);
        assert!(is_refused(admission.arrive_beside(ip("10.0.0.1"), 2), Refused::Full));
        admission.leave(ip("10.0.0.1"));
        assert!(is_refused(admission.arrive_beside(ip("10.0.0.1"), 3), Refused::Full));
        assert_eq!(admission.arrive_beside(ip("10.0.0.1"), 2), Admitted::Yes);
    }

    #[test]
    fn refusals_use_at_most_an_eighth_of_the_places_and_a_few_in_any_case() {
        for (limit, refusing) in [(0, 8), (64, 8), (160, 20), (100_000, REFUSING)] {
            let mut admission = admission(Some(limit), None);
            let arrived = (0..limit + 2 * REFUSING).map(|_| admission.arrive(ip("10.0.0.1")));
            let answered = arrived.filter(|admitted| matches!(admitted, Admitted::No(..))).count();
            assert_eq!(answered, refusing, "{limit}");
        }
    }
}
