//! Workers: each polls the connections that live with it, from one tokio task.
//!
//! A task, a timer and an entry in tokio's reactor for every connection cost a kilobyte and a few
//! microseconds per heartbeat. A worker has one of each for all its *tasks*: an epoll of its own
//! behind one [`AsyncFd`], a wheel of deadlines behind one `Sleep`, and a list of who has something to do.
//!
//! ```text
//! a pass:  who spawned, who was woken -> whose socket is ready -> whose time has come -> a turn for each
//! ```
//!
//! A pass gives every task at most one turn, a turn is bounded, and after a pass the other tasks of
//! the runtime have theirs. That is what bounds the wait of a ready connection when thousands are busy.
//!
//! A task stays with its worker for life. It is woken from anywhere through its [`Signal`], and its
//! future need not know: the [`Waker`] that it is polled with leads to the same signal.
//!
//! Not here: what a turn does ([`server`](crate::server), [`client`](crate::client)), and what a machine decides.

mod wheel;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use mainstay_proto::ws::Packed;
use mio::{Events, Interest, Registry, Token};
use slab::Slab;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::coop;
use tokio::time::Sleep;

use self::wheel::Wheel;
use crate::clock::{self, now};
use crate::driver;
use crate::transport::Readiness;

/// Sockets that one look at the epoll reports.
const EVENTS: usize = 1024;

/// Whatever lives with a worker: something that does a bounded amount of work when it is its turn.
pub(crate) trait Task: Send {
    /// Where it is woken.
    fn signal(&self) -> &Signal;

    /// One turn. What is ready stays ready until it was used up: a turn that leaves some says
    /// [`TaskPoll::Again`].
    fn turn(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll;
}

/// What a turn is told.
pub(crate) struct TaskContext<'a> {
    registry: &'a Registry,
    token: Token,
    /// What its sockets became ready for since the last turn.
    pub(crate) readiness: Readiness,
}

impl TaskContext<'_> {
    /// From here on this worker says when `socket` is ready.
    pub(crate) fn register(&self, socket: &mut mio::net::TcpStream) -> io::Result<()> {
        self.registry.register(socket, self.token, Interest::READABLE | Interest::WRITABLE)
    }

    /// From here on it does not: what becomes of a socket that leaves is not to be taken for the next one's.
    pub(crate) fn deregister(&self, socket: &mut mio::net::TcpStream) {
        let _ = self.registry.deregister(socket);
    }
}

/// What a turn came to.
pub(crate) enum TaskPoll {
    /// Nothing until it is woken, a socket is ready, or this moment comes.
    Until(Option<Instant>),
    /// There is more to do; the others have their turn first.
    Again,
    /// It lives no more.
    Done,
}

// ---- waking -----------------------------------------------------------------------------------------

/// The bell of one task.
pub(crate) struct Signal {
    mailbox: Arc<Mailbox>,
    /// Its place with the worker; [`NOWHERE`] before it spawned.
    key: AtomicU32,
    flags: AtomicU8,
}

const NOWHERE: u32 = u32::MAX;
/// A turn will come: nobody need ask for one.
const QUEUED: u8 = 1;
/// Its future was woken.
const POLL: u8 = 2;

impl Signal {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, key: AtomicU32::new(NOWHERE), flags: AtomicU8::new(POLL) }
    }

    /// Asks for a turn, after a change behind a lock that the turn takes after [`end_turn`](Self::end_turn):
    /// that lock is what makes it enough to look whether one is coming.
    pub(crate) fn ask(&self) {
        if self.flags.load(Ordering::Acquire) & QUEUED == 0 {
            self.raise(QUEUED);
        }
    }

    /// Asks for a turn in which the future is polled.
    pub(crate) fn wake(&self) {
        self.raise(QUEUED | POLL);
    }

    fn raise(&self, flags: u8) {
        // Most often the task itself is at work and looks again before its turn ends.
        let before = self.flags.fetch_or(flags, Ordering::AcqRel);
        let key = self.key.load(Ordering::Acquire);
        if before & QUEUED == 0 && key != NOWHERE {
            self.mailbox.queue(key);
        }
    }

    /// Whether the future was woken since the last call.
    pub(crate) fn take_poll(&self) -> bool {
        self.flags.fetch_and(!POLL, Ordering::AcqRel) & POLL != 0
    }

    /// A turn begins. Until [`end_turn`](Self::end_turn) asking is free of charge.
    fn begin_turn(&self) {
        self.flags.fetch_or(QUEUED, Ordering::AcqRel);
    }

    /// From here on whoever asks gets another turn. Comes before the last look at what there is to do.
    pub(crate) fn end_turn(&self) {
        self.flags.fetch_and(!QUEUED, Ordering::AcqRel);
    }

    /// Whether the future was woken and not polled since.
    pub(crate) fn wants_poll(&self) -> bool {
        self.flags.load(Ordering::Acquire) & POLL != 0
    }

    /// Brings the task that this belongs to mailbox.
    pub(crate) fn spawn(&self, task: Pin<Box<dyn Task>>) {
        self.mailbox.receive(task);
    }
}

/// The letter box of a worker: the part of it that others reach.
pub(crate) struct Mailbox {
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    spawned: Vec<Pin<Box<dyn Task>>>,
    woken: Vec<u32>,
    /// The worker's task, while it waits.
    worker: Option<Waker>,
    /// The worker is gone, with its runtime.
    closed: bool,
}

impl Mailbox {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, key: u32) {
        self.write(|queues| queues.woken.push(key));
    }

    fn receive(&self, task: Pin<Box<dyn Task>>) {
        let mut task = Some(task);
        self.write(|queues| {
            if !queues.closed {
                queues.spawned.extend(task.take());
            }
        });
        // One that comes too late is dropped context, where no lock is held.
        drop(task);
    }

    fn write(&self, write: impl FnOnce(&mut Queues)) {
        let worker = {
            let mut queues = self.queues();
            write(&mut queues);
            queues.worker.take()
        };
        if let Some(worker) = worker {
            worker.wake();
        }
    }
}

/// Where the next task of this runtime is to live: beside whoever has its turn now, so that a link lives
/// with the session that it serves, and otherwise with one worker after the other. A runtime has as many as
/// threads, each begun when it is first needed and ended with the runtime.
///
/// Without a descriptor for a worker's epoll it is a mailbox where nobody lives: whoever moves in is dropped.
pub(crate) fn mailbox() -> Arc<Mailbox> {
    if let Some(mailbox) = CURRENT.with_borrow(Clone::clone) {
        return mailbox;
    }
    static RUNTIMES: Mutex<Vec<Runtime>> = Mutex::new(Vec::new());
    let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = Handle::current();
    let at = runtimes.iter().position(|runtime| runtime.id == handle.id()).unwrap_or_else(|| {
        runtimes.retain(|runtime| runtime.mailboxes.iter().all(|mailbox| !mailbox.queues().closed));
        runtimes.push(Runtime { id: handle.id(), mailboxes: Vec::new(), next: 0 });
        runtimes.len() - 1
    });
    runtimes[at].mailbox(handle.metrics().num_workers())
}

thread_local! {
    /// The worker that is at work on this thread.
    static CURRENT: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
}

struct Runtime {
    id: tokio::runtime::Id,
    mailboxes: Vec<Arc<Mailbox>>,
    next: usize,
}

impl Runtime {
    fn mailbox(&mut self, threads: usize) -> Arc<Mailbox> {
        if self.mailboxes.len() < threads {
            match Worker::begin() {
                Ok(mailbox) => self.mailboxes.push(mailbox),
                Err(error) if self.mailboxes.is_empty() => {
                    tracing::error!(%error, "no worker; the connection is dropped");
                    let queues = Queues { closed: true, ..Queues::default() };
                    return Arc::new(Mailbox { queues: Mutex::new(queues) });
                }
                Err(error) => tracing::debug!(%error, "no further worker"),
            }
        }
        self.next = (self.next + 1) % self.mailboxes.len();
        Arc::clone(&self.mailboxes[self.next])
    }
}

// ---- the worker itself ------------------------------------------------------------------------------

/// See the module.
struct Worker {
    mailbox: Arc<Mailbox>,
    reactor: AsyncFd<Reactor>,
    tasks: Slab<Entry>,
    /// Whose turn it is, in this order.
    queue: Vec<u32>,
    wheel: Wheel,
    alarm: Pin<Box<Sleep>>,
    /// What its tasks sent compressed in this pass and the last.
    packed: Packed,
}

struct Reactor {
    poll: mio::Poll,
    events: Events,
}

impl Reactor {
    /// Queues everyone whose socket became ready; returns how many did.
    fn collect(&mut self, tasks: &mut Slab<Entry>, queue: &mut Vec<u32>) -> usize {
        if let Err(error) = self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            tracing::error!(%error, "epoll failed");
            return 0;
        }
        let mut count = 0;
        for event in &self.events {
            count += 1;
            let key = event.token().0;
            if let Some(entry) = tasks.get_mut(key) {
                entry.readiness.add(event);
                entry.enqueue(key as u32, queue);
            }
        }
        count
    }
}

struct Entry {
    task: Pin<Box<dyn Task>>,
    readiness: Readiness,
    queued: bool,
}

impl Entry {
    fn enqueue(&mut self, key: u32, queue: &mut Vec<u32>) {
        if !std::mem::replace(&mut self.queued, true) {
            queue.push(key);
        }
    }
}

impl std::os::fd::AsRawFd for Reactor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.poll.as_raw_fd()
    }
}

impl Worker {
    fn begin() -> io::Result<Arc<Mailbox>> {
        let mailbox = Arc::new(Mailbox { queues: Mutex::default() });
        let reactor = Reactor { poll: mio::Poll::new()?, events: Events::with_capacity(EVENTS) };
        #[expect(
            deprecated,
            reason = "its successor is unsafe because a type may change or close its descriptor; an epoll does not"
        )]
        let reactor = AsyncFd::with_interest(reactor, tokio::io::Interest::READABLE)?;
        let worker = Self {
            mailbox: Arc::clone(&mailbox),
            reactor,
            tasks: Slab::new(),
            queue: Vec::new(),
            wheel: Wheel::new(now()),
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            packed: Packed::new(),
        };
        tokio::spawn(worker);
        Ok(mailbox)
    }

    /// One pass. `false`: there is nothing to do until something wakes this task.
    fn pass(&mut self, cx: &mut Context<'_>) -> bool {
        let outer = CURRENT.replace(Some(Arc::clone(&self.mailbox)));
        driver::swap_packed(&mut self.packed);
        let worked = self.give_turns(cx);
        driver::swap_packed(&mut self.packed);
        // Dropping what an application wrote may panic.
        let _ = catch_unwind(AssertUnwindSafe(|| self.packed.forget_unused()));
        CURRENT.set(outer);
        worked
    }

    fn give_turns(&mut self, cx: &mut Context<'_>) -> bool {
        self.open_letters();
        self.look_at_sockets(cx);
        self.keep_time();
        let queue = std::mem::take(&mut self.queue);
        let worked = !queue.is_empty();
        let mut turns = queue.iter();
        for key in turns.by_ref() {
            self.give_turn(*key);
            // Handlers that use tokio's own sockets and channels spend this task's budget.
            if !coop::has_budget_remaining() {
                break;
            }
        }
        let rest = turns.as_slice();
        self.queue.splice(0..0, rest.iter().copied());
        if self.queue.is_empty() {
            // Nothing came up meanwhile: keep the memory.
            self.queue = queue;
            self.queue.clear();
        }
        worked
    }

    fn open_letters(&mut self) {
        let (spawned, mut woken) = {
            let mut queues = self.mailbox.queues();
            (std::mem::take(&mut queues.spawned), std::mem::take(&mut queues.woken))
        };
        for task in spawned {
            let entry = self.tasks.vacant_entry();
            let key = u32::try_from(entry.key()).unwrap_or(NOWHERE);
            let signal = task.signal();
            signal.begin_turn();
            signal.key.store(key, Ordering::Release);
            entry.insert(Entry { task, readiness: Readiness::default(), queued: true });
            self.queue.push(key);
        }
        woken.drain(..).for_each(|key| self.enqueue(key));
        let mut queues = self.mailbox.queues();
        if queues.woken.is_empty() {
            queues.woken = woken;
        }
    }

    /// Whoever was woken may have left since; a newcomer in its place does not mind.
    fn enqueue(&mut self, key: u32) {
        if let Some(entry) = self.tasks.get_mut(key as usize) {
            entry.enqueue(key, &mut self.queue);
        }
    }

    fn look_at_sockets(&mut self, cx: &mut Context<'_>) {
        let Self { reactor, tasks, queue, .. } = self;
        while let Poll::Ready(Ok(mut guard)) = reactor.poll_read_ready_mut(cx) {
            if guard.get_inner_mut().collect(tasks, queue) < EVENTS {
                // That was all. What becomes ready from here on makes the epoll itself ready once more.
                guard.clear_ready();
            }
        }
        if !queue.is_empty() {
            // While there is work the runtime looks at its own reactor, and so at ours, only now and then.
            reactor.get_mut().collect(tasks, queue);
        }
    }

    fn keep_time(&mut self) {
        let Self { wheel, tasks, queue, .. } = self;
        wheel.advance(now(), |key| {
            if let Some(entry) = tasks.get_mut(key as usize) {
                entry.enqueue(key, queue);
            }
        });
    }

    fn give_turn(&mut self, key: u32) {
        let Some(entry) = self.tasks.get_mut(key as usize) else { return };
        entry.queued = false;
        let context = TaskContext {
            registry: self.reactor.get_ref().poll.registry(),
            token: Token(key as usize),
            readiness: std::mem::take(&mut entry.readiness),
        };
        entry.task.signal().begin_turn();
        clock::begin_turn();
        // A handler that panics ends its own session and no other.
        let turn = catch_unwind(AssertUnwindSafe(|| entry.task.as_mut().turn(&context)));
        clock::end_turn();
        match turn {
            Ok(TaskPoll::Until(None)) => self.wheel.disarm(key),
            Ok(TaskPoll::Until(Some(at))) => self.wheel.arm(key, at),
            Ok(TaskPoll::Again) => self.enqueue(key),
            Ok(TaskPoll::Done) | Err(_) => {
                self.wheel.disarm(key);
                let entry = self.tasks.remove(key as usize);
                // Dropping what an application wrote may panic as well.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(entry)));
            }
        }
    }

    /// Nobody lives here: what their number made grow is given back.
    fn shrink(&mut self) {
        if self.tasks.capacity() > 0 {
            self.tasks = Slab::new();
            self.wheel.shrink();
            self.queue = Vec::new();
            self.mailbox.queues().woken = Vec::new();
        }
    }

    /// Says when to be woken. `false`: something came up already.
    fn rest(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(at) = self.wheel.next() {
            let at = tokio::time::Instant::from_std(at);
            if self.alarm.deadline() != at {
                self.alarm.as_mut().reset(at);
            }
            if self.alarm.as_mut().poll(cx).is_ready() {
                return false;
            }
        }
        let mut queues = self.mailbox.queues();
        queues.worker = Some(cx.waker().clone());
        queues.woken.is_empty() && queues.spawned.is_empty()
    }
}

impl Future for Worker {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let worked = self.pass(cx);
        if self.tasks.is_empty() {
            self.shrink();
        }
        if worked || !self.rest(cx) {
            // Look again once the other tasks had their turn.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let spawned = {
            let mut queues = self.mailbox.queues();
            queues.closed = true;
            std::mem::take(&mut queues.spawned)
        };
        drop(spawned);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::transport::Transport;

    /// Writes its name down at every turn, and does what `act` says.
    struct Probe<F> {
        signal: Arc<Signal>,
        name: char,
        turns: Arc<Mutex<String>>,
        act: F,
    }

    impl<F: FnMut(&Signal, usize) -> TaskPoll + Send + Unpin> Task for Probe<F> {
        fn signal(&self) -> &Signal {
            &self.signal
        }

        fn turn(self: Pin<&mut Self>, _: &TaskContext<'_>) -> TaskPoll {
            let this = self.get_mut();
            let turn = {
                let mut turns = this.turns.lock().unwrap();
                turns.push(this.name);
                turns.matches(this.name).count()
            };
            this.signal.take_poll();
            (this.act)(&this.signal, turn)
        }
    }

    /// Moves a probe into `mailbox`; the signal is what wakes it.
    fn settle(
        mailbox: &Arc<Mailbox>,
        name: char,
        turns: &Arc<Mutex<String>>,
        act: impl FnMut(&Signal, usize) -> TaskPoll + Send + Unpin + 'static,
    ) -> Arc<Signal> {
        let signal = Arc::new(Signal::new(Arc::clone(mailbox)));
        let probe = Probe { signal: Arc::clone(&signal), name, turns: Arc::clone(turns), act };
        signal.spawn(Box::pin(probe));
        signal
    }

    /// Lets the worker do all there is to do now.
    async fn quiet() {
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
    }

    fn rest(signal: &Signal) -> TaskPoll {
        signal.end_turn();
        if signal.wants_poll() { TaskPoll::Again } else { TaskPoll::Until(None) }
    }

    #[tokio::test]
    async fn everybody_has_a_turn_before_anybody_has_another() {
        let (mailbox, turns) = (Worker::begin().unwrap(), Arc::default());
        for name in ['a', 'b', 'c'] {
            settle(
                &mailbox,
                name,
                &turns,
                |_, turn| if turn < 3 { TaskPoll::Again } else { TaskPoll::Until(None) },
            );
        }
        quiet().await;
        assert_eq!(*turns.lock().unwrap(), "abcabcabc");
    }

    #[tokio::test]
    async fn asking_again_and_again_brings_one_turn() {
        let (mailbox, turns) = (Worker::begin().unwrap(), Arc::default());
        let signal = settle(&mailbox, 'a', &turns, |signal, _| rest(signal));
        quiet().await;
        (0..10).for_each(|_| signal.ask());
        quiet().await;
        assert_eq!(*turns.lock().unwrap(), "aa");
    }

    #[tokio::test]
    async fn who_is_woken_in_the_middle_of_a_turn_gets_another() {
        let (mailbox, turns) = (Worker::begin().unwrap(), Arc::default());
        settle(&mailbox, 'a', &turns, |signal, turn| {
            if turn == 1 {
                signal.wake();
            }
            rest(signal)
        });
        quiet().await;
        assert_eq!(*turns.lock().unwrap(), "aa");
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_resident_and_nobody_else() {
        let (mailbox, turns) = (Worker::begin().unwrap(), Arc::default());
        settle(&mailbox, 'a', &turns, |_, _| panic!("on purpose"));
        let other = settle(&mailbox, 'b', &turns, |signal, _| rest(signal));
        quiet().await;
        other.ask();
        quiet().await;
        assert_eq!(*turns.lock().unwrap(), "abb");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_brings_a_turn() {
        let (mailbox, turns) = (Worker::begin().unwrap(), Arc::<Mutex<String>>::default());
        let start = now();
        settle(&mailbox, 'a', &turns, move |_, _| TaskPoll::Until(Some(start + Duration::from_secs(1))));
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(*turns.lock().unwrap(), "a");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(turns.lock().unwrap().len() > 1);
    }

    /// Has its socket watched from the first turn on, and departs with it at the second if it is to.
    struct Watcher {
        signal: Arc<Signal>,
        socket: Transport,
        departs: bool,
        turns: Arc<AtomicU32>,
    }

    impl Task for Watcher {
        fn signal(&self) -> &Signal {
            &self.signal
        }

        fn turn(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll {
            let this = self.get_mut();
            this.socket.settle(context).unwrap();
            if this.turns.fetch_add(1, Ordering::Relaxed) > 0 && this.departs {
                this.socket.depart(context);
            }
            this.signal.take_poll();
            rest(&this.signal)
        }
    }

    #[tokio::test]
    async fn a_socket_that_departed_brings_no_turn_any_more() {
        let (mailbox, listener) = (Worker::begin().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (mut peers, mut counts) = (Vec::new(), Vec::new());
        for departs in [true, false] {
            peers.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let socket = Transport::tcp(listener.accept().await.unwrap().0);
            let (signal, turns) = (Arc::new(Signal::new(Arc::clone(&mailbox))), Arc::<AtomicU32>::default());
            let watcher = Watcher { signal: Arc::clone(&signal), socket, departs, turns: Arc::clone(&turns) };
            signal.spawn(Box::pin(watcher));
            quiet().await;
            signal.ask();
            quiet().await;
            counts.push(turns);
        }
        let counts = || [0, 1].map(|at: usize| counts[at].load(Ordering::Relaxed));
        let before = counts();
        drop(peers);
        while counts()[1] == before[1] {
            tokio::task::yield_now().await;
        }
        assert_eq!(counts()[0], before[0]);
    }

    #[test]
    fn who_comes_after_the_runtime_has_ended_is_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mailbox = runtime.block_on(async { Worker::begin().unwrap() });
        drop(runtime);
        let turns = Arc::default();
        let signal = settle(&mailbox, 'a', &turns, |_, _| TaskPoll::Until(None));
        assert_eq!(Arc::strong_count(&signal), 1);
    }
}
