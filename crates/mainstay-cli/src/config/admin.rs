//! `[admin]`: the listener of health checks and metrics.

use std::path::PathBuf;

use crate::values;

/// Settings of the admin listener.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Address to serve /healthz, /readyz and /metrics on. Default: off.
    pub(crate) listen: Option<String>,
    /// A file with the token that /metrics requires, as "Authorization: Bearer TOKEN": one line of 16 to 1024 characters.
    /// Required if the address is not a loopback address.
    pub(crate) token_file: Option<PathBuf>,
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.listen {
            Some(listen) => values::address(listen).map(drop).map_err(|error| format!("listen: {listen:?}: {error}")),
            None if self.token_file.is_some() => Err(
                "token-file: needs <admin.listen>: without it there is no /metrics; add <admin.listen>, or remove \
                 <admin.token-file>"
                    .to_owned(),
            ),
            None => Ok(()),
        }
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.token_file.iter().cloned().collect()
    }
}
