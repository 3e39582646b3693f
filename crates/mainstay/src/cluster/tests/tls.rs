//! Nodes that encrypt what they send to each other, and nodes that differ in that.

use std::io;

use super::Memory;
use super::lines::Lines;
use super::setup::{Balancer, TestNode, client, echoes, exchange, meet, until};
use crate::cluster::config::Store;
use crate::cluster::tls::tests::Signer;
use crate::cluster::{ClusterConfig, ClusterTls};
use crate::server::Config;

async fn node(memory: &Memory, tls: Option<ClusterTls>) -> TestNode {
    let cluster = ClusterConfig::with(Store::Memory(memory.clone()));
    let cluster = match tls {
        Some(tls) => cluster.tls(tls),
        None => cluster,
    };
    TestNode::with(Config::new(), cluster, |upgrade| echoes(upgrade.movable())).await
}

#[tokio::test]
async fn clients_resume_and_move_between_nodes_that_speak_tls() {
    let (memory, signer) = (Memory::default(), Signer::new());
    let (owner, entry) = (node(&memory, Some(signer.tls())).await, node(&memory, Some(signer.tls())).await);
    meet(&[&owner, &entry]).await;
    assert!(owner.server.cluster().unwrap().tls);
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    balancer.cut();
    exchange(&mut client, "relayed").await;
    // More than one record of TLS, and more than the sockets hold.
    let long = "x".repeat(1 << 20);
    for _ in 0..4 {
        exchange(&mut client, &long).await;
    }
    assert_eq!((owner.figures().accepted, entry.figures().relays), (1, 1));
    assert_eq!(owner.drain().await.released, 1);
    exchange(&mut client, "moved").await;
    assert_eq!((entry.figures().claimed, entry.figures().dropped), (1, 0));
}

#[tokio::test]
async fn a_relay_over_tls_ends_with_its_client() {
    let (memory, signer) = (Memory::default(), Signer::new());
    let (owner, entry) = (node(&memory, Some(signer.tls())).await, node(&memory, Some(signer.tls())).await);
    meet(&[&owner, &entry]).await;
    let balancer = Balancer::over(&[&owner, &entry]).await;
    let mut client = balancer.client();
    exchange(&mut client, "first").await;
    balancer.pick(1);
    balancer.cut();
    exchange(&mut client, "relayed").await;
    balancer.close();
    until("the relay has ended", || entry.figures().relays == 0).await;
    until("the owner has parked the session", || owner.server.sessions().parked == 1).await;
}

#[tokio::test]
async fn nodes_that_differ_in_tls_refuse_each_other_and_each_says_once_what_to_do() {
    // With one subscriber alone, a line that another test's thread reaches first would be off for all threads.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    let (signer, other) = (Signer::new(), Signer::new());
    let no_tls = "it is a node without TLS; start it with --cluster-tls, as this one";
    let speaks_tls = "it speaks TLS; start this node with --cluster-tls, too";
    let tls = "it speaks TLS; if it is a node, start this one with --cluster-tls, too";
    let alert = "another node cannot be asked for its sessions";
    let issuer = "the certificate is not signed by the authority; all nodes need one";
    for (of_owner, of_entry, at_owner, at_entry) in [
        (Some(signer.tls()), None, no_tls, speaks_tls),
        (None, Some(signer.tls()), tls, alert),
        (Some(signer.tls()), Some(other.tls()), "drops a connection", issuer),
    ] {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).finish();
        let _here = tracing::subscriber::set_default(subscriber);
        let memory = Memory::default();
        let (owner, entry) = (node(&memory, of_owner).await, node(&memory, of_entry).await);
        meet(&[&owner, &entry]).await;
        let balancer = Balancer::over(&[&owner, &entry]).await;
        let mut first = balancer.client();
        exchange(&mut first, "first").await;
        balancer.pick(1);
        balancer.cut();
        // Each end counts and says so in its own time.
        until("both count two", || owner.figures().dropped >= 2 && entry.figures().unanswered >= 2).await;
        assert_eq!(entry.figures().relays, 0);
        for words in [at_owner, at_entry] {
            assert_eq!(lines.count(&["WARN", words]), 1, "{words}");
        }
        exchange(&mut client(entry.address), "new clients are served").await;
        balancer.pick(0);
        exchange(&mut first, "at its owner").await;
        assert_eq!(owner.server.stats().attached_lost, 0);
    }
}

#[tokio::test]
async fn a_certificate_alone_opens_nothing() {
    use mainstay_proto::session::NodeId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (memory, signer) = (Memory::default(), Signer::new());
    let node = node(&memory, Some(signer.tls())).await;
    let id = node.server.shared.node.as_ref().unwrap().id;
    for question in [&b"GET / HTTP/1.1\r\n\r\n"[..], &super::hostile::head(id).encode().unwrap()] {
        let stream = tokio::net::TcpStream::connect(node.peer_address()).await.unwrap();
        let mut stream = signer.tls().connect(stream).await.unwrap();
        stream.write_all(question).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"");
    }
    assert_eq!(node.figures().dropped, 2);
    let elsewhere = super::hostile::head(NodeId([3; 8])).encode().unwrap();
    let stream = tokio::net::TcpStream::connect(node.peer_address()).await.unwrap();
    let mut stream = signer.tls().connect(stream).await.unwrap();
    stream.write_all(&elsewhere).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"MSTA"));
}
