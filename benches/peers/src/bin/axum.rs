//! axum's WebSockets (tungstenite) with their defaults; `--read-buffer BYTES` sets the size of their read buffer.

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::any;
use axum::serve::ListenerExt;
use bytes::Bytes;
use peers::{Flags, ROOM, beat, next};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::broadcast;

#[derive(Clone)]
struct App {
    interval: Duration,
    read_buffer: Option<usize>,
    room: broadcast::Sender<Message>,
}

#[tokio::main]
async fn main() {
    let flags = Flags::read();
    let words: Vec<String> = std::env::args().collect();
    let read_buffer = words.iter().position(|word| word == "--read-buffer").map(|at| words[at + 1].parse().unwrap());
    let app = App { interval: flags.interval, read_buffer, room: broadcast::channel(ROOM).0 };
    let router = Router::new().route("/echo", any(echo)).route("/broadcast", any(room)).with_state(app);
    let listener = TcpListener::bind(&flags.listen).await.unwrap().tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await.unwrap();
}

async fn echo(State(app): State<App>, upgrade: WebSocketUpgrade) -> Response {
    sized(&app, upgrade).on_upgrade(move |socket| serve(socket, app.interval, None))
}

async fn room(State(app): State<App>, upgrade: WebSocketUpgrade) -> Response {
    sized(&app, upgrade).on_upgrade(move |socket| serve(socket, app.interval, Some(app.room)))
}

fn sized(app: &App, upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    match app.read_buffer {
        Some(size) => upgrade.read_buffer_size(size),
        None => upgrade,
    }
}

async fn serve(mut socket: WebSocket, interval: Duration, room: Option<broadcast::Sender<Message>>) {
    let mut messages = room.as_ref().map(|room| room.subscribe());
    let (mut beat, mut alive) = (beat(interval), true);
    loop {
        let sent = tokio::select! {
            message = socket.recv() => {
                alive = true;
                match (message, &room) {
                    (Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))), None) => socket.send(message).await,
                    (Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))), Some(room)) => {
                        let _ = room.send(message);
                        Ok(())
                    }
                    (Some(Ok(Message::Ping(_) | Message::Pong(_))), _) => Ok(()),
                    // After a Close the stream must be read to its end, so that the answer leaves.
                    (Some(Ok(Message::Close(_))), _) => Ok(()),
                    (Some(Err(_)) | None, _) => return,
                }
            }
            Some(message) = next(&mut messages) => socket.send(message).await,
            _ = beat.tick() => {
                if !std::mem::take(&mut alive) {
                    return;
                }
                socket.send(Message::Ping(Bytes::new())).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
