//! Peers that speak `mainstay.v1`, wrongly.

use std::time::Duration;

use mainstay::HeartbeatConfig;
use mainstay::server::{Config, LifetimeConfig};
use mainstay_proto::session::message::{Beat, ClientKey, Hello, Instance, Resume, ResumeToken};
use mainstay_proto::session::{Control, Frame, Message, Window};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Raw, Stage, frame, upgrade};
use crate::support::{echo_server, until_quiet};

const OFFER: &str = "Sec-WebSocket-Protocol: mainstay.v1\r\n";

pub(super) fn hello(key: u64) -> Hello {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.to_be_bytes());
    Hello {
        window: Window { messages: 1024, bytes: 1 << 20 },
        key: ClientKey(bytes),
        key_age: Duration::ZERO,
        instance: Instance(key.to_be_bytes()),
        attempt: 1,
        resume: None,
        credentials: None,
        resume_window: None,
        max_message: None,
    }
}

pub(super) fn control(control: &Control) -> Vec<u8> {
    frame(0x82, &control.encode())
}

/// The control message in the next frame.
async fn acknowledged(raw: &mut Raw) -> Control {
    loop {
        let (first, payload) = raw.frame().await.unwrap();
        match (first, Frame::decode(Message::Binary(payload.into()))) {
            (0x82, Ok(Frame::Control(control))) => return control,
            (0x89, _) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

fn token_in(answer: Control) -> ResumeToken {
    let Control::Welcome(welcome) = answer else { panic!("{answer:?}") };
    welcome.token
}

/// A connection that sent `hello`, and the answer.
async fn opened(stage: &Stage, hello: Hello) -> (Raw, Control) {
    let mut raw = Raw::open(stage.address, OFFER).await;
    raw.write(&control(&Control::Hello(Box::new(hello)))).await;
    let answer = acknowledged(&mut raw).await;
    (raw, answer)
}

#[tokio::test]
async fn a_first_message_other_than_hello_ends_the_opening() {
    let config = Config::new().opening_deadline(Duration::from_millis(200)).unwrap();
    let stage = Stage::set(config).await;
    for (what, bytes, code) in [
        ("nothing", vec![], 4412),
        ("text", frame(0x81, b"{\"a\":{\"a\":{\"a\":NaN}},\"a\":1e999}"), 4400),
        ("no bytes", frame(0x82, b""), 4400),
        ("an unknown type", frame(0x82, &[0x7f]), 4400),
        ("half a HELLO", frame(0x82, &[1, 1]), 4400),
        ("an ACK", control(&Control::Ack { acknowledged: 0, window: None }), 4400),
        ("a broken frame", vec![0x82, 0], 1002),
    ] {
        let mut raw = Raw::open(stage.address, OFFER).await;
        raw.write(&bytes).await;
        assert_eq!(raw.close_code().await, Some(code), "{what}");
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn an_invalid_message_ends_the_connection_and_the_session_is_kept() {
    let mut stage = Stage::set(Config::default()).await;
    let cases = [
        ("a second HELLO", control(&Control::Hello(Box::new(hello(99))))),
        ("an ACK of what was never written", control(&Control::Ack { acknowledged: 1, window: None })),
        ("an ACK of 2^53", frame(0x82, &[3, 0xc0, 0x20, 0, 0, 0, 0, 0, 0])),
        ("a field that ends early", frame(0x82, &[4, 1])),
        // The counts of both ends differ: nothing more can be promised.
        ("a jump in positions", control(&Control::Ping(Beat { nonce: 1, sent: 7, acknowledged: 0 }))),
    ];
    for (key, (what, bytes)) in (0..).zip(cases) {
        let (mut raw, answer) = opened(&stage, hello(key)).await;
        let token = token_in(answer);
        raw.write(&control(&Control::Ack { acknowledged: 0, window: None })).await;
        raw.write(&bytes).await;
        assert_eq!(raw.close_code().await, Some(4400), "{what}");
        assert_eq!(stage.mainstay.stats().session_errors, key + 1, "{what}");
        let resume = Some(Resume { token, acknowledged: 0, sent: 0, first_held: 1 });
        let (_, answer) = opened(&stage, Hello { resume, attempt: 2, ..hello(key) }).await;
        match answer {
            Control::Welcome(welcome) => assert!(welcome.resumed, "{what}"),
            Control::Refuse { code, .. } => assert_eq!((what, code), ("a jump in positions", 4400)),
            other => panic!("{what}: {other:?}"),
        }
    }
    stage.honest_client_is_served("afterwards").await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_costs_no_more_memory_than_its_windows() {
    let mut stage = Stage::set(Config::default()).await;
    let (mut raw, _) = opened(&stage, hello(1)).await;
    raw.write(&control(&Control::Ack { acknowledged: 0, window: None })).await;
    // The handler echoes until its `keep` is full; then it receives nothing, and the window is full, too.
    let message = frame(0x82, &[0; 60_000]);
    let mut written = 0;
    let flooding = async {
        while tokio::io::AsyncWriteExt::write_all(&mut raw.stream, &message).await.is_ok() {
            written += 1;
            assert!(stage.mainstay.kept_bytes() <= (1 << 20) + 60_000);
        }
    };
    tokio::time::timeout(super::LIMIT, flooding).await.expect("the server closes");
    assert!(written >= 20, "{written} of 60,000 bytes fit into both windows");
    assert_eq!(stage.mainstay.stats().session_errors, 1);
    stage.honest_client_is_served("afterwards").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_racing_attaches_gets_the_session_and_the_others_a_close() {
    const RACERS: u64 = 4;
    let stage = Stage::set(Config::new().resume_window(Duration::from_secs(1)).unwrap()).await;
    let (first, answer) = opened(&stage, hello(1)).await;
    let (mut winner, mut token, mut echoed) = (first, token_in(answer), 0);
    for round in 0..50 {
        winner.write(&control(&Control::Ack { acknowledged: echoed, window: None })).await;
        let racing = (0..RACERS).map(|racer| {
            let resume =
                Some(Resume { token: token.clone(), acknowledged: echoed, sent: echoed, first_held: 1 });
            let hello = Hello { resume, attempt: 2 + round * RACERS + racer, ..hello(1) };
            let address = stage.address;
            tokio::spawn(async move {
                let mut raw = Raw::open(address, OFFER).await;
                raw.write(&control(&Control::Hello(Box::new(hello)))).await;
                let answer =
                    raw.frame().await.ok().map(|(_, payload)| Frame::decode(Message::Binary(payload.into())));
                match answer {
                    Some(Ok(Frame::Control(Control::Welcome(welcome)))) => Some((raw, welcome)),
                    // A later attempt was there first: it was refused, or closed before it was welcomed.
                    _ => None,
                }
            })
        });
        let mut welcomed = Vec::new();
        for racer in racing.collect::<Vec<_>>() {
            welcomed.extend(racer.await.unwrap());
        }
        welcomed.sort_by_key(|(_, welcome)| welcome.epoch);
        let (mut raw, welcome) = welcomed.pop().expect("one of them has the session");
        assert!(welcome.resumed, "round {round}");
        assert_eq!(winner.close_code().await, Some(4409), "round {round}");
        for (mut loser, _) in welcomed {
            assert_eq!(loser.close_code().await, Some(4409), "round {round}");
        }
        raw.write(&control(&Control::Ack { acknowledged: echoed, window: None })).await;
        raw.echoes("it goes on").await;
        (winner, token, echoed) = (raw, welcome.token, echoed + 1);
    }
    drop(winner);
    stage.ends_alone().await;
}

#[tokio::test]
async fn a_pong_that_answers_no_probe_measures_nothing() {
    let heartbeat = HeartbeatConfig::every(Duration::from_millis(100)).unwrap();
    let (address, mainstay) = echo_server(Config::new().heartbeat(heartbeat)).await;
    let mut raw = Raw::open(address, OFFER).await;
    raw.write(&control(&Control::Hello(Box::new(hello(8))))).await;
    let pong = |nonce| control(&Control::Pong(Beat { nonce, sent: 0, acknowledged: 0 }));
    let unasked = (0..100).map(pong).collect::<Vec<_>>().concat();
    raw.write(&unasked).await;
    let probe = loop {
        if let Control::Ping(probe) = acknowledged(&mut raw).await {
            break probe.nonce;
        }
    };
    for bytes in [pong(probe), pong(probe), unasked] {
        raw.write(&bytes).await;
    }
    raw.write(&frame(0x81, b"all is read")).await;
    while raw.frame().await.unwrap() != (0x81, b"all is read".to_vec()) {}
    let stats = mainstay.stats();
    assert_eq!((stats.rtt_count, stats.rtt_buckets.iter().sum()), (1, 1_u64), "one probe was answered");
    assert_eq!((stats.messages_in, stats.bytes_in), (1, 11));
}

#[tokio::test]
async fn an_acknowledgement_that_goes_back_is_ignored() {
    let stage = Stage::set(Config::new().resume_window(Duration::from_millis(50)).unwrap()).await;
    let (mut raw, _) = opened(&stage, hello(5)).await;
    raw.write(&frame(0x81, b"a")).await;
    loop {
        let (first, payload) = raw.frame().await.unwrap();
        if first == 0x81 {
            break assert_eq!(payload, b"a");
        }
    }
    for acknowledged in [1, 0, 1] {
        raw.write(&control(&Control::Ack { acknowledged, window: None })).await;
    }
    raw.write(&frame(0x81, b"b")).await;
    loop {
        let (first, payload) = raw.frame().await.unwrap();
        if first == 0x81 {
            break assert_eq!(payload, b"b");
        }
    }
    drop(raw);
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_guessed_token_gets_a_fresh_session_and_disturbs_no_other() {
    let stage = Stage::set(Config::new().resume_window(Duration::from_millis(50)).unwrap()).await;
    for guess in 0..300_u64 {
        let token = ResumeToken(guess.to_be_bytes().repeat(3).into());
        let resume = Some(Resume { token, acknowledged: 0, sent: 0, first_held: 1 });
        let (raw, answer) = opened(&stage, Hello { resume, ..hello(guess) }).await;
        let Control::Welcome(welcome) = answer else { panic!("{answer:?}") };
        assert!(!welcome.resumed && welcome.acknowledged == 0, "{welcome:?}");
        drop(raw);
    }
    assert_eq!(stage.mainstay.stats().attached_lost, 300);
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_token_is_worthless_at_another_path_even_if_a_nested_router_sees_the_same_rest() {
    let mut stage = Stage::set(Config::default()).await;
    let (raw, answer) = opened(&stage, hello(1)).await;
    drop(raw);
    let mut token = token_in(answer);
    let attempts = [("/nested/echo", false), ("/echo?and=a+query", true), ("/nested/echo", false)];
    for (attempt, (path, is_resumed)) in (2..).zip(attempts) {
        let resume = Some(Resume { token: token.clone(), acknowledged: 0, sent: 0, first_held: 1 });
        let hello = Hello { resume, attempt, key_age: Duration::from_secs(1), ..hello(1) };
        let stream = TcpStream::connect(stage.address).await.unwrap();
        let request = upgrade(OFFER).replace("/echo", path);
        let mut raw = Raw::over(stream, request.as_bytes()).await;
        raw.write(&control(&Control::Hello(Box::new(hello)))).await;
        let Control::Welcome(welcome) = acknowledged(&mut raw).await else { panic!("no WELCOME at {path}") };
        assert_eq!(welcome.resumed, is_resumed, "{path}");
        if is_resumed {
            token = welcome.token;
        }
    }
    stage.honest_client_is_served("afterwards").await;
}

#[tokio::test]
async fn sessions_that_are_opened_and_abandoned_are_bounded_in_number() {
    let mut stage = Stage::set(Config::new().max_sessions(11).unwrap()).await;
    let mut refused = 0;
    for key in 0..100 {
        let (mut raw, answer) = opened(&stage, hello(key)).await;
        if let Control::Refuse { code, temporary, .. } = answer {
            assert_eq!((code, temporary), (4413, true));
            assert_eq!(raw.close_code().await, Some(4413));
            refused += 1;
        }
        assert!(stage.mainstay.stats().sessions <= 11);
    }
    // The honest client has one, and ten were there for the others.
    assert_eq!((refused, stage.mainstay.stats().attach_refused), (90, 90));
    stage.honest_client_is_served("afterwards").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_leave_when_asked_to_is_closed() {
    let lifetime = LifetimeConfig::default().max_lifetime(Duration::from_secs(60)).unwrap();
    let (address, mainstay) = echo_server(Config::new().lifetime(lifetime)).await;
    let mut raw = Raw::open(address, OFFER).await;
    raw.write(&control(&Control::Hello(Box::new(hello(1))))).await;
    let mut asked = 0;
    let code = loop {
        let (first, payload) = raw.frame().await.unwrap();
        match (first, Frame::decode(Message::Binary(payload.clone().into()))) {
            (0x88, _) => break u16::from_be_bytes(*payload.first_chunk().unwrap()),
            (0x89, _) => raw.write(&frame(0x8a, &payload)).await,
            (_, Ok(Frame::Control(Control::Ping(beat)))) => raw.write(&control(&Control::Pong(beat))).await,
            (_, Ok(Frame::Control(Control::GoAway { .. }))) => asked += 1,
            _ => {}
        }
    };
    assert_eq!((asked, code), (1, 1012));
    until_quiet("its session is parked", || mainstay.stats().connections == 0).await;
    assert_eq!((mainstay.stats().sessions, mainstay.stats().left_old), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_that_acknowledges_nothing_is_closed_all_the_same() {
    let lifetime = LifetimeConfig::default().idle_timeout(Duration::from_secs(60)).unwrap();
    let (address, mainstay) = echo_server(Config::new().lifetime(lifetime)).await;
    let mut raw = Raw::open(address, OFFER).await;
    raw.write(&control(&Control::Hello(Box::new(hello(1))))).await;
    raw.write(&frame(0x81, b"echo me")).await;
    let mut ends = Vec::new();
    while let Ok((_, payload)) = raw.frame().await {
        match Frame::decode(Message::Binary(payload.into())) {
            Ok(Frame::Control(Control::Ping(beat))) => {
                let beat = Beat { sent: 1, acknowledged: 0, ..beat };
                raw.write(&control(&Control::Pong(beat))).await;
            }
            Ok(Frame::Control(Control::End { code, .. })) => ends.push((code, Instant::now())),
            _ => {}
        }
    }
    let [(code, ended)] = ends[..] else { panic!("{ends:?}") };
    assert_eq!((code, ended.elapsed().as_secs()), (4500, 5), "it answered END with nothing, and was dropped");
    until_quiet("its session is over", || mainstay.stats().sessions == 0).await;
    assert_eq!(mainstay.stats().left_idle, 1);
}
