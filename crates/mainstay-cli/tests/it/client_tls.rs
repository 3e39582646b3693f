//! TLS towards clients: real handshakes with the process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mainstay::client::rustls::pki_types::{CertificateDer, ServerName};
use mainstay::client::rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use mainstay::client::{Builder, Connector};
use mainstay::{Client, Message};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};

use crate::client_certificates::Certified;
use crate::guarded::telling_backend;
use crate::listeners::Folder;
use crate::support::{Gateway, mainstay, run, until};

pub(crate) type Issued = CertifiedIssuer<'static, KeyPair>;

/// A self-signed certificate for a name.
pub(crate) fn certificate(name: &str) -> Issued {
    let params = CertificateParams::new([name.to_owned(), "127.0.0.1".to_owned()]).unwrap();
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate and its key to the files that the flags name.
pub(crate) fn write(folder: &Folder, own: &Issued) -> [String; 2] {
    let (chain, key) = (folder.path("chain.pem"), folder.path("key.pem"));
    std::fs::write(&chain, own.pem()).unwrap();
    std::fs::write(&key, own.key().serialize_pem()).unwrap();
    [chain, key]
}

fn gateway(folder: &Folder, own: &Issued, arguments: &[&str]) -> Gateway {
    let [chain, key] = write(folder, own);
    Gateway::start(&[&["--tls-certificate", &chain, "--tls-key", &key], arguments].concat())
}

fn address(gateway: &Gateway) -> SocketAddr {
    gateway.url.trim_start_matches("wss://").parse().unwrap()
}

pub(crate) fn trusting(own: &Issued) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(own.der().clone()).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Connects and requests a page, so that the tickets behind the handshake are read.
fn request(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<(Stream, String)> {
    let socket = TcpStream::connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((stream, answer))
}

fn leaf(stream: &Stream) -> CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

fn client(url: &str, own: &Issued) -> Builder {
    let connector = Connector::default().tls(trusting(own));
    Client::builder(url).unwrap().connector(connector)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_speak_tls_with_a_session_and_with_plain_websockets_and_curl_gets_a_page() {
    let (folder, own) = (Folder::new("tls-serve"), certificate("localhost"));
    let mut gateway = gateway(&folder, &own, &["--admin", "127.0.0.1:0"]);
    let url = format!("wss://localhost:{}", address(&gateway).port());
    let mut session = client(&format!("{url}/echo"), &own).connect();
    for size in [5, 70_000, 1_000_000] {
        session.send(Message::text("x".repeat(size))).await.unwrap();
        assert_eq!(session.recv().await.unwrap().len(), size);
    }
    let ca = folder.path("chain.pem");
    let output = run(&["connect", &format!("{url}/echo"), "--cacert", &ca], b"hello\n");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\n"[..]));
    let page = url.replace("wss", "https");
    let curl = Command::new("curl").args(["-sS", "--cacert", &ca, &page]).output().unwrap();
    assert!(String::from_utf8_lossy(&curl.stdout).contains("<html"), "{curl:?}");
    assert!(gateway.metric("tls_handshakes_total{outcome=\"full\"}") >= 3.0);
    let left = gateway.metric(&format!("tls_certificate_days_left{{chain=\"{ca}\"}}"));
    assert!(left > 300.0, "{left}");
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await, Some(0), "{}", gateway.log());
}

#[test]
fn openssl_agrees_on_tls_1_2_and_1_3_and_on_nothing_older() {
    let (folder, own) = (Folder::new("tls-openssl"), certificate("localhost"));
    let gateway = gateway(&folder, &own, &[]);
    let connect = |version: &str| {
        let to = address(&gateway).to_string();
        let arguments =
            ["s_client", "-connect", &to, "-servername", "localhost", "-alpn", "http/1.1", version];
        let command =
            Command::new("openssl").args(arguments).stdin(std::process::Stdio::null()).output().unwrap();
        let (out, is_done) =
            (String::from_utf8_lossy(&command.stdout).into_owned(), command.status.success());
        (out, is_done)
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let (out, is_done) = connect(version);
        assert!(is_done && out.contains("ALPN protocol: http/1.1"), "{version}: {out}");
    }
    assert!(!connect("-tls1_1").1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_without_a_restart_and_open_connections_stay() {
    let (folder, old) = (Folder::new("tls-reload"), certificate("localhost"));
    let gateway = gateway(&folder, &old, &["--admin", "127.0.0.1:0"]);
    let to = address(&gateway);
    let mut session = client(&format!("wss://localhost:{}/echo", to.port()), &old).connect();
    session.send("before").await.unwrap();
    assert_eq!(session.recv().await, Some(Message::text("before")));
    let new = certificate("localhost");
    // A moment of neither: the chain is new and the key is old.
    std::fs::write(folder.path("chain.pem"), new.pem()).unwrap();
    until("the pair that does not fit is refused", || {
        gateway.metric("config_reloads_total{outcome=\"refused\"}") == 1.0
    })
    .await;
    assert_eq!(leaf(&request(to, &trusting(&old), "localhost").unwrap().0), *old.der());
    gateway.logged("key.pem: must be the key", 1).await;
    let complaint = gateway.log().lines().filter(|line| line.contains("key.pem: must be the key")).count();
    assert_eq!(complaint, 1, "{}", gateway.log());
    std::fs::write(folder.path("key.pem"), new.key().serialize_pem()).unwrap();
    until("the pair is in use", || gateway.metric("config_reloads_total{outcome=\"done\"}") == 1.0).await;
    assert_eq!(leaf(&request(to, &trusting(&new), "localhost").unwrap().0), *new.der());
    session.send("after").await.unwrap();
    assert_eq!(session.recv().await, Some(Message::text("after")));
}

#[test]
fn a_client_that_comes_back_resumes_its_handshake() {
    let (folder, own) = (Folder::new("tls-resume"), certificate("localhost"));
    let gateway = gateway(&folder, &own, &["--admin", "127.0.0.1:0"]);
    let config = trusting(&own);
    let kind = |config| request(address(&gateway), config, "localhost").unwrap().0.conn.handshake_kind();
    assert_eq!(kind(&config), Some(HandshakeKind::Full));
    assert_eq!(kind(&config), Some(HandshakeKind::Resumed));
    assert_eq!(gateway.metric("tls_handshakes_total{outcome=\"resumed\"}"), 1.0);
}

#[test]
fn only_the_listeners_on_tcp_that_are_not_plain_speak_tls() {
    let (folder, own) = (Folder::new("tls-plain"), certificate("localhost"));
    let [chain, key] = write(&folder, &own);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (plain, socket) = (format!("plain:{free}"), format!("unix:{}", folder.path("a.sock")));
    let listen = ["--listen", "127.0.0.1:0", "--listen", &plain, "--listen", &socket];
    let gateway = Gateway::at(&[&listen[..], &["--tls-certificate", &chain, "--tls-key", &key]].concat());
    assert!(gateway.url.starts_with("wss://"), "{}", gateway.url);
    assert_eq!(crate::support::connect(free).unwrap(), "101");
    let output = run(&["connect", &format!("{socket}:/echo")], b"hello\n");
    assert_eq!(output.status.code(), Some(0));
    assert!(crate::support::connect(address(&gateway)).is_err());
}

#[test]
fn the_backend_learns_that_the_client_came_over_tls() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let (folder, own) = (Folder::new("tls-proto"), certificate("localhost"));
    let gateway = gateway(&folder, &own, &["--upstream", &format!("http://{backend}")]);
    let serving = std::thread::spawn(move || {
        for connection in listener.incoming().map(Result::unwrap) {
            let (mut connection, mut head) = (connection, Vec::new());
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                match connection.read(&mut byte) {
                    Ok(1) => head.push(byte[0]),
                    // A probe.
                    _ => break,
                }
            }
            if !head.is_empty() {
                let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                return String::from_utf8(head).unwrap().to_ascii_lowercase();
            }
        }
        String::new()
    });
    request(address(&gateway), &trusting(&own), "localhost").unwrap();
    let head = serving.join().unwrap();
    assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
}

#[test]
fn wrong_files_are_a_usage_error_of_one_line_that_names_the_file() {
    let (folder, own) = (Folder::new("tls-wrong"), certificate("localhost"));
    let [chain, key] = write(&folder, &own);
    let other = folder.path("other.key");
    std::fs::write(&other, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    for (chain, key, words) in [
        ("/nowhere/a.pem", key.as_str(), "/nowhere/a.pem"),
        (&key, &key, "no certificate found"),
        (&chain, &chain, "no private key found"),
        (&chain, &other, "must be the key of the first certificate"),
    ] {
        let flags = ["serve", "--listen", "127.0.0.1:0", "--tls-certificate", chain, "--tls-key", key];
        let output = mainstay(&flags).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    let output = mainstay(&["serve", "--tls-certificate", &chain]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// A ClientHello as a real client sends it.
fn hello() -> Vec<u8> {
    let own = certificate("localhost");
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(trusting(&own), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_client_hello_in_single_bytes_is_answered() {
    let (folder, own) = (Folder::new("tls-bytes"), certificate("localhost"));
    let gateway = gateway(&folder, &own, &[]);
    let mut socket = TcpStream::connect(address(&gateway)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    hello().iter().for_each(|byte| socket.write_all(&[*byte]).unwrap());
    let mut record = [0; 6];
    socket.read_exact(&mut record).unwrap();
    assert_eq!((record[0], record[5]), (22, 2), "a record of the handshake, with ServerHello");
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_counted_and_takes_no_processor_and_no_neighbour() {
    let (folder, own) = (Folder::new("tls-hostile"), certificate("localhost"));
    let gateway = gateway(&folder, &own, &["--admin", "127.0.0.1:0"]);
    let to = address(&gateway);
    let mut session = client(&format!("wss://localhost:{}/echo", to.port()), &own).connect();
    session.send("x").await.unwrap();
    session.recv().await.unwrap();
    let empty_records = [22, 3, 1, 0, 0].repeat(1000);
    let renegotiation = [&hello()[..], &hello()].concat();
    let huge = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 0x3ffc]].concat();
    let inputs: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0\0\0\0\0\0\0\0",
        b"SSH-2.0-OpenSSH_9\r\n",
        &empty_records,
        &huge,
    ];
    for input in inputs {
        let mut socket = TcpStream::connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = socket.write_all(input);
        let mut answer = Vec::new();
        // An alert, then the end: an error where the rest of the input was not read.
        let _ = socket.read_to_end(&mut answer);
    }
    gateway.wait_for_metric("tls_handshakes_total{outcome=\"failed\"}", inputs.len() as f64).await;
    // Clients that send nothing, half of a ClientHello, or two in place of an answer, are closed at the deadline.
    let mut twice = TcpStream::connect(to).unwrap();
    twice.write_all(&renegotiation).unwrap();
    let silent = TcpStream::connect(to).unwrap();
    let mut half = TcpStream::connect(to).unwrap();
    half.write_all(&hello()[..50]).unwrap();
    let before = gateway.metric_of_process("process_cpu_seconds_total");
    gateway.wait_for_metric("tls_handshakes_total{outcome=\"timeout\"}", 3.0).await;
    let used = gateway.metric_of_process("process_cpu_seconds_total") - before;
    assert!(used < 2.0, "{used} s of processor in 10 s without work");
    session.send("y").await.unwrap();
    assert_eq!(session.recv().await, Some(Message::text("y")));
    drop((twice, silent, half));
}

#[test]
fn http_2_carries_requests_to_the_backend_as_http_1_1() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map(Result::unwrap) {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && matches!(connection.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let text = String::from_utf8(head).unwrap();
            let length = text.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{text}");
            let _ = connection.write_all(answer.as_bytes());
        }
    });
    let (folder, own) = (Folder::new("tls-http2"), certificate("localhost"));
    let [chain, key] = write(&folder, &own);
    let mut command =
        mainstay(&["serve", "--listen", "127.0.0.1:0", "--tls-certificate", &chain, "--tls-key", &key]);
    command.args(["--upstream", &format!("http://{backend}")]).env("MAINSTAY_TLS__HTTP2", "true");
    let gateway = Gateway::begin(command);
    let page = format!("https://localhost:{}/a?b", address(&gateway).port());
    let curl = |version: &str| {
        let arguments =
            ["-sS", version, "-H", "Cookie: c=1", "-w", "%{http_version}", "--cacert", &chain, &page];
        let output = Command::new("curl").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let answer = curl(flag);
        assert!(answer.starts_with("GET /a?b HTTP/1.1\r\n") && answer.ends_with(version), "{answer}");
        let answer = answer.to_ascii_lowercase();
        for field in ["host: localhost:", "cookie: c=1\r\n", "x-forwarded-proto: https\r\n"] {
            assert!(answer.contains(field), "{field} {answer}");
        }
    }
}

#[test]
fn a_proxy_header_comes_before_the_handshake_of_tls() {
    let (folder, own) = (Folder::new("tls-proxy"), certificate("localhost"));
    let [chain, key] = write(&folder, &own);
    let mut command =
        mainstay(&["serve", "--listen", "127.0.0.1:0", "--tls-certificate", &chain, "--tls-key", &key]);
    command.args(["--upstream", "http://127.0.0.1:1", "--trusted-proxy", "127.0.0.1"]);
    command.env("MAINSTAY_PROXIES__PROXY_PROTOCOL", "v1");
    let gateway = Gateway::begin(command);
    let mut socket = TcpStream::connect(address(&gateway)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.write_all(b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n").unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(trusting(&own), name).unwrap(), socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 502", "there is no backend");
    assert!(request(address(&gateway), &trusting(&own), "localhost").is_err(), "no header, no handshake");
}

#[tokio::test]
async fn over_http_2_a_key_that_a_proxy_passes_on_is_answered_and_no_other() {
    let gateway = Certified::start("http2-key", telling_backend().await, &[("/", "")]);
    let sender = gateway.http2(None).await;
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    for (given, expected) in [(Some(key), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")), (None, None)] {
        let request = http::Request::builder().method(http::Method::CONNECT).uri("https://localhost/chat");
        let request = given.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let mut request = request.header("sec-websocket-version", "13").body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, _outgoing) =
            sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), http::StatusCode::OK);
        let answer = response.headers().get("sec-websocket-accept").map(|answer| answer.to_str().unwrap());
        assert_eq!(answer, expected);
    }
}
