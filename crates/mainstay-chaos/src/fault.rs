//! What can go wrong with a connection.

use std::time::Duration;

/// A way in which a connection breaks. The names in files, in the API and in the timeline are those of [`Fault::name`]; where the
/// simulator of Mainstay has the same fault, it has the same name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// `reset`: both sides receive a TCP reset; bytes in transit are lost.
    Reset,
    /// `fin`: both sides receive the end of the TCP stream, without a closing handshake.
    Fin,
    /// `black-hole`: bytes are lost, also those on their way, and neither side is notified. With one direction: half-open. A direction that
    /// lost a byte or an end stays dead after the fault has ended. A connection that opens meanwhile does not reach the upstream.
    BlackHole(Direction),
    /// `stall`: bytes and ends stand still, and arrive when the fault ends. After 64 KiB the proxy stops reading.
    Stall(Direction),
    /// `jam`: the proxy reads nothing until the fault ends, so that the writer's socket fills.
    Jam(Direction),
    /// `delay`: each byte arrives later, in order. At most 1 MiB is on its way. What is on its way when the fault ends arrives at once.
    Delay {
        /// Which bytes.
        direction: Direction,
        /// How much later.
        latency: Duration,
        /// Added to it: uniform between zero and this.
        jitter: Duration,
    },
    /// `bandwidth`: at most so many bytes each second.
    Bandwidth {
        /// Which bytes; both directions are counted apart.
        direction: Direction,
        /// Range: 1 and above.
        bytes_per_second: u64,
    },
    /// `trickle`: bytes are written a few at a time, each in a packet of its own.
    Trickle {
        /// Which bytes.
        direction: Direction,
        /// Range: 1 and above. Default: 1.
        bytes: usize,
    },
    /// `corrupt`: one bit of the next 16 bytes is inverted. TLS refuses it; a plain WebSocket receives it.
    Corrupt(Direction),
    /// `cut-in-frame`: the connection is reset within the payload of the next data frame: half of it passes, at most 16 KiB.
    CutInFrame(Direction),
    /// `cut-after`: the connection is reset after so many bytes.
    CutAfter {
        /// Which bytes are counted; with both directions their sum.
        direction: Direction,
        /// Counted from the beginning of the connection.
        bytes: u64,
    },
    /// `refuse`: nothing listens; new connections are refused. Open ones stay.
    Refuse,
    /// `mute`: new connections are accepted, and nothing is read or sent. When it ends, they go on to the upstream.
    Mute,
    /// `swallow-close`: Close frames are dropped: the end of the stream passes, the closing handshake does not.
    SwallowClose(Direction),
    /// `drop-pings`: Pings are dropped.
    DropPings(Direction),
    /// `drop-pongs`: Pongs are dropped.
    DropPongs(Direction),
    /// `idle-cut`: the proxy ends the streams of a connection on which nothing passed for so long.
    IdleCut {
        /// Which bytes count as life: those of one direction, or of either.
        direction: Direction,
        /// How long nothing passed.
        after: Duration,
        /// Neither side is notified, as with the table of a NAT.
        silent: bool,
    },
    /// `lifetime-cut`: the proxy ends the streams of a connection of this age.
    LifetimeCut {
        /// The age.
        after: Duration,
    },
    /// `status`: the opening handshake, or any other request, is answered with this status of HTTP, such as 502, and does not reach the
    /// upstream. The connection ends then. One that is a WebSocket already is left alone.
    Status {
        /// Range: 300 to 599.
        code: u16,
        /// `Retry-After`, in seconds.
        retry_after: Option<u32>,
    },
    /// `ghost`: the next frame of the client is kept back, the client is cut off by a reset, and the upstream does not notice. The frame
    /// arrives at the upstream once a newer connection is up: with the upstream's first frame there, or 1 s after its handshake.
    Ghost,
}

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// `up`: from the client to the upstream.
    Up,
    /// `down`: from the upstream to the client.
    Down,
    /// `both`.
    #[default]
    Both,
}

impl Fault {
    /// Every name, in the order of this type.
    pub const NAMES: [&str; 20] = [
        "reset",
        "fin",
        "black-hole",
        "stall",
        "jam",
        "delay",
        "bandwidth",
        "trickle",
        "corrupt",
        "cut-in-frame",
        "cut-after",
        "refuse",
        "mute",
        "swallow-close",
        "drop-pings",
        "drop-pongs",
        "idle-cut",
        "lifetime-cut",
        "status",
        "ghost",
    ];

    /// Returns the name in files, in the API and in the timeline.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Fin => "fin",
            Self::BlackHole(_) => "black-hole",
            Self::Stall(_) => "stall",
            Self::Jam(_) => "jam",
            Self::Delay { .. } => "delay",
            Self::Bandwidth { .. } => "bandwidth",
            Self::Trickle { .. } => "trickle",
            Self::Corrupt(_) => "corrupt",
            Self::CutInFrame(_) => "cut-in-frame",
            Self::CutAfter { .. } => "cut-after",
            Self::Refuse => "refuse",
            Self::Mute => "mute",
            Self::SwallowClose(_) => "swallow-close",
            Self::DropPings(_) => "drop-pings",
            Self::DropPongs(_) => "drop-pongs",
            Self::IdleCut { .. } => "idle-cut",
            Self::LifetimeCut { .. } => "lifetime-cut",
            Self::Status { .. } => "status",
            Self::Ghost => "ghost",
        }
    }

    /// Returns the parameters as a scenario file and the API have them, beside the kind: names and values.
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, serde_json::Value)> {
        let direction = |direction: &Direction| ("direction", direction.name().into());
        match self {
            Self::Reset | Self::Fin | Self::Refuse | Self::Mute | Self::Ghost => Vec::new(),
            Self::BlackHole(way)
            | Self::Stall(way)
            | Self::Jam(way)
            | Self::Corrupt(way)
            | Self::CutInFrame(way)
            | Self::SwallowClose(way)
            | Self::DropPings(way)
            | Self::DropPongs(way) => vec![direction(way)],
            Self::Delay { direction: way, latency, jitter } => {
                vec![direction(way), ("latency", text(*latency).into()), ("jitter", text(*jitter).into())]
            }
            Self::Bandwidth { direction: way, bytes_per_second } => {
                vec![direction(way), ("bytes-per-second", (*bytes_per_second).into())]
            }
            Self::Trickle { direction: way, bytes } => vec![direction(way), ("bytes", (*bytes).into())],
            Self::CutAfter { direction: way, bytes } => vec![direction(way), ("bytes", (*bytes).into())],
            Self::IdleCut { direction: way, after, silent } => {
                vec![direction(way), ("idle", text(*after).into()), ("silent", (*silent).into())]
            }
            Self::LifetimeCut { after } => vec![("age", text(*after).into())],
            Self::Status { code, retry_after } => {
                let mut parameters = vec![("code", (*code).into())];
                parameters.extend(retry_after.map(|seconds| ("retry-after", seconds.into())));
                parameters
            }
        }
    }

    /// Whether it strikes at one moment; the others last until their end.
    #[must_use]
    pub fn is_of_a_moment(&self) -> bool {
        matches!(self, Self::Reset | Self::Fin | Self::Corrupt(_) | Self::CutInFrame(_) | Self::Ghost)
    }
}

impl Direction {
    /// Returns `up`, `down` or `both`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both",
        }
    }

    /// Whether the bytes that `side` writes are meant.
    pub(crate) fn covers(self, side: Side) -> bool {
        self == Self::Both || self == side.direction()
    }
}

/// The end that writes the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Its bytes go up.
    Client,
    /// Its bytes go down.
    Upstream,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Client, Self::Upstream];

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }

    /// Returns the direction of what it writes.
    pub(crate) fn direction(self) -> Direction {
        match self {
            Self::Client => Direction::Up,
            Self::Upstream => Direction::Down,
        }
    }
}

/// Returns a duration as a scenario file has it.
pub(crate) fn text(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(milliseconds)).to_string().replace(' ', "")
}
