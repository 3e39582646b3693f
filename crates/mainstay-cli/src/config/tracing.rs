//! `[tracing]`: spans for a collector of OpenTelemetry.

use std::collections::BTreeMap;
use std::path::PathBuf;

use http::header::{HeaderName, HeaderValue};
use mainstay::client::Place;

use super::text::{Expected, Text, Written};
use crate::http_client::HttpClient;
use crate::values;

/// Settings of traces.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// The collector that spans are sent to, as OTLP over HTTP in protobuf: http://127.0.0.1:4318, https://collector.internal or
    /// unix:/run/collector.sock. Without a path, /v1/traces is added. Default: none, and no request is traced.
    pub(crate) endpoint: Option<Text<Endpoint>>,
    /// The part of the requests that is traced, where no sampled flag decides. Default: 1.0, all. Range: 0 to 1.
    pub(crate) ratio: f64,
    /// The requests whose sampled flag, in `traceparent`, decides in place of the ratio: `proxies`, those of trusted proxies; `all`,
    /// so that any client can have itself traced; or `none`. Default: `proxies`.
    pub(crate) sampled_flag: SampledFlag,
    /// The name of this service in traces. Default: the variable OTEL_SERVICE_NAME, else mainstay.
    pub(crate) service_name: Option<String>,
    /// Headers of the requests to the collector. A value `@/path` is read from that file: write secrets so. Those of the
    /// variables OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_TRACES_HEADERS are added. Default: none.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) headers: BTreeMap<String, String>,
    /// Trusts the certificates in this file (PEM) for an https:// endpoint instead of the system's. Default: the system's.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Whose sampled flag decides.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SampledFlag {
    /// That of requests that a trusted proxy passed on.
    #[default]
    Proxies,
    /// That of every request.
    All,
    /// None.
    None,
}

/// Where spans are sent to.
#[derive(Clone)]
pub(crate) struct Endpoint(pub(crate) Place);

impl Written for Endpoint {
    const EXPECTED: Expected = Expected { kind: "URL", example: "http://127.0.0.1:4318" };

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{why}, write for example \"http://127.0.0.1:4318\"");
        let place: Place = text.parse().map_err(|error| wrong(&format!("{error}")))?;
        Ok(Self(place))
    }
}

impl Default for Section {
    fn default() -> Self {
        Self {
            endpoint: None,
            ratio: 1.0,
            sampled_flag: SampledFlag::default(),
            service_name: None,
            headers: BTreeMap::new(),
            ca_file: None,
        }
    }
}

impl Section {
    /// Checks every field, and the files that they name.
    pub(crate) fn check(&self) -> Result<(), String> {
        if *self == Self::default() {
            return Ok(());
        }
        if cfg!(not(feature = "otlp")) {
            return Err("endpoint: this mainstay is built without the feature otlp and cannot send spans; remove [tracing], or \
                        build it with --features otlp"
                .to_owned());
        }
        let Some(endpoint) = &self.endpoint else {
            return Err("endpoint: is missing, and without it nothing is traced; write for example \"http://127.0.0.1:4318\""
                .to_owned());
        };
        HttpClient::to(&endpoint.0, self.ca_file.as_deref())?;
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err("ratio: must be between 0 and 1, write for example 0.01".to_owned());
        }
        let is_name = |name: &String| !name.trim().is_empty() && name.len() <= 255;
        if !self.service_name.as_ref().is_none_or(is_name) {
            return Err("service-name: must have 1 to 255 bytes, write for example \"mainstay\"".to_owned());
        }
        self.fields().map(drop)
    }

    /// Returns the headers; reads the files that they name.
    pub(crate) fn fields(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let field = |(name, value): (&String, &String)| {
            let (name, mut value) = values::upstream_header(&format!("{name}: {value}"))
                .map_err(|error| format!("headers: {error}"))?;
            value.set_sensitive(true);
            Ok((name, value))
        };
        self.headers.iter().map(field).collect()
    }
}
