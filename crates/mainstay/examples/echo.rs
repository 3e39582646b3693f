//! The example of the README: an axum server whose handler belongs to the session.

use axum::{Router, response::Response, routing::any};
use mainstay::{Server, SessionUpgrade};

async fn echo(upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(|mut session| async move {
        while let Some(message) = session.recv().await {
            if session.send(message).await.is_err() {
                break;
            }
        }
    })
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let app = Router::new().route("/echo", any(echo));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    mainstay::serve(listener, app, &Server::default()).await
}
