//! Openings that never end, at each door: with nothing, with a byte from time to time, and with half of each step.

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::doors::{Door, House, Io, LIMIT, Neighbour, opening, reads_to_the_end};
use crate::support::{backend, echo, until};

/// Writes a byte from time to time until the gateway closes.
async fn trickle(stream: Box<dyn Io>, bytes: Vec<u8>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        for byte in bytes.iter().cycle() {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        std::future::pending::<()>().await;
    };
    let both = async {
        tokio::select! {
            () = reads_to_the_end(&mut reader) => {}
            () = writing => {}
        }
    };
    tokio::time::timeout(LIMIT, both).await.expect("the gateway closes");
}

async fn slow_openings_are_dropped_at(door: Door) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, Router::new().fallback(any(echo))).await;
    let house = House::new(door, address, &["--resume-window", "1s"]);
    let neighbour = Neighbour::at(&house, "/").await;
    let before = house.figures();
    // A HELLO that does not come is refused in band, after the same deadline.
    let session = opening("/", "Sec-WebSocket-Protocol: mainstay.v1\r\n");
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(tokio::spawn(trickle(house.knock().await, Vec::new())));
        slow.push(tokio::spawn(trickle(house.connect().await, Vec::new())));
        slow.push(tokio::spawn(trickle(house.connect().await, opening("/", "").into_bytes())));
        let mut half = house.connect().await;
        half.write_all(&opening("/", "").as_bytes()[..60]).await.unwrap();
        slow.push(tokio::spawn(trickle(half, b"x".to_vec())));
    }
    let answer = house.ask(session.as_bytes()).await;
    assert_eq!((answer.status().as_str(), answer.code()), ("101", Some(4412)));
    for slow in slow {
        slow.await.unwrap();
    }
    let failed = match door {
        // A connection without a byte is a check of the proxy, which counts as late all the same.
        Door::Proxied => ("proxy_headers_refused_total", 20.0),
        Door::Tls => ("tls_handshakes_total{outcome=\"timeout\"}", 20.0),
        Door::Tcp | Door::Unix => ("handshakes_failed_total", 81.0),
    };
    until("they are counted", || house.gateway.metric(failed.0) == failed.1).await;
    house.is_back_at(&before, "slow openings").await;
    neighbour.was_served().await;
}

#[tokio::test]
async fn slow_openings_are_dropped_and_a_neighbour_is_served_over_tcp() {
    slow_openings_are_dropped_at(Door::Tcp).await;
}

#[tokio::test]
async fn slow_openings_are_dropped_and_a_neighbour_is_served_over_tls() {
    slow_openings_are_dropped_at(Door::Tls).await;
}

#[tokio::test]
async fn slow_openings_are_dropped_and_a_neighbour_is_served_over_a_unix_socket() {
    slow_openings_are_dropped_at(Door::Unix).await;
}

#[tokio::test]
async fn slow_openings_are_dropped_and_a_neighbour_is_served_behind_a_proxy() {
    slow_openings_are_dropped_at(Door::Proxied).await;
}
