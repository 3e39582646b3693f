//! `/healthz`, `/readyz` and `/metrics`, on a listener of their own.
//!
//! A supervisor is answered, whatever clients and others do: the listener has a server loop and
//! limits of its own. Above [`CONNECTIONS`] connections the oldest is dropped for the newest, so connections
//! that say nothing keep nobody out, and a few files are kept for it.
//!
//! Where no token protects the figures, a request must name the process as one that is here does: `localhost` or an
//! address. A page whose name was rebound to this address sends its own name, and gets 421.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::uri::Authority;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mainstay::server::{RTT_BUCKETS, Stats};
use mainstay::{Budget, Server};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;

use crate::descriptors::{self, Spare};
use crate::health::Reason;
use crate::links::{Figures, Links};
use crate::{log, process_metrics, successor};

/// Connections at a time. Supervisors and scrapers are few.
const CONNECTIONS: usize = 32;
/// How long a connection may take for a request, or be without one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until the process ends. A successor gets the listener; the figures of this process are then at another port
/// of the same address.
pub(crate) async fn serve(listener: TcpListener, mainstay: Server, links: Links, token: Option<Token>) {
    let taken_over = successor::offer(&listener, mainstay.clone());
    let address = listener.local_addr();
    let app = router(mainstay, links, token);
    tokio::select! {
        never = accept(listener, app.clone()) => match never {},
        () = taken_over => {}
    }
    let elsewhere = address.and_then(|address| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(address.ip(), 0))?;
        socket.listen(CONNECTIONS as u32)
    });
    match elsewhere.and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            tracing::info!(%address, "a successor has the address of --admin; this process answers here until it ends");
            match accept(listener, app).await {}
        }
        Err(error) => {
            tracing::error!(%error, "a successor has the address of --admin, and there is no other")
        }
    }
}

async fn accept(listener: TcpListener, app: Router) -> std::convert::Infallible {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut spare = Spare::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|connection| !connection.is_finished());
                if open.len() >= CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(tokio::spawn(answer(stream, app.clone())).abort_handle());
                spare.refill();
            }
            // One of the spare files is for this one.
            Err(error) if descriptors::are_used_up(&error) && spare.release() => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Answers the requests of one connection.
async fn answer(stream: TcpStream, app: Router) {
    let local = stream.local_addr().ok().map(|address| address.ip());
    let app = app.layer(axum::Extension(Local(local)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection of the admin listener ended");
    }
}

/// The address that a connection came in by.
#[derive(Clone, Copy)]
struct Local(Option<IpAddr>);

fn router(mainstay: Server, links: Links, token: Option<Token>) -> Router {
    let (figures, is_open) = (links.clone(), token.is_none());
    let metrics = |State(mainstay): State<Server>, headers: HeaderMap| async move {
        if token.is_some_and(|token| !token.is_presented(&headers)) {
            return unauthorized();
        }
        let (gauges, kept) = (Gauges::of(&mainstay), Kept::now(&mainstay, &figures));
        let text = render(&mainstay.stats(), &gauges, &kept, &figures.figures());
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
    };
    let ready = |State(mainstay): State<Server>| async move { ready(&mainstay, &links) };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(mainstay);
    app.layer(middleware::from_fn_with_state(is_open, check_host))
}

/// A request that names nothing, or something that is no host, gets 400; one that names another machine gets 421.
async fn check_host(State(is_open): State<bool>, request: Request, next: Next) -> Response {
    let Some(names) = names(&request) else {
        let line = "a request names one host, and a path or a URL\n";
        return (StatusCode::BAD_REQUEST, line).into_response();
    };
    let local = request.extensions().get::<Local>().and_then(|local| local.0);
    if !is_open || names.iter().all(|name| is_here(name.host(), local)) {
        return next.run(request).await;
    }
    let line = "the Host of this request is none of this listener's: ask for localhost or for its address, or \
                protect it with --admin-token-file\n";
    (StatusCode::MISDIRECTED_REQUEST, line).into_response()
}

/// What a request names: its Host, and its target if that is a URL. Only HTTP/1.0 knows requests that name nothing.
/// `None`: it is not as RFC 9112 section 3.2 has it.
fn names(request: &Request) -> Option<Vec<Authority>> {
    let target = request.uri();
    let is_right =
        target.path().starts_with('/') && target.authority().is_some() == target.scheme().is_some();
    let hosts = request.headers().get_all(header::HOST).iter();
    let hosts: Vec<Authority> = hosts.map(|host| host.to_str().ok()?.parse().ok()).collect::<Option<_>>()?;
    let is_enough = hosts.len() == 1 || (hosts.is_empty() && request.version() == Version::HTTP_10);
    (is_right && is_enough).then(|| hosts.into_iter().chain(target.authority().cloned()).collect())
}

/// Whether a name can only mean this machine, or is the address that the connection came in by. Addresses of
/// loopback are, and who is asked by a name of `localhost` is not found by a name server (RFC 6761 section 6.3).
fn is_here(host: &str, local: Option<IpAddr>) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    match host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || local.is_some_and(|local| local.to_canonical() == address)
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
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

fn ready(mainstay: &Server, links: &Links) -> (StatusCode, String) {
    if !mainstay.is_ready() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    match links.not_ready() {
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        None => (StatusCode::OK, "ready\n".to_owned()),
    }
}

/// What is not counted as it happens.
#[derive(Default)]
struct Gauges {
    sessions: mainstay::server::Sessions,
    is_draining: bool,
    log_lines_lost: u64,
}

impl Gauges {
    fn of(mainstay: &Server) -> Self {
        Self {
            sessions: mainstay.sessions(),
            is_draining: !mainstay.is_ready(),
            log_lines_lost: log::lines_lost(),
        }
    }
}

/// What is kept, in bytes.
struct Kept {
    for_clients: u64,
    for_backend: u64,
    budget: Budget,
}

impl Kept {
    /// What a leg brought and the other has not taken counts for that other: it waits for it.
    fn now(mainstay: &Server, links: &Links) -> Self {
        let links = links.figures();
        Self {
            for_clients: mainstay.kept_bytes() + links.unread_bytes,
            for_backend: mainstay.unread_bytes() + links.kept_bytes,
            budget: mainstay.budget().clone(),
        }
    }
}

/// Prometheus text format, version 0.0.4. `docs/METRICS.md` says what each family is good for.
fn render(s: &Stats, gauges: &Gauges, kept: &Kept, links: &Figures) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
        let _ = writeln!(out, "# HELP mainstay_{name} {help}\n# TYPE mainstay_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "mainstay_{name}{labels} {value}");
        }
    };
    family("connections", "gauge", "Connections open now.", &[("", s.connections)]);
    family("sessions", "gauge", "Sessions alive now, attached or parked.", &[("", s.sessions)]);
    let queues = [("{leg=\"client\"}", kept.for_clients), ("{leg=\"backend\"}", kept.for_backend)];
    let states = [
        ("{state=\"attached\"}", gauges.sessions.attached),
        ("{state=\"parked\"}", gauges.sessions.parked),
        ("{state=\"draining\"}", gauges.sessions.draining),
    ];
    let by_state = "Sessions alive now, by state; plain connections count as attached.";
    family("sessions_by_state", "gauge", by_state, &states);
    let draining = u64::from(gauges.is_draining);
    family("draining", "gauge", "1 from the signal that ends the process on.", &[("", draining)]);
    family("queue_bytes", "gauge", "Payload bytes kept for clients, and for the backend.", &queues);
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
    let [redirected, denied, broken] = links.refused;
    let refused = [
        ("{reason=\"full\"}", s.refused_full),
        ("{reason=\"address\"}", s.refused_address),
        ("{reason=\"origin\"}", s.refused_origin),
        ("{reason=\"draining\"}", s.refused_draining),
        ("{reason=\"unreachable\"}", links.unreached),
        ("{reason=\"backend_3xx\"}", redirected),
        ("{reason=\"backend_4xx\"}", denied),
        ("{reason=\"backend_5xx\"}", broken),
        ("{reason=\"memory\"}", s.refused_memory),
    ];
    family("refused_total", "counter", "Clients refused, by cause: a limit, or the backend.", &refused);
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
        ("{leg=\"client\",evidence=\"silent\"}", s.dead_silent),
        ("{leg=\"client\",evidence=\"frozen\"}", s.dead_frozen),
        ("{leg=\"client\",evidence=\"stalled\"}", s.dead_stalled),
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
    family(
        "backend_up",
        "gauge",
        "1 if the backend was reached at last, 0 if not.",
        &[("", links.up.into())],
    );
    family("links", "gauge", "Connections to the backend that are open now.", &[("", links.attached)]);
    let labels = Reason::ALL.map(|reason| format!("{{reason=\"{}\"}}", reason.label()));
    let failed: Vec<_> = labels.iter().map(String::as_str).zip(links.failed).collect();
    let not_opened = "Connections to the backend that did not come about, probes included, by reason.";
    family("link_attempts_failed_total", "counter", not_opened, &failed);
    family("links_lost_total", "counter", "Connections to the backend that were lost.", &[("", links.lost)]);
    let fates = [
        ("{fate=\"unknown\"}", links.unknown),
        ("{fate=\"not_delivered\"}", links.not_delivered),
        ("{fate=\"undeliverable\"}", links.undeliverable),
    ];
    let uncertain = "Messages of clients that the backend did not certainly get, by fate.";
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
    family(
        "log_lines_lost_total",
        "counter",
        "Lines of the log that could not be written, or not fast enough.",
        &[("", gauges.log_lines_lost)],
    );
    let version = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    family("build_info", "gauge", "1; the label says what runs.", &[(version, 1)]);
    let outcomes =
        [("{outcome=\"done\"}", links.prologues), ("{outcome=\"failed\"}", links.prologues_failed)];
    let told = "Prologues for new connections to the backend, by outcome.";
    family("prologues_total", "counter", told, &outcomes);
    render_rtt(&mut out, s);
    process_metrics::render(&mut out);
    out
}

fn render_rtt(out: &mut String, s: &Stats) {
    let name = "mainstay_heartbeat_rtt_seconds";
    let _ = writeln!(out, "# HELP {name} Round-trip time of heartbeats to clients.\n# TYPE {name} histogram");
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
        process_metrics::started();
        let stats = Stats { attached_resumed: 7, rtt_count: 1, ..Stats::default() };
        let kept = Kept { for_clients: 5, for_backend: 6, budget: Budget::new(1 << 20) };
        render(&stats, &Gauges::default(), &kept, &Figures { lost: 3, unknown: 2, ..Figures::default() })
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

    #[test]
    fn a_name_that_somebody_else_may_hand_out_is_not_ours() {
        let check = |host: &str, expected| {
            let local = Some("10.0.0.7".parse().unwrap());
            assert_eq!(is_here(host, local), expected, "{host}");
        };
        for ours in
            ["127.0.0.1", "127.8.8.8", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST", "localhost."]
        {
            check(ours, true);
        }
        check("mainstay.localhost", true);
        check("10.0.0.7", true);
        for other in ["rebound.example", "10.0.0.8", "localhost.example", "127.0.0.1.example", "", "0.0.0.0"]
        {
            check(other, false);
        }
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
