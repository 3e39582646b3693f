//! TLS at the admin listener: real handshakes, with and without a certificate of the client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use mainstay::client::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use mainstay::client::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::admin::TokenFile;
use crate::client_tls::{Issued, certificate};
use crate::listeners::Folder;
use crate::support::{Gateway, run, until};

const TOKEN: &str = "0123456789abcdef";

/// An authority for the certificates of operators.
fn authority() -> Issued {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// An admin listener with TLS, its own certificate, and the authority of its operators.
struct Locked {
    gateway: Gateway,
    own: Issued,
    operators: Issued,
    folder: Folder,
}

impl Locked {
    fn start(name: &str, more: &str, arguments: &[&str]) -> Self {
        let (folder, own, operators) = (Folder::new(name), certificate("admin.example"), authority());
        for (file, text) in
            [("chain.pem", own.pem()), ("key.pem", own.key().serialize_pem()), ("ca.pem", operators.pem())]
        {
            std::fs::write(folder.path(file), text).unwrap();
        }
        let [chain, key, ca] = ["chain.pem", "key.pem", "ca.pem"].map(|file| folder.path(file));
        let config = folder.path("mainstay.toml");
        let tls = format!("certificate = {chain:?}\nkey = {key:?}\nclient-ca = {ca:?}\n");
        std::fs::write(&config, format!("[admin]\nlisten = \"0.0.0.0:0\"\n{more}\n[admin.tls]\n{tls}"))
            .unwrap();
        let mut gateway = Gateway::start(&[&["--config", &config], arguments].concat());
        gateway.admin = gateway.admin.map(|admin| ([127, 0, 0, 1], admin.port()).into());
        Self { gateway, own, operators, folder }
    }

    /// Sends a request, with a certificate of this authority if there is one. `None`: there was no answer.
    fn ask(&self, by: Option<&Issued>, request: &str, headers: &str) -> Option<(u16, String)> {
        ask(self.gateway.admin.unwrap(), &self.own, by, request, headers).ok()
    }

    fn status(&self, by: Option<&Issued>, request: &str, headers: &str) -> Option<u16> {
        self.ask(by, request, headers).map(|(status, _)| status)
    }
}

fn ask(
    to: SocketAddr,
    own: &Issued,
    by: Option<&Issued>,
    request: &str,
    headers: &str,
) -> std::io::Result<(u16, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(own.der().clone()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match by {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let key = KeyPair::generate().unwrap();
            let issued =
                CertificateParams::new(vec!["operator".to_owned()]).unwrap().signed_by(&key, authority);
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![issued.unwrap().der().clone()], key).unwrap()
        }
    };
    let name = ServerName::try_from("admin.example").unwrap();
    let socket = TcpStream::connect(to)?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket);
    let host = if headers.contains("Host:") { "" } else { "Host: admin.example\r\n" };
    write!(stream, "{request} HTTP/1.1\r\n{host}Content-Length: 0\r\nConnection: close\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

#[test]
fn a_certificate_of_the_authority_opens_the_admin_listener_and_no_other_does() {
    let locked = Locked::start("admin-tls", "", &[]);
    let (right, other) = (Some(&locked.operators), authority());
    for open in ["GET /healthz", "GET /readyz", "GET /"] {
        assert_eq!(locked.status(None, open, ""), Some(200), "{open}");
    }
    let (status, line) = locked.ask(None, "GET /metrics", "").unwrap();
    assert_eq!(
        (status, line.trim()),
        (401, "present a certificate of the authorities of admin.tls.client-ca")
    );
    assert_eq!(locked.status(None, "GET /metrics", "Authorization: Bearer x\r\n"), Some(401));
    for request in ["GET /metrics", "GET /sessions", "GET /status"] {
        assert_eq!(locked.status(right, request, ""), Some(200), "{request}");
        assert_eq!(locked.status(Some(&other), request, ""), None, "the handshake fails: {request}");
    }
    // Without TLS there is nothing.
    let mut plain = TcpStream::connect(locked.gateway.admin.unwrap()).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1"), "{answer:?}");
    let metrics = locked.ask(right, "GET /metrics", "").unwrap().1;
    let days = format!("mainstay_tls_certificate_days_left{{chain=\"{}\"}}", locked.folder.path("chain.pem"));
    assert!(metrics.contains(&days), "{metrics}");
}

#[test]
fn a_browser_that_sends_its_certificate_by_itself_is_held_to_the_host_and_to_the_intent() {
    let locked = Locked::start("admin-tls-host", "", &[]);
    let right = Some(&locked.operators);
    for ours in ["admin.example", "ADMIN.example:9090", "localhost", "127.0.0.1:1"] {
        assert_eq!(locked.status(right, "GET /status", &format!("Host: {ours}\r\n")), Some(200), "{ours}");
    }
    for other in ["rebound.example", "admin.example.evil.example", "x.admin.example"] {
        assert_eq!(locked.status(right, "GET /status", &format!("Host: {other}\r\n")), Some(421), "{other}");
    }
    let end = "DELETE /subjects/alice";
    assert_eq!(locked.status(right, end, ""), Some(403));
    assert_eq!(
        locked.status(right, end, "X-Mainstay-Admin: 1\r\nOrigin: https://evil.example\r\n"),
        Some(403)
    );
    assert_eq!(
        locked.status(right, end, "X-Mainstay-Admin: 1\r\nOrigin: https://admin.example\r\n"),
        Some(200)
    );
}

#[test]
fn the_token_or_a_certificate_is_enough_where_both_are_set() {
    let token = TokenFile::holding(&format!("{TOKEN}\n"));
    let locked = Locked::start("admin-tls-token", &format!("token-file = {:?}", token.path()), &[]);
    let by_token = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(locked.status(None, "GET /metrics", &by_token), Some(200));
    assert_eq!(locked.status(Some(&locked.operators), "GET /metrics", ""), Some(200));
    let (status, line) = locked.ask(None, "GET /metrics", "").unwrap();
    assert!(status == 401 && line.contains("Bearer TOKEN, or present a certificate"), "{line}");
    assert_eq!(locked.status(None, "GET /metrics", "Authorization: Bearer 0123456789abcdeX\r\n"), Some(401));
    // A token is no certificate of a browser: any name will do.
    assert_eq!(locked.status(None, "GET /status", &format!("{by_token}Host: any.example\r\n")), Some(200));
}

#[tokio::test]
async fn renewed_certificates_of_the_admin_listener_are_used_without_a_restart() {
    let mut locked = Locked::start("admin-tls-renew", "", &[]);
    let (new, operators) = (certificate("admin.example"), authority());
    std::fs::write(locked.folder.path("ca.pem"), operators.pem()).unwrap();
    std::fs::write(locked.folder.path("key.pem"), new.key().serialize_pem()).unwrap();
    std::fs::write(locked.folder.path("chain.pem"), new.pem()).unwrap();
    locked.gateway.signal("HUP");
    locked.own = new;
    until("the new files are in use", || locked.status(Some(&operators), "GET /status", "") == Some(200))
        .await;
    assert_eq!(locked.status(Some(&locked.operators), "GET /status", ""), None, "the old authority");
}

#[test]
fn the_health_command_speaks_tls() {
    let locked = Locked::start("admin-tls-health", "", &[]);
    let (address, ca) = (locked.gateway.admin.unwrap().to_string(), locked.folder.path("chain.pem"));
    let health = |more: &[&str]| {
        let output = run(&[&["health", &address], more].concat(), b"");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(health(&["--cacert", &ca, "--name", "admin.example"]).0, Some(0));
    let (code, line) = health(&["--cacert", &ca, "--name", "other.example"]);
    assert!(code == Some(1) && line.contains("other.example"), "{line}");
    assert_eq!(health(&[]).0, Some(1), "without TLS");
    let (code, line) = health(&["--cacert", "no/such/file"]);
    assert!(code == Some(2) && line.contains("--cacert no/such/file"), "{line}");
}

#[test]
fn wrong_settings_of_tls_for_the_admin_listener_are_named() {
    let folder = Folder::new("admin-tls-wrong");
    let check = |text: &str, expected: &[&str]| {
        let file = folder.path("mainstay.toml");
        std::fs::write(&file, text).unwrap();
        let output = run(&["config", "check", &file], b"");
        let line =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{text}: {line}");
        expected.iter().for_each(|words| assert!(line.contains(words), "{text}: {words}: {line}"));
    };
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\n[admin.tls]\n";
    check(&format!("{admin}certificate = \"a.pem\"\n"), &["admin.tls.certificate", "add admin.tls.key"]);
    check(&format!("{admin}client-ca = \"ca.pem\"\n"), &["admin.tls.client-ca", "admin.tls.certificate"]);
    check(
        &format!("{admin}client-crl = \"crl.pem\"\n"),
        &["admin.tls.client-crl", "requires admin.tls.client-ca"],
    );
    let both = "certificate = \"a.pem\"\nkey = \"a.key\"\n";
    check(&format!("[admin.tls]\n{both}"), &["admin.tls", "needs", "admin.listen"]);
    check(
        &format!("[admin]\nlisten = \"unix:/tmp/a.sock\"\n[admin.tls]\n{both}"),
        &["admin.tls", "a Unix socket has no TLS"],
    );
    let start = |text: &str, expected: &[&str]| {
        let file = folder.path("mainstay.toml");
        std::fs::write(&file, text).unwrap();
        let output = run(&["serve", "--listen", "127.0.0.1:0", "--config", &file], b"");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{text}: {line}");
        expected.iter().for_each(|words| assert!(line.contains(words), "{text}: {words}: {line}"));
    };
    start("[admin]\nlisten = \"0.0.0.0:0\"\n", &["admin.token-file", "admin.tls.client-ca"]);
    let missing = folder.path("none.pem");
    start(
        &format!("{admin}certificate = {missing:?}\nkey = {missing:?}\n"),
        &["admin.tls.certificate", &missing],
    );
}
