//! The claims of this node that are in progress: one for a session, and [`MAX_CLAIMS`] in all.
//!
//! A claim whose outcome is unknown is repeated as it was: the engine gives a node that has the session already the same
//! answer again. A claim may be given up at any time. If the engine executed it, its record names this node, and the
//! next HELLO for that session reaches this node and repeats the claim.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::request::{Request, RequestId};
use crate::session::message::SessionId;
use crate::session::{NodeId, Record};

/// Maximum number of claims in progress.
pub(super) const MAX_CLAIMS: usize = 256;
/// How long a claim may take before its HELLO is refused for now.
pub(super) const CLAIM_TIME: Duration = Duration::from_secs(2);
/// The pause before a claim of unknown outcome is repeated.
const REPEAT: Duration = Duration::from_millis(50);
/// How long an answer waits for its lookup; and for how long after it no other HELLO claims the session again, so that
/// the caller has time to adopt it.
const SETTLES: Duration = Duration::from_secs(1);

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ClaimOutcome {
    /// This node has the session.
    Claimed { claim: u64, record: Record },
    /// That node has it.
    Moved(NodeId),
    /// The engine has no such session.
    None,
    /// The engine did not answer, or refused.
    Unavailable,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    by_session: BTreeMap<SessionId, Claim>,
    /// Sessions that this node got just now, and when they are settled, the earliest first.
    settling: BTreeSet<SessionId>,
    settles: VecDeque<(Instant, SessionId)>,
    /// Sessions that this node has adopted, for as long as the engine has their records.
    adopted: BTreeSet<SessionId>,
    adopted_until: VecDeque<(Instant, SessionId)>,
}

#[derive(Debug, Clone)]
struct Claim {
    request: Request,
    /// The claim is given up.
    until: Instant,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Due(Instant),
    Sent(RequestId),
    Answered { outcome: ClaimOutcome, until: Instant },
}

impl Claims {
    /// Begins a claim; false: one for this session or too many are in progress.
    pub(super) fn begin(&mut self, now: Instant, session: SessionId, request: Request) -> bool {
        self.forget_old(now);
        if self.is_busy(session) || self.by_session.len() >= MAX_CLAIMS {
            return false;
        }
        let claim = Claim { request, until: now + CLAIM_TIME, state: State::Due(now) };
        self.by_session.insert(session, claim);
        true
    }

    /// Returns whether the session is being claimed, or was claimed just now.
    pub(super) fn is_busy(&self, session: SessionId) -> bool {
        self.by_session.contains_key(&session) || self.settling.contains(&session)
    }

    /// This node has the session now, and the caller is about to adopt it.
    pub(super) fn settle(&mut self, now: Instant, session: SessionId) {
        self.settling.insert(session);
        self.settles.push_back((now + SETTLES, session));
    }

    /// The session is in this node's registry. The engine has its record until then.
    pub(super) fn adopted(&mut self, until: Instant, session: SessionId) {
        if self.adopted.insert(session) {
            self.adopted_until.push_back((until, session));
        }
    }

    /// This node releases the session: the engine gets another record.
    pub(super) fn left(&mut self, session: SessionId) {
        self.adopted.remove(&session);
    }

    pub(super) fn has_adopted(&self, session: SessionId) -> bool {
        self.adopted.contains(&session)
    }

    /// Returns the outcome, once. `Some(Unavailable)` too if there is no such claim any more.
    pub(super) fn take(&mut self, now: Instant, session: SessionId) -> Option<ClaimOutcome> {
        self.forget_old(now);
        let Some(claim) = self.by_session.get(&session) else { return Some(ClaimOutcome::Unavailable) };
        let State::Answered { outcome, .. } = &claim.state else { return None };
        let outcome = outcome.clone();
        self.by_session.remove(&session);
        if matches!(outcome, ClaimOutcome::Claimed { .. }) {
            self.settle(now, session);
        }
        Some(outcome)
    }

    /// Returns the next request that is due, sent as `id`.
    pub(super) fn poll(&mut self, now: Instant, id: RequestId) -> Option<Request> {
        let is_due = |claim: &&mut Claim| matches!(claim.state, State::Due(at) if at <= now);
        let claim = self.by_session.values_mut().find(is_due)?;
        claim.state = State::Sent(id);
        Some(claim.request.clone())
    }

    /// Notes the answer to the request `id`, and returns the session whose lookup continues.
    pub(super) fn answer(&mut self, now: Instant, id: RequestId, outcome: ClaimOutcome) -> Option<SessionId> {
        let (session, claim) = self.sent_as(id)?;
        claim.state = State::Answered { outcome, until: now + SETTLES };
        Some(session)
    }

    /// Repeats the request `id` a little later: its outcome is unknown.
    pub(super) fn repeat(&mut self, now: Instant, id: RequestId) {
        if let Some((_, claim)) = self.sent_as(id) {
            claim.state = State::Due(now + REPEAT);
        }
    }

    /// Gives up every claim without an answer, and returns their sessions.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<SessionId> {
        self.give_up_where(now, |_| true)
    }

    /// Gives up claims whose time has passed, returns their sessions, and removes what is settled.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<SessionId> {
        self.forget_old(now);
        self.give_up_where(now, |claim| claim.until <= now)
    }

    fn give_up_where(&mut self, now: Instant, which: impl Fn(&Claim) -> bool) -> Vec<SessionId> {
        let mut given_up = Vec::new();
        for (session, claim) in &mut self.by_session {
            if claim.is_open() && which(claim) {
                claim.state = State::Answered { outcome: ClaimOutcome::Unavailable, until: now + SETTLES };
                given_up.push(*session);
            }
        }
        given_up
    }

    /// Removes answers that no lookup came for, and marks of sessions that are settled.
    fn forget_old(&mut self, now: Instant) {
        self.by_session.retain(|_, claim| match claim.state {
            State::Answered { until, .. } => now < until,
            State::Due(_) | State::Sent(_) => true,
        });
        while let Some((_, session)) = self.settles.front().filter(|(at, _)| *at <= now) {
            self.settling.remove(session);
            self.settles.pop_front();
        }
        while let Some((_, session)) = self.adopted_until.front().filter(|(at, _)| *at <= now) {
            self.adopted.remove(session);
            self.adopted_until.pop_front();
        }
    }

    /// Returns the number of claims without an answer.
    pub(super) fn in_progress(&self) -> usize {
        self.by_session.values().filter(|claim| claim.is_open()).count()
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        let of = |claim: &Claim| match claim.state {
            State::Due(at) => at.min(claim.until),
            State::Sent(_) => claim.until,
            State::Answered { until, .. } => until,
        };
        let settled = self.settles.front().into_iter().chain(self.adopted_until.front());
        self.by_session.values().map(of).chain(settled.map(|(at, _)| *at)).min()
    }

    fn sent_as(&mut self, id: RequestId) -> Option<(SessionId, &mut Claim)> {
        self.by_session
            .iter_mut()
            .find(|(_, claim)| matches!(claim.state, State::Sent(sent) if sent == id))
            .map(|(session, claim)| (*session, claim))
    }
}

impl Claim {
    fn is_open(&self) -> bool {
        matches!(self.state, State::Due(_) | State::Sent(_))
    }
}
