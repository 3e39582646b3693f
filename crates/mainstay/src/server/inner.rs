//! What changes of a session, behind its lock: the machine, and the tasks that wait for it.

use std::net::SocketAddr;
use std::task::Waker;
use std::time::Instant;

use mainstay_proto::budget::Held;
use mainstay_proto::session::ConnectionId;
use mainstay_proto::ws::CloseFrame;
use tracing::Span;

use super::auth::Authenticate;
use super::fault::{Fault, Injected};
use super::peer::Peer;
use crate::budget::{Change, Charge};
use crate::driver::Wire;

/// See the module.
pub(crate) struct Inner {
    pub(crate) peer: Peer,
    /// The task that waits for a message.
    receiver: Option<Waker>,
    /// The tasks that wait for something rarer.
    waiting: Option<Box<Waiting>>,
    /// A connection that another task attached; the session's task takes it over.
    pub(super) incoming: Option<Box<Incoming>>,
    /// What few connections have.
    pub(super) extras: Option<Box<Extras>>,
    /// A fault that was requested for the connection.
    fault: Option<Box<Injected>>,
    pub(super) charge: Charge,
}

/// What belongs to the current connection and most have not.
pub(super) struct Extras {
    /// Judges the credentials that come on it.
    pub(super) authenticate: Option<Authenticate>,
    /// The span of its epoch; `None` where no subscriber wants it.
    pub(super) span: Option<Span>,
}

#[derive(Default)]
struct Waiting {
    /// For room in the window.
    senders: Vec<Waker>,
    /// For a change of state.
    watchers: Vec<Waker>,
}

pub(super) struct Incoming {
    pub(super) connection: ConnectionId,
    pub(super) wire: Wire,
    /// The Close for the connection before it.
    pub(super) fenced: Option<CloseFrame>,
    pub(super) from: Origin,
}

/// Where a connection was opened, for the log. The address may differ from the one that the session was opened from.
#[derive(Default)]
pub(super) struct Origin {
    pub(super) address: Option<SocketAddr>,
    pub(super) path: Box<str>,
}

impl Inner {
    pub(super) fn new(peer: Peer) -> Self {
        let charge = Charge::default();
        Self { peer, receiver: None, waiting: None, incoming: None, extras: None, fault: None, charge }
    }

    pub(super) fn span(&self) -> Option<Span> {
        self.extras.as_ref()?.span.clone()
    }

    /// Charges for what is kept now, with these bytes of the connection.
    pub(super) fn account(&mut self, sockets: u64) -> Option<Change> {
        let Held { unread, kept } = self.peer.held();
        self.charge.set(unread + kept, sockets)
    }

    pub(super) fn handle_lost(&mut self, now: Instant, connection: ConnectionId) {
        self.fault.take_if(|fault| fault.concerns(connection));
        self.peer.handle_lost(now, connection);
    }

    /// When something is due. Nothing is due on a connection that a fault stalls.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.fault_at().or_else(|| self.peer.poll_timeout())
    }
}

/// Faults.
impl Inner {
    pub(super) fn inject(&mut self, fault: Fault, at: Instant) {
        let connection = self.peer.connection();
        if connection.is_some() || !self.peer.is_session() {
            self.fault = Some(Box::new(Injected::new(connection, at, fault)));
        }
    }

    /// Whether a fault keeps this connection from reading and writing.
    pub(super) fn is_stalled(&self, connection: ConnectionId) -> bool {
        self.fault.as_ref().is_some_and(|fault| fault.concerns(connection))
    }

    pub(super) fn fault_at(&self) -> Option<Instant> {
        self.fault.as_ref().map(|fault| fault.at)
    }

    pub(super) fn take_fault(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        hung_up: bool,
    ) -> Option<Fault> {
        Injected::take_due(&mut self.fault, now, self.peer.connection(), connection, hung_up)
    }
}

/// Waking.
impl Inner {
    /// Registers the task that receives: it is woken once a message may have come.
    pub(super) fn wait_for_message(&mut self, waker: &Waker) {
        match &mut self.receiver {
            Some(receiver) => receiver.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Registers a task that is woken once there may be room.
    pub(super) fn wait_for_room(&mut self, waker: &Waker) {
        register(&mut self.waiting.get_or_insert_default().senders, waker);
    }

    /// Registers a task that is woken once the state may have changed.
    pub(super) fn wait_for_change(&mut self, waker: &Waker) {
        register(&mut self.waiting.get_or_insert_default().watchers, waker);
    }

    /// There may be room again.
    pub(super) fn wake_senders(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.senders.drain(..).for_each(Waker::wake);
        }
    }

    /// Wakes every task that waits: a message arrived, or the state changed.
    pub(super) fn wake_application(&mut self) {
        self.receiver.take().into_iter().for_each(Waker::wake);
        if let Some(waiting) = self.waiting.take() {
            waiting.watchers.into_iter().chain(waiting.senders).for_each(Waker::wake);
        }
    }
}

/// A future that is polled again without having been woken must not be listed twice.
fn register(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|listed| listed.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}
