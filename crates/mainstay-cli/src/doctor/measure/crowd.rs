//! Many connections at once, and one client that opens and closes again and again: which rates, and when it is enough.
//!
//! Machines: times count from the start of the experiment.

use std::time::Duration;

use super::super::measured::{self, Refused};

/// So many refusals in a row end the experiment.
const ENOUGH: u32 = 3;
/// The highest rate of openings, each second.
const FASTEST: f64 = 200.0;

/// A connection that is this part of a limit old may have ended by it: a limit is measured on few connections.
const EARLIER: f64 = 0.9;

/// Opens connections at a rate until all are open, or too many are refused.
#[derive(Debug)]
pub(crate) struct Crowd {
    result: measured::Crowd,
    started: u32,
    in_a_row: u32,
    open: u32,
}

impl Crowd {
    /// Creates one that opens `count` connections within `time`, as far as the highest rate allows.
    pub(crate) fn new(count: u32, time: Duration) -> Self {
        let rate = (f64::from(count) / time.as_secs_f64().max(0.1)).clamp(1.0, FASTEST);
        let asked = count.min((rate * time.as_secs_f64()).ceil() as u32);
        Self {
            result: measured::Crowd { asked, rate, ..measured::Crowd::default() },
            started: 0,
            in_a_row: 0,
            open: 0,
        }
    }

    /// Returns when the next one is due; `None`: no more are opened.
    pub(crate) fn next(&self) -> Option<Duration> {
        let goes_on = self.started < self.result.asked && self.in_a_row < ENOUGH;
        goes_on.then(|| Duration::from_secs_f64(f64::from(self.started) / self.result.rate))
    }

    /// The next one is being opened; returns its number, counted from 1.
    pub(crate) fn start(&mut self) -> u32 {
        self.started += 1;
        self.started
    }

    pub(crate) fn handle_open(&mut self) {
        self.in_a_row = 0;
        self.open += 1;
        self.result.opened += 1;
        self.result.most_open = self.result.most_open.max(self.open);
    }

    pub(crate) fn handle_refusal(&mut self, refused: Refused) {
        self.in_a_row += 1;
        self.result.refusals += 1;
        let is_first = self.result.refused.as_ref().is_none_or(|first| refused.number < first.number);
        if is_first {
            self.result.refused = Some(refused);
        }
    }

    /// An open one ended by itself at this age. `limit`: the age at which one that only waits is cut.
    pub(crate) fn handle_end(&mut self, age: Duration, limit: Option<Duration>) {
        self.open = self.open.saturating_sub(1);
        let is_expired = limit.is_some_and(|limit| age >= limit.mul_f64(EARLIER));
        *if is_expired { &mut self.result.expired } else { &mut self.result.lost } += 1;
    }

    /// The last ones, so many, are neither open nor refused after this time.
    pub(crate) fn handle_unanswered(&mut self, count: u32, time: Duration) {
        if count > 0 {
            let words = format!("no answer within {} s", time.as_secs());
            self.handle_refusal(Refused {
                number: self.started.saturating_sub(count) + 1,
                words,
                ..Refused::default()
            });
            self.result.refusals += count - 1;
        }
    }

    pub(crate) fn result(&self) -> &measured::Crowd {
        &self.result
    }
}

/// The rates at which one client reconnects, each second.
const RATES: [f64; 6] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0];

/// Opens and closes at growing rates until one opening is refused.
#[derive(Debug)]
pub(crate) struct Reconnects {
    result: measured::Reconnect,
    /// For each rate.
    share: Duration,
    rate: usize,
    /// Within the rate.
    done: u32,
    due: Duration,
}

impl Reconnects {
    /// Creates one that ends within `time`, if the server is fast enough.
    pub(crate) fn new(time: Duration) -> Self {
        let share = time / RATES.len() as u32;
        // A rate is tried if two openings fit.
        let rate = RATES.iter().position(|rate| share.as_secs_f64() * rate >= 2.0).unwrap_or(RATES.len() - 1);
        Self { result: measured::Reconnect::default(), share, rate, done: 0, due: Duration::ZERO }
    }

    /// Returns when the next opening is due; `None`: it is over.
    pub(crate) fn next(&self) -> Option<Duration> {
        (self.result.refused.is_none() && self.rate < RATES.len()).then_some(self.due)
    }

    pub(crate) fn number(&self) -> u32 {
        self.result.opened + 1
    }

    /// One was opened, and is closed, at `now`.
    pub(crate) fn handle_open(&mut self, now: Duration) {
        let Some(rate) = RATES.get(self.rate) else { return };
        self.result.opened += 1;
        self.done += 1;
        let apart = Duration::from_secs_f64(1.0 / rate);
        let kept_pace = now < self.due + apart;
        if f64::from(self.done) >= (self.share.as_secs_f64() * rate).max(2.0) {
            // A path on which one opening takes longer than that cannot show the rate.
            if kept_pace {
                self.result.accepted_rate = Some(*rate);
            }
            self.rate = if kept_pace { self.rate + 1 } else { RATES.len() };
            self.done = 0;
        }
        self.due = now.max(self.due + apart);
    }

    /// One was refused.
    pub(crate) fn handle_refusal(&mut self, refused: Refused) {
        self.result.refused_rate = RATES.get(self.rate).copied();
        self.result.refused = Some(refused);
    }

    /// Returns how long to wait before one more attempt, if the server says so and that is at most `longest`.
    pub(crate) fn wait(&self, longest: Duration) -> Option<Duration> {
        let wait = Duration::try_from_secs_f64(self.result.refused.as_ref()?.retry_after_ms? / 1e3).ok()?;
        (wait <= longest).then_some(wait)
    }

    pub(crate) fn handle_after_wait(&mut self, is_accepted: bool) {
        self.result.accepted_after_wait = Some(is_accepted);
    }

    pub(crate) fn result(&self) -> &measured::Reconnect {
        &self.result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(number: u32, retry_after_ms: Option<f64>) -> Refused {
        Refused { number, status: Some(429), retry_after_ms, words: String::new() }
    }

    #[test]
    fn a_crowd_is_opened_at_one_rate() {
        let mut crowd = Crowd::new(200, Duration::from_secs(4));
        let mut due = Vec::new();
        while let Some(at) = crowd.next() {
            due.push(at);
            crowd.start();
            crowd.handle_open();
        }
        assert_eq!((due.len(), due[50], crowd.result().most_open), (200, Duration::from_secs(1), 200));
    }

    #[test]
    fn a_short_time_has_fewer_connections_and_not_a_higher_rate() {
        let crowd = Crowd::new(200, Duration::from_millis(500));
        assert_eq!((crowd.result().asked, crowd.result().rate), (100, FASTEST));
    }

    #[test]
    fn three_refusals_in_a_row_are_enough_and_the_first_is_reported() {
        let mut crowd = Crowd::new(200, Duration::from_secs(4));
        while crowd.next().is_some() {
            match crowd.start() {
                number @ (10 | 21..) => crowd.handle_refusal(refused(number, None)),
                _ => crowd.handle_open(),
            }
        }
        crowd.handle_end(Duration::from_secs(1), None);
        let result = crowd.result();
        assert_eq!((result.opened, result.refusals, result.lost, result.most_open), (19, 4, 1, 19));
        assert_eq!(result.refused.as_ref().unwrap().number, 10);
    }

    #[test]
    fn what_ends_at_a_limit_that_is_known_is_not_lost_in_the_crowd() {
        let mut crowd = Crowd::new(3, Duration::from_secs(4));
        for age in [2900, 3000, 1000] {
            crowd.start();
            crowd.handle_open();
            crowd.handle_end(Duration::from_millis(age), Some(Duration::from_secs(3)));
        }
        assert_eq!((crowd.result().expired, crowd.result().lost), (2, 1));
    }

    #[test]
    fn reconnects_grow_in_rate_and_end_in_time() {
        let time = Duration::from_secs(6);
        let (mut reconnects, mut last) = (Reconnects::new(time), Duration::ZERO);
        while let Some(due) = reconnects.next() {
            last = due;
            reconnects.handle_open(due);
        }
        assert!(last <= time + Duration::from_secs(1), "{last:?}");
        assert_eq!((reconnects.result().accepted_rate, reconnects.result().opened), (Some(50.0), 87));
    }

    #[test]
    fn a_slow_path_ends_the_growth_of_the_rate() {
        let mut reconnects = Reconnects::new(Duration::from_secs(6));
        let mut now = Duration::ZERO;
        while let Some(due) = reconnects.next() {
            now = now.max(due) + Duration::from_millis(150);
            reconnects.handle_open(now);
        }
        assert_eq!(reconnects.result().accepted_rate, Some(5.0));
    }

    #[test]
    fn the_first_refusal_ends_the_reconnects_and_its_wait_is_kept_if_it_is_short() {
        let mut reconnects = Reconnects::new(Duration::from_secs(6));
        while let Some(due) = reconnects.next() {
            match reconnects.number() {
                number @ 20.. => reconnects.handle_refusal(refused(number, Some(2000.0))),
                _ => reconnects.handle_open(due),
            }
        }
        assert_eq!((reconnects.result().opened, reconnects.result().refused_rate), (19, Some(20.0)));
        assert_eq!(reconnects.wait(Duration::from_secs(3)), Some(Duration::from_secs(2)));
        assert_eq!(reconnects.wait(Duration::from_secs(1)), None);
    }
}
