//! `[routes.NAME.origins]`: the web pages that may open a WebSocket.

use mainstay::server::Origins;

use crate::values;

/// The origins of a route.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Accept WebSockets only from pages of these origins, for example "https://example.com". Default: any. The backend
    /// receives each client's Origin and can decide.
    pub(crate) allow: Vec<String>,
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        let wrong = |allowed: &String| {
            values::origin(allowed).err().map(|error| format!("allow: {allowed:?}: {error}"))
        };
        self.allow.iter().find_map(wrong).map_or(Ok(()), Err)
    }

    /// Returns the origins for the check of a request.
    pub(crate) fn origins(&self) -> Origins {
        match self.allow.as_slice() {
            [] => Origins::Any,
            allowed => Origins::Only(allowed.to_vec()),
        }
    }
}
