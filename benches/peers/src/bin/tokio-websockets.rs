//! tokio-websockets on plain TCP.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use peers::{Flags, ROOM, accept, beat, next};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_websockets::{Message, ServerBuilder};

#[tokio::main]
async fn main() {
    let flags = Flags::read();
    let listener = TcpListener::bind(&flags.listen).await.unwrap();
    let room = broadcast::channel(ROOM).0;
    loop {
        let stream = accept(&listener).await;
        tokio::spawn(serve(stream, flags.interval, room.clone()));
    }
}

async fn serve(stream: TcpStream, interval: Duration, room: broadcast::Sender<Message>) {
    let Ok((request, mut socket)) = ServerBuilder::new().accept(stream).await else { return };
    let room = (request.uri().path() == "/broadcast").then_some(room);
    let mut messages = room.as_ref().map(|room| room.subscribe());
    let (mut beat, mut alive) = (beat(interval), true);
    loop {
        let sent = tokio::select! {
            message = socket.next() => {
                alive = true;
                match (message, &room) {
                    (Some(Ok(message)), None) if message.is_text() || message.is_binary() => socket.send(message).await,
                    (Some(Ok(message)), Some(room)) if message.is_text() || message.is_binary() => {
                        let _ = room.send(message);
                        Ok(())
                    }
                    (Some(Ok(_)), _) => Ok(()),
                    (Some(Err(_)) | None, _) => return,
                }
            }
            Some(message) = next(&mut messages) => socket.send(message).await,
            _ = beat.tick() => {
                if !std::mem::take(&mut alive) {
                    return;
                }
                socket.send(Message::ping("")).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
