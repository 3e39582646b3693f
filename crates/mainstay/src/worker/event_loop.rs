//! The tokio task of a worker: it collects the tasks that have something to do, and polls them.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mainstay_proto::ws::Packed;
use mio::{Events, Token};
use slab::Slab;
use tokio::io::unix::AsyncFd;
use tokio::task::coop;
use tokio::time::Sleep;

use super::context::{Readiness, SIDES, TaskContext, TaskPoll};
use super::mailbox::{self, Mailbox, NOT_SPAWNED, Task};
use super::scratch;
use super::wheel::Wheel;
use crate::clock::{self, now};

/// Sockets that one call of epoll reports.
const EVENTS: usize = 1024;

/// A worker: see the [module above](super).
pub(super) struct EventLoop {
    mailbox: Arc<Mailbox>,
    reactor: AsyncFd<Reactor>,
    tasks: Slab<Entry>,
    /// The keys of the tasks to poll, in this order.
    queue: Vec<u32>,
    wheel: Wheel,
    alarm: Pin<Box<Sleep>>,
    /// What its tasks compressed in this pass and the last.
    packed: Packed,
}

struct Reactor {
    poll: mio::Poll,
    events: Events,
}

impl Reactor {
    /// Queues each task whose socket became ready; returns how many events there were.
    fn collect(&mut self, tasks: &mut Slab<Entry>, queue: &mut Vec<u32>) -> usize {
        if let Err(error) = self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            tracing::error!(%error, "epoll failed");
            return 0;
        }
        let mut count = 0;
        for event in &self.events {
            count += 1;
            let key = event.token().0 / SIDES;
            let side = event.token().0 - key * SIDES;
            if let Some(entry) = tasks.get_mut(key) {
                entry.readiness[side].add(event);
                entry.enqueue(key as u32, queue);
            }
        }
        count
    }
}

struct Entry {
    task: Pin<Box<dyn Task>>,
    readiness: [Readiness; SIDES],
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

impl EventLoop {
    /// Starts a worker on the current runtime.
    pub(super) fn begin() -> io::Result<Arc<Mailbox>> {
        let mailbox = Mailbox::new();
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

    /// Runs one pass. Returns `false` if no task was polled.
    fn pass(&mut self, cx: &mut Context<'_>) -> bool {
        let outer = mailbox::replace_current(Some(Arc::clone(&self.mailbox)));
        scratch::swap_packed(&mut self.packed);
        let worked = self.poll_tasks(cx);
        scratch::swap_packed(&mut self.packed);
        // The drop of a value of the application may panic.
        let _ = catch_unwind(AssertUnwindSafe(|| self.packed.forget_unused()));
        mailbox::replace_current(outer);
        worked
    }

    fn poll_tasks(&mut self, cx: &mut Context<'_>) -> bool {
        self.empty_mailbox();
        self.collect_readiness(cx);
        self.fire_deadlines();
        let queue = std::mem::take(&mut self.queue);
        let worked = !queue.is_empty();
        let mut keys = queue.iter();
        for key in keys.by_ref() {
            self.poll_task(*key);
            // Handlers that use tokio's own sockets and channels spend this task's budget.
            if !coop::has_budget_remaining() {
                break;
            }
        }
        let rest = keys.as_slice();
        self.queue.splice(0..0, rest.iter().copied());
        if self.queue.is_empty() {
            // No task was queued meanwhile: keep the allocation.
            self.queue = queue;
            self.queue.clear();
        }
        worked
    }

    fn empty_mailbox(&mut self) {
        let (spawned, mut woken) = {
            let mut queues = self.mailbox.queues();
            (std::mem::take(&mut queues.spawned), std::mem::take(&mut queues.woken))
        };
        for task in spawned {
            let entry = self.tasks.vacant_entry();
            let key = u32::try_from(entry.key()).unwrap_or(NOT_SPAWNED);
            let signal = task.signal();
            signal.begin_poll();
            signal.set_key(key);
            entry.insert(Entry { task, readiness: Default::default(), queued: true });
            self.queue.push(key);
        }
        woken.drain(..).for_each(|key| self.enqueue(key));
        let mut queues = self.mailbox.queues();
        if queues.woken.is_empty() {
            queues.woken = woken;
        }
    }

    /// The task may have ended since; waking its successor in the slot is harmless.
    fn enqueue(&mut self, key: u32) {
        if let Some(entry) = self.tasks.get_mut(key as usize) {
            entry.enqueue(key, &mut self.queue);
        }
    }

    fn collect_readiness(&mut self, cx: &mut Context<'_>) {
        let Self { reactor, tasks, queue, .. } = self;
        while let Poll::Ready(Ok(mut guard)) = reactor.poll_read_ready_mut(cx) {
            if guard.get_inner_mut().collect(tasks, queue) < EVENTS {
                // That was all. A socket that becomes ready from here on makes the epoll itself ready once more.
                guard.clear_ready();
            }
        }
        if !queue.is_empty() {
            // While there is work, the runtime polls its own reactor, and so ours, only now and then.
            reactor.get_mut().collect(tasks, queue);
        }
    }

    fn fire_deadlines(&mut self) {
        let Self { wheel, tasks, queue, .. } = self;
        wheel.advance(now(), |key| {
            if let Some(entry) = tasks.get_mut(key as usize) {
                entry.enqueue(key, queue);
            }
        });
    }

    fn poll_task(&mut self, key: u32) {
        let Some(entry) = self.tasks.get_mut(key as usize) else { return };
        entry.queued = false;
        let readiness = std::mem::take(&mut entry.readiness);
        let context = TaskContext {
            registry: self.reactor.get_ref().poll.registry(),
            token: Token(key as usize * SIDES),
            readiness: readiness[0],
            #[cfg(feature = "cluster")]
            other: readiness[1],
        };
        entry.task.signal().begin_poll();
        clock::begin_poll();
        // A handler that panics ends its own session and no other.
        let polled = catch_unwind(AssertUnwindSafe(|| entry.task.as_mut().poll_task(&context)));
        clock::end_poll();
        match polled {
            Ok(TaskPoll::Until(None)) => self.wheel.disarm(key),
            Ok(TaskPoll::Until(Some(at))) => self.wheel.arm(key, at),
            Ok(TaskPoll::Again) => self.enqueue(key),
            Ok(TaskPoll::Done) | Err(_) => {
                self.wheel.disarm(key);
                let entry = self.tasks.remove(key as usize);
                // The drop of a value of the application may panic as well.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(entry)));
            }
        }
    }

    /// Frees what earlier tasks made grow. Only for a worker without tasks.
    fn shrink(&mut self) {
        if self.tasks.capacity() > 0 {
            self.tasks = Slab::new();
            self.wheel.shrink();
            self.queue = Vec::new();
            self.mailbox.queues().woken = Vec::new();
        }
    }

    /// Registers for the next wake-up. Returns `false` if there is something to do already.
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

impl Future for EventLoop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let worked = self.pass(cx);
        if self.tasks.is_empty() {
            self.shrink();
        }
        if worked || !self.rest(cx) {
            // Poll again once the other tasks of the runtime were polled.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for EventLoop {
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
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::transport::Transport;
    use crate::worker::Signal;

    /// Appends its name to `turns` at every poll, and calls `act`.
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

        fn poll_task(self: Pin<&mut Self>, _: &TaskContext<'_>) -> TaskPoll {
            let this = self.get_mut();
            let turn = {
                let mut turns = this.turns.lock().unwrap();
                turns.push(this.name);
                turns.matches(this.name).count()
            };
            this.signal.take_wake();
            (this.act)(&this.signal, turn)
        }
    }

    /// Spawns a probe at `mailbox`, and returns the signal that wakes it.
    fn spawn(
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

    /// Lets the worker do everything that it can do now.
    async fn quiet() {
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
    }

    fn rest(signal: &Signal) -> TaskPoll {
        signal.end_poll();
        if signal.is_woken() { TaskPoll::Again } else { TaskPoll::Until(None) }
    }

    #[tokio::test]
    async fn each_task_is_polled_once_before_any_is_polled_again() {
        let (mailbox, turns) = (EventLoop::begin().unwrap(), Arc::default());
        for name in ['a', 'b', 'c'] {
            spawn(
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
    async fn a_task_that_is_asked_for_many_times_is_polled_once() {
        let (mailbox, turns) = (EventLoop::begin().unwrap(), Arc::default());
        let signal = spawn(&mailbox, 'a', &turns, |signal, _| rest(signal));
        quiet().await;
        (0..10).for_each(|_| signal.ask());
        quiet().await;
        assert_eq!(*turns.lock().unwrap(), "aa");
    }

    #[tokio::test]
    async fn a_task_that_is_woken_while_it_is_polled_is_polled_again() {
        let (mailbox, turns) = (EventLoop::begin().unwrap(), Arc::default());
        spawn(&mailbox, 'a', &turns, |signal, turn| {
            if turn == 1 {
                signal.wake();
            }
            rest(signal)
        });
        quiet().await;
        assert_eq!(*turns.lock().unwrap(), "aa");
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_task_and_no_other() {
        let (mailbox, turns) = (EventLoop::begin().unwrap(), Arc::default());
        spawn(&mailbox, 'a', &turns, |_, _| panic!("on purpose"));
        let other = spawn(&mailbox, 'b', &turns, |signal, _| rest(signal));
        quiet().await;
        other.ask();
        quiet().await;
        assert_eq!(*turns.lock().unwrap(), "abb");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_polls_its_task() {
        let (mailbox, turns) = (EventLoop::begin().unwrap(), Arc::<Mutex<String>>::default());
        let start = now();
        spawn(&mailbox, 'a', &turns, move |_, _| TaskPoll::Until(Some(start + Duration::from_secs(1))));
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(*turns.lock().unwrap(), "a");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(turns.lock().unwrap().len() > 1);
    }

    /// Registers its socket at the first poll, and deregisters it at the second if `deregisters` is set.
    struct Watcher {
        signal: Arc<Signal>,
        socket: Transport,
        deregisters: bool,
        turns: Arc<AtomicU32>,
    }

    impl Task for Watcher {
        fn signal(&self) -> &Signal {
            &self.signal
        }

        fn poll_task(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll {
            let this = self.get_mut();
            this.socket.register(context).unwrap();
            if this.turns.fetch_add(1, Ordering::Relaxed) > 0 && this.deregisters {
                this.socket.deregister(context);
            }
            this.signal.take_wake();
            rest(&this.signal)
        }
    }

    #[tokio::test]
    async fn a_deregistered_socket_does_not_wake_its_task() {
        let (mailbox, listener) =
            (EventLoop::begin().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (mut peers, mut counts) = (Vec::new(), Vec::new());
        for deregisters in [true, false] {
            peers.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let socket = Transport::tcp(listener.accept().await.unwrap().0);
            let (signal, turns) = (Arc::new(Signal::new(Arc::clone(&mailbox))), Arc::<AtomicU32>::default());
            let watcher =
                Watcher { signal: Arc::clone(&signal), socket, deregisters, turns: Arc::clone(&turns) };
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
    fn a_task_that_is_spawned_after_its_runtime_ended_is_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mailbox = runtime.block_on(async { EventLoop::begin().unwrap() });
        drop(runtime);
        let turns = Arc::default();
        let signal = spawn(&mailbox, 'a', &turns, |_, _| TaskPoll::Until(None));
        assert_eq!(Arc::strong_count(&signal), 1);
    }
}
