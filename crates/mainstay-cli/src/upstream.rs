//! HTTP connections to the backend: opened, pooled for the next request, closed.
//!
//! Where the backend has several addresses, a request that cannot reach one goes to the next. One that was written goes to
//! another only if it may be repeated.
//!
//! hyper-util's client is not used, for three reasons. Whether a request may be sent again depends on whether its
//! connection was used before; an opening handshake needs a connection of its own; and that client spawns a task for each
//! response.

pub(crate) mod addresses;
pub(crate) mod backend_health;
pub(crate) mod error;
pub(crate) mod hibernate;
pub(crate) mod links;
pub(crate) mod pool;
pub(crate) mod probe;
pub(crate) mod stickiness;
pub(crate) mod when_down;

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use mainstay::Server;
use mainstay::client::{ConnectFailure, Connector, FailureKind, ServerStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::clients::limits;
use crate::request::request_body::{Progress, Upload};
use crate::upstream::error::UpstreamError;
use crate::upstream::links::{Lease, Links, is_unavailable};

/// How many idle connections the pool holds, and for how long.
const POOL_SIZE: usize = 256;
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The first pause between two attempts of an opening handshake to reach the backend. It doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The read buffer of a connection, and so the largest head of a response.
const BUFFER: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;

/// One address of the backend.
pub(crate) struct Address {
    /// Its URL as it was configured, for the log and metrics.
    pub(crate) name: Box<str>,
    pub(crate) url: Uri,
    pub(crate) connector: Connector,
}

/// Opens and pools the HTTP connections to the backend.
pub(crate) struct Upstream {
    addresses: Box<[(Address, Mutex<Pool>)]>,
    /// How long the backend may take to respond, and between two pieces of a response.
    pub(crate) answer_timeout: Duration,
    links: Links,
    http: http1::Builder,
    /// Evicts a session where no local port is left.
    pub(crate) server: OnceLock<Server>,
}

/// Idle connections, the most recently used last.
#[derive(Default)]
struct Pool {
    connections: Vec<(SendRequest<Upload>, Instant)>,
    /// Whether a task closes connections that were idle for too long.
    has_reaper: bool,
}

/// The connection that a response came on. It returns to the pool once the response was read.
pub(crate) struct PooledConnection {
    sender: SendRequest<Upload>,
    upstream: Arc<Upstream>,
    progress: Option<Arc<Progress>>,
    lease: Lease,
}

/// The addresses that one request has tried.
#[derive(Default)]
struct Tried(Vec<usize>);

impl Tried {
    /// Notes a failed attempt. Returns whether another address of `count` is left.
    fn failed(&mut self, address: usize, count: usize) -> bool {
        if !self.0.contains(&address) {
            self.0.push(address);
        }
        self.0.len() < count
    }
}

impl Upstream {
    pub(crate) fn new(addresses: Vec<Address>, answer_timeout: Duration, links: Links) -> Arc<Self> {
        let mut http = http1::Builder::new();
        http.preserve_header_case(true).title_case_headers(true).max_buf_size(BUFFER).max_headers(MAX_FIELDS);
        let addresses = addresses.into_iter().map(|address| (address, Mutex::default())).collect();
        Arc::new(Self { addresses, answer_timeout, links, http, server: OnceLock::new() })
    }

    /// Returns the address with this number.
    pub(crate) fn address(&self, number: usize) -> Option<&Address> {
        self.addresses.get(number).map(|(address, _)| address)
    }

    /// Sends a request over a pooled connection or a new one, to the address of `key` if the client sticks to one. The backend
    /// may have closed a pooled connection just now: the request is then sent again if no byte of it was written, or if
    /// `again` builds it a second time. The same sends it to another address.
    pub(crate) async fn send(
        self: &Arc<Self>,
        key: Option<u64>,
        mut request: Request<Upload>,
        progress: Option<Arc<Progress>>,
        mut again: impl FnMut() -> Option<Request<Upload>>,
    ) -> Result<(Response<Incoming>, PooledConnection), UpstreamError> {
        let (mut tried, count) = (Tried::default(), self.addresses.len());
        loop {
            let lease = self.links.choose(key, &tried.0);
            let address = lease.address;
            let (mut sender, was_used) = match self.checkout(address).await {
                Some(sender) => (sender, true),
                None => match self.open(address).await {
                    Ok(sender) => (sender, false),
                    Err(error) if tried.failed(address, count) => {
                        self.links.attempt_failed(address, &error);
                        continue;
                    }
                    Err(error) => return Err(self.fail(address, error)),
                },
            };
            let asking = sender.try_send_request(request);
            let mut asked = match within(self.answer_timeout, progress.as_deref(), asking).await {
                Some(Ok(response)) => {
                    self.links.answered(address);
                    return Ok((
                        response,
                        PooledConnection { sender, upstream: Arc::clone(self), progress, lease },
                    ));
                }
                Some(Err(error)) => error,
                None => return Err(self.fail(address, UpstreamError::ResponseTimeout)),
            };
            let may_repeat = was_used || tried.failed(address, count);
            request = match asked.take_message().or_else(&mut again).filter(|_| may_repeat) {
                Some(request) => request,
                None => {
                    return Err(self.fail(address, upstream_error(asked.error(), progress.as_deref())));
                }
            };
            if !was_used {
                self.links.attempt_failed(address, &upstream_error(asked.error(), progress.as_deref()));
            }
        }
    }

    /// Sends an opening handshake over a connection of its own. Tries again for `wait` while the backend cannot be reached (see
    /// [`UpstreamError::may_pass`]), or, without it, each address once.
    pub(crate) async fn upgrade(
        self: &Arc<Self>,
        key: Option<u64>,
        wait: Option<Duration>,
        request: impl Fn() -> Request<Upload>,
    ) -> Result<(Response<Incoming>, PooledConnection), UpstreamError> {
        let give_up = wait.map(|wait| Instant::now() + wait);
        let (mut pause, mut tried, count) = (PAUSE, Tried::default(), self.addresses.len());
        loop {
            let lease = self.links.choose(key, &tried.0);
            let address = lease.address;
            let error = match self.attempt(lease, give_up, request()).await {
                Ok((response, _)) if is_unavailable(response.status()) && tried.failed(address, count) => {
                    self.links.responded_with(address, response.status());
                    continue;
                }
                Ok(response) => {
                    if !is_unavailable(response.0.status()) {
                        self.links.answered(address);
                    }
                    return Ok(response);
                }
                Err(error) if error.is_of_address() && tried.failed(address, count) => {
                    self.links.attempt_failed(address, &error);
                    continue;
                }
                Err(error) => self.fail(address, error),
            };
            tried = Tried::default();
            let Some(give_up) = give_up.filter(|_| error.may_pass()) else { return Err(error) };
            let next = Instant::now() + pause;
            if next >= give_up {
                sleep_until(give_up).await;
                return Err(error);
            }
            sleep_until(next).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes one attempt of an opening handshake.
    async fn attempt(
        self: &Arc<Self>,
        lease: Lease,
        give_up: Option<Instant>,
        request: Request<Upload>,
    ) -> Result<(Response<Incoming>, PooledConnection), UpstreamError> {
        let opening = self.open(lease.address);
        let opened = match give_up {
            Some(give_up) => timeout_at(give_up, opening).await.unwrap_or_else(|_| Err(connect_timeout())),
            None => opening.await,
        };
        let mut sender = opened?;
        let asking = sender.send_request(request);
        match within(self.answer_timeout, None, asking).await {
            Some(Ok(response)) => {
                Ok((response, PooledConnection { sender, upstream: Arc::clone(self), progress: None, lease }))
            }
            Some(Err(error)) => Err(upstream_error(&error, None)),
            None => Err(UpstreamError::ResponseTimeout),
        }
    }

    /// Counts an error and returns it.
    pub(crate) fn fail(&self, address: usize, error: UpstreamError) -> UpstreamError {
        self.links.unanswered(address, &error);
        error
    }

    /// Opens a new connection.
    async fn open(&self, address: usize) -> Result<SendRequest<Upload>, UpstreamError> {
        let Some(Address { url, connector, .. }) = self.address(address) else {
            return Err(connect_timeout());
        };
        let connected = connector.connect(url).await;
        let connected = connected.inspect_err(|failure| {
            self.server.get().into_iter().for_each(|server| limits::free_port(failure, server));
        });
        let stream = connected.map_err(UpstreamError::Connect)?;
        let opened = self.http.handshake(TokioIo::new(UpstreamIo(stream))).await;
        let (sender, connection) = opened.map_err(|error| {
            UpstreamError::Connect(ConnectFailure::new(FailureKind::Other, error.to_string()))
        })?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the backend ended with an error");
            }
        });
        Ok(sender)
    }

    /// Takes a connection out of the pool. It may still be finishing its last request, which this waits for.
    async fn checkout(&self, address: usize) -> Option<SendRequest<Upload>> {
        loop {
            let (mut sender, since) = self.pool(address)?.connections.pop()?;
            if since.elapsed() < POOL_IDLE_TIMEOUT && !sender.is_closed() && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    /// Puts a connection into the pool; drops it if the pool is full.
    fn checkin(self: &Arc<Self>, address: usize, sender: SendRequest<Upload>) {
        let Some(mut pool) = self.pool(address) else { return };
        if sender.is_closed() || pool.connections.len() >= POOL_SIZE {
            return;
        }
        pool.connections.push((sender, Instant::now()));
        if !std::mem::replace(&mut pool.has_reaper, true) {
            tokio::spawn(Arc::clone(self).close_idle(address));
        }
    }

    /// Closes connections that were idle for too long, until the pool is empty.
    async fn close_idle(self: Arc<Self>, address: usize) {
        loop {
            sleep(POOL_IDLE_TIMEOUT / 4).await;
            let Some(mut pool) = self.pool(address) else { return };
            let is_live = |(sender, since): &(SendRequest<Upload>, Instant)| {
                since.elapsed() < POOL_IDLE_TIMEOUT && !sender.is_closed()
            };
            pool.connections.retain(is_live);
            if pool.connections.is_empty() {
                *pool = Pool::default();
                return;
            }
        }
    }

    fn pool(&self, address: usize) -> Option<MutexGuard<'_, Pool>> {
        let (_, pool) = self.addresses.get(address)?;
        Some(pool.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PooledConnection {
    /// The response was read to its end: returns the connection to the pool. A connection whose request is not fully
    /// written is closed, because the backend responded without reading the rest.
    pub(crate) fn release(self) {
        if self.progress.is_none_or(|progress| progress.is_sent()) {
            self.upstream.checkin(self.lease.address, self.sender);
        }
    }

    /// The response ended early.
    pub(crate) fn failed(self, why: &str) {
        self.upstream.links.unanswered(self.lease.address, &UpstreamError::NoAnswer(why.to_owned()));
    }

    /// Returns the number of the address that it came from.
    pub(crate) fn address(&self) -> usize {
        self.lease.address
    }

    /// Returns the use of the address, for the link that continues on this connection.
    pub(crate) fn into_lease(self) -> Lease {
        self.lease
    }
}

/// Awaits `asking`, at most for `most` after the request's body last made progress or the client last kept it waiting.
pub(crate) async fn within<T>(
    most: Duration,
    progress: Option<&Progress>,
    asking: impl Future<Output = T>,
) -> Option<T> {
    let Some(progress) = progress else { return timeout(most, asking).await.ok() };
    let mut asking = std::pin::pin!(asking);
    let mut until = progress.last() + most;
    loop {
        if let Ok(answer) = timeout_at(until, asking.as_mut()).await {
            return Some(answer);
        }
        let next = if progress.waits_for_client() { Instant::now() } else { progress.last() } + most;
        if next <= until {
            return None;
        }
        until = next;
    }
}

fn connect_timeout() -> UpstreamError {
    UpstreamError::Connect(ConnectFailure::new(
        FailureKind::TimedOut,
        "the backend cannot be reached within --upstream-wait",
    ))
}

fn upstream_error(error: &hyper::Error, progress: Option<&Progress>) -> UpstreamError {
    if let Some(broken) = progress.and_then(Progress::broken) {
        return UpstreamError::Client(broken);
    }
    let words = || {
        let source = std::error::Error::source(error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    };
    if error.is_parse() || error.is_parse_too_large() || error.is_user() {
        UpstreamError::BadResponse(words())
    } else {
        UpstreamError::NoAnswer(words())
    }
}

/// A connection to the backend whose writes do not fail. A backend that refuses a large body responds and closes; a
/// write then fails while the response still waits to be read. Reading reports how the connection ended.
pub(crate) struct UpstreamIo(ServerStream);

impl UpstreamIo {
    pub(crate) fn into_inner(self) -> ServerStream {
        self.0
    }
}

/// Reports a write on a closed connection as done.
fn written(polled: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
    polled.map(|written| match written {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            Ok(length)
        }
        written => written,
    })
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        written(Pin::new(&mut self.0).poll_write(cx, bytes), bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        written(Pin::new(&mut self.0).poll_write_vectored(cx, slices), length)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}
