//! `/healthz`, `/readyz` and `/metrics`, on a listener of their own.
//!
//! Supervisors get a response whatever clients do: this listener has its own accept loop and its own limits. Above
//! [`MAX_CONNECTIONS`] the oldest connection is dropped for the newest, so that idle connections block no health check,
//! and some descriptors are reserved for it.
//!
//! Without a token, the Host of a request must be `localhost`, a loopback address or the address that it came in by. This
//! stops DNS rebinding: a page whose name was rebound to this address sends its own name as Host and gets 421.

use std::collections::VecDeque;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
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
use mainstay::Server;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;

use crate::descriptors::{self, Spare};
use crate::listen_address::Place;
use crate::routes::Routes;
use crate::{metrics, successor};

/// Maximum number of open connections. Supervisors and scrapers are few.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the process ends. When a successor inherits the listener, this process continues on another port of the
/// same address.
pub(crate) async fn serve(listener: TcpListener, server: Server, routes: Arc<Routes>, token: Option<Token>) {
    let address = listener.local_addr();
    let place = Place::Tcp(address.as_ref().map_or(SocketAddr::from(([0; 4], 0)), |address| *address));
    let passed = successor::pass_listener(listener.as_fd(), place, server.clone());
    let app = router(server, routes, token);
    tokio::select! {
        never = accept(listener, app.clone()) => match never {},
        () = passed => {}
    }
    let elsewhere = address.and_then(|address| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(address.ip(), 0))?;
        socket.listen(MAX_CONNECTIONS as u32)
    });
    match elsewhere.and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            tracing::info!(%address, "a successor inherited the --admin address; this process serves its metrics here until it ends");
            match accept(listener, app).await {}
        }
        Err(error) => {
            tracing::error!(%error, "a successor inherited the --admin address, and no other port is available");
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
                if open.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(tokio::spawn(serve_connection(stream, app.clone())).abort_handle());
                spare.refill();
            }
            // A reserved descriptor was closed for this connection.
            Err(error) if descriptors::are_exhausted(&error) && spare.release() => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Serves the requests of one connection.
async fn serve_connection(stream: TcpStream, app: Router) {
    let local = stream.local_addr().ok().map(|address| address.ip());
    let app = app.layer(axum::Extension(Local(local)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the admin listener ended with an error");
    }
}

/// The local address of a connection.
#[derive(Clone, Copy)]
struct Local(Option<IpAddr>);

fn router(server: Server, routes: Arc<Routes>, token: Option<Token>) -> Router {
    let (measured, is_open) = (Arc::clone(&routes), token.is_none());
    let metrics = |State(server): State<Server>, headers: HeaderMap| async move {
        if token.is_some_and(|token| !token.is_presented(&headers)) {
            return unauthorized();
        }
        let text = metrics::render(&server, &measured);
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
    };
    let ready = |State(server): State<Server>| async move { ready(&server, &routes) };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(server);
    app.layer(middleware::from_fn_with_state(is_open, check_host))
}

/// Responds with 400 to a request without a valid host, and with 421 to one whose host is another machine.
async fn check_host(State(is_open): State<bool>, request: Request, next: Next) -> Response {
    let Some(names) = hosts(&request) else {
        let line = "the request needs one valid Host, and a path or a URL as its target\n";
        return (StatusCode::BAD_REQUEST, line).into_response();
    };
    let local = request.extensions().get::<Local>().and_then(|local| local.0);
    if !is_open || names.iter().all(|name| is_local(name.host(), local)) {
        return next.run(request).await;
    }
    let line = "the Host of this request is not a local name: use localhost or this listener's address, or start with \
                --admin-token-file to accept any name\n";
    (StatusCode::MISDIRECTED_REQUEST, line).into_response()
}

/// Returns the hosts of a request: its Host header, and the authority of its target if that is a URL. Only HTTP/1.0
/// requests may have none. `None`: the request violates RFC 9112 section 3.2.
fn hosts(request: &Request) -> Option<Vec<Authority>> {
    let target = request.uri();
    let is_right =
        target.path().starts_with('/') && target.authority().is_some() == target.scheme().is_some();
    let hosts = request.headers().get_all(header::HOST).iter();
    let hosts: Vec<Authority> = hosts.map(|host| host.to_str().ok()?.parse().ok()).collect::<Option<_>>()?;
    let is_enough = hosts.len() == 1 || (hosts.is_empty() && request.version() == Version::HTTP_10);
    (is_right && is_enough).then(|| hosts.into_iter().chain(target.authority().cloned()).collect())
}

/// Returns whether a host can only mean this machine: a loopback address, the local address of the connection, or a name
/// under `localhost`, which no name server resolves (RFC 6761 section 6.3).
fn is_local(host: &str, local: Option<IpAddr>) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    match host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || local.is_some_and(|local| local.to_canonical() == address)
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// The secret that `/metrics` requires. Only its hash is kept.
#[derive(Clone)]
pub(crate) struct Token([u8; 32]);

/// Length of a token in bytes. Shorter tokens can be guessed.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 16..=1024;

impl Token {
    /// Reads a token from the only line of a file.
    ///
    /// # Errors
    /// Names the file and what is wrong; never quotes its content.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let wrong = |what: &str| format!("{}: {what}", file.display());
        let mut text = String::new();
        std::fs::File::open(file)
            .and_then(|file| file.take(*TOKEN_LENGTH.end() as u64 + 2).read_to_string(&mut text))
            .map_err(|error| wrong(&format!("{error}; name a readable file")))?;
        let token = text.trim_end_matches(['\r', '\n']);
        if !TOKEN_LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong(
                "must hold one line of 16 to 1024 letters, digits and punctuation, without spaces",
            ));
        }
        Ok(Self::of(token.as_bytes()))
    }

    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Compares in constant time.
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
    (
        StatusCode::UNAUTHORIZED,
        headers,
        "send the token of --admin-token-file as Authorization: Bearer TOKEN\n",
    )
        .into_response()
}

/// Responds with 503 until one backend was reached: a backend that is down must not keep clients away from the others.
fn ready(server: &Server, routes: &Routes) -> (StatusCode, String) {
    if !server.is_ready() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    let routes = routes.all();
    let named = routes.len() > 1;
    let not_ready = routes.iter().filter_map(|route| {
        let why = route.links.not_ready()?;
        Some(if named { format!("route {}: {why}", route.name) } else { why })
    });
    let not_ready: Vec<String> = not_ready.collect();
    let lines = not_ready.iter().map(|line| format!("{line}\n")).collect::<String>();
    if !routes.is_empty() && not_ready.len() == routes.len() {
        return (StatusCode::SERVICE_UNAVAILABLE, lines);
    }
    (StatusCode::OK, format!("ready{}\n{lines}", engine_away(server)))
}

/// Returns what to add while the engine does not answer. The node stays ready: its own sessions need no engine.
fn engine_away(server: &Server) -> &'static str {
    let is_away = server.cluster().is_some_and(|cluster| cluster.engine.is_some() && !cluster.engine_up);
    if is_away { "; the engine does not answer, so this node serves alone until it does" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_name_server_may_resolve_is_not_local() {
        let check = |host: &str, expected| {
            let local = Some("10.0.0.7".parse().unwrap());
            assert_eq!(is_local(host, local), expected, "{host}");
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
