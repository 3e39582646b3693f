//! `/healthz`, `/readyz` and `/metrics`, on a listener of their own.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mainstay::server::{RTT_BUCKETS, Snapshot};
use mainstay::{Budget, Mainstay};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::links::{Figures, Links};

pub(crate) async fn serve(listener: TcpListener, mainstay: Mainstay, links: Links, token: Option<Token>) {
    let metrics = |State(mainstay): State<Mainstay>, headers: HeaderMap| async move {
        if token.is_some_and(|token| !token.is_presented(&headers)) {
            return unauthorized();
        }
        render(&mainstay.stats(), &Kept::now(&mainstay, &links), &links.figures()).into_response()
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

/// The secret that `/metrics` asks for. Only its hash is kept.
#[derive(Clone)]
pub(crate) struct Token([u8; 32]);

/// Of a token, in bytes: shorter ones can be guessed.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 16..=1024;

impl Token {
    /// Reads it from the only line of a file.
    ///
    /// # Errors
    /// The file, and what is wrong with it; never what it holds.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let wrong = |what: &str| format!("{}: {what}", file.display());
        let mut text = String::new();
        std::fs::File::open(file)
            .and_then(|file| file.take(*TOKEN_LENGTH.end() as u64 + 2).read_to_string(&mut text))
            .map_err(|error| wrong(&format!("{error}; give a file that can be read")))?;
        let token = text.trim_end_matches(['\r', '\n']);
        if !TOKEN_LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("must hold one line of 16 to 1024 letters, digits and signs, without spaces"));
        }
        Ok(Self::of(token.as_bytes()))
    }

    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Takes as long for a token that is almost right as for any other.
    fn is_presented(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let (scheme, token) = value.split_at_checked(b"Bearer ".len()).unwrap_or_default();
        let Self(presented) = Self::of(token.trim_ascii());
        let differs =
            presented.iter().zip(self.0).fold(0, |differs, (theirs, ours)| differs | (theirs ^ ours));
        scheme.eq_ignore_ascii_case(b"Bearer ") && differs == 0
    }
}

fn unauthorized() -> Response {
    let headers = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, headers, "present the token of --admin-token-file\n").into_response()
}

async fn ready(State(mainstay): State<Mainstay>) -> (StatusCode, &'static str) {
    if mainstay.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}

/// What is kept, in bytes.
struct Kept {
    for_visitors: u64,
    for_backend: u64,
    budget: Budget,
}

impl Kept {
    /// What a leg brought and the other has not taken counts for that other: it waits for it.
    fn now(mainstay: &Mainstay, links: &Links) -> Self {
        let links = links.figures();
        Self {
            for_visitors: mainstay.kept_bytes() + links.unread_bytes,
            for_backend: mainstay.unread_bytes() + links.kept_bytes,
            budget: mainstay.budget().clone(),
        }
    }
}

/// Prometheus text format, version 0.0.4. `docs/METRICS.md` says what each family is good for.
fn render(s: &Snapshot, kept: &Kept, links: &Figures) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
        let _ = writeln!(out, "# HELP mainstay_{name} {help}\n# TYPE mainstay_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "mainstay_{name}{labels} {value}");
        }
    };
    family("connections", "gauge", "Connections open now.", &[("", s.connections)]);
    family("sessions", "gauge", "Sessions alive now, attached or parked.", &[("", s.sessions)]);
    let queues = [("{leg=\"visitor\"}", kept.for_visitors), ("{leg=\"backend\"}", kept.for_backend)];
    family("queue_bytes", "gauge", "Payload bytes kept for visitors, and for the backend.", &queues);
    let parts = kept.budget.parts().map(|(kind, bytes)| (format!("{{kind=\"{kind}\"}}"), bytes));
    let parts = parts.each_ref().map(|(labels, bytes)| (labels.as_str(), *bytes));
    family("budget_bytes", "gauge", "Bytes that count in the memory budget, by what keeps them.", &parts);
    let limit = kept.budget.limit().unwrap_or(0);
    family("budget_limit_bytes", "gauge", "Bytes that the memory budget has; 0: no limit.", &[("", limit)]);
    let level = kept.budget.level() as u64;
    family("budget_level", "gauge", "0 calm, 1 tight, 2 short, 3 full.", &[("", level)]);
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
        ("{reason=\"memory\"}", s.refused_memory),
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
        ("{leg=\"visitor\",evidence=\"silent\"}", s.dead_silent),
        ("{leg=\"visitor\",evidence=\"frozen\"}", s.dead_frozen),
        ("{leg=\"visitor\",evidence=\"stalled\"}", s.dead_stalled),
        ("{leg=\"backend\",evidence=\"silent\"}", links.dead_silent),
        ("{leg=\"backend\",evidence=\"frozen\"}", links.dead_frozen),
        ("{leg=\"backend\",evidence=\"stalled\"}", links.dead_stalled),
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
    let gaps = [("{cause=\"session\"}", s.attached_lost), ("{cause=\"client\"}", s.gaps)];
    let told =
        "Gaps told: to clients whose session was lost, and by clients that dropped messages of their own.";
    family("gaps_total", "counter", told, &gaps);
    let evicted = [
        ("{reason=\"full\"}", s.evicted),
        ("{reason=\"ports\"}", s.evicted_resource),
        ("{reason=\"memory\"}", s.evicted_memory),
    ];
    family(
        "sessions_evicted_total",
        "counter",
        "Sessions that were given up for what they took, by what was needed.",
        &evicted,
    );
    family("sessions_expired_total", "counter", "Sessions whose resume window passed.", &[("", s.expired)]);
    family("links_lost_total", "counter", "Connections to the backend that were lost.", &[("", links.lost)]);
    let fates = [
        ("{fate=\"unknown\"}", links.unknown),
        ("{fate=\"not_delivered\"}", links.not_delivered),
        ("{fate=\"undeliverable\"}", links.undeliverable),
    ];
    let uncertain = "Messages of visitors that the backend did not certainly get, by fate.";
    family("link_messages_total", "counter", uncertain, &fates);
    let [switched, ok, moved, refused, failed] = links.requests;
    let requests = [
        ("{status=\"1xx\"}", switched),
        ("{status=\"2xx\"}", ok),
        ("{status=\"3xx\"}", moved),
        ("{status=\"4xx\"}", refused),
        ("{status=\"5xx\"}", failed),
    ];
    family("http_requests_total", "counter", "Requests answered, by the class of the status.", &requests);
    let unanswered = "Requests that the backend did not answer, or not to the end.";
    family("http_unanswered_total", "counter", unanswered, &[("", links.unanswered)]);
    family(
        "links_pings_unanswered_total",
        "counter",
        "Times that a link found that the backend answers no Ping.",
        &[("", links.pings_unanswered)],
    );
    let outcomes =
        [("{outcome=\"done\"}", links.prologues), ("{outcome=\"failed\"}", links.prologues_failed)];
    let told = "Prologues for new connections to the backend, by outcome.";
    family("prologues_total", "counter", told, &outcomes);
    render_rtt(&mut out, s);
    out
}

fn render_rtt(out: &mut String, s: &Snapshot) {
    let name = "mainstay_heartbeat_rtt_seconds";
    let _ =
        writeln!(out, "# HELP {name} Round-trip time of heartbeats to visitors.\n# TYPE {name} histogram");
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

    fn rendered() -> String {
        let stats = Snapshot { attached_resumed: 7, rtt_count: 1, ..Snapshot::default() };
        let kept = Kept { for_visitors: 5, for_backend: 6, budget: Budget::new(1 << 20) };
        render(&stats, &kept, &Figures { lost: 3, unknown: 2, ..Figures::default() })
    }

    #[test]
    fn metrics_are_prometheus_text_with_help_and_type_for_each_family() {
        let text = rendered();
        for sample in [
            "mainstay_links_lost_total 3\n",
            "mainstay_link_messages_total{fate=\"unknown\"} 2\n",
            "mainstay_queue_bytes{leg=\"visitor\"} 5\n",
            "mainstay_queue_bytes{leg=\"backend\"} 6\n",
            "mainstay_budget_bytes{kind=\"links\"} 0\n",
            "mainstay_budget_limit_bytes 1048576\n",
            "mainstay_budget_level 0\n",
            "mainstay_attaches_total{outcome=\"resumed\"} 7\n",
            "mainstay_heartbeat_rtt_seconds_bucket{le=\"+Inf\"} 1\n",
        ] {
            assert!(text.contains(sample), "{sample}");
        }
        let families = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(families, text.lines().filter(|line| line.starts_with("# HELP")).count());
        assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("mainstay_")));
    }

    #[test]
    fn every_family_is_documented_and_no_other() {
        let rendered = rendered();
        let served: Vec<_> =
            rendered.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let rows = include_str!("../../../docs/METRICS.md").lines();
        let documented: Vec<_> =
            rows.filter_map(|row| row.strip_prefix("| `")?.split(['`', '{']).next()).collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn only_the_token_itself_is_accepted() {
        let token = Token::of(b"0123456789abcdef");
        let check = |value: &str, expected| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(token.is_presented(&headers), expected, "{value}");
        };
        check("Bearer 0123456789abcdef", true);
        check("bearer 0123456789abcdef", true);
        for wrong in
            ["", "Bearer", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer 0123456789abcde"]
        {
            check(wrong, false);
        }
        assert!(!token.is_presented(&HeaderMap::new()));
    }
}
