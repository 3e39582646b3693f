//! The results of a run, as a table or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::counts::{Counts, WINDOW};
use super::plan::{Load, Plan};
use super::usage::Usage;
use crate::observe::log;

const DELIVERIES: &str = "deliveries_per_second";

/// One figure: its key in JSON, which includes the unit, and its label in the table.
struct Figure {
    key: &'static str,
    label: String,
    value: f64,
    unit: &'static str,
}

pub(super) struct Report {
    head: Map<String, Value>,
    title: String,
    figures: Vec<Figure>,
    problems: Vec<String>,
    connections: u64,
    threads: u32,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut head = Map::new();
        let mut put = |key: &str, value: Value| head.insert(key.to_owned(), value);
        put("scenario", json!(plan.load.name()));
        put("url", json!(plan.url));
        put("session", json!(plan.session));
        put("connections", json!(plan.connections));
        let mut title = format!("{} {}, {} connections", plan.load.name(), plan.url, plan.connections);
        if matches!(plan.load, Load::Echo | Load::Fanout) {
            put("size_bytes", json!(plan.size()));
            put("in_flight", json!(plan.in_flight));
            title += &format!(", {} in flight, {} bytes each", plan.in_flight, plan.size());
        }
        if let Some(rate) = plan.rate {
            put("rate_per_second", json!(rate));
            title += &format!(", {rate} a second");
        }
        if plan.session {
            title += ", mainstay.v1";
        }
        let (connections, threads) = (plan.connections.into(), plan.threads);
        Self { head, title, figures: Vec::new(), problems: Vec::new(), connections, threads }
    }

    /// Adds the figures of the opening, which took `took`.
    pub(super) fn opened(&mut self, took: Duration, opened: u64, before: Usage, after: Usage) {
        if opened == 0 {
            return;
        }
        self.put("opened_per_second", "opened a second", opened as f64 / took.as_secs_f64().max(1e-9), "/s");
        let cpu = after.since(before).cpu;
        if !cpu.is_zero() {
            self.put("cpu_us_per_opening", "server CPU of an opening", each(cpu, opened), "us");
        }
    }

    /// Adds the figures of the measurement, which took `took`.
    pub(super) fn measured(
        &mut self,
        plan: &Plan,
        counts: Counts,
        took: Duration,
        server: Usage,
        own: Usage,
    ) {
        let seconds = took.as_secs_f64().max(1e-9);
        match plan.load {
            Load::Idle => self.heartbeats(&counts, seconds, server.cpu),
            Load::Echo => self.work(("messages_per_second", "messages a second"), &counts, seconds),
            Load::Fanout => self.work((DELIVERIES, "deliveries a second"), &counts, seconds),
            Load::Handshake => self.work(("handshakes_per_second", "handshakes a second"), &counts, seconds),
            Load::Storm => self.storm(&counts, seconds),
        }
        let what = match plan.load {
            Load::Echo => Some(("cpu_us_per_message", "server CPU of a message")),
            Load::Fanout => Some(("cpu_us_per_delivery", "server CPU of a delivery")),
            Load::Handshake => Some(("cpu_us_per_handshake", "server CPU of opening and closing")),
            Load::Storm => Some(("cpu_us_per_return", "server CPU of coming back")),
            Load::Idle => None,
        };
        if let Some((key, label)) = what
            && server.resident > 0
            && counts.done > 0
        {
            self.put(key, label, each(server.cpu, counts.done), "us");
        }
        match plan.load {
            Load::Idle => self.latency(&counts.opening, "opening handshake"),
            _ => self.latency(&counts.latency, "latency"),
        }
        if server.resident > 0 {
            self.put(
                "server_cpu_percent",
                "server, of one core",
                100.0 * server.cpu.as_secs_f64() / seconds,
                "%",
            );
            self.put("server_resident_bytes", "server, resident", server.resident as f64, "B");
        }
        let own = 100.0 * own.cpu.as_secs_f64() / seconds;
        self.put("generator_cpu_percent", "generator, of one core", own, "%");
        if own > 90.0 * f64::from(self.threads) && !matches!(plan.load, Load::Idle) && plan.rate.is_none() {
            log::write_line(
                "the generator was busy throughout: a second may hold more than it could ask for",
            );
        }
        self.check(&counts);
    }

    fn work(&mut self, (key, label): (&'static str, &'static str), counts: &Counts, seconds: f64) {
        self.put(key, label, counts.done as f64 / seconds, "/s");
        let counted = key.trim_end_matches("_per_second");
        self.head.insert(counted.to_owned(), json!(counts.done));
        // A message of a fan-out is as many deliveries as there are connections.
        if counts.done == 0 || key == DELIVERIES && counts.done < self.connections {
            self.problems.push(
                "not one message came back to all that should get it: is this the right path?".to_owned(),
            );
        }
    }

    fn heartbeats(&mut self, counts: &Counts, seconds: f64, cpu: Duration) {
        let windows = (seconds * 1e9 / WINDOW as f64).max(1.0);
        self.put("heartbeats", "heartbeats", counts.pings as f64, "");
        self.put(
            "heartbeats_per_connection",
            "per connection",
            counts.pings as f64 / self.connections as f64,
            "",
        );
        if counts.pings == 0 {
            return;
        }
        let worst = counts.windows.iter().copied().max().unwrap_or(0) as f64;
        self.put("heartbeats_worst_10ms", "in the worst 10 ms", worst, "");
        self.put(
            "heartbeats_worst_to_mean",
            "worst 10 ms / mean",
            worst / (counts.pings as f64 / windows),
            "",
        );
        if !cpu.is_zero() {
            self.put("cpu_us_per_heartbeat", "server CPU of a heartbeat", each(cpu, counts.pings), "us");
        }
    }

    fn storm(&mut self, counts: &Counts, seconds: f64) {
        let all_back = counts.latency.max() as f64 / 1e9;
        self.put("back", "connections back", counts.done as f64, "");
        self.put(
            "all_back_seconds",
            "until all were back",
            if counts.done > 0 { all_back } else { seconds },
            "s",
        );
        self.put("back_per_second", "back a second", counts.done as f64 / all_back.max(1e-9), "/s");
        self.put("failed_attempts", "attempts that failed", counts.failed as f64, "");
        if self.head.get("session") == Some(&json!(true)) {
            self.put("resumed", "sessions resumed", counts.resumed as f64, "");
            self.put("sessions_with_loss", "sessions with a loss", counts.gaps as f64, "");
        }
        if counts.done < self.connections {
            let missing = self.connections - counts.done;
            self.problems
                .push(format!("{missing} connections were not open again in time; raise --duration"));
        }
    }

    /// Adds the memory of the open connections.
    pub(super) fn resident(&mut self, before: Usage, held: Usage) {
        let each = held.resident.saturating_sub(before.resident) as f64 / self.connections as f64;
        self.put("resident_bytes_per_connection", "resident memory of a connection", each, "B");
    }

    /// Adds the memory after all connections have closed.
    pub(super) fn left(&mut self, after: Usage) {
        self.put(
            "resident_bytes_after_close",
            "server, resident after all closed",
            after.resident as f64,
            "B",
        );
    }

    fn latency(&mut self, histogram: &Histogram<u64>, what: &'static str) {
        const AT: [(f64, &str, &str); 4] = [
            (0.5, "latency_p50_us", "p50"),
            (0.9, "latency_p90_us", "p90"),
            (0.99, "latency_p99_us", "p99"),
            (0.999, "latency_p999_us", "p99.9"),
        ];
        if histogram.is_empty() {
            return;
        }
        for (at, key, label) in AT {
            self.put(key, format!("{what}, {label}"), histogram.value_at_quantile(at) as f64 / 1e3, "us");
        }
        self.put("latency_max_us", format!("{what}, max"), histogram.max() as f64 / 1e3, "us");
        self.head.insert("latency_of".to_owned(), json!(what));
    }

    fn check(&mut self, counts: &Counts) {
        let storm = self.head.get("scenario") == Some(&json!("storm"));
        let why = counts.first_problem.clone().unwrap_or_default();
        let failed = if storm { 0 } else { counts.failed };
        for (count, key, what) in [
            (counts.lost, "lost", "connections were lost"),
            (counts.unanswered, "unanswered", "messages were not answered"),
            (failed, "failed", "openings failed"),
            (counts.foreign, "foreign", "messages were not sent by this generator"),
        ] {
            self.head.insert(key.to_owned(), json!(count));
            if count > 0 {
                self.problems.push(format!("{count} {what}: {why}"));
            }
        }
        let is_reported = self.problems.iter().any(|line| line.ends_with(&why));
        if !why.is_empty() && !is_reported && !storm {
            self.problems.push(why);
        }
    }

    fn put(&mut self, key: &'static str, label: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure { key, label: label.into(), value, unit });
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(String::as_str)
    }

    pub(super) fn as_json(&self) -> String {
        let mut object = self.head.clone();
        for figure in &self.figures {
            object.insert(figure.key.to_owned(), json!((figure.value * 1e3).round() / 1e3));
        }
        format!("{}\n", Value::Object(object))
    }

    pub(super) fn as_table(&self) -> String {
        let mut table = format!("{}\n", self.title);
        for figure in &self.figures {
            let _ = writeln!(table, "  {:34} {:>14} {}", figure.label, shown(figure.value), figure.unit);
        }
        table
    }
}

fn each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// Formats a number with at least three digits, and commas between thousands.
fn shown(value: f64) -> String {
    if value < 100.0 && value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && i % 3 == first {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_commas_and_few_digits() {
        for (value, expected) in
            [(0.0, "0"), (4.567, "4.57"), (99.0, "99"), (123.4, "123"), (1234.0, "1,234"), (1e6, "1,000,000")]
        {
            assert_eq!(shown(value), expected);
        }
    }
}
