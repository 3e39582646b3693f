//! What visitors may make the gateway keep: flags, and what is done where something runs out.

use mainstay::client::{Event, Lost};
use mainstay::{Mainstay, Window};

use crate::values;

/// Flags of `mainstay serve` that bound what is kept.
#[derive(clap::Args, Clone)]
pub(crate) struct Bounds {
    /// The most sessions of one address (one /64 of IPv6) that are kept for absent visitors. One more takes the place of
    /// the one that has been away for the longest. Not behind a proxy: all visitors have its address, also if it is
    /// trusted. Without it the address that keeps most loses its own first where places, local ports or memory run out.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    pub(crate) max_parked_per_ip: Option<usize>,
}

/// What a link reads ahead of its visitor. More would be kept beside the session's window while the visitor is away.
pub(crate) const READ_AHEAD: Window = Window { messages: 1024, bytes: 64 * 1024 };

/// A link that found no local port dials again soon: until then the visitor that has been away for the longest gives up
/// its own.
pub(crate) fn make_room(event: &Event, mainstay: &Mainstay) {
    let Event::AttemptFailed { why: Lost::NoPort(reason), .. } = event else { return };
    match mainstay.make_room() {
        true => tracing::warn!(
            reason,
            "no local port to the backend; a session whose visitor is away is given up"
        ),
        false => tracing::warn!(
            reason,
            "no local port to the backend, and no session whose visitor is away for 10 s"
        ),
    }
}
