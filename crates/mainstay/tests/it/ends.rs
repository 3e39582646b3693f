//! How a client ends. Code of the application that panics ends an attempt or the client, and is always reported.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use mainstay::client::{ClientHandle, ConnectError, Connector, EndCause, Event, Lost, State};
use mainstay::server::Config;
use mainstay::{Client, CloseCode, Link, Message, Outcome, SendError, Server, Session};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Proxy, echo_server, handled, quick, until};

fn code(code: u16) -> CloseCode {
    CloseCode::new(code).unwrap()
}

async fn attached<P>(client: &ClientHandle<P>) {
    while !matches!(client.event().await.unwrap(), Event::Attached { .. }) {}
}

/// A stream that works for a number of reads, and panics at the next.
struct Rotten {
    stream: TcpStream,
    reads: usize,
}

impl AsyncRead for Rotten {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        assert!(self.reads > 0, "on purpose");
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.reads -= usize::from(read.is_ready());
        read
    }
}

impl AsyncWrite for Rotten {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Opens streams to this address that panic after a number of reads.
fn panicking(address: SocketAddr, reads: usize) -> Connector {
    Connector::default()
        .open_with(move |_| async move { Ok(Rotten { stream: TcpStream::connect(address).await?, reads }) })
}

#[tokio::test]
async fn a_panic_in_code_of_the_application_is_an_attempt_that_failed() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let url = format!("ws://{address}/echo");
    let link = || Link::builder(&url).unwrap().backoff(quick());
    let greeting = link().greeting(|| async { if true { panic!("on purpose") } else { Ok([""]) } });
    let opener = Connector::default().open_with(|_| async {
        if true { panic!("on purpose") } else { TcpStream::connect("127.0.0.1:1").await }
    });
    let policy = Link::builder(&format!("ws://{address}/nothing")).unwrap().give_up(|_| panic!("on purpose"));
    for builder in
        [greeting, link().connector(opener), link().connector(panicking(address, 0)), policy.backoff(quick())]
    {
        let link = builder.connect();
        let tracked = link.send_tracked("x").await.unwrap();
        for _ in 0..2 {
            let Some(Event::AttemptFailed { why: Lost::NotOpened(why), .. }) = link.event().await else {
                panic!("it failed")
            };
            assert!(why.message().contains("panicked"), "{why}");
        }
        link.abort(code(4000), "enough");
        assert_eq!(tracked.await, Outcome::NotDelivered);
    }
}

#[tokio::test]
async fn a_stream_that_panics_while_it_is_in_use_ends_the_client_with_a_reason() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    // The handshake needs one.
    let connector = panicking(address, 1);
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connector(connector).connect();
    let tracked = client.send_tracked("x").await.unwrap();
    assert_eq!(client.recv().await, None);
    let end = client.end().unwrap();
    assert_eq!((end.cause, client.state()), (EndCause::Abandoned, State::Ended));
    assert!(end.to_string().contains("panicked"), "{end}");
    assert_eq!(tracked.await, Outcome::NotDelivered, "it was never written");
    assert_eq!(client.send("y").await, Err(SendError::Closed("y".into())));
    assert_eq!(client.take_undelivered(), [Message::text("x")]);
    client.close(CloseCode::NORMAL, "").await;
}

#[test]
fn a_client_whose_runtime_is_gone_ends_and_returns_undelivered_messages() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async {
        let client = Client::builder("ws://127.0.0.1:1/").unwrap().connect();
        client.send("order").await.unwrap();
        client
    });
    drop(runtime);
    let end = client.end().unwrap();
    assert_eq!(end.cause, EndCause::Abandoned);
    assert!(end.reason.contains("runtime"), "{}", end.reason);
    assert_eq!(client.try_send("late"), Err(SendError::Closed("late".into())));
    assert_eq!(client.take_undelivered(), [Message::text("order")]);
}

#[tokio::test]
async fn the_end_of_a_client_has_its_cause_and_the_error_of_the_last_attempt_as_its_source() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let client = Client::builder(&format!("ws://{address}/nothing")).unwrap().connect();
    while client.event().await.is_some() {}
    let end = client.end().unwrap();
    assert_eq!((end.cause, end.code), (EndCause::Refused, Some(http::StatusCode::NOT_FOUND.into())));
    assert!(end.source().unwrap().to_string().contains("404"));

    let unreachable = Link::builder("ws://127.0.0.1:1/").unwrap().connect_once().await.unwrap_err();
    assert_eq!(unreachable.cause(), Some(EndCause::Lost));
    let lost = unreachable.source().unwrap();
    assert!(lost.to_string().contains("127.0.0.1:1"), "{lost}");
    let error = lost.source().and_then(|source| source.downcast_ref::<std::io::Error>()).unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn an_abort_ends_a_client_at_once_and_the_server_receives_the_code() {
    let (seen, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let (address, mainstay) = handled(Server::default(), move |mut session: Session| {
        let seen = seen.clone();
        async move {
            while session.recv().await.is_some() {}
            seen.send(session.peer_close()).unwrap();
        }
    })
    .await;
    let url = format!("ws://{address}/echo");
    let mut client = Client::builder(&url).unwrap().connect();
    attached(&client).await;
    let tracked = client.send_tracked("x").await.unwrap();
    SinkExt::flush(&mut client).await.unwrap();
    client.sender().abort(code(4000), "kicked");
    assert_eq!(client.state(), State::Ended);
    assert_eq!(tracked.await, Outcome::Unknown, "an abort waits for no acknowledgement");
    assert_eq!(client.end().unwrap().cause, EndCause::Aborted);
    until("no session is left", || mainstay.stats().sessions == 0).await;
    let close = ends.recv().await.unwrap().unwrap();
    assert_eq!((close.code, close.reason.as_str()), (Some(code(4000)), "kicked"));
}

#[tokio::test]
async fn a_client_delivers_nothing_after_close_and_its_senders_can_close_it() {
    let (address, _mainstay) = handled(Server::default(), |session: Session| async move {
        while session.send("again and again").await.is_ok() {}
    })
    .await;
    let url = format!("ws://{address}/echo");
    let mut client = Client::builder(&url).unwrap().connect();
    let mut link = Link::builder(&url).unwrap().connect();
    assert!(client.recv().await.is_some() && link.recv().await.is_some());
    let (client_sender, link_sender) = (client.sender(), link.sender());
    let closing = async {
        tokio::join!(client_sender.close(CloseCode::NORMAL, ""), link_sender.close(CloseCode::NORMAL, ""))
    };
    let taking = async {
        until("they are closing", || client_sender.is_closed() && link_sender.is_closed()).await;
        assert_eq!((client.recv().await, link.recv().await), (None, None));
    };
    tokio::join!(closing, taking);
    assert_eq!(
        (client.end().unwrap().cause, link.end().unwrap().cause),
        (EndCause::Closed, EndCause::Closed)
    );
}

#[tokio::test]
async fn a_close_and_an_abort_wake_a_receiver_that_waits() {
    let (_silent, url) = crate::support::silence().await;
    for aborts in [false, true] {
        let mut link = Link::builder(&url).unwrap().connect();
        let sender = link.sender();
        sender.send("kept").await.unwrap();
        let ((), received) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                if aborts {
                    sender.abort(CloseCode::NORMAL, "");
                } else {
                    let _ = tokio::time::timeout(Duration::ZERO, sender.close(CloseCode::NORMAL, "")).await;
                }
            },
            link.recv()
        );
        assert_eq!(received, None);
        if aborts {
            assert_eq!(link.take_undelivered(), [Message::text("kept")]);
        }
    }
}

#[tokio::test]
async fn a_client_that_gave_up_returns_the_messages_that_it_could_not_deliver() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let builder = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().backoff(quick());
    let mut client = builder.max_attempts(3).unwrap().connect();
    client.send("delivered").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("delivered")));
    until("it is acknowledged", || client.sender().kept_bytes() == 0).await;
    proxy.close();
    while !matches!(client.event().await, Some(Event::Detached { .. })) {}
    for text in ["a", "b"] {
        client.try_send(text).unwrap();
    }
    assert_eq!(client.recv().await, None);
    let end = client.end().unwrap();
    assert_eq!((end.cause, end.code), (EndCause::Attempts, None));
    assert!(end.reason.starts_with("3 attempts in a row failed"), "{}", end.reason);
    let fate = end.fate.unwrap();
    assert_eq!((fate.delivered, fate.unknown, fate.last), (1, 1, 3));
    assert_eq!(client.take_undelivered(), ["a", "b"].map(Message::text));
}

#[tokio::test]
async fn connect_ready_waits_for_a_connection_within_the_given_time() {
    let (_listener, silent) = crate::support::silence().await;
    let error = Link::builder(&silent).unwrap().connect_ready(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { last: None, .. }), "{error:?}");
    assert!(error.to_string().contains("no connection within 50ms"), "{error}");

    let closed = Link::builder("ws://127.0.0.1:1/").unwrap().backoff(quick());
    let error = closed.clone().connect_ready(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.to_string().contains("the last attempt: ") && error.source().is_some(), "{error}");
    let error = closed.max_attempts(1).unwrap().connect_ready(Duration::from_secs(60)).await.unwrap_err();
    assert!(error.to_string().contains("the only attempt failed"), "{error}");

    // A server that comes up later.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let waiting = tokio::spawn(async move {
        let url = format!("ws://{address}/echo");
        Client::builder(&url).unwrap().backoff(quick()).connect_ready(Duration::from_secs(60)).await
    });
    let mainstay = Server::default();
    let route = axum::routing::any(|upgrade: mainstay::SessionUpgrade| async {
        upgrade.on_session(crate::support::echo)
    });
    let app = axum::Router::new().route("/echo", route).with_state(mainstay.clone());
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { mainstay::serve(listener, app, &mainstay).await });
    let mut client = waiting.await.unwrap().unwrap();
    client.send(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::binary(Bytes::from_static(b"x"))));
}
