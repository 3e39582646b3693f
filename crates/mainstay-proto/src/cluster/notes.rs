//! Notes: what a node leaves for all others, and for those that start later. They are kept by the engine.
//!
//! Notes are written one after the other, each until the engine has it, and again where another incarnation of the engine
//! may lack them. Each heartbeat states how many of its notes a node has stored: the others read all notes when they connect,
//! and once one of these counts has grown. So a node that could not be asked learns a note as soon as it reaches the engine, and
//! notes cost nothing while there are no new ones.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::request::{Note, Request, RequestId};
use crate::due::earliest;
use crate::session::NodeId;

/// The most notes of this node that it keeps, for an engine that may lose them.
const MAX_OWN: usize = 10_000;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    /// This node's own, the oldest first. The engine has those before `unstored`.
    own: VecDeque<Own>,
    unstored: usize,
    /// The note that is being written.
    writing: Option<(RequestId, u64)>,
    write_at: Option<Instant>,
    last_number: u64,
    stored: u64,
    /// How old the notes may be that are read; `None`: none are.
    watching: Option<Duration>,
    /// There may be some that were not read.
    is_behind: bool,
    /// The table was read since the last connect.
    is_compared: bool,
    is_reading: bool,
    read_at: Option<Instant>,
    /// How many notes each other node had stored at the last look.
    seen: BTreeMap<NodeId, u64>,
}

#[derive(Debug, Clone)]
struct Own {
    number: u64,
    note: Note,
    keep: Duration,
    until: Instant,
}

impl Notes {
    /// Queues a note; returns its number, or `None` if there is no room.
    pub(super) fn add(&mut self, now: Instant, note: Note, keep: Duration) -> Option<u64> {
        self.drop_old(now);
        if self.own.len() >= MAX_OWN {
            self.unstored = self.unstored.checked_sub(1)?;
            self.own.pop_front();
        }
        self.last_number += 1;
        self.own.push_back(Own { number: self.last_number, note, keep, until: now + keep });
        Some(self.last_number)
    }

    /// Forgets this node's notes that no node reads any more.
    fn drop_old(&mut self, now: Instant) {
        while self.unstored > 0 && self.own.front().is_some_and(|own| own.until <= now) {
            self.own.pop_front();
            self.unstored -= 1;
        }
    }

    pub(super) fn watch(&mut self, keep: Duration) {
        self.watching = Some(keep);
        self.is_behind = true;
    }

    pub(super) fn poll_write(&mut self, now: Instant, id: RequestId) -> Option<Request> {
        if self.writing.is_some() || self.write_at.is_some_and(|at| now < at) {
            return None;
        }
        let Own { number, note, keep, .. } = self.own.get(self.unstored)?;
        self.writing = Some((id, *number));
        self.write_at = None;
        Some(Request::Note { note: note.clone(), keep: *keep })
    }

    pub(super) fn poll_read(&mut self, now: Instant) -> Option<Request> {
        let keep = self.watching?;
        let waits = self.read_at.is_some_and(|at| now < at);
        if !self.is_behind || !self.is_compared || self.is_reading || waits {
            return None;
        }
        (self.is_reading, self.is_behind, self.read_at) = (true, false, None);
        Some(Request::Notes { keep })
    }

    /// Notes that the engine executed this write. Returns the number of the note.
    pub(super) fn stored_by(&mut self, id: RequestId) -> Option<u64> {
        let (_, number) = self.writing.take().filter(|(writing, _)| *writing == id)?;
        // Another incarnation of the engine may have come meanwhile.
        if self.own.get(self.unstored).is_some_and(|own| own.number == number) {
            self.unstored += 1;
        }
        self.stored += 1;
        Some(number)
    }

    pub(super) fn was_read(&mut self) {
        self.is_reading = false;
    }

    /// What was requested was not executed: it is repeated after this pause.
    pub(super) fn repeat(&mut self, now: Instant, is_write: bool, pause: Duration) {
        if is_write {
            self.writing = None;
            self.write_at = Some(now + pause);
        } else {
            (self.is_reading, self.is_behind) = (false, true);
            self.read_at = Some(now + pause);
        }
    }

    /// The engine may lack the notes of this node.
    pub(super) fn write_again(&mut self, now: Instant) {
        self.drop_old(now);
        self.unstored = 0;
    }

    /// The engine was connected: there may be notes that this node has missed. They are read behind the table.
    pub(super) fn read_again(&mut self) {
        (self.is_behind, self.is_compared) = (true, false);
        (self.write_at, self.read_at) = (None, None);
    }

    /// Compares how many notes the others have stored with the last look.
    pub(super) fn compare(&mut self, counts: BTreeMap<NodeId, u64>) {
        let is_new = |(node, count): (&NodeId, &u64)| *count > self.seen.get(node).copied().unwrap_or(0);
        if counts.iter().any(is_new) {
            self.is_behind = true;
        }
        self.seen = counts;
        self.is_compared = true;
    }

    /// Returns how many notes this node has stored.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// Returns when a request is due that waits for nothing else.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let writes = self.write_at.filter(|_| self.writing.is_none() && self.unstored < self.own.len());
        let reads = self.read_at.filter(|_| self.is_behind && !self.is_reading && self.watching.is_some());
        earliest([writes, reads])
    }
}
