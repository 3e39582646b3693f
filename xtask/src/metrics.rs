//! Reads a server's `/metrics`, and what else its listener of `--admin` serves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::Result;

/// The whole answer to a request for `/metrics`.
pub(crate) fn read(admin: SocketAddr) -> Result<String> {
    get(admin, "/metrics")
}

/// The whole answer of the listener that `--admin` opened.
pub(crate) fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A sample of the metrics, 0 if it is not there.
pub(crate) fn metric(metrics: &str, name: &str) -> u64 {
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    lines.find_map(|value| value.trim().parse().ok()).unwrap_or(0)
}
