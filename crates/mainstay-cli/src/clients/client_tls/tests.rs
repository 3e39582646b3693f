//! Real handshakes with a server that uses these settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use axum::Router;
use axum::extract::Request;
use mainstay::Server;
use mainstay::client::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use mainstay::client::rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

/// A folder that is removed with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mainstay-client-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.0.join(name), text).unwrap();
        self.0.join(name)
    }

    /// Writes a self-signed certificate for a name and its key.
    fn certificate(&self, name: &str) -> (CertificateFiles, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let chain = self.write(&format!("{name}.pem"), &own.pem());
        let key = self.write(&format!("{name}.key"), &key.serialize_pem());
        (CertificateFiles { chain, key }, own.der().clone())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Serves the common name in the certificate of each request.
async fn serve(tls: &ClientTls) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(async |request: Request| {
        let certificate = client_certificate(request.extensions());
        assert_eq!(certificate.is_some(), client_cert(request.extensions()).is_some());
        certificate.map_or_else(|| "nobody".to_owned(), common_name)
    });
    let tls = tls.tls.clone();
    tokio::spawn(async move { mainstay::serve(listener, app, &Server::default()).tls(tls).await });
    address
}

fn common_name(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    parsed.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

/// Returns the body of a response and the kind of its handshake.
async fn get(
    to: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<(String, HandshakeKind)> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let socket = TcpStream::connect(to).await?;
    let mut stream = TlsConnector::from(Arc::clone(config)).connect(name, socket).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((body, stream.get_ref().1.handshake_kind().unwrap()))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client(trusted: &[&CertificateDer<'static>], identity: Option<Identity>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|own| roots.add((*own).clone()).unwrap());
    let builder = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
    })
}

/// An authority that issues certificates of clients.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn identity(authority: &CertifiedIssuer<'static, KeyPair>, name: &str, serial: u64) -> Identity {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, authority).unwrap();
    (vec![own.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

#[tokio::test]
async fn a_client_gets_the_certificate_for_the_host_that_it_asks_for() {
    let folder = Folder::new();
    let ((one, one_der), (two, two_der)) =
        (folder.certificate("one.example"), folder.certificate("two.example"));
    let section = TlsSection { certificates: vec![one, two], ..TlsSection::default() };
    let to = serve(&ClientTls::new(&section, "test").unwrap()).await;
    let (first, second) = (client(&[&one_der], None), client(&[&two_der], None));
    assert!(get(to, &first, "one.example").await.is_ok() && get(to, &second, "two.example").await.is_ok());
    assert!(get(to, &first, "two.example").await.is_err());
}

#[tokio::test]
async fn gateways_with_the_same_ticket_keys_continue_one_anothers_handshakes_over_a_rotation() {
    let folder = Folder::new();
    let (files, own) = folder.certificate("localhost");
    let section = |name: &str, keys: &str| TlsSection {
        certificates: vec![files.clone()],
        ticket_keys: Some(folder.write(name, keys)),
        ..TlsSection::default()
    };
    let (old, new) = ("a".repeat(64), "b".repeat(64));
    let one = ClientTls::new(&section("one", &old), "test").unwrap();
    let two = ClientTls::new(&section("two", &format!("{new}\n{old}\n")), "test").unwrap();
    let (to_one, to_two) = (serve(&one).await, serve(&two).await);
    let config = client(&[&own], None);
    let kind = async |to| get(to, &config, "localhost").await.unwrap().1;
    assert_eq!(kind(to_one).await, HandshakeKind::Full);
    assert_eq!(kind(to_two).await, HandshakeKind::Resumed);
    // The old key goes: its tickets end, those of the new key do not.
    two.replace(two.prepare(&section("two", &new)).unwrap());
    let fresh = client(&[&own], None);
    assert_eq!(get(to_one, &fresh, "localhost").await.unwrap().1, HandshakeKind::Full);
    assert_eq!(get(to_two, &fresh, "localhost").await.unwrap().1, HandshakeKind::Full);
    assert_eq!(kind(to_two).await, HandshakeKind::Resumed);
}

#[tokio::test]
async fn a_client_needs_a_certificate_of_the_authority_and_that_comes_with_each_request() {
    let folder = Folder::new();
    let (files, own) = folder.certificate("localhost");
    let (ours, other) = (authority(), authority());
    let mut section = TlsSection {
        certificates: vec![files],
        client_ca: Some(folder.write("ca.pem", &ours.pem())),
        ..TlsSection::default()
    };
    let tls = ClientTls::new(&section, "test").unwrap();
    let to = serve(&tls).await;
    let with = |identity| client(&[&own], identity);
    let body = async |config: &Arc<ClientConfig>| get(to, config, "localhost").await.map(|(body, _)| body);
    let (alice, mallory) =
        (with(Some(identity(&ours, "alice", 1))), with(Some(identity(&other, "mallory", 2))));
    let subject = body(&alice).await.unwrap();
    assert_eq!(subject, "alice");
    assert!(body(&mallory).await.is_err() && body(&with(None)).await.is_err());
    // It is in the ticket, too.
    let (again, kind) = get(to, &alice, "localhost").await.unwrap();
    assert_eq!((again, kind), (subject, HandshakeKind::Resumed));
    section.client_certificates = super::ClientCertificates::Optional;
    tls.replace(tls.prepare(&section).unwrap());
    assert_eq!(body(&with(None)).await.unwrap(), "nobody");
    assert!(body(&mallory).await.is_err());
    // A ticket of before does not survive a change of the authority.
    section.client_ca = Some(folder.write("ca.pem", &other.pem()));
    tls.replace(tls.prepare(&section).unwrap());
    assert!(body(&alice).await.is_err());
    assert_eq!(body(&mallory).await.unwrap(), "mallory");
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let folder = Folder::new();
    let (files, own) = folder.certificate("localhost");
    let ours = authority();
    let (alice, bob) = (identity(&ours, "alice", 1), identity(&ours, "bob", 2));
    let revoked = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(4000, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(2_u64),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = revoked.signed_by(&ours).unwrap();
    let section = TlsSection {
        certificates: vec![files],
        client_ca: Some(folder.write("ca.pem", &ours.pem())),
        client_crl: Some(folder.write("crl.pem", &list.pem().unwrap())),
        ..TlsSection::default()
    };
    let to = serve(&ClientTls::new(&section, "test").unwrap()).await;
    assert!(get(to, &client(&[&own], Some(alice)), "localhost").await.is_ok());
    assert!(get(to, &client(&[&own], Some(bob)), "localhost").await.is_err());
}

#[tokio::test]
async fn a_wrong_file_is_refused_and_the_old_ones_stay_in_use() {
    let folder = Folder::new();
    let (files, own) = folder.certificate("localhost");
    let section = TlsSection { certificates: vec![files.clone()], ..TlsSection::default() };
    let tls = ClientTls::new(&section, "test").unwrap();
    let to = serve(&tls).await;
    std::fs::write(&files.chain, "no certificate").unwrap();
    let error = tls.prepare(&section).err().unwrap();
    assert!(error.contains("localhost.pem: no certificate found"), "{error}");
    assert!(tls.prepare(&TlsSection::default()).err().unwrap().contains("restart"));
    assert!(get(to, &client(&[&own], None), "localhost").await.is_ok());
}

#[test]
fn settings_that_need_another_are_refused_by_name() {
    let files = || vec![CertificateFiles { chain: "a.pem".into(), key: "a.key".into() }];
    let check = |section: TlsSection, words: &str| {
        let error = section.check().unwrap_err();
        assert!(error.starts_with(words), "{error}");
    };
    let set = || Some(PathBuf::from("x"));
    check(TlsSection { http2: true, ..TlsSection::default() }, "http2: requires a certificate");
    check(TlsSection { ticket_keys: set(), ..TlsSection::default() }, "ticket-keys: requires");
    check(TlsSection { client_ca: set(), ..TlsSection::default() }, "client-ca: requires");
    check(
        TlsSection { certificates: files(), client_crl: set(), ..TlsSection::default() },
        "client-crl: requires",
    );
    let optional = super::ClientCertificates::Optional;
    check(
        TlsSection { certificates: files(), client_certificates: optional, ..TlsSection::default() },
        "client-certificates: requires",
    );
    check(
        TlsSection { certificates: vec![files().remove(0); 1001], ..TlsSection::default() },
        "certificates: must",
    );
    check(TlsSection { certificate: set(), ..TlsSection::default() }, "certificate: requires");
    check(TlsSection { key: set(), ..TlsSection::default() }, "key: requires");
    assert_eq!(TlsSection { certificates: files(), http2: true, ..TlsSection::default() }.check(), Ok(()));
    assert_eq!(TlsSection::default().check(), Ok(()));
}
