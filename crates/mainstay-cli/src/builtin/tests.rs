//! The effect of each control of the page on a client.

use std::net::SocketAddr;
use std::time::Duration;

use mainstay::client::{Event, Mode};
use mainstay::{Client, Message, Server};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::pulse::Clock;
use super::router;

/// A client at `/pulse` of its own backend, and what it has received.
struct PulseClient {
    client: Client,
    mainstay: Server,
    ticks: u64,
    /// The number of the newest tick; 0 before the first.
    newest: u64,
    pulses: u64,
}

impl PulseClient {
    async fn connect() -> Self {
        let mainstay = Server::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let serving = mainstay.clone();
        tokio::spawn(async move {
            mainstay::serve(listener, router(false), &serving).await.unwrap();
        });
        let client = Client::builder(&format!("ws://{address}/pulse")).unwrap().connect();
        let mut peer = Self { client, mainstay, ticks: 0, newest: 0, pulses: 0 };
        peer.attached(1).await;
        peer
    }

    async fn attached(&mut self, expected: u64) {
        loop {
            match self.client.event().await.unwrap() {
                Event::Attached { mode: Mode::Session, resumed, epoch } if epoch == expected => {
                    return assert_eq!(resumed, epoch > 1);
                }
                Event::Detached { .. } | Event::AttemptFailed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn request(&self, json: Value) {
        self.client.send(Message::text(json.to_string())).await.unwrap();
    }

    /// Sends a pulse and receives up to its answer; returns what is neither tick nor pulse.
    async fn pulse(&mut self) -> Vec<Value> {
        self.pulses += 1;
        self.request(json!({"type": "pulse", "n": self.pulses})).await;
        let mut others = Vec::new();
        loop {
            let message = self.client.recv().await.unwrap();
            let json: Value = serde_json::from_str(message.as_text().unwrap()).unwrap();
            match json["type"].as_str().unwrap() {
                "tick" => {
                    let n = json["n"].as_u64().unwrap();
                    assert!(self.newest == 0 || n == self.newest + 1, "in order, none lost, none twice");
                    self.newest = n;
                    self.ticks += 1;
                }
                "pulse" => {
                    assert_eq!(json["n"], self.pulses);
                    return others;
                }
                _ => others.push(json),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pulse_is_answered_and_ticks_arrive_unasked() {
    let mut peer = PulseClient::connect().await;
    assert_eq!(peer.pulse().await, [] as [Value; 0]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    peer.pulse().await;
    assert!((19..=22).contains(&peer.ticks), "{}", peer.ticks);
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_is_resumed_and_nothing_is_lost() {
    let mut peer = PulseClient::connect().await;
    for epoch in 2..5 {
        peer.request(json!({"type": "cut"})).await;
        peer.pulse().await;
        peer.attached(epoch).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(peer.mainstay.stats().attached_resumed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_short_stall_delays_an_answer_and_keeps_the_connection() {
    let mut peer = PulseClient::connect().await;
    peer.request(json!({"type": "freeze", "seconds": 2})).await;
    let start = Instant::now();
    peer.pulse().await;
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(peer.mainstay.stats().connections_opened, 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_moves_the_session_to_another_connection() {
    let mut peer = PulseClient::connect().await;
    peer.request(json!({"type": "restart"})).await;
    peer.attached(2).await;
    peer.pulse().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_server_forgets_is_reported_as_a_gap_and_a_new_one_begins() {
    let mut peer = PulseClient::connect().await;
    peer.pulse().await;
    peer.request(json!({"type": "forget"})).await;
    loop {
        match peer.client.event().await.unwrap() {
            Event::Gap { .. } => break,
            Event::Detached { .. } | Event::AttemptFailed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    peer.attached(1).await;
    peer.newest = 0; // the ticks in between are in the gap
    peer.pulse().await;
}

#[tokio::test(start_paused = true)]
async fn ticks_are_numbered_by_the_clock_so_that_a_client_sees_what_it_missed() {
    let clock = Clock::start();
    let before = clock.newest();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(clock.newest() - before, 20);
}

#[tokio::test(start_paused = true)]
async fn a_long_stall_is_detected_and_the_session_continues_on_another_connection() {
    let mut peer = PulseClient::connect().await;
    peer.request(json!({"type": "silent"})).await;
    let start = Instant::now();
    peer.pulse().await;
    peer.attached(2).await;
    // Within two heartbeats and 5 s, or nearly so, though the server is silent for an hour.
    assert!(start.elapsed() < Duration::from_secs(90), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_invalid_request_is_answered_with_the_error() {
    let mut peer = PulseClient::connect().await;
    peer.request(json!({"type": "freeze", "seconds": 31})).await;
    peer.request(json!("nonsense")).await;
    let errors = peer.pulse().await;
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0], json!({"type": "error", "message": "seconds: a whole number from 1 to 30"}));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_reconnect_is_removed_when_its_session_expires() {
    let peer = PulseClient::connect().await;
    peer.request(json!({"type": "silent"})).await;
    let mainstay = peer.mainstay.clone();
    peer.client.close(mainstay::CloseCode::NORMAL, "").await;
    drop(peer);
    tokio::time::sleep(Duration::from_secs(2 * 60 * 60)).await;
    assert_eq!((mainstay.stats().sessions, mainstay.stats().connections), (0, 0));
}
