//! The server behind the gateways: an echo by tokio-websockets that answers all messages of one read with one write, so that it
//! does not slow down a gateway that does the same.

use futures_util::{FutureExt, SinkExt, StreamExt};
use peers::{Flags, accept, beat};
use tokio::net::{TcpListener, TcpStream};
use tokio_websockets::{Message, ServerBuilder};

#[tokio::main]
async fn main() {
    let flags = Flags::read();
    let listener = TcpListener::bind(&flags.listen).await.unwrap();
    loop {
        let stream = accept(&listener).await;
        tokio::spawn(serve(stream, flags.interval));
    }
}

async fn serve(stream: TcpStream, interval: std::time::Duration) {
    let Ok((_, mut socket)) = ServerBuilder::new().accept(stream).await else { return };
    let (mut beat, mut alive) = (beat(interval), true);
    loop {
        tokio::select! {
            message = socket.next() => {
                let mut next = Some(message);
                while let Some(message) = next {
                    let Some(Ok(message)) = message else { return };
                    if (message.is_text() || message.is_binary()) && socket.feed(message).await.is_err() {
                        return;
                    }
                    next = socket.next().now_or_never();
                }
                alive = true;
            }
            _ = beat.tick() => {
                if !std::mem::take(&mut alive) || socket.feed(Message::ping("")).await.is_err() {
                    return;
                }
            }
        }
        if socket.flush().await.is_err() {
            return;
        }
    }
}
