//! What changes of a session, behind its lock: the machine, and the tasks that wait for it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::task::Waker;
use std::time::Instant;

use mainstay_proto::budget::Held;
use mainstay_proto::session::{ConnectionId, Message, NodeId, Progress};
use mainstay_proto::throttle::{Pace, Throttle, ThrottleConfig};
use mainstay_proto::ws::CloseFrame;
use tracing::Span;

use super::auth::Authenticate;
use super::fault::{Fault, Injected};
use super::peer::Peer;
use super::stats::Counters;
use crate::budget::{Change, Charge};
use crate::driver::Wire;
use crate::receipt::{Outcome, Receipt, Settle};
use crate::waiters::register;

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
    /// What few sessions ever have.
    rare: Option<Box<Rare>>,
    pub(super) charge: Charge,
}

/// What belongs to the current connection and most have not.
pub(super) struct Extras {
    /// Judges the credentials that come on it.
    pub(super) authenticate: Option<Authenticate>,
    /// The span of its epoch; `None` where no subscriber wants it.
    pub(super) span: Option<Span>,
}

/// See [`Inner::rare`]: a session without any of this pays one empty pointer for it.
#[derive(Default)]
struct Rare {
    /// A fault that was requested for the connection.
    fault: Option<Injected>,
    /// Receipts that are not settled, by the number of the message.
    receipts: VecDeque<(u64, Settle)>,
    /// A message that the session accepted as a `Sink` before there was room for it.
    sending: Option<Message>,
    /// The session leaves this server. Only in a cluster.
    leaving: Option<Leaving>,
    /// The node that relays the connection. Only in a cluster.
    entry: Option<NodeId>,
    /// How fast the client may send, and has sent.
    throttle: Option<Throttle>,
    /// Nothing is read before then, because the client sends too fast.
    paused_until: Option<Instant>,
}

/// What a session does that leaves this server.
#[derive(Default)]
struct Leaving {
    /// Completes when the handler has returned.
    returned: Option<tokio::sync::oneshot::Sender<()>>,
    /// Its task has given up the connection.
    is_disconnected: bool,
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
    /// The node that relays it. Only in a cluster.
    pub(super) entry: Option<NodeId>,
}

impl Origin {
    /// Splits the place at its first space: what a gateway set in front of the path, and the path.
    pub(super) fn route_and_path(&self) -> (Option<&str>, &str) {
        self.path.split_once(' ').map_or((None, &*self.path), |(route, path)| (Some(route), path))
    }
}

impl Inner {
    pub(super) fn new(peer: Peer) -> Self {
        let charge = Charge::default();
        Self { peer, receiver: None, waiting: None, incoming: None, extras: None, rare: None, charge }
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
        if let Some(rare) = &mut self.rare {
            rare.fault.take_if(|fault| fault.concerns(connection));
            rare.paused_until = None;
        }
        self.peer.handle_lost(now, connection);
    }

    /// When something is due. Nothing is due on a connection that a fault stalls.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.rare {
            None => self.peer.poll_timeout(),
            Some(rare) => rare.poll_timeout(self.fault_at(), || self.peer.poll_timeout()),
        }
    }
}

/// Limits on how fast the client sends.
impl Inner {
    pub(super) fn set_throttle(&mut self, config: ThrottleConfig) {
        if let Some(throttle) = Throttle::new(config) {
            self.rare.get_or_insert_default().throttle = Some(throttle);
        }
    }

    /// How many messages one read may bring; `u64::MAX` without a limit. The rest waits in the buffer.
    pub(super) fn messages_per_read(&self) -> u64 {
        let Some(rare) = &self.rare else { return u64::MAX };
        rare.throttle.as_ref().map_or(u64::MAX, Throttle::messages_per_read)
    }

    /// Notes what one read brought. Returns `true` if the connection has to be closed, because the client does not slow down.
    pub(super) fn is_too_fast(&mut self, now: Instant, messages: u64, bytes: u64, stats: &Counters) -> bool {
        self.rare.as_mut().is_some_and(|rare| rare.is_too_fast(now, messages, bytes, stats))
    }

    /// What few connections have that keeps this one from being read now.
    pub(super) fn kept_unread(&mut self, now: Instant, connection: ConnectionId) -> Option<KeptUnread> {
        self.rare.as_mut().and_then(|rare| rare.kept_unread(now, connection))
    }
}

/// Never beside what every connection does: it would make that slower.
impl Rare {
    #[cold]
    fn is_too_fast(&mut self, now: Instant, messages: u64, bytes: u64, stats: &Counters) -> bool {
        let Some(throttle) = &mut self.throttle else { return false };
        throttle.spend(now, messages, bytes);
        match throttle.pace(now) {
            Pace::Read => false,
            Pace::Pause(until) => {
                Counters::add(&stats.throttled, 1);
                self.paused_until = Some(until);
                false
            }
            Pace::Close => {
                Counters::add(&stats.throttled_closed, 1);
                true
            }
        }
    }

    #[cold]
    fn poll_timeout(&self, fault: Option<Instant>, peer: impl Fn() -> Option<Instant>) -> Option<Instant> {
        fault.or_else(|| [self.paused_until, peer()].into_iter().flatten().min())
    }

    #[cold]
    fn kept_unread(&mut self, now: Instant, connection: ConnectionId) -> Option<KeptUnread> {
        if self.fault.as_ref().is_some_and(|fault| fault.concerns(connection)) {
            return Some(KeptUnread::Fault);
        }
        self.paused_until.take_if(|until| *until <= now);
        self.paused_until.map(|_| KeptUnread::TooFast)
    }
}

/// See [`Inner::kept_unread`].
pub(super) enum KeptUnread {
    /// A fault on purpose: the peer counts as silent.
    Fault,
    /// The peer sends too fast. That its bytes are not read is no evidence against it.
    TooFast,
}

/// Faults.
impl Inner {
    #[cfg(feature = "fault-injection")]
    pub(super) fn inject(&mut self, fault: Fault, at: Instant) {
        let connection = self.peer.connection();
        if connection.is_some() || !self.peer.is_session() {
            self.rare.get_or_insert_default().fault = Some(Injected::new(connection, at, fault));
        }
    }

    /// Whether a fault keeps this connection from reading and writing.
    pub(super) fn is_stalled(&self, connection: ConnectionId) -> bool {
        self.fault().is_some_and(|fault| fault.concerns(connection))
    }

    pub(super) fn fault_at(&self) -> Option<Instant> {
        self.fault().map(|fault| fault.at)
    }

    fn fault(&self) -> Option<&Injected> {
        self.rare.as_ref()?.fault.as_ref()
    }

    pub(super) fn take_fault(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        hung_up: bool,
    ) -> Option<Fault> {
        let rare = self.rare.as_mut()?;
        Injected::take_due(&mut rare.fault, now, self.peer.connection(), connection, hung_up)
    }
}

/// Leaving.
impl Inner {
    /// The connection is relayed by this node, or by none.
    pub(super) fn set_entry(&mut self, entry: Option<NodeId>) {
        if entry.is_some() || self.rare.is_some() {
            self.rare.get_or_insert_default().entry = entry;
        }
    }

    #[cfg(feature = "cluster")]
    pub(super) fn is_relayed_by(&self, entry: NodeId) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.entry == Some(entry))
    }

    #[cfg(feature = "cluster")]
    pub(super) fn set_leaving(&mut self, returned: tokio::sync::oneshot::Sender<()>) {
        let leaving = Leaving { returned: Some(returned), is_disconnected: false };
        self.rare.get_or_insert_default().leaving = Some(leaving);
    }

    /// The handler has returned.
    pub(super) fn note_returned(&mut self) {
        let leaving = self.rare.as_mut().and_then(|rare| rare.leaving.as_mut());
        if let Some(returned) = leaving.and_then(|leaving| leaving.returned.take()) {
            let _ = returned.send(());
        }
    }

    /// Whether the session's task has to give up the connection now, because the session leaves: `true` once.
    pub(super) fn poll_disconnect(&mut self) -> bool {
        let leaving = self.rare.as_mut().and_then(|rare| rare.leaving.as_mut());
        leaving.is_some_and(|leaving| !std::mem::replace(&mut leaving.is_disconnected, true))
    }
}

/// Receipts.
impl Inner {
    /// Returns a receipt for the message that was just sent with this number; `None`: the client is a plain one, which
    /// acknowledges nothing.
    pub(super) fn track(&mut self, number: Option<u64>) -> Receipt {
        let (settle, receipt) = Receipt::new();
        match number {
            Some(number) => self.rare.get_or_insert_default().receipts.push_back((number, settle)),
            None => drop(settle.send(Outcome::Unknown)),
        }
        receipt
    }

    /// Settles the receipts of messages whose fate is known by now. Once the session is over that is all of them.
    pub(super) fn settle_receipts(&mut self) {
        let Some(rare) = self.rare.as_mut().filter(|rare| !rare.receipts.is_empty()) else { return };
        let Some(session) = self.peer.session() else { return };
        let is_over = session.closed().is_some();
        let fate = |number| match session.progress(number) {
            Progress::Acknowledged => Some(Outcome::Delivered),
            Progress::Dropped => Some(Outcome::NotDelivered),
            Progress::Queued if is_over => Some(Outcome::NotDelivered),
            _ if is_over => Some(Outcome::Unknown),
            _ => None,
        };
        let waiting = std::mem::take(&mut rare.receipts).into_iter().filter_map(|(number, settle)| {
            match fate(number) {
                Some(outcome) => drop(settle.send(outcome)),
                None => return Some((number, settle)),
            }
            None
        });
        rare.receipts = waiting.collect();
    }
}

/// The session as a `Sink`.
impl Inner {
    pub(super) fn keep_sending(&mut self, message: Message) {
        self.rare.get_or_insert_default().sending = Some(message);
    }

    pub(super) fn take_sending(&mut self) -> Option<Message> {
        self.rare.as_mut()?.sending.take()
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
