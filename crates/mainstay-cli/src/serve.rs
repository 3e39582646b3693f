//! `mainstay serve`: accepts clients and forwards them to the backend.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::HeaderName;
use http::uri::Authority;
use mainstay::client::Place;
use mainstay::cluster::ClusterConfig;
use mainstay::server::{Config, Origins, Sessions};
use mainstay::{Budget, ConfigError, HeartbeatConfig, Limits, Server};
use tokio::sync::watch;

use crate::admin::{DrainOrder, Opening, Operated, Token};
use crate::clients::client_listeners;
use crate::clients::client_tls::ClientTls;
use crate::clients::limits;
use crate::clients::listen_address::{self, ListenAddress};
use crate::clients::listeners::{self, Listening, SocketFile};
use crate::cluster::ClusterFlags;
use crate::config::{Loaded, Problem, RouteSection, Sources};
use crate::observe::log;
use crate::observe::refusals::Refusals;
use crate::observe::spans;
use crate::process::activation::{Activated, Passed};
use crate::process::descriptors;
use crate::process::signals::{self, Stops};
use crate::process::successor::Predecessor;
use crate::process::supervisor;
use crate::protocols::profiles::ProfileFlags;
use crate::request::handshake;
use crate::request::http_proxy;
use crate::routes::Routes;
use crate::routes::heartbeats::HeartbeatFlags;
use crate::routes::reload::{self, Live, Reloads, Stamps};
use crate::routes::table;
use crate::upstream::links::Links;
use crate::{admin, builtin, cluster, config, tls, values};

/// The end of `mainstay serve --help`.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay serve
      serve a demonstration on http://127.0.0.1:8080
  mainstay serve --listen 0.0.0.0:8080 --upstream ws://127.0.0.1:3000
      forward clients to a backend on port 3000
  mainstay serve --upstream unix:/run/app.sock --admin 127.0.0.1:9090
      use a Unix socket; serve health checks and metrics on port 9090
  mainstay serve --config mainstay.toml
      forward clients by the routes of a file

Signals:
  TERM, INT, QUIT  drain: /readyz returns 503, clients are asked to reconnect,
                   then the process ends; a second signal ends it at once
  HUP              read the configuration again; what is open goes on
  USR1, USR2       ignored, with a line in the log
  A successor that starts with the same addresses while this process drains
  inherits its listeners, so that no connection is refused.

Exit codes:
  0    drained and ended in order
  1    the process could not start, or serving failed; standard error says why
  2    the arguments or the environment are wrong
  130, 131, 143  ended at once by a second INT, QUIT or TERM

Environment:
  MAINSTAY_LOG selects what is logged: a level, or TARGET=LEVEL.
  Each option has a variable, such as MAINSTAY_LISTEN for --listen; the command
  line wins. Other settings have two underscores between the names of their
  key: MAINSTAY_ROUTES__CHAT__UPSTREAM__WAIT for routes.chat.upstream.wait. Options that may be repeated take several values: separated by
  commas where a value cannot contain a comma, otherwise by line breaks.";

/// Flags of `mainstay serve`. Their values are read by `config::flags`, as a layer over the configuration file.
#[derive(clap::Args, Clone)]
pub(crate) struct Arguments {
    /// A file with settings in TOML, for what flags cannot say: several routes, above all. Flags and variables win over it.
    /// `mainstay config reference` prints one with every setting. Default: none.
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
    /// Address to accept clients on: 127.0.0.1:8080, or a Unix socket, as unix:/run/mainstay.sock?mode=660. May be repeated.
    #[arg(long, value_name = "ADDRESS", value_parser = values::listen, default_value = "127.0.0.1:8080", env = "MAINSTAY_LISTEN")]
    listen: Vec<ListenAddress>,
    /// Speak TLS with this certificate: a file (PEM) with its chain, read again when it changes. Listeners on Unix sockets,
    /// and those written as plain:127.0.0.1:8080, stay without TLS. Default: no TLS.
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// The private key of --tls-certificate, a file (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The backend to forward to, for example ws://127.0.0.1:3000, wss://app.internal/ws or unix:/run/app.sock. Its path is
    /// put in front of the client's. Default: none. Without it a built-in backend serves /echo and /broadcast, and / is a
    /// page that shows a live connection and lets you break it. May be repeated: each is an address of the same backend, and new
    /// connections go to the one with the fewest.
    #[arg(long, value_name = "URL", value_parser = values::upstream, env = "MAINSTAY_UPSTREAM")]
    upstream: Vec<Place>,
    #[command(flatten)]
    tls: tls::Arguments,
    /// How long a plain client is kept while the backend cannot be reached. A client that speaks mainstay.v1 is kept as long
    /// as it stays. Range: 10ms to 1h.
    #[arg(long, value_name = "DURATION", value_parser = values::wait, default_value = "30s")]
    upstream_wait: Duration,
    #[command(flatten)]
    proxy: http_proxy::Arguments,
    #[command(flatten)]
    heartbeats: HeartbeatFlags,
    /// Maximum size of a message, in either direction. The sender of a larger one is closed with 1009. Range: 1 to 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "16MiB")]
    max_message: usize,
    /// Maximum number of fragments of a message. The sender of more is closed with 1008. Range: 1 and above.
    #[arg(long, value_name = "COUNT", value_parser = values::fragments, default_value_t = 4096, allow_negative_numbers = true)]
    max_fragments: u32,
    /// Compress towards clients that offer permessage-deflate. Default: off.
    #[arg(long)]
    deflate: bool,
    /// How long the session of a client that speaks mainstay.v1 is kept after its connection was lost. Range: 0s to 1h.
    #[arg(long, value_name = "DURATION", value_parser = values::at_most_an_hour, default_value = "2m")]
    resume_window: Duration,
    #[command(flatten)]
    profile: ProfileFlags,
    /// Maximum number of open connections. A further one gets 503 with Retry-After. Default: as many as the limit of open
    /// files allows, at most 1,000,000. Range: 0 and above; 0 refuses all.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    max_connections: Option<usize>,
    /// Maximum number of open connections of one address, which is one /64 in IPv6. A client that resumes its session is
    /// accepted in any case. Behind a proxy list it as --trusted-proxy: then each client has its own address, or else all
    /// have the proxy's. Default: no limit. Range: 0 and above.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    max_per_ip: Option<usize>,
    /// Maximum number of sessions, parked ones included. Default: as many as the limit of open files and, with a backend,
    /// the local ports allow, at most 1,000,000. Range: 0 and above.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    max_sessions: Option<usize>,
    #[command(flatten)]
    limits: limits::Arguments,
    /// Close sessions and plain connections that carried no message for this long, in either direction. Default: off.
    /// Range: 1s to 1week.
    #[arg(long, value_name = "DURATION", value_parser = values::idle_timeout)]
    idle_timeout: Option<Duration>,
    /// Ask clients to reconnect when a connection is this old, +-20 %. Sessions continue. Default: off.
    /// Range: 1s to 1week.
    #[arg(long, value_name = "DURATION", value_parser = values::max_lifetime)]
    max_lifetime: Option<Duration>,
    /// Accept WebSockets only from pages of this origin, for example https://example.com. May be repeated. Default: any.
    /// The backend receives each client's Origin and can decide.
    #[arg(long, value_name = "ORIGIN", value_parser = values::origin)]
    allow_origin: Vec<String>,
    /// A proxy in front of the gateway, by address or network: its X-Forwarded-For is the address of each client, for limits
    /// and the log, and its X-Forwarded-*, Forwarded and X-Real-IP headers are forwarded to the backend. May be repeated. Default: none. These headers are removed from every request, and
    /// X-Forwarded-For holds the address that connected.
    #[arg(long, value_name = "NETWORK", value_parser = values::network)]
    trusted_proxy: Vec<mainstay::server::Network>,
    /// A cookie that identifies the user: a session is resumed only by a request with the same value. May be repeated.
    #[arg(long, value_name = "NAME", value_parser = values::token)]
    session_cookie: Vec<String>,
    /// A header that identifies the user, such as Authorization: a session is resumed only by a request with the same value.
    /// Its value must not change while a session lives. May be repeated.
    #[arg(long, value_name = "NAME")]
    session_header: Vec<HeaderName>,
    /// Address to serve health checks, metrics, the operator's console and its API on. Default: off.
    #[arg(long, value_name = "ADDRESS", value_parser = values::listen, env = "MAINSTAY_ADMIN")]
    admin: Option<ListenAddress>,
    /// A file with the token that everything but health checks requires there, as "Authorization: Bearer TOKEN": one line of 16 to 1024 characters.
    /// Required if --admin is not a loopback address.
    #[arg(long, value_name = "FILE", env = "MAINSTAY_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// Maximum duration of a drain after SIGTERM: clients are asked to reconnect, and responses are finished. A supervisor
    /// must wait longer than this before it kills the process. Range: 0s to 1h.
    #[arg(long, value_name = "DURATION", value_parser = values::at_most_an_hour, default_value = "5s")]
    drain: Duration,
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    pub(crate) log: log::LogArguments,
}

/// The state of the request handler.
#[derive(Clone)]
struct Gateway {
    server: Server,
    routes: Arc<Routes>,
}

pub(crate) async fn run(sources: Sources, loaded: Loaded, activated: Activated) -> ExitCode {
    let read = reload::now(&sources, &loaded).await;
    let checked = match Checked::new(&loaded) {
        Ok(checked) => checked,
        Err(problem) => {
            log::write_line(&problem.to_string());
            return ExitCode::from(2);
        }
    };
    match serve(sources, loaded, read, checked, activated).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { line, code }) => {
            log::write_line(&line);
            code
        }
    }
}

/// Why the process ends, and its exit code.
struct Failed {
    line: String,
    code: ExitCode,
}

impl From<String> for Failed {
    fn from(line: String) -> Self {
        Self { line, code: ExitCode::FAILURE }
    }
}

/// What is read from other files, checked before anything listens.
struct Checked {
    token: Option<Token>,
    cluster: Option<ClusterConfig>,
    /// TLS towards clients.
    tls: Option<ClientTls>,
    /// TLS of the admin listener.
    admin_tls: Option<ClientTls>,
}

impl Checked {
    fn new(loaded: &Loaded) -> Result<Self, Problem> {
        let wrong = |key: &'static str, what: &str| loaded.problem_at(key, what);
        let token = admin_token(&loaded.config).map_err(|(key, what)| wrong(key, &what))?;
        let cluster =
            cluster::config(&loaded.config, &purpose(loaded)).map_err(|(key, what)| wrong(key, &what))?;
        let tls = &loaded.config.tls;
        let tls = tls.is_on().then(|| ClientTls::new(tls, "clients")).transpose();
        let tls = tls.map_err(|what| loaded.problem_in("tls", &what))?;
        let admin_tls = &loaded.config.admin.tls;
        let admin_tls = admin_tls.is_on().then(|| ClientTls::new(&admin_tls.section(), "admin")).transpose();
        let admin_tls = admin_tls.map_err(|what| loaded.problem_in("admin.tls", &what))?;
        Ok(Self { token, cluster, tls, admin_tls })
    }
}

/// Returns what this node's clients are forwarded to. Nodes with another purpose are another cluster. With routes by names the
/// name of the cluster states that alone, so that nodes can get another table one after the other.
fn purpose(loaded: &Loaded) -> String {
    if loaded.names_routes {
        return "routes".to_owned();
    }
    let only = loaded.config.routes.values().next();
    only.and_then(|route| route.upstream.addresses.first())
        .map_or_else(String::new, |place| place.to_string())
}

/// Reads the token of the admin listener. Fails before anything listens if anyone on the network could read the metrics.
fn admin_token(config: &config::Config) -> Result<Option<Token>, (&'static str, String)> {
    let admin = config.admin.listen.as_ref().map(|listen| &listen.place);
    match (&config.admin.token_file, admin) {
        (Some(file), _) => Token::read(file)
            .map(Some)
            .map_err(|error| ("admin.token-file", format!("<admin.token-file> {error}"))),
        (None, Some(listen_address::Place::Tcp(address)))
            if !address.ip().to_canonical().is_loopback() && config.admin.tls.client_ca.is_none() =>
        {
            Err((
                "admin.listen",
                format!(
                    "<admin.listen> {address}: not a loopback address, so anyone on the network could read /metrics; choose a \
                 loopback address, for example 127.0.0.1:{}, or set <admin.token-file> or <admin.tls.client-ca>",
                    address.port()
                ),
            ))
        }
        _ => Ok(None),
    }
}

/// Returns the configuration of the library. What a route says of its own comes with each request.
fn library(
    config: &config::Config,
    files: Option<u64>,
    most: usize,
    has_backend: bool,
) -> Result<Config, String> {
    let max_sessions = config.limits.sessions.unwrap_or_else(|| {
        let addresses = config.routes.values().flat_map(|route| &route.upstream.addresses);
        let over_tcp = addresses.map(|place| {
            let host = place.url.authority().map(Authority::as_str);
            host.filter(|_| place.socket.is_none())
        });
        let ports = descriptors::local_ports(over_tcp);
        descriptors::max_sessions(files, has_backend, ports)
    });
    let none = RouteSection::default();
    let route = config.routes.values().next().unwrap_or(&none);
    let limits = |route: &RouteSection| route.limits.clone();
    let limits = Limits {
        max_message: config
            .routes
            .values()
            .map(|route| limits(route).message)
            .max()
            .unwrap_or(none.limits.message),
        max_fragments: config
            .routes
            .values()
            .map(|route| limits(route).fragments)
            .max()
            .unwrap_or(none.limits.fragments),
    };
    // The node's longest: each session has that of its route.
    let resume_window = config.routes.values().map(|route| route.session.resume_window).max();
    let resume_window = resume_window.unwrap_or(none.session.resume_window);
    let checked = || {
        let library =
            Config::new().limits(limits)?.resume_window(resume_window)?.max_sessions(max_sessions)?;
        match config.limits.parked_per_address {
            Some(sessions) => library.max_parked_per_address(sessions),
            None => Ok(library),
        }
    };
    let library = checked().map_err(|error: ConfigError| error.to_string())?;
    let budget =
        config.limits.memory_budget.as_ref().map_or_else(Budget::default, |budget| (**budget).clone());
    limits::warn_about_budget(&budget, limits.max_message);
    let heartbeat = HeartbeatConfig::every(route.heartbeat.interval).map_err(|error| error.to_string())?;
    Ok(library
        .heartbeat(heartbeat)
        .deflate(route.session.deflate)
        .admission(config.limits.admission(most))
        .openings(config.limits.openings())
        .proxies(config.proxies.proxies())
        .lifetime(route.session.lifetime()?)
        .budget(budget)
        .timeline(if config.admin.listen.is_some() { config.admin.timeline } else { 0 })
        // A route has its own, which the gateway checks; the demonstration has one.
        .origins(if has_backend { Origins::Any } else { route.origins.origins() }))
}

/// Serves until the drain is over.
async fn serve(
    sources: Sources,
    loaded: Loaded,
    read: Stamps,
    checked: Checked,
    activated: Activated,
) -> Result<(), Failed> {
    let Checked { token, cluster, tls, admin_tls } = checked;
    let admin_token = token.clone();
    spans::start(&loaded.config.tracing).map_err(|what| loaded.problem_in("tracing", &what).to_string())?;
    let (config, is_demonstration) = (&loaded.config, loaded.is_demonstration());
    let files = descriptors::raise_limit();
    let most = descriptors::max_connections(files, !is_demonstration);
    let library = library(config, files, most, !is_demonstration)?;
    let mainstay = Server::new(match cluster {
        Some(cluster) => library.cluster(cluster),
        None => library,
    });
    let drain_order = DrainOrder::default();
    let routes = Arc::new(Routes::default());
    routes.reloads.count_read();
    let app = if is_demonstration {
        builtin::router(config.routes.values().any(|route| route.session.movable))
    } else {
        let built =
            table::build(&loaded, &mainstay, &routes.access, &[]).map_err(|problem| problem.to_string())?;
        table::set_limits(&built);
        routes.replace(built, loaded.names_routes);
        let gateway = Gateway { server: mainstay.clone(), routes: Arc::clone(&routes) };
        Router::new().fallback(any(respond)).with_state(gateway)
    };
    let Activated { clients: passed, admin: admin_passed } = activated;
    // Without `--listen` the supervisor's sockets take the place of its default.
    let addresses = match loaded.is_set("listen") || passed.is_empty() {
        true => config.addresses(),
        false => passed.iter().map(Passed::address).collect(),
    };
    let clients = listeners::listen_all(passed, &addresses, "--listen")?;
    let admin = config.admin.listen.as_ref();
    let admin = admin.map(|address| listeners::listen(admin_passed, address, "--admin")).transpose()?;
    let failed = |error: std::io::Error| format!("signals cannot be handled: {error}");
    let stops = Stops::listen().map_err(failed)?;
    signals::ignore_the_others().map_err(failed)?;
    let reloads = Reloads::listen().map_err(failed)?;
    let (drains, draining) = watch::channel(false);
    let mut clients = client_listeners::prepare(clients, &mainstay, &draining);
    table::start(&routes.all());
    admin::join(&mainstay, &routes);
    if let Err(error) = mainstay.join().await {
        let (line, code) = cluster::explain(&error);
        return Err(Failed { line, code });
    }
    clients.iter_mut().for_each(client_listeners::Prepared::stop_predecessor);
    let urls: Vec<String> = clients.iter().map(|client| client.url(tls.is_some())).collect();
    let admin_scheme = if admin_tls.is_some() { "https" } else { "http" };
    let admin_place = admin.as_ref().map(|admin| (&admin.place, admin_scheme));
    print_banner(&loaded, &urls, admin_place, &mainstay);
    let mut admin_file = None;
    if let Some(Listening { socket, place, predecessor, file, .. }) = admin {
        predecessor.into_iter().for_each(Predecessor::stop_accepting);
        admin_file = file;
        let (server, routes, drain) = (mainstay.clone(), Arc::clone(&routes), drain_order.clone());
        let operated = Operated { server, routes, drain, refusals: Refusals::default() };
        let asks_for_certificates = loaded.config.admin.tls.client_ca.is_some();
        let opening = Opening::new(token, admin_tls.as_ref(), asks_for_certificates);
        tokio::spawn(admin::serve(socket, place, operated, opening));
    }
    let serving = client_listeners::Serving {
        app,
        server: mainstay.clone(),
        draining,
        drain: config.drain,
        keeps_spelling: !is_demonstration,
        tls: tls.as_ref().map(|tls| tls.tls.clone()),
        proxies: config.proxies.proxy_protocol(&mainstay),
    };
    let status = format!("serving clients at {}", client_listeners::places(&clients));
    supervisor::ready(&status);
    tokio::spawn(supervisor::keep_watchdog());
    let stop = termination(stops, drain_order, Arc::clone(&routes), mainstay.clone());
    tokio::spawn(announced(stop, mainstay.clone(), drains, config.drain));
    let live =
        Live { server: mainstay, routes: Arc::clone(&routes), admin_token, most, tls, admin_tls, status };
    tokio::spawn(reload::run(live, sources, loaded, read, reloads));
    let served = serving.serve_all(clients).await;
    admin_file.into_iter().for_each(SocketFile::remove);
    warn_about_unconfirmed(&routes);
    spans::flush().await;
    served.map_err(Failed::from)
}

async fn respond(State(gateway): State<Gateway>, request: Request) -> Response {
    handshake::respond(request, &gateway.server, &gateway.routes).await
}

/// Prints where clients connect, the backends, this node's part in a cluster and a command to try. Write errors are ignored.
fn print_banner(
    loaded: &Loaded,
    urls: &[String],
    admin: Option<(&listen_address::Place, &str)>,
    server: &Server,
) {
    let (first, others) = urls.split_first().map_or(("", urls), |(first, others)| (first.as_str(), others));
    let mut lines = vec![format!("mainstay {} listening on {first}", env!("CARGO_PKG_VERSION"))];
    lines.extend(others.iter().map(|url| format!("  and on {url}")));
    let is_demonstration = loaded.is_demonstration();
    match loaded.config.routes.len() {
        _ if is_demonstration => {
            lines.push(
                "  built-in backend at /echo and /broadcast; --upstream ws://host:port forwards to yours"
                    .into(),
            );
            let page = first.strip_prefix("ws").map(|rest| format!("http{rest}/"));
            lines.extend(page.map(|page| format!("  a live connection to watch and break: {page}")));
        }
        1 => {
            let addresses = loaded.config.routes.values().flat_map(|route| &route.upstream.addresses);
            let addresses: Vec<_> = addresses.map(|place| place.to_string()).collect();
            lines.push(format!("  forwarding to {}", addresses.join(", ")));
        }
        routes => lines.push(format!("  forwarding by {routes} routes")),
    }
    if let Some(status) = server.cluster() {
        lines.push(format!("  {}", cluster::banner(&loaded.config, &status)));
    }
    if let Some((place, scheme)) = admin {
        let at = match place {
            listen_address::Place::Tcp(address) => format!("{scheme}://{address}"),
            place => place.to_string(),
        };
        lines.push(format!("  admin on {at}: /healthz /readyz /metrics /sessions"));
    }
    let path = if is_demonstration { "/echo" } else { "/" };
    // The path in a Unix socket comes behind a colon.
    let path = if first.starts_with("unix:") { format!(":{path}") } else { path.to_owned() };
    lines.push(format!("  try: mainstay connect {first}{path}"));
    lines.push(String::new());
    let banner = lines.join("\n");
    // A thread of its own writes it: a reader that stalls must not delay serving.
    let write = move || {
        let _ = std::io::stdout().write_all(banner.as_bytes());
    };
    if std::thread::Builder::new().name("banner".into()).spawn(write).is_err() {
        tracing::warn!("the banner cannot be printed: no thread");
    }
}

/// How long a process that ends at once waits for the log to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Waits for `stop`, and then announces to the listeners and to the supervisor that the process drains.
async fn announced(
    stop: impl Future<Output = ()>,
    server: Server,
    drains: watch::Sender<bool>,
    drain: Duration,
) {
    stop.await;
    drains.send_replace(true);
    let sessions = server.sessions();
    let open = sessions.attached + sessions.parked + sessions.draining;
    supervisor::stopping(drain, &format!("draining {open} sessions and connections"));
}

/// Completes at the first signal or the operator's order, which drains. Ends the process at the next signal.
async fn termination(mut stops: Stops, order: DrainOrder, routes: Arc<Routes>, server: Server) {
    let stop = tokio::select! {
        stop = stops.next() => Some(stop),
        () = order.given() => None,
    };
    let Sessions { attached, parked, .. } = server.sessions();
    let signal = stop.map(tracing::field::debug);
    tracing::info!(signal, attached, parked, "draining; send the signal again to end at once");
    tokio::spawn(async move {
        let stop = stops.next().await;
        warn_about_unconfirmed(&routes);
        log::flush(LOG_FLUSH_TIMEOUT);
        std::process::exit(stop.exit_code().into());
    });
}

/// Logs how many bytes of messages the process drops at its end.
fn warn_about_unconfirmed(routes: &Routes) {
    let bytes: u64 = routes.links().iter().map(Links::kept_bytes).sum();
    if bytes > 0 {
        tracing::warn!(
            bytes,
            "the process ends with messages of clients that may not have reached the backend"
        );
    }
}
