//! Buffers of the thread that a worker polls its tasks on: connections at rest have none of their own.

use std::cell::RefCell;

use mainstay_proto::ws::{Packed, SendQueue};

/// The most bytes of one read: a connection's share before the others have theirs.
const READ: usize = 64 * 1024;

/// See the module.
pub(crate) struct Scratch {
    pub(crate) read: Vec<u8>,
    pub(crate) write: SendQueue,
    /// The current worker's compression cache.
    pub(crate) packed: Packed,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { read: vec![0; READ], write: SendQueue::new(), packed: Packed::new() });
}

/// Calls `f` with this thread's buffers.
pub(crate) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(f)
}

/// Lends a worker's compression cache to the tasks that it polls on this thread, and returns it after: its next pass
/// may run on another thread.
pub(super) fn swap_packed(packed: &mut Packed) {
    SCRATCH.with_borrow_mut(|scratch| std::mem::swap(&mut scratch.packed, packed));
}
