//! The server loop: what `axum::serve` does, and what it leaves out for WebSockets.
//!
//! It drops a connection whose request does not come before the opening deadline, and one whose client does not read the
//! response. It answers a request without a valid Host or target with 400. It resets the connection of a response whose body
//! breaks off, because a client of HTTP/1.0 would take it for complete. Its shutdown waits for sessions and for HTTP
//! responses, and resets no connection: it answers connections that wait to be accepted, or leaves them to a successor that
//! has the same listening socket.

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, IntoFuture};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{HttpConnection, LAST_REQUEST};
use super::handle::Server;
use super::make_service::MakeService;
use super::proxy_protocol::ProxyProtocol;
use super::steps::Steps;
#[cfg(feature = "tls")]
use super::tls::Tls;

/// Limits on the head of a request, in bytes and in fields.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// Serves `app` on `listener`. Await it; it ends only after [`Serve::with_graceful_shutdown`]'s signal.
///
/// `listener` is a `TcpListener`, a `UnixListener`, or any other with axum's [`Listener`], for example one of TLS. `app` is a
/// [`Router`], or the result of `into_make_service` or `into_make_service_with_connect_info` on a router or a service around
/// it (`NormalizePath`); see [`MakeService`].
///
/// Every request carries the [`Server`] in its extensions, for [`SessionUpgrade`](crate::SessionUpgrade), and, where the
/// listener has IP addresses, [`ConnectInfo<SocketAddr>`](axum::extract::ConnectInfo). All other listeners count as one address for
/// [`Config::admission`]. A client has [`Config::opening_deadline`] for the head of its request, and what remains of it after
/// the 101 response for its HELLO; the time that the application needs in between is neither counted nor bounded. A client
/// that reads nothing of a response for 30 s is disconnected. A server of a cluster joins before it accepts; one that cannot
/// is the error of this call. [`Server::layer`] lists what other servers lack.
///
/// A TCP listener gets as long a queue of connections that wait to be accepted as the system allows (`net.core.somaxconn` on
/// Linux), because thousands of clients may come back at once. `TcpListener::bind` gives it one of 128.
///
/// [`Config::opening_deadline`]: super::Config::opening_deadline
/// [`Config::admission`]: super::Config::admission
#[must_use = "await it"]
pub fn serve<L, M>(listener: L, app: M, server: &Server) -> Serve<L, M>
where
    L: Listener<Addr: 'static>,
    M: MakeService<L::Addr>,
{
    lengthen_queue(&listener);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_FIELDS);
    let steps = Steps {
        app,
        server: server.clone(),
        http,
        head: MAX_HEAD,
        fields: MAX_FIELDS,
        keep_alive: KEEP_ALIVE,
        leave: CancellationToken::new(),
        #[cfg(feature = "tls")]
        tls: None,
    };
    Serve {
        listener,
        steps,
        proxies: None,
        others: Vec::new(),
        shutdown: None,
        successor: None,
        within: DRAIN_WITHIN,
    }
}

/// A client that finds the queue full waits until TCP asks again, a second later or more, or is reset.
fn lengthen_queue(listener: &dyn Any) {
    if let Some(tcp) = listener.downcast_ref::<TcpListener>() {
        // A system that refuses leaves the queue as it was.
        let _ = SockRef::from(tcp).listen(LONGEST_QUEUE);
    }
}

/// Longer than any system allows.
const LONGEST_QUEUE: i32 = 65_535;

/// The usual time for [`Serve::with_graceful_shutdown`] and [`Server::drain`], closing included; the gateway's default, too.
/// A drain without another server to go to only lengthens the outage.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How long new connections wait for a successor after the signal for shutdown, before they are refused.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(1);

/// How long a connection may wait for its next request, unless [`Serve::keep_alive`] sets it: longer than proxies keep theirs
/// (60 s of AWS ALB and nginx's upstreams), which would otherwise send a request to a closed connection.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// When a listener other than TCP and Unix sockets is closed, connections that are accepted within this time are answered.
const LAST_ACCEPT: Duration = Duration::from_millis(10);

/// A server that does not run yet: await it. See [`serve`].
#[must_use = "await it"]
pub struct Serve<L = TcpListener, M = Router> {
    listener: L,
    steps: Steps<M>,
    proxies: Option<ProxyProtocol>,
    /// Servers that are drained, too.
    others: Vec<Server>,
    shutdown: Option<Signal>,
    successor: Option<Signal>,
    within: Duration,
}

impl<L, M> Serve<L, M>
where
    L: Listener<Addr: 'static>,
    M: MakeService<L::Addr>,
{
    /// Sets a signal for shutdown. When it completes, the server stops accepting, drains the sessions, and waits for all of
    /// them and for responses in progress, at most for `within`, closing included. Connections that wait to be accepted at
    /// that moment are accepted and refused with 503, not reset. HTTP connections without a request end within half a second,
    /// the others with their response. See [`Server::drain`]. A supervisor must wait longer than `within` before it kills
    /// the process: 5 s are within the usual 10 s (Docker), 30 s (Kubernetes) and 90 s (systemd).
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
        within: Duration,
    ) -> Self {
        self.shutdown = Some(Box::pin(signal));
        self.within = within;
        self
    }

    /// Allows a restart without a gap: a successor process gets the listening socket itself, as a copy of the descriptor.
    /// `taken_over` completes once the successor accepts: this server then accepts nothing more and closes its copy.
    ///
    /// Until then the listener stays open, also during a shutdown. For one second after the signal new connections wait for
    /// the successor; after that they are accepted and refused with 503. `taken_over` is dropped before the listener is
    /// closed, with any copy of it that the future holds.
    pub fn with_successor(mut self, taken_over: impl Future<Output = ()> + Send + 'static) -> Self {
        self.successor = Some(Box::pin(taken_over));
        self
    }

    /// Limits the head of a request, in bytes and fields; a larger one gets 431. Default: 16 KiB and 64. Range: at least
    /// 8 KiB, less counts as that.
    pub fn head_limits(mut self, bytes: usize, fields: usize) -> Self {
        // Less makes hyper panic.
        let bytes = bytes.max(8 * 1024);
        (self.steps.head, self.steps.fields) = (bytes, fields);
        self.steps.http.max_buf_size(bytes).max_header_size(bytes).max_headers(fields);
        self
    }

    /// Drains another server, too, at the shutdown: for an application with several.
    pub fn also_drain(mut self, other: &Server) -> Self {
        self.others.push(other.clone());
        self
    }

    /// Sets how long a connection may wait for its next request, that request's head included. The first request has
    /// [`Config::opening_deadline`](super::Config::opening_deadline). Default: 75 s, because a proxy in front must close
    /// first.
    pub fn keep_alive(mut self, idle: Duration) -> Self {
        self.steps.keep_alive = idle;
        self.steps.http.header_read_timeout(idle);
        self
    }

    /// Keeps the spelling of each request's field names in an extension of the request, for a proxy that passes them on over
    /// hyper. A response with that extension is spelled the same way, any other with capitals. Default: no, and lower case;
    /// it costs a second map for each request.
    pub fn preserve_header_case(mut self) -> Self {
        self.steps.http.preserve_header_case(true).title_case_headers(true);
        self
    }

    /// Speaks TLS with every client. Each request then carries [`Encrypted`](super::Encrypted) in its extensions, and
    /// [`ClientCertificates`](super::ClientCertificates) if the client presented any. Default: no TLS.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.steps.tls = Some(tls);
        self
    }

    /// Reads the PROXY header of each connection of a trusted proxy. The address in it takes the place of the peer's: in
    /// [`ConnectInfo`](axum::extract::ConnectInfo) and in [`Config::admission`](super::Config::admission). A connection of such a proxy without a valid
    /// header within [`Config::opening_deadline`](super::Config::opening_deadline) is closed, and counted in
    /// [`Stats::proxy_headers_refused`](super::Stats::proxy_headers_refused). Default: no header is read.
    pub fn proxy_protocol(mut self, proxies: ProxyProtocol) -> Self {
        self.proxies = Some(proxies);
        self
    }

    async fn run(self) -> io::Result<()> {
        let Self { listener, steps, proxies, others, shutdown, successor, within } = self;
        #[cfg(feature = "cluster")]
        for server in std::iter::once(&steps.server).chain(&others) {
            server.join().await.map_err(io::Error::other)?;
        }
        let mut shutdown = shutdown.unwrap_or_else(|| Box::pin(std::future::pending()));
        let connections = TaskTracker::new();
        let mut acceptor =
            Acceptor { listener: Some(listener), successor, steps, proxies, connections, failing: false };
        tokio::select! {
            biased;
            () = &mut shutdown => {}
            () = acceptor.serve() => shutdown.await,
        }
        acceptor.steps.leave.cancel();
        acceptor.connections.close();
        let (server, connections) = (acceptor.steps.server.clone(), acceptor.connections.clone());
        if acceptor.successor.is_none() {
            acceptor.close().await;
        }
        let others: Vec<_> =
            others.into_iter().map(|other| tokio::spawn(async move { other.drain(within).await })).collect();
        tokio::select! {
            biased; // new connections find it draining
            () = server.drain_after(connections.wait(), within) => {}
            never = acceptor.wait_for_successor() => match never {},
        }
        if acceptor.close().await > 0 {
            let _ = tokio::time::timeout(2 * LAST_REQUEST, connections.wait()).await;
        }
        for other in others {
            let _ = other.await;
        }
        Ok(())
    }
}

/// Accepts connections and spawns a task for each.
struct Acceptor<L, M> {
    /// `None` once it is closed or a successor has it.
    listener: Option<L>,
    successor: Option<Signal>,
    steps: Steps<M>,
    proxies: Option<ProxyProtocol>,
    connections: TaskTracker,
    /// Whether accepting fails, and that was logged.
    failing: bool,
}

impl<L, M> Acceptor<L, M>
where
    L: Listener<Addr: 'static>,
    M: MakeService<L::Addr>,
{
    /// Accepts until a successor takes over.
    async fn serve(&mut self) {
        while let Some(listener) = &mut self.listener {
            tokio::select! {
                biased;
                () = completes(&mut self.successor) => self.hand_off(),
                accepted = accept(listener) => match accepted {
                    Ok((stream, address)) => {
                        self.failing = false;
                        self.spawn(stream, address);
                    }
                    Err(error) if is_caused_by_client(&error) => {}
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

    /// Serves a connection in a task of its own, in a box, as tokio copies a task's future several times.
    fn spawn(&self, mut stream: L::Io, address: L::Addr) {
        let peer = (&address as &dyn Any).downcast_ref::<SocketAddr>().copied();
        let (steps, accepted) = (self.steps.clone(), Instant::now());
        let Some(proxies) = self.proxies.as_ref().filter(|proxies| proxies.expects(peer)).cloned() else {
            // A connection over a limit is dropped before a byte of it is read.
            if let Some(connection) = HttpConnection::admit(peer, accepted, &self.steps.server) {
                self.connections.spawn(Box::pin(steps.serve(connection, stream, address)));
            }
            return;
        };
        self.connections.spawn(Box::pin(async move {
            let shared = &steps.server.shared;
            let deadline = accepted + shared.config.opening_deadline;
            let Some(header) = proxies.read(&mut stream, peer, deadline, &shared.stats).await else { return };
            let address = header.client.and_then(same).unwrap_or(address);
            let admitted = HttpConnection::admit(header.client.or(peer), accepted, &steps.server);
            if let Some(mut connection) = admitted {
                connection.is_encrypted = header.over_tls;
                steps.serve(connection, stream, address).await;
            }
        }));
    }

    async fn wait_for_successor(&mut self) -> Infallible {
        if self.listener.is_some()
            && tokio::time::timeout(SUCCESSOR_WAIT, completes(&mut self.successor)).await.is_ok()
        {
            self.hand_off();
        }
        self.serve().await;
        std::future::pending().await
    }

    /// Leaves the listener to the successor, with the connections that wait to be accepted.
    fn hand_off(&mut self) {
        self.listener = None;
        self.successor = None;
    }

    /// Accepts the connections that wait, and closes the listener. Returns how many there were.
    async fn close(&mut self) -> usize {
        // The other copies of the socket first: while there is one, connections come in and wait.
        self.successor = None;
        let Some(mut listener) = self.listener.take() else { return 0 };
        // Sockets without the reactor, which may not have seen the last ones yet.
        let any: &dyn Any = &listener;
        let waiting = if any.is::<TcpListener>() {
            waiting_at_tcp(listener)
        } else if any.is::<UnixListener>() {
            waiting_at_unix(listener)
        } else {
            let mut waiting = Vec::new();
            while let Ok(accepted) = tokio::time::timeout(LAST_ACCEPT, listener.accept()).await {
                waiting.push(accepted);
            }
            waiting
        };
        let count = waiting.len();
        waiting.into_iter().for_each(|(stream, address)| self.spawn(stream, address));
        count
    }
}

/// Accepts the next connection. On TCP and Unix sockets this server judges the errors; other listeners do that themselves.
async fn accept<L: Listener<Addr: 'static>>(listener: &mut L) -> io::Result<(L::Io, L::Addr)> {
    let any: &mut (dyn Any + Send) = listener;
    let accepted = if let Some(tcp) = any.downcast_mut::<TcpListener>() {
        let (stream, address) = TcpListener::accept(tcp).await?;
        same(stream).zip(same(address))
    } else if let Some(unix) = any.downcast_mut::<UnixListener>() {
        let (stream, address) = UnixListener::accept(unix).await?;
        same(stream).zip(same(address))
    } else {
        Some(listener.accept().await)
    };
    accepted.ok_or_else(|| io::Error::other("a listener that accepts something else"))
}

/// Accepts the connections that wait at a TCP listener.
fn waiting_at_tcp<L: Listener<Addr: 'static>>(listener: L) -> Vec<(L::Io, L::Addr)> {
    let Some(Ok(listener)) = same::<L, TcpListener>(listener).map(TcpListener::into_std) else {
        return Vec::new();
    };
    let next = || {
        let (stream, address) = listener.accept().ok()?;
        Some((stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)), address))
    };
    let accepted = std::iter::from_fn(next).filter_map(|(stream, address)| Some((stream.ok()?, address)));
    accepted.filter_map(|(stream, address)| same(stream).zip(same(address))).collect()
}

/// Accepts the connections that wait at a Unix socket.
fn waiting_at_unix<L: Listener<Addr: 'static>>(listener: L) -> Vec<(L::Io, L::Addr)> {
    let Some(Ok(listener)) = same::<L, UnixListener>(listener).map(UnixListener::into_std) else {
        return Vec::new();
    };
    let next = || {
        let (stream, address) = listener.accept().ok()?;
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        Some((stream, tokio::net::unix::SocketAddr::from(address)))
    };
    let accepted = std::iter::from_fn(next).filter_map(|(stream, address)| Some((stream.ok()?, address)));
    accepted.filter_map(|(stream, address)| same(stream).zip(same(address))).collect()
}

/// Returns the value if both types are the same.
fn same<T: 'static, U: 'static>(value: T) -> Option<U> {
    let mut value = Some(value);
    let any: &mut dyn Any = &mut value;
    any.downcast_mut::<Option<U>>()?.take()
}

/// Waits for the successor; for ever without one.
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

/// Whether the client was gone before it was accepted: no reason to wait.
fn is_caused_by_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
