//! A WebSocket frame by frame: a client or a backend that does only what the test says.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mainstay_proto::ws::handshake::accept_key;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;

pub(crate) struct Frames {
    stream: TcpStream,
    masks: bool,
}

impl From<TcpStream> for Frames {
    /// A connection whose opening handshake is done. Its frames are written unmasked.
    fn from(stream: TcpStream) -> Self {
        Self { stream, masks: false }
    }
}

impl Frames {
    /// The head of the answer to a client with these further headers (each with its line's end), and what follows.
    pub(crate) async fn connect(address: SocketAddr, path: &str, headers: &str) -> (String, Self) {
        Self::connect_over(TcpStream::connect(address).await.unwrap(), path, headers).await
    }

    /// A client whose kernel takes little more than this many bytes ahead of it.
    pub(crate) async fn connect_slowly(address: SocketAddr, path: &str, ahead: u32) -> (String, Self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(ahead).unwrap();
        // Loopback's segments of 64 KiB make the other end's kernel keep far more than a network's would.
        socket2::SockRef::from(&socket).set_tcp_mss(1220).unwrap();
        Self::connect_over(socket.connect(address).await.unwrap(), path, "").await
    }

    pub(crate) async fn connect_over(mut stream: TcpStream, path: &str, headers: &str) -> (String, Self) {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        stream.set_nodelay(true).unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        (head(&mut stream).await.unwrap(), Self { stream, masks: true })
    }

    /// The head of the next request, which is accepted, and what follows.
    pub(crate) async fn serve(listener: &TcpListener) -> (String, Self) {
        Self::serve_with(listener, "").await
    }

    /// The same, with further headers in the answer.
    pub(crate) async fn serve_with(listener: &TcpListener, headers: &str) -> (String, Self) {
        // A dial that was given up leaves an empty connection behind.
        let (mut stream, request) = loop {
            let (mut stream, _) = listener.accept().await.unwrap();
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

    /// The next frame, of which so many bytes are taken at a time.
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

    /// The next frame: its first byte, and its payload.
    pub(crate) async fn read(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let (first, length, key) = self.header().await?;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        Ok((first, payload))
    }

    async fn header(&mut self) -> io::Result<(u8, usize, [u8; 4])> {
        let first = self.stream.read_u8().await?;
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

    /// The next text; what comes before it is answered as a WebSocket stack would. `None`: the connection ended first.
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

    /// Answers the next Ping.
    pub(crate) async fn pong(&mut self) {
        loop {
            if let (PING, payload) = self.read().await.unwrap() {
                return self.write(PONG, &payload).await;
            }
        }
    }

    /// Best effort: the other end may be gone, and that is what the test looks at next.
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

/// The head of a message of HTTP.
pub(crate) async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head).unwrap())
}
