//! The opening handshake of a plain client: its own request reaches the backend, and the backend's response reaches it.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::frames::{Frames, TEXT};
use crate::http::{Stage, head, rest};
use crate::support::Gateway;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn opening(path: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{fields}\r\n"
    )
}

fn accepted(fields: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{fields}\r\n"
    )
}

/// Returns the request that the backend receives and the response that the client receives, when the backend answers this.
async fn pass(arguments: &[&str], request: &str, answer: &str) -> (String, String) {
    let stage = Stage::set(arguments).await;
    let mut client = stage.client(request).await;
    let mut backend = stage.accept().await;
    let asked = head(&mut backend).await;
    backend.write_all(answer.as_bytes()).await.unwrap();
    let answered = head(&mut client).await;
    // A response other than 101 ends the connection: the client may already have sent frames.
    let body = if answered.starts_with("HTTP/1.1 101") { String::new() } else { rest(&mut client).await };
    (asked, answered + &body)
}

#[tokio::test]
async fn the_backend_receives_the_clients_own_opening_handshake() {
    let fields = "Origin: http://example.com\r\nX-Own: 1\r\nSec-WebSocket-Protocol: jwt, eyJh/b+c==\r\n\
                  Sec-WebSocket-Extensions: permessage-deflate\r\nCookie: a=b\r\n";
    let (asked, answered) =
        pass(&[], &opening("/a?b=c", fields), &accepted("Sec-WebSocket-Protocol: jwt\r\n")).await;
    for line in [
        "GET /a?b=c HTTP/1.1",
        "Host: example.com",
        "Origin: http://example.com",
        "X-Own: 1",
        "Cookie: a=b",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        &format!("Sec-WebSocket-Key: {KEY}"),
        "Sec-WebSocket-Protocol: jwt, eyJh/b+c==",
        "X-Forwarded-Proto: ws",
    ] {
        assert!(asked.lines().any(|asked| asked == line), "{line}: {asked}");
    }
    assert!(!asked.contains("permessage-deflate"), "extensions are hop-by-hop: {asked}");
    assert!(answered.contains("Sec-WebSocket-Protocol: jwt\r\n"), "{answered}");
}

#[tokio::test]
async fn the_client_receives_the_fields_of_the_backends_101() {
    let fields =
        "Set-Cookie: sid=new; HttpOnly\r\nSet-Cookie: lb=7\r\nX-Request-ID: 42\r\nContent-Length: 0\r\n";
    let (_, answered) = pass(&[], &opening("/", ""), &accepted(fields)).await;
    for line in [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        &format!("Sec-WebSocket-Accept: {ACCEPT}"),
        "Set-Cookie: sid=new; HttpOnly",
        "Set-Cookie: lb=7",
        "X-Request-ID: 42",
    ] {
        assert_eq!(answered.lines().filter(|answered| *answered == line).count(), 1, "{line}: {answered}");
    }
    assert!(!answered.contains("Content-Length"), "{answered}");
}

#[tokio::test]
async fn compression_is_negotiated_on_each_leg() {
    let (arguments, offer) =
        (["--upstream-deflate", "--deflate"], "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let answer = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";
    for (fields, agreed, is_agreed) in [(offer, answer, true), (offer, "", true), ("", answer, false)] {
        let (asked, answered) = pass(&arguments, &opening("/", fields), &accepted(agreed)).await;
        assert!(asked.contains("permessage-deflate; server_no_context_takeover"), "{asked}");
        assert!(answered.starts_with("HTTP/1.1 101 "), "{answered}");
        assert_eq!(answered.contains("permessage-deflate"), is_agreed, "{answered}");
    }
    let backend = Gateway::start(&["--deflate"]);
    let gateway = Gateway::in_front_of(backend.address(), &["--upstream-deflate"]);
    let long = "a text that is worth being compressed ".repeat(100);
    for is_plain in [true, false] {
        let url = format!("{}/echo", gateway.url);
        let message = mainstay::Message::text(long.clone());
        let returned = if is_plain {
            let mut client = mainstay::Link::builder(&url).unwrap().connect();
            client.send(message.clone()).await.unwrap();
            client.recv().await
        } else {
            let mut client = mainstay::Client::builder(&url).unwrap().connect();
            client.send(message.clone()).await.unwrap();
            client.recv().await
        };
        assert_eq!(returned, Some(message));
    }
}

#[tokio::test]
async fn a_response_other_than_101_reaches_the_client_unchanged() {
    for (answer, expected) in [
        (
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"api\"\r\nContent-Length: 6\r\n\r\nwords!",
            &["HTTP/1.1 401 Unauthorized", "WWW-Authenticate: Bearer realm=\"api\"", "words!"][..],
        ),
        (
            "HTTP/1.1 307 Away\r\nLocation: /live/\r\nContent-Length: 0\r\n\r\n",
            &["HTTP/1.1 307 Away", "Location: /live/"],
        ),
        (
            "HTTP/1.1 429 Slow Down\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n",
            &["HTTP/1.1 429 Slow Down", "Retry-After: 30"],
        ),
        (
            "HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
            &["HTTP/1.1 500 Oops", "no"],
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage", &["HTTP/1.1 200 OK", "page"]),
        (
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
            &["HTTP/1.1 426 Upgrade Required", "Upgrade: websocket"],
        ),
    ] {
        let (_, answered) = pass(&[], &opening("/", ""), answer).await;
        for line in expected {
            assert!(answered.lines().any(|answered| answered == *line), "{line}: {answered}");
        }
    }
}

#[tokio::test]
async fn interim_responses_are_skipped() {
    let interim =
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    for answer in [accepted(""), "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n".to_owned()] {
        let (_, answered) = pass(&[], &opening("/", ""), &format!("{interim}{answer}")).await;
        assert_eq!(answered.lines().next(), answer.lines().next());
    }
}

#[tokio::test]
async fn a_101_that_answers_something_else_is_502() {
    let wrong_key = accepted("").replace(ACCEPT, KEY);
    for answer in [
        wrong_key,
        accepted("").replace("Upgrade: websocket", "Upgrade: h2c"),
        accepted("Sec-WebSocket-Protocol: never offered\r\n"),
        accepted("Sec-WebSocket-Extensions: permessage-deflate\r\n"),
    ] {
        let (_, answered) = pass(&[], &opening("/", "Sec-WebSocket-Protocol: a\r\n"), &answer).await;
        assert!(answered.starts_with("HTTP/1.1 502 "), "{answer} {answered}");
    }
}

#[tokio::test]
async fn bytes_behind_the_backends_101_and_the_clients_request_arrive() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client(&opening("/", "")).await;
    client.write_all(&[TEXT, 0x81, 0, 0, 0, 0, b'a']).await.unwrap();
    let mut backend = stage.accept().await;
    head(&mut backend).await;
    backend.write_all(&[accepted("").as_bytes(), &[TEXT, 1, b'b']].concat()).await.unwrap();
    head(&mut client).await;
    let (mut client, mut backend) = (Frames::from(client), Frames::from(backend));
    assert_eq!((client.text().await.as_deref(), backend.text().await.as_deref()), (Some("b"), Some("a")));
}

#[tokio::test]
async fn the_timeout_of_a_response_is_independent_of_upstream_wait() {
    let stage = Stage::set(&["--upstream-wait", "100ms"]).await;
    let mut client = stage.client(&opening("/", "")).await;
    let mut backend = stage.accept().await;
    head(&mut backend).await;
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    backend.write_all(accepted("").as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
    let (_, answered) = {
        let stage = Stage::set(&["--upstream-answer-timeout", "100ms"]).await;
        let mut client = stage.client(&opening("/", "")).await;
        let _backend = stage.accept().await;
        ((), head(&mut client).await)
    };
    assert!(answered.starts_with("HTTP/1.1 504 "), "{answered}");
}

/// Some port forwarders accept connections for a backend that is not there, and close them.
#[tokio::test]
async fn an_opening_handshake_waits_for_a_backend_that_closes_without_a_response() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client(&opening("/", "")).await;
    for _ in 0..3 {
        drop(stage.accept().await);
    }
    let mut backend = stage.accept().await;
    head(&mut backend).await;
    backend.write_all(accepted("").as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
}

#[tokio::test]
async fn the_root_is_the_backends_path_and_other_paths_are_appended_to_it() {
    for (upstream, path, asked) in [
        ("/ws", "/", "/ws"),
        ("/ws", "/?a=1", "/ws?a=1"),
        ("/ws/", "/", "/ws/"),
        ("/ws", "/room", "/ws/room"),
    ] {
        for request in [opening(path, ""), format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}{upstream}", listener.local_addr().unwrap());
            let gateway = Gateway::start(&["--upstream", &url]);
            let mut client = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            // Skips probes, which send nothing.
            let mut backend = loop {
                let (stream, _) = listener.accept().await.unwrap();
                if stream.peek(&mut [0]).await.is_ok_and(|count| count > 0) {
                    break stream;
                }
            };
            let found = head(&mut backend).await;
            assert!(found.starts_with(&format!("GET {asked} HTTP/1.1\r\n")), "{upstream} {path}: {found}");
        }
    }
}

#[tokio::test]
async fn the_gateways_own_101_is_spelled_as_in_rfc_6455() {
    let (gateway, session) = (Gateway::start(&[]), "Sec-WebSocket-Protocol: mainstay.v1\r\n");
    let stage = Stage::set(&[]).await;
    for (address, path, fields) in [
        (gateway.address(), "/echo", ""),
        (gateway.address(), "/echo", session),
        (stage.gateway.address(), "/", session),
    ] {
        let (answered, _) = Frames::connect(address, path, fields).await;
        for name in ["Connection: ", "Upgrade: ", "Sec-WebSocket-Accept: ", "Date: "] {
            assert!(answered.contains(name), "{name}: {answered}");
        }
        assert_eq!(answered.contains("Sec-WebSocket-Protocol: "), fields == session, "{answered}");
    }
}
