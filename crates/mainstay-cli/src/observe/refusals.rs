//! What the admin listener refused, for its metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Requests that were refused, by reason. Cheap to clone; clones share the figures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Arc<[AtomicU64; Refusal::ALL.len()]>);

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A wrong token, or none.
    Token,
    /// Too many wrong tokens.
    Guesses,
    /// The Host is not this machine.
    Host,
    /// The request may come from a page of another site.
    Intent,
}

impl Refusal {
    const ALL: [Self; 4] = [Self::Token, Self::Guesses, Self::Host, Self::Intent];
}

impl Refusals {
    /// The reasons, as metrics name them.
    pub(crate) const REASONS: [&'static str; Refusal::ALL.len()] = ["token", "guesses", "host", "intent"];

    /// Returns the figures, in the order of [`REASONS`](Self::REASONS).
    pub(crate) fn figures(&self) -> [u64; Refusal::ALL.len()] {
        self.0.each_ref().map(|count| count.load(Relaxed))
    }

    pub(crate) fn count(&self, why: Refusal) {
        if let Some(count) = self.0.get(why as usize) {
            count.fetch_add(1, Relaxed);
        }
    }
}
