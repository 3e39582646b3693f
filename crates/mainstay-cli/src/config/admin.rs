//! `[admin]`: the listener of health checks, metrics, the operator's console and its API.

use std::path::PathBuf;

use crate::values;

/// Settings of the admin listener.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Address to serve health checks, metrics, the console and its API on. Default: off.
    pub(crate) listen: Option<String>,
    /// A file with the token that everything but health checks requires there, as "Authorization: Bearer TOKEN": one line of 16 to 1024 characters.
    /// Required if the address is not a loopback address.
    pub(crate) token_file: Option<PathBuf>,
    /// How many events of clients are kept, for the question why a session reconnected: the newest of all clients together,
    /// 80 bytes each. Default: 16384. Range: 0, which keeps none and no path of a session, to 10000000.
    pub(crate) timeline: usize,
}

impl Default for Section {
    fn default() -> Self {
        Self { listen: None, token_file: None, timeline: 16_384 }
    }
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.timeline > 10_000_000 {
            return Err(
                "timeline: must be at most 10000000 events, which take 800 MB; write for example 16384"
                    .to_owned(),
            );
        }
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
