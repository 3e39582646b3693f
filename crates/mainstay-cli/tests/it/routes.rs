//! Several routes by a file, and its reload while clients are connected.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use mainstay::{Client, Link, Message, SessionUpgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::credentials::{answer_on, welcome};
use crate::frames::{Frames, PING, PONG, TEXT};
use crate::support::{Gateway, backend, echo, mainstay, until};

/// A folder of one test; removed when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let folder = std::env::temp_dir().join(format!("mainstay-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// Writes a file as a deployment tool does: to another name first.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let (file, draft) = (self.0.join(name), self.0.join(format!("{name}.new")));
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, &file).unwrap();
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A backend that answers requests with its name, and returns the messages of WebSockets.
async fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |upgrade: Option<SessionUpgrade>, uri: Uri, headers: HeaderMap| async move {
        match upgrade {
            Some(upgrade) => echo(upgrade).await,
            None => described(name, &uri, &headers).into_response(),
        }
    };
    backend(listener, Router::new().fallback(answer)).await;
    address
}

fn described(name: &str, uri: &Uri, headers: &HeaderMap) -> Response {
    let prefix = headers.get("x-forwarded-prefix").map_or("", |prefix| prefix.to_str().unwrap());
    format!("{name} {uri} {prefix}").into_response()
}

/// A gateway with this file, on free ports.
fn gateway(file: &Path) -> Gateway {
    gateway_with(file, &[])
}

fn gateway_with(file: &Path, arguments: &[&str]) -> Gateway {
    let file = ["--config", file.to_str().unwrap(), "--admin", "127.0.0.1:0"];
    Gateway::start(&[&file, arguments].concat())
}

/// Requests a path of a host; returns the status and the body.
async fn get(gateway: SocketAddr, host: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    // The body is in one piece, or in one chunk.
    let body = body.lines().find(|line| line.contains(' ')).unwrap_or_default();
    (head[9..12].to_owned(), body.to_owned())
}

async fn is_echoed(client: &mut Frames, text: &str) {
    client.write(TEXT, text.as_bytes()).await;
    let answer = tokio::time::timeout(Duration::from_secs(30), client.text()).await;
    assert_eq!(answer.expect("no answer").as_deref(), Some(text));
}

#[tokio::test]
async fn each_request_goes_to_the_route_of_its_host_and_path() {
    let (chat, api, rest) = (named("chat").await, named("api").await, named("rest").await);
    let folder = Folder::new("routes");
    let file = folder.write(
        "mainstay.toml",
        &format!(
            r#"
            [routes.chat]
            path = "/chat"
            strip-path = true
            upstream.addresses = ["ws://{chat}"]
            [routes.api]
            hosts = ["api.example.com", "*.api.example.com"]
            upstream.addresses = ["ws://{api}/v1"]
            [routes.status]
            exact-path = "/status"
            upstream.addresses = ["ws://{rest}"]
            "#
        ),
    );
    let gateway = gateway(&file);
    let check = async |host: &str, path: &str, expected: &str| {
        let (status, body) = get(gateway.address(), host, path).await;
        assert_eq!((status.as_str(), body.trim_end()), ("200", expected), "{host} {path}");
    };
    check("x", "/chat/room?a=b", "chat /room?a=b /chat").await;
    check("x", "/chat", "chat / /chat").await;
    check("api.example.com", "/chat", "api /v1/chat").await;
    check("eu.api.example.com:8080", "/", "api /v1").await;
    check("x", "/status", "rest /status").await;
    // A backend would read it as /chat/x.
    let (status, _) = get(gateway.address(), "x", "/%63hat/x").await;
    assert_eq!(status, "400", "the part to remove is not there as it is written");
    for path in ["/", "/chatter", "/status/x", "/chat/../status"] {
        let (status, _) = get(gateway.address(), "x", path).await;
        assert_eq!(status, "404", "{path}");
    }
    assert_eq!(gateway.metric("unrouted_total"), 4.0);
    assert!(gateway.metric("http_requests_total{route=\"chat\",status=\"2xx\"}") >= 2.0);
    let (_, mut client) = Frames::connect(gateway.address(), "/chat/room", "").await;
    is_echoed(&mut client, "through the route").await;
    let (head, _) = Frames::connect(gateway.address(), "/nowhere", "").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}

#[tokio::test]
async fn each_route_has_its_own_origins_and_its_own_heartbeat() {
    let (one, other) = (named("one").await, named("other").await);
    let folder = Folder::new("origins");
    let text = format!(
        r#"
        [routes.one]
        path = "/one"
        upstream.addresses = ["ws://{one}"]
        origins.allow = ["https://example.com"]
        heartbeat.interval = "200ms"
        [routes.other]
        path = "/other"
        upstream.addresses = ["ws://{other}"]
        "#
    );
    let gateway = gateway(&folder.write("mainstay.toml", &text));
    let from = "Origin: https://other.example\r\n";
    let (head, _) = Frames::connect(gateway.address(), "/one", from).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let (head, _) = Frames::connect(gateway.address(), "/other", from).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let (head, _) = Frames::connect(gateway.address(), "/one", "Origin: https://example.com\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(gateway.metric("refused_total{reason=\"origin\"}"), 1.0);
    let (_, mut client) = Frames::connect(gateway.address(), "/one", "").await;
    for _ in 0..3 {
        let frame = tokio::time::timeout(Duration::from_secs(20), client.read()).await;
        let Ok(Ok((PING, payload))) = frame else { panic!("{frame:?}") };
        client.write(PONG, &payload).await;
    }
}

/// A file with these routes, each at the path of its name.
fn routes(routes: &[(&str, SocketAddr)]) -> String {
    routes.iter().fold(String::new(), |mut text, (name, address)| {
        write!(text, "[routes.{name}]\npath = \"/{name}\"\nupstream.addresses = [\"ws://{address}\"]\n")
            .unwrap();
        text
    })
}

#[tokio::test]
async fn a_reload_changes_the_next_requests_and_nothing_that_is_open() {
    let (old, new) = (named("old").await, named("new").await);
    let folder = Folder::new("reload");
    let file = folder.write("mainstay.toml", &routes(&[("a", old), ("gone", old)]));
    let gateway = gateway_with(&file, &["--log-format", "text"]);
    let address = gateway.address();
    let (_, mut plain) = Frames::connect(address, "/a", "").await;
    let (_, mut of_gone) = Frames::connect(address, "/gone", "").await;
    let mut session = Client::builder(&format!("{}/a", gateway.url)).unwrap().connect();
    session.send("before").await.unwrap();
    assert_eq!(session.recv().await, Some(Message::text("before")));
    folder.write("mainstay.toml", &routes(&[("a", new), ("b", new)]));
    gateway.signal("HUP");
    until("the reload", || gateway.log().contains("the configuration was reloaded")).await;
    assert_eq!(get(address, "x", "/a").await.1.trim_end(), "new /a");
    assert_eq!(get(address, "x", "/b").await.1.trim_end(), "new /b");
    assert_eq!(get(address, "x", "/gone").await.0, "404");
    is_echoed(&mut plain, "still there").await;
    is_echoed(&mut of_gone, "of a route that is gone").await;
    session.send("after").await.unwrap();
    assert_eq!(session.recv().await, Some(Message::text("after")));
    gateway.logged("removed=1", 1).await;
    let log = gateway.log();
    assert!(log.contains("added=1") && log.contains("changed=1") && log.contains("removed=1"), "{log}");
    assert_eq!(gateway.metric("config_reloads_total{outcome=\"done\"}"), 1.0);
    assert_eq!(gateway.metric("links_lost_total{route=\"a\"}"), 0.0, "the figures of a route go on");
    assert_eq!(gateway.metric("links{route=\"a\"}"), 2.0);
}

#[tokio::test]
async fn a_wrong_file_is_refused_and_the_configuration_in_force_stays() {
    let old = named("old").await;
    let folder = Folder::new("refused");
    let file = folder.write("mainstay.toml", &routes(&[("a", old)]));
    let gateway = gateway(&file);
    assert_eq!(gateway.metric("config_last_reload_successful"), 1.0);
    let read_at = gateway.metric("config_last_reload_success_timestamp_seconds");
    assert!(read_at > 1e9, "{read_at}");
    folder.write("mainstay.toml", "[routes.a]\npaht = \"/a\"\n");
    gateway.signal("HUP");
    gateway.wait_for_metric("config_last_reload_successful", 0.0).await;
    for words in ["stays in force", "mainstay.toml:2: routes.a.paht"] {
        gateway.logged(words, 1).await;
    }
    let log = gateway.log();
    assert!(log.contains("mainstay.toml:2: routes.a.paht") && log.contains("write path"), "{log}");
    assert_eq!(gateway.metric("config_reloads_total{outcome=\"refused\"}"), 1.0);
    assert_eq!(get(gateway.address(), "x", "/a").await.0, "200");
    std::fs::remove_file(&file).unwrap();
    gateway.signal("HUP");
    gateway.wait_for_metric("config_reloads_total{outcome=\"refused\"}", 2.0).await;
    assert_eq!(get(gateway.address(), "x", "/a").await.0, "200");
    folder.write("mainstay.toml", &routes(&[("a", old)]));
    gateway.signal("HUP");
    gateway.wait_for_metric("config_last_reload_successful", 1.0).await;
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_so_is_a_file_that_it_names() {
    let (one, other) = (named("one").await, named("other").await);
    let folder = Folder::new("watched");
    let secret = folder.write("secret", "first");
    let with_header = |address| {
        routes(&[("a", address)])
            + &format!("upstream.headers = [\"X-Forwarded-Prefix: @{}\"]\n", secret.display())
    };
    let file = folder.write("mainstay.toml", &with_header(one));
    let gateway = gateway(&file);
    let address = gateway.address();
    assert_eq!(get(address, "x", "/a").await.1.trim_end(), "one /a first");
    folder.write("mainstay.toml", &with_header(other));
    gateway.wait_for_metric("config_reloads_total{outcome=\"done\"}", 1.0).await;
    assert_eq!(get(address, "x", "/a").await.1.trim_end(), "other /a first");
    folder.write("secret", "second");
    gateway.wait_for_metric("config_reloads_total{outcome=\"done\"}", 2.0).await;
    assert_eq!(get(address, "x", "/a").await.1.trim_end(), "other /a second");
    until("the cause is logged", || gateway.log().contains("a file has changed")).await;
}

#[tokio::test]
async fn a_file_that_changes_while_the_gateway_starts_is_read_again() {
    let (one, other) = (named("one").await, named("other").await);
    let folder = Folder::new("changed-at-start");
    let file = folder.write("mainstay.toml", &routes(&[("a", one)]));
    let gateway = gateway(&file);
    folder.write("mainstay.toml", &routes(&[("a", other)]));
    gateway.wait_for_metric("config_reloads_total{outcome=\"done\"}", 1.0).await;
    assert_eq!(get(gateway.address(), "x", "/a").await.1.trim_end(), "other /a");
}

#[tokio::test]
async fn a_reload_names_the_settings_that_only_a_restart_changes() {
    let folder = Folder::new("restart");
    let backend = named("backend").await;
    let file = folder.write("mainstay.toml", &routes(&[("a", backend)]));
    let gateway = gateway(&file);
    let more = "state-dir = \"/tmp\"\n[log]\nformat = \"json\"\n";
    folder.write("mainstay.toml", &format!("{more}{}", routes(&[("a", backend)])));
    gateway.signal("HUP");
    until("the settings are named", || gateway.log().contains("take effect at the next start")).await;
    assert!(gateway.log().contains("state-dir, log"), "{}", gateway.log());
    assert_eq!(get(gateway.address(), "x", "/a").await.0, "200");
}

#[tokio::test]
async fn a_supervisor_learns_that_a_reload_begins_and_ends() {
    let folder = Folder::new("notified");
    let backend = named("backend").await;
    let file = folder.write("mainstay.toml", &routes(&[("a", backend)]));
    let path = folder.0.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = mainstay(&["serve", "--listen", "127.0.0.1:0", "--config", file.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &path);
    let gateway = Gateway::begin(command);
    let received = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(received().contains("READY=1"));
    gateway.signal("HUP");
    let reloading = received();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(received().contains("READY=1"));
}

/// Requests that are made one after the other, and how long each took.
struct Requests {
    done: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Vec<Duration>>>,
    pub(crate) answered: Arc<AtomicUsize>,
}

impl Requests {
    /// Each task has one connection, and asks for one route after the other.
    fn start(gateway: SocketAddr, tasks: usize, routes: usize) -> Self {
        let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let task = |first: usize| {
            let (done, answered) = (Arc::clone(&done), Arc::clone(&answered));
            tokio::spawn(async move {
                let (mut took, mut buffer) = (Vec::new(), vec![0; 4096]);
                let mut stream = TcpStream::connect(gateway).await.unwrap();
                stream.set_nodelay(true).unwrap();
                for number in (first..).step_by(7) {
                    if done.load(Relaxed) {
                        return took;
                    }
                    let route = number % routes;
                    let request = format!("GET /r{route}/x HTTP/1.1\r\nHost: x\r\n\r\n");
                    let asked = Instant::now();
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let mut response = String::new();
                    while !response.contains(&format!("/r{route}/x")) {
                        let length = stream.read(&mut buffer).await.unwrap();
                        assert!(length > 0, "the gateway closed a connection: {response}");
                        response += &String::from_utf8_lossy(&buffer[..length]);
                    }
                    took.push(asked.elapsed());
                    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
                    answered.fetch_add(1, Relaxed);
                    // The end of a chunked body.
                    while response.contains("chunked") && !response.ends_with("0\r\n\r\n") {
                        let length = stream.read(&mut buffer).await.unwrap();
                        response += &String::from_utf8_lossy(&buffer[..length]);
                    }
                }
                took
            })
        };
        let tasks = (0..tasks).map(task).collect();
        Self { done, tasks, answered }
    }

    /// Waits until this many more requests were answered.
    async fn go_on(&self, more: usize) {
        let before = self.answered.load(Relaxed);
        until("requests are answered", || self.answered.load(Relaxed) >= before + more).await;
    }

    /// Ends; returns the 99th percentile and the maximum, or panics if a request failed.
    async fn finish(self) -> (Duration, Duration) {
        self.done.store(true, Relaxed);
        let mut took = Vec::new();
        for task in self.tasks {
            took.extend(task.await.unwrap());
        }
        took.sort_unstable();
        (took[took.len() * 99 / 100], took[took.len() - 1])
    }
}

/// A file with this many routes to two backends, which change with each version.
fn many(count: usize, backends: [SocketAddr; 2], version: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let address = backends[(number + version) % 2];
        write!(
            text,
            "[routes.r{number}]\npath = \"/r{number}\"\nupstream.addresses = [\"ws://{address}\"]\n\
             [routes.r{number}.session]\nresume-window = \"{}s\"\n",
            60 + version
        )
        .unwrap();
        text
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_1000_routes_under_load_drops_no_request_no_connection_and_no_session() {
    const ROUTES: usize = 1000;
    let backends = [named("one").await, named("other").await];
    let folder = Folder::new("load");
    let file = folder.write("mainstay.toml", &many(ROUTES, backends, 0));
    let gateway = gateway_with(&file, &["--log-format", "text"]);
    let address = gateway.address();
    let mut open = Vec::new();
    for number in 0..50 {
        let path = format!("/r{}/x", number * 19 % ROUTES);
        let url = format!("{}{path}", gateway.url);
        // It answers Pings, and ends with its connection.
        let plain = Link::builder(&url).unwrap().connect_once().await.unwrap();
        open.push((plain, Client::builder(&url).unwrap().connect()));
    }
    let calm = Requests::start(address, 4, ROUTES);
    calm.go_on(500).await;
    let (calm_99, calm_most) = calm.finish().await;
    let requests = Requests::start(address, 4, ROUTES);
    for version in 1..=3 {
        requests.go_on(100).await;
        folder.write("mainstay.toml", &many(ROUTES, backends, version));
        gateway.signal("HUP");
        gateway.wait_for_metric("config_reloads_total{outcome=\"done\"}", version as f64).await;
        if version == 2 {
            folder.write("mainstay.toml", &(many(ROUTES, backends, 3) + "paht = \"/\"\n"));
            gateway.signal("HUP");
            gateway.wait_for_metric("config_reloads_total{outcome=\"refused\"}", 1.0).await;
        }
        for (plain, session) in &mut open {
            plain.send("plain").await.unwrap();
            assert_eq!(plain.recv().await, Some(Message::text("plain")));
            session.send("session").await.unwrap();
            assert_eq!(session.recv().await, Some(Message::text("session")));
        }
    }
    requests.go_on(100).await;
    let (loaded_99, loaded_most) = requests.finish().await;
    let millis =
        gateway.log().lines().filter_map(|line| line.split("millis=").nth(1)).collect::<Vec<_>>().join(", ");
    println!(
        "3 reloads of {ROUTES} routes and a wrong file: nothing lost; 99 % of requests within {loaded_99:?} (without a reload \
         {calm_99:?}), all within {loaded_most:?} ({calm_most:?}); a reload took {millis} ms"
    );
    assert_eq!(gateway.metric("connections_opened_total"), 100.0, "no session has connected again");
    let metrics = gateway.get("/metrics", "");
    let lost = metrics.lines().filter(|line| line.starts_with("mainstay_links_lost_total"));
    assert!(lost.map(|line| line.rsplit(' ').next().unwrap()).all(|count| count == "0"));
}

#[tokio::test]
async fn a_session_is_resumed_at_its_route_alone_also_where_another_has_the_same_path() {
    let (folder, backend) = (Folder::new("bound"), named("one").await);
    let route = |name: &str| {
        format!("[routes.{name}]\nhosts = [\"{name}.example\"]\nupstream.addresses = [\"ws://{backend}\"]\n")
    };
    let file = folder.write("mainstay.toml", &(route("a") + &route("b")));
    let gateway = gateway(&file);
    let at = async |host: &str, number, resume| {
        let headers = format!("Host: {host}.example\r\n");
        welcome(answer_on(gateway.address(), "/chat", &headers, number, None, resume).await)
    };
    let opened = at("a", 1, None).await;
    let elsewhere = at("b", 2, Some(opened.token.clone())).await;
    assert!(!elsewhere.resumed && elsewhere.account.is_none(), "{elsewhere:?}");
    let resumed = at("a", 3, Some(opened.token)).await;
    assert!(resumed.resumed, "{resumed:?}");
    // Its settings change, and it is the same route.
    folder.write("mainstay.toml", &(route("a") + "session.deflate = true\n" + &route("b")));
    gateway.signal("HUP");
    gateway.wait_for_metric("config_reloads_total{outcome=\"done\"}", 1.0).await;
    assert!(at("a", 4, Some(resumed.token)).await.resumed);
}
