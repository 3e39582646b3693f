//! A deploy without a hole: the new process listens on the same port, then the old one gets SIGTERM, asks its clients to
//! move and ends.

use axum::{Router, routing::any};
use mainstay::server::DRAIN_WITHIN;
use mainstay::{Server, Session, SessionUpgrade};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let version = std::env::args().nth(1).ok_or("usage: deploy VERSION")?;
    let server = Server::default();
    let reply = version.clone();
    let route = any(async |upgrade: SessionUpgrade| upgrade.on_session(|session| echo(reply, session)));
    let app = Router::new().route("/", route);

    // Two processes may listen on one port: the kernel gives a connection to one of them.
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(([127, 0, 0, 1], 8084).into())?;
    let listener = socket.listen(1024)?;
    println!("{version}: listening");

    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move { terminate.recv().await.unwrap_or_default() };
    // At SIGTERM: accept no more, ask the clients to come back, wait for their handlers, 5 s at most.
    mainstay::serve(listener, app, &server).with_graceful_shutdown(stop, DRAIN_WITHIN).await?;
    println!("{version}: drained");
    Ok(())
}

async fn echo(version: String, mut session: Session) {
    while let Some(message) = session.recv().await {
        session.send(format!("{version}: {}", message.as_text().unwrap_or_default())).await.ok();
    }
    // Runs when the session ends, also in a drain: the place for cleanup.
}
