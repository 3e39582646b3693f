//! The workers of each tokio runtime: as many as it has threads, each begun when it is first needed.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::{Handle, Id};

use super::event_loop::EventLoop;
use super::mailbox::{self, Mailbox};

/// Picks the worker of a new task: the current one inside a poll, so that a link stays with the session that it serves;
/// otherwise the workers of this runtime in turn. A worker ends with its runtime.
///
/// Where the system has no descriptor for a worker's epoll, the mailbox that this returns drops each task.
pub(crate) fn mailbox() -> Arc<Mailbox> {
    static RUNTIMES: Mutex<Vec<Runtime>> = Mutex::new(Vec::new());
    if let Some(mailbox) = mailbox::current() {
        return mailbox;
    }
    let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = Handle::current();
    let at = runtimes.iter().position(|runtime| runtime.id == handle.id()).unwrap_or_else(|| {
        runtimes.retain(|runtime| runtime.mailboxes.iter().all(|mailbox| !mailbox.queues().closed));
        runtimes.push(Runtime { id: handle.id(), mailboxes: Vec::new(), next: 0 });
        runtimes.len() - 1
    });
    runtimes[at].mailbox(handle.metrics().num_workers())
}

struct Runtime {
    id: Id,
    mailboxes: Vec<Arc<Mailbox>>,
    next: usize,
}

impl Runtime {
    fn mailbox(&mut self, threads: usize) -> Arc<Mailbox> {
        if self.mailboxes.len() < threads {
            match EventLoop::begin() {
                Ok(mailbox) => self.mailboxes.push(mailbox),
                Err(error) if self.mailboxes.is_empty() => {
                    tracing::error!(%error, "no worker can be started; the connection is dropped");
                    return Mailbox::without_worker();
                }
                Err(error) => tracing::debug!(%error, "no further worker can be started"),
            }
        }
        self.next = (self.next + 1) % self.mailboxes.len();
        Arc::clone(&self.mailboxes[self.next])
    }
}
