//! What all connections keep together, and what a server does when that is nearly all it may keep.

use std::sync::Arc;
use std::time::Duration;

use mainstay::client::{Event, Lost};
use mainstay::server::Config;
use mainstay::{
    BackoffConfig, Budget, Client, CloseCode, Level, Link, LostMessages, Message, Server, Session,
};
use tokio::sync::Semaphore;

use crate::support::{Proxy, handled, until};

const KIB: u64 = 1024;

/// A server whose handlers receive nothing before the gate is opened, and everything from then on.
async fn gated(budget: &Budget) -> (String, Server, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let handler = move |mut session: Session| {
        let opened = Arc::clone(&opened);
        async move {
            let _ = opened.acquire().await;
            while session.recv().await.is_some() {}
        }
    };
    let config = Config::new().budget(budget.clone());
    let (address, mainstay) = handled(Server::new(config), handler).await;
    (format!("ws://{address}/echo"), mainstay, gate)
}

fn quick() -> BackoffConfig {
    let ms = Duration::from_millis;
    BackoffConfig::new(ms(20), ms(100)).and_then(|backoff| backoff.first(ms(20), ms(20))).unwrap()
}

fn large(kib: usize) -> Message {
    Message::binary(vec![7; kib * 1024])
}

#[tokio::test]
async fn messages_that_wait_for_an_application_are_charged_until_it_receives_them() {
    let budget = Budget::new(64 * 1024 * KIB);
    let (url, mainstay, gate) = gated(&budget).await;
    let client = Client::builder(&url).unwrap().connect();
    let link = Link::builder(&url).unwrap().connect();
    for _ in 0..10 {
        client.send(large(50)).await.unwrap();
        link.send(large(50)).await.unwrap();
    }
    until("all of it is charged", || budget.used() >= 1000 * KIB && mainstay.unread_bytes() >= 1000 * KIB)
        .await;
    assert!(budget.used() < 1100 * KIB, "and not twice: {}", budget.used());
    gate.add_permits(2);
    until("all of it is given back", || budget.used() == 0 && mainstay.unread_bytes() == 0).await;
    drop((client, link));
}

#[tokio::test]
async fn a_session_that_ends_frees_its_charge() {
    let budget = Budget::new(64 * 1024 * KIB);
    let config = Config::new().budget(budget.clone()).resume_window(Duration::from_millis(200)).unwrap();
    let (address, mainstay) = handled(Server::new(config), |mut session: Session| async move {
        let _ = session.recv().await;
        session.send(large(500)).await.unwrap();
        session.send(large(50)).await.unwrap();
        session.sender().closed().await;
    })
    .await;
    let proxy = Proxy::to(address).await;
    let client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send(Message::text("go")).await.unwrap();
    proxy.close();
    until("it is kept for the client", || mainstay.kept_bytes() > 0 || mainstay.stats().sessions == 0).await;
    until("its resume window passed", || mainstay.stats().sessions == 0 && budget.used() == 0).await;
    drop(client);
}

#[tokio::test]
async fn while_memory_is_short_new_clients_are_refused_and_connected_ones_are_served_afterwards() {
    let budget = Budget::new(1024 * KIB);
    let (url, mainstay, gate) = gated(&budget).await;
    // Each goes on until it keeps its fair share, which gets less with each.
    let hogs: Vec<_> = (0..4).map(|_| Client::builder(&url).unwrap().connect()).collect();
    let senders: Vec<_> = hogs.iter().map(Client::sender).collect();
    let sending: Vec<_> = senders
        .into_iter()
        .map(|sender| {
            tokio::spawn(async move {
                for _ in 0..100 {
                    sender.send(large(20)).await.unwrap();
                }
            })
        })
        .collect();
    until("memory is short", || budget.level() >= Level::Short).await;
    let newcomer = Client::builder(&url).unwrap().backoff(quick()).connect();
    let refused = async {
        loop {
            match newcomer.event().await {
                Some(Event::AttemptFailed { why: Lost::Unavailable { code, .. }, .. }) => return code,
                Some(_) => {}
                None => panic!("it ended"),
            }
        }
    };
    assert_eq!(refused.await, CloseCode::OVERLOADED.into());
    let plain = Link::builder(&url).unwrap().connect();
    match plain.event().await {
        Some(Event::AttemptFailed {
            why: Lost::Unavailable { retry_after: Some(retry_after), .. }, ..
        }) => {
            assert!((1..=10).contains(&retry_after.as_secs()), "{retry_after:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(budget.used() < 1600 * KIB, "no client goes on for long: {}", budget.used());
    gate.add_permits(100);
    for task in sending {
        task.await.unwrap();
    }
    until("all are served", || budget.used() == 0 && mainstay.stats().messages_in == 400).await;
    let late = Client::builder(&url).unwrap().connect();
    late.send(Message::text("let me in")).await.unwrap();
    until("newcomers are taken again", || mainstay.stats().messages_in > 400).await;
    drop((hogs, newcomer, plain));
}

#[tokio::test]
async fn a_session_whose_client_is_away_is_given_up_when_all_memory_is_used() {
    let budget = Budget::new(512 * KIB);
    let config = Config::new().budget(budget.clone());
    let (address, mainstay) = handled(Server::new(config), |mut session: Session| async move {
        while let Some(message) = session.recv().await {
            if message.as_text() == Some("feed") {
                session.changed().await;
                // One message is kept whatever its size.
                session.send(large(600)).await.unwrap();
                session.sender().closed().await;
            }
        }
    })
    .await;
    let (proxy, direct) = (Proxy::to(address).await, format!("ws://{address}/echo"));
    let honest = Client::builder(&direct).unwrap().connect();
    honest.send(Message::text("hello")).await.unwrap();
    let away = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().backoff(quick()).connect();
    away.send(Message::text("feed")).await.unwrap();
    until("both are there", || mainstay.stats().messages_in == 2).await;
    proxy.close();
    until("it gave up its memory", || mainstay.stats().evicted_memory == 1 && budget.used() == 0).await;
    until("and its place", || mainstay.stats().sessions == 1).await;
    // Its client learns of it, and has another.
    proxy.open();
    loop {
        match away.event().await {
            Some(Event::Gap(fate)) => {
                break assert_eq!(
                    (fate.cause, fate.lost),
                    (mainstay::LossCause::Evicted, Some(LostMessages { first: 1, count: 1 }))
                );
            }
            Some(_) => {}
            None => panic!("it ended"),
        }
    }
    drop(honest);
}
