//! One message to many clients of every kind, compressed for those that agreed on it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mainstay::client::Builder;
use mainstay::server::{Config, Sender};
use mainstay::{Client, Link, Message, Server, Session};

use crate::support::{handled, until};

type Room = Arc<Mutex<Vec<Sender>>>;

async fn broadcast(mut session: Session, room: Room) {
    room.lock().unwrap().push(session.sender());
    while let Some(message) = session.recv().await {
        for sender in room.lock().unwrap().iter() {
            sender.try_send(message.clone()).unwrap();
        }
    }
}

/// A client in the room that receives `count` messages.
async fn receive<P>(builder: Builder<P>, deflate: bool, count: usize) -> Vec<Message> {
    let mut client = builder.deflate(deflate).connect_once().await.unwrap();
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.push(client.recv().await.unwrap());
    }
    messages
}

/// Text and binary, small and large; some that compression makes smaller, and some that it does not.
fn messages() -> Vec<Message> {
    let noise = |len: u32| -> Bytes {
        (0..len).flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 32).to_be_bytes()).collect()
    };
    let words = |count| "one for many ".repeat(count);
    vec![
        Message::text("short"),
        Message::text(words(10)),
        Message::binary(words(10)),
        Message::binary(words(4_000)),
        Message::binary(noise(1_000)),
        Message::binary(noise(10_000)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_member_gets_a_broadcast_compressed_or_not() {
    const RECEIVERS: usize = 32;
    let (room, mainstay) = (Room::default(), Server::new(Config::new().deflate(true)));
    let handler_room = Arc::clone(&room);
    let (address, _) = handled(mainstay, move |session| broadcast(session, Arc::clone(&handler_room))).await;
    let (url, messages) = (format!("ws://{address}/echo"), messages());
    let receivers: Vec<_> = (0..RECEIVERS)
        .map(|n| {
            let (url, count) = (url.clone(), messages.len());
            tokio::spawn(async move {
                match n % 2 {
                    0 => receive(Link::builder(&url).unwrap(), n % 3 > 0, count).await,
                    _ => receive(Client::builder(&url).unwrap(), n % 3 > 0, count).await,
                }
            })
        })
        .collect();
    until("everyone is there", || room.lock().unwrap().len() == RECEIVERS).await;
    let sender = Client::builder(&url).unwrap().deflate(true).connect_once().await.unwrap();
    for message in &messages {
        sender.send(message.clone()).await.unwrap();
    }
    for receiver in receivers {
        assert!(receiver.await.unwrap() == messages);
    }
}
