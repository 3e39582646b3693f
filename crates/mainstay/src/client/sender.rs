//! Sending through a client from elsewhere.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use mainstay_proto::connect::State;
use mainstay_proto::session::Message;
use mainstay_proto::session::message::SessionId;
use mainstay_proto::ws::CloseCode;

use super::core::Core;
use crate::clock::now;
use crate::{Receipt, SendError};

/// Sends through a client from elsewhere. Cheap to clone; does not keep the client open.
#[derive(Clone)]
pub struct Sender {
    core: Arc<Core>,
}

pub(super) fn send(
    core: &Arc<Core>,
    message: Message,
) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
    let mut sending = Some(message);
    poll_fn(move |cx| core.poll_send(&mut sending, cx.waker()).map_ok(drop))
}

pub(super) fn send_tracked(
    core: &Arc<Core>,
    message: Message,
) -> impl Future<Output = Result<Receipt, SendError>> + Send + '_ {
    let mut sending = Some(message);
    poll_fn(move |cx| {
        let sent = std::task::ready!(core.poll_send(&mut sending, cx.waker()));
        core.change(|inner| match sent {
            Ok(Some(number)) => Poll::Ready(Ok(inner.track(number))),
            Ok(None) => Poll::Pending,
            Err(refused) => Poll::Ready(Err(refused)),
        })
    })
}

impl Sender {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// Sends a message; waits while the window is full. It is kept until the peer acknowledges it.
    ///
    /// # Errors
    /// The client has ended, its link's policy is to fail, or the server takes no message that is as large: the message
    /// comes back.
    ///
    /// # Cancel safety
    /// Safe: a message is accepted only when this returns.
    pub fn send(
        &self,
        message: impl Into<Message>,
    ) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
        send(&self.core, message.into())
    }

    /// Sends a message and returns a future that settles when it is known what became of it.
    ///
    /// # Errors
    /// The client has ended, its link's policy is to fail, or the server takes no message that is as large: the message
    /// comes back.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn send_tracked(
        &self,
        message: impl Into<Message>,
    ) -> impl Future<Output = Result<Receipt, SendError>> + Send + '_ {
        send_tracked(&self.core, message.into())
    }

    /// As [`Client::try_send`](super::Client::try_send).
    ///
    /// # Errors
    /// The window is full, the client has ended, or the server takes no message that is as large.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.core.change(|inner| inner.send(message.into())).map(drop)
    }

    /// As [`Client::close`](super::Client::close).
    ///
    /// # Cancel safety
    /// Safe: the closing goes on, only the waiting ends.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        super::close(&self.core, code, reason).await;
    }

    /// As [`Client::abort`](super::Client::abort).
    pub fn abort(&self, code: CloseCode, reason: &str) {
        self.core.abort(code, reason);
    }

    /// As [`Client::reconnect`](super::Client::reconnect).
    pub fn reconnect(&self) {
        self.core.change(|inner| inner.machine.reconnect(now()));
    }

    /// As [`Client::id`](super::Client::id).
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.core.lock().machine.id()
    }

    /// Whether the client has ended, or is about to: nothing more is accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.lock().machine.is_closing()
    }

    /// Whether a plain peer answers Pings; `None`: it has not shown yet.
    #[must_use]
    pub fn answers_pings(&self) -> Option<bool> {
        self.core.lock().machine.answers_pings()
    }

    /// Waits until more messages than `above` are delivered (sessions) or have met their fate (plain peers: confirmed or
    /// reported), and returns up to which number they are. A link counts its messages from 1. Once the client has ended
    /// it waits for ever: what was still kept then is reported by events alone. One caller waits at a time.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn settled(&self, above: u64) -> impl Future<Output = u64> + Send + '_ {
        poll_fn(move |cx| {
            let mut inner = self.core.lock();
            if inner.machine.is_ended() {
                return Poll::Pending;
            }
            let settled = inner.machine.settled();
            if settled > above {
                return Poll::Ready(settled);
            }
            inner.settling = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Payload bytes that are kept for the peer now: accepted, and neither acknowledged, confirmed nor reported.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.core.lock().machine.kept_bytes()
    }

    /// As [`Client::probe_now`](super::Client::probe_now).
    pub fn probe_now(&self) {
        self.core.change(|inner| inner.machine.probe_now(now()));
    }

    /// As [`Client::state`](super::Client::state).
    #[must_use]
    pub fn state(&self) -> State {
        self.core.lock().machine.state()
    }

    /// Payload bytes that a plain peer sent and the application has not received yet. In a session: 0.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.core.lock().machine.unread_bytes()
    }

    /// Sends a message that is not kept: lost if no connection is attached, never sent again. For what the
    /// next one makes worthless: cursors, positions. Of more than 64 (256 KiB) that wait for a slow
    /// connection the oldest are dropped.
    ///
    /// With [`Confirm::Reply`](crate::Confirm::Reply) do not use it: the peer's answer to it would be taken for another's.
    pub fn send_volatile(&self, message: impl Into<Message>) {
        self.core.change(|inner| inner.machine.send_volatile(message.into()));
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
}
