//! Requests that two servers may read differently: the backend receives one request as the gateway read it, or none.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::{Stage, head};
use crate::support::Gateway;

/// Requests that are refused before the backend receives a byte.
fn refused() -> Vec<(&'static str, &'static str)> {
    vec![
        ("two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n\r\nhello!"),
        ("a length with a sign", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello"),
        ("a negative length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nhello"),
        ("a length in hex", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\nhello"),
        (
            "chunked is not last",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "a coding that is none",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        ("chunked of HTTP/1.0", "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            "a space before the colon",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        ),
        ("a folded field", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n"),
        ("a space first", "GET / HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n"),
        ("a CR alone", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rTransfer-Encoding: chunked\r\n\r\n"),
        ("a NUL", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n\r\n"),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        ("no Host", "GET / HTTP/1.1\r\n\r\n"),
        ("an empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        ("a Host with a path", "GET / HTTP/1.1\r\nHost: a/b?c\r\n\r\n"),
        ("a Host of two words", "GET / HTTP/1.1\r\nHost: good.example evil.example\r\n\r\n"),
        ("a Host with a user", "GET / HTTP/1.1\r\nHost: good.example@evil.example\r\n\r\n"),
        ("all of the server", "GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("an authority", "GET example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("no slash", "GET admin HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("CONNECT", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"),
        ("a URL with a user", "GET http://user@x/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("HTTP/2 in the clear", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("another version", "GET / HTTP/1.2\r\nHost: x\r\n\r\n"),
        (
            "a body of a WebSocket",
            "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 5\r\n\r\nhello",
        ),
        (
            "a WebSocket without a key",
            "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
        ),
        (
            "a WebSocket by POST",
            "POST / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 0\r\n\r\n",
        ),
    ]
}

/// The bytes after each request: an attacker may have meant them as part of a body.
const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn an_ambiguous_request_is_refused_and_nothing_after_it_is_read() {
    let stage = Stage::set(&[]).await;
    for (what, request) in refused() {
        let mut client = stage.client(&format!("{request}{NEXT}")).await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap_or("none");
        assert!(["400", "405", "501"].contains(&status) || answer.is_empty(), "{what}: {answer}");
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
    }
    // None of them opened a connection to the backend.
    let mut client = stage.client("GET /honest HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut backend = stage.accept().await;
    assert!(head(&mut backend).await.starts_with("GET /honest "));
    backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
}

/// A body with both kinds of length: the gateway uses one, and the backend receives only that one.
#[tokio::test]
async fn a_length_beside_chunks_does_not_reach_the_backend() {
    let stage = Stage::set(&[]).await;
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    ] {
        let _client =
            stage.client(&format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n2\r\nab\r\n0\r\n\r\n")).await;
        let mut backend = stage.accept().await;
        let asked = head(&mut backend).await;
        assert!(asked.contains("Transfer-Encoding: chunked") && !asked.contains("Content-Length"), "{asked}");
        let mut body = vec![0; 12];
        backend.read_exact(&mut body).await.unwrap();
        assert_eq!(body, b"2\r\nab\r\n0\r\n\r\n");
    }
}

/// The same from the other side: a response that a client could read as two.
#[tokio::test]
async fn a_responses_length_beside_chunks_does_not_reach_the_client() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let mut backend = stage.accept().await;
    head(&mut backend).await;
    let answer =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    backend.write_all(answer.as_bytes()).await.unwrap();
    let mut answered = String::new();
    client.read_to_string(&mut answered).await.unwrap();
    assert!(
        !answered.contains("Content-Length") && answered.ends_with("\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        "{answered}"
    );
}

/// A second response after the first must not become the next client's.
#[tokio::test]
async fn a_second_response_of_the_backend_does_not_answer_the_next_request() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut backend = stage.accept().await;
    head(&mut backend).await;
    let one = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n";
    backend.write_all(format!("{one}a{one}b").as_bytes()).await.unwrap();
    head(&mut client).await;
    assert_eq!(client.read_u8().await.unwrap(), b'a');
    client.write_all(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut other = stage.accept().await;
    assert!(head(&mut other).await.starts_with("GET /2 "));
    other.write_all(format!("{one}c").as_bytes()).await.unwrap();
    head(&mut client).await;
    assert_eq!(client.read_u8().await.unwrap(), b'c');
}

#[tokio::test]
async fn the_backend_receives_the_host_of_an_absolute_target() {
    let stage = Stage::set(&[]).await;
    let _client = stage.client("GET http://real.example/a?b HTTP/1.1\r\nHost: other.example\r\n\r\n").await;
    let asked = head(&mut stage.accept().await).await;
    assert!(asked.starts_with("GET /a?b HTTP/1.1\r\nHost: real.example\r\n"), "{asked}");
    assert!(!asked.contains("other.example"), "{asked}");
}

#[tokio::test]
async fn the_built_in_backend_and_the_admin_listener_refuse_the_same_hosts_and_targets() {
    let gateway = Gateway::start(&["--admin", "127.0.0.1:0"]);
    for address in [gateway.address(), gateway.admin.unwrap()] {
        for request in [
            "GET / HTTP/1.1\r\nHost: a/b?c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            assert!(head(&mut client).await.starts_with("HTTP/1.1 400 "), "{request}");
        }
    }
}

#[tokio::test]
async fn a_head_may_have_100_fields_and_32_kib() {
    let stage = Stage::set(&[]).await;
    let fields = |count: usize, size: usize| -> String {
        (0..count).map(|number| format!("X-{number}: {}\r\n", "v".repeat(size))).collect()
    };
    for (count, size) in [(90, 10), (3, 9_000)] {
        let _client =
            stage.client(&format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(count, size))).await;
        assert!(head(&mut stage.accept().await).await.contains(&fields(count, size)));
    }
    for (count, size) in [(110, 1), (5, 9_000)] {
        let mut client =
            stage.client(&format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(count, size))).await;
        let answered = head(&mut client).await;
        assert!(answered.starts_with("HTTP/1.1 431 "), "{answered}");
    }
}
