//! `[proxies]`: the proxies in front of the gateway.

use super::text::{Expected, Text, Written};
use crate::forward::Network;
use crate::values;

/// The proxies that clients come through.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Proxies, by address or network, whose X-Forwarded-*, Forwarded and X-Real-IP headers are forwarded to the backend.
    /// Default: none. These headers are removed from every other request, and X-Forwarded-For holds the address that
    /// connected.
    pub(crate) trusted: Vec<Text<Network>>,
}

impl Section {
    /// Returns the trusted networks.
    pub(crate) fn networks(&self) -> Vec<Network> {
        self.trusted.iter().map(|network| **network).collect()
    }
}

impl Written for Network {
    const EXPECTED: Expected = Expected { kind: "network", example: "10.0.0.0/8" };

    fn parse(text: &str) -> Result<Self, String> {
        values::network(text)
    }
}
