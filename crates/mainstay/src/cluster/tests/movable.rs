//! Sessions that move: their handlers go on at another node, or in the next process, with what the ones before saved.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use axum::response::Response;
use tokio::net::TcpListener;

use super::Memory;
use super::setup::{Balancer, TestNode, echoes, exchange, gap, meet, next, until};
use crate::cluster::config::Store;
use crate::cluster::{ClusterConfig, JoinError, StateDirError};
use crate::server::Config;
use crate::{LossCause, Server, SessionUpgrade};

/// A handler that answers each message with the number of messages so far, wherever they came.
fn counts(upgrade: SessionUpgrade) -> Response {
    upgrade.movable().on_session(|mut session| async move {
        let saved = session.restored().map(|saved| u64::from_be_bytes(saved[..].try_into().unwrap()));
        let mut count = saved.unwrap_or(0);
        while session.recv().await.is_some() {
            count += 1;
            session.save(count.to_be_bytes().to_vec());
            session.send(count.to_string()).await.unwrap();
        }
    })
}

#[tokio::test]
async fn an_attached_session_moves_with_what_its_handler_saved() {
    let memory = Memory::default();
    let (first, second) = (TestNode::start(&memory, counts).await, TestNode::start(&memory, counts).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    for count in 1..=3 {
        client.send("x").await.unwrap();
        assert_eq!(next(&mut client).await.as_text(), Some(count.to_string().as_str()));
    }
    balancer.pick(1);
    let figures = first.drain().await;
    for count in 4..=6 {
        client.send("x").await.unwrap();
        assert_eq!(next(&mut client).await.as_text(), Some(count.to_string().as_str()));
    }
    assert_eq!((figures.released, figures.accounts, figures.unreleased), (1, 0, 0));
    assert_eq!((second.figures().claimed, second.figures().relays), (1, 0));
    assert_eq!(second.server.stats().attached_lost, 0);
    assert_eq!(memory.requests(), ["release", "claim"]);
    // The session lives on like any other: it may move once more, back to no node at all here.
    let figures = second.drain().await;
    assert_eq!((figures.released, figures.unreleased), (1, 0));
    assert_eq!(memory.unclaimed(), 1);
}

#[tokio::test]
async fn a_session_whose_client_is_away_is_released_at_once_and_found_later() {
    let memory = Memory::default();
    let (first, second) = (TestNode::start(&memory, counts).await, TestNode::start(&memory, counts).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    client.send("x").await.unwrap();
    assert_eq!(next(&mut client).await.as_text(), Some("1"));
    balancer.close();
    until("the session is parked", || first.server.sessions().parked == 1).await;
    assert_eq!(first.drain().await.released, 1);
    balancer.pick(1);
    balancer.open();
    client.send("x").await.unwrap();
    assert_eq!(next(&mut client).await.as_text(), Some("2"));
}

#[tokio::test]
async fn nodes_deployed_in_turn_under_traffic_lose_nothing_double_nothing_and_report_no_gap() {
    const CLIENTS: usize = 20;
    let memory = Memory::default();
    let mut nodes = [TestNode::start(&memory, counts).await, TestNode::start(&memory, counts).await];
    meet(&[&nodes[0], &nodes[1]]).await;
    let balancer = Balancer::over(&[&nodes[0], &nodes[1]]).await;
    let (done, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (mut client, done, over) = (balancer.client(), Arc::clone(&done), Arc::clone(&over));
            tokio::spawn(async move {
                let mut count = 0_u64;
                while !over.load(SeqCst) {
                    count += 1;
                    client.send("x").await.unwrap();
                    assert_eq!(next(&mut client).await.as_text(), Some(count.to_string().as_str()));
                    done.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    for turn in 1..=3 {
        let at = balancer.picked();
        until("all are back", || nodes[at % 2].server.sessions().attached == CLIENTS as u64).await;
        let before = done.load(SeqCst);
        until("traffic", || done.load(SeqCst) >= before + CLIENTS * 20).await;
        let other = 1 - at % 2;
        balancer.pick(other);
        let fresh = TestNode::start(&memory, counts).await;
        meet(&[&nodes[other], &fresh]).await;
        let old = std::mem::replace(&mut nodes[at % 2], fresh);
        balancer.replace(at % 2, &nodes[at % 2]);
        let figures = old.drain().await;
        assert_eq!(
            (figures.released, figures.accounts, figures.unreleased),
            (CLIENTS as u64, 0, 0),
            "{turn}"
        );
    }
    over.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let lost: u64 = nodes.iter().map(|node| node.server.stats().attached_lost).sum();
    assert_eq!(lost, 0);
}

#[tokio::test]
async fn a_handler_that_waits_for_room_goes_on_when_its_session_leaves_and_nothing_is_lost() {
    let memory = Memory::default();
    // Five numbers for each message, and room for three: the client receives nothing meanwhile.
    let talks = |upgrade: SessionUpgrade| {
        upgrade.movable().on_session(|mut session| async move {
            let saved = session.restored().map(|saved| u64::from_be_bytes(saved[..].try_into().unwrap()));
            let mut next = saved.unwrap_or(0);
            while session.recv().await.is_some() {
                for _ in 0..5 {
                    session.send(next.to_string()).await.unwrap();
                    next += 1;
                    session.save(next.to_be_bytes().to_vec());
                }
            }
        })
    };
    let config = || Config::new().keep(crate::Window { messages: 3, bytes: 1 << 16 }).unwrap();
    let cluster = || ClusterConfig::with(Store::Memory(memory.clone()));
    let first = TestNode::with(config(), cluster(), talks).await;
    let second = TestNode::with(config(), cluster(), talks).await;
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    client.send("go").await.unwrap();
    until("the window is full", || first.server.kept_bytes() == 3).await;
    balancer.pick(1);
    let figures = first.drain().await;
    assert_eq!((figures.released, figures.not_returned), (1, 0));
    client.send("go").await.unwrap();
    for expected in 0..10_u64 {
        assert_eq!(next(&mut client).await.as_text(), Some(expected.to_string().as_str()));
    }
}

#[tokio::test]
async fn the_client_of_a_session_whose_handler_takes_long_is_asked_to_come_back_and_no_node_claims_before() {
    let memory = Memory::default();
    let returns = Arc::new(tokio::sync::Notify::new());
    let slow = {
        let returns = Arc::clone(&returns);
        move |upgrade: SessionUpgrade| {
            let returns = Arc::clone(&returns);
            upgrade.movable().on_session(|mut session| async move {
                while let Some(message) = session.recv().await {
                    session.send(message).await.unwrap();
                }
                returns.notified().await;
            })
        }
    };
    let (first, second) = (TestNode::start(&memory, slow).await, TestNode::start(&memory, echoes).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    let mut first = first;
    first.begin_to_drain();
    until("the owner answers, although the handler has not returned", || first.figures().answered > 0).await;
    assert!(memory.requests().is_empty(), "{:?}", memory.requests());
    returns.notify_one();
    exchange(&mut client, "second").await;
    assert_eq!(memory.requests(), ["release", "claim"]);
}

#[tokio::test]
async fn a_handler_that_does_not_return_costs_its_session_and_the_account_is_exact() {
    let memory = Memory::default();
    let stubborn = |upgrade: SessionUpgrade| {
        upgrade.movable().on_session(|mut session| async move {
            let message = session.recv().await.unwrap();
            session.send(message).await.unwrap();
            pending::<()>().await;
        })
    };
    let (first, second) = (TestNode::start(&memory, stubborn).await, TestNode::start(&memory, echoes).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    let figures = first.drain().await;
    assert_eq!((figures.released, figures.accounts, figures.unreleased), (0, 1, 0));
    let gap = gap(&mut client).await;
    assert_eq!((gap.cause, gap.delivered, gap.unknown), (LossCause::Restarted, 1, 1));
}

#[tokio::test]
async fn a_handler_that_closes_its_session_while_it_leaves_ends_it() {
    let memory = Memory::default();
    let closes = |upgrade: SessionUpgrade| {
        upgrade.movable().on_session(|mut session| async move {
            while let Some(message) = session.recv().await {
                session.send(message).await.unwrap();
            }
            assert!(session.is_leaving());
            session.send("bye").await.unwrap();
            session.close(crate::CloseCode::NORMAL, "done");
        })
    };
    let (first, second) = (TestNode::start(&memory, closes).await, TestNode::start(&memory, echoes).await);
    meet(&[&first, &second]).await;
    let balancer = Balancer::over(&[&first, &second]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    assert_eq!(first.drain().await.released, 0);
    // What became of the session is no secret: it ends for the client, or begins anew with its account.
    drop(client);
}

// ---- without an engine -----------------------------------------------------------------------------------

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mainstay-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    folder
}

#[tokio::test]
async fn without_an_engine_the_next_process_continues_the_sessions_from_a_file() {
    let folder = folder("restart");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let first = TestNode::with(Config::new(), ClusterConfig::state_dir(&folder), counts).await;
    let balancer = Balancer::to(vec![first.address, address]).await;
    let mut movable = balancer.client();
    movable.send("x").await.unwrap();
    assert_eq!(next(&mut movable).await.as_text(), Some("1"));
    balancer.pick(1);
    let figures = first.drain().await;
    assert_eq!((figures.released, figures.unreleased), (1, 0));
    let second = TestNode::on(listener, Config::new(), ClusterConfig::state_dir(&folder), counts).await;
    movable.send("x").await.unwrap();
    assert_eq!(next(&mut movable).await.as_text(), Some("2"));
    assert_eq!((second.figures().claimed, second.server.stats().attached_lost), (1, 0));
    assert!(!folder.join("sessions.state").exists(), "it was read once");
    drop(std::fs::remove_dir_all(&folder));
}

#[tokio::test]
async fn without_an_engine_the_account_of_a_session_that_may_not_move_goes_through_the_file() {
    let folder = folder("accounts");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let first = TestNode::with(Config::new(), ClusterConfig::state_dir(&folder), echoes).await;
    let balancer = Balancer::to(vec![first.address, address]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    assert_eq!(first.drain().await.accounts, 1);
    let second = TestNode::on(listener, Config::new(), ClusterConfig::state_dir(&folder), echoes).await;
    let gap = gap(&mut client).await;
    assert_eq!((gap.cause, gap.delivered, gap.unknown, gap.lost), (LossCause::Restarted, 1, 1, None));
    assert_eq!(second.figures().claimed_accounts, 1);
    drop(std::fs::remove_dir_all(&folder));
}

#[tokio::test]
async fn a_process_that_starts_while_the_one_before_drains_has_clients_wait_for_the_file() {
    let folder = folder("overlap");
    let mut first = TestNode::with(Config::new(), ClusterConfig::state_dir(&folder), counts).await;
    // A plain client that reads nothing more keeps the drain from ending at once.
    let _plain = crate::Link::builder(&format!("ws://{}/", first.address)).unwrap().connect();
    let balancer = Balancer::over(&[&first]).await;
    let mut client = balancer.client();
    client.send("x").await.unwrap();
    assert_eq!(next(&mut client).await.as_text(), Some("1"));
    until("the plain client is there", || first.server.sessions().attached == 2).await;
    balancer.close();
    first.begin_to_drain();
    until("the session is released", || first.figures().released == 1).await;
    let second = TestNode::with(Config::new(), ClusterConfig::state_dir(&folder), counts).await;
    balancer.replace(0, &second);
    balancer.open();
    client.send("x").await.unwrap();
    assert_eq!(next(&mut client).await.as_text(), Some("2"));
    assert_eq!((second.figures().claimed, second.server.stats().attached_lost), (1, 0));
    drop(std::fs::remove_dir_all(&folder));
}

#[tokio::test]
async fn a_folder_that_another_process_uses_is_refused_with_what_to_do() {
    let folder = folder("in-use");
    let server = || Server::new(Config::new().cluster(ClusterConfig::state_dir(&folder)));
    let first = server();
    first.join().await.unwrap();
    let error = server().join().await.unwrap_err();
    assert!(matches!(error, JoinError::StateDir(StateDirError::InUse { .. })), "{error}");
    first.drain(Duration::from_secs(1)).await;
    server().join().await.unwrap();
    drop(std::fs::remove_dir_all(&folder));
}
