//! R6, R7, R9, R10, R11 and R14: reconnects of clients and links, and what is left of clients that end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use axum::Router;
use axum::routing::any;
use mainstay::Outcome;
use mainstay::{Client, Message, SessionUpgrade};
use mainstay_proto::session::message::{Resume, ResumeToken};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Dice, SECOND, before_a_listener, before_an_echo, comes_back, echo_backend, of_process, session};
use crate::frames::{CLOSE, Frames, TEXT};
use crate::support::{Gateway, Proxy, backend, until};

#[tokio::test]
async fn r6_clients_are_kept_and_links_reconnect_at_different_times_once_the_backend_is_back() {
    let address = echo_backend().await;
    let proxy = Proxy::to(address);
    let keep = ["--on-backend-loss", "keep", "--admin", "127.0.0.1:0"];
    let gateway = Gateway::in_front_of(proxy.address, &keep);
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::builder(&gateway.url).unwrap().connect();
        // A message that the backend confirmed is not written to the next connection.
        let before = client.send_tracked(Message::text("before")).await.unwrap();
        assert_eq!((client.recv().await, before.await), (Some(Message::text("before")), Outcome::Delivered));
        clients.push(client);
    }
    assert_eq!(gateway.metric("links"), 20.0);
    // It is back at once: dials that wait for a proxy which accepts none would all succeed at the same time.
    proxy.cut();
    proxy.restore();
    let mut back = JoinSet::new();
    for mut client in clients {
        back.spawn(async move {
            comes_back(&mut client, "after").await;
            Instant::now()
        });
    }
    let mut moments = back.join_all().await;
    moments.sort();
    // Each link dials at a random time within a second: 20 links within a hundredth would be a stampede.
    assert!(moments[19] - moments[0] > SECOND / 100, "{:?}", moments[19] - moments[0]);
    assert_eq!(gateway.metric("links"), 20.0);
    assert_eq!(gateway.metric("connections_opened_total"), 20.0, "the clients stay connected");
}

/// An attached session: its number, its connection, and the token for its resume.
type Attached = (u64, Frames, ResumeToken);

/// After every step of a random walk the metrics agree with a model.
#[tokio::test]
async fn r7_the_metrics_of_states_follow_every_step_of_the_clients() {
    let gateway = before_an_echo(&[]).await;
    let mut dice = Dice(7);
    let (mut plain, mut attached, mut parked) = (Vec::new(), Vec::<Attached>::new(), Vec::new());
    for step in 0..60 {
        match dice.roll(5) {
            0 => plain.push(Frames::connect(gateway.address(), "/", "").await.1),
            1 => drop(plain.pop()),
            2 => {
                let (frames, welcome) = session(&gateway, "/", step, None).await;
                assert!(!welcome.resumed);
                attached.push((step, frames, welcome.token));
            }
            3 => parked.extend(attached.pop().map(|(number, _cut, token)| (number, token))),
            _ => {
                let Some((number, token)) = parked.pop() else { continue };
                let resume = Resume { token, acknowledged: 0, sent: 0, first_held: 1 };
                let (frames, welcome) = session(&gateway, "/", number, Some(resume)).await;
                assert!(welcome.resumed, "step {step}");
                attached.push((number, frames, welcome.token));
            }
        }
        let expected = [plain.len() + attached.len(), parked.len(), plain.len() + attached.len()]
            .map(|count| count as f64);
        until(&format!("step {step}: {expected:?}"), || {
            let states = [
                "sessions_by_state{state=\"attached\"}",
                "sessions_by_state{state=\"parked\"}",
                "connections",
            ];
            states.map(|name| gateway.metric(name)) == expected
        })
        .await;
    }
    assert!(!parked.is_empty() || !attached.is_empty());
}

#[tokio::test]
async fn r9_a_session_has_one_connection_to_its_backend_and_dials_when_the_old_one_is_gone() {
    let (gateway, listener) = before_a_listener(&["--on-backend-loss", "keep"]).await;
    let client = Client::builder(&gateway.url).unwrap().connect();
    for round in 0..5_u64 {
        let (_, mut backend) = Frames::serve(&listener).await;
        client.send(Message::text(round.to_string())).await.unwrap();
        assert_eq!(backend.text().await, Some(round.to_string()));
        // A message that the backend confirmed is not written again.
        backend.confirm(round + 1).await;
        // There is no second connection while this one lives. (A probe of the backend sends no request.)
        let second = tokio::time::timeout(SECOND / 5, Frames::serve(&listener)).await;
        assert!(second.is_err(), "a second connection beside one that lives");
        backend.write(CLOSE, &1012_u16.to_be_bytes()).await;
        while backend.read().await.is_ok() {}
    }
    let (_, _backend) = Frames::serve(&listener).await;
    assert_eq!(gateway.metric("links_lost_total"), 5.0);
}

#[tokio::test]
async fn r10_a_thousand_reconnects_of_a_client_are_one_connection_and_one_handler_at_the_backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handlers = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handlers);
    let counting = any(move |upgrade: SessionUpgrade| {
        count.fetch_add(1, Relaxed);
        std::future::ready(upgrade.on_session(|mut session| async move {
            while let Some(message) = session.recv().await {
                let _ = session.send(message).await;
            }
        }))
    });
    backend(listener, Router::new().fallback(counting)).await;
    let gateway = Gateway::in_front_of(address, &["--admin", "127.0.0.1:0"]);
    let (mut client, welcome) = session(&gateway, "/", 1, None).await;
    let (mut token, mut received) = (welcome.token, 0);
    for n in 0..1_000 {
        let text = n.to_string();
        client.write(TEXT, text.as_bytes()).await;
        assert_eq!(client.text().await, Some(text));
        // Disconnects without a Close, and sends again what the backend had not confirmed.
        drop(client);
        let resume = Resume { token, acknowledged: n + 1, sent: n + 1, first_held: received + 1 };
        let (back, welcome) = session(&gateway, "/", 1, Some(resume)).await;
        assert!(welcome.resumed, "{n}");
        (client, token, received) = (back, welcome.token, welcome.acknowledged);
        for again in received..=n {
            client.write(TEXT, again.to_string().as_bytes()).await;
        }
    }
    assert_eq!((handlers.load(Relaxed), gateway.metric("links")), (1, 1.0));
    assert_eq!(gateway.metric("attaches_total{outcome=\"resumed\"}"), 1_000.0);
}

#[tokio::test]
async fn r11_no_session_link_file_or_byte_is_left_however_clients_end() {
    let gateway = before_an_echo(&["--resume-window", "1s"]).await;
    let cycle = async |numbers: std::ops::Range<u64>| {
        for n in numbers {
            match n % 3 {
                0 => {
                    let (_, mut plain) = Frames::connect(gateway.address(), "/", "").await;
                    plain.write(TEXT, b"x").await;
                    assert_eq!(plain.text().await.as_deref(), Some("x"));
                    plain.write(CLOSE, &1000_u16.to_be_bytes()).await;
                }
                // In the middle of a frame.
                1 => {
                    Frames::connect(gateway.address(), "/", "").await.1.write_bytes(&[0x81, 0xfe, 0xff]).await
                }
                _ => drop(session(&gateway, "/", n, None).await),
            }
        }
        for gauge in ["connections", "sessions", "links"] {
            gateway.wait_for_metric(gauge, 0.0).await;
        }
    };
    cycle(0..150).await;
    let (files, memory) = (of_process(&gateway, "open_fds"), of_process(&gateway, "resident_memory_bytes"));
    cycle(150..1_150).await;
    until("all descriptors are closed", || of_process(&gateway, "open_fds") <= files).await;
    for leg in ["client", "backend"] {
        assert_eq!(gateway.metric(&format!("queue_bytes{{leg=\"{leg}\"}}")), 0.0);
    }
    // Memory varies by a megabyte, however many clients come and go: one page left by each would be 4 MB.
    let grown = of_process(&gateway, "resident_memory_bytes") - memory;
    assert!(grown < 2_500_000.0, "{grown} bytes more than after the first 150");
}

#[tokio::test]
async fn r14_an_application_without_a_line_of_reconnecting_passes_all_faults() {
    let gateway = before_an_echo(&["--heartbeat", "100ms"]).await;
    let proxy = Proxy::to(gateway.address());
    let is_closed = Arc::new(AtomicBool::new(false));
    let (over, mut client) =
        (Arc::clone(&is_closed), Client::builder(&format!("ws://{}/", proxy.address)).unwrap().connect());
    let prober = client.sender();
    let returned = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&returned);
    let application = tokio::spawn(async move {
        while !over.load(Relaxed) {
            let count = counter.load(Relaxed);
            comes_back(&mut client, &count.to_string()).await;
            counter.store(count + 1, Relaxed);
        }
    });
    for fault in 0..8 {
        let before = returned.load(Relaxed);
        until("messages flow again", || {
            // As the operating system would report that the network is back.
            prober.probe_now();
            returned.load(Relaxed) > before + 20
        })
        .await;
        match fault % 3 {
            0 => {
                proxy.cut();
                proxy.restore();
            }
            1 => {
                proxy.cut();
                tokio::time::sleep(SECOND).await;
                proxy.restore();
            }
            _ => {
                gateway.signal("STOP");
                tokio::time::sleep(SECOND).await;
                gateway.signal("CONT");
            }
        }
    }
    is_closed.store(true, Relaxed);
    // The application itself checks that each message returns once and in order.
    application.await.unwrap();
    assert_eq!(gateway.metric("attaches_total{outcome=\"new\"}"), 1.0);
    assert_eq!(gateway.metric("attaches_total{outcome=\"lost\"}"), 0.0);
}
