//! Fault injection: what tests and demonstrations do to the connection of a session.
//!
//! A handle requests a fault, and the session's task applies it at its next poll. The fault concerns the connection that is
//! attached at the request, never the next one of the session.

use std::time::Instant;

use mainstay_proto::session::ConnectionId;

/// A fault and the connection it concerns. Until `at` that connection neither reads nor writes.
pub(super) struct Injected {
    /// `None`: the only connection of a plain peer.
    connection: Option<ConnectionId>,
    pub(super) at: Instant,
    fault: Fault,
}

/// What happens to a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is dropped without a closing handshake.
    #[cfg_attr(not(feature = "fault-injection"), allow(dead_code, reason = "no verb requests it"))]
    Cut,
    /// It stalled, and goes on.
    #[cfg_attr(not(feature = "fault-injection"), allow(dead_code, reason = "no verb requests it"))]
    Stall,
}

impl Injected {
    #[cfg(feature = "fault-injection")]
    pub(super) fn new(connection: Option<ConnectionId>, at: Instant, fault: Fault) -> Self {
        Self { connection, at, fault }
    }

    pub(super) fn concerns(&self, connection: ConnectionId) -> bool {
        self.connection.is_none_or(|meant| meant == connection)
    }

    /// Takes the fault that is due on `connection`. A fault is forgotten once its connection was replaced or has hung up.
    pub(super) fn take_due(
        injected: &mut Option<Self>,
        now: Instant,
        attached: Option<ConnectionId>,
        connection: ConnectionId,
        hung_up: bool,
    ) -> Option<Fault> {
        let is_over = |fault: &mut Self| {
            fault.connection != attached || (fault.concerns(connection) && (hung_up || fault.at <= now))
        };
        let injected = injected.take_if(is_over)?;
        injected.concerns(connection).then_some(injected.fault)
    }
}
