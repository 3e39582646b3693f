//! What a session and its senders offer: waiting tasks, receipts, `Stream` and `Sink`, JSON.

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use futures_util::{SinkExt, StreamExt, future};
use mainstay::server::{Config, SessionState};
use mainstay::test::{self, Network, Peer};
use mainstay::{Message, Outcome, SendError, SendJsonError, Server, Session, SessionUpgrade, Window};
use tokio::sync::mpsc;

const SECOND: Duration = Duration::from_secs(1);

/// Fails where what is waited for does not come in an hour, which passes at once.
async fn soon<F: Future>(wait: F) -> F::Output {
    tokio::time::timeout(3600 * SECOND, wait).await.expect("it comes within an hour")
}

/// A session of a server with this configuration, upgraded with these options, and its client.
async fn session_of(config: Config, options: fn(SessionUpgrade) -> SessionUpgrade) -> (Session, Peer) {
    let (give, mut sessions) = mpsc::unbounded_channel();
    let route = any(async move |upgrade: SessionUpgrade| {
        options(upgrade).on_session(async move |session| give.send(session).unwrap())
    });
    let network = Network::serve(Router::new().route("/", route), &Server::new(config));
    let peer = network.connect("/").await;
    (sessions.recv().await.unwrap(), peer)
}

/// A server that keeps two messages for a client.
fn keeps_two() -> Config {
    Config::new().keep(Window { messages: 2, bytes: 1 << 20 }).unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_task_that_waits_for_the_end_or_a_change_is_woken() {
    let (session, peer) = test::session().await;
    let (sender, mut first, mut second) = (session.sender(), session.changes(), session.changes());
    let waiting = soon(future::join4(sender.closed(), session.closed(), first.next(), second.next()));
    let ((), ()) = tokio::join!(
        async {
            let (_, _, first, second) = waiting.await;
            assert_eq!((first, second), (Some(SessionState::Parked), Some(SessionState::Parked)));
        },
        async {
            tokio::time::sleep(SECOND).await;
            peer.expire().await;
        },
    );
    assert!(session.is_closed() && sender.is_closed());
}

#[tokio::test(start_paused = true)]
async fn every_task_that_waits_for_room_gets_it() {
    let (session, mut peer) = session_of(keeps_two(), |upgrade| upgrade).await;
    peer.stall();
    let senders = [session.sender(), session.sender(), session.sender(), session.sender()];
    let sending: Vec<_> = senders
        .into_iter()
        .map(|sender| tokio::spawn(async move { sender.send("one of four").await }))
        .collect();
    tokio::time::sleep(SECOND).await;
    assert!(matches!(session.try_send("too many"), Err(SendError::Full(_))));
    peer.resume();
    for _ in 0..4 {
        assert_eq!(soon(peer.recv()).await, Some("one of four".into()));
    }
    for sent in sending {
        soon(sent).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_receipt_is_delivered_once_the_client_has_acknowledged_the_message() {
    let (session, mut peer) = test::session().await;
    let first = session.send_tracked("first").await.unwrap();
    peer.cut();
    let second = session.sender().send_tracked("second").await.unwrap();
    let received = async { (peer.recv().await, peer.recv().await) };
    let (received, first, second) = tokio::join!(received, first, second);
    assert_eq!(received, (Some("first".into()), Some("second".into())));
    assert_eq!((first, second), (Outcome::Delivered, Outcome::Delivered));
}

#[tokio::test(start_paused = true)]
async fn the_receipts_of_a_session_that_expires_are_unknown_where_a_connection_wrote_the_message() {
    let (session, peer) = test::session().await;
    peer.stall();
    let written = session.send_tracked("written").await.unwrap();
    // The heartbeat finds out that no byte passes, and the session parks.
    session.changes().next().await.unwrap();
    let queued = session.send_tracked("queued").await.unwrap();
    peer.expire().await;
    assert_eq!((written.await, queued.await), (Outcome::Unknown, Outcome::NotDelivered));
}

#[tokio::test(start_paused = true)]
async fn the_receipt_of_a_message_that_a_slow_client_lost_is_not_delivered() {
    let (session, mut peer) = session_of(keeps_two(), SessionUpgrade::drop_oldest).await;
    peer.go_offline();
    session.changes().next().await.unwrap();
    let mut receipts = Vec::new();
    for n in 0..4_u8 {
        receipts.push(session.send_tracked(vec![n]).await.unwrap());
    }
    peer.go_online();
    let received = [peer.recv().await.unwrap(), peer.recv().await.unwrap()];
    assert_eq!(received, [vec![2].into(), vec![3].into()]);
    let outcomes = future::join_all(receipts).await;
    let (lost, got) = (Outcome::NotDelivered, Outcome::Delivered);
    assert_eq!(outcomes, [lost, lost, got, got]);
}

#[tokio::test(start_paused = true)]
async fn the_receipt_of_a_message_to_a_plain_client_is_unknown_at_once() {
    let (session, mut peer) = test::plain().await;
    let receipt = session.send_tracked("hello").await.unwrap();
    assert_eq!(receipt.await, Outcome::Unknown);
    assert_eq!(peer.recv().await, Some("hello".into()));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_a_stream_and_a_sink() {
    let (session, mut peer) = session_of(keeps_two(), |upgrade| upgrade).await;
    let (to_client, from_client) = session.split();
    tokio::spawn(from_client.map(Ok).forward(to_client));
    for n in 0..10_u8 {
        peer.send(vec![n]).await.unwrap();
    }
    for n in 0..10_u8 {
        assert_eq!(peer.recv().await, Some(vec![n].into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_is_flushed_once_everything_is_written_and_closed_once_it_is_acknowledged() {
    let (mut session, mut peer) = session_of(keeps_two(), |upgrade| upgrade).await;
    peer.go_offline();
    session.changed().await;
    for n in 0..3_u8 {
        session.feed(vec![n].into()).await.unwrap();
    }
    let flushed = tokio::time::timeout(SECOND, SinkExt::<Message>::flush(&mut session)).await;
    assert!(flushed.is_err(), "no connection has written it");
    peer.go_online();
    let receiving = async {
        for n in 0..3_u8 {
            assert_eq!(peer.recv().await, Some(vec![n].into()));
        }
        assert_eq!(peer.recv().await, None);
    };
    let closing = async {
        session.flush().await.unwrap();
        SinkExt::<Message>::close(&mut session).await.unwrap();
        assert!(session.is_closed());
    };
    tokio::join!(receiving, closing);
    assert!(matches!(session.feed("late".into()).await, Err(SendError::Closed(_))));
}

#[tokio::test(start_paused = true)]
async fn typed_values_travel_as_json_text() {
    let (mut session, mut peer) = test::session().await;
    session.send_json(&("price", 17)).await.unwrap();
    assert_eq!(peer.recv().await, Some(Message::text(r#"["price",17]"#)));
    peer.send(Message::json(&[1, 2]).unwrap()).await.unwrap();
    assert_eq!(session.recv_json::<Vec<u8>>().await.unwrap().unwrap(), [1, 2]);
    peer.send("no JSON").await.unwrap();
    assert!(session.recv_json::<Vec<u8>>().await.unwrap().is_err(), "and the session goes on");
    let keys_of_lists = std::collections::BTreeMap::from([([1], 2)]);
    let refused = session.send_json(&keys_of_lists).await;
    assert!(matches!(refused, Err(SendJsonError::Encode(_))), "{refused:?}");
    peer.expire().await;
    assert!(session.recv_json::<u8>().await.is_none());
    assert!(matches!(session.send_json(&1).await, Err(SendJsonError::Send(SendError::Closed(_)))));
}
