//! What a session's task and the application's handles share: the machine, and who waits for what.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Wake, Waker};
use std::time::Duration;

use mainstay_proto::admission::Source;
use mainstay_proto::budget::{Held, Pressure};
use mainstay_proto::connect::Lost;
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::message::Delay;
use mainstay_proto::session::server::{Fenced, ServerConfig};
use mainstay_proto::session::{ConnectionId, EndCause, PlainSession, ServerSession, Sessions};
use mainstay_proto::ws::{CloseCode, CloseFrame};

use tracing::Span;
use tracing::field::Empty;

use super::auth::Authenticate;
use super::meddle::Act;
use super::upgrade::PeerInfo;
use super::{REASON, Shared};
use crate::budget::{Charge, Holder};
use crate::clock::now;
use crate::driver::Wire;
use crate::worker::{Mailbox, Signal};

/// One session. What changes is behind one lock, held only for calls into the machine.
pub(crate) struct Core {
    /// Wakes the session's task. The handler's waker is the core itself.
    pub(super) signal: Signal,
    pub(super) shared: Arc<Shared>,
    pub(super) facts: PeerInfo,
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
    /// What few connections have.
    pub(super) extras: Option<Box<Extras>>,
    /// What somebody wants done to the connection.
    pub(super) act: Option<Box<Act>>,
    pub(super) charge: Charge,
}

/// Why a session lost its last connection, for the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Loss {
    /// It has its first one.
    #[default]
    None,
    Closed,
    Broken,
    Dead,
    NotListening,
    Cut,
}

impl Loss {
    pub(super) fn of(lost: &Lost) -> Self {
        match lost {
            Lost::Closed { .. } => Self::Closed,
            Lost::Dead(_) => Self::Dead,
            _ => Self::Broken,
        }
    }

    /// In words.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none was lost",
            Self::Closed => "the client closed its connection",
            Self::Broken => "the connection ended, or broke, without a close",
            Self::Dead => "the client was called dead, or did not take what was written",
            Self::NotListening => "the client sent bytes and answered nothing",
            Self::Cut => "the connection was cut on purpose",
        }
    }
}

/// The machine, by what the peer speaks.
pub(crate) enum Peer {
    Session(Box<ServerSession>),
    Plain(Box<PlainSession>),
}

/// What belongs to the current connection and most have not.
pub(super) struct Extras {
    /// Judges credentials that come on it.
    pub(super) authenticate: Option<Authenticate>,
    /// Its epoch of the session; `None` where no subscriber wants it.
    span: Option<Span>,
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
    /// What the connection before it is closed with.
    pub(super) fenced: Option<CloseFrame>,
    pub(super) from: ComesFrom,
}

/// Where a connection was opened, for the log. The address may be another than that which the session was opened from.
#[derive(Default)]
pub(super) struct ComesFrom {
    pub(super) address: Option<SocketAddr>,
    pub(super) path: Box<str>,
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, mailbox: Arc<Mailbox>, facts: PeerInfo, peer: Peer) -> CoreRef {
        let inner = Inner {
            peer,
            receiver: None,
            waiting: None,
            incoming: None,
            extras: None,
            act: None,
            charge: Charge::default(),
        };
        Arc::new(Self { signal: Signal::new(mailbox), shared, facts, inner: Mutex::new(inner) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was attached: from here on its judge is asked, and the handler runs in its span.
    pub(super) fn begin_epoch(&self, authenticate: Option<Authenticate>) {
        let span = self.epoch_span();
        let extras = authenticate.is_some() || span.is_some();
        self.lock().extras = extras.then(|| Box::new(Extras { authenticate, span }));
    }

    fn epoch_span(&self) -> Option<Span> {
        let span = match self.with_session(|session| (session.id(), session.epoch())) {
            Some((id, epoch)) => tracing::info_span!("session", session = %id, epoch, principal = Empty),
            None => tracing::info_span!("session", principal = Empty),
        };
        if span.is_disabled() {
            return None;
        }
        if self.shared.config.log_principal && !self.facts.principal.is_empty() {
            span.record("principal", tracing::field::display(self.facts.principal.escape_ascii()));
        }
        Some(span)
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

    /// The session is woken when the level of the memory budget falls. Returns the pressure after that.
    pub(super) fn wait_for_memory(self: &Arc<Self>, inner: &mut Inner) -> Option<Pressure> {
        if inner.charge.begin_to_wait() {
            return self.shared.config.budget.pressure();
        }
        let holder: Weak<Self> = Arc::downgrade(self);
        self.shared.config.budget.wait(holder)
    }

    /// Something happened to the session behind its task's back.
    pub(super) fn look(&self) {
        self.lock().wake_application();
        self.signal.ask();
    }

    /// A later attach has the session: its connection replaces the one before, which is told so.
    ///
    /// Attaches are decided one at a time, under the registry's lock, and come here after it: in any order, and
    /// perhaps two before the session's task looks. The machine knows which one it is bound to. The other comes
    /// back, with what to close it with.
    pub(super) fn supersede(
        &self,
        fenced: Option<Fenced>,
        connection: ConnectionId,
        wire: Wire,
        from: ComesFrom,
    ) -> Option<(Wire, CloseFrame)> {
        let superseded = |reason| CloseFrame { code: CloseCode::SUPERSEDED, reason };
        let fenced = fenced.map(|fenced| superseded(fenced.reason));
        let incoming = Incoming { connection, wire, fenced, from };
        let mut inner = self.lock();
        let Peer::Session(session) = &inner.peer else { return None };
        let is_bound = session.connection() == Some(connection) && session.closed().is_none();
        let reason = session.superseded_reason();
        let loser = if is_bound {
            inner.incoming.replace(Box::new(incoming)).map(|earlier| earlier.wire)
        } else {
            Some(incoming.wire)
        };
        inner.wake_application();
        drop(inner);
        self.signal.ask();
        loser.map(|wire| (wire, superseded(reason)))
    }
}

impl Holder for Core {
    fn go_on(self: Arc<Self>) {
        let mut inner = self.lock();
        inner.charge.end_waiting();
        inner.wake_senders();
        drop(inner);
        self.signal.ask();
    }

    fn charged(&self) -> u64 {
        self.lock().charge.bytes()
    }

    /// A session is over as if its resume window had passed, and a plain connection is closed with 1013.
    fn give_up(self: Arc<Self>) {
        if !self.shared.evict(&self) {
            self.close_for(EndCause::Evicted, CloseCode::TRY_AGAIN, "the server is out of memory");
        }
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
    pub(super) fn span(&self) -> Option<Span> {
        self.extras.as_ref()?.span.clone()
    }

    /// What the machine keeps.
    pub(super) fn held(&self) -> Held {
        match &self.peer {
            Peer::Session(session) => session.held(),
            Peer::Plain(plain) => plain.held(),
        }
    }

    /// Whether the connection may be read that has `assembling` bytes of a message.
    pub(super) fn lets_read(&self, pressure: Pressure, assembling: u64) -> bool {
        let Held { unread, kept } = self.held();
        // What is kept for a plain peer leaves without being acknowledged.
        let owed = if matches!(self.peer, Peer::Session(_)) { kept } else { 0 };
        pressure.lets_read(unread, assembling, owed)
    }

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
        let watchers = &mut self.waiting.get_or_insert_default().watchers;
        if !watchers.iter().any(|listed| listed.will_wake(waker)) {
            watchers.push(waker.clone());
        }
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
            waiting.watchers.into_iter().chain(waiting.senders).for_each(Waker::wake);
        }
    }
}

/// The registry's view of the cores: only sessions have names. One value per HELLO, since a session that it
/// makes is told of the one who asked.
pub(super) struct Cores {
    pub(super) shared: Arc<Shared>,
    pub(super) facts: PeerInfo,
    /// Its route's.
    pub(super) heartbeat: HeartbeatConfig,
}

impl Cores {
    /// For what concerns no newcomer.
    pub(super) fn of_nobody(shared: &Arc<Shared>) -> Self {
        let facts =
            PeerInfo { address: None, subprotocol: None, resumable: false, principal: Box::default() };
        Self { shared: Arc::clone(shared), facts, heartbeat: shared.config.heartbeat }
    }
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
        Core::new(
            Arc::clone(&self.shared),
            crate::worker::mailbox(),
            self.facts.clone(),
            Peer::Session(Box::new(session)),
        )
    }

    fn config(&mut self) -> Option<Arc<ServerConfig>> {
        Some(self.shared.sessions_with(self.heartbeat))
    }

    fn source(&mut self, handle: &CoreRef) -> Option<Source> {
        handle.facts.address.map(|address| Source::of(address.ip()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mainstay_proto::session::message::{ClientKey, Control, Hello, Instance, Resume, ResumeToken};
    use mainstay_proto::session::{Answer, Frame, Message, Presenter, Window};
    use mainstay_proto::ws::{Connection, Kind, Limits, Role};

    use super::*;
    use crate::server::Server;
    use crate::transport::Transport;

    fn hello(attempt: u64, token: Option<ResumeToken>) -> Hello {
        Hello {
            window: Window { messages: 16, bytes: 1 << 16 },
            key: ClientKey([1; 16]),
            key_age: Duration::from_secs(1),
            instance: Instance([7; 8]),
            attempt,
            resume: token.map(|token| Resume { token, acknowledged: 0, sent: 0, first_held: 1 }),
            credentials: None,
            resume_window: None,
            max_message: None,
        }
    }

    fn wire() -> Wire {
        let (ours, _) = tokio::io::duplex(16);
        let codec = Connection::new(Role::Server, Limits::default(), None, [0; 32]);
        Wire::new(Transport::other(ours), codec, Bytes::new())
    }

    /// Decides an attach, as `open` does under the registry's lock.
    fn attach(
        shared: &Arc<Shared>,
        connection: u64,
        hello: &Hello,
    ) -> (CoreRef, Option<Fenced>, ResumeToken) {
        let facts = PeerInfo { address: None, subprotocol: None, resumable: true, principal: Box::default() };
        let heartbeat = shared.config.heartbeat;
        let mut cores = Cores { shared: Arc::clone(shared), facts, heartbeat };
        let (now, connection, who) = (now(), ConnectionId(connection), Presenter::default());
        let answer = shared.registry().hello(now, connection, who, hello, &mut cores);
        let Answer::Attached { session, fenced, .. } = answer else { panic!("{connection:?} was refused") };
        let welcome = session.with_session(|session| session.poll_transmit(now, connection)).flatten();
        let (kind, _, bytes) = welcome.as_ref().and_then(|welcome| welcome.as_message()).unwrap();
        let Ok(Frame::Control(Control::Welcome(welcome))) =
            Frame::decode(Message::new(kind, bytes.clone()).unwrap())
        else {
            panic!("{kind:?}: no WELCOME, {}", Kind::Binary == kind)
        };
        (session, fenced, welcome.token)
    }

    #[tokio::test]
    async fn of_two_attaches_that_race_the_later_one_has_the_session_in_whatever_order_they_come() {
        // What happens in which order: `d` an attach is decided, `t` it is taken to the session.
        for schedule in ["d2 d3 t2 t3", "d2 d3 t3 t2", "d2 t2 d3 t3"] {
            let shared = Arc::clone(&Server::default().shared);
            let first = Hello { key_age: Duration::ZERO, ..hello(1, None) };
            let (core, _, mut token) = attach(&shared, 1, &first);
            let (mut fenced, mut losers) = ([None, None], Vec::new());
            for step in schedule.split(' ') {
                let attempt = if step.ends_with('2') { 2 } else { 3 };
                let decided = &mut fenced[attempt as usize - 2];
                if step.starts_with('d') {
                    (_, *decided, token) = attach(&shared, attempt, &hello(attempt, Some(token)));
                } else {
                    losers.extend(core.supersede(
                        decided.take(),
                        ConnectionId(attempt),
                        wire(),
                        ComesFrom::default(),
                    ));
                }
            }
            let frames: Vec<_> =
                losers.iter().map(|(_, frame)| (frame.code, frame.reason.as_str())).collect();
            assert_eq!(frames, [(CloseCode::SUPERSEDED, "0707070707070707 0")], "{schedule}");
            let incoming = core.lock().incoming.take().unwrap();
            assert_eq!(incoming.connection, ConnectionId(3), "{schedule}");
        }
    }
}
