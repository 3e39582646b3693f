//! Clients that send too fast.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use mainstay::server::{Config, ThrottleConfig};
use mainstay::{Client, Message};
use tokio::time::Instant;

use super::{Raw, frame};
use crate::support::{echo, server, until_quiet};

fn throttle(messages: u32, bytes: u64) -> ThrottleConfig {
    ThrottleConfig {
        messages: NonZeroU32::new(messages),
        bytes: NonZeroU64::new(bytes),
        burst: Duration::from_secs(1),
        patience: Some(Duration::from_secs(20)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_over_its_rate_is_read_later_and_loses_nothing() {
    for (limit, length) in [(throttle(10, 0), 10), (throttle(0, 100_000), 10_000)] {
        let on_upgrade = move |upgrade: mainstay::SessionUpgrade| upgrade.throttle(limit).on_session(echo);
        let (address, mainstay) = server(Config::new(), on_upgrade).await;
        let (mut raw, start) = (Raw::open(address, "").await, Instant::now());
        let texts: Vec<_> = (0..100).map(|n| format!("{n:0length$}")).collect();
        for text in &texts {
            raw.write(&frame(0x81, text.as_bytes())).await;
        }
        for text in &texts {
            raw.expects(text).await;
        }
        let elapsed = start.elapsed().as_secs_f32();
        assert!((7.5..12.0).contains(&elapsed), "100 messages at 10 a second, 10 of them at once: {elapsed}");
        assert!(mainstay.stats().throttled > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_slows_down_is_closed_with_1008_after_the_patience() {
    let on_upgrade =
        move |upgrade: mainstay::SessionUpgrade| upgrade.throttle(throttle(10, 0)).on_session(echo);
    let (address, mainstay) = server(Config::new(), on_upgrade).await;
    let (mut raw, start) = (Raw::open(address, "").await, Instant::now());
    for _ in 0..1000 {
        raw.write(&frame(0x81, b"x")).await;
    }
    assert_eq!(raw.close_code().await, Some(1008));
    let elapsed = start.elapsed().as_secs();
    assert!((19..=25).contains(&elapsed), "{elapsed}");
    until_quiet("it is gone", || mainstay.stats().sessions == 0).await;
    assert_eq!(mainstay.stats().throttled_closed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_slows_down_loses_its_connection_and_no_message() {
    let on_upgrade =
        move |upgrade: mainstay::SessionUpgrade| upgrade.throttle(throttle(10, 0)).on_session(echo);
    let (address, mainstay) = server(Config::new(), on_upgrade).await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    let sender = client.sender();
    let sending = tokio::spawn(async move {
        for n in 0..400 {
            sender.send(Message::text(n.to_string())).await.unwrap();
        }
    });
    let mut client = client;
    for n in 0..400 {
        assert_eq!(client.recv().await, Some(Message::text(n.to_string())));
    }
    sending.await.unwrap();
    let stats = mainstay.stats();
    assert!(stats.throttled_closed >= 1 && stats.attached_resumed >= 1, "{stats:?}");
    assert_eq!(stats.attached_lost, 0);
}
