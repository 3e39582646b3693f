//! `Serve::tls`: sessions over TLS that this server terminates, and HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::{any, get};
use bytes::Bytes;
use http::{Method, StatusCode};
use mainstay::client::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use mainstay::client::rustls::{ClientConfig, RootCertStore};
use mainstay::server::rustls::ServerConfig;
use mainstay::server::{AdmissionConfig, Config, Encrypted, Tls};
use mainstay::{Client, Link, Message, Server, SessionUpgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hostile::frame;
use crate::support::echo;

const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A server over TLS, and what its clients trust.
async fn serve(config: Config) -> (SocketAddr, Server, CertificateDer<'static>) {
    serve_app(config, Router::new()).await
}

/// The same, with more routes.
pub(crate) async fn serve_app(
    config: Config,
    more: Router<()>,
) -> (SocketAddr, Server, CertificateDer<'static>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let tls = ServerConfig::builder().with_no_client_auth();
    let mut tls = tls.with_single_cert(vec![cert.der().clone()], key).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (mainstay, listener) = (Server::new(config), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    let about = async |request: Request| {
        let is_encrypted = request.extensions().get::<Encrypted>().is_some();
        format!("{:?} {is_encrypted}", request.version())
    };
    let app = more
        .route("/ws", any(async |upgrade: SessionUpgrade| upgrade.on_session(echo)))
        .route("/about", get(about));
    let serving = mainstay.clone();
    tokio::spawn(async move {
        mainstay::serve(listener, app, &serving).tls(Tls::new(Arc::new(tls))).await.unwrap();
    });
    (address, mainstay, cert.der().clone())
}

pub(crate) fn trusting(certificate: &CertificateDer<'static>, protocol: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(config)
}

pub(crate) async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, socket).await.unwrap()
}

#[tokio::test]
async fn sessions_and_plain_clients_exchange_messages_of_every_size_over_tls() {
    let (address, mainstay, certificate) = serve(Config::default()).await;
    let url = format!("wss://localhost:{}/ws", address.port());
    let trusts = trusting(&certificate, "http/1.1");
    let mut client = Client::builder(&url).unwrap().tls(Arc::clone(&trusts)).connect_once().await.unwrap();
    let mut link = Link::builder(&url).unwrap().tls(trusts).connect_once().await.unwrap();
    for size in [0, 1, 125, 126, 16_384, 16_385, 65_536, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        client.send(message.clone()).await.unwrap();
        link.send(message.clone()).await.unwrap();
        assert_eq!(client.recv().await.as_ref(), Some(&message));
        assert_eq!(link.recv().await.as_ref(), Some(&message));
    }
    // The second of them continued the handshake of the first.
    let stats = mainstay.stats();
    assert_eq!((stats.tls_full, stats.tls_resumed), (1, 1));
}

#[tokio::test]
async fn a_client_that_reads_late_gets_every_message_and_the_end_of_the_stream_is_announced() {
    let (address, _mainstay, certificate) = serve(Config::default()).await;
    let stream = connect(address, trusting(&certificate, "http/1.1")).await;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        writer.write_all(UPGRADE).await.unwrap();
        // More than sockets and records hold, in both directions.
        for _ in 0..64 {
            writer.write_all(&frame(0x82, &[9; 64 * 1024])).await.unwrap();
        }
        // The last record may wait in TLS while the socket is full.
        writer.flush().await.unwrap();
        writer
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (mut payload, mut buffer) = (0, vec![0; 64 * 1024]);
    while payload < 64 * 64 * 1024 {
        let count = reader.read(&mut buffer).await.unwrap();
        payload += buffer[..count].iter().filter(|byte| **byte == 9).count();
    }
    let mut writer = writing.await.unwrap();
    writer.write_all(&frame(0x88, &[0x03, 0xe8])).await.unwrap();
    let mut rest = Vec::new();
    // Fails with UnexpectedEof where TCP ends without the message of TLS.
    reader.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&[0x88, 0x02, 0x03, 0xe8]), "{rest:?}");
}

/// A connection of HTTP/2, once the server has announced extended CONNECT.
pub(crate) async fn http2(
    address: SocketAddr,
    certificate: &CertificateDer<'static>,
) -> h2::client::SendRequest<Bytes> {
    let stream = connect(address, trusting(certificate, "h2")).await;
    // With a small window h2 takes many small frames that are not read yet for a flood.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(16 << 20);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    while !sender.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    let about = http::Request::get("https://localhost/about").body(()).unwrap();
    let (response, _) = sender.send_request(about, true).unwrap();
    let body = response.await.unwrap().into_body().data().await.unwrap().unwrap();
    assert_eq!(body, "HTTP/2.0 true");
    sender
}

pub(crate) type WebSocket = (h2::SendStream<Bytes>, h2::RecvStream);

/// Opens a WebSocket in a connection of HTTP/2.
async fn open(
    sender: &h2::client::SendRequest<Bytes>,
    protocol: &'static str,
) -> Result<WebSocket, StatusCode> {
    open_at(sender, "/ws", protocol).await
}

/// The same, at a path.
pub(crate) async fn open_at(
    sender: &h2::client::SendRequest<Bytes>,
    path: &str,
    protocol: &'static str,
) -> Result<WebSocket, StatusCode> {
    let uri = format!("https://localhost{path}");
    let request = http::Request::builder().method(Method::CONNECT).uri(uri);
    let mut request = request.header("sec-websocket-version", "13").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
    let mut sender = sender.clone().ready().await.unwrap();
    let (response, outgoing) = sender.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert!(!response.headers().contains_key("connection") && !response.headers().contains_key("upgrade"));
    match response.status() {
        StatusCode::OK => Ok((outgoing, response.into_body())),
        status => Err(status),
    }
}

/// Reads at least so many bytes.
async fn read(incoming: &mut h2::RecvStream, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let piece = incoming.data().await.unwrap().unwrap();
        incoming.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[tokio::test]
async fn many_websockets_share_a_connection_of_http_2_with_requests() {
    let (address, mainstay, certificate) = serve(Config::default()).await;
    let sender = http2(address, &certificate).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(open(&sender, "websocket").await.unwrap());
    }
    for (at, (outgoing, incoming)) in sockets.iter_mut().enumerate() {
        let text = format!("hello {at:02}");
        outgoing.send_data(frame(0x81, text.as_bytes()).into(), false).unwrap();
        assert_eq!(read(incoming, 10).await, [&[0x81, 8][..], text.as_bytes()].concat());
    }
    // Larger than the windows of HTTP/2.
    let (outgoing, incoming) = &mut sockets[0];
    outgoing.send_data(frame(0x82, &[5; 300_000]).into(), false).unwrap();
    let echoed = read(incoming, 300_000).await;
    assert!(echoed.iter().filter(|byte| **byte == 5).count() >= 300_000);
    assert_eq!(mainstay.sessions().attached, 20);
    drop(sockets);
    crate::support::until("the sessions end with their streams", || mainstay.sessions().attached == 0).await;
}

#[tokio::test]
async fn a_websocket_in_http_2_ends_with_a_close_and_the_end_of_its_stream() {
    let (address, _mainstay, certificate) = serve(Config::default()).await;
    let sender = http2(address, &certificate).await;
    let (mut outgoing, mut incoming) = open(&sender, "websocket").await.unwrap();
    outgoing.send_data(frame(0x88, &[0x03, 0xe8]).into(), false).unwrap();
    assert_eq!(read(&mut incoming, 4).await, [0x88, 0x02, 0x03, 0xe8]);
    let rest = incoming.data().await.transpose().unwrap();
    assert!(rest.is_none_or(|rest| rest.is_empty()) && incoming.is_end_stream());
}

#[tokio::test]
async fn each_websocket_in_http_2_counts_as_a_connection() {
    let admission = AdmissionConfig { connections: Some(3), per_address: None };
    let (address, _mainstay, certificate) = serve(Config::new().admission(admission)).await;
    let sender = http2(address, &certificate).await;
    let (one, two) = (open(&sender, "websocket").await, open(&sender, "websocket").await);
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(open(&sender, "websocket").await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    drop(one);
    crate::support::until("the place is free", || _mainstay.sessions().attached == 1).await;
    assert!(open(&sender, "websocket").await.is_ok());
}

#[tokio::test]
async fn connect_for_another_protocol_is_not_implemented() {
    let (address, _mainstay, certificate) = serve(Config::default()).await;
    let sender = http2(address, &certificate).await;
    assert_eq!(open(&sender, "connect-udp").await.err(), Some(StatusCode::NOT_IMPLEMENTED));
}

#[tokio::test]
async fn a_drain_closes_the_websockets_in_http_2() {
    let (address, mainstay, certificate) = serve(Config::default()).await;
    let sender = http2(address, &certificate).await;
    let (mut outgoing, mut incoming) = open(&sender, "websocket").await.unwrap();
    outgoing.send_data(frame(0x81, b"x").into(), false).unwrap();
    read(&mut incoming, 3).await;
    let draining = tokio::spawn(async move { mainstay.drain(Duration::from_secs(2)).await });
    let close = read(&mut incoming, 4).await;
    assert_eq!((close[0], &close[2..4]), (0x88, &[0x03, 0xf4][..]), "1012");
    outgoing.send_data(frame(0x88, &[0x03, 0xf4]).into(), true).unwrap();
    draining.await.unwrap();
}
