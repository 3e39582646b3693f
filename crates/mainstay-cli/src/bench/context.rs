//! The state of a worker that its peers use.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mainstay_proto::ws::SendQueue;

use super::counts::{Counts, WINDOW};
use super::plan::{Load, Phase, Plan, Shared};

/// The part of a worker that its peers use.
pub(super) struct Context {
    pub(super) plan: Arc<Plan>,
    pub(super) shared: Arc<Shared>,
    pub(super) phase: Phase,
    /// Nanoseconds since the run began, as of the last read.
    pub(super) now: u64,
    /// Nanoseconds between two messages of one connection, if the run has a rate.
    pub(super) period: u64,
    /// When the measurement began.
    pub(super) measured: u64,
    pub(super) out: SendQueue,
    pub(super) counts: Counts,
    pub(super) opening: u32,
    /// Counted since the last publication.
    pub(super) unreported: u64,
}

impl Context {
    pub(super) fn update_now(&mut self) {
        self.now = self.shared.now();
    }

    pub(super) fn instant(&self) -> Instant {
        self.shared.started + Duration::from_nanos(self.now)
    }

    pub(super) fn is_loaded(&self) -> bool {
        matches!(self.phase, Phase::WarmUp | Phase::Measure)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.phase >= Phase::Close
    }

    pub(super) fn opened(&mut self, began: u64) {
        self.opening = self.opening.saturating_sub(1);
        self.counts.opening.saturating_record(self.now.saturating_sub(began));
        self.shared.opened.fetch_add(1, Relaxed);
        if self.plan.load == Load::Storm && self.phase == Phase::Measure {
            self.shared.back.fetch_add(1, Relaxed);
            self.answered(self.measured);
        }
    }

    /// Counts an answer to what was due at `sent`.
    pub(super) fn answered(&mut self, sent: u64) {
        self.counts.done += 1;
        self.unreported += 1;
        self.counts.latency.saturating_record(self.now.saturating_sub(sent));
    }

    pub(super) fn ping(&mut self) {
        let window = (self.now.saturating_sub(self.measured) / WINDOW) as usize;
        if self.phase == Phase::Measure {
            self.counts.pings += 1;
            self.counts.windows.resize(self.counts.windows.len().max(window + 1), 0);
            self.counts.windows.iter_mut().skip(window).take(1).for_each(|count| *count += 1);
        }
        if self.plan.load == Load::Idle {
            self.unreported += 1;
        }
    }
}
