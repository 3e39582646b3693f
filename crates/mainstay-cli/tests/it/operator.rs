//! What the operator asks and orders at the admin listener: sessions, their timelines, ending them, the drain.

use std::io::{Read, Write};
use std::net::TcpStream;

use mainstay::client::Event;
use mainstay::{Client, CloseCode, Link, Message};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::frames::Frames;
use crate::support::{Gateway, Proxy, until};

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];
pub(crate) const INTENT: &str = "X-Mainstay-Admin: 1\r\n";

/// Sends a request; returns the status and the body.
pub(crate) fn ask(gateway: &Gateway, method: &str, target: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(gateway.admin.unwrap()).unwrap();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn json(gateway: &Gateway, target: &str) -> Value {
    let (status, body) = ask(gateway, "GET", target, "");
    assert_eq!(status, 200, "{target}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{target}: {error}: {body}"))
}

fn sessions(gateway: &Gateway, query: &str) -> Vec<Value> {
    json(gateway, &format!("/sessions?{query}"))["sessions"].as_array().unwrap().clone()
}

/// Waits until so many sessions are in this state, and returns them.
async fn in_state(gateway: &Gateway, state: &str, count: usize) -> Vec<Value> {
    let query = format!("state={state}");
    until(&format!("{count} sessions are {state}"), || sessions(gateway, &query).len() == count).await;
    sessions(gateway, &query)
}

async fn attached(client: &Client) {
    while !matches!(client.event().await, Some(Event::Attached { .. })) {}
}

async fn client(url: &str) -> Client {
    let client = Client::builder(url).unwrap().connect();
    attached(&client).await;
    client
}

#[tokio::test]
async fn the_list_has_every_client_once_in_pages() {
    let gateway = Gateway::start(&ADMIN);
    let url = format!("{}/echo", gateway.url);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(client(&url).await);
    }
    let plain = Link::builder(&url).unwrap().connect_once().await.unwrap();
    in_state(&gateway, "attached", 5).await;
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = json(&gateway, &format!("/sessions?limit=2&after={after}"));
        found.extend(
            page["sessions"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()),
        );
        if page["next"].is_null() {
            break;
        }
        after = page["next"].to_string();
    }
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 5, "{found:?}");
    for one in sessions(&gateway, "") {
        assert_eq!(
            (&one["state"], &one["path"], &one["epoch"]),
            (&"attached".into(), &"/echo".into(), &1.into())
        );
        let address = one["address"].as_str().unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{one}");
        assert!(one["age_seconds"].as_f64().unwrap() < 600.0 && one["away_seconds"].is_null(), "{one}");
        let id = one["id"].as_str().unwrap();
        assert_eq!(sessions(&gateway, &format!("search={id}")).len(), 1, "{one}");
        assert_eq!(sessions(&gateway, &format!("search={address}")).len(), 1, "{one}");
        assert_eq!(one["resumable"].as_bool(), Some(!id.starts_with("plain-")), "{one}");
    }
    assert_eq!(sessions(&gateway, "search=ECHO").len(), 5);
    assert_eq!(sessions(&gateway, "search=elsewhere").len(), 0);
    assert_eq!(sessions(&gateway, "state=parked").len(), 0);
    drop((clients, plain));
}

#[tokio::test]
async fn the_timeline_answers_why_a_session_reconnected_also_after_it_has_ended() {
    let gateway = Gateway::start(&ADMIN);
    let proxy = Proxy::to(gateway.address());
    let client = client(&format!("ws://{}/echo", proxy.address)).await;
    proxy.cut();
    let parked = in_state(&gateway, "parked", 1).await;
    let id = parked[0]["id"].as_str().unwrap().to_owned();
    assert!(parked[0]["away_seconds"].as_f64().is_some(), "{parked:?}");
    assert_eq!(json(&gateway, "/status")["longest_parked"][0]["id"], id);
    proxy.restore();
    in_state(&gateway, "attached", 1).await;
    client.close(CloseCode::NORMAL, "bye").await;
    until("the session is gone", || sessions(&gateway, "").is_empty()).await;

    let answer = json(&gateway, &format!("/sessions/{id}"));
    assert!(answer["session"].is_null(), "{answer}");
    let events: Vec<_> =
        answer["timeline"].as_array().unwrap().iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["attached", "lost", "resumed", "ended"], "{answer}");
    let why = answer["reconnects"][0].as_str().unwrap();
    assert!(
        why.contains("connection 1 was lost: the client ") && why.contains("the client was back after "),
        "{why}"
    );
    assert_eq!(answer["timeline"][3]["why"], "client", "{answer}");
    let summed = json(&gateway, "/status");
    assert_eq!(summed["last_minute"]["resumes"], 1, "{summed}");
    assert_eq!(
        summed["losses"]["by"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>(),
        1
    );
    let events = json(&gateway, "/events?limit=2");
    assert_eq!((&events["noted"], events["events"].as_array().unwrap().len()), (&4.into(), 2), "{events}");
    assert_eq!(json(&gateway, "/events?after=2")["events"][0]["event"], "ended");
}

#[tokio::test]
async fn a_session_that_an_operator_ends_gets_end_with_code_and_reason() {
    let gateway = Gateway::start(&ADMIN);
    let client = client(&format!("{}/echo", gateway.url)).await;
    let id = in_state(&gateway, "attached", 1).await[0]["id"].as_str().unwrap().to_owned();
    let target = format!("/sessions/{id}?code=4700&reason=too+loud");
    let (status, line) = ask(&gateway, "DELETE", &target, "");
    assert!(
        status == 403 && line.contains("X-Mainstay-Admin"),
        "a page of another site could send this: {line}"
    );
    assert_eq!(sessions(&gateway, "").len(), 1);
    assert_eq!(ask(&gateway, "DELETE", &target, INTENT), (200, "{\"ended\":1}\n".to_owned()));
    let end = loop {
        match client.event().await {
            Some(Event::Ended(end)) => break end,
            Some(_) => {}
            None => panic!("no end"),
        }
    };
    assert_eq!((end.code, end.reason.as_str()), (CloseCode::new(4700).map(Into::into), "too loud"));
    until("the session is gone", || sessions(&gateway, "").is_empty()).await;
    let answer = json(&gateway, &format!("/sessions/{id}"));
    let last = answer["timeline"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["text"], "the session ended: an operator ended it, with code 4700");
    assert_eq!(ask(&gateway, "DELETE", &target, INTENT).0, 404);
    until("the log has it", || gateway.log().contains("an operator ended a session")).await;
}

#[tokio::test]
async fn a_plain_client_that_an_operator_ends_is_closed_and_its_neighbour_stays() {
    let gateway = Gateway::start(&ADMIN);
    let (_, mut first) = Frames::connect(gateway.address(), "/echo", "").await;
    let id = in_state(&gateway, "attached", 1).await[0]["id"].as_str().unwrap().to_owned();
    let (_, mut second) = Frames::connect(gateway.address(), "/echo", "").await;
    in_state(&gateway, "attached", 2).await;
    let headers = "Content-Type: application/json\r\n";
    assert_eq!(ask(&gateway, "DELETE", &format!("/sessions/{id}"), headers).0, 200);
    let (kind, close) = first.read().await.unwrap();
    assert_eq!(
        (kind, &close[..]),
        (crate::frames::CLOSE, &[&4500_u16.to_be_bytes(), &b"ended by an operator"[..]].concat()[..])
    );
    second.write(crate::frames::TEXT, b"still here").await;
    assert_eq!(second.text().await.as_deref(), Some("still here"));
}

#[tokio::test]
async fn a_parked_session_that_an_operator_ends_is_over_at_once_and_its_client_learns_it() {
    let gateway = Gateway::start(&ADMIN);
    let proxy = Proxy::to(gateway.address());
    let client = client(&format!("ws://{}/echo", proxy.address)).await;
    proxy.cut();
    let id = in_state(&gateway, "parked", 1).await[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(ask(&gateway, "DELETE", &format!("/sessions/{id}"), INTENT).0, 200);
    until("the session is gone", || sessions(&gateway, "").is_empty()).await;
    proxy.restore();
    while let Some(event) = client.event().await {
        if let Event::Ended(end) = event {
            assert_eq!(end.code, Some(CloseCode::SESSION_ENDED.into()));
            return;
        }
    }
    panic!("no end");
}

#[tokio::test]
async fn the_backends_part_in_a_session_is_in_its_timeline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let arguments = [&ADMIN[..], &["--on-backend-loss", "keep"]].concat();
    let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), &arguments);
    let client = Client::builder(&gateway.url).unwrap().connect();
    let (_, backend) = Frames::serve(&listener).await;
    let id = in_state(&gateway, "attached", 1).await[0]["id"].as_str().unwrap().to_owned();
    let has = |event: &str| {
        let answer = json(&gateway, &format!("/sessions/{id}"));
        answer["timeline"].as_array().unwrap().iter().any(|entry| entry["event"] == event)
    };
    until("it was reached", || has("backend_reached")).await;
    drop(backend);
    until("it was lost", || has("backend_lost")).await;
    drop(listener);
    until("it cannot be reached", || has("backend_unreachable")).await;
    let status = json(&gateway, "/status");
    assert_eq!(status["backends"][0]["up"], false, "{status}");
    assert!(status["backends"][0]["error"].as_str().unwrap().contains("refused"), "{status}");
    client.abort(CloseCode::NORMAL, "");
}

#[tokio::test]
async fn a_drain_that_an_operator_orders_ends_the_process_as_sigterm_does() {
    let mut gateway = Gateway::start(&ADMIN);
    let client = client(&format!("{}/echo", gateway.url)).await;
    for (target, headers, status) in
        [("/drain", INTENT, 400), ("/drain?confirm=yes", INTENT, 400), ("/drain?confirm=drain", "", 403)]
    {
        assert_eq!(ask(&gateway, "POST", target, headers).0, status, "{target}");
    }
    assert_eq!(ask(&gateway, "GET", "/drain?confirm=drain", INTENT).0, 405);
    assert_eq!(ask(&gateway, "GET", "/readyz", "").0, 200, "nothing has begun");
    assert_eq!(ask(&gateway, "POST", "/drain?confirm=drain", INTENT), (202, "draining\n".to_owned()));
    assert_eq!(gateway.ended().await, Some(0));
    assert!(gateway.log().contains("an operator ordered the drain"), "{}", gateway.log());
    client.abort(CloseCode::NORMAL, "");
}

#[test]
fn not_ready_is_explained_line_by_line() {
    let gateway = Gateway::start(&[&ADMIN[..], &["--upstream", "ws://127.0.0.1:1"]].concat());
    let (status, body) = ask(&gateway, "GET", "/readyz", "");
    assert_eq!(status, 503);
    assert!(body.starts_with("the backend was not reached yet"), "{body}");
}

#[test]
fn a_wrong_request_is_answered_with_what_is_right() {
    let gateway = Gateway::start(&ADMIN);
    for (target, expected) in [
        ("/sessions?limit=0", "limit: must be a number from 1 to 1000"),
        ("/sessions?after=x", "after: must be a number from 0 to 4294967295"),
        ("/sessions?state=dead", "state: must be attached, parked or draining"),
        (
            "/sessions?statt=dead",
            "statt: unknown parameter; this path has after, limit, state, subject, search",
        ),
        ("/sessions?node=00c0ffee00c0ffee", "node: this process is in no cluster"),
        ("/sessions?local=yes", "local: must be true or false"),
        ("/sessions?local=true&node=x", "local: contradicts node"),
        ("/sessions/none", "the id of a session has 16 hexadecimal digits"),
        ("/status?x=1", "x: unknown parameter; this path has none"),
        ("/events?limit=1001", "limit: must be a number from 1 to 1000"),
    ] {
        let (status, line) = ask(&gateway, "GET", target, "");
        assert!(status == 400 && line.starts_with(expected), "{target}: {status} {line}");
    }
    for (target, expected) in [
        ("/sessions/00c0ffee00c0ffee?code=1005", "code: 1005 may not stand in a Close"),
        ("/sessions/00c0ffee00c0ffee?code=99", "code: must be a number from 1000 to 4999"),
    ] {
        let (status, line) = ask(&gateway, "DELETE", target, INTENT);
        assert!(status == 400 && line.starts_with(expected), "{target}: {status} {line}");
    }
    let long = format!("/sessions/00c0ffee00c0ffee?reason={}", "x".repeat(124));
    assert_eq!(ask(&gateway, "DELETE", &long, INTENT).1, "reason: must be at most 123 bytes of UTF-8\n");
    for (method, target) in
        [("GET", "/sessions/00c0ffee00c0ffee"), ("GET", "/sessions/plain-0-0"), ("GET", "/cluster")]
    {
        assert_eq!(ask(&gateway, method, target, "").0, 404, "{target}");
    }
    assert_eq!(ask(&gateway, "DELETE", "/sessions/plain-4294967295-0", INTENT).0, 404);
}

#[tokio::test]
async fn a_node_that_may_not_know_all_others_says_so_in_every_answer() {
    // Nothing listens on port 1: no node knows another.
    let gateway = Gateway::start(&[&ADMIN[..], &["--cluster", "redis://127.0.0.1:1"]].concat());
    let session = client(&format!("{}/echo", gateway.url)).await;
    let plain = Link::builder(&format!("{}/echo", gateway.url)).unwrap().connect_once().await.unwrap();
    in_state(&gateway, "attached", 2).await;
    let node = json(&gateway, "/cluster")["node"].as_str().unwrap().to_owned();
    let page = json(&gateway, "/sessions?limit=1");
    assert_eq!((&page["table_complete"], &page["unreachable"]), (&false.into(), &Value::Array(vec![])));
    assert_eq!(page["sessions"][0]["node"], node);
    let after = page["next"].as_str().unwrap().to_owned();
    assert!(after.starts_with(&format!("{node}:")), "{after}");
    assert_eq!(sessions(&gateway, &format!("limit=1&after={after}")).len(), 1);
    for query in ["local=true", &format!("node={node}")] {
        let page = json(&gateway, &format!("/sessions?{query}"));
        assert_eq!(
            (page["sessions"].as_array().unwrap().len(), &page["table_complete"]),
            (2, &true.into()),
            "{query}"
        );
    }
    let all = sessions(&gateway, "");
    let id = |is_plain| {
        let mut ids = all.iter().map(|one| one["id"].as_str().unwrap());
        ids.find(|id| id.starts_with("plain-") == is_plain).unwrap().to_owned()
    };
    let request = |method: &str, target: &str| ask(&gateway, method, target, INTENT);
    assert_eq!(request("GET", "/sessions?after=7").1.split(':').next(), Some("after"));
    let (status, line) = request("GET", "/sessions?node=00c0ffee00c0ffee");
    assert!(status == 404 && line.contains("knows none with the id 00c0ffee00c0ffee"), "{line}");
    let (status, line) = request("DELETE", &format!("/sessions/{}", id(true)));
    assert!(status == 400 && line.starts_with("node: must name the node of a plain connection"), "{line}");
    assert_eq!(request("DELETE", &format!("/sessions/{}?node={node}", id(true))).0, 200);
    assert_eq!(json(&gateway, &format!("/sessions/{}", id(false)))["timeline"][0]["node"], node);
    assert_eq!(request("DELETE", &format!("/sessions/{}", id(false))).0, 200);
    let (status, line) = request("DELETE", "/sessions/00c0ffee00c0ffee");
    assert!(status == 503 && line.contains("may not know all nodes yet"), "{line}");
    let (status, body) = request("POST", "/subjects/alice/revoke");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["stored"], &body["ended"]), (207, &false.into(), &0.into()), "{body}");
    until("the log has it", || gateway.log().contains("the engine has not got a revocation yet")).await;
    drop((session, plain));
}

#[tokio::test]
async fn everything_but_health_and_the_page_needs_the_token_and_guesses_are_limited() {
    let file = crate::admin::TokenFile::holding("0123456789abcdef\n");
    let gateway = Gateway::start(&[&ADMIN[..], &["--admin-token-file", file.path()]].concat());
    let ask = |method: &str, target: &str, token: &str| {
        ask(&gateway, method, target, &format!("Authorization: Bearer {token}\r\n")).0
    };
    let right = "0123456789abcdef";
    for (method, target) in [
        ("GET", "/metrics"),
        ("GET", "/sessions"),
        ("GET", "/sessions/00c0ffee00c0ffee"),
        ("GET", "/status"),
        ("GET", "/events"),
        ("GET", "/cluster"),
        ("DELETE", "/sessions/00c0ffee00c0ffee"),
        ("DELETE", "/subjects/alice"),
        ("POST", "/subjects/alice/revoke"),
        ("POST", "/subjects/alice/revoke"),
        ("POST", "/drain?confirm=drain"),
    ] {
        assert_eq!(super::operator::ask(&gateway, method, target, INTENT).0, 401, "{target}");
    }
    for open in ["/", "/healthz", "/readyz"] {
        assert_eq!(super::operator::ask(&gateway, "GET", open, "").0, 200, "{open}");
    }
    assert_eq!(ask("DELETE", "/subjects/alice", right), 200);
    let wrong: Vec<u16> = (0..12).map(|_| ask("GET", "/status", "0123456789abcdeX")).collect();
    assert_eq!((wrong[0], wrong[11]), (401, 429), "{wrong:?}");
    assert_eq!(ask("GET", "/status", right), 429, "no token is compared while there are too many wrong ones");
    assert_eq!(ask("GET", "/healthz", right), 200);
    let lines =
        || gateway.log().lines().filter(|line| line.contains("wrong tokens at the admin listener")).count();
    until("the log has it", || lines() > 0).await;
    assert_eq!(lines(), 1, "{}", gateway.log());
    assert!(!gateway.log().contains("0123456789abcde"), "{}", gateway.log());
}

#[test]
fn what_the_admin_listener_refuses_is_counted() {
    let gateway = Gateway::start(&ADMIN);
    assert_eq!(ask(&gateway, "POST", "/drain?confirm=drain", "").0, 403);
    assert_eq!(
        ask(
            &gateway,
            "POST",
            "/drain?confirm=drain",
            "Origin: http://evil.example\r\nX-Mainstay-Admin: 1\r\n"
        )
        .0,
        403
    );
    assert_eq!(gateway.metric("admin_refused_total{reason=\"intent\"}"), 2.0);
    assert_eq!(gateway.metric("admin_refused_total{reason=\"token\"}"), 0.0);
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let gateway = Gateway::start(&ADMIN);
    let answer = gateway.get("/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n");
    assert!(
        answer.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

#[test]
fn the_console_may_load_nothing_and_no_page_may_frame_it() {
    let gateway = Gateway::start(&ADMIN);
    let answer = gateway.get("/", "");
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    for field in [
        "content-type: text/html",
        "content-security-policy: default-src 'none'; script-src 'sha256-",
        "frame-ancestors 'none'",
        "x-frame-options: deny",
    ] {
        assert!(head.to_lowercase().contains(field), "{field}: {head}");
    }
    assert!(page.contains("<title>Mainstay console</title>"));
}

#[tokio::test]
async fn queued_bytes_are_in_the_list() {
    let gateway = Gateway::start(&ADMIN);
    let proxy = Proxy::to(gateway.address());
    let one = client(&format!("ws://{}/broadcast", proxy.address)).await;
    let other = client(&format!("{}/broadcast", gateway.url)).await;
    proxy.cut();
    in_state(&gateway, "parked", 1).await;
    other.send(Message::text("kept for it")).await.unwrap();
    let kept = || sessions(&gateway, "state=parked")[0]["queue_bytes"]["client"].as_u64().unwrap();
    until("it is kept", || kept() >= 11).await;
    drop(one);
}

/// Sends a request over a Unix socket; returns the status.
fn ask_over(path: &std::path::Path, method: &str, target: &str, host: &str) -> u16 {
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_admin_listener_may_be_a_unix_socket_whose_mode_decides_who_may_connect() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("mainstay-admin-{}.sock", std::process::id()));
    let mut gateway = Gateway::start(&["--admin", &format!("unix:{}?mode=600", path.display())]);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for target in ["/healthz", "/metrics", "/sessions", "/"] {
        assert_eq!(ask_over(&path, "GET", target, "any.example"), 200, "no page reaches a socket: {target}");
    }
    let place = format!("unix:{}", path.display());
    let health = || crate::support::run(&["health", &place], b"").status.code();
    assert_eq!(health(), Some(0));
    assert_eq!(ask_over(&path, "POST", "/drain?confirm=drain", "localhost"), 202);
    assert_eq!(gateway.ended().await, Some(0));
    assert!(!path.exists(), "the process removes its file");
    assert_eq!(health(), Some(1));
}
