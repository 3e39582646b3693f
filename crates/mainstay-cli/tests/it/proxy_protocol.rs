//! PROXY headers of trusted proxies, from our own bytes. `real_proxies` has those of real ones.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::support::{Gateway, until};

/// A backend that answers each request with what it says about the client.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map(Result::unwrap) {
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    match connection.read(&mut byte) {
                        Ok(1) => head.push(byte[0]),
                        _ => return,
                    }
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let about: Vec<_> = head.lines().filter(|line| line.starts_with("x-forwarded-")).collect();
                let body = about.join("\n");
                let length = body.len();
                let _ = write!(
                    connection,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
                );
            });
        }
    });
    address
}

pub(crate) fn gateway(versions: &str, arguments: &[&str]) -> Gateway {
    let mut command =
        crate::support::mainstay(&["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command
        .args(["--upstream", &format!("http://{}", backend()), "--trusted-proxy", "127.0.0.1"])
        .args(arguments);
    command.env("MAINSTAY_PROXIES__PROXY_PROTOCOL", versions);
    Gateway::begin(command)
}

/// Sends bytes and returns everything that comes back.
pub(crate) fn exchange(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[test]
fn the_address_of_the_header_takes_the_place_of_the_proxys() {
    let gateway = gateway("any", &[]);
    let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";
    let answer = exchange(gateway.address(), &[&line[..], REQUEST].concat());
    assert!(answer.contains("x-forwarded-for: 192.0.2.7\n"), "{answer}");
    let binary =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\xc0\0\x02\x08\x0a\0\0\x01\x01\x02\x01\xbb\x20\0\x05\x01\0\0\0\0";
    let answer = exchange(gateway.address(), &[&binary[..], REQUEST].concat());
    assert!(answer.contains("x-forwarded-for: 192.0.2.8\n"), "{answer}");
    assert!(
        answer.contains("x-forwarded-proto: https"),
        "the proxy says that its client speaks TLS: {answer}"
    );
    // A health check of the proxy itself keeps the proxy's address.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let answer = exchange(gateway.address(), &[&local[..], REQUEST].concat());
    assert!(answer.contains("x-forwarded-for: 127.0.0.1\n"), "{answer}");
}

#[tokio::test]
async fn a_connection_of_the_proxy_without_a_valid_header_is_closed_counted_and_logged_once() {
    let gateway = gateway("v2", &[]);
    let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";
    for bytes in [REQUEST, &[&line[..], REQUEST].concat(), b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"] {
        assert_eq!(exchange(gateway.address(), bytes), "");
    }
    assert_eq!(gateway.metric("proxy_headers_refused_total"), 3.0);
    until("the log names it", || gateway.log().contains("a connection of a trusted proxy was closed")).await;
    assert_eq!(gateway.log().matches("a connection of a trusted proxy was closed").count(), 1);
    // One that sends nothing is closed at the deadline.
    assert_eq!(exchange(gateway.address(), b""), "");
    assert_eq!(gateway.metric("proxy_headers_refused_total"), 4.0);
}

#[test]
fn a_header_of_anyone_else_is_no_header() {
    let mut command =
        crate::support::mainstay(&["serve", "--listen", "127.0.0.1:0", "--trusted-proxy", "192.0.2.1"]);
    command.args(["--upstream", &format!("http://{}", backend())]);
    command.env("MAINSTAY_PROXIES__PROXY_PROTOCOL", "any");
    let gateway = Gateway::begin(command);
    let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";
    let answer = exchange(gateway.address(), &[&line[..], REQUEST].concat());
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = exchange(gateway.address(), REQUEST);
    assert!(answer.contains("x-forwarded-for: 127.0.0.1\n"), "{answer}");
}

#[test]
fn limits_by_address_hold_for_the_clients_behind_the_proxy() {
    let gateway = gateway("v1", &["--max-per-ip", "1"]);
    let open = |client: &str| {
        let mut stream = TcpStream::connect(gateway.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "PROXY TCP4 {client} 10.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8_lossy(&status[9..]).into_owned())
    };
    let first = open("192.0.2.1");
    let second = open("192.0.2.2");
    let third = open("192.0.2.1");
    assert_eq!((first.1.as_str(), second.1.as_str()), ("200", "200"));
    assert!(["429", "503"].contains(&third.1.as_str()), "{}", third.1);
}
