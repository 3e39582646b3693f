//! WebSocket over HTTP/2: whether the server allows it, and what it answers.
//!
//! Browsers use it when they already have a connection of HTTP/2 to the server and its SETTINGS allow it, so a server that
//! allows it and then fails is worse than one that does not.
//!
//! Source: RFC 8441.

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{HeaderValue, Method, Request, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::dial::{self, STEP_TIME};
use super::report::{Http2Facts, plain};
use super::target::{Target, config};

/// The largest list of fields that the server may answer with, in bytes.
const MAX_FIELDS: u32 = 64 * 1024;

/// Opens a connection that offers HTTP/2, and tries a WebSocket on it. `None`: the target speaks no TLS, where HTTP/2 is agreed on.
///
/// # Cancel safety
/// Safe.
pub(super) async fn facts(target: &Target) -> Option<Http2Facts> {
    let address = target.address().filter(|_| target.is_secure())?;
    let mut facts = Http2Facts::default();
    let trying = try_it(target, address, &mut facts);
    match timeout(STEP_TIME, trying).await {
        Ok(Ok(())) => {}
        Ok(Err(words)) => facts.error = Some(target.shown(&words)),
        Err(_) => facts.error = Some(format!("no answer within {} s", STEP_TIME.as_secs())),
    }
    Some(facts)
}

async fn try_it(
    target: &Target,
    address: std::net::SocketAddr,
    facts: &mut Http2Facts,
) -> Result<(), String> {
    let (stream, _) = dial::tcp(address).await.map_err(|error| error.to_string())?;
    let config = config(target.verifier(), &[b"h2", b"http/1.1"])?;
    let (stream, _) = dial::secure(target, stream, &config).await.map_err(|error| error.to_string())?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Ok(());
    }
    facts.offered = true;
    let handshake = h2::client::Builder::new().max_header_list_size(MAX_FIELDS).handshake(stream).await;
    let (sender, connection) = handshake.map_err(|error| words(&error))?;
    converse(target, sender, connection, facts).await
}

/// Drives the connection while a WebSocket is asked for.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    target: &Target,
    sender: SendRequest<Bytes>,
    mut connection: Connection<S>,
    facts: &mut Http2Facts,
) -> Result<(), String> {
    let ping = connection.ping_pong();
    let asking = async {
        // The server's SETTINGS come before its answer to a PING.
        if let Some(mut ping) = ping {
            ping.ping(h2::Ping::opaque()).await.map_err(|error| words(&error))?;
        }
        facts.extended_connect = sender.is_extended_connect_protocol_enabled();
        if !facts.extended_connect {
            return Ok(());
        }
        let mut sender = sender.ready().await.map_err(|error| words(&error))?;
        let (response, _stream) =
            sender.send_request(request(target)?, false).map_err(|error| words(&error))?;
        facts.status = Some(response.await.map_err(|error| words(&error))?.status().as_u16());
        Ok(())
    };
    tokio::select! {
        biased;
        asked = asking => asked,
        ended = connection => match ended {
            Ok(()) => Err("the server closed the connection".to_owned()),
            Err(error) => Err(words(&error)),
        },
    }
}

/// Makes the request for a WebSocket.
fn request(target: &Target) -> Result<Request<()>, String> {
    let uri = target.url().to_string().replacen("ws", "http", 1);
    let mut request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri(uri);
    if let Some(fields) = request.headers_mut() {
        fields.insert(http::header::USER_AGENT, HeaderValue::from_static(dial::AGENT));
        fields.extend(target.headers().clone());
        fields.insert("sec-websocket-version", HeaderValue::from_static("13"));
        if let Ok(names) = HeaderValue::try_from(target.subprotocols().join(", "))
            && !names.is_empty()
        {
            fields.insert("sec-websocket-protocol", names);
        }
    }
    let protocol = h2::ext::Protocol::from_static("websocket");
    request.extension(protocol).body(()).map_err(|error| error.to_string())
}

fn words(error: &h2::Error) -> String {
    error.get_io().map_or_else(|| error.to_string(), plain)
}
