//! HTTP connections to the backend: opened, kept for the next request, given up.
//!
//! Here and not by hyper-util's client: whether a request may be sent once more depends on whether its connection had
//! been used before, an opening handshake needs a connection of its own, and that client starts a task for each answer.

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
use mainstay::client::{Connector, ServerStream};
use mainstay_proto::reach::FailureKind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::body::{Broken, Progress, Upload};
use crate::bounds;
use crate::links::Links;

/// How many connections are kept without a request, and for how long.
const IDLE: usize = 256;
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Between two attempts to reach a backend that an opening handshake waits for.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What is read of the backend at once, and the largest head of an answer.
const BUFFER: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;

/// The backend, as HTTP reaches it.
pub(crate) struct Upstream {
    url: Uri,
    connector: Connector,
    /// How long the backend may take for an answer, and between two pieces of one.
    pub(crate) answer_timeout: Duration,
    links: Links,
    http: http1::Builder,
    idle: Mutex<Idle>,
    /// What gives up a session where no local port is left.
    pub(crate) room: OnceLock<Server>,
}

/// Connections without a request, the last one used last.
#[derive(Default)]
struct Idle {
    connections: Vec<(SendRequest<Upload>, Instant)>,
    /// A task closes what is here for too long.
    is_watched: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection can be opened; trying again may help.
    Unreachable(String),
    /// TLS with it fails; that is for its operator to mend.
    Untrusted(String),
    /// A connection was not opened in time.
    ConnectTimeout,
    /// It was reached, and said nothing in time.
    AnswerTimeout,
    /// It ended the connection without an answer.
    NoAnswer(String),
    /// It answered what is no HTTP.
    Nonsense(String),
    /// The client did not finish its own request.
    Client(Broken),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "it cannot be reached: {why}"),
            Self::Untrusted(why) => write!(f, "{why}"),
            Self::ConnectTimeout => write!(f, "it cannot be reached in time"),
            Self::AnswerTimeout => write!(f, "it did not answer within --upstream-answer-timeout"),
            Self::NoAnswer(why) => write!(f, "it ended the connection: {why}"),
            Self::Nonsense(why) => write!(f, "its answer cannot be passed on: {why}"),
            Self::Client(broken) => broken.fmt(f),
        }
    }
}

/// The connection of an answer, to be kept once that was read.
pub(crate) struct Kept {
    sender: SendRequest<Upload>,
    upstream: Arc<Upstream>,
    progress: Option<Arc<Progress>>,
}

impl Upstream {
    pub(crate) fn new(url: Uri, connector: Connector, answer_timeout: Duration, links: Links) -> Arc<Self> {
        let mut http = http1::Builder::new();
        http.preserve_header_case(true).title_case_headers(true).max_buf_size(BUFFER).max_headers(MAX_FIELDS);
        let (idle, room) = (Mutex::default(), OnceLock::new());
        Arc::new(Self { url, connector, answer_timeout, links, http, idle, room })
    }

    /// Asks, over a connection that is kept or a new one. One that was kept may have been closed by the backend just
    /// now; a request is sent once more if nothing of it was written, or `again` makes it once more.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        mut request: Request<Upload>,
        progress: Option<Arc<Progress>>,
        mut again: impl FnMut() -> Option<Request<Upload>>,
    ) -> Result<(Response<Incoming>, Kept), Failure> {
        loop {
            let (mut sender, was_used) = match self.kept().await {
                Some(sender) => (sender, true),
                None => (self.open().await.inspect_err(|failure| self.links.unanswered(failure))?, false),
            };
            let asking = sender.try_send_request(request);
            let asked = match within(self.answer_timeout, progress.as_deref(), asking).await {
                Some(Ok(response)) => {
                    self.links.answered();
                    return Ok((response, Kept { sender, upstream: Arc::clone(self), progress }));
                }
                Some(Err(error)) => error,
                None => return Err(self.fail(Failure::AnswerTimeout)),
            };
            let mut asked = asked;
            request = match asked.take_message().or_else(&mut again).filter(|_| was_used) {
                Some(request) => request,
                None => return Err(self.fail(failure(asked.error(), progress.as_deref()))),
            };
        }
    }

    /// Asks to switch protocols, over a connection of its own, and tries for `wait` while there is no backend. A
    /// backend that ends the connection without a word is none: some forwarders accept for one that is not there.
    pub(crate) async fn switch(
        self: &Arc<Self>,
        wait: Duration,
        request: impl Fn() -> Request<Upload>,
    ) -> Result<(Response<Incoming>, Kept), Failure> {
        let give_up = Instant::now() + wait;
        let mut pause = PAUSE;
        loop {
            let attempt = async {
                let mut sender =
                    timeout_at(give_up, self.open()).await.unwrap_or(Err(Failure::ConnectTimeout))?;
                let asking = sender.send_request(request());
                match within(self.answer_timeout, None, asking).await {
                    Some(Ok(response)) => {
                        Ok((response, Kept { sender, upstream: Arc::clone(self), progress: None }))
                    }
                    Some(Err(error)) => Err(failure(&error, None)),
                    None => Err(Failure::AnswerTimeout),
                }
            };
            let failure = match attempt.await {
                Ok(answer) => {
                    self.links.answered();
                    return Ok(answer);
                }
                Err(failure) => self.fail(failure),
            };
            let may_pass = matches!(failure, Failure::Unreachable(_) | Failure::NoAnswer(_));
            let next = Instant::now() + pause;
            if !may_pass || next >= give_up {
                if may_pass {
                    sleep_until(give_up).await;
                }
                return Err(failure);
            }
            sleep_until(next).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Counts a failure.
    pub(crate) fn fail(&self, failure: Failure) -> Failure {
        self.links.unanswered(&failure);
        failure
    }

    /// A new connection.
    async fn open(&self) -> Result<SendRequest<Upload>, Failure> {
        let connected = self.connector.connect(&self.url).await;
        let noted = connected.inspect_err(|failure| {
            self.room.get().into_iter().for_each(|mainstay| bounds::note_failure(failure, mainstay));
        });
        let stream = noted.map_err(|failure| match failure.kind {
            FailureKind::TimedOut => Failure::ConnectTimeout,
            FailureKind::Certificate | FailureKind::Tls => Failure::Untrusted(failure.to_string()),
            _ => Failure::Unreachable(failure.to_string()),
        })?;
        let opened = self.http.handshake(TokioIo::new(Heard(stream))).await;
        let (sender, connection) = opened.map_err(|error| Failure::Unreachable(error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the backend ended");
            }
        });
        Ok(sender)
    }

    /// A connection that waits for a request. It may still be busy with the end of its last one.
    async fn kept(&self) -> Option<SendRequest<Upload>> {
        loop {
            let (mut sender, since) = self.idle().connections.pop()?;
            if since.elapsed() < IDLE_FOR && !sender.is_closed() && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn keep(self: &Arc<Self>, sender: SendRequest<Upload>) {
        let mut idle = self.idle();
        if sender.is_closed() || idle.connections.len() >= IDLE {
            return;
        }
        idle.connections.push((sender, Instant::now()));
        if !std::mem::replace(&mut idle.is_watched, true) {
            tokio::spawn(Arc::clone(self).close_idle());
        }
    }

    /// Closes what is kept for too long, until nothing is kept.
    async fn close_idle(self: Arc<Self>) {
        loop {
            sleep(IDLE_FOR / 4).await;
            let mut idle = self.idle();
            idle.connections.retain(|(sender, since)| since.elapsed() < IDLE_FOR && !sender.is_closed());
            if idle.connections.is_empty() {
                *idle = Idle::default();
                return;
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The answer was read to its end. What the backend did not wait for of the request is still under way: then the
    /// connection is of no use.
    pub(crate) fn keep(self) {
        if self.progress.is_none_or(|progress| progress.is_sent()) {
            self.upstream.keep(self.sender);
        }
    }

    /// The answer broke off.
    pub(crate) fn failed(self, why: &str) {
        self.upstream.links.unanswered(&Failure::NoAnswer(why.to_owned()));
    }
}

/// Waits for this long after the request was last seen to move, or the client was last waited for.
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

fn failure(error: &hyper::Error, progress: Option<&Progress>) -> Failure {
    if let Some(broken) = progress.and_then(Progress::broken) {
        return Failure::Client(broken);
    }
    let words = || {
        let source = std::error::Error::source(error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    };
    if error.is_parse() || error.is_parse_too_large() || error.is_user() {
        Failure::Nonsense(words())
    } else {
        Failure::NoAnswer(words())
    }
}

/// A connection to the backend, heard to the end. A backend that refuses a large body answers and closes; what is still
/// written then fails, while its answer waits to be read. So writing never fails here: reading says what there is.
pub(crate) struct Heard(ServerStream);

impl Heard {
    pub(crate) fn into_inner(self) -> ServerStream {
        self.0
    }
}

/// What was written, or would have been.
fn written(polled: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
    polled.map(|written| match written {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            Ok(length)
        }
        written => written,
    })
}

impl AsyncWrite for Heard {
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

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}
