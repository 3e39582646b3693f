//! The timeline: what the proxy saw and did.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::fault::{Direction, Fault, text};

/// Identifies a fault that is in force, or was: for [`lift`](crate::ChaosProxy::lift) and in the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct FaultId(pub u64);

impl fmt::Display for FaultId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One line of the timeline. As JSON it is a flat object: `number`, `at` in seconds, `event`, `connection`, and the fields of [`What`].
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Counts the events of a proxy from 1.
    pub number: u64,
    /// Since the start of the proxy, without the time in which its process was [paused](What::Paused).
    pub at: Duration,
    /// The connection that it is about, counted from 1; `None`: the proxy.
    pub connection: Option<u64>,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum What {
    /// `started`: the proxy listens.
    Started {
        /// Where it listens.
        listen: SocketAddr,
        /// Where it connects to.
        upstream: String,
        /// The seed of its random values.
        seed: u64,
    },
    /// `opened`: a client connected.
    Opened {
        /// The client's address.
        client: SocketAddr,
    },
    /// `connected`: the upstream accepted the connection.
    Connected {
        /// The upstream's address.
        upstream: SocketAddr,
    },
    /// `upstream-failed`: the upstream did not accept the connection. The client receives a reset.
    UpstreamFailed {
        /// The upstream.
        upstream: String,
        /// Why, in words.
        reason: String,
    },
    /// `handshake`: a request was answered, by the upstream or by the fault `status`.
    Handshake {
        /// The status of HTTP; 101: the connection is a WebSocket from now on.
        status: u16,
    },
    /// `unreadable`: the connection is not HTTP/1.1 and WebSocket, such as TLS. Faults that need frames do nothing there.
    Unreadable,
    /// `fault`: a fault struck.
    Fault {
        /// The fault, with its parameters.
        fault: Fault,
        /// What caused it.
        by: Cause,
        /// How long it lasts; `None`: a fault of a moment, or one without an end.
        lasts: Option<Duration>,
        /// When it was due, exactly: since the opening of the connection or, if the event has none, since the start of the proxy; after
        /// [`set_scenario`](crate::ChaosProxy::set_scenario) since that. `None`: it was commanded.
        due: Option<Duration>,
    },
    /// `lifted`: a fault that lasted has stopped.
    Lifted {
        /// Its name.
        fault: &'static str,
        /// What caused it.
        by: Cause,
        /// Why it stopped.
        why: Lift,
    },
    /// `dead`: a direction has lost a byte or the end of its stream, by `black-hole` or a silent `idle-cut`. Nothing passes in it any more,
    /// also after the fault has ended, and neither side is notified.
    Dead {
        /// Up or down.
        direction: Direction,
    },
    /// `closed`: a connection is gone, on both sides.
    Closed {
        /// Why: the name of a fault, `client` or `upstream` (which ended its stream first), `client-reset`, `upstream-reset`,
        /// `upstream-failed`, or `proxy-ended`.
        reason: &'static str,
        /// Bytes from the client that the proxy wrote to the upstream.
        up: u64,
        /// Bytes from the upstream that the proxy wrote to the client.
        down: u64,
    },
    /// `accept-failed`: the proxy cannot accept or listen, and tries again until it can.
    AcceptFailed {
        /// Why, in words.
        reason: String,
    },
    /// `paused`: the process of the proxy was stopped, and runs again: SIGSTOP, a frozen container, a debugger. The time of the pause does not
    /// count: no client was silent meanwhile, and what was due comes after it.
    Paused {
        /// How long. As JSON in seconds.
        lasted: Duration,
    },
    /// `ended`: the proxy has ended.
    Ended,
}

/// What caused a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A rule of the scenario, counted from 1: `rule 2`.
    Rule(usize),
    /// [`inject`](crate::ChaosProxy::inject): `command 7`.
    Command(FaultId),
}

/// Why a fault stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lift {
    /// `end`: its time was over.
    End,
    /// `command`: [`lift`](crate::ChaosProxy::lift) or [`lift_all`](crate::ChaosProxy::lift_all).
    Command,
    /// `scenario`: its rule was replaced.
    Scenario,
}

impl What {
    /// Returns the name in the field `event`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Opened { .. } => "opened",
            Self::Connected { .. } => "connected",
            Self::UpstreamFailed { .. } => "upstream-failed",
            Self::Handshake { .. } => "handshake",
            Self::Unreadable => "unreadable",
            Self::Fault { .. } => "fault",
            Self::Lifted { .. } => "lifted",
            Self::Dead { .. } => "dead",
            Self::Closed { .. } => "closed",
            Self::AcceptFailed { .. } => "accept-failed",
            Self::Paused { .. } => "paused",
            Self::Ended => "ended",
        }
    }

    /// Writes the fields beside the name.
    fn fields<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match self {
            Self::Started { listen, upstream, seed } => {
                map.serialize_entry("listen", listen)?;
                map.serialize_entry("upstream", upstream)?;
                map.serialize_entry("seed", seed)
            }
            Self::Opened { client } => map.serialize_entry("client", client),
            Self::Connected { upstream } => map.serialize_entry("upstream", upstream),
            Self::UpstreamFailed { upstream, reason } => {
                map.serialize_entry("upstream", upstream)?;
                map.serialize_entry("reason", reason)
            }
            Self::Handshake { status } => map.serialize_entry("status", status),
            Self::Unreadable | Self::Ended => Ok(()),
            Self::Fault { fault, by, lasts, due } => {
                map.serialize_entry("fault", fault.name())?;
                fault.parameters().iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
                map.serialize_entry("by", &by.to_string())?;
                optional(map, "for", lasts.map(text))?;
                optional(map, "due", due.map(seconds))
            }
            Self::Lifted { fault, by, why } => {
                map.serialize_entry("fault", fault)?;
                map.serialize_entry("by", &by.to_string())?;
                map.serialize_entry("why", &why.to_string())
            }
            Self::Dead { direction } => map.serialize_entry("direction", direction.name()),
            Self::Closed { reason, up, down } => {
                map.serialize_entry("reason", reason)?;
                map.serialize_entry("up", up)?;
                map.serialize_entry("down", down)
            }
            Self::AcceptFailed { reason } => map.serialize_entry("reason", reason),
            Self::Paused { lasted } => map.serialize_entry("lasted", &seconds(*lasted)),
        }
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("number", &self.number)?;
        map.serialize_entry("at", &seconds(self.at))?;
        map.serialize_entry("event", self.what.name())?;
        optional(&mut map, "connection", self.connection)?;
        self.what.fields(&mut map)?;
        map.end()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(number) => write!(formatter, "rule {number}"),
            Self::Command(id) => write!(formatter, "command {id}"),
        }
    }
}

impl fmt::Display for Lift {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::End => "end",
            Self::Command => "command",
            Self::Scenario => "scenario",
        })
    }
}

fn optional<M: SerializeMap, T: Serialize>(
    map: &mut M,
    name: &str,
    value: Option<T>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

/// Returns seconds with three decimals: what a timer can keep.
pub(crate) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}
