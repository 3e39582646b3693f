//! `/healthz`, `/readyz` and `/metrics`, on a listener of their own.

use std::fmt::Write as _;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use mainstay::Mainstay;
use mainstay::server::{RTT_BUCKETS, Snapshot};
use tokio::net::TcpListener;

use crate::join::LinkStats;

pub(crate) async fn serve(listener: TcpListener, mainstay: Mainstay, links: LinkStats) {
    let metrics = |State(mainstay): State<Mainstay>| async move {
        let gauges = Gauges { links_lost: links.lost(), queue_bytes: mainstay.kept_bytes() };
        render(&mainstay.stats(), &gauges)
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(mainstay.clone());
    // It has no session of its own, and ends with the process.
    let admin = Mainstay::default();
    if let Err(error) = mainstay::serve(listener, app, &admin).await {
        tracing::error!(%error, "admin listener ended");
    }
}

async fn ready(State(mainstay): State<Mainstay>) -> (StatusCode, &'static str) {
    if mainstay.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}

/// What the snapshot of the server's counters does not hold.
#[derive(Default)]
struct Gauges {
    links_lost: u64,
    queue_bytes: u64,
}

/// Prometheus text format, version 0.0.4.
fn render(s: &Snapshot, gauges: &Gauges) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
        let _ = writeln!(out, "# HELP mainstay_{name} {help}\n# TYPE mainstay_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "mainstay_{name}{labels} {value}");
        }
    };
    family("connections", "gauge", "Connections open now.", &[("", s.connections)]);
    family("sessions", "gauge", "Sessions alive now, attached or parked.", &[("", s.sessions)]);
    family("queue_bytes", "gauge", "Payload bytes kept for visitors.", &[("", gauges.queue_bytes)]);
    family("connections_opened_total", "counter", "Connections opened.", &[("", s.connections_opened)]);
    family(
        "openings_failed_total",
        "counter",
        "Openings refused or not finished in time.",
        &[("", s.openings_failed)],
    );
    let refused = [
        ("{reason=\"full\"}", s.refused_full),
        ("{reason=\"address\"}", s.refused_address),
        ("{reason=\"origin\"}", s.refused_origin),
    ];
    family("refused_total", "counter", "Connections refused, by the limit that they were above.", &refused);
    let left = [("{reason=\"idle\"}", s.left_idle), ("{reason=\"lifetime\"}", s.left_old)];
    family("sent_away_total", "counter", "Connections sent away because of their age or silence.", &left);
    let attaches = [
        ("{outcome=\"new\"}", s.attached_new),
        ("{outcome=\"resumed\"}", s.attached_resumed),
        ("{outcome=\"lost\"}", s.attached_lost),
        ("{outcome=\"refused\"}", s.attach_refused),
    ];
    family("attaches_total", "counter", "HELLOs by outcome.", &attaches);
    let dead = [
        ("{evidence=\"silent\"}", s.dead_silent),
        ("{evidence=\"frozen\"}", s.dead_frozen),
        ("{evidence=\"stalled\"}", s.dead_stalled),
    ];
    family("dead_peers_total", "counter", "Peers called dead, by evidence.", &dead);
    let not_listening = "Times that a peer sent bytes and answered nothing for 5 minutes.";
    family("peers_not_listening_total", "counter", not_listening, &[("", s.not_listening)]);
    let errors = [("{layer=\"websocket\"}", s.protocol_errors), ("{layer=\"session\"}", s.session_errors)];
    family("protocol_errors_total", "counter", "Connections ended over broken input.", &errors);
    let messages = [("{direction=\"in\"}", s.messages_in), ("{direction=\"out\"}", s.messages_out)];
    family("messages_total", "counter", "Application messages, replayed ones included.", &messages);
    let bytes = [("{direction=\"in\"}", s.bytes_in), ("{direction=\"out\"}", s.bytes_out)];
    family("message_bytes_total", "counter", "Payload bytes of application messages.", &bytes);
    family("replayed_total", "counter", "Messages written again after a resume.", &[("", s.replayed)]);
    family("gaps_total", "counter", "Gaps that handlers were told of.", &[("", s.gaps)]);
    let evicted = [("", s.evicted)];
    family(
        "sessions_evicted_total",
        "counter",
        "Sessions that gave up their place while their client was away.",
        &evicted,
    );
    family("sessions_expired_total", "counter", "Sessions whose resume window passed.", &[("", s.expired)]);
    family(
        "links_lost_total",
        "counter",
        "Connections to the backend that were lost.",
        &[("", gauges.links_lost)],
    );
    render_rtt(&mut out, s);
    out
}

fn render_rtt(out: &mut String, s: &Snapshot) {
    let name = "mainstay_heartbeat_rtt_seconds";
    let _ = writeln!(out, "# HELP {name} Round-trip time of heartbeats.\n# TYPE {name} histogram");
    let mut cumulated = 0;
    for (bound, count) in RTT_BUCKETS.iter().zip(s.rtt_buckets) {
        cumulated += count;
        let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {cumulated}");
    }
    let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", s.rtt_count);
    let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", s.rtt_sum.as_secs_f64(), s.rtt_count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_prometheus_text_with_help_and_type_for_each_family() {
        let text = render(
            &Snapshot { attached_resumed: 7, rtt_count: 1, ..Snapshot::default() },
            &Gauges { links_lost: 3, ..Gauges::default() },
        );
        assert!(text.contains("mainstay_links_lost_total 3\n"));
        assert!(text.contains("mainstay_attaches_total{outcome=\"resumed\"} 7\n"));
        assert!(text.contains("mainstay_heartbeat_rtt_seconds_bucket{le=\"+Inf\"} 1\n"));
        let families = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(families, text.lines().filter(|line| line.starts_with("# HELP")).count());
        assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("mainstay_")));
    }
}
