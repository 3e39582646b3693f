//! One thread of the generator: an epoll loop over its share of the connections.
//!
//! One round of the loop: handle ready sockets, open connections that are due, send messages that are due, publish the
//! counts. A worker whose next deadline is within a millisecond does not sleep: a generator should have a core of its own.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mainstay_proto::ws::SendQueue;
use mio::{Events, Interest, Poll, Token};

use super::context::Context;
use super::counts::Counts;
use super::pace::Pace;
use super::peer::{End, Peer};
use super::plan::{Load, Phase, Plan, Shared, explain};

/// Size of a read.
const SCRATCH: usize = 256 * 1024;
/// The longest sleep: phases change, and acknowledgements become due.
const NAP: u64 = 5_000_000;
/// The same for idle connections: fifty generators on one machine must not use a core for polling.
const LONG_NAP: u64 = 50_000_000;
/// epoll rounds a timeout up to this.
const MILLISECOND: u64 = 1_000_000;
/// Pause before a failed opening is tried again.
const REOPEN_PAUSE: u64 = 20 * MILLISECOND;
/// How long the closing handshakes may take.
const CLOSE_TIMEOUT: u64 = 2_000 * MILLISECOND;

pub(super) struct Worker {
    index: u32,
    poll: Poll,
    peers: Vec<Peer>,
    scratch: Vec<u8>,
    cx: Context,
    seed: [u8; 32],
    /// Peers whose connection is to be opened, and the earliest time.
    to_open: VecDeque<(usize, u64)>,
    /// Connections that this worker opened.
    started: u64,
    openings: Pace,
    sends: Pace,
    /// Messages that the sender of the fan-out sent.
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
            cx: Context {
                plan,
                shared,
                phase: Phase::Open,
                now: 0,
                period: 0,
                measured: 0,
                out: SendQueue::new(),
                counts: Counts::new(),
                opening: 0,
                unreported: 0,
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
                self.cx.counts.problem(explain(&error));
                return self.finish();
            }
            self.cx.update_now();
            for event in &events {
                let ended = event.is_read_closed() || event.is_error();
                self.with_peer(event.token().0, |peer, scratch, cx| {
                    peer.ready(event.is_writable() || event.is_error(), ended, scratch, cx)
                });
            }
            let phase = self.cx.shared.phase();
            if phase != self.cx.phase {
                self.enter(phase);
            }
            match phase {
                Phase::Open => self.open_due(),
                Phase::WarmUp | Phase::Measure => {
                    self.open_due();
                    self.send_due();
                }
                Phase::Close
                    if self.cx.now < self.leave_by && self.peers.iter().any(Peer::has_connection) => {}
                Phase::Close | Phase::Abort => return self.finish(),
            }
            self.tick();
        }
    }

    /// Returns how long the worker may wait for sockets, in nanoseconds.
    fn nap(&self) -> u64 {
        let mut until = self.cx.now + if self.cx.plan.load == Load::Idle { LONG_NAP } else { NAP };
        if self.may_open() {
            until = until.min(self.openings.next());
        }
        if self.cx.is_loaded() {
            match self.cx.plan.load {
                Load::Echo if self.sends.is_paced() => until = until.min(self.sends.next()),
                Load::Fanout if self.index == 0 && self.cx.plan.threads > 1 => until = self.cx.now,
                Load::Fanout if self.index == 0 && self.sends.is_paced() => {
                    until = until.min(self.sends.next())
                }
                _ => {}
            }
        }
        let nap = until.saturating_sub(self.cx.now);
        if nap < MILLISECOND { 0 } else { nap - nap % MILLISECOND }
    }

    /// Runs `act` on one peer, and handles the end of its connection.
    fn with_peer(
        &mut self,
        i: usize,
        act: impl FnOnce(&mut Peer, &mut [u8], &mut Context) -> Result<(), End>,
    ) {
        let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.has_connection()) else { return };
        if let Err(end) = act(peer, &mut self.scratch, &mut self.cx) {
            self.ended(i, end);
        }
        // Bytes of an ended connection must not reach the next one.
        if !self.cx.out.is_empty() {
            drop(self.cx.out.take_rest());
        }
    }

    fn ended(&mut self, i: usize, end: End) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        let (began, was_open) = (peer.began, peer.drop_connection());
        let cx = &mut self.cx;
        if cx.is_leaving() {
            return;
        }
        let (load, again) = (cx.plan.load, cx.phase == Phase::Measure && cx.plan.load == Load::Storm);
        match end {
            End::Closed if load == Load::Handshake => cx.answered(began),
            End::Closed => {
                cx.counts.lost += 1;
                cx.counts.problem("the server closed connections".to_owned());
            }
            End::Lost(why) => {
                if was_open {
                    cx.counts.lost += 1;
                } else {
                    cx.opening = cx.opening.saturating_sub(1);
                    cx.counts.failed += 1;
                    cx.shared.failed.fetch_add(1, Relaxed);
                }
                cx.counts.problem(why);
                if load == Load::Handshake || again {
                    return self.to_open.push_back((i, cx.now + REOPEN_PAUSE));
                }
            }
        }
        if load == Load::Handshake {
            if let (Some(peer), true) = (self.peers.get_mut(i), cx.plan.session) {
                *peer = Peer::new(&cx.plan, numbered(self.seed, self.started << 32 | i as u64));
            }
            self.to_open.push_back((i, 0));
        }
    }

    fn may_open(&self) -> bool {
        let plan = &self.cx.plan;
        let most = if plan.load == Load::Handshake { u32::MAX } else { plan.at_once.div_ceil(plan.threads) };
        self.cx.opening < most && self.to_open.front().is_some_and(|(_, from)| *from <= self.cx.now)
    }

    /// Opens the connections that are due, up to the limit at one time.
    fn open_due(&mut self) {
        while self.may_open() && self.openings.next() <= self.cx.now {
            let Some((i, _)) = self.to_open.pop_front() else { return };
            let due = self.openings.take();
            self.open(i, due);
        }
    }

    fn open(&mut self, i: usize, due: Option<u64>) {
        let number = u64::from(self.index) << 40 | self.started;
        let source = self.started * u64::from(self.cx.plan.threads) + u64::from(self.index);
        self.started += 1;
        self.cx.opening += 1;
        self.cx.update_now();
        let Some(peer) = self.peers.get_mut(i) else { return };
        peer.began = due.unwrap_or(self.cx.now);
        let registry = self.poll.registry();
        let opened = peer
            .connect(source, numbered(self.seed, number), &self.cx.plan)
            .and_then(|stream| registry.register(stream, Token(i), Interest::READABLE | Interest::WRITABLE));
        if let Err(error) = opened {
            self.ended(i, End::Lost(explain(&error)));
        }
    }

    /// Sends the messages that are due by time. Without a rate, only answers make room for messages.
    fn send_due(&mut self) {
        match self.cx.plan.load {
            Load::Echo => {
                while self.sends.is_paced() && self.sends.next() <= self.cx.now && !self.peers.is_empty() {
                    let i = self.sends.step as usize % self.peers.len();
                    self.sends.take();
                    self.pump(i);
                }
            }
            Load::Fanout if self.index == 0 => {
                let plan = &self.cx.plan;
                let (all, most) = (u64::from(plan.connections), u64::from(plan.in_flight));
                let delivered = self.cx.shared.delivered.load(Relaxed) + self.cx.unreported;
                while self.sent * all <= delivered + (most - 1) * all && self.sends.next() <= self.cx.now {
                    let due = self.sends.take().unwrap_or(self.cx.now);
                    self.sent += 1;
                    self.with_peer(0, |peer, _, cx| {
                        peer.send(due, cx);
                        peer.flush(cx)
                    });
                }
            }
            _ => {}
        }
    }

    fn pump(&mut self, i: usize) {
        self.with_peer(i, |peer, _, cx| {
            peer.pump(cx);
            peer.flush(cx)
        });
    }

    fn enter(&mut self, phase: Phase) {
        // A short warm-up can end before this worker sees it; the load starts all the same.
        if phase == Phase::Measure && self.cx.phase < Phase::WarmUp {
            self.enter(Phase::WarmUp);
        }
        self.cx.phase = phase;
        match phase {
            Phase::WarmUp => self.start_load(),
            Phase::Measure => {
                let fresh = Counts::new();
                let warm = mem::replace(&mut self.cx.counts, fresh);
                let counts = &mut self.cx.counts;
                // Connections lost before the measurement count in it.
                (counts.opening, counts.lost, counts.first_problem) =
                    (warm.opening, warm.lost, warm.first_problem);
                self.cx.measured = self.cx.now;
                if self.cx.plan.load == Load::Storm {
                    self.cut_all();
                }
            }
            Phase::Close => {
                self.count_unanswered();
                self.result = Some(mem::replace(&mut self.cx.counts, Counts::new()));
                self.leave_by = self.cx.now + CLOSE_TIMEOUT;
                let in_order = self.cx.plan.load != Load::Handshake;
                for i in 0..self.peers.len() {
                    if in_order && self.peers.get(i).is_some_and(Peer::is_open) {
                        self.with_peer(i, |peer, _, cx| peer.close(cx));
                    } else if let Some(peer) = self.peers.get_mut(i) {
                        peer.drop_connection();
                    }
                }
            }
            Phase::Open | Phase::Abort => {}
        }
    }

    /// Counts the messages whose answers do not come. Such a connection sends nothing more, and no latency shows it.
    fn count_unanswered(&mut self) {
        let cx = &mut self.cx;
        let waiting = self.peers.iter().map(|peer| u64::from(peer.unanswered(cx.now)));
        cx.counts.unanswered = waiting.sum();
        if cx.counts.unanswered > 0 {
            cx.counts.problem("no answer for 2s or longer".to_owned());
        }
    }

    fn start_load(&mut self) {
        let plan = Arc::clone(&self.cx.plan);
        match (plan.load, plan.rate) {
            (Load::Echo, Some(rate)) => {
                self.sends = Pace::new(self.cx.now, Some(rate), self.index, plan.threads);
                self.cx.period = (1e9 * f64::from(plan.connections) / f64::from(rate)) as u64;
                for (i, peer) in (0..).zip(&mut self.peers) {
                    peer.due = Some(self.sends.at(i));
                }
            }
            (Load::Echo, None) => (0..self.peers.len()).for_each(|i| self.pump(i)),
            (Load::Fanout, rate) => self.sends = Pace::new(self.cx.now, rate, 0, 1),
            _ => {}
        }
    }

    fn cut_all(&mut self) {
        for (i, peer) in self.peers.iter_mut().enumerate() {
            peer.cut();
            self.to_open.push_back((i, 0));
        }
        self.cx.opening = 0;
    }

    /// Publishes the counts and sends acknowledgements that are due by time.
    fn tick(&mut self) {
        let cx = &mut self.cx;
        if cx.unreported > 0 {
            let unreported = mem::take(&mut cx.unreported);
            cx.shared.counted.fetch_add(unreported, Relaxed);
            if cx.plan.load == Load::Fanout {
                cx.shared.delivered.fetch_add(unreported, Relaxed);
            }
        }
        if cx.plan.session && cx.now >= self.next_tick {
            self.next_tick = cx.now + 100 * MILLISECOND;
            for i in 0..self.peers.len() {
                self.with_peer(i, |peer, _, cx| peer.tick(cx));
            }
        }
    }

    fn finish(self) -> Counts {
        self.result.unwrap_or(self.cx.counts)
    }
}

/// Derives a seed for each number.
fn numbered(mut seed: [u8; 32], number: u64) -> [u8; 32] {
    seed.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, number)| *byte ^= number);
    seed
}
