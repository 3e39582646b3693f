//! The heartbeat that keeps connections on a path open, for each who can send one.

use std::time::Duration;

use super::judgement::Heartbeat;
use super::measured::ServerSends;
use super::report::ms;
use super::words::span;

/// The default of Mainstay's `--heartbeat`.
pub(crate) const DEFAULT: Duration = Duration::from_secs(25);
/// What is measured may be this much longer than what is set.
const ABOUT: f64 = 1.1;
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
    /// Only messages of the client do, and its Pings do not.
    Messages,
    Unknown,
}

/// What a server sends by itself, again and again.
#[derive(Debug, Clone, Copy)]
struct Sent {
    what: &'static str,
    every: Duration,
}

impl Sent {
    fn of(server: &ServerSends) -> Option<Self> {
        let sent = |what, every: Option<Duration>| every.map(|every| Self { what, every });
        sent(PING, server.ping_interval).or_else(|| sent("message", server.message_interval))
    }

    fn is_enough(self) -> bool {
        self.every <= DEFAULT.mul_f64(ABOUT)
    }
}

const PING: &str = "Ping";

/// Returns the advice for a path that ends connections after this silence; without a limit the default holds, and what the server sends
/// by itself may do.
pub(crate) fn advise(
    limit: Option<Duration>,
    counts: Counts,
    server_sends: Option<&ServerSends>,
) -> Heartbeat {
    let interval = limit.map_or(DEFAULT, interval_below);
    let sent = server_sends.and_then(Sent::of).filter(|_| limit.is_none());
    Heartbeat {
        interval_ms: ms(interval),
        at_most_ms: limit.map(|limit| ms(limit / 2)),
        server: server(interval, counts, sent),
        client: client(interval, counts, sent),
        mainstay: mainstay(interval, counts),
    }
}

fn server(interval: Duration, counts: Counts, sent: Option<Sent>) -> String {
    let every = span(interval);
    let ping = format!("a Ping (RFC 6455) to each client every {every}");
    match (sent, counts) {
        (Some(sent), _) if sent.is_enough() => {
            format!("nothing to set: it sends a {} every {}", sent.what, span(sent.every))
        }
        (Some(sent), _) => format!("{ping}, and not only a {} every {}", sent.what, span(sent.every)),
        (None, Counts::Client) => format!("{ping}: the client's Pong counts, the Ping does not"),
        (None, Counts::Messages) => {
            "let it take Pings and Pongs for signs of life, too: now only messages renew its limit".to_owned()
        }
        (None, Counts::Either | Counts::Server | Counts::Unknown) => ping,
    }
}

fn client(interval: Duration, counts: Counts, sent: Option<Sent>) -> String {
    let every = span(interval);
    match (sent, counts) {
        (Some(Sent { what: PING, .. }), _) => {
            "nothing to set: browsers and libraries answer the server's Pings by themselves".to_owned()
        }
        (Some(sent), _) if sent.is_enough() => "nothing to set: the server's messages suffice".to_owned(),
        (_, Counts::Server) => format!(
            "bytes from the client do not count on this path: a client keeps a connection only by what the server answers, so by a \
             Ping every {every}; a page, which cannot send Pings, by a message that the server answers"
        ),
        (_, Counts::Messages) => {
            format!("a message that the server takes, every {every}: its Pings do not count")
        }
        (_, Counts::Either | Counts::Client | Counts::Unknown) => format!(
            "or, if the server sends none: a Ping every {every}; a page, which cannot send Pings, by a message that the server answers"
        ),
    }
}

fn mainstay(interval: Duration, counts: Counts) -> String {
    match interval {
        _ if counts == Counts::Messages => {
            "its heartbeats are Pings, which do not count here: change the server's limit".to_owned()
        }
        DEFAULT => {
            "nothing to set: its heartbeat is 25 s by default (--heartbeat, heartbeatMs, Config::heartbeat)"
                .to_owned()
        }
        _ => format!(
            "mainstay serve --heartbeat {0}; heartbeatMs: {1} in the Fastify plugin; Config::heartbeat in Rust",
            humantime::format_duration(interval),
            interval.as_millis()
        ),
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
        let advice = advise(Some(Duration::from_millis(limit)), Counts::Either, None);
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
        let mainstay =
            |limit: Option<u64>| advise(limit.map(Duration::from_secs), Counts::Unknown, None).mainstay;
        assert!(
            mainstay(None).starts_with("nothing to set") && mainstay(Some(60)).starts_with("nothing to set")
        );
        assert!(mainstay(Some(3)).contains("--heartbeat 1s"));
    }

    #[test]
    fn a_server_that_sends_often_enough_needs_nothing_to_be_set() {
        let every = |seconds| Some(Duration::from_secs(seconds));
        let words = |limit: Option<Duration>, pings, messages| {
            let sends =
                ServerSends { ping_interval: pings, message_interval: messages, ..ServerSends::default() };
            advise(limit, Counts::Unknown, Some(&sends)).server
        };
        assert_eq!(words(None, every(12), None), "nothing to set: it sends a Ping every 12 s");
        assert_eq!(words(None, None, every(3)), "nothing to set: it sends a message every 3 s");
        assert!(words(None, every(54), None).ends_with("every 25 s, and not only a Ping every 54 s"));
        assert!(!words(every(60), every(12), None).contains("nothing to set"), "it did not keep them");
    }

    #[test]
    fn a_client_learns_that_its_bytes_do_not_count() {
        let words = |counts| advise(Some(Duration::from_secs(60)), counts, None).client;
        assert!(words(Counts::Server).contains("do not count"));
        assert!(!words(Counts::Either).contains("do not count"));
    }
}
