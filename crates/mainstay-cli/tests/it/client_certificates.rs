//! Client certificates as credentials: real handshakes, over HTTP/1.1 and HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use bytes::Bytes;
use http::{Method, StatusCode};
use mainstay::Client;
use mainstay::client::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use mainstay::client::rustls::{ClientConfig, RootCertStore};
use mainstay_proto::session::Control;
use mainstay_proto::session::message::ResumeToken;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::client_tls::{Issued, certificate, write};
use crate::credentials::{answer_on, welcome};
use crate::frames::{CLOSE, Frames};
use crate::guarded::{bearer, serve, telling_backend, told};
use crate::listeners::Folder;
use crate::operator::ask;
use crate::support::{Gateway, mainstay, until};
use crate::tokens::{SECRET, Signer, claims_of};

/// A gateway with TLS that asks clients for certificates, and the authority that issues them.
pub(crate) struct Certified {
    gateway: Gateway,
    own: Issued,
    authority: Issued,
    _folder: Folder,
}

impl Certified {
    /// Each route has its path, and the same backend.
    pub(crate) fn start(name: &str, backend: SocketAddr, routes: &[(&str, &str)]) -> Self {
        let (folder, own) = (Folder::new(name), certificate("localhost"));
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = Issued::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ([chain, key], ca) = (write(&folder, &own), folder.path("ca.pem"));
        std::fs::write(&ca, authority.pem()).unwrap();
        std::fs::write(folder.path("secret"), SECRET).unwrap();
        let mut text = format!(
            "listen = [\"127.0.0.1:0\"]\nadmin.listen = \"127.0.0.1:0\"\n[tls]\ncertificate = {chain:?}\nkey = {key:?}\n\
             client-ca = {ca:?}\nclient-certificates = \"optional\"\nhttp2 = true\n"
        );
        for (at, (path, settings)) in routes.iter().enumerate() {
            let settings = settings.replace("SECRET", &folder.path("secret"));
            text += &format!(
                "[routes.r{at}]\npath = \"{path}\"\nstrip-path = true\nupstream.addresses = [\"ws://{backend}\"]\n{settings}\n"
            );
        }
        let file = folder.path("mainstay.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = mainstay(&["serve", "--config", &file]);
        command.env("MAINSTAY_LOG", "info");
        Self { gateway: Gateway::begin(command), own, authority, _folder: folder }
    }

    fn address(&self) -> SocketAddr {
        self.gateway.url.trim_start_matches("wss://").parse().unwrap()
    }

    /// The settings of a client with a new certificate of this name; without a name, with none.
    fn config(&self, name: Option<&str>, protocol: &str) -> Arc<ClientConfig> {
        self.config_for(name, Duration::from_secs(24 * 60 * 60), protocol)
    }

    /// The same with a certificate that is valid for so long.
    fn config_for(&self, name: Option<&str>, valid: Duration, protocol: &str) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.own.der().clone()).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (chain, key) = self.issue(name, valid);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Arc::new(config)
    }

    fn issue(&self, name: &str, valid: Duration) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, name);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + valid;
        let key = KeyPair::generate().unwrap();
        let issued = params.signed_by(&key, &self.authority).unwrap();
        (vec![issued.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// An address of this test that forwards to the gateway over TLS with such a certificate.
    async fn tunnel(&self, name: Option<&str>) -> SocketAddr {
        self.tunnel_with(self.config(name, "http/1.1")).await
    }

    async fn tunnel_with(&self, config: Arc<ClientConfig>) -> SocketAddr {
        let to = self.address();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let config = Arc::clone(&config);
                tokio::spawn(async move {
                    if let Ok(mut gateway) = secure(to, config).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                    }
                });
            }
        });
        address
    }

    pub(crate) async fn http2(&self, name: Option<&str>) -> h2::client::SendRequest<Bytes> {
        let stream = secure(self.address(), self.config(name, "h2")).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let sender = sender.ready().await.unwrap();
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        sender
    }

    fn judged(&self, outcome: &str) -> f64 {
        self.gateway.metric(&format!("credentials_judged_total{{outcome=\"{outcome}\"}}"))
    }

    /// The subjects in the list of sessions, in order.
    fn subjects(&self) -> Vec<String> {
        let (_, body) = ask(&self.gateway, "GET", "/sessions", "");
        let list: Value = serde_json::from_str(&body).unwrap();
        let sessions = list["sessions"].as_array().unwrap().iter();
        let mut subjects: Vec<String> =
            sessions.map(|session| session["subject"].as_str().unwrap_or("none").to_owned()).collect();
        subjects.sort_unstable();
        subjects
    }
}

async fn secure(
    to: SocketAddr,
    config: Arc<ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, TcpStream::connect(to).await?).await
}

/// Opens a WebSocket in HTTP/2, which ends with this call; returns its status, and what the backend told.
async fn websocket(sender: &h2::client::SendRequest<Bytes>, path: &str) -> (StatusCode, Option<Value>) {
    let request = http::Request::builder().method(Method::CONNECT).uri(format!("https://localhost{path}"));
    let request = request.header("sec-websocket-version", "13").header("x-user", "forged");
    let mut request = request.body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let mut sender = sender.clone().ready().await.unwrap();
    let (response, outgoing) = sender.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    let (status, mut incoming) = (response.status(), response.into_body());
    if status != StatusCode::OK {
        return (status, None);
    }
    let mut bytes = Vec::new();
    loop {
        let piece = incoming.data().await.unwrap().unwrap();
        bytes.extend_from_slice(&piece);
        // A text of 126 bytes to 64 KiB: two bytes of header, two of length.
        let text = bytes.get(4..).and_then(|text| serde_json::from_slice(text).ok());
        if text.is_some() {
            drop(outgoing);
            return (status, text);
        }
    }
}

const NAMED: &str = "credentials.client-certificate = { subject = \"common-name\", parts-as-headers = { X-User = \"common-name\", X-Name = \"subject\" } }";
const FORGED: &str = "X-User: admin\r\nX_User: admin\r\nX-Name: CN=admin\r\nClient-Cert: :Zm9yZ2Vk:\r\nclient_cert: x\r\n\
                      Client-Cert-Chain: x\r\nConnection: x-user\r\n";

fn check_headers(headers: &Value, name: &str) {
    assert_eq!(
        (&headers["x-user"], &headers["x-name"]),
        (&json!(name), &json!(format!("CN={name},O=Example"))),
        "{headers}"
    );
    assert!(headers["client-cert"].as_str().unwrap().len() > 200, "the gateway's own: {headers}");
    for absent in ["x_user", "client_cert", "client-cert-chain"] {
        assert_eq!(headers.get(absent), None, "{headers}");
    }
}

#[tokio::test]
async fn a_certificate_names_its_client_to_the_backend_and_the_operator_and_none_can_be_forged() {
    let certified = Certified::start("certified", telling_backend().await, &[("/", NAMED)]);
    let alice = certified.tunnel(Some("alice")).await;
    let (head, mut plain) = Frames::connect(alice, "/chat", FORGED).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let said: Value = serde_json::from_str(&plain.text().await.unwrap()).unwrap();
    check_headers(&said["headers"], "alice");
    let bob = certified.tunnel(Some("bob")).await;
    let mut session = Client::builder(&format!("ws://{bob}/chat"))
        .unwrap()
        .header("x-user".parse().unwrap(), "admin".parse().unwrap())
        .header("client-cert".parse().unwrap(), "forged".parse().unwrap())
        .connect();
    check_headers(&told(&mut session).await["headers"], "bob");
    let carol = certified.http2(Some("carol")).await;
    let (status, said) = websocket(&carol, "/chat").await;
    assert_eq!(status, StatusCode::OK);
    check_headers(&said.unwrap()["headers"], "carol");
    let page = http::Request::get("https://localhost/page").header("x-user", "admin").body(()).unwrap();
    let (response, _) = carol.clone().ready().await.unwrap().send_request(page, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let said: Value = serde_json::from_slice(&body.data().await.unwrap().unwrap()).unwrap();
    check_headers(&said["headers"], "carol");

    until("the stream of HTTP/2 has ended", || certified.subjects() == ["alice", "bob"]).await;
    assert_eq!(certified.judged("accepted"), 4.0);
    drop(plain);
    let ended = |subject: &str| {
        let log = certified.gateway.log();
        log.lines()
            .any(|line| line.contains("client ended") && line.contains(&format!("subject=\"{subject}\"")))
    };
    until("the access log names them", || ended("alice") && ended("carol")).await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_by_a_route_that_requires_one_and_forges_none_elsewhere() {
    let routes = [("/", NAMED), ("/open", "")];
    let certified = Certified::start("uncertified", telling_backend().await, &routes);
    let nobody = certified.tunnel(None).await;
    let (head, mut rest) = Frames::connect(nobody, "/chat", FORGED).await;
    assert!(head.starts_with("HTTP/1.1 403") && !head.to_lowercase().contains("www-authenticate"), "{head}");
    let mut body = vec![0; "a client certificate is required\n".len()];
    rest.stream().read_exact(&mut body).await.unwrap();
    assert_eq!(body, b"a client certificate is required\n");
    let refused = answer_on(nobody, "/chat", "", 1, None, None).await;
    assert!(matches!(refused, Control::Refuse { code: 4501, temporary: false, .. }), "{refused:?}");
    let nobody = certified.http2(None).await;
    assert_eq!(websocket(&nobody, "/chat").await.0, StatusCode::FORBIDDEN);
    assert_eq!((certified.judged("no_certificate"), certified.judged("accepted")), (3.0, 0.0));
    let page = http::Request::get("https://localhost/open/page")
        .header("client-cert", ":Zm9yZ2Vk:")
        .body(())
        .unwrap();
    let (response, _) = nobody.clone().ready().await.unwrap().send_request(page, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let said: Value = serde_json::from_slice(&body.data().await.unwrap().unwrap()).unwrap();
    assert_eq!(said["headers"].get("client-cert"), None, "{said}");
}

#[tokio::test]
async fn a_session_is_resumed_with_any_certificate_of_its_subject_and_with_no_other() {
    let both = format!("{NAMED}\ncredentials.jwt.keys-file = \"SECRET\"");
    let routes = [("/", NAMED), ("/both", both.as_str())];
    let certified = Certified::start("certified-resume", telling_backend().await, &routes);
    let (first, renewed, other) = (
        certified.tunnel(Some("alice")).await,
        certified.tunnel(Some("alice")).await,
        certified.tunnel(Some("mallory")).await,
    );
    let alice = Signer::secret().token(&claims_of("alice"));
    for (path, token) in [("/chat", None), ("/both/chat", Some(alice.as_str()))] {
        let at = |to: SocketAddr, number, resume: Option<ResumeToken>| {
            answer_on(to, path, "", number, token, resume)
        };
        let opened = welcome(at(first, 1, None).await);
        let stolen = welcome(at(other, 2, Some(opened.token.clone())).await);
        assert!(!stolen.resumed && stolen.account.is_none(), "{path}: {stolen:?}");
        assert!(welcome(at(renewed, 3, Some(opened.token)).await).resumed, "{path}");
    }
    // Where a token names the user, the list has that name.
    let expected = ["alice", "alice", "alice", "mallory"];
    until("the list has both names", || certified.subjects() == expected).await;
}

#[tokio::test]
async fn what_a_certificate_opened_ends_with_the_certificate() {
    let by_certificate = [("/", "credentials.client-certificate.subject = \"common-name\"")];
    let certified = Certified::start("certified-expires", telling_backend().await, &by_certificate);
    let config = certified.config_for(Some("alice"), Duration::from_secs(6), "http/1.1");
    let tunnel = certified.tunnel_with(config).await;
    let (head, mut frames) = Frames::connect(tunnel, "/chat", "").await;
    assert_eq!(head[9..12], *"101");
    let closed = async {
        loop {
            if let (CLOSE, payload) = frames.read().await.unwrap() {
                break payload;
            }
        }
    };
    let payload = tokio::time::timeout(Duration::from_secs(60), closed).await.unwrap();
    assert_eq!(payload, [&4501_u16.to_be_bytes()[..], b"the credentials have expired"].concat());
}

#[tokio::test]
async fn the_limit_of_a_subject_counts_certificates_tokens_and_the_hook_alike() {
    let hook = post(async |request: Request| {
        let body = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap();
        let asked: Value = serde_json::from_slice(&body).unwrap();
        json!({"subject": asked["headers"]["x-name"]}).to_string()
    });
    let hook = serve(Router::new().route("/", hook)).await;
    let limit = "limits.connections-per-subject = 1\n";
    let by_certificate = format!("{limit}credentials.client-certificate.subject = \"common-name\"");
    let by_token = format!("{limit}credentials.jwt.keys-file = \"SECRET\"");
    let by_hook = format!("{limit}credentials.connect-hook.url = \"http://{hook}/\"");
    // A session is bound to a cookie too. The limits do not count by it: a client may send any.
    let by_both = format!("{by_token}\nsession.cookies = [\"sid\"]");
    let routes = [
        ("/certificate", &*by_certificate),
        ("/token", &*by_token),
        ("/token-and-cookie", &*by_both),
        ("/hook", &*by_hook),
    ];
    let cookies = AtomicU32::new(0);
    let certified = Certified::start("certified-limits", telling_backend().await, &routes);
    let (alice, bob) = (certified.tunnel(Some("alice")).await, certified.tunnel(Some("bob")).await);
    for (path, _) in routes {
        let open = async |tunnel: SocketAddr, name: &str| {
            let token = bearer(&Signer::secret().token(&claims_of(name)));
            let headers = match path {
                "/token" => token,
                "/token-and-cookie" => format!("{token}Cookie: sid={}\r\n", cookies.fetch_add(1, Relaxed)),
                _ => format!("X-Name: {name}\r\n"),
            };
            let (head, frames) = Frames::connect(tunnel, &format!("{path}/chat"), &headers).await;
            (head[9..12].to_owned(), frames)
        };
        let (status, first) = open(alice, "alice").await;
        assert_eq!(status, "101", "{path}");
        assert_eq!(open(alice, "alice").await.0, "429", "{path}");
        let (status, other) = open(bob, "bob").await;
        assert_eq!(status, "101", "{path}: another subject");
        drop(first);
        until("the place is free again", || certified.subjects() == ["bob"]).await;
        let (status, again) = open(alice, "alice").await;
        assert_eq!(status, "101", "{path}");
        drop((other, again));
        until("all have left", || certified.subjects().is_empty()).await;
    }
    assert_eq!(certified.gateway.metric("refused_total{reason=\"route\"}"), 4.0);
}
