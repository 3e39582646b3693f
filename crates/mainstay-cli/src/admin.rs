//! The operator's listener: health, metrics, sessions, the drain, and a console for browsers.
//!
//! Supervisors get a response whatever clients do: this listener has its own accept loop and its own limits. Above
//! [`MAX_CONNECTIONS`] the oldest connection is dropped for the newest, so that idle connections block no health check,
//! and some descriptors are reserved for it.
//!
//! `access` decides which requests are answered, `foreign` which of them a page of another site may have caused. `sessions`, `status` and `drain` answer them, in objects of JSON or lines;
//! `words` has the timeline in sentences. `question` is what concerns the sessions of all nodes of a cluster: `everywhere` asks
//! them and joins their answers, `revocations` keeps what later nodes must know. `console` is the page at `/`, which asks the same.

mod access;
mod client;
mod console;
mod drain;
mod everywhere;
pub(crate) mod foreign;
mod guesses;
pub(crate) mod query;
mod question;
mod revocations;
mod sessions;
mod status;
mod words;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mainstay::Server;
use mainstay::server::Tls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::task::AbortHandle;

use self::access::{Access, CameBy};
pub(crate) use self::access::{Keys, Token};
pub(crate) use self::drain::DrainOrder;
use crate::clients::client_tls::ClientTls;
use crate::clients::listen_address::Place;
use crate::clients::listeners::Socket;
use crate::observe::metrics;
use crate::observe::refusals::Refusals;
use crate::process::descriptors::{self, Spare};
use crate::process::successor;
use crate::routes::Routes;

/// Maximum number of open connections. Supervisors, scrapers and operators are few.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The metrics of more routes than this are written by a thread that serves no clients: those of 1,000 take 12 ms.
const FEW_ROUTES: usize = 50;

/// Decides which clients may connect to the admin listener.
pub(crate) struct Opening {
    pub(crate) keys: Keys,
    pub(crate) tls: Option<Tls>,
}

impl Opening {
    pub(crate) fn new(token: Option<Token>, tls: Option<&ClientTls>, asks_for_certificates: bool) -> Self {
        let hosts = tls.map(ClientTls::hosts).unwrap_or_default();
        let keys = Keys { token, asks_for_certificates, hosts };
        Self { keys, tls: tls.map(|tls| tls.tls.clone()) }
    }
}

/// What the operator looks at and changes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Operated {
    pub(crate) server: Server,
    pub(crate) routes: Arc<Routes>,
    pub(crate) drain: DrainOrder,
    pub(crate) refusals: Refusals,
}

/// Serves until the process ends. When a successor inherits the listener, this process continues on another port of the
/// same address.
pub(crate) async fn serve(listener: Socket, place: Place, operated: Operated, opening: Opening) {
    let passed = successor::pass_listener(listener.as_fd(), place.clone(), operated.server.clone());
    let Opening { keys, tls } = opening;
    let app = router(operated, keys);
    tokio::select! {
        never = accept(listener, app.clone(), tls.clone()) => match never {},
        () = passed => {}
    }
    match elsewhere(&place) {
        Ok((address, listener)) => {
            tracing::info!(%address, "a successor inherited the --admin address; this process serves its metrics here until it ends");
            match accept(Socket::Tcp(listener), app, tls).await {}
        }
        Err(error) => {
            tracing::error!(%error, "a successor inherited the --admin address, and no other port is available");
        }
    }
}

/// Listens on another port of the same address. A Unix socket has none.
fn elsewhere(place: &Place) -> io::Result<(SocketAddr, TcpListener)> {
    let Place::Tcp(address) = place else { return Err(io::ErrorKind::Unsupported.into()) };
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(address.ip(), 0))?;
    let listener = socket.listen(MAX_CONNECTIONS as u32)?;
    Ok((listener.local_addr()?, listener))
}

async fn accept(listener: Socket, app: Router, tls: Option<Tls>) -> std::convert::Infallible {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut spare = Spare::new();
    loop {
        match accept_one(&listener).await {
            Ok(stream) => {
                open.retain(|connection| !connection.is_finished());
                if open.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(
                    tokio::spawn(serve_connection(stream, app.clone(), tls.clone())).abort_handle(),
                );
                spare.refill();
            }
            // A reserved descriptor was closed for this connection.
            Err(error) if descriptors::are_exhausted(&error) && spare.release() => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A connection to this listener.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn accept_one(listener: &Socket) -> io::Result<Stream> {
    Ok(match listener {
        Socket::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
        Socket::Unix(listener) => Stream::Unix(listener.accept().await?.0),
    })
}

/// Serves the requests of one connection.
async fn serve_connection(stream: Stream, app: Router, tls: Option<Tls>) {
    let served = match stream {
        Stream::Tcp(stream) => {
            let came_by = CameBy::tcp(stream.local_addr().ok(), stream.peer_addr().ok());
            let Some(tls) = tls else {
                return log_end(serve_requests(stream, app.layer(axum::Extension(came_by))).await);
            };
            let (stream, certificates) = match tls.open(stream).await {
                Ok(opened) => opened,
                // Not a warning: on a public address anyone makes handshakes fail.
                Err(error) => {
                    return tracing::debug!(%error, "a TLS handshake at the admin listener failed");
                }
            };
            let came_by = if certificates.is_some() { came_by.with_certificate() } else { came_by };
            serve_requests(stream, app.layer(axum::Extension(came_by))).await
        }
        Stream::Unix(stream) => serve_requests(stream, app.layer(axum::Extension(CameBy::Unix))).await,
    };
    log_end(served);
}

fn log_end(served: Result<(), hyper::Error>) {
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the admin listener ended with an error");
    }
}

async fn serve_requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    app: Router,
) -> Result<(), hyper::Error> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await
}

fn router(operated: Operated, keys: Keys) -> Router {
    let access = Access::new(keys, operated.refusals.clone());
    let page = console::Page::new();
    Router::new()
        .route("/", get(async move || page.response()))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(serve_metrics))
        .route("/status", get(status::status))
        .route("/events", get(status::events))
        .route("/cluster", get(status::cluster))
        .route("/sessions", get(sessions::list))
        .route("/sessions/{id}", get(sessions::one).delete(sessions::end))
        .route("/subjects/{subject}", delete(sessions::end_subject))
        .route("/subjects/{subject}/revoke", post(sessions::revoke))
        .route("/drain", post(drain::drain))
        .with_state(operated)
        .layer(middleware::from_fn_with_state(access, Access::check))
}

/// Answers the questions of other nodes, and keeps their revocations.
pub(crate) fn join(server: &Server, routes: &Arc<Routes>) {
    let answering = Arc::clone(routes);
    server.answer_nodes(move |server, question| question::answer_node(server, &answering, &question));
    let subjects = Arc::clone(&routes.access.subjects);
    server.watch_notes(move |_, notes| revocations::learn(&subjects, &notes));
}

async fn serve_metrics(State(operated): State<Operated>, headers: HeaderMap) -> Response {
    let format = metrics::Format::preferred(headers.get(header::ACCEPT));
    let is_large = operated.routes.all().len() > FEW_ROUTES;
    let render = move || metrics::render(&operated.server, &operated.routes, &operated.refusals, format);
    let text = match is_large {
        true => tokio::task::spawn_blocking(render).await,
        false => Ok(render()),
    };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        // The panic is in the log.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
