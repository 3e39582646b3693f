//! What a proxy answers about itself.

use std::net::SocketAddr;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::event::{FaultId, seconds};
use crate::fault::{Fault, text};

/// Which connections a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Target {
    /// `open`: those that are open now.
    Open,
    /// `new`: those that open while the fault lasts. Faults of a moment strike none of them.
    New,
    /// `all`: both.
    #[default]
    All,
    /// One connection, by its number.
    Connection(u64),
}

/// A connection that is open.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its number, counted from 1.
    pub id: u64,
    /// The client's address.
    pub client: SocketAddr,
    /// When it opened, since the start of the proxy; as JSON in seconds.
    #[serde(serialize_with = "in_seconds")]
    pub opened: Duration,
    /// Bytes from the client that the proxy wrote to the upstream.
    pub up: u64,
    /// Bytes from the upstream that the proxy wrote to the client.
    pub down: u64,
    /// What it is: `connecting`, `open`, `websocket`, `unreadable`, `closing`, `dead`: nothing passes any more, and an end does not know.
    pub state: &'static str,
    /// The names of the faults in force on it.
    pub faults: Vec<&'static str>,
}

/// A fault that is in force on the proxy: commanded, or by a rule with `at`. As JSON it is a flat object: `id`, `kind`, the parameters,
/// `target`, and `rest`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ActiveFault {
    /// Its number.
    pub id: FaultId,
    /// The fault, with its parameters.
    pub fault: Fault,
    /// Which connections it strikes.
    pub target: Target,
    /// The rest of its time; `None`: until it is lifted.
    pub rest: Option<Duration>,
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Open => serializer.serialize_str("open"),
            Self::New => serializer.serialize_str("new"),
            Self::All => serializer.serialize_str("all"),
            Self::Connection(id) => serializer.serialize_u64(*id),
        }
    }
}

impl Serialize for ActiveFault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("kind", self.fault.name())?;
        self.fault.parameters().iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.serialize_entry("target", &self.target)?;
        if let Some(rest) = self.rest {
            map.serialize_entry("rest", &text(rest))?;
        }
        map.end()
    }
}

fn in_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(seconds(*duration))
}
