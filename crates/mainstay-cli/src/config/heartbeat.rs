//! `[routes.NAME.heartbeat]`: how often clients and the backend are probed.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay::HeartbeatConfig;

use super::duration;
use super::text::{Expected, Text, Written};
use crate::values;

/// The heartbeats of a route.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Interval of heartbeats, towards clients and the backend. A dead peer is detected within the interval plus 5 to 20 s.
    /// Range: 100ms to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) interval: Duration,
    /// Other intervals for a path and everything below it, for example { "/prices" = "5s" }. The longest matching path wins.
    pub(crate) paths: BTreeMap<String, Text<HeartbeatConfig>>,
}

impl Default for Section {
    fn default() -> Self {
        Self { interval: HeartbeatConfig::default().interval(), paths: BTreeMap::new() }
    }
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        HeartbeatConfig::every(self.interval)
            .map_err(|error| format!("interval: must be {}", error.bound))?;
        match self.paths.keys().find(|path| !path.starts_with('/') || path.contains(['?', '#'])) {
            Some(path) => {
                Err(format!("paths: {path:?} is not a path; a path begins with / and has no query"))
            }
            None => Ok(()),
        }
    }
}

impl Written for HeartbeatConfig {
    const EXPECTED: Expected = Expected { kind: "duration", example: "5s" };

    fn parse(text: &str) -> Result<Self, String> {
        values::heartbeat(text)
    }
}
