//! A plain response under way, which ends with the credentials of its client: a stream of events would otherwise outlive a
//! revocation for hours.
//!
//! A revocation ends any response, also one that the backend has not begun. The expiry ends only those whose length was not
//! announced, the streams: what has a length answers a request that was made in time. An ended response breaks off, so that
//! no client takes it for a whole one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::subjects::Present;

/// Responses that ended before the backend had ended them.
#[derive(Debug, Default)]
pub(crate) struct EndedResponses {
    pub(crate) expired: AtomicU64,
    pub(crate) revoked: AtomicU64,
}

/// What ends a response.
pub(super) struct Ends {
    pub(super) figures: Arc<EndedResponses>,
    /// The entry of its subject, and the message that its credentials were revoked.
    pub(super) present: Option<(Present, oneshot::Receiver<()>)>,
    /// When its credentials expire.
    pub(super) expires: Option<Instant>,
}

impl Ends {
    /// Returns once the credentials are revoked.
    pub(super) async fn revoked(&mut self) {
        if let Some((_, revoked)) = &mut self.present
            && revoked.await.is_ok()
        {
            self.figures.revoked.fetch_add(1, Relaxed);
            return;
        }
        std::future::pending().await
    }

    /// Has a response end with the credentials.
    pub(super) fn bind(self, response: Response) -> Response {
        response.map(|body| {
            if body.is_end_stream() {
                return body;
            }
            let is_stream = body.size_hint().exact().is_none();
            let expiry = self.expires.filter(|_| is_stream).map(|at| Box::pin(sleep_until(at)));
            Body::new(Ending { body, figures: self.figures, present: self.present, expiry })
        })
    }
}

/// The body of a response that ends with the credentials of its client.
struct Ending {
    body: Body,
    figures: Arc<EndedResponses>,
    present: Option<(Present, oneshot::Receiver<()>)>,
    expiry: Option<Pin<Box<Sleep>>>,
}

impl Ending {
    /// Returns why the response ends now.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        if let Some((_, revoked)) = &mut self.present
            && let Poll::Ready(Ok(())) = Pin::new(revoked).poll(cx)
        {
            self.figures.revoked.fetch_add(1, Relaxed);
            return Poll::Ready("the credentials were revoked");
        }
        let Some(expiry) = &mut self.expiry else { return Poll::Pending };
        ready!(expiry.as_mut().poll(cx));
        self.figures.expired.fetch_add(1, Relaxed);
        Poll::Ready("the credentials have expired")
    }
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(why) = this.poll_end(cx) {
            // The request at the backend ends, too.
            (this.body, this.present, this.expiry) = (Body::empty(), None, None);
            return Poll::Ready(Some(Err(why.into())));
        }
        Pin::new(&mut this.body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
