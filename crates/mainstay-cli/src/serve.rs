//! `mainstay serve`: visitors in front, the backend behind.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::HeaderName;
use mainstay::client::{Connector, Place};
use mainstay::server::{AdmissionConfig, Config, LifetimeConfig, Origins};
use mainstay::{ConfigError, Limits, Server};
use tokio::net::{TcpListener, TcpSocket};

use crate::admin::Token;
use crate::bounds::Bounds;
use crate::forward::Network;
use crate::heartbeats::Heartbeats;
use crate::links::Links;
use crate::principal::Bound;
use crate::profiles::{ProfileFlags, Settings};
use crate::signals::{self, Stops};
use crate::successor::{Baton, Found};
use crate::{admin, builtin, descriptors, join, log, pass, successor, trust, values, visit};

/// Visitors that wait to be accepted; the kernel cuts it to `net.core.somaxconn`. After a restart all come at once, and
/// who finds the queue full is not heard until TCP asks again, a second later or more.
const BACKLOG: u32 = 65_535;

/// What `--help` ends with.
pub(crate) const OPERATION: &str = "\
Signals:
  TERM, INT, QUIT  drain: /readyz says no, visitors are sent away, then it ends
                   once more: ends at once
  HUP, USR1, USR2  ignored, with a line of the log
  A successor that is started with the same addresses while this process drains
  gets its listeners, and no connection is refused.

Exit codes:
  0    ended in order
  1    it could not start, or serving failed; a line on standard error says why
  2    the options or the environment are wrong
  130, 131, 143  ended at once by a second INT, QUIT or TERM

Environment:
  MAINSTAY_LOG says what is logged: a level, or TARGET=LEVEL.
  Each option has a variable, as MAINSTAY_LISTEN for --listen; the option wins.
  Several values are parted by commas where none can hold one, else by line
  breaks.";
/// The largest head of a request, and how many fields it may have: as nginx takes them, with room for cookies.
const MAX_HEAD: usize = 32 * 1024;
const MAX_FIELDS: usize = 100;
/// How long a connection may be without a request; nginx's `keepalive_timeout`.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Flags of `mainstay serve`.
#[derive(clap::Args, Clone)]
pub(crate) struct Arguments {
    /// Where visitors connect.
    #[arg(long, value_name = "ADDRESS", value_parser = values::address, default_value = "127.0.0.1:8080", env = "MAINSTAY_LISTEN")]
    listen: SocketAddr,
    /// The backend to front, for example ws://127.0.0.1:3000, or unix:/run/app.sock. Its path, if any, goes in front of the
    /// visitor's. Without it a built-in backend answers at /echo and /broadcast, and / is a page that shows a
    /// live connection and breaks it.
    #[arg(long, value_name = "URL", value_parser = values::upstream, env = "MAINSTAY_UPSTREAM")]
    upstream: Option<Place>,
    #[command(flatten)]
    trust: trust::Arguments,
    /// How long a plain visitor is kept while the backend cannot be reached. One that speaks mainstay.v1
    /// is kept for as long as it stays.
    #[arg(long, value_name = "DURATION", value_parser = values::wait, default_value = "30s")]
    upstream_wait: Duration,
    #[command(flatten)]
    passing: pass::Arguments,
    #[command(flatten)]
    heartbeats: Heartbeats,
    /// The largest message, in either direction. Its sender is closed with 1009.
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "16MiB")]
    max_message: usize,
    /// The most fragments in one message.
    #[arg(long, value_name = "COUNT", value_parser = values::fragments, default_value_t = 4096, allow_negative_numbers = true)]
    max_fragments: u32,
    /// Agree on permessage-deflate with visitors that offer it.
    #[arg(long)]
    deflate: bool,
    /// How long a visitor that speaks mainstay.v1 may be away.
    #[arg(long, value_name = "DURATION", value_parser = values::at_most_an_hour, default_value = "2m")]
    resume_window: Duration,
    #[command(flatten)]
    profile: ProfileFlags,
    /// The most connections at a time. One too many gets 503 and a time to wait. Default: as many as open files allow,
    /// at most 1,000,000.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    max_connections: Option<usize>,
    /// The most connections at a time from one address (one /64 of IPv6). Not behind a proxy: all
    /// visitors have its address, also if it is trusted.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    max_per_ip: Option<usize>,
    /// The most sessions at a time, those of absent visitors included. Default: as many as open files and, towards a
    /// backend, local ports allow, at most 1,000,000.
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true)]
    max_sessions: Option<usize>,
    #[command(flatten)]
    bounds: Bounds,
    /// End what carried no message for this long, in either direction.
    #[arg(long, value_name = "DURATION", value_parser = values::idle_timeout)]
    idle_timeout: Option<Duration>,
    /// Send a connection away after this long, +-20 %. Sessions go on over a new one.
    #[arg(long, value_name = "DURATION", value_parser = values::max_lifetime)]
    max_lifetime: Option<Duration>,
    /// Only pages of this origin may connect, for example https://example.com. May be repeated. Without
    /// it the backend decides, which sees each visitor's Origin.
    #[arg(long, value_name = "ORIGIN", value_parser = values::origin)]
    allow_origin: Vec<String>,
    /// A proxy in front, by address or network, whose X-Forwarded-For, Forwarded and X-Real-IP are passed on. May
    /// be repeated. Without it the backend is told who connected, and nothing that visitors say of themselves.
    #[arg(long, value_name = "NETWORK", value_parser = values::network)]
    trusted_proxy: Vec<Network>,
    /// A cookie by which the backend knows who a visitor is: a session is resumed only with the same value. May be
    /// repeated.
    #[arg(long, value_name = "NAME", value_parser = values::token)]
    session_cookie: Vec<String>,
    /// A header by which the backend knows who a visitor is, such as Authorization, if it stays the same for as long as
    /// a session lives. May be repeated.
    #[arg(long, value_name = "NAME")]
    session_header: Vec<HeaderName>,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, value_name = "ADDRESS", value_parser = values::address, env = "MAINSTAY_ADMIN")]
    admin: Option<SocketAddr>,
    /// A file with the token that /metrics asks for, as "Authorization: Bearer TOKEN". Needed where --admin is not a
    /// loopback address.
    #[arg(long, value_name = "FILE", requires = "admin", env = "MAINSTAY_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// How long the end takes at most after SIGTERM: visitors are sent away, and what is under way is finished. A
    /// supervisor must wait longer before it kills.
    #[arg(long, value_name = "DURATION", value_parser = values::at_most_an_hour, default_value = "5s")]
    drain: Duration,
    #[command(flatten)]
    pub(crate) log: log::LogArguments,
}

/// What a visitor's handler needs.
#[derive(Clone)]
struct Gateway {
    mainstay: Server,
    link: Arc<join::LinkConfig>,
}

pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let checked = admin_token(&arguments).and_then(|token| Ok((token, arguments.profile.settings()?)));
    let (token, settings) = match checked {
        Ok(checked) => checked,
        Err(line) => {
            log::say(&line);
            return ExitCode::from(2);
        }
    };
    let connector =
        match arguments.upstream.as_ref().map(|place| arguments.trust.connector(place)).transpose() {
            Ok(connector) => connector,
            Err(line) => {
                log::say(&line);
                return ExitCode::from(2);
            }
        };
    match serve(arguments, token, settings, connector).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            log::say(&line);
            ExitCode::FAILURE
        }
    }
}

/// What /metrics asks for; who may read it is decided before anything listens.
fn admin_token(arguments: &Arguments) -> Result<Option<Token>, String> {
    match (&arguments.admin_token_file, arguments.admin) {
        (Some(file), _) => Token::read(file).map(Some).map_err(|error| format!("--admin-token-file {error}")),
        (None, Some(address)) if !address.ip().to_canonical().is_loopback() => Err(format!(
            "--admin {address}: not a loopback address, and anybody could read /metrics; \
             choose one, for example 127.0.0.1:{}, or pass --admin-token-file",
            address.port()
        )),
        _ => Ok(None),
    }
}

/// The library's configuration for these arguments.
fn config(arguments: &Arguments, limits: Limits, files: Option<u64>, most: usize) -> Result<Config, String> {
    let max_sessions = arguments.max_sessions.unwrap_or_else(|| {
        let over_tcp = arguments.upstream.as_ref().filter(|place| place.socket.is_none());
        let ports = over_tcp.and_then(|_| descriptors::ports());
        descriptors::sessions(files, arguments.upstream.is_some(), ports)
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
        match arguments.bounds.max_parked_per_ip {
            Some(sessions) => config.max_parked_per_address(sessions),
            None => Ok(config),
        }
    };
    let config = checked().map_err(|error: ConfigError| error.to_string())?;
    Ok(config
        .heartbeat(arguments.heartbeats.default())
        .deflate(arguments.deflate)
        .admission(admission)
        .lifetime(lifetime(arguments)?)
        .budget(arguments.bounds.budget(arguments.max_message))
        .origins(origins))
}

async fn serve(
    arguments: Arguments,
    token: Option<Token>,
    settings: Settings,
    connector: Option<Connector>,
) -> Result<(), String> {
    let files = descriptors::take_all();
    let most = descriptors::visitors(files, arguments.upstream.is_some());
    let limits = Limits { max_message: arguments.max_message, max_fragments: arguments.max_fragments };
    let mainstay = Server::new(config(&arguments, limits, files, most)?);
    let links = Links::default();
    let app = match &arguments.upstream {
        None => builtin::router(),
        Some(upstream) => {
            let connector = connector.clone().unwrap_or_default();
            let link = join::LinkConfig {
                passing: arguments.passing.passing(
                    &upstream.url,
                    &connector,
                    &arguments.trusted_proxy,
                    &links,
                ),
                connector,
                upstream_wait: arguments.upstream_wait,
                deflate_upstream: arguments.passing.deflate(),
                heartbeats: arguments.heartbeats.clone(),
                limits,
                settings,
                bound: Bound {
                    headers: arguments.session_header.clone(),
                    cookies: arguments.session_cookie.clone(),
                },
                links: links.clone(),
                mainstay: mainstay.clone(),
            };
            let _ = link.passing.upstream.room.set(mainstay.clone());
            let gateway = Gateway { mainstay: mainstay.clone(), link: Arc::new(link) };
            Router::new().fallback(any(visit)).with_state(gateway)
        }
    };
    let (listener, baton) = bind(arguments.listen, "--listen")?;
    let admin = arguments.admin.map(|address| bind(address, "--admin")).transpose()?;
    let no_signals = |error: std::io::Error| format!("no signals: {error}");
    let stops = Stops::listen().map_err(no_signals)?;
    signals::ignore_the_others().map_err(no_signals)?;
    let taken_over = successor::offer(&listener, mainstay.clone());
    match &arguments.upstream {
        Some(upstream) => {
            let connector = connector.clone().unwrap_or_default().timeout(PROBE);
            let connector = connector.map_err(|error| error.to_string())?;
            tokio::spawn(links.clone().probe(connector, upstream.url.clone()));
        }
        None => links.reached(),
    }
    baton.into_iter().for_each(Baton::take_over);
    let (admin, baton) = admin.unzip();
    baton.flatten().into_iter().for_each(Baton::take_over);
    announce(&arguments, &listener, admin.as_ref());
    if let Some(admin) = admin {
        tokio::spawn(admin::serve(admin, mainstay.clone(), links.clone(), token));
    }
    let server =
        mainstay::serve(listener, app, &mainstay).head_limits(MAX_HEAD, MAX_FIELDS).keep_alive(KEEP_ALIVE);
    let server = if arguments.upstream.is_some() { server.preserve_header_case() } else { server };
    let served = server
        .with_graceful_shutdown(termination(stops, links.clone()), arguments.drain)
        .with_successor(taken_over)
        .await;
    tell_what_is_kept(&links);
    served.map_err(|error| error.to_string())
}

/// How long a probe of the backend may take.
const PROBE: Duration = Duration::from_secs(5);

/// Each bound was checked where the flag was read.
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

async fn visit(State(gateway): State<Gateway>, request: Request) -> Response {
    visit::answer_request(request, &gateway.mainstay, gateway.link).await
}

/// Listens there, or goes on listening where a process of ours drains.
fn bind(address: SocketAddr, flag: &str) -> Result<(TcpListener, Option<Baton>), String> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let error = match listen() {
        Ok(listener) => return Ok((listener, None)),
        Err(error) => error,
    };
    let is_taken = error.kind() == std::io::ErrorKind::AddrInUse;
    match if is_taken { successor::ask_for_a_moment(address) } else { Found::Stranger } {
        Found::Stranger => Err(format!("{flag} {address}: {error}; choose another address")),
        Found::Running(process) => Err(format!(
            "{flag} {address}: {error}: mainstay runs there as process {process}; choose another address, or to replace \
             it send it SIGTERM first and start this one while it drains"
        )),
        Found::Handed(listener, baton) => {
            let taken = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
            taken
                .map(|listener| (listener, Some(baton)))
                .map_err(|error| format!("{flag} {address}: {error}"))
        }
    }
}

/// What it listens on, what it fronts, and what to try next. It need not be read.
fn announce(arguments: &Arguments, listener: &TcpListener, admin: Option<&TcpListener>) {
    let address = listener.local_addr().map_or_else(|_| arguments.listen.to_string(), |a| a.to_string());
    let mut lines = vec![format!("mainstay {} listening on ws://{address}", env!("CARGO_PKG_VERSION"))];
    lines.push(match &arguments.upstream {
        Some(upstream) => format!("  fronting {upstream}"),
        None => {
            "  fronting nothing: built-in backend at /echo and /broadcast (try --upstream ws://host:port)"
                .into()
        }
    });
    if arguments.upstream.is_none() {
        lines.push(format!("  a live connection to look at and break: http://{address}/"));
    }
    if let Some(admin) = admin.and_then(|admin| admin.local_addr().ok()) {
        lines.push(format!("  admin on http://{admin}: /healthz /readyz /metrics"));
    }
    let path = if arguments.upstream.is_some() { "/" } else { "/echo" };
    lines.push(format!("  try: mainstay connect ws://{address}{path}"));
    lines.push(String::new());
    let banner = lines.join("\n");
    // On a thread of its own: who reads it may stall, and serving waits for nobody.
    let write = move || {
        let _ = std::io::stdout().write_all(banner.as_bytes());
    };
    if std::thread::Builder::new().name("banner".into()).spawn(write).is_err() {
        tracing::warn!("no thread to write the banner");
    }
}

/// How long the end at once waits for the log.
const LAST_LINES: Duration = Duration::from_millis(200);

/// The first signal drains, the second ends at once.
async fn termination(mut stops: Stops, links: Links) {
    let stop = stops.next().await;
    tracing::info!(signal = ?stop, "draining; once more to end at once");
    tokio::spawn(async move {
        let stop = stops.next().await;
        tell_what_is_kept(&links);
        log::flush(LAST_LINES);
        std::process::exit(stop.exit_code().into());
    });
}

/// The end of the process is the end of what it keeps, and nobody is left to ask.
fn tell_what_is_kept(links: &Links) {
    let bytes = links.kept_bytes();
    if bytes > 0 {
        tracing::warn!(bytes, "ends with messages of visitors that the backend did not certainly get");
    }
}
