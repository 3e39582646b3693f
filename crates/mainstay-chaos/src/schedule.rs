//! When the rule of a scenario strikes: times drawn from the seed, without a clock.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::fault::Fault;
use crate::scenario::{Rule, When};

/// No rule strikes again sooner, so that no clock is kept busy by one.
const SHORTEST: Duration = Duration::from_millis(1);

/// The strikes of one rule on one connection, or on the proxy.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// The rule's number, from 1.
    pub(crate) rule: usize,
    when: When,
    lasts: Option<Duration>,
    is_of_a_moment: bool,
    random: SmallRng,
    /// What the times are counted from.
    base: Duration,
    next: Option<Duration>,
}

/// One strike. Times are since the start of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) at: Duration,
    /// Since what the times of the rule are counted from.
    pub(crate) due: Duration,
    pub(crate) until: Option<Duration>,
}

impl Schedule {
    /// Counts from `base`. `random` is for this rule and this connection alone.
    pub(crate) fn new(number: usize, rule: &Rule, base: Duration, mut random: SmallRng) -> Self {
        let first = match rule.when {
            When::Always => Duration::ZERO,
            When::At { at, .. } => at,
            When::After(after) => after,
            When::Every(mean) => gap(mean, &mut random),
        };
        Self {
            rule: number,
            when: rule.when,
            lasts: rule.lasts,
            is_of_a_moment: rule.fault.is_of_a_moment(),
            random,
            base,
            next: base.checked_add(first),
        }
    }

    /// Returns when the next strike is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.next
    }

    /// Returns a strike that is due.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Strike> {
        let at = self.next.filter(|at| *at <= now)?;
        let until = self.lasts.filter(|_| !self.is_of_a_moment).and_then(|lasts| at.checked_add(lasts));
        self.next = match self.when {
            When::Always | When::After(_) | When::At { repeat: None, .. } => None,
            // What lasts until it is lifted strikes once.
            _ if !self.is_of_a_moment && until.is_none() => None,
            When::At { repeat: Some(repeat), .. } => at.checked_add(repeat.max(SHORTEST)),
            When::Every(mean) => until.unwrap_or(at).checked_add(gap(mean, &mut self.random)),
        };
        Some(Strike { at, due: at.saturating_sub(self.base), until })
    }
}

/// Whether a rule has one schedule for the proxy, not one for each connection.
pub(crate) fn is_of_the_proxy(rule: &Rule) -> bool {
    matches!(rule.when, When::At { .. }) || matches!(rule.fault, Fault::Refuse | Fault::Mute)
}

/// Returns the random values of one connection for one purpose, the same in each run with the same seed.
pub(crate) fn random(seed: u64, connection: u64, purpose: u64) -> SmallRng {
    // SplitMix64 between the three, so that neighbours have nothing in common.
    let mixed = [connection, purpose].into_iter().fold(mix(seed), |state, value| mix(state ^ mix(value)));
    SmallRng::seed_from_u64(mixed)
}

/// Whether a rule with this share strikes a connection.
pub(crate) fn is_struck(seed: u64, connection: u64, number: usize, share: f64) -> bool {
    share >= 1.0 || random(seed, connection, !(number as u64)).random::<f64>() < share
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Draws the time to the next of events that come at random, `mean` apart on average.
fn gap(mean: Duration, random: &mut SmallRng) -> Duration {
    let seconds = -(1.0 - random.random::<f64>()).ln() * mean.as_secs_f64();
    let gap = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    // Whole milliseconds: a timeline repeats them exactly.
    Duration::from_millis(u64::try_from(gap.as_millis()).unwrap_or(u64::MAX)).max(SHORTEST)
}
