//! Measures what a relay between two nodes costs (`cargo xtask scale`, `cargo xtask test memory`).
//!
//! ```text
//! relay_client --first ws://OWNER/ --then ws://ENTRY/ --clients 100 --reconnects 500 --every 0.01 --messages 10
//! ```
//!
//! All clients begin at `--first`. Then each of them replaces its connection by one to `--then`, and goes on doing so, one
//! client after the other, `--reconnects` times in all: the time from the dial to WELCOME is measured. Then each client sends
//! a message each `--every` seconds, for `--messages` seconds, which the server must return. With `--every 0` no message is
//! sent, and the program waits for SIGTERM.
//!
//! Prints one JSON line for each part: `{"attached"}` once all are at `--then`, `{"welcome_us"}` with percentiles,
//! `{"sending"}`, `{"returned"}` with the number of messages that came back.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mainstay::client::{Event, Request};
use mainstay::{Client, CloseCode, Message};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// How long an attach or the return of a message may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Replaced one after the other, so that they do not wait for each other.
const BETWEEN_RECONNECTS: Duration = Duration::from_millis(2);
const SIZE: usize = 100;

const USAGE: &str = "usage: relay_client --first URL --then URL --clients COUNT --reconnects COUNT --every SECONDS --messages SECONDS";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flag = |name: &str| std::env::args().skip_while(|word| word != name).nth(1).ok_or(USAGE);
    let urls = [flag("--first")?, flag("--then")?];
    let (count, reconnects): (usize, usize) = (flag("--clients")?.parse()?, flag("--reconnects")?.parse()?);
    let every = Duration::try_from_secs_f64(flag("--every")?.parse()?)?;
    let messages = Duration::try_from_secs_f64(flag("--messages")?.parse()?)?;
    let mut end = signal(SignalKind::terminate())?;
    let is_moved = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..count {
        let (urls, is_moved) = (urls.clone(), Arc::clone(&is_moved));
        let builder = Client::builder(&urls[0])?.request(move || {
            let url = urls[usize::from(is_moved.load(Relaxed))].clone();
            async move { Ok(Request::default().url(url.parse()?)) }
        });
        let client = builder.connect();
        attached(&client).await?;
        clients.push(client);
    }
    is_moved.store(true, Relaxed);
    for client in &mut clients {
        reconnect(client).await?;
    }
    println!("{}", json!({ "attached": clients.len() }));
    println!("{}", json!({ "welcome_us": measure_welcomes(&mut clients, reconnects).await? }));
    if every.is_zero() {
        end.recv().await;
        return Ok(());
    }
    println!("{}", json!({ "sending": true }));
    println!("{}", json!({ "returned": exchange(clients, every, messages).await? }));
    end.recv().await;
    Ok(())
}

/// Waits for the next attach.
async fn attached(client: &Client) -> Result<(), Box<dyn Error>> {
    let events = client.events();
    let wait = async {
        while let Some(event) = events.next().await {
            match event {
                Event::Attached { .. } => return Ok(()),
                Event::Gap(_) => return Err("a session was lost".into()),
                _ => {}
            }
        }
        Err("a client ended".into())
    };
    timeout(LIMIT, wait).await.map_err(|_| "a client did not attach")?
}

/// Replaces a client's connection. Returns how long that took, from the dial to WELCOME. A message goes there and back first: a
/// client gives up a session whose connections bring nothing.
async fn reconnect(client: &mut Client) -> Result<Duration, Box<dyn Error>> {
    client.send(Message::binary(vec![b'm'; SIZE])).await?;
    timeout(LIMIT, client.recv()).await?;
    let started = Instant::now();
    client.reconnect();
    attached(client).await?;
    Ok(started.elapsed())
}

async fn measure_welcomes(clients: &mut [Client], count: usize) -> Result<serde_json::Value, Box<dyn Error>> {
    let mut found = Vec::new();
    for number in 0..count {
        let Some(client) = clients.get_mut(number % clients.len()) else { break };
        found.push(reconnect(client).await?.as_micros());
        sleep(BETWEEN_RECONNECTS).await;
    }
    found.sort_unstable();
    let within = |percent: usize| found.get((found.len() * percent / 100).min(found.len().saturating_sub(1)));
    Ok(json!({ "count": found.len(), "median": within(50), "p90": within(90), "p99": within(99) }))
}

/// Sends, and waits until everything is back. Returns how many messages came back.
async fn exchange(clients: Vec<Client>, every: Duration, duration: Duration) -> Result<u64, Box<dyn Error>> {
    let returned = Arc::new(AtomicU64::new(0));
    let mut lives = JoinSet::new();
    for mut client in clients {
        let returned = Arc::clone(&returned);
        lives.spawn(async move {
            let (mut ticks, started) = (interval(every), Instant::now());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (mut sent, mut back) = (0_u64, 0_u64);
            while started.elapsed() < duration || back < sent {
                tokio::select! {
                    Some(_) = client.recv() => back += 1,
                    _ = ticks.tick(), if started.elapsed() < duration => {
                        if client.send(Message::binary(vec![b'm'; SIZE])).await.is_err() {
                            break;
                        }
                        sent += 1;
                    }
                    else => break,
                }
            }
            returned.fetch_add(back, Relaxed);
            client.close(CloseCode::NORMAL, "").await;
        });
    }
    timeout(duration + LIMIT, lives.join_all()).await.map_err(|_| "messages did not come back")?;
    Ok(returned.load(Relaxed))
}
