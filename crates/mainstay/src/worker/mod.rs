//! Workers: each polls many connections from one tokio task.
//!
//! A tokio task, a timer and an entry in tokio's reactor for every connection cost a kilobyte and a few microseconds for
//! each heartbeat. A worker has one of each for all its *tasks*: an epoll of its own behind one
//! [`AsyncFd`](tokio::io::unix::AsyncFd), a timer wheel behind one `Sleep`, and a run queue.
//!
//! ```text
//! a pass:  spawned and woken tasks -> ready sockets -> expired deadlines -> one poll for each of these tasks
//! ```
//!
//! A pass polls each task at most once, a poll is bounded, and after a pass the other tasks of the runtime run. That
//! bounds the wait of a ready connection when thousands are busy.
//!
//! A task stays with its worker for life. Any thread wakes it through its [`Signal`]; a future inside the task needs no
//! knowledge of that, because the [`Waker`](std::task::Waker) that it is polled with leads to the same signal.
//!
//! Not here: what a poll does (the server's and the client's tasks), and what a machine decides.

mod context;
mod event_loop;
mod mailbox;
mod runtimes;
mod scratch;
mod wheel;

pub(crate) use self::context::{Readiness, TaskContext, TaskPoll};
pub(crate) use self::mailbox::{Mailbox, Signal, Task};
pub(crate) use self::runtimes::mailbox;
pub(crate) use self::scratch::{Scratch, with_scratch};
