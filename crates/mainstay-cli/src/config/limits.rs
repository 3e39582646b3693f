//! `[limits]`: what clients may take from the whole process. `[routes.NAME.limits]`: from one route.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use mainstay::server::{AcceptRate, AdmissionConfig, OpeningConfig, ThrottleConfig};
use mainstay::{Budget, CloseCode};

use super::text::{Expected, Text, Written};
use super::{duration, size};
use crate::values;

/// Limits of the whole process.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Maximum number of open connections. A further one gets 503 with Retry-After. Default: as many as the limit of open
    /// files allows, at most 1,000,000. Range: 0 and above; 0 refuses all.
    pub(crate) connections: Option<usize>,
    /// Maximum number of open connections of one address, which is one /64 in IPv6. A further one gets 429 with Retry-After,
    /// or 4413 if it speaks mainstay.v1; one that resumes a session is accepted. Behind a trusted proxy the WebSockets of
    /// each client count. Default: no limit. Range: 0 and above.
    pub(crate) connections_per_address: Option<usize>,
    /// Maximum number of open WebSockets of one subject: who the client is by its credentials, or by the cookies and headers
    /// of routes.NAME.session. Default: no limit. Range: 0 and above.
    pub(crate) connections_per_subject: Option<usize>,
    /// Maximum number of opening handshakes a minute of one address. As many may come at once. Resumes do not count.
    /// Default: no limit. Range: 1 to 1,000,000.
    pub(crate) handshakes_per_minute_per_address: Option<u32>,
    /// Maximum number of opening handshakes a minute of one subject. As many may come at once. Resumes do not count.
    /// Default: no limit. Range: 1 to 1,000,000.
    pub(crate) handshakes_per_minute_per_subject: Option<u32>,
    /// How many new clients a second are accepted: "500/s"; "measured", as many as this process serves without letting them
    /// wait; or "off". The others are told when to come back, one after the other. Resumes have four times this rate for
    /// themselves. Default: off. Range: 1/s to 1,000,000/s.
    pub(crate) accept_rate: Option<Text<AcceptRate>>,
    /// Maximum number of sessions, parked ones included. Default: as many as the limit of open files and, with a backend,
    /// the local ports allow, at most 1,000,000. Range: 0 and above.
    pub(crate) sessions: Option<usize>,
    /// Maximum number of parked sessions (their client is away) of one address. A session above the limit replaces the one
    /// whose client has been away longest. Default: no limit. Range: 0 and above.
    pub(crate) parked_per_address: Option<usize>,
    /// Memory for all messages that wait, are not acknowledged or are not complete, of all clients and links together.
    /// Default: a quarter of the memory that the process may use. Range: 1MiB to 1024TiB, or off.
    pub(crate) memory_budget: Option<Text<Budget>>,
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        a_minute("handshakes-per-minute-per-address", self.handshakes_per_minute_per_address)?;
        a_minute("handshakes-per-minute-per-subject", self.handshakes_per_minute_per_subject)
    }

    /// Returns the limits on connections. `most`: how many the limit of open files allows.
    pub(crate) fn admission(&self, most: usize) -> AdmissionConfig {
        AdmissionConfig {
            connections: Some(self.connections.unwrap_or(most)),
            per_address: self.connections_per_address,
        }
    }

    /// Returns the limits on opening WebSockets.
    pub(crate) fn openings(&self) -> OpeningConfig {
        OpeningConfig {
            // `admission` has them.
            connections: None,
            connections_per_address: None,
            connections_per_principal: self.connections_per_subject,
            per_address: self.handshakes_per_minute_per_address.and_then(NonZeroU32::new),
            per_principal: self.handshakes_per_minute_per_subject.and_then(NonZeroU32::new),
            rate: self.accept_rate.as_deref().copied().unwrap_or_default(),
        }
    }
}

fn a_minute(field: &str, count: Option<u32>) -> Result<(), String> {
    match count {
        Some(0 | 1_000_001..) => Err(format!("{field}: must be between 1 and 1000000, for example 60")),
        _ => Ok(()),
    }
}

impl Written for Budget {
    const EXPECTED: Expected = Expected { kind: "size or off", example: "512MiB" };

    fn parse(text: &str) -> Result<Self, String> {
        values::memory_budget(text)
    }
}

impl Written for AcceptRate {
    const EXPECTED: Expected = Expected { kind: "rate, measured or off", example: "500/s" };

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::Unlimited),
            "measured" => return Ok(Self::Measured),
            _ => {}
        }
        let rate = text.strip_suffix("/s").and_then(|rate| rate.trim().parse().ok());
        let rate = rate.filter(|rate: &NonZeroU32| rate.get() <= 1_000_000).map(Self::PerSecond);
        rate.ok_or_else(|| {
            format!("{text:?} must be between 1/s and 1000000/s, measured or off, for example 500/s")
        })
    }
}

/// Limits of one route.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct RouteLimits {
    /// Maximum size of a message, in either direction. The sender of a larger one is closed with 1009. Range: 1B to 1GiB.
    #[serde(with = "size")]
    #[schemars(with = "String")]
    pub(crate) message: usize,
    /// Maximum number of fragments of a message. The sender of more is closed with 1008. Range: 1 and above.
    pub(crate) fragments: u32,
    /// Maximum size of a request's body. A larger one gets 413. Default: no limit.
    #[serde(with = "size::optional")]
    #[schemars(with = "Option<String>")]
    pub(crate) request_body: Option<u64>,
    /// Messages a second of one client. A client that sends faster is not read for a while, which loses nothing. Default: no
    /// limit. Range: 1 to 1,000,000.
    pub(crate) messages_per_second: Option<u32>,
    /// Payload of messages a second of one client, as above. Default: no limit. Range: 1B to 1TiB.
    #[serde(with = "size::optional")]
    #[schemars(with = "Option<String>")]
    pub(crate) bytes_per_second: Option<u64>,
    /// How far a client may be ahead of these rates: 5s of 1,000 messages a second are 5,000 at once. Range: 100ms to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) burst: Duration,
    /// How long a client may be ahead by more than the burst, time and again, before its connection is closed with 1008. A
    /// session goes on with its next connection. "off": for ever. Range: 1s to 1h.
    pub(crate) too_fast_for: Text<Patience>,
    /// Maximum number of open WebSockets of this route. Default: no limit. Range: 0 and above.
    pub(crate) connections: Option<usize>,
    /// Maximum number of open WebSockets of one address. Default: no limit. Range: 0 and above.
    pub(crate) connections_per_address: Option<usize>,
    /// Maximum number of open WebSockets of one subject. Default: no limit. Range: 0 and above.
    pub(crate) connections_per_subject: Option<usize>,
    /// Maximum number of opening handshakes a minute of one address. Default: no limit. Range: 1 to 1,000,000.
    pub(crate) handshakes_per_minute_per_address: Option<u32>,
    /// Maximum number of opening handshakes a minute of one subject. Default: no limit. Range: 1 to 1,000,000.
    pub(crate) handshakes_per_minute_per_subject: Option<u32>,
    /// How many new clients a second this route accepts: as limits.accept-rate. Default: off.
    pub(crate) accept_rate: Option<Text<AcceptRate>>,
    /// What happens when a client does not take the backend's messages in time: "pause", the backend waits; "close", the
    /// client is closed after slow-client-after; "drop-oldest", the oldest message that was not written is dropped;
    /// "latest", a message replaces the one that waits and has the same value at slow-client-key. A session gets a gap in
    /// place of what it loses.
    pub(crate) slow_client: Text<SlowClient>,
    /// How long a connected client may take nothing while messages wait, for "close". Range: 100ms to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) slow_client_after: Duration,
    /// The code for "close". Range: 1000 to 4999, without those that no Close carries.
    pub(crate) slow_client_code: u16,
    /// A JSON pointer to what identifies a message, for "latest": "/symbol". Messages that have nothing there replace none.
    pub(crate) slow_client_key: Option<String>,
}

impl Default for RouteLimits {
    fn default() -> Self {
        let throttle = ThrottleConfig::default();
        Self {
            message: 16 << 20,
            fragments: 4096,
            request_body: None,
            messages_per_second: None,
            bytes_per_second: None,
            burst: throttle.burst,
            too_fast_for: Text::of("1m", Patience(throttle.patience)),
            connections: None,
            connections_per_address: None,
            connections_per_subject: None,
            handshakes_per_minute_per_address: None,
            handshakes_per_minute_per_subject: None,
            accept_rate: None,
            slow_client: Text::of("pause", SlowClient::Pause),
            slow_client_after: Duration::from_secs(30),
            slow_client_code: CloseCode::TRY_AGAIN.get(),
            slow_client_key: None,
        }
    }
}

impl RouteLimits {
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=1 << 30).contains(&self.message) {
            return Err("message: must be between 1 B and 1 GiB".to_owned());
        }
        if self.fragments == 0 {
            return Err("fragments: must be at least 1".to_owned());
        }
        if matches!(self.messages_per_second, Some(0 | 1_000_001..)) {
            return Err("messages-per-second: must be between 1 and 1000000, for example 1000".to_owned());
        }
        if self.bytes_per_second.is_some_and(|bytes| !(1..=1 << 40).contains(&bytes)) {
            return Err("bytes-per-second: must be between 1 B and 1 TiB, for example 1MiB".to_owned());
        }
        a_minute("handshakes-per-minute-per-address", self.handshakes_per_minute_per_address)?;
        a_minute("handshakes-per-minute-per-subject", self.handshakes_per_minute_per_subject)?;
        let times = [("burst", self.burst), ("slow-client-after", self.slow_client_after)];
        for (field, time) in times {
            if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&time) {
                return Err(format!("{field}: must be between 100ms and 1h, for example 5s"));
            }
        }
        self.slow_clients().map(drop)
    }

    /// Returns how fast a client may send.
    pub(crate) fn throttle(&self) -> ThrottleConfig {
        ThrottleConfig {
            messages: self.messages_per_second.and_then(NonZeroU32::new),
            bytes: self.bytes_per_second.and_then(NonZeroU64::new),
            burst: self.burst,
            patience: self.too_fast_for.0,
        }
    }

    /// Returns the limits on opening WebSockets of this route.
    pub(crate) fn openings(&self) -> OpeningConfig {
        OpeningConfig {
            connections: self.connections,
            connections_per_address: self.connections_per_address,
            connections_per_principal: self.connections_per_subject,
            per_address: self.handshakes_per_minute_per_address.and_then(NonZeroU32::new),
            per_principal: self.handshakes_per_minute_per_subject.and_then(NonZeroU32::new),
            rate: self.accept_rate.as_deref().copied().unwrap_or_default(),
        }
    }

    /// Returns what happens with a client that does not take messages in time.
    ///
    /// # Errors
    /// The field, and what to write.
    pub(crate) fn slow_clients(&self) -> Result<SlowClients, String> {
        let (policy, key) = (*self.slow_client, &self.slow_client_key);
        if key.is_some() && policy != SlowClient::Latest {
            return Err("slow-client-key: is for slow-client latest; remove it".to_owned());
        }
        Ok(match policy {
            SlowClient::Pause => SlowClients::Pause,
            SlowClient::DropOldest => SlowClients::DropOldest,
            SlowClient::Close => {
                let code = CloseCode::new(self.slow_client_code);
                let code =
                    code.ok_or("slow-client-code: is no code that a Close can carry, for example 1013")?;
                SlowClients::Close { after: self.slow_client_after, code }
            }
            SlowClient::Latest => {
                let pointer = key.clone().filter(|pointer| pointer.starts_with('/'));
                let pointer = pointer.ok_or(
                    "slow-client-key: must be a JSON pointer for slow-client latest, for example /symbol",
                )?;
                SlowClients::Latest { pointer }
            }
        })
    }
}

/// What a route does about a client whose window is full.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum SlowClients {
    /// The backend waits, by TCP.
    #[default]
    Pause,
    /// The client is closed with this code once it has taken nothing for this time.
    Close { after: Duration, code: CloseCode },
    /// The oldest message that was not written is dropped.
    DropOldest,
    /// A message replaces the one that waits and has the same value at this JSON pointer.
    Latest { pointer: String },
}

/// The policies for slow clients, by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlowClient {
    Pause,
    Close,
    DropOldest,
    Latest,
}

impl Written for SlowClient {
    const EXPECTED: Expected =
        Expected { kind: "policy: pause, close, drop-oldest or latest", example: "pause" };

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "pause" => Ok(Self::Pause),
            "close" => Ok(Self::Close),
            "drop-oldest" => Ok(Self::DropOldest),
            "latest" => Ok(Self::Latest),
            _ => Err(format!("{text:?} must be pause, close, drop-oldest or latest")),
        }
    }
}

/// A duration, or off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(Option<Duration>);

impl Written for Patience {
    const EXPECTED: Expected = Expected { kind: "duration or off", example: "1m" };

    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let time = values::duration(text)?;
        match (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&time) {
            true => Ok(Self(Some(time))),
            false => Err("must be between 1s and 1h, or off".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_a_second_measured_or_off() {
        let rate = |text: &str| AcceptRate::parse(text);
        assert_eq!(rate("500/s"), Ok(AcceptRate::PerSecond(NonZeroU32::new(500).unwrap())));
        assert_eq!(rate("measured"), Ok(AcceptRate::Measured));
        assert_eq!(rate("off"), Ok(AcceptRate::Unlimited));
        for wrong in ["0/s", "1000001/s", "500", "-1/s", "1.5/s", "500/m", ""] {
            assert!(rate(wrong).unwrap_err().contains("for example 500/s"), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_limit_of_a_route_names_its_field_and_its_bound() {
        let check = |change: fn(&mut RouteLimits), expected: &str| {
            let mut limits = RouteLimits::default();
            change(&mut limits);
            assert_eq!(limits.check().unwrap_err(), expected);
        };
        assert_eq!(RouteLimits::default().check(), Ok(()));
        check(
            |limits| limits.messages_per_second = Some(0),
            "messages-per-second: must be between 1 and 1000000, for example 1000",
        );
        check(
            |limits| limits.bytes_per_second = Some(0),
            "bytes-per-second: must be between 1 B and 1 TiB, for example 1MiB",
        );
        check(|limits| limits.burst = Duration::ZERO, "burst: must be between 100ms and 1h, for example 5s");
        check(
            |limits| limits.handshakes_per_minute_per_subject = Some(0),
            "handshakes-per-minute-per-subject: must be between 1 and 1000000, for example 60",
        );
        check(
            |limits| limits.slow_client = Text::new("latest").unwrap(),
            "slow-client-key: must be a JSON pointer for slow-client latest, for example /symbol",
        );
        check(
            |limits| limits.slow_client_key = Some("/a".into()),
            "slow-client-key: is for slow-client latest; remove it",
        );
        check(
            |limits| (limits.slow_client, limits.slow_client_code) = (Text::new("close").unwrap(), 1006),
            "slow-client-code: is no code that a Close can carry, for example 1013",
        );
        assert!(Text::<SlowClient>::new("drop").is_err() && Text::<Patience>::new("2h").is_err());
    }
}
