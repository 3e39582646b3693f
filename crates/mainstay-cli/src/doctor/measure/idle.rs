//! The search for the idle limit of a path.
//!
//! A proxy that ends an idle connection is seen on any silent connection: the end comes at the limit. A NAT forgets the connection and
//! notifies neither end: only a Ping after the silence shows it. The search therefore keeps several silent connections with different
//! *targets*: at its target a connection sends one Ping and must get the Pong. The limit lies between the longest silence that lived
//! and the shortest that died.
//!
//! The first targets are a few short ones, and the longest ones that fit, each shorter than the one before by a constant factor: no time
//! is left for a long silence later. A connection that lived is used again. Once one died, all others whose silence is longer are asked, too, and the next
//! targets lie within what is left of the interval, as long as time allows.
//!
//! Anything that the server sends ends the silence: it lived so far, and the next one begins.
//!
//! A machine: the driver reports what happens, with the time since the start, and then polls what to do until there is nothing.

use std::time::Duration;

use super::super::measured::{CutHow, Limit};
use super::lifetime::Explained;

/// Two silences whose ratio is below this are not told apart further.
const CLOSE_ENOUGH: f64 = 1.03;
/// The shares of the longest target that are tried beside it from the start.
const SCOUTS: [f64; 3] = [0.09, 0.03, 0.01];
/// Cuts whose ratio is below this are of one limit.
const NEAR: f64 = 1.5;
/// The longest first target is so many times the shortest one that is of interest.
const RANGE: f64 = 200.0;
/// The silences that lived are remembered up to this number; the shortest is then forgotten.
const LIVED: usize = 256;

/// The bounds of a search.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// When the search is over.
    pub(crate) until: Duration,
    /// How long a Pong may take.
    pub(crate) patience: Duration,
    /// How late the end of a connection may be noticed.
    pub(crate) slack: Duration,
    /// Connections at once.
    pub(crate) connections: usize,
    /// Connections in total.
    pub(crate) openings: usize,
    /// Between two openings.
    pub(crate) apart: Duration,
    /// Between two neighbouring first targets.
    pub(crate) ratio: f64,
}

/// What the driver is to do with the connection of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Do {
    /// Open it.
    Open(usize),
    /// Send a Ping.
    Check(usize),
    /// Close it: it is given up.
    Close(usize),
}

/// The search.
#[derive(Debug)]
pub(crate) struct Search {
    bounds: Bounds,
    connections: Vec<Connection>,
    next_opening: Duration,
    /// Silences that lived.
    lived: Vec<Duration>,
    deaths: Vec<Death>,
    explained: Explained,
    /// Whether the server answers Pings; `None`: not known yet.
    answers: Option<bool>,
    failures: usize,
    /// The server ended silences that were too short to be of interest.
    is_disturbed: bool,
}

#[derive(Debug)]
struct Connection {
    opened: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Opening {
        target: Duration,
    },
    /// Without a target it only waits for a visible end.
    Silent {
        since: Duration,
        target: Option<Duration>,
    },
    /// A Ping was sent at `at`.
    Checking {
        since: Duration,
        at: Duration,
    },
    /// The Pong did not come in time. It may still come.
    Overdue {
        since: Duration,
        at: Duration,
    },
    Ended,
}

/// A silence that did not live.
#[derive(Debug, Clone, PartialEq)]
struct Death {
    connection: usize,
    opened: Duration,
    silence: Duration,
    noticed: Duration,
    /// The end came within the silence, and shows the limit by itself. Otherwise it was noticed by a Ping after the silence.
    is_exact: bool,
    how: CutHow,
}

impl Death {
    /// The time in which it happened.
    fn window(&self, patience: Duration) -> (Duration, Duration) {
        let earliest =
            if self.is_exact { self.noticed } else { self.noticed.saturating_sub(self.silence + patience) };
        (earliest, self.noticed)
    }
}

/// What is known of the limit: above the first, at most the second.
#[derive(Debug, Clone, Copy)]
struct Interval<'a> {
    lived: Duration,
    death: Option<&'a Death>,
}

impl Interval<'_> {
    fn contains(&self, silence: Duration) -> bool {
        silence > self.lived && self.death.is_none_or(|death| silence < death.silence)
    }
}

impl Search {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            connections: Vec::new(),
            next_opening: Duration::ZERO,
            lived: Vec::new(),
            deaths: Vec::new(),
            explained: Explained::default(),
            answers: None,
            failures: 0,
            is_disturbed: false,
        }
    }

    /// The connection is open: its silence begins.
    pub(crate) fn handle_open(&mut self, now: Duration, number: usize) {
        let latest = self.bounds.until.saturating_sub(self.bounds.patience + now);
        let Some(connection) = self.connections.get_mut(number) else { return };
        if let State::Opening { target } = connection.state {
            *connection = Connection {
                opened: now,
                state: State::Silent { since: now, target: Some(target.min(latest)) },
            };
        }
    }

    /// The connection could not be opened.
    pub(crate) fn handle_failure(&mut self, now: Duration, number: usize) {
        self.failures += 1;
        self.next_opening = now + self.bounds.apart * 2_u32.saturating_pow(self.failures.min(10) as u32);
        self.set(number, State::Ended);
    }

    /// The server sent something that no Ping asked for.
    pub(crate) fn handle_bytes(&mut self, now: Duration, number: usize) {
        let Some(State::Silent { since, target }) = self.state(number) else { return };
        self.note_lived(now.saturating_sub(since));
        self.set(number, State::Silent { since: now, target });
    }

    /// The Pong for the Ping of [`Do::Check`] came.
    pub(crate) fn handle_pong(&mut self, now: Duration, number: usize) {
        self.answers = Some(true);
        let (Some(State::Checking { since, at }) | Some(State::Overdue { since, at })) = self.state(number)
        else {
            return;
        };
        self.deaths.retain(|death| death.connection != number);
        self.note_lived(at.saturating_sub(since));
        self.set(number, State::Silent { since: now, target: None });
    }

    /// The connection ended, not by this client.
    pub(crate) fn handle_end(&mut self, now: Duration, number: usize, how: CutHow) {
        match self.state(number) {
            Some(State::Opening { .. }) => self.handle_failure(now, number),
            Some(State::Silent { since, .. }) => {
                self.note_death(now, number, now.saturating_sub(since), true, how)
            }
            Some(State::Checking { since, at }) => {
                let how = if how == CutHow::Reset { CutHow::ResetOnSend } else { how };
                self.note_death(now, number, at.saturating_sub(since), false, how);
            }
            Some(State::Overdue { .. }) if how == CutHow::Reset => {
                self.deaths
                    .iter_mut()
                    .filter(|death| death.connection == number)
                    .for_each(|death| death.how = CutHow::ResetOnSend);
            }
            Some(State::Overdue { .. }) => {}
            Some(State::Ended) | None => {}
        }
        self.set(number, State::Ended);
    }

    /// Another connection shows whether Pings are answered. If they are not, only ends that come by themselves count.
    pub(crate) fn handle_answers(&mut self, answers: bool) {
        self.answers = Some(answers);
    }

    /// Other connections show what else cuts; it replaces what was known of that.
    pub(crate) fn explain(&mut self, explained: &Explained) {
        if self.explained != *explained {
            self.explained = explained.clone();
        }
    }

    /// Forgets what was seen, and all connections, which the driver closes: something about them changed.
    pub(crate) fn restart(&mut self) {
        self.connections.iter_mut().for_each(|connection| connection.state = State::Ended);
        self.lived.clear();
        self.deaths.clear();
    }

    /// Returns what to do next.
    pub(crate) fn poll(&mut self, now: Duration) -> Option<Do> {
        if now >= self.bounds.until {
            return None;
        }
        for number in 0..self.connections.len() {
            if let Some(what) = self.poll_connection(now, number) {
                return Some(what);
            }
        }
        self.poll_opening(now)
    }

    /// Returns when to poll again, if nothing happens before.
    pub(crate) fn poll_timeout(&self, now: Duration) -> Duration {
        let due = self.connections.iter().filter_map(|connection| match connection.state {
            State::Silent { since, target } if self.answers != Some(false) => {
                target.map(|target| since + target)
            }
            State::Checking { at, .. } => Some(at + self.bounds.patience),
            _ => None,
        });
        let next = self.next_opening.max(now);
        let opening = self.wants_opening(next).map(|_| next);
        due.chain(opening).chain([self.bounds.until]).min().unwrap_or(self.bounds.until)
    }

    /// Returns what is known.
    pub(crate) fn limit(&self) -> Limit {
        let Interval { lived, death } = self.interval();
        let Some(death) = death else { return self.without_cut(lived) };
        let seen = self.counted().filter(|other| other.silence >= death.silence).count() as u32;
        // A Ping that is sent just as the end is on its way says less than the ends that came without one.
        let near = |other: &&Death| other.is_exact && ratio(other.silence, death.silence) < NEAR;
        let mut exact: Vec<&Death> = self.counted().filter(near).collect();
        exact.sort_by_key(|other| other.silence);
        // The one in the middle: a busy machine may take a silence for a shorter or a longer one.
        let (Some(typical), Some(first), Some(last)) =
            (exact.get(exact.len().saturating_sub(1) / 2), exact.first(), exact.last())
        else {
            let (after, between) = (middle(lived, death.silence), (lived, death.silence));
            return Limit::Cut { after, between, how: death.how.clone(), seen };
        };
        let earliest = lived.max(death.silence.min(first.silence.saturating_sub(self.bounds.slack)));
        let (after, between) = (typical.silence, (earliest.min(typical.silence), last.silence));
        Limit::Cut { after, between, how: typical.how.clone(), seen }
    }

    fn without_cut(&self, lived: Duration) -> Limit {
        if !lived.is_zero() {
            return Limit::Holds { for_at_least: lived };
        }
        Limit::unknown(match self.answers {
            Some(false) => {
                "the server answers no Ping, so a cut that notifies neither end cannot be seen, and no other was"
            }
            _ if self.is_disturbed => "the server sends so often that there is no silence",
            _ if self.connections.is_empty() || self.failures > 0 => "too few connections could be opened",
            _ if !self.deaths.is_empty() => "connections ended for other reasons before a silence was over",
            _ => "no silence was over in time",
        })
    }

    fn poll_connection(&mut self, now: Duration, number: usize) -> Option<Do> {
        match self.state(number)? {
            State::Silent { since, target } => {
                let silence = now.saturating_sub(since);
                let target = self.aim(now, number, silence, target);
                if self.answers != Some(false) && target.is_some_and(|target| silence >= target) {
                    self.set(number, State::Checking { since, at: now });
                    return Some(Do::Check(number));
                }
                self.set(number, State::Silent { since, target });
            }
            State::Checking { since, at } if now >= at + self.bounds.patience => {
                self.note_death(now, number, at.saturating_sub(since), false, CutHow::Silent);
                self.set(number, State::Overdue { since, at });
            }
            State::Overdue { .. }
                if self.open_now() >= self.bounds.connections
                    && self.choose(now, Duration::ZERO, now).is_some() =>
            {
                self.set(number, State::Ended);
                return Some(Do::Close(number));
            }
            _ => {}
        }
        None
    }

    /// Keeps the target while it can show something, finds another, or ends the silence if a new one can show more.
    fn aim(
        &self,
        now: Duration,
        number: usize,
        silence: Duration,
        target: Option<Duration>,
    ) -> Option<Duration> {
        let interval = self.interval();
        if target.is_some_and(|target| interval.contains(target))
            || interval.death.is_some_and(|death| death.is_exact)
        {
            return target;
        }
        let opened = self.connections.get(number)?.opened;
        let is_long = interval.death.is_some_and(|death| silence >= death.silence);
        self.choose(now, silence, opened)
            .or_else(|| (is_long || self.choose(now, Duration::ZERO, opened).is_some()).then_some(silence))
    }

    fn poll_opening(&mut self, now: Duration) -> Option<Do> {
        let target = self.wants_opening(now)?;
        if now < self.next_opening {
            return None;
        }
        self.next_opening = now + self.bounds.apart;
        self.connections.push(Connection { opened: now, state: State::Opening { target } });
        Some(Do::Open(self.connections.len() - 1))
    }

    /// The target of another connection, if one may be opened and can show something.
    fn wants_opening(&self, now: Duration) -> Option<Duration> {
        let may = self.open_now() < self.bounds.connections && self.connections.len() < self.bounds.openings;
        if may { self.choose(now, Duration::ZERO, now) } else { None }
    }

    /// Chooses a target for a connection that has been silent for `silence`.
    fn choose(&self, now: Duration, silence: Duration, opened: Duration) -> Option<Duration> {
        let interval = self.interval();
        if interval.death.is_some_and(|death| death.is_exact) {
            return None;
        }
        let longest = self.longest(now, silence, opened)?;
        let is_possible =
            |target: &Duration| interval.contains(*target) && *target > silence && *target <= longest;
        let targets: Vec<_> = self.connections.iter().filter_map(Connection::target).collect();
        let is_new = |target: &Duration| {
            targets.iter().all(|other| ratio(*other, *target) > (1.0 + self.bounds.ratio) / 2.0)
        };
        self.first_targets().find(|target| is_possible(target) && is_new(target)).or_else(|| {
            let death = interval.death?;
            halve(interval.lived.max(self.shortest()), death.silence, &targets).filter(is_possible)
        })
    }

    /// The longest silence for which there is time.
    fn longest(&self, now: Duration, silence: Duration, opened: Duration) -> Option<Duration> {
        let end = match self.explained.lifetime {
            Some(age) => self.bounds.until.min(opened + age.mul_f64(0.98)),
            None => self.bounds.until,
        };
        Some(end.checked_sub(self.bounds.patience)?.checked_sub(now)? + silence)
    }

    /// The first targets: a few short ones, so that a short limit is known soon, and then the longest first.
    fn first_targets(&self) -> impl Iterator<Item = Duration> {
        let opening = self.bounds.apart * self.bounds.connections as u32;
        let longest = self.bounds.until.saturating_sub(self.bounds.patience + opening);
        let shortest = self.shortest();
        let ratio = self.bounds.ratio;
        let long = std::iter::successors(Some(longest), move |target| Some(target.div_f64(ratio)));
        let scouts = SCOUTS.into_iter().take(self.bounds.connections / 4);
        let short = scouts.map(move |share| longest.mul_f64(share));
        short.chain(long.take_while(move |target| *target > shortest))
    }

    fn shortest(&self) -> Duration {
        self.bounds.until.div_f64(RANGE)
    }

    /// The deaths that silence explains best.
    fn counted(&self) -> impl Iterator<Item = &Death> {
        self.deaths.iter().filter(|death| {
            let (from, to) = death.window(self.bounds.patience);
            let is_seen = death.how != CutHow::Silent || self.answers == Some(true);
            is_seen && !self.explained.covers(death.opened, from, to)
        })
    }

    /// The limit that contradicts the fewest silences; none if that contradicts no more.
    fn interval(&self) -> Interval<'_> {
        let contradictions = |limit: Duration| {
            self.lived.iter().filter(|lived| **lived >= limit).count()
                + self.counted().filter(|death| death.silence < limit).count()
        };
        let best = self
            .counted()
            .map(|death| (contradictions(death.silence), death))
            .min_by_key(|(count, death)| (*count, death.silence));
        let death = best.filter(|(count, _)| *count < self.counted().count()).map(|(_, death)| death);
        let below = |lived: &&Duration| death.is_none_or(|death| **lived < death.silence);
        Interval { lived: self.lived.iter().filter(below).max().copied().unwrap_or_default(), death }
    }

    fn open_now(&self) -> usize {
        self.connections.iter().filter(|connection| connection.state != State::Ended).count()
    }

    fn note_lived(&mut self, silence: Duration) {
        if silence < self.shortest() {
            self.is_disturbed = true;
            return;
        }
        if self.lived.len() == LIVED {
            let shortest =
                self.lived.iter().enumerate().min_by_key(|(_, lived)| **lived).map_or(0, |(index, _)| index);
            self.lived.swap_remove(shortest);
        }
        self.lived.push(silence);
    }

    fn note_death(
        &mut self,
        now: Duration,
        connection: usize,
        silence: Duration,
        is_exact: bool,
        how: CutHow,
    ) {
        let Some(opened) = self.connections.get(connection).map(|connection| connection.opened) else {
            return;
        };
        self.deaths.push(Death { connection, opened, noticed: now, silence, is_exact, how });
    }

    fn state(&self, number: usize) -> Option<State> {
        self.connections.get(number).map(|connection| connection.state)
    }

    fn set(&mut self, number: usize, state: State) {
        if let Some(connection) = self.connections.get_mut(number) {
            connection.state = state;
        }
    }
}

impl Connection {
    /// The silence that it will show.
    fn target(&self) -> Option<Duration> {
        match self.state {
            State::Opening { target } => Some(target),
            State::Silent { target, .. } => target,
            State::Checking { since, at } => Some(at.saturating_sub(since)),
            State::Overdue { .. } | State::Ended => None,
        }
    }
}

/// Halves the widest gap between `from` and `to`, both of which are known, and the targets between them.
fn halve(from: Duration, to: Duration, targets: &[Duration]) -> Option<Duration> {
    let mut points: Vec<_> =
        targets.iter().copied().filter(|target| *target > from && *target < to).chain([from, to]).collect();
    points.sort_unstable();
    let widest = points
        .windows(2)
        .map(|pair| (pair[0], pair[1]))
        .max_by(|a, b| ratio(a.0, a.1).total_cmp(&ratio(b.0, b.1)));
    widest.filter(|(low, high)| ratio(*low, *high) > CLOSE_ENOUGH).map(|(low, high)| middle(low, high))
}

/// How many times the smaller is contained in the larger.
fn ratio(a: Duration, b: Duration) -> f64 {
    let (low, high) = (a.min(b).as_secs_f64(), a.max(b).as_secs_f64());
    if low > 0.0 { high / low } else { f64::MAX }
}

/// The geometric mean, or half if `low` is zero.
fn middle(low: Duration, high: Duration) -> Duration {
    if low.is_zero() {
        high / 2
    } else {
        Duration::from_secs_f64((low.as_secs_f64() * high.as_secs_f64()).sqrt())
    }
}

#[cfg(test)]
mod tests;
