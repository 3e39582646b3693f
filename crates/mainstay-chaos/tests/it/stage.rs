//! An upstream that returns what it receives, and a client.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::spawn;
use std::time::{Duration, Instant};

use mainstay_chaos::{ChaosProxy, Event};

/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
pub(crate) const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

/// How a connection of the upstream ended, and what it received.
pub(crate) type Received = (Vec<u8>, io::Result<()>);

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// One for each connection that has ended.
    pub(crate) received: mpsc::Receiver<Received>,
}

/// Starts an upstream that returns what it receives; a request for an upgrade it answers with 101.
pub(crate) fn upstream() -> Upstream {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (ended, received) = mpsc::channel();
    spawn(move || {
        for stream in listener.incoming().flatten() {
            let ended = ended.clone();
            spawn(move || {
                let mut all = Vec::new();
                let end = answer(stream, &mut all);
                let _ = ended.send((all, end));
            });
        }
    });
    Upstream { address, received }
}

fn answer(mut stream: TcpStream, all: &mut Vec<u8>) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        all.extend_from_slice(&bytes[..count]);
        match all.as_slice() {
            head if head.starts_with(b"GET ") && head.ends_with(b"\r\n\r\n") => stream.write_all(SWITCHED)?,
            head if head.starts_with(b"GET ") && !head.windows(4).any(|four| four == b"\r\n\r\n") => {}
            _ => stream.write_all(&bytes[..count])?,
        }
    }
}

impl Upstream {
    /// Starts a proxy to it without faults.
    pub(crate) fn proxy(&self) -> ChaosProxy {
        ChaosProxy::builder(self.address.to_string()).start().unwrap()
    }

    pub(crate) fn next(&self) -> Received {
        self.received.recv_timeout(LIMIT).expect("a connection of the upstream ends")
    }
}

pub(crate) fn connect(proxy: &ChaosProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Writes, and reads the same bytes.
pub(crate) fn exchange(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    assert_eq!(read(stream, bytes.len()), bytes);
}

pub(crate) fn read(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Opens a WebSocket.
pub(crate) fn open(proxy: &ChaosProxy) -> TcpStream {
    let mut stream = connect(proxy);
    stream.write_all(REQUEST).unwrap();
    assert_eq!(read(&stream, SWITCHED.len()), SWITCHED);
    stream
}

/// Waits for the first event of this name.
pub(crate) fn wait_for(proxy: &ChaosProxy, name: &str) -> Event {
    let event = proxy.wait_for(LIMIT, |event| event.what.name() == name);
    event.unwrap_or_else(|| panic!("{name} is not in the timeline: {:#?}", proxy.timeline()))
}

/// Waits until something is so that no event reports.
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LIMIT, "it never was so");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether nothing has arrived and no end, on a socket.
pub(crate) fn is_silent(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let error = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    stream.set_nonblocking(false).unwrap();
    error == Err(io::ErrorKind::WouldBlock)
}
