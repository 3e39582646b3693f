//! Credentials: which client gets which session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mainstay::client::{AuthenticateError, ClientHandle, Event, Lost, ReasonCode};
use mainstay::server::{AuthError, Config};
use mainstay::{Client, CloseCode, Link, Message, Server};

use crate::support::{Proxy, echo, server, until};

/// An echo server that accepts `alice:...` and `bob:...`, and the credentials that it judged.
async fn guarded() -> (std::net::SocketAddr, Server, Arc<Mutex<Vec<Option<Bytes>>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let (address, mainstay) = server(Config::default(), move |upgrade| {
        let seen = Arc::clone(&seen);
        let upgrade = upgrade.authenticate(move |credentials| {
            seen.lock().unwrap().push(credentials.clone());
            async move {
                let credentials = credentials.ok_or(AuthError::Refused)?;
                let (name, _) =
                    std::str::from_utf8(&credentials).unwrap().split_once(':').ok_or(AuthError::Refused)?;
                Ok(name.to_owned())
            }
        });
        upgrade.on_session(|session| async move {
            session.send(Message::binary(session.peer().principal.to_vec())).await.unwrap();
            echo(session).await;
        })
    })
    .await;
    (address, mainstay, asked)
}

fn client(address: std::net::SocketAddr, credentials: &'static str) -> Client {
    Client::builder(&format!("ws://{address}/echo")).unwrap().credentials(credentials).connect()
}

async fn end_of<P>(client: &ClientHandle<P>) -> Option<u64> {
    loop {
        match client.event().await {
            Some(Event::Ended(end)) => return end.code.map(ReasonCode::get),
            Some(_) => {}
            None => panic!("an end without an event"),
        }
    }
}

async fn attached(client: &Client) -> bool {
    loop {
        if let Some(Event::Attached { resumed, .. }) = client.event().await {
            return resumed;
        }
    }
}

#[tokio::test]
async fn a_session_belongs_to_the_principal_that_its_credentials_prove() {
    let (address, _mainstay, asked) = guarded().await;
    let mut alice = client(address, "alice:1");
    assert_eq!(alice.recv().await, Some(Message::binary("alice")));
    alice.send(Message::text("a")).await.unwrap();
    assert_eq!(alice.recv().await, Some(Message::text("a")));
    assert_eq!(*asked.lock().unwrap(), [Some(Bytes::from("alice:1"))]);
}

#[tokio::test]
async fn wrong_or_missing_credentials_end_a_client_with_4501() {
    let (address, mainstay, asked) = guarded().await;
    assert_eq!(end_of(&client(address, "mallory")).await, Some(4501));
    let silent = Client::builder(&format!("ws://{address}/echo")).unwrap();
    assert_eq!(end_of(&silent.clone().connect()).await, Some(4501));
    let plain = Link::builder(&format!("ws://{address}/echo")).unwrap();
    assert_eq!(end_of(&plain.connect()).await, Some(4501), "a plain peer can present nothing");
    assert_eq!(*asked.lock().unwrap(), [Some(Bytes::from("mallory")), None, None]);
    until("nothing is left", || mainstay.stats().sessions == 0 && mainstay.stats().connections == 0).await;
    assert_eq!((mainstay.stats().attach_refused, mainstay.stats().attached_new), (2, 0));
}

#[tokio::test]
async fn new_credentials_are_judged_on_the_live_session_and_go_with_every_later_hello() {
    let (address, _mainstay, asked) = guarded().await;
    let proxy = Proxy::to(address).await;
    let client = client(proxy.address, "alice:1");
    assert!(!attached(&client).await);
    client.authenticate("alice:2").await.unwrap();
    assert_eq!(client.authenticate("expired").await, Err(AuthenticateError::Refused));
    assert_eq!(client.authenticate("bob:1").await, Err(AuthenticateError::Refused), "another principal");
    proxy.cut();
    assert!(attached(&client).await, "the session went on");
    let expected =
        ["alice:1", "alice:2", "expired", "bob:1", "alice:2"].map(|asked| Some(Bytes::from(asked)));
    assert_eq!(*asked.lock().unwrap(), expected);
}

#[tokio::test]
async fn new_credentials_of_a_client_that_is_away_are_judged_when_it_comes_back() {
    let (address, _mainstay, asked) = guarded().await;
    let proxy = Proxy::to(address).await;
    let client = client(proxy.address, "alice:1");
    attached(&client).await;
    proxy.close();
    while !matches!(client.event().await, Some(Event::Detached { .. })) {}
    let (verdict, ()) = tokio::join!(client.authenticate("alice:2"), async { proxy.open() });
    assert_eq!(verdict, Ok(()));
    assert_eq!(asked.lock().unwrap().last(), Some(&Some(Bytes::from("alice:2"))));
    proxy.close();
    while !matches!(client.event().await, Some(Event::Detached { .. })) {}
    let (verdict, ()) = tokio::join!(client.authenticate("expired"), async { proxy.open() });
    assert_eq!(verdict, Err(AuthenticateError::Refused));
    assert_eq!(end_of(&client).await, Some(4501));
    assert_eq!(client.authenticate("alice:3").await, Err(AuthenticateError::Closed));
}

#[tokio::test]
async fn a_judge_that_cannot_tell_or_does_not_answer_puts_the_client_off() {
    let config = Config::new().opening_deadline(Duration::from_millis(50)).unwrap();
    for answers in [true, false] {
        let recovered = Arc::new(AtomicBool::new(false));
        let known = Arc::clone(&recovered);
        let (address, mainstay) = server(config.clone(), move |upgrade| {
            let known = Arc::clone(&known);
            let upgrade = upgrade.authenticate(move |_| {
                let known = Arc::clone(&known);
                async move {
                    match known.load(Ordering::Relaxed) {
                        true => Ok("alice"),
                        false if answers => Err(AuthError::Unavailable),
                        false => std::future::pending().await,
                    }
                }
            });
            upgrade.on_session(echo)
        })
        .await;
        let client = client(address, "alice:1");
        until("the first is refused", || mainstay.stats().attach_refused > 0).await;
        recovered.store(true, Ordering::Relaxed);
        assert!(!attached(&client).await);
    }
}

/// Whether its function panics, or the future of that.
#[tokio::test]
async fn a_judge_that_panics_puts_the_client_off_and_holds_nothing() {
    for at_once in [true, false] {
        let config = Config::new().max_sessions(1).unwrap();
        let panics = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&panics);
        let (address, mainstay) = server(config, move |upgrade| {
            let still = Arc::clone(&still);
            let upgrade = upgrade.authenticate(move |_| {
                let still = still.load(Ordering::Relaxed);
                assert!(!(still && at_once), "as the test asks for");
                async move {
                    assert!(!still, "as the test asks for");
                    Ok::<_, AuthError>("alice")
                }
            });
            upgrade.on_session(echo)
        })
        .await;
        let client = client(address, "alice:1");
        let Some(Event::AttemptFailed { why, .. }) = client.event().await else {
            panic!("no attempt failed")
        };
        assert!(
            matches!(
                &why,
                Lost::Unavailable { code: ReasonCode::Close(CloseCode::UPSTREAM_UNAVAILABLE), .. }
            ),
            "{why:?}"
        );
        let plain = Link::builder(&format!("ws://{address}/echo")).unwrap().connect_once().await.unwrap();
        assert_eq!(end_of(&plain).await, Some(4414));
        let stats = mainstay.stats();
        assert!(stats.attach_refused >= 1 && stats.openings_failed == 1, "{stats:?}");
        panics.store(false, Ordering::Relaxed);
        assert!(!attached(&client).await, "there is room for one");
    }
}

#[tokio::test]
async fn a_judge_that_panics_on_a_live_session_refuses_and_the_session_goes_on() {
    let (address, _mainstay) = server(Config::default(), |upgrade| {
        let upgrade = upgrade.authenticate(|credentials| async move {
            assert_ne!(credentials.as_deref(), Some(b"bad".as_slice()));
            Ok::<_, AuthError>("alice")
        });
        upgrade.on_session(echo)
    })
    .await;
    let mut client = client(address, "good");
    attached(&client).await;
    assert_eq!(client.authenticate("bad").await, Err(AuthenticateError::Refused));
    client.send(Message::text("a")).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("a")));
}

#[tokio::test]
async fn a_server_that_judges_nothing_accepts_any_hello_and_no_renewal() {
    let (address, _mainstay) = crate::support::echo_server(Config::default()).await;
    let client = client(address, "whatever");
    attached(&client).await;
    assert_eq!(client.authenticate("more").await, Err(AuthenticateError::Refused));
}

#[tokio::test]
async fn a_full_server_asks_new_clients_to_come_back_until_a_session_ends() {
    let config = Config::new().max_sessions(1).unwrap();
    let (address, mainstay) = crate::support::echo_server(config).await;
    let proxy = Proxy::to(address).await;
    let first = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    attached(&first).await;
    let url = format!("ws://{address}/echo");
    let second = Client::builder(&url).unwrap().connect();
    while !matches!(second.event().await, Some(Event::AttemptFailed { .. })) {}
    proxy.cut();
    assert!(attached(&first).await, "who has a session resumes it");
    first.close(CloseCode::NORMAL, "").await;
    until("the first is gone", || mainstay.stats().sessions == 0).await;
    second.probe_now();
    attached(&second).await;
}
