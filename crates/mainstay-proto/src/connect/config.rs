//! How a client behaves, and what ends it.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::ConfigError;
use crate::backoff::BackoffConfig;
use crate::confirm::ConfirmConfig;
use crate::heartbeat::HeartbeatConfig;
use crate::session::{ClientConfig, Message};

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ConnectConfig {
    /// The peer is known to speak plain WebSocket: no session is begun. Default: false.
    pub link: bool,
    /// Towards peers that speak `mainstay.v1`.
    pub session: ClientConfig,
    /// Towards plain peers.
    pub confirm: ConfirmConfig,
    /// Towards plain peers, which we must probe ourselves; a session's server announces its own.
    pub heartbeat: HeartbeatConfig,
    /// When to try again.
    pub backoff: BackoffConfig,
    /// Give up after the first connection is lost or refused. Default: false.
    pub once: bool,
    /// Give up after so many attempts in a row that brought no connection. Default: never. Range: at least 1.
    pub max_attempts: Option<NonZeroU32>,
    /// A connection that brought no message for so long is replaced by another. Default: none is.
    pub silence: Option<Silence>,
    /// What ends a client of a plain peer, besides what ends every client. Default: nothing.
    pub ends_on: EndsOn,
    /// Towards plain peers: every connection but the first is held back, see [`Client::send_ahead`](super::Client::send_ahead). Default: false.
    pub holds_replaced: bool,
    /// A message by which a plain peer announces that it restarts: whatever the code of the Close behind it, that counts
    /// as [`CloseCode::RESTART`](crate::ws::CloseCode::RESTART). Default: there is none.
    pub announces_restart: Option<fn(&Message) -> bool>,
    /// Towards plain peers: what comes while the client is closing is handed over, for applications that confirm by it.
    /// Default: false.
    pub reads_while_closing: bool,
    /// Towards plain peers: a message that stays unconfirmed is a reason to look whether the peer lives. Default: true.
    pub probes_unconfirmed: bool,
    /// From dialling to WELCOME, or to the answer of a plain peer; then the attempt is given up. Default: 10 s.
    pub opening_timeout: Duration,
}

impl ConnectConfig {
    /// Sets [`max_attempts`](Self::max_attempts).
    ///
    /// # Errors
    /// It is 0.
    pub fn allow_attempts(&mut self, attempts: u32) -> Result<(), ConfigError> {
        let out_of_range = ConfigError { field: "max_attempts", bound: "at least 1" };
        self.max_attempts = Some(NonZeroU32::new(attempts).ok_or(out_of_range)?);
        Ok(())
    }
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self {
            link: false,
            session: ClientConfig::default(),
            confirm: ConfirmConfig::default(),
            heartbeat: HeartbeatConfig::default(),
            backoff: BackoffConfig::default(),
            once: false,
            max_attempts: None,
            silence: None,
            ends_on: EndsOn::default(),
            holds_replaced: false,
            announces_restart: None,
            reads_while_closing: false,
            probes_unconfirmed: true,
            opening_timeout: Duration::from_secs(10),
        }
    }
}

/// What ends a client of a plain peer for good: what its application cannot go on after. Before there was a connection,
/// each of these dials again and again. (A refused opening handshake, and a code that says stop, end every client.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EndsOn {
    /// Nothing: a connection that ended is replaced.
    #[default]
    Nothing,
    /// The peer's Close, unless its code is one of a restart ([`CloseCode::is_restart`](crate::ws::CloseCode::is_restart)); the fifth such Close in a
    /// row on a connection that brought no message and no confirmation; and a message of the peer that is too big.
    FinalClose,
    /// The peer's Close, whatever its code, and a message of the peer that is too big.
    Close,
    /// The end of the connection, however it comes about.
    Connection,
}

/// For how long a peer may bring no message, checked where it is made. Pings and Pongs are none: this is for a feed that
/// has stopped behind a connection that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Silence(Duration);

impl Silence {
    /// Range: 100 ms to 1 week.
    ///
    /// # Errors
    /// It is out of range.
    pub fn limit(limit: Duration) -> Result<Self, ConfigError> {
        let range = Duration::from_millis(100)..=Duration::from_secs(7 * 86_400);
        ConfigError::unless(range.contains(&limit), "silence", "between 100 ms and 1 week")?;
        Ok(Self(limit))
    }

    pub(super) fn get(self) -> Duration {
        self.0
    }
}
