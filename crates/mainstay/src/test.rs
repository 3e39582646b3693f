//! A test kit: handlers and clients meet in memory, without a network. Needs the feature `test`.
//!
//! Everything between the two is real: the opening handshake, the codec, both ends of the session, heartbeats and timeouts.
//! Only the bytes move through memory, over a line that a test can [cut](Peer::cut) or [stall](Peer::stall). With tokio's
//! paused clock (`#[tokio::test(start_paused = true)]`, tokio's feature `test-util`) time passes as fast as the test can run,
//! and a session expires in a millisecond.
//!
//! ```toml
//! [dev-dependencies]
//! mainstay = { version = "0.1", features = ["test"] }
//! tokio = { version = "1", features = ["macros", "rt", "test-util"] }
//! ```
//!
//! A handler that gets a session:
//!
//! ```
//! use mainstay::{Session, test};
//!
//! async fn echo(mut session: Session) {
//!     while let Some(message) = session.recv().await {
//!         if session.send(message).await.is_err() {
//!             break;
//!         }
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread", start_paused = true)] // in a test: #[tokio::test(start_paused = true)]
//! async fn main() {
//!     let mut peer = test::run(echo).await;
//!     peer.send("before").await.unwrap();
//!     assert_eq!(peer.recv().await, Some("before".into()));
//!     peer.cut();
//!     peer.send("after").await.unwrap(); // kept until the client is back
//!     assert_eq!(peer.recv().await, Some("after".into()));
//! }
//! ```
//!
//! Code that works on a [`Session`] step by step:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! use mainstay::server::{EndCause, SessionState};
//!
//! let (mut session, mut peer) = mainstay::test::session().await;
//! peer.send("hello").await.unwrap();
//! assert_eq!(session.recv().await, Some("hello".into()));
//!
//! peer.expire().await; // two minutes pass
//! assert_eq!(session.recv().await, None);
//! assert_eq!(session.end().unwrap().cause, EndCause::Expired);
//! # }
//! ```
//!
//! A whole router, with several clients, is served by [`Network::serve`].

use std::future::{Ready, pending, ready};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc;

use crate::client::{ClientHandle, Connector, Sessions};
use crate::link::Plain;
use crate::server::{Config, MakeService, Sender};
use crate::{Client, CloseCode, Link, Message, Server, Session, SessionUpgrade};

/// How long a client may need to connect; with a paused clock no time passes for that.
const WITHIN: Duration = Duration::from_secs(60);
/// Bytes that a line holds in each direction, as a kernel does.
const LINE: usize = 64 * 1024;

/// Returns a session with default configuration and its client, which speaks `mainstay.v1`. For another configuration, or
/// another client of the same server, see [`Network::run`].
///
/// # Panics
/// The client does not get a connection within a minute.
pub async fn session() -> (Session, Peer) {
    let (network, mut sessions) = Network::handing_out();
    let peer = network.connect("/").await;
    (next(&mut sessions).await, peer)
}

/// Returns a session and its client, which speaks plain WebSocket: it resumes nothing.
///
/// # Panics
/// The client does not get a connection within a minute.
pub async fn plain() -> (Session, Peer<Plain>) {
    let (network, mut sessions) = Network::handing_out();
    let peer = network.connect_plain("/").await;
    (next(&mut sessions).await, peer)
}

/// Runs `handler` on a session with default configuration, and returns the client.
///
/// # Panics
/// The client does not get a connection within a minute.
pub async fn run<H, F>(handler: H) -> Peer
where
    H: Fn(Session) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    Network::run(Config::new(), handler).connect("/").await
}

async fn next(sessions: &mut mpsc::UnboundedReceiver<Session>) -> Session {
    match sessions.recv().await {
        Some(session) => session,
        // The server's route holds the other end.
        None => pending().await,
    }
}

/// A server that clients reach through memory. Cheap to clone; it serves until the runtime ends.
#[derive(Clone)]
pub struct Network {
    server: Server,
    dial: mpsc::UnboundedSender<DuplexStream>,
}

impl Network {
    /// Serves an application, as [`serve`](crate::serve) does.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// use axum::{Router, routing::any};
    /// use mainstay::{Server, SessionUpgrade, server::Room, test::Network};
    ///
    /// let room = Room::new();
    /// let chat = any(async move |upgrade: SessionUpgrade| {
    ///     upgrade.on_session(async move |mut session| {
    ///         let membership = room.join(&session);
    ///         while let Some(message) = session.recv().await {
    ///             membership.send_to_others(message);
    ///         }
    ///     })
    /// });
    /// let network = Network::serve(Router::new().route("/chat", chat), &Server::default());
    /// let (ann, mut bob) = (network.connect("/chat").await, network.connect("/chat").await);
    /// bob.cut();
    /// ann.send("hello").await.unwrap();
    /// assert_eq!(bob.recv().await, Some("hello".into()));
    /// # }
    /// ```
    pub fn serve<M: MakeService<()>>(app: M, server: &Server) -> Self {
        let (dial, dialled) = mpsc::unbounded_channel();
        tokio::spawn(crate::serve(InMemory(dialled), app, server).into_future());
        Self { server: server.clone(), dial }
    }

    /// Serves one handler, at every path, with this configuration.
    pub fn run<H, F>(config: Config, handler: H) -> Self
    where
        H: Fn(Session) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let route = any(async move |upgrade: SessionUpgrade| upgrade.on_session(handler));
        Self::serve(Router::new().fallback(route), &Server::new(config))
    }

    /// A server whose handler returns each session to the test.
    fn handing_out() -> (Self, mpsc::UnboundedReceiver<Session>) {
        let (give, sessions) = mpsc::unbounded_channel();
        let handler = move |session| -> Ready<()> {
            let _ = give.send(session);
            ready(())
        };
        (Self::run(Config::new(), handler), sessions)
    }

    /// The server: its figures, its drain.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Connects a client that speaks `mainstay.v1`.
    ///
    /// # Panics
    /// The client does not get a connection within a minute.
    pub async fn connect(&self, path: &str) -> Peer {
        let line = Line::default();
        let builder = Client::builder(&url(path)).map(|builder| builder.connector(self.connector(&line)));
        #[expect(clippy::expect_used, reason = "a test without a client has failed")]
        let builder = builder.expect("the path makes a URL");
        self.peer(builder.connect_ready(WITHIN).await, line)
    }

    /// Connects a client that speaks plain WebSocket.
    ///
    /// # Panics
    /// The client does not get a connection within a minute.
    pub async fn connect_plain(&self, path: &str) -> Peer<Plain> {
        let line = Line::default();
        let builder = Link::builder(&url(path)).map(|builder| builder.connector(self.connector(&line)));
        #[expect(clippy::expect_used, reason = "a test without a client has failed")]
        let builder = builder.expect("the path makes a URL");
        self.peer(builder.connect_ready(WITHIN).await, line)
    }

    /// Opens lines to the server, for a client with options of its own:
    /// `Client::builder("ws://test/")?.connector(network.connector(&line))`.
    pub fn connector(&self, line: &Line) -> Connector {
        let (line, dial) = (line.clone(), self.dial.clone());
        Connector::default().open_with(move |_url| ready(line.open(&dial)))
    }

    fn peer<P>(&self, client: Result<ClientHandle<P>, crate::client::ConnectError>, line: Line) -> Peer<P> {
        #[expect(clippy::expect_used, reason = "a test without a client has failed")]
        let client = client.expect("the client gets a connection");
        Peer { client, line, server: self.server.clone() }
    }
}

fn url(path: &str) -> String {
    format!("ws://test{path}")
}

/// A listener that clients reach through memory.
struct InMemory(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for InMemory {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A client in memory, and the line to it.
pub struct Peer<P = Sessions> {
    /// The client, for everything that has no shortcut here.
    pub client: ClientHandle<P>,
    line: Line,
    server: Server,
}

impl<P> Peer<P> {
    /// Sends a message to the server, as [`Client::send`](ClientHandle::send).
    ///
    /// # Errors
    /// The client has ended, or the message is larger than the server accepts.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), crate::SendError> {
        self.client.send(message).await
    }

    /// Receives the next message of the server, as [`Client::recv`](ClientHandle::recv); `None` once the client has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn recv(&mut self) -> Option<Message> {
        self.client.recv().await
    }

    /// Cuts the connection, as a cable: both ends see it break, and data in flight is lost. The client connects again.
    pub fn cut(&self) {
        self.line.cut();
    }

    /// Stalls the connection, as a route that drops all packets: no byte passes, and neither end gets a report. Lasts until
    /// [`resume`](Self::resume); a connection that is opened meanwhile stalls, too.
    pub fn stall(&self) {
        self.line.stall();
    }

    /// Ends a stall.
    pub fn resume(&self) {
        self.line.resume();
    }

    /// Takes the client off the network: cuts its connection and refuses further ones.
    pub fn go_offline(&self) {
        self.line.go_offline();
    }

    /// Lets the client connect again.
    pub fn go_online(&self) {
        self.line.0.offline.store(false, Relaxed);
        self.client.reconnect();
    }

    /// Takes the client off the network until its session has expired: the resume window passes. A plain client's session
    /// ends with its connection.
    pub async fn expire(&self) {
        let session = self.client.sender().id().and_then(|id| self.server.find(id));
        self.go_offline();
        if let Some(session) = session {
            session.closed().await;
        }
    }

    /// Ends the client in order, and waits for that.
    ///
    /// # Cancel safety
    /// Safe: the closing goes on, only the waiting ends.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.client.close(code, reason).await;
    }

    /// The server's handle on the client's session; `None` for a plain client and once the session is over.
    #[must_use]
    pub fn sender(&self) -> Option<Sender> {
        self.server.find(self.client.sender().id()?)
    }
}

impl<P> std::fmt::Debug for Peer<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("id", &self.client.sender().id()).finish_non_exhaustive()
    }
}

/// The line between one client and the server. Cheap to clone; every clone is the same line.
#[derive(Clone, Default)]
pub struct Line(Arc<LineState>);

#[derive(Default)]
struct LineState {
    stalled: AtomicBool,
    offline: AtomicBool,
    /// How often the line was cut: a connection of an earlier count is broken.
    cuts: Mutex<u64>,
    /// Tasks that wait on the line.
    waiting: Mutex<Vec<Waker>>,
}

impl Line {
    /// See [`Peer::cut`].
    pub fn cut(&self) {
        *lock(&self.0.cuts) += 1;
        self.wake();
    }

    /// See [`Peer::stall`].
    pub fn stall(&self) {
        self.0.stalled.store(true, Relaxed);
    }

    /// See [`Peer::resume`].
    pub fn resume(&self) {
        self.0.stalled.store(false, Relaxed);
        self.wake();
    }

    /// See [`Peer::go_offline`].
    pub fn go_offline(&self) {
        self.0.offline.store(true, Relaxed);
        self.cut();
    }

    fn open(&self, dial: &mpsc::UnboundedSender<DuplexStream>) -> io::Result<Wire> {
        let (ours, theirs) = duplex(LINE);
        if self.0.offline.load(Relaxed) || dial.send(theirs).is_err() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(Wire { stream: Some(ours), cuts: *lock(&self.0.cuts), line: self.clone() })
    }

    fn wake(&self) {
        std::mem::take(&mut *lock(&self.0.waiting)).into_iter().for_each(Waker::wake);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client's end of one connection.
struct Wire {
    /// `None` once it was cut: the server's end sees the end of the stream.
    stream: Option<DuplexStream>,
    /// The count of cuts when it was opened.
    cuts: u64,
    line: Line,
}

impl Wire {
    /// Calls `io` on the stream, unless the line is cut or stalled.
    fn poll<R>(
        &mut self,
        cx: &mut Context<'_>,
        io: impl FnOnce(Pin<&mut DuplexStream>, &mut Context<'_>) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        let mut waiting = lock(&self.line.0.waiting);
        if *lock(&self.line.0.cuts) != self.cuts {
            self.stream = None;
        }
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        // A cut must wake a task that waits for the stream, too.
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        drop(waiting);
        if self.line.0.stalled.load(Relaxed) { Poll::Pending } else { io(Pin::new(stream), cx) }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(cx, |stream, cx| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, AsyncWrite::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Event;
    use crate::server::{EndCause, SessionState};

    #[tokio::test(start_paused = true)]
    async fn a_cut_line_loses_no_message_of_a_session() {
        let (mut session, mut peer) = session().await;
        for n in 0..10_u8 {
            peer.send(vec![n]).await.unwrap();
            session.send(vec![n]).await.unwrap();
            peer.cut();
        }
        for n in 0..10_u8 {
            assert_eq!(session.recv().await, Some(vec![n].into()));
            assert_eq!(peer.recv().await, Some(vec![n].into()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_line_is_noticed_by_the_heartbeat_and_a_resumed_one_delivers() {
        let (mut session, peer) = session().await;
        let mut changes = session.changes();
        peer.stall();
        peer.send("later").await.unwrap();
        assert_eq!(changes.next().await, Some(SessionState::Parked));
        peer.resume();
        assert_eq!(session.recv().await, Some("later".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stays_offline_loses_its_session_and_gets_a_gap() {
        let (mut session, peer) = session().await;
        session.send("lost").await.unwrap();
        peer.expire().await;
        assert_eq!(session.recv().await, None);
        assert_eq!(session.end().map(|end| end.cause), Some(EndCause::Expired));
        peer.go_online();
        while !matches!(peer.client.event().await, Some(Event::Gap { .. })) {}
    }

    #[tokio::test(start_paused = true)]
    async fn the_session_of_a_plain_client_ends_with_its_connection() {
        let (mut session, peer) = plain().await;
        peer.send("hello").await.unwrap();
        assert_eq!(session.recv().await, Some("hello".into()));
        peer.go_offline();
        assert_eq!(session.recv().await, None);
    }
}
