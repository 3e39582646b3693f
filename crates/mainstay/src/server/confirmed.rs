//! A handler that starts once its client is confirmed.
//!
//! In a cluster two nodes may each make a session under one client key, and the client continues only one of them. So nothing
//! is delivered and no handler starts before a control message of the client has confirmed an epoch of the session.
//!
//! Source: `docs/CLUSTER.md`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::session::Session;

pin_project! {
    /// The handler of one session: its function, in a box, until the client is confirmed; then its future.
    #[project = Stage]
    pub(super) enum WhenConfirmed<H, F> {
        Waiting { start: Option<Box<(Session, H)>> },
        Running { #[pin] handler: F },
    }
}

impl<H, F> WhenConfirmed<H, F> {
    pub(super) fn new(session: Session, handler: H) -> Self {
        Self::Waiting { start: Some(Box::new((session, handler))) }
    }
}

impl<H, F> Future for WhenConfirmed<H, F>
where
    H: FnOnce(Session) -> F,
    F: Future<Output = ()>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Stage::Waiting { start } = self.as_mut().project() {
            let Some((session, _)) = start.as_deref() else { return Poll::Ready(()) };
            let mut inner = session.core.lock();
            if inner.peer.is_over() {
                // The session ended or left before any client confirmed it: nothing was delivered.
                drop(inner);
                *start = None;
                return Poll::Ready(());
            }
            if !inner.peer.is_confirmed() {
                inner.wait_for_change(cx.waker());
                return Poll::Pending;
            }
            let record =
                inner.peer.session_mut().and_then(|machine| Some((machine.id(), machine.poll_record()?)));
            drop(inner);
            if let (Some((id, claim)), Some(node)) = (record, &session.core.shared.node) {
                node.consume(id, claim);
            }
            if let Some(start) = start.take() {
                let (session, handler) = *start;
                self.set(Self::Running { handler: handler(session) });
            }
        }
        match self.project() {
            Stage::Running { handler } => handler.poll(cx),
            Stage::Waiting { .. } => Poll::Ready(()),
        }
    }
}
