//! The server that is measured against its peers (`cargo xtask bench`), and the least that an echo and a room need.
//!
//! ```text
//! bench_server --listen 127.0.0.1:9000 --interval 25
//! ```
//!
//! `/echo` returns each message, `/broadcast` sends each message to everyone there. The heartbeat comes with every
//! session; a client that offers `mainstay.v1` gets a session, any other a plain WebSocket.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use mainstay::server::{Config, Sender};
use mainstay::{CloseCode, HeartbeatConfig, Message, SendError, Server, Session, SessionUpgrade};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let interval = Duration::from_secs(flag("--interval")?.parse()?);
    let config = Config::new().heartbeat(HeartbeatConfig::every(interval)?);
    let listener = TcpListener::bind(flag("--listen")?).await?;
    let app = Router::new().route("/echo", any(echo)).route("/broadcast", any(broadcast));
    mainstay::serve(listener, app.with_state(Room::default()), &Server::new(config)).await?;
    Ok(())
}

async fn echo(upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(async |mut session: Session| {
        while let Some(message) = session.recv().await {
            if session.send(message).await.is_err() {
                return;
            }
        }
    })
}

async fn broadcast(State(room): State<Room>, upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(async move |mut session: Session| {
        let place = room.enter(session.sender());
        while let Some(message) = session.recv().await {
            room.say(&message);
        }
        room.leave(place);
    })
}

/// Everyone at `/broadcast`.
#[derive(Clone, Default)]
struct Room(Arc<Mutex<Members>>);

#[derive(Default)]
struct Members {
    next: u64,
    senders: BTreeMap<u64, Sender>,
}

impl Room {
    fn enter(&self, sender: Sender) -> u64 {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.next += 1;
        let place = members.next;
        members.senders.insert(place, sender);
        place
    }

    fn leave(&self, place: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).senders.remove(&place);
    }

    fn say(&self, message: &Message) {
        for sender in self.0.lock().unwrap_or_else(PoisonError::into_inner).senders.values() {
            // No member waits for the slowest one, and each member learns of what it misses.
            if let Err(SendError::Full(_)) = sender.try_send(message.clone()) {
                sender.close(CloseCode::OVERLOADED, "too slow for this room");
            }
        }
    }
}

fn flag(name: &str) -> Result<String, String> {
    let mut words = std::env::args().skip_while(|word| word != name).skip(1);
    words.next().ok_or_else(|| format!("{name} is missing; write --listen ADDRESS --interval SECONDS"))
}
