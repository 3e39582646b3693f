//! Questions to all other nodes, and notes.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::PeerKey;
use mainstay_proto::cluster::peer::{PeerAnswer, Question, Reply};
use mainstay_proto::session::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Memory;
use super::hostile::dropped;
use super::setup::{TestNode, echoes, meet, until};
use crate::Server;
use crate::cluster::config::Store;
use crate::cluster::{Answers, ClusterConfig, LONGEST_QUESTION, NoAnswer, NoteOutcome};
use crate::server::Config;

/// A node that answers with its name and the question.
async fn answering(memory: &Memory, name: &'static str) -> TestNode {
    let node = TestNode::start(memory, echoes).await;
    node.server.answer_nodes(move |_, question| [name.as_bytes(), &question[..]].concat().into());
    node
}

async fn ask(node: &TestNode) -> Answers {
    node.server.ask_nodes("?".into(), |_| true).await.unwrap()
}

/// What was answered, sorted.
fn words(answers: &Answers) -> Vec<Result<String, NoAnswer>> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let words = answers.answers.iter().map(|node| node.answer.as_ref().map(text).map_err(|error| *error));
    let mut words: Vec<_> = words.collect();
    words.sort_by_key(|word| format!("{word:?}"));
    words
}

fn id(node: &TestNode) -> String {
    node.server.cluster().unwrap().node
}

#[tokio::test]
async fn every_other_node_answers_and_none_of_them_twice() {
    let memory = Memory::default();
    let (a, b, c) =
        (answering(&memory, "a").await, answering(&memory, "b").await, answering(&memory, "c").await);
    meet(&[&a, &b, &c]).await;
    let answers = ask(&a).await;
    assert_eq!(words(&answers), [Ok("b?".to_owned()), Ok("c?".to_owned())]);
    assert!(!answers.is_complete, "the table is younger than 10 s");
    let only = a.server.ask_nodes("!".into(), |node| node == id(&c)).await.unwrap();
    assert_eq!((words(&only), only.answers[0].node.clone()), (vec![Ok("c!".to_owned())], id(&c)));
    assert_eq!((a.figures().questions_answered, a.figures().questions_unanswered), (3, 0));
}

#[tokio::test]
async fn a_node_without_a_handler_says_so() {
    let memory = Memory::default();
    let (a, b) = (TestNode::start(&memory, echoes).await, TestNode::start(&memory, echoes).await);
    meet(&[&a, &b]).await;
    assert_eq!(words(&ask(&a).await), [Err(NoAnswer::NoHandler)]);
}

#[tokio::test]
async fn a_server_without_a_cluster_asks_nothing_and_keeps_no_note() {
    let server = Server::default();
    let answers = server.ask_nodes("?".into(), |_| true).await.unwrap();
    assert!(answers.answers.is_empty() && answers.is_complete);
    assert_eq!(server.keep_note("k".into(), "v".into()).await, Ok(NoteOutcome::NotKept));
    let long = vec![0; LONGEST_QUESTION + 1];
    let error = server.ask_nodes(long.into(), |_| true).await.unwrap_err();
    assert_eq!(error.to_string(), "question must be at most 131008 bytes");
    let error = server.keep_note(Bytes::new(), Bytes::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "note.key must be 1 to 1024 bytes");
}

#[tokio::test]
async fn the_longest_answer_arrives_and_a_longer_one_is_unanswered() {
    let memory = Memory::default();
    let (a, b) = (TestNode::start(&memory, echoes).await, TestNode::start(&memory, echoes).await);
    b.server.answer_nodes(|_, question| vec![b'x'; LONGEST_QUESTION + question.len() - 1].into());
    meet(&[&a, &b]).await;
    let answer = |question: &'static str| {
        let asked = a.server.ask_nodes(question.into(), |_| true);
        async move { asked.await.unwrap().answers[0].answer.as_ref().map(Bytes::len).map_err(|error| *error) }
    };
    assert_eq!(answer("1").await, Ok(LONGEST_QUESTION));
    assert_eq!(answer(&"1".repeat(99).leak()[..]).await, Err(NoAnswer::Closed));
}

/// A node of the table whose peer listener is this one.
async fn at(memory: &Memory, listener: &TcpListener) -> TestNode {
    let cluster = ClusterConfig::with(Store::Memory(memory.clone()));
    let cluster = cluster.advertise(listener.local_addr().unwrap()).unwrap();
    TestNode::with(Config::new(), cluster, echoes).await
}

#[tokio::test]
async fn a_node_that_is_silent_or_drops_the_question_is_named_and_the_others_answer() {
    let memory = Memory::default();
    let (silent, earlier, closed) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let nodes = [at(&memory, &silent).await, at(&memory, &earlier).await, at(&memory, &closed).await];
    drop(closed);
    tokio::spawn(async move {
        // An earlier version reads the block, which it does not know, and closes.
        while let Ok((mut stream, _)) = earlier.accept().await {
            let mut question = [0; 64];
            let _ = stream.read(&mut question).await;
        }
    });
    let (a, b) = (answering(&memory, "a").await, answering(&memory, "b").await);
    meet(&[&a, &b, &nodes[0], &nodes[1], &nodes[2]]).await;
    let answers = ask(&a).await;
    let expected =
        [Err(NoAnswer::Closed), Err(NoAnswer::Refused), Err(NoAnswer::Silent), Ok("b?".to_owned())];
    assert_eq!(words(&answers), expected);
    let named = answers.answers.iter().find(|node| node.node == id(&nodes[0])).unwrap();
    assert_eq!(named.address, silent.local_addr().ok());
    assert_eq!((a.figures().questions_answered, a.figures().questions_unanswered), (1, 3));
}

#[tokio::test]
async fn a_question_with_a_wrong_key_is_dropped_and_one_for_another_node_is_not_answered() {
    let memory = Memory::default();
    let node = answering(&memory, "a").await;
    let own = node.server.shared.node.as_ref().unwrap().id;
    let question = |to| Question { from: NodeId([1; 8]), to, key: PeerKey([2; 16]), body: "?".into() };
    dropped(&node, &question(own).encode().unwrap()).await;
    // Half a question, and then nothing for a second.
    dropped(&node, b"MSTQ\x01\0\0").await;
    assert_eq!(node.figures().dropped, 2);
    let mut stream = TcpStream::connect(node.peer_address()).await.unwrap();
    stream.write_all(&question(NodeId([3; 8])).encode().unwrap()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, PeerAnswer::OtherNode.encode());
    assert_eq!(Reply::decode(&mut BytesMut::from(&answer[..])), Ok(Some(Reply::OtherNode)));
}

#[tokio::test]
async fn a_node_whose_place_another_one_took_is_left_out() {
    let memory = Memory::default();
    let (a, b) = (answering(&memory, "a").await, answering(&memory, "b").await);
    // Its field stays in the table, and another node listens at its address.
    let cluster = ClusterConfig::with(Store::Memory(memory.clone())).advertise(b.peer_address()).unwrap();
    let gone = TestNode::with(Config::new(), cluster, echoes).await;
    meet(&[&a, &b, &gone]).await;
    assert_eq!(words(&ask(&a).await), [Ok("b?".to_owned())]);
}

/// The notes that a node has taken, each list in one string.
fn taken(node: &TestNode) -> Arc<Mutex<Vec<String>>> {
    let taken = Arc::<Mutex<Vec<String>>>::default();
    let take = Arc::clone(&taken);
    node.server.watch_notes(move |_, notes| {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let notes: Vec<_> =
            notes.iter().map(|note| format!("{}={}", text(&note.key), text(&note.value))).collect();
        take.lock().unwrap().push(notes.join(" "));
    });
    taken
}

#[tokio::test]
async fn a_note_reaches_living_nodes_and_one_that_starts_later_by_one_write() {
    let memory = Memory::default();
    let (a, b) = (TestNode::start(&memory, echoes).await, TestNode::start(&memory, echoes).await);
    let (_, at_b) = (taken(&a), taken(&b));
    meet(&[&a, &b]).await;
    assert_eq!(a.server.keep_note("k".into(), "1".into()).await, Ok(NoteOutcome::Stored));
    assert_eq!(a.server.keep_note("k".into(), "2".into()).await, Ok(NoteOutcome::Stored));
    let last = |taken: &Mutex<Vec<String>>| taken.lock().unwrap().last().cloned();
    until("the other node has read it", || {
        [&a, &b].iter().for_each(|node| node.beat());
        last(&at_b).as_deref() == Some("k=2")
    })
    .await;
    let later = TestNode::start(&memory, echoes).await;
    let at_later = taken(&later);
    until("the later node has read it", || {
        later.beat();
        last(&at_later).as_deref() == Some("k=2")
    })
    .await;
    assert_eq!(memory.requests().iter().filter(|kind| **kind == "note").count(), 2);
}

#[tokio::test]
async fn a_note_waits_for_an_engine_that_is_away() {
    let memory = Memory::default();
    let a = TestNode::start(&memory, echoes).await;
    meet(&[&a]).await;
    memory.go_away();
    until("the engine is away", || !a.server.cluster().unwrap().engine_up).await;
    assert_eq!(a.server.keep_note("k".into(), "1".into()).await, Ok(NoteOutcome::Waiting));
    assert!(!memory.requests().contains(&"note"));
    memory.come_back();
    until("the engine has it", || memory.requests().contains(&"note")).await;
}
