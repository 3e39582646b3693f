//! Finds the largest size that comes back: it doubles until one is refused, and then narrows the interval.
//!
//! A machine without time: it returns which size is tried next.

use super::super::measured::{CutHow, Largest};

/// The interval is narrow enough once it is below this share of what is accepted.
const NARROW: u64 = 16;

/// The search for the largest size.
#[derive(Debug)]
pub(crate) struct Sizes {
    first: u64,
    bound: u64,
    /// How many refusals are allowed: each costs a connection.
    refusals: u32,
    accepted: u64,
    refused: Option<(u64, CutHow)>,
    total: Option<(u64, CutHow)>,
    ended: Option<String>,
}

impl Sizes {
    /// Creates a search from `first` to `bound`, with at most so many refusals.
    pub(crate) fn new(first: u64, bound: u64, refusals: u32) -> Self {
        Self { first, bound, refusals, accepted: 0, refused: None, total: None, ended: None }
    }

    /// Returns the size to try next.
    pub(crate) fn next(&self) -> Option<u64> {
        if self.ended.is_some() || self.refusals == 0 {
            return None;
        }
        match &self.refused {
            None if self.accepted == 0 => Some(self.first),
            None => (self.accepted < self.bound).then(|| (self.accepted * 2).min(self.bound)),
            // Most limits are a power of two: one more decides whether it is exactly that.
            Some((refused, _)) if *refused == self.accepted * 2 && self.accepted.is_power_of_two() => {
                Some(self.accepted + 1)
            }
            Some((refused, _)) if self.accepted > 0 && refused - self.accepted > self.accepted / NARROW => {
                Some(self.accepted + (refused - self.accepted) / 2)
            }
            Some((refused, _)) if self.accepted == 0 && *refused > 1 => Some(refused / 2),
            Some(_) => None,
        }
    }

    /// This size came back whole.
    pub(crate) fn accept(&mut self, size: u64) {
        self.accepted = self.accepted.max(size);
    }

    /// This size ended the connection.
    pub(crate) fn refuse(&mut self, size: u64, how: CutHow) {
        self.refusals = self.refusals.saturating_sub(1);
        if self.refused.as_ref().is_none_or(|(refused, _)| size < *refused) {
            self.refused = Some((size, how));
        }
    }

    /// Returns whether a first refusal on a connection that carried others needs another look: what ended it may count all of them.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.refused.is_none()
    }

    /// A connection ended after so much in total, the last of which passes on a new one: no size is refused.
    pub(crate) fn end_by_total(&mut self, total: u64, how: CutHow) {
        self.total = Some((total, how));
        self.end("a connection ends after so much in total, whatever the size of one");
    }

    /// No more is tried.
    pub(crate) fn end(&mut self, why: impl Into<String>) {
        self.ended.get_or_insert_with(|| why.into());
    }

    /// Returns what is known; `None`: nothing yet.
    pub(crate) fn largest(&self) -> Option<Largest> {
        if self.accepted == 0 && self.refused.is_none() && self.ended.is_none() {
            return None;
        }
        let total = self.total.as_ref().map(|(total, _)| *total);
        let (refused, how) = self.refused.clone().unzip();
        let how = how.or_else(|| self.total.clone().map(|(_, how)| how));
        Some(Largest { accepted: self.accepted, refused, how, total, ended: self.ended.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn search(limit: u64, bound: u64) -> (Largest, u32) {
        let (mut sizes, mut refusals) = (Sizes::new(1024, bound, 8), 0);
        while let Some(size) = sizes.next() {
            if size <= limit {
                sizes.accept(size);
            } else {
                refusals += 1;
                sizes.refuse(size, CutHow::Close { code: Some(1009), reason: String::new() });
            }
        }
        (sizes.largest().unwrap(), refusals)
    }

    #[test]
    fn a_limit_that_is_a_power_of_two_is_found_exactly() {
        let (largest, refusals) = search(1 << 20, 64 << 20);
        assert_eq!((largest.accepted, largest.refused, refusals), (1 << 20, Some((1 << 20) + 1), 2));
    }

    #[test]
    fn no_limit_below_the_bound_ends_at_the_bound() {
        let (largest, _) = search(u64::MAX, 64 << 20);
        assert_eq!((largest.accepted, largest.refused, largest.how), (64 << 20, None, None));
    }

    #[test]
    fn an_interruption_keeps_what_is_known() {
        let mut sizes = Sizes::new(1024, 1 << 20, 8);
        assert_eq!(sizes.largest(), None);
        sizes.accept(1024);
        sizes.end("it took too long");
        assert_eq!((sizes.next(), sizes.largest().unwrap().accepted), (None, 1024));
    }

    proptest! {
        #[test]
        fn the_interval_contains_the_limit_and_is_narrow(limit in 1..100_000_000_u64) {
            let (largest, refusals) = search(limit, 64 << 20);
            prop_assert!(largest.accepted <= limit && refusals <= 8);
            match largest.refused {
                Some(refused) => prop_assert!(refused > limit && (refused as f64) <= largest.accepted as f64 * 1.07 + 16.0, "{limit} {largest:?}"),
                None => prop_assert!(limit >= 64 << 20),
            }
        }
    }
}
