//! Times that are due at a rate.

/// When things are due that all threads together do at one rate: this thread's are every `threads`th.
pub(super) struct Pace {
    from: u64,
    rate: Option<f64>,
    index: u32,
    threads: u32,
    /// How many this thread took.
    pub(super) step: u64,
}

impl Pace {
    pub(super) fn new(from: u64, rate: Option<u32>, index: u32, threads: u32) -> Self {
        Self { from, rate: rate.map(f64::from), index, threads, step: 0 }
    }

    pub(super) fn is_paced(&self) -> bool {
        self.rate.is_some()
    }

    /// When this thread's `step`th is due. Reckoned from the beginning, so that nothing adds up.
    pub(super) fn at(&self, step: u64) -> u64 {
        let number = step * u64::from(self.threads) + u64::from(self.index);
        self.rate.map_or(0, |rate| self.from + (number as f64 * 1e9 / rate) as u64)
    }

    pub(super) fn next(&self) -> u64 {
        self.at(self.step)
    }

    /// Moves on, and says when that was due, if there is a rate.
    pub(super) fn take(&mut self) -> Option<u64> {
        let due = self.next();
        self.step += 1;
        self.is_paced().then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_at_one_rate_and_nothing_adds_up() {
        let (mut first, mut second) = (Pace::new(100, Some(3), 0, 2), Pace::new(100, Some(3), 1, 2));
        let due: Vec<_> = (0..3).flat_map(|_| [first.take(), second.take()]).flatten().collect();
        assert_eq!(due, [100, 333_333_433, 666_666_766, 1_000_000_100, 1_333_333_433, 1_666_666_766]);
        assert_eq!(Pace::new(0, Some(3), 0, 1).at(3_000_000), 1_000_000_000_000_000);
    }
}
