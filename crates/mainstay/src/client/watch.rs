//! What happens to a client, to be awaited beside its messages.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use mainstay_proto::connect::{Event, State};

use super::core::Core;

/// What happens to a client.
pub struct Events {
    core: Arc<Core>,
}

impl Events {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// The next event; `None` after [`Event::Ended`]. An application need not listen: at most 1,024 are kept, and of
    /// volatile messages the newest 64 (256 KiB); then the oldest go, those that tell of a loss last. Each event is
    /// returned once, whoever asks.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&self) -> Option<Event> {
        poll_fn(|cx| {
            let mut inner = self.core.lock();
            match inner.take_event() {
                Some(event) => Poll::Ready(Some(event)),
                None if inner.is_finished() => Poll::Ready(None),
                None => {
                    inner.wait(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events(..)")
    }
}

/// The changes of a client's state. Each handle sees them for itself.
pub struct Changes {
    core: Arc<Core>,
    seen: State,
}

impl Changes {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        let seen = core.lock().machine.state();
        Self { core: Arc::clone(core), seen }
    }

    /// Waits until the state differs from what was returned before, or was when this handle was made, and returns it;
    /// `None` once [`State::Ended`] was. A state that passed meanwhile is not returned; [`Events`] tell of every one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<State> {
        if self.seen == State::Ended {
            return None;
        }
        self.seen = changed(&self.core, self.seen).await;
        Some(self.seen)
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("seen", &self.seen).finish_non_exhaustive()
    }
}

pub(super) async fn changed(core: &Core, seen: State) -> State {
    poll_fn(|cx| {
        let mut inner = core.lock();
        let state = inner.machine.state();
        if state != seen {
            return Poll::Ready(state);
        }
        inner.wait(cx.waker());
        Poll::Pending
    })
    .await
}
