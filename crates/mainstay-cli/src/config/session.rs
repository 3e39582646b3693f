//! `[routes.NAME.session]`: how long sessions and connections are kept, and to what they are bound.

use std::time::Duration;

use http::HeaderName;
use mainstay::ConfigError;
use mainstay::server::LifetimeConfig;

use super::duration;
use super::text::{Expected, Text, Written};
use crate::clients::principal::PrincipalSource;
use crate::values;

/// The sessions of a route.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// How long the session of a client that speaks mainstay.v1 is kept after its connection was lost. Range: 0s to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) resume_window: Duration,
    /// Cookies that identify the user: a session is resumed only by a request with the same values.
    pub(crate) cookies: Vec<String>,
    /// Headers that identify the user, such as Authorization: a session is resumed only by a request with the same values.
    /// They must not change while a session lives.
    pub(crate) headers: Vec<Text<HeaderName>>,
    /// Sessions continue at another node, or in the next process, when this one ends: each gets a new connection to the
    /// backend there. Requires profile.on-backend-loss keep (or a protocol with it), and a cluster or a state-dir.
    pub(crate) movable: bool,
    /// Compress towards clients that offer permessage-deflate.
    pub(crate) deflate: bool,
    /// Close sessions and plain connections that carried no message for this long, in either direction. Default: off.
    /// Range: 1s to 1week.
    #[serde(with = "duration::optional")]
    #[schemars(with = "Option<String>")]
    pub(crate) idle_timeout: Option<Duration>,
    /// Ask clients to reconnect when a connection is this old, +-20 %. Sessions continue. Default: off. Range: 1s to 1week.
    #[serde(with = "duration::optional")]
    #[schemars(with = "Option<String>")]
    pub(crate) max_lifetime: Option<Duration>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            resume_window: Duration::from_secs(120),
            cookies: Vec::new(),
            headers: Vec::new(),
            movable: false,
            deflate: false,
            idle_timeout: None,
            max_lifetime: None,
        }
    }
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.resume_window > Duration::from_secs(3600) {
            return Err("resume-window: must be at most 1h".to_owned());
        }
        if let Some((cookie, error)) =
            self.cookies.iter().find_map(|name| Some((name, values::token(name).err()?)))
        {
            return Err(format!("cookies: {cookie:?}: {error}"));
        }
        self.lifetime().map(drop)
    }

    /// Returns the limits of a connection's life.
    ///
    /// # Errors
    /// The field and its bound.
    pub(crate) fn lifetime(&self) -> Result<LifetimeConfig, String> {
        let wrong =
            |field: &'static str| move |error: ConfigError| format!("{field}: must be {}", error.bound);
        let mut config = LifetimeConfig::default();
        if let Some(idle) = self.idle_timeout {
            config = config.idle_timeout(idle).map_err(wrong("idle-timeout"))?;
        }
        if let Some(lifetime) = self.max_lifetime {
            config = config.max_lifetime(lifetime).map_err(wrong("max-lifetime"))?;
        }
        Ok(config)
    }

    /// Returns the credentials that a resume must repeat.
    pub(crate) fn principal(&self) -> PrincipalSource {
        let headers = self.headers.iter().map(|name| (**name).clone()).collect();
        PrincipalSource { headers, cookies: self.cookies.clone() }
    }
}

impl Written for HeaderName {
    const EXPECTED: Expected = Expected { kind: "header name", example: "Authorization" };

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{text:?} is not a header name"))
    }
}
