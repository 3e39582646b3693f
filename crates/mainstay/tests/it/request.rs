//! The request of each attempt.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use mainstay::client::{ClientHandle, Event, Lost, Request};
use mainstay::server::{AuthError, Config};
use mainstay::{Client, Link, Message};

use crate::support::{Proxy, echo, server};

/// A request with this token, in its header and in HELLO.
fn with_token(token: u32) -> Request {
    let value = HeaderValue::from_str(&token.to_string()).unwrap();
    let mut request = Request::default();
    request.headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    request.credentials = Some(Bytes::from(token.to_string()));
    request
}

async fn attached<P>(client: &ClientHandle<P>) {
    while !matches!(client.event().await.unwrap(), Event::Attached { .. }) {}
}

#[tokio::test]
async fn every_attempt_presents_its_own_token() {
    let presented = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&presented);
    let (address, mainstay) = server(Config::default(), move |upgrade| {
        let seen = Arc::clone(&seen);
        let header = upgrade.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
        let upgrade = upgrade.authenticate(move |credentials| {
            seen.lock().unwrap().push((header.clone(), credentials));
            async { Ok::<_, AuthError>("alice") }
        });
        upgrade.on_session(echo)
    })
    .await;
    let proxy = Proxy::to(address).await;
    let made = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&made);
    let client = Client::builder(&format!("ws://{}/echo", proxy.address))
        .unwrap()
        .header(AUTHORIZATION, HeaderValue::from_static("of the builder"))
        .credentials("of the builder")
        .request(move || {
            let token = count.fetch_add(1, Ordering::Relaxed) + 1;
            async move { Ok(with_token(token)) }
        })
        .connect();
    for _ in 0..3 {
        attached(&client).await;
        proxy.cut();
    }
    attached(&client).await;
    let presented = presented.lock().unwrap();
    let tokens: Vec<u32> = presented.iter().map(|(header, _)| header.parse().unwrap()).collect();
    assert!(tokens.len() >= 4 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert!(tokens.iter().all(|token| *token <= made.load(Ordering::Relaxed)));
    for (header, credentials) in presented.iter() {
        assert_eq!(credentials.as_deref(), Some(header.as_bytes()), "both of the same request");
    }
    assert_eq!((mainstay.stats().attached_new, mainstay.stats().attached_lost), (1, 0), "one session");
}

#[tokio::test]
async fn a_request_that_cannot_be_made_is_an_attempt_that_failed() {
    let (address, _mainstay) = crate::support::echo_server(Config::default()).await;
    let made = AtomicU32::new(0);
    let mut client = Client::builder(&format!("ws://{address}/echo"))
        .unwrap()
        .request(move || {
            let is_first = made.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if is_first { Err("no token today".into()) } else { Ok(Request::default()) } }
        })
        .connect();
    client.send(Message::text("x")).await.unwrap();
    let Some(Event::AttemptFailed { why, .. }) = client.event().await else { panic!("it failed") };
    assert_eq!(why, Lost::NotOpened("no token today".into()));
    assert_eq!(client.recv().await, Some(Message::text("x")));
}

#[tokio::test]
async fn a_request_may_have_another_url_and_other_subprotocols() {
    let (address, _mainstay) =
        server(Config::default(), |upgrade| upgrade.subprotocols(["a", "b"]).on_session(echo)).await;
    let elsewhere = move || {
        let mut request = Request::default();
        request.url = Some(format!("ws://{address}/echo").parse().unwrap());
        request.subprotocols = Some(vec!["b".to_owned()]);
        async move { Ok(request) }
    };
    let nowhere = "ws://127.0.0.1:1/";
    let client = Client::builder(nowhere).unwrap().subprotocol("a").request(elsewhere).connect_once().await;
    assert_eq!(client.unwrap().subprotocol().as_deref(), Some("b"));
    let link = Link::builder(nowhere).unwrap().subprotocol("a").request(elsewhere).connect_once().await;
    assert_eq!(link.unwrap().subprotocol().as_deref(), Some("b"));
}

#[test]
fn a_request_shows_neither_its_headers_nor_its_credentials() {
    let shown = format!("{:?}", with_token(1_234_567));
    assert!(shown.contains("authorization") && !shown.contains("1234567"), "{shown}");
}

#[test]
fn a_setting_out_of_range_is_refused_where_it_is_set_and_named() {
    use std::time::Duration;
    let builder = || Client::builder("ws://h/").unwrap();
    for wrong in [Duration::ZERO, Duration::MAX] {
        assert_eq!(builder().connect_timeout(wrong).unwrap_err().field, "connect_timeout");
        assert_eq!(builder().answer_timeout(wrong).unwrap_err().field, "answer_timeout");
        assert_eq!(builder().silence(wrong).unwrap_err().field, "silence");
    }
    let error = builder().resume_window(Duration::MAX).unwrap_err();
    assert_eq!(error.to_string(), "resume_window must be at most 1 week");
    assert_eq!(builder().max_attempts(0).unwrap_err().to_string(), "max_attempts must be at least 1");
}
