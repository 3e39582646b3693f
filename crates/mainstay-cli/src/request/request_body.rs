//! A request's body on its way to the backend, with backpressure: a frame is read from the client only when the backend has
//! room for it.
//!
//! A client that sends nothing for too long ends the body, and so the exchange, with an error. Time in which the backend
//! has no room does not count.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, timeout};

use crate::request::idle_timeout::IdleTimeout;

/// How long a client may pause within a body.
const CLIENT_IDLE: Duration = Duration::from_secs(60);
/// How long an unwanted body is read on, in all and between two frames, so that its client can read the response. As
/// nginx's `lingering_time` and `lingering_timeout`.
const LINGER_IDLE: Duration = Duration::from_secs(5);
const LINGER: Duration = Duration::from_secs(30);

/// Why a request's body ended early. The client is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client sent nothing for [`CLIENT_IDLE`].
    Stalled,
    /// The body is larger than `--max-request-body`.
    TooLarge,
    /// The client is gone, or violated HTTP.
    Gone,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stalled => "the client paused for 60 s within its request's body",
            Self::TooLarge => "the request's body is larger than --max-request-body",
            Self::Gone => "the client did not finish its request's body",
        })
    }
}

impl Error for Broken {}

/// The progress of a request's body, for the task that waits for the response.
pub(crate) struct Progress {
    begun: Instant,
    /// When a frame was last forwarded, in milliseconds since `begun`.
    moved: AtomicU64,
    state: AtomicU8,
    /// The backend has room, and the client sends nothing.
    is_waiting: AtomicBool,
}

const MOVING: u8 = 0;
const SENT: u8 = 1;

impl Progress {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            moved: AtomicU64::new(0),
            state: AtomicU8::new(MOVING),
            is_waiting: AtomicBool::new(false),
        })
    }

    /// Returns when a frame was last forwarded.
    pub(crate) fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.moved.load(Relaxed))
    }

    /// Returns whether the exchange waits for the client, which has its own timeout.
    pub(crate) fn waits_for_client(&self) -> bool {
        self.is_waiting.load(Relaxed)
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.state.load(Relaxed) == SENT
    }

    pub(crate) fn broken(&self) -> Option<Broken> {
        [Broken::Stalled, Broken::TooLarge, Broken::Gone]
            .into_iter()
            .find(|broken| self.state.load(Relaxed) == 2 + *broken as u8)
    }

    fn touch(&self) {
        let passed = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(passed, Relaxed);
    }
}

/// A request's body.
pub(crate) struct Upload(Option<Box<Uploading>>);

struct Uploading {
    body: Body,
    progress: Arc<Progress>,
    idle: IdleTimeout,
    /// Bytes left until the limit.
    left: u64,
    /// Whether the rest is read even if the backend does not want it.
    lingers: bool,
}

impl Upload {
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    /// `expects`: the client waits for 100 before it sends the body.
    pub(crate) fn new(body: Body, most: Option<u64>, expects: bool) -> (Self, Option<Arc<Progress>>) {
        if body.is_end_stream() {
            return (Self::empty(), None);
        }
        let progress = Progress::new();
        let uploading = Uploading {
            body,
            progress: Arc::clone(&progress),
            idle: IdleTimeout::new(CLIENT_IDLE),
            left: most.unwrap_or(u64::MAX),
            lingers: !expects,
        };
        (Self(Some(Box::new(uploading))), Some(progress))
    }
}

impl Uploading {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.lingers |= polled.is_ready();
        self.progress.is_waiting.store(polled.is_pending(), Relaxed);
        let Some(frame) = ready!(self.idle.watch(cx, polled).map_err(|_| Broken::Stalled)?) else {
            return Poll::Ready(None);
        };
        let frame = frame.map_err(|_| Broken::Gone)?;
        self.progress.touch();
        let size = frame.data_ref().map_or(0, Bytes::len) as u64;
        self.left = self.left.checked_sub(size).ok_or(Broken::TooLarge)?;
        Poll::Ready(Some(Ok(frame)))
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(uploading) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(uploading.poll(cx));
        let state = match &frame {
            Some(Ok(_)) if !uploading.body.is_end_stream() => return Poll::Ready(frame),
            Some(Ok(_)) | None => SENT,
            Some(Err(broken)) => 2 + *broken as u8,
        };
        uploading.progress.state.store(state, Relaxed);
        self.0 = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |uploading| uploading.body.size_hint())
    }
}

impl Drop for Upload {
    /// Reads on: closing a connection with unread bytes resets it, and the response is lost.
    fn drop(&mut self) {
        let Some(uploading) = self.0.take().filter(|uploading| uploading.lingers) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(timeout(LINGER, linger(uploading.body)));
        }
    }
}

async fn linger(mut body: Body) {
    let mut next = async || std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    while matches!(timeout(LINGER_IDLE, next()).await, Ok(Some(Ok(_)))) {}
}

#[cfg(test)]
mod tests {
    use tokio::time::Sleep;

    use super::*;

    /// A body that yields one byte every `pause`, and nothing after `count` bytes.
    struct Slow {
        pause: Duration,
        count: u32,
        next: Pin<Box<Sleep>>,
    }

    impl HttpBody for Slow {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            ready!(self.next.as_mut().poll(cx));
            if self.count == 0 {
                return Poll::Pending;
            }
            let next = Instant::now() + self.pause;
            self.next.as_mut().reset(next);
            self.count -= 1;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    fn slow(pause: Duration, count: u32, most: Option<u64>) -> (Upload, Arc<Progress>) {
        let next = Box::pin(tokio::time::sleep(pause));
        let (upload, progress) = Upload::new(Body::new(Slow { pause, count, next }), most, false);
        (upload, progress.unwrap())
    }

    /// Reads to the end. Returns the number of bytes and how the body ended.
    async fn read(mut upload: Upload) -> (u64, Option<Broken>) {
        let mut bytes = 0;
        loop {
            match std::future::poll_fn(|cx| Pin::new(&mut upload).poll_frame(cx)).await {
                Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
                Some(Err(broken)) => return (bytes, Some(broken)),
                None => return (bytes, None),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_passes_and_one_that_stalls_ends() {
        let begun = Instant::now();
        let (upload, progress) = slow(Duration::from_secs(59), 10, None);
        assert_eq!(read(upload).await, (10, Some(Broken::Stalled)));
        assert_eq!(begun.elapsed().as_secs(), 10 * 59 + 60);
        assert_eq!((progress.broken(), progress.is_sent()), (Some(Broken::Stalled), false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_is_the_clients_fault_and_not_the_backends() {
        let (upload, progress) = slow(Duration::from_secs(1), 2, None);
        let waited = crate::upstream::within(Duration::from_secs(10), Some(&progress), read(upload)).await;
        assert_eq!(waited, Some((2, Some(Broken::Stalled))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_above_the_limit_ends() {
        let (upload, progress) = slow(Duration::from_secs(1), 9, Some(3));
        assert_eq!(read(upload).await, (3, Some(Broken::TooLarge)));
        assert_eq!(progress.broken(), Some(Broken::TooLarge));
    }
}
