//! `[routes.NAME.upstream]`: the backend of a route, and the connections to it.

use std::path::PathBuf;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue};
use mainstay::client::Place;

use super::text::{Expected, Text, Written};
use super::{duration, health, size};
use crate::tls::{self, Tls};
use crate::upstream::Address;
use crate::upstream::addresses;
use crate::upstream::probe::Prober;
use crate::upstream::stickiness::Stickiness;
use crate::upstream::when_down::{Policy, WhenDown};
use crate::values;

/// The backend of a route.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// The backend, for example "ws://127.0.0.1:3000", "wss://app.internal/ws" or "unix:/run/app.sock". Its path is put in
    /// front of the client's. Several addresses are of the same backend and have the same path: a new connection goes to the
    /// one with the fewest, and away from those that fail.
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
    /// Which clients go to the same address, where there are several: off, address (that of the client, in IPv6 its /64),
    /// cookie:NAME or query:NAME. Without the cookie or the parameter any address is used. Default: off, or the protocol's:
    /// address for engine.io, signalr and jupyter.
    pub(crate) sticky: Option<Text<Stickiness>>,
    /// What happens while no address can be reached. queue: clients and their messages wait. reject: a new client gets 503, or
    /// 1013 in its session, and so does one that sends a message. close: every client is closed with 1013. A session that is
    /// ended for a waiting message gets a new one, with the exact fate of each message.
    pub(crate) when_down: Policy,
    /// Maximum payload of the messages of one client that wait or are not confirmed. A client whose queue is full waits
    /// itself; nothing is dropped. Range: 1B to 1GiB.
    #[serde(with = "size")]
    #[schemars(with = "String")]
    pub(crate) queue_bytes: usize,
    /// How long a message may wait for a backend that cannot be reached; then its plain client is closed with 1013, and a
    /// session gets a new one. Default: as long as the client stays, and a plain one is kept. Range: 10ms to 1h.
    #[serde(with = "duration::optional")]
    #[schemars(with = "Option<String>")]
    pub(crate) queue_age: Option<Duration>,
    /// Close the connection to the backend of a client that carried no message for this long, in either direction, whether it
    /// is connected or away. The client's next message, or its return, opens another one, on which the prologue is replayed.
    /// What the backend would have sent meanwhile does not reach the client. Requires on-backend-loss keep. Default: off.
    /// Range: 1s to 1week.
    #[serde(with = "duration::optional")]
    #[schemars(with = "Option<String>")]
    pub(crate) hibernate_after: Option<Duration>,
    /// How addresses are probed, and when they are not used.
    pub(crate) health: health::Section,
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
            sticky: None,
            when_down: Policy::default(),
            queue_bytes: WhenDown::default().queue_bytes,
            queue_age: None,
            hibernate_after: None,
            health: health::Section::default(),
            tls: Tls::default(),
        }
    }
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = Duration::from_millis(10)..=Duration::from_secs(3600);
        for (field, duration) in [("wait", self.wait), ("answer-timeout", self.answer_timeout)] {
            if !bounds.contains(&duration) {
                return Err(format!("{field}: must be between 10ms and 1h"));
            }
        }
        if !(1..=1 << 30).contains(&self.queue_bytes) {
            return Err("queue-bytes: must be between 1B and 1GiB".to_owned());
        }
        if self.queue_age.is_some_and(|age| !bounds.contains(&age)) {
            return Err("queue-age: must be between 10ms and 1h".to_owned());
        }
        if self.queue_age.is_some() && self.when_down != Policy::Queue {
            return Err(
                "queue-age: contradicts when-down, with which nothing waits; remove one of them".to_owned()
            );
        }
        let week = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);
        if self.hibernate_after.is_some_and(|after| !week.contains(&after)) {
            return Err("hibernate-after: must be between 1s and 1week".to_owned());
        }
        self.health.check()?;
        self.connected().map(drop)
    }

    /// Returns the addresses with their connectors.
    ///
    /// # Errors
    /// Begins with the field. They are not addresses of one backend, or a file of TLS cannot be used.
    pub(crate) fn connected(&self) -> Result<Vec<Address>, String> {
        let places = || self.addresses.iter().map(|address| &**address);
        let connectors = tls::connectors(&self.tls, places())?;
        addresses::addresses(places(), connectors)
    }

    /// Returns what clients stick by, if the section says so.
    pub(crate) fn stickiness(&self) -> Option<Stickiness> {
        self.sticky.as_ref().map(|sticky| (**sticky).clone())
    }

    pub(crate) fn when_down(&self) -> WhenDown {
        let Self { when_down: policy, queue_bytes, queue_age, .. } = *self;
        WhenDown { policy, queue_bytes, queue_age }
    }

    /// Returns what probes the addresses. A probe carries the headers of every request.
    pub(crate) fn prober(&self) -> Prober {
        let mut fields: HeaderMap = self.fields().into_iter().collect();
        if let Some(host) = &self.host {
            fields.insert(HOST, host.0.clone());
        }
        Prober { ask: self.health.ask(), timeout: self.health.timeout, fields }
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

impl Written for Stickiness {
    const EXPECTED: Expected = Expected { kind: "kind of stickiness", example: "cookie:io" };

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
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
