//! TLS between nodes: each end presents a certificate of the cluster's authority.
//!
//! A node draws its id at its start and may have any address, so the name in a certificate says nothing and is not compared: it
//! must chain to the authority. The key of the peer listener is required as without TLS.
//!
//! A node with TLS and one without refuse each other. Each sends the alert of a failed handshake, by which the other end can say
//! what is wrong.
//!
//! Source: `docs/CLUSTER.md`.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The files of a folder: the names that Kubernetes and cert-manager give them.
const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// The fatal alert of a failed handshake (RFC 8446, section 6), as a record.
pub(super) const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

/// Whether these first bytes are a record of TLS: of a handshake, or an alert.
pub(super) fn is_record(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, ..])
}

/// TLS between the nodes of a cluster: this node's certificate and key, and the authority that signed the certificates of all
/// nodes. Both ends of a connection verify the other one. A certificate must chain to the authority, and the name in it does not
/// matter; if it has an extended key usage, that must allow both `serverAuth` and `clientAuth`. It is read once: a renewed
/// certificate needs a restart of the node. See [`ClusterConfig::tls`](super::ClusterConfig::tls).
///
/// ```no_run
/// use mainstay::cluster::{ClusterConfig, ClusterTls, Engine};
///
/// # fn config() -> Result<ClusterConfig, Box<dyn std::error::Error>> {
/// let engine = Engine::parse("rediss://10.0.0.5:6379")?;
/// Ok(ClusterConfig::new(engine).tls(ClusterTls::from_folder("/etc/mainstay/tls")?))
/// # }
/// ```
#[derive(Clone)]
pub struct ClusterTls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

/// Why a node cannot use a certificate: one line that names the file, or its part, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {problem}")]
pub struct ClusterTlsError {
    part: String,
    problem: String,
}

impl ClusterTls {
    /// Reads `tls.crt` (the certificate, with the chain up to the authority), `tls.key` (its private key) and `ca.crt` (the
    /// authority) from a folder, all of them PEM: the files of a Kubernetes secret of cert-manager. Blocks its thread.
    ///
    /// # Errors
    /// A file cannot be read, or as with [`from_pem`](Self::from_pem).
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, ClusterTlsError> {
        let read = |name: &str| {
            let file = folder.as_ref().join(name);
            let part = file.display().to_string();
            match std::fs::read(&file) {
                Ok(pem) => Ok(Part { name: part, pem }),
                Err(error) => {
                    let problem = format!("{error}; the folder of a node holds {}", FILES.join(", "));
                    Err(ClusterTlsError { part, problem })
                }
            }
        };
        let [certificate, key, authority] = FILES.map(read);
        Self::new(&certificate?, &key?, &authority?)
    }

    /// Takes the certificate (with the chain up to the authority), its private key and the authority, all of them PEM.
    ///
    /// # Errors
    /// There is no certificate or no key, they do not belong together, or another node would refuse the certificate: it is not
    /// the authority's, it has expired, or its usage is another one.
    pub fn from_pem(certificate: &[u8], key: &[u8], authority: &[u8]) -> Result<Self, ClusterTlsError> {
        let part = |name: &str, pem: &[u8]| Part { name: name.to_owned(), pem: pem.to_vec() };
        Self::new(
            &part("the certificate", certificate),
            &part("the key", key),
            &part("the authority", authority),
        )
    }

    fn new(certificate: &Part, key: &Part, authority: &Part) -> Result<Self, ClusterTlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificate.certificates()?;
        let mut roots = RootCertStore::empty();
        for root in authority.certificates()? {
            roots.add(root).map_err(|error| authority.wrong(error))?;
        }
        let roots = Arc::new(roots);
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let clients = builder.build().map_err(|error| authority.wrong(error))?;
        let servers = Authority { roots, algorithms: provider.signature_verification_algorithms };
        check(&chain, &servers, &*clients).map_err(|error| certificate.wrong(words(&error)))?;
        let key_der = PrivateKeyDer::from_pem_slice(&key.pem)
            .map_err(|error| key.wrong(format!("no private key found: {error}")))?;
        let of_key = |error: Error| key.wrong(words(&error));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(of_key)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key_der.clone_key())
            .map_err(of_key)?;
        // Nodes connect to each other for minutes: a resumed handshake would spare little, and keep the rest in memory.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(of_key)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers))
            .with_client_auth_cert(chain, key_der)
            .map_err(of_key)?;
        client.resumption = Resumption::disabled();
        let (client, server) = (Arc::new(client), Arc::new(server));
        Ok(Self { connector: TlsConnector::from(client), acceptor: TlsAcceptor::from(server) })
    }

    /// Speaks TLS to another node.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        // An address is never sent as a name.
        let name = ServerName::from(stream.peer_addr()?.ip());
        self.connector.connect(name, stream).await
    }

    /// Speaks TLS to a node that connected.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

impl fmt::Debug for ClusterTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterTls(..)")
    }
}

/// Bytes of a PEM file, and what messages call them.
struct Part {
    name: String,
    pem: Vec<u8>,
}

impl Part {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, ClusterTlsError> {
        let found = CertificateDer::pem_slice_iter(&self.pem).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|error| self.wrong(error))?;
        if found.is_empty() {
            return Err(self.wrong("no certificate found (-----BEGIN CERTIFICATE-----)"));
        }
        Ok(found)
    }

    fn wrong(&self, problem: impl ToString) -> ClusterTlsError {
        ClusterTlsError { part: self.name.clone(), problem: problem.to_string() }
    }
}

/// Whether the other nodes accept this certificate, in both roles.
fn check(
    chain: &[CertificateDer<'_>],
    servers: &Authority,
    clients: &dyn ClientCertVerifier,
) -> Result<(), Error> {
    let (own, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    servers.verify(own, intermediates, UnixTime::now())?;
    clients.verify_client_cert(own, intermediates, UnixTime::now()).map(drop)
}

/// What an error of TLS means here, and what to do.
pub(super) fn words(error: &Error) -> String {
    match error {
        // A bad signature: another authority of the same name.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the certificate is not signed by the authority; all nodes need one".to_owned()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the certificate has expired; renew it, and start the node again".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => "the extended key usage of the certificate must allow both serverAuth and clientAuth".to_owned(),
        Error::InvalidCertificate(CertificateError::Other(why))
            if is_about(why, "UnsupportedCertVersion") =>
        {
            "the certificate is of version 1 of X.509, and 3 is needed; sign it with an extension, such as \
             basicConstraints=CA:FALSE"
                .to_owned()
        }
        Error::InvalidCertificate(CertificateError::Other(why)) if is_about(why, "CaUsedAsEndEntity") => {
            "the certificate is an authority's (CA:TRUE); a node needs one of its own, signed by that"
                .to_owned()
        }
        Error::InconsistentKeys(_) => "the key is not that of the certificate".to_owned(),
        Error::NoCertificatesPresented => "it presents no certificate".to_owned(),
        other => other.to_string(),
    }
}

/// Whether an error without a name of its own is this one of webpki.
fn is_about(why: &OtherError, name: &str) -> bool {
    why.to_string().contains(name)
}

/// Returns the error of TLS that failed a handshake; `None`: the connection was lost, which says nothing about TLS.
pub(super) fn of_handshake(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Verifies that a certificate chains to the authority, whatever its name.
#[derive(Debug)]
struct Authority {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Authority {
    fn verify(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let own = ParsedCertificate::try_from(own)?;
        verify_server_cert_signed_by_trust_anchor(&own, &self.roots, intermediates, now, self.algorithms.all)
    }
}

impl ServerCertVerifier for Authority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };

    use super::*;

    /// An authority that signs the certificates of nodes.
    pub(crate) struct Signer(CertifiedIssuer<'static, KeyPair>);

    impl Signer {
        pub(crate) fn new() -> Self {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        pub(crate) fn pem(&self) -> String {
            self.0.pem()
        }

        /// A certificate and its key.
        pub(crate) fn sign(&self, params: CertificateParams) -> (String, String) {
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
        }

        /// What a node needs.
        pub(crate) fn tls(&self) -> ClusterTls {
            let (certificate, key) = self.sign(named());
            ClusterTls::from_pem(certificate.as_bytes(), key.as_bytes(), self.pem().as_bytes()).unwrap()
        }
    }

    fn named() -> CertificateParams {
        CertificateParams::new(["any.name.example".to_owned()]).unwrap()
    }

    #[test]
    fn a_certificate_that_other_nodes_would_refuse_is_refused_at_the_start_with_what_to_do() {
        let (signer, other) = (Signer::new(), Signer::new());
        let (certificate, key) = signer.sign(named());
        let check = |certificate: &str, key: &str, authority: &str, expected: &str| {
            let made = ClusterTls::from_pem(certificate.as_bytes(), key.as_bytes(), authority.as_bytes());
            let error = made.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected) && error.lines().count() <= 1, "{expected}: {error}");
        };
        check(&certificate, &key, &signer.pem(), "");
        check(
            &certificate,
            &key,
            &other.pem(),
            "the certificate: the certificate is not signed by the authority",
        );
        check(
            &certificate,
            &signer.sign(named()).1,
            &signer.pem(),
            "the key: the key is not that of the certificate",
        );
        check("", &key, &signer.pem(), "the certificate: no certificate found");
        check(&certificate, "", &signer.pem(), "the key: no private key found");
        check(&certificate, &key, &key, "the authority: no certificate found");
        let mut authority = named();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (above, above_key) = signer.sign(authority);
        check(&above, &above_key, &signer.pem(), "is an authority's (CA:TRUE)");
        let mut expired = named();
        expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let (old, old_key) = signer.sign(expired);
        check(&old, &old_key, &signer.pem(), "has expired");
        let mut one_sided = named();
        one_sided.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (server, server_key) = signer.sign(one_sided);
        check(&server, &server_key, &signer.pem(), "must allow both serverAuth and clientAuth");
    }

    #[test]
    fn a_folder_without_one_of_the_files_is_an_error_that_names_it_and_all_of_them() {
        let folder = std::env::temp_dir().join(format!("mainstay-cluster-tls-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        let signer = Signer::new();
        let (certificate, key) = signer.sign(named());
        for (name, text) in FILES.into_iter().zip([certificate, key, signer.pem()]) {
            let error = ClusterTls::from_folder(&folder).err().unwrap().to_string();
            assert!(error.contains(name) && error.ends_with("holds tls.crt, tls.key, ca.crt"), "{error}");
            std::fs::write(folder.join(name), text).unwrap();
        }
        assert!(ClusterTls::from_folder(&folder).is_ok());
        let _ = std::fs::remove_dir_all(&folder);
    }

    #[test]
    fn the_alert_is_a_record_and_a_block_is_none() {
        assert!(is_record(&ALERT) && is_record(&[0x16, 3, 1, 2, 0]));
        assert!(!is_record(b"MSTN") && !is_record(&[0x16]));
    }
}
