//! A session's task: its connection, its deadline and its handler, which its [`worker`](crate::worker) polls together.
//!
//! One poll asks four questions in one order: what arrived, what is due, what does the handler do about it, what is to be
//! written. A poll does a bounded amount of work. The handler never runs inside the read path, so a handler that waits does
//! not look like a dead peer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;

use mainstay_proto::connect::{Lost, Mode};
use mainstay_proto::heartbeat::Action;
use mainstay_proto::session::{Closed, ConnectionId, End, EndCause, SessionError, Transmit};
use mainstay_proto::timeline::{Attach, Event, Loss};
use mainstay_proto::ws::{CloseCode, CloseFrame};

use pin_project_lite::pin_project;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;

use super::auth::{Authenticate, judge};
use super::core::CoreRef;
use super::fault::Fault;
use super::inner::{Incoming, Inner, KeptUnread, Origin};
use super::peer::TOO_FAST;
use super::session::Session;
use super::stats::Counters;
use crate::budget::Part;
use crate::clock::{self, now};
use crate::driver::{Abort, Arrived, Reading, Wire, Written};
use crate::worker::{Signal, Task, TaskContext, TaskPoll};

/// Reads for each poll.
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
    /// Its slot in the list of all sessions.
    slot: u32,
    /// Why the session lost its last connection; `None`: it has its first one.
    loss: Option<Loss>,
    _token: TaskTrackerToken,
}

impl<F: Future<Output = ()> + Send + 'static> SessionTask<F> {
    /// Spawns the session at its worker; `None`: its client has no connection. If `handler` panics, the session is buried
    /// instead.
    pub(super) fn begin(
        core: CoreRef,
        connection: ConnectionId,
        wire: Option<Wire>,
        handler: impl FnOnce(Session) -> F,
    ) {
        Counters::add(&core.shared.stats.sessions, 1);
        let connected = Connected {
            connection,
            wire,
            slot: core.shared.list(&core),
            loss: None,
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

    fn poll_task(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll {
        let this = self.project();
        let (mut handler, connected) = (this.handler, this.connected);
        let waker = Waker::from(Arc::clone(&connected.core));
        let cx = &mut Context::from_waker(&waker);
        let span = connected.begin_poll(context, cx);
        let _inside = span.as_ref().map(Span::enter);
        for _ in 0..ROUNDS {
            let more = connected.read(context, cx);
            if connected.keep_time() {
                // This process was paused. First the worker reports what became readable and the socket accepts what it
                // can; then the heartbeat judges.
                connected.write(context, cx);
                return TaskPoll::Again;
            }
            if connected.core.signal.take_wake() {
                if handler.as_mut().as_pin_mut().is_some_and(|handler| handler.poll(cx).is_ready()) {
                    // The drop of its `Session` ends the session in order.
                    handler.set(None);
                    if cfg!(feature = "cluster") {
                        connected.core.lock().note_returned();
                    }
                }
                // The handler may have run for long.
                clock::begin_poll();
            }
            connected.core.signal.end_poll();
            connected.write(context, cx);
            if handler.is_none() && connected.is_done() {
                return TaskPoll::Done;
            }
            if !more {
                return connected.rest();
            }
        }
        connected.yield_now()
    }
}

impl Connected {
    /// Takes over a connection that another task attached, which fenced the one before, and notes what the worker reports
    /// of the socket. Returns the span of the epoch.
    fn begin_poll(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) -> Option<Span> {
        let (incoming, has_fault, owes_welcome, leaves, span) = {
            let mut inner = self.core.lock();
            let owes_welcome = inner.peer.owes_welcome();
            let leaves = cfg!(feature = "cluster") && inner.poll_disconnect();
            (inner.incoming.take(), inner.fault_at().is_some(), owes_welcome, leaves, inner.span())
        };
        if let Some(incoming) = incoming {
            let Incoming { connection, wire, fenced, from } = *incoming;
            self.connection = connection;
            let how = if fenced.is_some() { Attach::Replaced } else { Attach::Resumed };
            self.core.note_attached(from.address, how);
            self.log_return(&from, fenced.is_some());
            if let Some(mut old) = self.wire.replace(wire) {
                if let Some(fenced) = fenced {
                    old.close(&fenced);
                }
                self.core.shared.tracker.spawn(old.deregister(context).finish());
                Counters::subtract(&self.core.shared.stats.connections, 1);
            }
        }
        if let Some(Err(error)) = self.wire.as_mut().map(|wire| wire.register(context)) {
            self.lose(&Lost::Broken(error.into()), None, context, cx);
        }
        if has_fault {
            self.apply_fault();
        }
        if owes_welcome {
            self.write(context, cx);
        }
        if leaves {
            self.disconnect(context, cx);
        }
        span
    }

    /// Gives up the connection of a session that leaves: its Close is written, within 5 s.
    fn disconnect(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) {
        self.write(context, cx);
        if let Some(wire) = self.wire.take() {
            // Earlier bytes wait for the socket.
            Counters::subtract(&self.core.shared.stats.connections, 1);
            self.core.shared.tracker.spawn(wire.deregister(context).finish());
        }
    }

    fn log_begin(&self) {
        let info = &self.core.info;
        if !self.core.lock().peer.is_session() {
            self.note(Event::Attached { epoch: 1, address: info.address, how: Attach::New });
        }
        let session = self.core.lock().peer.id().map(tracing::field::display);
        let peer = info.address.map(tracing::field::display);
        tracing::debug!(session, peer, subprotocol = info.shown_subprotocol().as_deref(), "session begins");
    }

    /// Notes an event of this client.
    fn note(&self, event: Event) {
        let timeline = &self.core.shared.timeline;
        if timeline.is_on() {
            let name = self.core.name_of(&self.core.lock().peer, self.slot);
            timeline.note(Some(name), event);
        }
    }

    /// Notes that the connection is lost, unless that is how the session ends: its end is noted too.
    #[cold]
    fn note_lost(&self, inner: &Inner, why: Loss) {
        let is_end = match inner.peer.session() {
            Some(session) => session.closed().is_some(),
            None => matches!(why, Loss::Closed(_) | Loss::ByUs),
        };
        let timeline = &self.core.shared.timeline;
        if timeline.is_on() && !is_end {
            let epoch = inner.peer.epoch().unwrap_or(1);
            let name = self.core.name_of(&inner.peer, self.slot);
            timeline.note(Some(name), Event::Lost { epoch, why });
        }
    }

    /// Notes how the session ended.
    #[cold]
    fn note_end(&self, inner: &Inner) {
        let timeline = &self.core.shared.timeline;
        if timeline.is_on()
            && let Some(End { cause, code, .. }) = inner.peer.end()
        {
            timeline.note(Some(self.core.name_of(&inner.peer, self.slot)), Event::Ended { cause, code });
        }
    }

    /// Logs one line about a session that waits for its client.
    fn log_parked(&self, inner: &Inner) {
        if let Some(session) = inner.peer.session().filter(|session| session.closed().is_none()) {
            let (id, epoch) = (session.id(), session.epoch());
            let cause = self.loss.map(tracing::field::display);
            tracing::debug!(session = %id, epoch, connection = self.connection.0, cause, "session parked");
        }
    }

    /// Logs one line about a session that is over: above `debug` hostile clients would flood the log.
    fn log_end(&self) {
        let inner = self.core.lock();
        let Some(End { cause, code, .. }) = inner.peer.end() else { return };
        let (id, epoch) = (inner.peer.id(), inner.peer.epoch());
        drop(inner);
        let (session, close_code) = (id.map(tracing::field::display), code.map(u16::from));
        if cause == EndCause::Panicked {
            tracing::info!(session, epoch, close_code, cause = cause.as_str(), "session ended");
        } else {
            tracing::debug!(session, epoch, close_code, cause = cause.as_str(), "session ended");
        }
    }

    /// Logs one line about a client that is back.
    fn log_return(&self, from: &Origin, was_there: bool) {
        if !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        let cause = match self.loss {
            _ if was_there => "a newer connection took its place".to_owned(),
            Some(loss) => format!("the client {loss}"),
            None => "none was lost".to_owned(),
        };
        let known = self.core.with_session(|session| (session.id(), session.epoch()));
        let Some((session, epoch)) = known else { return };
        let peer = from.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let (route, path) = from.route_and_path();
        tracing::info!(%session, peer, route, path, epoch, cause, "session resumed");
    }

    /// Applies a fault that is due on the connection.
    fn apply_fault(&mut self) {
        let hung_up = self.wire.as_ref().is_none_or(Wire::has_ended);
        let fault = self.core.lock().take_fault(now(), self.connection, hung_up);
        if fault == Some(Fault::Cut) {
            self.drop_wire(Loss::Injected);
        }
    }

    /// Ends a poll: returns when there is something to do again.
    fn rest(&mut self) -> TaskPoll {
        let (mut inner, sockets) = (self.core.lock(), self.held());
        let is_over = inner.peer.poll_closed();
        inner.settle_receipts();
        let change = inner.account(sockets);
        let wakes = self.core.signal.is_woken() || inner.fault_at().is_some_and(|at| at <= now());
        let until = inner.poll_timeout();
        drop(inner);
        self.core.shared.config.budget.apply(Part::Sessions, change);
        if is_over {
            self.note_end(&self.core.lock());
            // Its handler may go on for long: meanwhile the session occupies no place in the registry.
            self.core.shared.bury(&self.core);
        }
        if wakes { TaskPoll::Again } else { TaskPoll::Until(until) }
    }

    /// Ends a poll that did as much as it may: there is more to do.
    fn yield_now(&mut self) -> TaskPoll {
        self.rest();
        TaskPoll::Again
    }

    /// Bytes that the connection keeps.
    fn held(&self) -> u64 {
        let mode = if self.core.info.resumable { Mode::Session } else { Mode::Plain };
        self.wire.as_ref().map_or(0, |wire| wire.held(mode))
    }

    /// Reads once. `true`: there may be more.
    fn read(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) -> bool {
        let Some(wire) = self.wire.as_mut().filter(|wire| wire.may_read()) else { return false };
        let (now, connection, stats) = (now(), self.connection, &self.core.shared.stats);
        let mut inner = self.core.lock();
        match inner.kept_unread(now, connection) {
            None => {}
            Some(KeptUnread::Fault) => return false,
            Some(KeptUnread::TooFast) => {
                inner.peer.handle_bytes(now, connection);
                return false;
            }
        }
        if !inner.peer.wants_input() || self.core.must_wait_for_memory(&mut inner, wire) {
            // Unread bytes are this server's doing, and no evidence against the peer.
            inner.peer.handle_bytes(now, connection);
            return false;
        }
        let (mut closed, mut broken) = (None, None);
        let (mut messages, mut bytes, most) = (0, 0, inner.messages_per_read());
        let reading = wire.poll_read(cx, |arrived| {
            match arrived {
                Arrived::Message(message) => match inner.peer.handle_message(now, connection, message, stats)
                {
                    Ok(None) => {}
                    Ok(Some(length)) => {
                        messages += 1;
                        bytes += length as u64;
                        // A few compressed bytes may be many messages. The rest waits in the buffer.
                        return messages < most && inner.peer.wants_input();
                    }
                    Err(error) => {
                        broken = Some(error);
                        return false;
                    }
                },
                Arrived::Pong(payload) => inner.peer.handle_pong(now, connection, payload, stats),
                Arrived::Bytes => inner.peer.handle_bytes(now, connection),
                Arrived::Close(frame) => {
                    let code = frame.as_ref().map(|frame| frame.code);
                    let reason = frame.map(|frame| frame.reason).unwrap_or_default();
                    inner.peer.handle_peer_close(code, &reason);
                    closed = Some(Lost::Closed { code, reason });
                }
            }
            true
        });
        Counters::add(&stats.messages_in, messages);
        Counters::add(&stats.bytes_in, bytes);
        let is_too_fast = inner.is_too_fast(now, messages, bytes, stats);
        if let Some(asked) = poll_auth(&mut inner) {
            judge_anew(&self.core, asked);
        }
        if closed.is_none() && broken.is_none() && !is_too_fast {
            match reading {
                Reading::Idle => return false,
                Reading::More => {
                    inner.wake_application();
                    return wire.may_read();
                }
                Reading::Ended(_) => {}
            }
        }
        let (lost, why) = why_lost(&self.core, &mut inner, wire, (reading, closed, broken));
        drop(inner);
        self.lose(&lost, why, context, cx);
        false
    }

    /// Takes the connection from the session; what is queued on it is still written, best effort. `known`: the evidence, where
    /// it is not that of `why`.
    fn lose(&mut self, why: &Lost, known: Option<Loss>, context: &TaskContext<'_>, cx: &mut Context<'_>) {
        tracing::debug!(connection = self.connection.0, ?why, "connection lost");
        let Some(wire) = self.wire.take() else { return };
        Counters::subtract(&self.core.shared.stats.connections, 1);
        if wire.is_closing()
            && let Some(wire) = wire.end(cx)
        {
            self.core.shared.tracker.spawn(wire.deregister(context).finish());
        }
        let why = known.unwrap_or_else(|| Loss::of(why));
        self.loss = Some(why);
        let mut inner = self.core.lock();
        self.note_lost(&inner, why);
        inner.handle_lost(now(), self.connection);
        self.log_parked(&inner);
        inner.wake_application();
    }

    /// Handles deadlines. Returns `true` if readable bytes must be read first.
    fn keep_time(&mut self) -> bool {
        let now = now();
        let mut inner = self.core.lock();
        if inner.poll_timeout().is_none_or(|at| at > now) {
            return false;
        }
        let (stats, mut park) = (&self.core.shared.stats, false);
        let mut evidence = None;
        while let Some(action) = inner.peer.handle_timeout(now) {
            match action {
                Action::Probe { .. } => {}
                Action::Drain => return true,
                Action::NotListening => {
                    // A session loses nothing by a new connection; a plain peer would, and so would a large frame
                    // that is on its way.
                    park = inner.peer.is_session()
                        && self.wire.as_ref().is_some_and(|wire| !wire.is_mid_frame());
                    Counters::add(&stats.not_listening, 1);
                }
                Action::Dead(found) => {
                    Counters::add(stats.dead(found), 1);
                    evidence = Some(found);
                    break;
                }
            }
        }
        if let Some(leave) = inner.peer.poll_leave() {
            Counters::add(stats.left(leave), 1);
            let name = self.core.name_of(&inner.peer, self.slot);
            self.core.shared.timeline.note(Some(name), Event::AskedToLeave(leave));
        }
        if !inner.peer.delivers() {
            inner.wake_application();
        }
        let abort = inner.peer.wants_abort();
        drop(inner);
        if park {
            self.drop_wire(Loss::NotListening);
        } else if abort {
            // At once: a queued order would wait behind the bytes that the peer does not accept.
            self.drop_wire(evidence.map_or(Loss::ByUs, Loss::Dead));
        }
        false
    }

    fn write(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) {
        let Some(wire) = &mut self.wire else { return };
        let (now, connection, stats) = (now(), self.connection, &self.core.shared.stats);
        let mut inner = self.core.lock();
        if inner.is_stalled(connection) {
            return;
        }
        let mode = inner.peer.mode();
        let (mut wrote, mut messages, mut bytes) = (false, 0, 0);
        let outcome = wire.poll_write(cx, mode, || {
            let transmit = inner.peer.poll_transmit(now, connection)?;
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
                inner.peer.handle_flushed(now, connection);
                wire.is_closing().then(|| Lost::Broken("closed by us".into()))
            }
            Ok(Written::Some) => {
                inner.peer.handle_write_progress(now, connection);
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
                self.drop_wire(Loss::ByUs);
            }
            Some(lost) => self.lose(&lost, Some(Loss::ByUs), context, cx),
            None => {}
        }
    }

    /// Drops the connection without a closing handshake. The session parks.
    fn drop_wire(&mut self, why: Loss) {
        tracing::debug!(connection = self.connection.0, %why, "connection dropped");
        if let Some(wire) = self.wire.take() {
            wire.abort();
            Counters::subtract(&self.core.shared.stats.connections, 1);
        }
        self.loss = Some(why);
        let mut inner = self.core.lock();
        self.note_lost(&inner, why);
        inner.handle_lost(now(), self.connection);
        self.log_parked(&inner);
        inner.wake_application();
    }

    /// Whether the session is over and its connection gone.
    fn is_done(&self) -> bool {
        self.wire.is_none() && self.core.lock().peer.is_closed()
    }

    fn bury(&mut self) {
        let stats = &self.core.shared.stats;
        let (incoming, change) = {
            let mut inner = self.core.lock();
            (inner.incoming.take(), inner.charge.set(0, 0))
        };
        self.core.shared.config.budget.apply(Part::Sessions, change);
        if cfg!(feature = "cluster") {
            self.core.lock().note_returned();
        }
        let left = u64::from(self.wire.take().is_some()) + u64::from(incoming.is_some());
        Counters::subtract(&stats.connections, left);
        Counters::subtract(&stats.sessions, 1);
        self.core.shared.unlist(self.slot);
        let expired = self.core.with_session(|session| {
            // A task that is dropped early, by a runtime that shuts down, leaves no live name.
            session.evict();
            session.closed() == Some(Closed::Expired)
        });
        if expired == Some(true) {
            Counters::add(&stats.expired, 1);
        }
        {
            let mut inner = self.core.lock();
            inner.settle_receipts();
            // Unless it was noted when it happened, before the handler returned.
            if !inner.peer.is_session() || inner.peer.poll_closed() {
                self.note_end(&inner);
            }
        }
        self.log_end();
        self.core.shared.bury(&self.core);
    }
}

/// How the last read of a connection ended, and what came in it: the peer's Close, or what no message may be.
type LastRead = (Reading, Option<Lost>, Option<SessionError>);

/// Returns why a connection is lost that is not read any more, with the evidence where `Lost` does not say it. Notes a violation
/// of the client, and writes the Close that answers it.
#[cold]
fn why_lost(core: &CoreRef, inner: &mut Inner, wire: &mut Wire, last: LastRead) -> (Lost, Option<Loss>) {
    let stats = &core.shared.stats;
    match last {
        (_, _, Some(error)) => {
            tracing::debug!(%error, "client broke the session protocol");
            Counters::add(&stats.session_errors, 1);
            if let SessionError::MessageTooBig { .. } = error {
                core.shared.log_too_big(&core.info, inner.peer.max_message());
            }
            wire.close(&CloseFrame { code: error.close_code(), reason: error.to_string() });
            (Lost::Broken(error.to_string().into()), Some(Loss::Violation))
        }
        (_, Some(closed), None) => (closed, None),
        (Reading::Ended(lost), None, None) => {
            let why = wire.is_closing().then_some(Loss::Violation);
            if wire.is_closing() {
                Counters::add(&stats.protocol_errors, 1);
                inner.peer.handle_violation(&lost);
            }
            if let Lost::TooBig { .. } = lost {
                core.shared.log_too_big(&core.info, inner.peer.max_message());
            }
            (lost, why)
        }
        // Nothing is wrong with it but that it came too fast.
        (Reading::Idle | Reading::More, None, None) => {
            wire.close(&CloseFrame { code: CloseCode::POLICY, reason: TOO_FAST.into() });
            inner.peer.handle_too_fast();
            (Lost::Broken(TOO_FAST.into()), Some(Loss::Violation))
        }
    }
}

// ---- credentials on a live session ----------------------------------------------------------------------

/// Credentials that came on a live session.
struct Asked {
    connection: ConnectionId,
    credentials: Bytes,
    authenticate: Authenticate,
}

/// Returns new credentials and their judge. Without a judge they are refused.
fn poll_auth(inner: &mut Inner) -> Option<Asked> {
    let session = inner.peer.session_mut()?;
    let (connection, credentials) = session.poll_auth()?;
    let judge = inner.extras.as_ref().and_then(|extras| extras.authenticate.clone());
    let Some(authenticate) = judge else {
        session.handle_verdict(now(), connection, None);
        return None;
    };
    Some(Asked { connection, credentials, authenticate })
}

/// Judges new credentials in a tokio task beside the session, which goes on.
fn judge_anew(core: &CoreRef, asked: Asked) {
    let shared = Arc::clone(&core.shared);
    let (core, deadline) = (Arc::clone(core), tokio::time::Instant::now() + shared.config.opening_deadline);
    let Asked { connection, credentials, authenticate } = asked;
    shared.tracker.spawn(async move {
        let identity = judge(&authenticate, Some(credentials), deadline).await.ok();
        let proof = identity.as_ref().map(|identity| (&*identity.principal, identity.expiry()));
        let accepted = core.with_session(|session| session.handle_verdict(now(), connection, proof));
        if accepted != Some(true) {
            tracing::info!(connection = connection.0, "new credentials refused");
        }
        core.signal.ask();
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use mainstay_proto::session::{Message, PlainSession};
    use mainstay_proto::ws::{CloseCode, Connection, Limits, Role};
    use tokio::time::Instant;

    use super::*;
    use crate::Server;
    use crate::server::PeerInfo;
    use crate::server::core::Core;
    use crate::server::peer::Peer;
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
        // All that a plain connection holds while it waits: its task with the handler inside, the core that handles
        // share, the machine. Worker, list and allocator add some 80 bytes.
        let (task, core) = (size_of_task(echo), size_of::<Core>());
        let machine = size_of::<PlainSession>();
        // The newest time that the machine was given, for an assertion.
        let assertions = if cfg!(debug_assertions) { 16 } else { 0 };
        assert!(task + core + machine <= 640 + assertions, "{task} + {core} + {machine}");
        assert!(size_of::<Connected>() <= 168, "{}", size_of::<Connected>());
        assert!(size_of::<crate::server::PeerInfo>() <= 72, "{}", size_of::<crate::server::PeerInfo>());
    }

    /// How long the task of a plain connection whose peer reads nothing lives on after its handler.
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
        let mailbox = crate::worker::mailbox();
        let core =
            Core::new(Arc::clone(&shared), mailbox, PeerInfo::new(None), Peer::Plain(Box::new(plain)), None);
        let start = Instant::now();
        SessionTask::begin(core, ConnectionId(1), Some(wire), async |_| {});
        shared.tracker.close();
        shared.tracker.wait().await;
        start.elapsed()
    }

    /// A plain peer that begins a message of 1 MiB and stops half-way, at a server with this budget.
    async fn half_a_message(
        budget: &crate::Budget,
    ) -> (Arc<crate::server::core::Shared>, tokio::io::DuplexStream) {
        use tokio::io::AsyncWriteExt;
        let config = crate::server::Config::new().budget(budget.clone());
        let shared = Arc::clone(&Server::new(config).shared);
        let (ours, mut peer) = tokio::io::duplex(1 << 20);
        let codec = Connection::new(Role::Server, Limits::default(), None, [0; 32]);
        let wire = Wire::new(Transport::other(ours), codec, Bytes::new());
        let plain = PlainSession::new(now(), Arc::clone(&shared.sessions), 1);
        let mailbox = crate::worker::mailbox();
        let core =
            Core::new(Arc::clone(&shared), mailbox, PeerInfo::new(None), Peer::Plain(Box::new(plain)), None);
        SessionTask::begin(
            core,
            ConnectionId(1),
            Some(wire),
            async |mut session| while session.recv().await.is_some() {},
        );
        let header = [&[0x82, 0x80 | 127][..], &(1_u64 << 20).to_be_bytes(), &[0; 4]].concat();
        peer.write_all(&header).await.unwrap();
        peer.write_all(&vec![0; 900 << 10]).await.unwrap();
        (shared, peer)
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_message_is_charged_and_dropped_when_all_memory_is_used_for_ten_seconds() {
        use tokio::io::AsyncReadExt;
        let budget = crate::Budget::new(256 << 10);
        let (shared, mut peer) = half_a_message(&budget).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let held = budget.used();
        assert!((256 << 10..600 << 10).contains(&held), "it is read to there and no further: {held}");
        assert_eq!(budget.level(), crate::Level::Full);
        let start = Instant::now();
        let mut received = Vec::new();
        while !received.ends_with(b"out of memory") {
            received.push(peer.read_u8().await.unwrap());
        }
        assert!((8..=10).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        // Its Close, with 1013; then the connection is gone, with what it kept.
        assert!(received.windows(2).any(|code| code == 1013_u16.to_be_bytes()));
        shared.tracker.close();
        shared.tracker.wait().await;
        assert_eq!((budget.used(), budget.level()), (0, crate::Level::Calm));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_accepts_nothing_is_dropped_ten_seconds_after_the_close() {
        assert_eq!(lives_for(true).await.as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_accepts_nothing_is_dropped_at_the_verdict() {
        // Up to an interval until the first probe, and four deadlines of 5 s in which it cannot leave.
        assert!(lives_for(false).await < Duration::from_secs(60));
    }
}
