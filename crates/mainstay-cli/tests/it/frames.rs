//! A WebSocket frame by frame: a client or a backend that does only what the test asks for.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mainstay_proto::session::message::{ClientKey, Hello, Instance};
use mainstay_proto::session::{Control, Window};
use mainstay_proto::ws::handshake::accept_key;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;

/// No test waits longer for the other end. It panics then: an error would look as if the connection had ended.
const LIMIT: Duration = Duration::from_secs(30);

async fn within<T>(what: &str, coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, coming).await.unwrap_or_else(|_| panic!("no {what} within {LIMIT:?}"))
}

pub(crate) struct Frames {
    stream: TcpStream,
    masks: bool,
}

impl From<TcpStream> for Frames {
    /// Wraps a connection after its opening handshake. Writes frames unmasked.
    fn from(stream: TcpStream) -> Self {
        Self { stream, masks: false }
    }
}

impl Frames {
    /// Connects a client with these additional headers (each with its line end). Returns the head of the response and the
    /// connection.
    pub(crate) async fn connect(address: SocketAddr, path: &str, headers: &str) -> (String, Self) {
        Self::connect_over(TcpStream::connect(address).await.unwrap(), path, headers).await
    }

    /// Connects a client whose kernel buffers little more than this many bytes.
    pub(crate) async fn connect_slowly(address: SocketAddr, path: &str, ahead: u32) -> (String, Self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(ahead).unwrap();
        // With loopback's segments of 64 KiB, the other end's kernel would buffer far more than over a network.
        socket2::SockRef::from(&socket).set_tcp_mss(1220).unwrap();
        Self::connect_over(socket.connect(address).await.unwrap(), path, "").await
    }

    /// The connection under it.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub(crate) async fn connect_over(mut stream: TcpStream, path: &str, headers: &str) -> (String, Self) {
        let host = if headers.contains("Host: ") { "" } else { "Host: x\r\n" };
        let request = format!(
            "GET {path} HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        stream.set_nodelay(true).unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        (head(&mut stream).await.unwrap(), Self { stream, masks: true })
    }

    /// Accepts the next opening handshake. Returns the head of the request and the connection.
    pub(crate) async fn serve(listener: &TcpListener) -> (String, Self) {
        Self::serve_with(listener, "").await
    }

    /// The same, with additional headers in the response.
    pub(crate) async fn serve_with(listener: &TcpListener, headers: &str) -> (String, Self) {
        // A probe, or an attempt that was cancelled, is an empty connection.
        let (mut stream, request) = loop {
            let (mut stream, _) = within("connection", listener.accept()).await.unwrap();
            if let Ok(request) = head(&mut stream).await {
                break (stream, request);
            }
        };
        let fields = request.lines().filter_map(|line| line.split_once(": "));
        let is_key = |name: &str| name.eq_ignore_ascii_case("sec-websocket-key");
        let key = fields.filter(|(name, _)| is_key(name)).map(|(_, value)| value).next().unwrap();
        let accept = accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{headers}\r\n"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        (request, Self { stream, masks: false })
    }

    /// Reads the next frame in pieces, with a pause after each.
    pub(crate) async fn read_paced(&mut self, piece: usize, pause: Duration) -> io::Result<(u8, Vec<u8>)> {
        let (first, length, key) = self.header().await?;
        let mut payload = vec![0; length];
        for piece in payload.chunks_mut(piece) {
            self.stream.read_exact(piece).await?;
            tokio::time::sleep(pause).await;
        }
        payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        Ok((first, payload))
    }

    /// Reads the next frame. Returns its first byte and its payload.
    pub(crate) async fn read(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let (first, length, key) = self.header().await?;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        Ok((first, payload))
    }

    async fn header(&mut self) -> io::Result<(u8, usize, [u8; 4])> {
        let first = within("frame", self.stream.read_u8()).await?;
        let second = self.stream.read_u8().await?;
        let length = match second & 0x7f {
            126 => u64::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await?,
            length => length.into(),
        };
        let mut key = [0; 4];
        if second & 0x80 != 0 {
            self.stream.read_exact(&mut key).await?;
        }
        Ok((first, usize::try_from(length).unwrap(), key))
    }

    /// Reads up to the next text, answering Ping and Close as a WebSocket stack does. `None`: the connection ended first.
    pub(crate) async fn text(&mut self) -> Option<String> {
        loop {
            match self.read().await.ok()? {
                (TEXT, payload) => return Some(String::from_utf8(payload).unwrap()),
                (PING, payload) => self.write(PONG, &payload).await,
                (CLOSE, payload) => {
                    self.write(CLOSE, &payload).await;
                    return None;
                }
                _ => {}
            }
        }
    }

    /// Answers Pings up to the one that confirms message `last`.
    pub(crate) async fn confirm(&mut self, last: u64) {
        loop {
            let (first, payload) = self.read().await.unwrap();
            assert_eq!(first, PING, "{:?}", String::from_utf8_lossy(&payload));
            self.write(PONG, &payload).await;
            if payload == last.to_be_bytes() {
                return;
            }
        }
    }

    /// Writes a frame. Ignores errors: the other end may be gone, and the test checks that next.
    pub(crate) async fn write(&mut self, first: u8, payload: &[u8]) {
        let mut bytes = vec![first];
        let mask = if self.masks { 0x80 } else { 0 };
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length @ ..=125), _) => bytes.push(mask | length),
            (_, Ok(length)) => {
                bytes.push(mask | 126);
                bytes.extend(length.to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((payload.len() as u64).to_be_bytes());
            }
        }
        if self.masks {
            bytes.extend([0; 4]);
        }
        bytes.extend(payload);
        self.write_bytes(&bytes).await;
    }

    pub(crate) async fn write_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }
}

/// Reads the head of an HTTP message.
pub(crate) async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        io::Result::Ok(())
    };
    within("head of a message", reading).await?;
    Ok(String::from_utf8(head).unwrap())
}

/// The HELLO of client `number` for a new session. Tests replace the fields that matter to them.
pub(crate) fn hello(number: u64) -> Hello {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    Hello {
        window: Window { messages: 1024, bytes: 1 << 20 },
        key: ClientKey(key),
        key_age: Duration::ZERO,
        instance: Instance(number.to_be_bytes()),
        attempt: 1,
        resume: None,
        credentials: None,
        resume_window: None,
        max_message: None,
    }
}

/// The payload of a HELLO.
pub(crate) fn encoded(hello: Hello) -> Vec<u8> {
    Control::Hello(Box::new(hello)).encode().to_vec()
}
