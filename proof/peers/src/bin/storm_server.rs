//! The server of the storm proof (`cargo xtask scale`): echoes every message and leaves a record that
//! outlives it.
//!
//! ```text
//! storm_server --listen 127.0.0.1:9000 --record FILE
//! ```
//!
//! A message is appended to the record, then confirmed, then sent back: whatever a client was told of a
//! message can be held against what every process that served it had in its hands.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use mainstay::{CloseCode, Server, Session, SessionUpgrade};
use tokio::net::TcpSocket;

/// Connections that wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let record = Arc::new(OpenOptions::new().create(true).append(true).open(flag("--record")?)?);
    // Everybody comes at once: who finds the queue full is not heard until TCP asks again, a second later or
    // more.
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(flag("--listen")?.parse()?)?;
    let listener = socket.listen(BACKLOG)?;
    println!("listening on ws://{}", listener.local_addr()?);
    let mainstay = Server::default();
    let storm = any(async move |upgrade: SessionUpgrade| {
        upgrade.manual_ack().on_session(move |session| echo(session, record))
    });
    mainstay::serve(listener, Router::new().fallback(storm).with_state(mainstay.clone()), &mainstay).await?;
    Ok(())
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

fn flag(name: &str) -> Result<String, String> {
    let mut words = std::env::args().skip_while(|word| word != name).skip(1);
    words.next().ok_or_else(|| format!("{name} is missing; write --listen ADDRESS --record FILE"))
}
