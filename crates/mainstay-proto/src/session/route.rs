//! Where a session is: a resume token of a cluster names its node and its session.
//!
//! Without a cluster a token is a secret of 24 bytes. In a cluster it has 40: the id of the node that issued it (8), the
//! id of the session (8), and the secret (24). The route is no secret and opens nothing: the name of a token is the hash
//! of all its bytes. Clients never look inside.
//!
//! Source: `docs/PROTOCOL.md` "Tokens and names", `docs/CLUSTER.md`.

use std::fmt;

use super::message::{ResumeToken, SessionId};

/// One serving process, from its start to its exit. A restarted process is another node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub [u8; 8]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

/// The route that a token states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// The node that issued the token.
    pub node: NodeId,
    /// The session.
    pub session: SessionId,
}

/// Bytes of a route, and of a token that has one.
const ROUTE: usize = 16;
const TOKEN_WITH_ROUTE: usize = ROUTE + 24;

impl Route {
    /// Returns the route of a token; `None` if it has none, as every token of a server without a cluster.
    #[must_use]
    pub fn of(token: &ResumeToken) -> Option<Self> {
        let bytes = token.0.get(..ROUTE).filter(|_| token.0.len() == TOKEN_WITH_ROUTE)?;
        let (node, session) = bytes.split_at(ROUTE / 2);
        Some(Self { node: NodeId(node.try_into().ok()?), session: SessionId(session.try_into().ok()?) })
    }

    /// Returns the bytes that precede the secret.
    pub(super) fn to_bytes(self) -> [u8; ROUTE] {
        let mut bytes = [0; ROUTE];
        bytes[..ROUTE / 2].copy_from_slice(&self.node.0);
        bytes[ROUTE / 2..].copy_from_slice(&self.session.0);
        bytes
    }
}
