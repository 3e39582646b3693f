//! Every way in which a few HELLOs of one client meet a few faults, played to its end: three nodes, one session.
//!
//! The registries are played by [`Place`]: a session there has the names of its valid tokens, and is confirmed once the
//! client has read a WELCOME of this node. Judged is what clients and applications see: no two nodes have the session
//! confirmed at once, it is lost only if a node died with it or the engine was emptied, and once the faults are over the
//! client gets there.

use std::time::Duration;

use mainstay_proto::cluster::request::{Request, RequestId, Response};
use mainstay_proto::cluster::{Lookup, NodesEvent, PeerOutcome, ReleaseOutcome, Step};
use mainstay_proto::session::Record;
use mainstay_proto::session::message::ResumeToken;

use super::engine::{KEEP, SESSION, World, id};

const NODES: [u8; 3] = [1, 2, 3];
/// Rounds with faults; in each a fault may happen, and the client sends one HELLO.
const ROUNDS: usize = 2;
/// Requests that are lost at most, or whose answers are.
const LOSSES: usize = 2;
/// HELLOs within which the client gets to its session once the faults are over.
const PATIENCE: usize = 5;

/// Plays every sequence of choices, one after the other: the last choice that has another value takes it next.
#[derive(Default)]
struct Choices {
    taken: Vec<(usize, usize)>,
    next: usize,
}

impl Choices {
    fn of(&mut self, among: usize) -> usize {
        if self.next == self.taken.len() {
            self.taken.push((0, among));
        }
        self.next += 1;
        self.taken[self.next - 1].0
    }

    fn advance(&mut self) -> bool {
        self.next = 0;
        while let Some((value, among)) = self.taken.pop() {
            if value + 1 < among {
                self.taken.push((value + 1, among));
                return true;
            }
        }
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    node: u8,
    name: u8,
}

impl Token {
    fn name(self) -> [u8; 16] {
        [self.name; 16]
    }

    fn present(self) -> ResumeToken {
        ResumeToken([&id(self.node).0[..], &SESSION.0, &[self.name; 24]].concat().into())
    }
}

/// What one node's registry has of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Nothing,
    Live {
        claim: u64,
        names: Vec<u8>,
        confirmed: bool,
    },
    /// The outcome of the release is not known yet: a HELLO waits.
    Releasing {
        names: Vec<u8>,
    },
    Released {
        names: Vec<u8>,
    },
}

impl Place {
    fn knows(&self, token: Token) -> bool {
        match self {
            Self::Nothing => false,
            Self::Live { names, .. } | Self::Releasing { names } | Self::Released { names } => {
                names.contains(&token.name)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Running,
    Paused,
    Dead,
}

/// How one HELLO ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ended {
    Attached,
    Wait,
    Lost,
}

struct Play<'a> {
    world: World,
    places: [Place; 3],
    processes: [Process; 3],
    client: Token,
    last_name: u8,
    /// A node died with the session, or the engine was emptied.
    excused: bool,
    /// How many requests or answers may still be lost.
    losses: usize,
    /// WELCOMEs may still be lost.
    faulty: bool,
    choices: &'a mut Choices,
    story: Vec<String>,
}

impl Play<'_> {
    fn place(&mut self, node: u8) -> &mut Place {
        &mut self.places[usize::from(node) - 1]
    }

    fn process(&self, node: u8) -> Process {
        self.processes[usize::from(node) - 1]
    }

    fn holder(&self) -> Option<u8> {
        NODES.into_iter().find(|node| {
            let place = &self.places[usize::from(*node) - 1];
            matches!(place, Place::Live { confirmed: true, .. }) && self.process(*node) != Process::Dead
        })
    }

    fn fault(&mut self) {
        let holder = self.holder();
        match (self.choices.of(6), holder) {
            (1, Some(node)) if self.process(node) == Process::Running => self.drain(node),
            (2, Some(node)) => self.kill(node),
            (3, Some(node)) => self.pause(node),
            (4, _) => {
                self.story.push("the engine is emptied".into());
                self.world.engine.held.clear();
                self.excused = true;
            }
            (5, _) => {
                // The node that the engine names, which need not have confirmed anything.
                let owner = self.world.engine.held.get(&SESSION).and_then(|held| held.owner);
                if let Some(owner) = owner {
                    self.pause(owner.0[0]);
                }
            }
            _ => {}
        }
    }

    fn drain(&mut self, node: u8) {
        let Place::Live { claim, names, .. } = self.place(node).clone() else { return };
        self.story.push(format!("{node} releases"));
        let mut head = [0; 32];
        head[..16].fill(names[0]);
        head[16..].fill(names.get(1).copied().unwrap_or(0));
        let record = Record { head: head.to_vec().into(), saved: None, messages: vec![] };
        let now = self.world.now;
        self.world.node(node).release(now, SESSION, claim, record, KEEP);
        *self.place(node) = Place::Releasing { names };
        self.requests(node);
    }

    fn kill(&mut self, node: u8) {
        self.story.push(format!("{node} is killed"));
        self.excused |= matches!(self.place(node), Place::Live { .. } | Place::Releasing { .. });
        self.processes[usize::from(node) - 1] = Process::Dead;
        self.world.member(node).is_paused = true;
    }

    fn pause(&mut self, node: u8) {
        if self.process(node) == Process::Running {
            self.story.push(format!("{node} is paused"));
            self.processes[usize::from(node) - 1] = Process::Paused;
            self.world.member(node).is_paused = true;
        }
    }

    /// The engine takes the requests of a node. Claims and releases may be lost, or their answers.
    fn requests(&mut self, node: u8) {
        let now = self.world.now;
        while let Some((request_id, request)) = self.world.node(node).poll_request(now) {
            let response = self.answer(node, request_id, &request);
            self.world.node(node).handle_response(now, request_id, response);
        }
        while let Some(event) = self.world.node(node).poll_event() {
            self.note(node, event);
        }
    }

    fn answer(&mut self, node: u8, request_id: RequestId, request: &Request) -> Response {
        let may_fail = matches!(request, Request::Claim { .. } | Request::Release { .. });
        let fault = if may_fail && self.losses > 0 { self.choices.of(3) } else { 0 };
        self.losses -= usize::from(fault > 0);
        match fault {
            0 => self.world.engine.execute(request),
            1 => {
                self.story.push(format!("request {} of {node} is executed, its answer lost", request_id.0));
                self.world.engine.execute(request);
                Response::Unknown
            }
            _ => {
                self.story.push(format!("request {} of {node} is lost", request_id.0));
                Response::Unknown
            }
        }
    }

    fn note(&mut self, node: u8, event: NodesEvent) {
        let NodesEvent::Released { outcome, .. } = event else { return };
        let place = self.place(node);
        if let Place::Releasing { names } = place {
            let names = std::mem::take(names);
            *place = match outcome {
                ReleaseOutcome::Stored => Place::Released { names },
                other => panic!("{other:?}"),
            };
        }
    }

    /// Time passes, in which every running node does what is due.
    fn pass(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.world.now += Duration::from_millis(100);
            for node in NODES {
                if self.process(node) == Process::Running {
                    let now = self.world.now;
                    self.world.node(node).handle_timeout(now);
                    self.requests(node);
                }
            }
        }
    }

    /// The client sends a HELLO to a node that runs.
    fn hello(&mut self, entry: u8) -> Ended {
        let (now, token) = (self.world.now, self.client);
        self.story.push(format!("HELLO with {token:?} to {entry}"));
        let known = self.place(entry).knows(token);
        let lookup = self.world.node(entry).begin(now, &token.present(), token.name(), known, false);
        let ended = self.follow(entry, lookup);
        self.story.push(format!("{ended:?}"));
        ended
    }

    fn follow(&mut self, node: u8, mut lookup: Lookup) -> Ended {
        for _ in 0..100 {
            let now = self.world.now;
            match lookup.poll(now, self.world.node(node)) {
                Step::Here => match self.here(node) {
                    Some(ended) => return ended,
                    None => lookup.released(now, self.world.node(node)),
                },
                Step::Ask { node: owner, .. } => match self.ask(owner.0[0]) {
                    Ok(ended) => return ended,
                    Err(outcome) => lookup.handle_peer(now, outcome),
                },
                Step::Claiming => {
                    self.requests(node);
                    self.world.now += Duration::from_millis(60);
                    let now = self.world.now;
                    self.world.node(node).handle_timeout(now);
                }
                Step::Adopt { claim, record, .. } => {
                    let names = vec![record.head[0], record.head[16]];
                    *self.place(node) = Place::Live { claim, names, confirmed: false };
                    return self.attach(node);
                }
                Step::Unknown => return Ended::Lost,
                Step::Wait | Step::Elsewhere => return Ended::Wait,
            }
        }
        panic!("the lookup does not end: {:#?}", self.story);
    }

    /// The registry of the node is asked. `None`: it has released the session.
    fn here(&mut self, node: u8) -> Option<Ended> {
        let token = self.client;
        match self.place(node) {
            place if !place.knows(token) => Some(Ended::Lost),
            Place::Nothing => Some(Ended::Lost),
            Place::Live { .. } => Some(self.attach(node)),
            Place::Releasing { .. } => Some(Ended::Wait),
            Place::Released { .. } => None,
        }
    }

    /// The peer listener of the owner is asked.
    fn ask(&mut self, owner: u8) -> Result<Ended, PeerOutcome> {
        match self.process(owner) {
            Process::Dead => return Err(PeerOutcome::Refused),
            Process::Paused => return Err(PeerOutcome::Silent),
            Process::Running => {}
        }
        let (now, token) = (self.world.now, self.client);
        let known = self.place(owner).knows(token);
        let mut lookup = self.world.node(owner).begin(now, &token.present(), token.name(), known, true);
        match lookup.poll(now, self.world.node(owner)) {
            Step::Here => self.here(owner).ok_or(PeerOutcome::Released),
            Step::Elsewhere => Err(PeerOutcome::Released),
            Step::Wait => Ok(Ended::Wait),
            other => panic!("{other:?} through the peer listener: {:#?}", self.story),
        }
    }

    /// The node attaches the client, whose WELCOME arrives or is lost.
    fn attach(&mut self, node: u8) -> Ended {
        self.last_name += 1;
        let (presented, token) = (self.client.name, Token { node, name: self.last_name });
        let arrives = !self.faulty || self.choices.of(2) == 0;
        if arrives {
            let other = self.holder().filter(|holder| *holder != node);
            assert_eq!(other, None, "two nodes deliver: {:#?}", self.story);
            self.client = token;
        } else {
            self.story.push("its WELCOME is lost".into());
        }
        let Place::Live { names, confirmed, .. } = self.place(node) else { panic!("not live") };
        *names = if arrives { vec![token.name] } else { vec![presented, token.name] };
        *confirmed |= arrives;
        if arrives { Ended::Attached } else { Ended::Wait }
    }

    fn play(&mut self) {
        for _ in 0..ROUNDS {
            self.fault();
            let running: Vec<u8> =
                NODES.into_iter().filter(|node| self.process(*node) == Process::Running).collect();
            let entry = running[self.choices.of(running.len())];
            if self.hello(entry) == Ended::Lost {
                return self.lost();
            }
            self.pass(Duration::from_millis(1_500));
        }
        self.recover();
    }

    /// The faults are over.
    fn recover(&mut self) {
        (self.faulty, self.losses) = (false, 0);
        for node in NODES {
            if self.process(node) == Process::Paused {
                self.processes[usize::from(node) - 1] = Process::Running;
                self.world.member(node).is_paused = false;
            }
        }
        for attempt in 0..PATIENCE {
            self.pass(Duration::from_secs(2));
            let entry = NODES.into_iter().cycle().skip(attempt);
            let mut running = entry.filter(|node| self.process(*node) == Process::Running);
            let entry = running.next().unwrap();
            match self.hello(entry) {
                Ended::Attached => return,
                Ended::Lost => return self.lost(),
                Ended::Wait => {}
            }
        }
        panic!("the client does not get there: {:#?}", self.story);
    }

    fn lost(&self) {
        assert!(self.excused, "the session is lost without a reason: {:#?}", self.story);
    }
}

#[test]
fn no_interleaving_of_hellos_drains_and_lost_answers_loses_or_doubles_a_session() {
    let mut base = World::of(&NODES);
    base.nodes.values_mut().for_each(|member| member.events.clear());
    let mut choices = Choices::default();
    let (mut plays, mut losses) = (0_u64, 0_u64);
    loop {
        assert!(plays < 1_000_000, "too many choices");
        let mut play = Play {
            world: base.clone(),
            places: [
                Place::Live { claim: 1, names: vec![1], confirmed: true },
                Place::Nothing,
                Place::Nothing,
            ],
            processes: [Process::Running; 3],
            client: Token { node: 1, name: 1 },
            last_name: 1,
            excused: false,
            losses: LOSSES,
            faulty: true,
            choices: &mut choices,
            story: vec![],
        };
        play.play();
        plays += 1;
        losses += u64::from(play.story.last().is_some_and(|last| last == "Lost"));
        if !choices.advance() {
            break;
        }
    }
    assert!(plays > 1_000, "{plays}");
    assert!(losses > 0, "killed nodes lose sessions");
}
