//! The server of the storm proof (`cargo xtask scale`): echoes every message and leaves a record that
//! outlives it.
//!
//! ```text
//! storm_server --listen 127.0.0.1:9000 --record FILE [--cluster URL | --state-dir FOLDER] [--movable]
//! ```
//!
//! A message is appended to the record, then confirmed, then sent back: whatever a client was told of a
//! message can be held against what every process that served it had in its hands. SIGTERM drains.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::cluster::{ClusterConfig, Engine};
use mainstay::server::Config;
use mainstay::{CloseCode, Server, Session, SessionUpgrade};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long a drain may take, as for `mainstay serve`.
const DRAIN: Duration = Duration::from_secs(5);

const USAGE: &str =
    "usage: storm_server --listen ADDRESS --record FILE [--cluster URL | --state-dir FOLDER] [--movable]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let record = Arc::new(OpenOptions::new().create(true).append(true).open(flag("--record").ok_or(USAGE)?)?);
    let listener = TcpListener::bind(flag("--listen").ok_or(USAGE)?).await?;
    let address = listener.local_addr()?;
    let mainstay = Server::new(config()?);
    let is_movable = std::env::args().any(|word| word == "--movable");
    let storm = any(async move |upgrade: SessionUpgrade| {
        let upgrade = if is_movable { upgrade.movable() } else { upgrade };
        upgrade.manual_ack().on_session(move |session| echo(session, record))
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let signal = async move {
        terminate.recv().await;
    };
    let app = Router::new().fallback(storm).with_state(mainstay.clone());
    let serving = mainstay::serve(listener, app, &mainstay).with_graceful_shutdown(signal, DRAIN);
    println!("listening on ws://{address}");
    serving.await?;
    Ok(())
}

fn config() -> Result<Config, Box<dyn Error>> {
    let cluster = match (flag("--cluster"), flag("--state-dir")) {
        (Some(url), _) => ClusterConfig::new(Engine::parse(&url)?),
        (None, Some(folder)) => ClusterConfig::state_dir(folder),
        (None, None) => return Ok(Config::new()),
    };
    Ok(Config::new().cluster(cluster))
}

async fn echo(mut session: Session, record: Arc<File>) {
    while let Some(message) = session.recv().await {
        let line = format!("{}\n", message.as_text().unwrap_or("binary"));
        // One write of a file that is open for appending: lines of different sessions do not mix.
        if record.as_ref().write_all(line.as_bytes()).is_err() {
            return session.close(CloseCode::INTERNAL_ERROR, "the record cannot be written");
        }
        session.ack();
        if session.send(message).await.is_err() {
            return;
        }
    }
}

fn flag(name: &str) -> Option<String> {
    std::env::args().skip_while(|word| word != name).nth(1)
}
