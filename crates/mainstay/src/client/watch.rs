//! The events and the states of a client, to be awaited beside its messages.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use mainstay_proto::connect::{Event, State};

use super::core::Core;

/// The events of a client. It is a [`Stream`], too. It does not keep the client open.
///
/// An application need not listen: at most 1,024 events are kept, with the newest 64 volatile messages (256 KiB). Above that
/// the oldest are dropped, those that report a loss last. Each event is returned once: several listeners share the events.
///
/// ```no_run
/// use mainstay::client::Event;
///
/// # async fn run(client: mainstay::Client) {
/// let events = client.events();
/// tokio::spawn(async move {
///     while let Some(event) = events.next().await {
///         match event {
///             Event::Attached { resumed, .. } => println!("connected, resumed: {resumed}"),
///             Event::Detached { why, next_attempt_in } => println!("{why}; again in {next_attempt_in:?}"),
///             other => println!("{other:?}"),
///         }
///     }
/// });
/// # }
/// ```
pub struct Events {
    core: Arc<Core>,
}

impl Events {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// Returns the next event; `None` after [`Event::Ended`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&self) -> Option<Event> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut inner = self.core.lock();
        match inner.take_event() {
            Some(event) => Poll::Ready(Some(event)),
            None if inner.is_finished() => Poll::Ready(None),
            None => {
                inner.wait(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_event(cx)
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events(..)")
    }
}

/// The changes of a client's state. It is a [`Stream`], too. Each handle sees every change for itself, and none keeps the
/// client open.
pub struct Changes {
    core: Arc<Core>,
    seen: State,
}

impl Changes {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        let seen = core.lock().machine.state();
        Self { core: Arc::clone(core), seen }
    }

    /// Returns the next state that differs from the one before; `None` after [`State::Ended`]. States that came and went
    /// meanwhile are left out; [`Events`] report every one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<State> {
        poll_fn(|cx| self.poll_change(cx)).await
    }

    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Option<State>> {
        if self.seen == State::Ended {
            return Poll::Ready(None);
        }
        poll_change(&self.core, &mut self.seen, cx).map(Some)
    }
}

impl Stream for Changes {
    type Item = State;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<State>> {
        self.poll_change(cx)
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// Ready with the state once it differs from `seen`, which it becomes.
pub(super) fn poll_change(core: &Core, seen: &mut State, cx: &mut Context<'_>) -> Poll<State> {
    let mut inner = core.lock();
    let state = inner.machine.state();
    if state == *seen {
        inner.wait(cx.waker());
        return Poll::Pending;
    }
    *seen = state;
    Poll::Ready(state)
}
