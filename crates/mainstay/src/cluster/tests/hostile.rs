//! What comes to a peer listener that is not another node's.

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::PeerKey;
use mainstay_proto::cluster::peer::{Head, PeerAnswer};
use mainstay_proto::session::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Memory;
use super::setup::{TestNode, client, echoes, exchange};

/// A head for this node, with a key that no listener has.
pub(super) fn head(to: NodeId) -> Head {
    Head {
        from: NodeId([1; 8]),
        to,
        key: PeerKey([2; 16]),
        path: "/".to_owned(),
        principal: Bytes::new(),
        subprotocol: None,
        deflate: None,
        client: ([127, 0, 0, 1], 1).into(),
        expiry: None,
    }
}

/// Writes these bytes to the node's peer listener, and waits until it drops the connection.
pub(super) async fn dropped(node: &TestNode, bytes: &[u8]) {
    let mut stream = TcpStream::connect(node.peer_address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is a drop, too.
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer, b"", "nothing is said to a stranger");
}

#[tokio::test]
async fn a_peer_listener_drops_and_counts_what_is_not_a_block_of_a_node() {
    let memory = Memory::default();
    let node = TestNode::start(&memory, echoes).await;
    dropped(&node, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    // A block of version 9, and one that says it is longer than 128 KiB.
    dropped(&node, b"MSTN\x09\0\0\0\x01\0").await;
    dropped(&node, b"MSTN\x01\x7f\xff\xff\xff").await;
    // Half a block, and then nothing for a second.
    dropped(&node, b"MSTN\x01\0\0").await;
    assert_eq!(node.figures().dropped, 4);
    exchange(&mut client(node.address), "others are served").await;
}

#[tokio::test]
async fn a_wrong_key_is_dropped_and_a_head_for_another_node_is_answered() {
    let memory = Memory::default();
    let node = TestNode::start(&memory, echoes).await;
    let own = node.server.shared.node.as_ref().unwrap().id;
    dropped(&node, &head(own).encode().unwrap()).await;
    assert_eq!(node.figures().dropped, 1);
    let mut stream = TcpStream::connect(node.peer_address()).await.unwrap();
    stream.write_all(&head(NodeId([3; 8])).encode().unwrap()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = PeerAnswer::decode(&mut BytesMut::from(&answer[..])).unwrap();
    assert_eq!(answer, Some(PeerAnswer::OtherNode));
}
