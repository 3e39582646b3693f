//! A timeout for pauses within a body.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Ends a wait that lasts too long. Costs nothing while frames arrive in time.
pub(crate) struct IdleTimeout {
    most: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
pub(crate) struct Stalled;

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no data for too long")
    }
}

impl Error for Stalled {}

impl IdleTimeout {
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, since: None, timer: None }
    }

    /// One timer serves many waits: it is reset when it fires, not when a frame arrives.
    pub(crate) fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<T>) -> Poll<Result<T, Stalled>> {
        if let Poll::Ready(ready) = polled {
            self.since = None;
            return Poll::Ready(Ok(ready));
        }
        let until = *self.since.get_or_insert_with(Instant::now) + self.most;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= until {
                return Poll::Ready(Err(Stalled));
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}
