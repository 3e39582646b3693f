//! Opening a byte stream to a server: the look-up of its name, the attempts at its addresses, TLS.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use mainstay_proto::ConfigError;
use mainstay_proto::reach::{Attempts, ConnectFailure, FailureKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use super::place::Server;
use super::proxy::{At, Proxy};
use super::stream::ServerStream;
use super::{Failure, UrlError};
use crate::clock::now;
use crate::transport::one_kind;

/// The pause before another attempt at a Unix socket whose queue of connections is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Opens byte streams to servers: TCP, a Unix socket, TLS over either. Cheap to clone.
///
/// It tries all addresses of a name, IPv6 and IPv4 in turns: the next one 250 ms after the one before, or at once when that
/// refuses. The first connection that comes about is used. An address that never answers costs a quarter of a second.
///
/// A [`Builder`](super::Builder) has a connector of its own; this type is for other requests to the same server.
///
/// ```no_run
/// use std::time::Duration;
///
/// use mainstay::client::Connector;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let connector = Connector::default().timeout(Duration::from_secs(3))?;
/// let stream = connector.connect(&"https://server.example/".parse()?).await?;
/// # Ok(())
/// # }
/// ```
///
/// Source: RFC 8305; `docs/DEFAULTS.md` "Reconnecting".
#[derive(Clone)]
pub struct Connector {
    timeout: Duration,
    socket: Option<Arc<Path>>,
    proxy: Proxy,
    opener: Option<Opener>,
    #[cfg(feature = "tls")]
    tls: Option<Arc<rustls::ClientConfig>>,
    #[cfg(feature = "tls")]
    server_name: Option<rustls::pki_types::ServerName<'static>>,
}

/// Opens a stream to the server of a URL, in the application's own way.
type Opener =
    Arc<dyn Fn(Uri) -> Pin<Box<dyn Future<Output = io::Result<ServerStream>> + Send>> + Send + Sync>;

impl Default for Connector {
    /// 10 s, TCP without a proxy, and the certificates that the system trusts.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            socket: None,
            proxy: Proxy::default(),
            opener: None,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "tls")]
            server_name: None,
        }
    }
}

impl Connector {
    /// Limits the time of the look-up of the name, of connecting and of the TLS handshake together. Default: 10 s. Range:
    /// 1 ms to 1 hour.
    ///
    /// # Errors
    /// It is out of range.
    pub fn timeout(self, timeout: Duration) -> Result<Self, ConfigError> {
        let timeout = checked("connect_timeout", timeout)?;
        Ok(Self { timeout, ..self })
    }

    /// Connects to this Unix socket instead of the host and port of a URL. Default: TCP to the URL's host.
    #[must_use]
    pub fn unix(self, socket: impl Into<PathBuf>) -> Self {
        Self { socket: Some(Arc::from(socket.into())), ..self }
    }

    /// Reaches servers through this proxy, except those that the proxy [excepts](Proxy::except). A Unix socket is reached
    /// directly. Default: no proxy; the environment counts only with [`Proxy::from_environment`].
    #[must_use]
    pub fn proxy(self, proxy: Proxy) -> Self {
        Self { proxy, ..self }
    }

    /// Opens streams by a function of the application: SOCKS, a local address, `tokio::io::duplex` in a test. The stream
    /// carries TLS where the URL asks for it, and the [timeout](Self::timeout) holds. Neither the proxy nor the Unix socket
    /// is used.
    ///
    /// ```no_run
    /// use mainstay::client::{Connector, UrlError};
    /// use tokio::net::TcpSocket;
    ///
    /// # fn run() -> Result<(), UrlError> {
    /// let from_one_address = Connector::default().open_with(|_url| async {
    ///     let socket = TcpSocket::new_v4()?;
    ///     socket.bind(([192, 0, 2, 1], 0).into())?;
    ///     socket.connect(([192, 0, 2, 2], 80).into()).await
    /// });
    /// let client = mainstay::Client::builder("ws://server.example/")?.connector(from_one_address).connect();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn open_with<F, R, S>(self, open: F) -> Self
    where
        F: Fn(Uri) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let opener: Opener = Arc::new(move |url| {
            let opening = open(url);
            Box::pin(async move { Ok(ServerStream::other(opening.await?)) })
        });
        Self { opener: Some(opener), ..self }
    }

    /// As [`Builder::tls`](super::Builder::tls).
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(self, config: Arc<rustls::ClientConfig>) -> Self {
        Self { tls: Some(config), ..self }
    }

    /// Sets the name that the server's certificate must be for and that the client sends to the server (SNI). Default: the
    /// host of the URL.
    ///
    /// # Errors
    /// It is neither a DNS name nor an IP address.
    #[cfg(feature = "tls")]
    pub fn server_name(self, name: &str) -> Result<Self, UrlError> {
        let name = super::tls::server_name(name)?;
        Ok(Self { server_name: Some(name), ..self })
    }

    /// Opens a byte stream to the server of `url`: `ws`, `wss`, `http` or `https`.
    ///
    /// # Errors
    /// No stream came about within the [timeout](Self::timeout).
    ///
    /// # Cancel safety
    /// Safe. A look-up of the name that the system has begun goes on.
    pub async fn connect(&self, url: &Uri) -> Result<ServerStream, ConnectFailure> {
        let server =
            self.check(url).map_err(|error| ConnectFailure::new(FailureKind::Other, error.into_failure()))?;
        let deadline = Instant::now() + self.timeout;
        if let Some(open) = &self.opener {
            let stream = self.opened(open(url.clone()), deadline).await?;
            return if server.secure {
                self.secure_other(stream, &server, deadline).await
            } else {
                Ok(stream)
            };
        }
        let socket = match (&self.socket, self.proxy.towards(&server)) {
            (Some(path), _) => self.unix_socket(path, deadline).await?,
            (None, Some(proxy)) => self.through(proxy, &server, deadline).await?,
            (None, None) => self.tcp(&server, deadline).await?,
        };
        if server.secure { self.secure_tcp(socket, &server, deadline).await } else { Ok(socket.into()) }
    }

    async fn opened(
        &self,
        opening: impl Future<Output = io::Result<ServerStream>>,
        deadline: Instant,
    ) -> Result<ServerStream, ConnectFailure> {
        match timeout_at(deadline, opening).await {
            Ok(opened) => opened.map_err(|error| {
                ConnectFailure::new(unix_kind(&error), Failure::from(error).context("own connector"))
            }),
            Err(_) => {
                let words = format!("own connector: no stream within {:?}", self.timeout);
                Err(ConnectFailure::new(FailureKind::TimedOut, words))
            }
        }
    }

    async fn through(
        &self,
        proxy: &At,
        server: &Server,
        deadline: Instant,
    ) -> Result<TcpStream, ConnectFailure> {
        let to_proxy = |why: ConnectFailure| {
            let words = format!("the proxy {}", why.failure);
            ConnectFailure::new(why.kind, why.failure.with_message(words))
        };
        let mut socket = self.tcp(&proxy.server, deadline).await.map_err(to_proxy)?;
        match timeout_at(deadline, proxy.tunnel(&mut socket, server)).await {
            Ok(tunnel) => tunnel.map(|()| socket),
            Err(_) => {
                let words = format!(
                    "the proxy {} did not answer CONNECT within {:?}",
                    proxy.server.authority(),
                    self.timeout
                );
                Err(ConnectFailure::new(FailureKind::TimedOut, words))
            }
        }
    }

    /// The limit of the time of [`connect`](Self::connect).
    pub(super) fn limit(&self) -> Duration {
        self.timeout
    }

    /// The same connector, with the Unix socket of `other` if it has none.
    pub(super) fn or_unix(self, other: &Self) -> Self {
        Self { socket: self.socket.or_else(|| other.socket.clone()), ..self }
    }

    /// Checks whether a stream to the server of `url` can be opened at all.
    pub(super) fn check(&self, url: &Uri) -> Result<Server, UrlError> {
        let server = Server::of(url)?;
        #[cfg(feature = "tls")]
        if server.secure && self.server_name.is_none() {
            super::tls::server_name(&server.host)?;
        }
        #[cfg(not(feature = "tls"))]
        if server.secure {
            let words = format!("{url}: wss:// needs the feature `tls` of the crate `mainstay`");
            return Err(UrlError::new(super::UrlErrorKind::NoTls, words));
        }
        Ok(server)
    }

    async fn tcp(&self, server: &Server, deadline: Instant) -> Result<TcpStream, ConnectFailure> {
        let Server { host, port, .. } = server;
        let unknown = |error: io::Error| {
            ConnectFailure::new(FailureKind::UnknownName, Failure::from(error).context(host))
        };
        let addresses = match timeout_at(deadline, tokio::net::lookup_host((host.as_str(), *port))).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(unknown(error)),
            Err(_) => {
                let words = format!("{host}: the name was not looked up within {:?}", self.timeout);
                return Err(ConnectFailure::new(FailureKind::TimedOut, words));
            }
        };
        let attempts = Attempts::new(now(), addresses);
        let socket = race(attempts, deadline, self.timeout).await?;
        let _ = socket.set_nodelay(true);
        Ok(socket)
    }

    async fn unix_socket(&self, path: &Path, deadline: Instant) -> Result<TcpStream, ConnectFailure> {
        let failed =
            |kind, why: Failure| ConnectFailure::new(kind, why.context(&format!("unix:{}", path.display())));
        let connecting = async {
            loop {
                match UnixStream::connect(path).await {
                    // Its queue of connections is full, and no event reports when there is room.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(FULL_QUEUE_PAUSE).await,
                    connected => return connected,
                }
            }
        };
        match timeout_at(deadline, connecting).await {
            Ok(connected) => {
                connected.and_then(one_kind).map_err(|error| failed(unix_kind(&error), error.into()))
            }
            Err(_) => {
                let words = format!("its queue of connections was full for {:?}", self.timeout);
                Err(failed(FailureKind::TimedOut, words.into()))
            }
        }
    }

    #[cfg(feature = "tls")]
    async fn secure_tcp(
        &self,
        socket: TcpStream,
        server: &Server,
        deadline: Instant,
    ) -> Result<ServerStream, ConnectFailure> {
        self.secure(socket, server, deadline).await.map(ServerStream::tls)
    }

    #[cfg(feature = "tls")]
    async fn secure_other(
        &self,
        stream: ServerStream,
        server: &Server,
        deadline: Instant,
    ) -> Result<ServerStream, ConnectFailure> {
        self.secure(stream, server, deadline).await.map(ServerStream::other)
    }

    #[cfg(feature = "tls")]
    async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        server: &Server,
        deadline: Instant,
    ) -> Result<tokio_rustls::client::TlsStream<S>, ConnectFailure> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => super::tls::server_name(&server.host)
                .map_err(|error| ConnectFailure::new(FailureKind::Certificate, error.into_failure()))?,
        };
        match timeout_at(deadline, super::tls::handshake(stream, &name, self.tls.as_ref())).await {
            Ok(secured) => secured,
            Err(_) => {
                let words = format!("TLS: the handshake was not done within {:?}", self.timeout);
                Err(ConnectFailure::new(FailureKind::TimedOut, words))
            }
        }
    }

    #[cfg(not(feature = "tls"))]
    async fn secure_tcp(&self, _: TcpStream, _: &Server, _: Instant) -> Result<ServerStream, ConnectFailure> {
        Err(ConnectFailure::new(FailureKind::Tls, "this program was built without TLS"))
    }

    #[cfg(not(feature = "tls"))]
    async fn secure_other(
        &self,
        _: ServerStream,
        _: &Server,
        _: Instant,
    ) -> Result<ServerStream, ConnectFailure> {
        Err(ConnectFailure::new(FailureKind::Tls, "this program was built without TLS"))
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("timeout", &self.timeout)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// Checks a limit for the time of an attempt.
pub(super) fn checked(field: &'static str, timeout: Duration) -> Result<Duration, ConfigError> {
    let range = Duration::from_millis(1)..=Duration::from_secs(3600);
    ConfigError::unless(range.contains(&timeout), field, "between 1 ms and 1 hour")?;
    Ok(timeout)
}

/// Connects to the addresses in the order of `attempts`, and returns the first connection.
async fn race(attempts: Attempts, deadline: Instant, timeout: Duration) -> Result<TcpStream, ConnectFailure> {
    let mut race = Race { attempts, connecting: Vec::new() };
    let mut alarm = pin!(sleep_until(deadline));
    let won = timeout_at(deadline, std::future::poll_fn(|cx| race.poll(cx, alarm.as_mut()))).await;
    match won {
        Ok(Some(socket)) => Ok(socket),
        Ok(None) | Err(_) => Err(race.attempts.into_failure(timeout)),
    }
}

struct Race {
    attempts: Attempts,
    connecting: Vec<(SocketAddr, Connecting)>,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

impl Race {
    /// The first connection that comes about; `None`: every attempt failed.
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> Poll<Option<TcpStream>> {
        loop {
            while let Some(address) = self.attempts.poll_attempt(now()) {
                self.connecting.push((address, Box::pin(TcpStream::connect(address))));
            }
            let mut won = None;
            let before = self.connecting.len();
            let attempts = &mut self.attempts;
            self.connecting.retain_mut(|(address, connecting)| match connecting.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(Ok(socket)) => {
                    won = Some(socket);
                    false
                }
                Poll::Ready(Err(error)) => {
                    attempts.handle_failed(now(), *address, tcp_failure(error, *address));
                    false
                }
            });
            if won.is_some() || self.attempts.are_over() {
                return Poll::Ready(won);
            }
            if self.connecting.len() < before {
                continue;
            }
            let Some(at) = self.attempts.poll_timeout() else { return Poll::Pending };
            alarm.as_mut().reset(at.into());
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

fn tcp_failure(error: io::Error, address: SocketAddr) -> ConnectFailure {
    let kind = tcp_kind(&error, address);
    let failure = Failure::from(error);
    match kind {
        FailureKind::NoLocalPort => ConnectFailure::new(kind, failure.context("no local port is left")),
        _ => ConnectFailure::new(kind, failure),
    }
}

fn tcp_kind(error: &io::Error, address: SocketAddr) -> FailureKind {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut,
    };
    match error.kind() {
        ConnectionRefused => FailureKind::Refused,
        TimedOut => FailureKind::TimedOut,
        HostUnreachable | NetworkUnreachable | NetworkDown => FailureKind::NoRoute,
        AddrNotAvailable if has_source_for(address) => FailureKind::NoLocalPort,
        AddrNotAvailable => FailureKind::NoRoute,
        _ if is_out_of_descriptors(error) => FailureKind::NoDescriptor,
        _ => FailureKind::Other,
    }
}

fn unix_kind(error: &io::Error) -> FailureKind {
    match error.kind() {
        // No server listens there any more, or not yet.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => FailureKind::Refused,
        _ if is_out_of_descriptors(error) => FailureKind::NoDescriptor,
        _ => FailureKind::Other,
    }
}

/// Whether this machine has an address from which to reach `address`. The system has one error for "no local port is left"
/// and for "no such family here". UDP has ports of its own, and this sends nothing.
fn has_source_for(address: SocketAddr) -> bool {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    UdpSocket::bind(any).is_ok_and(|socket| socket.connect(address).is_ok())
}

/// EMFILE or ENFILE, which have no kind.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// A listener that answers nothing: its queue of connections is full.
    async fn unanswering() -> (TcpListener, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let full = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener, full)
    }

    async fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    async fn outcome(addresses: Vec<SocketAddr>) -> Result<SocketAddr, FailureKind> {
        let timeout = Duration::from_secs(1);
        let racing = race(Attempts::new(now(), addresses), Instant::now() + timeout, timeout);
        racing.await.map(|socket| socket.peer_addr().unwrap()).map_err(|failure| failure.kind)
    }

    #[tokio::test]
    async fn an_address_that_never_answers_does_not_keep_the_client_from_the_next() {
        let (silent, _full) = unanswering().await;
        let lives = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (dead, alive) = (silent.local_addr().unwrap(), lives.local_addr().unwrap());
        assert_eq!(outcome(vec![dead, closed().await, alive]).await, Ok(alive));
        assert_eq!(outcome(vec![closed().await, alive, dead]).await, Ok(alive));
        assert_eq!(outcome(vec![dead]).await, Err(FailureKind::TimedOut));
        assert_eq!(outcome(vec![dead, closed().await]).await, Err(FailureKind::Refused));
        assert_eq!(outcome(vec![]).await, Err(FailureKind::UnknownName));
    }

    #[test]
    fn a_lack_of_local_ports_is_distinguished_from_a_lack_of_the_address_family() {
        let unavailable = io::Error::from(io::ErrorKind::AddrNotAvailable);
        assert_eq!(tcp_kind(&unavailable, "127.0.0.1:9".parse().unwrap()), FailureKind::NoLocalPort);
        // A documentation prefix, to which no machine has a route; or the machine has no IPv6 at all.
        let nowhere = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9));
        if !has_source_for(nowhere) {
            assert_eq!(tcp_kind(&unavailable, nowhere), FailureKind::NoRoute);
        }
    }

    #[tokio::test]
    async fn the_connector_waits_for_a_unix_socket_with_a_full_queue() {
        let path = std::env::temp_dir().join(format!("mainstay-{}-full.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let connector = Connector::default().unix(&path).timeout(Duration::from_millis(100)).unwrap();
        let url = Uri::from_static("ws://localhost/");
        let _first = connector.connect(&url).await.unwrap();
        let failure = connector.connect(&url).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::TimedOut, "{failure}");
        let patient = connector.timeout(Duration::from_secs(10)).unwrap();
        let (waiting, ()) = tokio::join!(patient.connect(&url), async {
            sleep(2 * FULL_QUEUE_PAUSE).await;
            drop(socket.accept().unwrap());
        });
        waiting.unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
