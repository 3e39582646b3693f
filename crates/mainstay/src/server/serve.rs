//! The server loop: what `axum::serve` does, and what it leaves out for WebSockets.
//!
//! A connection that says nothing, or too slowly, is dropped at the opening deadline, and so is one that takes
//! nothing of its response. A request without a valid Host or target gets 400. A response whose body breaks off resets
//! its connection, or a client of HTTP/1.0 would take it for whole. Shutdown waits for sessions and for HTTP responses, and
//! resets no connection: what waits to be accepted is answered, or left to a successor that has the same listening socket.

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, IntoFuture, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::{Connected, IntoMakeServiceWithConnectInfo};
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::IntoMakeService;
use axum::serve::Listener;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::handle::Server;
use super::limits::Permit;
use super::open::HeadDuration;
use super::stats::Counters;
use super::target;
use super::write_timeout::WriteTimeout;

/// The head of a request may be this large, in this many fields.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// Serves `app` on `listener`. Await it; it ends only after [`Serve::with_graceful_shutdown`]'s signal.
///
/// `listener` is a `TcpListener`, a `UnixListener`, or any other that has axum's [`Listener`]: one of TLS, for example.
/// `app` is a [`Router`], or what `into_make_service` and `into_make_service_with_connect_info` made of one or of a
/// service around it (`NormalizePath`); see [`MakeService`]. Where the listener's addresses are those of IP, requests
/// carry [`ConnectInfo<SocketAddr>`](ConnectInfo); all others count as one address where [`Config::admission`] limits
/// those. A peer has [`Config::opening_deadline`] for the head of a
/// request, and for what is left of it after 101 to present its session; what the application does between the two is
/// its own, neither counted nor bounded. A peer that takes nothing of a response for 30 s is dropped.
///
/// `TcpListener::bind` lets 1,024 connections wait to be accepted. When thousands come back at once that is too few:
/// the others wait for TCP to ask again, for seconds. Then bind with more, which the system bounds by a setting
/// of its own (`net.core.somaxconn` on Linux):
///
/// ```no_run
/// # fn bind() -> std::io::Result<tokio::net::TcpListener> {
/// let socket = tokio::net::TcpSocket::new_v4()?;
/// socket.set_reuseaddr(true)?;
/// socket.bind(([0, 0, 0, 0], 8080).into())?;
/// let listener = socket.listen(65_535)?;
/// # Ok(listener)
/// # }
/// ```
///
/// [`Config::opening_deadline`]: super::Config::opening_deadline
/// [`Config::admission`]: super::Config::admission
#[must_use = "await it"]
pub fn serve<L, M>(listener: L, app: M, mainstay: &Server) -> Serve<L, M>
where
    L: Listener<Addr: 'static>,
    M: MakeService<L::Addr>,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_FIELDS);
    let (mainstay, within) = (mainstay.clone(), DRAIN_WITHIN);
    Serve { listener, app, mainstay, others: Vec::new(), http, shutdown: None, successor: None, within }
}

/// What gives each connection its service. Others than these can be had with `IntoMakeService`: axum's
/// [`ServiceExt`](axum::ServiceExt) makes one of any service.
pub trait MakeService<A>: Clone + Send + Sync + 'static {
    /// What answers the requests of one connection.
    type Service: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static;

    /// The service for a connection from this address.
    fn make(self, address: A) -> impl Future<Output = Self::Service> + Send;
}

impl<A: Send> MakeService<A> for Router {
    type Service = Self;

    async fn make(self, _: A) -> Self {
        self
    }
}

impl<A: Send, S> MakeService<A> for IntoMakeService<S>
where
    S: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    type Service = S;

    async fn make(mut self, address: A) -> S {
        match self.call(address).await {
            Ok(service) => service,
            Err(never) => match never {},
        }
    }
}

impl<A: Send, S, C> MakeService<A> for IntoMakeServiceWithConnectInfo<S, C>
where
    S: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    C: Connected<A>,
    Self: Service<
            A,
            Response: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
                          + Clone
                          + Send
                          + Sync
                          + 'static,
            Error = Infallible,
            Future: Send,
        >,
{
    type Service = <Self as Service<A>>::Response;

    async fn make(mut self, address: A) -> Self::Service {
        match self.call(address).await {
            Ok(service) => service,
            Err(never) => match never {},
        }
    }
}

/// The usual time for [`Serve::with_graceful_shutdown`] and [`Server::drain`], closing included: what `mainstay serve`
/// takes, too. A drain with nowhere to go only lengthens the outage.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// After the signal for shutdown newcomers wait for this long for a successor, before they are refused.
const PATIENCE: Duration = Duration::from_secs(1);
/// A connection that was accepted and said nothing yet has this long for its request, when the server goes away.
const LAST_WORD: Duration = Duration::from_millis(500);

/// For how long a connection waits for its next request, where [`Serve::keep_alive`] says nothing else: longer than
/// proxies do (60 s of AWS ALB and nginx's upstreams), which would send a request where nobody reads any more.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// When a listener that is not TCP is closed, those who are accepted within this are answered.
const LAST_ACCEPT: Duration = Duration::from_millis(10);

/// A server that is not running yet. See [`serve`].
pub struct Serve<L = TcpListener, M = Router> {
    listener: L,
    app: M,
    mainstay: Server,
    /// Drained with it.
    others: Vec<Server>,
    shutdown: Option<Signal>,
    successor: Option<Signal>,
    within: Duration,
    http: http1::Builder,
}

impl<L, M> Serve<L, M>
where
    L: Listener<Addr: 'static>,
    M: MakeService<L::Addr>,
{
    /// When `signal` completes: stops accepting, sends everyone away, and waits for all sessions and for the responses
    /// that are under way, at most for `within`, closing included. What waits to be accepted at that moment is
    /// accepted and refused with 503, not reset. HTTP connections without a request end within half a second, the
    /// others with their response. See [`Server::drain`]. A supervisor must wait longer than `within` before it
    /// kills: 5 s are within the usual 10 s (Docker), 30 s (Kubernetes) and 90 s (systemd).
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
        within: Duration,
    ) -> Self {
        self.shutdown = Some(Box::pin(signal));
        self.within = within;
        self
    }

    /// For restarts without a hole: another process may get the listening socket itself (by a copy of the descriptor).
    /// When `taken_over` completes it has, and accepts: this server accepts nothing more and closes its copy.
    ///
    /// Until then the listener stays open during a shutdown, too. For one second after the signal newcomers wait for
    /// the successor; after that they are accepted and refused with 503. `taken_over` is dropped before the listener
    /// is closed, with whatever copy of it that future holds.
    pub fn with_successor(mut self, taken_over: impl Future<Output = ()> + Send + 'static) -> Self {
        self.successor = Some(Box::pin(taken_over));
        self
    }

    /// How large the head of a request may be, and how many fields it may have; one that is larger gets 431. Default:
    /// 16 KiB and 64. Range: at least 8 KiB, less counts as that.
    pub fn head_limits(mut self, bytes: usize, fields: usize) -> Self {
        // Less makes hyper panic.
        let bytes = bytes.max(8 * 1024);
        self.http.max_buf_size(bytes).max_header_size(bytes).max_headers(fields);
        self
    }

    /// Drains this one, too, when the server goes away: for an application with several, such as two heartbeats.
    pub fn also_drain(mut self, other: &Server) -> Self {
        self.others.push(other.clone());
        self
    }

    /// How long a connection may wait for its next request, that request's head included. Its first request has
    /// [`Config::opening_deadline`](super::Config::opening_deadline). Default: 75 s, as a proxy in front must be the first
    /// to close.
    pub fn keep_alive(mut self, idle: Duration) -> Self {
        self.http.header_read_timeout(idle);
        self
    }

    /// Remembers how each request's field names were spelled, in an extension of the request, for a proxy that sends
    /// them on over hyper; a response that has that extension is spelled so, any other with capitals. Default: no, and
    /// lower case; it costs a second map for each request.
    pub fn preserve_header_case(mut self) -> Self {
        self.http.preserve_header_case(true).title_case_headers(true);
        self
    }

    async fn run(self) -> io::Result<()> {
        let Self { listener, app, mainstay, others, http, shutdown, successor, within } = self;
        let mut shutdown = shutdown.unwrap_or_else(|| Box::pin(std::future::pending()));
        let (connections, leave) = (TaskTracker::new(), CancellationToken::new());
        let mut acceptor = Acceptor {
            listener: Some(listener),
            successor,
            app,
            mainstay,
            http,
            connections,
            leave,
            failing: false,
        };
        tokio::select! {
            biased;
            () = &mut shutdown => {}
            () = acceptor.serve() => shutdown.await,
        }
        acceptor.leave.cancel();
        acceptor.connections.close();
        let (mainstay, connections) = (acceptor.mainstay.clone(), acceptor.connections.clone());
        if acceptor.successor.is_none() {
            acceptor.close().await;
        }
        let others: Vec<_> =
            others.into_iter().map(|other| tokio::spawn(async move { other.drain(within).await })).collect();
        tokio::select! {
            biased; // newcomers find it draining
            () = mainstay.drain_after(connections.wait(), within) => {}
            never = acceptor.wait_for_successor() => match never {},
        }
        if acceptor.close().await > 0 {
            let _ = tokio::time::timeout(2 * LAST_WORD, connections.wait()).await;
        }
        for other in others {
            let _ = other.await;
        }
        Ok(())
    }
}

/// The listener, and what becomes of those who come in.
struct Acceptor<L, M> {
    /// `None` once it is closed or a successor has it.
    listener: Option<L>,
    successor: Option<Signal>,
    app: M,
    mainstay: Server,
    http: http1::Builder,
    connections: TaskTracker,
    leave: CancellationToken,
    /// Accepting fails, and that was logged.
    failing: bool,
}

impl<L, M> Acceptor<L, M>
where
    L: Listener<Addr: 'static>,
    M: MakeService<L::Addr>,
{
    /// Serves everyone who comes in, until a successor does that.
    async fn serve(&mut self) {
        while let Some(listener) = &mut self.listener {
            tokio::select! {
                biased;
                () = completes(&mut self.successor) => self.give_up(),
                accepted = accept(listener) => match accepted {
                    Ok((stream, address)) => {
                        self.failing = false;
                        self.welcome(stream, address);
                    }
                    Err(error) if is_the_peers(&error) => {}
                    // Out of descriptors, for example: that passes when connections end. Logged once.
                    Err(error) => {
                        if !std::mem::replace(&mut self.failing, true) {
                            tracing::warn!(%error, "accept fails; retrying every 50 ms");
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
    }

    fn welcome(&self, stream: L::Io, address: L::Addr) {
        let peer = (&address as &dyn Any).downcast_ref::<SocketAddr>().copied();
        let ip = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
        if let Ok(permit) = self.mainstay.shared.gate.arrive(ip, &self.mainstay.shared.stats) {
            let connection = HttpConnection::new(peer, permit, self.mainstay.clone());
            let (app, http, leave) = (self.app.clone(), self.http.clone(), self.leave.clone());
            // In a box, as tokio copies a task's future several times.
            self.connections.spawn(Box::pin(async move {
                let app = app.make(address).await;
                connection.serve(stream, app, http, leave).await;
            }));
        }
    }

    async fn wait_for_successor(&mut self) -> Infallible {
        if self.listener.is_some()
            && tokio::time::timeout(PATIENCE, completes(&mut self.successor)).await.is_ok()
        {
            self.give_up();
        }
        self.serve().await;
        std::future::pending().await
    }

    /// The successor accepts from here on, also those who wait.
    fn give_up(&mut self) {
        self.listener = None;
        self.successor = None;
    }

    /// Accepts those who wait, and then nobody any more. Returns how many these were.
    async fn close(&mut self) -> usize {
        // The other copies of the socket first: as long as there is one, connections come in and wait.
        self.successor = None;
        let Some(mut listener) = self.listener.take() else { return 0 };
        let mut accepted = 0;
        if !(&listener as &dyn Any).is::<TcpListener>() {
            while let Ok((stream, address)) = tokio::time::timeout(LAST_ACCEPT, listener.accept()).await {
                self.welcome(stream, address);
                accepted += 1;
            }
            return accepted;
        }
        // Without the reactor: it may not have heard yet of the last ones.
        let Some(Ok(listener)) = same::<L, TcpListener>(listener).map(TcpListener::into_std) else {
            return 0;
        };
        while let Ok((stream, address)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Some((stream, address)) = stream.ok().and_then(same).zip(same(address)) {
                self.welcome(stream, address);
                accepted += 1;
            }
        }
        accepted
    }
}

/// The next connection. What fails to be accepted on TCP is this server's to judge; other listeners do that themselves.
async fn accept<L: Listener<Addr: 'static>>(listener: &mut L) -> io::Result<(L::Io, L::Addr)> {
    let any: &mut (dyn Any + Send) = listener;
    if let Some(tcp) = any.downcast_mut::<TcpListener>() {
        let (stream, address) = TcpListener::accept(tcp).await?;
        let same = same(stream).zip(same(address));
        return same.ok_or_else(|| io::Error::other("a TCP listener that accepts something else"));
    }
    Ok(listener.accept().await)
}

/// The value, if both types are one.
fn same<T: 'static, U: 'static>(value: T) -> Option<U> {
    let mut value = Some(value);
    let any: &mut dyn Any = &mut value;
    any.downcast_mut::<Option<U>>()?.take()
}

/// Waits for the successor, if there may be one.
async fn completes(successor: &mut Option<Signal>) {
    match successor {
        Some(taken_over) => taken_over.await,
        None => std::future::pending().await,
    }
}

impl<L, M> IntoFuture for Serve<L, M>
where
    L: Listener<Addr: 'static>,
    M: MakeService<L::Addr>,
{
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// One connection, for as long as it speaks HTTP.
struct HttpConnection {
    /// `None`: it does not come over IP.
    address: Option<SocketAddr>,
    permit: Option<Arc<Permit>>,
    mainstay: Server,
    accepted: Instant,
    /// Whether there was a request.
    spoke: AtomicBool,
}

impl HttpConnection {
    fn new(address: Option<SocketAddr>, permit: Option<Permit>, mainstay: Server) -> Self {
        let permit = permit.map(Arc::new);
        Self { address, permit, mainstay, accepted: Instant::now(), spoke: AtomicBool::new(false) }
    }

    async fn serve<I, S>(self, stream: I, app: S, http: http1::Builder, leave: CancellationToken)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request, Response: IntoResponse, Error = Infallible> + Clone,
    {
        let shared = &self.mainstay.shared;
        let deadline = shared.config.opening_deadline;
        let service = service_fn(|request| self.answer(app.clone(), request));
        let io = TokioIo::new(WriteTimeout::new(stream));
        let mut served = http.serve_connection(io, service).with_upgrades();
        let silent = async {
            tokio::time::sleep_until(self.accepted + deadline).await;
            if self.spoke.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let leave = async {
            leave.cancelled().await;
            if !self.spoke.load(Ordering::Relaxed) {
                // Its request may be on its way, or here and not read: ended now, the peer would see a reset.
                tokio::time::sleep(LAST_WORD).await;
            }
        };
        let (mut silent, mut leave, mut leaving) = (pin!(silent), pin!(leave), false);
        loop {
            tokio::select! {
                result = &mut served => {
                    if let Err(error) = result {
                        tracing::debug!(%error, address = ?self.address, "HTTP connection ended");
                        if error.is_user() && let Some(parts) = served.into_parts() {
                            parts.io.into_inner().reset();
                        }
                    }
                    break;
                }
                () = silent.as_mut() => break,
                () = leave.as_mut(), if !leaving => {
                    leaving = true;
                    Pin::new(&mut served).graceful_shutdown();
                }
            }
        }
        if !self.spoke.load(Ordering::Relaxed) {
            Counters::add(&shared.stats.openings_failed, 1);
            tracing::debug!(address = ?self.address, "no request within the opening deadline");
        }
    }

    async fn answer<S>(&self, mut app: S, request: hyper::Request<Incoming>) -> Result<Response, Infallible>
    where
        S: Service<Request, Response: IntoResponse, Error = Infallible>,
    {
        let is_first = !self.spoke.swap(true, Ordering::Relaxed);
        if let Some(refused) = self.permit.as_ref().and_then(|permit| permit.refused()) {
            return Ok(refused.into_response());
        }
        let (mut head, body) = request.into_parts();
        if let Err(line) = target::settle(&mut head) {
            Counters::add(&self.mainstay.shared.stats.openings_failed, 1);
            let headers = [(header::CONNECTION, HeaderValue::from_static("close"))];
            return Ok((StatusCode::BAD_REQUEST, headers, format!("{line}\n")).into_response());
        }
        let mut request = Request::from_parts(head, Body::new(body));
        let is_upgrade = request.headers().contains_key(header::UPGRADE);
        let extensions = request.extensions_mut();
        if let Some(address) = self.address {
            extensions.insert(ConnectInfo(address));
        }
        extensions.insert(self.mainstay.clone());
        // On a kept-alive connection each request has the full deadline again.
        extensions.insert(HeadDuration(if is_first { self.accepted.elapsed() } else { Duration::ZERO }));
        if let Some(permit) = &self.permit {
            // It goes with the connection, if that is upgraded.
            extensions.insert(Arc::clone(permit));
        }
        poll_fn(|cx| app.poll_ready(cx)).await?;
        let mut response = app.call(request).await?.into_response();
        let is_refused_upgrade = is_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        if is_refused_upgrade || (!is_upgrade && self.mainstay.shared.is_draining()) {
            // After a refused upgrade may come frames that a proxy let through; they must not be read as requests.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// The peer was gone before it was accepted: no reason to wait.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
