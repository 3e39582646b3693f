//! What is measured, and the figures that are read from it.

use super::Scale;
use super::field::{Place, Server};

/// One run of `mainstay bench`.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// The subcommand, `URL` standing for the server's, and its flags.
    full: &'static str,
    /// The same for the smoke test.
    quick: &'static str,
    /// Whether clients that speak mainstay.v1 take part: a session does not end with the closing handshake.
    sessions: bool,
    /// For gateways, and the core of the server behind them; for servers otherwise.
    behind: Option<u32>,
}

/// All scenarios, in the order in which they run.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "idle",
        full: "idle URL/echo --connections MOST --rate 6500 --warm-up 0s --duration 8200ms",
        quick: "idle URL/echo --connections 40 --warm-up 0s --duration 2200ms",
        sessions: true,
        behind: None,
    },
    Scenario {
        name: "echo",
        full: "echo URL/echo --connections 100 --warm-up 300ms --duration 1500ms",
        quick: "echo URL/echo --connections 10 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: None,
    },
    Scenario {
        name: "echo-16",
        full: "echo URL/echo --connections 100 --in-flight 16 --warm-up 300ms --duration 1500ms",
        quick: "echo URL/echo --connections 10 --in-flight 16 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: None,
    },
    Scenario {
        name: "echo-1000",
        full: "echo URL/echo --connections 1000 --warm-up 300ms --duration 1500ms",
        quick: "echo URL/echo --connections 50 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: None,
    },
    Scenario {
        name: "echo-16KiB",
        full: "echo URL/echo --connections 100 --size 16KiB --warm-up 300ms --duration 1500ms",
        quick: "echo URL/echo --connections 5 --size 16KiB --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: None,
    },
    Scenario {
        name: "fanout",
        full: "fanout URL/broadcast --connections 1000 --warm-up 300ms --duration 1500ms",
        quick: "fanout URL/broadcast --connections 50 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: None,
    },
    Scenario {
        name: "fanout-4",
        full: "fanout URL/broadcast --connections 1000 --in-flight 4 --warm-up 300ms --duration 1500ms",
        quick: "fanout URL/broadcast --connections 50 --in-flight 4 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: None,
    },
    Scenario {
        name: "handshake",
        full: "handshake URL/echo --connections 64 --warm-up 300ms --duration 1500ms",
        quick: "handshake URL/echo --connections 8 --warm-up 50ms --duration 500ms",
        sessions: false,
        behind: None,
    },
    Scenario {
        name: "gateway",
        full: "echo URL/echo --connections 100 --warm-up 1s --duration 2s",
        quick: "echo URL/echo --connections 10 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: Some(1),
    },
    Scenario {
        name: "gateway-16",
        full: "echo URL/echo --connections 100 --in-flight 16 --warm-up 1s --duration 2s",
        quick: "echo URL/echo --connections 10 --in-flight 16 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: Some(1),
    },
    Scenario {
        name: "gateway-16KiB",
        full: "echo URL/echo --connections 100 --size 16KiB --warm-up 1s --duration 2s",
        quick: "echo URL/echo --connections 5 --size 16KiB --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: Some(1),
    },
    // With a rate the generator stays awake: nothing else can have its core.
    Scenario {
        name: "gateway-rate",
        full: "echo URL/echo --connections 100 --rate 2000 --warm-up 1s --duration 3s",
        quick: "echo URL/echo --connections 10 --rate 500 --warm-up 50ms --duration 500ms",
        sessions: true,
        behind: Some(0),
    },
];

impl Scenario {
    /// Whether this server takes part.
    pub(super) fn has(&self, server: &Server) -> bool {
        self.is_of_gateways() == (server.place != Place::Server) && (self.sessions || !server.session)
    }

    pub(super) fn is_of_gateways(&self) -> bool {
        self.behind.is_some()
    }

    /// Where this server runs; the generator has core 1.
    pub(super) fn core(&self, server: &Server) -> u32 {
        self.behind.filter(|_| server.place == Place::Upstream).unwrap_or(0)
    }

    /// Seconds between a server's heartbeats.
    pub(super) fn interval(&self, quick: bool) -> u32 {
        if quick { 1 } else { 4 }
    }

    /// The generator's command line.
    pub(super) fn command(&self, program: &str, url: &str, session: bool, scale: &Scale) -> Vec<String> {
        let words = if scale.quick { self.quick } else { self.full };
        let words = words.replace("URL", url).replace("MOST", &scale.connections.to_string());
        let session = session.then_some("--session");
        [program, "bench"].into_iter().chain(words.split(' ')).chain(session).map(str::to_owned).collect()
    }

    /// The command as the page shows it.
    pub(super) fn shown(&self, scale: &Scale) -> String {
        self.command("mainstay", "URL", false, scale).join(" ")
    }
}

/// One figure, read from one scenario's JSON.
pub(super) struct Figure {
    pub(super) title: &'static str,
    pub(super) scenario: &'static str,
    pub(super) key: &'static str,
    pub(super) unit: &'static str,
    /// The divisor of the number that `mainstay bench` prints.
    pub(super) per: f64,
    pub(super) more_is_better: bool,
    /// Whether the figure without a gateway is subtracted.
    pub(super) added: bool,
}

const fn less(title: &'static str, scenario: &'static str, key: &'static str, unit: &'static str) -> Figure {
    Figure { title, scenario, key, unit, per: 1.0, more_is_better: false, added: false }
}

const fn through(title: &'static str, scenario: &'static str) -> Figure {
    Figure { more_is_better: true, ..less(title, scenario, "messages_per_second", "messages/s") }
}

const fn added(title: &'static str, key: &'static str) -> Figure {
    Figure { added: true, ..less(title, "gateway-rate", key, "us") }
}

/// All figures, in the order of the page.
pub(super) const FIGURES: &[Figure] = &[
    less("Memory of an idle connection", "idle", "resident_bytes_per_connection", "bytes"),
    less("CPU of a heartbeat", "idle", "cpu_us_per_heartbeat", "us"),
    less("Heartbeats in the worst 10 ms, over the mean", "idle", "heartbeats_worst_to_mean", "times"),
    less("Echo of 64 bytes, 100 connections: CPU of a message", "echo", "cpu_us_per_message", "us"),
    Figure {
        more_is_better: true,
        ..less(
            "Echo of 64 bytes, 16 in flight on each of 100",
            "echo-16",
            "messages_per_second",
            "messages/s",
        )
    },
    Figure {
        per: 1e3,
        ..less("Echo of 64 bytes, 1,000 connections: 99th percentile", "echo-1000", "latency_p99_us", "ms")
    },
    less("Echo of 16 KiB, 100 connections: CPU of a message", "echo-16KiB", "cpu_us_per_message", "us"),
    less("Fan-out to 1,000, 1 in flight: CPU of a delivery", "fanout", "cpu_us_per_delivery", "us"),
    less("Fan-out to 1,000, 4 in flight: CPU of a delivery", "fanout-4", "cpu_us_per_delivery", "us"),
    less("Opening and closing handshake: CPU", "handshake", "cpu_us_per_handshake", "us"),
    Figure {
        per: 1048576.0,
        ..less("Memory left when all idle connections closed", "idle", "resident_bytes_after_close", "MiB")
    },
    through("Through a gateway, 64 bytes, 1 in flight on each of 100", "gateway"),
    less("Gateway, 64 bytes, 1 in flight: CPU of a message", "gateway", "cpu_us_per_message", "us"),
    through("Through a gateway, 64 bytes, 16 in flight on each of 100", "gateway-16"),
    less("Gateway, 64 bytes, 16 in flight: CPU of a message", "gateway-16", "cpu_us_per_message", "us"),
    through("Through a gateway, 16 KiB, 1 in flight on each of 100", "gateway-16KiB"),
    less("Gateway, 16 KiB: CPU of a message", "gateway-16KiB", "cpu_us_per_message", "us"),
    added("Added by a gateway at 2,000 messages/s: median", "latency_p50_us"),
    added("Added by a gateway at 2,000 messages/s: 99th percentile", "latency_p99_us"),
];

impl Figure {
    pub(super) fn is_of_gateways(&self) -> bool {
        SCENARIOS.iter().any(|scenario| scenario.name == self.scenario && scenario.is_of_gateways())
    }
}

/// Formats a number with three digits and a separator between thousands.
pub(super) fn shown(value: f64) -> String {
    if value < 0.0 {
        return format!("-{}", shown(-value));
    }
    let decimals = if value >= 100.0 { 0 } else { usize::from(value < 10.0) + 1 };
    let text = format!("{value:.decimals$}");
    let (digits, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let grouped: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|chunk| std::str::from_utf8(chunk).ok()).collect();
    grouped.join(",") + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_read_from_a_scenario_that_is_run() {
        for figure in FIGURES {
            assert!(SCENARIOS.iter().any(|scenario| scenario.name == figure.scenario), "{}", figure.title);
        }
    }

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in
            [(0.271, "0.27"), (4.5, "4.50"), (45.04, "45.0"), (137384.0, "137,384"), (-940.03, "-940")]
        {
            assert_eq!(shown(value), expected);
        }
    }
}
