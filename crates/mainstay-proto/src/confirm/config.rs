//! How to send to a plain peer.

use std::time::Duration;

use super::Pongs;
use crate::ConfigError;

/// What ends the keeping of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Confirm {
    /// The Pong: for stacks that deliver a message before they read the next.
    #[default]
    Pong,
    /// The Pong, and then 64 more confirmed messages or 256 KiB: for stacks that read ahead by no more.
    PongWindow,
    /// The application's matching answer. Nothing else shows that the application has processed the message.
    Reply,
}

/// What happens to kept messages when the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Guarantee {
    /// They are written again; the peer may receive them twice.
    #[default]
    AtLeastOnce,
    /// They are not written again, and are reported as unknown: they may or may not have arrived.
    AtMostOnce,
}

/// What happens to a message that does not fit the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhenFull {
    /// Its sender waits for room.
    #[default]
    Wait,
    /// The message is returned to the sender.
    Fail,
    /// The oldest messages that were never written make room for it, and are reported as not delivered. If there are
    /// none, the message itself is dropped. No sender waits.
    DropOldest,
}

/// How to send to a plain peer, checked by the setters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmConfig {
    pub(super) confirm: Confirm,
    pub(super) guarantee: Guarantee,
    pub(super) when_full: WhenFull,
    pub(super) queue_messages: usize,
    pub(super) queue_bytes: usize,
    pub(super) min_ping_interval: Duration,
    pub(super) pongs: Pongs,
}

impl ConfirmConfig {
    /// Sets what ends the keeping of a message. Default: the Pong.
    #[must_use]
    pub fn confirm(self, confirm: Confirm) -> Self {
        Self { confirm, ..self }
    }

    /// Sets what happens to kept messages when the connection is lost. Default: they are written again.
    #[must_use]
    pub fn guarantee(self, guarantee: Guarantee) -> Self {
        Self { guarantee, ..self }
    }

    /// Sets what happens to a message that does not fit the queue. Default: its sender waits.
    #[must_use]
    pub fn when_full(self, when_full: WhenFull) -> Self {
        Self { when_full, ..self }
    }

    /// Sets how many messages, and how many bytes, may wait for confirmation, written or not. A larger message is
    /// accepted alone. Default: 1,024 and 4 MiB. Range: at least 1 each.
    ///
    /// # Errors
    /// One of them is 0.
    pub fn queue(self, messages: usize, bytes: usize) -> Result<Self, ConfigError> {
        Self { queue_messages: messages, queue_bytes: bytes, ..self }.checked()
    }

    /// Sets the shortest time between two Pings, for peers that count frames. It limits a link to 64 messages or 256
    /// KiB in that time. Default: none, so that one Ping follows 64 messages, 64 KiB or 250 ms. Range: up to 1
    /// minute.
    ///
    /// # Errors
    /// It is out of range.
    pub fn min_ping_interval(self, min_ping_interval: Duration) -> Result<Self, ConfigError> {
        Self { min_ping_interval, ..self }.checked()
    }

    /// Sets whether the peer answers Pings, if that is known in advance. If not, the peer is served at-most-once from
    /// the first message until its first Pong. If so, its silence never switches to at-most-once. Default: not known.
    #[must_use]
    pub fn expects_pongs(self, expects_pongs: bool) -> Self {
        Self { pongs: if expects_pongs { Pongs::Come } else { Pongs::Missing }, ..self }
    }

    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        if self.queue_messages == 0 {
            return Err(ConfigError { field: "confirm.queue_messages", bound: "at least 1" });
        }
        if self.queue_bytes == 0 {
            return Err(ConfigError { field: "confirm.queue_bytes", bound: "at least 1 byte" });
        }
        if self.min_ping_interval > Duration::from_secs(60) {
            return Err(ConfigError { field: "confirm.min_ping_interval", bound: "at most 1 minute" });
        }
        Ok(self)
    }
}

impl Default for ConfirmConfig {
    fn default() -> Self {
        Self {
            confirm: Confirm::default(),
            guarantee: Guarantee::default(),
            when_full: WhenFull::default(),
            queue_messages: 1024,
            queue_bytes: 4 * 1024 * 1024,
            min_ping_interval: Duration::ZERO,
            pongs: Pongs::Unknown,
        }
    }
}
