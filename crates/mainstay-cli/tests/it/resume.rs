//! Who resumes a session: whoever has its token, and what the request that opened it was authenticated by.

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::SessionUpgrade;
use mainstay_proto::session::message::{ClientKey, Hello, Instance, Resume, ResumeToken, Welcome};
use mainstay_proto::session::{Control, Frame, Message, Window};
use tokio::net::TcpListener;

use crate::frames::{BINARY, Frames};
use crate::support::{Gateway, backend};

/// What a client is told that sends these headers (each with its line's end) and this token. `number`: another for each.
async fn welcome(gateway: &Gateway, headers: &str, number: u64, token: Option<ResumeToken>) -> Welcome {
    let headers = format!("Sec-WebSocket-Protocol: mainstay.v1\r\n{headers}");
    let (_, mut client) = Frames::connect(gateway.address(), "/", &headers).await;
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    let hello = Control::Hello(Box::new(Hello {
        window: Window { messages: 16, bytes: 1 << 16 },
        key: ClientKey(key),
        key_age: Duration::ZERO,
        instance: Instance(number.to_be_bytes()),
        attempt: 1,
        resume: token.map(|token| Resume { token, acknowledged: 0, sent: 0, first_held: 1 }),
        credentials: None,
        resume_window: None,
        max_message: None,
    }));
    client.write(BINARY, &hello.encode()).await;
    let (_, payload) = client.read().await.unwrap();
    match Frame::decode(Message::Binary(payload.into())) {
        Ok(Frame::Control(Control::Welcome(welcome))) => *welcome,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stolen_token_with_other_credentials_opens_a_fresh_session() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route(
        "/",
        any(|upgrade: SessionUpgrade| async {
            upgrade.on_session(|mut session| async move { while session.recv().await.is_some() {} })
        }),
    );
    backend(listener, app).await;
    let gateway =
        Gateway::in_front_of(address, &["--session-cookie", "sid", "--session-header", "authorization"]);
    let owner = "Authorization: Bearer a\r\nCookie: sid=1; theme=dark\r\n";
    let token = welcome(&gateway, owner, 1, None).await.token;
    for (number, thief) in (2..).zip([
        "",
        "Authorization: Bearer b\r\nCookie: sid=1\r\n",
        "Authorization: Bearer a\r\nCookie: sid=2\r\n",
        "Authorization: Bearer a\r\n",
    ]) {
        let told = welcome(&gateway, thief, number, Some(token.clone())).await;
        assert!(!told.resumed, "{thief}");
        assert_eq!(told.account, None, "a thief is told nothing of it: {thief}");
    }
    let back = "Authorization: Bearer a\r\nCookie: theme=light; sid=1\r\n";
    assert!(welcome(&gateway, back, 9, Some(token)).await.resumed);
}
