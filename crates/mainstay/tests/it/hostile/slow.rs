//! Peers that stop: in the middle of a frame, with reading, with everything. Time is tokio's, which leaps whenever
//! nothing is left to do.

use std::time::Duration;

use mainstay::server::Config;
use mainstay::{Client, HeartbeatConfig, Message, Server, Window};
use mainstay_proto::session::Control;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::Instant;

use super::session::{control, hello};
use super::{Raw, Stage, frame, header};
use crate::support::{echo, echo_server, handled, until_quiet};

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_in_the_middle_of_a_frame_is_found_by_the_heartbeat() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut raw = Raw::open(address, "").await;
    raw.write(&header(0x82, 60_000)).await;
    raw.write(&[0; 500]).await;
    until_quiet("it is called dead", || mainstay.stats().connections == 0).await;
    let stats = mainstay.stats();
    assert_eq!((stats.dead_silent + stats.dead_frozen, stats.sessions), (1, 0), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_writes_and_never_reads_is_found_by_the_heartbeat_and_bounded() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut raw = Raw::open(address, "").await;
    let message = frame(0x82, &[7; 60_000]);
    let writing = tokio::spawn(async move {
        let mut count = 0_u64;
        while raw.stream.write_all(&message).await.is_ok() {
            count += 1;
        }
        count
    });
    until_quiet("it is called dead", || {
        // What waits for it never exceeds the window by more than a message.
        assert!(mainstay.kept_bytes() <= (1 << 20) + 60_000);
        mainstay.stats().connections == 0 && mainstay.stats().connections_opened == 1
    })
    .await;
    let stats = mainstay.stats();
    assert_eq!(stats.dead_silent + stats.dead_frozen + stats.dead_stalled, 1, "{stats:?}");
    until_quiet("nothing is left", || mainstay.stats().sessions == 0).await;
    // The window, the buffers of two kernels, and then nothing.
    assert!(writing.await.unwrap() < 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_never_answered_holds_nothing() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut raw = Raw::open(address, "").await;
    // Broken: the server closes, and the peer just stays.
    raw.write(&[0x81, 1, b'x']).await;
    until_quiet("the connection is gone", || mainstay.stats().connections == 0).await;
    // Far beyond the linger.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(raw.close_code().await, Some(1002));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_over_http_and_reads_no_answer_is_dropped() {
    let stage = Stage::set(Config::default()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut stream = socket.connect(stage.address).await.unwrap();
    let asking =
        async { while stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(3600), asking).await.expect("the server drops it");
    stage.ends_unharmed().await;
}

/// For ten minutes, with an inbox so full that nothing more is read, the peer's Pongs neither.
#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_is_no_evidence_against_its_peer() {
    let config = Config::new()
        .heartbeat(HeartbeatConfig::every(Duration::from_secs(1)).unwrap())
        .accept(Window { messages: 16, bytes: 1024 * 1024 });
    let (address, mainstay) = handled(Server::new(config), |session| async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        echo(session).await;
    })
    .await;
    let mut plain = Raw::open(address, "").await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    let texts = || (0..100).map(|n| n.to_string());
    for text in texts() {
        plain.write(&frame(0x81, text.as_bytes())).await;
        client.send(Message::text(text)).await.unwrap();
    }
    let plain_hears = async {
        for text in texts() {
            plain.expects(&text).await;
        }
    };
    let client_hears = async {
        for text in texts() {
            assert_eq!(client.recv().await, Some(Message::text(text)));
        }
    };
    tokio::join!(plain_hears, client_hears);
    let stats = mainstay.stats();
    assert_eq!(
        stats.dead_silent + stats.dead_frozen + stats.dead_stalled + stats.not_listening,
        0,
        "{stats:?}"
    );
    assert_eq!((stats.connections_opened, stats.connections), (2, 2), "{stats:?}");
}

/// So little is no progress that TCP would report.
#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_a_byte_a_second_is_found_by_the_heartbeat_and_bounded() {
    let (address, mainstay) = handled(Server::new(Config::default()), |session| async move {
        let message = Message::binary(vec![7; 60_000]);
        while session.send(message.clone()).await.is_ok() {}
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let mut raw = Raw::over(stream, super::upgrade("").as_bytes()).await;
    while mainstay.stats().sessions > 0 && raw.stream.read_u8().await.is_ok() {
        assert!(mainstay.kept_bytes() <= (1 << 20) + 60_000);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    until_quiet("nothing is left", || mainstay.stats().sessions == 0 && mainstay.kept_bytes() == 0).await;
    let stats = mainstay.stats();
    assert_eq!(stats.dead_silent + stats.dead_frozen + stats.dead_stalled, 1, "{stats:?}");
}

/// Also of peers that stay, read nothing and answer no Close.
#[tokio::test(start_paused = true)]
async fn what_a_broken_connection_held_is_given_back_within_five_seconds() {
    let config = Config::new().resume_window(Duration::from_secs(1)).unwrap();
    let (address, mainstay) = echo_server(config).await;
    let inputs = [
        vec![0x81, 1, b'x'],
        frame(0x83, b""),
        frame(0x81, b"\xff"),
        [header(0x82, 1 << 30), vec![0; 4]].concat(),
        frame(0x89, b"?").repeat(5000),
        [frame(0x02, b""), frame(0x00, b"").repeat(5000)].concat(),
        frame(0x88, &[3, 0xe8]),
    ];
    let mut staying = Vec::new();
    for (key, input) in (0..).zip(inputs.iter().cycle().take(70)) {
        let mut plain = Raw::open(address, "").await;
        plain.write(input).await;
        let mut session = Raw::open(address, "Sec-WebSocket-Protocol: mainstay.v1\r\n").await;
        session.write(&[control(&Control::Hello(Box::new(hello(key)))), input.clone()].concat()).await;
        staying.extend([plain, session]);
    }
    let start = Instant::now();
    until_quiet("all is given back", || {
        let stats = mainstay.stats();
        (stats.connections, stats.sessions, mainstay.kept_bytes()) == (0, 0, 0)
    })
    .await;
    assert!(start.elapsed() <= Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(mainstay.stats().connections_opened, 140);
}
