//! When an end may call the other one dead, and when it must: judged by what its connection brought it.
//!
//! An [`Ear`] is what one end of one connection could know: when it last read bytes, which of its probes left
//! and were not answered, whether its socket was full, and when its process slept. The network keeps it; no
//! machine is asked, but for its round-trip time, of which the protocol makes the deadline.
//!
//! - *Too late* (invariant 8): an end that hears nothing gives up within its own bound, whatever the cause. Sleep
//!   of the judging process moves the bound to one fresh deadline after it, no further.
//! - *Too early* (invariant 9): nobody is called dead within the time that it has, counted from the last byte and
//!   from the moment the probe left.
//! - *Too early* after sleep (invariant 10): a timer that was late by more than a quarter interval is no evidence;
//!   only a probe that left after it is.
//!
//! Whether there was a cause at all is judged by the [`world`](crate::world), which knows the faults.
//!
//! Source: `docs/PROTOCOL.md` "Heartbeat".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mainstay_proto::heartbeat::Evidence;

/// Machines count whole milliseconds, and multiply by up to four.
const ROUNDING: Duration = Duration::from_millis(6);
/// How late a driver may look at a timer: see the world's `TICK`.
const TICK: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug, Clone)]
pub struct Ear {
    heard: Instant,
    /// When the newest probe was written, or the connection was attached.
    beat: Instant,
    /// Probes that left and were not answered: nonce, and when.
    probes: VecDeque<(u64, Instant)>,
    /// Something waits for the socket.
    waits: bool,
    /// When something last began to wait, or some of what waited was taken.
    stuck: Option<Instant>,
    woke: Option<Instant>,
    /// The process slept past a deadline: nothing from before is evidence.
    fresh_from: Option<Instant>,
}

impl Ear {
    /// An end that has just been attached.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            heard: now,
            beat: now,
            probes: VecDeque::new(),
            waits: false,
            stuck: None,
            woke: None,
            fresh_from: None,
        }
    }

    /// Bytes were read.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A probe was written.
    pub fn beats(&mut self, now: Instant) {
        self.beat = now;
    }

    /// A probe left the process.
    pub fn probe_left(&mut self, now: Instant, nonce: u64) {
        self.probes.push_back((nonce, now));
    }

    /// The answer to a probe was read: it answers those before it too.
    pub fn answered(&mut self, nonce: u64) {
        if let Some(at) = self.probes.iter().position(|(probe, _)| *probe == nonce) {
            self.probes.drain(..=at);
        }
    }

    /// The socket took some of what was written or not, and something waits now or not.
    pub fn wrote(&mut self, now: Instant, progress: bool, waits: bool) {
        if self.waits && progress || self.waits != waits {
            self.stuck = Some(now);
        }
        self.waits = waits;
    }

    /// The last sleep made everything before it worthless.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh_from.is_some() && self.fresh_from == self.woke
    }

    /// For a failing seed.
    #[must_use]
    pub fn describe(&self, now: Instant) -> String {
        let ago = |at: Option<Instant>| at.map_or("never".to_owned(), |at| format!("{:?} ago", now - at));
        format!(
            "heard {}, oldest open probe {}, waits: {}, stuck {}, woke {}",
            ago(Some(self.heard)),
            ago(self.probes.front().map(|(_, left)| *left)),
            self.waits,
            ago(self.stuck),
            ago(self.woke)
        )
    }

    fn was_stuck(&self) -> bool {
        self.waits || self.stuck.is_some_and(|at| at >= self.heard)
    }

    fn since_sleep(&self, at: Instant) -> Instant {
        self.fresh_from.map_or(at, |fresh| fresh.max(at))
    }
}

/// The end that drives the heartbeat.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// Heartbeat interval.
    pub interval: Duration,
    /// The machine's smoothed round trip.
    pub rtt: Option<Duration>,
}

impl Server {
    /// How long a probe that left may stay unanswered.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        (self.rtt.unwrap_or_default() * 4 + Duration::from_secs(1))
            .clamp(Duration::from_secs(5), Duration::from_secs(20))
    }

    /// The longest that a silent peer is given with this evidence.
    #[must_use]
    pub fn patience(&self, evidence: Evidence) -> Duration {
        if evidence == Evidence::Silent { self.deadline() } else { self.deadline() * 4 }
    }

    /// The process slept until now, and has read what was readable.
    pub fn woke(&self, now: Instant, ear: &mut Ear) {
        let verdict = ear.probes.front().map(|(_, left)| ear.heard.max(*left) + self.deadline());
        let due = (ear.beat + self.interval.mul_f64(1.1)).min(verdict.unwrap_or(now));
        ear.woke = Some(now);
        if !ear.was_stuck() && now > due + self.interval / 4 + ROUNDING {
            ear.fresh_from = Some(now);
            ear.probes.clear();
        }
    }

    /// What is wrong with a verdict, if anything.
    #[must_use]
    pub fn too_early(&self, now: Instant, ear: &Ear, evidence: Evidence) -> Option<&'static str> {
        let (from, patience) = match (evidence, ear.probes.front()) {
            (Evidence::Stalled, _) => {
                // Who sends and takes nothing is given longer, and not for ever.
                let stuck = ear.stuck.unwrap_or(ear.heard);
                let silent = stuck.max(ear.heard) + self.deadline() * 4;
                let until = silent.min(stuck + self.deadline() * 24);
                return (now + ROUNDING < ear.since_sleep(until)).then_some("the deadline had not passed");
            }
            (_, None) => return Some("no probe left since the last answer or our own sleep"),
            (_, Some((_, left))) => (ear.heard.max(*left), self.deadline()),
        };
        (now + ROUNDING < ear.since_sleep(from) + patience).then_some("the deadline had not passed")
    }

    /// Until when a peer that is silent must have been given up.
    #[must_use]
    pub fn bound(&self, ear: &Ear) -> Instant {
        let probed = ear.heard + self.interval.mul_f64(1.1);
        let (from, patience) = match ear.stuck.filter(|_| ear.was_stuck()) {
            Some(stuck) => (probed.max(stuck), self.deadline() * 4),
            None => (probed, self.deadline()),
        };
        ear.woke.map_or(from, |woke| from.max(woke)) + patience + TICK
    }
}

/// The end that is probed, and probes only when asked to.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Heartbeat interval, as the server announced it.
    pub interval: Duration,
    /// The machine's smoothed round trip.
    pub rtt: Option<Duration>,
}

impl Client {
    fn limit(&self) -> Duration {
        self.interval * 2 + Duration::from_secs(5)
    }

    fn probe_deadline(&self) -> Duration {
        (self.rtt.unwrap_or_default() * 4).clamp(Duration::from_secs(2), Duration::from_secs(20))
    }

    /// The probe that is open: any byte ends it.
    fn probe(ear: &Ear) -> Option<Instant> {
        ear.probes.back().map(|(_, left)| *left).filter(|left| *left >= ear.heard)
    }

    /// How long a probe that cannot leave is given without a byte either way.
    fn stalled(&self) -> Duration {
        Server { interval: self.interval, rtt: self.rtt }.deadline() * 4
    }

    /// For how long this verdict says that the peer was silent.
    #[must_use]
    pub fn patience(&self, now: Instant, ear: &Ear, evidence: Evidence) -> Duration {
        if evidence == Evidence::Stalled {
            return self.stalled();
        }
        let long = now + ROUNDING >= ear.since_sleep(ear.heard) + self.limit();
        if long { self.limit() } else { self.probe_deadline() }
    }

    /// The process slept until now, and has read what was readable.
    pub fn woke(&self, now: Instant, ear: &mut Ear) {
        let verdict = Self::probe(ear).map_or(now + self.limit(), |left| left + self.probe_deadline());
        // A machine that was late before counts from then.
        let due = (ear.woke.map_or(ear.heard, |woke| woke.max(ear.heard)) + self.limit()).min(verdict);
        ear.woke = Some(now);
        if !ear.was_stuck() && now > due + self.interval / 4 + ROUNDING {
            ear.fresh_from = Some(now);
            ear.probes.clear();
        }
    }

    /// What is wrong with a verdict, if anything.
    #[must_use]
    pub fn too_early(&self, now: Instant, ear: &Ear, evidence: Evidence) -> Option<&'static str> {
        if evidence == Evidence::Stalled {
            let moved = ear.stuck.unwrap_or(ear.heard).max(ear.heard);
            let until = ear.since_sleep(moved) + self.stalled();
            return (now + ROUNDING < until)
                .then_some("the deadline of a probe that cannot leave had not passed");
        }
        let silent = now + ROUNDING >= ear.since_sleep(ear.heard) + self.limit();
        let unanswered = Self::probe(ear).is_some_and(|left| now + ROUNDING >= left + self.probe_deadline());
        (!silent && !unanswered).then_some("neither the limit nor the deadline of a probe had passed")
    }

    /// Until when a silent server must have been given up. `hindered`: after sleep the probe may not leave.
    #[must_use]
    pub fn bound(&self, ear: &Ear, hindered: bool) -> Instant {
        let fresh = if hindered || ear.was_stuck() { self.limit() } else { self.probe_deadline() };
        let from_sleep = ear.woke.map(|woke| woke + fresh);
        let from_silence = ear.heard + self.limit();
        from_sleep.map_or(from_silence, |at| at.max(from_silence)) + TICK
    }
}
