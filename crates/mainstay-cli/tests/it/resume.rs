//! A resume needs the session's token and the credentials of the request that opened it.

use axum::Router;
use axum::routing::any;
use mainstay::SessionUpgrade;
use mainstay_proto::session::message::{Hello, Resume, ResumeToken, Welcome};
use mainstay_proto::session::{Control, Frame, Message};
use tokio::net::TcpListener;

use crate::frames::{BINARY, Frames, encoded, hello};
use crate::support::{Gateway, backend};

/// The WELCOME of client `number`, which sends these headers (each with its line end) and this token.
async fn welcome(gateway: &Gateway, headers: &str, number: u64, token: Option<ResumeToken>) -> Welcome {
    let headers = format!("Sec-WebSocket-Protocol: mainstay.v1\r\n{headers}");
    let (_, mut client) = Frames::connect(gateway.address(), "/", &headers).await;
    let resume = token.map(|token| Resume { token, acknowledged: 0, sent: 0, first_held: 1 });
    client.write(BINARY, &encoded(Hello { resume, ..hello(number) })).await;
    let (_, payload) = client.read().await.unwrap();
    match Frame::decode(Message::Binary(payload.into())) {
        Ok(Frame::Control(Control::Welcome(welcome))) => *welcome,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stolen_token_with_other_credentials_opens_a_new_session() {
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
        let welcome = welcome(&gateway, thief, number, Some(token.clone())).await;
        assert!(!welcome.resumed, "{thief}");
        assert_eq!(welcome.account, None, "a thief learns nothing about the session: {thief}");
    }
    let back = "Authorization: Bearer a\r\nCookie: theme=light; sid=1\r\n";
    assert!(welcome(&gateway, back, 9, Some(token)).await.resumed);
}
