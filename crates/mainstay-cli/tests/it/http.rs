//! Plain HTTP through the gateway, with raw clients and raw backends.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::frames;
use crate::support::Gateway;

/// A gateway in front of a backend whose connections the test serves.
pub(crate) struct Stage {
    pub(crate) listener: TcpListener,
    pub(crate) gateway: Gateway,
}

impl Stage {
    pub(crate) async fn set(arguments: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), arguments);
        Self { listener, gateway }
    }

    /// Connects a client that sends this request.
    pub(crate) async fn client(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.gateway.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// The backend's next connection.
    pub(crate) async fn accept(&self) -> TcpStream {
        loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            // A probe of the gateway sends nothing.
            if stream.peek(&mut [0]).await.is_ok_and(|count| count > 0) {
                return stream;
            }
        }
    }
}

/// Reads the head of the next message.
pub(crate) async fn head(stream: &mut TcpStream) -> String {
    frames::head(stream).await.unwrap()
}

/// Reads to the end.
pub(crate) async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    String::from_utf8(rest).unwrap()
}

async fn exactly(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Returns the lines of a head without its date.
fn lines(head: &str) -> Vec<&str> {
    head.lines().filter(|line| !line.is_empty() && !line.starts_with("Date: ")).collect()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_request_and_its_response_pass_unchanged_except_for_hop_by_hop_fields() {
    let stage = Stage::set(&[]).await;
    let mut client = stage
        .client(
            "GET /a?b=c HTTP/1.1\r\nhost: example.com:81\r\nX-CamelCase: 1\r\nAccept: a\r\nAccept: b\r\n\
             Keep-Alive: 5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Forwarded-For: 10.0.0.1\r\n\
             X-Real-IP: 10.0.0.1\r\nUpgrade-Insecure-Requests: 1\r\n\r\n",
        )
        .await;
    let mut backend = stage.accept().await;
    let asked = head(&mut backend).await;
    assert_eq!(
        lines(&asked),
        [
            "GET /a?b=c HTTP/1.1",
            "host: example.com:81",
            "X-CamelCase: 1",
            "Accept: a",
            "Accept: b",
            "Upgrade-Insecure-Requests: 1",
            "X-Forwarded-For: 127.0.0.1",
            "X-Forwarded-Host: example.com:81",
            "X-Forwarded-Proto: http",
        ]
    );
    let answer = "HTTP/1.1 299 Quite Fine\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nConnection: keep-alive\r\n\
                  Keep-Alive: timeout=5\r\nETAG: x\r\nContent-Length: 2\r\n\r\nok";
    backend.write_all(answer.as_bytes()).await.unwrap();
    let answered = head(&mut client).await;
    let expected =
        ["HTTP/1.1 299 Quite Fine", "Set-Cookie: a=1", "set-cookie: b=2", "ETAG: x", "Content-Length: 2"];
    let mut found = lines(&answered);
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(exactly(&mut client, 2).await, "ok");
}

#[tokio::test]
async fn the_host_and_the_fields_that_the_operator_names_replace_the_clients() {
    let arguments = [
        "--upstream-host",
        "app.internal:8080",
        "--upstream-header",
        "X-Key: 1",
        "--upstream-header",
        "Cookie: c",
    ];
    let stage = Stage::set(&arguments).await;
    let _client = stage.client("GET / HTTP/1.1\r\nHost: x\r\nCookie: own\r\nX-Key: own\r\n\r\n").await;
    let asked = head(&mut stage.accept().await).await;
    for line in ["Host: app.internal:8080", "X-Key: 1", "Cookie: c", "X-Forwarded-Host: x"] {
        assert!(asked.lines().any(|asked| asked == line), "{line}: {asked}");
    }
    assert!(!asked.contains("own"), "{asked}");
}

#[tokio::test]
async fn trace_is_refused_because_it_would_show_the_backends_headers() {
    let stage = Stage::set(&["--upstream-header", "X-Key: secret"]).await;
    let mut client = stage.client("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 405 "));
}

#[tokio::test]
async fn bodies_are_streamed_in_both_directions() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut backend = stage.accept().await;
    assert!(head(&mut backend).await.contains("Transfer-Encoding: chunked"));
    backend.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    head(&mut client).await;
    for round in 0..3 {
        let chunk = format!("1\r\n{round}\r\n");
        client.write_all(chunk.as_bytes()).await.unwrap();
        assert_eq!(exactly(&mut backend, chunk.len()).await, chunk);
        backend.write_all(chunk.as_bytes()).await.unwrap();
        assert_eq!(exactly(&mut client, chunk.len()).await, chunk);
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let stage = Stage::set(&[]).await;
    let mut client = stage
        .client(
            "POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Up\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Up: 1\r\n\r\n",
        )
        .await;
    let mut backend = stage.accept().await;
    let asked = head(&mut backend).await;
    assert!(asked.contains("TE: trailers\r\n") && asked.contains("Trailer: X-Up\r\n"), "{asked}");
    let body = "1\r\na\r\n0\r\nX-Up: 1\r\n\r\n";
    assert_eq!(exactly(&mut backend, body.len()).await.to_lowercase(), body.to_lowercase());
    let answer = "HTTP/1.1 200 OK\r\nTrailer: X-Down\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nX-Down: 2\r\n\r\n";
    backend.write_all(answer.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.contains("Trailer: X-Down\r\n"));
    let body = "1\r\nb\r\n0\r\nX-Down: 2\r\n\r\n";
    assert_eq!(exactly(&mut client, body.len()).await.to_lowercase(), body.to_lowercase());
}

#[tokio::test]
async fn a_response_without_a_body_keeps_its_fields() {
    let stage = Stage::set(&[]).await;
    let mut backend = None;
    for (method, answer, expected) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "Content-Length: 1000"),
        ("GET", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", "X-A: b"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", "ETag: \"x\""),
    ] {
        let mut client =
            stage.client(&format!("{method} / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        // One pooled connection to the backend serves all of them.
        if backend.is_none() {
            backend = Some(stage.accept().await);
        }
        let backend = backend.as_mut().unwrap();
        assert!(head(backend).await.starts_with(method));
        backend.write_all(answer.as_bytes()).await.unwrap();
        let answered = rest(&mut client).await;
        assert!(
            answered.contains(&format!("{expected}\r\n")) && answered.ends_with("\r\n\r\n"),
            "{answered}"
        );
    }
}

#[tokio::test]
async fn the_client_gets_100_continue_once_the_backend_is_connected() {
    let stage = Stage::set(&[]).await;
    let mut client =
        stage.client("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let mut backend = stage.accept().await;
    let asked = head(&mut backend).await;
    assert!(asked.contains("Content-Length: 4\r\n") && !asked.contains("Expect"), "{asked}");
    assert_eq!(head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    assert_eq!(exactly(&mut backend, 4).await, "body");
    backend.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 201 Created"));
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_an_early_response() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n").await;
    let (mut reading, mut writing) = client.split();
    let sending = async {
        for _ in 0..1000 {
            writing.write_all(&[b'x'; 10_000]).await.unwrap();
        }
    };
    let answering = async {
        let mut backend = stage.accept().await;
        head(&mut backend).await;
        backend
            .write_all(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
            .await
            .unwrap();
        drop(backend);
    };
    let mut answered = vec![0; 12];
    let (_, (), read) = tokio::join!(sending, answering, reading.read_exact(&mut answered));
    read.unwrap();
    assert_eq!(answered, b"HTTP/1.1 413");
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_response_up_to_its_end_and_a_reset_if_it_breaks_off() {
    for is_whole in [true, false] {
        let stage = Stage::set(&[]).await;
        let mut client = stage.client("GET / HTTP/1.0\r\n\r\n").await;
        let mut backend = stage.accept().await;
        let asked = head(&mut backend).await;
        let host = format!("Host: {}\r\n", stage.listener.local_addr().unwrap());
        assert!(asked.starts_with("GET / HTTP/1.1\r\n") && asked.contains(&host), "{asked}");
        backend
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
            .await
            .unwrap();
        assert!(!head(&mut client).await.to_lowercase().contains("transfer-encoding"));
        assert_eq!(exactly(&mut client, 4).await, "part");
        if is_whole {
            backend.write_all(b"0\r\n\r\n").await.unwrap();
            assert_eq!(rest(&mut client).await, "");
        } else {
            drop(backend);
            let error = client.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_never_looks_complete() {
    let stage = Stage::set(&["--admin", "127.0.0.1:0"]).await;
    for begun in ["Content-Length: 10\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"] {
        let mut client = stage.client(GET).await;
        let mut backend = stage.accept().await;
        head(&mut backend).await;
        backend.write_all(format!("HTTP/1.1 200 OK\r\n{begun}").as_bytes()).await.unwrap();
        head(&mut client).await;
        assert!(exactly(&mut client, 4).await.len() == 4);
        drop(backend);
        assert!(client.read_to_end(&mut Vec::new()).await.is_err(), "{begun}");
    }
    assert_eq!(stage.gateway.metric("http_unanswered_total"), 2.0);
}

#[tokio::test]
async fn a_pooled_connection_that_the_backend_closed_costs_no_repeatable_request() {
    let stage = Stage::set(&[]).await;
    let get = |method: &str| format!("{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for (method, expected) in [("GET", "200"), ("POST", "502")] {
        let mut client = stage.client(&get("GET")).await;
        let mut backend = stage.accept().await;
        head(&mut backend).await;
        backend.write_all(answer).await.unwrap();
        head(&mut client).await;
        // The backend closes the connection after the next request was written to it.
        client.write_all(get(method).as_bytes()).await.unwrap();
        assert!(head(&mut backend).await.starts_with(method));
        drop(backend);
        if expected == "200" {
            let mut backend = stage.accept().await;
            assert!(head(&mut backend).await.starts_with("GET"));
            backend.write_all(answer).await.unwrap();
            drop(backend);
        }
        assert!(head(&mut client).await.starts_with(&format!("HTTP/1.1 {expected}")), "{method}");
    }
}

#[tokio::test]
async fn an_unreachable_backend_is_502_and_a_silent_one_is_504() {
    let stage = Stage::set(&["--upstream-answer-timeout", "100ms"]).await;
    let mut client = stage.client(GET).await;
    let backend = stage.accept().await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 504 "));
    drop(backend);
    client.write_all(GET.as_bytes()).await.unwrap();
    exactly(&mut client, "the backend did not respond in time\n".len()).await;
    let mut backend = stage.accept().await;
    backend.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 502 "));
    drop(stage.listener);
    let mut client = TcpStream::connect(stage.gateway.address()).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let answered = head(&mut client).await;
    assert!(answered.starts_with("HTTP/1.1 502 ") && answered.contains("Retry-After: "), "{answered}");
}

#[tokio::test]
async fn a_slow_upload_does_not_count_as_a_late_response() {
    let stage = Stage::set(&["--upstream-answer-timeout", "400ms"]).await;
    let mut client = stage.client("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n").await;
    let mut backend = stage.accept().await;
    head(&mut backend).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        client.write_all(b"x").await.unwrap();
        exactly(&mut backend, 1).await;
    }
    backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_whose_client_disconnected_is_cancelled() {
    let stage = Stage::set(&[]).await;
    for begun in ["", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart"] {
        let client = stage.client(GET).await;
        let mut backend = stage.accept().await;
        head(&mut backend).await;
        backend.write_all(begun.as_bytes()).await.unwrap();
        drop(client);
        let end = tokio::time::timeout(Duration::from_secs(20), backend.read(&mut [0; 8])).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "{begun:?}: {end:?}");
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_413_with_and_without_a_content_length() {
    let stage = Stage::set(&["--max-request-body", "10"]).await;
    let mut client = stage.client("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 413 "));
    let chunked =
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n";
    // The backend may or may not have received the beginning.
    let mut client = stage.client(chunked).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_drain_waits_for_the_end_of_a_response() {
    let stage = Stage::set(&["--drain", "20s"]).await;
    let mut client = stage.client(GET).await;
    let mut backend = stage.accept().await;
    let mut gateway = stage.gateway;
    head(&mut backend).await;
    backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npart").await.unwrap();
    head(&mut client).await;
    gateway.signal("TERM");
    crate::support::until("the gateway drains", || gateway.log().contains("draining")).await;
    assert!(gateway.is_up());
    backend.write_all(b"rest").await.unwrap();
    assert_eq!(rest(&mut client).await, "partrest");
}

#[tokio::test]
async fn requests_are_counted_and_a_backend_that_fails_is_one_line() {
    let stage = Stage::set(&["--admin", "127.0.0.1:0"]).await;
    for is_answered in [false, false, true] {
        let mut client = stage.client("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        let mut backend = stage.accept().await;
        head(&mut backend).await;
        if is_answered {
            backend.write_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
        drop(backend);
        rest(&mut client).await;
    }
    let figure = |status| stage.gateway.metric(&format!("http_requests_total{{status=\"{status}\"}}"));
    assert_eq!((figure("4xx"), figure("5xx"), figure("2xx")), (1.0, 2.0, 0.0));
    assert_eq!(stage.gateway.metric("http_unanswered_total"), 2.0);
    // The log is written by another thread.
    crate::support::until("the failure is logged", || {
        stage.gateway.log().contains("did not respond properly")
    })
    .await;
    let stderr = stage.gateway.log();
    assert_eq!(stderr.matches("did not respond properly").count(), 1, "{stderr}");
}

#[tokio::test]
async fn a_request_that_is_sent_again_describes_its_client_as_the_first_did() {
    let stage = Stage::set(&[]).await;
    let get = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let mut first = stage.client(get).await;
    let mut pooled = stage.accept().await;
    head(&mut pooled).await;
    pooled.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    rest(&mut first).await;
    // The backend ends the connection that the gateway uses again just as it does.
    let mut second = stage.client(get).await;
    let before = head(&mut pooled).await;
    drop(pooled);
    let mut backend = stage.accept().await;
    let again = head(&mut backend).await;
    backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200"));
    let described = |head: &str| {
        let lines = head.lines().map(str::to_ascii_lowercase);
        lines.filter(|line| line.starts_with("x-forwarded-")).collect::<std::collections::BTreeSet<_>>()
    };
    assert!(described(&again).contains("x-forwarded-for: 127.0.0.1"), "{again}");
    assert_eq!(described(&again), described(&before));
}
