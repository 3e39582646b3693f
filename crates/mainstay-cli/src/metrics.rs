//! The metrics of `mainstay serve`, in Prometheus' text format, version 0.0.4.
//!
//! `docs/METRICS.md` says what each family is good for, in the order in which they are served here.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use mainstay::cluster::{ClusterFigures, ClusterStatus};
use mainstay::server::{RTT_BUCKETS, Sessions, Stats};
use mainstay::{Budget, Server};

use crate::backend_health::Reason;
use crate::client_tls::{self, Expiry};
use crate::links::{Figures, Links};
use crate::routes::Routes;
use crate::{log, process_metrics};

/// Everything that is served, at one moment.
#[derive(Default)]
struct Snapshot {
    stats: Stats,
    sessions: Sessions,
    is_draining: bool,
    budget: Budget,
    /// Of all routes together.
    links: Figures,
    /// Of each route, with its label: `route="chat"`, or nothing if only flags describe it.
    routes: Vec<(String, Figures)>,
    unrouted: u64,
    reloads: Reloads,
    /// Payload bytes kept for clients. A message that one leg received and the other has not accepted counts for the
    /// other, which it waits for.
    kept_for_clients: u64,
    kept_for_backend: u64,
    log_lines_lost: u64,
    /// This node's part in a cluster, or what it leaves to the next process.
    cluster: Option<Cluster>,
    /// When the certificates in use expire, and how often files were reloaded.
    tls: (Vec<Expiry>, client_tls::Reloads),
}

/// How the latest reloads of the configuration went.
#[derive(Default)]
struct Reloads {
    done: u64,
    refused: u64,
    is_successful: bool,
    read_at: u64,
}

/// Returns the text of `/metrics`.
pub(crate) fn render(server: &Server, routes: &Routes) -> String {
    let figures = Figures::sum(routes.links().iter().map(Links::figures));
    let reloads = &routes.reloads;
    Snapshot {
        stats: server.stats(),
        sessions: server.sessions(),
        is_draining: !server.is_ready(),
        budget: server.budget().clone(),
        kept_for_clients: server.kept_bytes() + figures.unread_bytes,
        kept_for_backend: server.unread_bytes() + figures.kept_bytes,
        links: figures,
        routes: of_routes(routes),
        unrouted: routes.unrouted.load(Relaxed),
        reloads: Reloads {
            done: reloads.done.load(Relaxed),
            refused: reloads.refused.load(Relaxed),
            is_successful: reloads.is_successful(),
            read_at: reloads.read_at.load(Relaxed),
        },
        log_lines_lost: log::lines_lost(),
        cluster: server.cluster().map(Cluster::from),
        tls: client_tls::figures(),
    }
    .render()
}

/// Returns the figures of each route with its label. The demonstration, which has no route, is always up.
fn of_routes(routes: &Routes) -> Vec<(String, Figures)> {
    let (table, is_named) = (routes.all(), routes.are_named());
    let label = |name: &str| if is_named { format!("route=\"{name}\"") } else { String::new() };
    match table.len() {
        0 => vec![(String::new(), Figures { up: true, ..Figures::default() })],
        _ => table.iter().map(|route| (label(&route.name), route.links.figures())).collect(),
    }
}

impl Snapshot {
    fn render(&self) -> String {
        let mut families = Families::default();
        self.sessions_and_memory(&mut families);
        self.admission(&mut families);
        self.connections(&mut families);
        self.listeners(&mut families);
        self.messages(&mut families);
        self.backend(&mut families);
        if let Some(cluster) = &self.cluster {
            cluster.render(&mut families);
        }
        self.process(&mut families);
        families.round_trips(&self.stats);
        process_metrics::render(&mut families.text);
        families.text
    }

    fn sessions_and_memory(&self, to: &mut Families) {
        let s = &self.stats;
        to.gauge("connections", "Client connections open now.", s.connections);
        to.gauge("sessions", "Sessions alive now, attached, parked or draining.", s.sessions);
        to.family(
            "sessions_by_state",
            "gauge",
            "Sessions alive now, by state; plain connections count as attached.",
            &[
                ("{state=\"attached\"}", self.sessions.attached),
                ("{state=\"parked\"}", self.sessions.parked),
                ("{state=\"draining\"}", self.sessions.draining),
            ],
        );
        to.gauge("draining", "1 while the process drains, 0 before.", self.is_draining.into());
        to.family(
            "queue_bytes",
            "gauge",
            "Payload bytes kept for clients, and for the backend.",
            &[("{leg=\"client\"}", self.kept_for_clients), ("{leg=\"backend\"}", self.kept_for_backend)],
        );
        let parts = self.budget.parts().map(|(kind, bytes)| (format!("{{kind=\"{kind}\"}}"), bytes));
        let parts = parts.each_ref().map(|(labels, bytes)| (labels.as_str(), *bytes));
        to.family("budget_bytes", "gauge", "Bytes counted in the memory budget, by owner.", &parts);
        let limit = self.budget.limit().unwrap_or(0);
        to.gauge("budget_limit_bytes", "Size of the memory budget in bytes; 0 is no limit.", limit);
        let level = self.budget.level() as u64;
        to.gauge("budget_level", "0 calm, 1 tight, 2 short, 3 full.", level);
    }

    fn admission(&self, to: &mut Families) {
        let s = &self.stats;
        to.counter("connections_opened_total", "Opening handshakes completed.", s.connections_opened);
        to.counter(
            "handshakes_failed_total",
            "Opening handshakes refused or not completed in time.",
            s.openings_failed,
        );
        let [redirected, denied, broken] = self.links.refused;
        to.family(
            "refused_total",
            "counter",
            "Clients refused, by reason: a limit of the gateway, or the backend.",
            &[
                ("{reason=\"full\"}", s.refused_full),
                ("{reason=\"address\"}", s.refused_address),
                ("{reason=\"subject\"}", s.refused_principal),
                ("{reason=\"address_rate\"}", s.refused_address_rate),
                ("{reason=\"subject_rate\"}", s.refused_principal_rate),
                ("{reason=\"accept_rate\"}", s.refused_rate),
                ("{reason=\"route\"}", s.refused_route),
                ("{reason=\"origin\"}", s.refused_origin),
                ("{reason=\"draining\"}", s.refused_draining),
                ("{reason=\"unreachable\"}", self.links.unreached),
                ("{reason=\"backend_3xx\"}", redirected),
                ("{reason=\"backend_4xx\"}", denied),
                ("{reason=\"backend_5xx\"}", broken),
                ("{reason=\"memory\"}", s.refused_memory),
            ],
        );
        to.family(
            "connections_drained_total",
            "counter",
            "Connections drained because they were idle or old.",
            &[("{reason=\"idle\"}", s.left_idle), ("{reason=\"lifetime\"}", s.left_old)],
        );
        to.family(
            "attaches_total",
            "counter",
            "HELLOs, by outcome.",
            &[
                ("{outcome=\"new\"}", s.attached_new),
                ("{outcome=\"resumed\"}", s.attached_resumed),
                ("{outcome=\"lost\"}", s.attached_lost),
                ("{outcome=\"refused\"}", s.attach_refused),
            ],
        );
    }

    /// What comes before HTTP on a client's connection.
    fn listeners(&self, to: &mut Families) {
        let s = &self.stats;
        to.family(
            "tls_handshakes_total",
            "counter",
            "TLS handshakes with clients, by outcome.",
            &[
                ("{outcome=\"full\"}", s.tls_full),
                ("{outcome=\"resumed\"}", s.tls_resumed),
                ("{outcome=\"failed\"}", s.tls_failed),
                ("{outcome=\"timeout\"}", s.tls_timed_out),
            ],
        );
        let (expiries, reloads) = &self.tls;
        to.family(
            "tls_reloads_total",
            "counter",
            "Changed files of TLS, by whether they were taken into use.",
            &[("{outcome=\"applied\"}", reloads.applied), ("{outcome=\"refused\"}", reloads.refused)],
        );
        to.days_left(expiries);
        to.counter(
            "proxy_headers_refused_total",
            "Connections of trusted proxies closed without a valid PROXY header.",
            s.proxy_headers_refused,
        );
    }

    fn connections(&self, to: &mut Families) {
        let (s, links) = (&self.stats, &self.links);
        to.family(
            "dead_peers_total",
            "counter",
            "Peers that the heartbeat declared dead, by leg and evidence.",
            &[
                ("{leg=\"client\",evidence=\"silent\"}", s.dead_silent),
                ("{leg=\"client\",evidence=\"frozen\"}", s.dead_frozen),
                ("{leg=\"client\",evidence=\"stalled\"}", s.dead_stalled),
                ("{leg=\"backend\",evidence=\"silent\"}", links.dead_silent),
                ("{leg=\"backend\",evidence=\"frozen\"}", links.dead_frozen),
                ("{leg=\"backend\",evidence=\"stalled\"}", links.dead_stalled),
            ],
        );
        to.counter(
            "peers_unresponsive_total",
            "Times that a client sent bytes and answered no probe for 5 minutes.",
            s.not_listening,
        );
        to.family(
            "protocol_errors_total",
            "counter",
            "Client connections ended over a protocol violation, by layer.",
            &[("{layer=\"websocket\"}", s.protocol_errors), ("{layer=\"session\"}", s.session_errors)],
        );
    }

    fn messages(&self, to: &mut Families) {
        let s = &self.stats;
        to.family(
            "messages_total",
            "counter",
            "Application messages from (in) and to (out) clients, replayed ones included.",
            &[("{direction=\"in\"}", s.messages_in), ("{direction=\"out\"}", s.messages_out)],
        );
        to.family(
            "message_bytes_total",
            "counter",
            "Payload bytes of application messages.",
            &[("{direction=\"in\"}", s.bytes_in), ("{direction=\"out\"}", s.bytes_out)],
        );
        to.counter(
            "client_pauses_total",
            "Times that a client was not read for a while because it sends too fast.",
            s.throttled,
        );
        let help = "Client connections closed because the client kept sending too fast.";
        to.counter("clients_too_fast_total", help, s.throttled_closed);
        to.counter("replayed_total", "Messages written again after a resume.", s.replayed);
        to.family(
            "gaps_total",
            "counter",
            "Gaps reported: to clients whose session was lost, and by clients that dropped messages.",
            &[("{cause=\"session\"}", s.attached_lost), ("{cause=\"client\"}", s.gaps)],
        );
        to.family(
            "sessions_evicted_total",
            "counter",
            "Sessions evicted to free a resource, by resource.",
            &[
                ("{reason=\"full\"}", s.evicted),
                ("{reason=\"ports\"}", s.evicted_resource),
                ("{reason=\"memory\"}", s.evicted_memory),
            ],
        );
        to.counter("sessions_expired_total", "Sessions whose resume window passed.", s.expired);
    }

    fn backend(&self, to: &mut Families) {
        let each = Each { routes: &self.routes };
        each.figure(
            to,
            "backend_up",
            "gauge",
            "1 if the latest attempt reached the backend, 0 if not.",
            |links| links.up.into(),
        );
        each.figure(to, "links", "gauge", "Connections to the backend open now.", |links| links.attached);
        let labels = Reason::ALL.map(|reason| format!("reason=\"{}\"", reason.label()));
        let labels = labels.each_ref().map(String::as_str);
        let help =
            "Attempts to reach the backend or to open a WebSocket that failed, probes included, by reason.";
        each.family(to, "link_attempts_failed_total", "counter", help, labels, |links| links.failed);
        each.figure(
            to,
            "links_lost_total",
            "counter",
            "Connections to the backend that were lost.",
            |links| links.lost,
        );
        each.family(
            to,
            "link_messages_total",
            "counter",
            "Messages of clients that may not have reached the backend, by fate.",
            ["fate=\"unknown\"", "fate=\"not_delivered\"", "fate=\"undeliverable\""],
            |links| [links.unknown, links.not_delivered, links.undeliverable],
        );
        each.family(
            to,
            "http_requests_total",
            "counter",
            "Responses to clients, by class of status.",
            ["status=\"1xx\"", "status=\"2xx\"", "status=\"3xx\"", "status=\"4xx\"", "status=\"5xx\""],
            |links| links.requests,
        );
        let help = "Requests that got no complete response of the backend.";
        each.figure(to, "http_unanswered_total", "counter", help, |links| links.unanswered);
        let help = "Links that found that the backend answers no Ping.";
        each.figure(to, "links_pings_unanswered_total", "counter", help, |links| links.pings_unanswered);
        let help = "Messages that slow clients lost: dropped, or replaced by later ones.";
        each.figure(to, "slow_client_messages_total", "counter", help, |links| links.slow_lost);
        let help = "Clients closed because they took too little.";
        each.figure(to, "slow_clients_closed_total", "counter", help, |links| links.slow_closed);
        to.counter("unrouted_total", "Requests that no route takes: they get 404.", self.unrouted);
        let reloads = &self.reloads;
        to.family(
            "config_reloads_total",
            "counter",
            "Reloads of the configuration, by outcome.",
            &[("{outcome=\"done\"}", reloads.done), ("{outcome=\"refused\"}", reloads.refused)],
        );
        let help = "1 if the latest configuration that was read is in force, 0 if it was refused.";
        to.gauge("config_last_reload_successful", help, reloads.is_successful.into());
        let help = "When the configuration in force was read, in seconds since 1970.";
        to.gauge("config_last_reload_success_timestamp_seconds", help, reloads.read_at);
    }

    fn process(&self, to: &mut Families) {
        let help = "Log lines that could not be written, or not fast enough.";
        to.counter("log_lines_lost_total", help, self.log_lines_lost);
        let version = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
        to.family("build_info", "gauge", "1; the label has the version.", &[(version, 1)]);
        Each { routes: &self.routes }.family(
            to,
            "prologues_total",
            "counter",
            "Prologues replayed to new connections to the backend, by outcome.",
            ["outcome=\"done\"", "outcome=\"failed\""],
            |links| [links.prologues, links.prologues_failed],
        );
    }
}

/// Families with the samples of each route.
struct Each<'a> {
    routes: &'a [(String, Figures)],
}

impl Each<'_> {
    fn figure(&self, to: &mut Families, name: &str, kind: &str, help: &str, value: impl Fn(&Figures) -> u64) {
        self.family(to, name, kind, help, [""], |figures| [value(figures)]);
    }

    fn family<const N: usize>(
        &self,
        to: &mut Families,
        name: &str,
        kind: &str,
        help: &str,
        labels: [&str; N],
        values: impl Fn(&Figures) -> [u64; N],
    ) {
        let of_route = |(route, figures): &(String, Figures)| {
            let samples = labels.iter().zip(values(figures));
            let named = samples.map(|(label, value)| (in_braces(route, label), value));
            named.collect::<Vec<_>>()
        };
        let samples: Vec<(String, u64)> = self.routes.iter().flat_map(of_route).collect();
        let samples: Vec<_> = samples.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
        to.family(name, kind, help, &samples);
    }
}

fn in_braces(route: &str, label: &str) -> String {
    match (route, label) {
        ("", "") => String::new(),
        (one, "") | ("", one) => format!("{{{one}}}"),
        (route, label) => format!("{{{route},{label}}}"),
    }
}

/// The figures of a node.
#[derive(Default)]
struct Cluster {
    engine_up: bool,
    is_complete: bool,
    alive: u64,
    dead: u64,
    in_progress: u64,
    records: u64,
    claims: [u64; 4],
    figures: ClusterFigures,
}

impl From<ClusterStatus> for Cluster {
    fn from(status: ClusterStatus) -> Self {
        Self {
            engine_up: status.engine_up,
            is_complete: status.is_complete,
            alive: status.alive as u64,
            dead: status.dead as u64,
            in_progress: status.in_progress as u64,
            records: status.records as u64,
            claims: status.claims,
            figures: status.figures,
        }
    }
}

impl Cluster {
    fn render(&self, to: &mut Families) {
        let figures = &self.figures;
        to.gauge("engine_up", "1 while the engine answers, 0 while it does not.", self.engine_up.into());
        let help = "1 if the node table has every living node, 0 if it may lack some.";
        to.gauge("node_table_complete", help, self.is_complete.into());
        let help = "Other nodes of the cluster, by state.";
        to.family(
            "nodes",
            "gauge",
            help,
            &[("{state=\"alive\"}", self.alive), ("{state=\"dead\"}", self.dead)],
        );
        let help = "Client connections that this node forwards to other nodes now.";
        to.gauge("relays", help, figures.relays);
        to.counter(
            "relayed_total",
            "Client connections that were forwarded to other nodes.",
            figures.relayed,
        );
        to.family(
            "peer_hellos_total",
            "counter",
            "HELLOs that one node passed to another, by outcome.",
            &[
                ("{outcome=\"accepted\"}", figures.accepted),
                ("{outcome=\"answered\"}", figures.answered),
                ("{outcome=\"unanswered\"}", figures.unanswered),
            ],
        );
        let help =
            "Connections to the peer listener that were dropped: a wrong key, or no valid block in time.";
        to.counter("peer_dropped_total", help, figures.dropped);
        let help = "HELLOs that were asked to come back, because it is not known where their session is.";
        to.counter("hellos_waited_total", help, figures.waited);
        let [taken, moved, none, unavailable] = self.claims;
        to.family(
            "claims_total",
            "counter",
            "Claims of sessions, by outcome.",
            &[
                ("{outcome=\"taken\"}", taken),
                ("{outcome=\"moved\"}", moved),
                ("{outcome=\"none\"}", none),
                ("{outcome=\"unavailable\"}", unavailable),
            ],
        );
        let help = "Sessions, and accounts of ended ones, that this node gave up to others.";
        let released = [("{kind=\"session\"}", figures.released), ("{kind=\"account\"}", figures.accounts)];
        to.family("released_total", "counter", help, &released);
        let help = "Sessions and accounts that could not be given up: their clients get a gap.";
        to.counter("unreleased_total", help, figures.unreleased);
        to.family(
            "adopted_total",
            "counter",
            "Sessions and accounts that this node took over, and what it could not read.",
            &[
                ("{kind=\"session\"}", figures.claimed),
                ("{kind=\"account\"}", figures.claimed_accounts),
                ("{kind=\"unreadable\"}", figures.unreadable),
            ],
        );
        to.gauge("engine_requests", "Claims and releases without an answer.", self.in_progress);
        let help = "Sessions and accounts of the process before, that no client has come for.";
        to.gauge("state_records", help, self.records);
    }
}

/// The text, one family after the other.
#[derive(Default)]
struct Families {
    text: String,
}

impl Families {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help, &[("", value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help, &[("", value)]);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[(&str, u64)]) {
        let _ = writeln!(self.text, "# HELP mainstay_{name} {help}\n# TYPE mainstay_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.text, "mainstay_{name}{labels} {value}");
        }
    }

    /// One sample for each certificate in use; a path may hold any character.
    fn days_left(&mut self, expiries: &[Expiry]) {
        let (name, out) = ("mainstay_tls_certificate_days_left", &mut self.text);
        let help = "Days until a certificate in use expires; negative once it has.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for expiry in expiries {
            let chain = expiry.chain.display().to_string();
            let chain = chain.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = writeln!(out, "{name}{{chain=\"{chain}\"}} {:.2}", expiry.days_left());
        }
    }

    fn round_trips(&mut self, stats: &Stats) {
        let (name, out) = ("mainstay_heartbeat_rtt_seconds", &mut self.text);
        let help = "Round-trip time of heartbeats to clients.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut cumulated = 0;
        for (bound, count) in RTT_BUCKETS.iter().zip(stats.rtt_buckets) {
            cumulated += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {cumulated}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", stats.rtt_count);
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", stats.rtt_sum.as_secs_f64(), stats.rtt_count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered() -> String {
        process_metrics::started();
        let mut stats = Stats::default();
        (stats.attached_resumed, stats.rtt_count) = (7, 1);
        let snapshot = Snapshot {
            stats,
            kept_for_clients: 5,
            kept_for_backend: 6,
            budget: Budget::new(1 << 20),
            routes: vec![(String::new(), Figures { lost: 3, unknown: 2, ..Figures::default() })],
            cluster: Some(Cluster { engine_up: true, claims: [4, 0, 0, 1], ..Cluster::default() }),
            ..Snapshot::default()
        };
        snapshot.render()
    }

    #[test]
    fn metrics_are_prometheus_text_with_help_and_type_for_each_family() {
        let text = rendered();
        for sample in [
            "mainstay_links_lost_total 3\n",
            "mainstay_link_messages_total{fate=\"unknown\"} 2\n",
            "mainstay_queue_bytes{leg=\"client\"} 5\n",
            "mainstay_queue_bytes{leg=\"backend\"} 6\n",
            "mainstay_budget_bytes{kind=\"links\"} 0\n",
            "mainstay_budget_limit_bytes 1048576\n",
            "mainstay_budget_level 0\n",
            "mainstay_attaches_total{outcome=\"resumed\"} 7\n",
            "mainstay_engine_up 1\n",
            "mainstay_claims_total{outcome=\"taken\"} 4\n",
            "mainstay_claims_total{outcome=\"unavailable\"} 1\n",
            "mainstay_heartbeat_rtt_seconds_bucket{le=\"+Inf\"} 1\n",
        ] {
            assert!(text.contains(sample), "{sample}");
        }
        let families = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(families, text.lines().filter(|line| line.starts_with("# HELP")).count());
        let known = ["# ", "mainstay_", "process_"];
        assert!(text.lines().all(|line| known.iter().any(|begin| line.starts_with(begin))));
    }

    #[test]
    fn families_about_a_backend_have_the_names_of_routes_that_a_file_names() {
        let lost = |lost| Figures { lost, ..Figures::default() };
        let routes = vec![("route=\"a\"".to_owned(), lost(1)), ("route=\"b\"".to_owned(), lost(2))];
        let text = Snapshot { routes, ..Snapshot::default() }.render();
        for sample in [
            "mainstay_links_lost_total{route=\"a\"} 1\n",
            "mainstay_links_lost_total{route=\"b\"} 2\n",
            "mainstay_http_requests_total{route=\"b\",status=\"2xx\"} 0\n",
        ] {
            assert!(text.contains(sample), "{sample}: {text}");
        }
        assert_eq!(text.matches("# TYPE mainstay_links_lost_total").count(), 1);
    }

    #[test]
    fn a_gateway_without_a_cluster_serves_no_figures_of_one() {
        let alone = Snapshot::default().render();
        assert!(!alone.contains("engine_up") && !alone.contains("relays"), "{alone}");
    }

    #[test]
    fn every_family_is_documented_and_no_other() {
        let rendered = rendered();
        let served: Vec<_> =
            rendered.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let page = include_str!("../../../docs/METRICS.md");
        let (gateways, _) = page.split_once("\n## The Fastify plugin\n").unwrap();
        let rows = gateways.lines();
        let documented: Vec<_> =
            rows.filter_map(|row| row.strip_prefix("| `")?.split(['`', '{']).next()).collect();
        assert_eq!(documented, served);
    }
}
