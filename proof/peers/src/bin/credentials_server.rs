//! An echo server that asks who is there: credentials inside the session protocol, and their renewal.
//!
//! ```text
//! credentials_server --listen 127.0.0.1:9000
//! ```
//!
//! Credentials are a name and a number, `alice/7`, and good for one use: a number opens nothing once it, or a
//! higher one of the same name, was seen. They stand for tokens that expire. The name is the principal, so
//! no client resumes a session of another principal.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use mainstay::server::AuthError;
use mainstay::{Server, Session, SessionUpgrade};
use tokio::net::TcpListener;

/// The highest number seen of each name.
type Seen = Arc<Mutex<HashMap<String, u64>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(flag("--listen")?).await?;
    println!("listening on ws://{}", listener.local_addr()?);
    let mainstay = Server::default();
    let seen = Seen::default();
    let door = any(async move |upgrade: SessionUpgrade| {
        let upgrade = upgrade.authenticate(move |credentials| {
            let verdict = judge(&seen, credentials);
            async move { verdict }
        });
        upgrade.on_session(echo)
    });
    mainstay::serve(listener, Router::new().fallback(door).with_state(mainstay.clone()), &mainstay).await?;
    Ok(())
}

/// The principal of these credentials. A client without credentials is refused like one with wrong ones.
fn judge(seen: &Seen, credentials: Option<Bytes>) -> Result<String, AuthError> {
    let credentials = credentials.ok_or(AuthError::Refused)?;
    let text = std::str::from_utf8(&credentials).map_err(|_| AuthError::Refused)?;
    let (name, number) = text.split_once('/').ok_or(AuthError::Refused)?;
    let number: u64 = number.parse().map_err(|_| AuthError::Refused)?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let highest = seen.entry(name.to_owned()).or_default();
    if number <= *highest {
        return Err(AuthError::Refused);
    }
    *highest = number;
    Ok(name.to_owned())
}

async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            return;
        }
    }
}

fn flag(name: &str) -> Result<String, String> {
    let mut words = std::env::args().skip_while(|word| word != name).skip(1);
    words.next().ok_or_else(|| format!("{name} is missing; write --listen ADDRESS"))
}
