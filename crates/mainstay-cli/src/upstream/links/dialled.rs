//! The addresses that one link dials, where there are several.
//!
//! The link chooses an address before each attempt, in its own task; its monitor learns later how the attempt ended. Attempts
//! and their outcomes come in the same order, so the oldest open attempt is the one that an outcome is about.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Lease;

/// How many attempts may be without an outcome: a link makes one at a time, and its monitor is polled beside it.
const MAX_OPEN: usize = 16;

/// The attempts of a link, and the address that it is attached to.
#[derive(Default)]
pub(crate) struct Dialled(Mutex<Attempts>);

#[derive(Default)]
struct Attempts {
    /// Attempts without an outcome, the oldest first.
    open: VecDeque<Lease>,
    attached: Option<Lease>,
    /// The addresses that failed since the link was attached last, or since all of them had failed.
    tried: Vec<usize>,
}

impl Dialled {
    /// The link begins with the connection of a request.
    pub(crate) fn with(lease: Lease) -> Self {
        let attempts = Attempts { open: VecDeque::from([lease]), ..Attempts::default() };
        Self(Mutex::new(attempts))
    }

    /// Chooses the address of the next attempt.
    pub(crate) fn begin(&self, choose: impl FnOnce(&[usize]) -> Lease) -> usize {
        let mut attempts = self.attempts();
        let lease = choose(&attempts.tried);
        let address = lease.address;
        attempts.open.push_back(lease);
        if attempts.open.len() > MAX_OPEN {
            attempts.open.pop_front();
        }
        address
    }

    /// The oldest attempt brought a connection. Returns its address.
    pub(super) fn attached(&self) -> Option<usize> {
        let mut attempts = self.attempts();
        attempts.tried.clear();
        let lease = attempts.open.pop_front();
        if lease.is_some() {
            attempts.attached = lease;
        }
        attempts.attached.as_ref().map(|lease| lease.address)
    }

    /// The oldest attempt failed. Returns its address, and whether one of `count` addresses is left to try.
    pub(super) fn failed(&self, count: usize) -> Option<(usize, bool)> {
        let mut attempts = self.attempts();
        let address = attempts.open.pop_front()?.address;
        if !attempts.tried.contains(&address) {
            attempts.tried.push(address);
        }
        let is_left = attempts.tried.len() < count;
        if !is_left {
            attempts.tried.clear();
        }
        Some((address, is_left))
    }

    /// The connection ended. Returns its address.
    pub(super) fn detached(&self) -> Option<usize> {
        self.attempts().attached.take().map(|lease| lease.address)
    }

    /// Returns the address that the link's end is about.
    pub(super) fn last(&self) -> Option<usize> {
        let attempts = self.attempts();
        attempts.open.front().or(attempts.attached.as_ref()).map(|lease| lease.address)
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
