//! What a session's task and the application's handles share: the machine, and who waits for what.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use mainstay_proto::session::server::Fenced;
use mainstay_proto::session::{ConnectionId, PlainSession, ServerSession, Sessions};

use mainstay_proto::ws::{CloseCode, CloseFrame};

use super::Shared;
use super::auth::Authenticate;
use crate::driver::Wire;

/// One session. All state is behind one lock, held only for calls into the machine.
pub(crate) struct Core {
    inner: Mutex<Inner>,
}

pub(crate) type CoreRef = Arc<Core>;

pub(crate) struct Inner {
    pub(crate) peer: Peer,
    /// The session's task.
    pub(crate) driver: Option<Waker>,
    /// Waits for a message.
    pub(crate) receiver: Option<Waker>,
    /// Wait for room in the window.
    pub(crate) senders: Vec<Waker>,
    /// Waits for a change of state.
    pub(crate) watcher: Option<Waker>,
    /// A connection that was attached by another task and waits to be taken over.
    pub(crate) incoming: Option<Box<(ConnectionId, Wire)>>,
    /// What the connection before it is closed with.
    pub(crate) fenced: Option<CloseFrame>,
    /// Judges credentials that come on the current connection.
    pub(crate) authenticate: Option<Authenticate>,
}

/// The machine, by what the peer speaks.
pub(crate) enum Peer {
    Session(Box<ServerSession>),
    Plain(Box<PlainSession>),
}

impl Core {
    pub(crate) fn new(peer: Peer) -> CoreRef {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                peer,
                driver: None,
                receiver: None,
                senders: Vec::new(),
                watcher: None,
                incoming: None,
                fenced: None,
                authenticate: None,
            }),
        })
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
}

impl Inner {
    /// A later attach has the session: its connection replaces the one before, which is told so.
    pub(crate) fn supersede(&mut self, fenced: Option<Fenced>, incoming: (ConnectionId, Wire)) {
        self.fenced = fenced.map(|fenced| CloseFrame { code: CloseCode::SUPERSEDED, reason: fenced.reason });
        self.incoming = Some(Box::new(incoming));
    }

    /// The task has something to do.
    pub(crate) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Something arrived, left, or changed: whoever waits looks again.
    pub(crate) fn wake_application(&mut self) {
        self.receiver.take().into_iter().for_each(Waker::wake);
        self.watcher.take().into_iter().for_each(Waker::wake);
        self.senders.drain(..).for_each(Waker::wake);
    }
}

/// The registry's view of the cores: only sessions have names.
pub(crate) struct Cores<'a>(pub(crate) &'a Shared);

impl Sessions for Cores<'_> {
    type Handle = CoreRef;

    fn has_room(&self) -> bool {
        self.0.has_room()
    }

    fn with<R>(&mut self, handle: &CoreRef, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        match &mut handle.lock().peer {
            Peer::Session(session) => f(session),
            Peer::Plain(_) => unreachable!("a plain connection has no name in the registry"),
        }
    }

    fn create(&mut self, session: ServerSession) -> CoreRef {
        Core::new(Peer::Session(Box::new(session)))
    }
}
