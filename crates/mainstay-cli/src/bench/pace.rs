//! Due times at a constant rate.

/// The due times of one thread, when all threads together work at one rate: this thread has every `threads`th.
pub(super) struct Pace {
    from: u64,
    rate: Option<f64>,
    index: u32,
    threads: u32,
    /// The number of due times that this thread used.
    pub(super) step: u64,
}

impl Pace {
    pub(super) fn new(from: u64, rate: Option<u32>, index: u32, threads: u32) -> Self {
        Self { from, rate: rate.map(f64::from), index, threads, step: 0 }
    }

    pub(super) fn is_paced(&self) -> bool {
        self.rate.is_some()
    }

    /// Returns when this thread's `step`th is due. Computed from the start, so that rounding errors do not add up.
    pub(super) fn at(&self, step: u64) -> u64 {
        let number = step * u64::from(self.threads) + u64::from(self.index);
        self.rate.map_or(0, |rate| self.from + (number as f64 * 1e9 / rate) as u64)
    }

    pub(super) fn next(&self) -> u64 {
        self.at(self.step)
    }

    /// Advances; returns when the step was due, if there is a rate.
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
    fn threads_alternate_at_one_rate_and_rounding_errors_do_not_add_up() {
        let (mut first, mut second) = (Pace::new(100, Some(3), 0, 2), Pace::new(100, Some(3), 1, 2));
        let due: Vec<_> = (0..3).flat_map(|_| [first.take(), second.take()]).flatten().collect();
        assert_eq!(due, [100, 333_333_433, 666_666_766, 1_000_000_100, 1_333_333_433, 1_666_666_766]);
        assert_eq!(Pace::new(0, Some(3), 0, 1).at(3_000_000), 1_000_000_000_000_000);
    }
}
