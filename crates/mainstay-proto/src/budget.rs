//! The memory that all connections of a process share: how much of it is used, and who has to wait for it.
//!
//! Each connection keeps no more than its own windows allow. A thousand of them may still keep more than the machine
//! has. So what all keep together has a budget, and the part of it that is used has a [`Level`]. A level rises at its
//! own mark and falls ten percent of the budget below it, so that it does not flicker.
//!
//! | Level | From | What changes |
//! |---|---|---|
//! | calm | | nothing |
//! | tight | 75 % | a holder that keeps its fair share takes in no more, and one whose peer is away no more than a floor |
//! | short | 90 % | that includes messages which are not complete; no new sessions; sessions whose client is away for 10 s are given up |
//! | full | 100 % | nobody takes in more than the floor; any session whose client is away is given up |
//!
//! What is kept can always leave: writing is never held back, and [`Pressure::lets_read`] lets a session read that waits
//! for acknowledgements, except when all is used. If all is used for 10 s and nothing leaves, the largest of those that
//! wait are given up ([`Reclaim`]).
//!
//! Not here: what a connection keeps (its machines know), and who is told ([`registry`](crate::session::registry)).

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
    /// All of it.
    Full,
}

/// What every holder may take in at any level: so much that small messages pass.
pub const FLOOR: u64 = 64 * 1024;
/// A client that was cut off a moment ago is on its way back.
const ON_THE_WAY_BACK: Duration = Duration::from_secs(10);
/// If all is used for so long, holders that wait are given up.
const STUCK: Duration = Duration::from_secs(10);

impl Level {
    /// All levels, the lowest first.
    pub const ALL: [Self; 4] = [Self::Calm, Self::Tight, Self::Short, Self::Full];

    /// The level once `used` bytes of `limit` are used, where it was this one before.
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

    /// Where the level below this one begins, on the way down.
    #[must_use]
    pub fn falls_below(self, limit: u64) -> u64 {
        self.rises_at(limit).saturating_sub(percent_of(10, limit))
    }

    /// Whether new sessions may be opened.
    #[must_use]
    pub fn admits(self) -> bool {
        self < Self::Short
    }

    /// Its name, for logs.
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
    /// Bytes that its peer sent and the application has not received yet.
    pub unread: u64,
    /// For its peer: not yet written, or not yet acknowledged.
    pub kept: u64,
}

/// What a message costs beside its payload: its place in a queue, and the allocation that holds the payload.
const BESIDE_PAYLOAD: u64 = 96;

/// What so many payload bytes cost in so many messages.
pub(crate) fn held(payload: u64, messages: usize) -> u64 {
    payload + messages as u64 * BESIDE_PAYLOAD
}

fn percent_of(percent: u64, limit: u64) -> u64 {
    // No budget is near 2^57 bytes.
    limit.saturating_mul(percent) / 100
}

/// What a holder is asked to bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pressure {
    level: Level,
    /// A holder's fair share, in bytes.
    share: u64,
}

impl Pressure {
    /// The pressure at `level` of a budget of `limit` bytes that so many share.
    #[must_use]
    pub fn new(level: Level, limit: u64, holders: u64) -> Self {
        let share = Level::Tight.rises_at(limit) / holders.max(1);
        Self { level, share: share.max(FLOOR) }
    }

    /// What a holder may keep in one of its queues, in bytes; it may keep one message there in any case. What is kept
    /// for a peer that is away does not leave before it comes back, if it does.
    #[must_use]
    pub fn room(self, is_away: bool) -> u64 {
        match self.level {
            Level::Calm => u64::MAX,
            Level::Tight | Level::Short if !is_away => self.share,
            _ => FLOOR,
        }
    }

    /// Whether a connection may be read that keeps `unread` bytes of what it brought for its application, and has
    /// `assembling` bytes of a message that is not complete. `owed`: bytes that only an acknowledgement of its peer
    /// frees. While there are any it is read until all is used, or what waits for that acknowledgement would wait for
    /// ever. A message that has begun is read to its end while there is room at all.
    #[must_use]
    pub fn lets_read(self, unread: u64, assembling: u64, owed: u64) -> bool {
        let counts = if self.level < Level::Short { unread } else { unread + assembling };
        counts < self.room(false) || (owed > 0 && self.level < Level::Full)
    }
}

/// The holders that have to give up what they keep, decided every so often while memory is short.
#[derive(Debug, Clone, Default)]
pub struct Reclaim {
    full_since: Option<Instant>,
}

/// Whose memory is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victims {
    /// Sessions whose clients are away for so long, or longer; the largest first.
    pub away_for: Duration,
    /// Those as well that wait for memory, if the others are not enough; the largest first.
    pub waiting: bool,
    /// Until so many bytes are freed.
    pub bytes: u64,
}

impl Reclaim {
    /// The holders that are to give up their memory now, where `used` bytes of `limit` are used. `None`: none.
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

/// Something that may be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<T> {
    /// Where its client came from.
    pub source: Option<Source>,
    /// What it keeps.
    pub bytes: u64,
    /// Since when its client is away.
    pub since: Instant,
    /// What it is.
    pub holder: T,
}

/// Puts candidates in the order in which they are given up: those of the source that keeps most of all go first; of one
/// source the larger, and of about one size (a factor of two) the one that has been away for longer.
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
    fn without_pressure_nobody_waits_and_with_it_who_keeps_less_than_a_share_does_not() {
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
    fn who_waits_for_an_acknowledgement_is_read_until_all_is_used() {
        let lets = |level| Pressure::new(level, 1 << 30, 1 << 20).lets_read(1 << 30, 0, 1);
        assert_eq!(Level::ALL.map(lets), [true, true, true, false]);
    }

    #[test]
    fn at_the_floor_everybody_takes_something_in_at_any_level() {
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
    fn the_source_that_keeps_most_gives_first_then_the_larger_then_who_is_away_for_longer() {
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
