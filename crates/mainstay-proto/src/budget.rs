//! The memory that all connections of a process share: how much of it is used, and which connections must wait for
//! it.
//!
//! Each connection keeps no more than its own windows allow. A thousand of them may still keep more than the machine
//! has. Therefore all connections share a budget, and the used part of it has a [`Level`]. A level begins at its own
//! mark and ends ten percent of the budget below that mark, so that it does not flicker.
//!
//! | Level | From | What changes |
//! |---|---|---|
//! | calm | | nothing |
//! | tight | 75 % | a holder that keeps its fair share receives no more, and a holder whose peer is away no more than
//! the floor |
//! | short | 90 % | the share includes incomplete messages; no new sessions; sessions whose client has been away for
//! 10 s are evicted |
//! | full | 100 % | no holder receives more than the floor; any session whose client is away is evicted |
//!
//! What is kept can always leave: writing is never restricted, and [`Pressure::lets_read`] lets a session read while
//! it waits for acknowledgements, unless the budget is exhausted. If the budget is exhausted for 10 s and nothing
//! leaves, the largest of the waiting holders are dropped ([`Reclaim`]).
//!
//! Not here: what a connection keeps (its machine counts it), and how its owner is notified
//! ([`registry`](crate::session::registry)).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::admission::Source;

/// How much of the budget is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// Below 75 %.
    #[default]
    Calm,
    /// From 75 %.
    Tight,
    /// From 90 %.
    Short,
    /// The whole budget.
    Full,
}

/// How much every holder may receive at any level: enough for small messages to pass.
pub const FLOOR: u64 = 64 * 1024;
/// A client that was just cut off is probably reconnecting; its session is not evicted before this.
const ON_THE_WAY_BACK: Duration = Duration::from_secs(10);
/// If the budget is exhausted for this long, holders that wait are dropped.
const STUCK: Duration = Duration::from_secs(10);

impl Level {
    /// All levels, the lowest first.
    pub const ALL: [Self; 4] = [Self::Calm, Self::Tight, Self::Short, Self::Full];

    /// Returns the level once `used` bytes of `limit` are used, if it was this level before.
    #[must_use]
    pub fn after(self, used: u64, limit: u64) -> Self {
        let reached = Self::ALL.into_iter().rfind(|level| used >= level.rises_at(limit)).unwrap_or_default();
        let left = Self::ALL.into_iter().rfind(|level| used >= level.falls_below(limit)).unwrap_or_default();
        self.min(left).max(reached)
    }

    fn rises_at(self, limit: u64) -> u64 {
        let percent = match self {
            Self::Calm => 0,
            Self::Tight => 75,
            Self::Short => 90,
            Self::Full => 100,
        };
        percent_of(percent, limit)
    }

    /// Returns where the level below this one begins while the use falls.
    #[must_use]
    pub fn falls_below(self, limit: u64) -> u64 {
        self.rises_at(limit).saturating_sub(percent_of(10, limit))
    }

    /// Whether new sessions may be opened.
    #[must_use]
    pub fn admits(self) -> bool {
        self < Self::Short
    }

    /// Returns the name, for logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Tight => "tight",
            Self::Short => "short",
            Self::Full => "full",
        }
    }
}

/// What a connection keeps, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Held {
    /// Bytes that the peer sent and that are not delivered to the application.
    pub unread: u64,
    /// Bytes for the peer that are not written, or not acknowledged.
    pub kept: u64,
}

/// The overhead of a message: its place in a queue, and the allocation of its payload.
const BESIDE_PAYLOAD: u64 = 96;

/// Returns the memory of `bytes` payload bytes in `messages` messages.
pub(crate) fn held(payload: u64, messages: usize) -> u64 {
    payload + messages as u64 * BESIDE_PAYLOAD
}

fn percent_of(percent: u64, limit: u64) -> u64 {
    // No budget is near 2^57 bytes.
    limit.saturating_mul(percent) / 100
}

/// The limits that a holder must respect now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pressure {
    level: Level,
    /// The fair share of a holder, in bytes.
    share: u64,
}

impl Pressure {
    /// Returns the pressure at `level` of a budget of `limit` bytes that `holders` share.
    #[must_use]
    pub fn new(level: Level, limit: u64, holders: u64) -> Self {
        let share = Level::Tight.rises_at(limit) / holders.max(1);
        Self { level, share: share.max(FLOOR) }
    }

    /// Returns how many bytes a holder may keep in one of its queues. It may keep one message in any case. What is
    /// kept for a peer that is away leaves only if the peer comes back.
    #[must_use]
    pub fn room(self, is_away: bool) -> u64 {
        match self.level {
            Level::Calm => u64::MAX,
            Level::Tight | Level::Short if !is_away => self.share,
            _ => FLOOR,
        }
    }

    /// Whether to read from a connection that keeps `unread` bytes for its application and `assembling` bytes of an
    /// incomplete message. `owed`: bytes that only an acknowledgement of the peer frees. While there are any, the
    /// connection is read until the budget is exhausted; otherwise the bytes would wait for that acknowledgement for
    /// ever. A message that has begun is read to its end while there is any room.
    #[must_use]
    pub fn lets_read(self, unread: u64, assembling: u64, owed: u64) -> bool {
        let counts = if self.level < Level::Short { unread } else { unread + assembling };
        counts < self.room(false) || (owed > 0 && self.level < Level::Full)
    }
}

/// The holders that must free what they keep, decided at intervals while memory is short.
#[derive(Debug, Clone, Default)]
pub struct Reclaim {
    full_since: Option<Instant>,
}

/// Which holders must free their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victims {
    /// Sessions whose clients have been away for this long or longer; the largest first.
    pub away_for: Duration,
    /// Also holders that wait for memory, if the others are not enough; the largest first.
    pub waiting: bool,
    /// How many bytes to free.
    pub bytes: u64,
}

impl Reclaim {
    /// Returns which holders must free their memory now, if `used` bytes of `limit` are used; `None`: none.
    pub fn poll(&mut self, now: Instant, level: Level, used: u64, limit: u64) -> Option<Victims> {
        if level == Level::Full {
            self.full_since.get_or_insert(now);
        } else {
            self.full_since = None;
        }
        let is_stuck = self.full_since.is_some_and(|since| now.saturating_duration_since(since) >= STUCK);
        let away_for = match level {
            Level::Calm | Level::Tight => return None,
            Level::Short => ON_THE_WAY_BACK,
            Level::Full => Duration::ZERO,
        };
        let bytes = used.saturating_sub(level.falls_below(limit)) + 1;
        Some(Victims { away_for, waiting: is_stuck, bytes })
    }
}

/// A holder that may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<T> {
    /// The source of its client.
    pub source: Option<Source>,
    /// The bytes that it keeps.
    pub bytes: u64,
    /// Since when its client is away.
    pub since: Instant,
    /// The holder itself.
    pub holder: T,
}

/// Sorts candidates in the order in which they are dropped. Those of the source that keeps most go first; within a
/// source the larger ones; among those of about one size (a factor of two) the ones that have been away for longer.
pub fn in_order<T>(candidates: &mut [Candidate<T>]) {
    let mut sources: BTreeMap<Option<Source>, u64> = BTreeMap::new();
    for candidate in candidates.iter() {
        *sources.entry(candidate.source).or_default() += candidate.bytes;
    }
    candidates.sort_by_key(|candidate| {
        let of_source = sources.get(&candidate.source).copied().unwrap_or(0);
        (Reverse((of_source, candidate.source)), Reverse(candidate.bytes.checked_ilog2()), candidate.since)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;

    #[test]
    fn a_level_rises_at_its_mark_and_falls_ten_percent_below_it() {
        use Level::{Calm, Full, Short, Tight};
        let mut level = Calm;
        for (used, expected) in [
            (74, Calm),
            (75, Tight),
            (66, Tight),
            (64, Calm),
            (90, Short),
            (81, Short),
            (79, Tight),
            (100, Full),
            (200, Full),
            (90, Full),
            (89, Short),
            (95, Short),
            (0, Calm),
            (100, Full),
            (70, Tight),
        ] {
            level = level.after(used, 100);
            assert_eq!(level, expected, "at {used}");
        }
    }

    #[test]
    fn from_any_level_and_load_the_level_is_the_only_one_that_fits_or_one_that_has_not_fallen() {
        for before in Level::ALL {
            for used in 0..=120 {
                let level = before.after(used, 100);
                assert!(
                    used >= level.falls_below(100) && level.after(used, 100) == level,
                    "{before:?} {used}"
                );
                let above = Level::ALL.into_iter().find(|other| *other > level);
                assert!(above.is_none_or(|above| used < above.rises_at(100)), "{before:?} {used}");
            }
        }
    }

    #[test]
    fn without_pressure_no_holder_waits_and_with_it_none_below_its_share_does() {
        let room = |level, holders| Pressure::new(level, 100 << 20, holders).room(false);
        assert_eq!(room(Level::Calm, 1000), u64::MAX);
        assert_eq!((room(Level::Tight, 10), room(Level::Short, 75)), (7_864_320, 1 << 20));
        assert_eq!((room(Level::Tight, 1_000_000), room(Level::Full, 1)), (FLOOR, FLOOR));
        let share = Pressure::new(Level::Tight, 100 << 20, 75);
        assert!(share.lets_read((1 << 20) - 1, 0, 0) && !share.lets_read(1 << 20, 0, 0));
        let away = |level| Pressure::new(level, 100 << 20, 1).room(true);
        assert_eq!(Level::ALL.map(away), [u64::MAX, FLOOR, FLOOR, FLOOR]);
    }

    #[test]
    fn a_message_that_has_begun_is_read_to_its_end_until_memory_is_short() {
        let lets = |level| Pressure::new(level, 1 << 30, 1 << 20).lets_read(0, 16 << 20, 0);
        assert_eq!(Level::ALL.map(lets), [true, true, false, false]);
    }

    #[test]
    fn a_holder_that_waits_for_an_acknowledgement_is_read_until_the_budget_is_exhausted() {
        let lets = |level| Pressure::new(level, 1 << 30, 1 << 20).lets_read(1 << 30, 0, 1);
        assert_eq!(Level::ALL.map(lets), [true, true, true, false]);
    }

    #[test]
    fn at_the_floor_every_holder_reads_at_any_level() {
        for level in Level::ALL {
            assert!(Pressure::new(level, 1, 1 << 40).lets_read(FLOOR - 1, 0, 0), "{level:?}");
        }
    }

    #[test]
    fn absent_clients_give_first_and_after_ten_seconds_of_a_full_budget_those_that_wait() {
        let (mut reclaim, start) = (Reclaim::default(), origin());
        let mut at = |seconds, level, used| {
            let now = start + Duration::from_secs(seconds);
            let victims = reclaim.poll(now, level, used, 1000)?;
            Some((victims.away_for.as_secs(), victims.waiting, victims.bytes))
        };
        assert_eq!(at(0, Level::Tight, 800), None);
        assert_eq!(at(1, Level::Short, 950), Some((10, false, 151)));
        assert_eq!(at(2, Level::Full, 1100), Some((0, false, 201)));
        assert_eq!(at(11, Level::Full, 1100), Some((0, false, 201)));
        assert_eq!(at(12, Level::Full, 1100), Some((0, true, 201)));
        assert_eq!(at(13, Level::Short, 890), Some((10, false, 91)));
        assert_eq!(at(14, Level::Full, 1000), Some((0, false, 101)), "the ten seconds begin again");
    }

    #[test]
    fn the_source_that_keeps_most_is_dropped_first_then_larger_then_longer_absent_holders() {
        let candidate = |address: &str, bytes, seconds, holder| Candidate {
            source: Some(Source::of(address.parse().unwrap())),
            bytes,
            since: origin() + Duration::from_secs(seconds),
            holder,
        };
        let mut candidates = [
            candidate("10.0.0.1", 1000, 3, 'c'),
            candidate("10.0.0.1", 5, 1, 'd'),
            candidate("10.0.0.1", 1023, 2, 'b'),
            candidate("10.0.0.2", 9000, 9, 'e'),
            candidate("10.0.0.1", 9000, 9, 'a'),
        ];
        in_order(&mut candidates);
        assert_eq!(candidates.map(|candidate| candidate.holder), ['a', 'b', 'c', 'd', 'e']);
    }
}
