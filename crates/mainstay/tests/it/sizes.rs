//! How large a message may be: each end announces the largest message that it accepts, the other end refuses one byte more at
//! once, and a single message is never too large for a window.

use mainstay::client::{Event, Report};
use mainstay::server::{Config, Received};
use mainstay::{Client, CloseCode, Limits, Link, Message, Outcome, SendError, Server, Session, Window};
use tokio::net::TcpListener;

use crate::support::{echo, handled, quick, until};

fn limits(max_message: usize) -> Limits {
    Limits { max_message, ..Limits::default() }
}

/// A text and a binary message of this many bytes.
fn both(length: usize) -> [Message; 2] {
    [Message::text("x".repeat(length)), Message::binary(vec![7; length])]
}

async fn attached(client: &Client) {
    while !matches!(client.event().await, Some(Event::Attached { .. })) {}
}

#[tokio::test]
async fn the_largest_message_that_the_server_accepts_passes_and_one_byte_more_is_returned() {
    for limit in [1000, 70_000] {
        let config = Config::new().limits(limits(limit)).unwrap();
        let (address, mainstay) = handled(Server::new(config), echo).await;
        let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
        attached(&client).await;
        for (message, larger) in both(limit).into_iter().zip(both(limit + 1)) {
            client.send(message.clone()).await.unwrap();
            assert_eq!(client.recv().await, Some(message));
            let refused = SendError::TooLarge { message: larger.clone(), limit: limit as u64 };
            assert_eq!(client.send(larger.clone()).await, Err(refused.clone()));
            assert_eq!(client.try_send(larger), Err(refused));
        }
        assert_eq!(mainstay.stats().connections_opened, 1, "nothing was closed for it");
    }
}

#[tokio::test]
async fn the_largest_message_that_the_client_accepts_passes_and_one_byte_more_is_returned() {
    let handler = |mut session: Session| async move {
        while session.recv().await.is_some() {
            for (message, larger) in both(1000).into_iter().zip(both(1001)) {
                let refused = SendError::TooLarge { message: larger.clone(), limit: 1000 };
                assert_eq!(session.send(larger.clone()).await, Err(refused.clone()));
                assert_eq!(session.try_send(larger), Err(refused));
                session.send(message).await.unwrap();
            }
        }
    };
    let (address, mainstay) = handled(Server::default(), handler).await;
    let builder = Client::builder(&format!("ws://{address}/echo")).unwrap();
    let mut client = builder.limits(limits(1000)).connect();
    client.send(Message::text("go")).await.unwrap();
    for message in both(1000) {
        assert_eq!(client.recv().await, Some(message));
    }
    assert_eq!(mainstay.stats().connections_opened, 1);
}

#[tokio::test]
async fn messages_accepted_before_the_limit_was_known_are_reported_and_the_rest_is_delivered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let client = Client::builder(&url).unwrap().backoff(quick()).connect();
    let mut tracked = Vec::new();
    for length in [1, 2000, 3, 2000, 2000, 5] {
        tracked.push(client.send_tracked(Message::text("x".repeat(length))).await.unwrap());
    }
    let (sender, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |mut session: Session| {
        let sender = sender.clone();
        async move {
            while let Some(received) = session.recv_any().await {
                sender.send(received).unwrap();
            }
        }
    };
    let mainstay = Server::new(Config::new().limits(limits(1000)).unwrap());
    let on_upgrade = move |upgrade: mainstay::SessionUpgrade| {
        let handler = handler.clone();
        async move { upgrade.on_session(handler) }
    };
    let app = axum::Router::new().route("/", axum::routing::any(on_upgrade)).with_state(mainstay.clone());
    tokio::spawn(async move { mainstay::serve(listener, app, &mainstay).await });
    let mut lengths = Vec::new();
    while lengths.last() != Some(&5) {
        match arrived.recv().await.unwrap() {
            Received::Message(message) => lengths.push(message.len()),
            Received::Gap { count, .. } => {
                lengths.extend(std::iter::repeat_n(0, usize::try_from(count).unwrap()))
            }
            _ => {}
        }
    }
    assert_eq!(lengths, [1, 0, 3, 0, 0, 5], "a gap in each one's place");
    let mut reported = Vec::new();
    while reported.len() < 3 {
        match client.event().await {
            Some(Event::Report(Report::NotDelivered(range))) => reported.extend(range),
            Some(Event::Gap(fate)) => panic!("{fate:?}"),
            Some(_) => {}
            None => panic!("it ended"),
        }
    }
    assert_eq!(reported, [2, 4, 5]);
    let mut outcomes = Vec::new();
    for one in tracked {
        outcomes.push(one.await);
    }
    use Outcome::{Delivered, NotDelivered};
    assert_eq!(outcomes, [Delivered, NotDelivered, Delivered, NotDelivered, NotDelivered, Delivered]);
}

#[tokio::test]
async fn one_message_that_is_larger_than_every_window_passes_in_both_directions() {
    let small = Window { messages: 16, bytes: 64 * 1024 };
    let config = Config::new().keep(small).unwrap().accept(small).limits(limits(1 << 20)).unwrap();
    let (address, mainstay) = handled(Server::new(config), echo).await;
    let url = format!("ws://{address}/echo");
    let mut client = Client::builder(&url).unwrap().connect();
    // Above a link's queue, and what may be unconfirmed.
    let mut link = Link::builder(&url).unwrap().queue(4, 1000).unwrap().connect();
    for length in [64 * 1024, 64 * 1024 + 1, 256 * 1024 + 1, 1 << 20] {
        for message in both(length) {
            client.send(message.clone()).await.unwrap();
            assert_eq!(client.recv().await, Some(message.clone()));
            link.send(message.clone()).await.unwrap();
            assert_eq!(link.recv().await, Some(message));
        }
    }
    assert_eq!(mainstay.stats().connections_opened, 2);
    until("nothing is kept", || mainstay.kept_bytes() + mainstay.unread_bytes() == 0).await;
}

#[tokio::test]
async fn a_plain_peer_that_sends_more_than_a_link_takes_is_told_apart_and_ends_it_where_that_is_asked_for() {
    use mainstay::client::{EndsOn, Lost};
    let handler = |mut session: Session| async move {
        session.send(Message::text("x".repeat(1001))).await.unwrap();
        while session.recv().await.is_some() {}
    };
    let (address, mainstay) = handled(Server::default(), handler).await;
    let link =
        || Link::builder(&format!("ws://{address}/echo")).unwrap().limits(limits(1000)).backoff(quick());
    for ends_on in [EndsOn::FinalClose, EndsOn::Close, EndsOn::Connection] {
        let opened = mainstay.stats().connections_opened;
        let link = link().ends_on(ends_on).connect();
        let mut events = Vec::new();
        while let Some(event) = link.event().await {
            events.push(event);
        }
        let [.., Event::Detached { why, .. }, Event::Ended(end)] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!(
            (why, end.code),
            (&Lost::TooBig { limit: 1000 }, Some(CloseCode::TOO_BIG.into())),
            "{ends_on:?}"
        );
        assert_eq!(mainstay.stats().connections_opened, opened + 1);
    }
    // Otherwise the application sees why, again and again.
    let link = link().connect();
    let mut seen = 0;
    while seen < 2 {
        seen +=
            u32::from(matches!(link.event().await, Some(Event::Detached { why: Lost::TooBig { .. }, .. })));
    }
}
