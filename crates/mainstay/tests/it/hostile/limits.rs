//! Peers that are too many, and peers that stay too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay::server::{AdmissionConfig, Config, LifetimeConfig, SessionState};
use mainstay::{Client, Message, Server};
use tokio::net::{TcpSocket, TcpStream};

use super::{Raw, Stage, upgrade};
use crate::support::{echo_server, until, until_quiet};

async fn connect_from(local: &str, stage: &Stage) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(local.parse().unwrap()).unwrap();
    socket.connect(stage.address).await.unwrap()
}

#[tokio::test]
async fn a_connection_over_the_limit_gets_503_and_a_time_to_wait() {
    let admission = AdmissionConfig { connections: Some(2), per_address: None };
    let stage = Stage::set(Config::new().admission(admission)).await;
    let mut last = stage.open().await;
    let answer = stage.answer(upgrade("").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let wait = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((1..=10).contains(&wait.parse::<u64>().unwrap()), "{answer}");
    assert_eq!(stage.mainstay.stats().refused_full, 1);
    last.echoes("x").await;
    // A connection that ends makes room.
    drop(last);
    let opened = async {
        loop {
            let answer = TcpStream::connect(stage.address).await.unwrap();
            if answer_is_101(answer).await {
                return;
            }
        }
    };
    tokio::time::timeout(super::LIMIT, opened).await.expect("there is room again");
    stage.ends_unharmed().await;
}

async fn answer_is_101(mut stream: TcpStream) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let _ = stream.write_all(upgrade("").as_bytes()).await;
    let mut line = [0; 12];
    stream.read_exact(&mut line).await.is_ok() && &line == b"HTTP/1.1 101"
}

#[tokio::test]
async fn one_address_that_opens_many_connections_does_not_lock_others_out() {
    let admission = AdmissionConfig { connections: None, per_address: Some(50) };
    let stage = Stage::set(Config::new().admission(admission)).await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(connect_from("127.0.0.2:0", &stage).await);
    }
    // As many again as the limit are waited for, because they may be resumes.
    until("they are refused", || stage.mainstay.stats().refused_address == 400).await;
    // Another address, of which the honest client is one as well.
    let mut other = Raw::over(connect_from("127.0.0.3:0", &stage).await, upgrade("").as_bytes()).await;
    other.echoes("x").await;
    drop((idle, other));
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_refused_resume_comes_back_when_there_is_room() {
    let admission = AdmissionConfig { connections: Some(1), per_address: None };
    let (address, mainstay) = echo_server(Config::new().admission(admission)).await;
    let taken = TcpStream::connect(address).await.unwrap();
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send(Message::text("x")).await.unwrap();
    until("it is refused", || mainstay.stats().refused_full >= 1).await;
    drop(taken);
    assert_eq!(client.recv().await, Some(Message::text("x")));
}

fn lifetime(of: impl Fn(LifetimeConfig) -> Result<LifetimeConfig, mainstay::ConfigError>) -> Config {
    Config::new().lifetime(of(LifetimeConfig::default()).unwrap())
}

#[tokio::test]
async fn a_client_without_a_message_for_the_idle_timeout_is_ended_with_4500() {
    let config = lifetime(|config| config.idle_timeout(Duration::from_secs(1)));
    let (address, mainstay) = echo_server(config).await;
    let mut raw = Raw::open(address, "").await;
    raw.echoes("x").await;
    assert_eq!(raw.close_code().await, Some(4500));
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send(Message::text("x")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("x")));
    // The session is over, not only its connection: it does not come back.
    assert_eq!(client.recv().await, None);
    until("both are gone", || mainstay.stats().sessions == 0).await;
    assert_eq!(mainstay.stats().left_idle, 2);
}

#[tokio::test]
async fn an_old_connection_leaves_and_its_session_stays() {
    let config = lifetime(|config| config.max_lifetime(Duration::from_secs(1)));
    let (address, mainstay) = echo_server(config).await;
    let mut raw = Raw::open(address, "").await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    for n in 0..2 {
        client.send(Message::text(n.to_string())).await.unwrap();
        assert_eq!(client.recv().await, Some(Message::text(n.to_string())));
        until("the session moves", || mainstay.stats().attached_resumed > n).await;
    }
    assert_eq!(raw.close_code().await, Some(1012));
    assert!(mainstay.stats().left_old >= 2);
    assert_eq!((mainstay.stats().attached_new, mainstay.stats().attached_lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_at_work_is_not_idle() {
    let config = lifetime(|config| config.idle_timeout(Duration::from_secs(4)));
    let (address, mainstay) = echo_server(config).await;
    let mut raw = Raw::open(address, "").await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        raw.echoes("x").await;
    }
    assert_eq!(mainstay.stats().left_idle, 0);
    until_quiet("it is idle at last", || mainstay.stats().left_idle == 1).await;
}

/// Before there is a future that the session could live in.
#[tokio::test]
async fn a_handler_that_panics_when_it_is_called_leaves_no_session_behind() {
    let config = Config::new().max_sessions(1).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let (address, mainstay) = crate::support::handled(Server::new(config), move |session| {
        assert!(calls.fetch_add(1, Ordering::Relaxed) > 1, "as the test asks for");
        crate::support::echo(session)
    })
    .await;
    let mut plain = Raw::open(address, "").await;
    assert_eq!(plain.close_code().await, None, "no closing handshake is promised");
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send(Message::text("x")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("x")), "the second session has room");
    let stats = mainstay.stats();
    assert_eq!((stats.sessions, stats.connections), (1, 1), "{stats:?}");
}

/// A handler that panics, beside others on the same server.
#[tokio::test]
async fn a_handler_that_panics_ends_only_its_own_session() {
    let mainstay = Server::default();
    let (address, mainstay) = crate::support::handled(mainstay, |mut session| async move {
        while let Some(message) = session.recv().await {
            assert_ne!(message, Message::text("panic"), "as the test asks for");
            if session.send(message).await.is_err() {
                break;
            }
        }
        assert_eq!(session.state(), SessionState::Closed);
    })
    .await;
    let url = format!("ws://{address}/echo");
    let mut neighbours = Vec::new();
    for _ in 0..8 {
        neighbours.push(Raw::open(address, "").await);
    }
    for _ in 0..8 {
        let mut raw = Raw::open(address, "").await;
        raw.write(&super::frame(0x81, b"panic")).await;
        // A closing handshake is not promised here, only an end.
        raw.close_code().await;
    }
    // A session of `mainstay.v1` ends as well, and its client gets another one.
    let client = Client::builder(&url).unwrap().connect();
    client.send(Message::text("panic")).await.unwrap();
    until("the session is lost", || mainstay.stats().attached_new >= 1 && mainstay.stats().sessions <= 9)
        .await;
    for raw in &mut neighbours {
        raw.echoes("x").await;
    }
    drop((neighbours, client));
    until("nothing is left", || mainstay.stats().sessions == 0 && mainstay.stats().connections == 0).await;
}
