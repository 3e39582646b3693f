//! TLS towards clients: the settings, and the configuration of rustls that is made of their files.
//!
//! - [`certificates`]: chains with their keys, chosen by the name that a client asks for.
//! - [`tickets`]: the keys of session tickets, which several gateways may share.
//! - [`reload`]: takes changed files into use.
//!
//! Not here: the handshake (`mainstay::server::Tls`), TLS towards the backend (`tls`).

mod certificates;
mod reload;
#[cfg(test)]
mod tests;
mod tickets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use http::{Extensions, HeaderValue};
use mainstay::server::ClientCertificates as ClientChain;
use mainstay::server::rustls::crypto::ring;
use mainstay::server::rustls::pki_types::pem::PemObject;
use mainstay::server::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use mainstay::server::rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use mainstay::server::rustls::{RootCertStore, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::certificates::Certificates;
pub(crate) use self::certificates::Expiry;
pub(crate) use self::reload::{ClientTls, Hosts, Prepared, expiries};
use self::tickets::Tickets;

/// TLS towards clients. Without a certificate every listener is plain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct TlsSection {
    /// The certificate: a file (PEM) with its chain. Default: none, and no TLS.
    pub(crate) certificate: Option<PathBuf>,
    /// The file (PEM) with the private key of the certificate.
    pub(crate) key: Option<PathBuf>,
    /// Further certificates, each with its key, as { chain = "a.pem", key = "a.key" }. A client gets the first that is for
    /// the host that it asks for, else the first of all. Default: none.
    pub(crate) certificates: Vec<CertificateFiles>,
    /// A file (PEM) with the authorities that issue the certificates of clients. Default: none, and clients are not asked.
    pub(crate) client_ca: Option<PathBuf>,
    /// A file (PEM) with revocation lists of these authorities. Default: none.
    pub(crate) client_crl: Option<PathBuf>,
    /// Whether a client must present a certificate. Default: required, where `client-ca` is set.
    pub(crate) client_certificates: ClientCertificates,
    /// A file with the keys of session tickets: one line of 64 hexadecimal digits for each, as `openssl rand -hex 32` prints
    /// them. The first encrypts, all decrypt. Gateways with the same file continue one another's handshakes. Default: a
    /// random key of this process, renewed every 6 hours.
    pub(crate) ticket_keys: Option<PathBuf>,
    /// Offer HTTP/2, with WebSockets in it (RFC 8441). Default: no.
    pub(crate) http2: bool,
}

/// A certificate and its key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct CertificateFiles {
    /// A file (PEM) with the certificate first, then those of its issuers.
    pub(crate) chain: PathBuf,
    /// The file (PEM) with its private key.
    pub(crate) key: PathBuf,
}

/// A certificate, and the settings that name its two files.
struct Named {
    settings: [&'static str; 2],
    files: CertificateFiles,
}

/// Whether a client must present a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClientCertificates {
    /// A client without one is refused in the handshake.
    #[default]
    Required,
    /// A client may have none. One that is not of `client-ca` is refused all the same.
    Optional,
}

impl TlsSection {
    /// Returns whether listeners speak TLS.
    pub(crate) fn is_on(&self) -> bool {
        !self.all().is_empty()
    }

    /// Returns all certificates, in the order in which they are chosen.
    fn all(&self) -> Vec<Named> {
        let first = self.certificate.iter().zip(&self.key).map(|(chain, key)| Named {
            settings: ["certificate", "key"],
            files: CertificateFiles { chain: chain.clone(), key: key.clone() },
        });
        let others = self.certificates.iter().cloned();
        first.chain(others.map(|files| Named { settings: ["certificates"; 2], files })).collect()
    }

    /// Checks what can be checked without the files.
    ///
    /// # Errors
    /// One line that names the setting and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        let needs = |name: &str| {
            Err(format!(
                "{name}: requires a certificate, in <tls.certificate> and <tls.key>, or in <tls.certificates>"
            ))
        };
        match self {
            _ if self.certificate.is_some() && self.key.is_none() => {
                Err("certificate: requires its private key; add <tls.key>".to_owned())
            }
            _ if self.certificate.is_none() && self.key.is_some() => {
                Err("key: requires its certificate; add <tls.certificate>".to_owned())
            }
            _ if self.certificates.len() > MOST_CERTIFICATES => Err(format!(
                "certificates: must be at most {MOST_CERTIFICATES}; use certificates for several names"
            )),
            _ if self.client_ca.is_none() && self.client_crl.is_some() => {
                Err("client-crl: requires <tls.client-ca>, whose certificates it revokes".to_owned())
            }
            _ if self.client_ca.is_none() && self.client_certificates != ClientCertificates::default() => {
                Err("client-certificates: requires <tls.client-ca>, the authorities that issue them"
                    .to_owned())
            }
            _ if self.is_on() => Ok(()),
            _ if self.client_ca.is_some() => needs("client-ca"),
            _ if self.ticket_keys.is_some() => needs("ticket-keys"),
            _ if self.http2 => needs("http2"),
            _ => Ok(()),
        }
    }

    /// Returns the files whose change is taken into use.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let certificates = self.all().into_iter().flat_map(|named| [named.files.chain, named.files.key]);
        let others = [&self.client_ca, &self.client_crl, &self.ticket_keys].into_iter().flatten();
        certificates.chain(others.cloned()).collect()
    }

    /// Reads the files. `own` makes tickets where no file has their keys.
    ///
    /// # Errors
    /// One line that names the setting, the file and what is wrong with it.
    fn load(&self, own: &Arc<dyn ProducesTickets>) -> Result<Loaded, String> {
        let provider = Arc::new(ring::default_provider());
        let certificates = Certificates::load(&self.all(), &provider)?;
        let (expiries, hosts) = (certificates.expiries(), certificates.hosts());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("{error}"))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = RootCertStore::from_iter(trusted(file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = verifier.with_crls(self.revoked()?);
                let verifier = match self.client_certificates {
                    ClientCertificates::Required => verifier,
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                };
                let built = verifier.build();
                builder.with_client_cert_verifier(
                    built.map_err(|error| format!("client-ca: {}: {error}", file.display()))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = match self.http2 {
            true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            false => vec![b"http/1.1".to_vec()],
        };
        // Tickets only: nothing is kept here for a client that may come back, and any gateway can continue.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = self.ticketer(own)?;
        Ok(Loaded { config: Arc::new(config), expiries, hosts })
    }

    fn ticketer(&self, own: &Arc<dyn ProducesTickets>) -> Result<Arc<dyn ProducesTickets>, String> {
        match (&self.ticket_keys, self.client_ca.is_some()) {
            (Some(file), _) => Ok(Arc::new(Tickets::read(file, &self.client_files()?)?)),
            (None, false) => Ok(Arc::clone(own)),
            // The certificate that a ticket carries was judged by these files alone.
            (None, true) => Ok(Arc::new(Tickets::random(&self.client_files()?))),
        }
    }

    /// Returns what decides which clients are accepted.
    fn client_files(&self) -> Result<Vec<u8>, String> {
        let files = self.client_ca.iter().chain(&self.client_crl);
        let read = files.map(|file| {
            std::fs::read(file).map_err(|error| format!("client-ca: {}: {error}", file.display()))
        });
        Ok(read.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn revoked(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
        let Some(file) = &self.client_crl else { return Ok(Vec::new()) };
        let read = CertificateRevocationListDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let lists = read.map_err(|error| format!("client-crl: {}: {error}", file.display()))?;
        match lists.is_empty() {
            true => Err(format!(
                "client-crl: {}: no revocation list found (-----BEGIN X509 CRL-----)",
                file.display()
            )),
            false => Ok(lists),
        }
    }
}

/// Returns the certificate that the client of a request presented to this gateway.
pub(crate) fn client_certificate(extensions: &Extensions) -> Option<&CertificateDer<'static>> {
    extensions.get::<ClientChain>()?.0.first()
}

/// Returns the certificate that the client of a request presented, as the value of `Client-Cert`.
///
/// Source: RFC 9440 section 2.
pub(crate) fn client_cert(extensions: &Extensions) -> Option<HeaderValue> {
    let certificate = client_certificate(extensions)?;
    HeaderValue::try_from(format!(":{}:", BASE64_STANDARD.encode(certificate))).ok()
}

/// More names than that belong into fewer certificates, or in front of a gateway of their own.
const MOST_CERTIFICATES: usize = 1000;

/// What the files of a section make.
struct Loaded {
    config: Arc<ServerConfig>,
    expiries: Vec<Expiry>,
    hosts: Vec<String>,
}

/// Reads the certificates of the authorities that clients are judged by.
fn trusted(file: &Path) -> Result<Vec<TrustAnchor<'static>>, String> {
    let anchors = certificates::read(file, "client-ca")?;
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor).map_err(|error| format!("client-ca: {}: {error}", file.display()))?;
    }
    Ok(roots.roots)
}
