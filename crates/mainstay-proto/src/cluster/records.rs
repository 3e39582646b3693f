//! The records of a node without an engine: what it released, and what the process before it left in a file.
//!
//! With `--state-dir` the node writes what it holds here to one file at the end of its drain, and the next process reads
//! that file before it listens. Claims are answered from here as an engine answers them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::session::Record;
use crate::session::message::SessionId;

/// How often expired records are removed.
const SWEEP: Duration = Duration::from_secs(10);

/// A record, as the file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalRecord {
    /// The session.
    pub session: SessionId,
    /// The claim by which the process had it that released it.
    pub claim: u64,
    /// What was released.
    pub record: Record,
    /// How long it is still kept.
    pub keep: Duration,
}

/// Returns whether a record names this token, so that a claim with it is answered.
#[must_use]
pub fn has_name(record: &Record, name: &[u8; 16]) -> bool {
    let (first, second) = (record.head.get(..16), record.head.get(16..32));
    *name != [0; 16] && second.is_some() && (first == Some(name) || second == Some(name))
}

/// The records that this node holds; the module describes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    by_session: BTreeMap<SessionId, Held>,
    sweep_at: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Held {
    claim: u64,
    record: Record,
    expires: Instant,
}

impl Records {
    pub(super) fn insert(&mut self, now: Instant, local: LocalRecord) {
        let LocalRecord { session, claim, record, keep } = local;
        self.by_session.insert(session, Held { claim, record, expires: now + keep });
        self.sweep_at.get_or_insert(now + SWEEP);
    }

    /// Takes a record out, with the number of the claim that takes it.
    pub(super) fn claim(
        &mut self,
        now: Instant,
        session: SessionId,
        name: &[u8; 16],
    ) -> Option<(u64, Record)> {
        let held = self.by_session.get(&session)?;
        if held.expires <= now || !has_name(&held.record, name) {
            return None;
        }
        let held = self.by_session.remove(&session)?;
        Some((held.claim + 1, held.record))
    }

    /// Takes all records out that have not expired.
    pub(super) fn take(&mut self, now: Instant) -> Vec<LocalRecord> {
        std::mem::take(&mut self.by_session)
            .into_iter()
            .filter(|(_, held)| held.expires > now)
            .map(|(session, held)| LocalRecord {
                session,
                claim: held.claim,
                record: held.record,
                keep: held.expires - now,
            })
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_session.len()
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        self.sweep_at
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.by_session.retain(|_, held| held.expires > now);
            self.sweep_at = (!self.by_session.is_empty()).then(|| now + SWEEP);
        }
    }
}
