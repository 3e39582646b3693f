//! When to probe a peer, and when to call it dead.
//!
//! [`Heartbeat`] is the side that drives: it probes every interval, busy or not. A probe that left the
//! process opens a deadline of clamp(4 x srtt + 1 s, 5 s, 20 s); any byte that arrives is life and
//! moves the deadline on, up to four times its length for a peer that sends bytes but no answer.
//! [`Watch`] is the side that is probed: it expects something within twice the announced interval
//! plus 5 s.
//!
//! A timer that fires late says something about us, not about the peer: this process was paused.
//! Then [`Action::Drain`] asks the driver to read what is readable first, and a fresh probe follows;
//! only that one is judged.
//!
//! No timer is touched per message: bytes only store when they came, and the deadline is looked at
//! when the timer fires anyway.
//!
//! Source: `docs/PROTOCOL.md` "Heartbeat".

use std::time::{Duration, Instant};

/// Bounds of the heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeartbeatConfig {
    interval: Duration,
}

/// A heartbeat that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("heartbeat interval must be between 100 ms and 1 hour")]
pub struct HeartbeatConfigError;

impl HeartbeatConfig {
    /// A heartbeat every `interval`. Default: 25 s. Range: 100 ms to 1 hour.
    ///
    /// # Errors
    /// The interval is out of range.
    pub fn every(interval: Duration) -> Result<Self, HeartbeatConfigError> {
        let range = Duration::from_millis(100)..=Duration::from_secs(3600);
        if range.contains(&interval) { Ok(Self { interval }) } else { Err(HeartbeatConfigError) }
    }

    /// The time between two probes.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(25) }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a probe that carries `nonce`, and report when it has left.
    Probe {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// This process was paused: read what is readable, yield once, then ask again.
    Drain,
    /// Drop the transport: the peer is dead.
    Dead(Evidence),
}

/// Why a peer was called dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// Nothing at all arrived after a probe.
    Silence,
    /// Bytes arrived, but no answer within four deadlines.
    NoAnswer,
}

const SHORTEST_DEADLINE: Duration = Duration::from_secs(5);
const LONGEST_DEADLINE: Duration = Duration::from_secs(20);
/// How many deadlines a peer may send bytes without answering.
const HARD_CAP: u32 = 4;

/// The driving side. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    next_probe: Instant,
    last_bytes: Instant,
    probe: Option<Probe>,
    srtt: Srtt,
    /// The nonce of the newest probe; probes are numbered.
    nonce: u64,
    drained: bool,
}

/// A probe that is not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Probe {
    nonce: u64,
    /// When it left the process; the deadline counts from here.
    left: Option<Instant>,
}

impl Heartbeat {
    /// Starts with the first beat uniform in (0, interval): connections made together beat apart.
    /// `seed` sets the phase and the jitter of +-10 %.
    #[must_use]
    pub fn new(now: Instant, config: &HeartbeatConfig, seed: u64) -> Self {
        let phase = config.interval.mul_f64(unit(seed)).max(Duration::from_millis(1));
        Self {
            next_probe: now + phase,
            last_bytes: now,
            probe: None,
            srtt: Srtt::default(),
            nonce: seed & 0xffff_ffff,
            drained: false,
        }
    }

    /// Something arrived. Cheap: called for every read.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.last_bytes = now;
    }

    /// Everything written so far has left the process.
    pub fn handle_flushed(&mut self, now: Instant) {
        if let Some(probe) = &mut self.probe {
            probe.left.get_or_insert(now);
        }
    }

    /// The answer to the probe with this nonce. Older and unknown ones are only bytes. Returns the
    /// round-trip time.
    pub fn handle_pong(&mut self, now: Instant, nonce: u64) -> Option<Duration> {
        self.handle_bytes(now);
        let probe = self.probe.filter(|probe| probe.nonce == nonce)?;
        self.probe = None;
        let sample = now.saturating_duration_since(probe.left?);
        self.srtt.add(sample);
        Some(sample)
    }

    /// Does what is due at `now`; `None` when called early.
    pub fn handle_timeout(&mut self, now: Instant, config: &HeartbeatConfig) -> Option<Action> {
        let due = self.poll_timeout();
        if now < due {
            return None;
        }
        if now.saturating_duration_since(due) > config.interval / 4
            && !std::mem::replace(&mut self.drained, true)
        {
            return Some(Action::Drain);
        }
        if std::mem::take(&mut self.drained) {
            // What was readable has been read. A probe still open was cut short by our own pause.
            self.probe = None;
            return Some(self.send_probe(now, config));
        }
        if let Some(evidence) = self.verdict(now) {
            return Some(Action::Dead(evidence));
        }
        (now >= self.next_probe).then(|| self.send_probe(now, config))
    }

    fn send_probe(&mut self, now: Instant, config: &HeartbeatConfig) -> Action {
        self.nonce += 1;
        let jitter = 0.9 + 0.2 * unit(self.nonce);
        self.next_probe = now + config.interval.mul_f64(jitter);
        // An unanswered probe keeps its own deadline: a newer one must not grant a dead peer more time.
        let left = self.probe.and_then(|probe| probe.left).filter(|left| self.last_bytes < *left);
        self.probe = Some(Probe { nonce: self.nonce, left });
        Action::Probe { nonce: self.nonce }
    }

    fn verdict(&self, now: Instant) -> Option<Evidence> {
        let left = self.probe?.left?;
        if now < self.dead_at(left) {
            return None;
        }
        Some(if self.last_bytes > left { Evidence::NoAnswer } else { Evidence::Silence })
    }

    /// The deadline, counted from the last sign of life after the probe left, at most four of them.
    fn dead_at(&self, left: Instant) -> Instant {
        let deadline = self.srtt.deadline();
        (self.last_bytes.max(left) + deadline).min(left + deadline * HARD_CAP)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout). May come early after bytes arrived.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        match self.probe.and_then(|probe| probe.left) {
            Some(left) => self.next_probe.min(self.dead_at(left)),
            None => self.next_probe,
        }
    }

    /// The smoothed round-trip time.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.srtt.get()
    }
}

/// The watching side: the peer drives, and says how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Watch {
    limit: Duration,
    last_bytes: Instant,
    /// Set while a probe of ours is out.
    probed: Option<Probed>,
    srtt: Srtt,
    nonce: u64,
    drained: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Probed {
    nonce: u64,
    at: Instant,
}

impl Watch {
    /// Expects something at least every 2 x `announced` + 5 s.
    #[must_use]
    pub fn new(now: Instant, announced: Duration) -> Self {
        Self {
            limit: announced * 2 + Duration::from_secs(5),
            last_bytes: now,
            probed: None,
            srtt: Srtt::default(),
            nonce: 0,
            drained: false,
        }
    }

    /// Something arrived.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.last_bytes = now;
    }

    /// The answer to a probe of ours.
    pub fn handle_pong(&mut self, now: Instant, nonce: u64) {
        self.handle_bytes(now);
        if let Some(probed) = self.probed.take_if(|probed| probed.nonce == nonce) {
            self.srtt.add(now.saturating_duration_since(probed.at));
        }
    }

    /// Asks the peer for a sign of life now: after wake, when the network changed, when the
    /// application wants to know. Answered within max(2 s, 4 x srtt), or dead.
    pub fn probe(&mut self, now: Instant) -> Action {
        self.nonce += 1;
        self.probed = Some(Probed { nonce: self.nonce, at: now });
        Action::Probe { nonce: self.nonce }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        let due = self.poll_timeout();
        if now < due {
            return None;
        }
        if now.saturating_duration_since(due) > self.limit / 8 && !std::mem::replace(&mut self.drained, true)
        {
            return Some(Action::Drain);
        }
        if std::mem::take(&mut self.drained) {
            return Some(self.probe(now));
        }
        Some(Action::Dead(Evidence::Silence))
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let silent = self.last_bytes + self.limit;
        match self.probed {
            Some(Probed { at, .. }) if self.last_bytes <= at => {
                let deadline = self.srtt.get().map_or(Duration::ZERO, |rtt| rtt * 4);
                at + deadline.max(Duration::from_secs(2))
            }
            _ => silent,
        }
    }
}

/// RFC 6298's smoothing, in microseconds; 0 is "no sample yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
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
        let wanted = self.get().unwrap_or_default() * 4 + Duration::from_secs(1);
        wanted.clamp(SHORTEST_DEADLINE, LONGEST_DEADLINE)
    }
}

/// A number in [0, 1) from a counter or an id: neighbours come out far apart.
fn unit(seed: u64) -> f64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::start;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs until something happens, answering nothing.
    fn next(beat: &mut Heartbeat, config: &HeartbeatConfig) -> (Instant, Action) {
        loop {
            let now = beat.poll_timeout();
            if let Some(action) = beat.handle_timeout(now, config) {
                beat.handle_flushed(now);
                return (now, action);
            }
        }
    }

    #[test]
    fn a_frozen_peer_is_found_within_interval_plus_deadline() {
        let (t0, config) = (start(), HeartbeatConfig::default());
        let mut beat = Heartbeat::new(t0, &config, 7);
        let (probed, action) = next(&mut beat, &config);
        assert!(matches!(action, Action::Probe { .. }) && probed <= t0 + config.interval);
        let (dead, action) = next(&mut beat, &config);
        assert_eq!(action, Action::Dead(Evidence::Silence));
        assert_eq!(dead, probed + SHORTEST_DEADLINE);
    }

    #[test]
    fn beats_of_ten_thousand_connections_are_spread_evenly() {
        let (t0, config) = (start(), HeartbeatConfig::default());
        let mut tenths = [0_u32; 10];
        for seed in 0..10_000 {
            let phase = Heartbeat::new(t0, &config, seed).poll_timeout() - t0;
            tenths[(phase.as_secs_f64() / 2.5) as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (900..=1100).contains(n)), "{tenths:?}");
    }

    #[test]
    fn a_peer_that_answers_is_probed_every_interval_and_never_judged() {
        let (t0, config) = (start(), HeartbeatConfig::default());
        let mut beat = Heartbeat::new(t0, &config, 1);
        let mut last = None;
        for _ in 0..100 {
            let (now, action) = next(&mut beat, &config);
            let Action::Probe { nonce } = action else { panic!("{action:?}") };
            assert_eq!(beat.handle_pong(now + SECOND, nonce), Some(SECOND));
            if let Some(last) = last.replace(now) {
                let gap = now - last;
                assert!(
                    gap >= config.interval.mul_f64(0.9) && gap <= config.interval.mul_f64(1.1),
                    "{gap:?}"
                );
            }
        }
    }

    #[test]
    fn a_stale_pong_clears_nothing_newer() {
        let (t0, config) = (start(), HeartbeatConfig::every(SECOND).unwrap());
        let mut beat = Heartbeat::new(t0, &config, 1);
        let (_, first) = next(&mut beat, &config);
        let (now, second) = next(&mut beat, &config);
        let (Action::Probe { nonce: first }, Action::Probe { nonce: second }) = (first, second) else {
            panic!()
        };
        assert_eq!(beat.handle_pong(now, first), None);
        assert!(beat.handle_pong(now, second).is_some());
    }

    #[test]
    fn bytes_without_an_answer_extend_the_deadline_four_times() {
        let (t0, config) = (start(), HeartbeatConfig::every(Duration::from_secs(3600)).unwrap());
        let mut beat = Heartbeat::new(t0, &config, 1);
        let (probed, _) = next(&mut beat, &config);
        let mut now = probed;
        let action = loop {
            now += SECOND;
            beat.handle_bytes(now);
            if let Some(action) = beat.handle_timeout(now + SECOND / 2, &config) {
                break action;
            }
        };
        assert_eq!(action, Action::Dead(Evidence::NoAnswer));
        assert_eq!(now, probed + SHORTEST_DEADLINE * HARD_CAP);
    }

    #[test]
    fn the_deadline_counts_from_when_the_probe_left() {
        let (t0, config) = (start(), HeartbeatConfig::every(Duration::from_secs(3600)).unwrap());
        let mut beat = Heartbeat::new(t0, &config, 1);
        let at = beat.poll_timeout();
        assert!(matches!(beat.handle_timeout(at, &config), Some(Action::Probe { .. })));
        // Two minutes behind a large message in our own buffers: no verdict.
        assert_eq!(beat.handle_timeout(at + 120 * SECOND, &config), None);
        beat.handle_flushed(at + 120 * SECOND);
        assert_eq!(beat.poll_timeout(), at + 125 * SECOND);
    }

    #[test]
    fn our_own_pause_is_no_evidence_about_the_peer() {
        let (t0, config) = (start(), HeartbeatConfig::default());
        let mut beat = Heartbeat::new(t0, &config, 1);
        let (probed, _) = next(&mut beat, &config);
        let awake = probed + 600 * SECOND;
        assert_eq!(beat.handle_timeout(awake, &config), Some(Action::Drain));
        assert!(matches!(beat.handle_timeout(awake, &config), Some(Action::Probe { .. })));
        beat.handle_flushed(awake);
        assert_eq!(beat.handle_timeout(awake + 4 * SECOND, &config), None, "one fresh deadline first");
        assert_eq!(beat.handle_timeout(awake + 5 * SECOND, &config), Some(Action::Dead(Evidence::Silence)));
    }

    #[test]
    fn a_client_waits_two_announced_intervals_and_five_seconds() {
        let t0 = start();
        let mut watch = Watch::new(t0, 25 * SECOND);
        watch.handle_bytes(t0 + 10 * SECOND);
        assert_eq!(watch.handle_timeout(t0 + 64 * SECOND), None);
        assert_eq!(watch.handle_timeout(t0 + 65 * SECOND), Some(Action::Dead(Evidence::Silence)));
    }

    #[test]
    fn a_client_that_slept_probes_before_it_judges() {
        let t0 = start();
        let mut watch = Watch::new(t0, 25 * SECOND);
        let awake = t0 + 600 * SECOND;
        assert_eq!(watch.handle_timeout(awake), Some(Action::Drain));
        assert_eq!(watch.handle_timeout(awake), Some(Action::Probe { nonce: 1 }));
        assert_eq!(watch.handle_timeout(awake + SECOND), None);
        let mut answered = watch;
        answered.handle_pong(awake + SECOND, 1);
        assert_eq!(answered.poll_timeout(), awake + SECOND + 55 * SECOND);
        assert_eq!(watch.handle_timeout(awake + 2 * SECOND), Some(Action::Dead(Evidence::Silence)));
    }

    #[test]
    fn a_heartbeat_is_small() {
        assert!(size_of::<Heartbeat>() <= 88, "{}", size_of::<Heartbeat>());
    }
}
