//! A client as a `Stream` and a `Sink`.

use futures_util::{SinkExt, StreamExt, stream};
use mainstay::client::State;
use mainstay::server::Config;
use mainstay::{Client, Link, Message, SendError, WhenFull};

use crate::support::{echo_server, handled, until};

fn numbers(count: u32) -> Vec<Message> {
    (0..count).map(|n| Message::text(n.to_string())).collect()
}

#[tokio::test]
async fn messages_sent_by_the_sink_return_by_the_stream_and_a_closed_sink_ends_the_client() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send_all(&mut stream::iter(numbers(100)).map(Ok)).await.unwrap();
    let back: Vec<Message> = client.by_ref().take(100).collect().await;
    assert_eq!(back, numbers(100));
    SinkExt::close(&mut client).await.unwrap();
    assert_eq!((client.next().await, client.state()), (None, State::Ended));
    until("the session is over", || mainstay.stats().sessions == 0).await;
    let late = SinkExt::send(&mut client, Message::text("late")).await;
    assert_eq!(late, Err(SendError::Closed(Message::text("late"))));
}

#[tokio::test]
async fn a_sink_without_room_waits_and_keeps_the_order() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let link = Link::builder(&format!("ws://{address}/echo")).unwrap().queue(4, 1024).unwrap().connect();
    let (mut sink, stream) = link.split();
    let sending = async {
        sink.send_all(&mut stream::iter(numbers(12)).map(Ok)).await.unwrap();
    };
    let ((), back) = tokio::join!(sending, stream.take(12).collect::<Vec<Message>>());
    assert_eq!(back, numbers(12));
}

#[tokio::test]
async fn the_sink_of_a_link_that_fails_when_full_returns_the_message() {
    let link = Link::builder("ws://127.0.0.1:1/").unwrap().queue(1, 1024).unwrap().when_full(WhenFull::Fail);
    let mut link = link.connect();
    SinkExt::feed(&mut link, Message::text("a")).await.unwrap();
    let refused = SinkExt::feed(&mut link, Message::text("b")).await;
    assert_eq!(refused, Err(SendError::Full(Message::text("b"))));
}

#[test]
fn a_flush_is_ready_when_every_message_has_left_and_not_before() {
    let (server, received) = (tokio::runtime::Runtime::new().unwrap(), std::sync::mpsc::channel());
    let (sender, received) = received;
    let (address, mainstay) =
        server.block_on(handled(mainstay::Server::default(), move |mut session: mainstay::Session| {
            let sender = sender.clone();
            async move {
                while let Some(message) = session.recv().await {
                    sender.send(message).unwrap();
                }
            }
        }));
    let url = format!("ws://{address}/echo");
    for is_link in [false, true] {
        // Another process, which ends as soon as it has flushed.
        let tool = tokio::runtime::Runtime::new().unwrap();
        tool.block_on(async {
            if is_link {
                let mut link = Link::builder(&url).unwrap().connect();
                link.feed(Message::text("fed")).await.unwrap();
                SinkExt::flush(&mut link).await.unwrap();
                std::mem::forget(link);
            } else {
                let mut client = Client::builder(&url).unwrap().connect();
                SinkExt::send(&mut client, Message::text("fed")).await.unwrap();
                std::mem::forget(client);
            }
        });
        tool.shutdown_background();
        let message = received.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        assert_eq!(message, Message::text("fed"));
    }
    drop(mainstay);
}

#[tokio::test]
async fn a_flush_waits_for_a_connection_and_is_ready_with_nothing_to_send() {
    use futures_util::FutureExt;
    let mut link = Link::builder("ws://127.0.0.1:1/").unwrap().connect();
    SinkExt::flush(&mut link).await.unwrap();
    link.feed(Message::text("kept")).await.unwrap();
    assert_eq!(SinkExt::flush(&mut link).now_or_never(), None);
    link.abort(mainstay::CloseCode::NORMAL, "");
    SinkExt::flush(&mut link).await.unwrap();
    assert_eq!(link.take_undelivered(), [Message::text("kept")]);
}
