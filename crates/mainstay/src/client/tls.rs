//! TLS to a server, and why it failed, in words that help to fix it.

use std::io;
use std::sync::{Arc, OnceLock};

use mainstay_proto::reach::{ConnectFailure, FailureKind};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Failure, UrlError, UrlErrorKind};

/// The name that a certificate has to be for.
pub(super) fn server_name(name: &str) -> Result<ServerName<'static>, UrlError> {
    ServerName::try_from(name.to_owned()).map_err(|error| {
        let words =
            format!("{name} is not a name that a certificate can be for, as example.com or 192.0.2.1");
        UrlError::new(UrlErrorKind::ServerName, Failure::caused_by(error, words))
    })
}

/// Performs the TLS handshake with a server of this name. Without a `config` it uses the certificates that the system trusts.
pub(super) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    name: &ServerName<'static>,
    config: Option<&Arc<ClientConfig>>,
) -> Result<TlsStream<S>, ConnectFailure> {
    let config = match config {
        Some(config) => Arc::clone(config),
        None => usual()?,
    };
    let connecting = TlsConnector::from(config).connect(name.clone(), socket);
    connecting.await.map_err(|error| failure(error, &name.to_str()))
}

/// TLS 1.2 and 1.3, and the certificates that the system trusts.
fn usual() -> Result<Arc<ClientConfig>, ConnectFailure> {
    static USUAL: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = USUAL.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    // Not `ClientConfig::builder`: it panics where another crate has added a second provider to the program.
    let provider = rustls::crypto::CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            let words = format!("TLS: {error}");
            ConnectFailure::new(FailureKind::Tls, Failure::caused_by(error, words))
        })?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::clone(USUAL.get_or_init(|| Arc::new(config))))
}

fn failure(error: io::Error, name: &str) -> ConnectFailure {
    use rustls::Error;
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let (kind, words) = match cause {
        Some(Error::InvalidCertificate(why)) => {
            (FailureKind::Certificate, format!("the certificate of {name} {}", distrust(why)))
        }
        Some(Error::InvalidMessage(_)) => {
            (FailureKind::Tls, "the server's answer is not TLS: it may speak no TLS at this port".to_owned())
        }
        Some(Error::AlertReceived(alert)) => {
            (FailureKind::Tls, format!("the server refused the TLS handshake: {alert:?}"))
        }
        None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => (
            FailureKind::Tls,
            "the server closed the connection in the TLS handshake: it may speak no TLS at this port"
                .to_owned(),
        ),
        _ => (FailureKind::Tls, error.to_string()),
    };
    ConnectFailure::new(kind, Failure::caused_by(error, format!("TLS: {words}")))
}

/// Continues "the certificate of example.com".
fn distrust(why: &CertificateError) -> String {
    use CertificateError as E;
    match why {
        E::UnknownIssuer => "is not trusted: it is self-signed, or its issuer is unknown here".to_owned(),
        E::Expired | E::ExpiredContext { .. } => "is not trusted: it has expired".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "is not trusted: it is not valid yet, by the clock of this machine".to_owned()
        }
        E::NotValidForName => "is not trusted: it is for another name".to_owned(),
        E::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "is not trusted: it names no host (it has no subjectAltName)".to_owned()
        }
        E::NotValidForNameContext { presented, .. } => {
            // As rustls shows them: `DnsName("example.com")`.
            let bare = |name: &String| name.replace("DnsName(\"", "").replace("\")", "");
            let names: Vec<_> = presented.iter().map(bare).collect();
            format!("is not trusted: it is for another name: {}", names.join(", "))
        }
        E::Revoked => "is not trusted: it was revoked".to_owned(),
        // Many self-signed certificates of `openssl req -x509` are like that.
        E::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "is not trusted: it is an issuer's own (CA:TRUE), as self-signed ones often are, and not a server's".to_owned()
        }
        other => format!("is not trusted: {other}"),
    }
}
