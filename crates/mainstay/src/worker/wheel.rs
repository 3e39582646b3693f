//! A timer wheel: one deadline for each task of a worker, in slots of 10 ms.
//!
//! The wheel is coarse: arming and disarming are a few writes, nothing is allocated, and the deadlines within a slot have
//! no order. A deadline that moves to a later time is not touched: it fires early, the task finds nothing due and arms it
//! again. A deadline beyond the length of the wheel does the same.
//!
//! Deadlines are spread: each takes the emptiest of the slots from its own to 1/16 of its distance later, 40 ms at most.
//! So the probes of thousands of connections leave evenly and not in bursts.

use std::time::{Duration, Instant};

const SLOT_MICROS: u64 = 10_000;
/// Number of slots: a power of two, which covers more than the default heartbeat interval.
const SLOTS: u64 = 4096;
/// How many slots later than its own a deadline may fire, so that it finds an emptier one.
const SPREAD: u64 = 4;
/// No task.
const NONE: u32 = u32::MAX;
/// Not armed.
const NEVER: u64 = u64::MAX;

/// See the module.
pub(super) struct Wheel {
    start: Instant,
    /// Every slot up to this one has fired.
    fired: u64,
    slots: Box<[Slot]>,
    /// A bit for each slot that is not empty.
    occupied: [u64; SLOTS as usize / 64],
    /// By the key of the task.
    links: Vec<Link>,
}

#[derive(Clone, Copy)]
struct Slot {
    first: u32,
    load: u32,
}

/// The place of a task in the list of its slot.
#[derive(Clone, Copy)]
struct Link {
    /// In slots since the start, or [`NEVER`].
    tick: u64,
    previous: u32,
    next: u32,
}

impl Wheel {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            start: now,
            fired: 0,
            slots: vec![Slot { first: NONE, load: 0 }; SLOTS as usize].into(),
            occupied: [0; SLOTS as usize / 64],
            links: Vec::new(),
        }
    }

    /// Arms `key`: it fires at `at` or earlier, and never more than 50 ms later.
    pub(super) fn arm(&mut self, key: u32, at: Instant) {
        let index = key as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, Link { tick: NEVER, previous: NONE, next: NONE });
        }
        let due = self.tick_after(at).clamp(self.fired + 1, self.fired + SLOTS - 1);
        if self.links[index].tick <= due {
            return;
        }
        self.disarm(key);
        let latest = due + SPREAD.min((due - self.fired) / 16);
        let latest = latest.min(self.fired + SLOTS - 1);
        let tick = (due..=latest).min_by_key(|tick| self.slots[slot(*tick)].load).unwrap_or(due);
        self.link(key, tick);
    }

    /// Disarms `key`.
    pub(super) fn disarm(&mut self, key: u32) {
        let Some(link) = self.links.get_mut(key as usize) else { return };
        let Link { tick, previous, next } = *link;
        if tick == NEVER {
            return;
        }
        link.tick = NEVER;
        let at = slot(tick);
        match previous {
            NONE => self.slots[at].first = next,
            previous => self.links[previous as usize].next = next,
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        self.slots[at].load -= 1;
        if self.slots[at].load == 0 {
            self.occupied[at / 64] &= !(1 << (at % 64));
        }
    }

    /// Calls `fire` for every task whose slot has come, and disarms it.
    pub(super) fn advance(&mut self, now: Instant, mut fire: impl FnMut(u32)) {
        let reached = self.tick_before(now);
        while let Some(tick) = self.next_occupied().filter(|tick| *tick <= reached) {
            self.fired = tick - 1;
            let mut key = std::mem::replace(&mut self.slots[slot(tick)], Slot { first: NONE, load: 0 }).first;
            self.occupied[slot(tick) / 64] &= !(1 << (slot(tick) % 64));
            while key != NONE {
                let link = &mut self.links[key as usize];
                link.tick = NEVER;
                let next = link.next;
                fire(key);
                key = next;
            }
        }
        self.fired = self.fired.max(reached);
    }

    /// When the next task fires.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next_occupied().map(|tick| self.start + Duration::from_micros(tick * SLOT_MICROS))
    }

    /// Frees memory. Only for a wheel without armed tasks.
    pub(super) fn shrink(&mut self) {
        self.links = Vec::new();
    }

    fn link(&mut self, key: u32, tick: u64) {
        let at = slot(tick);
        let first = std::mem::replace(&mut self.slots[at].first, key);
        self.slots[at].load += 1;
        self.occupied[at / 64] |= 1 << (at % 64);
        self.links[key as usize] = Link { tick, previous: NONE, next: first };
        if first != NONE {
            self.links[first as usize].previous = key;
        }
    }

    /// The first slot that is not empty and has not fired.
    fn next_occupied(&self) -> Option<u64> {
        let (words, from) = (self.occupied.len(), slot(self.fired + 1));
        // The word of the first slot is searched twice: from that slot on, and at last up to it.
        (0..=words).find_map(|step| {
            let word = (from / 64 + step) % words;
            let mask = match step {
                0 => u64::MAX << (from % 64),
                last if last == words => !(u64::MAX << (from % 64)),
                _ => u64::MAX,
            };
            let bits = self.occupied[word] & mask;
            let at = word * 64 + bits.trailing_zeros() as usize;
            (bits != 0).then(|| self.fired + 1 + ((at + SLOTS as usize - from) % SLOTS as usize) as u64)
        })
    }

    /// The first slot that begins at `at` or later.
    fn tick_after(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.start).as_micros() as u64).div_ceil(SLOT_MICROS)
    }

    /// The last slot that has begun at `now`.
    fn tick_before(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_micros() as u64 / SLOT_MICROS
    }
}

fn slot(tick: u64) -> usize {
    (tick % SLOTS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn fired(wheel: &mut Wheel, at: Instant) -> Vec<u32> {
        let mut fired = Vec::new();
        wheel.advance(at, |key| fired.push(key));
        fired.sort_unstable();
        fired
    }

    #[test]
    fn an_armed_deadline_fires_once_not_early_and_at_most_50_ms_late() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for key in 0..1000 {
            let at = start + ms(u64::from(key) * 37);
            wheel.arm(key, at);
        }
        let mut seen = vec![false; 1000];
        for step in 0..4000 {
            let now = start + ms(step * 10 + 3);
            for key in fired(&mut wheel, now) {
                let at = start + ms(u64::from(key) * 37);
                assert!(now >= at && now <= at + ms(60), "{key} at {step}");
                assert!(!std::mem::replace(&mut seen[key as usize], true));
            }
        }
        assert!(seen.iter().all(|seen| *seen));
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn the_next_wake_up_is_the_first_occupied_slot_wherever_the_wheel_stands() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for turn in 0..10_000_u64 {
            let now = start + ms(turn * 130);
            assert_eq!(fired(&mut wheel, now).len(), usize::from(turn > 0));
            wheel.arm(7, now + ms(130));
            let next = wheel.next().unwrap();
            assert!(next >= now + ms(130) && next <= now + ms(180), "{turn}");
            // A spread deadline is late by design: arm it at its own slot.
            fired(&mut wheel, now + ms(129));
            wheel.disarm(7);
            wheel.arm(7, now + ms(130));
            wheel.disarm(7);
            wheel.link(7, wheel.tick_after(now + ms(130)));
        }
    }

    #[test]
    fn a_deadline_beyond_the_wheel_fires_early_and_is_armed_again() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.arm(0, start + Duration::from_secs(3600));
        let next = wheel.next().unwrap();
        assert!(next > start + Duration::from_secs(40) && next < start + Duration::from_secs(42));
        assert_eq!(fired(&mut wheel, next), [0]);
    }

    #[test]
    fn an_earlier_deadline_moves_the_entry_and_a_later_one_does_not() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.arm(0, start + ms(1000));
        let first = wheel.next();
        wheel.arm(0, start + ms(5000));
        assert_eq!(wheel.next(), first);
        wheel.arm(0, start + ms(100));
        assert!(wheel.next() < first);
        assert_eq!(fired(&mut wheel, start + ms(900)), [0]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn deadlines_at_the_same_time_are_spread_over_50_ms() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for key in 0..1000 {
            wheel.arm(key, start + Duration::from_secs(25));
        }
        let loads: Vec<_> = wheel.slots.iter().map(|slot| slot.load).filter(|load| *load > 0).collect();
        assert_eq!(loads, [200; 5]);
    }

    #[test]
    fn neighbours_in_a_slot_are_disarmed_one_by_one() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        (0..3).for_each(|key| wheel.arm(key, start + ms(20)));
        wheel.disarm(1);
        wheel.disarm(1);
        assert_eq!(fired(&mut wheel, start + ms(30)), [0, 2]);
    }
}
