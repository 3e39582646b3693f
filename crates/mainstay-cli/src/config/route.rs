//! `[routes.NAME]`: which requests a route takes, and its sections.

use std::path::PathBuf;

use super::text::{Expected, Text, Written};
use super::{heartbeat, limits, origins, profile, session, upstream};
use crate::credentials;
use crate::protocols::profiles::{BackendLoss, Settings};
use crate::routes::match_rule::{HostPattern, MatchRule, PathPattern};

/// A route: which requests it takes, and what is done with them.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct RouteSection {
    /// Hosts, without a port: "example.com", or "*.example.com" for all names below it. Default: any.
    pub(crate) hosts: Vec<Text<HostPattern>>,
    /// A path; the route takes it and everything below it. Default: /, all.
    pub(crate) path: Option<Text<Path>>,
    /// The only path that the route takes, in place of path.
    pub(crate) exact_path: Option<Text<Path>>,
    /// Remove the matching part of the path before a request is forwarded.
    pub(crate) strip_path: bool,
    /// The backend.
    pub(crate) upstream: upstream::Section,
    /// How long sessions and connections are kept, and to what they are bound.
    pub(crate) session: session::Section,
    /// How often clients and the backend are probed.
    pub(crate) heartbeat: heartbeat::Section,
    /// The protocol that the backend speaks, and what a lost connection to it means.
    pub(crate) profile: profile::Section,
    /// Limits of what clients may send.
    pub(crate) limits: limits::RouteLimits,
    /// The web pages that may open a WebSocket.
    pub(crate) origins: origins::Section,
    /// The clients that may use the route: by their tokens, or as a backend of yours decides. Default: all.
    pub(crate) credentials: credentials::Section,
}

impl RouteSection {
    /// Checks the fields of the route itself.
    pub(crate) fn check(&self, name: &str) -> Result<(), String> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=64).contains(&name.len()) || !name.bytes().all(is_name) {
            return Err(
                ": the name of a route must be 1 to 64 letters in lower case, digits and -".to_owned()
            );
        }
        if self.path.is_some() && self.exact_path.is_some() {
            return Err("exact-path: contradicts path; remove one of them".to_owned());
        }
        // The profile's own mistakes are reported by its section.
        let keeps = |settings: Settings| settings.on_backend_loss == BackendLoss::Keep;
        if self.upstream.hibernate_after.is_some() && !self.profile.settings().is_ok_and(keeps) {
            return Err("upstream.hibernate-after: requires <profile.on-backend-loss> keep, and a protocol that allows it: a new \
                        connection to the backend lacks what the client sent before; remove it"
                .to_owned());
        }
        Ok(())
    }

    /// Returns the files that the route's sections name.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        [self.upstream.files(), self.credentials.files()].concat()
    }

    /// Returns the rule for the table of routes.
    pub(crate) fn rule(&self) -> MatchRule {
        let path = match (&self.path, &self.exact_path) {
            (_, Some(exact)) => PathPattern::Exact(exact.0.clone()),
            (Some(path), None) => PathPattern::Prefix(path.0.clone()),
            (None, None) => PathPattern::default(),
        };
        MatchRule {
            hosts: self.hosts.iter().map(|host| (**host).clone()).collect(),
            path,
            strips_path: self.strip_path,
        }
    }

    /// Returns each host with the path, as a text that is the same for the same requests.
    pub(crate) fn rules(&self) -> Vec<String> {
        let path = match (&self.path, &self.exact_path) {
            (_, Some(exact)) => format!("exactly {}", exact.0),
            (Some(path), None) => format!("{}/", path.0.trim_end_matches('/')),
            (None, None) => "/".to_owned(),
        };
        let hosts = self.hosts.iter().map(|host| host.as_written().to_ascii_lowercase());
        let hosts: Vec<String> =
            if self.hosts.is_empty() { vec!["any host".to_owned()] } else { hosts.collect() };
        hosts.into_iter().map(|host| format!("{host} at {path}")).collect()
    }
}

impl Written for HostPattern {
    const EXPECTED: Expected = Expected { kind: "host", example: "example.com or *.example.com" };

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

/// A path without a query.
#[derive(Clone)]
pub(crate) struct Path(Box<str>);

impl Written for Path {
    const EXPECTED: Expected = Expected { kind: "path", example: "/chat" };

    fn parse(text: &str) -> Result<Self, String> {
        match text.starts_with('/') && !text.contains(['?', '#', ' ', '*']) {
            true => Ok(Self(text.into())),
            false => Err(format!(
                "{text:?} is not a path; a path begins with / and has no query and no wildcard, for example /chat"
            )),
        }
    }
}
