//! `mainstay serve`: accepts clients and forwards them to the backend.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::HeaderName;
use mainstay::client::{Connector, Place};
use mainstay::cluster::ClusterConfig;
use mainstay::server::{AdmissionConfig, Config, LifetimeConfig, Origins, Sessions};
use mainstay::{ConfigError, Limits, Server};
use tokio::sync::watch;

use crate::activation::{self, Activated};
use crate::admin::Token;
use crate::client_tls::{CertificateFiles, ClientTls, TlsSection};
use crate::cluster::ClusterFlags;
use crate::forward::Network;
use crate::heartbeats::Heartbeats;
use crate::links::Links;
use crate::listen_address::ListenAddress;
use crate::listeners::{self, Listening, Socket};
use crate::principal::PrincipalSource;
use crate::profiles::{ProfileFlags, Settings};
use crate::route::Route;
use crate::routes::{MatchRule, Routes};
use crate::signals::{self, Stops};
use crate::successor::Predecessor;
use crate::{
    admin, builtin, client_listeners, descriptors, handshake, http_proxy, limits, log, supervisor, tls,
    values,
};

/// The end of `mainstay serve --help`.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay serve
      serve a demonstration on http://127.0.0.1:8080
  mainstay serve --listen 0.0.0.0:8080 --upstream ws://127.0.0.1:3000
      forward clients to a backend on port 3000
  mainstay serve --upstream unix:/run/app.sock --admin 127.0.0.1:9090
      use a Unix socket; serve health checks and metrics on port 9090

Signals:
  TERM, INT, QUIT  drain: /readyz returns 503, clients are asked to reconnect,
                   then the process ends; a second signal ends it at once
  HUP, USR1, USR2  ignored, with a line in the log
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
  line wins. Options that may be repeated take several values: separated by
  commas where a value cannot contain a comma, otherwise by line breaks.";

/// Flags of `mainstay serve`.
#[derive(clap::Args, Clone)]
pub(crate) struct Arguments {
    /// Address to accept clients on: 127.0.0.1:8080, or a Unix socket, as unix:/run/mainstay.sock?mode=660. May be repeated.
    #[arg(long, value_name = "ADDRESS", value_parser = values::listen, default_value = "127.0.0.1:8080", env = "MAINSTAY_LISTEN")]
    listen: Vec<ListenAddress>,
    /// Speak TLS with this certificate: a file (PEM) with its chain, taken into use again when it changes. Listeners on Unix
    /// sockets, and those written as plain:127.0.0.1:8080, stay without TLS. Default: no TLS.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The private key of --tls-certificate, a file (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// The backend to forward to, for example ws://127.0.0.1:3000, wss://app.internal/ws or unix:/run/app.sock. Its path is
    /// put in front of the client's. Default: none. Without it a built-in backend serves /echo and /broadcast, and / is a
    /// page that shows a live connection and lets you break it.
    #[arg(long, value_name = "URL", value_parser = values::upstream, env = "MAINSTAY_UPSTREAM")]
    upstream: Option<Place>,
    #[command(flatten)]
    tls: tls::Arguments,
    /// How long a plain client is kept while the backend cannot be reached. A client that speaks mainstay.v1 is kept as long
    /// as it stays. Range: 10ms to 1h.
    #[arg(long, value_name = "DURATION", value_parser = values::wait, default_value = "30s")]
    upstream_wait: Duration,
    #[command(flatten)]
    proxy: http_proxy::Arguments,
    #[command(flatten)]
    heartbeats: Heartbeats,
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
    /// Maximum number of open connections of one address, which is one /64 in IPv6. Do not set it behind a proxy: all
    /// clients then have the proxy's address, even if it is trusted. Default: no limit. Range: 0 and above.
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
    /// A proxy in front of the gateway, by address or network, whose X-Forwarded-*, Forwarded and X-Real-IP headers are
    /// forwarded to the backend. May be repeated. Default: none. These headers are removed from every request, and
    /// X-Forwarded-For holds the address that connected.
    #[arg(long, value_name = "NETWORK", value_parser = values::network)]
    trusted_proxy: Vec<Network>,
    /// A cookie that identifies the user: a session is resumed only by a request with the same value. May be repeated.
    #[arg(long, value_name = "NAME", value_parser = values::token)]
    session_cookie: Vec<String>,
    /// A header that identifies the user, such as Authorization: a session is resumed only by a request with the same value.
    /// Its value must not change while a session lives. May be repeated.
    #[arg(long, value_name = "NAME")]
    session_header: Vec<HeaderName>,
    /// Address to serve /healthz, /readyz and /metrics on. Default: off.
    #[arg(long, value_name = "ADDRESS", value_parser = values::address, env = "MAINSTAY_ADMIN")]
    admin: Option<SocketAddr>,
    /// A file with the token that /metrics requires, as "Authorization: Bearer TOKEN": one line of 16 to 1024 characters.
    /// Required if --admin is not a loopback address.
    #[arg(long, value_name = "FILE", requires = "admin", env = "MAINSTAY_ADMIN_TOKEN_FILE")]
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

impl Arguments {
    /// Returns the addresses to listen on; `--listen` only if it was given.
    pub(crate) fn addresses(&self, is_listen_given: bool) -> activation::Flags {
        let listen = is_listen_given.then(|| self.listen.clone());
        activation::Flags { listen, admin: self.admin }
    }

    /// Returns the settings of TLS towards clients.
    fn client_tls(&self) -> TlsSection {
        let files = self.tls_certificate.iter().zip(&self.tls_key);
        let files = files.map(|(chain, key)| CertificateFiles { chain: chain.clone(), key: key.clone() });
        TlsSection { certificates: files.collect(), ..TlsSection::default() }
    }

    /// Replaces the default address, unless there is nothing in its place.
    pub(crate) fn listen_instead(&mut self, addresses: Vec<ListenAddress>) {
        if !addresses.is_empty() {
            self.listen = addresses;
        }
    }
}

/// The state of the request handler.
#[derive(Clone)]
struct Gateway {
    server: Server,
    routes: Arc<Routes>,
}

pub(crate) async fn run(arguments: Arguments, activated: Activated) -> ExitCode {
    let checked = match Checked::new(&arguments) {
        Ok(checked) => checked,
        Err(line) => {
            log::write_line(&line);
            return ExitCode::from(2);
        }
    };
    match serve(arguments, checked, activated).await {
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

/// What the flags say, checked before anything listens.
struct Checked {
    token: Option<Token>,
    settings: Settings,
    connector: Option<Connector>,
    cluster: Option<ClusterConfig>,
    /// TLS towards clients.
    tls: Option<ClientTls>,
}

impl Checked {
    fn new(arguments: &Arguments) -> Result<Self, String> {
        let (token, settings) = (admin_token(arguments)?, arguments.profile.settings()?);
        arguments.cluster.check(arguments.upstream.is_some(), &settings)?;
        let purpose = arguments.upstream.as_ref().map_or_else(String::new, ToString::to_string);
        let cluster = arguments.cluster.config(&purpose)?;
        let connector =
            arguments.upstream.as_ref().map(|place| arguments.tls.connector(place)).transpose()?;
        let tls = arguments.client_tls();
        let tls = tls.is_on().then(|| ClientTls::new(tls)).transpose()?;
        Ok(Self { token, settings, connector, cluster, tls })
    }
}

/// Reads the token for /metrics. Fails before anything listens if anyone on the network could read the metrics.
fn admin_token(arguments: &Arguments) -> Result<Option<Token>, String> {
    match (&arguments.admin_token_file, arguments.admin) {
        (Some(file), _) => Token::read(file).map(Some).map_err(|error| format!("--admin-token-file {error}")),
        (None, Some(address)) if !address.ip().to_canonical().is_loopback() => Err(format!(
            "--admin {address}: not a loopback address, so anyone on the network could read /metrics; \
             choose a loopback address, for example 127.0.0.1:{}, or pass --admin-token-file",
            address.port()
        )),
        _ => Ok(None),
    }
}

/// Returns the configuration of the library.
fn config(arguments: &Arguments, limits: Limits, files: Option<u64>, most: usize) -> Result<Config, String> {
    let max_sessions = arguments.max_sessions.unwrap_or_else(|| {
        let over_tcp = arguments.upstream.as_ref().filter(|place| place.socket.is_none());
        let ports = over_tcp.and_then(|_| descriptors::local_ports());
        descriptors::max_sessions(files, arguments.upstream.is_some(), ports)
    });
    let admission = AdmissionConfig {
        connections: Some(arguments.max_connections.unwrap_or(most)),
        per_address: arguments.max_per_ip,
    };
    let origins = match arguments.allow_origin.as_slice() {
        [] => Origins::Any,
        allowed => Origins::Only(allowed.to_vec()),
    };
    let checked = || {
        let config = Config::new()
            .limits(limits)?
            .resume_window(arguments.resume_window)?
            .max_sessions(max_sessions)?;
        match arguments.limits.max_parked_per_ip {
            Some(sessions) => config.max_parked_per_address(sessions),
            None => Ok(config),
        }
    };
    let config = checked().map_err(|error: ConfigError| error.to_string())?;
    Ok(config
        .heartbeat(arguments.heartbeats.global())
        .deflate(arguments.deflate)
        .admission(admission)
        .lifetime(lifetime(arguments)?)
        .budget(arguments.limits.budget(arguments.max_message))
        .origins(origins))
}

/// Serves until the drain is over.
async fn serve(arguments: Arguments, checked: Checked, activated: Activated) -> Result<(), Failed> {
    let Checked { token, settings, connector, cluster, tls } = checked;
    let files = descriptors::raise_limit();
    let most = descriptors::max_connections(files, arguments.upstream.is_some());
    let limits = Limits { max_message: arguments.max_message, max_fragments: arguments.max_fragments };
    let config = config(&arguments, limits, files, most)?;
    let mainstay = Server::new(match cluster {
        Some(cluster) => config.cluster(cluster),
        None => config,
    });
    let links = Links::default();
    let app = match &arguments.upstream {
        None => builtin::router(arguments.cluster.movable),
        Some(upstream) => {
            let connector = connector.clone().unwrap_or_default();
            gateway(&arguments, upstream, connector, settings, limits, &links, &mainstay)
        }
    };
    let Activated { clients: passed, admin: admin_passed } = activated;
    let clients = listeners::listen_all(passed, &arguments.listen, "--listen")?;
    let admin = arguments
        .admin
        .map(|address| listeners::listen(admin_passed, &ListenAddress::tcp(address), "--admin"))
        .transpose()?;
    let failed = |error: std::io::Error| format!("signals cannot be handled: {error}");
    let stops = Stops::listen().map_err(failed)?;
    signals::ignore_the_others().map_err(failed)?;
    let (drains, draining) = watch::channel(false);
    let mut clients = client_listeners::prepare(clients, &mainstay, &draining);
    match &arguments.upstream {
        Some(upstream) => {
            let connector = connector.clone().unwrap_or_default().timeout(PROBE_TIMEOUT);
            let connector = connector.map_err(|error| error.to_string())?;
            tokio::spawn(links.clone().probe(connector, upstream.url.clone()));
        }
        None => links.reached(),
    }
    if let Err(error) = mainstay.join().await {
        let (line, code) = arguments.cluster.explain(&error);
        return Err(Failed { line, code });
    }
    clients.iter_mut().for_each(client_listeners::Prepared::stop_predecessor);
    let urls: Vec<String> = clients.iter().map(|client| client.url(tls.is_some())).collect();
    let admin = admin.map(|Listening { socket, predecessor, .. }| {
        predecessor.into_iter().for_each(Predecessor::stop_accepting);
        socket
    });
    let admin = admin.and_then(|socket| match socket {
        Socket::Tcp(listener) => Some(listener),
        Socket::Unix(_) => None,
    });
    let admin_address = admin.as_ref().and_then(|admin| admin.local_addr().ok());
    print_banner(&arguments, &urls, admin_address, &mainstay);
    if let Some(admin) = admin {
        tokio::spawn(admin::serve(admin, mainstay.clone(), links.clone(), token));
    }
    supervisor::ready(&format!("serving clients at {}", client_listeners::places(&clients)));
    tokio::spawn(supervisor::keep_watchdog());
    let stop = termination(stops, links.clone(), mainstay.clone());
    tokio::spawn(announced(stop, mainstay.clone(), drains, arguments.drain));
    let serving = client_listeners::Serving {
        app,
        server: mainstay,
        draining,
        drain: arguments.drain,
        keeps_spelling: arguments.upstream.is_some(),
        tls: tls.as_ref().map(|tls| tls.tls.clone()),
        proxies: None,
    };
    if let Some(tls) = tls {
        tokio::spawn(ClientTls::watch(Arc::new(Mutex::new(tls))));
    }
    let served = serving.serve_all(clients).await;
    warn_about_unconfirmed(&links);
    served.map_err(Failed::from)
}

/// Returns the router that forwards every request to the backend of its route.
fn gateway(
    arguments: &Arguments,
    upstream: &Place,
    connector: Connector,
    settings: Settings,
    limits: Limits,
    links: &Links,
    server: &Server,
) -> Router {
    let route = Route {
        name: "default".into(),
        rule: MatchRule::default(),
        proxy: arguments.proxy.proxy(&upstream.url, &connector, &arguments.trusted_proxy, links),
        connector,
        upstream_wait: arguments.upstream_wait,
        deflate_upstream: arguments.proxy.deflate(),
        heartbeats: arguments.heartbeats.clone(),
        limits,
        settings,
        principal: PrincipalSource {
            headers: arguments.session_header.clone(),
            cookies: arguments.session_cookie.clone(),
        },
        links: links.clone(),
        server: server.clone(),
        movable: arguments.cluster.movable,
    };
    let _ = route.proxy.upstream.server.set(server.clone());
    let routes = Arc::new(Routes::new(vec![Arc::new(route)]));
    let gateway = Gateway { server: server.clone(), routes };
    Router::new().fallback(any(respond)).with_state(gateway)
}

/// How long a probe of the backend may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds the lifetime limits. The parsers of the flags checked each bound.
fn lifetime(arguments: &Arguments) -> Result<LifetimeConfig, String> {
    let wrong = |error: ConfigError| error.to_string();
    let mut config = LifetimeConfig::default();
    if let Some(idle) = arguments.idle_timeout {
        config = config.idle_timeout(idle).map_err(wrong)?;
    }
    if let Some(lifetime) = arguments.max_lifetime {
        config = config.max_lifetime(lifetime).map_err(wrong)?;
    }
    Ok(config)
}

async fn respond(State(gateway): State<Gateway>, request: Request) -> Response {
    handshake::respond(request, &gateway.server, &gateway.routes).await
}

/// Prints where clients connect, the backend, this node's part in a cluster and a command to try. Write errors are ignored.
fn print_banner(arguments: &Arguments, urls: &[String], admin: Option<SocketAddr>, server: &Server) {
    let (first, others) = urls.split_first().map_or(("", urls), |(first, others)| (first.as_str(), others));
    let mut lines = vec![format!("mainstay {} listening on {first}", env!("CARGO_PKG_VERSION"))];
    lines.extend(others.iter().map(|url| format!("  and on {url}")));
    lines.push(match &arguments.upstream {
        Some(upstream) => format!("  forwarding to {upstream}"),
        None => {
            "  built-in backend at /echo and /broadcast; --upstream ws://host:port forwards to yours".into()
        }
    });
    if arguments.upstream.is_none() {
        let page = first.strip_prefix("ws").map(|rest| format!("http{rest}/"));
        lines.extend(page.map(|page| format!("  a live connection to watch and break: {page}")));
    }
    if let Some(status) = server.cluster() {
        lines.push(format!("  {}", arguments.cluster.banner(&status)));
    }
    if let Some(admin) = admin {
        lines.push(format!("  admin on http://{admin}: /healthz /readyz /metrics"));
    }
    let path = if arguments.upstream.is_some() { "/" } else { "/echo" };
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

/// Completes at the first signal, which drains. Ends the process at the second.
async fn termination(mut stops: Stops, links: Links, server: Server) {
    let stop = stops.next().await;
    let Sessions { attached, parked, .. } = server.sessions();
    tracing::info!(signal = ?stop, attached, parked, "draining; send the signal again to end at once");
    tokio::spawn(async move {
        let stop = stops.next().await;
        warn_about_unconfirmed(&links);
        log::flush(LOG_FLUSH_TIMEOUT);
        std::process::exit(stop.exit_code().into());
    });
}

/// Logs how many bytes of messages the process drops at its end.
fn warn_about_unconfirmed(links: &Links) {
    let bytes = links.kept_bytes();
    if bytes > 0 {
        tracing::warn!(
            bytes,
            "the process ends with messages of clients that may not have reached the backend"
        );
    }
}
