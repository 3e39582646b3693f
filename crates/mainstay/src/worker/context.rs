//! What a task gets for one poll, and what it returns.

use std::io;
use std::time::Instant;

use mio::{Interest, Registry, Token};

/// What the worker passes to a task that it polls.
pub(crate) struct TaskContext<'a> {
    pub(super) registry: &'a Registry,
    pub(super) token: Token,
    /// What the sockets of this side became ready for since the task's last poll.
    pub(crate) readiness: Readiness,
    /// The same of the other side.
    #[cfg(feature = "cluster")]
    pub(super) other: Readiness,
}

/// The sides of a task, each with a readiness of its own: a relay has two sockets at once, any other task one.
pub(super) const SIDES: usize = if cfg!(feature = "cluster") { 2 } else { 1 };

impl TaskContext<'_> {
    /// Registers `socket` with the worker's epoll, which reports its readiness to this task.
    pub(crate) fn register(&self, socket: &mut mio::net::TcpStream) -> io::Result<()> {
        self.registry.register(socket, self.token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Deregisters `socket`, so that its late events are not attributed to the task's next socket.
    pub(crate) fn deregister(&self, socket: &mut mio::net::TcpStream) {
        let _ = self.registry.deregister(socket);
    }

    /// Returns the context of the task's other side.
    #[cfg(feature = "cluster")]
    pub(crate) fn other_side(&self) -> Self {
        let Self { registry, token: Token(token), readiness, other } = *self;
        Self { registry, token: Token(token ^ 1), readiness: other, other: readiness }
    }
}

/// The outcome of one poll of a task.
pub(crate) enum TaskPoll {
    /// The task is idle until it is woken, one of its sockets is ready, or this deadline passes.
    Until(Option<Instant>),
    /// The task has more to do; the worker polls its other tasks first.
    Again,
    /// The task has ended.
    Done,
}

/// What a socket that a worker watches can do without waiting. Readiness is edge-triggered: the epoll reports each edge
/// once, and it holds until a call uses it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The stream has ended or failed: a read returns at once.
    pub(crate) ended: bool,
}

impl Readiness {
    /// Adds what an event of the worker's epoll reports.
    pub(super) fn add(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable();
        self.writable |= event.is_writable();
        self.ended |= event.is_read_closed() || event.is_error();
    }

    /// Adds what was reported since. A stream that has ended is readable.
    pub(crate) fn merge(&mut self, other: Self) {
        self.readable |= other.readable | other.ended;
        self.writable |= other.writable;
        self.ended |= other.ended;
    }
}
