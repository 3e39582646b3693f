//! TLS to a server: trusted certificates and the client certificate, from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay::client::rustls::client::WebPkiServerVerifier;
use mainstay::client::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use mainstay::client::rustls::crypto::{CryptoProvider, ring};
use mainstay::client::rustls::pki_types::pem::PemObject;
use mainstay::client::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use mainstay::client::rustls::server::ParsedCertificate;
use mainstay::client::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use mainstay::client::{Connector, Place};

/// Flags for TLS to the backend.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Trust the certificates in this file (PEM) for a wss:// backend instead of the system's: those of certificate
    /// authorities, or the backend's own if it is self-signed.
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// The client certificate to present to a wss:// backend, a file (PEM) with its chain.
    #[arg(long, value_name = "FILE")]
    upstream_cert: Option<PathBuf>,
    /// The private key of --upstream-cert, a file (PEM).
    #[arg(long, value_name = "FILE")]
    upstream_key: Option<PathBuf>,
    /// The name to expect in the certificate of a wss:// backend. Default: the host of --upstream.
    #[arg(long, value_name = "NAME")]
    upstream_server_name: Option<String>,
}

/// TLS to the backend.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Tls {
    /// Trust the certificates in this file (PEM) instead of the system's: those of certificate authorities, or the backend's
    /// own if it is self-signed.
    pub(crate) ca: Option<PathBuf>,
    /// The client certificate to present, a file (PEM) with its chain.
    pub(crate) certificate: Option<PathBuf>,
    /// The private key of the certificate, a file (PEM).
    pub(crate) key: Option<PathBuf>,
    /// The name to expect in the backend's certificate. Default: the host of the address.
    pub(crate) server_name: Option<String>,
}

/// Builds the connector to each of these places. They share one configuration of TLS.
///
/// # Errors
/// Begins with the field. A file cannot be read, or the settings need a backend that speaks TLS.
pub(crate) fn connectors<'a>(
    tls: &Tls,
    places: impl Iterator<Item = &'a Place> + Clone,
) -> Result<Vec<Connector>, String> {
    let mut connector = Connector::default();
    match (&tls.certificate, &tls.key) {
        (Some(_), None) => {
            return Err("tls.certificate: <upstream.tls.certificate> requires <upstream.tls.key>".to_owned());
        }
        (None, Some(_)) => {
            return Err("tls.key: <upstream.tls.key> requires <upstream.tls.certificate>".to_owned());
        }
        _ => {}
    }
    let identity = tls.certificate.as_deref().zip(tls.key.as_deref());
    if *tls != Tls::default() && places.clone().any(|place| place.url.scheme_str() != Some("wss")) {
        return Err("tls: <upstream.tls.ca>, <upstream.tls.certificate>, <upstream.tls.key> and \
                    <upstream.tls.server-name> require a backend that speaks TLS: write wss://... as \
                    <upstream.addresses>"
            .to_owned());
    }
    if let Some(name) = &tls.server_name {
        connector = connector
            .server_name(name)
            .map_err(|error| format!("tls.server-name: <upstream.tls.server-name>: {error}"))?;
    }
    if tls.ca.is_some() || identity.is_some() {
        let config = config(tls.ca.as_deref(), identity).map_err(|error| match error.split_once(' ') {
            Some(("cert", rest)) => format!("tls.certificate: <upstream.tls.certificate> {rest}"),
            Some(("key", rest)) => format!("tls.key: <upstream.tls.key> {rest}"),
            Some((_, rest)) => format!("tls.ca: <upstream.tls.ca> {rest}"),
            None => error,
        })?;
        connector = connector.tls(config);
    }
    let at = |place: &Place| match &place.socket {
        Some(socket) => connector.clone().unix(socket),
        None => connector.clone(),
    };
    Ok(places.map(at).collect())
}

/// Builds a TLS configuration that trusts `ca`, or the system's certificates, and presents `identity`, a certificate and its
/// key. An error begins with `ca`, `cert` or `key` and names the file.
pub(crate) fn config(
    ca: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("ca: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(ca, provider)?));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates("cert", cert)?;
            let key_der = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("key {}: no private key found: {error}", key.display()))?;
            let checked = builder.with_client_auth_cert(chain, key_der);
            checked.map_err(|error| format!("cert {}: {error}", cert.display()))?
        }
    };
    Ok(Arc::new(config))
}

/// Returns what verifies servers: it trusts `ca`, or the system's certificates. An error begins with `ca` and names the file.
pub(crate) fn verifier(ca: Option<&Path>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    Ok(Arc::new(Verifier::new(ca, Arc::new(ring::default_provider()))?))
}

fn certificates(flag: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| format!("{flag} {}: {error}", file.display()))?;
    if found.is_empty() {
        return Err(format!("{flag} {}: no certificate found (-----BEGIN CERTIFICATE-----)", file.display()));
    }
    Ok(found)
}

/// Verifies as rustls does, with one exception: a trusted self-signed certificate that is marked as a certificate
/// authority's (CA:TRUE), as `openssl req -x509` creates them, is accepted as a server's own. OpenSSL, and so nginx, accepts
/// it too.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(ca: Option<&Path>, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let trusted = match ca {
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Vec::new()
            }
            Some(file) => {
                let trusted = certificates("ca", file)?;
                for certificate in &trusted {
                    let wrong = |error: Error| format!("ca {}: {error}", file.display());
                    roots.add(certificate.clone()).map_err(wrong)?;
                }
                trusted
            }
        };
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self { webpki: webpki.map_err(|error| format!("ca: {error}"))?, trusted })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The validity period was checked before this error.
            Err(Error::InvalidCertificate(CertificateError::Other(why)))
                if why.to_string().contains("CaUsedAsEndEntity") && self.trusted.contains(end_entity) =>
            {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                mainstay::client::rustls::client::verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
