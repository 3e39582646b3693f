//! What one seed does to the world: drawn up front, so that it can be printed.

use std::time::Duration;

use mainstay_proto::session::Window;
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
    /// The longest message, in bytes after its head.
    pub longest: usize,
    /// What either end keeps and accepts; `None`: the defaults.
    pub windows: Option<Window>,
    /// One-way latency, and how much it varies.
    pub latency: (Duration, Duration),
    /// How many bytes a socket takes that the other end has not read.
    pub socket: usize,
    /// Heartbeat interval.
    pub heartbeat: Duration,
    /// Resume window.
    pub resume_window: Duration,
    /// How long the application takes over a message, at most.
    pub handling: Duration,
    /// The server keeps so many messages per session and drops the oldest that were never written.
    pub drops_above: Option<u64>,
    /// The server's application confirms what it was handed, a while later.
    pub manual: bool,
    /// Both ends send messages outside the stream.
    pub volatile: bool,
    /// The server judges credentials, which takes so long at most.
    pub judged_within: Option<Duration>,
    /// As many sessions as the server may have above one for each client.
    pub spare_room: Option<usize>,
    /// As many tombstones as the server keeps.
    pub tombstones: Option<usize>,
    /// Mean time between two faults, per kind.
    pub faults: Vec<(Fault, Duration)>,
}

/// A kind of fault. Faults hit one connection, one process or the whole server, as their names say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// The socket at one end of a connection takes nothing for a while.
    Jam,
    /// The socket at one end of a connection takes a few bytes at a time for a while.
    Trickle,
    /// A client's process is paused; what arrives lies ready when it goes on.
    PauseClient,
    /// The server's process is paused.
    PauseServer,
    /// A client's machine sleeps; what was sent to it arrives a little after it wakes.
    SleepClient,
    /// The server's machine sleeps.
    SleepServer,
    /// A client's process dies, and its machine perhaps with it; a new instance follows.
    Crash,
    /// A client's application ends its session; a new instance follows.
    Leave,
    /// The server's application ends a session; a new instance follows.
    End,
    /// Dials fail for a while.
    Refuse,
    /// The server is restarted and remembers nothing.
    Restart,
    /// The server sends GOAWAY to everyone.
    GoAway,
    /// The client believes that its network changed.
    Online,
    /// A client presents new credentials: good ones, somebody else's or bad ones.
    Credentials,
    /// Nobody judges credentials for a while.
    NoJudge,
    /// A client's application takes nothing for a while, and then its process dies: what was on its way to it fills every
    /// queue.
    StopReading,
    /// What stands behind the server loses its state: a session is renewed.
    Renew,
    /// What stands behind the server is replaced, and the sessions go on.
    Replace,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 23] = [
        Self::Reset,
        Self::BlackHole,
        Self::BlackHoleUp,
        Self::BlackHoleDown,
        Self::Stall,
        Self::Jam,
        Self::Trickle,
        Self::PauseClient,
        Self::PauseServer,
        Self::SleepClient,
        Self::SleepServer,
        Self::Crash,
        Self::Leave,
        Self::End,
        Self::Refuse,
        Self::Restart,
        Self::GoAway,
        Self::Online,
        Self::Credentials,
        Self::NoJudge,
        Self::StopReading,
        Self::Renew,
        Self::Replace,
    ];

    /// What costs somebody a session is rare, or sessions would never grow old.
    fn mean(self, rng: &mut SmallRng) -> Duration {
        match self {
            Self::Restart | Self::Crash | Self::Leave | Self::End | Self::StopReading | Self::Renew => {
                seconds(rng, 30.0..200.0)
            }
            _ => seconds(rng, 2.0..60.0),
        }
    }
}

/// What a socket holds in most seeds: the bound that the server sets on the kernel.
pub(crate) const WIDE: usize = 128 * 1024;

impl Plan {
    /// Draws the plan of a seed: one in ten has no fault at all, one in twenty has every kind.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let kinds: Vec<Fault> = match rng.random_range(0..20) {
            0 | 1 => Vec::new(),
            2 => Fault::ALL.to_vec(),
            _ => Fault::ALL.into_iter().filter(|_| rng.random_bool(0.25)).collect(),
        };
        let faults = kinds.into_iter().map(|kind| (kind, kind.mean(&mut rng))).collect();
        let longest = if rng.random_bool(0.3) { rng.random_range(1..4_000) } else { 0 };
        // Large messages behind default windows would take longer than healing does.
        let narrow = longest > 0 || rng.random_bool(0.2);
        let windows = narrow
            .then(|| Window { messages: rng.random_range(1..=40), bytes: rng.random_range(64..16_384) });
        Self {
            seed,
            clients: rng.random_range(1..=3),
            length: seconds(&mut rng, 60.0..240.0),
            message_every: seconds(&mut rng, 0.05..3.0),
            longest,
            windows,
            latency: (seconds(&mut rng, 0.0..0.2), seconds(&mut rng, 0.0..0.3)),
            socket: if rng.random_bool(0.3) { rng.random_range(2_000..20_000) } else { WIDE },
            heartbeat: seconds(&mut rng, 1.0..25.0),
            resume_window: seconds(&mut rng, 5.0..120.0),
            handling: if rng.random_bool(0.3) { seconds(&mut rng, 0.0..0.5) } else { Duration::ZERO },
            drops_above: rng.random_bool(0.2).then(|| rng.random_range(1..=8)),
            manual: rng.random_bool(0.2),
            volatile: rng.random_bool(0.4),
            judged_within: rng.random_bool(0.4).then(|| seconds(&mut rng, 0.0..2.0)),
            spare_room: rng.random_bool(0.1).then(|| rng.random_range(0..3)),
            tombstones: rng.random_bool(0.1).then(|| rng.random_range(1..4)),
            faults,
        }
    }

    /// Whether this kind of fault strikes.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.iter().any(|(kind, _)| *kind == fault)
    }

    /// The longest time from a message that enters a connection without a fault to the answer to it, one large
    /// message behind a narrow socket on either way included.
    pub(crate) fn round_trip(&self) -> Duration {
        let pieces = 1 + self.longest.div_ceil(self.socket) as u32;
        (self.latency.0 + self.latency.1) * 2 * pieces
    }
}

fn seconds(rng: &mut SmallRng, range: std::ops::Range<f64>) -> Duration {
    // Whole milliseconds keep traces readable.
    Duration::from_millis((rng.random_range(range) * 1000.0) as u64)
}
