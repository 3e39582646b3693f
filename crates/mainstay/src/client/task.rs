//! The client's task: it dials, reads, keeps time and writes, as the machine decides. The [`worker`](crate::worker) to which
//! the client belongs polls it.

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

use super::core::{Core, Inner};
use super::dial::{Failed, Opened, dial, greet};
use super::target::{Request, Target};
use crate::budget::{Change, Part};
use crate::clock::now;
use crate::driver::{Abort, Arrived, Reading, Wire, Written};
use crate::worker::{Signal, Task, TaskContext, TaskPoll};

/// Why a connection ended when its memory was needed.
const NO_MEMORY: &str = "the memory budget is used up";
/// Rounds of one poll before other tasks are polled.
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
    mode: Mode,
    /// What the ended session still has to write here.
    final_writes: VecDeque<Transmit>,
    /// The system breaks the socket when the peer's machine acknowledges nothing. Until the first Pong.
    is_guarded: bool,
}

impl ClientTask {
    /// Gives the client to its worker. A connection that is `ready` answers the first dial.
    pub(super) fn begin(core: Arc<Core>, target: Target, ready: Option<Opened>) {
        let mut task = Self { core: Arc::clone(&core), target, wires: Vec::new(), dials: Vec::new() };
        if let Some(opened) = ready {
            let mut inner = core.lock();
            inner.machine.handle_timeout(now());
            if let Some(Command::Dial(connection)) = inner.machine.poll_command() {
                // Later connections have to agree on the first one's subprotocol.
                let _ = inner.machine.check_subprotocol(opened.mode, opened.subprotocol.as_deref());
                task.handle_opened(&mut inner, connection, opened);
                inner.settle();
            }
        }
        core.signal.spawn(Box::pin(task));
    }

    fn handle_opened(&mut self, inner: &mut Inner, connection: ConnectionId, opened: Opened) {
        let Opened { wire, mode, subprotocol, credentials, guard, response, greeting } = opened;
        (inner.subprotocol, inner.rejection, inner.response) = (subprotocol, None, response);
        let is_guarded = guard.is_some();
        self.wires.push(Open { connection, wire, mode, final_writes: VecDeque::new(), is_guarded });
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

    fn poll_task(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll {
        let this = self.get_mut();
        let waker = Waker::from(Arc::clone(&this.core));
        let cx = &mut Context::from_waker(&waker);
        let mut progressed = this.register(context);
        for _ in 0..ROUNDS {
            if this.core.signal.take_wake() {
                progressed |= this.poll_dials(cx, context);
            }
            let more = this.read(cx, &mut progressed);
            match this.keep_time() {
                Some(true) => {
                    // Before the verdict the socket shows whether it still accepts bytes.
                    progressed |= this.run_commands();
                    progressed |= this.write(cx);
                    this.finish(cx, progressed);
                    return TaskPoll::Again;
                }
                acted => progressed |= acted.is_some(),
            }
            progressed |= this.run_commands();
            this.core.signal.end_poll();
            progressed |= this.write(cx);
            if this.finish(cx, progressed) {
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
    /// Registers the connections with the worker that polls this task. `true`: a connection was lost by that.
    fn register(&mut self, context: &TaskContext<'_>) -> bool {
        let mut lost = Vec::new();
        let gives_up = self.core.gives_up.load(Ordering::Relaxed);
        if gives_up {
            self.core.gives_up.store(false, Ordering::Relaxed);
        }
        for open in &mut self.wires {
            if gives_up {
                lost.push((open.connection, Lost::Broken(NO_MEMORY.into())));
            } else if let Err(error) = open.wire.register(context) {
                lost.push((open.connection, Lost::Broken(error.into())));
            }
        }
        self.lose(lost)
    }

    fn lose(&mut self, lost: Vec<(ConnectionId, Lost)>) -> bool {
        let any = !lost.is_empty();
        for (connection, why) in lost {
            self.detach(connection);
            self.core.lock().machine.handle_lost(now(), connection, why);
        }
        any
    }

    /// Until when the task has nothing to do.
    fn rest(&self) -> TaskPoll {
        if self.core.signal.is_woken() {
            return TaskPoll::Again;
        }
        let inner = self.core.lock();
        // The application's thread did something since, and is about to wake this task.
        if !inner.machine.is_polled() {
            return TaskPoll::Again;
        }
        TaskPoll::Until(inner.machine.poll_timeout())
    }

    /// Polls the dials. `true`: one was completed.
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
                opened.wire.register(context).map_err(|error| Lost::Broken(error.into()))?;
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

    /// Reads every connection once, and sets `progressed` if anything came. `true`: there may be more.
    fn read(&mut self, cx: &mut Context<'_>, progressed: &mut bool) -> bool {
        let (now, mut more, mut lost) = (now(), false, Vec::new());
        for open in self.wires.iter_mut().filter(|open| open.wire.may_read()) {
            let connection = open.connection;
            let mut inner = self.core.lock();
            if !inner.machine.wants_input()
                || self.core.must_wait_for_memory(&mut inner, open.wire.assembling())
            {
                // This end leaves bytes unread, so their absence is no evidence against the peer.
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
                        // A few compressed bytes may be many messages. The rest stays in the read buffer.
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
                    *progressed = true;
                    // After a short read the socket is empty, and another round would only find that out.
                    more |= open.wire.may_read();
                }
                (Reading::Idle, None) => {}
            }
        }
        *progressed |= self.lose(lost);
        more
    }

    /// Runs the machine's timer, if it is due. `true`: this process was paused, and what is readable has to be read first.
    fn keep_time(&mut self) -> Option<bool> {
        let now = now();
        let mut inner = self.core.lock();
        let is_due = inner.machine.is_due(now);
        is_due.then(|| inner.machine.handle_timeout(now))
    }

    /// Carries out the machine's commands. `true`: a dial began.
    fn run_commands(&mut self) -> bool {
        let mut dialled = false;
        loop {
            let command = self.core.lock().machine.poll_command();
            match command {
                None => return dialled,
                Some(Command::Dial(connection)) => {
                    self.dials.push((connection, self.dial()));
                    // The dial is polled next, in this poll or the next one.
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
                        open.final_writes.push_back(transmit);
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

    /// Writes to every connection. `true`: a connection was lost by that.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        let (now, mut lost) = (now(), Vec::new());
        for open in &mut self.wires {
            let connection = open.connection;
            let mut inner = self.core.lock();
            let final_writes = &mut open.final_writes;
            let outcome = open.wire.poll_write(cx, open.mode, || {
                final_writes.pop_front().or_else(|| inner.machine.poll_transmit(now, connection))
            });
            match outcome {
                Ok(Written::All) => {
                    inner.machine.handle_flushed(now, connection);
                    if open.wire.is_closing() && !inner.machine.awaits_close(connection) {
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
            self.detach(connection);
            if let Some(why) = why {
                self.core.lock().machine.handle_lost(now, connection, why);
            }
        }
        any
    }

    /// Removes a connection; a closing handshake under way goes on in a task of its own.
    fn detach(&mut self, connection: ConnectionId) {
        if let Some(at) = self.wires.iter().position(|open| open.connection == connection) {
            let open = self.wires.swap_remove(at);
            if open.wire.is_closing() {
                tokio::spawn(open.wire.finish());
            }
        }
    }

    /// Wakes the application, if anything happened. `true`: the client has ended and has written its last bytes.
    fn finish(&mut self, cx: &mut Context<'_>, progressed: bool) -> bool {
        if self.core.lock().machine.is_ended() {
            // The end may have waited only for the bytes that have just left: the Close follows.
            self.run_commands();
            self.write(cx);
        }
        let sockets = self.wires.iter().map(|open| open.wire.held(open.mode)).sum();
        let mut inner = self.core.lock();
        inner.settle();
        let change = inner.account(sockets);
        let ended = inner.machine.is_ended();
        let written = self.wires.iter().all(|open| open.final_writes.is_empty());
        if ended && (written || inner.abandoned) {
            inner.finished = true;
        }
        if ended && inner.abandoned {
            // The application has no handle to take them.
            drop(inner.machine.take_undelivered());
        }
        if std::mem::take(&mut inner.has_news) || progressed || ended || inner.has_flushed() {
            inner.wake_application();
        }
        let finished = inner.finished;
        charge(inner, change);
        finished
    }
}

/// Polls a dial. Code of the application in it may panic: its requests, its check of certificates. A panic is an attempt that
/// failed.
fn poll_caught(dialling: &mut Dialling, cx: &mut Context<'_>) -> Poll<Result<Opened, Failed>> {
    catch_unwind(AssertUnwindSafe(|| dialling.as_mut().poll(cx))).unwrap_or_else(|_| {
        let why = "dialling panicked, in code of the application; see the panic's own message";
        Poll::Ready(Err(Lost::NotOpened(why.into()).into()))
    })
}

impl Drop for ClientTask {
    /// Ends the client in any case, also when its runtime shuts down, and wakes every task that waits.
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

/// Applies the change of a charge after the lock is released.
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
    async fn a_report_of_a_dropped_message_settles_no_receipt_of_a_message_under_way() {
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
