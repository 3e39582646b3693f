//! The built-in backend: something to talk to without one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{FromRef, State};
use axum::response::Response;
use axum::routing::any;
use mainstay::server::{Sender, Session};
use mainstay::{CloseCode, Mainstay, Message, SendError, SessionUpgrade};

/// `/echo` returns each message, `/broadcast` sends each message to everyone connected to that path.
pub(crate) fn router(mainstay: Mainstay) -> Router {
    let backend = Backend { mainstay, room: Room::default() };
    Router::new()
        .route("/", any(|| async { "mainstay: WebSockets at /echo and /broadcast\n" }))
        .route("/echo", any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) }))
        .route("/broadcast", any(broadcast))
        .with_state(backend)
}

#[derive(Clone)]
struct Backend {
    mainstay: Mainstay,
    room: Room,
}

impl FromRef<Backend> for Mainstay {
    fn from_ref(backend: &Backend) -> Self {
        backend.mainstay.clone()
    }
}

async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            return;
        }
    }
}

async fn broadcast(State(backend): State<Backend>, upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(move |mut session| async move {
        let id = backend.room.enter(session.sender());
        while let Some(message) = session.recv().await {
            backend.room.say(&message);
        }
        backend.room.leave(id);
    })
}

/// Everyone connected to one path.
#[derive(Clone, Default)]
struct Room {
    members: Arc<Mutex<BTreeMap<u64, Sender>>>,
    next: Arc<AtomicU64>,
}

impl Room {
    fn enter(&self, sender: Sender) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        self.members.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        id
    }

    fn leave(&self, id: u64) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn say(&self, message: &Message) {
        for sender in self.members.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // Nobody waits for the slowest, and nobody misses a message unawares.
            if let Err(SendError::Full(_)) = sender.try_send(message.clone()) {
                sender.close(CloseCode::OVERLOADED, "too slow for this room");
            }
        }
    }
}
