//! The heartbeat that keeps connections on a path open, for each who can send one.

use std::time::Duration;

use super::judgement::Heartbeat;
use super::report::ms;
use super::words::span;

/// The default of Mainstay's `--heartbeat`.
pub(crate) const DEFAULT: Duration = Duration::from_secs(25);
/// Intervals that people write, in milliseconds.
const STEPS: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 20_000];

/// Which end's bytes keep a silent connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    Either,
    /// Bytes from the client alone do not.
    Server,
    /// Bytes from the server alone do not.
    Client,
    Unknown,
}

/// Returns the advice for a path that ends connections after this silence; without a limit the default holds.
pub(crate) fn advise(limit: Option<Duration>, counts: Counts) -> Heartbeat {
    let interval = limit.map_or(DEFAULT, interval_below);
    let every = span(interval);
    let server = match counts {
        Counts::Client => format!(
            "a Ping (RFC 6455) to each client every {every}: the client's Pong counts, the Ping does not"
        ),
        Counts::Either | Counts::Server | Counts::Unknown => {
            format!("a Ping (RFC 6455) to each client every {every}")
        }
    };
    let client = match counts {
        Counts::Server => format!(
            "bytes from the client do not count on this path: a client keeps a connection only by what the server answers, so by a \
             Ping every {every}; a page, which cannot send Pings, by a message that the server answers"
        ),
        Counts::Either | Counts::Client | Counts::Unknown => format!(
            "or, if the server sends none: a Ping every {every}; a page, which cannot send Pings, by a message that the server answers"
        ),
    };
    let mainstay = match interval {
        DEFAULT => {
            "nothing to set: its heartbeat is 25 s by default (--heartbeat, heartbeatMs, Config::heartbeat)"
                .to_owned()
        }
        _ => format!(
            "mainstay serve --heartbeat {0}; heartbeatMs: {1} in the Fastify plugin; Config::heartbeat in Rust",
            humantime::format_duration(interval),
            interval.as_millis()
        ),
    };
    Heartbeat {
        interval_ms: ms(interval),
        at_most_ms: limit.map(|limit| ms(limit / 2)),
        server,
        client,
        mainstay,
    }
}

/// The longest usual interval of which about two fit into the limit, which is measured, so that one heartbeat may be late; at most
/// the default.
fn interval_below(limit: Duration) -> Duration {
    if limit * 11 / 20 >= DEFAULT {
        return DEFAULT;
    }
    let half = limit * 11 / 20;
    let steps = STEPS.iter().rev().map(|&step| Duration::from_millis(step));
    steps.into_iter().find(|&step| step <= half).unwrap_or(Duration::from_millis(STEPS[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(limit: u64, interval: u64) {
        let advice = advise(Some(Duration::from_millis(limit)), Counts::Either);
        assert_eq!(advice.interval_ms, interval as f64, "{limit}");
    }

    #[test]
    fn two_heartbeats_fit_into_the_limit_so_that_one_may_be_late() {
        for (limit, interval) in [
            (400, 200),
            (3_000, 1_000),
            (19_950, 10_000),
            (30_000, 15_000),
            (45_000, 20_000),
            (49_800, 25_000),
            (50_000, 25_000),
            (60_000, 25_000),
            (350_000, 25_000),
        ] {
            check(limit, interval);
        }
    }

    #[test]
    fn the_default_needs_nothing_to_be_set() {
        assert!(advise(None, Counts::Unknown).mainstay.starts_with("nothing to set"));
        assert!(advise(Some(Duration::from_secs(60)), Counts::Either).mainstay.starts_with("nothing to set"));
        assert!(advise(Some(Duration::from_secs(3)), Counts::Either).mainstay.contains("--heartbeat 1s"));
    }

    #[test]
    fn a_client_learns_that_its_bytes_do_not_count() {
        let words = |counts| advise(Some(Duration::from_secs(60)), counts).client;
        assert!(words(Counts::Server).contains("do not count"));
        assert!(!words(Counts::Either).contains("do not count"));
    }
}
