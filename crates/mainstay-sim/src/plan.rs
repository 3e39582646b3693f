//! What one seed does to the world: drawn up front, so that it can be printed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// The faults and the load of one run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed it was drawn from.
    pub seed: u64,
    /// Running clients.
    pub clients: usize,
    /// How long faults and load go on; healing follows.
    pub length: Duration,
    /// Mean time between two messages of one sender.
    pub message_every: Duration,
    /// One-way latency, and how much it varies.
    pub latency: (Duration, Duration),
    /// Heartbeat interval.
    pub heartbeat: Duration,
    /// Resume window.
    pub resume_window: Duration,
    /// How long the application takes over a message, at most.
    pub handling: Duration,
    /// The server keeps so many messages per session and drops the oldest that were never written.
    pub drops_above: Option<u64>,
    /// Mean time between two faults, per kind; `None` switches the kind off.
    pub faults: Vec<(Fault, Duration)>,
}

/// A kind of fault. Faults hit one connection, one process or the whole server, as their names say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A connection is reset; what is under way is lost.
    Reset,
    /// A connection falls silent in both directions; nobody is told.
    BlackHole,
    /// Only what the client writes is lost.
    BlackHoleUp,
    /// Only what the server writes is lost.
    BlackHoleDown,
    /// Everything stands still for a while, then arrives.
    Stall,
    /// A client's process is paused.
    PauseClient,
    /// The server's process is paused.
    PauseServer,
    /// Dials fail for a while.
    Refuse,
    /// The server is restarted and remembers nothing.
    Restart,
    /// The server sends GOAWAY to a connection.
    GoAway,
    /// The client believes that its network changed.
    Online,
}

const ALL: [Fault; 11] = [
    Fault::Reset,
    Fault::BlackHole,
    Fault::BlackHoleUp,
    Fault::BlackHoleDown,
    Fault::Stall,
    Fault::PauseClient,
    Fault::PauseServer,
    Fault::Refuse,
    Fault::Restart,
    Fault::GoAway,
    Fault::Online,
];

impl Plan {
    /// Draws the plan of a seed: one in ten has no fault at all, one in twenty has every kind.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let kinds: Vec<Fault> = match rng.random_range(0..20) {
            0 | 1 => Vec::new(),
            2 => ALL.to_vec(),
            _ => ALL.into_iter().filter(|_| rng.random_bool(0.3)).collect(),
        };
        let faults = kinds
            .into_iter()
            .map(|kind| {
                let mean = if kind == Fault::Restart { 60.0..200.0 } else { 2.0..60.0 };
                (kind, seconds(&mut rng, mean))
            })
            .collect();
        Self {
            seed,
            clients: rng.random_range(1..=3),
            length: seconds(&mut rng, 60.0..240.0),
            message_every: seconds(&mut rng, 0.05..3.0),
            latency: (seconds(&mut rng, 0.0..0.2), seconds(&mut rng, 0.0..0.3)),
            heartbeat: seconds(&mut rng, 1.0..25.0),
            resume_window: seconds(&mut rng, 5.0..120.0),
            handling: if rng.random_bool(0.3) { seconds(&mut rng, 0.0..0.5) } else { Duration::ZERO },
            faults,
            // Drawn last, so that the rest of a seed is what it was before.
            drops_above: rng.random_bool(0.2).then(|| rng.random_range(1..=8)),
        }
    }
}

fn seconds(rng: &mut SmallRng, range: std::ops::Range<f64>) -> Duration {
    // Whole milliseconds keep traces readable.
    Duration::from_millis((rng.random_range(range) * 1000.0) as u64)
}
