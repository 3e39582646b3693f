//! What a session's task and the application's handles share: the machine, and who waits for what.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use mainstay_proto::session::message::Delay;
use mainstay_proto::session::server::Fenced;
use mainstay_proto::session::{ConnectionId, PlainSession, ServerSession, Sessions};
use mainstay_proto::ws::{CloseCode, CloseFrame};

use super::auth::Authenticate;
use super::meddle::Act;
use super::upgrade::PeerFacts;
use super::{REASON, Shared};
use crate::clock::now;
use crate::driver::Wire;
use crate::worker::{Home, Signal};

/// One session. What changes is behind one lock, held only for calls into the machine.
pub(crate) struct Core {
    /// Wakes the session's task. The handler's waker is the core itself.
    pub(super) signal: Signal,
    pub(super) shared: Arc<Shared>,
    pub(super) facts: PeerFacts,
    inner: Mutex<Inner>,
}

pub(crate) type CoreRef = Arc<Core>;

pub(crate) struct Inner {
    pub(crate) peer: Peer,
    /// Waits for a message.
    pub(super) receiver: Option<Waker>,
    /// Those that wait for something rarer.
    waiting: Option<Box<Waiting>>,
    /// A connection that was attached by another task and waits to be taken over.
    pub(super) incoming: Option<Box<Incoming>>,
    /// Judges credentials that come on the current connection.
    pub(super) authenticate: Option<Box<Authenticate>>,
    /// What somebody wants done to the connection.
    pub(super) act: Option<Box<Act>>,
}

/// The machine, by what the peer speaks.
pub(crate) enum Peer {
    Session(Box<ServerSession>),
    Plain(Box<PlainSession>),
}

#[derive(Default)]
struct Waiting {
    /// For room in the window.
    senders: Vec<Waker>,
    /// For a change of state.
    watcher: Option<Waker>,
}

pub(super) struct Incoming {
    pub(super) connection: ConnectionId,
    pub(super) wire: Wire,
    /// What the connection before it is closed with.
    pub(super) fenced: Option<CloseFrame>,
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, home: Arc<Home>, facts: PeerFacts, peer: Peer) -> CoreRef {
        let inner =
            Inner { peer, receiver: None, waiting: None, incoming: None, authenticate: None, act: None };
        Arc::new(Self { signal: Signal::new(home), shared, facts, inner: Mutex::new(inner) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` if the peer speaks `mainstay.v1`.
    pub(crate) fn with_session<R>(&self, f: impl FnOnce(&mut ServerSession) -> R) -> Option<R> {
        match &mut self.lock().peer {
            Peer::Session(session) => Some(f(session)),
            Peer::Plain(_) => None,
        }
    }

    /// Sends the client away, for good as far as this server goes. Plain peers know no such word: `false`.
    pub(super) fn dismiss(&self, spread: Duration) -> bool {
        let mut inner = self.lock();
        let Peer::Session(session) = &mut inner.peer else { return false };
        let delay = Delay { min: Duration::ZERO, max: spread };
        session.go_away(now(), REASON, delay, spread);
        session.retire();
        inner.wake_application();
        drop(inner);
        self.signal.ask();
        true
    }

    /// A later attach has the session: its connection replaces the one before, which is told so.
    pub(super) fn supersede(&self, fenced: Option<Fenced>, connection: ConnectionId, wire: Wire) {
        let fenced = fenced.map(|fenced| CloseFrame { code: CloseCode::SUPERSEDED, reason: fenced.reason });
        let mut inner = self.lock();
        inner.incoming = Some(Box::new(Incoming { connection, wire, fenced }));
        inner.wake_application();
        drop(inner);
        self.signal.ask();
    }
}

/// The handler is polled with this as its waker, so a session needs no task of its own to be woken.
impl Wake for Core {
    fn wake(self: Arc<Self>) {
        self.signal.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.signal.wake();
    }
}

impl Inner {
    /// Wakes the caller once a message may have come.
    pub(super) fn wait_for_message(&mut self, waker: &Waker) {
        match &mut self.receiver {
            Some(receiver) => receiver.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Wakes the caller once there may be room.
    pub(super) fn wait_for_room(&mut self, waker: &Waker) {
        let senders = &mut self.waiting.get_or_insert_default().senders;
        // A future that is polled again without having been woken must not be listed twice.
        if !senders.iter().any(|listed| listed.will_wake(waker)) {
            senders.push(waker.clone());
        }
    }

    /// Wakes the caller once the state may have changed.
    pub(super) fn wait_for_change(&mut self, waker: &Waker) {
        self.waiting.get_or_insert_default().watcher = Some(waker.clone());
    }

    /// There may be room again.
    pub(super) fn wake_senders(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.senders.drain(..).for_each(Waker::wake);
        }
    }

    /// Something arrived, left, or changed: whoever waits looks again.
    pub(super) fn wake_application(&mut self) {
        self.receiver.take().into_iter().for_each(Waker::wake);
        if let Some(waiting) = self.waiting.take() {
            waiting.watcher.into_iter().chain(waiting.senders).for_each(Waker::wake);
        }
    }
}

/// The registry's view of the cores: only sessions have names. One value per HELLO, since a session that it
/// makes is told of the one who asked.
pub(super) struct Cores {
    pub(super) shared: Arc<Shared>,
    pub(super) home: Arc<Home>,
    pub(super) facts: PeerFacts,
}

impl Sessions for Cores {
    type Handle = CoreRef;

    fn with<R>(&mut self, handle: &CoreRef, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        match &mut handle.lock().peer {
            Peer::Session(session) => f(session),
            Peer::Plain(_) => unreachable!("a plain connection has no name in the registry"),
        }
    }

    fn create(&mut self, session: ServerSession) -> CoreRef {
        let (shared, home) = (Arc::clone(&self.shared), Arc::clone(&self.home));
        Core::new(shared, home, self.facts.clone(), Peer::Session(Box::new(session)))
    }
}
