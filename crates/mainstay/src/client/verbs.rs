//! The verbs that a client and its senders have in common.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mainstay_proto::connect::End;
use mainstay_proto::session::Message;

use super::core::Core;
use crate::{Receipt, SendError};

/// Defines the verbs of [`ClientHandle`](super::ClientHandle) and [`Sender`](super::Sender), once.
macro_rules! shared_verbs {
    ([$($generics:tt)*] $handle:ty) => {
        impl<$($generics)*> $handle {
            /// Sends a message; waits while the window is full. The client keeps the message until the peer acknowledges it,
            /// over as many connections as that needs.
            ///
            /// # Errors
            /// The client has ended, its link's policy is to fail when the queue is full, or the message is larger than the
            /// server accepts: the error holds the message.
            ///
            /// # Cancel safety
            /// Safe: a message is accepted only when this returns.
            pub fn send(
                &self,
                message: impl Into<mainstay_proto::session::Message>,
            ) -> impl Future<Output = Result<(), $crate::SendError>> + Send + '_ {
                $crate::client::verbs::send(&self.core, message.into())
            }

            /// Sends a message as [`send`](Self::send) does, and returns a future that resolves to what became of it.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            ///
            /// # Cancel safety
            /// Safe: a message is accepted only when this returns.
            pub fn send_tracked(
                &self,
                message: impl Into<mainstay_proto::session::Message>,
            ) -> impl Future<Output = Result<$crate::Receipt, $crate::SendError>> + Send + '_ {
                $crate::client::verbs::send_tracked(&self.core, message.into())
            }

            /// Sends `value` as JSON in a text message, as [`send`](Self::send) does.
            ///
            /// # Errors
            /// The value has no form in JSON, or as [`send`](Self::send).
            ///
            /// # Cancel safety
            /// Safe: a message is accepted only when this returns.
            #[cfg(feature = "json")]
            pub fn send_json<T: serde::Serialize + ?Sized>(
                &self,
                value: &T,
            ) -> impl Future<Output = Result<(), $crate::SendJsonError>> + Send + '_ {
                let message = mainstay_proto::session::Message::json(value);
                async move {
                    let message = message.map_err($crate::SendJsonError::Encode)?;
                    Ok(self.send(message).await?)
                }
            }

            /// Sends a message, or returns it at once.
            ///
            /// # Errors
            /// The window is full, the client has ended, or the message is larger than the server accepts.
            pub fn try_send(
                &self,
                message: impl Into<mainstay_proto::session::Message>,
            ) -> Result<(), $crate::SendError> {
                self.core.change(|inner| inner.send(message.into())).map(drop)
            }

            /// Sends a message that is not kept: it is lost if no connection is attached, and never sent again. For data that
            /// the next message makes worthless: cursors, positions. While more than 64 messages (256 KiB) wait for a slow
            /// connection, the oldest are dropped.
            ///
            /// Do not use it with [`Confirm::Reply`](crate::Confirm::Reply): the link would take the peer's answer to it for
            /// the answer to another message.
            pub fn send_volatile(&self, message: impl Into<mainstay_proto::session::Message>) {
                self.core.change(|inner| inner.machine.send_volatile(message.into()));
            }

            /// Ends the client in order: messages that were accepted before are delivered first, for at most 10 s. It receives
            /// nothing more, and `recv` returns `None` from now on. The close begins at once; await the returned future to
            /// wait for the end.
            ///
            /// # Cancel safety
            /// Safe: the close goes on, only the wait ends.
            pub fn close(&self, code: mainstay_proto::ws::CloseCode, reason: &str) -> $crate::client::Closing<'_> {
                self.core.close(code, reason);
                $crate::client::Closing { core: &self.core }
            }

            /// Ends the client now. The peer gets code and reason where a connection is attached, and nothing is waited for:
            /// messages that were not acknowledged may or may not have been delivered.
            /// [`ClientHandle::take_undelivered`](crate::client::ClientHandle::take_undelivered) returns them.
            pub fn abort(&self, code: mainstay_proto::ws::CloseCode, reason: &str) {
                self.core.abort(code, reason);
            }

            /// Waits until the client accepts nothing more: it was closed, or it has ended.
            ///
            /// # Cancel safety
            /// Safe.
            pub fn closed(&self) -> impl Future<Output = ()> + Send + '_ {
                $crate::client::verbs::closed(&self.core)
            }

            /// Whether the client accepts nothing more: it was closed, or it has ended.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.core.lock().machine.is_closing()
            }

            /// Waits until the client has ended, and returns why.
            ///
            /// # Cancel safety
            /// Safe.
            ///
            /// ```no_run
            /// use mainstay::client::{EndCause, ReasonCode};
            ///
            /// # async fn run(client: mainstay::Client) {
            /// let end = client.ended().await;
            /// match (end.cause, end.code) {
            ///     (EndCause::Refused, Some(ReasonCode::Http(status))) => println!("refused with {status}"),
            ///     (EndCause::Peer, Some(ReasonCode::Close(code))) => println!("closed with {code}: {end}"),
            ///     _ => println!("{end}"),
            /// }
            /// # }
            /// ```
            pub fn ended(&self) -> impl Future<Output = $crate::client::End> + Send + '_ {
                $crate::client::verbs::ended(&self.core)
            }

            /// Returns why the client has ended; `None` as long as it has not.
            #[must_use]
            pub fn end(&self) -> Option<$crate::client::End> {
                self.core.lock().machine.end().cloned()
            }

            /// What the client does at present.
            #[must_use]
            pub fn state(&self) -> $crate::client::State {
                self.core.lock().machine.state()
            }

            /// Returns a handle that reports changes of the state, from now on, to be awaited beside `recv`.
            ///
            /// ```no_run
            /// # async fn run(mut client: mainstay::Client) {
            /// let mut changes = client.changes();
            /// loop {
            ///     tokio::select! {
            ///         message = client.recv() => match message {
            ///             Some(message) => println!("{message:?}"),
            ///             None => break,
            ///         },
            ///         Some(state) = changes.next() => println!("{state:?}"),
            ///     }
            /// }
            /// # }
            /// ```
            #[must_use]
            pub fn changes(&self) -> $crate::client::Changes {
                $crate::client::Changes::new(&self.core)
            }

            /// Returns a handle on the events, to be awaited beside `recv`.
            #[must_use]
            pub fn events(&self) -> $crate::client::Events {
                $crate::client::Events::new(&self.core)
            }

            /// The smoothed round-trip time of this end's probes on the current connection. A session's server drives the
            /// heartbeat, so its client has a figure only after a probe of its own.
            #[must_use]
            pub fn rtt(&self) -> Option<std::time::Duration> {
                self.core.lock().machine.rtt()
            }

            /// Checks the connection now, for a program that learned that the network changed: a client that waits for its
            /// next attempt dials at once; a client that is attached probes its connection, and opens another one beside it if
            /// the probe stays unanswered for 1 s. A connection that answers is kept.
            pub fn probe_now(&self) {
                self.core.change(|inner| inner.machine.probe_now($crate::clock::now()));
            }

            /// Replaces the connection even if it works, and dials at once: for a program whose URL or rights changed. A
            /// session continues on the new connection; a plain peer is a
            /// [fresh one](crate::client::Incoming::FreshPeer).
            pub fn reconnect(&self) {
                self.core.change(|inner| inner.machine.reconnect($crate::clock::now()));
            }

            /// Payload bytes that are kept for the peer now: accepted, and neither acknowledged nor reported.
            #[must_use]
            pub fn kept_bytes(&self) -> u64 {
                self.core.lock().machine.kept_bytes()
            }

            /// Payload bytes that a plain peer sent and the application has not received yet. In a session: 0.
            #[must_use]
            pub fn unread_bytes(&self) -> u64 {
                self.core.lock().machine.unread_bytes()
            }

            /// Whether a plain peer answers Pings; `None`: not known yet.
            #[must_use]
            pub fn answers_pings(&self) -> Option<bool> {
                self.core.lock().machine.answers_pings()
            }

            /// Waits until more messages than `above` are delivered (in a session) or have met their fate (towards a plain
            /// peer: confirmed or reported), and returns the number of the last of them. A link numbers its messages from 1.
            /// Once the client has ended this waits for ever: events report what was still kept then.
            ///
            /// # Cancel safety
            /// Safe.
            pub fn settled(&self, above: u64) -> impl Future<Output = u64> + Send + '_ {
                $crate::client::verbs::settled(&self.core, above)
            }
        }
    };
}
pub(super) use shared_verbs;

/// A close that has begun. Await it to wait until the client has ended; dropping it changes nothing.
pub struct Closing<'a> {
    pub(super) core: &'a Core,
}

impl Future for Closing<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.core.lock().poll_finished(cx)
    }
}

impl std::fmt::Debug for Closing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Closing(..)")
    }
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
            Err(error) => Poll::Ready(Err(error)),
        })
    })
}

pub(super) fn closed(core: &Core) -> impl Future<Output = ()> + Send + '_ {
    poll_fn(|cx| {
        let mut inner = core.lock();
        if inner.machine.is_closing() {
            return Poll::Ready(());
        }
        inner.wait(cx.waker());
        Poll::Pending
    })
}

pub(super) fn ended(core: &Core) -> impl Future<Output = End> + Send + '_ {
    poll_fn(|cx| {
        let mut inner = core.lock();
        if let Some(end) = inner.machine.end() {
            return Poll::Ready(end.clone());
        }
        inner.wait(cx.waker());
        Poll::Pending
    })
}

pub(super) fn settled(core: &Core, above: u64) -> impl Future<Output = u64> + Send + '_ {
    poll_fn(move |cx| {
        let mut inner = core.lock();
        if inner.machine.is_ended() {
            return Poll::Pending;
        }
        let settled = inner.machine.settled();
        if settled > above {
            return Poll::Ready(settled);
        }
        inner.wait(cx.waker());
        Poll::Pending
    })
}
