//! Sentinel and Redis Cluster.

use std::time::Duration;

use mainstay::cluster::{Engine, Note};
use mainstay_proto::cluster::request::{Request, Response};

use crate::checks::RULES;
use crate::node::{A, B, Node, claim, heartbeat, record, release};
use crate::server::{NAME, Server, free_address, wait_until};

async fn replica_of(primary: &Server) -> Server {
    let (host, port) = (primary.address.ip(), primary.address.port());
    Server::start(&["--replicaof", &format!("{host} {port}"), "--repl-diskless-sync-delay", "0"]).await
}

fn sentinel_url(hosts: &[std::net::SocketAddr], rest: &str) -> Engine {
    let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
    Engine::parse(&format!("redis+sentinel://{}/{rest}", hosts.join(","))).unwrap()
}

#[tokio::test]
async fn a_node_follows_sentinel_to_the_promoted_replica() {
    let mut primary = Server::start(&[]).await;
    let replica = replica_of(&primary).await;
    let sentinel = Server::sentinel(primary.address, "").await;
    // The first Sentinel is away: the next is asked.
    let engine = sentinel_url(&[free_address(), sentinel.address], "main");
    engine.check(NAME).await.unwrap();
    let (mut node, before) = Node::connected(engine).await;
    node.ask(release(1, record(40, None, vec!["m".into()]))).await;
    let known = || async { sentinel.run::<String>("INFO sentinel").await.contains("slaves=1") };
    wait_until(known, || "Sentinel does not know the replica".to_owned()).await;
    let copied = || async { replica.run::<u64>("DBSIZE").await == 2 };
    wait_until(copied, || "the replica has no copy".to_owned()).await;

    primary.kill();
    node.unreachable().await;
    let after = node.reachable().await;
    assert!(after.is_some() && before != after, "{before:?} {after:?}");
    assert!(matches!(node.insist(&claim(1, B)).await, Response::Claimed { claim: 2, .. }));
    assert!(replica.run::<String>("INFO replication").await.contains("role:master"));
}

#[tokio::test]
async fn a_node_leaves_a_master_that_sentinel_no_longer_names() {
    let primary = Server::start(&[]).await;
    let replica = replica_of(&primary).await;
    let sentinel = Server::sentinel(primary.address, "").await;
    let known = || async { sentinel.run::<String>("INFO sentinel").await.contains("slaves=1") };
    wait_until(known, || "Sentinel does not know the replica".to_owned()).await;
    let (mut node, before) = Node::connected(sentinel_url(&[sentinel.address], "main")).await;
    // Another master under the same name, while the old one serves on: two primaries.
    let _: () = replica.run("REPLICAOF NO ONE").await;
    let _: () = sentinel.run("SENTINEL REMOVE main").await;
    let _: () = sentinel.run(&format!("SENTINEL MONITOR main 127.0.0.1 {} 1", replica.address.port())).await;
    let reason = node.unreachable().await;
    assert!(reason.contains("Sentinel names"), "{reason}");
    assert_ne!(node.reachable().await, before);
    node.insist(&heartbeat(A, "1")).await;
    assert_eq!(replica.run::<u64>("HLEN mainstay:test:nodes").await, 1);
}

#[tokio::test]
async fn a_sentinel_that_does_not_know_the_master_or_is_none_is_permanent() {
    let primary = Server::start(&[]).await;
    let sentinel = Server::sentinel(primary.address, "").await;
    let error = sentinel_url(&[sentinel.address], "other").check(NAME).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("knows no master other"), "{error}");
    let error = sentinel_url(&[primary.address], "main").check(NAME).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("is no Sentinel"), "{error}");
    let error = sentinel_url(&[free_address()], "main").check(NAME).await.unwrap_err();
    assert!(!error.is_permanent(), "{error}");
    let error = Engine::parse(&sentinel.url()).unwrap().check(NAME).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("is a Sentinel"), "{error}");
}

#[tokio::test]
async fn sentinel_may_ask_for_the_password_of_the_engine() {
    let primary = Server::start(&["--requirepass", "pw"]).await;
    let sentinel = Server::sentinel(primary.address, "pw").await;
    let engine = sentinel_url(&[sentinel.address], "main");
    let error = engine.check(NAME).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("asks for a password"), "{error}");
    let error = engine.clone().password("wrong").check(NAME).await.unwrap_err();
    assert!(
        error.is_permanent() && error.to_string().contains("refuses the user or the password"),
        "{error}"
    );
    assert_eq!(engine.password("pw").check(NAME).await.err(), None);
}

/// Three servers that share the slots, with the user `node`.
async fn cluster() -> Vec<Server> {
    let options = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "1000",
        "--cluster-require-full-coverage",
        "no",
    ];
    let user: Vec<_> = ["--user", "node", "on", ">pw"]
        .into_iter()
        .chain(RULES.split(' '))
        .chain(["+cluster|slots"])
        .collect();
    let options = [&options[..], &user].concat();
    let mut servers = Vec::new();
    for slots in ["0 5460", "5461 10922", "10923 16383"] {
        let server = Server::start(&options).await;
        let _: () = server.run(&format!("CLUSTER ADDSLOTSRANGE {slots}")).await;
        servers.push(server);
    }
    for (epoch, server) in (1..).zip(&servers) {
        let _: () = server.run(&format!("CLUSTER SET-CONFIG-EPOCH {epoch}")).await;
    }
    for server in &servers[1..] {
        let (host, port) = (servers[0].address.ip(), servers[0].address.port());
        let _: () = server.run(&format!("CLUSTER MEET {host} {port}")).await;
    }
    for server in &servers {
        let ready = || async {
            let info: String = server.run("CLUSTER INFO").await;
            info.contains("cluster_state:ok") && info.contains("cluster_size:3")
        };
        wait_until(ready, || "the cluster does not form".to_owned()).await;
    }
    servers
}

#[tokio::test]
async fn sessions_spread_over_the_servers_of_a_cluster() {
    let mut servers = cluster().await;
    let urls: Vec<_> = servers.iter().map(|server| server.address.to_string()).collect();
    // Any one is enough to find the others.
    let engine = Engine::parse(&format!("redis+cluster://node:pw@{}", urls[2])).unwrap();
    let facts = engine.check(NAME).await.unwrap();
    let (mut node, before) = Node::connected(engine).await;
    assert_eq!(facts.incarnation, before);
    assert!(matches!(node.ask(heartbeat(A, "1")).await, Response::Table(nodes) if nodes.len() == 1));
    // Notes need no further rights, and lie on one server.
    let (note, keep) = (Note { key: "k".into(), value: "v".into() }, Duration::from_secs(30 * 86_400));
    assert_eq!(node.ask(Request::Note { note: note.clone(), keep }).await, Response::Stored);
    assert_eq!(node.ask(Request::Notes { keep }).await, Response::Notes(vec![note]));
    let releases = (0..60).map(|number| release(number, record(200, Some(b"s"), vec!["m".into()])));
    assert!(node.ask_all(releases).await.iter().all(|response| *response == Response::Stored));
    for server in &servers {
        assert!(server.run::<u64>("DBSIZE").await > 5, "each has its part");
        let _: () = server.run("SCRIPT FLUSH").await;
    }
    let claimed = node.ask_all((0..60).map(|number| claim(number, B))).await;
    assert!(claimed.iter().all(|response| matches!(response, Response::Claimed { claim: 2, .. })));

    // A server restarts, empty: the nodes learn of another incarnation, and in the end everything is answered.
    servers[0].kill();
    servers[0].restart().await;
    while node.reachable().await == before {}
    let mut lost = 0;
    for number in 0..60 {
        match node.insist(&claim(number, B)).await {
            Response::None => lost += 1,
            response => assert!(matches!(response, Response::Claimed { claim: 2, .. }), "{response:?}"),
        }
    }
    assert!((5..55).contains(&lost), "{lost}");
}

#[tokio::test]
async fn redis_cluster_and_one_server_are_not_mistaken_for_each_other() {
    let clustered = Server::start(&["--cluster-enabled", "yes"]).await;
    let address = clustered.address;
    let error = clustered.engine().check(NAME).await.unwrap_err();
    assert!(
        error.is_permanent() && error.to_string().contains(&format!("write redis+cluster://{address}")),
        "{error}"
    );
    // No slots yet: it may get them.
    let error = Engine::parse(&format!("redis+cluster://{address}")).unwrap().check(NAME).await.unwrap_err();
    assert!(!error.is_permanent(), "{error}");
    let one = Server::start(&[]).await;
    let error =
        Engine::parse(&format!("redis+cluster://{}", one.address)).unwrap().check(NAME).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("is no Redis Cluster"), "{error}");
}
