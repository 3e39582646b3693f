//! Limits on what clients may make the gateway keep: their flags, and what happens when a resource runs out.

use mainstay::client::{ConnectFailure, Event, FailureKind, Lost};
use mainstay::{Budget, Server, Window};

use crate::values;

/// Flags of `mainstay serve` that limit what is kept.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Maximum number of parked sessions (their client is away) of one address, which is one /64 in IPv6. A session above
    /// the limit replaces the one whose client has been away longest. Behind a proxy list it as --trusted-proxy: then each
    /// client has its own address, or else all have the proxy's. Default: no limit. When sessions, local ports or memory
    /// run out, the address with the most parked sessions loses its oldest first. Range: 0 and above.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    max_parked_per_ip: Option<usize>,
    /// Memory for all messages that wait, are not acknowledged or are not complete, of all clients and links together.
    /// When it is nearly used up, the connections that keep most are slowed down, parked sessions are evicted and new
    /// clients are refused. Default: a quarter of the memory that the process may use, its control group included.
    /// Range: 1MiB to 1024TiB, or off.
    #[arg(long, value_name = "SIZE|off", value_parser = values::memory_budget)]
    memory_budget: Option<Budget>,
}

/// Warns if the largest message of a route does not fit into the memory budget.
pub(crate) fn warn_about_budget(budget: &Budget, max_message: usize) {
    if let Some(limit) = budget.limit().filter(|limit| *limit / 2 < max_message as u64) {
        tracing::warn!(
            budget = limit,
            max_message,
            "--max-message is more than half of the memory budget, so the largest messages may not get through; \
             lower --max-message or raise --memory-budget"
        );
    }
}

/// How much a link reads ahead of its client. Read-ahead is kept in addition to the session's window while the client is
/// away, so it is small.
pub(crate) const READ_AHEAD: Window = Window { messages: 1024, bytes: 64 * 1024 };

/// Reacts to an event of a link that reports an exhausted resource or an exceeded limit.
pub(crate) fn handle_event(event: &Event, server: &Server) {
    match event {
        Event::AttemptFailed { why: Lost::NotConnected(failure), .. } => free_port(failure, server),
        Event::Detached { why: Lost::TooBig { limit }, .. } => {
            tracing::warn!(
                limit,
                "the backend sent a message above --max-message; its client is closed with 1009"
            );
        }
        _ => {}
    }
}

/// Evicts the session whose client has been away longest if a connection failed because no local port is left. The
/// link dials again soon and finds the port.
pub(crate) fn free_port(failure: &ConnectFailure, server: &Server) {
    if failure.kind != FailureKind::NoLocalPort {
        return;
    }
    match server.make_room() {
        true => tracing::warn!(%failure, "evicted a parked session to free its local port"),
        false => {
            tracing::warn!(%failure, "no parked session is old enough (10 s) to evict for its local port")
        }
    }
}
