//! Requests of the machines, executed by a real engine.

use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::cluster::Note;
use mainstay_proto::cluster::request::{Request, Response};
use mainstay_proto::session::NodeId;

use crate::node::{A, B, Node, claim, heartbeat, record, release};
use crate::server::{Server, wait_until};

async fn node() -> (Server, Node) {
    let server = Server::start(&[]).await;
    let (node, incarnation) = Node::connected(server.engine()).await;
    assert!(incarnation.is_some());
    (server, node)
}

#[tokio::test]
async fn heartbeats_build_the_table_of_nodes() {
    let (server, mut node) = node().await;
    let table = |nodes: &[(NodeId, &'static str)]| {
        nodes.iter().map(|(node, value)| (*node, Bytes::from(*value))).collect::<Vec<_>>()
    };
    let sorted = |response| match response {
        Response::Table(mut nodes) => {
            nodes.sort();
            nodes
        }
        response => panic!("{response:?}"),
    };
    assert_eq!(sorted(node.ask(heartbeat(A, "1")).await), table(&[(A, "1")]));
    assert_eq!(sorted(node.ask(heartbeat(B, "b")).await), table(&[(A, "1"), (B, "b")]));
    assert_eq!(sorted(node.ask(heartbeat(A, "2")).await), table(&[(A, "2"), (B, "b")]));
    let _: i64 = server.run("HSET mainstay:test:nodes stranger x +00000000000000a x").await;
    assert_eq!(
        sorted(node.ask(heartbeat(A, "2")).await),
        table(&[(A, "2"), (B, "b")]),
        "what no node wrote is left out"
    );
    assert_eq!(node.ask(Request::Forget { node: B }).await, Response::Stored);
    assert_eq!(node.ask(Request::Forget { node: B }).await, Response::Stored);
    assert_eq!(sorted(node.ask(heartbeat(A, "3")).await), table(&[(A, "3")]));
}

#[tokio::test]
async fn notes_are_read_with_their_last_values_and_expire_with_their_day() {
    let (server, mut node) = node().await;
    let keep = Duration::from_secs(3 * 86_400);
    let note = |key: &'static [u8], value: &'static str| Note { key: key.into(), value: value.into() };
    assert_eq!(node.ask(Request::Notes { keep }).await, Response::Notes(vec![]));
    for note in [note(b"a", "1"), note(b"\xff\0", ""), note(b"a", "2")] {
        assert_eq!(node.ask(Request::Note { note, keep }).await, Response::Stored);
    }
    let sorted = |response| match response {
        Response::Notes(mut notes) => {
            notes.sort_by(|one, other| one.key.cmp(&other.key));
            notes
        }
        response => panic!("{response:?}"),
    };
    let all = [note(b"a", "2"), note(b"\xff\0", "")];
    assert_eq!(sorted(node.ask(Request::Notes { keep }).await), all);
    let keys: Vec<String> = server.run("KEYS mainstay:test:{notes}:*").await;
    let lives: i64 = server.run(&format!("PTTL {}", keys[0])).await;
    let days = lives as f64 / 86_400_000.0;
    assert!(days > 4.9 && days <= 5.0, "at least three days, whenever in the day it was written: {days}");
}

#[tokio::test]
async fn what_is_released_is_claimed_as_it_was() {
    let (_server, mut node) = node().await;
    let all: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let numbered =
        |count: u32| (0..count).map(|n| Bytes::copy_from_slice(&n.to_be_bytes())).collect::<Vec<_>>();
    let records = [
        record(32, None, vec![]),
        record(33, Some(b""), vec![Bytes::new()]),
        record(96, Some(&all), vec![all.clone(), Bytes::new(), all.clone()]),
        record(1_000, Some(b"=saved"), numbered(100)),
        // More than Lua's stack holds, in both.
        record(600_000, None, numbered(20_000)),
        record(97, Some(&vec![5; 3 << 20]), vec![vec![6; 2 << 20].into()]),
    ];
    for (number, record) in (1..).zip(records) {
        assert_eq!(node.ask(release(number, record.clone())).await, Response::Stored);
        let claimed = Response::Claimed { claim: 2, record };
        assert_eq!(node.ask(claim(number, B)).await, claimed);
        assert_eq!(node.ask(claim(number, B)).await, claimed, "a repeated claim");
        assert_eq!(node.ask(claim(number, A)).await, Response::Moved(B));
    }
}

#[tokio::test]
async fn a_repeated_release_worked() {
    let (_server, mut node) = node().await;
    let first = record(40, None, vec!["once".into()]);
    assert_eq!(node.ask(release(1, first.clone())).await, Response::Stored);
    assert_eq!(node.ask(release(1, first.clone())).await, Response::Fenced(None));
    assert_eq!(node.ask(claim(1, B)).await, Response::Claimed { claim: 2, record: first.clone() });
    assert_eq!(node.ask(release(1, first)).await, Response::Fenced(Some(B)));
}

#[tokio::test]
async fn a_claim_of_another_token_or_session_is_none() {
    let (_server, mut node) = node().await;
    assert_eq!(node.ask(claim(1, B)).await, Response::None);
    node.ask(release(1, record(40, None, vec![]))).await;
    let Request::Claim { session, owner, claimant, keep, .. } = claim(1, B) else { panic!() };
    let other = Request::Claim { session, owner, disowned: false, claimant, name: [8; 16], keep };
    assert_eq!(node.ask(other).await, Response::None);
}

#[tokio::test]
async fn a_session_can_be_released_again_by_the_node_that_claimed_it() {
    let (_server, mut node) = node().await;
    node.ask(release(1, record(40, None, vec!["a".into()]))).await;
    node.ask(claim(1, B)).await;
    let Request::Release { session, keep, .. } = release(1, record(40, None, vec![])) else { panic!() };
    let again = record(50, Some(b"state"), vec!["b".into()]);
    let by_b = Request::Release { session, owner: B, claim: 2, number: 1, record: again.clone(), keep };
    assert_eq!(node.ask(by_b).await, Response::Stored);
    assert_eq!(node.ask(claim(1, A)).await, Response::Claimed { claim: 3, record: again });
}

#[tokio::test]
async fn the_engine_keeps_a_record_for_its_time() {
    let (server, mut node) = node().await;
    let Request::Release { session, owner, record, .. } = release(1, record(40, None, vec!["a".into()]))
    else {
        panic!()
    };
    let brief = |keep| Request::Release { session, owner, claim: 1, number: 1, record: record.clone(), keep };
    assert_eq!(node.ask(brief(Duration::from_secs(1000))).await, Response::Stored);
    let left: u64 = server.run(&format!("PTTL mainstay:test:s:{{{session}}}")).await;
    assert!((900_000..=1_000_000).contains(&left), "{left}");
    let _: () = server.run("FLUSHALL").await;
    assert_eq!(node.ask(brief(Duration::ZERO)).await, Response::Stored);
    let gone = || async { server.run::<u64>("DBSIZE").await == 0 };
    wait_until(gone, || "the record stays".to_owned()).await;
    assert_eq!(node.ask(claim(1, B)).await, Response::None);
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let (_server, mut node) = node().await;
    let releases = (0..2_000).map(|number| release(number, record(300, None, vec![vec![1; 2_000].into()])));
    assert!(node.ask_all(releases).await.iter().all(|response| *response == Response::Stored));
    let claimed = node.ask_all((0..2_000).map(|number| claim(number, B))).await;
    assert!(claimed.iter().all(|response| matches!(response, Response::Claimed { claim: 2, .. })));
}

#[tokio::test]
async fn keys_with_foreign_content_are_refused_and_break_nothing() {
    let (server, mut node) = node().await;
    let key = format!("mainstay:test:s:{{{}}}", crate::node::session(1));
    let _: () = server.run(&format!("SET {key} x")).await;
    assert!(matches!(node.ask(claim(1, B)).await, Response::Refused(why) if why.contains("WRONGTYPE")));
    assert!(matches!(node.ask(release(1, record(40, None, vec![]))).await, Response::Refused(_)));
    let _: i64 = server.run(&format!("DEL {key}")).await;
    node.ask(release(1, record(40, None, vec![]))).await;
    let _: i64 = server.run(&format!("HSET {key} s unmarked")).await;
    assert!(matches!(node.ask(claim(1, B)).await, Response::Refused(why) if why.contains("no node wrote")));
    assert!(matches!(node.ask(heartbeat(A, "1")).await, Response::Table(_)));
}
