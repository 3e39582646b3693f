//! A chat: rooms by path, names by query, presence, and a shutdown that says goodbye.
//!
//! ```text
//! cargo run -p mainstay --example chat
//! mainstay connect 'ws://127.0.0.1:8080/chat/lobby?name=ada'
//! ```
//!
//! A member that loses its connection stays in the room and gets what was said meanwhile; the others see that it is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{FromRef, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use mainstay::server::{DRAIN_WITHIN, Membership, Room, SessionState};
use mainstay::{CloseCode, Server, Session, SessionUpgrade};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let chat = Chat::default();
    let (mainstay, listener) =
        (chat.mainstay.clone(), tokio::net::TcpListener::bind("127.0.0.1:8080").await?);
    mainstay::serve(listener, app(chat), &mainstay).with_graceful_shutdown(asked_to_end(), DRAIN_WITHIN).await
}

/// The application's state. [`SessionUpgrade`] takes its [`Server`] from there.
#[derive(Clone, Default)]
pub struct Chat {
    /// The owner of all sessions.
    pub mainstay: Server,
    rooms: Arc<Mutex<HashMap<String, Room>>>,
}

impl FromRef<Chat> for Server {
    fn from_ref(chat: &Chat) -> Self {
        chat.mainstay.clone()
    }
}

/// All of it, to be served or tested.
pub fn app(chat: Chat) -> Router {
    Router::new().route("/chat/{room}", any(enter)).with_state(chat)
}

#[derive(serde::Deserialize)]
struct Greeting {
    name: String,
}

async fn enter(
    State(chat): State<Chat>,
    Path(room): Path<String>,
    Query(Greeting { name }): Query<Greeting>,
    upgrade: SessionUpgrade,
) -> Response {
    if name.is_empty() || name.len() > 32 || room.len() > 32 {
        return (StatusCode::BAD_REQUEST, "names have 1 to 32 bytes\n").into_response();
    }
    // A session may be resumed by its own member only. A real service takes the name from a login.
    upgrade.principal(name.clone()).on_session(move |session| chat.member(room, name, session))
}

impl Chat {
    async fn member(self, room_name: String, name: String, mut session: Session) {
        let membership = self.join(&room_name, &session);
        let room = membership.room().clone();
        room.send(format!("* {name} is here"));
        let mut changes = session.changes();
        loop {
            tokio::select! {
                message = session.recv() => match message {
                    Some(message) => match message.as_text() {
                        Some("/leave") => session.close(CloseCode::NORMAL, "goodbye"),
                        Some(text) => drop(room.send(format!("{name}: {text}"))),
                        None => session.close(CloseCode::UNSUPPORTED, "this chat is text"),
                    },
                    None => break,
                },
                Some(SessionState::Parked) = changes.next() => {
                    membership.send_to_others(format!("* {name} is away"));
                }
            }
        }
        drop(membership);
        let cause = session.end().map_or("gone", |end| end.cause.as_str());
        room.send(format!("* {name} left ({cause})"));
        self.close_if_empty(&room_name);
    }

    /// Joins under the lock that [`close_if_empty`](Self::close_if_empty) takes: nobody enters a room that is gone.
    fn join(&self, name: &str, session: &Session) -> Membership {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.entry(name.to_owned()).or_default().join(session)
    }

    fn close_if_empty(&self, name: &str) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if rooms.get(name).is_some_and(Room::is_empty) {
            rooms.remove(name);
        }
    }
}

/// Ctrl-C, or what a supervisor sends.
async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
