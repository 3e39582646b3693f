//! R1 to R5, R8 and R16: what is asked of a peer, when it is called dead, and what follows.

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::client::{Event, Lost, State};
use mainstay::server::{Config, SessionState};
use mainstay::{Client, Evidence, Limits, Message, Server, Session, SessionUpgrade};
use mainstay_proto::session::message::{ClientKey, Hello, Instance};
use mainstay_proto::session::{Control, Frame, Window};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{HOUR, SECOND, attached, client_at, comes_back, event, every, serve, small_leaps};
use crate::hostile::{Raw, frame, upgrade};
use crate::support::{echo, echo_server, handled, until_quiet};

const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const BINARY: u8 = 0x82;

/// The next Ping, whatever comes before it.
async fn ping(raw: &mut Raw) -> Vec<u8> {
    loop {
        let (first, payload) = raw.frame().await.unwrap();
        if first == PING {
            return payload;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r1_a_heartbeat_begins_with_the_connection_at_a_moment_of_its_own_and_routes_may_have_their_own_interval()
 {
    small_leaps(SECOND / 200);
    let mainstay = Server::new(Config::new().heartbeat(every(20 * SECOND)));
    let app = Router::new()
        .route("/echo", any(|upgrade: SessionUpgrade| async { upgrade.on_session(echo) }))
        .route(
            "/prices",
            any(|upgrade: SessionUpgrade| async { upgrade.heartbeat(every(2 * SECOND)).on_session(echo) }),
        );
    let address = serve(&mainstay, app).await;
    let mut opened = JoinSet::new();
    for _ in 0..200 {
        let mut raw = Raw::open(address, "").await;
        let begin = Instant::now();
        opened.spawn(async move {
            let payload = ping(&mut raw).await;
            let first = begin.elapsed();
            raw.write(&frame(PONG, &payload)).await;
            ping(&mut raw).await;
            (first, begin.elapsed() - first)
        });
    }
    let (mut quarters, mut all) = ([0; 4], 0);
    while let Some(done) = opened.join_next().await {
        let (first, second) = done.unwrap();
        quarters[((first.as_millis() * 4 / 20_001) as usize).min(3)] += 1;
        assert!(first <= 20 * SECOND + SECOND / 5, "{first:?}");
        let jitter = 18 * SECOND..=22 * SECOND + SECOND / 5;
        assert!(jitter.contains(&second), "{second:?}");
        all += 1;
    }
    assert_eq!(all, 200);
    // A mean of 50, and a standard deviation of 6.
    assert!(quarters.iter().all(|count| (20..=80).contains(count)), "{quarters:?}");
    let (begin, request) = (Instant::now(), upgrade("").replace("/echo", "/prices"));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut fast = Raw::over(stream, request.as_bytes()).await;
    for _ in 0..3 {
        let payload = ping(&mut fast).await;
        fast.write(&frame(PONG, &payload)).await;
    }
    assert!(begin.elapsed() <= 7 * SECOND, "{:?}", begin.elapsed());
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        window: Window { messages: 1024, bytes: 1 << 20 },
        key: ClientKey([7; 16]),
        key_age: Duration::ZERO,
        instance: Instance([7; 8]),
        attempt: 1,
        resume: None,
        credentials: None,
        resume_window: None,
        max_message: None,
    };
    frame(BINARY, &Control::Hello(Box::new(hello)).encode())
}

#[tokio::test(start_paused = true)]
async fn r2_every_peer_gets_pings_of_at_most_125_bytes_and_one_that_speaks_mainstay_v1_beats_in_band_too() {
    small_leaps(SECOND / 200);
    let (address, _mainstay) = echo_server(Config::default()).await;
    let mut plain = Raw::open(address, "").await;
    for _ in 0..3 {
        // Only Pings: an idle plain peer gets nothing else.
        let (first, payload) = plain.frame().await.unwrap();
        assert_eq!(first, PING);
        assert!(payload.len() <= 125);
        plain.write(&frame(PONG, &payload)).await;
    }
    let mut session = Raw::open(address, "Sec-WebSocket-Protocol: mainstay.v1\r\n").await;
    session.write(&hello()).await;
    let (mut pings, mut beats) = (0, 0);
    while pings < 3 || beats < 3 {
        let (first, payload) = session.frame().await.unwrap();
        match (first, Frame::decode(Message::binary(payload.clone()))) {
            (PING, _) => {
                assert!(payload.len() <= 125);
                session.write(&frame(PONG, &payload)).await;
                pings += 1;
            }
            (BINARY, Ok(Frame::Control(Control::Ping(beat)))) => {
                session.write(&frame(BINARY, &Control::Pong(beat).encode())).await;
                beats += 1;
            }
            (BINARY, Ok(Frame::Control(Control::Welcome(_)))) => {}
            (first, other) => panic!("{first:x} {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r3_a_pong_counts_for_its_own_ping_and_those_before_it_and_any_byte_is_a_sign_of_life() {
    small_leaps(SECOND / 200);
    let (address, mainstay) = echo_server(Config::new().heartbeat(every(10 * SECOND))).await;
    let mut raw = Raw::open(address, "").await;
    let first = ping(&mut raw).await;
    raw.write(&frame(PONG, &first)).await;
    until_quiet("the round trip is a sample", || mainstay.stats().rtt_count == 1).await;
    // The first one's Pong once more answers nothing: the newer Ping has the rest of its time, and no more.
    ping(&mut raw).await;
    raw.write(&frame(PONG, &first)).await;
    let stale = Instant::now();
    until_quiet("it is called dead", || mainstay.stats().connections == 0).await;
    assert!(stale.elapsed() <= 6 * SECOND, "{:?}", stale.elapsed());
    assert_eq!((mainstay.stats().rtt_count, mainstay.stats().dead_silent), (1, 1));

    // A peer that answers nothing and sends something is alive, only not listening.
    let mut raw = Raw::open(address, "").await;
    let mut pings = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < 400 * SECOND {
        match tokio::time::timeout(3 * SECOND, ping(&mut raw)).await {
            Ok(payload) => pings.push(payload),
            Err(_) => raw.write(&frame(PONG, b"unasked")).await,
        }
    }
    let stats = mainstay.stats();
    assert_eq!((stats.rtt_count, stats.connections, stats.not_listening), (1, 1, 1), "{stats:?}");
    // The newest one's Pong answers all before it: from now on it is missed no more.
    raw.write(&frame(PONG, pings.last().unwrap())).await;
    let begin = Instant::now();
    while begin.elapsed() < 400 * SECOND {
        let payload = ping(&mut raw).await;
        raw.write(&frame(PONG, &payload)).await;
    }
    let stats = mainstay.stats();
    assert!(stats.rtt_count > 30 && stats.connections == 1, "{stats:?}");
    assert_eq!((stats.not_listening, stats.dead_silent), (1, 1), "{stats:?}");
    assert_eq!(stats.rtt_buckets.iter().sum::<u64>(), stats.rtt_count, "{stats:?}");
}

/// A peer that is frozen stays silent; a session's client finds a server that is, and the server the client.
#[tokio::test(start_paused = true)]
async fn r4_a_silent_peer_is_found_within_the_interval_the_deadline_and_a_second() {
    small_leaps(SECOND / 200);
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut raw = Raw::open(address, "").await;
    let payload = ping(&mut raw).await;
    raw.write(&frame(PONG, &payload)).await;
    let silent_since = Instant::now();
    until_quiet("it is called dead", || mainstay.stats().connections == 0).await;
    // 25 s +10 %, and 5 s on a fast link.
    let found = silent_since.elapsed();
    assert!(found >= 5 * SECOND && found <= Duration::from_millis(27_500) + 6 * SECOND, "{found:?}");
    let stats = mainstay.stats();
    assert_eq!(stats.dead_silent + stats.dead_frozen, 1, "{stats:?}");

    let (client, handle) = held_server().await;
    handle.hold(HOUR);
    let silent_since = Instant::now();
    event(&client, |event| matches!(event, Event::Detached { .. }).then_some(())).await;
    let found = silent_since.elapsed();
    assert!(found <= 2 * 25 * SECOND + 6 * SECOND, "{found:?}");
}

/// A client that is attached, and the server's handle on its session.
async fn held_server() -> (Client, mainstay::server::Sender) {
    let (came, mut handles) = mpsc::unbounded_channel();
    let (address, _) = handled(Server::default(), move |session: Session| {
        came.send(session.sender()).unwrap();
        echo(session)
    })
    .await;
    let client = client_at(address);
    attached(&client, 1).await;
    (client, handles.recv().await.unwrap())
}

/// 100 MB each way. What it reads it reads as a slow link brings it: each Ping stands behind what was written before.
#[tokio::test(start_paused = true)]
async fn r4_a_peer_that_moves_100_mb_at_1_mbit_a_second_is_never_called_dead() {
    const PIECE: usize = 12_500;
    const PIECES: usize = 8_000;
    small_leaps(SECOND / 200);
    let limits = Limits { max_message: 128 << 20, ..Limits::default() };
    let config = Config::new().limits(limits).unwrap();
    let (address, mainstay) = handled(Server::new(config), |mut session: Session| async move {
        let large = session.recv().await.unwrap();
        session.send(large).await.unwrap();
        while session.recv().await.is_some() {}
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut raw = Raw::over(socket.connect(address).await.unwrap(), upgrade("").as_bytes()).await;
    raw.write(&crate::hostile::header(BINARY, (PIECE * PIECES) as u64)).await;
    raw.write(&[0; 4]).await;
    for _ in 0..PIECES {
        raw.write(&[0; PIECE]).await;
        tokio::time::sleep(SECOND / 10).await;
    }
    let (mut received, mut fragments) = (0, 0);
    while received < PIECE * PIECES {
        let (first, payload) = raw.frame().await.expect("it is not called dead");
        if first == PING {
            raw.write(&frame(PONG, &payload)).await;
        } else {
            received += payload.len();
            fragments += 1;
            tokio::time::sleep(SECOND * payload.len() as u32 / 125_000).await;
        }
    }
    assert!(fragments > 1_000, "Pings pass between them");
    let stats = mainstay.stats();
    assert_eq!((stats.connections, stats.connections_opened), (1, 1), "{stats:?}");
    assert_eq!(stats.dead_silent + stats.dead_frozen + stats.dead_stalled, 0, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn r5_the_verdict_ends_the_transport_at_once_with_one_reason_at_both_ends() {
    small_leaps(SECOND / 200);
    let (came, mut ended) = mpsc::unbounded_channel();
    let (address, mainstay) = handled(Server::default(), move |mut session: Session| {
        let came = came.clone();
        async move {
            assert!(matches!(session.state(), SessionState::Attached { epoch: 1 }));
            while !matches!(session.changed().await, SessionState::Parked | SessionState::Closed) {}
            came.send(Instant::now()).unwrap();
        }
    })
    .await;
    let mut raw = Raw::open(address, "").await;
    // Never answers, and so never a Close either.
    let verdict = async {
        while mainstay.stats().dead_silent + mainstay.stats().dead_frozen == 0 {
            tokio::time::sleep(SECOND / 1000).await;
        }
        Instant::now()
    };
    let end = async {
        while let Ok((first, _)) = raw.frame().await {
            assert_eq!(first, PING, "no closing handshake with a dead peer");
        }
        Instant::now()
    };
    let (verdict, end, reported) = tokio::join!(verdict, end, ended.recv());
    for moment in [end, reported.unwrap()] {
        let apart = moment.max(verdict) - moment.min(verdict);
        assert!(apart <= SECOND / 20, "{apart:?} apart");
    }
    let stats = mainstay.stats();
    assert_eq!((stats.connections, stats.sessions), (0, 0), "{stats:?}");

    let (mut client, handle) = held_server().await;
    handle.hold(HOUR);
    let (why, next_attempt_in) = event(&client, |event| match event {
        Event::Detached { why, next_attempt_in } => Some((why.clone(), *next_attempt_in)),
        _ => None,
    })
    .await;
    assert_eq!(why, Lost::Dead(Evidence::Silent));
    assert!(next_attempt_in <= SECOND / 5, "{next_attempt_in:?}");
    assert!(attached(&client, 2).await, "resumed");
    comes_back(&mut client, "at once").await;
}

/// As a machine that slept, or a process that was stopped: nothing ran for ten minutes.
#[tokio::test(start_paused = true)]
async fn r8_after_ten_minutes_of_suspension_a_client_looks_within_a_second_and_is_back() {
    small_leaps(SECOND / 200);
    let (mut client, handle) = held_server().await;
    handle.hold(HOUR);
    // What waits at that moment leaps over all that would have been due.
    tokio::time::advance(600 * SECOND).await;
    let woke = Instant::now();
    assert!(attached(&client, 2).await, "resumed over another connection");
    assert!(woke.elapsed() <= SECOND + SECOND / 10, "{:?}", woke.elapsed());
    comes_back(&mut client, "awake").await;
}

/// The other way round: the pause was the server's, and no fault of its clients.
#[tokio::test(start_paused = true)]
async fn r8_after_ten_minutes_of_suspension_a_server_calls_no_client_dead_that_answers() {
    small_leaps(SECOND / 200);
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut plain = Raw::open(address, "").await;
    tokio::time::advance(600 * SECOND).await;
    let begin = Instant::now();
    while begin.elapsed() < 120 * SECOND {
        let payload = ping(&mut plain).await;
        plain.write(&frame(PONG, &payload)).await;
    }
    let stats = mainstay.stats();
    assert_eq!((stats.connections, stats.connections_opened), (1, 1), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn r16_a_client_derives_its_deadline_from_the_interval_that_its_server_announces() {
    small_leaps(SECOND / 200);
    for (interval, expected) in
        [(5 * SECOND, 15 * SECOND), (25 * SECOND, 55 * SECOND), (60 * SECOND, 125 * SECOND)]
    {
        let (came, mut handles) = mpsc::unbounded_channel();
        let mainstay = Server::new(Config::new().heartbeat(every(interval)));
        let (address, _) = handled(mainstay, move |session: Session| {
            came.send(session.sender()).unwrap();
            echo(session)
        })
        .await;
        // The same client each time.
        let mut client = client_at(address);
        comes_back(&mut client, "here").await;
        handles.recv().await.unwrap().hold(HOUR);
        let silent_since = Instant::now();
        let verdict = loop {
            match client.event().await.unwrap() {
                Event::Detached { .. } => break silent_since.elapsed(),
                Event::Attached { .. } => assert!(matches!(client.state(), State::Attached { .. })),
                other => panic!("{other:?}"),
            }
        };
        assert!(verdict >= expected - SECOND && verdict <= expected + SECOND, "{interval:?}: {verdict:?}");
    }
}
