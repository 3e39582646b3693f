//! Sessions that outlive their process: with `--movable` and `--state-dir` the next process continues them.

use std::fs;
use std::net::TcpListener as StdListener;
use std::path::PathBuf;

use axum::Router;
use axum::routing::any;
use mainstay::client::Event;
use mainstay::{Client, LossCause, Message};
use tokio::net::TcpListener;

use crate::frames::{CLOSE, Frames, PING, PONG, TEXT};
use crate::support::{Gateway, Proxy, backend, echo, mainstay, number, until};

/// A place for one process after the other: an address, and a folder for the state.
struct Place {
    listen: String,
    folder: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let listen = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let folder = std::env::temp_dir().join(format!("mainstay-moving-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        Self { listen, folder }
    }

    /// The next process, with these additional arguments.
    fn process(&self, arguments: &[&str]) -> Gateway {
        let (listen, folder) = (&*self.listen, self.folder.to_str().unwrap());
        let own = ["--listen", listen, "--state-dir", folder, "--movable", "--admin", "127.0.0.1:0"];
        Gateway::at(&[&own[..], arguments].concat())
    }

    fn client(&self) -> Client {
        Client::builder(&format!("ws://{}/", self.listen)).unwrap().connect()
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.folder).unwrap();
        names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A backend that does only what the test asks for, and the arguments for it.
async fn by_hand(more: &[&str]) -> (TcpListener, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let arguments = [&["--upstream", &url, "--on-backend-loss", "keep"], more].concat();
    (listener, arguments.into_iter().map(str::to_owned).collect())
}

/// Ends a process in order, and starts the next one.
async fn replaced(place: &Place, mut old: Gateway, arguments: &[&str]) -> Gateway {
    old.signal("TERM");
    assert_eq!(old.ended().await, Some(0), "{}", old.log());
    place.process(arguments)
}

/// Reads up to the Close of a backend's connection and answers it, as a WebSocket stack does. Returns the texts before it.
async fn texts_until_close(backend: &mut Frames) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(text) = backend.text().await {
        texts.push(text);
    }
    texts
}

/// The count of the next report that the backend's connection was replaced. A gap before it fails the test.
async fn replacement(client: &Client) -> u64 {
    loop {
        match client.event().await.expect("the client ended") {
            Event::Replaced { count } => return count,
            Event::Gap(fate) => panic!("{fate:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_movable_session_continues_in_the_next_process_and_nothing_is_lost_or_doubled() {
    const LAST: u64 = 400;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    backend(listener, Router::new().route("/", any(echo))).await;
    let arguments = ["--upstream", &url, "--on-backend-loss", "keep"];
    let place = Place::new("twice");
    let mut gateway = place.process(&arguments);
    let mut client = place.client();
    let mut sent = 0;
    for expected in 1..=LAST {
        // Some messages are under way at each moment.
        while sent < LAST.min(expected + 20) {
            sent += 1;
            client.send(sent.to_string()).await.unwrap();
        }
        assert_eq!(number(&client.recv().await.unwrap()), expected);
        if expected % 150 == 0 {
            gateway = replaced(&place, gateway, &arguments).await;
        }
    }
    assert_eq!(replacement(&client).await, 1);
    assert_eq!(replacement(&client).await, 2);
    assert_eq!(gateway.metric("gaps_total{cause=\"session\"}"), 0.0);
    assert_eq!(place.names(), ["lock"], "the file is read once");
}

#[tokio::test]
async fn a_session_of_the_built_in_backend_moves_too() {
    let place = Place::new("built-in");
    let gateway = place.process(&[]);
    let mut client = Client::builder(&format!("ws://{}/echo", place.listen)).unwrap().connect();
    client.send("before").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("before")));
    let next = replaced(&place, gateway, &[]).await;
    client.send("after").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("after")));
    assert_eq!(next.metric("attaches_total{outcome=\"resumed\"}"), 1.0);
}

#[tokio::test]
async fn the_live_page_gets_every_tick_over_a_restart() {
    let place = Place::new("pulse");
    let mut gateway = place.process(&[]);
    let mut client = Client::builder(&format!("ws://{}/pulse", place.listen)).unwrap().connect();
    let mut ticks: Vec<u64> = Vec::new();
    for restart in [true, false] {
        for _ in 0..2 {
            let message = client.recv().await.unwrap();
            let text = message.as_text().unwrap();
            let (_, number) = text.split_once(r#""n":"#).unwrap_or_else(|| panic!("{text}"));
            ticks.push(number.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap());
        }
        if restart {
            gateway = replaced(&place, gateway, &[]).await;
        }
    }
    assert!(ticks.windows(2).all(|two| two[1] == two[0] + 1), "{ticks:?}");
    drop(gateway);
}

#[tokio::test]
async fn the_connections_to_the_backend_that_a_drain_closes_count_as_no_losses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    backend(listener, Router::new().route("/", any(echo))).await;
    let place = Place::new("planned");
    let mut old = place.process(&["--upstream", &url, "--on-backend-loss", "keep"]);
    let mut clients: Vec<Client> = (0..5).map(|_| place.client()).collect();
    for client in &mut clients {
        client.send("1").await.unwrap();
        assert_eq!(number(&client.recv().await.unwrap()), 1);
    }
    old.signal("TERM");
    assert_eq!(old.ended().await, Some(0), "{}", old.log());
    old.logged("released=5", 1).await;
    assert!(!old.log().contains("lost repeatedly"), "{}", old.log());
}

#[tokio::test]
async fn the_next_process_writes_the_recorded_prologue_first_and_hides_its_answer() {
    let rules = ["--prologue", "match=^login", "--prologue-hide", "match=^welcome"];
    let (listener, arguments) = by_hand(&rules).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let place = Place::new("prologue");
    let gateway = place.process(&arguments);
    let mut client = place.client();
    client.send("login").await.unwrap();
    let (_, mut old) = Frames::serve(&listener).await;
    assert_eq!(old.text().await.as_deref(), Some("login"));
    old.write(TEXT, b"welcome").await;
    assert_eq!(client.recv().await, Some(Message::text("welcome")));
    let (_, gateway) = tokio::join!(texts_until_close(&mut old), replaced(&place, gateway, &arguments));
    client.send("say").await.unwrap();
    let (_, mut new) = Frames::serve(&listener).await;
    assert_eq!(new.text().await.as_deref(), Some("login"));
    new.write(TEXT, b"welcome back").await;
    assert_eq!(new.text().await.as_deref(), Some("say"));
    new.write(TEXT, b"heard").await;
    assert_eq!(client.recv().await, Some(Message::text("heard")));
    assert_eq!(replacement(&client).await, 1);
    assert_eq!(gateway.metric("prologues_total{outcome=\"done\"}"), 1.0);
}

#[tokio::test]
async fn a_session_whose_prologue_belongs_to_other_rules_begins_anew() {
    let (listener, arguments) = by_hand(&["--prologue", "match=^login"]).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let place = Place::new("other-rules");
    let gateway = place.process(&arguments);
    let client = place.client();
    client.send("login").await.unwrap();
    let (_, mut old) = Frames::serve(&listener).await;
    assert_eq!(old.text().await.as_deref(), Some("login"));
    let (_, gateway) = tokio::join!(texts_until_close(&mut old), replaced(&place, gateway, &arguments[..4]));
    let fate = loop {
        if let Event::Gap(fate) = client.event().await.unwrap() {
            break fate;
        }
    };
    // `unknown` is the last one whose fate is not known.
    assert_eq!((fate.delivered, fate.unknown, fate.cause), (1, 1, LossCause::Replaced));
    until("the log names the reason", || gateway.log().contains("of other flags")).await;
}

#[tokio::test]
async fn what_the_backend_sends_before_it_answers_the_close_reaches_the_client() {
    let (listener, arguments) = by_hand(&[]).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let place = Place::new("last-words");
    let gateway = place.process(&arguments);
    let mut client = place.client();
    client.send("order").await.unwrap();
    let (_, mut old) = Frames::serve(&listener).await;
    assert_eq!(old.text().await.as_deref(), Some("order"));
    let goodbye = async {
        loop {
            match old.read().await.unwrap() {
                (PING, payload) => old.write(PONG, &payload).await,
                (CLOSE, payload) => {
                    assert_eq!(payload, 1001_u16.to_be_bytes());
                    old.write(TEXT, b"done").await;
                    return old.write(CLOSE, &payload).await;
                }
                _ => {}
            }
        }
    };
    let (_, _next) = tokio::join!(goodbye, replaced(&place, gateway, &arguments));
    assert_eq!(client.recv().await, Some(Message::text("done")));
    let (_, mut new) = Frames::serve(&listener).await;
    client.send("next").await.unwrap();
    assert_eq!(new.text().await.as_deref(), Some("next"), "the order was confirmed, and comes once");
}

#[tokio::test]
async fn what_a_session_has_no_room_for_moves_along_in_order() {
    const LAST: u64 = 1_500;
    let (listener, arguments) = by_hand(&[]).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let place = Place::new("no-room");
    let gateway = place.process(&arguments);
    let proxy = Proxy::to(gateway.address());
    let mut client = Client::builder(&format!("ws://{}/", proxy.address)).unwrap().connect();
    client.send("hello").await.unwrap();
    let (_, mut old) = Frames::serve(&listener).await;
    assert_eq!(old.text().await.as_deref(), Some("hello"));
    proxy.cut();
    gateway.wait_for_metric("sessions_by_state{state=\"parked\"}", 1.0).await;
    // More than a session keeps for a client that is away.
    for number in 1..=LAST {
        old.write(TEXT, number.to_string().as_bytes()).await;
    }
    let (_, next) = tokio::join!(texts_until_close(&mut old), replaced(&place, gateway, &arguments));
    proxy.restore();
    let (_, _new) = Frames::serve(&listener).await;
    for expected in 1..=LAST {
        assert_eq!(number(&client.recv().await.unwrap()), expected);
    }
    drop(next);
}

#[tokio::test]
async fn what_the_backend_did_not_confirm_comes_again_unless_that_is_forbidden() {
    for (delivery, expected) in [("at-least-once", "order"), ("at-most-once", "next")] {
        let (listener, arguments) = by_hand(&["--delivery", delivery]).await;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let place = Place::new(delivery);
        let gateway = place.process(&arguments);
        let client = place.client();
        client.send("order").await.unwrap();
        let (_, mut old) = Frames::serve(&listener).await;
        while old.read().await.unwrap().0 != TEXT {}
        // It answers nothing any more, and is given up.
        let next = replaced(&place, gateway, &arguments).await;
        client.send("next").await.unwrap();
        let (_, mut new) = Frames::serve(&listener).await;
        assert_eq!(new.text().await.as_deref(), Some(expected), "{delivery}");
        drop((next, old));
    }
}

#[tokio::test]
async fn a_process_that_starts_while_the_one_before_drains_continues_its_sessions_before_that_has_ended() {
    let place = Place::new("overlap");
    let mut old = place.process(&["--drain", "1m"]);
    // Two plain clients, closed one after the other: the drain takes half a minute.
    let address = old.address();
    let plain = (Frames::connect(address, "/echo", "").await, Frames::connect(address, "/echo", "").await);
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send("before").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("before")));
    old.signal("TERM");
    until("the old process drains", || old.log().contains("draining")).await;
    let next = place.process(&[]);
    let mut other = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    other.send("new").await.unwrap();
    assert_eq!(other.recv().await, Some(Message::text("new")));
    client.send("after").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("after")));
    assert!(old.is_up(), "the plain clients are not closed yet: {}", old.log());
    assert_eq!(next.metric("gaps_total{cause=\"session\"}"), 0.0);
    assert_eq!(next.metric("hellos_waited_total"), 0.0, "a HELLO waits for the file, and is not sent away");
    next.logged("state file read", 1).await;
    drop(plain);
}

#[tokio::test]
async fn a_state_file_that_cannot_be_used_is_kept_beside_and_its_sessions_begin_anew() {
    let place = Place::new("damaged");
    let mut old = place.process(&[]);
    let client = Client::builder(&format!("ws://{}/echo", place.listen)).unwrap().connect();
    client.send("before").await.unwrap();
    until("the message arrived", || old.metric("messages_total{direction=\"in\"}") == 1.0).await;
    old.signal("TERM");
    assert_eq!(old.ended().await, Some(0), "{}", old.log());
    let file = place.folder.join("sessions.state");
    let mut bytes = fs::read(&file).unwrap();
    bytes[100] ^= 1;
    fs::write(&file, bytes).unwrap();
    let next = place.process(&[]);
    loop {
        match client.event().await.unwrap() {
            Event::Gap(fate) => break assert_eq!(fate.cause, LossCause::Unknown),
            Event::Ended(end) => panic!("{end:?}"),
            _ => {}
        }
    }
    let names = place.names();
    assert!(names.iter().any(|name| name.starts_with("sessions.state.refused-")), "{names:?}");
    next.logged("state file is not used", 1).await;
    let refused = next.log().lines().filter(|line| line.contains("state file is not used")).count();
    assert_eq!(refused, 1, "{}", next.log());
}

#[tokio::test]
async fn a_folder_that_is_missing_or_in_use_ends_the_start_with_one_line() {
    let place = Place::new("in-use");
    let running = place.process(&[]);
    let check = |folder: &str, code, expected: &[&str]| {
        let output = mainstay(&["serve", "--listen", "127.0.0.1:0", "--state-dir", folder]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(code), 1), "{stderr}");
        assert!(expected.iter().all(|words| stderr.contains(words)), "{stderr}");
    };
    let process = format!("process {}", running.id());
    check(place.folder.to_str().unwrap(), 1, &["--state-dir", &process, "SIGTERM"]);
    let missing = place.folder.join("missing");
    check(missing.to_str().unwrap(), 2, &["--state-dir", "missing", "create the folder"]);
}

#[tokio::test]
async fn a_session_that_may_not_move_ends_with_its_exact_account_in_the_next_process() {
    let place = Place::new("account");
    let folder = place.folder.to_str().unwrap();
    let arguments = ["--listen", &place.listen, "--state-dir", folder, "--admin", "127.0.0.1:0"];
    let mut old = Gateway::at(&arguments);
    let mut client = Client::builder(&format!("ws://{}/echo", place.listen)).unwrap().connect();
    client.send("before").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("before")));
    old.signal("TERM");
    assert_eq!(old.ended().await, Some(0), "{}", old.log());
    client.send("meanwhile").await.unwrap();
    let next = Gateway::at(&arguments);
    let fate = loop {
        if let Event::Gap(fate) = client.event().await.unwrap() {
            break fate;
        }
    };
    assert_eq!((fate.delivered, fate.unknown, fate.cause), (1, 1, LossCause::Restarted));
    drop(next);
}
