//! What the application handles, and what stands outside the stream.

use std::time::Duration;

use mainstay::client::Event;
use mainstay::server::{Config, Received};
use mainstay::{Client, CloseCode, Message, Outcome};
use tokio::sync::mpsc;

use crate::support::{Proxy, server, until};

#[tokio::test]
async fn an_acknowledged_message_is_delivered_and_one_that_was_only_received_is_unknown() {
    let config = Config::new().resume_window(Duration::from_millis(1)).unwrap();
    let (took, mut taken) = mpsc::unbounded_channel();
    let (address, _mainstay) = server(config, move |upgrade| {
        let took = took.clone();
        upgrade.manual_ack().on_session(|mut session| async move {
            while let Some(message) = session.recv().await {
                if message.as_text() == Some("2") {
                    session.ack();
                }
                let _ = took.send(message);
            }
        })
    })
    .await;
    let proxy = Proxy::to(address).await;
    let client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    let mut tracked = Vec::new();
    for n in 1..=3 {
        tracked.push(client.send_tracked(Message::text(n.to_string())).await.unwrap());
    }
    for n in 1..=3 {
        assert_eq!(taken.recv().await, Some(Message::text(n.to_string())));
    }
    proxy.cut();
    let fate = loop {
        if let Event::Gap(fate) = client.event().await.unwrap() {
            break fate;
        }
    };
    assert_eq!((fate.delivered, fate.unknown, fate.last), (2, 3, 3));
    let mut outcomes = Vec::new();
    for tracked in tracked {
        outcomes.push(tracked.await);
    }
    assert_eq!(outcomes, [Outcome::Delivered, Outcome::Delivered, Outcome::Unknown]);
}

#[tokio::test]
async fn no_message_comes_twice_over_a_cut_acknowledged_or_not() {
    let (took, mut taken) = mpsc::unbounded_channel();
    let (address, mainstay) = server(Config::default(), move |upgrade| {
        let took = took.clone();
        upgrade.manual_ack().on_session(|mut session| async move {
            let mut count = 0;
            while let Some(message) = session.recv().await {
                count += 1;
                if count == 2 {
                    session.ack();
                }
                let _ = took.send(message);
            }
        })
    })
    .await;
    let proxy = Proxy::to(address).await;
    let client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    for n in 1..=4 {
        client.send(Message::text(n.to_string())).await.unwrap();
        assert_eq!(taken.recv().await, Some(Message::text(n.to_string())));
    }
    proxy.cut();
    until("the client is back", || mainstay.stats().attached_resumed > 0).await;
    client.send(Message::text("5")).await.unwrap();
    assert_eq!(taken.recv().await, Some(Message::text("5")));
}

#[tokio::test]
async fn a_client_with_manual_ack_holds_the_server_back_until_it_acknowledges() {
    let config = Config::new().keep(mainstay::Window { messages: 2, bytes: 1 << 20 }).unwrap();
    let (address, _mainstay) = server(config, |upgrade| {
        upgrade.on_session(|session| async move {
            for n in 1..=3 {
                session.send(Message::text(n.to_string())).await.unwrap();
            }
            session.close(CloseCode::SESSION_ENDED, "all sent");
        })
    })
    .await;
    let builder = Client::builder(&format!("ws://{address}/echo")).unwrap();
    let mut client = builder.manual_ack().connect();
    for n in 1..=2 {
        assert_eq!(client.recv().await, Some(Message::text(n.to_string())));
    }
    let third = tokio::time::timeout(Duration::from_millis(500), client.recv()).await;
    assert!(third.is_err(), "two are unconfirmed: {third:?}");
    client.ack();
    assert_eq!(client.recv().await, Some(Message::text("3")));
    client.ack();
    assert_eq!(client.recv().await, None);
}

#[tokio::test]
async fn a_volatile_message_reaches_a_handler_that_asks_for_any() {
    let (took, mut taken) = mpsc::unbounded_channel();
    let (address, _mainstay) = server(Config::default(), move |upgrade| {
        let took = took.clone();
        upgrade.on_session(|mut session| async move {
            while let Some(received) = session.recv_any().await {
                let _ = took.send(received);
            }
        })
    })
    .await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    while !matches!(client.event().await, Some(Event::Attached { .. })) {}
    client.send_volatile(Message::text("here"));
    assert_eq!(taken.recv().await, Some(Received::Volatile(Message::text("here"))));
    client.sender().send_volatile(Message::text("there"));
    client.send(Message::text("kept")).await.unwrap();
    let rest = [taken.recv().await, taken.recv().await];
    assert!(rest.contains(&Some(Received::Volatile(Message::text("there")))), "{rest:?}");
    assert!(rest.contains(&Some(Received::Message(Message::text("kept")))), "{rest:?}");
}

#[tokio::test]
async fn a_client_asks_for_a_shorter_resume_window() {
    let (address, mainstay) = crate::support::echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let builder = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap();
    let client = builder.resume_window(Duration::from_millis(1)).unwrap().connect();
    while !matches!(client.event().await, Some(Event::Attached { .. })) {}
    proxy.close();
    until("the session is expired", || mainstay.stats().expired == 1).await;
}

#[tokio::test]
async fn a_session_that_drops_the_oldest_never_waits_and_reports_the_gap_to_its_client() {
    let config = Config::new().keep(mainstay::Window { messages: 3, bytes: 1 << 20 }).unwrap();
    let (dropped, mut reported) = mpsc::unbounded_channel();
    let (address, _mainstay) = server(config, move |upgrade| {
        let dropped = dropped.clone();
        upgrade.drop_oldest().on_session(|mut session| async move {
            session.recv().await;
            // All at once: nothing leaves before the handler waits.
            for n in 1..=6 {
                session.try_send(Message::text(n.to_string())).unwrap();
            }
            let _ = dropped.send(session.dropped());
            session.recv().await;
        })
    })
    .await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send(Message::text("go")).await.unwrap();
    for expected in ["4", "5", "6"] {
        assert_eq!(client.recv().await, Some(Message::text(expected)));
    }
    assert_eq!(reported.recv().await, Some(3));
    let gap = loop {
        if let Event::Dropped { first, count, .. } = client.event().await.unwrap() {
            break (first, count);
        }
    };
    assert_eq!(gap, (1, 3));
}
