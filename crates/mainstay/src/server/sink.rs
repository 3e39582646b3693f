//! A session as a `Stream` and a `Sink`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_sink::Sink;
use mainstay_proto::session::Message;
use mainstay_proto::ws::CloseCode;

use super::peer::SessionState;
use super::session::Session;
use crate::SendError;

impl Stream for Session {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_message(cx)
    }
}

impl Sink<Message> for Session {
    type Error = SendError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let mut sending = self.core.lock().take_sending();
        if sending.is_none() {
            return Poll::Ready(Ok(()));
        }
        let polled = self.core.poll_send(&mut sending, cx, |_, _| ());
        if let Some(message) = sending {
            self.core.lock().keep_sending(message);
        }
        polled
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        match self.core.try_send(message) {
            Err(SendError::Full(message)) => {
                self.core.lock().keep_sending(message);
                Ok(())
            }
            sent => sent,
        }
    }

    /// Ready once a connection has written everything that was accepted, and once the session is over. A written message is
    /// delivered only when the client acknowledges it: await [`Session::send_tracked`].
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.as_mut().poll_ready(cx))?;
        let mut inner = self.core.lock();
        if inner.peer.is_written() || inner.peer.state() == SessionState::Closed {
            return Poll::Ready(Ok(()));
        }
        inner.wait_for_room(cx.waker());
        Poll::Pending
    }

    /// Closes the session in order, and is ready once it is over.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.as_mut().poll_ready(cx))?;
        self.close(CloseCode::NORMAL, "");
        let mut inner = self.core.lock();
        if inner.peer.state() == SessionState::Closed {
            return Poll::Ready(Ok(()));
        }
        inner.wait_for_change(cx.waker());
        Poll::Pending
    }
}
