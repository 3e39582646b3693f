//! The figures of a node, kept in atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of a node.
        #[derive(Debug, Default)]
        pub(crate) struct Figures {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// What a node has done since its start. See [`Server::cluster`](crate::Server::cluster).
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ClusterFigures {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Figures {
            pub(crate) fn snapshot(&self) -> ClusterFigures {
                ClusterFigures { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

figures! {
    /// Clients' connections that this node forwards to the owners of their sessions now.
    relays,
    /// Clients' connections that this node ever forwarded.
    relayed,
    /// HELLOs that came from other nodes, and attached here.
    accepted,
    /// HELLOs that came from other nodes, and whose session is lost or was refused.
    answered,
    /// HELLOs that another node's peer listener did not answer, or refused to accept.
    unanswered,
    /// HELLOs that were asked to come back (4414), because it is not known where their session is.
    waited,
    /// Questions that other nodes answered.
    questions_answered,
    /// Questions that other nodes did not answer.
    questions_unanswered,
    /// Connections to the peer listener that were dropped: a wrong key, no valid block, or none in time.
    dropped,
    /// Sessions that this node released.
    released,
    /// Handlers of sessions that may move that did not return within 5 s: their sessions ended.
    not_returned,
    /// Accounts that this node released at the end of its drain: of sessions that ended in it, for whatever reason, and those
    /// that it took over from others.
    accounts,
    /// Sessions and accounts that could not be released: nothing claims them.
    unreleased,
    /// Sessions that this node claimed and continues.
    claimed,
    /// Accounts that this node claimed.
    claimed_accounts,
    /// Claimed records that could not be read: of an unknown version, or damaged.
    unreadable,
}

impl Figures {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Relaxed);
    }

    pub(crate) fn subtract(counter: &AtomicU64, amount: u64) {
        counter.fetch_sub(amount, Relaxed);
    }
}
