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
    /// The peer is known to speak plain WebSocket, so the client starts no session. Default: false.
    pub link: bool,
    /// Configuration towards peers that speak `mainstay.v1`.
    pub session: ClientConfig,
    /// Configuration towards plain peers.
    pub confirm: ConfirmConfig,
    /// The heartbeat towards plain peers, which the client must probe; a session's server announces its own
    /// heartbeat.
    pub heartbeat: HeartbeatConfig,
    /// When to connect again.
    pub backoff: BackoffConfig,
    /// Whether the client ends when its first connection is lost or refused. Default: false.
    pub once: bool,
    /// How many attempts in a row may fail before the client ends. Default: no limit. Range: at least 1.
    pub max_attempts: Option<NonZeroU32>,
    /// How long a connection may carry no message before it is replaced. Default: no limit.
    pub silence: Option<Silence>,
    /// What ends a client of a plain peer, in addition to what ends every client. Default: nothing.
    pub ends_on: EndsOn,
    /// Towards plain peers: whether every connection but the first is held back, see
    /// [`Client::send_ahead`](super::Client::send_ahead). Default: false.
    pub holds_replaced: bool,
    /// Recognizes a message by which a plain peer announces its restart. Whatever the code of the following Close, it
    /// then counts as [`CloseCode::RESTART`](crate::ws::CloseCode::RESTART). Default: none.
    pub announces_restart: Option<fn(&Message) -> bool>,
    /// Towards plain peers: whether messages are delivered while the client closes, for applications whose answers
    /// confirm. Default: false.
    pub reads_while_closing: bool,
    /// Towards plain peers: whether an unconfirmed message makes the client probe the peer. Default: true.
    pub probes_unconfirmed: bool,
    /// How long an attempt may take, from connecting to WELCOME or to the handshake response of a plain peer.
    /// Default: 10 s.
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

/// What ends a client of a plain peer finally, because its application cannot continue after it. Before the first
/// connection none of these ends the client; it connects again. (A refused opening handshake, and a code that forbids
/// reconnecting, end every client.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EndsOn {
    /// Nothing: a connection that ended is replaced.
    #[default]
    Nothing,
    /// The peer's Close, unless its code announces a restart
    /// ([`CloseCode::is_restart`](crate::ws::CloseCode::is_restart)); the fifth Close in a row on connections without
    /// a message or a confirmation; and a message of the peer that is too large.
    FinalClose,
    /// The peer's Close, whatever its code, and a message of the peer that is too large.
    Close,
    /// The end of the connection, for whatever reason.
    Connection,
}

/// How long a peer may send no message, checked by the constructor. Pings and Pongs do not count: this is for a feed
/// that has stopped behind a connection that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Silence(Duration);

impl Silence {
    /// Creates the limit. Range: 100 ms to 1 week.
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
