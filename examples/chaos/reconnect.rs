//! Test my reconnect, with `cargo test`: the proxy runs in the process of the test.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::{Router, routing::any};
use futures_util::StreamExt;
use mainstay::{Client, HeartbeatConfig, Server, SessionUpgrade, server::Config};
use mainstay_chaos::{ChaosProxy, Direction, Fault, Target};
use tokio::{sync::mpsc, time};

type Tested<T> = Result<T, Box<dyn std::error::Error>>;

/// The code under test: follows a feed with tokio-tungstenite, over as many connections as it takes.
async fn follow(url: String, seen: mpsc::UnboundedSender<String>) {
    loop {
        if let Ok((mut socket, _)) = tokio_tungstenite::connect_async(&url).await {
            // Nothing reports a half-open connection: a server that is silent for 3 s is given up.
            while let Ok(Some(Ok(message))) = time::timeout(Duration::from_secs(3), socket.next()).await {
                // The Pings of the server are messages, too.
                message.is_text().then(|| seen.send(message.to_string()));
            }
        }
        time::sleep(Duration::from_millis(rand::random_range(0..1000))).await;
    }
}

/// Starts a server that counts, and the proxy in front of it.
async fn start() -> Tested<ChaosProxy> {
    let next = std::sync::Arc::new(AtomicU64::new(0));
    let feed = async move |upgrade: SessionUpgrade| {
        upgrade.on_session(async move |session| {
            while session.send(next.fetch_add(1, Ordering::Relaxed).to_string()).await.is_ok() {
                time::sleep(Duration::from_millis(50)).await;
            }
        })
    };
    let server = Server::new(Config::new().heartbeat(HeartbeatConfig::every(Duration::from_secs(1))?));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let proxy = ChaosProxy::builder(listener.local_addr()?.to_string()).seed(7).start()?;
    tokio::spawn(mainstay::serve(listener, Router::new().route("/feed", any(feed)), &server).into_future());
    Ok(proxy)
}

/// Returns what arrives over three connections: the first ends with a reset, and the second goes half-open.
async fn play(proxy: &ChaosProxy, mut next: impl AsyncFnMut() -> Option<String>) -> Tested<Vec<u64>> {
    let mut seen = Vec::new();
    let faults = [Some(Fault::Reset), Some(Fault::BlackHole(Direction::Both)), None];
    for (connection, fault) in (1..).zip(faults) {
        let wanted = seen.len() + 10;
        while seen.len() < wanted || proxy.accepted() < connection {
            seen.push(time::timeout(Duration::from_secs(20), next()).await?.ok_or("given up")?.parse()?);
        }
        fault.map(|fault| proxy.inject(fault, Target::Open, None));
    }
    Ok(seen)
}

#[tokio::test]
async fn the_loop_comes_back_from_a_reset_and_a_half_open_connection_and_sees_nothing_twice() {
    let (proxy, (seen, mut numbers)) = (start().await.unwrap(), mpsc::unbounded_channel());
    tokio::spawn(follow(proxy.url("/feed"), seen));
    let seen = play(&proxy, async || numbers.recv().await).await.unwrap();
    assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
}

#[tokio::test]
async fn a_session_of_mainstay_misses_nothing_either() {
    let proxy = start().await.unwrap();
    let mut client = Client::builder(&proxy.url("/feed")).unwrap().connect();
    let seen = play(&proxy, async || Some(client.recv().await?.as_text()?.to_owned())).await.unwrap();
    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
}
