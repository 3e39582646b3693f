//! A client as a `Stream` and a `Sink`.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_sink::Sink;
use mainstay_proto::session::Message;
use mainstay_proto::ws::CloseCode;

use super::ClientHandle;
use crate::SendError;

impl<P> Stream for ClientHandle<P> {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_recv(cx)
    }
}

impl<P> Sink<Message> for ClientHandle<P> {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Self { core, sending, .. } = &mut *self;
        core.poll_send(sending, cx.waker()).map_ok(drop)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        let Self { core, sending, .. } = &mut *self;
        core.change(|inner| match inner.send(message) {
            Err(SendError::Full(message)) if inner.machine.waits_when_full() => {
                *sending = Some(message);
                Ok(())
            }
            sent => sent.map(drop),
        })
    }

    /// Ready when every message that was accepted has left this process. A message that has left is not delivered yet: await
    /// [`ClientHandle::send_tracked`], or close. Ready also once the client has ended; then
    /// [`ClientHandle::take_undelivered`] returns the messages that did not leave.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        std::task::ready!(self.as_mut().poll_ready(cx))?;
        self.core.change(|inner| inner.poll_flushed(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        std::task::ready!(self.as_mut().poll_ready(cx))?;
        self.core.close(CloseCode::NORMAL, "");
        self.core.lock().poll_finished(cx).map(Ok)
    }
}
