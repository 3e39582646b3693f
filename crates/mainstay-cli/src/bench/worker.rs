//! One thread of the generator: an epoll loop over its share of the connections.
//!
//! A turn: take what is ready, open what is due, send what is due, tell the others what was counted. A worker that
//! has to be on time within a millisecond does not sleep: a generator is expected to have a core for itself.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mainstay_proto::ws::SendQueue;
use mio::{Events, Interest, Poll, Token};

use super::counts::{Counts, WINDOW};
use super::pace::Pace;
use super::peer::{End, Peer};
use super::plan::{Load, Phase, Plan, Shared, explain};

/// Bytes read at one time.
const SCRATCH: usize = 256 * 1024;
/// The longest sleep: phases change and acknowledgements come due.
const NAP: u64 = 5_000_000;
/// The same where nothing is sent: fifty generators beside each other must not use up a core by looking around.
const LONG_NAP: u64 = 50_000_000;
/// A sleep is rounded up to this by epoll.
const MILLISECOND: u64 = 1_000_000;
/// Pause before an opening that failed in a storm is tried again.
const AGAIN: u64 = 20 * MILLISECOND;
/// How long connections may take to leave in order.
const LEAVE: u64 = 2_000 * MILLISECOND;
/// What a peer sees of its worker.
pub(super) struct Turn {
    pub(super) plan: Arc<Plan>,
    shared: Arc<Shared>,
    phase: Phase,
    /// Nanoseconds since the run began, as of the last read.
    pub(super) now: u64,
    /// Between two messages of one connection, in nanoseconds, if the run has a rate.
    pub(super) period: u64,
    /// When the measurement began.
    measured: u64,
    pub(super) out: SendQueue,
    pub(super) counts: Counts,
    opening: u32,
    /// Counted since the others were told.
    unacked: u64,
}

impl Turn {
    pub(super) fn tell_time(&mut self) {
        self.now = self.shared.now();
    }

    pub(super) fn instant(&self) -> Instant {
        self.shared.started + Duration::from_nanos(self.now)
    }

    pub(super) fn is_loaded(&self) -> bool {
        matches!(self.phase, Phase::WarmUp | Phase::Measure)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.phase >= Phase::Close
    }

    pub(super) fn opened(&mut self, began: u64) {
        self.opening = self.opening.saturating_sub(1);
        self.counts.opening.saturating_record(self.now.saturating_sub(began));
        self.shared.opened.fetch_add(1, Relaxed);
        if self.plan.load == Load::Storm && self.phase == Phase::Measure {
            self.shared.back.fetch_add(1, Relaxed);
            self.answered(self.measured);
        }
    }

    /// What was due at `sent` is done.
    pub(super) fn answered(&mut self, sent: u64) {
        self.counts.done += 1;
        self.unacked += 1;
        self.counts.latency.saturating_record(self.now.saturating_sub(sent));
    }

    pub(super) fn ping(&mut self) {
        let window = (self.now.saturating_sub(self.measured) / WINDOW) as usize;
        if self.phase == Phase::Measure {
            self.counts.pings += 1;
            self.counts.windows.resize(self.counts.windows.len().max(window + 1), 0);
            self.counts.windows.iter_mut().skip(window).take(1).for_each(|count| *count += 1);
        }
        if self.plan.load == Load::Idle {
            self.unacked += 1;
        }
    }
}

pub(super) struct Worker {
    index: u32,
    poll: Poll,
    peers: Vec<Peer>,
    scratch: Vec<u8>,
    turn: Turn,
    seed: [u8; 32],
    /// Peers without a link that are to have one, and from when on.
    to_open: VecDeque<(usize, u64)>,
    /// Links that this worker started.
    started: u64,
    openings: Pace,
    sends: Pace,
    /// Messages of the fan-out's sender.
    sent: u64,
    next_tick: u64,
    leave_by: u64,
    result: Option<Counts>,
}

impl Worker {
    pub(super) fn new(index: u32, plan: Arc<Plan>, shared: Arc<Shared>) -> Result<Self, String> {
        let poll = Poll::new().map_err(|error| format!("no epoll: {}", explain(&error)))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| format!("no randomness: {error}"))?;
        let share = plan.connections / plan.threads + u32::from(index < plan.connections % plan.threads);
        let peers: Vec<_> = (0..u64::from(share)).map(|i| Peer::new(&plan, numbered(seed, i))).collect();
        let opens_at_rate = !matches!(plan.load, Load::Echo | Load::Fanout);
        let openings = Pace::new(0, plan.rate.filter(|_| opens_at_rate), index, plan.threads);
        Ok(Self {
            index,
            poll,
            to_open: (0..peers.len()).map(|i| (i, 0)).collect(),
            peers,
            scratch: vec![0; SCRATCH],
            turn: Turn {
                plan,
                shared,
                phase: Phase::Open,
                now: 0,
                period: 0,
                measured: 0,
                out: SendQueue::new(),
                counts: Counts::new(),
                opening: 0,
                unacked: 0,
            },
            seed,
            started: 0,
            openings,
            sends: Pace::new(0, None, 0, 1),
            sent: 0,
            next_tick: 0,
            leave_by: u64::MAX,
            result: None,
        })
    }

    pub(super) fn run(mut self) -> Counts {
        let mut events = Events::with_capacity(1024);
        loop {
            let nap = Duration::from_nanos(self.nap());
            if let Err(error) = self.poll.poll(&mut events, Some(nap))
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                self.turn.counts.trouble(explain(&error));
                return self.finish();
            }
            self.turn.tell_time();
            for event in &events {
                let ended = event.is_read_closed() || event.is_error();
                self.with_peer(event.token().0, |peer, scratch, turn| {
                    peer.ready(event.is_writable() || event.is_error(), ended, scratch, turn)
                });
            }
            let phase = self.turn.shared.phase();
            if phase != self.turn.phase {
                self.enter(phase);
            }
            match phase {
                Phase::Open => self.open_due(),
                Phase::WarmUp | Phase::Measure => {
                    self.open_due();
                    self.send_due();
                }
                Phase::Close if self.turn.now < self.leave_by && self.peers.iter().any(Peer::has_link) => {}
                Phase::Close | Phase::Leave => return self.finish(),
            }
            self.tick();
        }
    }

    /// How long nothing has to be done unless a socket is ready, in nanoseconds.
    fn nap(&self) -> u64 {
        let mut until = self.turn.now + if self.turn.plan.load == Load::Idle { LONG_NAP } else { NAP };
        if self.may_open() {
            until = until.min(self.openings.next());
        }
        if self.turn.is_loaded() {
            match self.turn.plan.load {
                Load::Echo if self.sends.is_paced() => until = until.min(self.sends.next()),
                Load::Fanout if self.index == 0 && self.turn.plan.threads > 1 => until = self.turn.now,
                Load::Fanout if self.index == 0 && self.sends.is_paced() => {
                    until = until.min(self.sends.next())
                }
                _ => {}
            }
        }
        let nap = until.saturating_sub(self.turn.now);
        if nap < MILLISECOND { 0 } else { nap - nap % MILLISECOND }
    }

    /// Does something with one peer, and what has to be done if its link does not survive it.
    fn with_peer(&mut self, i: usize, act: impl FnOnce(&mut Peer, &mut [u8], &mut Turn) -> Result<(), End>) {
        let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.has_link()) else { return };
        if let Err(end) = act(peer, &mut self.scratch, &mut self.turn) {
            self.ended(i, end);
        }
        // What an ended link left in it is not for the next one.
        if !self.turn.out.is_empty() {
            drop(self.turn.out.take_rest());
        }
    }

    fn ended(&mut self, i: usize, end: End) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        let (began, was_open) = (peer.began, peer.drop_link());
        let turn = &mut self.turn;
        if turn.is_leaving() {
            return;
        }
        let (load, again) = (turn.plan.load, turn.phase == Phase::Measure && turn.plan.load == Load::Storm);
        match end {
            End::Closed if load == Load::Handshake => turn.answered(began),
            End::Closed => {
                turn.counts.lost += 1;
                turn.counts.trouble("the server closed connections".to_owned());
            }
            End::Lost(why) => {
                if was_open {
                    turn.counts.lost += 1;
                } else {
                    turn.opening = turn.opening.saturating_sub(1);
                    turn.counts.failed += 1;
                    turn.shared.failed.fetch_add(1, Relaxed);
                }
                turn.counts.trouble(why);
                if load == Load::Handshake || again {
                    return self.to_open.push_back((i, turn.now + AGAIN));
                }
            }
        }
        if load == Load::Handshake {
            if let (Some(peer), true) = (self.peers.get_mut(i), turn.plan.session) {
                *peer = Peer::new(&turn.plan, numbered(self.seed, self.started << 32 | i as u64));
            }
            self.to_open.push_back((i, 0));
        }
    }

    fn may_open(&self) -> bool {
        let plan = &self.turn.plan;
        let most = if plan.load == Load::Handshake { u32::MAX } else { plan.at_once.div_ceil(plan.threads) };
        self.turn.opening < most && self.to_open.front().is_some_and(|(_, from)| *from <= self.turn.now)
    }

    /// Starts the openings that are due and may be under way.
    fn open_due(&mut self) {
        while self.may_open() && self.openings.next() <= self.turn.now {
            let Some((i, _)) = self.to_open.pop_front() else { return };
            let due = self.openings.take();
            self.open(i, due);
        }
    }

    fn open(&mut self, i: usize, due: Option<u64>) {
        let number = u64::from(self.index) << 40 | self.started;
        let source = self.started * u64::from(self.turn.plan.threads) + u64::from(self.index);
        self.started += 1;
        self.turn.opening += 1;
        self.turn.tell_time();
        let Some(peer) = self.peers.get_mut(i) else { return };
        peer.began = due.unwrap_or(self.turn.now);
        let registry = self.poll.registry();
        let opened = peer
            .connect(source, numbered(self.seed, number), &self.turn.plan)
            .and_then(|stream| registry.register(stream, Token(i), Interest::READABLE | Interest::WRITABLE));
        if let Err(error) = opened {
            self.ended(i, End::Lost(explain(&error)));
        }
    }

    /// Sends the messages that are due by time. Without a rate only answers make room for messages.
    fn send_due(&mut self) {
        match self.turn.plan.load {
            Load::Echo => {
                while self.sends.is_paced() && self.sends.next() <= self.turn.now && !self.peers.is_empty() {
                    let i = self.sends.step as usize % self.peers.len();
                    self.sends.take();
                    self.pump(i);
                }
            }
            Load::Fanout if self.index == 0 => {
                let plan = &self.turn.plan;
                let (all, most) = (u64::from(plan.connections), u64::from(plan.in_flight));
                let delivered = self.turn.shared.delivered.load(Relaxed) + self.turn.unacked;
                while self.sent * all <= delivered + (most - 1) * all && self.sends.next() <= self.turn.now {
                    let due = self.sends.take().unwrap_or(self.turn.now);
                    self.sent += 1;
                    self.with_peer(0, |peer, _, turn| {
                        peer.send(due, turn);
                        peer.flush(turn)
                    });
                }
            }
            _ => {}
        }
    }

    fn pump(&mut self, i: usize) {
        self.with_peer(i, |peer, _, turn| {
            peer.pump(turn);
            peer.flush(turn)
        });
    }

    fn enter(&mut self, phase: Phase) {
        // A short warm-up can be over before this worker looks; the load begins all the same.
        if phase == Phase::Measure && self.turn.phase < Phase::WarmUp {
            self.enter(Phase::WarmUp);
        }
        self.turn.phase = phase;
        match phase {
            Phase::WarmUp => self.start_load(),
            Phase::Measure => {
                let fresh = Counts::new();
                let warm = mem::replace(&mut self.turn.counts, fresh);
                let counts = &mut self.turn.counts;
                // Whatever was lost before is lost now.
                (counts.opening, counts.lost, counts.first_trouble) =
                    (warm.opening, warm.lost, warm.first_trouble);
                self.turn.measured = self.turn.now;
                if self.turn.plan.load == Load::Storm {
                    self.cut_all();
                }
            }
            Phase::Close => {
                self.result = Some(mem::replace(&mut self.turn.counts, Counts::new()));
                self.leave_by = self.turn.now + LEAVE;
                let in_order = self.turn.plan.load != Load::Handshake;
                for i in 0..self.peers.len() {
                    if in_order && self.peers.get(i).is_some_and(Peer::is_open) {
                        self.with_peer(i, |peer, _, turn| peer.close(turn));
                    } else if let Some(peer) = self.peers.get_mut(i) {
                        peer.drop_link();
                    }
                }
            }
            Phase::Open | Phase::Leave => {}
        }
    }

    fn start_load(&mut self) {
        let plan = Arc::clone(&self.turn.plan);
        match (plan.load, plan.rate) {
            (Load::Echo, Some(rate)) => {
                self.sends = Pace::new(self.turn.now, Some(rate), self.index, plan.threads);
                self.turn.period = (1e9 * f64::from(plan.connections) / f64::from(rate)) as u64;
                for (i, peer) in (0..).zip(&mut self.peers) {
                    peer.due = Some(self.sends.at(i));
                }
            }
            (Load::Echo, None) => (0..self.peers.len()).for_each(|i| self.pump(i)),
            (Load::Fanout, rate) => self.sends = Pace::new(self.turn.now, rate, 0, 1),
            _ => {}
        }
    }

    fn cut_all(&mut self) {
        for (i, peer) in self.peers.iter_mut().enumerate() {
            peer.cut();
            self.to_open.push_back((i, 0));
        }
        self.turn.opening = 0;
    }

    /// Acknowledgements that are due by time, and what the others want to know.
    fn tick(&mut self) {
        let turn = &mut self.turn;
        if turn.unacked > 0 {
            let unacked = mem::take(&mut turn.unacked);
            turn.shared.counted.fetch_add(unacked, Relaxed);
            if turn.plan.load == Load::Fanout {
                turn.shared.delivered.fetch_add(unacked, Relaxed);
            }
        }
        if turn.plan.session && turn.now >= self.next_tick {
            self.next_tick = turn.now + 100 * MILLISECOND;
            for i in 0..self.peers.len() {
                self.with_peer(i, |peer, _, turn| peer.tick(turn));
            }
        }
    }

    fn finish(self) -> Counts {
        self.result.unwrap_or(self.turn.counts)
    }
}

/// A seed of its own for each number.
fn numbered(mut seed: [u8; 32], number: u64) -> [u8; 32] {
    seed.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, number)| *byte ^= number);
    seed
}
