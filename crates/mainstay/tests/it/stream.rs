//! A client as a `Stream` and a `Sink`.

use futures_util::{SinkExt, StreamExt, stream};
use mainstay::client::State;
use mainstay::server::Config;
use mainstay::{Client, Link, Message, SendError, WhenFull};

use crate::support::{echo_server, until};

fn numbers(count: u32) -> Vec<Message> {
    (0..count).map(|n| Message::text(n.to_string())).collect()
}

#[tokio::test]
async fn what_goes_into_the_sink_comes_back_out_of_the_stream_and_closing_it_ends_the_client() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send_all(&mut stream::iter(numbers(100)).map(Ok)).await.unwrap();
    let back: Vec<Message> = client.by_ref().take(100).collect().await;
    assert_eq!(back, numbers(100));
    SinkExt::close(&mut client).await.unwrap();
    assert_eq!((client.next().await, client.state()), (None, State::Ended));
    until("the session is over", || mainstay.stats().sessions == 0).await;
    let late = SinkExt::send(&mut client, Message::text("late")).await;
    assert_eq!(late, Err(SendError::Over(Message::text("late"))));
}

#[tokio::test]
async fn a_sink_without_room_waits_and_keeps_the_order() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let link = Link::to(&format!("ws://{address}/echo")).unwrap().queue(4, 1024).unwrap().connect();
    let (mut sink, stream) = link.split();
    let sending = async {
        sink.send_all(&mut stream::iter(numbers(12)).map(Ok)).await.unwrap();
    };
    let ((), back) = tokio::join!(sending, stream.take(12).collect::<Vec<Message>>());
    assert_eq!(back, numbers(12));
}

#[tokio::test]
async fn a_sink_of_a_link_that_fails_when_full_gives_the_message_back() {
    let link = Link::to("ws://127.0.0.1:1/").unwrap().queue(1, 1024).unwrap().when_full(WhenFull::Fail);
    let mut link = link.connect();
    SinkExt::send(&mut link, Message::text("a")).await.unwrap();
    let refused = SinkExt::send(&mut link, Message::text("b")).await;
    assert_eq!(refused, Err(SendError::Full(Message::text("b"))));
}
