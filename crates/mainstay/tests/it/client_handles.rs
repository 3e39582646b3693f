//! The handles of a client: two tasks may wait on the same one, and every handle has the same verbs.

use std::time::Duration;

use futures_util::StreamExt;
use mainstay::client::{EndCause, Event, State};
use mainstay::server::Config;
use mainstay::{Client, CloseCode, Link, SendError};

use crate::support::{Proxy, echo_server, quick, silence};

const SOON: Duration = Duration::from_secs(30);

async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(SOON, what).await.expect("woken")
}

#[tokio::test(start_paused = true)]
async fn every_task_that_waits_for_the_end_of_a_client_is_woken() {
    let (_listener, url) = silence().await;
    let link = Link::builder(&url).unwrap().connect();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (sender, mut changes) = (link.sender(), link.changes());
            tokio::spawn(async move {
                sender.closed().await;
                let end = sender.ended().await;
                while changes.next().await.is_some() {}
                sender.close(CloseCode::NORMAL, "").await;
                end.cause
            })
        })
        .collect();
    tokio::task::yield_now().await;
    let (first, second) = (link.sender(), link.sender());
    tokio::join!(first.close(CloseCode::NORMAL, ""), second.close(CloseCode::NORMAL, ""));
    for task in waiting {
        assert_eq!(soon(task).await.unwrap(), EndCause::Closed);
    }
}

#[tokio::test]
async fn tasks_that_wait_for_the_events_of_a_client_share_them() {
    let link = Link::builder("ws://127.0.0.1:1/").unwrap().backoff(quick()).connect();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let events = link.events();
            tokio::spawn(async move { events.next().await })
        })
        .collect();
    for task in waiting {
        let event = soon(task).await.unwrap();
        assert!(matches!(event, Some(Event::AttemptFailed { .. })), "{event:?}");
    }
}

#[tokio::test]
async fn tasks_that_wait_for_settled_messages_are_all_woken() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let sender = client.sender();
            tokio::spawn(async move { sender.settled(0).await })
        })
        .collect();
    tokio::task::yield_now().await;
    client.send("x").await.unwrap();
    for task in waiting {
        assert_eq!(soon(task).await.unwrap(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_begins_without_being_awaited() {
    let (_listener, url) = silence().await;
    let link = Link::builder(&url).unwrap().connect();
    let sender = link.sender();
    assert!(!sender.is_closed());
    let _closing = link.close(CloseCode::NORMAL, "");
    assert!(sender.is_closed());
    assert_eq!(sender.send("late").await, Err(SendError::Closed("late".into())));
    assert_eq!(soon(sender.ended()).await.cause, EndCause::Closed);
}

#[tokio::test]
async fn events_and_states_are_streams() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    let (events, changes) = (client.events(), client.changes());
    let attached = soon(
        events.filter(|event| std::future::ready(matches!(event, Event::Attached { .. }))).boxed().next(),
    )
    .await;
    assert!(matches!(attached, Some(Event::Attached { epoch: 1, .. })), "{attached:?}");
    client.close(CloseCode::NORMAL, "").await;
    let states: Vec<State> = soon(changes.collect()).await;
    assert_eq!(states.last(), Some(&State::Ended));
}

#[tokio::test]
async fn senders_are_equal_if_they_send_through_the_same_client() {
    let client = Client::builder("ws://127.0.0.1:1/").unwrap().connect();
    let other = client_of_its_own();
    assert_eq!(client.sender(), client.sender().clone());
    assert_ne!(client.sender(), other.sender());
}

fn client_of_its_own() -> Client {
    Client::builder("ws://127.0.0.1:1/").unwrap().connect()
}

#[tokio::test]
async fn a_value_is_sent_as_json_and_a_message_is_parsed() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send_json(&("BTC", 100)).await.unwrap();
    client.sender().send_json(&[1, 2]).await.unwrap();
    assert_eq!(client.recv_json::<(String, u32)>().await.unwrap().unwrap(), ("BTC".to_owned(), 100));
    assert!(client.recv_json::<String>().await.unwrap().is_err(), "it is an array");
    client.close(CloseCode::NORMAL, "").await;
    assert!(client.recv_json::<u8>().await.is_none());
}

#[tokio::test]
async fn undelivered_messages_are_sent_again_in_the_next_session_unless_the_builder_says_no() {
    for resend in [true, false] {
        let config = Config::new().resume_window(Duration::from_millis(1)).unwrap();
        let (address, _mainstay) = echo_server(config).await;
        let proxy = Proxy::to(address).await;
        let builder = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap();
        let mut client = builder.backoff(quick()).resend_undelivered(resend).connect();
        client.send("before").await.unwrap();
        assert_eq!(client.recv().await, Some("before".into()));
        proxy.cut();
        let detached = |event| matches!(event, Some(Event::Detached { .. }));
        while !detached(client.event().await) {}
        client.send("undelivered").await.unwrap();
        let fate = loop {
            if let Some(Event::Gap(fate)) = soon(client.event()).await {
                break fate;
            }
        };
        assert_eq!((fate.delivered, fate.unknown, fate.last, fate.resent), (1, 1, 2, resend));
        client.send("after").await.unwrap();
        let first = if resend { "undelivered" } else { "after" };
        assert_eq!(soon(client.recv()).await, Some(first.into()));
    }
}
