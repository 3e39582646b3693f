//! The engine as its nodes see it: a table, records, two scripts, and what goes wrong between a request and its answer.
//!
//! A request is executed a little after it was made, and answered a little later. Each of the two may be lost, and a
//! request whose answer was lost may be executed again seconds later. A driver that misses an answer for 1 s drops its
//! connection, and everything that it waits for there is unknown. The scripts do what those of the Redis driver do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::cluster::request::{EngineEvent, Request, RequestId, Response};
use mainstay_proto::session::{NodeId, Record};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::plan::{Fault, Plan};

/// An engine that has not answered for this long is unreachable.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much a fail-over may lose.
const TAIL: Duration = Duration::from_secs(1);
/// How late a duplicate of a request may be executed.
const LATE: Duration = Duration::from_secs(15);
/// How often a driver tries to connect again.
const RECONNECT: Duration = Duration::from_millis(500);

/// What the engine keeps.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) table: BTreeMap<NodeId, Bytes>,
    pub(super) records: BTreeMap<[u8; 8], Kept>,
}

/// A session or an account that was released.
#[derive(Clone)]
pub(super) struct Kept {
    claim: u64,
    pub(super) owner: Option<NodeId>,
    number: u64,
    record: Record,
    until: Instant,
}

/// A node's connection to the engine.
#[derive(Default)]
struct Line {
    /// Since when it is there.
    up_since: Option<Instant>,
    cut_until: Option<Instant>,
    /// Requests without an answer.
    waiting: BTreeSet<RequestId>,
}

enum Flight {
    /// Execute it; with a time, the answer arrives then.
    Execute(Box<Request>, RequestId, Option<Instant>),
    Answer(RequestId, Response),
    /// The driver misses an answer, or notices that the connection is over.
    Miss(Option<RequestId>),
    Connect,
    Incarnation,
    FailOver,
}

impl Flight {
    /// Whether it happens in the engine, whatever the node does.
    fn is_its_own(&self) -> bool {
        matches!(self, Self::Execute(..) | Self::FailOver)
    }
}

/// What a node's driver reports to its machine.
pub(super) enum Report {
    Response(RequestId, Response),
    Event(EngineEvent),
}

/// The module describes it.
pub(super) struct Engine {
    pub(super) state: State,
    /// A replica may take over.
    fails_over: bool,
    /// It often does so just when a session was claimed.
    fails_at_claims: bool,
    rng: SmallRng,
    /// When it last lost something that it had stored.
    pub(super) forgot: Option<Instant>,
    /// What it kept before each change of the last second, if a replica may take over.
    past: VecDeque<(Instant, State)>,
    incarnation: u64,
    pub(super) away_until: Instant,
    pub(super) slow_until: Instant,
    /// Answers are lost until then, some of them with their requests.
    pub(super) loses_until: Instant,
    lines: BTreeMap<usize, Line>,
    flights: Vec<(Instant, usize, Flight)>,
}

impl Engine {
    pub(super) fn new(now: Instant, plan: &Plan) -> Self {
        let fails_over = plan.has(Fault::FailOver);
        Self {
            state: State::default(),
            fails_over,
            fails_at_claims: fails_over && plan.moves(),
            rng: SmallRng::seed_from_u64(plan.seed),
            forgot: None,
            past: VecDeque::new(),
            incarnation: 1,
            away_until: now,
            slow_until: now,
            loses_until: now,
            lines: BTreeMap::new(),
            flights: Vec::new(),
        }
    }

    // ---- nodes ----------------------------------------------------------------------------------

    pub(super) fn join(&mut self, now: Instant, node: usize) {
        self.lines.insert(node, Line::default());
        self.flights.push((now, node, Flight::Connect));
    }

    /// The node's process is gone: requests that left may still be executed.
    pub(super) fn part(&mut self, node: usize) {
        self.lines.remove(&node);
        self.flights.retain(|(_, of, flight)| *of != node || flight.is_its_own());
        for (_, of, flight) in &mut self.flights {
            if let (true, Flight::Execute(_, _, answer)) = (*of == node, flight) {
                *answer = None;
            }
        }
    }

    pub(super) fn cut(&mut self, now: Instant, node: usize, until: Instant, rng: &mut SmallRng) {
        if let Some(line) = self.lines.get_mut(&node) {
            line.cut_until = Some(line.cut_until.map_or(until, |at| at.max(until)));
        }
        self.noticed(now, node, rng);
    }

    pub(super) fn away(&mut self, now: Instant, until: Instant, rng: &mut SmallRng) {
        self.away_until = self.away_until.max(until);
        let nodes: Vec<_> = self.lines.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.noticed(now, node, rng));
    }

    /// A driver notices a dead connection although it asks nothing: it reads the incarnation every second.
    fn noticed(&mut self, now: Instant, node: usize, rng: &mut SmallRng) {
        let at = now + PATIENCE + Duration::from_millis(rng.random_range(0..1_000));
        self.flights.push((at, node, Flight::Miss(None)));
    }

    /// It keeps nothing: it restarts and is back then, or it was emptied as it runs, which no node is told.
    pub(super) fn empty(&mut self, now: Instant, back_at: Option<Instant>, rng: &mut SmallRng) {
        self.state = State::default();
        self.past.clear();
        self.forgot = Some(now);
        if let Some(until) = back_at {
            self.incarnation += 1;
            self.away(now, until, rng);
        }
    }

    /// A replica takes over that lacks up to a second. Where connections survive (a proxy), its nodes see the new
    /// incarnation late.
    pub(super) fn fail_over(&mut self, now: Instant, rng: &mut SmallRng) {
        let lag = TAIL.mul_f64(rng.random_range(0.0..1.0));
        if let Some((_, state)) = self.past.iter().find(|(changed, _)| *changed + lag > now) {
            self.state = state.clone();
        }
        self.past.clear();
        self.forgot = Some(now);
        self.incarnation += 1;
        if rng.random_bool(0.5) {
            let until = now + Duration::from_millis(rng.random_range(0..3_000));
            self.away(now, until, rng);
        } else {
            let nodes: Vec<_> = self.lines.keys().copied().collect();
            for node in nodes {
                let seen = now + TAIL.mul_f64(rng.random_range(0.0..1.0));
                self.flights.push((seen, node, Flight::Incarnation));
            }
        }
    }

    pub(super) fn heal(&mut self, now: Instant) {
        (self.away_until, self.slow_until, self.loses_until) = (now, now, now);
        self.lines.values_mut().for_each(|line| line.cut_until = None);
    }

    /// Whether a node reaches it.
    fn answers(&self, now: Instant, node: usize) -> bool {
        let cut = self.lines.get(&node).is_some_and(|line| line.cut_until.is_some_and(|until| until > now));
        !cut && self.away_until <= now
    }

    // ---- requests -------------------------------------------------------------------------------

    pub(super) fn ask(
        &mut self,
        now: Instant,
        node: usize,
        (id, request): (RequestId, Request),
        rng: &mut SmallRng,
    ) {
        let answers = self.answers(now, node);
        let Some(line) = self.lines.get_mut(&node) else { return };
        line.waiting.insert(id);
        if line.up_since.is_none() {
            let at = now + Duration::from_millis(1);
            self.flights.push((at, node, Flight::Answer(id, Response::Unknown)));
            return;
        }
        let slow = if self.slow_until > now { 1_500_000 } else { 3_000 };
        let mut leg = || Duration::from_micros(rng.random_range(50..slow));
        let (executed, answered) = (now + leg(), leg());
        let answered = executed + answered;
        let loses = self.loses_until > now;
        let moves = matches!(request, Request::Claim { .. } | Request::Release { .. });
        let (lost, unanswered) = (
            !answers || (loses && rng.random_bool(0.2)),
            loses && rng.random_bool(if moves { 0.6 } else { 0.3 }),
        );
        let missed = now + PATIENCE;
        let answer = (!lost && !unanswered && answered < missed).then_some(answered);
        if answer.is_none() {
            self.flights.push((missed, node, Flight::Miss(Some(id))));
        }
        if lost {
            return;
        }
        if self.fails_at_claims && matches!(request, Request::Claim { .. }) && rng.random_bool(0.3) {
            let fails = executed + Duration::from_millis(rng.random_range(1..200));
            self.flights.push((fails, node, Flight::FailOver));
        }
        self.flights.push((executed, node, Flight::Execute(Box::new(request.clone()), id, answer)));
        if answer.is_none() && rng.random_bool(if moves { 0.8 } else { 0.3 }) {
            let late = executed + LATE.mul_f64(rng.random_range(0.0..1.0));
            self.flights.push((late, node, Flight::Execute(Box::new(request), id, None)));
        }
    }

    /// Returns since when a node reaches it, if it does.
    pub(super) fn reached_since(&self, node: usize) -> Option<Instant> {
        self.lines.get(&node)?.up_since
    }

    /// Returns when the next thing happens. A paused process gets no answer.
    pub(super) fn next_event(&self, paused_until: impl Fn(usize) -> Instant) -> Option<Instant> {
        let at = |(at, node, flight): &(Instant, usize, Flight)| match flight {
            flight if flight.is_its_own() => *at,
            _ => (*at).max(paused_until(*node)),
        };
        self.flights.iter().map(at).min()
    }

    /// Returns the next report to a node that is due, and the node.
    pub(super) fn poll(&mut self, now: Instant, is_awake: impl Fn(usize) -> bool) -> Option<(usize, Report)> {
        loop {
            let may = |(at, node, flight): &(Instant, usize, Flight)| {
                *at <= now && (flight.is_its_own() || is_awake(*node))
            };
            let due = (0..self.flights.len()).filter(|at| may(&self.flights[*at]));
            let first = due.min_by_key(|at| self.flights[*at].0)?;
            let (_, node, flight) = self.flights.remove(first);
            if let Some(report) = self.arrive(now, node, flight) {
                return Some((node, report));
            }
        }
    }

    fn arrive(&mut self, now: Instant, node: usize, flight: Flight) -> Option<Report> {
        match flight {
            Flight::Execute(request, id, answered) => {
                if self.away_until > now {
                    self.flights.push((now + PATIENCE, node, Flight::Miss(Some(id))));
                    return None;
                }
                let response = self.execute(now, *request);
                if let Some(at) = answered {
                    self.flights.push((at, node, Flight::Answer(id, response)));
                }
                None
            }
            Flight::Answer(id, response) => {
                self.lines.get_mut(&node)?.waiting.remove(&id).then_some(Report::Response(id, response))
            }
            Flight::Miss(id) => self.miss(now, node, id),
            Flight::Connect => {
                if !self.answers(now, node) {
                    self.flights.push((now + RECONNECT, node, Flight::Connect));
                    return None;
                }
                self.lines.get_mut(&node)?.up_since = Some(now);
                Some(self.reachable())
            }
            Flight::FailOver => {
                let mut rng = self.rng.clone();
                self.fail_over(now, &mut rng);
                self.rng = rng;
                None
            }
            Flight::Incarnation => self.lines.get(&node)?.up_since.map(|_| self.reachable()),
        }
    }

    fn reachable(&self) -> Report {
        let incarnation = Some(format!("incarnation {}", self.incarnation));
        Report::Event(EngineEvent::Reachable { incarnation })
    }

    /// The driver drops its connection: no answer will come to what waits.
    fn miss(&mut self, now: Instant, node: usize, id: Option<RequestId>) -> Option<Report> {
        let still_waits =
            id.is_none_or(|id| self.lines.get(&node).is_some_and(|line| line.waiting.contains(&id)));
        let answers = self.answers(now, node);
        let line = self.lines.get_mut(&node)?;
        // A connection that was cut and answers again in time is not missed.
        if line.up_since.is_none() || !still_waits || (id.is_none() && answers) {
            return None;
        }
        line.up_since = None;
        for waiting in &line.waiting {
            self.flights.push((now, node, Flight::Answer(*waiting, Response::Unknown)));
        }
        self.flights.push((now + RECONNECT, node, Flight::Connect));
        Some(Report::Event(EngineEvent::Unreachable { reason: "no answer for 1 s".into() }))
    }

    // ---- scripts --------------------------------------------------------------------------------

    fn execute(&mut self, now: Instant, request: Request) -> Response {
        self.state.records.retain(|_, kept| kept.until > now);
        if self.fails_over {
            self.past.retain(|(changed, _)| *changed + TAIL > now);
            self.past.push_back((now, self.state.clone()));
        }
        match request {
            Request::Heartbeat { node, value } => {
                self.state.table.insert(node, value);
                Response::Table(self.state.table.iter().map(|(node, value)| (*node, value.clone())).collect())
            }
            Request::Forget { node } => {
                self.state.table.remove(&node);
                Response::Stored
            }
            Request::Release { session, owner, claim, number, record, keep } => {
                let until = now + keep;
                let kept = Kept { claim, owner: None, number, record, until };
                self.release(session.0, owner, kept)
            }
            Request::Claim { session, owner, disowned, claimant, name, keep } => {
                self.claim(session.0, [owner, claimant], disowned, name, now + keep)
            }
            // No node of a simulation leaves notes.
            Request::Note { .. } => Response::Stored,
            Request::Notes { .. } => Response::Notes(Vec::new()),
        }
    }

    fn release(&mut self, session: [u8; 8], owner: NodeId, new: Kept) -> Response {
        if let Some(kept) = self.state.records.get(&session) {
            if kept.claim > new.claim || (kept.claim == new.claim && kept.owner != Some(owner)) {
                return Response::Fenced(kept.owner);
            }
            if kept.claim == new.claim && new.number <= kept.number {
                return Response::Stored;
            }
        }
        self.state.records.insert(session, new);
        Response::Stored
    }

    fn claim(
        &mut self,
        session: [u8; 8],
        [owner, claimant]: [NodeId; 2],
        disowned: bool,
        name: [u8; 16],
        until: Instant,
    ) -> Response {
        let Some(kept) = self.state.records.get_mut(&session) else { return Response::None };
        let names = [kept.record.head.get(..16), kept.record.head.get(16..32)];
        if !names.contains(&Some(name.as_slice())) {
            return Response::None;
        }
        if kept.owner != Some(claimant) {
            match kept.owner {
                Some(other) if other != owner => return Response::Moved(other),
                Some(_) if !disowned => return Response::None,
                _ => {}
            }
            kept.claim += 1;
            (kept.owner, kept.number, kept.until) = (Some(claimant), 0, until);
        }
        Response::Claimed { claim: kept.claim, record: kept.record.clone() }
    }
}

/// Returns a form that is short enough for a trace.
pub(super) fn show(response: &Response) -> String {
    match response {
        Response::Table(fields) => format!("table of {}", fields.len()),
        Response::Claimed { claim, .. } => format!("claimed, {claim}"),
        other => format!("{other:?}"),
    }
}

/// Returns a form that is short enough for a trace.
pub(super) fn show_request(request: &Request) -> String {
    match request {
        Request::Heartbeat { node, .. } => format!("heartbeat of {node}"),
        Request::Forget { node } => format!("forget {node}"),
        Request::Release { session, claim, .. } => format!("release {session:?}, claim {claim}"),
        Request::Claim { session, owner, .. } => format!("claim {session:?} of {owner}"),
        Request::Note { .. } => "a note".to_owned(),
        Request::Notes { .. } => "the notes".to_owned(),
    }
}
