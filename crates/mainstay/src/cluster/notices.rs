//! Warnings that would repeat with every connection: each kind is logged once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The kinds that were logged.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<BTreeSet<&'static str>>);

impl Notices {
    /// Whether this is the first of its kind.
    pub(super) fn is_first(&self, kind: &'static str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(kind)
    }
}
