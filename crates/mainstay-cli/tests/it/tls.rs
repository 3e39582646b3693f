//! Backends behind TLS and behind Unix sockets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mainstay::client::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use mainstay::client::rustls::server::WebPkiClientVerifier;
use mainstay::client::rustls::{RootCertStore, ServerConfig};
use mainstay::{Link, Message};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;

use crate::support::{Gateway, run};

/// A directory that is removed with this value.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mainstay-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A self-signed certificate with its key; marked as a certificate authority's if `is_ca`.
pub(crate) fn self_signed(name: &str, is_ca: bool) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A TLS proxy with this certificate. Requires a client certificate issued by `clients`, if set.
pub(crate) async fn tls_in_front_of(
    to: SocketAddr,
    own: &CertifiedIssuer<'static, KeyPair>,
    clients: Option<CertificateDer<'static>>,
) -> u16 {
    let key = PrivateKeyDer::try_from(own.key().serialize_der()).unwrap();
    let config = match clients {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(issuer) => {
            let mut roots = RootCertStore::empty();
            roots.add(issuer).unwrap();
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
    };
    let acceptor =
        TlsAcceptor::from(Arc::new(config.with_single_cert(vec![own.der().clone()], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (down, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(down) = acceptor.accept(down).await else { return };
                forward(down, to).await;
            });
        }
    });
    port
}

async fn forward(mut down: impl AsyncRead + AsyncWrite + Unpin, to: SocketAddr) {
    let mut up = TcpStream::connect(to).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut down, &mut up).await;
}

/// Returns whether the backend echoes a client's message.
async fn serves(arguments: &[&str]) -> bool {
    let gateway = Gateway::start(arguments);
    let mut client = match Link::builder(&format!("{}/echo", gateway.url)).unwrap().connect_once().await {
        Ok(client) => client,
        Err(_) => return false,
    };
    client.send(Message::text("x")).await.unwrap();
    client.recv().await == Some(Message::text("x"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_self_signed_certificate_is_trusted_if_a_flag_names_it() {
    let echo = Gateway::start(&[]);
    let files = Files::new("trust");
    for is_ca in [false, true] {
        let own = self_signed("localhost", is_ca);
        let port = tls_in_front_of(echo.address(), &own, None).await;
        let ca = files.write("ca.pem", &own.pem());
        let other = files.write("other.pem", &self_signed("localhost", is_ca).pem());
        let upstream = format!("wss://localhost:{port}");
        let served = async |ca: &str| {
            serves(&["--upstream", &upstream, "--upstream-wait", "1s", "--upstream-ca", ca]).await
        };
        assert!(served(&ca).await, "CA:TRUE {is_ca}");
        assert!(!served(&other).await, "CA:TRUE {is_ca}");
        let url = format!("wss://localhost:{port}/echo");
        let output = run(&["connect", &url, "--cacert", &ca], b"hello\n");
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\n"[..]));
        let output = run(&["connect", &url, "--cacert", &other, "--once"], b"");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr.contains("TLS: the certificate of localhost is not trusted"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_sets_the_name_in_the_backends_certificate() {
    let echo = Gateway::start(&[]);
    let files = Files::new("name");
    for is_ca in [false, true] {
        let own = self_signed("backend.example", is_ca);
        let port = tls_in_front_of(echo.address(), &own, None).await;
        let ca = files.write("ca.pem", &own.pem());
        let upstream = format!("wss://localhost:{port}");
        let flags = ["--upstream", &upstream, "--upstream-wait", "1s", "--upstream-ca", &ca];
        assert!(!serves(&flags).await);
        assert!(serves(&[&flags[..], &["--upstream-server-name", "backend.example"]].concat()).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_requests_a_client_certificate_receives_the_one_of_the_flags() {
    let echo = Gateway::start(&[]);
    let files = Files::new("identity");
    let (own, client) = (self_signed("localhost", false), self_signed("gateway", true));
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["gateway".to_owned()]).unwrap().signed_by(&leaf_key, &client).unwrap();
    let port = tls_in_front_of(echo.address(), &own, Some(client.der().clone())).await;
    let upstream = format!("wss://localhost:{port}");
    let ca = files.write("ca.pem", &own.pem());
    let (cert, key) =
        (files.write("cert.pem", &leaf.pem()), files.write("key.pem", &leaf_key.serialize_pem()));
    let flags = ["--upstream", &upstream, "--upstream-wait", "1s", "--upstream-ca", &ca];
    assert!(!serves(&flags).await);
    assert!(serves(&[&flags[..], &["--upstream-cert", &cert, "--upstream-key", &key]].concat()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_reached_by_its_unix_socket() {
    let echo = Gateway::start(&[]);
    let (files, to) = (Files::new("unix"), echo.address());
    let listener = UnixListener::bind(files.path("app.sock")).unwrap();
    tokio::spawn(async move {
        loop {
            tokio::spawn(forward(listener.accept().await.unwrap().0, to));
        }
    });
    let socket = format!("unix:{}", files.path("app.sock"));
    assert!(serves(&["--upstream", &socket]).await);
    let output = run(&["connect", &format!("{socket}:/echo")], b"hello\n");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\n"[..]));
}
