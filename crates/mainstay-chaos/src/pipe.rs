//! One direction of a connection: a queue with a bound, in which bytes wait for their time.
//!
//! The order of faults on the bytes, from the writer to the reader: `jam` (nothing is read), the faults of frames, `cut-after`, `corrupt`,
//! `delay`, `stall`, `black-hole`, `bandwidth`, `trickle`. A black hole is at the far end: it also takes what is on its way.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

/// What waits in a pipe, at most; then the proxy does not read, and the writer's socket fills.
pub(crate) const ROOM: usize = 64 * 1024;
/// The same while bytes are delayed: they need room to travel.
pub(crate) const ROOM_OF_DELAY: usize = 1024 * 1024;
/// How many reads of delayed bytes are kept apart.
const MOST_MARKS: usize = 4096;
/// How many bits of bytes that are still to come are inverted.
const MOST_CORRUPT: usize = 64;
/// How late a timer may be and have its bytes made up for.
const LATEST: Duration = Duration::from_millis(100);

/// What the faults in force mean for one direction.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Gates {
    pub(crate) hole: bool,
    pub(crate) stall: bool,
    pub(crate) jam: bool,
    /// Latency and jitter.
    pub(crate) delay: Option<(Duration, Duration)>,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) trickle: Option<usize>,
    pub(crate) swallow_close: bool,
    pub(crate) drop_pings: bool,
    pub(crate) drop_pongs: bool,
}

/// What follows the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The writer's end of the stream.
    Fin,
    /// The writer's reset.
    Reset,
    /// A fault ends the connection, on both sides: by a reset, or by an end of the stream.
    Cut { reset: bool, reason: &'static str },
}

/// One direction of a connection.
#[derive(Debug)]
pub(crate) struct Pipe {
    queue: VecDeque<u8>,
    marks: VecDeque<Mark>,
    tail: Option<(Tail, Duration)>,
    /// The number of bytes that entered, and that left for the reader.
    entered: u64,
    left: u64,
    /// No byte may leave sooner: they stay in order.
    last_due: Duration,
    /// When the bandwidth has room again.
    free_at: Duration,
    /// Which bits are inverted: position and mask.
    corrupt: Vec<(u64, u8)>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// It has lost bytes or its end: nothing passes any more.
    Dead,
    /// Its end has passed.
    Over,
}

/// Bytes before `upto` may leave at `due`.
#[derive(Debug)]
struct Mark {
    upto: u64,
    due: Duration,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            marks: VecDeque::new(),
            tail: None,
            entered: 0,
            left: 0,
            last_due: Duration::ZERO,
            free_at: Duration::ZERO,
            corrupt: Vec::new(),
            state: State::Open,
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    /// Whether the writer's end has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns how many bytes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn entered(&self) -> u64 {
        self.entered
    }

    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    pub(crate) fn has_tail(&self) -> bool {
        self.tail.is_some()
    }

    /// Returns how many bytes may enter.
    pub(crate) fn room(&self, gates: &Gates) -> usize {
        match gates {
            Gates { jam: true, .. } => 0,
            _ if self.state != State::Open || gates.hole || self.tail.is_some() => ROOM,
            Gates { delay: Some(_), .. } if self.marks.len() < MOST_MARKS => {
                ROOM_OF_DELAY.saturating_sub(self.queue.len())
            }
            Gates { delay: Some(_), .. } => 0,
            _ => ROOM.saturating_sub(self.queue.len()),
        }
    }

    /// Loses everything from now on, and what waits.
    pub(crate) fn kill(&mut self) {
        self.close(State::Dead);
    }

    fn close(&mut self, state: State) {
        self.state = state;
        (self.queue, self.marks, self.tail) = Default::default();
        self.corrupt.clear();
    }

    /// Takes bytes of the writer. After a tail none follow.
    pub(crate) fn push(&mut self, now: Duration, bytes: &[u8], gates: &Gates, random: &mut SmallRng) {
        if self.state != State::Open || self.tail.is_some() || bytes.is_empty() {
            return;
        }
        let due = self.due(now, gates, random);
        self.queue.extend(bytes);
        self.invert_bits(bytes.len() as u64);
        self.entered += bytes.len() as u64;
        match self.marks.back_mut() {
            Some(mark) if mark.due == due => mark.upto = self.entered,
            _ => self.marks.push_back(Mark { upto: self.entered, due }),
        }
    }

    pub(crate) fn end(&mut self, now: Duration, tail: Tail, gates: &Gates, random: &mut SmallRng) {
        if self.state != State::Open || self.tail.is_some_and(|(tail, _)| tail != Tail::Fin) {
            return;
        }
        let due = self.due(now, gates, random);
        self.tail = Some((tail, due));
    }

    /// Inverts one bit of one of the next bytes.
    pub(crate) fn corrupt(&mut self, random: &mut SmallRng) {
        if self.corrupt.len() == MOST_CORRUPT {
            return;
        }
        let position = self.entered + random.random_range(0..16);
        self.corrupt.push((position, 1 << random.random_range(0..8)));
    }

    /// What is delayed longer than the delay in force now passes sooner.
    pub(crate) fn hurry(&mut self, now: Duration, gates: &Gates) {
        let (latency, jitter) = gates.delay.unwrap_or_default();
        let latest = now.saturating_add(latency).saturating_add(jitter);
        for mark in &mut self.marks {
            mark.due = mark.due.min(latest);
        }
        if let Some((_, due)) = &mut self.tail {
            *due = (*due).min(latest);
        }
        self.last_due = self.last_due.min(latest);
    }

    /// Returns the bytes that may be written now.
    pub(crate) fn writable(&mut self, now: Duration, gates: &Gates) -> &[u8] {
        if gates.stall || gates.hole || (gates.bytes_per_second.is_some() && now < self.free_at) {
            return &[];
        }
        while self.marks.get(1).is_some_and(|mark| mark.due <= now) {
            self.marks.pop_front();
        }
        let due = self.marks.front().filter(|mark| mark.due <= now);
        let upto = due.map_or(self.left, |mark| mark.upto);
        let mut most = usize::try_from(upto - self.left).unwrap_or(usize::MAX);
        if let Some(rate) = gates.bytes_per_second {
            most = most.min(usize::try_from((rate / 50).max(1)).unwrap_or(usize::MAX));
        }
        if let Some(bytes) = gates.trickle {
            most = most.min(bytes.max(1));
        }
        let first = self.queue.as_slices().0;
        &first[..most.min(first.len())]
    }

    /// The reader's socket took the first `count` of the writable bytes.
    pub(crate) fn wrote(&mut self, now: Duration, count: usize, gates: &Gates) {
        self.queue.drain(..count);
        self.left += count as u64;
        while self.marks.front().is_some_and(|mark| mark.upto <= self.left) {
            self.marks.pop_front();
        }
        if let Some(rate) = gates.bytes_per_second {
            let needed = Duration::from_secs_f64(count as f64 / rate.max(1) as f64);
            self.free_at = self.free_at.max(now.saturating_sub(LATEST)) + needed;
        }
        if self.queue.is_empty() && self.queue.capacity() > 4096 {
            self.queue = VecDeque::new();
        }
    }

    /// Returns what follows the last byte, once: all bytes were written, and its time has come.
    pub(crate) fn pop_tail(&mut self, now: Duration, gates: &Gates) -> Option<Tail> {
        let (tail, due) = self.tail?;
        let is_due = self.queue.is_empty() && due <= now && !gates.stall && !gates.hole;
        if !is_due {
            return None;
        }
        self.close(State::Over);
        Some(tail)
    }

    /// Returns when more may be written, if time alone decides.
    pub(crate) fn next(&self, now: Duration, gates: &Gates) -> Option<Duration> {
        if gates.stall || gates.hole {
            return None;
        }
        let due = match self.marks.front() {
            Some(mark) if gates.bytes_per_second.is_some() => mark.due.max(self.free_at),
            Some(mark) => mark.due,
            None => self.tail?.1,
        };
        Some(due).filter(|due| *due > now)
    }

    /// Returns when bytes that enter now may leave.
    fn due(&mut self, now: Duration, gates: &Gates, random: &mut SmallRng) -> Duration {
        if let Some((latency, jitter)) = gates.delay {
            let jitter = jitter.mul_f64(random.random::<f64>());
            self.last_due = self.last_due.max(now.saturating_add(latency).saturating_add(jitter));
        }
        self.last_due
    }

    /// The last `count` bytes of the queue have just entered.
    fn invert_bits(&mut self, count: u64) {
        let start = self.queue.len() as u64 - count;
        let (entered, queue) = (self.entered, &mut self.queue);
        self.corrupt.retain(|(position, mask)| {
            let Some(offset) = position.checked_sub(entered).filter(|offset| *offset < count) else {
                return true;
            };
            let index = usize::try_from(start + offset).unwrap_or(usize::MAX);
            if let Some(byte) = queue.get_mut(index) {
                *byte ^= mask;
            }
            false
        });
    }
}
