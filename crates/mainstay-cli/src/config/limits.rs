//! `[limits]`: what clients may take from the whole process. `[routes.NAME.limits]`: from one route.

use mainstay::Budget;

use super::size;
use super::text::{Expected, Text, Written};
use crate::values;

/// Limits of the whole process.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Maximum number of open connections. A further one gets 503 with Retry-After. Default: as many as the limit of open
    /// files allows, at most 1,000,000. Range: 0 and above; 0 refuses all.
    pub(crate) connections: Option<usize>,
    /// Maximum number of open connections of one address, which is one /64 in IPv6. Default: no limit. Range: 0 and above.
    pub(crate) connections_per_address: Option<usize>,
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
        Ok(())
    }
}

impl Written for Budget {
    const EXPECTED: Expected = Expected { kind: "size or off", example: "512MiB" };

    fn parse(text: &str) -> Result<Self, String> {
        values::memory_budget(text)
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
}

impl Default for RouteLimits {
    fn default() -> Self {
        Self { message: 16 << 20, fragments: 4096, request_body: None }
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
        Ok(())
    }
}
