//! What a hostile peer gets: its own connection closed, at most, and nothing else. One file for each kind of input;
//! `docs/HOSTILE.md` has every input with its outcome.
//!
//! Every case goes over a real socket to a server that has an honest client as well, and ends by looking at that one.

mod compression;
mod frames;
#[cfg(feature = "http2")]
mod http2;
mod limits;
mod opening;
mod openings;
mod session;
mod slow;
mod throttle;

use std::net::SocketAddr;
use std::time::Duration;

use mainstay::server::Config;
use mainstay::{Client, Message, Server};
use mainstay_proto::session::{Control, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{echo_server, until};

/// Far longer than any step of these tests needs.
const LIMIT: Duration = Duration::from_secs(30);

/// An echo server, and an honest client of it.
struct Stage {
    address: SocketAddr,
    mainstay: Server,
    honest: Client,
}

impl Stage {
    async fn set(config: Config) -> Self {
        let (address, mainstay) = echo_server(config).await;
        let honest = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
        let mut stage = Self { address, mainstay, honest };
        stage.honest_client_is_served("at first").await;
        stage
    }

    async fn honest_client_is_served(&mut self, after: &str) {
        self.honest.send(Message::text(after)).await.unwrap();
        assert_eq!(self.honest.recv().await, Some(Message::text(after)));
    }

    /// Nothing is left of the hostile peers, and the honest one never lost its connection.
    async fn ends_unharmed(self) {
        let mainstay = self.mainstay.clone();
        self.ends_alone().await;
        let stats = mainstay.stats();
        assert_eq!(stats.attached_resumed, 0, "{stats:?}");
    }

    /// Nothing is left of the others, and the honest one is served.
    async fn ends_alone(mut self) {
        self.honest_client_is_served("afterwards").await;
        until("only the honest client is left", || {
            let stats = self.mainstay.stats();
            (stats.connections, stats.sessions) == (1, 1)
        })
        .await;
    }

    /// Sends `bytes` on a fresh connection, then returns all that comes back until the server closes it.
    async fn answer(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may close before it has read all of it.
        let _ = stream.write_all(bytes).await;
        let mut out = Vec::new();
        let all = stream.read_to_end(&mut out);
        let _ = tokio::time::timeout(LIMIT, all).await.expect("the server closes");
        String::from_utf8_lossy(&out).into_owned()
    }

    async fn open(&self) -> Raw {
        Raw::open(self.address, "").await
    }
}

/// The head of a good opening request, with further headers (each with its line's end).
pub(crate) fn upgrade(headers: &str) -> String {
    format!(
        "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// A WebSocket whose client writes whatever it likes.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    /// The head of the response.
    head: String,
}

impl Raw {
    pub(crate) async fn open(address: SocketAddr, headers: &str) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), upgrade(headers).as_bytes()).await
    }

    /// Writes `request` and takes the head of the response.
    pub(crate) async fn over(mut stream: TcpStream, request: &[u8]) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.write_all(request).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self { stream, head }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        // The server may have closed already, and that is what the test looks at next.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame: its first byte, and its payload.
    pub(crate) async fn frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await?;
        let length = match self.stream.read_u8().await? {
            126 => u64::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await?,
            length => length.into(),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await?;
        Ok((first, payload))
    }

    /// The code of the Close that comes, sooner or later, and after which the server ends the connection.
    /// `None`: it just ended it.
    pub(crate) async fn close_code(&mut self) -> Option<u16> {
        let close = async {
            loop {
                match self.frame().await {
                    Ok((0x88, payload)) => {
                        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                        // Answered, so that the server need not wait for that.
                        self.write(&frame(0x88, &[])).await;
                        let _ = self.stream.read_to_end(&mut Vec::new()).await;
                        return code;
                    }
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(LIMIT, close).await.expect("the server closes")
    }

    pub(crate) async fn echoes(&mut self, text: &str) {
        self.write(&frame(0x81, text.as_bytes())).await;
        self.expects(text).await;
    }

    pub(crate) async fn expects(&mut self, text: &str) {
        loop {
            let (first, payload) = self.frame().await.unwrap();
            // Heartbeats come when they come.
            if first == 0x89 {
                self.write(&frame(0x8a, &payload)).await;
            } else if first == 0x82 && is_session_ping(&payload) {
                continue;
            } else {
                return assert_eq!((first, payload), (0x81, text.as_bytes().to_vec()));
            }
        }
    }
}

/// Whether a binary message is the PING of a session.
fn is_session_ping(payload: &[u8]) -> bool {
    let message = Message::Binary(payload.to_vec().into());
    matches!(Frame::decode(message), Ok(Frame::Control(Control::Ping(_))))
}

/// A masked frame with this first byte.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(first, payload.len() as u64);
    out.extend([0; 4]);
    out.extend(payload);
    out
}

/// The header of a masked frame, without the key, in its shortest form.
pub(crate) fn header(first: u8, length: u64) -> Vec<u8> {
    let mut out = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..=125), _) => out.push(0x80 | length),
        (_, Ok(length)) => {
            out.push(0x80 | 126);
            out.extend(length.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend(length.to_be_bytes());
        }
    }
    out
}
