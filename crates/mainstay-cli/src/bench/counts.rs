//! The counts of a worker, and their sum over all workers.

use hdrhistogram::Histogram;

/// Pings are counted in windows of this length, in nanoseconds.
pub(super) const WINDOW: u64 = 10_000_000;

/// The counts of one worker during the measurement.
pub(super) struct Counts {
    /// Answers, deliveries, handshakes or connections that came back after a storm.
    pub(super) done: u64,
    /// The latency of each, in nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// The duration of every opening handshake of the run, in nanoseconds.
    pub(super) opening: Histogram<u64>,
    pub(super) pings: u64,
    /// Pings in each window since the measurement began.
    pub(super) windows: Vec<u64>,
    /// Open connections that ended unexpectedly.
    pub(super) lost: u64,
    /// Messages that wait for an answer when the measurement ends, although none came for seconds.
    pub(super) unanswered: u64,
    /// Openings that failed.
    pub(super) failed: u64,
    /// Received messages that the generator did not send.
    pub(super) foreign: u64,
    pub(super) resumed: u64,
    /// Sessions that reported a loss.
    pub(super) gaps: u64,
    pub(super) first_problem: Option<String>,
}

impl Counts {
    pub(super) fn new() -> Self {
        let histogram = || {
            // Three significant digits up to an hour; higher values count as an hour.
            #[expect(clippy::expect_used, reason = "constant bounds, within the crate's limits")]
            Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("constant bounds")
        };
        Self {
            done: 0,
            latency: histogram(),
            opening: histogram(),
            pings: 0,
            windows: Vec::new(),
            lost: 0,
            unanswered: 0,
            failed: 0,
            foreign: 0,
            resumed: 0,
            gaps: 0,
            first_problem: None,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.done += other.done;
        // The bounds are equal, so every value fits.
        let _ = self.latency.add(&other.latency);
        let _ = self.opening.add(&other.opening);
        self.pings += other.pings;
        self.windows.resize(self.windows.len().max(other.windows.len()), 0);
        self.windows.iter_mut().zip(other.windows).for_each(|(sum, count)| *sum += count);
        self.lost += other.lost;
        self.unanswered += other.unanswered;
        self.failed += other.failed;
        self.foreign += other.foreign;
        self.resumed += other.resumed;
        self.gaps += other.gaps;
        self.first_problem = self.first_problem.take().or(other.first_problem);
    }

    /// Records a problem; the first is kept.
    pub(super) fn problem(&mut self, line: String) {
        self.first_problem.get_or_insert(line);
    }

    pub(super) fn foreign(&mut self) {
        self.foreign += 1;
        self.first_problem
            .get_or_insert_with(|| "the server sent messages that this generator did not send".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_threads_add_up() {
        let (mut all, mut one, mut other) = (Counts::new(), Counts::new(), Counts::new());
        (one.done, one.windows, other.windows) = (2, vec![1, 2], vec![1, 2, 3]);
        other.problem("first".to_owned());
        other.problem("second".to_owned());
        other.latency.saturating_record(7);
        all.add(one);
        all.add(other);
        assert_eq!((all.done, all.windows, all.latency.len()), (2, vec![2, 4, 3], 1));
        assert_eq!(all.first_problem.as_deref(), Some("first"));
    }
}
