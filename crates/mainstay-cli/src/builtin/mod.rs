//! The built-in backend, for trying the gateway without one, and a page that shows what a connection does.

mod page;
mod pulse;
mod room;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::routing::{any, get};
use mainstay::{Session, SessionUpgrade};

use self::room::Room;

/// Builds the routes: `/` is the page and `/pulse` its backend; `/echo` returns each message, `/broadcast` sends each message
/// to every client of that path. `movable`: sessions continue at another node when this one ends.
pub(crate) fn router(movable: bool) -> Router {
    let (page, clock) = (page::Page::new(), pulse::Clock::start());
    let options = move |upgrade: SessionUpgrade| if movable { upgrade.movable() } else { upgrade };
    let room = Room::default();
    let pulse =
        move |upgrade| async move { options(upgrade).on_session(move |session| pulse::run(session, clock)) };
    let echo = move |upgrade| async move { options(upgrade).on_session(echo) };
    let broadcast =
        move |upgrade| async move { options(upgrade).on_session(|session| broadcast(session, room)) };
    Router::new()
        .route("/", get(move |headers, query| std::future::ready(page.response(&headers, query))))
        .route("/pulse", any(pulse))
        .route("/echo", any(echo))
        .route("/broadcast", any(broadcast))
}

async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            return;
        }
    }
}

async fn broadcast(mut session: Session, room: Room) {
    let id = room.join(session.sender());
    while let Some(message) = session.recv().await {
        room.send(&message);
    }
    room.leave(id);
}
