//! How many connections a second are accepted, and when the others may try again.
//!
//! A refused client gets a *place*: the next moment at which the rate allows one more. The place is the delay that it is
//! told, so that the clients of a stampede come back one after the other, as a queue, and not all at once. Resumes have
//! a rate of their own, four times as high: a client that comes back to a session costs less than a new one, and loses
//! more.
//!
//! The rate is configured, or *measured*: it has no limit until accepted connections wait for this process. From the time
//! in which none was served at once, the rate is a part of what was served in that time; while they are served at once it
//! rises, and it ends when nothing was refused for a while.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// How many new clients a second are accepted. Default: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum AcceptRate {
    /// No limit.
    #[default]
    Unlimited,
    /// As many as this process serves without letting them wait.
    Measured,
    /// This many a second; as many may come at once.
    PerSecond(NonZeroU32),
}

/// Resumes have this multiple of the rate.
const RESUMES: f64 = 4.0;
/// The longest delay that a refused client is told.
const LONGEST: Duration = Duration::from_secs(120);
/// An accepted connection that waited longer than this for the process was not served at once.
const LATE: Duration = Duration::from_millis(50);
/// How often the measured rate is set.
const PERIOD: Duration = Duration::from_millis(500);
/// A process that serves less a second is not measured but broken.
const LOWEST: f64 = 20.0;
/// The part of what was served late that is accepted from then on.
const LOWERS_TO: f64 = 0.8;
/// The rise in each period that was not late.
const RISES_BY: f64 = 1.1;
/// The measured rate ends after so long without a refusal.
const CALM: Duration = Duration::from_secs(30);

/// The rate and the places; the module describes it.
#[derive(Debug)]
pub(super) struct Pace {
    accept: AcceptRate,
    /// New clients a second; `None`: no limit.
    rate: Option<f64>,
    new: Bucket,
    resumes: Bucket,
    /// The place of the last client that was refused.
    place: Instant,
    refused: Instant,
    measured: Period,
}

/// What may pass now: at most the number of a second.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// The connections that were served in the current period.
#[derive(Debug)]
struct Period {
    since: Instant,
    served: u32,
    late: u32,
}

impl Period {
    fn new(since: Instant) -> Self {
        Self { since, served: 0, late: 0 }
    }
}

impl Bucket {
    fn full(rate: f64, at: Instant) -> Self {
        Self { left: rate, at }
    }

    fn left(&self, now: Instant, rate: f64) -> f64 {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        (self.left + earned).min(rate.max(1.0))
    }

    fn spend(&mut self, now: Instant, rate: f64) {
        self.left = self.left(now, rate) - 1.0;
        self.at = now;
    }
}

impl Pace {
    pub(super) fn new(accept: AcceptRate, now: Instant) -> Self {
        let rate = match accept {
            AcceptRate::PerSecond(rate) => Some(f64::from(rate.get())),
            AcceptRate::Unlimited | AcceptRate::Measured => None,
        };
        let full = rate.unwrap_or(0.0);
        Self {
            accept,
            rate,
            new: Bucket::full(full, now),
            resumes: Bucket::full(full * RESUMES, now),
            place: now,
            refused: now,
            measured: Period::new(now),
        }
    }

    /// New clients a second; `None`: no limit.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Whether a new client may pass.
    pub(super) fn admits_new(&self, now: Instant) -> bool {
        self.rate.is_none_or(|rate| self.new.left(now, rate) >= 1.0)
    }

    /// Whether a client that asks for its session may pass.
    pub(super) fn admits_resume(&self, now: Instant) -> bool {
        self.rate.is_none_or(|rate| self.resumes.left(now, rate * RESUMES) >= 1.0)
    }

    pub(super) fn spend_new(&mut self, now: Instant) {
        self.rate.into_iter().for_each(|rate| self.new.spend(now, rate));
    }

    pub(super) fn spend_resume(&mut self, now: Instant) {
        self.rate.into_iter().for_each(|rate| self.resumes.spend(now, rate * RESUMES));
    }

    /// Returns the time until the place of the next client that is refused.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let part = self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        (self.place.saturating_duration_since(now) + part).min(LONGEST)
    }

    /// A client was refused, and told [`wait`](Self::wait): its place is taken.
    pub(super) fn take_place(&mut self, now: Instant) {
        self.place = now + self.wait(now);
        self.refused = now;
    }

    /// An accepted connection was served, `waited` after it was accepted.
    pub(super) fn handle_served(&mut self, now: Instant, waited: Duration) {
        if self.accept != AcceptRate::Measured {
            return;
        }
        self.measured.served += 1;
        self.measured.late += u32::from(waited > LATE);
        let length = now.saturating_duration_since(self.measured.since);
        if length >= PERIOD {
            let Period { served, late, .. } = std::mem::replace(&mut self.measured, Period::new(now));
            self.measure(now, f64::from(served) / length.as_secs_f64(), late == served);
        }
    }

    /// Sets the rate after a period in which `served` connections a second were served.
    fn measure(&mut self, now: Instant, served: f64, all_late: bool) {
        match self.rate {
            _ if all_late => {
                let rate = (served * LOWERS_TO).max(LOWEST);
                if self.rate.is_none() {
                    (self.new, self.resumes) = (Bucket { left: 0.0, at: now }, Bucket::full(rate, now));
                }
                (self.rate, self.refused) = (Some(rate), now);
            }
            Some(_) if now.saturating_duration_since(self.refused) >= CALM => self.rate = None,
            Some(rate) => self.rate = Some(rate * RISES_BY),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, VecDeque};

    use super::*;
    use crate::origin;

    fn per_second(rate: u32) -> AcceptRate {
        AcceptRate::PerSecond(NonZeroU32::new(rate).unwrap())
    }

    /// Clients that all come at once, and come back when they are told. Returns how many were accepted in each second,
    /// and the attempts of the one that needed most.
    fn stampede(clients: usize, rate: u32, whole_seconds: bool) -> (Vec<u32>, u32) {
        let (start, mut seconds, mut most) = (origin(), Vec::new(), 0);
        let mut pace = Pace::new(per_second(rate), start);
        let mut coming: BinaryHeap<_> = (0..clients).map(|client| Reverse((start, client, 1))).collect();
        while let Some(Reverse((now, client, attempts))) = coming.pop() {
            if pace.admits_new(now) {
                pace.spend_new(now);
                let second = usize::try_from((now - start).as_secs()).unwrap();
                seconds.resize(seconds.len().max(second + 1), 0);
                seconds[second] += 1;
                most = most.max(attempts);
                continue;
            }
            let wait = pace.wait(now);
            pace.take_place(now);
            // `Retry-After` has whole seconds.
            let wait = if whole_seconds { Duration::from_secs(wait.as_secs() + 1) } else { wait };
            coming.push(Reverse((now + wait, client, attempts + 1)));
        }
        (seconds, most)
    }

    #[test]
    fn a_stampede_becomes_a_queue_in_which_each_client_is_refused_at_most_twice() {
        for whole_seconds in [false, true] {
            let (seconds, attempts) = stampede(20_000, 500, whole_seconds);
            assert!(seconds[0] <= 1000 && seconds[1..].iter().all(|count| *count <= 501), "{seconds:?}");
            // As short as the rate allows: 20,000 clients at 500 a second.
            assert!(seconds.len() <= 42, "{} seconds, {whole_seconds}", seconds.len());
            assert!(attempts <= 3, "{attempts} attempts, {whole_seconds}");
        }
    }

    #[test]
    fn resumes_pass_at_four_times_the_rate_and_cost_new_clients_nothing() {
        let now = origin();
        let mut pace = Pace::new(per_second(10), now);
        let resumed = std::iter::repeat_with(|| {
            let passes = pace.admits_resume(now);
            pace.spend_resume(now);
            passes
        });
        assert_eq!(resumed.take(100).filter(|passes| *passes).count(), 40);
        assert!(pace.admits_new(now));
    }

    #[test]
    fn no_client_is_told_to_wait_longer_than_two_minutes() {
        let now = origin();
        let mut pace = Pace::new(per_second(1), now);
        for _ in 0..1000 {
            pace.take_place(now);
        }
        assert_eq!(pace.wait(now), LONGEST);
    }

    /// A process that serves `capacity` connections a second, and to which `offered` come; a connection waits as long as
    /// those before it need. Returns the accepted ones in each of these seconds.
    fn measured(capacity: f64, offered: &[u32]) -> (Vec<u32>, Pace) {
        let start = origin();
        let (mut pace, mut free_at, mut accepted) =
            (Pace::new(AcceptRate::Measured, start), start, Vec::new());
        // When each accepted connection will be served, and how long it waits until then.
        let mut waiting: VecDeque<(Instant, Duration)> = VecDeque::new();
        for (second, offered) in offered.iter().enumerate() {
            let mut count = 0;
            for n in 0..*offered {
                let part = (second as f64) + f64::from(n) / f64::from(*offered);
                let now = start + Duration::from_secs_f64(part);
                while let Some((at, waited)) = waiting.pop_front_if(|(at, _)| *at <= now) {
                    pace.handle_served(at, waited);
                }
                if !pace.admits_new(now) {
                    pace.take_place(now);
                    continue;
                }
                pace.spend_new(now);
                count += 1;
                free_at = free_at.max(now);
                waiting.push_back((free_at, free_at - now));
                free_at += Duration::from_secs_f64(1.0 / capacity);
            }
            accepted.push(count);
        }
        (accepted, pace)
    }

    #[test]
    fn the_measured_rate_has_no_limit_until_connections_wait() {
        let (accepted, pace) = measured(1000.0, &[900; 20]);
        assert!(accepted.iter().all(|count| *count == 900) && pace.rate().is_none(), "{accepted:?}");
    }

    #[test]
    fn the_measured_rate_settles_near_what_the_process_serves() {
        let (accepted, _) = measured(300.0, &[3000; 60]);
        let later: Vec<_> = accepted[20..].to_vec();
        let mean = f64::from(later.iter().sum::<u32>()) / later.len() as f64;
        assert!((200.0..400.0).contains(&mean), "{mean}: {accepted:?}");
    }

    #[test]
    fn the_measured_rate_ends_when_nothing_was_refused_for_a_while() {
        let offered: Vec<u32> = [3000; 10].into_iter().chain([100; 60]).collect();
        let (accepted, pace) = measured(300.0, &offered);
        assert_eq!(pace.rate(), None, "{accepted:?}");
    }
}
