//! Which address of a backend with several is dialled next.
//!
//! This is a machine. Links, requests and probes report how their attempts ended; the choice of an address comes out, and the
//! ejections and returns to be logged.
//!
//! **Choice.** The address with the fewest uses (links, requests, attempts under way) in proportion to its share. Where the
//! backend needs stickiness, a client's key chooses instead, by rendezvous hashing: an address that fails moves only its own
//! clients, and every gateway with the same addresses chooses alike.
//!
//! **Failures.** After each failure in a row an address rests, for longer each time: others are preferred meanwhile. After
//! several it is *ejected*, again for longer each time, but no more addresses than a part of all: failures that all have in
//! common must not push the load to a few. An address that rests or is ejected is still used where no other is left.
//!
//! **Return.** An ejected address returns when its time is over, or earlier when a probe or a request succeeds that shows
//! what the failures did not: for failed connects a connection, otherwise a response. Its share of new uses then grows over
//! the slow start, or it would get every new link at once, because it has the fewest.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The longest rest after one failure. The first is [`PoolConfig::first_rest`], and each one doubles it.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// The share of new uses at the begin of a slow start, in thousandths.
const FIRST_SHARE: u64 = 100;
const WHOLE_SHARE: u64 = 1_000;

/// The settings of a pool, checked by the section of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolConfig {
    /// The failures in a row that eject an address.
    pub(crate) failures: u32,
    /// The rest after the first failure.
    pub(crate) first_rest: Duration,
    /// The time of the first ejection. It doubles with each ejection in a row.
    pub(crate) ejection: Duration,
    pub(crate) longest_ejection: Duration,
    /// The part of all addresses that may be ejected at a time, in percent; at least one address of several may.
    pub(crate) max_ejected: u8,
    pub(crate) slow_start: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            failures: 3,
            first_rest: Duration::from_millis(100),
            ejection: Duration::from_secs(10),
            longest_ejection: Duration::from_secs(300),
            max_ejected: 50,
            slow_start: Duration::from_secs(10),
        }
    }
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No connection was opened.
    Connect,
    /// The address was reached and did not respond, or not properly.
    Response,
}

/// What is to be logged and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PoolEvent {
    /// An address was ejected for this time, after so many failures in a row.
    Ejected { address: usize, within: Duration, failures: u32 },
    /// It returned.
    Returned { address: usize, after: Duration },
}

impl PoolEvent {
    pub(crate) fn address(self) -> usize {
        match self {
            Self::Ejected { address, .. } | Self::Returned { address, .. } => address,
        }
    }
}

/// Writes an event to the log.
pub(crate) fn log(event: PoolEvent, address: Option<&str>) {
    match event {
        PoolEvent::Ejected { within, failures, .. } => {
            let seconds = within.as_secs_f64();
            tracing::warn!(address, failures, seconds, "an address of the backend is not used for a while");
        }
        PoolEvent::Returned { after, .. } => {
            let seconds = (after.as_secs_f64() * 10.0).round() / 10.0;
            tracing::info!(address, seconds, "an address of the backend is used again");
        }
    }
}

/// The machine; see the module.
#[derive(Debug)]
pub(crate) struct Pool {
    config: PoolConfig,
    addresses: Vec<Address>,
    /// The address that was chosen last: among equals the next one is chosen.
    last: usize,
    events: VecDeque<PoolEvent>,
}

#[derive(Debug)]
struct Address {
    /// A hash of its name, for the stickiness.
    name: u64,
    uses: u64,
    condition: Condition,
    /// Failures in a row, and what failed last.
    failures: u32,
    fault: Fault,
    /// Ejections since the last slow start that ended.
    ejections: u32,
    /// Others are preferred until then.
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Serving,
    /// It returned: its share grows.
    Warming {
        since: Instant,
    },
    Ejected {
        since: Instant,
        until: Instant,
    },
}

impl Pool {
    /// Creates the machine. `names`: hashes of the names of the addresses, one at least. All addresses serve.
    pub(crate) fn new(config: PoolConfig, names: impl IntoIterator<Item = u64>) -> Self {
        let serving = |name| Address {
            name,
            uses: 0,
            condition: Condition::Serving,
            failures: 0,
            fault: Fault::Connect,
            ejections: 0,
            rests_until: None,
        };
        Self { config, addresses: names.into_iter().map(serving).collect(), last: 0, events: VecDeque::new() }
    }

    /// Chooses an address and counts a use of it until [`release`](Self::release). `key`: of a client that sticks to an
    /// address. `tried`: chosen only if no other address is left.
    pub(crate) fn choose(&mut self, now: Instant, key: Option<u64>, tried: &[usize]) -> usize {
        self.handle_timeout(now);
        let count = self.addresses.len().max(1);
        let after_last = (self.last + 1) % count;
        let chosen = self.addresses.iter().enumerate().min_by_key(|(index, address)| {
            let was_tried = tried.contains(index);
            let turn = (index + count - after_last) % count;
            match address.free_at(now) {
                Some(at) => (was_tried, true, Some(at), 0, turn),
                None => (was_tried, false, None, self.rank(address, now, key), turn),
            }
        });
        let chosen = chosen.map_or(0, |(index, _)| index);
        self.last = chosen;
        if let Some(address) = self.addresses.get_mut(chosen) {
            address.uses += 1;
        }
        chosen
    }

    /// Returns the place of an address among those that are free; the lowest is chosen.
    fn rank(&self, address: &Address, now: Instant, key: Option<u64>) -> u64 {
        match key {
            Some(key) => u64::MAX - mixed(key ^ address.name),
            None => (address.uses + 1) * WHOLE_SHARE / address.share(now, self.config.slow_start),
        }
    }

    /// A use of this address has ended.
    pub(crate) fn release(&mut self, address: usize) {
        if let Some(address) = self.addresses.get_mut(address) {
            address.uses = address.uses.saturating_sub(1);
        }
    }

    /// A connection to this address was opened. That clears failed connects only.
    pub(crate) fn handle_connected(&mut self, now: Instant, index: usize) {
        if self.addresses.get(index).is_some_and(|address| address.fault == Fault::Connect) {
            self.handle_answered(now, index);
        }
    }

    /// This address responded properly, to a request, an opening handshake or a probe.
    pub(crate) fn handle_answered(&mut self, now: Instant, index: usize) {
        if let Some(Condition::Ejected { .. }) = self.addresses.get(index).map(|address| address.condition) {
            self.return_address(now, index);
        }
        if let Some(address) = self.addresses.get_mut(index) {
            (address.failures, address.rests_until) = (0, None);
        }
    }

    /// An attempt at this address failed.
    pub(crate) fn handle_failed(&mut self, now: Instant, index: usize, fault: Fault) {
        self.handle_timeout(now);
        let may_eject = self.may_eject();
        let config = self.config;
        let Some(address) = self.addresses.get_mut(index) else { return };
        (address.failures, address.fault) = (address.failures.saturating_add(1), fault);
        let doubled = |first: Duration, times: u32, most: Duration| {
            first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(most)
        };
        if let Condition::Ejected { since, until, .. } = address.condition {
            // Still down: it returns by a success, or a whole ejection after its last failure.
            let times = address.ejections.saturating_sub(1);
            let again = now + doubled(config.ejection, times, config.longest_ejection);
            address.condition = Condition::Ejected { since, until: until.max(again) };
            return;
        }
        address.rests_until =
            Some(now + doubled(config.first_rest, (address.failures - 1).min(16), LONGEST_REST));
        if address.failures < config.failures || !may_eject {
            return;
        }
        let within = doubled(config.ejection, address.ejections, config.longest_ejection);
        address.condition = Condition::Ejected { since: now, until: now + within };
        address.ejections = address.ejections.saturating_add(1).min(16);
        let failures = address.failures;
        self.events.push_back(PoolEvent::Ejected { address: index, within, failures });
    }

    /// Returns addresses whose ejection is over, and ends slow starts.
    fn handle_timeout(&mut self, now: Instant) {
        for index in 0..self.addresses.len() {
            match self.addresses.get(index).map(|address| address.condition) {
                Some(Condition::Ejected { until, .. }) if until <= now => self.return_address(now, index),
                Some(Condition::Warming { since })
                    if now.saturating_duration_since(since) >= self.config.slow_start =>
                {
                    if let Some(address) = self.addresses.get_mut(index) {
                        address.condition = Condition::Serving;
                        address.ejections = if address.failures == 0 { 0 } else { address.ejections };
                    }
                }
                _ => {}
            }
        }
    }

    fn return_address(&mut self, now: Instant, index: usize) {
        let Some(address) = self.addresses.get_mut(index) else { return };
        let Condition::Ejected { since, .. } = address.condition else { return };
        address.condition = Condition::Warming { since: now };
        // One more failure ejects it again.
        (address.failures, address.rests_until) = (self.config.failures.saturating_sub(1), None);
        self.events.push_back(PoolEvent::Returned { address: index, after: now - since });
    }

    /// Returns whether one more address may be ejected.
    fn may_eject(&self) -> bool {
        let (all, ejected) =
            (self.addresses.len(), (0..self.addresses.len()).filter(|index| self.is_ejected(*index)).count());
        all > 1 && ejected < (all * usize::from(self.config.max_ejected) / 100).max(1)
    }

    /// Returns the next event to log.
    pub(crate) fn poll_event(&mut self) -> Option<PoolEvent> {
        self.events.pop_front()
    }

    /// Returns whether an address is ejected.
    pub(crate) fn is_ejected(&self, address: usize) -> bool {
        let condition = self.addresses.get(address).map(|address| address.condition);
        matches!(condition, Some(Condition::Ejected { .. }))
    }

    /// Returns the uses of an address.
    pub(crate) fn uses(&self, address: usize) -> u64 {
        self.addresses.get(address).map_or(0, |address| address.uses)
    }
}

impl Address {
    /// Returns when the address may be chosen beside others; `None`: now.
    fn free_at(&self, now: Instant) -> Option<Instant> {
        match self.condition {
            Condition::Ejected { until, .. } => Some(until),
            _ => self.rests_until.filter(|until| *until > now),
        }
    }

    /// Returns the share of new uses, in thousandths.
    fn share(&self, now: Instant, slow_start: Duration) -> u64 {
        let Condition::Warming { since } = self.condition else { return WHOLE_SHARE };
        let (warm, whole) = (now.saturating_duration_since(since).as_millis(), slow_start.as_millis().max(1));
        let share = u64::try_from(warm * u128::from(WHOLE_SHARE) / whole).unwrap_or(WHOLE_SHARE);
        share.clamp(FIRST_SHARE, WHOLE_SHARE)
    }
}

/// Mixes the bits of a number (the finaliser of SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool in virtual time.
    struct Stage {
        start: Instant,
        pool: Pool,
    }

    impl Stage {
        fn new(addresses: u64) -> Self {
            Self { start: Instant::now(), pool: Pool::new(PoolConfig::default(), 0..addresses) }
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        fn choose(&mut self, seconds: f64) -> usize {
            let now = self.at(seconds);
            self.pool.choose(now, None, &[])
        }

        /// Makes this many uses and returns how many each address got.
        fn uses(&mut self, seconds: f64, count: usize) -> Vec<u64> {
            for _ in 0..count {
                self.choose(seconds);
            }
            (0..self.pool.addresses.len()).map(|index| self.pool.uses(index)).collect()
        }

        fn fail(&mut self, seconds: f64, address: usize, fault: Fault) {
            let now = self.at(seconds);
            self.pool.handle_failed(now, address, fault);
        }

        fn events(&mut self) -> Vec<PoolEvent> {
            std::iter::from_fn(|| self.pool.poll_event()).collect()
        }

        fn ejected(&self) -> Vec<usize> {
            (0..self.pool.addresses.len()).filter(|index| self.pool.is_ejected(*index)).collect()
        }
    }

    #[test]
    fn the_address_with_the_fewest_uses_is_chosen_and_equals_take_turns() {
        let mut stage = Stage::new(3);
        assert_eq!(stage.uses(0.0, 9), [3, 3, 3]);
        (0..3).for_each(|_| stage.pool.release(1));
        assert_eq!((stage.choose(0.0), stage.choose(0.0), stage.choose(0.0)), (1, 1, 1));
        assert_eq!(stage.uses(0.0, 3), [4, 4, 4]);
    }

    #[test]
    fn the_only_address_is_chosen_whatever_happened_and_is_never_ejected() {
        let mut stage = Stage::new(1);
        for second in 0..100 {
            stage.fail(f64::from(second), 0, Fault::Connect);
            assert_eq!(stage.choose(f64::from(second)), 0);
        }
        assert_eq!((stage.events(), stage.ejected()), (vec![], vec![]));
    }

    #[test]
    fn a_failed_address_rests_for_longer_each_time_and_a_response_ends_that() {
        let mut stage = Stage::new(2);
        stage.uses(0.0, 10);
        stage.pool.release(0);
        stage.fail(0.0, 0, Fault::Response);
        assert_eq!((stage.choose(0.09), stage.choose(0.11)), (1, 0));
        stage.pool.release(0);
        stage.pool.release(0);
        stage.fail(1.0, 0, Fault::Response);
        assert_eq!((stage.choose(1.19), stage.choose(1.21)), (1, 0));
        stage.fail(2.0, 0, Fault::Connect);
        stage.pool.handle_connected(stage.at(2.0), 0);
        assert!(stage.ejected().is_empty(), "the third failure ejects it, and a connection returns it");
    }

    #[test]
    fn an_address_that_was_tried_or_rests_is_chosen_if_no_other_is_left() {
        let mut stage = Stage::new(2);
        let now = stage.at(0.0);
        assert_eq!(stage.pool.choose(now, None, &[1]), 0);
        stage.fail(0.0, 0, Fault::Connect);
        assert_eq!(stage.pool.choose(now, None, &[1]), 0, "it rests, and the other was tried");
        stage.fail(0.0, 1, Fault::Connect);
        stage.fail(0.05, 1, Fault::Connect);
        assert_eq!(stage.pool.choose(stage.at(0.06), None, &[]), 0, "the one that rests for less time");
        assert!(stage.pool.choose(now, None, &[0, 1]) < 2);
    }

    #[test]
    fn failures_in_a_row_eject_an_address_for_longer_each_time() {
        let mut stage = Stage::new(2);
        let mut second = 0.0;
        for (round, expected) in [10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
            let needed = if round == 0 { 3 } else { 1 };
            (0..needed).for_each(|_| stage.fail(second, 0, Fault::Response));
            let within = Duration::from_secs(expected);
            let failures = 3;
            assert_eq!(stage.events(), [PoolEvent::Ejected { address: 0, within, failures }], "{round}");
            stage.pool.handle_connected(stage.at(second + 1.0), 0);
            assert_eq!(stage.ejected(), [0], "a connection shows no response");
            second += expected as f64;
            stage.choose(second);
            assert_eq!(stage.events(), [PoolEvent::Returned { address: 0, after: within }], "{round}");
        }
        // A whole slow start without a failure: the next ejection is a short one again.
        stage.pool.handle_answered(stage.at(second), 0);
        stage.choose(second + 10.0);
        (0..3).for_each(|_| stage.fail(second + 11.0, 0, Fault::Response));
        let within = Duration::from_secs(10);
        assert_eq!(stage.events(), [PoolEvent::Ejected { address: 0, within, failures: 3 }]);
    }

    #[test]
    fn failures_that_are_not_in_a_row_eject_no_address() {
        let mut stage = Stage::new(2);
        for second in 0..30 {
            stage.fail(f64::from(second), 0, Fault::Response);
            if second % 2 == 1 {
                stage.pool.handle_answered(stage.at(f64::from(second)), 0);
            }
        }
        assert_eq!(stage.events(), []);
    }

    #[test]
    fn no_more_than_half_of_the_addresses_are_ejected_and_of_several_one_may_be() {
        for (addresses, expected) in [(2, 1), (3, 1), (4, 2), (5, 2)] {
            let mut stage = Stage::new(addresses);
            for address in 0..addresses as usize {
                (0..5).for_each(|_| stage.fail(0.0, address, Fault::Connect));
            }
            assert_eq!(stage.ejected().len(), expected, "{addresses}");
        }
    }

    #[test]
    fn an_address_that_stays_down_stays_ejected_and_returns_by_a_connection() {
        let mut stage = Stage::new(2);
        (0..3).for_each(|_| stage.fail(0.0, 0, Fault::Connect));
        for second in 1..60 {
            // A probe each second.
            stage.fail(f64::from(second), 0, Fault::Connect);
            assert_eq!(stage.choose(f64::from(second)), 1);
        }
        stage.pool.handle_connected(stage.at(60.0), 0);
        let returned = PoolEvent::Returned { address: 0, after: Duration::from_secs(60) };
        assert_eq!((stage.ejected(), stage.events().pop()), (vec![], Some(returned)));
    }

    #[test]
    fn an_address_that_returns_gets_its_share_of_new_uses_slowly() {
        let mut stage = Stage::new(2);
        (0..3).for_each(|_| stage.fail(0.0, 0, Fault::Connect));
        assert_eq!(stage.uses(1.0, 90), [0, 90]);
        stage.pool.handle_connected(stage.at(2.0), 0);
        // A tenth at first: the next 10 uses bring it to a tenth of the other's.
        assert_eq!(stage.uses(2.0, 10), [9, 91]);
        assert_eq!(stage.uses(7.0, 50), [50, 100], "half after half of the time");
        assert_eq!(stage.uses(12.0, 50), [100, 100]);
    }

    #[test]
    fn a_key_sticks_to_its_address_and_only_the_keys_of_a_failed_address_move() {
        let mut stage = Stage::new(3);
        let now = stage.at(0.0);
        let keys: Vec<u64> = (0..300).map(|key| mixed(key + 1)).collect();
        let chosen = |stage: &mut Stage, now| -> Vec<usize> {
            keys.iter().map(|key| stage.pool.choose(now, Some(*key), &[])).collect()
        };
        let before = chosen(&mut stage, now);
        for address in 0..3 {
            let got = before.iter().filter(|chosen| **chosen == address).count();
            assert!((60..=140).contains(&got), "{address}: {got} of 300");
        }
        (0..3).for_each(|_| stage.fail(0.0, 1, Fault::Connect));
        let during = chosen(&mut stage, now);
        for (before, during) in before.iter().zip(&during) {
            assert!(if *before == 1 { *during != 1 } else { during == before });
        }
        stage.pool.handle_connected(now, 1);
        assert_eq!(chosen(&mut stage, now), before);
    }
}
