//! A response's body on its way to the client.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use crate::request::idle_timeout::IdleTimeout;
use crate::upstream::PooledConnection;

type BoxError = Box<dyn Error + Send + Sync>;

/// A response's body. At its end the connection returns to the pool.
pub(crate) struct Download {
    body: Incoming,
    idle: IdleTimeout,
    connection: Option<PooledConnection>,
}

impl Download {
    /// `idle`: how long the backend may pause.
    pub(crate) fn new(body: Incoming, connection: PooledConnection, idle: Duration) -> Self {
        Self { body, idle: IdleTimeout::new(idle), connection: Some(connection) }
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        let frame = match ready!(this.idle.watch(cx, polled)) {
            Ok(frame) => frame,
            Err(stalled) => {
                this.fail("the backend paused for too long within its response");
                return Poll::Ready(Some(Err(stalled.into())));
            }
        };
        match frame {
            Some(Err(error)) => {
                this.fail(&error.to_string());
                Poll::Ready(Some(Err(error.into())))
            }
            frame => {
                if (frame.is_none() || this.body.is_end_stream())
                    && let Some(connection) = this.connection.take()
                {
                    connection.release();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Download {
    fn fail(&mut self, why: &str) {
        if let Some(connection) = self.connection.take() {
            connection.failed(why);
        }
    }
}
