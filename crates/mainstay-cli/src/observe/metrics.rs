//! The metrics of `mainstay serve`, in Prometheus' text format or as OpenMetrics.
//!
//! `docs/METRICS.md` says what each family is good for, in the order in which they are served here. `prometheus-client`
//! writes both formats; the figures are counted where they arise, and collected here for each request.

use std::fmt::Error;
use std::sync::atomic::Ordering::Relaxed;

use http::HeaderValue;
use mainstay::cluster::{ClusterFigures, ClusterStatus};
use mainstay::server::{RTT_BUCKETS, Sessions, Stats};
use mainstay::{Budget, Server};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::clients::client_tls::{self, Expiry};
use crate::credentials::{CredentialFigures, IssuerFigures};
use crate::observe::log;
use crate::observe::refusals::Refusals;
use crate::observe::spans::{self, SpanFigures};
use crate::process::process_metrics;
use crate::routes::Routes;
use crate::upstream::backend_health::Reason;
use crate::upstream::links::{AddressFigures, Figures, Links};

/// A format of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' text format, version 0.0.4.
    Text,
    OpenMetrics,
}

impl Format {
    /// Returns the format that an Accept header prefers. Text where it names neither.
    pub(crate) fn preferred(accept: Option<&HeaderValue>) -> Self {
        let accept = accept.and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let weight = |kind: &str| {
            let ranges = accept.split(',').map(|range| range.split(';').map(str::trim));
            let weights = ranges.filter_map(|mut range| {
                let is_it = range.next()?.eq_ignore_ascii_case(kind);
                let weight = range.find_map(|parameter| parameter.strip_prefix("q="));
                is_it.then(|| weight.map_or(Some(1.0), |weight| weight.parse::<f32>().ok())).flatten()
            });
            weights.fold(0.0, f32::max)
        };
        let (open, text) = (weight("application/openmetrics-text"), weight("text/plain"));
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Everything that is served, at one moment.
#[derive(Debug, Default)]
struct Snapshot {
    stats: Stats,
    /// New clients a second that are accepted; 0: no limit.
    accept_rate: u64,
    sessions: Sessions,
    is_draining: bool,
    budget: Budget,
    /// All routes together.
    links: Figures,
    /// Each route with its label: `route="chat"`, or nothing if only flags describe it.
    routes: Vec<(String, Figures)>,
    unrouted: u64,
    reloads: Reloads,
    /// Payload bytes kept for clients. A message that one leg received and the other has not accepted counts for the
    /// other, which it waits for.
    kept_for_clients: u64,
    kept_for_backend: u64,
    log_lines_lost: u64,
    credentials: CredentialFigures,
    /// Requests that the admin listener refused, by reason.
    admin_refused: [u64; Refusals::REASONS.len()],
    /// Entries of the timeline that were ever noted, and how many of them are forgotten.
    events: (u64, u64),
    /// What became of spans, where they are recorded.
    spans: Option<SpanFigures>,
    /// This node's part in a cluster, or what it leaves to the next process.
    cluster: Option<Cluster>,
    /// When the certificates in use expire.
    expiries: Vec<Expiry>,
}

/// How the latest reloads of the configuration went.
#[derive(Debug, Default)]
struct Reloads {
    done: u64,
    refused: u64,
    is_successful: bool,
    read_at: u64,
}

/// Returns the body of `/metrics`.
pub(crate) fn render(server: &Server, routes: &Routes, refusals: &Refusals, format: Format) -> String {
    let figures = Figures::sum(routes.links().iter().map(Links::figures));
    let reloads = &routes.reloads;
    let snapshot = Snapshot {
        stats: server.stats(),
        accept_rate: server.accept_rate().map_or(0, |rate| rate.round() as u64),
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
        credentials: routes.access.figures(),
        admin_refused: refusals.figures(),
        events: server.timeline().counts(),
        spans: spans::figures(),
        cluster: server.cluster().map(Cluster::from),
        expiries: client_tls::expiries(),
    };
    snapshot.render(format)
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
    fn render(self, format: Format) -> String {
        let (mut registry, mut out) = (Registry::default(), String::new());
        registry.register_collector(Box::new(self));
        let written = match format {
            Format::Text => prometheus_text::encode(&mut out, &registry),
            Format::OpenMetrics => text::encode(&mut out, &registry),
        };
        if written.is_err() {
            tracing::error!("the metrics could not be written");
        }
        out
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut families = Families { encoder, written: Ok(()) };
        self.sessions_and_memory(&mut families);
        self.admission(&mut families);
        self.credentials(&mut families);
        self.listeners(&mut families);
        self.connections(&mut families);
        self.messages(&mut families);
        self.backend(&mut families);
        self.addresses(&mut families);
        if let Some(cluster) = &self.cluster {
            cluster.render(&mut families);
        }
        self.process(&mut families);
        families.round_trips(&self.stats);
        process_metrics::read().iter().for_each(|metric| families.of_process(metric));
        families.written
    }
}

impl Snapshot {
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
        to.days_left(&self.expiries);
        to.counter(
            "proxy_headers_refused_total",
            "Connections of trusted proxies closed without a valid PROXY header.",
            s.proxy_headers_refused,
        );
        to.counter(
            "http2_floods_total",
            "Connections of HTTP/2 closed because their clients flooded them.",
            s.http2_floods,
        );
    }

    fn credentials(&self, to: &mut Families) {
        let (s, figures) = (&self.stats, &self.credentials);
        let refused =
            figures.refused.iter().map(|(reason, count)| (format!("{{outcome=\"{reason}\"}}"), *count));
        let accepted = ("{outcome=\"accepted\"}".to_owned(), figures.accepted);
        let anonymous = ("{outcome=\"anonymous\"}".to_owned(), figures.anonymous);
        let judged: Vec<_> = [accepted, anonymous].into_iter().chain(refused).collect();
        to.labelled("credentials_judged_total", "counter", "Credentials judged, by outcome.", &judged);
        to.family(
            "credentials_expired_total",
            "counter",
            "Connections whose credentials expired: their clients were asked for others, or ended.",
            &[("{outcome=\"asked\"}", s.credentials_expired), ("{outcome=\"ended\"}", s.left_unauthorized)],
        );
        let (expired, revoked) = figures.ended_responses;
        to.family(
            "credentials_responses_ended_total",
            "counter",
            "Responses that broke off because the credentials of their client ended.",
            &[("{reason=\"expired\"}", expired), ("{reason=\"revoked\"}", revoked)],
        );
        to.gauge("revocations", "Revoked subjects that are remembered.", figures.revoked);
        if figures.issuers.is_empty() {
            return;
        }
        let of = |value: &dyn Fn(&IssuerFigures) -> Option<u64>, more: &str| -> Vec<(String, u64)> {
            let samples = figures.issuers.iter();
            let labelled =
                |of: &IssuerFigures| Some((format!("{{route=\"{}\"{more}}}", of.route), value(of)?));
            samples.filter_map(labelled).collect()
        };
        let fetched = of(&|issuer| Some(issuer.fetched), ",outcome=\"done\"");
        let failed = of(&|issuer| Some(issuer.failed), ",outcome=\"failed\"");
        let fetches = [fetched, failed].concat();
        to.labelled(
            "jwks_fetches_total",
            "counter",
            "Requests for the keys of an issuer, by outcome.",
            &fetches,
        );
        let ages = of(&|issuer| issuer.age, "");
        to.labelled("jwks_age_seconds", "gauge", "Age of the keys of an issuer.", &ages);
        let stale = of(&|issuer| issuer.stale, "");
        let help = "1 while newer keys of an issuer should have been fetched and are not.";
        to.labelled("jwks_stale", "gauge", help, &stale);
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
        let help = "New clients a second that are accepted, as configured or measured; 0: no limit.";
        to.gauge("accept_rate", help, self.accept_rate);
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
        let help = "Connections to the backend that were closed because their client was idle.";
        each.figure(to, "links_hibernated_total", "counter", help, |links| links.rested);
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

    /// The figures of each address, where a backend has several.
    fn addresses(&self, to: &mut Families) {
        if self.routes.iter().all(|(_, figures)| figures.addresses.is_empty()) {
            return;
        }
        let mut family = |name: &str, kind: &str, help: &str, value: fn(&AddressFigures) -> u64| {
            let of_route = |(route, figures): &(String, Figures)| {
                let addresses = figures.addresses.iter();
                let label = |address: &AddressFigures| format!("address=\"{}\"", escaped(&address.name));
                let named = addresses.map(|address| (in_braces(route, &label(address)), value(address)));
                named.collect::<Vec<_>>()
            };
            let samples: Vec<(String, u64)> = self.routes.iter().flat_map(of_route).collect();
            let samples: Vec<_> = samples.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
            to.family(name, kind, help, &samples);
        };
        let help = "1 if the latest attempt reached this address of the backend, 0 if not.";
        family("backend_address_up", "gauge", help, |address| address.up.into());
        let help = "1 while this address is not used because it failed repeatedly.";
        family("backend_address_ejected", "gauge", help, |address| address.ejected.into());
        let help = "Links, requests and attempts that use this address now.";
        family("backend_address_uses", "gauge", help, |address| address.uses);
        let help = "Attempts at this address that failed, probes included.";
        family("backend_address_failures_total", "counter", help, |address| address.failures);
        let help = "Times that this address was ejected.";
        family("backend_address_ejections_total", "counter", help, |address| address.ejections);
    }

    fn process(&self, to: &mut Families) {
        let help = "Log lines that could not be written, or not fast enough.";
        to.counter("log_lines_lost_total", help, self.log_lines_lost);
        let refused = Refusals::REASONS.map(|reason| format!("{{reason=\"{reason}\"}}"));
        let refused: Vec<_> = refused.iter().map(String::as_str).zip(self.admin_refused).collect();
        let help = "Requests that the admin listener refused, by reason.";
        to.family("admin_refused_total", "counter", help, &refused);
        let help = "Events of clients that were noted in the timeline, forgotten ones included.";
        to.counter("timeline_events_total", help, self.events.0);
        if let Some(SpanFigures { exported, dropped, refused }) = self.spans {
            let outcomes = [
                ("{outcome=\"exported\"}", exported),
                ("{outcome=\"dropped\"}", dropped),
                ("{outcome=\"refused\"}", refused),
            ];
            to.family("spans_total", "counter", "Spans that ended, by outcome.", &outcomes);
        }
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
#[derive(Debug, Default)]
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
        to.family(
            "node_questions_total",
            "counter",
            "Questions of operators that this node put to other nodes, by outcome.",
            &[
                ("{outcome=\"answered\"}", figures.questions_answered),
                ("{outcome=\"unanswered\"}", figures.questions_unanswered),
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

/// Writes one family after the other. After an error it writes nothing more.
struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
    written: Result<(), Error>,
}

impl Families<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help, &[("", value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help, &[("", value)]);
    }

    fn labelled(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, u64)]) {
        let samples: Vec<_> = samples.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
        self.family(name, kind, help, &samples);
    }

    /// Writes a family. The labels of a sample are written as in the text format.
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[(&str, u64)]) {
        let name = format!("mainstay_{name}");
        let kind = if kind == "counter" { MetricType::Counter } else { MetricType::Gauge };
        self.write(&name, kind, help, |encoder| {
            for (labels, value) in samples {
                let labels = labels_of(labels);
                let mut sample = encoder.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => sample.encode_counter::<NoLabelSet, _, u64>(value, None)?,
                    _ => sample.encode_gauge(value)?,
                }
            }
            Ok(())
        });
    }

    /// One sample for each certificate in use.
    fn days_left(&mut self, expiries: &[Expiry]) {
        let help = "Days until a certificate in use expires; negative once it has.";
        self.write("mainstay_tls_certificate_days_left", MetricType::Gauge, help, |encoder| {
            for expiry in expiries {
                let labels = [("chain", expiry.chain.display().to_string())];
                encoder.encode_family(&labels)?.encode_gauge(&expiry.days_left())?;
            }
            Ok(())
        });
    }

    fn round_trips(&mut self, stats: &Stats) {
        let above = stats.rtt_count.saturating_sub(stats.rtt_buckets.iter().sum());
        let buckets = RTT_BUCKETS.into_iter().zip(stats.rtt_buckets).chain([(f64::INFINITY, above)]);
        let (buckets, sum): (Vec<_>, _) = (buckets.collect(), stats.rtt_sum.as_secs_f64());
        let help = "Round-trip time of heartbeats to clients.";
        self.write("mainstay_heartbeat_rtt_seconds", MetricType::Histogram, help, |encoder| {
            encoder.encode_histogram::<NoLabelSet>(sum, stats.rtt_count, &buckets, None)
        });
    }

    fn of_process(&mut self, metric: &process_metrics::Metric) {
        let kind = if metric.is_counter { MetricType::Counter } else { MetricType::Gauge };
        self.write(metric.name, kind, metric.help, |encoder| match kind {
            MetricType::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&metric.value, None),
            _ => encoder.encode_gauge(&metric.value),
        });
    }

    /// Writes the head of a family, and its samples by `samples`. The encoder puts the end of the name there again: `_total`
    /// of a counter, and the unit, which OpenMetrics states in a line of its own.
    fn write(
        &mut self,
        name: &str,
        kind: MetricType,
        help: &str,
        samples: impl FnOnce(&mut MetricEncoder<'_>) -> Result<(), Error>,
    ) {
        let name = if kind == MetricType::Counter { name.trim_end_matches("_total") } else { name };
        let in_unit = |unit: &Unit| name.strip_suffix(unit.as_str())?.strip_suffix('_');
        let unit = [Unit::Bytes, Unit::Seconds].into_iter().find(|unit| in_unit(unit).is_some());
        let name = unit.as_ref().and_then(in_unit).unwrap_or(name);
        if self.written.is_ok() {
            let descriptor = self.encoder.encode_descriptor(name, help, unit.as_ref(), kind);
            self.written = descriptor.and_then(|mut encoder| samples(&mut encoder));
        }
    }
}

/// Returns the value of a label as the text format writes it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Returns the labels in a text such as `{leg="client",evidence="silent"}`, as the text format writes them.
fn labels_of(text: &str) -> Vec<(String, String)> {
    let mut rest = text.strip_prefix('{').unwrap_or_default();
    let mut labels = Vec::new();
    while let Some((name, value)) = rest.split_once("=\"") {
        let (value, after) = quoted(value);
        labels.push((name.trim_start_matches(',').to_owned(), value));
        rest = after;
    }
    labels
}

/// Returns a value up to its closing quote, without escapes, and what follows.
fn quoted(text: &str) -> (String, &str) {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            plain => value.push(plain),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered() -> String {
        render_as(Format::Text)
    }

    fn render_as(format: Format) -> String {
        process_metrics::started();
        let mut stats = Stats::default();
        (stats.attached_resumed, stats.rtt_count) = (7, 1);
        let addresses =
            vec![AddressFigures { name: "ws://a\"b".into(), uses: 9, ..AddressFigures::default() }];
        let snapshot = Snapshot {
            stats,
            kept_for_clients: 5,
            kept_for_backend: 6,
            budget: Budget::new(1 << 20),
            routes: vec![(String::new(), Figures { lost: 3, unknown: 2, addresses, ..Figures::default() })],
            spans: Some(SpanFigures { exported: 5, dropped: 0, refused: 0 }),
            cluster: Some(Cluster { engine_up: true, claims: [4, 0, 0, 1], ..Cluster::default() }),
            credentials: CredentialFigures {
                refused: vec![("expired", 9)],
                issuers: vec![IssuerFigures {
                    route: "chat".into(),
                    fetched: 8,
                    failed: 0,
                    age: Some(1),
                    stale: Some(0),
                }],
                ..CredentialFigures::default()
            },
            ..Snapshot::default()
        };
        snapshot.render(format)
    }

    #[test]
    fn metrics_are_prometheus_text_with_help_and_type_for_each_family() {
        let text = rendered();
        for sample in [
            "mainstay_links_lost_total 3\n",
            "mainstay_credentials_judged_total{outcome=\"expired\"} 9\n",
            "mainstay_jwks_fetches_total{route=\"chat\",outcome=\"done\"} 8\n",
            "mainstay_link_messages_total{fate=\"unknown\"} 2\n",
            "mainstay_backend_address_uses{address=\"ws://a\\\"b\"} 9\n",
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
        let text = Snapshot { routes, ..Snapshot::default() }.render(Format::Text);
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
        let alone = Snapshot::default().render(Format::Text);
        assert!(!alone.contains("engine_up") && !alone.contains("relays"), "{alone}");
    }

    #[test]
    fn a_gateway_with_one_address_serves_no_figures_of_single_addresses() {
        let alone = Snapshot { routes: vec![(String::new(), Figures::default())], ..Snapshot::default() };
        assert!(!alone.render(Format::Text).contains("backend_address"));
    }

    #[test]
    fn every_family_is_documented_and_no_other() {
        let rendered = rendered();
        let served: Vec<_> =
            rendered.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let page = include_str!("../../../../docs/METRICS.md");
        let (gateways, _) = page.split_once("\n## The Fastify plugin\n").unwrap();
        let rows = gateways.lines();
        let documented: Vec<_> =
            rows.filter_map(|row| row.strip_prefix("| `")?.split(['`', '{']).next()).collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn labels_are_read_as_they_are_written() {
        let read = |text| labels_of(text);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read(""), []);
        assert_eq!(read("{leg=\"client\"}"), [pair("leg", "client")]);
        let hostile = r#"{route="a",address="ws://a\"b\\c,d=\ne"}"#;
        assert_eq!(read(hostile), [pair("route", "a"), pair("address", "ws://a\"b\\c,d=\ne")]);
    }

    #[test]
    fn open_metrics_have_the_same_samples_the_units_and_an_end() {
        let (text, open) = (rendered(), render_as(Format::OpenMetrics));
        let samples = |text: &str| {
            let name = |line: &str| line.split(' ').next().unwrap().to_owned();
            // OpenMetrics writes every bound with a fraction.
            let text = text.replace("le=\"1.0\"", "le=\"1\"").replace("le=\"5.0\"", "le=\"5\"");
            let mut names: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).map(name).collect();
            names.sort();
            names
        };
        assert_eq!(samples(&open), samples(&text));
        for line in [
            "# TYPE mainstay_attaches counter\n",
            "# UNIT mainstay_queue_bytes bytes\n",
            "# TYPE process_cpu_seconds counter\n# UNIT process_cpu_seconds seconds\n",
            "# TYPE mainstay_heartbeat_rtt_seconds histogram\n",
        ] {
            assert!(open.contains(line), "{line}: {open}");
        }
        assert!(open.ends_with("\n# EOF\n") && !text.contains("# EOF"));
    }

    #[test]
    fn the_format_is_the_one_that_the_scraper_prefers() {
        let check = |accept: &str, expected| {
            let accept = HeaderValue::from_str(accept).unwrap();
            assert_eq!(Format::preferred(Some(&accept)), expected, "{accept:?}");
        };
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        check(prometheus, Format::OpenMetrics);
        check("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.3", Format::Text);
        check("application/openmetrics-text; q=0", Format::Text);
        for text in ["*/*", "text/html", "", "application/openmetrics-text;q=x"] {
            check(text, Format::Text);
        }
        assert_eq!(Format::preferred(None), Format::Text);
    }

    /// `promtool` is in Debian's package `prometheus`. Where it is not installed, this checks nothing.
    #[test]
    fn promtool_has_no_complaint_where_it_is_installed() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut command = Command::new("promtool");
        command
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let Ok(mut promtool) = command.spawn() else { return };
        promtool.stdin.take().unwrap().write_all(rendered().as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
