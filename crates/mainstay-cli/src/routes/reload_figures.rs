//! How the latest reloads of the configuration went, for metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// The figures of reloads.
#[derive(Debug, Default)]
pub(crate) struct ReloadFigures {
    is_refused: AtomicBool,
    pub(crate) done: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// When the configuration in force was read, in seconds since 1970.
    pub(crate) read_at: AtomicU64,
}

impl ReloadFigures {
    /// Returns whether the latest configuration that was read is in force.
    pub(crate) fn is_successful(&self) -> bool {
        !self.is_refused.load(Relaxed)
    }

    /// A configuration is in force from now on.
    pub(crate) fn count_read(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.read_at.store(now.as_secs(), Relaxed);
        self.is_refused.store(false, Relaxed);
    }

    /// A reload is done.
    pub(crate) fn count_done(&self) {
        self.done.fetch_add(1, Relaxed);
        self.count_read();
    }

    /// A configuration was refused.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
        self.is_refused.store(true, Relaxed);
    }
}
