//! When to probe a peer, and when to declare it dead.
//!
//! [`Heartbeat`] is the end that probes. It probes every interval, busy or not. Once a probe has left the process,
//! the peer has clamp(4 x srtt + 1 s, 5 s, 20 s), its *deadline*, to show a sign of life:
//!
//! - any byte that arrives is one, and restarts the deadline;
//! - progress of this end's own writes is a weaker one: it shows the peer's kernel, not the peer, so it extends the
//!   deadline to at most four times its length;
//! - a probe that cannot leave, because the socket accepts no more bytes, counts against the peer after four
//!   deadlines without a byte in either direction, and after 24 deadlines whatever arrives: a peer that accepts no
//!   bytes for that long is not reading.
//!
//! A peer that keeps sending bytes but answers no probe is alive and not listening: that is reported, and is no
//! verdict. [`Watch`] is the end that is probed: it expects a byte within twice the announced interval plus 5 s. It
//! probes only on request, for example when what this end wrote is unacknowledged for longer than
//! [`Watch::patience`].
//!
//! **A pause of this process is no evidence about the peer.** A timer that fires late by more than a quarter interval,
//! and by more than 250 ms, requests [`Action::Drain`], then a new probe, and only that probe is judged. Even in time,
//! no peer is declared dead before everything readable has been read.
//!
//! **No timer is touched for a message.** Bytes only record their time. A driver asks [`Heartbeat::poll_timeout`]
//! after `handle_timeout`, `handle_flushed` and `probe`. Everything else can only move the time later, and an early
//! call costs one comparison.
//!
//! Source: `docs/PROTOCOL.md` "Heartbeat".

use std::fmt;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use crate::ConfigError;
#[cfg(debug_assertions)]
use crate::forward::SLACK;

const SHORTEST_DEADLINE: Duration = Duration::from_secs(5);
const LONGEST_DEADLINE: Duration = Duration::from_secs(20);
const SHORTEST_PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// A timer that is late by no more is no pause of this process, however short the interval: on a busy machine each of
/// many timers may wait so long for a core, and a new deadline after each of them would never end.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// How long written data may stay unacknowledged (or four round trips, if that is longer) before this end probes the
/// peer.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(3);
/// Upper bound, in deadlines, while only this end's own writes make progress.
const HARD_CAP: u32 = 4;
/// Upper bound, in deadlines, for a peer that sends but accepts no data. On a slow link the socket reports progress
/// only now and then: it has a buffer of 128 KiB.
const STALL_CAP: u32 = 24;

/// How often to probe; one configuration for all connections of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeartbeatConfig {
    interval: Duration,
    answer_limit: Duration,
}

impl HeartbeatConfig {
    /// Probes every `interval`, +-10 %. Default: 25 s. Range: 100 ms to 1 hour.
    ///
    /// # Errors
    /// The interval is out of range.
    pub fn every(interval: Duration) -> Result<Self, ConfigError> {
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval) {
            return Err(ConfigError { field: "heartbeat.interval", bound: "between 100 ms and 1 hour" });
        }
        Ok(Self { interval, ..Self::default() })
    }

    /// Sets how long a peer may send bytes and answer no probe before it is reported as not listening: a session
    /// parks, a plain peer stays attached for what it sends.
    /// Default: 5 minutes. Range: 1 minute to 1 day.
    ///
    /// # Errors
    /// The limit is out of range.
    pub fn answer_limit(self, answer_limit: Duration) -> Result<Self, ConfigError> {
        if !(Duration::from_secs(60)..=Duration::from_secs(86_400)).contains(&answer_limit) {
            return Err(ConfigError { field: "heartbeat.answer_limit", bound: "between 1 minute and 1 day" });
        }
        Ok(Self { answer_limit, ..self })
    }

    /// Returns the time between two probes.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(25), answer_limit: Duration::from_secs(300) }
    }
}

/// What the driver has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a probe that carries `nonce`, and call `handle_flushed` when it has left the process.
    Probe {
        /// Returned in the answer. Below 2^32.
        nonce: u64,
    },
    /// Read what is readable, write what the socket accepts, yield once, and call `handle_timeout` again at once.
    Drain,
    /// The peer sends bytes and answers no probe: its page hangs, its reader is stuck, or it is in the middle of a
    /// very large frame, which only the driver can see. Reported again after each limit.
    NotListening,
    /// Abort the transport, without a closing handshake.
    Dead(Evidence),
}

/// Why a peer was declared dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// Nothing arrived after a probe.
    Silent,
    /// The peer's kernel accepted bytes, but none arrived from the peer.
    Frozen,
    /// The probe could not leave: the connection accepted no bytes.
    Stalled,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "dead: no sign of life after a probe",
            Self::Frozen => "dead: its kernel accepts bytes, and no byte comes back",
            Self::Stalled => "dead: it accepts no bytes",
        })
    }
}

/// What the previous call requested from the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Drained {
    No,
    /// Before a verdict.
    InTime,
    /// After a pause of this process.
    Late,
}

/// The probing side, one per connection; the module describes it.
///
/// Its size is 48 bytes: connections share the configuration, and the times are milliseconds after the only
/// `Instant`. While no probe is open, the two signs of life are recorded and not evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// The origin of the times below: when the oldest open probe was made or, once it left, when it left.
    since: Instant,
    next_beat: u32,
    /// When the last byte arrived; 0 means "none since".
    bytes: u32,
    /// When a write last made progress; 0 means "none since".
    progress: u32,
    srtt: Srtt,
    /// The probes after `answered` up to `newest` are open.
    newest: u32,
    answered: u32,
    drained: Drained,
    /// The oldest open probe has left.
    left: bool,
    /// The newest open probe has not left.
    queued: bool,
    /// `since` belongs to the probe after `answered`, so its answer measures the round trip.
    timed: bool,
    /// `probe` was called.
    asked: bool,
    /// The open probe was requested: the short deadline applies.
    urgent: bool,
}

impl Heartbeat {
    /// Creates a heartbeat whose first beat is uniform in (0, interval), so that connections made together beat
    /// apart.
    #[must_use]
    pub fn new(now: Instant, config: &HeartbeatConfig, rng: &mut impl Rng) -> Self {
        let nonce = rng.random();
        Self {
            since: now,
            next_beat: rng.random_range(1..=millis(config.interval)),
            bytes: 0,
            progress: 0,
            srtt: Srtt::default(),
            newest: nonce,
            answered: nonce,
            drained: Drained::No,
            left: false,
            queued: false,
            timed: false,
            asked: false,
            urgent: false,
        }
    }

    /// Bytes of any kind arrived. Cheap: one call per read.
    ///
    /// A driver that leaves readable bytes unread on purpose calls [`handle_unread`](Self::handle_unread) instead.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.bytes = self.elapsed(now);
    }

    /// Readable bytes stayed unread on purpose. That is the decision of this end, and no evidence against the peer,
    /// unless a probe of this end cannot leave: then the peer does not read either.
    pub fn handle_unread(&mut self, now: Instant) {
        if !self.queued {
            self.handle_bytes(now);
        }
    }

    /// Everything written so far has left the process: an open deadline counts from here.
    pub fn handle_flushed(&mut self, now: Instant) {
        if std::mem::take(&mut self.queued) && !self.left {
            self.restart(now);
            self.left = true;
        }
    }

    /// The socket accepted bytes of this end, or the peer's kernel acknowledged some.
    pub fn handle_write_progress(&mut self, now: Instant) {
        self.progress = self.elapsed(now);
    }

    /// An answer arrived. It answers the probe with this nonce and all before it, never a newer one. An unknown nonce
    /// only counts as bytes. Returns the round trip if it can be measured.
    pub fn handle_pong(&mut self, now: Instant, nonce: u64) -> Option<Duration> {
        self.handle_bytes(now);
        let answered = self.answered_by(nonce)?;
        let round_trip = self.round_trip(now, nonce);
        round_trip.inspect(|sample| self.srtt.add(*sample));
        self.answered = self.answered.wrapping_add(answered);
        (self.timed, self.urgent) = (false, false);
        if self.is_open() {
            // The peer answers late: the newer probes get their time from here.
            self.restart(now);
            self.left = !self.queued;
        }
        round_trip
    }

    /// Returns the round trip that an answer with this nonce measures if it arrives now; `None` if that cannot be
    /// measured.
    #[must_use]
    pub fn round_trip(&self, now: Instant, nonce: u64) -> Option<Duration> {
        let measured = self.timed && self.left && self.answered_by(nonce)? == 1;
        measured.then(|| now.saturating_duration_since(self.since))
    }

    /// Requests a probe at once, judged after max(2 s, 4 x srtt), at most 20 s: after a wake-up, when the page
    /// becomes visible or the network returns, when the application asks. While such a probe is open, another call
    /// changes nothing.
    pub fn probe(&mut self, now: Instant) {
        if !(self.is_open() && self.urgent) {
            self.asked = true;
            self.next_beat = self.elapsed(now);
        }
    }

    /// Makes the next probe due now, with the usual deadline: there is a reason to probe, and no urgency. While a
    /// probe is open the call changes nothing.
    pub fn beat_now(&mut self, now: Instant) {
        if !self.is_open() {
            self.next_beat = self.elapsed(now);
        }
    }

    /// Does what is due at `now`; an early call does nothing. Call it until it returns `None`.
    pub fn handle_timeout(&mut self, now: Instant, config: &HeartbeatConfig) -> Option<Action> {
        let due = self.due();
        match std::mem::replace(&mut self.drained, Drained::No) {
            Drained::Late => return Some(self.beat(now, config, true)),
            Drained::InTime => {}
            Drained::No if now < due => return None,
            Drained::No if now.duration_since(due) > shortest_pause(config.interval) => {
                return Some(self.drain(Drained::Late));
            }
            Drained::No if self.verdict(now).is_some() => return Some(self.drain(Drained::InTime)),
            Drained::No => {}
        }
        if let Some(evidence) = self.verdict(now) {
            return Some(Action::Dead(evidence));
        }
        if self.is_open() && self.left && self.elapsed(now) >= millis(config.answer_limit) {
            self.restart(now);
            self.timed = false;
            return Some(Action::NotListening);
        }
        (self.elapsed(now) >= self.next_beat).then(|| self.beat(now, config, false))
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout); after [`Action::Drain`] that is at once.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        if self.drained != Drained::No {
            return self.since;
        }
        self.due()
    }

    fn due(&self) -> Instant {
        let due = self.dead_at().map_or(self.next_beat, |dead_at| dead_at.min(self.next_beat));
        self.since + Duration::from_millis(due.into())
    }

    /// Returns how long an open probe may stay without a sign of life.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.srtt.deadline()
    }

    /// Returns how long written data may stay unacknowledged before that is a reason to [`probe`](Self::probe).
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.srtt.patience()
    }

    /// Returns the smoothed round-trip time (RFC 6298: each sample weighs an eighth).
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.srtt.get()
    }

    /// Makes the next probe. It shares the deadline of an open probe; otherwise every beat would give a dead peer
    /// more time. A `fresh` probe, or one that was requested, starts its own deadline.
    fn beat(&mut self, now: Instant, config: &HeartbeatConfig, fresh: bool) -> Action {
        let asked = std::mem::take(&mut self.asked);
        if fresh || asked || !self.is_open() {
            self.restart(now);
            self.answered = self.newest;
            (self.left, self.timed, self.urgent) = (false, true, asked);
        }
        self.newest = self.newest.wrapping_add(1);
        self.queued = true;
        self.next_beat = self.elapsed(now).saturating_add(jittered(config.interval, self.newest));
        Action::Probe { nonce: self.newest.into() }
    }

    fn drain(&mut self, why: Drained) -> Action {
        self.drained = why;
        Action::Drain
    }

    fn verdict(&self, now: Instant) -> Option<Evidence> {
        let overdue = self.dead_at().is_some_and(|dead_at| self.elapsed(now) >= dead_at);
        overdue.then_some(match (self.left, self.progress > self.bytes) {
            (false, _) => Evidence::Stalled,
            (true, true) => Evidence::Frozen,
            (true, false) => Evidence::Silent,
        })
    }

    /// Returns when the open probes count as unanswered, if nothing else happens. A probe that cannot leave has the
    /// long deadline, requested or not: a slow link may accept no bytes for a while.
    fn dead_at(&self) -> Option<u32> {
        if !self.is_open() {
            return None;
        }
        let is_short = self.urgent && self.left;
        let deadline = millis(if is_short { self.srtt.probe_deadline() } else { self.srtt.deadline() });
        let sign_of_life = self.bytes.max(self.progress);
        Some(if self.left {
            let cap = self.bytes.saturating_add(deadline * HARD_CAP);
            sign_of_life.saturating_add(deadline).min(cap)
        } else {
            let cap = self.progress.saturating_add(deadline * STALL_CAP);
            sign_of_life.saturating_add(deadline * HARD_CAP).min(cap)
        })
    }

    fn is_open(&self) -> bool {
        self.newest != self.answered
    }

    /// Returns how many of the open probes an answer with this nonce answers; `None`: none of them.
    fn answered_by(&self, nonce: u64) -> Option<u32> {
        let open = self.newest.wrapping_sub(self.answered);
        let answered = u32::try_from(nonce).ok()?.wrapping_sub(self.answered);
        (1..=open).contains(&answered).then_some(answered)
    }

    /// Restarts the times at `now`: the open probes get their whole deadline.
    fn restart(&mut self, now: Instant) {
        self.next_beat = self.next_beat.saturating_sub(self.elapsed(now));
        (self.since, self.bytes, self.progress) = (now, 0, 0);
    }

    fn elapsed(&self, now: Instant) -> u32 {
        #[cfg(debug_assertions)]
        debug_assert!(self.since <= now + SLACK, "time ran backwards: {:?}, then {now:?}", self.since);
        millis(now.saturating_duration_since(self.since))
    }
}

/// The watching side: the peer probes and has announced how often; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Watch {
    announced: Duration,
    last_bytes: Instant,
    /// When the socket last accepted part of what waited.
    progress: Option<Instant>,
    /// When the open probe left; cleared by any byte after it.
    left: Option<Instant>,
    /// When the probe that measures the round trip left.
    timed: Option<Instant>,
    srtt: Srtt,
    nonce: u32,
    drained: Drained,
    asked: bool,
    /// When the probe was made that has not left yet.
    queued: Option<Instant>,
    /// How long an answer may take, whatever was measured.
    slow: Duration,
    /// The open probe was requested for unacknowledged data: `slow` applies.
    is_patient: bool,
}

impl Watch {
    /// Creates a watch that expects a byte at least every 2 x `announced` + 5 s. The announcement of the peer is
    /// clamped to 100 ms .. 1 hour.
    #[must_use]
    pub fn new(now: Instant, announced: Duration) -> Self {
        Self {
            announced: announced.clamp(Duration::from_millis(100), Duration::from_secs(3600)),
            last_bytes: now,
            progress: None,
            left: None,
            timed: None,
            srtt: Srtt::default(),
            nonce: 0,
            drained: Drained::No,
            asked: false,
            queued: None,
            slow: Duration::ZERO,
            is_patient: false,
        }
    }

    /// Allows an answer to take as long as `slow`, whatever was measured: [`patience`](Self::patience) and the
    /// deadline of [`probe_patiently`](Self::probe_patiently) become four times that, at most 20 s.
    pub fn allow(&mut self, slow: Duration) {
        self.slow = slow;
    }

    /// Bytes of any kind arrived. Cheap: one call per read.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.last_bytes = now;
        self.left = None;
    }

    /// Returns when bytes last arrived, or when the connection began.
    #[must_use]
    pub fn last_bytes(&self) -> Instant {
        self.last_bytes
    }

    /// Everything written so far has left the process: the deadline of a probe counts from here.
    pub fn handle_flushed(&mut self, now: Instant) {
        if self.queued.take().is_some() {
            (self.left, self.timed) = (Some(now), Some(now));
        }
    }

    /// The socket accepted part of what waits.
    pub fn handle_write_progress(&mut self, now: Instant) {
        self.progress = Some(now);
    }

    /// The answer to the newest probe arrived; another nonce only counts as bytes. Returns the round trip.
    pub fn handle_pong(&mut self, now: Instant, nonce: u64) -> Option<Duration> {
        self.handle_bytes(now);
        if nonce != u64::from(self.nonce) {
            return None;
        }
        // Its deadline would begin only when what was written after it has left.
        self.queued = None;
        let left = self.timed.take()?;
        let round_trip = now.saturating_duration_since(left);
        self.srtt.add(round_trip);
        Some(round_trip)
    }

    /// Requests a probe at once, judged after max(2 s, 4 x srtt), at most 20 s. While a probe is open, another call
    /// changes nothing.
    pub fn probe(&mut self) {
        self.asked = self.queued.is_none() && self.left.is_none();
        self.is_patient &= !self.asked;
    }

    /// Like [`probe`](Self::probe), judged after no less than what is [allowed](Self::allow). An open probe keeps its
    /// deadline.
    pub fn probe_patiently(&mut self) {
        self.probe();
        self.is_patient |= self.asked;
    }

    /// Does what is due at `now`; an early call does nothing. Call it until it returns `None`.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        let (at, evidence) = self.judged_at();
        let overdue = now.checked_duration_since(at);
        match std::mem::replace(&mut self.drained, Drained::No) {
            Drained::Late => {
                // A new limit, in case the probe cannot leave.
                (self.last_bytes, self.is_patient) = (now, false);
                return Some(self.make_probe(now));
            }
            Drained::InTime if overdue.is_some() => return Some(Action::Dead(evidence)),
            Drained::No if overdue.is_some_and(|late| late > shortest_pause(self.announced)) => {
                return Some(self.drain(Drained::Late));
            }
            Drained::No if overdue.is_some() => return Some(self.drain(Drained::InTime)),
            Drained::InTime | Drained::No => {}
        }
        self.asked.then(|| self.make_probe(now))
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout); after [`probe`](Self::probe) and
    /// [`Action::Drain`] that is at once.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        if self.asked || self.drained != Drained::No { self.last_bytes } else { self.judged_at().0 }
    }

    /// Returns how long written data may stay unacknowledged before that is a reason to [`probe`](Self::probe): max(3
    /// s, 4 x srtt), at most 20 s.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.srtt.patience().max((self.slow * 4).min(LONGEST_DEADLINE))
    }

    /// Returns how long an open probe that has left may stay without a byte.
    #[must_use]
    pub fn probe_deadline(&self) -> Duration {
        let usual = self.srtt.probe_deadline();
        if self.is_patient { usual.max((self.slow * 4).min(LONGEST_DEADLINE)) } else { usual }
    }

    /// Returns the smoothed round-trip time of the probes.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.srtt.get()
    }

    fn make_probe(&mut self, now: Instant) -> Action {
        self.nonce = self.nonce.wrapping_add(1);
        (self.asked, self.queued, self.left, self.timed) = (false, Some(now), None, None);
        Action::Probe { nonce: self.nonce.into() }
    }

    fn drain(&mut self, why: Drained) -> Action {
        self.drained = why;
        Action::Drain
    }

    /// Returns when the peer counts as dead if nothing happens, and by which evidence.
    fn judged_at(&self) -> (Instant, Evidence) {
        let limit = self.last_bytes + self.announced * 2 + Duration::from_secs(5);
        let unanswered = self.left.map(|left| left + self.probe_deadline());
        let silent = unanswered.map_or(limit, |at| at.min(limit));
        let stalled = self.queued.map(|made| {
            let moved = made.max(self.last_bytes).max(self.progress.unwrap_or(made));
            moved + self.srtt.deadline() * HARD_CAP
        });
        match stalled.filter(|at| *at < silent) {
            Some(at) => (at, Evidence::Stalled),
            None => (silent, Evidence::Silent),
        }
    }
}

/// A smoothed round-trip time in microseconds; 0 means "no sample yet".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Srtt(u32);

impl Srtt {
    fn add(&mut self, sample: Duration) {
        let sample = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX).max(1);
        self.0 = match self.0 {
            0 => sample,
            old => old - old / 8 + sample / 8,
        };
    }

    fn get(self) -> Option<Duration> {
        (self.0 > 0).then(|| Duration::from_micros(self.0.into()))
    }

    fn deadline(self) -> Duration {
        (self.four_times() + Duration::from_secs(1)).clamp(SHORTEST_DEADLINE, LONGEST_DEADLINE)
    }

    fn probe_deadline(self) -> Duration {
        self.four_times().clamp(SHORTEST_PROBE_DEADLINE, LONGEST_DEADLINE)
    }

    fn patience(self) -> Duration {
        self.four_times().clamp(SHORTEST_PATIENCE, LONGEST_DEADLINE)
    }

    fn four_times(self) -> Duration {
        self.get().unwrap_or_default() * 4
    }
}

/// Returns the interval +-10 %. The multiplication by 2^32 over the golden ratio spreads consecutive nonces far
/// apart; their random start keeps connections out of step.
fn jittered(interval: Duration, nonce: u32) -> u32 {
    let thousandths = (u64::from(nonce.wrapping_mul(0x9e37_79b1)) * 201) >> 32;
    millis(interval * (900 + thousandths as u32) / 1000)
}

/// Returns how late a timer may fire before that is a pause of this process.
fn shortest_pause(interval: Duration) -> Duration {
    (interval / 4).max(SHORTEST_PAUSE)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
