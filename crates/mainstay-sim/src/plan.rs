//! The load and the faults of one seed, determined at the start, so that they can be printed.

use std::time::Duration;

use mainstay_proto::session::Window;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// The faults and the load of one run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed of the plan.
    pub seed: u64,
    /// The number of running clients.
    pub clients: usize,
    /// How long load and faults last; healing follows.
    pub length: Duration,
    /// Mean time between two messages of one sender.
    pub message_every: Duration,
    /// The longest message, in bytes after its head.
    pub longest: usize,
    /// What either end keeps and accepts; `None`: the defaults.
    pub windows: Option<Window>,
    /// One-way latency, and how much it varies.
    pub latency: (Duration, Duration),
    /// How many bytes a socket accepts that the other end has not read.
    pub socket: usize,
    /// Heartbeat interval.
    pub heartbeat: Duration,
    /// Resume window.
    pub resume_window: Duration,
    /// The longest time that an application needs for a message.
    pub handling: Duration,
    /// How many messages the server keeps per session; above it the oldest that were never written are dropped.
    pub drops_above: Option<u64>,
    /// The server's application acknowledges messages by itself, some time after their delivery.
    pub manual: bool,
    /// Both ends send messages outside the stream.
    pub volatile: bool,
    /// The server judges credentials, and needs up to this long.
    pub judged_within: Option<Duration>,
    /// How many sessions the server may have in addition to one per client.
    pub spare_room: Option<usize>,
    /// How many tombstones the server keeps.
    pub tombstones: Option<usize>,
    /// Several nodes serve the clients; `None`: one server.
    pub cluster: Option<Cluster>,
    /// Mean time between two faults, per kind.
    pub faults: Vec<(Fault, Duration)>,
}

/// The nodes of a run, and what its applications allow.
#[derive(Debug, Clone, Copy)]
pub struct Cluster {
    /// The number of nodes that serve at a time.
    pub nodes: usize,
    /// Sessions may move.
    pub movable: bool,
    /// How long a handler needs to return once its session leaves.
    pub returns_within: Duration,
    /// Some handlers never return.
    pub hangs: bool,
    /// How long a drain may take.
    pub drain: Duration,
}

/// A kind of fault. A fault affects one connection, one process or the whole server, as its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A connection is reset; the bytes in transit are lost.
    Reset,
    /// A connection becomes silent in both directions; no end is notified.
    BlackHole,
    /// Only what the client writes is lost.
    BlackHoleUp,
    /// Only what the server writes is lost.
    BlackHoleDown,
    /// All bytes stand still for a while, then arrive.
    Stall,
    /// The socket at one end of a connection accepts no bytes for a while.
    Jam,
    /// The socket at one end of a connection accepts a few bytes at a time for a while.
    Trickle,
    /// A client's process is paused; bytes that arrive are readable when it continues.
    PauseClient,
    /// The server's process is paused.
    PauseServer,
    /// A client's machine sleeps; bytes that were sent to it arrive a little after it wakes.
    SleepClient,
    /// The server's machine sleeps.
    SleepServer,
    /// A client's process dies, perhaps with its machine; a new instance follows.
    Crash,
    /// A client's application ends its session; a new instance follows.
    Leave,
    /// The server's application ends a session; a new instance follows.
    End,
    /// Connection attempts fail for a while.
    Refuse,
    /// The server restarts without its state.
    Restart,
    /// The server sends GOAWAY to every client.
    GoAway,
    /// The client believes that its network changed.
    Online,
    /// A client presents new credentials: good ones, those of another client, or bad ones.
    Credentials,
    /// No credentials are judged for a while.
    NoJudge,
    /// A client's application receives nothing for a while, and then its process dies: the bytes on their way to it
    /// fill every queue.
    StopReading,
    /// The backend behind the server loses its state: a session is renewed.
    Renew,
    /// The connection behind the server is replaced, and the sessions continue.
    Replace,
    /// A node's process is killed, perhaps with its machine; another node follows.
    Kill,
    /// A node drains and exits; another node follows.
    Drain,
    /// A node is cut from the engine for a while.
    CutEngine,
    /// Two nodes are cut from each other for a while.
    CutNodes,
    /// A node is cut from the engine and from another node for a while.
    CutBoth,
    /// A node's peer listener accepts connections and sends nothing for a while.
    Mute,
    /// The engine needs up to 3 s for an answer, for a while.
    SlowEngine,
    /// Requests to the engine and its answers are lost for a while.
    LossyEngine,
    /// No node reaches the engine for a while.
    NoEngine,
    /// The engine restarts and has forgotten everything.
    EmptyEngine,
    /// A replica of the engine takes over that lacks up to a second.
    FailOver,
    /// The balancer sends every client to one node for a while.
    OneNode,
    /// A copy of a client presents its token as another instance, and is gone.
    Copy,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 36] = [
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
        Self::Kill,
        Self::Drain,
        Self::CutEngine,
        Self::CutNodes,
        Self::CutBoth,
        Self::Mute,
        Self::SlowEngine,
        Self::LossyEngine,
        Self::NoEngine,
        Self::EmptyEngine,
        Self::FailOver,
        Self::OneNode,
        Self::Copy,
    ];

    /// What sessions meet that move again and again, beside drains and copies.
    const OF_MOVES: [Self; 7] = [
        Self::Reset,
        Self::End,
        Self::Leave,
        Self::SlowEngine,
        Self::LossyEngine,
        Self::EmptyEngine,
        Self::FailOver,
    ];

    /// Returns the kinds that one server meets, and those that only a cluster does.
    fn by_world() -> (&'static [Self], &'static [Self]) {
        static ALL: [Fault; Fault::ALL.len()] = Fault::ALL;
        ALL.split_at(23)
    }

    /// Whether an application must not notice it, where nodes answer each other, sessions may move and handlers
    /// return.
    pub(crate) fn is_gentle(self) -> bool {
        matches!(
            self,
            Self::Reset
                | Self::Stall
                | Self::Jam
                | Self::Trickle
                | Self::GoAway
                | Self::Online
                | Self::Drain
                | Self::OneNode
        )
    }

    /// Whether it is about the engine, or about a node's way to it.
    fn is_of_engine(self) -> bool {
        matches!(
            self,
            Self::CutEngine
                | Self::SlowEngine
                | Self::LossyEngine
                | Self::NoEngine
                | Self::EmptyEngine
                | Self::FailOver
        )
    }

    /// A fault that costs a session is rare; otherwise sessions would never grow old.
    fn mean(self, rng: &mut SmallRng) -> Duration {
        match self {
            Self::Restart
            | Self::Crash
            | Self::Leave
            | Self::End
            | Self::StopReading
            | Self::Renew
            | Self::Kill
            | Self::Drain
            | Self::EmptyEngine
            | Self::FailOver => seconds(rng, 30.0..200.0),
            _ => seconds(rng, 2.0..60.0),
        }
    }
}

/// The capacity of a socket in most seeds: the bound that the server sets on the kernel.
pub(crate) const WIDE: usize = 128 * 1024;

impl Plan {
    /// Draws the plan of a seed: one seed in three is a cluster.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        if seed % 3 == 2 { Self::cluster(seed) } else { Self::alone(seed) }
    }

    /// Draws the plan of a seed with several nodes.
    #[must_use]
    pub fn cluster(seed: u64) -> Self {
        let mut plan = Self::alone(seed);
        let mut rng = SmallRng::seed_from_u64(seed ^ 0xc105);
        let (common, own) = Fault::by_world();
        let mut pick = |kinds: Vec<Fault>, share: f64| -> Vec<Fault> {
            kinds.into_iter().filter(|_| rng.random_bool(share)).collect()
        };
        let all = || common.iter().chain(own).copied().filter(|kind| *kind != Fault::Restart);
        let kinds = match seed / 3 % 10 {
            0 => Vec::new(),
            1 => all().collect(),
            2 | 3 => pick(all().filter(|kind| kind.is_gentle()).collect(), 0.6),
            4 => pick(all().filter(|kind| kind.is_of_engine() || kind.is_gentle()).collect(), 0.5),
            5 => pick(own.to_vec(), 0.5),
            6 => [vec![Fault::Drain, Fault::Copy], pick(Fault::OF_MOVES.to_vec(), 0.4)].concat(),
            _ => pick(all().collect(), 0.25),
        };
        let moves = plan.moves();
        let mut mean = |kind: Fault| match kind {
            Fault::Copy if moves => seconds(&mut rng, 1.0..4.0),
            Fault::Drain if moves => seconds(&mut rng, 2.0..8.0),
            _ if moves => seconds(&mut rng, 10.0..40.0),
            kind => kind.mean(&mut rng),
        };
        plan.faults = kinds.into_iter().map(|kind| (kind, mean(kind))).collect();
        plan.clients = rng.random_range(1..=4);
        if plan.is_gentle() {
            plan.resume_window = Duration::from_secs(300);
        }
        let slow = rng.random_bool(0.2);
        (plan.spare_room, plan.tombstones) = (None, None);
        plan.cluster = Some(Cluster {
            nodes: rng.random_range(if moves { 2..=4 } else { 1..=4 }),
            movable: rng.random_bool(0.7),
            returns_within: if slow { seconds(&mut rng, 0.0..8.0) } else { seconds(&mut rng, 0.0..0.3) },
            hangs: rng.random_bool(0.1),
            drain: if moves { seconds(&mut rng, 1.0..8.0) } else { seconds(&mut rng, 5.0..30.0) },
        });
        plan
    }

    /// Draws the plan of a seed with one server: one in ten has no fault, one in twenty has every kind.
    #[must_use]
    pub fn alone(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let all = Fault::by_world().0;
        let kinds: Vec<Fault> = match rng.random_range(0..20) {
            0 | 1 => Vec::new(),
            2 => all.to_vec(),
            _ => all.iter().copied().filter(|_| rng.random_bool(0.25)).collect(),
        };
        let faults = kinds.into_iter().map(|kind| (kind, kind.mean(&mut rng))).collect();
        let longest = if rng.random_bool(0.3) { rng.random_range(1..4_000) } else { 0 };
        // Large messages behind default windows would take longer than the healing lasts.
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
            cluster: None,
            faults,
        }
    }

    /// Whether applications notice no fault, where nodes answer each other, sessions may move and handlers return.
    pub(crate) fn is_gentle(&self) -> bool {
        self.faults.iter().all(|(fault, _)| fault.is_gentle())
    }

    /// Whether nodes drain all the time, if there are several: so that sessions move again and again.
    pub(crate) fn moves(&self) -> bool {
        self.seed / 3 % 10 == 6
    }

    /// Whether this kind of fault occurs.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.iter().any(|(kind, _)| *kind == fault)
    }

    /// Returns the longest time from a message that enters a connection without a fault to its answer, including one
    /// large message behind a narrow socket in either direction.
    pub(crate) fn round_trip(&self) -> Duration {
        let pieces = 1 + self.longest.div_ceil(self.socket) as u32;
        (self.latency.0 + self.latency.1) * 2 * pieces
    }
}

fn seconds(rng: &mut SmallRng, range: std::ops::Range<f64>) -> Duration {
    // Whole milliseconds keep traces readable.
    Duration::from_millis((rng.random_range(range) * 1000.0) as u64)
}
