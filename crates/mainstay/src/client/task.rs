//! The client's task: dials, reads, keeps time and writes, as its machine says. It has its turn at the
//! [`worker`](crate::worker) that the client lives with.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use mainstay_proto::budget::{Held, Pressure};
use mainstay_proto::connect::{Client as Machine, Command, Event, Lost, Mode, Report};
use mainstay_proto::session::{ConnectionId, Fate, Message, SessionError, Transmit};
use mainstay_proto::ws::{CloseCode, CloseFrame};
use tokio::sync::oneshot;

use super::dial::{Failed, Opened, dial};
use super::events::EventQueue;
use super::{AuthenticateError, Outcome, Refusal, Request, Target, Tracked};
use crate::SendError;
use crate::budget::{Budget, Change, Charge, Holder, Part};
use crate::clock::now;
use crate::driver::{Abort, Arrived, Framing, Reading, Wire, Written};
use crate::worker::{self, Here, Resident, Signal, Turn};

/// Why a connection ended whose memory was needed.
const NO_MEMORY: &str = "the memory budget is used up";
/// Turns before others have theirs.
const ROUNDS: usize = 4;

/// What the task and the handle share.
pub(crate) struct Core {
    /// Wakes the client's task. Dials are polled with the core itself as their waker.
    pub(crate) signal: Signal,
    /// Its memory is needed elsewhere.
    gives_up: AtomicBool,
    inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub(crate) machine: Machine,
    pub(super) events: EventQueue,
    pub(super) subprotocol: Option<String>,
    /// What the newest attempt was answered, if that was no WebSocket.
    pub(super) refusal: Option<Box<Refusal>>,
    /// Nobody holds the handle any more.
    pub(super) abandoned: bool,
    finished: bool,
    /// What [`settle`](Self::settle) found last, and whether those who wait are to be woken for it.
    settled: u64,
    has_news: bool,
    tracked: VecDeque<(u64, oneshot::Sender<Outcome>)>,
    authenticating: Option<oneshot::Sender<Verdict>>,
    pub(super) receiver: Option<Waker>,
    pub(super) listener: Option<Waker>,
    pub(super) closer: Option<Waker>,
    pub(super) watcher: Option<Waker>,
    /// Waits for messages to meet their fate.
    pub(super) settling: Option<Waker>,
    senders: Vec<Waker>,
    budget: Option<Budget>,
    charge: Charge,
}

impl Core {
    pub(super) fn new(machine: Machine, budget: Option<Budget>) -> Arc<Self> {
        Arc::new(Self {
            signal: Signal::new(worker::home()),
            gives_up: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                machine,
                events: EventQueue::default(),
                subprotocol: None,
                refusal: None,
                abandoned: false,
                finished: false,
                settled: 0,
                has_news: false,
                tracked: VecDeque::new(),
                authenticating: None,
                receiver: None,
                listener: None,
                closer: None,
                watcher: None,
                settling: None,
                senders: Vec::new(),
                budget,
                charge: Charge::default(),
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the task will look at, and asks it to.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let done = change(&mut self.lock());
        self.signal.ask();
        done
    }
}

impl Core {
    /// Accepts the message in `sending`, or leaves it there and wakes the caller once there may be room.
    pub(super) fn poll_send(
        self: &Arc<Self>,
        sending: &mut Option<Message>,
        waker: &Waker,
    ) -> Poll<Result<Option<u64>, SendError>> {
        self.change(|inner| {
            let sent = inner.poll_send(sending, waker);
            if sent.is_pending() && inner.pressure().is_some() && self.wait_for_memory(inner).is_none() {
                // It fell just now, and nobody else would say so.
                inner.wake_senders();
            }
            sent
        })
    }

    /// The client is woken when the level of its memory budget falls. Returns the pressure after that.
    fn wait_for_memory(self: &Arc<Self>, inner: &mut Inner) -> Option<Pressure> {
        let budget = inner.budget.as_ref()?;
        if inner.charge.begin_to_wait() {
            return budget.pressure();
        }
        let holder: Weak<Self> = Arc::downgrade(self);
        budget.wait(holder)
    }

    /// Whether nothing more may be read before the level of the memory budget falls. Then the client is woken.
    fn must_wait_for_memory(self: &Arc<Self>, inner: &mut Inner, assembling: u64) -> bool {
        let lets = |inner: &Inner, pressure: Option<Pressure>| {
            let Held { unread, kept } = inner.machine.held();
            pressure.is_none_or(|pressure| pressure.lets_read(unread, assembling, kept))
        };
        let pressure = inner.pressure();
        if lets(inner, pressure) {
            return false;
        }
        let pressure = self.wait_for_memory(inner);
        !lets(inner, pressure)
    }
}

impl Holder for Core {
    fn go_on(self: Arc<Self>) {
        self.change(|inner| {
            inner.charge.end_waiting();
            inner.wake_senders();
        });
    }

    fn charged(&self) -> u64 {
        self.lock().charge.bytes()
    }

    /// The connection is dropped, and with it what is read of a message that is not complete.
    fn give_up(self: Arc<Self>) {
        self.gives_up.store(true, Ordering::Relaxed);
        self.signal.ask();
    }
}

impl Wake for Core {
    fn wake(self: Arc<Self>) {
        self.signal.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.signal.wake();
    }
}

impl Inner {
    /// Accepts a message and returns its number.
    pub(super) fn send(&mut self, message: Message) -> Result<u64, SendError> {
        // Numbers belong to a session: what is known of the last one comes first.
        self.settle();
        if self.machine.is_ended() {
            return Err(SendError::Over(message));
        }
        let kept = self.pressure().map_or(0, |pressure| {
            let kept = self.machine.held().kept;
            if kept + message.len() as u64 > pressure.room(!self.machine.is_attached()) { kept } else { 0 }
        });
        if kept > 0 && self.machine.waits_when_full() && !self.machine.is_closing() {
            return Err(SendError::Full(message));
        }
        self.machine.send(message).map_err(|message| match self.machine.largest() {
            _ if self.machine.is_closing() => SendError::Over(message),
            limit if message.len() as u64 > limit => SendError::TooLarge { message, limit },
            _ => SendError::Full(message),
        })
    }

    /// Charges for what is kept now, with these bytes of connections.
    fn account(&mut self, sockets: u64) -> Option<Change> {
        self.budget.as_ref()?;
        let Held { unread, kept } = self.machine.held();
        self.charge.set(unread + kept, sockets)
    }

    /// What the memory budget asks for, if there is one.
    fn pressure(&self) -> Option<Pressure> {
        self.budget.as_ref()?.pressure()
    }

    fn wake_senders(&mut self) {
        self.senders.drain(..).for_each(Waker::wake);
    }

    /// Settles when it is known what became of the message that was just given this number.
    pub(super) fn track(&mut self, number: u64) -> Tracked {
        let (sender, receiver) = oneshot::channel();
        self.tracked.push_back((number, sender));
        Tracked(receiver)
    }

    fn poll_send(
        &mut self,
        sending: &mut Option<Message>,
        waker: &Waker,
    ) -> Poll<Result<Option<u64>, SendError>> {
        let Some(message) = sending.take() else { return Poll::Ready(Ok(None)) };
        match self.send(message) {
            Ok(number) => Poll::Ready(Ok(Some(number))),
            Err(SendError::Full(message)) if self.machine.waits_when_full() => {
                *sending = Some(message);
                self.wait_for_room(waker);
                Poll::Pending
            }
            Err(refused) => Poll::Ready(Err(refused)),
        }
    }

    pub(super) fn authenticate(
        &mut self,
        credentials: Bytes,
    ) -> Result<oneshot::Receiver<Verdict>, AuthenticateError> {
        // A verdict that is known by now belongs to the credentials before these.
        self.settle();
        if self.machine.is_closing() {
            return Err(AuthenticateError::Over);
        }
        if self.machine.mode() == Mode::Plain {
            return Err(AuthenticateError::Plain);
        }
        let (sender, receiver) = oneshot::channel();
        self.authenticating = Some(sender);
        self.machine.authenticate(now(), credentials);
        Ok(receiver)
    }

    fn wait_for_room(&mut self, waker: &Waker) {
        if !self.senders.iter().any(|listed| listed.will_wake(waker)) {
            self.senders.push(waker.clone());
        }
    }

    /// Nothing follows, and nothing is left to be taken.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Takes what the machine has to say; settles what is known of tracked messages.
    fn settle(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            if let Some(verdict) = verdict(&event)
                && let Some(waiting) = self.authenticating.take()
            {
                let _ = waiting.send(verdict);
            }
            match &event {
                Event::Gap(fate) => self.settle_by(fate),
                Event::Ended { fate: Some(fate), .. } => self.settle_by(fate),
                Event::Report(Report::Unknown(first, last)) => {
                    self.settle_range(*first, *last, Outcome::Unknown);
                }
                Event::Report(Report::NotDelivered(first, last)) => {
                    self.settle_range(*first, *last, Outcome::Lost);
                }
                Event::Report(Report::Undeliverable(number, _)) => {
                    self.settle_range(*number, *number, Outcome::Unknown);
                }
                _ => {}
            }
            self.events.push(event);
            self.has_news = true;
        }
        let settled = self.machine.settled();
        // A write may settle messages too, where nothing was read: a peer without Pongs has what has left.
        self.has_news |= std::mem::replace(&mut self.settled, settled) != settled;
        while self.tracked.front().is_some_and(|(number, _)| *number <= settled) {
            if let Some((_, sender)) = self.tracked.pop_front() {
                let _ = sender.send(Outcome::Delivered);
            }
        }
    }

    fn settle_by(&mut self, fate: &Fate) {
        let tracked = std::mem::take(&mut self.tracked);
        for (number, sender) in tracked {
            let outcome = match number {
                n if n <= fate.delivered => Outcome::Delivered,
                n if n <= fate.unknown => Outcome::Unknown,
                n if fate.resent => {
                    self.tracked.push_back((n - fate.unknown, sender));
                    continue;
                }
                _ => Outcome::Lost,
            };
            let _ = sender.send(outcome);
        }
    }

    /// What is before the range may still be under way.
    fn settle_range(&mut self, first: u64, last: u64, outcome: Outcome) {
        let from = self.tracked.partition_point(|(number, _)| *number < first);
        let to = self.tracked.partition_point(|(number, _)| *number <= last);
        for (_, sender) in self.tracked.drain(from..to) {
            let _ = sender.send(outcome);
        }
    }

    fn wake_application(&mut self) {
        let wakers = [
            self.receiver.take(),
            self.listener.take(),
            self.closer.take(),
            self.watcher.take(),
            self.settling.take(),
        ];
        wakers.into_iter().flatten().chain(self.senders.drain(..)).for_each(Waker::wake);
    }
}

type Verdict = Result<(), AuthenticateError>;

/// What an event says of credentials that wait for their verdict.
fn verdict(event: &Event) -> Option<Verdict> {
    match event {
        Event::Authenticated { accepted: true } => Some(Ok(())),
        Event::Authenticated { accepted: false } => Some(Err(AuthenticateError::Refused)),
        Event::Ended { code: Some(code), .. } if *code == u64::from(CloseCode::UNAUTHORIZED) => {
            Some(Err(AuthenticateError::Refused))
        }
        Event::Ended { .. } => Some(Err(AuthenticateError::Over)),
        Event::Attached { mode: Mode::Plain, .. } => Some(Err(AuthenticateError::Plain)),
        _ => None,
    }
}

type Dialling = Pin<Box<dyn Future<Output = Result<Opened, Failed>> + Send>>;

/// See the module.
pub(super) struct Task {
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

impl Task {
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
        core.signal.move_in(Box::pin(task));
    }

    fn handle_opened(&mut self, inner: &mut Inner, connection: ConnectionId, opened: Opened) {
        let Opened { wire, mode, subprotocol, credentials, guard } = opened;
        let framing = if mode == Mode::Session { Framing::Session } else { Framing::Plain };
        (inner.subprotocol, inner.refusal) = (subprotocol, None);
        let is_guarded = guard.is_some();
        self.wires.push(Open { connection, wire, framing, last_words: VecDeque::new(), is_guarded });
        if let Some(credentials) = credentials {
            inner.machine.set_credentials(credentials);
        }
        inner.machine.handle_opened(now(), connection, mode);
        if let Some(within) = guard {
            inner.machine.handle_guarded(connection, within);
        }
    }
}

impl Resident for Task {
    fn signal(&self) -> &Signal {
        &self.core.signal
    }

    fn turn(self: Pin<&mut Self>, here: &Here<'_>) -> Turn {
        let this = self.get_mut();
        let waker = Waker::from(Arc::clone(&this.core));
        let cx = &mut Context::from_waker(&waker);
        let mut stirred = this.arrive(here);
        for _ in 0..ROUNDS {
            if this.core.signal.take_poll() {
                stirred |= this.poll_dials(cx, here);
            }
            let more = this.read(cx, &mut stirred);
            match this.keep_time() {
                Some(true) => {
                    // Before a verdict the socket says what it takes.
                    stirred |= this.obey();
                    stirred |= this.write(cx);
                    this.finish(cx, stirred);
                    return Turn::Again;
                }
                acted => stirred |= acted.is_some(),
            }
            stirred |= this.obey();
            this.core.signal.end_turn();
            stirred |= this.write(cx);
            if this.finish(cx, stirred) {
                return Turn::Done;
            }
            if !more {
                return this.rest();
            }
        }
        Turn::Again
    }
}

impl Task {
    /// Hears what the worker says of the connections. `true`: one is lost by that.
    fn arrive(&mut self, here: &Here<'_>) -> bool {
        let mut lost = Vec::new();
        let gives_up = self.core.gives_up.load(Ordering::Relaxed);
        if gives_up {
            self.core.gives_up.store(false, Ordering::Relaxed);
        }
        for open in &mut self.wires {
            if gives_up {
                lost.push((open.connection, Lost::Broken(NO_MEMORY.to_owned())));
            } else if let Err(error) = open.wire.arrive(here) {
                lost.push((open.connection, Lost::Broken(error.to_string())));
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
    fn rest(&self) -> Turn {
        if self.core.signal.wants_poll() {
            return Turn::Again;
        }
        Turn::Until(self.core.lock().machine.poll_timeout())
    }

    /// `true`: one came to something.
    fn poll_dials(&mut self, cx: &mut Context<'_>, here: &Here<'_>) -> bool {
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
                opened.wire.arrive(here).map_err(|error| Lost::Broken(error.to_string()))?;
                Ok(opened)
            });
            let mut inner = core.lock();
            let accepted = arrived.and_then(|opened| {
                inner.machine.check_subprotocol(opened.mode, opened.subprotocol.as_deref())?;
                Ok(opened)
            });
            match accepted {
                Ok(opened) => self.handle_opened(&mut inner, connection, opened),
                Err(Failed { why, refusal }) => {
                    inner.refusal = refusal;
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
                    error => Lost::Broken(error.to_string()),
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
        let is_due = inner.machine.poll_timeout().is_some_and(|at| at <= now);
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
                Some(make) => make().await.map_err(Lost::Unreachable)?,
                None => Request::default(),
            };
            dial(target.attempt(request, endpoint.as_deref())).await
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
        if std::mem::take(&mut inner.has_news) || stirred || ended {
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
        Poll::Ready(Err(Lost::Unreachable(why.to_owned()).into()))
    })
}

impl Drop for Task {
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
    use mainstay_proto::connect::ConnectConfig;

    use super::*;

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
        assert_eq!(dropped.0.try_recv(), Ok(Outcome::Lost));

        let later = start + std::time::Duration::from_secs(1);
        while inner.machine.poll_transmit(later, connection).is_some() {}
        inner.machine.handle_pong(later, connection, &1_u64.to_be_bytes());
        inner.settle();
        assert_eq!(under_way.0.try_recv(), Ok(Outcome::Delivered));
        assert!(waiting.0.try_recv().is_err(), "its Ping is still to come");
    }
}
