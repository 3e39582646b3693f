//! The end of the backend's connection as its client sees it, for each `--on-backend-loss`; and the end of the client's
//! connection as the backend sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use mainstay::client::{Event, ReasonCode};
use mainstay::{Client, CloseCode, Fate, Link, LossCause, Message};
use tokio::net::TcpListener;

use crate::frames::{BINARY, CLOSE, Frames, PING, PONG, TEXT};
use crate::support::{Gateway, until};

const KEEP: [&str; 2] = ["--on-backend-loss", "keep"];

async fn gateway(arguments: &[&str]) -> (Gateway, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let arguments = [&["--admin", "127.0.0.1:0"], arguments].concat();
    (Gateway::in_front_of(listener.local_addr().unwrap(), &arguments), listener)
}

/// A plain client and its connection to the backend.
async fn plain(gateway: &Gateway, listener: &TcpListener) -> (Frames, Frames) {
    let (connected, served) =
        tokio::join!(Frames::connect(gateway.address(), "/", ""), Frames::serve(listener));
    assert!(connected.0.starts_with("HTTP/1.1 101"), "{}", connected.0);
    (connected.1, served.1)
}

/// The body of a Close frame.
fn close(code: u16, reason: &str) -> Vec<u8> {
    if code == 1005 { Vec::new() } else { [&code.to_be_bytes(), reason.as_bytes()].concat() }
}

/// Reads up to the next Close; returns its code and reason. 1005: no code. 1006: the connection ended without a Close.
async fn closed(end: &mut Frames) -> (u16, String) {
    loop {
        match end.read().await {
            Ok((CLOSE, payload)) => {
                end.write(CLOSE, &payload).await;
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                return (code, String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned());
            }
            Ok((PING, payload)) => end.write(PONG, &payload).await,
            Ok(_) => {}
            Err(_) => return (1006, String::new()),
        }
    }
}

/// The first event of this kind.
async fn event<T>(client: &Client, mut is_meant: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = is_meant(client.event().await.expect("the client ended before this event")) {
            return found;
        }
    }
}

async fn gap(client: &Client) -> Fate {
    event(client, |event| if let Event::Gap(fate) = event { Some(fate) } else { None }).await
}

#[tokio::test]
async fn a_plain_client_whose_backend_connection_is_lost_is_closed_with_1012() {
    let (gateway, listener) = gateway(&[]).await;
    let (mut client, mut backend) = plain(&gateway, &listener).await;
    backend.write(TEXT, b"last message").await;
    drop(backend);
    assert_eq!(client.text().await.as_deref(), Some("last message"));
    assert_eq!(closed(&mut client).await, (1012, "the backend was lost, come back".into()));
}

#[tokio::test]
async fn a_plain_client_is_closed_with_the_code_and_reason_of_the_backend() {
    for arguments in [&[][..], &KEEP] {
        let (gateway, listener) = gateway(arguments).await;
        for code in [
            1000, 1001, 1002, 1003, 1005, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
            4401, 4999,
        ] {
            let (mut client, mut backend) = plain(&gateway, &listener).await;
            let reason = if code == 1005 { "" } else { "für immer" };
            backend.write(TEXT, b"before it").await;
            backend.write(CLOSE, &close(code, reason)).await;
            assert_eq!(client.text().await.as_deref(), Some("before it"));
            assert_eq!(closed(&mut client).await, (code, reason.into()), "{arguments:?}");
        }
    }
}

#[tokio::test]
async fn a_session_whose_backend_connection_is_lost_is_renewed_with_exact_fates() {
    let (gateway, listener) = gateway(&[]).await;
    let client = Client::builder(&gateway.url).unwrap().connect();
    let (_, mut backend) = Frames::serve(&listener).await;
    let confirmed = client.send_tracked(Message::text("confirmed")).await.unwrap();
    let reading = tokio::spawn(async move {
        assert_eq!(backend.text().await.as_deref(), Some("confirmed"));
        // Answers the Ping that follows, and nothing after it.
        assert_eq!(backend.text().await.as_deref(), Some("unknown"));
        backend
    });
    assert_eq!(confirmed.await, mainstay::Outcome::Delivered, "confirmed by the backend, not by the gateway");
    client.send(Message::text("unknown")).await.unwrap();
    drop(reading.await.unwrap());
    let fate = gap(&client).await;
    assert_eq!((fate.delivered, fate.unknown, fate.last, fate.cause), (1, 2, 2, LossCause::Replaced));
    event(&client, |event| matches!(event, Event::Attached { resumed: false, .. }).then_some(())).await;
    let (_, mut next) = Frames::serve(&listener).await;
    client.send(Message::text("anew")).await.unwrap();
    assert_eq!(next.text().await.as_deref(), Some("anew"), "the unknown message is not sent again");
}

#[tokio::test]
async fn messages_that_a_backend_sent_before_it_was_lost_reach_a_session_first() {
    let (gateway, listener) = gateway(&[]).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    let (_, mut backend) = Frames::serve(&listener).await;
    for number in 0..50 {
        backend.write(TEXT, number.to_string().as_bytes()).await;
    }
    drop(backend);
    for number in 0..50 {
        assert_eq!(client.recv().await, Some(Message::text(number.to_string())));
    }
    assert_eq!(gap(&client).await.lost, None, "nothing of the backend is missing");
}

#[tokio::test]
async fn a_backend_that_restarts_renews_a_session_and_any_other_close_ends_it() {
    for code in [1001, 1005, 1011, 1012, 1013, 1014, 4000, 4499] {
        let (gateway, listener) = gateway(&[]).await;
        let client = Client::builder(&gateway.url).unwrap().connect();
        let (_, mut backend) = Frames::serve(&listener).await;
        backend.write(CLOSE, &close(code, "")).await;
        assert_eq!(gap(&client).await.cause, LossCause::Replaced, "{code}");
    }
    for code in [1000, 1002, 1003, 1007, 1008, 1009, 1010, 3000, 3999, 4500, 4999] {
        let (gateway, listener) = gateway(&[]).await;
        let client = Client::builder(&gateway.url).unwrap().connect();
        let (_, mut backend) = Frames::serve(&listener).await;
        backend.write(CLOSE, &close(code, "token expired")).await;
        let end = event(&client, |event| match event {
            Event::Ended(end) => Some((end.code.map(ReasonCode::get), end.reason)),
            _ => None,
        });
        assert_eq!(end.await, (Some(code.into()), "token expired".to_owned()));
    }
}

#[tokio::test]
async fn a_kept_session_receives_replaced_where_its_backend_connection_changed() {
    let (gateway, listener) = gateway(&KEEP).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    for round in 1..=3_u64 {
        let (_, mut backend) = Frames::serve(&listener).await;
        backend.write(TEXT, round.to_string().as_bytes()).await;
        assert_eq!(client.recv().await, Some(Message::text(round.to_string())));
        if round > 1 {
            let count =
                event(
                    &client,
                    |event| if let Event::Replaced { count } = event { Some(count) } else { None },
                );
            assert_eq!(count.await, round - 1);
        }
        if round == 2 {
            backend.write(CLOSE, &close(1001, "")).await;
        }
    }
    assert_eq!(gateway.metric("attaches_total{outcome=\"new\"}"), 1.0, "one session, one connection");
    assert_eq!(gateway.metric("connections_opened_total"), 1.0);
}

#[tokio::test]
async fn a_backend_that_closes_five_times_without_a_message_ends_a_kept_session() {
    let (gateway, listener) = gateway(&KEEP).await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    for _ in 0..5 {
        let (_, mut backend) = Frames::serve(&listener).await;
        backend.write(CLOSE, &close(1011, "broken")).await;
        drop(backend);
    }
    assert_eq!(client.recv().await, None);
    let end = event(&client, |event| match event {
        Event::Ended(end) => Some((end.code.map(ReasonCode::get), end.reason)),
        _ => None,
    });
    assert_eq!(end.await, (Some(1011), "broken".to_owned()));
}

#[tokio::test]
async fn a_backend_that_reads_answers_and_closes_handles_an_order_once() {
    for (arguments, resumable) in [(&[][..], false), (&[], true), (&KEEP, false), (&KEEP, true)] {
        for code in [1000, 1005, 1011] {
            let (gateway, listener) = gateway(arguments).await;
            let orders = Arc::new(AtomicU32::new(0));
            let counting = Arc::clone(&orders);
            tokio::spawn(async move {
                loop {
                    let (_, mut backend) = Frames::serve(&listener).await;
                    if backend.text().await.as_deref() == Some("order") {
                        counting.fetch_add(1, Relaxed);
                        backend.write(TEXT, b"receipt").await;
                    } else {
                        backend.write(TEXT, b"done").await;
                    }
                    backend.write(CLOSE, &close(code, "")).await;
                }
            });
            // The second message shows that the order is no longer in flight.
            if resumable {
                let mut client = Client::builder(&gateway.url).unwrap().connect();
                client.send(Message::text("order")).await.unwrap();
                assert_eq!(client.recv().await, Some(Message::text("receipt")));
                client.send(Message::text("no order")).await.ok();
                let next = (code != 1000).then(|| Message::text("done"));
                assert_eq!(client.recv().await, next, "{arguments:?} {code}");
            } else {
                let connect = || Link::builder(&gateway.url).unwrap().connect_once();
                for (text, answer) in [("order", "receipt"), ("no order", "done")] {
                    let mut client = connect().await.unwrap();
                    client.send(Message::text(text)).await.unwrap();
                    assert_eq!(client.recv().await, Some(Message::text(answer)));
                    assert_eq!(client.recv().await, None, "closed");
                }
            }
            assert_eq!(orders.load(Relaxed), 1, "{arguments:?} {code}");
        }
    }
}

#[tokio::test]
async fn a_clients_close_reaches_the_backend() {
    let (gateway, listener) = gateway(&[]).await;
    for (code, reason) in [(4321, "logged out"), (1000, ""), (1001, "gone"), (1005, ""), (3000, "ä")] {
        let (mut client, mut backend) = plain(&gateway, &listener).await;
        client.write(TEXT, b"before it").await;
        client.write(CLOSE, &close(code, reason)).await;
        assert_eq!(backend.text().await.as_deref(), Some("before it"));
        assert_eq!(closed(&mut backend).await, (code, reason.into()));
    }
    let (client, mut backend) = plain(&gateway, &listener).await;
    drop(client);
    assert_eq!(closed(&mut backend).await, (1001, String::new()), "the client disappeared");
    let client = Client::builder(&gateway.url).unwrap().connect();
    let (_, mut backend) = Frames::serve(&listener).await;
    let code = CloseCode::new(4321).unwrap();
    tokio::join!(client.close(code, "logged out"), async {
        assert_eq!(closed(&mut backend).await, (4321, "logged out".into()));
    });
}

#[tokio::test]
async fn a_new_backend_connection_with_another_subprotocol_is_not_used() {
    let (gateway, listener) = gateway(&KEEP).await;
    let offer = "Sec-WebSocket-Protocol: a.v2, b.v1\r\n";
    let (connected, served) = tokio::join!(
        Frames::connect(gateway.address(), "/", offer),
        Frames::serve_with(&listener, "Sec-WebSocket-Protocol: a.v2\r\n")
    );
    let (mut client, backend) = (connected.1, served.1);
    drop(backend);
    let (_, mut other) = Frames::serve_with(&listener, "Sec-WebSocket-Protocol: b.v1\r\n").await;
    other.write(TEXT, b"a message of b.v1").await;
    assert_eq!(closed(&mut client).await.0, 1012);
}

/// A client that reads nothing, fills every queue to the backend and back, and disconnects.
async fn fill_and_leave(gateway: &Gateway, resumable: bool) {
    let offer = if resumable { "Sec-WebSocket-Protocol: mainstay.v1\r\n" } else { "" };
    let (_, mut client) = Frames::connect(gateway.address(), "/", offer).await;
    if resumable {
        client.write(BINARY, &crate::hostile::small_hello()).await;
    }
    let message = [&[TEXT, 0x80 | 1, 0, 0, 0, 0][..], b"x"].concat().repeat(100);
    let filling = async {
        for _ in 0..60 {
            client.write_bytes(&message).await;
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_millis(500), filling).await;
}

#[tokio::test]
async fn nothing_is_left_of_a_client_that_filled_every_queue_and_disappeared() {
    let (gateway, listener) = gateway(&["--resume-window", "100ms"]).await;
    tokio::spawn(async move {
        loop {
            let (_, mut backend) = Frames::serve(&listener).await;
            tokio::spawn(async move {
                // An echo with answers large enough to fill the kernel's buffers.
                while let Ok((first, payload)) = backend.read().await {
                    backend.write(first, &payload.repeat(1000)).await;
                }
            });
        }
    });
    for resumable in [false, true, false, true] {
        fill_and_leave(&gateway, resumable).await;
    }
    gateway.wait_for_metric("sessions", 0.0).await;
    until("all links have ended", || gateway.metric("queue_bytes{leg=\"backend\"}") == 0.0).await;
}
