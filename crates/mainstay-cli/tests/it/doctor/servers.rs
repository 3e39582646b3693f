//! Servers in this process that behave as a test wants.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mainstay::client::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use mainstay::client::rustls::server::WebPkiClientVerifier;
use mainstay::client::rustls::{RootCertStore, ServerConfig, version};
use mainstay_proto::ws::handshake::accept_key;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A connection to a client: TCP, or TLS over it.
pub(super) type Connection = Box<dyn Stream>;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a server does with one connection.
pub(super) type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves each connection by this function. Returns the port.
pub(super) async fn serve<F, R>(serve: F) -> u16
where
    F: Fn(Connection) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    accept(move |stream| serve(Box::new(stream))).await
}

/// Serves each connection by this function behind TLS, if the client finishes its handshake.
pub(super) async fn serve_tls<F, R>(config: ServerConfig, serve: F) -> u16
where
    F: Fn(Connection) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let serve = Arc::new(serve);
    accept(move |stream| {
        let (acceptor, serve) = (acceptor.clone(), Arc::clone(&serve));
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(Box::new(stream)).await;
            }
        }
    })
    .await
}

async fn accept<F, R>(serve: F) -> u16
where
    F: Fn(TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// Answers each opening handshake with a response that is made of its head, and then closes.
pub(super) fn answering(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> impl Fn(Connection) -> Serving + Send + Sync + 'static {
    let answer = Arc::new(answer);
    move |mut connection| {
        let answer = Arc::clone(&answer);
        Box::pin(async move {
            if let Some(head) = read_head(&mut connection).await {
                let _ = connection.write_all(answer(&head).as_bytes()).await;
                let _ = connection.shutdown().await;
                hold(connection).await;
            }
        })
    }
}

/// Accepts each opening handshake, with these fields, and goes on by this function.
pub(super) fn speak<F, R>(
    fields: &'static str,
    then: F,
) -> impl Fn(Connection) -> Serving + Send + Sync + 'static
where
    F: Fn(Connection) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let then = Arc::new(then);
    move |mut connection| {
        let then = Arc::clone(&then);
        Box::pin(async move {
            if let Some(head) = read_head(&mut connection).await {
                let _ = connection.write_all(accepting(&head, fields).as_bytes()).await;
                then(connection).await;
            }
        })
    }
}

/// The response that accepts an opening handshake, with these fields.
pub(super) fn accepting(head: &str, fields: &str) -> String {
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let accept = accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{fields}\r\n"
    )
}

/// Reads the head of a request; bytes that are no HTTP are returned as they come. `None`: the client sent nothing.
pub(super) async fn read_head(connection: &mut Connection) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
        if !head.starts_with(b"G") {
            break;
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads until the client closes, and answers nothing.
pub(super) async fn hold(mut connection: Connection) {
    let mut scratch = [0; 1024];
    while matches!(connection.read(&mut scratch).await, Ok(1..)) {}
}

/// Returns each text message and the payload of each Ping.
pub(super) async fn echoing(mut connection: Connection) {
    while let Some((opcode, payload)) = frame(&mut connection).await {
        let first = match opcode {
            1 => 0x81,
            9 => 0x8a,
            _ => continue,
        };
        let head = [first, u8::try_from(payload.len()).unwrap()];
        if connection.write_all(&[&head[..], &payload].concat()).await.is_err() {
            return;
        }
    }
}

/// Sends a Close, and waits for the client's end.
pub(super) async fn closing(mut connection: Connection, code: u16, reason: &'static str) {
    let body = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
    let head = [0x88, u8::try_from(body.len()).unwrap()];
    let _ = connection.write_all(&[&head[..], &body].concat()).await;
    let _ = frame(&mut connection).await;
}

/// Reads one frame of a client, of at most 125 bytes: its opcode and payload.
pub(super) async fn frame(connection: &mut Connection) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 6];
    connection.read_exact(&mut head).await.ok()?;
    let [first, len, mask @ ..] = head;
    let mut payload = vec![0; usize::from(len & 0x7f)];
    connection.read_exact(&mut payload).await.ok()?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some((first & 0xf, payload))
}

/// A certificate authority, whose certificate lies in a file while this lives.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let name = format!("Authority {:?}", SystemTime::now());
        let file = std::env::temp_dir().join(format!("mainstay-doctor-{:x}.pem", md(key.public_key_raw())));
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }

    pub(super) fn file(&self) -> String {
        self.file.to_str().unwrap().to_owned()
    }

    /// A server for `localhost` with a certificate that this function changes before it is issued.
    pub(super) fn server(&self, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let (chain, key) = self.issue(change);
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap()
    }

    /// A server that requires a certificate of this authority.
    pub(super) fn strict_server(&self) -> ServerConfig {
        let (chain, key) = self.issue(|_| {});
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap()
    }

    /// A server that speaks TLS 1.2 only.
    pub(super) fn old_server(&self) -> ServerConfig {
        let (chain, key) = self.issue(|_| {});
        let builder = ServerConfig::builder_with_protocol_versions(&[&version::TLS12]);
        builder.with_no_client_auth().with_single_cert(chain, key).unwrap()
    }

    fn issue(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issued = params.signed_by(&key, &self.issuer).unwrap();
        (vec![issued.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A number for these bytes, for the name of a file.
fn md(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// A server whose certificate is signed by itself.
pub(super) fn self_signed() -> ServerConfig {
    let own = crate::tls::self_signed("localhost", false);
    let key = PrivateKeyDer::try_from(own.key().serialize_der()).unwrap();
    ServerConfig::builder().with_no_client_auth().with_single_cert(vec![own.der().clone()], key).unwrap()
}

/// Lets a certificate say where its issuer's is.
///
/// Source: RFC 5280 section 4.2.2.1.
pub(super) fn with_place_of_issuer(params: &mut CertificateParams) {
    let place = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x30\x02\x86\x0bhttp://ca/x";
    let access = [b"\x30\x19\x30\x17", &place[..]].concat();
    let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access);
    params.custom_extensions.push(extension);
}

/// Lets a certificate expire at the third midnight from now.
pub(super) fn expires_in_three_days(params: &mut CertificateParams) {
    let date = humantime::format_rfc3339(SystemTime::now() + Duration::from_secs(3 * 24 * 3600)).to_string();
    let number = |from: usize, to: usize| date[from..to].parse::<u8>().unwrap();
    let year = date[..4].parse().unwrap();
    params.not_after = rcgen::date_time_ymd(year, number(5, 7), number(8, 10));
}

/// A server that speaks HTTP/2, too. `allows`: its SETTINGS allow CONNECT for WebSockets, which it answers with `status`.
pub(super) async fn serve_http_2(mut config: ServerConfig, allows: bool, status: u16) -> u16 {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let by_http_1 = Arc::new(speak("", echoing));
    accept(move |stream| {
        let (acceptor, by_http_1) = (acceptor.clone(), Arc::clone(&by_http_1));
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return by_http_1(Box::new(stream)).await;
            }
            let mut builder = h2::server::Builder::new();
            if allows {
                builder.enable_connect_protocol();
            }
            let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let response = http::Response::builder().status(status).body(()).unwrap();
                let _ = respond.send_response(response, status != 200);
            }
        }
    })
    .await
}
