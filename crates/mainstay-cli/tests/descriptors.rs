//! A gateway without free descriptors.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Killed when dropped.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `mainstay serve` with this limit of open files; returns the addresses that it prints.
fn serve(files: u32, flags: &str) -> (Gateway, Vec<String>) {
    let command = format!("ulimit -n {files} && exec \"$0\" serve --listen 127.0.0.1:0 {flags}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &command, env!("CARGO_BIN_EXE_mainstay")]);
    for (variable, _) in std::env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"MAINSTAY_") {
            shell.env_remove(variable);
        }
    }
    let mut gateway = Gateway(shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(gateway.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let lines = lines.take_while(|line| !line.contains("try:"));
    let addresses = lines.filter_map(|line| {
        line.split_once("ws://")
            .or(line.split_once("admin on http://"))
            .map(|(_, address)| address.split(": ").next().unwrap_or_default().to_owned())
    });
    let addresses = addresses.filter(|address| address.starts_with("127.")).collect();
    (gateway, addresses)
}

#[test]
fn a_gateway_without_descriptors_continues_when_some_are_free_again() {
    let (mut gateway, addresses) = serve(60, "--max-connections 1000");
    let address = &addresses[0];
    let many: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut errors = BufReader::new(gateway.0.stderr.take().unwrap());
    let mut error = String::new();
    errors.read_line(&mut error).unwrap();
    assert!(error.contains("accept fails"), "{error}");
    drop(many);
    let started = Instant::now();
    while !is_served(address) {
        assert!(started.elapsed() < Duration::from_secs(30), "no client is served");
    }
    assert!(gateway.0.try_wait().unwrap().is_none(), "the gateway ended");
}

#[test]
fn health_checks_are_answered_when_no_descriptor_is_left() {
    // The default of --max-connections, and more than the limit of open files allows.
    for flags in ["--admin 127.0.0.1:0", "--admin 127.0.0.1:0 --max-connections 1000"] {
        let (_gateway, addresses) = serve(100, flags);
        let half = |address: &String| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /echo HTTP/1.1\r\nHo").unwrap();
            stream
        };
        let crowd: Vec<_> = (0..200).map(|_| half(&addresses[0])).collect();
        for path in ["/healthz", "/readyz"] {
            let mut stream = TcpStream::connect(&addresses[1]).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{flags} {path}: {answer}");
        }
        drop(crowd);
    }
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
