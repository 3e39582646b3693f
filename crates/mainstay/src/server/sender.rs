//! Sending into a session from elsewhere, and the verbs that both handles of a session have.

use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::task::Poll;

use mainstay_proto::session::Message;

use super::core::CoreRef;
use super::inner::Inner;
use super::peer::SessionState;
use crate::{Receipt, SendError};

/// Sends into a session from elsewhere. Cheap to clone; does not keep the session open.
///
/// Two senders are equal if they send into the same session.
///
/// ```no_run
/// # async fn handler(mut session: mainstay::Session) {
/// let sender = session.sender();
/// tokio::spawn(async move {
///     while sender.send("tick").await.is_ok() {
///         tokio::time::sleep(std::time::Duration::from_secs(1)).await;
///     }
/// });
/// while let Some(message) = session.recv().await {
///     println!("{message:?}");
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Sender {
    pub(super) core: CoreRef,
}

/// Defines the verbs of [`Session`](crate::Session) and [`Sender`], once.
macro_rules! shared_verbs {
    ($handle:ty) => {
        impl $handle {
            /// Sends a message; waits while the window is full. The session keeps the message until the client acknowledges
            /// it, over as many connections as that needs. Towards a plain peer it keeps the message until it is written.
            ///
            /// # Errors
            /// The session is over, or the message is larger than the client accepts: the error holds the message.
            ///
            /// # Cancel safety
            /// Safe: a message is accepted only when this returns.
            pub fn send(
                &self,
                message: impl Into<mainstay_proto::session::Message>,
            ) -> impl Future<Output = Result<(), $crate::SendError>> + Send + '_ {
                $crate::server::sender::send(&self.core, message.into())
            }

            /// As [`send`](Self::send), and returns a [`Receipt`](crate::Receipt) that settles when the fate of the message
            /// is known: delivered once the client acknowledged it, not delivered or unknown once the session is over. A
            /// plain client acknowledges nothing: there it is unknown at once.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            ///
            /// # Cancel safety
            /// Safe.
            pub fn send_tracked(
                &self,
                message: impl Into<mainstay_proto::session::Message>,
            ) -> impl Future<Output = Result<$crate::Receipt, $crate::SendError>> + Send + '_ {
                $crate::server::sender::send_tracked(&self.core, message.into())
            }

            /// As [`send`](Self::send), of `value` as JSON in a text message.
            ///
            /// # Errors
            /// The value has no form in JSON, or as [`send`](Self::send).
            ///
            /// # Cancel safety
            /// Safe.
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
            /// The window is full, the session is over, or the message is larger than the client accepts.
            pub fn try_send(
                &self,
                message: impl Into<mainstay_proto::session::Message>,
            ) -> Result<(), $crate::SendError> {
                self.core.try_send(message.into())
            }

            /// Sends a message that is not kept: it is lost if the client is away, and never replayed. For data that the
            /// next message makes worthless: cursors, prices.
            pub fn send_volatile(&self, message: impl Into<mainstay_proto::session::Message>) {
                self.core.change(|peer| peer.send_volatile(message.into()));
            }

            /// Ends the session in order: messages that were accepted before are delivered first, for as long as the client
            /// goes on acknowledging them (within 5 s each; `docs/DEFAULTS.md`). A client that is away has the resume
            /// window to come for them. From here on the session receives nothing more.
            pub fn close(&self, code: mainstay_proto::ws::CloseCode, reason: &str) {
                self.core.close(mainstay_proto::session::EndCause::Closed, code, reason);
            }

            /// Ends the session now: it receives nothing more, and messages that were not written are not written any more.
            /// A client that is connected gets code and reason.
            pub fn abort(&self, code: mainstay_proto::ws::CloseCode, reason: &str) {
                self.core.abort(code, reason);
            }

            /// Waits until the session is over: a message that is sent from then on is not delivered.
            ///
            /// # Cancel safety
            /// Safe.
            pub fn closed(&self) -> impl Future<Output = ()> + Send + '_ {
                $crate::server::sender::closed(&self.core)
            }

            /// Waits until the session leaves this server ([`Session::is_leaving`](crate::Session::is_leaving)), for a handler
            /// that waits for something else than a message. It completes for no other session.
            ///
            /// # Cancel safety
            /// Safe.
            #[cfg(feature = "cluster")]
            pub fn leaving(&self) -> impl Future<Output = ()> + Send + '_ {
                $crate::server::sender::leaving(&self.core)
            }

            /// Whether the session is over.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.state() == $crate::server::SessionState::Closed
            }

            /// Returns why the session ended, with code and reason; `None` while a handler may receive something.
            #[must_use]
            pub fn end(&self) -> Option<mainstay_proto::session::End> {
                self.core.lock().peer.end()
            }

            /// The public name of the session; `None` for a plain peer.
            #[must_use]
            pub fn id(&self) -> Option<mainstay_proto::session::message::SessionId> {
                self.core.lock().peer.id()
            }

            /// Whether a connection is attached.
            #[must_use]
            pub fn state(&self) -> $crate::server::SessionState {
                self.core.lock().peer.state()
            }

            /// Returns a handle that reports changes of the state, from now on.
            #[must_use]
            pub fn changes(&self) -> $crate::server::Changes {
                $crate::server::Changes::new(&self.core)
            }

            /// Properties of the client.
            #[must_use]
            pub fn peer(&self) -> &$crate::server::PeerInfo {
                &self.core.info
            }

            /// The smoothed round-trip time of the heartbeats on the current connection.
            #[must_use]
            pub fn rtt(&self) -> Option<std::time::Duration> {
                self.core.lock().peer.rtt()
            }

            /// How many messages were dropped because the client did not keep up; see
            /// [`drop_oldest`](crate::SessionUpgrade::drop_oldest).
            #[must_use]
            pub fn dropped(&self) -> u64 {
                self.core.lock().peer.dropped()
            }

            /// Acknowledges the `count` oldest messages that [`Session::recv`](crate::Session::recv) has returned and that are not
            /// acknowledged; see [`Session::ack`](crate::Session::ack).
            pub fn ack_oldest(&self, count: u64) {
                self.core.change(|peer| {
                    if let Some(session) = peer.session_mut() {
                        session.acknowledge_oldest($crate::clock::now(), count);
                    }
                });
            }

            /// Reports that the application leaves out `count` messages at this place of the stream, because the client does
            /// not keep up and later ones make them worthless. A client that speaks `mainstay.v1` gets a gap, as with
            /// [`drop_oldest`](crate::SessionUpgrade::drop_oldest); a plain client gets no report.
            pub fn skip(&self, count: u64) {
                self.core.change(|peer| {
                    if let Some(session) = peer.session_mut() {
                        session.skip(count);
                    }
                });
            }

            /// Reports that the application replaced the state behind the session, and the session goes on: messages from
            /// there may be missing. A client that speaks `mainstay.v1` gets an event at this place of its stream
            /// (`Event::Replaced`); a plain client gets no report.
            ///
            /// Source: `docs/PROTOCOL.md` "80 REPLACED".
            pub fn note_replaced(&self) {
                self.core.change(|peer| {
                    if let Some(session) = peer.session_mut() {
                        session.note_replaced();
                    }
                });
            }
        }
    };
}
pub(super) use shared_verbs;

shared_verbs!(Sender);

impl Sender {
    pub(super) fn new(core: &CoreRef) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// A full window drops its oldest message that was never written; the window of a plain client,
    /// to which no gap can be reported, may be full.
    pub(super) fn send_dropping_oldest(&self, message: Message) -> Result<(), SendError> {
        self.core.send_dropping_oldest(message)
    }
}

impl PartialEq for Sender {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core)
    }
}

impl Eq for Sender {}

impl Hash for Sender {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.core).hash(state);
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
}

pub(super) fn closed(core: &CoreRef) -> impl Future<Output = ()> + Send + '_ {
    poll_fn(|cx| {
        let mut inner = core.lock();
        if inner.peer.state() == SessionState::Closed {
            return Poll::Ready(());
        }
        inner.wait_for_change(cx.waker());
        Poll::Pending
    })
}

#[cfg(feature = "cluster")]
pub(super) fn leaving(core: &CoreRef) -> impl Future<Output = ()> + Send + '_ {
    poll_fn(|cx| {
        let mut inner = core.lock();
        if inner.peer.session_mut().is_some_and(|session| session.is_leaving()) {
            return Poll::Ready(());
        }
        inner.wait_for_change(cx.waker());
        Poll::Pending
    })
}

pub(super) fn send(
    core: &CoreRef,
    message: Message,
) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
    let mut sending = Some(message);
    poll_fn(move |cx| core.poll_send(&mut sending, cx, |_, _| ()))
}

pub(super) fn send_tracked(
    core: &CoreRef,
    message: Message,
) -> impl Future<Output = Result<Receipt, SendError>> + Send + '_ {
    let mut sending = Some(message);
    poll_fn(move |cx| core.poll_send(&mut sending, cx, Inner::track))
}
