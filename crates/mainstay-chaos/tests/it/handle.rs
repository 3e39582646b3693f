//! The handle: start, timeline, targets, end.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_chaos::{
    Cause, ChaosProxy, Direction, Event, Fault, FaultId, Lift, Rule, Scenario, Target, What, When,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::stage::{connect, exchange, is_silent, upstream, wait_for, wait_until};

#[test]
fn a_proxy_that_is_dropped_leaves_nothing_that_listens_and_no_connection() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let address = proxy.address();
    let (mut first, second) = (connect(&proxy), connect(&proxy));
    exchange(&first, b"well");
    exchange(&second, b"well");
    proxy.inject(Fault::BlackHole(Direction::Both), Target::Connection(2), None);
    drop(proxy);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(!matches!(first.read(&mut [0; 1]), Ok(1)));
    for _ in 0..2 {
        assert_eq!(upstream.next().0, b"well");
    }
}

#[test]
fn every_event_is_reported_in_order_and_kept() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let receive = Arc::clone(&seen);
    let upstream = upstream();
    let proxy = ChaosProxy::builder(format!("ws://{}", upstream.address))
        .seed(7)
        .on_event(move |event| receive.lock().unwrap().push(event.clone()))
        .start()
        .unwrap();
    let stream = connect(&proxy);
    wait_for(&proxy, "connected");
    exchange(&stream, b"\x16well");
    let id = proxy.inject(Fault::BlackHole(Direction::Up), Target::Open, Some(Duration::from_secs(3600)));
    assert!(proxy.lift(id));
    proxy.inject(Fault::Reset, Target::Connection(1), None);
    let all = proxy.timeline();
    assert!(all.iter().enumerate().all(|(index, event)| event.number == index as u64 + 1));
    // A machine without a free core adds pauses.
    let timeline: Vec<_> = all.iter().filter(|event| event.what.name() != "paused").collect();
    let names: Vec<_> = timeline.iter().map(|event| event.what.name()).collect();
    let expected = ["started", "opened", "connected", "unreadable", "fault", "lifted", "fault", "closed"];
    assert_eq!(names, expected);
    let fault = serde_json::to_value(timeline[4]).unwrap();
    let expected = serde_json::json!({
        "number": fault["number"], "at": fault["at"], "event": "fault", "fault": "black-hole", "direction": "up", "by": "command 1", "for": "1h"
    });
    assert_eq!(fault, expected);
    let closed = serde_json::to_value(timeline[7]).unwrap();
    let expected = serde_json::json!({
        "number": closed["number"], "at": closed["at"], "event": "closed", "connection": 1, "reason": "reset", "up": 5, "down": 5
    });
    assert_eq!(closed, expected);
    assert_eq!(proxy.seed(), 7);
    drop(proxy);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[..all.len()], all);
    assert_eq!(seen.last().map(|event| event.what.clone()), Some(What::Ended));
}

#[test]
fn targets_are_what_is_open_what_is_new_and_one_connection() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let old = [connect(&proxy), connect(&proxy)];
    old.iter().for_each(|stream| exchange(stream, b"well"));
    let stall = || Fault::Stall(Direction::Both);
    let one = proxy.inject(stall(), Target::Connection(2), None);
    let new = proxy.inject(stall(), Target::New, None);
    let late = connect(&proxy);
    wait_until(|| proxy.accepted() == 3);
    let stalled = |proxy: &ChaosProxy| -> Vec<u64> {
        let stalled = proxy.connections().into_iter().filter(|it| !it.faults.is_empty());
        stalled.map(|it| it.id).collect()
    };
    assert_eq!(stalled(&proxy), [2, 3]);
    exchange(&old[0], b"well");
    assert_eq!(
        proxy.faults().iter().map(|it| (it.id, it.target)).collect::<Vec<_>>(),
        [(one, Target::Connection(2)), (new, Target::New)]
    );
    assert!(proxy.lift(one) && !proxy.lift(one) && !proxy.lift(FaultId(99)));
    assert_eq!(stalled(&proxy), [3]);
    proxy.lift_all();
    assert_eq!(stalled(&proxy), [0; 0]);
    proxy.inject(stall(), Target::Open, None);
    assert_eq!(stalled(&proxy), [1, 2, 3]);
    exchange(&connect(&proxy), b"opened later");
    exchange_blocked(&late);
}

fn exchange_blocked(mut stream: &TcpStream) {
    stream.write_all(b"held").unwrap();
    assert!(is_silent(stream));
}

#[test]
fn the_same_seed_and_the_same_order_of_connections_give_the_same_faults() {
    const LATEST: Duration = Duration::from_millis(100);
    let rule = |fault, when, share| Rule { fault, when, lasts: Some(Duration::from_millis(1)), share };
    let every = When::Every(Duration::from_millis(20));
    let rules = vec![
        rule(Fault::Stall(Direction::Up), every, 0.5),
        rule(Fault::Jam(Direction::Down), When::After(Duration::from_millis(15)), 0.7),
        rule(Fault::Corrupt(Direction::Up), When::Every(Duration::from_millis(40)), 1.0),
    ];
    let upstream = upstream();
    let play = |seed| {
        let scenario = Scenario { rules: rules.clone() };
        let proxy =
            ChaosProxy::builder(upstream.address.to_string()).seed(seed).scenario(scenario).start().unwrap();
        let streams: Vec<_> = (0..6).map(|_| connect(&proxy)).collect();
        // The third rule strikes each connection again and again; the strikes of one connection are in order.
        let is_past = |event: &Event| match event.what {
            What::Fault { due, .. } => due.filter(|due| *due >= LATEST).and(event.connection),
            _ => None,
        };
        let past = || proxy.timeline().iter().filter_map(is_past).collect::<BTreeSet<_>>();
        wait_until(|| past().len() == 6);
        let mut faults: Vec<_> = proxy
            .timeline()
            .into_iter()
            .filter_map(|event| match event.what {
                What::Fault { fault, due: Some(due), by, .. } if due < LATEST => {
                    Some((event.connection, due, fault.name(), by.to_string()))
                }
                _ => None,
            })
            .collect();
        faults.sort();
        drop(streams);
        faults
    };
    let first = play(1);
    assert!(first.len() > 20, "{first:?}");
    assert_eq!(first, play(1));
    assert_ne!(first, play(2));
}

#[test]
fn the_share_of_a_rule_of_the_whole_proxy_is_drawn_from_the_seed_for_each_connection() {
    let upstream = upstream();
    let struck = |seed| -> Vec<u64> {
        let proxy = ChaosProxy::builder(upstream.address.to_string()).seed(seed).start().unwrap();
        let mut streams: Vec<_> = (0..15).map(|_| connect(&proxy)).collect();
        wait_until(|| proxy.accepted() == 15);
        let when = When::At { at: Duration::ZERO, repeat: None };
        let rule = Rule { fault: Fault::Stall(Direction::Both), when, lasts: None, share: 0.5 };
        proxy.set_scenario(Scenario { rules: vec![rule] });
        // It also strikes connections that open while it lasts.
        streams.extend((0..15).map(|_| connect(&proxy)));
        wait_until(|| proxy.accepted() == 30);
        let struck = proxy.connections().into_iter().filter(|it| !it.faults.is_empty());
        struck.map(|it| it.id).collect()
    };
    let first = struck(1);
    assert!((5..25).contains(&first.len()) && first[0] <= 15 && first[first.len() - 1] > 15, "{first:?}");
    assert_eq!(first, struck(1));
    assert_ne!(first, struck(2));
}

#[test]
fn a_fault_of_a_connection_that_is_gone_is_in_force_no_more() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let stream = connect(&proxy);
    exchange(&stream, b"\x16well");
    proxy.inject(Fault::DropPings(Direction::Both), Target::Connection(1), None);
    proxy.inject(Fault::DropPings(Direction::Both), Target::Open, None);
    let new = proxy.inject(Fault::DropPings(Direction::Both), Target::New, None);
    assert_eq!(proxy.faults().len(), 3);
    drop(stream);
    wait_until(|| proxy.connections().is_empty());
    wait_until(|| proxy.faults().iter().map(|fault| fault.id).eq([new]));
}

#[test]
fn a_connection_that_was_kept_leads_to_the_upstream_of_the_moment_in_which_it_goes_on() {
    let (first, second) = (upstream(), upstream());
    let proxy = first.proxy();
    let mute = proxy.inject(Fault::Mute, Target::All, None);
    let stream = connect(&proxy);
    wait_for(&proxy, "opened");
    proxy.set_upstream(&format!("ws://{}", second.address)).unwrap();
    assert!(proxy.lift(mute));
    exchange(&stream, b"well");
    let connected = wait_for(&proxy, "connected");
    assert_eq!(connected.what, What::Connected { upstream: second.address });
}

#[test]
fn a_lift_of_all_also_stops_what_rules_have_begun_on_single_connections() {
    let upstream = upstream();
    let rule = Rule { fault: Fault::Stall(Direction::Both), when: When::Always, lasts: None, share: 1.0 };
    let scenario = Scenario { rules: vec![rule] };
    let proxy = ChaosProxy::builder(upstream.address.to_string()).scenario(scenario).start().unwrap();
    let mut old = connect(&proxy);
    old.write_all(b"held").unwrap();
    wait_for(&proxy, "fault");
    proxy.lift_all();
    assert_eq!(crate::stage::read(&old, 4), b"held");
    let lifted = wait_for(&proxy, "lifted");
    assert_eq!(lifted.what, What::Lifted { fault: "stall", by: Cause::Rule(1), why: Lift::Command });
    let mut new = connect(&proxy);
    new.write_all(b"held").unwrap();
    wait_until(|| proxy.connections().iter().any(|it| it.id == 2 && it.faults == ["stall"]));
    // Another scenario stops them too.
    proxy.set_scenario(Scenario::default());
    assert_eq!(crate::stage::read(&new, 4), b"held");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_works_in_a_test_whose_time_is_paused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let upstream = upstream();
    let proxy = upstream.proxy();
    let mut stream = tokio::net::TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(b"well").await.unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"well");
    proxy.inject(Fault::Reset, Target::Open, None);
    assert!(stream.read(&mut bytes).await.is_err());
}

#[tokio::test]
async fn a_thousand_connections_pass_at_once() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const MANY: u32 = 1000;
    // Each has four sockets in this process.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(MANY).unwrap();
    let proxy = ChaosProxy::builder(listener.local_addr().unwrap().to_string()).start().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let address = proxy.address();
    let exchange = async |mut stream: tokio::net::TcpStream, number| {
        stream.write_u32(number).await.unwrap();
        assert_eq!(stream.read_u32().await.unwrap(), number);
        stream
    };
    let clients: tokio::task::JoinSet<_> = (0..MANY)
        .map(|number| async move {
            exchange(tokio::net::TcpStream::connect(address).await.unwrap(), number).await
        })
        .collect();
    let open = clients.join_all().await;
    assert_eq!((proxy.accepted(), proxy.connections().len()), (MANY.into(), MANY as usize));
    let clients: tokio::task::JoinSet<_> =
        open.into_iter().zip(MANY..).map(|(stream, number)| exchange(stream, number)).collect();
    drop(clients.join_all().await);
    while !proxy.connections().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await; // the upstream runs on this thread
    }
}

#[test]
fn an_event_is_waited_for_whether_it_has_happened_or_not() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let second_opening = || {
        let mut opened = 0;
        let is_second = move |event: &Event| {
            opened += u32::from(event.what.name() == "opened");
            opened == 2
        };
        proxy.wait_for(Duration::from_secs(30), is_second).and_then(|event| event.connection)
    };
    let waits = std::thread::scope(|scope| {
        let waits = scope.spawn(second_opening);
        let _streams = [connect(&proxy), connect(&proxy)];
        waits.join().unwrap()
    });
    assert_eq!((waits, second_opening()), (Some(2), Some(2)));
    assert_eq!(proxy.wait_for(Duration::ZERO, |event| event.what == What::Ended), None);
}

#[test]
fn an_event_has_the_time_at_which_the_proxy_decided_it_however_long_the_thread_is_held_up() {
    let upstream = upstream();
    let hold_up = |event: &Event| {
        if event.what.name() == "fault" {
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let when = When::After(Duration::from_millis(1));
    let reset = Rule { fault: Fault::Reset, when, lasts: None, share: 1.0 };
    let scenario = Scenario { rules: vec![reset] };
    let proxy = ChaosProxy::builder(upstream.address.to_string())
        .scenario(scenario)
        .on_event(hold_up)
        .start()
        .unwrap();
    let _stream = connect(&proxy);
    let (fault, closed) = (wait_for(&proxy, "fault"), wait_for(&proxy, "closed"));
    assert_eq!(fault.at, closed.at, "the reset and its end are one decision");
}

#[test]
fn a_function_that_receives_events_and_panics_is_named_by_the_next_call() {
    let upstream = upstream();
    let proxy = ChaosProxy::builder(upstream.address.to_string())
        .on_event(|event| assert!(event.what.name() != "opened", "this test panics"))
        .start()
        .unwrap();
    let _stream = connect(&proxy);
    let call = std::panic::AssertUnwindSafe(|| {
        loop {
            let _ = proxy.accepted();
        }
    });
    let panic = std::panic::catch_unwind(call).unwrap_err();
    let words = panic.downcast_ref::<&str>().copied().unwrap_or_default();
    assert!(words.contains("the function given to on_event panicked"), "{words}");
}

#[test]
fn a_wrong_address_is_an_error_that_names_it() {
    let error = |upstream: &str, listen: &str| {
        ChaosProxy::builder(upstream).listen(listen).start().expect_err("it is wrong").to_string()
    };
    for (upstream, why) in [
        ("", "has no port"),
        ("localhost", "has no port"),
        ("ws://localhost", "has no port"),
        (":80", "has no host"),
        ("::1:80", "has an IPv6 address, which needs brackets and a port, as in [::1]:3000"),
        ("[::1]", "has an IPv6 address, which needs brackets and a port, as in [::1]:3000"),
        ("a server:80", "has no host"),
        ("bücher.example:80", "has a host beyond ASCII, whose name in DNS begins with xn--"),
        ("a:0", "has no port of 1 to 65535"),
        ("a:65536", "has no port of 1 to 65535"),
        ("ws://a:80/ws", "has a path, which the client chooses"),
        ("wss://a:443", "has TLS, which the proxy passes on as it is"),
        ("ftp://a:21", "has another scheme than ws"),
    ] {
        let expected = format!("upstream: {upstream:?} {why}: write HOST:PORT or ws://HOST:PORT");
        assert_eq!(error(upstream, "127.0.0.1:0"), expected);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(error("a:1", &address).starts_with(&format!("cannot listen on {address}: ")));
    assert!(error("a:1", "no address").starts_with("cannot listen on no address: "));
    let proxy = upstream().proxy();
    assert!(proxy.set_upstream("nowhere").is_err());
    assert!(proxy.set_upstream("WS://localhost:80/").is_ok());
}

#[test]
fn the_url_is_one_that_clients_of_this_machine_can_use() {
    let upstream = upstream();
    let start =
        |listen: &str| ChaosProxy::builder(upstream.address.to_string()).listen(listen).start().unwrap();
    let proxy = upstream.proxy();
    assert_eq!(proxy.url("/ws"), format!("ws://{}/ws", proxy.address()));
    assert_eq!(proxy.url("ws?a"), format!("ws://{}/ws?a", proxy.address()));
    let proxy = start("0.0.0.0:0");
    assert_eq!(proxy.url(""), format!("ws://127.0.0.1:{}/", proxy.address().port()));
}
