//! `[proxies]`: the proxies in front of the gateway.

use std::net::IpAddr;

use mainstay::server::{ProxyProtocol, Versions};

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
    /// Whether connections of these proxies, and those at Unix sockets, begin with a PROXY header, and of which version. Its
    /// address takes the place of the proxy's. A connection of theirs without a valid header is closed.
    pub(crate) proxy_protocol: ProxyVersions,
}

/// The versions of PROXY headers.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProxyVersions {
    /// There is no header.
    #[default]
    Off,
    /// Version 1, a line of text.
    V1,
    /// Version 2, which is binary.
    V2,
    /// Either.
    Any,
}

impl Section {
    /// Returns the trusted networks.
    pub(crate) fn networks(&self) -> Vec<Network> {
        self.trusted.iter().map(|network| **network).collect()
    }

    /// Returns which connections begin with a PROXY header; `None` if none does.
    pub(crate) fn proxy_protocol(&self) -> Option<ProxyProtocol> {
        let versions = match self.proxy_protocol {
            ProxyVersions::Off => return None,
            ProxyVersions::V1 => Versions::One,
            ProxyVersions::V2 => Versions::Two,
            ProxyVersions::Any => Versions::Any,
        };
        let trusted = self.networks();
        let trusts = move |peer: Option<IpAddr>| {
            // The mode of its file decides which process may connect to a Unix socket.
            peer.is_none_or(|peer| trusted.iter().any(|network| network.contains(peer)))
        };
        Some(ProxyProtocol::new(versions, trusts))
    }
}

impl Written for Network {
    const EXPECTED: Expected = Expected { kind: "network", example: "10.0.0.0/8" };

    fn parse(text: &str) -> Result<Self, String> {
        values::network(text)
    }
}
