//! The machine of one connection: two pipes, the faults in force, and what becomes of its ends.
//!
//! The driver reports what the sockets did (`handle_*`), asks for what to do (`poll_*`), and comes back when [`Connection::poll_timeout`]
//! says. Times are since the start of the proxy.
//!
//! A direction that lost a byte or an end is dead: nothing passes in it any more, also after the fault has ended, because a stream with a
//! hole in it is none. What its writer writes is read and dropped. The other direction goes on. A connection is gone once both ends have
//! ended, or a fault has cut it.

mod force;
mod ghost;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::SmallRng;

use self::force::InForce;
use self::ghost::Ghost;
use crate::event::What;
use crate::fault::{Direction, Fault, Side};
use crate::frames::{Dialogue, Frame, Part, Piece, opcode};
use crate::http;
use crate::pipe::{Gates, Pipe, ROOM, Tail};
use crate::scenario::Scenario;
use crate::schedule::{self, Schedule};

/// How long the proxy reads on after it has ended both streams, so that unread bytes do not turn the end into a reset.
const LINGER: Duration = Duration::from_secs(2);
/// A WebSocket on which the upstream says nothing counts as up so long after its handshake.
const UP_AFTER: Duration = Duration::from_secs(1);
/// The longest part of a payload that passes before a cut inside a frame.
const LONGEST_PART: u64 = 16 * 1024;

/// What the driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Connect to the upstream.
    Dial,
    /// Announce the end of the stream to this side.
    Finish(Side),
    /// Reset the connection with this side, and forget its socket.
    Reset(Side),
    /// A connection is up: ghosts of older ones appear.
    Appear,
}

/// The machine of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    opened: Duration,
    seed: u64,
    jitter: SmallRng,
    bits: SmallRng,
    /// By the side that writes.
    lanes: [Lane; 2],
    dialogue: Dialogue,
    dial: Dial,
    in_force: Vec<InForce>,
    rules: Vec<(Fault, Schedule)>,
    /// A request that is kept back because it may be answered by the fault `status`.
    held: Held,
    ghost: Ghost,
    /// When it counts as up.
    up_at: Option<Duration>,
    life: Life,
    first_end: Option<&'static str>,
    is_noted_unreadable: bool,
    actions: VecDeque<Action>,
    notes: VecDeque<What>,
}

/// One side, and the direction of what it writes.
#[derive(Debug)]
struct Lane {
    pipe: Pipe,
    gates: Gates,
    last_bytes: Duration,
    /// The side has ended its stream, or is gone.
    has_ended: bool,
    /// The side's socket is reset or broken.
    is_gone: bool,
    /// The present frame is dropped.
    drops_frame: bool,
    /// The next data frame is cut.
    cuts_next_frame: bool,
    /// How much of the present frame's payload passes before it is cut.
    cut_frame: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    NotYet,
    Asked,
    Connected,
}

/// What becomes of a part of what a side wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    IsDropped,
    /// It waits for the rest of its request.
    IsHeld {
        ends: bool,
    },
    /// So much of it passes, and then the connection is cut.
    IsCut {
        after: usize,
    },
}

#[derive(Debug)]
enum Held {
    No,
    /// A part of a head.
    Head(Vec<u8>),
    /// Whole requests, so many, and what follows them.
    Requests(Vec<u8>, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// Both streams are ended; the proxy reads until both sides end theirs.
    Lingers {
        until: Duration,
        reason: &'static str,
    },
    Over {
        reason: &'static str,
    },
}

impl Connection {
    pub(crate) fn new(id: u64, now: Duration, seed: u64) -> Self {
        Self {
            id,
            opened: now,
            seed,
            jitter: schedule::random(seed, id, 0),
            bits: schedule::random(seed, id, u64::MAX),
            lanes: [Lane::new(now), Lane::new(now)],
            dialogue: Dialogue::new(),
            dial: Dial::NotYet,
            in_force: Vec::new(),
            rules: Vec::new(),
            held: Held::No,
            ghost: Ghost::None,
            up_at: None,
            life: Life::Open,
            first_end: None,
            is_noted_unreadable: false,
            actions: VecDeque::new(),
            notes: VecDeque::new(),
        }
    }

    /// Replaces the rules that strike connections by themselves; their times count from `base`.
    pub(crate) fn set_rules(&mut self, scenario: &Scenario, base: Duration) {
        let rules = scenario.rules.iter().enumerate().map(|(index, rule)| (index + 1, rule));
        self.rules = rules
            .filter(|(number, rule)| {
                !schedule::is_of_the_proxy(rule)
                    && schedule::is_struck(self.seed, self.id, *number, rule.share)
            })
            .map(|(number, rule)| {
                let random = schedule::random(self.seed, self.id, number as u64);
                (rule.fault.clone(), Schedule::new(number, rule, base, random))
            })
            .collect();
    }

    pub(crate) fn opened(&self) -> Duration {
        self.opened
    }

    /// Returns the bytes written upwards and downwards.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.lanes[0].pipe.left(), self.lanes[1].pipe.left())
    }

    /// Returns what it is, in a word.
    pub(crate) fn state(&self) -> &'static str {
        match self.life {
            Life::Lingers { .. } | Life::Over { .. } => "closing",
            Life::Open if self.lanes.iter().any(|lane| lane.pipe.is_dead()) => "dead",
            Life::Open if self.dial != Dial::Connected => "connecting",
            Life::Open if self.dialogue.is_websocket() => "websocket",
            Life::Open if self.dialogue.is_opaque() => "unreadable",
            Life::Open => "open",
        }
    }

    /// Returns why the connection is gone, once it is.
    pub(crate) fn over(&self) -> Option<&'static str> {
        match self.life {
            Life::Over { reason } => Some(reason),
            _ => None,
        }
    }

    /// Returns how many bytes may be read from `side` now; none: its socket is left alone.
    pub(crate) fn room(&self, side: Side) -> usize {
        let at = side as usize;
        if self.lanes[at].has_ended || matches!(self.life, Life::Over { .. }) {
            return 0;
        }
        if matches!(self.life, Life::Lingers { .. }) {
            return ROOM;
        }
        let waits_for_answers = side == Side::Client && matches!(self.held, Held::Requests(..));
        if waits_for_answers { 0 } else { self.lanes[at].pipe.room(&self.lanes[at].gates) }
    }

    /// Returns when time has something to do.
    pub(crate) fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        let rules = self.rules.iter().filter_map(|(_, schedule)| schedule.next());
        match self.life {
            Life::Over { .. } => None,
            Life::Lingers { until, .. } => Some(until),
            Life::Open => rules
                .chain(self.in_force.iter().filter_map(|it| it.until))
                .chain(self.cut_times().map(|(time, _)| time))
                .chain(Side::BOTH.iter().filter_map(|side| self.next_write(*side, now)))
                .chain(self.up_at)
                .min(),
        }
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn poll_note(&mut self) -> Option<What> {
        self.notes.pop_front()
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        while self.end_faults(now) || self.strike_by_rules(now) {}
        self.cut_what_is_due(now, |cut| !cut.is_of_silence);
        if let Life::Lingers { until, reason } = self.life
            && until <= now
        {
            self.finish_life(reason);
        }
        if self.up_at.is_some_and(|at| at <= now) {
            self.up_at = None;
            self.actions.push_back(Action::Appear);
        }
        self.want_upstream();
        self.pass_tails(now);
    }

    /// What the sockets have was read. Only now is silence one: on a busy machine the process reads late what came in time.
    pub(crate) fn handle_silence(&mut self, now: Duration) {
        self.cut_what_is_due(now, |cut| cut.is_of_silence);
    }

    pub(crate) fn handle_connected(&mut self, now: Duration, note: What) {
        self.dial = Dial::Connected;
        self.notes.push_back(note);
        self.pass_tails(now);
    }

    pub(crate) fn handle_connect_failed(&mut self, note: What) {
        self.notes.push_back(note);
        if self.swallows(Side::Upstream) {
            self.lanes[Side::Upstream as usize].has_ended = true;
            self.lanes[Side::Client as usize].pipe.kill();
        } else {
            self.reset_both("upstream-failed");
        }
    }

    /// `side` wrote these bytes; not more than [`room`](Self::room).
    pub(crate) fn handle_bytes(&mut self, now: Duration, side: Side, bytes: &[u8]) {
        let at = side as usize;
        self.lanes[at].last_bytes = now;
        if self.life != Life::Open || self.swallows(side) {
            return;
        }
        // What passes is put into the pipe in one piece, however many frames it is.
        let (mut passed, mut read) = (0, 0);
        while read < bytes.len() && !self.lanes[at].pipe.has_tail() {
            let piece = self.dialogue.read(side, &bytes[read..]);
            let fate = self.judge(now, side, piece);
            let end = read + piece.length;
            if fate != Fate::Passes {
                self.push(now, side, &bytes[passed..read]);
                passed = end;
            }
            match fate {
                Fate::Passes | Fate::IsDropped => {}
                Fate::IsHeld { ends } => self.hold(ends, &bytes[read..end]),
                Fate::IsCut { after } => {
                    self.push(now, side, &bytes[read..read + after]);
                    self.cut(now, side, true, "cut-in-frame");
                }
            }
            read = end;
        }
        self.push(now, side, &bytes[passed..read]);
        self.note_unreadable();
        self.answer_or_pass(now);
        self.check_ghost();
        self.want_upstream();
    }

    /// `side` ended its stream.
    pub(crate) fn handle_end(&mut self, now: Duration, side: Side) {
        self.end_of(now, side, Tail::Fin, ["client", "upstream"]);
    }

    /// `side` reset the connection, or its socket is broken.
    pub(crate) fn handle_reset(&mut self, now: Duration, side: Side) {
        let at = side as usize;
        if self.lanes[at].is_gone {
            return;
        }
        self.lanes[at].is_gone = true;
        self.lanes[side.other() as usize].pipe.kill();
        if side == Side::Client && self.dial != Dial::Connected {
            return self.finish_life("client-reset");
        }
        let lane = &self.lanes[at];
        if self.life == Life::Open && lane.pipe.is_over() && !lane.gates.hole {
            // Its end has passed already: the reset follows it.
            self.actions.push_back(Action::Reset(side.other()));
            return self.finish_life(self.first_end.unwrap_or_default());
        }
        self.end_of(now, side, Tail::Reset, ["client-reset", "upstream-reset"]);
    }

    /// Returns what may be written to the reader of `side`.
    pub(crate) fn poll_write(&mut self, now: Duration, side: Side) -> &[u8] {
        let is_ready = self.life == Life::Open && (side == Side::Upstream || self.dial == Dial::Connected);
        if !is_ready || self.withholds(side) {
            return &[];
        }
        self.lanes[side as usize].pipe.writable(now, &self.lanes[side as usize].gates)
    }

    /// The reader of `side` took so many bytes.
    pub(crate) fn wrote(&mut self, now: Duration, side: Side, count: usize) {
        self.lanes[side as usize].pipe.wrote(now, count, &self.lanes[side as usize].gates);
        self.pass_tails(now);
    }

    /// The proxy ends: its sockets are closed.
    pub(crate) fn end_with_proxy(&mut self) {
        self.finish_life("proxy-ended");
    }

    /// Resets the connections with both sides. What waits is lost.
    fn reset_both(&mut self, reason: &'static str) {
        for side in Side::BOTH {
            self.actions.push_back(Action::Reset(side));
        }
        self.finish_life(reason);
    }

    /// Ends both streams. What waits is lost.
    fn finish_both(&mut self, now: Duration, reason: &'static str) {
        if self.life != Life::Open {
            return;
        }
        if self.dial != Dial::Connected {
            self.lanes[Side::Upstream as usize].has_ended = true;
        }
        for side in Side::BOTH {
            self.actions.push_back(Action::Finish(side));
            self.lanes[side as usize].pipe.kill();
        }
        self.life = Life::Lingers { until: now.saturating_add(LINGER), reason };
        self.settle();
    }

    fn finish_life(&mut self, reason: &'static str) {
        match self.life {
            Life::Open => self.life = Life::Over { reason },
            Life::Lingers { reason, .. } => self.life = Life::Over { reason },
            Life::Over { .. } => {}
        }
    }

    /// Decides what becomes of a part of what `side` wrote.
    fn judge(&mut self, now: Duration, side: Side, piece: Piece) -> Fate {
        match piece.part {
            Part::Frame(frame) => return self.judge_frame(now, side, frame, piece.length),
            Part::Head { begins, ends, .. } if side == Side::Client => {
                let is_held = !matches!(self.held, Held::No) || begins && self.status().is_some();
                return if is_held { Fate::IsHeld { ends } } else { Fate::Passes };
            }
            Part::Head { status: Some(status), .. } if status == 101 || status >= 200 => {
                self.notes.push_back(What::Handshake { status });
                self.up_at = Some(now.saturating_add(UP_AFTER));
            }
            Part::Opaque if side == Side::Upstream && self.lanes[side as usize].pipe.entered() == 0 => {
                self.up_at = Some(now.saturating_add(UP_AFTER));
            }
            Part::Head { .. } | Part::Body | Part::Opaque => {}
        }
        Fate::Passes
    }

    fn judge_frame(&mut self, now: Duration, side: Side, frame: Frame, length: usize) -> Fate {
        let at = side as usize;
        if frame.begins {
            self.lanes[at].drops_frame = self.drops(side, frame.opcode);
            if side == Side::Upstream && self.up_at.is_some() {
                self.up_at = Some(now);
            }
        }
        if self.lanes[at].drops_frame {
            return Fate::IsDropped;
        }
        if let (Some(payload @ 1..), None) = (frame.payload, frame.offset)
            && self.lanes[at].cuts_next_frame
            && frame.opcode <= opcode::LAST_OF_DATA
        {
            self.lanes[at].cut_frame = Some((payload / 2).min(LONGEST_PART));
        }
        match (self.lanes[at].cut_frame, frame.offset) {
            (Some(most), Some(offset)) if offset + length as u64 >= most => Fate::IsCut {
                after: usize::try_from(most.saturating_sub(offset)).unwrap_or(length).min(length),
            },
            _ => Fate::Passes,
        }
    }

    /// Keeps a part of a request back.
    fn hold(&mut self, ends: bool, bytes: &[u8]) {
        match &mut self.held {
            Held::No => self.held = Held::Head(bytes.to_vec()),
            Held::Head(held) | Held::Requests(held, _) => held.extend_from_slice(bytes),
        }
        match &mut self.held {
            Held::Head(held) if ends => self.held = Held::Requests(std::mem::take(held), 1),
            Held::Requests(_, count) if ends => *count += 1,
            _ => {}
        }
    }

    /// Puts bytes into the pipe, up to the limit of `cut-after`.
    fn push(&mut self, now: Duration, side: Side, bytes: &[u8]) {
        if let (Side::Client, Held::Head(held) | Held::Requests(held, _)) = (side, &mut self.held) {
            held.extend_from_slice(bytes);
            return;
        }
        let at = side as usize;
        let left = self.bytes_until_cut(side);
        let passes =
            left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
        self.lanes[at].pipe.push(now, &bytes[..passes], &self.lanes[at].gates, &mut self.jitter);
        if left.is_some_and(|left| left <= passes as u64) {
            self.cut(now, side, true, "cut-after");
        }
    }

    /// Cuts the connection once what `side` wrote before has passed.
    fn cut(&mut self, now: Duration, side: Side, reset: bool, reason: &'static str) {
        let at = side as usize;
        self.lanes[at].pipe.end(now, Tail::Cut { reset, reason }, &self.lanes[at].gates, &mut self.jitter);
        self.pass_tails(now);
    }

    /// A request that was kept back is answered, or passes if the fault has ended meanwhile.
    fn answer_or_pass(&mut self, now: Duration) {
        let Some((code, retry_after)) = self.status().filter(|_| !self.dialogue.is_opaque()) else {
            return self.pass_held(now);
        };
        // Answers of the upstream to earlier requests go first.
        let earlier = match self.held {
            Held::Requests(_, count) => self.dialogue.waiting().saturating_sub(count),
            _ => return,
        };
        if earlier > 0 || !self.dialogue.is_between(Side::Upstream) {
            return;
        }
        let answer = http::answer(code, retry_after, self.dialogue.asks_for_head(earlier));
        self.notes.push_back(What::Handshake { status: code });
        self.held = Held::No;
        self.lanes[Side::Client as usize].pipe.kill();
        let at = Side::Upstream as usize;
        self.lanes[at].pipe.push(now, &answer, &self.lanes[at].gates, &mut self.jitter);
        self.cut(now, Side::Upstream, false, "status");
    }

    fn pass_held(&mut self, now: Duration) {
        if let Held::Head(held) | Held::Requests(held, _) = std::mem::replace(&mut self.held, Held::No) {
            self.push(now, Side::Client, &held);
        }
    }

    fn end_of(&mut self, now: Duration, side: Side, tail: Tail, reasons: [&'static str; 2]) {
        let at = side as usize;
        self.lanes[at].has_ended = true;
        self.first_end.get_or_insert(reasons[at]);
        if self.life == Life::Open && !self.swallows(side) {
            self.pass_held(now);
            self.lanes[at].pipe.end(now, tail, &self.lanes[at].gates, &mut self.jitter);
            self.want_upstream();
        }
        self.pass_tails(now);
    }

    /// Whether a direction swallows what `side` writes; then it is dead from now on.
    fn swallows(&mut self, side: Side) -> bool {
        let at = side as usize;
        if self.lanes[at].gates.hole && !self.lanes[at].pipe.is_dead() {
            self.lose(side);
        }
        self.lanes[at].pipe.is_dead()
    }

    /// A direction loses what is in it, and what follows.
    fn lose(&mut self, side: Side) {
        let pipe = &mut self.lanes[side as usize].pipe;
        if !pipe.is_dead() && !pipe.is_over() {
            pipe.kill();
            self.notes.push_back(What::Dead { direction: side.direction() });
        }
    }

    /// Ends and resets pass once everything before them has.
    fn pass_tails(&mut self, now: Duration) {
        for side in Side::BOTH {
            let at = side as usize;
            let may_pass = self.life == Life::Open
                && (side == Side::Upstream || self.dial == Dial::Connected)
                && !self.withholds(side);
            let Some(tail) =
                may_pass.then(|| self.lanes[at].pipe.pop_tail(now, &self.lanes[at].gates)).flatten()
            else {
                continue;
            };
            match tail {
                Tail::Fin => self.actions.push_back(Action::Finish(side.other())),
                Tail::Reset => {
                    self.actions.push_back(Action::Reset(side.other()));
                    self.finish_life(self.first_end.unwrap_or_default());
                }
                Tail::Cut { reset: true, reason } => self.reset_both(reason),
                Tail::Cut { reset: false, reason } => self.finish_both(now, reason),
            }
        }
        self.settle();
    }

    /// Finds out whether the connection is gone.
    fn settle(&mut self) {
        let has_both_ended = self.lanes.iter().all(|lane| lane.has_ended);
        match self.life {
            Life::Open
                if has_both_ended
                    && self.lanes.iter().all(|lane| lane.pipe.is_over() || lane.pipe.is_dead()) =>
            {
                self.finish_life(self.first_end.unwrap_or_default());
            }
            Life::Open if has_both_ended && self.ghost != Ghost::None => self.finish_life("ghost"),
            Life::Open if self.ends_without_upstream() => {
                self.finish_life(self.first_end.unwrap_or_default());
            }
            Life::Lingers { reason, .. } if has_both_ended => self.finish_life(reason),
            _ => {}
        }
    }

    /// Asks for the upstream, unless nothing of the client gets there now.
    fn want_upstream(&mut self) {
        let is_wanted = self.dial == Dial::NotYet
            && self.life == Life::Open
            && !self.is_mute()
            && !self.lanes[Side::Client as usize].gates.hole
            && !self.lanes[Side::Client as usize].pipe.is_dead();
        // While the fault `status` waits for a request, the upstream is not needed.
        let has_something = self.status().is_none() || !self.lanes[Side::Client as usize].pipe.is_empty();
        if is_wanted && has_something {
            self.dial = Dial::Asked;
            self.actions.push_back(Action::Dial);
        }
    }

    /// Whether the client has ended its stream in a black hole that it opened in: no upstream will be asked for, and none ends.
    fn ends_without_upstream(&self) -> bool {
        let [up, down] = &self.lanes;
        let has_answer = !down.pipe.is_empty() || down.pipe.has_tail();
        self.dial == Dial::NotYet && up.has_ended && up.pipe.is_dead() && !has_answer
    }

    fn note_unreadable(&mut self) {
        if self.dialogue.is_opaque() && !self.is_noted_unreadable {
            self.is_noted_unreadable = true;
            self.notes.push_back(What::Unreadable);
        }
    }

    fn next_write(&self, side: Side, now: Duration) -> Option<Duration> {
        let is_ready = side == Side::Upstream || self.dial == Dial::Connected;
        let at = side as usize;
        if is_ready && !self.withholds(side) {
            self.lanes[at].pipe.next(now, &self.lanes[at].gates)
        } else {
            None
        }
    }

    fn idle_since(&self, direction: Direction) -> Duration {
        let meant = Side::BOTH.into_iter().filter(|side| direction.covers(*side));
        meant.map(|side| self.lanes[side as usize].last_bytes).max().unwrap_or_default()
    }
}

impl Lane {
    fn new(now: Duration) -> Self {
        Self {
            pipe: Pipe::new(),
            gates: Gates::default(),
            last_bytes: now,
            has_ended: false,
            is_gone: false,
            drops_frame: false,
            cuts_next_frame: false,
            cut_frame: None,
        }
    }
}
