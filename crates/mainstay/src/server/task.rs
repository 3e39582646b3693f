//! A session's task: its connection, its deadline and its handler, which have their turn together at the
//! [`worker`](crate::worker) that the session lives with.
//!
//! One turn asks four questions in one order: what arrived, what is due, what does the handler do
//! about it, what is to be written. Work per turn is bounded; then the others have theirs. The handler
//! never runs inside the read path, so a handler that waits does not look like a dead peer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use mainstay_proto::budget::{Held, Pressure};
use mainstay_proto::connect::Lost;
use mainstay_proto::heartbeat::Action;
use mainstay_proto::session::{
    Closed, ConnectionId, Control, End, EndCause, Frame, Leave, PeerClose, SessionError, Transmit,
};
use mainstay_proto::ws::{CloseCode, CloseFrame};

use pin_project_lite::pin_project;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;

use super::auth::{Asked, judge_anew};
use super::core::{ComesFrom, Core, CoreRef, Incoming, Inner, Loss, Peer};
use super::meddle::Then;
use super::session::Session;
use super::stats::Counters;
use crate::budget::{Change, Part};
use crate::clock::{self, now};
use crate::driver::{Abort, Arrived, Framing, Reading, Wire, Written};
use crate::worker::{Signal, Task, TaskContext, TaskPoll};

/// Reads per turn.
const ROUNDS: usize = 4;

pin_project! {
    /// See the module.
    pub(super) struct SessionTask<F> {
        #[pin]
        handler: Option<F>,
        connected: Connected,
    }

    impl<F> PinnedDrop for SessionTask<F> {
        fn drop(this: Pin<&mut Self>) {
            this.project().connected.bury();
        }
    }
}

/// A session and the connection it has, if any.
struct Connected {
    core: CoreRef,
    connection: ConnectionId,
    wire: Option<Wire>,
    /// In the list of all sessions.
    slot: u32,
    /// Why it lost its last connection.
    loss: Loss,
    _token: TaskTrackerToken,
}

impl<F: Future<Output = ()> + Send + 'static> SessionTask<F> {
    /// From here on the session lives with its worker. If `handler` panics, it is buried instead.
    pub(super) fn begin(
        core: CoreRef,
        connection: ConnectionId,
        wire: Wire,
        handler: impl FnOnce(Session) -> F,
    ) {
        Counters::add(&core.shared.stats.sessions, 1);
        let connected = Connected {
            connection,
            wire: Some(wire),
            slot: core.shared.list(&core),
            loss: Loss::None,
            _token: core.shared.tracker.token(),
            core: Arc::clone(&core),
        };
        connected.log_begin();
        let mut task = Box::pin(Self { handler: None, connected });
        let span = core.lock().span();
        let handler = span.unwrap_or_else(Span::none).in_scope(|| handler(Session::new(Arc::clone(&core))));
        task.as_mut().project().handler.set(Some(handler));
        core.signal.spawn(task);
    }
}

impl<F: Future<Output = ()> + Send> Task for SessionTask<F> {
    fn signal(&self) -> &Signal {
        &self.connected.core.signal
    }

    fn turn(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll {
        let this = self.project();
        let (mut handler, connected) = (this.handler, this.connected);
        let waker = Waker::from(Arc::clone(&connected.core));
        let cx = &mut Context::from_waker(&waker);
        let span = connected.arrive(context, cx);
        let _inside = span.as_ref().map(Span::enter);
        for _ in 0..ROUNDS {
            let more = connected.read(context, cx);
            if connected.keep_time() {
                // This process was paused. The worker says what became readable, and the socket what it takes; then
                // we judge.
                connected.write(context, cx);
                return TaskPoll::Again;
            }
            if connected.core.signal.take_poll() {
                if handler.as_mut().as_pin_mut().is_some_and(|handler| handler.poll(cx).is_ready()) {
                    // Its `Session` goes with it, and that ends the session in order.
                    handler.set(None);
                }
                // It may have taken its time.
                clock::begin_turn();
            }
            connected.core.signal.end_turn();
            connected.write(context, cx);
            if handler.is_none() && connected.is_done() {
                return TaskPoll::Done;
            }
            if !more {
                return connected.rest();
            }
        }
        connected.go_on()
    }
}

impl Connected {
    /// Takes a connection that another task attached; the one before it was fenced then. Hears what the
    /// worker says of either. Returns what its epoch is logged in.
    fn arrive(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) -> Option<Span> {
        let (incoming, meddled, welcomes, span) = {
            let mut inner = self.core.lock();
            let welcomes = matches!(&inner.peer, Peer::Session(session) if session.owes_welcome());
            (inner.incoming.take(), inner.act.is_some(), welcomes, inner.span())
        };
        if let Some(incoming) = incoming {
            let Incoming { connection, wire, fenced, from } = *incoming;
            self.connection = connection;
            self.log_return(&from, fenced.is_some());
            if let Some(mut old) = self.wire.replace(wire) {
                if let Some(fenced) = fenced {
                    old.close(&fenced);
                }
                self.core.shared.tracker.spawn(old.depart(context).finish());
                Counters::subtract(&self.core.shared.stats.connections, 1);
            }
        }
        if let Some(Err(error)) = self.wire.as_mut().map(|wire| wire.arrive(context)) {
            self.lose(&Lost::Broken(error.into()), context, cx);
        }
        if meddled {
            self.suffer();
        }
        if welcomes {
            self.write(context, cx);
        }
        span
    }

    fn log_begin(&self) {
        let facts = &self.core.facts;
        let session = self.core.with_session(|session| session.id());
        let (session, peer) =
            (session.map(tracing::field::display), facts.address.map(tracing::field::display));
        tracing::debug!(session, peer, subprotocol = facts.subprotocol.as_deref(), "session begins");
    }

    /// The one line about a session that waits for its client.
    fn log_parked(&self, inner: &Inner) {
        if let Peer::Session(session) = &inner.peer
            && session.closed().is_none()
        {
            let (id, epoch, cause) = (session.id(), session.epoch(), self.loss.as_str());
            tracing::debug!(session = %id, epoch, connection = self.connection.0, cause, "session parked");
        }
    }

    /// The one line about a session that is over: above `debug` hostile clients would flood the log.
    fn log_end(&self) {
        let inner = self.core.lock();
        let Some(End { cause, code, .. }) = inner.end() else { return };
        let (id, epoch) = match &inner.peer {
            Peer::Session(session) => (Some(session.id()), Some(session.epoch())),
            Peer::Plain(_) => (None, None),
        };
        drop(inner);
        let (session, close_code) = (id.map(tracing::field::display), code.map(u16::from));
        if cause == EndCause::Panicked {
            tracing::info!(session, epoch, close_code, cause = cause.as_str(), "session ended");
        } else {
            tracing::debug!(session, epoch, close_code, cause = cause.as_str(), "session ended");
        }
    }

    /// The one line about a client that is back.
    fn log_return(&self, from: &ComesFrom, was_there: bool) {
        if !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        let cause = if was_there { "a newer connection took its place" } else { self.loss.as_str() };
        let facts = self.core.with_session(|session| (session.id(), session.epoch()));
        let Some((session, epoch)) = facts else { return };
        let peer = from.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        tracing::info!(%session, peer, path = &*from.path, epoch, cause, "session resumed");
    }

    /// Has done to the connection what somebody asked for.
    fn suffer(&mut self) {
        let hung_up = self.wire.as_ref().is_none_or(Wire::has_ended);
        let fell_due = self.core.lock().take_act(now(), self.connection, hung_up);
        if fell_due == Some(Then::Cut) {
            self.drop_wire(Loss::Cut);
        }
    }

    /// When there is something to do again.
    fn rest(&mut self) -> TaskPoll {
        let (mut inner, sockets) = (self.core.lock(), self.held());
        let is_closed = match &mut inner.peer {
            Peer::Session(session) => session.poll_closed(),
            Peer::Plain(_) => false,
        };
        let change = inner.account(sockets);
        let wakes = self.core.signal.wants_poll() || inner.act.as_ref().is_some_and(|act| act.at <= now());
        let until = inner.poll_timeout();
        drop(inner);
        self.core.shared.config.budget.apply(Part::Sessions, change);
        if is_closed {
            // Its handler may take its time, or never look: it holds no place among the living meanwhile.
            self.core.shared.bury(&self.core);
        }
        if wakes { TaskPoll::Again } else { TaskPoll::Until(until) }
    }

    /// More was done than a turn may do.
    fn go_on(&mut self) -> TaskPoll {
        self.rest();
        TaskPoll::Again
    }

    /// What the connection keeps.
    fn held(&self) -> u64 {
        let framing = if self.core.facts.resumable { Framing::Session } else { Framing::Plain };
        self.wire.as_ref().map_or(0, |wire| wire.held(framing))
    }

    /// Reads once. `true`: there may be more.
    fn read(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) -> bool {
        let Some(wire) = self.wire.as_mut().filter(|wire| wire.may_read()) else { return false };
        let (now, connection, stats) = (now(), self.connection, &self.core.shared.stats);
        let mut inner = self.core.lock();
        if inner.is_held(connection) {
            return false;
        }
        if !inner.wants_input() || self.core.must_wait_for_memory(&mut inner, wire) {
            // What stands unread is our doing, and no evidence against the peer.
            inner.handle_bytes(now, connection);
            return false;
        }
        let (mut closed, mut broken) = (None, None);
        let (mut messages, mut bytes) = (0, 0);
        let reading = wire.poll_read(cx, |arrived| {
            match arrived {
                Arrived::Message(message) => match inner.handle_message(now, connection, message, stats) {
                    Ok(None) => {}
                    Ok(Some(length)) => {
                        messages += 1;
                        bytes += length as u64;
                        // A few compressed bytes may be many messages. What follows waits where it is.
                        return inner.wants_input();
                    }
                    Err(error) => {
                        broken = Some(error);
                        return false;
                    }
                },
                Arrived::Pong(payload) => inner.handle_pong(now, connection, payload, stats),
                Arrived::Bytes => inner.handle_bytes(now, connection),
                Arrived::Close(frame) => {
                    let code = frame.as_ref().map(|frame| frame.code);
                    let reason = frame.map(|frame| frame.reason).unwrap_or_default();
                    inner.handle_peer_close(code, &reason);
                    closed = Some(Lost::Closed { code, reason });
                }
            }
            true
        });
        Counters::add(&stats.messages_in, messages);
        Counters::add(&stats.bytes_in, bytes);
        if let Some(asked) = inner.poll_auth() {
            judge_anew(&self.core, asked);
        }
        let lost = match (reading, closed, broken) {
            (_, _, Some(error)) => {
                tracing::debug!(%error, "client broke the session protocol");
                Counters::add(&stats.session_errors, 1);
                if let SessionError::MessageTooBig { .. } = error {
                    self.core.shared.tell_too_big(&self.core.facts);
                }
                wire.close(&CloseFrame { code: error.close_code(), reason: error.to_string() });
                Some(Lost::Broken(error.to_string().into()))
            }
            (_, Some(closed), None) => Some(closed),
            (Reading::Ended(lost), None, None) => {
                if wire.is_closing() {
                    Counters::add(&stats.protocol_errors, 1);
                    inner.handle_violation(&lost);
                }
                if let Lost::TooBig { .. } = lost {
                    self.core.shared.tell_too_big(&self.core.facts);
                }
                Some(lost)
            }
            (Reading::Idle, ..) => return false,
            (Reading::More, ..) => {
                inner.wake_application();
                return wire.may_read();
            }
        };
        drop(inner);
        if let Some(lost) = lost {
            self.lose(&lost, context, cx);
        }
        false
    }

    /// The connection is gone for the session; what is queued on it still leaves, best effort.
    fn lose(&mut self, why: &Lost, context: &TaskContext<'_>, cx: &mut Context<'_>) {
        tracing::debug!(connection = self.connection.0, ?why, "connection lost");
        let Some(wire) = self.wire.take() else { return };
        Counters::subtract(&self.core.shared.stats.connections, 1);
        if wire.is_closing()
            && let Some(wire) = wire.end(cx)
        {
            self.core.shared.tracker.spawn(wire.depart(context).finish());
        }
        self.loss = Loss::of(why);
        let mut inner = self.core.lock();
        inner.handle_lost(now(), self.connection);
        self.log_parked(&inner);
        inner.wake_application();
    }

    /// Does what is due. `true`: read what is readable first.
    fn keep_time(&mut self) -> bool {
        let now = now();
        let mut inner = self.core.lock();
        if inner.poll_timeout().is_none_or(|at| at > now) {
            return false;
        }
        let (stats, mut park) = (&self.core.shared.stats, false);
        while let Some(action) = inner.handle_timeout(now) {
            match action {
                Action::Probe { .. } => {}
                Action::Drain => return true,
                Action::NotListening => {
                    // A session loses nothing by a new connection; a plain peer would, and so would
                    // a large frame that is on its way.
                    park = matches!(inner.peer, Peer::Session(_))
                        && self.wire.as_ref().is_some_and(|wire| !wire.is_mid_frame());
                    Counters::add(&stats.not_listening, 1);
                }
                Action::Dead(evidence) => {
                    Counters::add(stats.dead(evidence), 1);
                    break;
                }
            }
        }
        if let Some(leave) = inner.poll_leave() {
            Counters::add(stats.left(leave), 1);
        }
        if !inner.delivers() {
            inner.wake_application();
        }
        let abort = inner.wants_abort();
        drop(inner);
        if park {
            self.drop_wire(Loss::NotListening);
        } else if abort {
            // At once: an order to drop it would wait behind the bytes that it does not take.
            self.drop_wire(Loss::Dead);
        }
        false
    }

    fn write(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) {
        let Some(wire) = &mut self.wire else { return };
        let (now, connection, stats) = (now(), self.connection, &self.core.shared.stats);
        let mut inner = self.core.lock();
        if inner.is_held(connection) {
            return;
        }
        let framing = inner.framing();
        let (mut wrote, mut messages, mut bytes) = (false, 0, 0);
        let outcome = wire.poll_write(cx, framing, || {
            let transmit = inner.poll_transmit(now, connection)?;
            wrote = true;
            if let Transmit::Message(message) = &transmit {
                messages += 1;
                bytes += message.len() as u64;
            }
            Some(transmit)
        });
        Counters::add(&stats.messages_out, messages);
        Counters::add(&stats.bytes_out, bytes);
        let lost = match outcome {
            Ok(Written::All) => {
                inner.handle_flushed(now, connection);
                wire.is_closing().then(|| Lost::Broken("closed by us".into()))
            }
            Ok(Written::Some) => {
                inner.handle_write_progress(now, connection);
                None
            }
            Ok(Written::None) => None,
            Err(Abort) => Some(Lost::Broken("dropped".into())),
        };
        if wrote {
            // Room in the buffers of a plain peer.
            inner.wake_senders();
        }
        drop(inner);
        match lost {
            Some(_) if self.wire.as_ref().is_some_and(|wire| !wire.is_closing()) => {
                self.drop_wire(Loss::Dead);
            }
            Some(lost) => self.lose(&lost, context, cx),
            None => {}
        }
    }

    /// Drops the connection without a closing handshake. The session parks.
    fn drop_wire(&mut self, why: Loss) {
        tracing::debug!(connection = self.connection.0, why = why.as_str(), "connection dropped");
        if let Some(wire) = self.wire.take() {
            wire.abort();
            Counters::subtract(&self.core.shared.stats.connections, 1);
        }
        self.loss = why;
        let mut inner = self.core.lock();
        inner.handle_lost(now(), self.connection);
        self.log_parked(&inner);
        inner.wake_application();
    }

    /// The session is over, and what was to be said is said.
    fn is_done(&self) -> bool {
        self.wire.is_none() && self.core.lock().is_closed()
    }

    fn bury(&mut self) {
        let stats = &self.core.shared.stats;
        let (incoming, change) = {
            let mut inner = self.core.lock();
            (inner.incoming.take(), inner.charge.set(0, 0))
        };
        self.core.shared.config.budget.apply(Part::Sessions, change);
        let left = u64::from(self.wire.take().is_some()) + u64::from(incoming.is_some());
        Counters::subtract(&stats.connections, left);
        Counters::subtract(&stats.sessions, 1);
        self.core.shared.unlist(self.slot);
        let expired = self.core.with_session(|session| {
            // A task that is dropped before its time (a runtime that shuts down) leaves no live name.
            session.evict();
            session.closed() == Some(Closed::Expired)
        });
        if expired == Some(true) {
            Counters::add(&stats.expired, 1);
        }
        self.log_end();
        self.core.shared.bury(&self.core);
    }
}

impl Core {
    /// Whether nothing more may be read before the level of the memory budget falls. Then the session is woken.
    fn must_wait_for_memory(self: &Arc<Self>, inner: &mut Inner, wire: &Wire) -> bool {
        let lets = |inner: &Inner, pressure: Option<Pressure>| {
            pressure.is_none_or(|pressure| inner.lets_read(pressure, wire.assembling()))
        };
        if lets(inner, self.shared.config.budget.pressure()) {
            return false;
        }
        let pressure = self.wait_for_memory(inner);
        !lets(inner, pressure)
    }
}

/// The two machines behind one set of verbs.
impl Inner {
    /// Charges for what is kept now, with these bytes of the connection.
    fn account(&mut self, sockets: u64) -> Option<Change> {
        let Held { unread, kept } = self.held();
        self.charge.set(unread + kept, sockets)
    }

    fn framing(&self) -> Framing {
        match &self.peer {
            Peer::Session(_) => Framing::Session,
            Peer::Plain(_) => Framing::Plain,
        }
    }

    fn wants_input(&self) -> bool {
        match &self.peer {
            // A session's peer is held back by its window.
            Peer::Session(_) => true,
            Peer::Plain(plain) => plain.wants_input(),
        }
    }

    /// The length of the payload, if it is the application's.
    fn handle_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: mainstay_proto::session::Message,
        stats: &Counters,
    ) -> Result<Option<usize>, SessionError> {
        match &mut self.peer {
            Peer::Plain(plain) => {
                let length = message.len();
                plain.handle_message(now, message);
                Ok(Some(length))
            }
            Peer::Session(session) => {
                let frame = Frame::decode(message)?;
                let (length, round_trip) = match &frame {
                    Frame::Message(message) => (Some(message.len()), None),
                    Frame::Control(Control::Pong(beat)) => {
                        (None, session.round_trip(now, connection, beat.nonce))
                    }
                    _ => (None, None),
                };
                session.handle_frame(now, connection, frame)?;
                round_trip.into_iter().for_each(|sample| stats.rtt(sample));
                Ok(length)
            }
        }
    }

    /// New credentials, and who judges them. Where nobody does they are refused.
    fn poll_auth(&mut self) -> Option<Asked> {
        let Peer::Session(session) = &mut self.peer else { return None };
        let (connection, credentials) = session.poll_auth()?;
        let judge = self.extras.as_ref().and_then(|extras| extras.authenticate.clone());
        let Some(authenticate) = judge else {
            session.handle_verdict(connection, None);
            return None;
        };
        Some(Asked { connection, credentials, authenticate })
    }

    fn handle_pong(&mut self, now: Instant, connection: ConnectionId, payload: [u8; 8], stats: &Counters) {
        match &mut self.peer {
            Peer::Session(session) => session.handle_bytes(now, connection),
            Peer::Plain(plain) => {
                if let Some(rtt) = plain.handle_pong(now, &payload) {
                    stats.rtt(rtt);
                }
            }
        }
    }

    fn handle_bytes(&mut self, now: Instant, connection: ConnectionId) {
        match &mut self.peer {
            Peer::Session(session) => session.handle_bytes(now, connection),
            Peer::Plain(plain) => plain.handle_bytes(now),
        }
    }

    fn handle_flushed(&mut self, now: Instant, connection: ConnectionId) {
        match &mut self.peer {
            Peer::Session(session) => session.handle_flushed(now, connection),
            Peer::Plain(plain) => plain.handle_flushed(now),
        }
    }

    fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        match &mut self.peer {
            Peer::Session(session) => session.handle_write_progress(now, connection),
            Peer::Plain(plain) => plain.handle_write_progress(now),
        }
    }

    /// A session outlives its connection, and is ended by END alone.
    fn handle_peer_close(&mut self, code: Option<CloseCode>, reason: &str) {
        if let Peer::Plain(plain) = &mut self.peer {
            plain.handle_peer_close(PeerClose { code, reason: reason.to_owned() });
        }
    }

    /// A session's connection is replaced; a plain client has no other.
    fn handle_violation(&mut self, why: &Lost) {
        let Peer::Plain(plain) = &mut self.peer else { return };
        match why {
            Lost::TooBig { .. } => plain.handle_violation(CloseCode::TOO_BIG, "a message is too big"),
            Lost::Broken(failure) => plain.handle_violation(CloseCode::PROTOCOL_ERROR, failure.message()),
            _ => {}
        }
    }

    fn handle_lost(&mut self, now: Instant, connection: ConnectionId) {
        self.act.take_if(|act| act.concerns(connection));
        match &mut self.peer {
            Peer::Session(session) => session.handle_lost(now, connection),
            Peer::Plain(plain) => plain.handle_lost(),
        }
    }

    fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        match &mut self.peer {
            Peer::Session(session) => session.poll_transmit(now, connection),
            Peer::Plain(plain) => plain.poll_transmit(),
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        match &mut self.peer {
            Peer::Session(session) => session.handle_timeout(now),
            Peer::Plain(plain) => plain.handle_timeout(now),
        }
    }

    fn poll_leave(&mut self) -> Option<Leave> {
        match &mut self.peer {
            Peer::Session(session) => session.poll_leave(),
            Peer::Plain(plain) => plain.poll_leave(),
        }
    }

    /// Nothing is due on a connection that is held.
    fn poll_timeout(&self) -> Option<Instant> {
        if let Some(act) = &self.act {
            return Some(act.at);
        }
        match &self.peer {
            Peer::Session(session) => session.poll_timeout(),
            Peer::Plain(plain) => plain.poll_timeout(),
        }
    }

    fn wants_abort(&self) -> bool {
        match &self.peer {
            Peer::Session(session) => session.wants_abort(),
            Peer::Plain(plain) => plain.wants_abort(),
        }
    }

    fn is_closed(&self) -> bool {
        match &self.peer {
            Peer::Session(session) => session.closed().is_some(),
            Peer::Plain(plain) => plain.is_closed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use mainstay_proto::session::{Message, PlainSession};
    use mainstay_proto::ws::{CloseCode, Connection, Limits, Role};
    use tokio::time::Instant;

    use super::*;
    use crate::server::core::Core;
    use crate::server::{PeerInfo, Server};
    use crate::transport::Transport;

    async fn echo(mut session: crate::Session) {
        while let Some(message) = session.recv().await {
            if session.send(message).await.is_err() {
                return;
            }
        }
    }

    fn size_of_task<F: Future>(_: impl Fn(crate::Session) -> F) -> usize {
        size_of::<SessionTask<F>>()
    }

    #[test]
    fn a_connection_at_rest_is_a_few_hundred_bytes() {
        // All that a plain connection holds while it waits: its task with the handler inside, what handles
        // share, the machine. Worker, list and allocator add some 80 bytes.
        let (task, core) = (size_of_task(echo), size_of::<Core>());
        let machine = size_of::<PlainSession>();
        assert!(task + core + machine <= 640, "{task} + {core} + {machine}");
        assert!(size_of::<Connected>() <= 168, "{}", size_of::<Connected>());
    }

    /// How long the task of a plain connection whose peer reads nothing goes on after the handler is done.
    async fn lives_for(closes: bool) -> Duration {
        let shared = Arc::clone(&Server::default().shared);
        let (ours, _theirs) = tokio::io::duplex(16);
        let codec = Connection::new(Role::Server, Limits::default(), None, [0; 32]);
        let wire = Wire::new(Transport::other(ours), codec, Bytes::new());
        let mut plain = PlainSession::new(now(), Arc::clone(&shared.sessions), 1);
        plain.send(Message::text("x".repeat(1000))).unwrap();
        if closes {
            plain.close(now(), CloseCode::NORMAL, "");
        }
        let facts =
            PeerInfo { address: None, subprotocol: None, resumable: false, principal: Box::default() };
        let mailbox = crate::worker::mailbox();
        let core = Core::new(Arc::clone(&shared), mailbox, facts, Peer::Plain(Box::new(plain)));
        let start = Instant::now();
        SessionTask::begin(core, ConnectionId(1), wire, async |_| {});
        shared.tracker.close();
        shared.tracker.wait().await;
        start.elapsed()
    }

    /// A plain peer that begins a message of 1 MiB and stops half-way, at a server with this budget.
    async fn half_a_message(budget: &crate::Budget) -> (Arc<crate::server::Shared>, tokio::io::DuplexStream) {
        use tokio::io::AsyncWriteExt;
        let config = crate::server::Config { budget: budget.clone(), ..crate::server::Config::default() };
        let shared = Arc::clone(&Server::new(config).shared);
        let (ours, mut peer) = tokio::io::duplex(1 << 20);
        let codec = Connection::new(Role::Server, Limits::default(), None, [0; 32]);
        let wire = Wire::new(Transport::other(ours), codec, Bytes::new());
        let plain = PlainSession::new(now(), Arc::clone(&shared.sessions), 1);
        let facts =
            PeerInfo { address: None, subprotocol: None, resumable: false, principal: Box::default() };
        let mailbox = crate::worker::mailbox();
        let core = Core::new(Arc::clone(&shared), mailbox, facts, Peer::Plain(Box::new(plain)));
        SessionTask::begin(
            core,
            ConnectionId(1),
            wire,
            async |mut session| while session.recv().await.is_some() {},
        );
        let header = [&[0x82, 0x80 | 127][..], &(1_u64 << 20).to_be_bytes(), &[0; 4]].concat();
        peer.write_all(&header).await.unwrap();
        peer.write_all(&vec![0; 900 << 10]).await.unwrap();
        (shared, peer)
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_message_is_charged_and_dropped_where_all_memory_is_used_for_ten_seconds() {
        use tokio::io::AsyncReadExt;
        let budget = crate::Budget::new(256 << 10);
        let (shared, mut peer) = half_a_message(&budget).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let held = budget.used();
        assert!((256 << 10..600 << 10).contains(&held), "it is read to there and no further: {held}");
        assert_eq!(budget.level(), crate::Level::Full);
        let start = Instant::now();
        let mut said = Vec::new();
        while !said.ends_with(b"out of memory") {
            said.push(peer.read_u8().await.unwrap());
        }
        assert!((8..=10).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        // Its Close, with 1013; then it is gone, and what it kept with it.
        assert!(said.windows(2).any(|code| code == 1013_u16.to_be_bytes()));
        shared.tracker.close();
        shared.tracker.wait().await;
        assert_eq!((budget.used(), budget.level()), (0, crate::Level::Calm));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_dropped_ten_seconds_after_the_close() {
        assert_eq!(lives_for(true).await.as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_dropped_at_the_verdict() {
        // Up to an interval until the first probe, and four deadlines of 5 s in which it cannot leave.
        assert!(lives_for(false).await < Duration::from_secs(60));
    }
}
