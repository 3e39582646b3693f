//! `[proxies]`: the proxies in front of the gateway.

use std::net::IpAddr;

use mainstay::Server;
use mainstay::server::{ForwardedBy, Network, Proxies, ProxyProtocol, Versions};

use super::text::{Expected, Text, Written};
use crate::values;

/// The proxies that clients come through.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Proxies, by address or network, or "unix" for all that connect over a Unix socket. They report the address of each
    /// client, by which limits count and the log names it, and their X-Forwarded-*, Forwarded and X-Real-IP headers are
    /// forwarded to the backend. Default: none. These headers are removed from every other request, and X-Forwarded-For
    /// holds the address that connected.
    pub(crate) trusted: Vec<Text<Trusted>>,
    /// The header in which they report it: "x-forwarded-for" or "forwarded", from the end of which the addresses of trusted
    /// proxies are skipped, or "x-real-ip".
    pub(crate) client_address: Text<ForwardedBy>,
    /// Whether connections of these proxies, and those at Unix sockets, begin with a PROXY header, and of which version. Its
    /// address takes the place of the proxy's. A connection of theirs without a valid header is closed.
    pub(crate) proxy_protocol: ProxyVersions,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            client_address: Text::of("x-forwarded-for", ForwardedBy::XForwardedFor),
            proxy_protocol: ProxyVersions::Off,
        }
    }
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
    /// Returns the trusted proxies and what they report.
    pub(crate) fn proxies(&self) -> Proxies {
        let networks = self.trusted.iter().filter_map(|trusted| match **trusted {
            Trusted::Network(network) => Some(network),
            Trusted::Unix => None,
        });
        let has_unix = self.trusted.iter().any(|trusted| matches!(**trusted, Trusted::Unix));
        Proxies::new(networks, *self.client_address).trust_unix(has_unix)
    }

    /// Returns which connections begin with a PROXY header; `None` if none does. `server` has the proxies in force.
    pub(crate) fn proxy_protocol(&self, server: &Server) -> Option<ProxyProtocol> {
        let versions = match self.proxy_protocol {
            ProxyVersions::Off => return None,
            ProxyVersions::V1 => Versions::One,
            ProxyVersions::V2 => Versions::Two,
            ProxyVersions::Any => Versions::Any,
        };
        let server = server.clone();
        // The mode of its file decides which process may connect to a Unix socket.
        let trusts = move |peer: Option<IpAddr>| peer.is_none() || server.trusts_proxy(peer);
        Some(ProxyProtocol::new(versions, trusts))
    }
}

/// A proxy that is trusted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trusted {
    Network(Network),
    Unix,
}

impl Written for Trusted {
    const EXPECTED: Expected = Expected { kind: "network or unix", example: "10.0.0.0/8" };

    fn parse(text: &str) -> Result<Self, String> {
        if text == "unix" { Ok(Self::Unix) } else { values::network(text).map(Self::Network) }
    }
}

impl Written for ForwardedBy {
    const EXPECTED: Expected =
        Expected { kind: "header: x-forwarded-for, forwarded or x-real-ip", example: "x-forwarded-for" };

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "x-forwarded-for" => Ok(Self::XForwardedFor),
            "forwarded" => Ok(Self::Forwarded),
            "x-real-ip" => Ok(Self::XRealIp),
            _ => Err(format!("{text:?} must be x-forwarded-for, forwarded or x-real-ip")),
        }
    }
}
