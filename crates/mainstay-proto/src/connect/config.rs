//! The settings of a client, and what ends it.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::ConfigError;
use crate::backoff::BackoffConfig;
use crate::confirm::ConfirmConfig;
use crate::heartbeat::HeartbeatConfig;
use crate::session::{ClientConfig, Message};

/// The settings of a client.
#[derive(Debug, Clone)]
pub struct ConnectConfig {
    /// The peer is known to speak plain WebSocket, so no session begins. Default: false.
    pub link: bool,
    /// The session with a peer that speaks `mainstay.v1`.
    pub session: ClientConfig,
    /// How messages to a plain peer are confirmed.
    pub confirm: ConfirmConfig,
    /// The heartbeat towards a plain peer. A session's server drives the heartbeat itself, and announces it.
    pub heartbeat: HeartbeatConfig,
    /// The waits between attempts.
    pub backoff: BackoffConfig,
    /// Ends after the first connection is lost or refused. Default: false.
    pub once: bool,
    /// Ends after this many attempts in a row that brought no connection. Default: never. Range: at least 1.
    pub max_attempts: Option<NonZeroU32>,
    /// Replaces a connection that brought no message for this long. Default: no connection is replaced for that.
    pub silence: Option<Silence>,
    /// What ends a client of a plain peer, beside what ends every client. Default: nothing.
    pub ends_on: EndsOn,
    /// Towards a plain peer: holds back the stream on every connection but the first; see
    /// [`Client::send_ahead`](super::Client::send_ahead). Default: false.
    pub holds_replaced: bool,
    /// Towards a plain peer: the first connection continues one that another client had, as in another process. It counts as
    /// a replacement, so the peer is fresh. Default: false.
    pub continues: bool,
    /// Recognises the message by which a plain peer announces that it restarts: the Close behind it counts as
    /// [`CloseCode::RESTART`](crate::ws::CloseCode::RESTART), whatever its code. Default: no message announces it.
    pub announces_restart: Option<fn(&Message) -> bool>,
    /// Towards a plain peer: delivers messages that come while the client is closing, for applications that confirm by them.
    /// Default: false.
    pub reads_while_closing: bool,
    /// Towards a plain peer: probes at once when a message stays unconfirmed. Default: true.
    pub probes_unconfirmed: bool,
    /// Limits the time of an attempt: from dialling to WELCOME, or to the response of a plain peer. Default: 10 s.
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
            continues: false,
            announces_restart: None,
            reads_while_closing: false,
            probes_unconfirmed: true,
            opening_timeout: Duration::from_secs(10),
        }
    }
}

/// What ends a client of a plain peer, because its application could not continue on another connection. Before the first
/// connection a client dials again in any case. (A final refusal of the opening handshake, and a close code after which no
/// client reconnects, end every client.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EndsOn {
    /// Nothing: the client replaces a connection that ended.
    #[default]
    Nothing,
    /// The peer's Close, unless its code is one of a restart
    /// ([`CloseCode::is_restart`](crate::ws::CloseCode::is_restart)); the fifth Close of a restart in a row on connections that
    /// brought no message and no confirmation; and a message of the peer that is too big.
    FinalClose,
    /// The peer's Close, whatever its code, and a message of the peer that is too big.
    Close,
    /// Any end of the connection.
    Connection,
}

/// The time that a connection may bring no message, checked where it is made. Pings and Pongs do not count: this is for a
/// feed that has stopped although the connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Silence(Duration);

impl Silence {
    /// Sets the limit. Range: 100 ms to 1 week.
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
