//! What a running node observes while its engine is restarted, emptied, stopped, full, demoted, or changed.

use std::time::Duration;

use mainstay::cluster::Engine;
use mainstay_proto::cluster::request::{EngineEvent, Response};

use crate::node::{A, B, Node, claim, heartbeat, record, release};
use crate::server::{Server, free_address, wait_until};

async fn node() -> (Server, Node, Option<String>) {
    let server = Server::start(&[]).await;
    let (node, incarnation) = Node::connected(server.engine()).await;
    (server, node, incarnation)
}

#[tokio::test]
async fn an_engine_that_restarts_is_lost_once_and_comes_back_as_another_incarnation() {
    let (mut server, mut node, before) = node().await;
    server.kill();
    let reason = node.unreachable().await;
    assert!(reason.contains("closed the connection"), "{reason}");
    // No request waits for the engine, and none is executed later.
    assert_eq!(node.ask(heartbeat(A, "1")).await, Response::Unknown);
    server.restart().await;
    let after = node.reachable().await;
    assert!(before.is_some() && after.is_some() && before != after, "{before:?} {after:?}");
    assert_eq!(node.ask(heartbeat(A, "2")).await, Response::Table(vec![(A, "2".into())]));
}

#[tokio::test]
async fn an_engine_that_is_away_at_the_start_is_reported_once_and_joined_later() {
    let address = free_address();
    let mut node = Node::start(Engine::parse(&format!("redis://{address}")).unwrap());
    let reason = node.unreachable().await;
    assert!(reason.contains("is the engine running there?"), "{reason}");
    assert_eq!(node.ask(heartbeat(A, "1")).await, Response::Unknown);
    // Several attempts fail for the same reason, which is no event.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _server = Server::start_at(address, &[]).await;
    let event = node.event().await;
    assert!(matches!(event, EngineEvent::Reachable { incarnation: Some(_) }), "{event:?}");
}

#[tokio::test]
async fn an_emptied_engine_is_the_same_incarnation_without_content() {
    let (server, mut node, _) = node().await;
    node.ask(heartbeat(B, "b")).await;
    node.ask(release(1, record(40, None, vec![]))).await;
    let _: () = server.run("FLUSHALL").await;
    assert_eq!(node.ask(claim(1, B)).await, Response::None);
    assert_eq!(node.ask(heartbeat(A, "1")).await, Response::Table(vec![(A, "1".into())]));
}

#[tokio::test]
async fn scripts_that_the_engine_has_lost_are_loaded_again() {
    let (server, mut node, _) = node().await;
    let _: () = server.run("SCRIPT FLUSH").await;
    let releases = (0..100).map(|number| release(number, record(40, None, vec!["m".into()])));
    assert!(node.ask_all(releases).await.iter().all(|response| *response == Response::Stored));
    let _: () = server.run("SCRIPT FLUSH").await;
    assert!(matches!(node.ask(claim(1, B)).await, Response::Claimed { .. }));
}

#[tokio::test]
async fn a_connection_that_the_engine_closes_is_replaced() {
    let (server, mut node, before) = node().await;
    let _: i64 = server.run("CLIENT KILL TYPE normal").await;
    let reason = node.unreachable().await;
    assert!(reason.contains("closed the connection"), "{reason}");
    assert_eq!(node.reachable().await, before);
    assert!(matches!(node.insist(&heartbeat(A, "1")).await, Response::Table(_)));
}

#[tokio::test]
async fn an_engine_that_stops_is_unreachable_and_no_request_hangs() {
    let (server, mut node, before) = node().await;
    server.signal("STOP");
    let requests = (0..1_000).map(|number| release(number, record(40, None, vec![vec![0; 10_000].into()])));
    let responses = node.ask_all(requests).await;
    assert!(responses.iter().all(|response| *response == Response::Unknown));
    let reason = node.unreachable().await;
    assert!(reason.contains("no answer within 1s"), "{reason}");
    server.signal("CONT");
    assert_eq!(node.reachable().await, before);
    // What was sent may have been executed meanwhile: the release is repeated as it was.
    let again = node.insist(&release(1, record(40, None, vec![vec![0; 10_000].into()]))).await;
    assert!(matches!(again, Response::Stored | Response::Fenced(None)), "{again:?}");
    assert!(matches!(node.insist(&claim(1, B)).await, Response::Claimed { claim: 2, .. }));
}

#[tokio::test]
async fn an_engine_that_answers_no_writes_for_a_while_leaves_them_unknown() {
    let (server, mut node, before) = node().await;
    let _: () = server.run("CLIENT PAUSE 2500 WRITE").await;
    assert_eq!(node.ask(heartbeat(A, "1")).await, Response::Unknown);
    // INFO waits behind the write.
    node.unreachable().await;
    assert_eq!(node.reachable().await, before);
    assert!(matches!(node.insist(&heartbeat(A, "2")).await, Response::Table(_)));
}

#[tokio::test]
async fn an_engine_whose_memory_is_full_refuses_and_says_why() {
    let (server, mut node, _) = node().await;
    let _: () = server.run("CONFIG SET maxmemory 1").await;
    for request in [heartbeat(A, "1"), release(1, record(40, None, vec![]))] {
        let response = node.ask(request).await;
        assert!(matches!(&response, Response::Refused(why) if why.contains("OOM")), "{response:?}");
    }
    let _: () = server.run("CONFIG SET maxmemory 0").await;
    assert!(matches!(node.ask(heartbeat(A, "1")).await, Response::Table(_)));
    assert!(node.events().is_empty(), "{:?}", node.events());
}

#[tokio::test]
async fn an_engine_that_becomes_a_replica_is_unreachable_until_it_is_promoted() {
    let primary = Server::start(&[]).await;
    let (server, mut node, before) = node().await;
    let (host, port) = (primary.address.ip(), primary.address.port());
    let _: () = server.run(&format!("REPLICAOF {host} {port}")).await;
    let reason = node.unreachable().await;
    assert!(reason.contains("a replica"), "{reason}");
    assert_eq!(node.ask(heartbeat(A, "1")).await, Response::Unknown);
    let _: () = server.run("REPLICAOF NO ONE").await;
    let after = node.reachable().await;
    assert_ne!(before, after);
    assert!(matches!(node.insist(&heartbeat(A, "1")).await, Response::Table(_)));
}

#[tokio::test]
async fn a_fail_over_on_the_same_connection_is_another_incarnation() {
    let (server, mut node, before) = node().await;
    // It is a replica for less time than a watch takes to see it.
    let _: () = server.run("REPLICAOF 127.0.0.1 1").await;
    let _: () = server.run("REPLICAOF NO ONE").await;
    let after = node.reachable().await;
    assert!(after.is_some() && before != after, "{before:?} {after:?}");
}

#[tokio::test]
async fn a_script_of_another_program_that_never_ends_makes_the_engine_unreachable() {
    let (server, mut node, before) = node().await;
    let _: () = server.run("CONFIG SET lua-time-limit 50").await;
    let mut connection = server.connection().await;
    connection.set_response_timeout(Duration::from_millis(10));
    let _ = redis::cmd("EVAL").arg("while true do end").arg(0).exec_async(&mut connection).await;
    let reason = node.unreachable().await;
    assert!(reason.contains("SCRIPT KILL"), "{reason}");
    let _: () = server.run("SCRIPT KILL").await;
    assert_eq!(node.reachable().await, before);
}

#[tokio::test]
async fn a_password_that_changes_is_the_reason_until_it_is_right_again() {
    let (server, mut node, before) = node().await;
    let _: () = server.run("CONFIG SET requirepass secret").await;
    let mut admin = server.connection_as(None, "secret").await;
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec_async(&mut admin).await.unwrap();
    while !node.unreachable().await.contains("asks for a password") {}
    redis::cmd("CONFIG").arg(&["SET", "requirepass", ""]).exec_async(&mut admin).await.unwrap();
    assert_eq!(node.reachable().await, before);
}

#[tokio::test]
async fn an_engine_that_forbids_info_serves_without_an_incarnation() {
    let server = Server::start(&["--user", "default", "on", "nopass", "~*", "+@all", "-info"]).await;
    let (mut node, incarnation) = Node::connected(server.engine()).await;
    assert_eq!(incarnation, None);
    assert!(matches!(node.ask(heartbeat(A, "1")).await, Response::Table(_)));
    // Two watches later it is still reachable.
    tokio::time::sleep(Duration::from_millis(2_300)).await;
    assert!(matches!(node.ask(heartbeat(A, "2")).await, Response::Table(_)));
    assert!(node.events().is_empty(), "{:?}", node.events());
}

#[tokio::test]
async fn a_driver_that_is_dropped_closes_its_connection() {
    let (server, node, _) = node().await;
    let ours = || async { server.run::<String>("CLIENT LIST").await.matches("cmd=").count() - 1 };
    assert_eq!(ours().await, 1);
    drop(node);
    wait_until(|| async { ours().await == 0 }, || "a connection is left".to_owned()).await;
}
