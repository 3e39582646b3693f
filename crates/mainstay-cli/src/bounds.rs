//! What visitors may make the gateway keep: flags, and what is done where something runs out.

use mainstay::client::{ConnectFailure, Event, FailureKind, Lost};
use mainstay::{Budget, Server, Window};

use crate::values;

/// Flags of `mainstay serve` that bound what is kept.
#[derive(clap::Args, Clone)]
pub(crate) struct Bounds {
    /// The most sessions of one address (one /64 of IPv6) that are kept for absent visitors. One more takes the place of
    /// the one that has been away for the longest. Not behind a proxy: all visitors have its address, also if it is
    /// trusted. Without it the address that keeps most loses its own first where places, local ports or memory run out.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    pub(crate) max_parked_per_ip: Option<usize>,
    /// What all visitors and links may keep together: messages that wait, are not acknowledged, or are not complete. When
    /// it is nearly used up, those that keep most wait, sessions of absent visitors are given up, and newcomers are
    /// refused. Default: a quarter of the memory that the process may use, its control group included.
    #[arg(long, value_name = "SIZE|off", value_parser = values::memory_budget)]
    memory_budget: Option<Budget>,
}

impl Bounds {
    /// The budget, beside which `max_message` has room.
    pub(crate) fn budget(&self, max_message: usize) -> Budget {
        let budget = self.memory_budget.clone().unwrap_or_default();
        if let Some(limit) = budget.limit().filter(|limit| *limit / 2 < max_message as u64) {
            tracing::warn!(
                budget = limit,
                max_message,
                "--max-message is more than half of the memory budget: the largest messages may not get through; \
                 pass a lower --max-message, or a larger --memory-budget"
            );
        }
        budget
    }
}

/// What a link reads ahead of its visitor. More would be kept beside the session's window while the visitor is away.
pub(crate) const READ_AHEAD: Window = Window { messages: 1024, bytes: 64 * 1024 };

/// What a link's event says of bounds. One that found no local port dials again soon: until then the visitor that has
/// been away for the longest gives up its own. A message of the backend above `--max-message` ends the link with 1009.
pub(crate) fn note(event: &Event, mainstay: &Server) {
    match event {
        Event::AttemptFailed { why: Lost::NotConnected(failure), .. } => note_failure(failure, mainstay),
        Event::Detached { why: Lost::TooBig { limit }, .. } => {
            tracing::warn!(
                limit,
                "the backend sent more than --max-message: its visitor is closed with 1009"
            );
        }
        _ => {}
    }
}

/// As [`note`], for any connection to the backend.
pub(crate) fn note_failure(failure: &ConnectFailure, mainstay: &Server) {
    if failure.kind != FailureKind::NoLocalPort {
        return;
    }
    match mainstay.make_room() {
        true => tracing::warn!(%failure, "a session whose visitor is away is given up for its local port"),
        false => tracing::warn!(%failure, "and no session whose visitor has been away for 10 s"),
    }
}
