//! `[routes.NAME.upstream]`: the backend of a route, and the connections to it.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mainstay::client::Place;

use super::duration;
use super::text::{Expected, Text, Written};
use crate::values;

/// The backend of a route.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// The backend, for example "ws://127.0.0.1:3000", "wss://app.internal/ws" or "unix:/run/app.sock". Its path is put in
    /// front of the client's.
    pub(crate) addresses: Vec<Text<Place>>,
    /// How long a plain client is kept while the backend cannot be reached. A client that speaks mainstay.v1 is kept as long
    /// as it stays. Range: 10ms to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) wait: Duration,
    /// How long the backend may take to respond to a request or an opening handshake, and between two pieces of a response.
    /// Range: 10ms to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) answer_timeout: Duration,
    /// The Host header of requests to the backend. Default: the client's.
    pub(crate) host: Option<Text<Host>>,
    /// Set these headers on every request to the backend, each as "Name: value"; they replace the client's headers of that
    /// name. "Name: @/path" reads the value from a file.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) headers: Vec<Text<Header>>,
    /// Offer permessage-deflate to the backend.
    pub(crate) deflate: bool,
    /// TLS to a wss:// backend.
    pub(crate) tls: Tls,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            wait: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(60),
            host: None,
            headers: Vec::new(),
            deflate: false,
            tls: Tls::default(),
        }
    }
}

/// TLS to the backend.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Tls {
    /// Trust the certificates in this file (PEM) instead of the system's: those of certificate authorities, or the backend's
    /// own if it is self-signed.
    pub(crate) ca: Option<PathBuf>,
    /// The client certificate to present, a file (PEM) with its chain.
    pub(crate) certificate: Option<PathBuf>,
    /// The private key of the certificate, a file (PEM).
    pub(crate) key: Option<PathBuf>,
    /// The name to expect in the backend's certificate. Default: the host of the address.
    pub(crate) server_name: Option<String>,
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = Duration::from_millis(10)..=Duration::from_secs(3600);
        for (field, duration) in [("wait", self.wait), ("answer-timeout", self.answer_timeout)] {
            if !bounds.contains(&duration) {
                return Err(format!("{field}: must be between 10ms and 1h"));
            }
        }
        if self.addresses.len() > 1 {
            return Err("addresses: must be one address".to_owned());
        }
        self.addresses.iter().try_for_each(|address| crate::tls::connector(&self.tls, address).map(drop))
    }

    /// Returns the files that are read.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let tls = [&self.tls.ca, &self.tls.certificate, &self.tls.key].into_iter().flatten().cloned();
        let headers = self.headers.iter().filter_map(|header| {
            let (_, value) = header.as_written().split_once(':')?;
            value.trim().strip_prefix('@').map(PathBuf::from)
        });
        tls.chain(headers).collect()
    }

    /// Returns the headers to set.
    pub(crate) fn fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        self.headers.iter().map(|header| header.0.clone()).collect()
    }
}

impl Written for Place {
    const EXPECTED: Expected = Expected { kind: "URL", example: "ws://127.0.0.1:3000" };

    fn parse(text: &str) -> Result<Self, String> {
        values::upstream(text)
    }
}

/// A Host header.
#[derive(Clone)]
pub(crate) struct Host(pub(crate) HeaderValue);

impl Written for Host {
    const EXPECTED: Expected = Expected { kind: "host", example: "app.internal" };

    fn parse(text: &str) -> Result<Self, String> {
        values::host(text).map(Self)
    }
}

/// A header for the backend.
#[derive(Clone)]
pub(crate) struct Header(pub(crate) (HeaderName, HeaderValue));

impl Written for Header {
    const EXPECTED: Expected = Expected { kind: "header", example: "X-Tier: gold" };

    fn parse(text: &str) -> Result<Self, String> {
        values::upstream_header(text).map(Self)
    }
}
