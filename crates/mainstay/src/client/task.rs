//! The client's task: dials, reads, keeps time and writes, as its machine says.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mainstay_proto::connect::{Client as Machine, Command, Event, Lost, Mode, Report};
use mainstay_proto::session::{ConnectionId, Fate, Message, Transmit};
use mainstay_proto::ws::{CloseCode, CloseFrame};
use tokio::sync::oneshot;

use super::dial::dial;
use super::{AuthenticateError, Outcome, Request, Target, Tracked};
use crate::SendError;
use crate::driver::{Abort, Arrived, Framing, Reading, Timer, Wire, Written, now};

/// Turns before others have theirs.
const ROUNDS: usize = 4;
/// Events kept for a listener that is slow, or for none.
const EVENTS: usize = 1024;

/// What the task and the handle share.
pub(crate) struct Core {
    inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub(crate) machine: Machine,
    pub(super) events: VecDeque<Event>,
    pub(super) subprotocol: Option<String>,
    /// Nobody holds the handle any more.
    pub(super) abandoned: bool,
    finished: bool,
    tracked: VecDeque<(u64, oneshot::Sender<Outcome>)>,
    authenticating: Option<oneshot::Sender<Verdict>>,
    driver: Option<Waker>,
    pub(super) receiver: Option<Waker>,
    pub(super) listener: Option<Waker>,
    pub(super) closer: Option<Waker>,
    pub(super) watcher: Option<Waker>,
    senders: Vec<Waker>,
}

impl Core {
    pub(super) fn new(machine: Machine) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                machine,
                events: VecDeque::new(),
                subprotocol: None,
                abandoned: false,
                finished: false,
                tracked: VecDeque::new(),
                authenticating: None,
                driver: None,
                receiver: None,
                listener: None,
                closer: None,
                watcher: None,
                senders: Vec::new(),
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub(super) fn send(&mut self, message: Message) -> Result<Tracked, SendError> {
        // Numbers belong to a session: what is known of the last one comes first.
        self.settle();
        if self.machine.is_ended() {
            return Err(SendError::Over(message));
        }
        match self.machine.send(message) {
            Ok(number) => {
                let (sender, receiver) = oneshot::channel();
                self.tracked.push_back((number, sender));
                self.wake_driver();
                Ok(Tracked(receiver))
            }
            Err(message) if self.machine.is_closing() => Err(SendError::Over(message)),
            Err(message) => Err(SendError::Full(message)),
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
        self.wake_driver();
        Ok(receiver)
    }

    pub(super) fn send_volatile(&mut self, message: Message) {
        self.machine.send_volatile(message);
        self.wake_driver();
    }

    pub(crate) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    pub(super) fn wait_for_room(&mut self, waker: &Waker) {
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
            self.list(event);
        }
        let settled = self.machine.settled();
        while self.tracked.front().is_some_and(|(number, _)| *number <= settled) {
            if let Some((_, sender)) = self.tracked.pop_front() {
                let _ = sender.send(Outcome::Delivered);
            }
        }
    }

    /// Keeps an event for its listener. A queue that drops its oldest does so for each message that
    /// comes: ranges that touch are one report, or they would push everything else out.
    fn list(&mut self, event: Event) {
        if let (
            Some(Event::Report(Report::NotDelivered(_, before))),
            Event::Report(Report::NotDelivered(first, last)),
        ) = (self.events.back_mut(), &event)
            && *before + 1 == *first
        {
            *before = *last;
            return;
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
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
        let wakers = [self.receiver.take(), self.listener.take(), self.closer.take(), self.watcher.take()];
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

type Dialling = Pin<Box<dyn Future<Output = Result<(Wire, Mode, Option<String>), Lost>> + Send>>;

/// See the module.
pub(super) struct Task {
    core: Arc<Core>,
    target: Target,
    wires: Vec<Open>,
    dials: Vec<(ConnectionId, Dialling)>,
    timer: Timer,
}

struct Open {
    connection: ConnectionId,
    wire: Wire,
    framing: Framing,
    /// What an ended session still has to say here.
    last_words: VecDeque<Transmit>,
}

impl Task {
    pub(super) fn new(core: Arc<Core>, target: Target) -> Self {
        Self { core, target, wires: Vec::new(), dials: Vec::new(), timer: Timer::default() }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.core.lock().driver = Some(cx.waker().clone());
        for _ in 0..ROUNDS {
            self.poll_dials(cx);
            let mut more = self.read(cx);
            if self.keep_time() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            more |= self.obey();
            self.write(cx);
            if self.finish() {
                return Poll::Ready(());
            }
            if !more {
                self.timer.arm(cx, self.core.lock().machine.poll_timeout());
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_dials(&mut self, cx: &mut Context<'_>) {
        let mut done = Vec::new();
        self.dials.retain_mut(|(connection, dialling)| match dialling.as_mut().poll(cx) {
            Poll::Pending => true,
            Poll::Ready(result) => {
                done.push((*connection, result));
                false
            }
        });
        for (connection, result) in done {
            let mut inner = self.core.lock();
            match result {
                Ok((wire, mode, subprotocol)) => {
                    let framing = if mode == Mode::Session { Framing::Session } else { Framing::Plain };
                    inner.subprotocol = subprotocol;
                    self.wires.push(Open { connection, wire, framing, last_words: VecDeque::new() });
                    inner.machine.handle_opened(now(), connection, mode);
                }
                Err(lost) => inner.machine.handle_lost(now(), connection, lost),
            }
        }
    }

    /// Reads every connection once. `true`: there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let (now, mut more, mut lost) = (now(), false, Vec::new());
        for open in &mut self.wires {
            let connection = open.connection;
            let mut inner = self.core.lock();
            if !inner.machine.wants_input() {
                // What stands unread is our doing, and no evidence against the peer.
                inner.machine.handle_bytes(now, connection);
                continue;
            }
            let (mut closed, mut broken) = (None, None);
            let reading = open.wire.poll_read(cx, |arrived| {
                match arrived {
                    Arrived::Message(message) => {
                        if let Err(error) = inner.machine.handle_message(now, connection, message) {
                            broken = Some(error);
                            return false;
                        }
                    }
                    Arrived::Pong(payload) => inner.machine.handle_pong(now, connection, &payload),
                    Arrived::Bytes => inner.machine.handle_bytes(now, connection),
                    Arrived::Close(frame) => {
                        inner.machine.handle_peer_close(connection);
                        closed = Some(Lost::Closed {
                            code: frame.as_ref().map(|frame| frame.code),
                            reason: frame.map(|frame| frame.reason).unwrap_or_default(),
                        });
                    }
                }
                true
            });
            if let Some(error) = broken {
                tracing::debug!(%error, "server broke the session protocol");
                open.wire.close(&CloseFrame { code: error.close_code(), reason: error.to_string() });
                lost.push((connection, Lost::Broken(error.to_string())));
                continue;
            }
            match (reading, closed) {
                (_, Some(closed)) => lost.push((connection, closed)),
                (Reading::Ended(why), None) => lost.push((connection, why)),
                (Reading::More, None) => more = true,
                (Reading::Idle, None) => {}
            }
        }
        for (connection, why) in lost {
            self.let_go(connection);
            self.core.lock().machine.handle_lost(now, connection, why);
        }
        more
    }

    fn keep_time(&mut self) -> bool {
        let now = now();
        let mut inner = self.core.lock();
        inner.machine.poll_timeout().is_some_and(|at| at <= now) && inner.machine.handle_timeout(now)
    }

    /// Does what the machine says to connections. `true`: a dial began and is to be polled.
    fn obey(&mut self) -> bool {
        let mut dialled = false;
        loop {
            let command = self.core.lock().machine.poll_command();
            match command {
                None => return dialled,
                Some(Command::Dial(connection)) => {
                    self.dials.push((connection, self.dial()));
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

    fn write(&mut self, cx: &mut Context<'_>) {
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
        for (connection, why) in lost {
            self.let_go(connection);
            if let Some(why) = why {
                self.core.lock().machine.handle_lost(now, connection, why);
            }
        }
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

    /// Wakes the application; `true` when the client has ended and said all it had to.
    fn finish(&mut self) -> bool {
        let mut inner = self.core.lock();
        inner.settle();
        let ended = inner.machine.is_ended();
        let said = self.wires.iter().all(|open| open.last_words.is_empty());
        if ended && (said || inner.abandoned) {
            inner.finished = true;
        }
        inner.wake_application();
        inner.finished
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.turn(cx)
    }
}

#[cfg(test)]
mod tests {
    use mainstay_proto::confirm::{ConfirmConfig, WhenFull};
    use mainstay_proto::connect::ConnectConfig;

    use super::*;

    #[test]
    fn what_was_dropped_says_nothing_of_what_is_under_way() {
        let confirm = ConfirmConfig::default().queue(2, 1024).unwrap().when_full(WhenFull::DropOldest);
        let config = ConnectConfig { confirm, link: true, ..ConnectConfig::default() };
        let start = now();
        let core = Core::new(Machine::new(start, config, [1; 32]));
        let mut inner = core.lock();
        inner.machine.handle_timeout(start);
        let Some(Command::Dial(connection)) = inner.machine.poll_command() else { panic!("no dial") };
        inner.machine.handle_opened(start, connection, Mode::Plain);
        let mut under_way = inner.send(Message::text("a")).unwrap();
        assert!(inner.machine.poll_transmit(start, connection).is_some());
        let mut dropped = inner.send(Message::text("b")).unwrap();
        let mut waiting = inner.send(Message::text("c")).unwrap();
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
