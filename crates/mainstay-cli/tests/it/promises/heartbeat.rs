//! R1 to R5, R8 and R16: the probes on both legs, the verdict that a peer is dead, and its effect.

use std::time::Duration;

use mainstay::client::{Event, Lost};
use mainstay::{Client, Evidence, Message};
use mainstay_proto::session::{Control, Frame};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{SECOND, before_a_listener, before_an_echo, comes_back, session};
use crate::frames::{BINARY, CLOSE, Frames, PING, PONG, TEXT};
use crate::support::{Gateway, mainstay, until};

/// Reads up to the next Ping; returns its payload.
async fn ping(end: &mut Frames) -> Vec<u8> {
    loop {
        let (first, payload) = end.read().await.unwrap();
        if first == PING {
            return payload;
        }
    }
}

async fn client(gateway: &Gateway, path: &str) -> Frames {
    let (head, client) = Frames::connect(gateway.address(), path, "").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    client
}

#[tokio::test]
async fn r1_first_beats_are_spread_over_the_interval_on_both_legs_and_routes_may_have_their_own() {
    let gateway = before_an_echo(&["--heartbeat", "2s", "--route-heartbeat", "/prices=300ms"]).await;
    let mut first = JoinSet::new();
    for _ in 0..60 {
        let mut client = client(&gateway, "/").await;
        let begin = Instant::now();
        first.spawn(async move {
            ping(&mut client).await;
            begin.elapsed()
        });
    }
    let mut quarters = [0; 4];
    while let Some(after) = first.join_next().await {
        // On a busy machine some arrive later, and none earlier.
        let quarter = after.unwrap().as_millis() * 4 / 2_000;
        quarters[usize::try_from(quarter).unwrap().min(3)] += 1;
    }
    assert!(quarters.iter().all(|count| *count > 0), "{quarters:?}");
    for (number, path, interval) in [(1, "/", 2_000), (2, "/prices", 300), (3, "/prices/eur", 300)] {
        let (_, welcome) = session(&gateway, path, number, None).await;
        assert_eq!(welcome.heartbeat_interval, Duration::from_millis(interval), "{path}");
    }
}

#[tokio::test]
async fn r1_the_backends_leg_of_a_route_has_its_interval_too() {
    let (gateway, listener) =
        before_a_listener(&["--heartbeat", "1h", "--route-heartbeat", "/a=100ms"]).await;
    let (_client, (_, mut backend)) = tokio::join!(client(&gateway, "/a"), Frames::serve(&listener));
    for _ in 0..3 {
        let payload = ping(&mut backend).await;
        backend.write(PONG, &payload).await;
    }
}

#[tokio::test]
async fn r2_clients_and_backends_get_pings_of_at_most_125_bytes_and_sessions_beat_in_band_too() {
    let (gateway, listener) = before_a_listener(&["--heartbeat", "100ms"]).await;
    let (mut plain, (_, mut backend)) = tokio::join!(client(&gateway, "/"), Frames::serve(&listener));
    for end in [&mut plain, &mut backend] {
        for _ in 0..3 {
            let payload = ping(end).await;
            assert!(payload.len() <= 125);
            end.write(PONG, &payload).await;
        }
    }
    let (mut session, _) = session(&gateway, "/", 1, None).await;
    let (mut pings, mut beats) = (0, 0);
    while pings < 3 || beats < 3 {
        let (first, payload) = session.read().await.unwrap();
        match (first, Frame::decode(Message::binary(payload.clone()))) {
            (PING, _) => {
                assert!(payload.len() <= 125);
                session.write(PONG, &payload).await;
                pings += 1;
            }
            (BINARY, Ok(Frame::Control(Control::Ping(beat)))) => {
                session.write(BINARY, &Control::Pong(beat).encode()).await;
                beats += 1;
            }
            (first, other) => panic!("{first:x} {other:?}"),
        }
    }
}

#[tokio::test]
async fn r3_a_stale_pong_measures_nothing_and_the_histogram_counts_the_others() {
    let gateway = before_an_echo(&["--heartbeat", "100ms"]).await;
    let samples = || gateway.metric("heartbeat_rtt_seconds_count");
    let mut client = client(&gateway, "/").await;
    let first = ping(&mut client).await;
    client.write(PONG, &first).await;
    until("the round trip is counted", || samples() == 1.0).await;
    // The next probe stays open however often the first one is answered; any byte keeps the client alive.
    for _ in 0..10 {
        ping(&mut client).await;
        client.write(PONG, &first).await;
    }
    assert_eq!(samples(), 1.0);
    // The Pong to the newest probe answers all open probes, and the next round trip is counted again.
    while samples() < 3.0 {
        let payload = ping(&mut client).await;
        client.write(PONG, &payload).await;
    }
    let metrics = gateway.get("/metrics", "");
    let all =
        metrics.lines().find(|line| line.contains("heartbeat_rtt_seconds_bucket{le=\"+Inf\"}")).unwrap();
    assert!(all.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 3.0, "{all}");
    assert_eq!(gateway.metric("connections"), 1.0);
}

/// The frozen client neither reads nor writes. The slow one reads 40 KiB per second, so that Pings reach it long after the
/// deadline of 5 s; the last 100 KiB or so, which the gateway's kernel holds, it reads within the deadline.
#[tokio::test]
async fn r4_a_frozen_client_is_detected_and_a_slow_busy_one_is_not_declared_dead() {
    const MESSAGE: usize = 512 * 1024;
    let (gateway, listener) = before_a_listener(&["--heartbeat", "500ms"]).await;
    let (frozen, (_, backend)) = tokio::join!(client(&gateway, "/"), Frames::serve(&listener));
    let answering = |mut backend: Frames| async move { while backend.text().await.is_some() {} };
    tokio::spawn(answering(backend));
    let slow = Frames::connect_slowly(gateway.address(), "/", 8 * 1024);
    let ((head, mut slow), (_, mut backend)) = tokio::join!(slow, Frames::serve(&listener));
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    backend.write(TEXT, &vec![b'x'; MESSAGE]).await;
    tokio::spawn(answering(backend));
    let mut received = 0;
    while received < MESSAGE {
        let (first, payload) =
            slow.read_paced(10 * 1024, SECOND / 4).await.expect("the slow client is not declared dead");
        match first & 0x0f {
            9 => slow.write(PONG, &payload).await,
            0..=2 => received += payload.len(),
            other => panic!("{other}"),
        }
    }
    let dead = |evidence: &str| {
        gateway.metric(&format!("dead_peers_total{{leg=\"client\",evidence=\"{evidence}\"}}"))
    };
    until("the frozen client is detected", || dead("silent") + dead("frozen") == 1.0).await;
    assert_eq!(dead("stalled"), 0.0);
    assert_eq!(gateway.metric("connections"), 1.0);
    drop(frozen);
}

#[tokio::test]
async fn r5_the_verdict_ends_the_clients_connection_without_a_close_and_closes_the_backends_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command =
        mainstay(&["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--heartbeat", "100ms"]);
    command
        .args(["--upstream", &format!("ws://{}", listener.local_addr().unwrap())])
        .env("MAINSTAY_LOG", "info");
    let gateway = Gateway::begin(command);
    let (mut client, (_, mut backend)) = tokio::join!(client(&gateway, "/"), Frames::serve(&listener));
    let closed = async {
        loop {
            match backend.read().await.unwrap() {
                (PING, payload) => backend.write(PONG, &payload).await,
                (CLOSE, payload) => return u16::from_be_bytes(*payload.first_chunk().unwrap()),
                _ => {}
            }
        }
    };
    // Reads, and answers nothing: neither a Ping nor a Close.
    let ended = async {
        while let Ok((first, _)) = client.read().await {
            assert_eq!(first, PING, "no closing handshake with a dead peer");
        }
    };
    let (code, ()) = tokio::join!(closed, ended);
    assert_eq!(code, 1001);
    assert_eq!(gateway.metric("dead_peers_total{leg=\"client\",evidence=\"silent\"}"), 1.0);
    gateway.wait_for_metric("connections", 0.0).await;
    gateway.wait_for_metric("sessions", 0.0).await;
    let verdict = "disappeared without a Close: dead: no sign of life after a probe";
    until("the log has the same reason", || gateway.log().contains(verdict)).await;
}

#[tokio::test]
async fn r8_a_gateway_that_was_stopped_declares_no_peer_dead_and_its_client_continues_at_once() {
    let gateway = before_an_echo(&["--heartbeat", "100ms"]).await;
    let mut plain = client(&gateway, "/").await;
    let mut client = Client::builder(&gateway.url).unwrap().connect();
    comes_back(&mut client, "before").await;
    gateway.signal("STOP");
    // Longer than the deadline of a peer, 5 s.
    tokio::time::sleep(6 * SECOND).await;
    gateway.signal("CONT");
    comes_back(&mut client, "after").await;
    plain.write(TEXT, b"hello").await;
    assert_eq!(plain.text().await.as_deref(), Some("hello"));
    let metrics = gateway.get("/metrics", "");
    let verdicts = metrics.lines().filter(|line| line.starts_with("mainstay_dead_peers_total{"));
    assert!(verdicts.clone().count() >= 6 && verdicts.clone().all(|line| line.ends_with(" 0")), "{metrics}");
}

#[tokio::test]
async fn r16_a_client_derives_its_deadline_from_the_interval_that_its_gateway_announces() {
    let (quick, slow) =
        (before_an_echo(&["--heartbeat", "100ms"]).await, before_an_echo(&["--heartbeat", "3s"]).await);
    for (number, gateway, interval) in [(1, &quick, 100), (2, &slow, 3_000)] {
        let (_, welcome) = session(gateway, "/", number, None).await;
        assert_eq!(welcome.heartbeat_interval, Duration::from_millis(interval));
    }
    let mut clients = Vec::new();
    for gateway in [&quick, &slow] {
        let mut client = Client::builder(&gateway.url).unwrap().connect();
        comes_back(&mut client, "x").await;
        clients.push(client);
    }
    // The deadlines are 5.2 s and 11 s. The slow gateway stalls first, so with one deadline for both it would be detected
    // first.
    slow.signal("STOP");
    tokio::time::sleep(SECOND).await;
    quick.signal("STOP");
    let verdict = async |client: &Client| loop {
        if let Event::Detached { why, .. } = client.event().await.unwrap() {
            assert_eq!(why, Lost::Dead(Evidence::Silent));
            return;
        }
    };
    let (sooner, later) = (verdict(&clients[0]), verdict(&clients[1]));
    tokio::select! {
        biased;
        () = later => panic!("the gateway with the interval of 3 s was detected first"),
        () = sooner => {}
    }
    quick.signal("CONT");
    slow.signal("CONT");
}
