//! A handler that outlives its process. What it saved, and the messages that its client has not acknowledged, reach the
//! next process through a file.

use axum::{Router, routing::any};
use mainstay::cluster::ClusterConfig;
use mainstay::server::{Config, DRAIN_WITHIN};
use mainstay::{Server, Session, SessionUpgrade};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: movable FOLDER")?;
    // With an engine instead, `ClusterConfig::new(Engine::parse("redis://...")?)`, sessions move between machines.
    let server = Server::new(Config::new().cluster(ClusterConfig::state_dir(folder)));
    let route = any(async |upgrade: SessionUpgrade| upgrade.movable().on_session(count));
    let listener = TcpListener::bind("127.0.0.1:8085").await?;
    println!("listening");

    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move { terminate.recv().await.unwrap_or_default() };
    let app = Router::new().route("/", route);
    mainstay::serve(listener, app, &server).with_graceful_shutdown(stop, DRAIN_WITHIN).await?;
    Ok(())
}

/// Numbers the messages, over any number of processes.
async fn count(mut session: Session) {
    let saved = session.restored().and_then(|bytes| bytes.as_ref().try_into().ok());
    let mut count = saved.map_or(0, u64::from_be_bytes);
    while let Some(message) = session.recv().await {
        count += 1;
        session.save(count.to_be_bytes().to_vec());
        session.send(format!("{count}: {}", message.as_text().unwrap_or_default())).await.ok();
    }
    // The session is over, or it leaves this process (`is_leaving`): a handler returns within 5 s.
}
