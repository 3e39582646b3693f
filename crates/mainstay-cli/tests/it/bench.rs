//! `mainstay bench` against `mainstay serve`. Counts only, never times.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use axum::Router;
use mainstay::{Session, SessionUpgrade};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::backend;

const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");

#[test]
fn every_echoed_message_is_counted() {
    let server = Server::start(&[]);
    for extra in
        [&[][..], &["--session"], &["--text"], &["--size", "100KiB"], &["--in-flight", "7", "--threads", "2"]]
    {
        let max = if extra.contains(&"100KiB") { "1MiB" } else { "64KiB" };
        let server = if max == "1MiB" { &Server::start(&["--max-message", max]) } else { &server };
        let found = server.measure("echo", "/echo", extra);
        assert!(number(&found, "messages_per_second") > 0.0, "{found}");
        assert!(number(&found, "messages") > 0.0, "{found}");
        assert_eq!((number(&found, "lost"), number(&found, "foreign")), (0.0, 0.0), "{found}");
    }
}

#[test]
fn without_a_warm_up_the_load_starts_with_the_measurement() {
    let server = Server::start(&[]);
    let found = server.measure("echo", "/echo", &["--warm-up", "0s"]);
    assert!(number(&found, "messages") > 0.0, "{found}");
}

#[test]
fn each_message_of_a_fan_out_reaches_all_connections() {
    let server = Server::start(&[]);
    for extra in [&[][..], &["--session"], &["--threads", "2"], &["--rate", "500"]] {
        // Long enough for a message on a busy machine.
        let found = server.measure("fanout", "/broadcast", &[extra, &["--duration", "4s"]].concat());
        assert!(number(&found, "deliveries_per_second") > 0.0, "{found}");
        assert!(number(&found, "deliveries") > 0.0, "{found}");
        assert_eq!((number(&found, "lost"), number(&found, "foreign")), (0.0, 0.0), "{found}");
    }
}

#[test]
fn after_a_storm_all_connections_are_open_and_all_sessions_resumed() {
    let server = Server::start(&[]);
    let found = server.measure("storm", "/echo", &["--session", "--duration", "20s"]);
    for (key, expected) in
        [("back", 10.0), ("resumed", 10.0), ("sessions_with_loss", 0.0), ("failed_attempts", 0.0)]
    {
        assert_eq!(number(&found, key), expected, "{key} in {found}");
    }
    let found = server.measure("storm", "/echo", &["--threads", "3", "--duration", "20s"]);
    assert_eq!(number(&found, "back"), 10.0, "{found}");
}

#[test]
fn heartbeats_of_both_kinds_are_counted_and_answered() {
    let server = Server::start(&["--heartbeat", "100ms"]);
    for extra in [&["--duration", "1s"][..], &["--duration", "1s", "--session"]] {
        let found = server.measure("idle", "/echo", extra);
        assert!(number(&found, "heartbeats") > 0.0, "{found}");
        assert_eq!(number(&found, "lost"), 0.0, "{found}");
    }
}

#[test]
fn a_handshake_is_counted_when_tcp_has_ended() {
    let found = Server::start(&[]).measure("handshake", "/echo", &[]);
    assert!(number(&found, "handshakes_per_second") > 0.0, "{found}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_servers_own_cpu_and_memory_are_read() {
    let server = Server::start(&[]);
    let found = server.measure("echo", "/echo", &["--pid", &server.process.id().to_string()]);
    for key in ["cpu_us_per_message", "cpu_us_per_opening", "server_resident_bytes"] {
        assert!(number(&found, key) > 0.0, "{key} in {found}");
    }
}

#[test]
fn a_failure_is_one_line_and_an_exit_code() {
    let server = Server::start(&[]);
    for (words, code, line) in [
        (
            &["echo", "URL/nowhere"][..],
            1,
            "10 of 10 connections could not be opened: the server refused the opening handshake with status 404",
        ),
        (&["echo", "ws://127.0.0.1:1/"], 1, "connection refused; is the server running?"),
        (&["fanout", "URL/echo"], 1, "is this the right path?"),
        (&["echo", "http://127.0.0.1:1/"], 2, "must start with ws://"),
        (&["echo", "URL/echo", "--pid", "4294967295"], 2, "--pid 4294967295: no such process"),
    ] {
        let output = server.bench(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {error}");
        assert!(error.contains(line) && error.lines().count() == 1, "{words:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_an_answer_are_counted_although_they_have_no_latency() {
    let answers_three = async |upgrade: SessionUpgrade| {
        upgrade.on_session(async |mut session: Session| {
            for number in 0.. {
                let Some(message) = session.recv().await else { return };
                if number < 3 && session.send(message).await.is_err() {
                    return;
                }
            }
        })
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    backend(listener, Router::new().fallback(answers_three)).await;
    let bench = move || {
        let words = ["echo", &url, "--connections", "10", "--warm-up", "0s", "--duration", "8s", "--json"];
        Command::new(MAINSTAY).arg("bench").args(words).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(bench).await.unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Among the 30 answered ones, those before the last connection was open do not count.
    assert!(number(&found, "messages") <= 30.0, "{found}");
    assert_eq!(number(&found, "unanswered"), 10.0, "{found}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("10 messages were not answered: no answer for 2s or longer"), "{error}");
    assert_eq!(output.status.code(), Some(1));
}

struct Server {
    process: Child,
    url: String,
    /// Keeps the pipe open: the server prints more lines than the test reads.
    _printed: BufReader<ChildStdout>,
}

impl Server {
    fn start(extra: &[&str]) -> Self {
        let mut serve = Command::new(MAINSTAY);
        serve.args(["serve", "--listen", "127.0.0.1:0"]).args(extra).stdout(Stdio::piped());
        let mut process = serve.spawn().unwrap();
        let mut first = String::new();
        let mut printed = BufReader::new(process.stdout.take().unwrap());
        printed.read_line(&mut first).unwrap();
        let (_, url) = first.trim().split_once("listening on ").expect(&first);
        Self { url: url.to_owned(), process, _printed: printed }
    }

    fn measure(&self, scenario: &str, path: &str, extra: &[&str]) -> Value {
        let target = format!("URL{path}");
        let output = self.bench(&[&[scenario, &target, "--json"], extra].concat());
        assert!(output.status.success(), "{scenario} {extra:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn bench(&self, words: &[&str]) -> Output {
        let mut words: Vec<String> = words.iter().map(|word| word.replace("URL", &self.url)).collect();
        for (flag, value) in [("--connections", "10"), ("--duration", "500ms"), ("--warm-up", "50ms")] {
            if !words.iter().any(|word| word == flag) {
                words.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        Command::new(MAINSTAY).arg("bench").args(words).output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn number(found: &Value, key: &str) -> f64 {
    found.get(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key} in {found}"))
}
