//! The way of one HELLO that presents a token to the session that the token names.
//!
//! | HELLO | Route |
//! |---|---|
//! | a token without a route; this node's own id; a name that this node's registry has | here |
//! | a node id in the table, dead or not | that node's peer listener |
//! | ... that has left, that refuses TCP twice (100 ms apart), or whose address is another node's by now | *gone* |
//! | ... that sends nothing for 1 s | claim; if the engine has no such session: *wait*, and *gone* once it is dead |
//! | a node id that is not in the table | if the table is complete: an unknown token, without a request; else *wait* |
//! | a HELLO that came through the peer listener, with another node's id | *elsewhere* |
//! | ... for a session that this node took over, by a token that its registry does not have any more | an unknown token |
//!
//! - *Gone*: claim; if the engine has no such session, the token is unknown.
//! - What this node has adopted it does not claim: *here*.
//! - *Wait*: REFUSE 4414, temporary, 0.2 to 2 s; also if a claim cannot be made or takes too long.
//! - Where the engine names another node, the lookup goes there, at most [`HOPS`] times.
//! - *Elsewhere*: the owner answers *released*, and the entry node claims. The engine may have named this node although it
//!   has no session: its claim was executed, and the answer never came. While this node claims the session: *wait*. Once it has
//!   adopted the session, the record is old: a token of the time before would bring it back at another node.
//!
//! A HELLO that came through the peer listener is never sent on to another node, and costs this node no request.
//!
//! Source: `docs/CLUSTER.md`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::claims::{CLAIM_TIME, ClaimOutcome};
use super::node_info::PeerKey;
use super::nodes::Nodes;
use super::table::Found;
use crate::forward::Forward;
use crate::session::message::{Delay, ResumeToken, SessionId};
use crate::session::{Control, NodeId, Record, Route};
use crate::ws::CloseCode;

/// The pause before the second attempt to connect to a peer listener that refused TCP.
pub const SECOND_ATTEMPT: Duration = Duration::from_millis(100);
/// How often one HELLO goes where the engine or an owner sends it; then it waits.
pub const HOPS: u32 = 4;
/// When a client may try again whose session cannot be found now.
pub const WAIT: Delay = Delay { min: Duration::from_millis(200), max: Duration::from_secs(2) };

/// What to do next for a HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask this node's own registry. If it has *released* the session, call [`Lookup::released`] and poll again.
    Here,
    /// After `pause`, connect to the peer listener, send the block and the client's bytes, and wait for its answer. Then
    /// relay, open, refuse, or call [`Lookup::handle_peer`] and poll again.
    Ask {
        /// The node.
        node: NodeId,
        /// Its peer listener.
        address: SocketAddr,
        /// The key of the peer listener.
        key: PeerKey,
        /// How long to wait first: the second attempt comes 100 ms after the first.
        pause: Duration,
    },
    /// A claim is in progress: poll again at [`NodesEvent::ClaimAnswered`](super::NodesEvent::ClaimAnswered), or at the
    /// [deadline](Lookup::deadline).
    Claiming,
    /// This node has the session now: adopt it, within the second in which no other HELLO claims it.
    Adopt {
        /// The session.
        session: SessionId,
        /// The number of the claim.
        claim: u64,
        /// What was released.
        record: Record,
    },
    /// No node has the session: open a new one, without an account. For a HELLO that came through the peer listener: answer
    /// [`PeerAnswer::Lost`](super::peer::PeerAnswer::Lost).
    Unknown,
    /// The session cannot be found now: send [`wait`].
    Wait,
    /// Only for a HELLO that came through the peer listener: the session is not here, or was released. Answer
    /// [`PeerAnswer::Released`](super::peer::PeerAnswer::Released): the entry node claims it.
    Elsewhere,
}

/// What became of an attempt to ask another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerOutcome {
    /// The peer listener refused TCP.
    Refused,
    /// Another node listens there.
    OtherNode,
    /// No answer came within [`BLOCK_TIME`](super::peer::BLOCK_TIME), counted from the start of the attempt; or the
    /// connection ended without an answer, or the answer was damaged.
    Silent,
    /// The owner has released the session, or does not have it and names the engine.
    Released,
    /// This node could not ask: it has no descriptor or no port left.
    NotAsked,
}

/// The REFUSE of [`Step::Wait`].
#[must_use]
pub fn wait() -> Control {
    Control::Refuse {
        code: CloseCode::UPSTREAM_UNAVAILABLE.into(),
        temporary: true,
        delay: WAIT,
        account: None,
    }
}

/// The way of one HELLO; the module describes it. It may be dropped at any time.
#[derive(Debug, Clone)]
pub struct Lookup {
    session: SessionId,
    name: [u8; 16],
    through_peer: bool,
    hops: u32,
    state: State,
    forward: Forward,
}

#[derive(Debug, Clone)]
enum State {
    /// Which node has the session: the token's node id, or the engine's word.
    Find { owner: NodeId, by_engine: bool },
    /// A node is asked, for the second time if it refused once.
    Asking { owner: NodeId, refused_once: bool },
    /// A claim begins.
    Claim { owner: NodeId, why: Why },
    /// A claim is in progress.
    Claiming { owner: NodeId, why: Why, until: Instant },
    /// The last step, again at every poll.
    Over(Step),
}

/// Why a session is claimed, which decides what it means if the engine has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its owner is gone: the token is unknown.
    Gone,
    /// Its owner has released it, or states that it does not have it: the token is unknown.
    Released,
    /// Its owner does not answer: wait until it is dead.
    Silent,
}

impl Nodes {
    /// Begins the lookup of a HELLO that presents `token`, under this `name`. `known_here`: this node's registry has the
    /// name. `through_peer`: the HELLO came through this node's peer listener.
    #[must_use]
    pub fn begin(
        &mut self,
        now: Instant,
        token: &ResumeToken,
        name: [u8; 16],
        known_here: bool,
        through_peer: bool,
    ) -> Lookup {
        let mut forward = Forward::default();
        forward.check(now);
        let route = Route::of(token);
        let session = route.map_or(SessionId([0; 8]), |route| route.session);
        let state = match route {
            None => State::Over(Step::Here),
            Some(route) if known_here || route.node == self.id() => State::Over(Step::Here),
            Some(route) if through_peer && self.is_claiming(route.session) => State::Over(Step::Wait),
            Some(route) if through_peer && self.has_adopted(route.session) => State::Over(Step::Unknown),
            Some(_) if through_peer => State::Over(Step::Elsewhere),
            Some(route) => State::Find { owner: route.node, by_engine: false },
        };
        Lookup { session, name, through_peer, hops: 0, state, forward }
    }
}

impl Lookup {
    /// Returns what to do next. Without an intervening call the answer stays the same until the deadline.
    pub fn poll(&mut self, now: Instant, nodes: &mut Nodes) -> Step {
        self.forward.check(now);
        loop {
            self.state = match &self.state {
                State::Over(step) => return step.clone(),
                State::Find { owner, by_engine } => Self::find(nodes, *owner, *by_engine),
                State::Asking { owner, refused_once } => match nodes.find(*owner) {
                    Found::At(address, key) => {
                        let pause = if *refused_once { SECOND_ATTEMPT } else { Duration::ZERO };
                        return Step::Ask { node: *owner, address, key, pause };
                    }
                    _ => State::Find { owner: *owner, by_engine: self.hops > 0 },
                },
                State::Claim { owner, why } => self.claim(now, nodes, *owner, *why),
                State::Claiming { owner, why, until } => match nodes.claim_outcome(now, self.session) {
                    None if now < *until => return Step::Claiming,
                    None => State::Over(Step::Wait),
                    Some(outcome) => self.claimed(nodes, *owner, *why, outcome),
                },
            };
        }
    }

    /// Takes the outcome of [`Step::Ask`]. Poll afterwards.
    pub fn handle_peer(&mut self, now: Instant, outcome: PeerOutcome) {
        self.forward.check(now);
        let State::Asking { owner, refused_once } = self.state else { return };
        self.state = match outcome {
            PeerOutcome::Refused if !refused_once => State::Asking { owner, refused_once: true },
            PeerOutcome::Refused | PeerOutcome::OtherNode => State::Claim { owner, why: Why::Gone },
            PeerOutcome::Silent => State::Claim { owner, why: Why::Silent },
            PeerOutcome::Released => self.hop(State::Claim { owner, why: Why::Released }),
            PeerOutcome::NotAsked => State::Over(Step::Wait),
        };
    }

    /// After [`Step::Here`]: this node's registry has released the session. Poll afterwards.
    pub fn released(&mut self, now: Instant, nodes: &Nodes) {
        self.forward.check(now);
        if matches!(self.state, State::Over(Step::Here)) {
            self.state = if self.through_peer {
                State::Over(Step::Elsewhere)
            } else {
                State::Claim { owner: nodes.id(), why: Why::Gone }
            };
        }
    }

    /// Returns when to poll again, whatever happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Claiming { until, .. } => Some(until),
            _ => None,
        }
    }

    fn find(nodes: &Nodes, owner: NodeId, by_engine: bool) -> State {
        match nodes.find(owner) {
            Found::At(..) => State::Asking { owner, refused_once: false },
            Found::Gone { listed } if listed || by_engine => State::Claim { owner, why: Why::Gone },
            Found::Gone { .. } => State::Over(Step::Unknown),
            Found::Unreadable => State::Claim { owner, why: Why::Silent },
            Found::Unlisted => State::Over(Step::Wait),
        }
    }

    fn claim(&mut self, now: Instant, nodes: &mut Nodes, owner: NodeId, why: Why) -> State {
        if !nodes.has_engine() {
            let outcome = nodes.claim_here(now, self.session, &self.name);
            return self.claimed(nodes, owner, why, outcome);
        }
        // Another HELLO has brought the session here meanwhile. With an old token this one finds nothing.
        if nodes.has_adopted(self.session) {
            return State::Over(Step::Here);
        }
        if nodes.claim(now, self.session, (owner, why == Why::Released), self.name) {
            State::Claiming { owner, why, until: now + CLAIM_TIME }
        } else {
            State::Over(Step::Wait)
        }
    }

    fn claimed(&mut self, nodes: &Nodes, owner: NodeId, why: Why, outcome: ClaimOutcome) -> State {
        match outcome {
            ClaimOutcome::Claimed { claim, record } => {
                State::Over(Step::Adopt { session: self.session, claim, record })
            }
            ClaimOutcome::None if why == Why::Silent && !nodes.is_dead(owner) => State::Over(Step::Wait),
            ClaimOutcome::None => State::Over(Step::Unknown),
            ClaimOutcome::Moved(owner) => self.hop(State::Find { owner, by_engine: true }),
            ClaimOutcome::Unavailable => State::Over(Step::Wait),
        }
    }

    fn hop(&mut self, next: State) -> State {
        self.hops += 1;
        if self.hops > HOPS { State::Over(Step::Wait) } else { next }
    }
}
