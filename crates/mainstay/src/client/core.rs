//! What the task of a client and its handles share.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http::HeaderMap;
use mainstay_proto::budget::{Held, Pressure};
use mainstay_proto::connect::{Client as Machine, Event, Incoming, Mode, Report};
use mainstay_proto::session::{Fate, Message};
use mainstay_proto::ws::CloseCode;
use tokio::sync::oneshot;

use super::events::EventQueue;
use super::{AuthenticateError, Rejection};
use crate::SendError;
use crate::budget::{Budget, Change, Charge, Holder};
use crate::clock::now;
use crate::receipt::{Outcome, Receipt, Settle};
use crate::waiters::register;
use crate::worker::{self, Signal};

/// An event that reports a place between two messages should be taken before `recv` returns the message behind that place.
/// After this many polls `recv` returns it nevertheless: in a `select!` a listener is polled between any two of them, and
/// where there is no listener nothing waits.
const POLLS_FOR_LISTENER: u8 = 3;

/// See the module.
pub(crate) struct Core {
    /// Wakes the client's task. Dials are polled with the core itself as their waker.
    pub(crate) signal: Signal,
    /// The memory of its connections is needed elsewhere.
    pub(super) gives_up: AtomicBool,
    inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub(crate) machine: Machine,
    pub(super) events: EventQueue,
    pub(super) subprotocol: Option<String>,
    /// The response to the newest attempt, if it opened no WebSocket.
    pub(super) rejection: Option<Box<Rejection>>,
    /// The fields of the response that opened the newest connection.
    pub(super) response: Option<Box<HeaderMap>>,
    /// The application dropped the handle.
    pub(super) abandoned: bool,
    pub(super) finished: bool,
    /// The number up to which [`settle`](Self::settle) found messages settled, and whether waiting tasks have to be woken.
    settled: u64,
    pub(super) has_news: bool,
    /// Polls that `recv` still leaves to listeners before it goes on.
    polls_for_listener: u8,
    /// A flush waits until every accepted message has left.
    flushing: bool,
    tracked: VecDeque<(u64, Settle)>,
    authenticating: Option<oneshot::Sender<Verdict>>,
    receiver: Option<Waker>,
    /// Tasks that wait for events, for another state, for settled messages, for the end, or for a flush.
    waiting: Vec<Waker>,
    senders: Vec<Waker>,
    pub(super) budget: Option<Budget>,
    pub(super) charge: Charge,
}

impl Core {
    pub(super) fn new(machine: Machine, budget: Option<Budget>) -> Arc<Self> {
        Arc::new(Self {
            signal: Signal::new(worker::mailbox()),
            gives_up: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                machine,
                events: EventQueue::default(),
                subprotocol: None,
                rejection: None,
                response: None,
                abandoned: false,
                finished: false,
                settled: 0,
                has_news: false,
                polls_for_listener: 0,
                flushing: false,
                tracked: VecDeque::new(),
                authenticating: None,
                receiver: None,
                waiting: Vec::new(),
                senders: Vec::new(),
                budget,
                charge: Charge::default(),
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the shared state, and has the task look at it.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let done = change(&mut self.lock());
        self.signal.ask();
        done
    }

    /// Ends in order.
    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        self.change(|inner| {
            inner.machine.close(now(), code, reason);
            inner.wake_application();
        });
    }

    /// Ends in order, and reads until the peer's Close.
    pub(crate) fn close_and_read(&self, code: CloseCode, reason: &str) {
        self.change(|inner| {
            inner.machine.close_and_read(now(), code, reason);
            inner.wake_application();
        });
    }

    /// Ends now.
    pub(super) fn abort(&self, code: CloseCode, reason: &str) {
        self.change(|inner| {
            inner.machine.abort(now(), code, reason);
            inner.settle();
            inner.wake_application();
        });
    }
}

impl Core {
    /// Accepts the message in `sending`, or leaves it there and wakes the caller when there may be room.
    pub(super) fn poll_send(
        self: &Arc<Self>,
        sending: &mut Option<Message>,
        waker: &Waker,
    ) -> Poll<Result<Option<u64>, SendError>> {
        self.change(|inner| {
            let sent = inner.poll_send(sending, waker);
            if sent.is_pending() && inner.pressure().is_some() && self.wait_for_memory(inner).is_none() {
                // The pressure fell just now, and no other task would wake these.
                inner.wake_senders();
            }
            sent
        })
    }

    /// Has the client woken when the level of its memory budget falls. Returns the pressure after that.
    fn wait_for_memory(self: &Arc<Self>, inner: &mut Inner) -> Option<Pressure> {
        let budget = inner.budget.as_ref()?;
        if inner.charge.begin_to_wait() {
            return budget.pressure();
        }
        let holder: Weak<Self> = Arc::downgrade(self);
        budget.wait(holder)
    }

    /// Whether nothing more may be read before the level of the memory budget falls, at which the client is woken.
    pub(super) fn must_wait_for_memory(self: &Arc<Self>, inner: &mut Inner, assembling: u64) -> bool {
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

    /// Has the connection dropped, with the part of a message that it has read.
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
    pub(super) fn poll_recv_any(&mut self, signal: &Signal, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        // A session may owe an acknowledgement now, and a peer that was not read may be read again.
        let matters = self.machine.mode() != Mode::Plain || !self.machine.wants_input();
        if let Some(incoming) = self.machine.deliver(now()) {
            if matters {
                signal.ask();
            }
            if !matches!(incoming, Incoming::Message(_)) {
                self.report_before_messages();
            }
            return Poll::Ready(Some(incoming));
        }
        if self.finished || self.machine.delivers_nothing() {
            return Poll::Ready(None);
        }
        self.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Wakes listeners: an event reports what was just delivered, and they should take it before the messages behind it.
    fn report_before_messages(&mut self) {
        self.settle();
        self.polls_for_listener = POLLS_FOR_LISTENER;
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// Takes the next event. While other events stand before the one that `recv` waits for, `recv` goes on waiting.
    pub(super) fn take_event(&mut self) -> Option<Event> {
        let event = self.events.pop()?;
        if self.polls_for_listener > 0 {
            self.polls_for_listener = POLLS_FOR_LISTENER;
        }
        Some(event)
    }

    /// Whether `recv` has to leave this poll to listeners.
    pub(super) fn waits_for_listener(&mut self) -> bool {
        if self.polls_for_listener == 0 || !self.events.reports_a_place() {
            self.polls_for_listener = 0;
            return false;
        }
        self.polls_for_listener -= 1;
        self.polls_for_listener > 0
    }

    /// Ready when the client has ended and has written its last bytes.
    pub(super) fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.finished {
            return Poll::Ready(());
        }
        self.wait(cx.waker());
        Poll::Pending
    }

    /// Ready when every message that was accepted has left.
    pub(super) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if self.machine.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        self.flushing = true;
        self.wait(cx.waker());
        Poll::Pending
    }

    /// Whether a flush that a task waited for is done now.
    pub(super) fn has_flushed(&mut self) -> bool {
        let done = self.flushing && self.machine.is_flushed();
        self.flushing &= !done;
        done
    }

    /// Registers a task that is woken when anything happened.
    pub(super) fn wait(&mut self, waker: &Waker) {
        register(&mut self.waiting, waker);
    }

    /// Accepts a message and returns its number.
    pub(super) fn send(&mut self, message: Message) -> Result<u64, SendError> {
        // Numbers belong to a session: the fates of the one before are settled first.
        self.settle();
        if self.machine.is_ended() {
            return Err(SendError::Closed(message));
        }
        let kept = self.pressure().map_or(0, |pressure| {
            let kept = self.machine.held().kept;
            if kept + message.len() as u64 > pressure.room(!self.machine.is_attached()) { kept } else { 0 }
        });
        if kept > 0 && self.machine.waits_when_full() && !self.machine.is_closing() {
            return Err(SendError::Full(message));
        }
        self.machine.send(message).map_err(|message| match self.machine.largest() {
            _ if self.machine.is_closing() => SendError::Closed(message),
            limit if message.len() as u64 > limit => SendError::TooLarge { message, limit },
            _ => SendError::Full(message),
        })
    }

    /// Charges the budget for what is kept now and for these bytes of the connections.
    pub(super) fn account(&mut self, sockets: u64) -> Option<Change> {
        self.budget.as_ref()?;
        let Held { unread, kept } = self.machine.held();
        self.charge.set(unread + kept, sockets)
    }

    /// The pressure of the memory budget, if there is a budget.
    fn pressure(&self) -> Option<Pressure> {
        self.budget.as_ref()?.pressure()
    }

    fn wake_senders(&mut self) {
        self.senders.drain(..).for_each(Waker::wake);
    }

    /// The receipt of the message that was just sent with this number.
    pub(super) fn track(&mut self, number: u64) -> Receipt {
        let (settle, receipt) = Receipt::new();
        self.tracked.push_back((number, settle));
        receipt
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
        // A verdict that has come by now belongs to the credentials before these.
        self.settle();
        if self.machine.is_closing() {
            return Err(AuthenticateError::Closed);
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
        register(&mut self.senders, waker);
    }

    /// Whether the client has ended and has written its last bytes.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Takes the machine's events, and settles the receipts that they decide.
    pub(super) fn settle(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            if let Some(verdict) = verdict(&event)
                && let Some(waiting) = self.authenticating.take()
            {
                let _ = waiting.send(verdict);
            }
            match &event {
                Event::Gap(fate) => self.settle_by(fate),
                Event::Ended(end) => {
                    if let Some(fate) = &end.fate {
                        self.settle_by(fate);
                    }
                }
                Event::Report(Report::Unknown(range)) => self.settle_range(range, Outcome::Unknown),
                Event::Report(Report::NotDelivered(range)) => {
                    self.settle_range(range, Outcome::NotDelivered);
                }
                Event::Report(Report::Undeliverable { number, .. }) => {
                    self.settle_range(&(*number..=*number), Outcome::Unknown);
                }
                _ => {}
            }
            self.events.push(event);
            self.has_news = true;
        }
        let settled = self.machine.settled();
        // A write may settle messages, too: for a peer without Pongs a message is settled when it has left.
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
                _ => Outcome::NotDelivered,
            };
            let _ = sender.send(outcome);
        }
    }

    /// Settles the receipts of these messages. Those before them may still be under way.
    fn settle_range(&mut self, range: &RangeInclusive<u64>, outcome: Outcome) {
        let from = self.tracked.partition_point(|(number, _)| number < range.start());
        let to = self.tracked.partition_point(|(number, _)| number <= range.end());
        for (_, sender) in self.tracked.drain(from..to) {
            let _ = sender.send(outcome);
        }
    }

    pub(super) fn wake_application(&mut self) {
        let many = self.waiting.drain(..).chain(self.senders.drain(..));
        self.receiver.take().into_iter().chain(many).for_each(Waker::wake);
    }
}

type Verdict = Result<(), AuthenticateError>;

/// The verdict on presented credentials that an event contains.
fn verdict(event: &Event) -> Option<Verdict> {
    match event {
        Event::Authenticated { accepted: true } => Some(Ok(())),
        Event::Authenticated { accepted: false } => Some(Err(AuthenticateError::Refused)),
        Event::Ended(end) if end.code == Some(CloseCode::UNAUTHORIZED.into()) => {
            Some(Err(AuthenticateError::Refused))
        }
        Event::Ended(_) => Some(Err(AuthenticateError::Closed)),
        Event::Attached { mode: Mode::Plain, .. } => Some(Err(AuthenticateError::Plain)),
        _ => None,
    }
}
