//! Tests of a handler without a network: its client loses the connection, goes away for an hour, and leaves.

use std::time::Duration;

use mainstay::Session;
use mainstay::server::{Config, EndCause, SessionState};
use mainstay::test::{self, Network};

/// The handler under test: counts the messages of its client.
async fn count(mut session: Session) {
    let mut seen = 0_u32;
    while session.recv().await.is_some() {
        seen += 1;
        if session.send(seen.to_string()).await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_sent_while_the_line_is_cut_is_counted_once() {
    let mut peer = test::run(count).await;
    for n in 1..=3 {
        peer.cut();
        peer.send("one more").await.unwrap();
        assert_eq!(peer.recv().await, Some(n.to_string().into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_away_for_an_hour_is_not_forgotten() {
    let config = Config::new().resume_window(Duration::from_secs(2 * 3600)).unwrap();
    let network = Network::run(config, count);
    let mut peer = network.connect("/").await;
    peer.send("first").await.unwrap();
    assert_eq!(peer.recv().await, Some("1".into()));
    peer.go_offline();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(network.server().sessions().parked, 1);
    peer.go_online();
    peer.send("second").await.unwrap();
    assert_eq!(peer.recv().await, Some("2".into()));
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_client_does_not_come_back_expires() {
    let (mut session, peer) = test::session().await;
    session.send("lost").await.unwrap();
    peer.expire().await;
    assert_eq!(session.recv().await, None);
    assert_eq!(session.end().unwrap().cause, EndCause::Expired);
    assert_eq!(session.take_undelivered().len(), 1);
    assert_eq!(session.state(), SessionState::Closed);
}
