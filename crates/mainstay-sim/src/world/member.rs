//! A server's part in the cluster: its machine, and what leaves it.

use std::collections::BTreeMap;
use std::time::Instant;

use mainstay_proto::cluster::{Nodes, PeerKey};
use mainstay_proto::session::NodeId;

use super::drain::{Drain, Leaving};

/// A server's part in the cluster.
pub(super) struct Member {
    pub(super) id: NodeId,
    /// Where its peer listener listens.
    pub(super) slot: u16,
    pub(super) key: PeerKey,
    pub(super) nodes: Nodes,
    pub(super) mute_until: Instant,
    pub(super) drain: Option<Drain>,
    /// The nodes that were asked for sessions, and where they listen.
    pub(super) asked: BTreeMap<NodeId, (u16, PeerKey)>,
    /// Sessions that leave, and are not released.
    pub(super) leaving: BTreeMap<usize, Leaving>,
    /// Sessions whose release has no outcome yet, by the session that the machine names.
    pub(super) releasing: BTreeMap<[u8; 8], usize>,
}
