//! What the peers share: two flags, a listener, a heartbeat.
//!
//! Every peer answers at `/echo` and `/broadcast`, pings each connection every interval, and ends a connection
//! that sent nothing since the Ping before.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::time::{Interval, interval_at};

/// How many messages a slow member of a room may be behind.
pub const ROOM: usize = 1024;

/// `--listen ADDRESS --interval SECONDS`
pub struct Flags {
    pub listen: String,
    pub interval: Duration,
}

impl Flags {
    pub fn read() -> Self {
        let words: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = words.iter().position(|word| word == name);
            at.and_then(|at| words.get(at + 1)).unwrap_or_else(|| panic!("{name} is missing"))
        };
        let seconds = value("--interval").parse().expect("--interval: a number of seconds");
        Self { listen: value("--listen").clone(), interval: Duration::from_secs(seconds) }
    }
}

/// The next connection, without Nagle's delay.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            return stream;
        }
    }
}

/// Ticks every interval, first after one interval.
pub fn beat(interval: Duration) -> Interval {
    interval_at(tokio::time::Instant::now() + interval, interval)
}

/// The next message of a room; never completes outside a room.
pub async fn next<T: Clone>(room: &mut Option<broadcast::Receiver<T>>) -> Option<T> {
    match room {
        None => std::future::pending().await,
        Some(room) => loop {
            match room.recv().await {
                Ok(message) => return Some(message),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        },
    }
}
