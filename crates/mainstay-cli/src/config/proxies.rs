//! `[proxies]`: the proxies in front of the gateway.

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
    /// The version of the PROXY protocol with which connections of trusted proxies begin: "v1", "v2" or "any"; "off": with
    /// none. A connection of a trusted proxy without a valid header is then closed.
    pub(crate) proxy_protocol: Text<Header>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            client_address: Text::of("x-forwarded-for", ForwardedBy::XForwardedFor),
            proxy_protocol: Text::of("off", Header(None)),
        }
    }
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

    /// Returns who sends PROXY headers; `None`: no proxy does. `server` has the proxies in force.
    pub(crate) fn proxy_protocol(&self, server: &Server) -> Option<ProxyProtocol> {
        let server = server.clone();
        self.proxy_protocol
            .0
            .map(|versions| ProxyProtocol::new(versions, move |peer| server.trusts_proxy(peer)))
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

/// The versions of the PROXY protocol; `None`: it is not spoken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header(Option<Versions>);

impl Written for Header {
    const EXPECTED: Expected = Expected { kind: "version: off, v1, v2 or any", example: "v2" };

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            "v1" => Ok(Self(Some(Versions::One))),
            "v2" => Ok(Self(Some(Versions::Two))),
            "any" => Ok(Self(Some(Versions::Any))),
            _ => Err(format!("{text:?} must be off, v1, v2 or any")),
        }
    }
}
