//! A backend with several addresses: who gets a client, what an address that fails means for the others, and what waits while
//! none can be reached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use mainstay::client::{Event, ReasonCode};
use mainstay::server::Config;
use mainstay::{Client, HeartbeatConfig, Link, LossCause, Message, Server, SessionUpgrade};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::frames::{CLOSE, Frames, TEXT};
use crate::support::{Gateway, mainstay, until};

/// One address of a backend: `/` names it, to WebSockets and to GET. It can be stopped and started again.
struct Address {
    name: &'static str,
    address: SocketAddr,
    stop: Arc<Notify>,
    /// The status of `/health`, and of every opening handshake if that is not 200.
    health: Arc<AtomicU16>,
}

impl Address {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let started = Self {
            name,
            address: listener.local_addr().unwrap(),
            stop: Arc::default(),
            health: Arc::new(AtomicU16::new(200)),
        };
        started.serve(listener);
        started
    }

    /// An address without a listener.
    async fn down(name: &'static str) -> Self {
        let started = Self::start(name).await;
        started.stop().await;
        started
    }

    fn serve(&self, listener: TcpListener) {
        let (name, health, stop) = (self.name, Arc::clone(&self.health), Arc::clone(&self.stop));
        let status = move || StatusCode::from_u16(health.load(Relaxed)).unwrap();
        let (asked, opened) = (status.clone(), status);
        let greet = move |upgrade: SessionUpgrade| async move {
            if opened() != StatusCode::OK {
                return opened().into_response();
            }
            tell(name, upgrade)
        };
        let app = Router::new()
            .route("/", any(greet))
            .route("/name", get(move || async move { name }))
            .route("/health", get(move || async move { asked() }));
        let heartbeat = HeartbeatConfig::every(Duration::from_secs(3600)).unwrap();
        let server = Server::new(Config::new().heartbeat(heartbeat));
        let app = app.with_state(server.clone());
        tokio::spawn(async move {
            let serving = mainstay::serve(listener, app, &server);
            serving.with_graceful_shutdown(async move { stop.notified().await }, Duration::ZERO).await
        });
    }

    /// Closes every connection, and the listener.
    async fn stop(&self) {
        self.stop.notify_one();
        let address = self.address;
        until("it is down", || std::net::TcpStream::connect(address).is_err()).await;
    }

    async fn start_again(&self) {
        self.serve(TcpListener::bind(self.address).await.unwrap());
    }

    fn url(&self) -> String {
        format!("ws://{}", self.address)
    }
}

/// Sends each message back, behind the name of the address.
fn tell(name: &'static str, upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(move |mut session| async move {
        while let Some(message) = session.recv().await {
            let text = format!("{name} {}", message.as_text().unwrap_or_default());
            if session.send(Message::from(text)).await.is_err() {
                return;
            }
        }
    })
}

/// A gateway in front of these addresses, with more settings of the route and of its upstream.
fn gateway(addresses: &[&Address], upstream: &str, route: &str) -> Gateway {
    let urls: Vec<String> = addresses.iter().map(|address| format!("{:?}", address.url())).collect();
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nadmin.listen = \"127.0.0.1:0\"\n[routes.r.upstream]\naddresses = [{}]\n{upstream}\n{route}\n",
        urls.join(", ")
    );
    let file = std::env::temp_dir().join(format!(
        "mainstay-addresses-{}-{:?}.toml",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&file, text).unwrap();
    let gateway = Gateway::begin(mainstay(&["serve", "--config", file.to_str().unwrap()]));
    std::fs::remove_file(file).unwrap();
    gateway
}

const KEEP: &str = "[routes.r.profile]\non-backend-loss = \"keep\"";

fn of(family: &str, address: &Address) -> String {
    format!("{family}{{route=\"r\",address=\"{}/\"}}", address.url())
}

/// The name of the address that a new plain client gets.
async fn name_of(client: &mut Link) -> String {
    client.send(Message::text("?")).await.unwrap();
    let answer = client.recv().await.unwrap();
    answer.as_text().unwrap().split(' ').next().unwrap().to_owned()
}

async fn connect(gateway: &Gateway) -> Link {
    Link::builder(&gateway.url).unwrap().connect_once().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_spread_over_the_addresses_and_each_request_over_http_too() {
    let [a, b] = [Address::start("a").await, Address::start("b").await];
    let gateway = gateway(&[&a, &b], "", "");
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = connect(&gateway).await;
        *counts.entry(name_of(&mut client).await).or_default() += 1;
        clients.push(client);
    }
    assert_eq!(counts, BTreeMap::from([("a".into(), 3), ("b".into(), 3)]));
    assert_eq!(gateway.metric(&of("backend_address_uses", &a)), 3.0);
    // Those of one address leave: the next ones go there.
    let left = clients.remove(0);
    drop(left);
    until("it left", || {
        gateway.metric(&of("backend_address_uses", &a)) + gateway.metric(&of("backend_address_uses", &b))
            == 5.0
    })
    .await;
    clients.push(connect(&gateway).await);
    assert_eq!(gateway.metric(&of("backend_address_uses", &a)), 3.0);
    assert_eq!(gateway.metric(&of("backend_address_uses", &b)), 3.0);
    let mut names = Vec::new();
    for _ in 0..4 {
        let answer = Gateway::get_at(gateway.address(), "/name", "");
        names.push(answer.chars().last().unwrap());
    }
    names.sort_unstable();
    assert_eq!(names, ['a', 'a', 'b', 'b']);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_cannot_reach_an_address_goes_to_the_next_at_once() {
    let [a, b] = [Address::down("a").await, Address::start("b").await];
    let gateway = gateway(&[&a, &b], "", "");
    for _ in 0..4 {
        let mut client = connect(&gateway).await;
        assert_eq!(name_of(&mut client).await, "b");
        let answer = Gateway::get_at(gateway.address(), "/name", "");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with('b'), "{answer}");
        let mut session = Client::builder(&gateway.url).unwrap().connect();
        session.send(Message::text("?")).await.unwrap();
        assert_eq!(session.recv().await, Some(Message::text("b ?")));
    }
    assert!(gateway.get("/readyz", "").starts_with("HTTP/1.1 200"), "one address was reached");
    gateway.wait_for_metric(&of("backend_address_ejected", &a), 1.0).await;
    assert_eq!(gateway.metric(&of("backend_address_up", &a)), 0.0);
    assert_eq!(gateway.metric(&of("backend_address_up", &b)), 1.0);
    assert_eq!(gateway.metric("http_unanswered_total{route=\"r\"}"), 0.0);
    for words in
        ["an address of the backend is not used for a while", &a.url(), "the backend cannot be reached"]
    {
        gateway.logged(words, 1).await;
    }
    a.start_again().await;
    gateway.wait_for_metric(&of("backend_address_up", &a), 1.0).await;
    gateway.wait_for_metric(&of("backend_address_ejected", &a), 0.0).await;
    until("its return is logged", || gateway.log().contains("is used again")).await;
    // The slow start: it has no client, and does not get all of the next ones.
    let mut names = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = connect(&gateway).await;
        names.push(name_of(&mut client).await);
        clients.push(client);
    }
    assert!(names.iter().any(|name| name == "b"), "{names:?}");
}

#[tokio::test]
async fn no_address_that_can_be_reached_is_no_readiness() {
    let [a, b] = [Address::down("a").await, Address::down("b").await];
    let gateway = gateway(&[&a, &b], "", "");
    until("both were tried", || gateway.get("/readyz", "").contains("refused")).await;
    let ready = gateway.get("/readyz", "");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("none of 2 addresses"), "{ready}");
    b.start_again().await;
    until("it is ready", || gateway.get("/readyz", "").starts_with("HTTP/1.1 200")).await;
    assert_eq!(gateway.metric("backend_up{route=\"r\"}"), 1.0);
}

#[tokio::test]
async fn a_session_whose_address_stops_goes_on_at_another_without_a_loss() {
    let [a, b] = [Address::start("a").await, Address::start("b").await];
    let gateway = gateway(&[&a, &b], "", KEEP);
    let mut session = Client::builder(&gateway.url).unwrap().connect();
    session.send(Message::text("0")).await.unwrap();
    let first = session.recv().await.unwrap();
    let (left, other) = if first.as_text() == Some("a 0") { (&a, &b) } else { (&b, &a) };
    left.stop().await;
    for number in 1..20 {
        session.send(Message::from(number.to_string())).await.unwrap();
        let expected = Message::from(format!("{} {number}", other.name));
        assert_eq!(session.recv().await, Some(expected));
    }
    gateway.wait_for_metric(&of("backend_address_uses", left), 0.0).await;
    assert_eq!(gateway.metric(&of("backend_address_uses", other)), 1.0);
}

#[tokio::test]
async fn an_address_that_refuses_handshakes_is_ejected_although_it_accepts_connections() {
    let [a, b] = [Address::start("a").await, Address::start("b").await];
    a.health.store(503, Relaxed);
    let gateway = gateway(&[&a, &b], "health = { ejection = \"1h\", longest-ejection = \"1h\" }", "");
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = connect(&gateway).await;
        assert_eq!(name_of(&mut client).await, "b");
        clients.push(client);
        // A refused address rests for a while after each refusal.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    gateway.wait_for_metric(&of("backend_address_ejected", &a), 1.0).await;
    assert_eq!(gateway.metric(&of("backend_address_up", &a)), 1.0, "it can be reached");
    assert_eq!(gateway.metric("refused_total{reason=\"backend_5xx\"}"), 0.0);
}

#[tokio::test]
async fn a_probe_by_http_or_websocket_ejects_an_address_and_returns_it_without_a_client() {
    for probe in ["http", "websocket"] {
        let [a, b] = [Address::start("a").await, Address::start("b").await];
        let path = if probe == "http" { "/health" } else { "/" };
        let upstream = format!(
            "health = {{ probe = \"{probe}\", path = \"{path}\", interval = \"100ms\", ejection = \"1h\", longest-ejection = \"1h\" }}"
        );
        let gateway = gateway(&[&a, &b], &upstream, "");
        gateway.wait_for_metric(&of("backend_address_up", &a), 1.0).await;
        a.health.store(503, Relaxed);
        gateway.wait_for_metric(&of("backend_address_ejected", &a), 1.0).await;
        assert!(gateway.log().contains("503"), "{}", gateway.log());
        assert_eq!(gateway.metric(&of("backend_address_ejected", &b)), 0.0);
        a.health.store(200, Relaxed);
        gateway.wait_for_metric(&of("backend_address_ejected", &a), 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_with_one_key_get_one_address() {
    let [a, b] = [Address::start("a").await, Address::start("b").await];
    let gateway = gateway(&[&a, &b], "sticky = \"query:sid\"", "");
    let mut names: BTreeMap<u32, Vec<char>> = BTreeMap::new();
    for round in 0..3 {
        for key in 0..16 {
            let answer = Gateway::get_at(gateway.address(), &format!("/name?x={round}&sid={key}"), "");
            names.entry(key).or_default().push(answer.chars().last().unwrap());
        }
    }
    assert!(names.values().all(|names| names.windows(2).all(|pair| pair[0] == pair[1])), "{names:?}");
    let firsts: std::collections::BTreeSet<char> = names.values().map(|names| names[0]).collect();
    assert_eq!(firsts.len(), 2, "{names:?}");
    // Its own address is down: the key goes to the other.
    a.stop().await;
    for key in 0..16 {
        assert!(Gateway::get_at(gateway.address(), &format!("/name?sid={key}"), "").ends_with('b'));
    }
}

/// The code of the end of a session, and its reason.
async fn end(session: &Client) -> (Option<u64>, String) {
    loop {
        match session.event().await {
            Some(Event::Ended(end)) => return (end.code.map(ReasonCode::get), end.reason),
            Some(_) => {}
            None => panic!("the session ended without an event"),
        }
    }
}

#[tokio::test]
async fn a_new_client_is_refused_at_once_where_nothing_waits() {
    for policy in ["reject", "close"] {
        let [a, b] = [Address::down("a").await, Address::down("b").await];
        let gateway = gateway(&[&a, &b], &format!("when-down = \"{policy}\"\nwait = \"1h\""), "");
        let (head, _) = Frames::connect(gateway.address(), "/", "").await;
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("Retry-After: "), "{head}");
        let session = Client::builder(&gateway.url).unwrap().connect();
        let (code, reason) = end(&session).await;
        assert_eq!(code, Some(1013), "{reason}");
        assert!(reason.contains("the backend cannot be reached"), "{reason}");
        assert_eq!(gateway.metric("refused_total{reason=\"unreachable\"}"), 2.0);
    }
}

#[tokio::test]
async fn a_message_that_waits_for_too_long_is_a_gap_for_its_session_and_an_idle_session_stays() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let place = Address { name: "a", address, stop: Arc::default(), health: Arc::default() };
    let gateway = gateway(&[&place], "queue-age = \"300ms\"", KEEP);
    let session = Client::builder(&gateway.url).unwrap().connect();
    let idle = Client::builder(&gateway.url).unwrap().connect();
    let (one, two) = (Frames::serve(&backend).await, Frames::serve(&backend).await);
    drop((one, two, backend));
    gateway.wait_for_metric("links{route=\"r\"}", 0.0).await;
    session.send(Message::text("waits")).await.unwrap();
    let fate = loop {
        match session.event().await.unwrap() {
            Event::Gap(fate) => break fate,
            Event::Ended(end) => panic!("{end:?}"),
            _ => {}
        }
    };
    assert_eq!(
        (fate.cause, fate.delivered, fate.unknown),
        (LossCause::Replaced, 0, 0),
        "it certainly did not arrive"
    );
    assert_eq!(gateway.metric("link_messages_total{route=\"r\",fate=\"not_delivered\"}"), 1.0);
    let states = idle.events();
    drop(idle);
    while let Some(event) = states.next().await {
        assert!(!matches!(event, Event::Gap(_)), "{event:?}");
    }
}

#[tokio::test]
async fn with_reject_a_message_and_with_close_the_loss_itself_ends_a_plain_client() {
    for (policy, sends) in [("reject", true), ("close", false)] {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = backend.local_addr().unwrap();
        let place = Address { name: "a", address, stop: Arc::default(), health: Arc::default() };
        let gateway = gateway(&[&place], &format!("when-down = \"{policy}\"\nwait = \"1h\""), KEEP);
        let (connected, served) =
            tokio::join!(Frames::connect(gateway.address(), "/", ""), Frames::serve(&backend));
        let mut client = connected.1;
        drop((served, backend));
        if sends {
            gateway.wait_for_metric("backend_up{route=\"r\"}", 0.0).await;
            client.write(TEXT, b"too late").await;
        }
        let closed = loop {
            if let (CLOSE, payload) = client.read().await.unwrap() {
                break payload;
            }
        };
        assert_eq!(u16::from_be_bytes([closed[0], closed[1]]), 1013, "{policy}");
    }
}

/// Restarts each address in turn, the next one once the gateway reaches the one before.
async fn rolling(gateway: &Gateway, addresses: &[Address], done: &AtomicBool) {
    for address in addresses {
        address.stop().await;
        gateway.wait_for_metric(&of("backend_address_up", address), 0.0).await;
        address.start_again().await;
        gateway.wait_for_metric(&of("backend_address_up", address), 1.0).await;
    }
    done.store(true, Relaxed);
}

#[tokio::test]
async fn a_rolling_restart_of_all_addresses_loses_no_message_of_a_session() {
    let addresses = [Address::start("a").await, Address::start("b").await, Address::start("c").await];
    let gateway = gateway(&[&addresses[0], &addresses[1], &addresses[2]], "", KEEP);
    let done = Arc::new(AtomicBool::new(false));
    let clients = (0..12).map(|_| {
        let (mut session, done) = (Client::builder(&gateway.url).unwrap().connect(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut number = 0_u64;
            while !done.load(Relaxed) {
                session.send(Message::from(number.to_string())).await.unwrap();
                let answer = session.recv().await.unwrap();
                let answered = answer.as_text().unwrap().split(' ').nth(1).unwrap().to_owned();
                assert_eq!(answered, number.to_string());
                number += 1;
            }
            number
        })
    });
    let clients: Vec<_> = clients.collect();
    rolling(&gateway, &addresses, &done).await;
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    println!("{answered} messages of 12 sessions over 3 restarts, 0 lost");
    assert_eq!(gateway.metric("link_messages_total{route=\"r\",fate=\"not_delivered\"}"), 0.0);
}

#[test]
fn wrong_settings_are_one_line_that_says_what_to_write() {
    let check = |upstream: &str, route: &str, words: &str| {
        let file = std::env::temp_dir().join(format!("mainstay-wrong-{}.toml", std::process::id()));
        std::fs::write(&file, format!("[routes.r.upstream]\n{upstream}\n{route}\n")).unwrap();
        let output = mainstay(&["serve", "--config", file.to_str().unwrap()]).output().unwrap();
        std::fs::remove_file(&file).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{upstream}: {error}");
        assert!(error.contains(words), "{upstream}: {error}");
    };
    let one = "addresses = [\"ws://a:1\"]\n";
    for (settings, words) in [
        ("addresses = [\"ws://a/x\", \"ws://b/y\"]", "must have the same path"),
        ("addresses = [\"ws://a\", \"wss://b\"]", "must have TLS if"),
        ("addresses = [\"ws://a\", \"ws://a\"]", "is there twice"),
        (&format!("{one}sticky = \"header:x\""), "cookie:NAME"),
        (&format!("{one}when-down = \"drop\""), "reject"),
        (&format!("{one}queue-bytes = \"0B\""), "queue-bytes: must be between 1B and 1GiB"),
        (&format!("{one}queue-age = \"1ms\""), "queue-age: must be between 10ms and 1h"),
        (&format!("{one}when-down = \"close\"\nqueue-age = \"1s\""), "contradicts when-down"),
        (&format!("{one}hibernate-after = \"1s\""), "requires"),
        (&format!("{one}health.failures = 0"), "health.failures: must be between 1 and 1000"),
        (&format!("{one}health.max-ejected-percent = 101"), "must be at most 100"),
        (&format!("{one}health.path = \"x\""), "a path begins with /"),
        (
            &format!("{one}health.longest-ejection = \"1s\""),
            "health.longest-ejection: must be between ejection and 1h",
        ),
        (&format!("{one}health.timeout = \"0s\""), "health.timeout: must be between 10ms and 1h"),
        (&format!("{one}health.interval = \"1ms\""), "health.interval: must be between 100ms and 1h"),
        (&format!("{one}health.slow-start = \"2h\""), "health.slow-start: must be at most 1h"),
    ] {
        check(settings, "", words);
    }
    check(&format!("{one}hibernate-after = \"1ms\""), KEEP, "hibernate-after: must be between 1s and 1week");
    check(
        &format!("{one}hibernate-after = \"5m\""),
        "[routes.r.profile]\nprotocol = \"phoenix\"",
        "routes.r.upstream.hibernate-after: requires",
    );
}

#[tokio::test]
async fn several_flags_are_several_addresses() {
    let [a, b] = [Address::start("a").await, Address::down("b").await];
    let arguments = ["--upstream", &b.url(), "--upstream", &a.url(), "--admin", "127.0.0.1:0"];
    let gateway = Gateway::start(&arguments);
    let mut client = connect(&gateway).await;
    assert_eq!(name_of(&mut client).await, "a");
    let metrics = gateway.get("/metrics", "");
    assert!(
        metrics.contains(&format!("mainstay_backend_address_uses{{address=\"{}/\"}} 1", a.url())),
        "{metrics}"
    );
}
