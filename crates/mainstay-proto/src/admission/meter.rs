//! How many events a minute each key may cause, for any number of keys in a fixed amount of memory.
//!
//! A key may cause its number of a minute at once; each of them is returned after its part of the minute. What is
//! stored of a key is the time at which everything is returned. A key without an entry has caused nothing.
//!
//! The entries are a table of [`SETS`] sets, and a secret hash decides the set of a key. A full set forgets the key
//! that has most returned. So a key near its limit stays in the table, and an attacker with a million addresses has only
//! the keys forgotten that do little.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// 65,536 keys: 1 MiB, from the first event on.
const SETS: usize = 8192;
const WAYS: usize = 8;

const MINUTE: u64 = 60_000_000;

/// The events of all keys; the module describes it.
#[derive(Debug)]
pub(super) struct Meter {
    /// Events a minute.
    limit: u64,
    seed: u64,
    /// Times are microseconds since then.
    origin: Instant,
    cells: Vec<Cell>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    key: u64,
    /// When everything is returned; 0: the cell is empty.
    returned: u64,
}

impl Meter {
    pub(super) fn new(limit: NonZeroU32, seed: u64, now: Instant) -> Self {
        Self { limit: u64::from(limit.get()), seed, origin: now, cells: Vec::new() }
    }

    /// Changes the limit. A key that has caused three events has caused three of the new limit.
    pub(super) fn set_limit(&mut self, now: Instant, limit: NonZeroU32) {
        let (now, before) = (self.micros(now), self.interval());
        self.limit = u64::from(limit.get());
        let interval = self.interval();
        for cell in self.cells.iter_mut().filter(|cell| cell.returned > now) {
            let left = u128::from(cell.returned - now) * u128::from(interval) / u128::from(before);
            cell.returned = now + u64::try_from(left).unwrap_or(u64::MAX / 4);
        }
    }

    /// Returns how long this key has to wait; `None`: not at all.
    pub(super) fn wait(&self, now: Instant, key: u64) -> Option<Duration> {
        let now = self.micros(now);
        let set = self.cells.get(self.set(key)).unwrap_or_default();
        let cell = set.iter().find(|cell| cell.key == key && cell.returned > now)?;
        // One event must be returned before the next.
        let wait = (cell.returned + self.interval()).checked_sub(now + MINUTE.max(self.interval()))?;
        (wait > 0).then(|| Duration::from_micros(wait))
    }

    /// Counts an event.
    pub(super) fn spend(&mut self, now: Instant, key: u64) {
        if self.cells.is_empty() {
            self.cells = vec![Cell::default(); SETS * WAYS];
        }
        let (now, interval, set) = (self.micros(now), self.interval(), self.set(key));
        let Some(set) = self.cells.get_mut(set) else { return };
        let known = set.iter_mut().find(|cell| cell.key == key && cell.returned > now);
        match known {
            Some(cell) => cell.returned += interval,
            None => {
                if let Some(forgotten) = set.iter_mut().min_by_key(|cell| cell.returned) {
                    *forgotten = Cell { key, returned: now + interval };
                }
            }
        }
    }

    /// How long one event takes to be returned.
    fn interval(&self) -> u64 {
        (MINUTE / self.limit).max(1)
    }

    fn micros(&self, now: Instant) -> u64 {
        // Half a million years fit. From 1 on: 0 is an empty cell.
        1 + u64::try_from(now.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX / 2)
    }

    fn set(&self, key: u64) -> std::ops::Range<usize> {
        let mut hasher = DefaultHasher::new();
        (self.seed, key).hash(&mut hasher);
        // Less than SETS.
        let from = (hasher.finish() % SETS as u64) as usize * WAYS;
        from..from + WAYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;

    fn meter(limit: u32) -> Meter {
        Meter::new(NonZeroU32::new(limit).unwrap(), 7, origin())
    }

    /// Counts the events that pass of one key that tries every 10 ms.
    fn pass(meter: &mut Meter, key: u64, from: Duration, during: Duration) -> u32 {
        let (mut at, mut passed) = (from, 0);
        while at < from + during {
            let now = meter.origin + at;
            while meter.wait(now, key).is_none() {
                meter.spend(now, key);
                passed += 1;
            }
            at += Duration::from_millis(10);
        }
        passed
    }

    #[test]
    fn a_key_may_cause_its_number_at_once_and_then_as_many_a_minute() {
        for limit in [1, 60, 600] {
            let mut meter = meter(limit);
            assert_eq!(pass(&mut meter, 1, Duration::ZERO, Duration::from_millis(6010)), limit + limit / 10);
            let minute = Duration::from_secs(60);
            assert!(pass(&mut meter, 1, Duration::from_millis(6010), 10 * minute).abs_diff(10 * limit) <= 1);
            // Everything is returned after a quiet minute.
            assert!(pass(&mut meter, 1, 20 * minute, Duration::from_millis(20 * u64::from(limit))) >= limit);
        }
    }

    #[test]
    fn what_a_key_has_caused_counts_as_much_after_a_change_of_the_limit() {
        let mut meter = meter(2);
        let now = meter.origin;
        meter.spend(now, 1);
        meter.spend(now, 1);
        assert!(meter.wait(now, 1).is_some());
        meter.set_limit(now, NonZeroU32::new(10).unwrap());
        assert_eq!(pass(&mut meter, 1, Duration::ZERO, Duration::from_millis(1)), 8);
        meter.set_limit(now, NonZeroU32::new(5).unwrap());
        assert_eq!(meter.wait(now, 1), Some(Duration::from_secs(72)), "ten of five");
    }

    #[test]
    fn the_wait_is_the_time_until_the_next_event_may_pass() {
        let mut meter = meter(6);
        let now = meter.origin + Duration::from_secs(100);
        for _ in 0..6 {
            assert_eq!(meter.wait(now, 1), None);
            meter.spend(now, 1);
        }
        assert_eq!(meter.wait(now, 1), Some(Duration::from_secs(10)));
        assert_eq!(meter.wait(now + Duration::from_secs(4), 1), Some(Duration::from_secs(6)));
        assert_eq!(meter.wait(now + Duration::from_secs(10), 1), None);
        assert_eq!(meter.wait(now, 2), None, "another key");
    }

    #[test]
    fn a_million_addresses_need_no_more_memory_and_do_not_free_the_one_at_its_limit() {
        let (mut meter, busy) = (meter(60), u64::MAX);
        let now = meter.origin;
        for _ in 0..60 {
            meter.spend(now, busy);
        }
        for key in 0..1_000_000 {
            if meter.wait(now, key).is_none() {
                meter.spend(now, key);
            }
        }
        assert!(meter.wait(now, busy).is_some(), "it was not forgotten");
        assert_eq!(size_of_val(meter.cells.as_slice()), 1 << 20);
        assert_eq!(meter.cells.capacity(), SETS * WAYS);
        // And honest addresses still pass.
        let honest = (2_000_000..2_010_000).filter(|key| meter.wait(now, *key).is_none()).count();
        assert_eq!(honest, 10_000);
    }

    #[test]
    fn a_meter_that_counted_nothing_holds_no_table() {
        let meter = meter(60);
        assert_eq!((meter.wait(meter.origin, 1), meter.cells.capacity()), (None, 0));
    }
}
