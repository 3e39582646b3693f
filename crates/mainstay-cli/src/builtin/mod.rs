//! The built-in backend, for trying the gateway without one, and a page that shows what a connection does.

mod page;
mod pulse;
mod room;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{any, get};
use mainstay::{Session, SessionUpgrade};

use self::room::Room;

/// Builds the routes: `/` is the page and `/pulse` its backend; `/echo` returns each message, `/broadcast` sends each message
/// to every client of that path.
pub(crate) fn router() -> Router {
    let (page, clock) = (page::Page::new(), pulse::Clock::start());
    Router::new()
        .route("/", get(move |headers, query| std::future::ready(page.response(&headers, query))))
        .route("/pulse", any(move |upgrade: SessionUpgrade| pulse(upgrade, clock)))
        .route("/echo", any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) }))
        .route("/broadcast", any(broadcast))
        .with_state(Room::default())
}

async fn pulse(upgrade: SessionUpgrade, clock: pulse::Clock) -> Response {
    upgrade.on_session(move |session| pulse::run(session, clock))
}

async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            return;
        }
    }
}

async fn broadcast(State(room): State<Room>, upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(move |mut session| async move {
        let id = room.join(session.sender());
        while let Some(message) = session.recv().await {
            room.send(&message);
        }
        room.leave(id);
    })
}
