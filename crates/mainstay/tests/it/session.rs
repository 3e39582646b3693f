//! What a session keeps, over real sockets.

use std::time::Duration;

use mainstay::client::{Event, Mode, State};
use mainstay::server::Config;
use mainstay::{Client, CloseCode, Link, Message, Outcome, Window};

use crate::support::{Proxy, echo_server, until};

#[tokio::test]
async fn a_message_comes_back_and_the_session_ends_in_order() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send(Message::text("hello")).await.unwrap();
    client.send(Message::binary(vec![0, 1, 2])).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("hello")));
    assert_eq!(client.recv().await, Some(Message::binary(vec![0, 1, 2])));
    assert_eq!(client.state(), State::Attached { mode: Mode::Session, epoch: 1 });
    client.close(CloseCode::NORMAL, "done").await;
    assert_eq!(client.recv().await, None);
    until("no session is left", || mainstay.stats().sessions == 0 && mainstay.stats().connections == 0).await;
}

#[tokio::test]
async fn nothing_is_lost_repeated_or_reordered_over_ten_cuts() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    let mut expected = 0;
    for n in 0..500 {
        client.send(Message::text(n.to_string())).await.unwrap();
        if n % 50 == 25 {
            proxy.cut();
        }
        // Half of the answers are read on the way, so that both directions have something to replay.
        if n % 2 == 0 {
            assert_eq!(client.recv().await, Some(Message::text(expected.to_string())));
            expected += 1;
        }
    }
    while expected < 500 {
        assert_eq!(client.recv().await, Some(Message::text(expected.to_string())));
        expected += 1;
    }
    let stats = mainstay.stats();
    assert_eq!((stats.attached_new, stats.attached_lost), (1, 0));
    assert!(stats.attached_resumed >= 1, "{stats:?}");
}

#[tokio::test]
async fn a_small_window_accepts_what_a_client_writes_before_it_knows_the_window() {
    let accept = Window { messages: 1, bytes: 1 };
    let (address, mainstay) = echo_server(Config::new().accept(accept)).await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    for n in 0..100 {
        client.send(Message::text(n.to_string())).await.unwrap();
    }
    for n in 0..100 {
        assert_eq!(client.recv().await, Some(Message::text(n.to_string())));
    }
    assert_eq!(mainstay.stats().session_errors, 0);
}

#[tokio::test]
async fn each_cut_is_noticed_and_reported() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    let attached = |epoch, resumed| Event::Attached { mode: Mode::Session, resumed, epoch };
    assert_eq!(client.event().await, Some(attached(1, false)));
    for epoch in 2..5 {
        proxy.cut();
        assert!(matches!(client.event().await, Some(Event::Detached { .. })));
        loop {
            match client.event().await {
                Some(Event::AttemptFailed { .. }) => {}
                other => break assert_eq!(other, Some(attached(epoch, true))),
            }
        }
    }
}

#[tokio::test]
async fn a_client_watches_its_own_state() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    assert_eq!((client.state(), client.id()), (State::Connecting, None));
    assert_eq!(client.changed().await, State::Attached { mode: Mode::Session, epoch: 1 });
    let id = client.id();
    assert!(id.is_some());
    proxy.cut();
    let mut epoch = 1;
    while epoch == 1 {
        match client.changed().await {
            State::Attached { epoch: now, .. } => epoch = now,
            State::Waiting { .. } | State::Connecting => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((epoch, client.id()), (2, id), "the same session");
    client.close(CloseCode::NORMAL, "").await;
    assert_eq!(client.changed().await, State::Ended);
}

#[tokio::test]
async fn a_receipt_resolves_when_the_server_acknowledges_the_message() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    let tracked = client.send_tracked(Message::text("x")).await.unwrap();
    assert_eq!(tracked.await, Outcome::Delivered);
}

#[tokio::test]
async fn a_plain_peer_is_served_by_the_same_handler_and_a_link_reports_a_fresh_one() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let mut client = Link::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send(Message::text("one")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("one")));
    assert_eq!(client.state(), State::Attached { mode: Mode::Plain, epoch: 1 });
    proxy.cut();
    let mut fresh = false;
    while !fresh {
        fresh = client.event().await.unwrap() == Event::FreshPeer;
    }
    client.close(CloseCode::NORMAL, "").await;
}

#[tokio::test]
async fn an_expired_session_is_one_gap_and_a_new_session() {
    let config = Config::new().resume_window(Duration::from_millis(1)).unwrap();
    let (address, mainstay) = echo_server(config).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send(Message::text("before")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("before")));
    proxy.cut();
    let fate = loop {
        if let Event::Gap(fate) = client.event().await.unwrap() {
            break fate;
        }
    };
    assert_eq!((fate.delivered, fate.unknown, fate.last), (1, 1, 1));
    client.send(Message::text("after")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("after")));
    assert_eq!(mainstay.stats().attached_lost, 1);
}

#[tokio::test]
async fn a_draining_server_refuses_new_clients_and_asks_the_others_to_leave() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut plain = Link::builder(&format!("ws://{address}/echo")).unwrap().connect_once().await.unwrap();
    let draining = mainstay.clone();
    tokio::spawn(async move { draining.drain(Duration::from_millis(100)).await });
    assert_eq!(plain.recv().await, None, "closed with 1012");
    let refused = Client::builder(&format!("ws://{address}/echo")).unwrap().connect_once().await;
    assert!(refused.is_err_and(|error| error.to_string().contains("503")));
}

#[tokio::test]
async fn a_drain_is_over_when_every_session_has_ended() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send(Message::text("here")).await.unwrap();
    client.recv().await.unwrap();
    proxy.close();
    until("its session is parked", || mainstay.stats().connections == 0).await;
    assert_eq!(mainstay.stats().sessions, 1);
    let an_hour = mainstay.drain(Duration::from_secs(3600));
    tokio::time::timeout(Duration::from_secs(60), an_hour).await.expect("no task is waited for");
    assert_eq!(mainstay.stats().sessions, 0);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_client_that_is_cut_off_during_it() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send(Message::text("here")).await.unwrap();
    client.recv().await.unwrap();
    let draining = tokio::spawn({
        let mainstay = mainstay.clone();
        async move { mainstay.drain(Duration::from_secs(3600)).await }
    });
    until("no client is admitted", || !mainstay.is_ready()).await;
    proxy.close();
    tokio::time::timeout(Duration::from_secs(60), draining).await.expect("no task is waited for").unwrap();
    assert_eq!(mainstay.stats().sessions, 0);
}

#[tokio::test]
async fn a_url_that_cannot_be_dialled_is_refused_where_it_is_given() {
    for url in ["http//x", "ftp://x/", "", "ws://"] {
        assert!(Client::builder(url).is_err(), "{url}");
    }
    for port in ["abc", "0", "-1", "99999", "65536", "80.0"] {
        for host in ["example.com", "[::1]"] {
            let url = format!("ws://{host}:{port}/");
            let error = Client::builder(&url).expect_err(&url).to_string();
            // The parser of URLs knows some of them for bad itself.
            assert!(error.contains(&format!("the port `{port}`")) || error.contains("invalid"), "{error}");
        }
    }
    for url in ["ws://x", "ws://x:/", "ws://x:65535", "wss://[::1]", "ws://[::1]:8080/?a=b:c@d"] {
        assert!(Client::builder(url).is_ok(), "{url}");
    }
}

#[tokio::test]
async fn the_error_of_a_refused_connection_has_the_status() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let refused =
        Client::builder(&format!("ws://{address}/nothing")).unwrap().connect_once().await.unwrap_err();
    assert_eq!(refused.code(), Some(http::StatusCode::NOT_FOUND.into()));
    assert!(refused.to_string().contains("404"), "{refused}");
    let unreachable = Client::builder("ws://127.0.0.1:1/").unwrap().connect_once().await.unwrap_err();
    assert_eq!(unreachable.code(), None);
    assert!(unreachable.to_string().contains("127.0.0.1:1"), "{unreachable}");
}

#[tokio::test]
async fn credentials_in_a_url_are_refused_and_not_repeated() {
    for url in ["ws://alice:hunter2@example.com/", "wss://hunter2@[::1]:80/", "ftp://hunter2@example.com/"] {
        let error = Client::builder(url).expect_err(url).to_string();
        assert!(error.contains("header") && !error.contains("hunter2"), "{error}");
    }
}
