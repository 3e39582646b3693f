//! What a node gives up, as another node can continue it: a session that may move, or the account of one that ended.
//!
//! The inbox stays behind. The server acknowledged nothing above `acknowledged` to the client, so the client still has
//! those messages and sends them again.
//!
//! Source: `docs/CLUSTER.md`.

use std::fmt;

use bytes::Bytes;

/// A session or an account that has left its node.
///
/// `head` begins with the names of both valid tokens (16 bytes each; one that is missing is zeros), by which the engine
/// checks a claim. The rest has a version of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// Everything but the messages and what the application saved.
    pub head: Bytes,
    /// What the application saved; `None`: nothing.
    pub saved: Option<Bytes>,
    /// The messages above what the client acknowledged, in order.
    pub messages: Vec<Bytes>,
}

impl fmt::Debug for Record {
    /// Prints sizes only: messages and what was saved belong in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("head", &self.head.len())
            .field("saved", &self.saved.as_ref().map(Bytes::len))
            .field("messages", &self.messages.len())
            .finish()
    }
}
