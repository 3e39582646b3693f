//! When an end may declare the other one dead, and when it must, judged by what its connection carried.
//!
//! An [`Observed`] records what one end of one connection could observe: when it last read bytes, which of its probes left
//! and were not answered, whether its socket was full, and when its process slept. The network keeps it. The judge
//! asks a machine only for its round-trip time, from which the protocol derives the deadline.
//!
//! - *Too late* (invariant 8): an end that receives nothing gives up within its own bound, whatever the cause. Sleep
//!   of the judging process moves the bound to one new deadline after it, no further.
//! - *Too early* (invariant 9): no peer is declared dead within the time that it has, counted from the last byte and
//!   from the moment at which the probe left.
//! - *Too early* after sleep (invariant 10): a timer that was late by more than a quarter interval is no evidence;
//!   only a probe that left after it is.
//!
//! The [`world`](crate::world), which knows the faults, judges whether there was a cause.
//!
//! Source: `docs/PROTOCOL.md` "Heartbeat".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mainstay_proto::heartbeat::Evidence;

/// Machines count whole milliseconds, and multiply by up to four.
const ROUNDING: Duration = Duration::from_millis(6);
/// How late a driver may look at a timer: see the world's `TICK`.
const TICK: Duration = Duration::from_millis(250);

/// What one end of a connection could observe; the module describes it.
#[derive(Debug, Clone)]
pub struct Observed {
    last_read: Instant,
    /// When the newest probe was written, or the connection was attached.
    beat: Instant,
    /// Probes that left and were not answered: nonce, and when.
    probes: VecDeque<(u64, Instant)>,
    /// Bytes wait for the socket.
    waits: bool,
    /// When bytes last began to wait, or the socket accepted some of them.
    stuck: Option<Instant>,
    woke: Option<Instant>,
    /// When another connection of the same client last kept a probe from leaving.
    hindered: Option<Instant>,
    /// The process slept past a deadline: nothing from before counts as evidence.
    fresh_from: Option<Instant>,
}

impl Observed {
    /// Creates the observations of an end that was just attached.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            last_read: now,
            beat: now,
            probes: VecDeque::new(),
            waits: false,
            stuck: None,
            woke: None,
            hindered: None,
            fresh_from: None,
        }
    }

    /// The end read bytes.
    pub fn read_bytes(&mut self, now: Instant) {
        self.last_read = now;
    }

    /// Another connection of the same client keeps a probe from leaving.
    pub fn hindered(&mut self, now: Instant) {
        self.hindered = Some(now);
    }

    /// The end wrote a probe.
    pub fn beats(&mut self, now: Instant) {
        self.beat = now;
    }

    /// A probe left the process.
    pub fn probe_left(&mut self, now: Instant, nonce: u64) {
        self.probes.push_back((nonce, now));
    }

    /// The end read the answer to a probe: it answers all probes before it too.
    pub fn answered(&mut self, nonce: u64) {
        if let Some(at) = self.probes.iter().position(|(probe, _)| *probe == nonce) {
            self.probes.drain(..=at);
        }
    }

    /// The socket accepted part of what was written, or not, and bytes wait now, or not.
    pub fn wrote(&mut self, now: Instant, progress: bool, waits: bool) {
        if self.waits && progress || self.waits != waits {
            self.stuck = Some(now);
        }
        self.waits = waits;
    }

    /// Returns since when bytes wait of which the socket accepts none.
    #[must_use]
    pub fn stuck_since(&self) -> Option<Instant> {
        self.stuck.filter(|_| self.waits)
    }

    /// The last sleep invalidated everything before it.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh_from.is_some() && self.fresh_from == self.woke
    }

    /// Returns a description for a failing seed.
    #[must_use]
    pub fn describe(&self, now: Instant) -> String {
        let ago = |at: Option<Instant>| at.map_or("never".to_owned(), |at| format!("{:?} ago", now - at));
        format!(
            "last_read {}, oldest open probe {}, waits: {}, stuck {}, woke {}",
            ago(Some(self.last_read)),
            ago(self.probes.front().map(|(_, left)| *left)),
            self.waits,
            ago(self.stuck),
            ago(self.woke)
        )
    }

    fn was_stuck(&self) -> bool {
        self.waits || self.stuck.is_some_and(|at| at >= self.last_read)
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

    /// Returns the longest time that a silent peer has with this evidence.
    #[must_use]
    pub fn patience(&self, evidence: Evidence) -> Duration {
        if evidence == Evidence::Silent { self.deadline() } else { self.deadline() * 4 }
    }

    /// The process slept until now, and has read everything readable.
    pub fn woke(&self, now: Instant, observed: &mut Observed) {
        let verdict =
            observed.probes.front().map(|(_, left)| observed.last_read.max(*left) + self.deadline());
        let due = (observed.beat + self.interval.mul_f64(1.1)).min(verdict.unwrap_or(now));
        observed.woke = Some(now);
        if !observed.was_stuck() && now > due + self.interval / 4 + ROUNDING {
            observed.fresh_from = Some(now);
            observed.probes.clear();
        }
    }

    /// Returns what is wrong with a verdict, if anything.
    #[must_use]
    pub fn too_early(&self, now: Instant, observed: &Observed, evidence: Evidence) -> Option<&'static str> {
        let (from, patience) = match (evidence, observed.probes.front()) {
            (Evidence::Stalled, _) => {
                // A peer that sends and accepts no bytes has longer, and not for ever.
                let stuck = observed.stuck.unwrap_or(observed.last_read);
                let silent = stuck.max(observed.last_read) + self.deadline() * 4;
                let until = silent.min(stuck + self.deadline() * 24);
                return (now + ROUNDING < observed.since_sleep(until))
                    .then_some("the deadline had not passed");
            }
            (_, None) => return Some("no probe left since the last answer or our own sleep"),
            (_, Some((_, left))) => (observed.last_read.max(*left), self.deadline()),
        };
        (now + ROUNDING < observed.since_sleep(from) + patience).then_some("the deadline had not passed")
    }

    /// Returns until when the end must give up a silent peer.
    #[must_use]
    pub fn bound(&self, observed: &Observed) -> Instant {
        let probed = observed.last_read + self.interval.mul_f64(1.1);
        let (from, patience) = match observed.stuck.filter(|_| observed.was_stuck()) {
            Some(stuck) => (probed.max(stuck), self.deadline() * 4),
            None => (probed, self.deadline()),
        };
        observed.woke.map_or(from, |woke| from.max(woke)) + patience + TICK
    }
}

/// The end that is probed, and probes only on request.
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

    /// Returns the open probe: any byte ends it.
    fn probe(observed: &Observed) -> Option<Instant> {
        observed.probes.back().map(|(_, left)| *left).filter(|left| *left >= observed.last_read)
    }

    /// Returns how long a probe that cannot leave has without a byte in either direction.
    fn stalled(&self) -> Duration {
        Server { interval: self.interval, rtt: self.rtt }.deadline() * 4
    }

    /// Returns how long the peer was silent, according to this verdict.
    #[must_use]
    pub fn patience(&self, now: Instant, observed: &Observed, evidence: Evidence) -> Duration {
        if evidence == Evidence::Stalled {
            return self.stalled();
        }
        let long = now + ROUNDING >= observed.since_sleep(observed.last_read) + self.limit();
        if long { self.limit() } else { self.probe_deadline() }
    }

    /// The process slept until now, and has read everything readable.
    pub fn woke(&self, now: Instant, observed: &mut Observed) {
        let verdict = Self::probe(observed).map_or(now + self.limit(), |left| left + self.probe_deadline());
        // A machine that was late before counts from that time.
        let due = (observed.woke.map_or(observed.last_read, |woke| woke.max(observed.last_read))
            + self.limit())
        .min(verdict);
        observed.woke = Some(now);
        if !observed.was_stuck() && now > due + self.interval / 4 + ROUNDING {
            observed.fresh_from = Some(now);
            observed.probes.clear();
        }
    }

    /// Returns what is wrong with a verdict, if anything.
    #[must_use]
    pub fn too_early(&self, now: Instant, observed: &Observed, evidence: Evidence) -> Option<&'static str> {
        if evidence == Evidence::Stalled {
            let moved = observed.stuck.unwrap_or(observed.last_read).max(observed.last_read);
            let until = observed.since_sleep(moved) + self.stalled();
            return (now + ROUNDING < until)
                .then_some("the deadline of a probe that cannot leave had not passed");
        }
        let silent = now + ROUNDING >= observed.since_sleep(observed.last_read) + self.limit();
        let unanswered =
            Self::probe(observed).is_some_and(|left| now + ROUNDING >= left + self.probe_deadline());
        (!silent && !unanswered).then_some("neither the limit nor the deadline of a probe had passed")
    }

    /// Returns until when the end must give up a silent server. `hindered`: after sleep the probe may not leave.
    #[must_use]
    pub fn bound(&self, observed: &Observed, hindered: bool) -> Instant {
        let from_sleep = observed.woke.map(|woke| {
            let free = observed.hindered.map_or(woke, |at| at.max(woke)) + self.probe_deadline();
            let longest = woke + self.limit();
            if hindered || observed.was_stuck() { longest } else { free.min(longest) }
        });
        let from_silence = observed.last_read + self.limit();
        from_sleep.map_or(from_silence, |at| at.max(from_silence)) + TICK
    }
}
