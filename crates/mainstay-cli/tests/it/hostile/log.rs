//! Control characters that a client or a backend sends reach neither the log nor a terminal that shows it.

use axum::Router;
use axum::routing::any;
use mainstay::{CloseCode, SessionUpgrade};
use mainstay_proto::session::Control;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::doors::{masked, opening};
use super::families::fresh_hello;
use crate::frames::{BINARY, CLOSE, Frames, TEXT};
use crate::listeners::Folder;
use crate::operator::{INTENT, ask};
use crate::support::{Gateway, backend, mainstay, until};
use crate::tokens::{SECRET, Signer, in_seconds};

/// Clears a terminal, forges a line, and begins a sequence with one character (C1).
const EVIL: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n2030-01-01T00:00:00Z  INFO forged=\"line\"\u{9b}31m\u{202e}";

/// A backend that closes with a reason of this kind after a message.
async fn closing_backend() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let closes = any(async |upgrade: SessionUpgrade| {
        upgrade.on_session(async |mut session: mainstay::Session| {
            session.recv().await;
            session.close(CloseCode::NORMAL, EVIL);
        })
    });
    backend(listener, Router::new().fallback(closes)).await;
    address
}

fn configuration(backend: std::net::SocketAddr, secret: &str, format: &str) -> String {
    format!(
        "listen = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"{format}\"\n\
         filter = \"debug,mainstay=trace\"\n\
         [routes.open]\npath = \"/open\"\nsession.headers = [\"X-User\"]\n\
         [routes.open.upstream]\naddresses = [\"ws://{backend}\"]\n\
         [routes.chat]\npath = \"/chat\"\n[routes.chat.upstream]\naddresses = [\"ws://{backend}\"]\n\
         [routes.chat.credentials.jwt]\nkeys-file = {secret:?}\n"
    )
}

/// Sends bytes and reads whatever comes, until the gateway closes or has no more to say.
async fn send(to: std::net::SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let reading = stream.read_to_end(&mut Vec::new()).await;
    drop(reading);
}

/// Text of this kind in every place that a client may write to.
async fn everywhere(gateway: &Gateway) {
    let to = gateway.address();
    let raw = |field: &str| opening("/open", &format!("{field}: {EVIL}\r\n")).into_bytes();
    for field in
        ["User-Agent", "Origin", "X-User", "Host", "Cookie", "X-Forwarded-For", "Sec-WebSocket-Protocol"]
    {
        send(to, &raw(field)).await;
    }
    // Without the characters that HTTP itself refuses.
    let text = EVIL.replace(|c: char| c.is_ascii_control(), "");
    for field in ["User-Agent", "X-User", "Origin", "Sec-WebSocket-Protocol"] {
        let request = opening("/open", &format!("{field}: {text}\r\n"));
        send(to, &[request.into_bytes(), masked(CLOSE, &[3, 0xe8])].concat()).await;
    }
    for path in ["/open/%1b%5b2J%0d%0aforged", "/open/\u{9b}31m", "/open/\u{1b}[2J"] {
        send(to, &[opening(path, "").into_bytes(), masked(CLOSE, &[3, 0xe8])].concat()).await;
    }
    let reason = [&[3, 0xe8][..], EVIL.as_bytes()].concat();
    send(to, &[opening("/open", "").into_bytes(), masked(CLOSE, &reason)].concat()).await;
    let session = "Sec-WebSocket-Protocol: mainstay.v1\r\n";
    let end = Control::End { code: 1000, reason: EVIL.to_owned(), acknowledged: 0, delivered: 0 };
    let ack = Control::Ack { acknowledged: 0, window: None };
    let end = [masked(BINARY, &ack.encode()), masked(BINARY, &end.encode()), masked(CLOSE, &reason)].concat();
    send(to, &[opening("/open", session).into_bytes(), fresh_hello(), end].concat()).await;
    // The backend closes with such a reason.
    let (_, mut client) = Frames::connect(to, "/open", "").await;
    client.write(TEXT, b"x").await;
    while client.read().await.is_ok_and(|(first, _)| first != CLOSE) {}
}

/// Fails if a line has a character that a terminal obeys, or is none of ours.
fn check(log: &str, format: &str) {
    for line in log.lines() {
        let bad = line.chars().find(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(c));
        assert_eq!(bad, None, "{line:?}");
        match format {
            "json" => drop(serde_json::from_str::<serde_json::Value>(line).expect(line)),
            _ => assert!(line.starts_with("20") && !line.starts_with("2030"), "{line:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_control_character_of_a_client_or_a_backend_reaches_the_log_in_either_format() {
    for format in ["text", "json"] {
        let folder = Folder::new(&format!("log-{format}"));
        let (secret, file) = (folder.path("secret"), folder.path("mainstay.toml"));
        std::fs::write(&secret, SECRET).unwrap();
        std::fs::write(&file, configuration(closing_backend().await, &secret, format)).unwrap();
        let gateway = Gateway::begin(mainstay(&["serve", "--config", &file]));
        everywhere(&gateway).await;
        // A subject may be any text: its issuer chose it.
        let token = Signer::secret().token(&json!({"sub": EVIL, "exp": in_seconds(600)}));
        let (head, mut client) =
            Frames::connect(gateway.address(), "/chat", &format!("Authorization: Bearer {token}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let list = || ask(&gateway, "GET", "/sessions", INTENT).1;
        until("the client is listed", || list().contains("chat")).await;
        let sessions = list();
        assert!(
            sessions.chars().all(|c| !c.is_control() || c == '\n') && !sessions.contains("owned"),
            "{sessions}"
        );
        let list: serde_json::Value = serde_json::from_str(&sessions).unwrap();
        let subject = list["sessions"][0]["subject"].as_str().unwrap();
        assert!(subject.starts_with("hash-"), "{subject}");
        assert_eq!(ask(&gateway, "DELETE", &format!("/subjects/{subject}"), INTENT).0, 200);
        while client.read().await.is_ok_and(|(first, _)| first != CLOSE) {}
        until("the log has the ends", || gateway.log().matches("client ended").count() >= 4).await;
        check(&gateway.log(), format);
        let metrics = gateway.get("/metrics", "");
        let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
        assert!(body.chars().all(|c| !c.is_control() || c == '\n'));
    }
}
