//! The releases of this node that are in progress.
//!
//! A release whose outcome is unknown is repeated as it was, until the outcome is known or the caller gives up at its
//! drain's deadline. *Fenced* in answer to a repeated release shows that an earlier one worked: another node has claimed
//! the session since.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::request::{Request, RequestId};
use crate::session::NodeId;
use crate::session::message::SessionId;

/// Maximum number of releases that wait for an answer; further ones are sent as answers come.
const IN_FLIGHT: usize = 256;
/// The pause before releases of unknown outcome are repeated.
const REPEAT: Duration = Duration::from_millis(200);

/// What became of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReleaseOutcome {
    /// The engine has the record; any node may claim it, or has claimed it.
    Stored,
    /// The engine has a later record of this session, or another node has it: this node had lost it before.
    Fenced(Option<NodeId>),
    /// The engine refuses the request, for this reason. The session ends here.
    Refused(String),
    /// The caller gave up before an answer came, or the engine refused a repeated request: it has the record or not.
    Unknown,
    /// The caller gave up before the request was sent. The session ends here.
    Unsent,
}

impl ReleaseOutcome {
    /// Whether it is certain that the engine does not have the record: no other node can continue the session.
    #[must_use]
    pub fn is_certain_failure(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unsent)
    }

    /// Returns the outcome in one word, for logs and labels of metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Fenced(_) => "fenced",
            Self::Refused(_) => "refused",
            Self::Unknown => "unknown",
            Self::Unsent => "unsent",
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Releases {
    by_session: BTreeMap<SessionId, Release>,
    due: VecDeque<SessionId>,
    in_flight: BTreeMap<RequestId, SessionId>,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Release {
    request: Request,
    sent: u32,
}

impl Releases {
    /// Begins a release. One of the same session that is still in progress is forgotten: this node has claimed the
    /// session again since, so that one worked.
    pub(super) fn begin(&mut self, session: SessionId, request: Request) {
        if self.by_session.insert(session, Release { request, sent: 0 }).is_some() {
            self.in_flight.retain(|_, other| *other != session);
            self.due.retain(|other| *other != session);
        }
        self.due.push_back(session);
    }

    /// Returns the next request that is due, sent as `id`.
    pub(super) fn poll(&mut self, now: Instant, id: RequestId) -> Option<Request> {
        if self.in_flight.len() >= IN_FLIGHT || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = None;
        let session = self.due.pop_front()?;
        let release = self.by_session.get_mut(&session)?;
        release.sent += 1;
        self.in_flight.insert(id, session);
        Some(release.request.clone())
    }

    /// Ends the release that was sent as `id`, and returns its session with whether it had been sent before.
    pub(super) fn end(&mut self, id: RequestId) -> Option<(SessionId, bool)> {
        let session = self.in_flight.remove(&id)?;
        let release = self.by_session.remove(&session)?;
        Some((session, release.sent > 1))
    }

    /// Repeats the request `id` a little later: its outcome is unknown.
    pub(super) fn repeat(&mut self, now: Instant, id: RequestId) {
        if let Some(session) = self.in_flight.remove(&id) {
            self.due.push_back(session);
            self.not_before = Some(now + REPEAT);
        }
    }

    /// Ends every release, and returns what is known of each.
    pub(super) fn give_up(&mut self) -> Vec<(SessionId, ReleaseOutcome)> {
        let outcome = |release: Release| {
            if release.sent > 0 { ReleaseOutcome::Unknown } else { ReleaseOutcome::Unsent }
        };
        let all = std::mem::take(self).by_session;
        all.into_iter().map(|(session, release)| (session, outcome(release))).collect()
    }

    /// Returns the number of releases whose outcome is not known yet.
    pub(super) fn in_progress(&self) -> usize {
        self.by_session.len()
    }

    /// Returns when a repetition is due.
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.due.is_empty() && self.in_flight.len() < IN_FLIGHT)
    }
}
