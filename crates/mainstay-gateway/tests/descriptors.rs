//! A gateway that has no descriptors left.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Ends with the test, however that ends.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_gateway_that_runs_out_of_descriptors_goes_on_when_there_are_some_again() {
    let mut gateway = Gateway(
        Command::new("sh")
            .args(["-c", "ulimit -n 60 && exec \"$0\" serve --listen 127.0.0.1:0 --max-connections 1000"])
            .arg(env!("CARGO_BIN_EXE_mainstay"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(gateway.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit_once("ws://").unwrap().1.to_owned();
    let many: Vec<_> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut errors = BufReader::new(gateway.0.stderr.take().unwrap());
    let mut error = String::new();
    errors.read_line(&mut error).unwrap();
    assert!(error.contains("accept fails"), "{error}");
    drop(many);
    let started = Instant::now();
    while !is_served(&address) {
        assert!(started.elapsed() < Duration::from_secs(30), "nobody is served");
    }
    assert!(gateway.0.try_wait().unwrap().is_none(), "the gateway ended");
}

fn is_served(address: &str) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let request = "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).is_ok() && &status == b"HTTP/1.1 101"
}
