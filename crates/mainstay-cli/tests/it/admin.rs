//! `--admin`: health, readiness, and access to the metrics.

use std::io::{Read, Write};
use std::net::TcpStream;

use mainstay::{Client, Link};
use tokio::net::TcpListener;

use crate::flags::check;
use crate::frames::Frames;
use crate::support::{Gateway, until};

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap()
}

#[tokio::test]
async fn the_process_is_ready_until_it_drains_and_alive_to_its_end() {
    let gateway = Gateway::start(&["--admin", "127.0.0.1:0"]);
    // Two plain clients, which are drained one after the other, so that the drain takes some seconds.
    let url = format!("{}/echo", gateway.url);
    let first = Link::builder(&url).unwrap().connect_once().await.unwrap();
    let second = Link::builder(&url).unwrap().connect_once().await.unwrap();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(&gateway.get(path, "")), "200", "{path}");
    }
    gateway.signal("TERM");
    until("the process is not ready any more", || status(&gateway.get("/readyz", "")) == "503").await;
    assert!(gateway.get("/readyz", "").ends_with("draining\n"));
    assert_eq!(status(&gateway.get("/healthz", "")), "200");
    drop((first, second));
}

#[tokio::test]
async fn a_dead_backend_is_counted_on_its_leg() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Gateway::in_front_of(address, &["--admin", "127.0.0.1:0", "--heartbeat", "100ms"]);
    let _client = Client::builder(&gateway.url).unwrap().connect();
    // Answers one Ping: a backend that never answers one is not declared dead. Then it stalls.
    let (_, mut silent) = Frames::serve(&listener).await;
    let (_, ping) = silent.read().await.unwrap();
    silent.write(0x8a, &ping).await;
    gateway.wait_for_metric("dead_peers_total{leg=\"backend\",evidence=\"silent\"}", 1.0).await;
    assert_eq!(gateway.metric("dead_peers_total{leg=\"client\",evidence=\"silent\"}"), 0.0);
    assert_eq!(gateway.metric("links_lost_total"), 1.0);
}

#[test]
fn a_request_for_another_host_is_refused() {
    let gateway = Gateway::start(&["--admin", "127.0.0.1:0"]);
    let admin = gateway.admin.unwrap();
    let ask = |target: &str, host: &str| {
        let mut stream = TcpStream::connect(admin).unwrap();
        write!(stream, "GET {target}\r\n{host}Connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        status(&answer).to_owned()
    };
    for path in ["/metrics", "/readyz", "/healthz"] {
        let ask = |host: &str| ask(&format!("{path} HTTP/1.1"), &format!("Host: {host}\r\n"));
        for host in ["localhost", &format!("localhost:{}", admin.port()), &admin.to_string(), "[::1]:1"] {
            assert_eq!(ask(host), "200", "{path} {host}");
        }
        for host in ["rebound.example", "localhost.example:80", "10.0.0.9"] {
            assert_eq!(ask(host), "421", "{path} {host}");
        }
        for host in ["a b", "", "localhost\r\nHost: localhost"] {
            assert_eq!(ask(host), "400", "{path} {host}");
        }
    }
    let host = "Host: localhost\r\n";
    assert_eq!(ask("http://rebound.example/metrics HTTP/1.1", host), "421");
    assert_eq!((ask("* HTTP/1.1", host), ask("/healthz HTTP/1.1", "")), ("400".into(), "400".into()));
    assert_eq!(ask("/healthz HTTP/1.0", ""), "200", "HTTP/1.0 needs no Host");
}

#[test]
fn metrics_have_the_content_type_of_prometheus_text() {
    let gateway = Gateway::start(&["--admin", "127.0.0.1:0"]);
    let answer = gateway.get("/metrics", "").to_ascii_lowercase();
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains(concat!("mainstay_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")));
}

#[test]
fn idle_connections_to_the_admin_listener_block_no_health_check() {
    let gateway = Gateway::start(&["--admin", "127.0.0.1:0"]);
    let half = |_| {
        let mut stream = TcpStream::connect(gateway.admin.unwrap()).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHo").unwrap();
        stream
    };
    let halves: Vec<TcpStream> = (0..200).map(half).collect();
    assert_eq!(status(&gateway.get("/healthz", "")), "200");
    drop(halves);
}

#[test]
fn metrics_require_the_token_and_health_checks_do_not() {
    let file = TokenFile::holding("0123456789abcdef\n");
    let mut gateway = Gateway::start(&["--admin", "0.0.0.0:0", "--admin-token-file", file.path()]);
    gateway.admin = gateway.admin.map(|admin| ([127, 0, 0, 1], admin.port()).into());
    for (headers, expected) in [
        ("", "401"),
        ("Authorization: Bearer 0123456789abcdeX\r\n", "401"),
        ("Authorization: Bearer 0123456789abcdef\r\n", "200"),
    ] {
        let answer = gateway.get("/metrics", headers);
        assert_eq!(status(&answer), expected, "{headers}");
        assert_eq!(answer.contains("mainstay_connections"), expected == "200");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(&gateway.get(path, "")), "200", "{path}");
    }
}

#[test]
fn public_metrics_without_a_token_are_a_usage_error() {
    check(
        &["serve", "--admin", "0.0.0.0:9090"],
        &["--admin 0.0.0.0:9090", "127.0.0.1:9090", "--admin-token-file"],
    );
    check(&["serve", "--admin", "[::]:9090"], &["--admin [::]:9090", "loopback"]);
    check(&["serve", "--admin-token-file", "x"], &["--admin"]);
    let with_file = |path: &str, expected: &[&str]| {
        check(&["serve", "--admin", "127.0.0.1:0", "--admin-token-file", path], expected);
    };
    with_file("no/such/file", &["--admin-token-file no/such/file", "No such file"]);
    for wrong in ["", "short", "two words and more", "0123456789abcdef\n0123456789abcdef", &"x".repeat(2000)]
    {
        with_file(TokenFile::holding(wrong).path(), &["--admin-token-file", "one line of 16 to 1024"]);
    }
}

#[tokio::test]
async fn a_new_token_in_the_file_takes_the_place_of_the_old_one_without_a_restart_and_a_wrong_one_is_refused()
{
    let file = TokenFile::holding("0123456789abcdef\n");
    let gateway = Gateway::start(&["--admin", "127.0.0.1:0", "--admin-token-file", file.path()]);
    let with = |token: &str| gateway.get("/metrics", &format!("Authorization: Bearer {token}\r\n"));
    std::fs::write(file.path(), "short\n").unwrap();
    gateway.signal("HUP");
    until("a wrong file is refused", || gateway.log().contains("one line of 16 to 1024")).await;
    let is_refused = || with("0123456789abcdef").contains("mainstay_config_last_reload_successful 0");
    until("the old token stays and the refusal is counted", is_refused).await;
    std::fs::write(file.path(), "fedcba9876543210\n").unwrap();
    gateway.signal("HUP");
    until("the new token is taken over", || gateway.log().contains("requires the token that its file has"))
        .await;
    assert_eq!((status(&with("fedcba9876543210")), status(&with("0123456789abcdef"))), ("200", "401"));
}

pub(crate) struct TokenFile(std::path::PathBuf);

impl TokenFile {
    pub(crate) fn holding(token: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("mainstay-token-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().write_all(token.as_bytes()).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn a_node_whose_engine_is_away_stays_ready_serves_alone_and_reports_that() {
    // Nothing listens on port 1.
    let gateway = Gateway::start(&["--cluster", "redis://127.0.0.1:1", "--admin", "127.0.0.1:0"]);
    let ready = gateway.get("/readyz", "");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("the engine does not answer"), "{ready}");
    assert_eq!(gateway.metric("engine_up"), 0.0);
    let lines = || gateway.log().lines().filter(|line| line.contains("the engine does not answer")).count();
    until("the log says so", || lines() > 0).await;
    assert_eq!(lines(), 1, "{}", gateway.log());
    let (head, _) = Frames::connect(gateway.address(), "/echo", "").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
}
