//! What each control of the page does, as a client sees it.

use std::net::SocketAddr;
use std::time::Duration;

use mainstay::client::{Event, Mode};
use mainstay::{Client, Message, Server};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::pulse::Clock;
use super::router;

/// A client at `/pulse` of a backend of its own, and what it has seen.
struct Visitor {
    client: Client,
    mainstay: Server,
    ticks: u64,
    /// The number of the newest; 0: none came yet.
    newest: u64,
    pulses: u64,
}

impl Visitor {
    async fn arrive() -> Self {
        let mainstay = Server::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let serving = mainstay.clone();
        tokio::spawn(async move {
            mainstay::serve(listener, router(), &serving).await.unwrap();
        });
        let client = Client::builder(&format!("ws://{address}/pulse")).unwrap().connect();
        let mut visitor = Self { client, mainstay, ticks: 0, newest: 0, pulses: 0 };
        visitor.attached(1).await;
        visitor
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

    async fn say(&self, json: Value) {
        self.client.send(Message::text(json.to_string())).await.unwrap();
    }

    /// Everything in order up to the answer to a new pulse; whatever is neither tick nor pulse is returned.
    async fn pulse(&mut self) -> Vec<Value> {
        self.pulses += 1;
        self.say(json!({"type": "pulse", "n": self.pulses})).await;
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
async fn a_pulse_is_answered_and_ticks_come_by_themselves() {
    let mut visitor = Visitor::arrive().await;
    assert_eq!(visitor.pulse().await, [] as [Value; 0]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    visitor.pulse().await;
    assert!((19..=22).contains(&visitor.ticks), "{}", visitor.ticks);
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_is_resumed_and_nothing_is_lost() {
    let mut visitor = Visitor::arrive().await;
    for epoch in 2..5 {
        visitor.say(json!({"type": "cut"})).await;
        visitor.pulse().await;
        visitor.attached(epoch).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(visitor.mainstay.stats().attached_resumed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_answers_when_it_goes_on_sooner_than_its_client_looks_elsewhere() {
    let mut visitor = Visitor::arrive().await;
    visitor.say(json!({"type": "freeze", "seconds": 2})).await;
    let start = Instant::now();
    visitor.pulse().await;
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(visitor.mainstay.stats().connections_opened, 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_moves_the_session_to_another_connection() {
    let mut visitor = Visitor::arrive().await;
    visitor.say(json!({"type": "restart"})).await;
    visitor.attached(2).await;
    visitor.pulse().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_server_forgets_is_told_as_a_gap_and_a_new_one_begins() {
    let mut visitor = Visitor::arrive().await;
    visitor.pulse().await;
    visitor.say(json!({"type": "forget"})).await;
    loop {
        match visitor.client.event().await.unwrap() {
            Event::Gap { .. } => break,
            Event::Detached { .. } | Event::AttemptFailed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    visitor.attached(1).await;
    visitor.newest = 0; // what was said in between is the gap
    visitor.pulse().await;
}

#[tokio::test(start_paused = true)]
async fn ticks_are_numbered_by_the_time_so_that_a_visitor_sees_what_it_missed() {
    let clock = Clock::start();
    let before = clock.newest();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(clock.newest() - before, 20);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_found_and_the_session_goes_on_elsewhere() {
    let mut visitor = Visitor::arrive().await;
    visitor.say(json!({"type": "silent"})).await;
    let start = Instant::now();
    visitor.pulse().await;
    visitor.attached(2).await;
    // Within two heartbeats and 5 s, or nearly so, though the server is silent for an hour.
    assert!(start.elapsed() < Duration::from_secs(90), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_is_wrong_is_answered_with_what_is_wrong() {
    let mut visitor = Visitor::arrive().await;
    visitor.say(json!({"type": "freeze", "seconds": 31})).await;
    visitor.say(json!("nonsense")).await;
    let errors = visitor.pulse().await;
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0], json!({"type": "error", "message": "seconds: a whole number from 1 to 30"}));
}

#[tokio::test(start_paused = true)]
async fn a_visitor_that_does_not_come_back_is_forgotten_when_its_session_expires() {
    let visitor = Visitor::arrive().await;
    visitor.say(json!({"type": "silent"})).await;
    let mainstay = visitor.mainstay.clone();
    visitor.client.close(mainstay::CloseCode::NORMAL, "").await;
    drop(visitor);
    tokio::time::sleep(Duration::from_secs(2 * 60 * 60)).await;
    assert_eq!((mainstay.stats().sessions, mainstay.stats().connections), (0, 0));
}
