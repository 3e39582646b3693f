//! `[admin]`: the listener of health checks, metrics, the operator's console and its API.

use std::path::PathBuf;

use super::text::Text;
use crate::clients::client_tls::{ClientCertificates, TlsSection};
use crate::clients::listen_address::{ListenAddress, Place};

/// Settings of the admin listener.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Address to serve health checks, metrics, the console and its API on: 127.0.0.1:9090, or unix:/run/mainstay-admin.sock,
    /// whose mode decides who may connect (`?mode=600`). Default: off.
    pub(crate) listen: Option<Text<ListenAddress>>,
    /// A file with the token that everything but health checks requires there, as "Authorization: Bearer TOKEN": one line of 16 to 1024 characters.
    /// Required if the address is not a loopback address, unless tls has a client-ca.
    pub(crate) token_file: Option<PathBuf>,
    /// TLS of this listener. Without a certificate it is plain.
    pub(crate) tls: AdminTls,
    /// How many events of clients are kept, for the question why a session reconnected: the newest of all clients together,
    /// 80 bytes each. Default: 16384. Range: 0, which keeps none and no path of a session, to 10000000.
    pub(crate) timeline: usize,
}

/// TLS of the admin listener.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct AdminTls {
    /// The certificate: a file (PEM) with its chain. Default: none, and no TLS.
    pub(crate) certificate: Option<PathBuf>,
    /// The file (PEM) with the private key of the certificate.
    pub(crate) key: Option<PathBuf>,
    /// A file (PEM) with the authorities that issue the certificates of operators and scrapers. A client with such a
    /// certificate needs no token; a client with the token needs no certificate. Default: none, and clients are not asked.
    pub(crate) client_ca: Option<PathBuf>,
    /// A file (PEM) with revocation lists of these authorities. Default: none.
    pub(crate) client_crl: Option<PathBuf>,
}

impl Default for Section {
    fn default() -> Self {
        Self { listen: None, token_file: None, tls: AdminTls::default(), timeline: 16_384 }
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
        let needs_listen = |field: &str| {
            Err(format!(
                "{field}: needs <admin.listen>: without it there is no /metrics; add <admin.listen>, or remove \
                 <admin.{field}>"
            ))
        };
        match &self.listen {
            Some(listen) if listen.is_plain => {
                Err("listen: this listener has TLS only by <admin.tls>; write the address without plain:"
                    .to_owned())
            }
            Some(listen) if self.tls.is_on() && matches!(listen.place, Place::Unix(_)) => {
                Err("tls: a Unix socket has no TLS; remove <admin.tls>, or listen on 127.0.0.1:9090"
                    .to_owned())
            }
            Some(_) => Ok(()),
            None if self.token_file.is_some() => needs_listen("token-file"),
            None if self.tls.is_on() => needs_listen("tls"),
            None => Ok(()),
        }
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.token_file.iter().cloned().chain(self.tls.section().files()).collect()
    }
}

impl AdminTls {
    pub(crate) fn is_on(&self) -> bool {
        self.section().is_on()
    }

    /// Returns the settings as those of any listener. A client may have no certificate: health checks need none, nor does
    /// a client with the token.
    pub(crate) fn section(&self) -> TlsSection {
        let Self { certificate, key, client_ca, client_crl } = self.clone();
        let client_certificates = match client_ca {
            Some(_) => ClientCertificates::Optional,
            None => ClientCertificates::default(),
        };
        TlsSection { certificate, key, client_ca, client_crl, client_certificates, ..TlsSection::default() }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let checked = self.section().check();
        checked.map_err(|what| {
            let what = what.replace(", or in <tls.certificates>", "");
            what.replace("<tls.", "<admin.tls.")
        })
    }
}
