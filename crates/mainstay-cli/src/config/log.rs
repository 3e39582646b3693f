//! `[log]`: the log on standard error.

use crate::observe::log::{self, Format};

/// Settings of the log.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Format of the log: text, or one JSON object per line.
    pub(crate) format: Format,
    /// What is logged: a level (error, warn, info, debug, trace, off) or TARGET=LEVEL, several separated by commas. With
    /// info, each client that ends or resumes is one line. Default: warnings, and lines about the process and its backend.
    pub(crate) filter: Option<String>,
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        log::filter(self.filter.as_deref()).map(drop).map_err(|error| format!("filter: {error}"))
    }
}
