//! How other threads reach a worker: its mailbox, where tasks are spawned and woken.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::context::{TaskContext, TaskPoll};

/// A future-like unit that a worker polls: it does a bounded amount of work for each poll.
pub(crate) trait Task: Send {
    /// The signal that wakes this task.
    fn signal(&self) -> &Signal;

    /// Polls the task once. Readiness lasts until the task uses it up: a poll that leaves some returns
    /// [`TaskPoll::Again`].
    fn poll_task(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll;
}

/// Wakes one task.
pub(crate) struct Signal {
    mailbox: Arc<Mailbox>,
    /// The task's key at its worker; [`NOT_SPAWNED`] before the worker has taken the task over.
    key: AtomicU32,
    flags: AtomicU8,
}

pub(super) const NOT_SPAWNED: u32 = u32::MAX;
/// The worker will poll the task: no caller need ask for it.
const QUEUED: u8 = 1;
/// The task's future was woken.
const POLL: u8 = 2;

impl Signal {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, key: AtomicU32::new(NOT_SPAWNED), flags: AtomicU8::new(POLL) }
    }

    /// Asks the worker to poll the task, after a change behind a lock that the task takes after
    /// [`end_poll`](Self::end_poll). Because of that lock it is enough to check whether a poll is coming.
    pub(crate) fn ask(&self) {
        if self.flags.load(Ordering::Acquire) & QUEUED == 0 {
            self.raise(QUEUED);
        }
    }

    /// Asks the worker for a poll in which the task polls its future.
    pub(crate) fn wake(&self) {
        self.raise(QUEUED | POLL);
    }

    fn raise(&self, flags: u8) {
        // Most often the task itself is being polled, and looks again before that poll ends.
        let before = self.flags.fetch_or(flags, Ordering::AcqRel);
        let key = self.key.load(Ordering::Acquire);
        if before & QUEUED == 0 && key != NOT_SPAWNED {
            self.mailbox.wake(key);
        }
    }

    /// Whether the future was woken since the last call.
    pub(crate) fn take_wake(&self) -> bool {
        self.flags.fetch_and(!POLL, Ordering::AcqRel) & POLL != 0
    }

    /// The worker has given the task this key.
    pub(super) fn set_key(&self, key: u32) {
        self.key.store(key, Ordering::Release);
    }

    /// A poll begins. Until [`end_poll`](Self::end_poll) asking is free of charge.
    pub(super) fn begin_poll(&self) {
        self.flags.fetch_or(QUEUED, Ordering::AcqRel);
    }

    /// From here on a caller that asks gets another poll. Comes before the last look at what there is to do.
    pub(crate) fn end_poll(&self) {
        self.flags.fetch_and(!QUEUED, Ordering::AcqRel);
    }

    /// Whether the future was woken and not polled since.
    pub(crate) fn is_woken(&self) -> bool {
        self.flags.load(Ordering::Acquire) & POLL != 0
    }

    /// Sends the task that this signal wakes to its worker.
    pub(crate) fn spawn(&self, task: Pin<Box<dyn Task>>) {
        self.mailbox.spawn(task);
    }
}

/// The injection queues of a worker.
pub(crate) struct Mailbox {
    queues: Mutex<Queues>,
}

#[derive(Default)]
pub(super) struct Queues {
    pub(super) spawned: Vec<Pin<Box<dyn Task>>>,
    pub(super) woken: Vec<u32>,
    /// The waker of the worker's own tokio task, while that waits.
    pub(super) worker: Option<Waker>,
    /// The worker has ended, with its runtime.
    pub(super) closed: bool,
}

impl Mailbox {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { queues: Mutex::default() })
    }

    /// A mailbox without a worker: it drops each task that is spawned.
    pub(super) fn without_worker() -> Arc<Self> {
        Arc::new(Self { queues: Mutex::new(Queues { closed: true, ..Queues::default() }) })
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, key: u32) {
        self.write(|queues| queues.woken.push(key));
    }

    fn spawn(&self, task: Pin<Box<dyn Task>>) {
        let mut task = Some(task);
        self.write(|queues| {
            if !queues.closed {
                queues.spawned.extend(task.take());
            }
        });
        // A task that comes too late is dropped here, where no lock is held.
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

thread_local! {
    static CURRENT: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
}

/// The mailbox of the worker that is polling its tasks on this thread.
pub(super) fn current() -> Option<Arc<Mailbox>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Makes `mailbox` the current one of this thread and returns the one before.
pub(super) fn replace_current(mailbox: Option<Arc<Mailbox>>) -> Option<Arc<Mailbox>> {
    CURRENT.replace(mailbox)
}
