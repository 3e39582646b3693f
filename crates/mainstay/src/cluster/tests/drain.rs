//! A drain accounts exactly, and a node that relays loses nothing by its end.

use std::time::Duration;

use mainstay_proto::cluster::peer::Leave;

use super::Memory;
use super::setup::{Balancer, TestNode, echoes, event, exchange, gap, meet, until};
use crate::client::Event;
use crate::{LossCause, SessionUpgrade};

#[tokio::test]
async fn an_attached_client_of_a_draining_node_gets_the_exact_account_at_the_next_node() {
    let memory = Memory::default();
    let (first, second) = (TestNode::start(&memory, echoes).await, TestNode::start(&memory, echoes).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    for text in ["one", "two", "three"] {
        exchange(&mut client, text).await;
    }
    balancer.pick(1);
    let drain = tokio::spawn(first.drain());
    let gap = gap(&mut client).await;
    assert_eq!((gap.cause, gap.delivered, gap.unknown, gap.lost), (LossCause::Restarted, 3, 3, None));
    exchange(&mut client, "at the next node").await;
    let figures = drain.await.unwrap();
    assert_eq!((figures.released, figures.unreleased), (0, 0));
    assert_eq!(second.server.sessions().attached, 1);
}

#[tokio::test]
async fn a_handler_in_manual_mode_finishes_before_its_account_although_its_session_may_not_move() {
    let memory = Memory::default();
    let finishes = |upgrade: SessionUpgrade| {
        upgrade.manual_ack().on_session(|mut session| async move {
            let mut begun = 0;
            while let Some(message) = session.recv().await {
                begun += 1;
                session.send(message).await.unwrap();
            }
            assert!(session.is_leaving());
            session.ack_oldest(begun);
        })
    };
    let (first, second) = (TestNode::start(&memory, finishes).await, TestNode::start(&memory, echoes).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    for text in ["one", "two", "three"] {
        exchange(&mut client, text).await;
    }
    balancer.pick(1);
    let figures = first.drain().await;
    assert_eq!((figures.released, figures.not_returned), (0, 0));
    let gap = gap(&mut client).await;
    assert_eq!(
        (gap.cause, gap.delivered, gap.unknown),
        (LossCause::Restarted, 3, 3),
        "all three, none unknown"
    );
}

#[tokio::test]
async fn a_client_that_is_away_during_the_drain_gets_the_exact_account_later_once() {
    let memory = Memory::default();
    let (first, second) = (TestNode::start(&memory, echoes).await, TestNode::start(&memory, echoes).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    exchange(&mut client, "one").await;
    balancer.close();
    until("the session is parked", || first.server.sessions().parked == 1).await;
    assert_eq!(first.drain().await.accounts, 1);
    balancer.pick(1);
    balancer.open();
    let gap = gap(&mut client).await;
    assert_eq!((gap.cause, gap.delivered, gap.unknown, gap.lost), (LossCause::Restarted, 1, 1, None));
    assert_eq!((second.figures().claimed_accounts, memory.unclaimed()), (1, 0));
}

#[tokio::test]
async fn a_node_that_relays_and_drains_loses_nothing() {
    let memory = Memory::default();
    let owner = TestNode::start(&memory, echoes).await;
    let entry = TestNode::start(&memory, echoes).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    balancer.cut();
    exchange(&mut client, "relayed").await;
    assert_eq!(entry.figures().relays, 1);
    balancer.pick(0);
    let figures = entry.drain().await;
    assert_eq!((figures.relays, figures.accounts), (0, 0));
    exchange(&mut client, "at its owner").await;
    assert_eq!((owner.server.stats().attached_lost, owner.server.sessions().attached), (0, 1));
}

#[tokio::test]
async fn an_owner_that_hears_leave_has_relayed_clients_replace_their_connections() {
    let memory = Memory::default();
    let owner = TestNode::start(&memory, echoes).await;
    let entry = TestNode::start(&memory, echoes).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    balancer.cut();
    exchange(&mut client, "relayed").await;
    balancer.pick(0);
    // The attach, the loss, and the attach through the other node.
    for _ in 0..3 {
        event(&client).await;
    }
    let (from, to) = (&entry.server.shared, &owner.server.shared);
    let (from, to) = (from.node.as_ref().unwrap(), to.node.as_ref().unwrap());
    let leave = Leave { from: from.id, to: to.id, key: to.key, within: Duration::ZERO };
    from.speech.announce_leave(owner.peer_address(), leave).await;
    let event = event(&client).await;
    assert!(
        matches!(event, Some(Event::Attached { resumed: true, .. })),
        "it was never without one: {event:?}"
    );
    until("the relay has ended", || entry.figures().relays == 0).await;
    exchange(&mut client, "at its owner").await;
}

#[tokio::test]
async fn an_engine_that_is_away_until_the_end_of_a_drain_costs_no_exact_account() {
    for may_move in [true, false] {
        let memory = Memory::default();
        let serves = move |upgrade: SessionUpgrade| {
            if may_move { echoes(upgrade.movable()) } else { echoes(upgrade) }
        };
        let (first, second) =
            (TestNode::start(&memory, serves).await, TestNode::start(&memory, serves).await);
        meet(&[&first, &second]).await;
        let balancer = Balancer::over(&[&first, &second]).await;
        let mut client = balancer.client();
        for text in ["one", "two", "three"] {
            exchange(&mut client, text).await;
        }
        memory.go_away();
        until("the engine is away", || !first.server.cluster().unwrap().engine_up).await;
        balancer.pick(1);
        let drain = tokio::spawn(first.drain());
        let gap = gap(&mut client).await;
        assert_eq!(
            (gap.cause, gap.delivered, gap.unknown, gap.lost),
            (LossCause::Restarted, 3, 3, None),
            "movable: {may_move}"
        );
        let figures = drain.await.unwrap();
        assert_eq!((figures.released, figures.unreleased), (u64::from(may_move), 1));
        exchange(&mut client, "at the next node").await;
    }
}

#[tokio::test]
async fn a_drain_without_its_engine_ends_in_time_and_says_what_was_lost() {
    let memory = Memory::default();
    let node = TestNode::start(&memory, echoes).await;
    let balancer = Balancer::over(&[&node]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    memory.go_away();
    balancer.close();
    let figures = node.drain().await;
    assert_eq!((figures.accounts, figures.unreleased), (1, 1));
}
