//! What a client observes of the backend: its subprotocol, its refusal, its absence.

use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::any;
use mainstay::client::{ClientHandle, Event, ReasonCode};
use mainstay::{Client, Link, Message, Server, SessionUpgrade};
use tokio::net::TcpListener;

use crate::frames::Frames;
use crate::support::{Gateway, Proxy, backend, echo, until};

/// `/echo` speaks `b`, then `c`, `/silent` no subprotocol; `/401`, `/403` and `/404` refuse.
fn app() -> Router<Server> {
    let refuse = |status: StatusCode| any(async move || status);
    Router::new()
        .route("/echo", any(|upgrade: SessionUpgrade| echo(upgrade.subprotocols(["b", "c"]))))
        .route("/silent", any(|upgrade: SessionUpgrade| echo(upgrade.subprotocols(["none of these"]))))
        .route("/401", refuse(StatusCode::UNAUTHORIZED))
        .route("/403", refuse(StatusCode::FORBIDDEN))
        .route("/404", refuse(StatusCode::NOT_FOUND))
        .route("/302", refuse(StatusCode::FOUND))
}

async fn gateway(arguments: &[&str]) -> Gateway {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, app()).await;
    Gateway::in_front_of(address, arguments)
}

async fn end<P>(client: &ClientHandle<P>) -> (Option<u64>, String) {
    loop {
        match client.event().await {
            Some(Event::Ended(end)) => return (end.code.map(ReasonCode::get), end.reason),
            Some(_) => {}
            None => panic!("the client ended without an event"),
        }
    }
}

#[tokio::test]
async fn a_plain_client_gets_the_subprotocol_that_the_backend_chose() {
    let gateway = gateway(&[]).await;
    for (path, offered, agreed) in [
        ("/echo", &["a", "c", "b"][..], Some("b")),
        ("/echo", &["c"], Some("c")),
        ("/echo", &["a"], None),
        ("/echo", &[], None),
        ("/silent", &["a"], None),
    ] {
        let mut builder = Link::builder(&format!("{}{path}", gateway.url)).unwrap();
        for name in offered {
            builder = builder.subprotocol(*name);
        }
        let mut client = builder.connect_once().await.unwrap();
        assert_eq!(client.subprotocol().as_deref(), agreed, "{path} {offered:?}");
        client.send(Message::text("hello")).await.unwrap();
        assert_eq!(client.recv().await, Some(Message::text("hello")));
    }
}

#[tokio::test]
async fn a_plain_client_gets_the_status_that_the_backend_refuses_with() {
    let gateway = gateway(&[]).await;
    for (path, status) in [("/401", 401), ("/403", 403), ("/404", 404), ("/nowhere", 404)] {
        let client = Link::builder(&format!("{}{path}", gateway.url)).unwrap().connect();
        assert_eq!(end(&client).await.0, Some(status), "{path}");
    }
    let client = Link::builder(&format!("{}/302", gateway.url)).unwrap().connect_once().await;
    assert!(client.unwrap_err().to_string().contains("302"));
}

#[tokio::test]
async fn a_session_receives_the_refusal_of_the_backend_in_band() {
    let gateway = gateway(&[]).await;
    for (path, code) in [("/401", 4501), ("/403", 4501), ("/404", 1008)] {
        let client = Client::builder(&format!("{}{path}", gateway.url)).unwrap().connect();
        let (ended, reason) = end(&client).await;
        assert_eq!(ended, Some(code), "{path}");
        assert!(reason.contains(&path[1..]), "{reason}");
    }
}

#[tokio::test]
async fn a_session_whose_subprotocol_the_backend_does_not_speak_is_ended() {
    let gateway = gateway(&[]).await;
    let connect =
        |name| Client::builder(&format!("{}/echo", gateway.url)).unwrap().subprotocol(name).connect();
    let mut understood = connect("b");
    understood.send(Message::text("hello")).await.unwrap();
    assert_eq!(understood.recv().await, Some(Message::text("hello")));
    assert_eq!(understood.subprotocol().as_deref(), Some("b"));
    let (code, reason) = end(&connect("a")).await;
    assert_eq!((code, reason.contains("subprotocol a")), (Some(1008), true), "{reason}");
}

/// An address without a listener.
async fn closed_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_backend_that_cannot_be_reached_is_logged_at_once_and_so_is_its_return() {
    let address = closed_address().await;
    let gateway = Gateway::in_front_of(address, &["--admin", "127.0.0.1:0"]);
    let lines = |words: &str| gateway.log().lines().filter(|line| line.contains(words)).count();
    until("the log names the cause", || lines("cannot be reached") == 1).await;
    assert!(gateway.log().contains("refused") && gateway.log().contains(&address.to_string()));
    let ready = gateway.get("/readyz", "");
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("not reached yet") && ready.contains("refused"), "{ready}");
    // The gateway probes it without a client.
    let failed = "link_attempts_failed_total{reason=\"refused\"}";
    until("the backend is probed again", || gateway.metric(failed) >= 2.0).await;
    assert_eq!((gateway.metric("backend_up"), lines("cannot be reached")), (0.0, 1));
    backend(TcpListener::bind(address).await.unwrap(), app()).await;
    gateway.wait_for_metric("backend_up", 1.0).await;
    assert!(gateway.get("/readyz", "").starts_with("HTTP/1.1 200"));
    until("its return is logged", || lines("the backend is reachable for the first time, after") == 1).await;
    let client = Link::builder(&format!("{}/echo", gateway.url)).unwrap().connect_once().await.unwrap();
    gateway.wait_for_metric("links", 1.0).await;
    drop(client);
    gateway.wait_for_metric("links", 0.0).await;
}

#[tokio::test]
async fn the_log_names_the_cause_of_an_unreachable_backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    backend(listener, app()).await;
    for (upstream, cause) in [
        (format!("wss://127.0.0.1:{port}"), "TLS: "),
        ("ws://nowhere.invalid".to_owned(), "nowhere.invalid: "),
    ] {
        let gateway = Gateway::start(&["--upstream", &upstream]);
        until(&upstream, || gateway.log().contains(cause)).await;
        assert!(gateway.log().contains("the backend cannot be reached"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_silent_backend_counts_as_reached_and_its_silence_is_logged() {
    let silence = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silence.local_addr().unwrap();
    let gateway =
        Gateway::in_front_of(address, &["--admin", "127.0.0.1:0", "--upstream-answer-timeout", "500ms"]);
    gateway.wait_for_metric("backend_up", 1.0).await;
    let (head, _) = Frames::connect(gateway.address(), "/", "").await;
    assert!(head.starts_with("HTTP/1.1 504"), "{head}");
    until("the silence is logged", || {
        gateway.log().contains("the backend was reached and did not respond properly")
    })
    .await;
    assert!(gateway.log().contains("no_answer"), "{}", gateway.log());
    assert_eq!(gateway.metric("link_attempts_failed_total{reason=\"no_answer\"}"), 1.0);
}

#[tokio::test]
async fn refusals_of_the_backend_are_counted_by_class_of_status() {
    let gateway = gateway(&["--admin", "127.0.0.1:0"]).await;
    for path in ["/401", "/404", "/404", "/302"] {
        let client = Link::builder(&format!("{}{path}", gateway.url)).unwrap().connect_once().await;
        assert!(client.is_err());
    }
    for (class, count) in [("3xx", 1.0), ("4xx", 3.0), ("5xx", 0.0)] {
        gateway.wait_for_metric(&format!("refused_total{{reason=\"backend_{class}\"}}"), count).await;
    }
    assert_eq!((gateway.metric("backend_up"), gateway.log().as_str()), (1.0, ""));
}

#[tokio::test]
async fn with_the_log_at_info_each_end_and_each_resume_of_a_client_is_one_line() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, app()).await;
    let mut command = crate::support::mainstay(&["serve", "--listen", "127.0.0.1:0", "--upstream"]);
    command.arg(format!("ws://{address}")).env("MAINSTAY_LOG", "info");
    let gateway = Gateway::begin(command);
    let line = |words: &str| gateway.log().lines().find(|line| line.contains(words)).map(str::to_owned);
    let proxy = Proxy::to(gateway.address());
    let session = Client::builder(&format!("ws://{}/echo?secret=1", proxy.address)).unwrap().connect();
    session.send(Message::text("here")).await.unwrap();
    until("the session is attached", || session.id().is_some()).await;
    proxy.cut();
    proxy.restore();
    until("the resume is logged", || line("session resumed").is_some()).await;
    let id = session.id().unwrap().to_string();
    let back = line("session resumed").unwrap();
    for words in [&id, "peer=\"127.0.0.1:", "route=\"default\"", "path=\"/echo\"", "cause="] {
        assert!(back.contains(words), "{back}");
    }
    session.close(mainstay::CloseCode::NORMAL, "").await;
    until("the end is logged", || line("by=\"client\"").is_some()).await;
    let end = line("by=\"client\"").unwrap();
    for words in [&id, "client ended", "peer=\"127.0.0.1:", "path=\"/echo\"", "cause="] {
        assert!(end.contains(words), "{end}");
    }
    assert!(!gateway.log().contains("secret"));
}

#[tokio::test]
async fn sessions_wait_for_a_backend_that_starts_later() {
    let address = closed_address().await;
    let mut gateway = Gateway::in_front_of(address, &[]);
    let mut client = Client::builder(&format!("{}/echo", gateway.url)).unwrap().connect();
    for number in 0..100 {
        client.send(Message::text(number.to_string())).await.unwrap();
    }
    while !matches!(client.event().await.unwrap(), Event::Attached { .. }) {}
    assert!(gateway.is_up());
    backend(TcpListener::bind(address).await.unwrap(), app()).await;
    for number in 0..100 {
        assert_eq!(client.recv().await, Some(Message::text(number.to_string())));
    }
}

#[tokio::test]
async fn plain_clients_of_an_unreachable_backend_get_503_and_connect_once_it_is_back() {
    let address = closed_address().await;
    let mut gateway = Gateway::in_front_of(address, &["--upstream-wait", "50ms"]);
    let url = format!("{}/echo", gateway.url);
    let refused = Link::builder(&url).unwrap().connect_once().await;
    assert!(refused.unwrap_err().to_string().contains("503"));
    let mut client = Link::builder(&url).unwrap().connect();
    client.send(Message::text("hello")).await.unwrap();
    assert!(matches!(client.event().await, Some(Event::AttemptFailed { .. })));
    assert!(gateway.is_up());
    backend(TcpListener::bind(address).await.unwrap(), app()).await;
    assert_eq!(client.recv().await, Some(Message::text("hello")));
}

#[tokio::test]
async fn a_plain_client_whose_backend_stays_away_is_closed_with_1013_and_a_session_is_kept() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap());
    backend(listener, app()).await;
    let gateway = Gateway::in_front_of(
        proxy.address,
        &["--upstream-wait", "100ms", "--on-backend-loss", "keep", "--delivery", "at-most-once"],
    );
    let url = format!("{}/echo", gateway.url);
    let mut plain = Link::builder(&url).unwrap().connect_once().await.unwrap();
    let mut session = Client::builder(&url).unwrap().connect();
    for message in [Message::text("1"), Message::text("2")] {
        plain.send(message.clone()).await.unwrap();
        session.send(message.clone()).await.unwrap();
        assert_eq!((plain.recv().await, session.recv().await), (Some(message.clone()), Some(message)));
    }
    proxy.cut();
    let (code, reason) = end(&plain).await;
    let when = reason
        .strip_prefix("retry_ms=")
        .and_then(|rest| rest.strip_suffix(", the backend cannot be reached"));
    let when: u64 = when.unwrap_or(&reason).parse().unwrap();
    assert_eq!((code, (1000..=11_000).contains(&when)), (Some(1013), true), "{reason}");
    session.send(Message::text("kept")).await.unwrap();
    proxy.restore();
    assert_eq!(session.recv().await, Some(Message::text("kept")));
}

#[tokio::test]
async fn a_plain_client_keeps_its_connection_while_the_link_reconnects() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap());
    backend(listener, app()).await;
    // With at-least-once, a message that was not confirmed in time would return twice.
    let gateway = Gateway::in_front_of(
        proxy.address,
        &["--admin", "127.0.0.1:0", "--on-backend-loss", "keep", "--delivery", "at-most-once"],
    );
    // This client ends with its first connection.
    let mut client = Link::builder(&format!("{}/echo", gateway.url)).unwrap().connect_once().await.unwrap();
    for round in 1..=3_u32 {
        proxy.cut();
        gateway.wait_for_metric("links_lost_total", round.into()).await;
        let message = Message::text(round.to_string());
        client.send(message.clone()).await.unwrap();
        proxy.restore();
        assert_eq!(client.recv().await, Some(message));
    }
    assert_eq!(gateway.metric("connections_opened_total"), 1.0);
}

#[tokio::test]
async fn a_path_that_may_lead_out_of_the_backends_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("ws://{}/nested", listener.local_addr().unwrap());
    backend(listener, app().nest("/nested", app())).await;
    let gateway = Gateway::start(&["--upstream", &upstream]);
    for (path, status) in [("/echo", "101"), ("/../echo", "400"), ("/%2e%2e/echo", "400")] {
        for offer in ["", "Sec-WebSocket-Protocol: mainstay.v1\r\n"] {
            let (head, _) = Frames::connect(gateway.address(), path, offer).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path} {offer}: {head}");
        }
    }
}

#[tokio::test]
async fn a_backend_receives_the_address_that_connected_and_a_claimed_one_only_from_a_trusted_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for (trusted, expected) in
        [(&[][..], "127.0.0.1"), (&["--trusted-proxy", "127.0.0.0/8"], "192.0.2.7, 127.0.0.1")]
    {
        let gateway = Gateway::in_front_of(address, trusted);
        let claim = "X-Forwarded-For: 192.0.2.7\r\n";
        let (connected, served) =
            tokio::join!(Frames::connect(gateway.address(), "/", claim), Frames::serve(&listener));
        assert!(connected.0.starts_with("HTTP/1.1 101"), "{}", connected.0);
        let fields = served.0.lines().filter_map(|line| line.split_once(": "));
        let fields = fields.filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"));
        assert_eq!(fields.map(|(_, value)| value).collect::<Vec<_>>(), [expected]);
    }
}
