//! What stands between two messages stands there for every way of receiving, and state and messages go in one `select!`.

use std::time::Duration;

use mainstay::client::{ClientHandle, Event, Incoming, State};
use mainstay::server::{Config, SessionState};
use mainstay::{BackoffConfig, Client, GapCause, Link, Message, Server, Session, Window};

use crate::support::{Proxy, echo_server, handled, quick, server, until};

fn text(message: &Message) -> String {
    message.as_text().unwrap_or_default().to_owned()
}

/// A client that has received nothing yet of: a, b, a gap of six, 8, 9 and two more.
async fn client_behind_a_gap() -> Client {
    let keep = Window { messages: 4, bytes: 1 << 20 };
    let (address, mainstay) = server(Config::new().keep(keep).unwrap(), |upgrade| {
        upgrade.drop_oldest().on_session(|mut session: Session| async move {
            session.send("a").await.unwrap();
            session.send("b").await.unwrap();
            session.recv().await;
            session.sender().cut();
            until("it is parked", || session.state() == SessionState::Parked).await;
            for n in 0..10 {
                session.send(n.to_string()).await.unwrap();
            }
            while session.recv().await.is_some() {}
        })
    })
    .await;
    let slow = Duration::from_millis(400);
    let slow = BackoffConfig::new(slow, slow).and_then(|backoff| backoff.first(slow, slow)).unwrap();
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().backoff(slow).connect();
    client.send("go").await.unwrap();
    until("it has resumed", || mainstay.stats().attached_resumed == 1).await;
    // All of it has come: the next thing that would is an acknowledgement's.
    until("it is all there", || client.sender().kept_bytes() == 0).await;
    client
}

#[tokio::test]
async fn a_gap_stands_in_its_place_in_the_one_stream() {
    let mut client = client_behind_a_gap().await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "9") {
        seen.push(match client.recv_any().await.unwrap() {
            Incoming::Message(message) => text(&message),
            Incoming::Dropped { first, count, cause: GapCause::Overflow } => format!("{first}+{count}"),
            other => panic!("{other:?}"),
        });
    }
    let gap = seen.iter().position(|one| one.contains('+')).unwrap();
    assert_eq!(seen[..gap], ["a", "b"][..gap.min(2)]);
    assert!(seen[gap + 1..].is_sorted() && seen.last().unwrap() == "9", "{seen:?}");
}

/// What events and `recv` give together, whichever is polled first.
async fn both<P>(client: &mut ClientHandle<P>, last: &str, events_first: bool) -> Vec<String> {
    let (events, mut seen) = (client.events(), Vec::new());
    let name = |event: Option<Event>| match event {
        Some(Event::Dropped { .. } | Event::FreshPeer) => Some("gap".to_owned()),
        Some(_) => None,
        None => panic!("it ended"),
    };
    while seen.last().is_none_or(|seen| seen != last) {
        let one = if events_first {
            tokio::select! {
                biased;
                event = events.next() => name(event),
                message = client.recv() => message.as_ref().map(text),
            }
        } else {
            tokio::select! {
                biased;
                message = client.recv() => message.as_ref().map(text),
                event = events.next() => name(event),
            }
        };
        seen.extend(one);
    }
    seen
}

#[tokio::test]
async fn an_event_that_stands_for_a_place_comes_before_the_messages_behind_it() {
    for events_first in [true, false] {
        let mut client = client_behind_a_gap().await;
        let seen = both(&mut client, "9", events_first).await;
        let gap = seen.iter().position(|one| one == "gap").unwrap();
        let before: Vec<_> = seen[..gap].iter().map(String::as_str).collect();
        assert!(before.is_empty() || before == ["a"] || before == ["a", "b"], "{seen:?}");
        assert!(seen[gap + 1..].iter().all(|one| one != "a" && one != "b"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_message_behind_a_gap_is_received_also_without_a_listener_for_events() {
    let mut client = client_behind_a_gap().await;
    let _idle = client.events();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "9") {
        seen.push(text(&client.recv().await.unwrap()));
    }
}

/// A feed whose connection number n brings n.1, n.2 and n.3, and a link that reads nothing while the first is lost.
async fn link_behind_a_break() -> Link {
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (address, _mainstay) = handled(Server::default(), move |mut session: Session| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        async move {
            for i in 1..=3 {
                session.send(format!("{n}.{i}")).await.unwrap();
            }
            if n == 1 {
                session.recv().await;
                session.sender().cut();
            }
            while session.recv().await.is_some() {}
        }
    })
    .await;
    let link = Link::builder(&format!("ws://{address}/echo")).unwrap().backoff(quick()).connect();
    until("the first has brought all", || link.sender().unread_bytes() == 9).await;
    link.send_volatile("cut");
    until("the second has too", || link.sender().unread_bytes() == 18).await;
    link
}

#[tokio::test]
async fn a_break_stands_between_the_messages_of_two_connections() {
    let expected = ["1.1", "1.2", "1.3", "gap", "2.1", "2.2", "2.3"];
    let mut link = link_behind_a_break().await;
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        seen.push(match link.recv_any().await.unwrap() {
            Incoming::Message(message) => text(&message),
            Incoming::FreshPeer { count: 1 } => "gap".to_owned(),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, expected);
    for events_first in [true, false] {
        let mut link = link_behind_a_break().await;
        assert_eq!(both(&mut link, "2.3", events_first).await, expected);
    }
}

#[tokio::test]
async fn a_lost_session_stands_before_the_messages_of_the_new_one() {
    let config = Config::new().resume_window(Duration::from_millis(1)).unwrap();
    let (address, _mainstay) = echo_server(config).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send("old").await.unwrap();
    assert!(matches!(client.recv_any().await, Some(Incoming::Message(_))));
    until("it is acknowledged", || client.sender().kept_bytes() == 0).await;
    proxy.cut();
    let Some(Incoming::Gap(fate)) = client.recv_any().await else { panic!("no gap") };
    assert_eq!((fate.delivered, fate.last), (1, 1));
    client.send("new").await.unwrap();
    assert_eq!(client.recv_any().await, Some(Incoming::Message(Message::text("new"))));
}

#[tokio::test]
async fn messages_and_states_go_in_one_select() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    let (mut changes, mut others) = (client.changes(), client.changes());
    let (mut echoes, mut attaches) = (0, 0);
    client.send("x").await.unwrap();
    while echoes < 2 || attaches < 2 {
        tokio::select! {
            message = client.recv() => {
                assert_eq!(message, Some(Message::text("x")));
                echoes += 1;
                if echoes == 1 {
                    proxy.cut();
                }
            }
            state = changes.next() => {
                if let Some(State::Attached { epoch, .. }) = state {
                    attaches += 1;
                    if epoch == 2 {
                        client.send("x").await.unwrap();
                    }
                }
            }
        }
    }
    // Each handle sees them for itself, and ends.
    assert!(others.next().await.is_some());
    client.abort(mainstay::CloseCode::NORMAL, "");
    let mut last = None;
    while let Some(state) = changes.next().await {
        last = Some(state);
    }
    assert_eq!(last, Some(State::Ended));
    assert_eq!(client.changes().next().await, None);
}

#[tokio::test]
async fn a_listener_elsewhere_is_woken_for_what_the_one_stream_hands_over() {
    let mut link = link_behind_a_break().await;
    let events = link.events();
    let listening =
        tokio::spawn(async move { while !matches!(events.next().await, Some(Event::FreshPeer)) {} });
    // The listener has received every event, and waits.
    tokio::time::sleep(Duration::from_millis(20)).await;
    while !matches!(link.recv_any().await, Some(Incoming::FreshPeer { .. })) {}
    listening.await.unwrap();
}
