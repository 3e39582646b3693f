//! A chat: rooms by path, the last lines of a room for everyone who enters, and presence.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Router, routing::any};
use mainstay::server::{DRAIN_WITHIN, Membership, Room, SessionState};
use mainstay::{Server, Session, SessionUpgrade};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let server = Server::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8081").await?;
    println!("listening on ws://{}", listener.local_addr()?);
    let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    mainstay::serve(listener, app(), &server).with_graceful_shutdown(stop, DRAIN_WITHIN).await
}

/// Routes `/chat/ROOM/NAME`. A real service takes the name from a login.
pub(crate) fn app() -> Router {
    let rooms: HashMap<_, _> = ["lobby", "kitchen"].map(|name| (name, ChatRoom::default())).into();
    let enter = async move |Path((room, name)): Path<(String, String)>, upgrade: SessionUpgrade| {
        let Some(room) = rooms.get(&*room).cloned() else { return StatusCode::NOT_FOUND.into_response() };
        upgrade.principal(name.clone()).on_session(|session| member(room, name, session))
    };
    Router::new().route("/chat/{room}/{name}", any(enter))
}

/// Runs for as long as the session lives, whatever becomes of its connections.
async fn member(room: ChatRoom, name: String, mut session: Session) {
    let membership = room.enter(&session);
    room.say(format!("* {name} is here"));
    let mut changes = session.changes();
    loop {
        tokio::select! {
            message = session.recv() => match message {
                Some(message) => room.say(format!("{name}: {}", message.as_text().unwrap_or("(binary)"))),
                None => break,
            },
            Some(SessionState::Parked) = changes.next() => room.say(format!("* {name} is away")),
        }
    }
    drop(membership);
    room.say(format!("* {name} left"));
}

#[derive(Clone, Default)]
struct ChatRoom {
    members: Room,
    history: Arc<Mutex<VecDeque<String>>>,
}

impl ChatRoom {
    /// Sends the history, then lets the session join; the lock keeps every line out of the gap between the two.
    fn enter(&self, session: &Session) -> Membership {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.iter().for_each(|line| drop(session.try_send(line.as_str())));
        self.members.join(session)
    }

    fn say(&self, line: String) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        self.members.send(line.as_str());
        let excess = history.len().saturating_sub(49);
        history.drain(..excess);
        history.push_back(line);
    }
}
