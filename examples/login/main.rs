//! Login with tokens that expire: a fresh token for each attempt, and a new one on the live connection.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::{Router, routing::any};
use mainstay::client::Request;
use mainstay::server::AuthError;
use mainstay::{Client, Message, Server, SessionUpgrade};

/// The newest token that was issued; the server accepts no older one.
static NEWEST: AtomicU64 = AtomicU64::new(0);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::default();
    let app = Router::new().route("/me", any(me));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}/me", listener.local_addr()?);
    tokio::spawn(mainstay::serve(listener, app, &server).into_future());

    // The client asks for a token before each attempt.
    let mut client = Client::builder(&url)?
        .request(async || {
            let mut request = Request::default();
            request.credentials = Some(issue_token().into());
            Ok(request)
        })
        .connect();
    client.send("who am I?").await?;
    print(client.recv().await);
    // The client renews the token before it expires; the connection stays.
    client.authenticate(issue_token()).await?;
    // The connection is replaced: the session goes on, and its owner proves itself again.
    client.reconnect();
    client.send("and now?").await?;
    print(client.recv().await);

    // An expired token opens nothing. The client does not try again: it would be refused again.
    let refused = Client::builder(&url)?.credentials("ada 1").connect_once().await;
    println!("client: {}", refused.map_or_else(|error| error.to_string(), |_| "let in".into()));
    Ok(())
}

fn print(message: Option<Message>) {
    println!("client: {}", message.as_ref().and_then(Message::as_text).unwrap_or("the session has ended"));
}

async fn me(upgrade: SessionUpgrade) -> axum::response::Response {
    upgrade.authenticate(async |token| verify(&token.ok_or(AuthError::Refused)?)).on_session(
        |mut session| async move {
            while session.recv().await.is_some() {
                session.send("you are ada").await.ok();
            }
        },
    )
}

/// Returns the principal: only the same principal resumes the session.
fn verify(token: &[u8]) -> Result<&'static str, AuthError> {
    let number =
        token.strip_prefix(b"ada ").and_then(|number| str::from_utf8(number).ok()?.parse::<u64>().ok());
    let verdict =
        if number == Some(NEWEST.load(Ordering::Relaxed)) { Ok("ada") } else { Err(AuthError::Refused) };
    println!(
        "server: {}: {}",
        String::from_utf8_lossy(token),
        if verdict.is_ok() { "accepted" } else { "refused" }
    );
    verdict
}

/// Stands for the login service.
fn issue_token() -> String {
    format!("ada {}", NEWEST.fetch_add(1, Ordering::Relaxed) + 1)
}
