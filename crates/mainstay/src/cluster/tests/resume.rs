//! Any node resumes the session of a living node.

use std::time::Duration;

use tokio::net::TcpListener;

use super::Memory;
use super::setup::{Balancer, TestNode, echoes, exchange, gap, meet, next, until};
use crate::Client;
use crate::SessionUpgrade;
use crate::client::Event;
use crate::cluster::ClusterConfig;
use crate::cluster::config::Store;
use crate::server::{Config, SessionState};

async fn three(memory: &Memory) -> [TestNode; 3] {
    let nodes = [
        TestNode::start(memory, echoes).await,
        TestNode::start(memory, echoes).await,
        TestNode::start(memory, echoes).await,
    ];
    meet(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    nodes
}

/// Waits for the next attach; panics if the client lost anything before it.
async fn attached(client: &Client) -> bool {
    loop {
        match client.event().await {
            Some(Event::Attached { resumed, .. }) => return resumed,
            Some(Event::Gap(gap)) => panic!("a gap: {gap:?}"),
            Some(_) => {}
            None => panic!("the client ended"),
        }
    }
}

#[tokio::test]
async fn a_session_of_a_living_node_continues_through_any_other_and_costs_the_engine_nothing() {
    let memory = Memory::default();
    let nodes = three(&memory).await;
    let balancer = Balancer::over(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    let mut client = balancer.client();
    exchange(&mut client, "at its owner").await;
    assert!(!attached(&client).await, "it is a new session");
    for node in [1, 2, 1, 0, 2] {
        balancer.pick(node);
        balancer.cut();
        assert!(attached(&client).await, "the session continues");
        exchange(&mut client, "through another").await;
    }
    assert_eq!(nodes[0].server.sessions().attached, 1);
    assert_eq!([1, 2].map(|n: usize| nodes[n].server.sessions().attached), [0, 0]);
    assert_eq!([0, 1, 2].map(|n: usize| nodes[n].figures().relayed), [0, 2, 2]);
    assert_eq!(nodes[0].figures().accepted, 4);
    assert_eq!(memory.requests(), [""; 0], "the engine knows nodes, not sessions");
    drop(client);
    until("no relay is left", || nodes.iter().all(|node| node.figures().relays == 0)).await;
}

#[tokio::test]
async fn ten_thousand_messages_arrive_once_and_in_order_over_nodes_that_change() {
    const COUNT: u64 = 10_000;
    let memory = Memory::default();
    let nodes = three(&memory).await;
    let balancer = Balancer::over(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    let mut client = balancer.client();
    let sender = client.sender();
    tokio::spawn(async move {
        for number in 0..COUNT {
            sender.send(number.to_string()).await.unwrap();
        }
    });
    for expected in 0..COUNT {
        assert_eq!(next(&mut client).await.as_text(), Some(expected.to_string().as_str()));
        if expected % 700 == 350 {
            balancer.pick_next();
            balancer.cut();
        }
    }
    let relayed: u64 = nodes.iter().map(|node| node.figures().relayed).sum();
    assert!(relayed >= 5, "{relayed}");
}

#[tokio::test]
async fn a_compressed_connection_is_relayed_byte_for_byte() {
    let memory = Memory::default();
    let config = || ClusterConfig::with(Store::Memory(memory.clone()));
    let owner = TestNode::with(Config::new().deflate(true), config(), echoes).await;
    let entry = TestNode::with(Config::new().deflate(true), config(), echoes).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let url = format!("ws://{}/", balancer.address);
    let mut client = Client::builder(&url).unwrap().deflate(true).connect();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    balancer.cut();
    for number in 0..50 {
        exchange(&mut client, &format!("{number} {}", "the same words again ".repeat(100))).await;
    }
    assert_eq!(entry.figures().relayed, 1);
}

#[tokio::test]
async fn a_client_follows_resume_at_straight_to_the_owner() {
    let memory = Memory::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let url = format!("ws://{own}/");
    let config = ClusterConfig::with(Store::Memory(memory.clone())).url(url).unwrap();
    let owner = TestNode::on(listener, Config::new(), config, echoes).await;
    let entry = TestNode::start(&memory, echoes).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    balancer.cut();
    exchange(&mut client, "second").await;
    assert_eq!((entry.figures().relayed, owner.server.stats().attached_resumed), (0, 1));
}

#[tokio::test]
async fn an_engine_that_is_away_ends_no_session_and_delays_no_resume() {
    let memory = Memory::default();
    let nodes = three(&memory).await;
    let balancer = Balancer::over(&[&nodes[0], &nodes[1]]).await;
    let mut client = balancer.client();
    exchange(&mut client, "before").await;
    memory.go_away();
    until("the node notices", || !nodes[1].server.cluster().unwrap().engine_up).await;
    for node in [1, 0, 1] {
        balancer.pick(node);
        balancer.cut();
        exchange(&mut client, "meanwhile").await;
    }
    memory.come_back();
    balancer.cut();
    exchange(&mut client, "after").await;
    assert_eq!(nodes[0].server.stats().attached_lost, 0);
    assert!(nodes[1].figures().relayed >= 2);
}

#[tokio::test]
async fn a_node_that_starts_without_its_engine_serves_and_joins_when_it_answers() {
    let memory = Memory::default();
    memory.go_away();
    let owner = TestNode::start(&memory, echoes).await;
    let entry = TestNode::start(&memory, echoes).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "alone").await;
    // The other node knows nothing of the first: its client waits in band.
    balancer.pick(1);
    balancer.cut();
    client.send("waits").await.unwrap();
    until("the client is asked to come back", || entry.figures().waited > 0).await;
    memory.come_back();
    meet(&[&owner, &entry]).await;
    assert_eq!(next(&mut client).await.as_text(), Some("waits"));
    assert_eq!(owner.figures().accepted, 1);
}

/// A node in a runtime of its own, which can be killed.
fn doomed(memory: &Memory) -> (tokio::runtime::Runtime, TestNode) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let memory = memory.clone();
    let (sender, node) = std::sync::mpsc::channel();
    runtime.spawn(async move { sender.send(TestNode::start(&memory, echoes).await).unwrap() });
    (runtime, node.recv().unwrap())
}

#[tokio::test]
async fn a_killed_owner_costs_one_gap_and_its_client_goes_on_elsewhere() {
    let memory = Memory::default();
    let (runtime, owner) = doomed(&memory);
    let entry = TestNode::start(&memory, echoes).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    runtime.shutdown_background();
    let gap = gap(&mut client).await;
    assert_eq!((gap.cause, gap.last), (crate::LossCause::Unknown, 1));
    exchange(&mut client, "second").await;
    assert_eq!(memory.requests(), ["claim"]);
}

#[tokio::test]
async fn the_client_of_an_owner_that_hangs_waits_in_band_and_loses_nothing() {
    let memory = Memory::default();
    let (runtime, owner) = doomed(&memory);
    let entry = TestNode::start(&memory, echoes).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    let address = owner.peer_address();
    balancer.close();
    balancer.pick(1);
    runtime.shutdown_background();
    // Something accepts in its place and says nothing, as a paused process does.
    let _silent = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    balancer.open();
    until("the client is asked to come back", || entry.figures().waited > 0).await;
    assert_eq!(entry.server.stats().attached_lost, 0);
    assert!(entry.figures().unanswered > 0);
    assert_eq!(memory.requests()[0], "claim");
    drop(client);
}

#[tokio::test]
async fn a_token_of_another_principal_opens_nothing_through_another_node() {
    let memory = Memory::default();
    let owner = TestNode::start(&memory, |upgrade| echoes(upgrade.principal("ann"))).await;
    let entry = TestNode::start(&memory, |upgrade| echoes(upgrade.principal("bob"))).await;
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "ann's").await;
    balancer.pick(1);
    balancer.cut();
    gap(&mut client).await;
    exchange(&mut client, "bob's").await;
    assert_eq!((entry.server.sessions().attached, owner.figures().answered), (1, 1));
    assert_eq!(owner.server.sessions().parked, 1);
}

#[tokio::test]
async fn the_owner_refuses_through_another_node_with_its_own_code() {
    let memory = Memory::default();
    let code = crate::CloseCode::new(4000).unwrap();
    let aborts = move |upgrade: SessionUpgrade| {
        upgrade.on_session(async move |mut session| {
            let message = session.recv().await.unwrap();
            session.send(message).await.unwrap();
            while session.state() != SessionState::Parked {
                session.changed().await;
            }
            session.abort(code, "while its client was away");
        })
    };
    let (owner, entry) = (TestNode::start(&memory, aborts).await, TestNode::start(&memory, echoes).await);
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.close();
    balancer.pick(1);
    until("the session is over", || owner.server.stats().sessions == 0).await;
    balancer.open();
    assert_eq!(client.recv().await, None);
    let ended = client.end().and_then(|end| end.code);
    assert_eq!(ended.and_then(|code| code.close_code()), Some(code));
    assert_eq!(entry.server.sessions().attached, 0);
}
