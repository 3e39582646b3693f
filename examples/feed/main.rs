//! A market-data client of a server that speaks plain WebSocket: it logs in and subscribes on each connection, leaves a
//! feed that has gone silent, and builds its book anew after each reconnect.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay::Link;
use mainstay::client::{Event, Incoming};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("usage: feed URL")?;
    let mut link = Link::builder(&url)?
        // Written first on each connection, ahead of everything that waits.
        .greeting(async || Ok(["auth s3cret", "subscribe BTC-EUR"]))
        // A feed without a message for so long has stopped, whatever its Pongs say.
        .silence(Duration::from_secs(10))?
        // An ingress answers 404 while its service is replaced; only a bad login is final.
        .give_up(|status| status == 401 || status == 403)
        .connect_ready(Duration::from_secs(30))
        .await?;
    tokio::spawn(log(link.events()));

    let mut book = BTreeMap::new();
    while let Some(incoming) = link.recv_any().await {
        match incoming {
            Incoming::Message(message) => {
                let Some((price, amount)) = message.as_text().and_then(|line| line.split_once(' ')) else {
                    continue;
                };
                book.insert(price.to_owned(), amount.to_owned());
                println!("book: {book:?}");
            }
            // Everything before this came by the connection that is lost.
            Incoming::FreshPeer { .. } => {
                println!("book: cleared");
                book.clear();
            }
            _ => {}
        }
    }
    // The refusal is final.
    println!("end: {}", link.end().map_or_else(String::new, |end| end.to_string()));
    Ok(())
}

async fn log(events: mainstay::client::Events) {
    while let Some(event) = events.next().await {
        if let Event::Detached { why, .. } | Event::AttemptFailed { why, .. } = event {
            eprintln!("no feed: {why}");
        }
    }
}
