//! The client's task: dials, reads, keeps time and writes, as its machine says. It has its turn at the
//! [`worker`](crate::worker) that the client lives with.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use mainstay_proto::connect::{Command, Lost, Mode};
use mainstay_proto::failure::Failure;
use mainstay_proto::session::{ConnectionId, SessionError, Transmit};
use mainstay_proto::ws::CloseFrame;

use super::builder::{Request, Target};
use super::core::{Core, Inner};
use super::dial::{Failed, Opened, dial, greet};
use crate::budget::{Change, Part};
use crate::clock::now;
use crate::driver::{Abort, Arrived, Framing, Reading, Wire, Written};
use crate::worker::{Signal, Task, TaskContext, TaskPoll};

/// Why a connection ended whose memory was needed.
const NO_MEMORY: &str = "the memory budget is used up";
/// Turns before others have theirs.
const ROUNDS: usize = 4;

type Dialling = Pin<Box<dyn Future<Output = Result<Opened, Failed>> + Send>>;

/// See the module.
pub(super) struct ClientTask {
    core: Arc<Core>,
    target: Target,
    wires: Vec<Open>,
    dials: Vec<(ConnectionId, Dialling)>,
}

struct Open {
    connection: ConnectionId,
    wire: Wire,
    framing: Framing,
    /// What an ended session still has to say here.
    last_words: VecDeque<Transmit>,
    /// Its socket reports a peer whose machine acknowledges nothing: until the first Pong.
    is_guarded: bool,
}

impl ClientTask {
    /// From here on the client lives with its worker. A connection that is `ready` is the answer to the first dial.
    pub(super) fn begin(core: Arc<Core>, target: Target, ready: Option<Opened>) {
        let mut task = Self { core: Arc::clone(&core), target, wires: Vec::new(), dials: Vec::new() };
        if let Some(opened) = ready {
            let mut inner = core.lock();
            inner.machine.handle_timeout(now());
            if let Some(Command::Dial(connection)) = inner.machine.poll_command() {
                // The first connection's is the one that later ones have to agree on.
                let _ = inner.machine.check_subprotocol(opened.mode, opened.subprotocol.as_deref());
                task.handle_opened(&mut inner, connection, opened);
                inner.settle();
            }
        }
        core.signal.spawn(Box::pin(task));
    }

    fn handle_opened(&mut self, inner: &mut Inner, connection: ConnectionId, opened: Opened) {
        let Opened { wire, mode, subprotocol, credentials, guard, response, greeting } = opened;
        let framing = if mode == Mode::Session { Framing::Session } else { Framing::Plain };
        (inner.subprotocol, inner.rejection, inner.response) = (subprotocol, None, response);
        let is_guarded = guard.is_some();
        self.wires.push(Open { connection, wire, framing, last_words: VecDeque::new(), is_guarded });
        if let Some(credentials) = credentials {
            inner.machine.set_credentials(credentials);
        }
        inner.machine.handle_opened(now(), connection, mode);
        inner.machine.greet(connection, greeting);
        if let Some(within) = guard {
            inner.machine.handle_guarded(connection, within);
        }
    }
}

impl Task for ClientTask {
    fn signal(&self) -> &Signal {
        &self.core.signal
    }

    fn turn(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll {
        let this = self.get_mut();
        let waker = Waker::from(Arc::clone(&this.core));
        let cx = &mut Context::from_waker(&waker);
        let mut stirred = this.arrive(context);
        for _ in 0..ROUNDS {
            if this.core.signal.take_poll() {
                stirred |= this.poll_dials(cx, context);
            }
            let more = this.read(cx, &mut stirred);
            match this.keep_time() {
                Some(true) => {
                    // Before a verdict the socket says what it takes.
                    stirred |= this.obey();
                    stirred |= this.write(cx);
                    this.finish(cx, stirred);
                    return TaskPoll::Again;
                }
                acted => stirred |= acted.is_some(),
            }
            stirred |= this.obey();
            this.core.signal.end_turn();
            stirred |= this.write(cx);
            if this.finish(cx, stirred) {
                return TaskPoll::Done;
            }
            if !more {
                return this.rest();
            }
        }
        TaskPoll::Again
    }
}

impl ClientTask {
    /// Hears what the worker says of the connections. `true`: one is lost by that.
    fn arrive(&mut self, context: &TaskContext<'_>) -> bool {
        let mut lost = Vec::new();
        let gives_up = self.core.gives_up.load(Ordering::Relaxed);
        if gives_up {
            self.core.gives_up.store(false, Ordering::Relaxed);
        }
        for open in &mut self.wires {
            if gives_up {
                lost.push((open.connection, Lost::Broken(NO_MEMORY.into())));
            } else if let Err(error) = open.wire.arrive(context) {
                lost.push((open.connection, Lost::Broken(error.into())));
            }
        }
        self.lose(lost)
    }

    fn lose(&mut self, lost: Vec<(ConnectionId, Lost)>) -> bool {
        let any = !lost.is_empty();
        for (connection, why) in lost {
            self.let_go(connection);
            self.core.lock().machine.handle_lost(now(), connection, why);
        }
        any
    }

    /// When there is something to do again.
    fn rest(&self) -> TaskPoll {
        if self.core.signal.wants_poll() {
            return TaskPoll::Again;
        }
        TaskPoll::Until(self.core.lock().machine.poll_timeout())
    }

    /// `true`: one came to something.
    fn poll_dials(&mut self, cx: &mut Context<'_>, context: &TaskContext<'_>) -> bool {
        let mut done = Vec::new();
        self.dials.retain_mut(|(connection, dialling)| match poll_caught(dialling, cx) {
            Poll::Pending => true,
            Poll::Ready(result) => {
                done.push((*connection, result));
                false
            }
        });
        let any = !done.is_empty();
        let core = Arc::clone(&self.core);
        for (connection, result) in done {
            let arrived = result.and_then(|mut opened| {
                opened.wire.arrive(context).map_err(|error| Lost::Broken(error.into()))?;
                Ok(opened)
            });
            let mut inner = core.lock();
            let accepted = arrived.and_then(|opened| {
                inner.machine.check_subprotocol(opened.mode, opened.subprotocol.as_deref())?;
                Ok(opened)
            });
            match accepted {
                Ok(opened) => self.handle_opened(&mut inner, connection, opened),
                Err(Failed { why, rejection }) => {
                    inner.rejection = rejection;
                    inner.machine.handle_lost(now(), connection, why);
                }
            }
        }
        any
    }

    /// Reads every connection once, and says in `stirred` whether anything came. `true`: there may be more.
    fn read(&mut self, cx: &mut Context<'_>, stirred: &mut bool) -> bool {
        let (now, mut more, mut lost) = (now(), false, Vec::new());
        for open in self.wires.iter_mut().filter(|open| open.wire.may_read()) {
            let connection = open.connection;
            let mut inner = self.core.lock();
            if !inner.machine.wants_input()
                || self.core.must_wait_for_memory(&mut inner, open.wire.assembling())
            {
                // What stands unread is our doing, and no evidence against the peer.
                inner.machine.handle_bytes(now, connection);
                continue;
            }
            let (mut closed, mut broken, mut pong) = (None, None, false);
            let reading = open.wire.poll_read(cx, |arrived| {
                match arrived {
                    Arrived::Message(message) => {
                        if let Err(error) = inner.machine.handle_message(now, connection, message) {
                            broken = Some(error);
                            return false;
                        }
                        // A few compressed bytes may be many messages. What follows waits where it is.
                        return inner.machine.wants_input();
                    }
                    Arrived::Pong(payload) => {
                        pong = true;
                        inner.machine.handle_pong(now, connection, &payload);
                    }
                    Arrived::Bytes => inner.machine.handle_bytes(now, connection),
                    Arrived::Close(frame) => {
                        let code = frame.as_ref().map(|frame| frame.code);
                        inner.machine.handle_peer_close(connection, code);
                        let reason = frame.map(|frame| frame.reason).unwrap_or_default();
                        closed = Some(Lost::Closed { code, reason });
                    }
                }
                true
            });
            if pong && std::mem::take(&mut open.is_guarded) {
                open.wire.relax();
            }
            if let Some(error) = broken {
                tracing::debug!(%error, "server broke the session protocol");
                open.wire.close(&CloseFrame { code: error.close_code(), reason: error.to_string() });
                let why = match error {
                    SessionError::MessageTooBig { limit, .. } => {
                        Lost::TooBig { limit: usize::try_from(limit).unwrap_or(usize::MAX) }
                    }
                    error => Lost::Broken(Failure::caused_by(error, error.to_string())),
                };
                lost.push((connection, why));
                continue;
            }
            match (reading, closed) {
                (_, Some(closed)) => lost.push((connection, closed)),
                (Reading::Ended(why), None) => lost.push((connection, why)),
                (Reading::More, None) => {
                    *stirred = true;
                    // A short read took all there was, and another round would only find that out.
                    more |= open.wire.may_read();
                }
                (Reading::Idle, None) => {}
            }
        }
        *stirred |= self.lose(lost);
        more
    }

    /// Does what is due, if anything is. `true`: this process was paused, read what is readable first.
    fn keep_time(&mut self) -> Option<bool> {
        let now = now();
        let mut inner = self.core.lock();
        let is_due = inner.machine.is_due(now);
        is_due.then(|| inner.machine.handle_timeout(now))
    }

    /// Does what the machine says to connections. `true`: a dial began.
    fn obey(&mut self) -> bool {
        let mut dialled = false;
        loop {
            let command = self.core.lock().machine.poll_command();
            match command {
                None => return dialled,
                Some(Command::Dial(connection)) => {
                    self.dials.push((connection, self.dial()));
                    // Polled next, in this turn or another.
                    self.core.signal.wake();
                    dialled = true;
                }
                Some(Command::Transmit(connection, Transmit::Abort)) => {
                    self.dials.retain(|(dialled, _)| *dialled != connection);
                    if let Some(at) = self.wires.iter().position(|open| open.connection == connection) {
                        self.wires.swap_remove(at).wire.abort();
                    }
                }
                Some(Command::Transmit(connection, transmit)) => {
                    if let Some(open) = self.wires.iter_mut().find(|open| open.connection == connection) {
                        open.last_words.push_back(transmit);
                    }
                }
            }
        }
    }

    fn dial(&self) -> Dialling {
        let target = self.target.clone();
        let endpoint = self.core.lock().machine.endpoint().map(str::to_owned);
        Box::pin(async move {
            let request = match &target.factory {
                Some(make) => make().await.map_err(|error| Lost::NotOpened(error.into()))?,
                None => Request::default(),
            };
            let mut opened = dial(target.attempt(request, endpoint.as_deref())).await?;
            if let (Mode::Plain, Some(make)) = (opened.mode, &target.greeting) {
                opened.greeting = greet(make).await?;
            }
            Ok(opened)
        })
    }

    /// `true`: a connection is lost by that.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        let (now, mut lost) = (now(), Vec::new());
        for open in &mut self.wires {
            let connection = open.connection;
            let mut inner = self.core.lock();
            let last_words = &mut open.last_words;
            let outcome = open.wire.poll_write(cx, open.framing, || {
                last_words.pop_front().or_else(|| inner.machine.poll_transmit(now, connection))
            });
            match outcome {
                Ok(Written::All) => {
                    inner.machine.handle_flushed(now, connection);
                    if open.wire.is_closing() {
                        lost.push((connection, None));
                    }
                }
                Ok(Written::Some) => inner.machine.handle_write_progress(now, connection),
                Ok(Written::None) => {}
                Err(Abort) => {
                    lost.push((connection, Some(Lost::Broken("connection broken while writing".into()))))
                }
            }
        }
        let any = !lost.is_empty();
        for (connection, why) in lost {
            self.let_go(connection);
            if let Some(why) = why {
                self.core.lock().machine.handle_lost(now, connection, why);
            }
        }
        any
    }

    /// The connection matters no more; a closing handshake under way is seen to its end.
    fn let_go(&mut self, connection: ConnectionId) {
        if let Some(at) = self.wires.iter().position(|open| open.connection == connection) {
            let open = self.wires.swap_remove(at);
            if open.wire.is_closing() {
                tokio::spawn(open.wire.finish());
            }
        }
    }

    /// Wakes the application, if there is anything to wake it for; `true` when the client has ended and said
    /// all it had to.
    fn finish(&mut self, cx: &mut Context<'_>, stirred: bool) -> bool {
        if self.core.lock().machine.is_ended() {
            // What has just left may have been all that the end waited for: the Close follows.
            self.obey();
            self.write(cx);
        }
        let sockets = self.wires.iter().map(|open| open.wire.held(open.framing)).sum();
        let mut inner = self.core.lock();
        inner.settle();
        let change = inner.account(sockets);
        let ended = inner.machine.is_ended();
        let said = self.wires.iter().all(|open| open.last_words.is_empty());
        if ended && (said || inner.abandoned) {
            inner.finished = true;
        }
        if ended && inner.abandoned {
            // The application has no handle to ask for it.
            drop(inner.machine.take_undelivered());
        }
        if std::mem::take(&mut inner.has_news) || stirred || ended || inner.has_flushed() {
            inner.wake_application();
        }
        let finished = inner.finished;
        charge(inner, change);
        finished
    }
}

/// What an application gave to dial with may panic: its requests, its own way of checking certificates. That is an
/// attempt that failed.
fn poll_caught(dialling: &mut Dialling, cx: &mut Context<'_>) -> Poll<Result<Opened, Failed>> {
    catch_unwind(AssertUnwindSafe(|| dialling.as_mut().poll(cx))).unwrap_or_else(|_| {
        let why = "dialling panicked, in what the application gave for it; see the panic's own message";
        Poll::Ready(Err(Lost::NotOpened(why.into()).into()))
    })
}

impl Drop for ClientTask {
    /// However it ends, with its runtime too: whoever waits is told.
    fn drop(&mut self) {
        let mut inner = self.core.lock();
        inner
            .machine
            .abandon("the client's task is gone: its runtime has shut down, or something panicked in it");
        inner.settle();
        inner.finished = true;
        inner.wake_application();
        let change = inner.charge.set(0, 0);
        charge(inner, change);
    }
}

/// Applies what a charge changed by, once the lock is given back.
fn charge(inner: MutexGuard<'_, Inner>, change: Option<Change>) {
    let Some(budget) = change.is_some().then(|| inner.budget.clone()).flatten() else { return };
    drop(inner);
    budget.apply(Part::Links, change);
}

#[cfg(test)]
mod tests {
    use mainstay_proto::confirm::{ConfirmConfig, WhenFull};
    use mainstay_proto::connect::{Client as Machine, ConnectConfig};
    use mainstay_proto::session::Message;

    use super::*;
    use crate::Outcome;

    #[tokio::test]
    async fn what_was_dropped_says_nothing_of_what_is_under_way() {
        let confirm = ConfirmConfig::default().queue(2, 1024).unwrap().when_full(WhenFull::DropOldest);
        let config = ConnectConfig { confirm, link: true, ..ConnectConfig::default() };
        let start = now();
        let core = Core::new(Machine::new(start, config, [1; 32]), None);
        let mut inner = core.lock();
        inner.machine.handle_timeout(start);
        let Some(Command::Dial(connection)) = inner.machine.poll_command() else { panic!("no dial") };
        inner.machine.handle_opened(start, connection, Mode::Plain);
        let send = |inner: &mut Inner, text: &'static str| {
            let number = inner.send(Message::text(text)).unwrap();
            inner.track(number)
        };
        let mut under_way = send(&mut inner, "a");
        assert!(inner.machine.poll_transmit(start, connection).is_some());
        let mut dropped = send(&mut inner, "b");
        let mut waiting = send(&mut inner, "c");
        inner.settle();
        assert!(under_way.0.try_recv().is_err() && waiting.0.try_recv().is_err());
        assert_eq!(dropped.0.try_recv(), Ok(Outcome::NotDelivered));

        let later = start + std::time::Duration::from_secs(1);
        while inner.machine.poll_transmit(later, connection).is_some() {}
        inner.machine.handle_pong(later, connection, &1_u64.to_be_bytes());
        inner.settle();
        assert_eq!(under_way.0.try_recv(), Ok(Outcome::Delivered));
        assert!(waiting.0.try_recv().is_err(), "its Ping is still to come");
    }
}
