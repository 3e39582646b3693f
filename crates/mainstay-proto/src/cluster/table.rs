//! The node table as this node sees it: which nodes there are, which of them are dead, and whether any may be missing.
//!
//! Time counts only while the engine answers, by the clock of this node alone: a node is *dead* once its field was seen
//! unchanged for [`DEAD_AFTER`] of that time, and the table is *complete* once the engine has answered for
//! [`COMPLETE_AFTER`] without a break. Both take the shortest time that the two answers can lie apart: from the arrival of
//! the first to the request of the second.
//!
//! While the table is not complete, a node that an answer leaves out stays in it: an engine that restarted empty knows no
//! node until each has written its field again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::node_info::{BadField, Mark, NodeInfo, PeerKey};
use crate::session::NodeId;

/// How long a field is seen unchanged before its node counts as dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(10);
/// How long the engine has answered without a break before an unlisted node counts as gone.
pub const COMPLETE_AFTER: Duration = Duration::from_secs(10);
/// How long a field stays unchanged at least before it is deleted: the engine keeps the accounts that a node released for
/// a day, and a node that is not in the table is not asked for.
const UNCHANGED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time between two answers in which the engine counts as answering: this node may have been paused.
const LONGEST_PAUSE: Duration = Duration::from_secs(6);
/// How long it takes before a peer listener that was found open is tried again.
const CHECK_AGAIN: Duration = Duration::from_secs(10 * 60);

/// What an answer of the engine shows about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Seen {
        node: NodeId,
        address: Option<SocketAddr>,
    },
    Dead(NodeId),
    Left(NodeId),
    Bad {
        node: NodeId,
        error: BadField,
    },
    /// The mark of the node is not that of this node.
    Foreign {
        node: NodeId,
        address: Option<SocketAddr>,
    },
    /// The node is dead for long: is its peer listener closed?
    Check {
        node: NodeId,
        address: SocketAddr,
    },
    /// The node's field is of no use any more.
    Forget(NodeId),
}

/// Another node of the cluster that has not left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    /// The node.
    pub node: NodeId,
    /// Its peer listener and the key of that; `None`: its field cannot be read.
    pub at: Option<(SocketAddr, PeerKey)>,
    /// It writes its heartbeats.
    pub is_alive: bool,
}

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// At this peer listener, dead or not.
    At(SocketAddr, PeerKey),
    /// Its field cannot be read, so that it cannot be asked.
    Unreadable,
    /// It has left in order; or the table is complete and does not have it.
    Gone { listed: bool },
    /// Not in the table, which may lack nodes.
    Unlisted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Dead,
    Left,
}

#[derive(Debug, Clone)]
struct Row {
    /// The field's bytes, which change with every node heartbeat.
    field: Bytes,
    info: Option<NodeInfo>,
    life: Life,
    /// The reading of `Table::answered` when the bytes were last seen to change.
    changed: Duration,
    /// The reading when the peer listener was last tried.
    checked: Option<Duration>,
    /// The last answer had it.
    listed: bool,
}

/// The table; the module describes it.
#[derive(Debug, Clone)]
pub(super) struct Table {
    me: NodeId,
    mark: Mark,
    /// How long a field stays unchanged before it is deleted.
    kept: Duration,
    rows: BTreeMap<NodeId, Row>,
    /// For how long the engine has answered, breaks left out.
    answered: Duration,
    /// For how long it has answered since the last break.
    streak: Duration,
    /// When the last answer came, if there was no break since.
    last: Option<Instant>,
    is_complete: bool,
}

impl Table {
    pub(super) fn new(me: NodeId, keep: Duration) -> Self {
        Self {
            me,
            mark: Mark::default(),
            kept: keep.max(UNCHANGED_FOR),
            rows: BTreeMap::new(),
            answered: Duration::ZERO,
            streak: Duration::ZERO,
            last: None,
            is_complete: false,
        }
    }

    /// Sets the mark that the fields of this cluster's nodes have.
    pub(super) fn set_mark(&mut self, mark: Mark) {
        self.mark = mark;
    }

    /// The engine has stopped answering, or is another one now.
    pub(super) fn interrupt(&mut self) {
        self.last = None;
        self.streak = Duration::ZERO;
        self.is_complete = false;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Returns where the node is, as far as the table shows.
    pub(super) fn find(&self, node: NodeId) -> Found {
        match self.rows.get(&node) {
            Some(Row { life: Life::Left, .. }) => Found::Gone { listed: true },
            Some(Row { info: Some(info), .. }) => Found::At(info.address, info.key),
            Some(Row { info: None, .. }) => Found::Unreadable,
            None if self.is_complete => Found::Gone { listed: false },
            None => Found::Unlisted,
        }
    }

    /// Returns whether the table shows that the node has ended.
    pub(super) fn is_dead(&self, node: NodeId) -> bool {
        self.rows.get(&node).map_or(self.is_complete, |row| row.life != Life::Alive)
    }

    /// Returns the other nodes of this cluster that have not left.
    pub(super) fn others(&self) -> Vec<Other> {
        let ours = self.rows.iter().filter(|(_, row)| {
            row.life != Life::Left && row.info.as_ref().is_none_or(|info| info.mark == self.mark)
        });
        ours.map(|(&node, row)| Other {
            node,
            at: row.info.as_ref().map(|info| (info.address, info.key)),
            is_alive: row.life == Life::Alive,
        })
        .collect()
    }

    /// Returns how many notes each other node has stored.
    pub(super) fn notes(&self) -> BTreeMap<NodeId, u64> {
        let noted = |(node, row): (&NodeId, &Row)| Some((*node, row.info.as_ref()?.notes));
        self.rows.iter().filter_map(noted).collect()
    }

    /// Returns the numbers of living and of dead nodes, this node not counted.
    pub(super) fn count(&self) -> (usize, usize) {
        let alive = self.rows.values().filter(|row| row.life == Life::Alive).count();
        let dead = self.rows.values().filter(|row| row.life == Life::Dead).count();
        (alive, dead)
    }

    /// Notes the engine's answer at `now` to a request of the time `sent`.
    pub(super) fn update(
        &mut self,
        sent: Instant,
        now: Instant,
        fields: Vec<(NodeId, Bytes)>,
    ) -> Vec<Change> {
        if self.last.is_some_and(|last| now > last + LONGEST_PAUSE) {
            self.interrupt();
        }
        let since = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.answered += since;
        self.streak += since;
        self.last = Some(now);
        let underway = now.saturating_duration_since(sent);
        let mut changes = Vec::new();
        let was_listed: Vec<_> =
            self.rows.iter().filter(|(_, row)| row.listed).map(|(node, _)| *node).collect();
        self.rows.values_mut().for_each(|row| row.listed = false);
        for (node, field) in fields {
            if node != self.me {
                self.see(node, field, &mut changes);
            }
        }
        self.miss(&was_listed);
        self.is_complete = self.streak.saturating_sub(underway) >= COMPLETE_AFTER;
        if self.is_complete {
            self.rows.retain(|_, row| row.listed);
        }
        self.judge(self.answered.saturating_sub(underway), &mut changes);
        changes
    }

    /// Notes one field of an answer.
    fn see(&mut self, node: NodeId, field: Bytes, changes: &mut Vec<Change>) {
        let answered = self.answered;
        if let Some(row) = self.rows.get_mut(&node)
            && row.field == field
        {
            row.listed = true;
            return;
        }
        let (info, error) = match NodeInfo::from_bytes(field.clone()) {
            Ok(info) => (Some(info), None),
            Err(error) => (None, Some(error)),
        };
        let address = info.as_ref().map(|info| info.address);
        let foreign = info.as_ref().is_some_and(|info| info.mark != self.mark);
        let life = if info.as_ref().is_some_and(|info| info.left) { Life::Left } else { Life::Alive };
        let row = Row { field, info, life, changed: answered, checked: None, listed: true };
        let before = self.rows.insert(node, row);
        let was = before.as_ref().map(|row| row.life);
        match life {
            Life::Left if was != Some(Life::Left) => changes.push(Change::Left(node)),
            Life::Alive if was != Some(Life::Alive) => changes.push(Change::Seen { node, address }),
            _ => {}
        }
        if foreign && before.is_none() {
            changes.push(Change::Foreign { node, address });
        }
        if let Some(error) = error
            && before.is_none_or(|row| row.info.is_some())
        {
            changes.push(Change::Bad { node, error });
        }
    }

    /// No node deletes the field of a living one: an answer that lacks it shows that the engine was emptied.
    fn miss(&mut self, was_listed: &[NodeId]) {
        let missed =
            |node: &NodeId| self.rows.get(node).is_some_and(|row| !row.listed && row.life == Life::Alive);
        if was_listed.iter().any(missed) {
            self.streak = Duration::ZERO;
        }
    }

    /// Declares nodes dead, and has the fields of long dead ones deleted. `read` is the earliest time, on the clock of
    /// `answered`, at which the fields can have been read.
    fn judge(&mut self, read: Duration, changes: &mut Vec<Change>) {
        let living: Vec<SocketAddr> =
            self.rows.values().filter(|row| row.life == Life::Alive).filter_map(Row::address).collect();
        for (&node, row) in &mut self.rows {
            let unchanged = read.saturating_sub(row.changed);
            if row.life == Life::Alive && unchanged >= DEAD_AFTER {
                row.life = Life::Dead;
                changes.push(Change::Dead(node));
            }
            let due = row.checked.is_none_or(|checked| read >= checked + CHECK_AGAIN);
            if row.life == Life::Alive || unchanged < self.kept || !due {
                continue;
            }
            row.checked = Some(read);
            match row.address() {
                _ if row.life == Life::Left => changes.push(Change::Forget(node)),
                Some(address) if living.contains(&address) => changes.push(Change::Forget(node)),
                Some(address) => changes.push(Change::Check { node, address }),
                None => {}
            }
        }
    }

    /// Returns whether the field of this node may be deleted now that its peer listener was found closed.
    pub(super) fn may_forget(&self, node: NodeId) -> bool {
        self.rows.get(&node).is_some_and(|row| {
            row.life != Life::Alive && self.answered.saturating_sub(row.changed) >= self.kept
        })
    }
}

impl Row {
    fn address(&self) -> Option<SocketAddr> {
        self.info.as_ref().map(|info| info.address)
    }
}
