//! A market-data client: `cargo run -p mainstay --example feed -- wss://feed.example/book TOKEN`.
//!
//! The server speaks plain WebSocket. It wants to be told on each connection who asks and for what; it may stop sending
//! behind a connection that lives; and after a reconnect the book is built anew.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use mainstay::client::{Event, Incoming, Proxy};
use mainstay::{CloseCode, Link};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(token)) = (arguments.next(), arguments.next()) else {
        return Err("usage: feed URL TOKEN".into());
    };
    let mut link = Link::builder(&url)?
        .proxy(Proxy::from_environment()?)
        // First on each connection, ahead of everything that was kept.
        .greeting(move || {
            let auth = format!(r#"{{"auth": "{token}"}}"#);
            async { Ok([auth, r#"{"subscribe": "book"}"#.to_owned()]) }
        })
        // A feed that says nothing for so long has stopped, whatever its Pongs say.
        .silence(Duration::from_secs(10))?
        // An ingress answers 404 while its service is replaced.
        .give_up(|status| status == 401 || status == 403)
        .connect_ready(Duration::from_secs(30))
        .await?;
    tokio::spawn(log(link.events()));
    let mut book = BTreeMap::new();
    loop {
        tokio::select! {
            incoming = link.recv_any() => match incoming {
                Some(Incoming::Message(message)) => update(&mut book, message.as_text().unwrap_or_default()),
                // What came before this belongs to the connection that is lost.
                Some(Incoming::FreshPeer { .. }) => book.clear(),
                Some(_) => {}
                None => break,
            },
            _ = tokio::signal::ctrl_c() => link.close(CloseCode::NORMAL, "").await,
        }
    }
    match link.end() {
        Some(end) if end.code != Some(CloseCode::NORMAL.into()) => Err(end.into()),
        _ => Ok(()),
    }
}

async fn log(events: mainstay::client::Events) {
    while let Some(event) = events.next().await {
        if let Event::Detached { why, next_attempt_in } | Event::AttemptFailed { why, next_attempt_in } =
            event
        {
            tracing::warn!(%why, ?next_attempt_in, "no feed");
        }
    }
}

/// Stands for the application: `PRICE AMOUNT`.
fn update(book: &mut BTreeMap<String, String>, line: &str) {
    if let Some((price, amount)) = line.split_once(' ') {
        book.insert(price.to_owned(), amount.to_owned());
    }
}
