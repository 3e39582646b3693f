//! What answers where an engine should be, and is none, or does what no real one does. Real engines: `tests/engine`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mainstay::cluster::{Driver, Engine, Report, start};
use mainstay_proto::cluster::request::{EngineEvent, Request, RequestId, Response};
use mainstay_proto::session::message::SessionId;
use mainstay_proto::session::{NodeId, Record};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// What a fake does with one command: it answers these bytes, or nothing and keeps the connection, or closes it after them.
enum Does {
    Answers(Vec<u8>),
    Nothing,
    Closes(Vec<u8>),
}

fn answers(bytes: impl AsRef<[u8]>) -> Does {
    Does::Answers(bytes.as_ref().to_vec())
}

/// Listens, and gives each connection to `serve`.
async fn listen<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// An engine whose answers are `does`, given the words of each command.
async fn fake(does: impl Fn(&[String]) -> Does + Send + Sync + 'static) -> Engine {
    let does = Arc::new(does);
    let address = listen(move |stream| {
        let does = Arc::clone(&does);
        async move {
            let mut stream = BufReader::new(stream);
            while let Some(words) = command(&mut stream).await {
                let (bytes, ends) = match does(&words) {
                    Does::Answers(bytes) => (bytes, false),
                    Does::Nothing => continue,
                    Does::Closes(bytes) => (bytes, true),
                };
                if stream.write_all(&bytes).await.is_err() || ends {
                    return;
                }
            }
        }
    });
    engine(address.await)
}

/// The words of one command; `None`: the connection was closed, or what came is no command.
async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let count = number(stream, '*').await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(stream, '$').await? + 2];
        stream.read_exact(&mut word).await.ok()?;
        words.push(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned());
    }
    Some(words)
}

async fn number(stream: &mut BufReader<TcpStream>, kind: char) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.strip_prefix(kind)?.trim_end().parse().ok()
}

fn engine(address: SocketAddr) -> Engine {
    Engine::parse(&format!("redis://{address}")).unwrap()
}

/// What a sound engine answers to the commands of a connect and to a heartbeat.
fn sound(words: &[String]) -> Does {
    let info = "redis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nrun_id:0123456789abcdef0\r\n\
                master_replid:0123456789abcdef0\r\n";
    match words[0].as_str() {
        "INFO" => answers(format!("${}\r\n{info}\r\n", info.len())),
        "SCRIPT" => answers(format!("$40\r\n{}\r\n", hash(&words[2]))),
        "HSET" => answers(":1\r\n"),
        "HGETALL" => answers("*0\r\n"),
        "EVALSHA" => answers("*1\r\n$6\r\nstored\r\n"),
        _ => answers("+OK\r\n"),
    }
}

fn hash(script: &str) -> String {
    Sha1::digest(script).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks that a check fails for this reason.
async fn fails(engine: Engine, words: &str, permanent: bool) {
    let error = engine.check("test").await.unwrap_err();
    let line = error.to_string();
    assert!(line.contains(words) && !line.contains('\n'), "{line}");
    assert_eq!(error.is_permanent(), permanent, "{line}");
}

struct Node {
    driver: Driver,
    reports: UnboundedReceiver<Report>,
    /// What came while a response was awaited.
    events: VecDeque<EngineEvent>,
}

impl Node {
    fn start(engine: Engine) -> Self {
        let (sender, reports) = unbounded_channel();
        let driver = start(engine, "test", move |report| _ = sender.send(report));
        Self { driver, reports, events: VecDeque::new() }
    }

    async fn event(&mut self) -> EngineEvent {
        if let Some(event) = self.events.pop_front() {
            return event;
        }
        match self.reports.recv().await.unwrap() {
            Report::Event(event) => event,
            Report::Response(id, response) => panic!("{id:?} {response:?}"),
        }
    }

    /// Returns the response. Events that come before it are kept.
    async fn ask(&mut self, request: Request) -> Response {
        self.driver.send(RequestId(1), request);
        loop {
            match self.reports.recv().await.unwrap() {
                Report::Response(_, response) => return response,
                Report::Event(event) => self.events.push_back(event),
            }
        }
    }
}

fn heartbeat() -> Request {
    Request::Heartbeat { node: NodeId([1; 8]), value: "1".into() }
}

fn release() -> Request {
    let record = Record { head: vec![1; 40].into(), saved: None, messages: Vec::new() };
    let (session, owner, keep) = (SessionId([1; 8]), NodeId([1; 8]), Duration::from_secs(60));
    Request::Release { session, owner, claim: 1, number: 1, record, keep }
}

#[tokio::test]
async fn a_web_server_is_no_engine() {
    let address = listen(|mut stream| async move {
        let _ = stream.read(&mut [0; 100]).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    });
    let address = address.await;
    fails(engine(address), "a web server answers", true).await;
    fails(Engine::parse(&format!("rediss://{address}")).unwrap(), "a web server answers", true).await;
}

#[tokio::test]
async fn what_answers_anything_else_is_no_engine() {
    let nested = b"*1\r\n".repeat(100_000);
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"\0\x01\x02\x03\x04",
        b"$999999999999\r\nx",
        &[0xff; 5_000],
        &nested,
    ] {
        let garbage = garbage.to_vec();
        let address = listen(move |mut stream| {
            let garbage = garbage.clone();
            async move {
                let _ = stream.read(&mut [0; 100]).await;
                let _ = stream.write_all(&garbage).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        fails(engine(address.await), "is no Redis and no Valkey", true).await;
    }
    // Answers of another form than the command has.
    fails(fake(|_| answers(":7\r\n")).await, "an answer that no Redis and no Valkey gives", true).await;
    let of_scripts =
        |words: &[String]| if words[0] == "SCRIPT" { answers("$2\r\nxx\r\n") } else { sound(words) };
    fails(fake(of_scripts).await, "another hash", true).await;
}

#[tokio::test]
async fn an_engine_that_closes_or_says_half_is_away() {
    fails(fake(|_| Does::Closes(Vec::new())).await, "closed the connection", false).await;
    fails(fake(|_| Does::Closes(b"$1000\r\nredis_ver".to_vec())).await, "the answer is cut", false).await;
    fails(fake(|_| answers("$1000\r\nredis_ver")).await, "no answer within", false).await;
    fails(fake(|_| Does::Nothing).await, "no answer within", false).await;
    fails(
        fake(|_| Does::Closes(b"-ERR max number of clients reached\r\n".to_vec())).await,
        "raise maxclients",
        false,
    )
    .await;
}

#[tokio::test]
async fn each_refusal_has_its_reason_and_its_remedy() {
    for (answer, words, permanent) in [
        ("-LOADING Redis is loading the dataset in memory", "is loading its data", false),
        (
            "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "lost its primary",
            false,
        ),
        ("-BUSY Redis is busy running a script.", "SCRIPT KILL", false),
        (
            "-MISCONF Errors writing to the AOF file: No space left on device",
            "No space left on device",
            false,
        ),
        ("-CLUSTERDOWN Hash slot not served", "CLUSTER NODES", false),
        ("-DENIED Redis is running in protected mode because", "protected mode", true),
        ("-MOVED 1234 10.0.0.1:6379", "write redis+cluster://", true),
        ("-READONLY You can't write against a read only replica.", "name the primary", true),
        ("-ERR something\x07 new\x1b[2J", "cannot serve: ERR something  new [2J", true),
        ("-", "cannot serve", true),
    ] {
        // As the answer to the scripts of the trial, and to everything.
        let does = move |words: &[String]| match words[0].as_str() {
            "EVALSHA" => answers(format!("{answer}\r\n")),
            _ => sound(words),
        };
        fails(fake(does).await, words, permanent).await;
        fails(fake(move |_| answers(format!("{answer}\r\n"))).await, words, permanent).await;
    }
}

#[tokio::test]
async fn an_engine_that_loads_its_data_is_joined_when_it_is_done() {
    let asked = AtomicUsize::new(0);
    let engine = fake(move |words| {
        let loads = words[0] == "INFO" && asked.fetch_add(1, Ordering::Relaxed) < 3;
        if loads { answers("-LOADING Redis is loading the dataset in memory\r\n") } else { sound(words) }
    });
    let mut node = Node::start(engine.await);
    let event = node.event().await;
    assert!(matches!(&event, EngineEvent::Unreachable { reason } if reason.contains("loading")), "{event:?}");
    let event = node.event().await;
    assert!(matches!(event, EngineEvent::Reachable { incarnation: Some(_) }), "{event:?}");
}

#[tokio::test]
async fn a_request_that_gets_half_an_answer_is_unknown() {
    let engine = fake(|words| match words[0].as_str() {
        "HGETALL" => answers("*4\r\n$16\r\n0000"),
        _ => sound(words),
    });
    let mut node = Node::start(engine.await);
    assert!(matches!(node.event().await, EngineEvent::Reachable { .. }));
    assert_eq!(node.ask(heartbeat()).await, Response::Unknown);
    assert!(matches!(node.event().await, EngineEvent::Unreachable { .. }), "nothing comes behind it either");
}

#[tokio::test]
async fn an_answer_that_no_engine_gives_is_refused() {
    for answer in [
        "*0\r\n",
        "*1\r\n$5\r\nother\r\n",
        "*2\r\n$6\r\nstored\r\n:1\r\n",
        "*2\r\n$6\r\nfenced\r\n$2\r\nxx\r\n",
        ":1\r\n",
    ] {
        let engine = fake(move |words| match words[0].as_str() {
            "EVALSHA" => answers(answer),
            _ => sound(words),
        });
        let mut node = Node::start(engine.await);
        assert!(matches!(node.event().await, EngineEvent::Reachable { .. }));
        let response = node.ask(release()).await;
        assert!(matches!(response, Response::Refused(_)), "{answer:?}: {response:?}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_serve_now_is_left() {
    for code in ["LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MOVED", "NOAUTH"] {
        let engine = fake(move |words| match words[0].as_str() {
            "EVALSHA" => answers(format!("-{code} for a test\r\n")),
            _ => sound(words),
        });
        let mut node = Node::start(engine.await);
        assert!(matches!(node.event().await, EngineEvent::Reachable { .. }));
        node.driver.send(RequestId(7), release());
        let event = node.event().await;
        assert!(matches!(&event, EngineEvent::Unreachable { reason } if reason.contains(code)), "{event:?}");
        let report = node.reports.recv().await.unwrap();
        assert!(matches!(report, Report::Response(RequestId(7), Response::Unknown)), "{report:?}");
    }
}

#[tokio::test]
async fn garbage_in_place_of_an_answer_ends_the_connection() {
    let engine = fake(|words| match words[0].as_str() {
        "HGETALL" => answers("garbage\r\n"),
        _ => sound(words),
    });
    let mut node = Node::start(engine.await);
    assert!(matches!(node.event().await, EngineEvent::Reachable { .. }));
    assert_eq!(node.ask(heartbeat()).await, Response::Unknown);
    // It connects anew, and is back.
    loop {
        if let EngineEvent::Reachable { .. } = node.event().await {
            return;
        }
    }
}
