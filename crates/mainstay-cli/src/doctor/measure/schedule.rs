//! How the time and the connections of a run are divided among the experiments.

use std::time::Duration;

use super::super::Plan;
use super::crowd::Crowd;
use super::idle::Bounds;

/// The most silent connections at once.
const SILENT: usize = 16;
/// The most connections at once on which only this client sends.
const UP: usize = 3;
/// The most time for the crowd and the reconnects at the end.
const TAIL: Duration = Duration::from_secs(14);
/// Between two Pings of a connection that sends them as clients do, if there is time for that.
const EVERY: Duration = Duration::from_secs(20);

/// The division. All of it follows from the [`Plan`].
///
/// The last fifth, at most 14 s, is for the crowd and the reconnects. Until then connections wait. With less than 130 s everything is
/// proportionally shorter: the limits that can be found end at about two thirds of the time.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    /// The end of the waiting.
    pub(crate) waiting: Duration,
    /// The time after it.
    pub(crate) tail: Duration,
    /// How long a Pong may take before the connection counts as cut. A later Pong corrects that.
    pub(crate) patience: Duration,
    /// Between two openings while connections wait.
    pub(crate) apart: Duration,
    /// Between two Pings or Pongs of the connections that send as clients do, until the idle limit turns out to be shorter.
    pub(crate) every: Duration,
    /// Between two Pings of the busy connections.
    pub(crate) busy_every: Duration,
    /// The second busy connection is opened so much later: one moment is then told from one age.
    pub(crate) second_busy: Duration,
    /// The silent connections at once.
    pub(crate) silent: usize,
    /// The connections at once on which only this client sends.
    pub(crate) up: usize,
    /// The watched connections, in the order in which they are opened.
    pub(crate) habits: Vec<Habit>,
    /// Whether the short experiments run beside the waiting, with one more connection, or before it.
    pub(crate) is_side_by_side: bool,
    /// The connections at once, at most. The one that showed the facts is open, too, and not counted here.
    pub(crate) at_once: usize,
}

/// What a watched connection does all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Its Pings are so frequent that no idle limit ends it.
    Busy,
    /// The same, opened later.
    SecondBusy,
    /// It sends a Ping each [`Schedule::every`].
    Pings,
    /// It answers the server's Pings and sends nothing else.
    Answers,
    /// It does not even answer.
    Mute,
    /// It sends messages, which the server returns, as often as a busy one sends Pings. Only with `--echo`.
    Talks,
}

/// In the order in which a bound on connections leaves them in.
const HABITS: [Habit; 6] =
    [Habit::Busy, Habit::Pings, Habit::Mute, Habit::SecondBusy, Habit::Answers, Habit::Talks];

impl Schedule {
    pub(crate) fn new(plan: &Plan) -> Self {
        let lasts = plan.lasts;
        let tail = TAIL.min(lasts / 5);
        let at_once = plan.connections.saturating_sub(1).max(1);
        let mut left = at_once;
        let mut take = |most: usize| {
            let taken = most.min(left);
            left -= taken;
            taken
        };
        let one_silent = take(1);
        let mut habits = HABITS.to_vec();
        habits.retain(|habit| plan.echo || *habit != Habit::Talks);
        habits.truncate(take(habits.len()));
        let (one_up, beside) = (take(1), take(1));
        let (up, silent) = (one_up + take(UP - 1), one_silent + take(SILENT - 1));
        Self {
            waiting: lasts.saturating_sub(tail),
            tail,
            patience: (lasts / 20).clamp(Duration::from_millis(300), Duration::from_secs(5)),
            apart: (lasts / 1300).clamp(Duration::from_millis(20), Duration::from_millis(100)),
            every: EVERY.min(lasts.mul_f64(1.0 / 6.5)),
            busy_every: (lasts / 130).clamp(Duration::from_millis(100), Duration::from_secs(5)),
            second_busy: lasts / 10,
            silent,
            up,
            habits,
            is_side_by_side: beside == 1,
            at_once,
        }
    }

    /// Returns how many connections wait at once, at most.
    pub(crate) fn waiting_at_once(&self) -> usize {
        self.silent + self.up + self.habits.len() + usize::from(self.is_side_by_side)
    }

    /// Returns the bounds of the search on silent connections.
    pub(crate) fn silent_bounds(&self) -> Bounds {
        let openings = self.silent * 4;
        Bounds {
            until: self.waiting,
            patience: self.patience,
            slack: self.slack(),
            connections: self.silent,
            openings,
            apart: self.apart,
            ratio: 1.1,
        }
    }

    /// Returns the bounds of the search on connections on which only this client sends: they are fewer and coarser.
    pub(crate) fn up_bounds(&self) -> Bounds {
        Bounds { connections: self.up, openings: self.up * 8, ratio: 2.0, ..self.silent_bounds() }
    }

    /// Returns the machine that opens many connections.
    pub(crate) fn crowd(&self) -> Crowd {
        Crowd::new(u32::try_from(self.at_once).unwrap_or(u32::MAX), self.tail_part())
    }

    /// Returns the time for the short experiments. Where they run before the waiting, it is short.
    pub(crate) fn short(&self) -> Duration {
        if self.is_side_by_side { self.waiting } else { self.waiting / 4 }
    }

    /// Returns how many connections are opened each second, at most, while connections wait.
    pub(crate) fn openings_per_second(&self) -> f64 {
        // The two searches open side by side; the watched connections and the short experiments are few.
        2.0 / self.apart.as_secs_f64() + 1.0
    }

    /// Returns how long a message may take, there and back.
    pub(crate) fn longest_echo(&self) -> Duration {
        (self.waiting / 8).clamp(Duration::from_secs(1), Duration::from_secs(10))
    }

    /// Returns the longest `Retry-After` that is waited for.
    pub(crate) fn longest_retry_after(&self) -> Duration {
        self.tail
    }

    /// How late the end of a connection may be noticed.
    fn slack(&self) -> Duration {
        (self.waiting / 50).clamp(Duration::from_millis(50), Duration::from_millis(250))
    }

    /// The time in which the crowd is opened, and that of the reconnects.
    pub(crate) fn tail_part(&self) -> Duration {
        self.tail.mul_f64(0.4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(lasts: u64, connections: usize) -> Schedule {
        Schedule::new(&Plan { lasts: Duration::from_secs(lasts), connections, echo: false, quick: false })
    }

    #[test]
    fn the_connections_that_wait_are_within_the_bound() {
        for (connections, echo) in (1..300).zip([false, true].into_iter().cycle()) {
            let plan = Plan { lasts: Duration::from_secs(130), connections, echo, quick: false };
            let schedule = Schedule::new(&plan);
            assert!(
                schedule.waiting_at_once() <= connections.saturating_sub(1).max(1) && schedule.silent >= 1,
                "{schedule:?}"
            );
        }
        assert_eq!(schedule(130, 200).waiting_at_once(), 25);
    }

    #[test]
    fn without_a_flag_silences_above_100_seconds_are_tried() {
        let schedule = schedule(130, 200);
        assert!(schedule.waiting - schedule.patience - schedule.apart * 16 > Duration::from_secs(108));
        assert_eq!((schedule.every, schedule.busy_every), (Duration::from_secs(20), Duration::from_secs(1)));
    }

    #[test]
    fn a_short_run_is_divided_the_same_way() {
        let schedule = schedule(10, 200);
        assert_eq!((schedule.waiting, schedule.tail), (Duration::from_secs(8), Duration::from_secs(2)));
        assert!(schedule.every * 5 < schedule.waiting && schedule.patience * 10 < schedule.waiting);
    }
}
