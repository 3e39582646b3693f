//! `[routes.NAME.upstream.health]`: how the addresses of a backend are probed, and when one is not used.

use std::time::Duration;

use http::uri::PathAndQuery;

use super::duration;
use super::text::{Expected, Text, Written};
use crate::upstream::pool::PoolConfig;
use crate::upstream::probe::Ask;

/// The health of the backend's addresses.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// What a probe asks for: tcp, a connection (with TLS for wss://); http, a response to GET with a status below 400; or
    /// websocket, an opening handshake. A probe carries the headers of every request to the backend.
    pub(crate) probe: Kind,
    /// The path that http and websocket probes ask for. It is not put behind the backend's.
    pub(crate) path: Text<Path>,
    /// How often an address that is up is probed. One that is down is probed every second. Default: 5s for http and websocket,
    /// and none for tcp. Range: 100ms to 1h.
    #[serde(with = "duration::optional")]
    #[schemars(with = "Option<String>")]
    pub(crate) interval: Option<Duration>,
    /// How long a probe may take. Range: 10ms to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) timeout: Duration,
    /// The failures in a row (connects, opening handshakes, responses, probes) that eject an address: new connections go to
    /// others. After each failure before, others are preferred for 100 ms, and twice as long each time. Range: 1 to 1000.
    pub(crate) failures: u32,
    /// How long an address is ejected, unless a probe or a response shows earlier that it is back. Twice as long for each
    /// ejection that follows. Range: 10ms to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) ejection: Duration,
    /// The longest ejection. Range: ejection to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) longest_ejection: Duration,
    /// The part of all addresses that may be ejected at a time, in percent: failures that all have in common must not push all
    /// clients to a few. One of several may be in any case. Range: 0 to 100.
    pub(crate) max_ejected_percent: u8,
    /// How long the share of new connections grows of an address that returns, so that it does not get all of them at once.
    /// Range: 0s to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) slow_start: Duration,
}

impl Default for Section {
    fn default() -> Self {
        let pool = PoolConfig::default();
        Self {
            probe: Kind::default(),
            path: Text::of("/", Path(PathAndQuery::from_static("/"))),
            interval: None,
            timeout: Duration::from_secs(5),
            failures: pool.failures,
            ejection: pool.ejection,
            longest_ejection: pool.longest_ejection,
            max_ejected_percent: pool.max_ejected,
            slow_start: pool.slow_start,
        }
    }
}

/// What a probe asks for.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(crate) enum Kind {
    #[default]
    Tcp,
    Http,
    Websocket,
}

/// Interval of http and websocket probes.
const INTERVAL: Duration = Duration::from_secs(5);

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        let hour = Duration::from_secs(3600);
        let wait = Duration::from_millis(10)..=hour;
        let within =
            |range: &std::ops::RangeInclusive<Duration>, value: Duration, field: &str, bound: &str| {
                let message = format!("health.{field}: must be {bound}");
                range.contains(&value).then_some(()).ok_or(message)
            };
        if let Some(interval) = self.interval {
            within(&(Duration::from_millis(100)..=hour), interval, "interval", "between 100ms and 1h")?;
        }
        within(&wait, self.timeout, "timeout", "between 10ms and 1h")?;
        within(&wait, self.ejection, "ejection", "between 10ms and 1h")?;
        within(
            &(self.ejection..=hour),
            self.longest_ejection,
            "longest-ejection",
            "between ejection and 1h",
        )?;
        within(&(Duration::ZERO..=hour), self.slow_start, "slow-start", "at most 1h")?;
        if !(1..=1000).contains(&self.failures) {
            return Err("health.failures: must be between 1 and 1000".to_owned());
        }
        if self.max_ejected_percent > 100 {
            return Err("health.max-ejected-percent: must be at most 100".to_owned());
        }
        Ok(())
    }

    /// Returns the settings of the choice among the addresses.
    pub(crate) fn pool(&self) -> PoolConfig {
        PoolConfig {
            failures: self.failures,
            ejection: self.ejection,
            longest_ejection: self.longest_ejection,
            max_ejected: self.max_ejected_percent,
            slow_start: self.slow_start,
            ..PoolConfig::default()
        }
    }

    /// Returns the interval of probes while an address is up.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.interval.or((self.probe != Kind::Tcp).then_some(INTERVAL))
    }

    /// Returns what a probe asks for.
    pub(crate) fn ask(&self) -> Ask {
        let path = self.path.0.clone();
        match self.probe {
            Kind::Tcp => Ask::Connection,
            Kind::Http => Ask::Http(path),
            Kind::Websocket => Ask::WebSocket(path),
        }
    }
}

/// A path with a query.
#[derive(Debug, Clone)]
pub(crate) struct Path(PathAndQuery);

impl Written for Path {
    const EXPECTED: Expected = Expected { kind: "path", example: "/healthz" };

    fn parse(text: &str) -> Result<Self, String> {
        let path = text.starts_with('/').then(|| text.parse().ok()).flatten();
        path.map(Self)
            .ok_or_else(|| format!("{text:?} is not a path; a path begins with /, for example /healthz"))
    }
}
