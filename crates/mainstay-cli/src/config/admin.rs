//! `[admin]`: the listener of health checks, metrics, the operator's console and its API.

use std::path::PathBuf;

use super::text::Text;
use crate::listen_address::ListenAddress;

/// Settings of the admin listener.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Address to serve health checks, metrics, the console and its API on: 127.0.0.1:9090, or unix:/run/mainstay-admin.sock,
    /// whose mode decides who may connect (`?mode=600`). Default: off.
    pub(crate) listen: Option<Text<ListenAddress>>,
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
            Some(listen) if listen.is_plain => {
                Err("listen: this listener never speaks TLS; write the address without plain:".to_owned())
            }
            Some(_) => Ok(()),
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
