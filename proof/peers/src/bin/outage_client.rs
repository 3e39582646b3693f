//! The client of the outage proof (`cargo xtask test outage`): a process of its own, so that it can be frozen.
//!
//! Sends `{"id": 1}`, `{"id": 2}`, ... fifty times a second and writes one JSON line for each thing that happens:
//! `{"accepted": id}` once `send` took a message, `{"received": ...}` for each that came, `{"event", "unknown", "detail"}`
//! for each event, with how many messages a gap calls unknown. SIGUSR1 ends the sending, SIGTERM the client.

use std::error::Error;
use std::time::Duration;

use mainstay::client::Event;
use mainstay::{BackoffConfig, Client, CloseCode, Message};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

const BETWEEN_MESSAGES: Duration = Duration::from_millis(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("usage: outage_client URL")?;
    let (mut stop_sending, mut end) =
        (signal(SignalKind::user_defined1())?, signal(SignalKind::terminate())?);
    // Far quicker than the default, which would wait longer at each of a dozen outages in a minute.
    let backoff = BackoffConfig::new(Duration::from_millis(50), Duration::from_millis(500))?;
    let mut client = Client::builder(&url)?.backoff(backoff).connect();
    let (sender, events) = (client.sender(), client.events());

    let send = async {
        // Ticks missed while frozen are made up for, in one burst.
        let mut ticks = tokio::time::interval(BETWEEN_MESSAGES);
        for id in 1_u64.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stop_sending.recv() => break,
            }
            if sender.send(Message::text(json!({ "id": id }).to_string())).await.is_err() {
                break;
            }
            println!("{}", json!({ "accepted": id }));
        }
    };
    let receive = async {
        while let Some(message) = client.recv().await {
            println!("{{\"received\":{}}}", message.as_text().unwrap_or("\"binary\""));
        }
    };
    let listen = async {
        while let Some(event) = events.next().await {
            let unknown = if let Event::Gap(fate) = &event { fate.unknown - fate.delivered } else { 0 };
            let detail = format!("{event:?}");
            println!("{}", json!({ "event": name(&event), "unknown": unknown, "detail": detail }));
        }
    };
    tokio::select! {
        _ = async { tokio::join!(send, receive, listen) } => return Err("ended before it was told to".into()),
        _ = end.recv() => {}
    }
    client.close(CloseCode::NORMAL, "").await;
    Ok(())
}

/// Only what the proof counts has a name of its own.
fn name(event: &Event) -> &'static str {
    match event {
        Event::Attached { resumed: true, .. } => "resumed",
        Event::Attached { .. } => "attached",
        Event::Detached { .. } => "detached",
        Event::Gap(_) => "gap",
        Event::Replaced { .. } => "replaced",
        _ => "other",
    }
}
