//! What a client and an upstream see of the faults.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use mainstay_chaos::{ChaosProxy, Direction, Event, Fault, Rule, Scenario, Target, What, When};

use crate::stage::{REQUEST, connect, exchange, is_silent, open, read, upstream, wait_for, wait_until};

#[test]
fn without_a_fault_bytes_and_the_end_of_one_side_pass() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let stream = connect(&proxy);
    let bytes: Vec<u8> = (0..1_000_000u32).map(|index| (index % 251) as u8).collect();
    let writer = stream.try_clone().unwrap();
    let sent = bytes.clone();
    let writes = std::thread::spawn(move || {
        (&writer).write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    (&stream).read_to_end(&mut received).unwrap();
    writes.join().unwrap();
    assert!(received == bytes);
    assert!(matches!(upstream.next(), (all, Ok(())) if all == bytes));
}

#[test]
fn a_reset_is_a_reset_for_both_sides() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let mut stream = connect(&proxy);
    exchange(&stream, b"well");
    proxy.inject(Fault::Reset, Target::Open, None);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(upstream.next().1.unwrap_err().kind(), ErrorKind::ConnectionReset);
    exchange(&connect(&proxy), b"new connections are well");
}

#[test]
fn the_reset_of_a_client_is_a_reset_for_the_upstream() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let stream = connect(&proxy);
    exchange(&stream, b"well");
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(upstream.next().1.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_client_that_closed_its_socket_is_a_reset_for_an_upstream_that_goes_on_writing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy =
        mainstay_chaos::ChaosProxy::builder(listener.local_addr().unwrap().to_string()).start().unwrap();
    drop(connect(&proxy));
    let (mut upstream, _) = listener.accept().unwrap();
    assert_eq!(upstream.read(&mut [0; 1]).unwrap(), 0);
    while upstream.write_all(&[0; 1000]).is_ok() {}
    wait_until(|| proxy.connections().is_empty());
}

#[test]
fn a_fin_is_the_end_of_the_stream_for_both_sides_though_the_client_goes_on_writing() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let mut stream = connect(&proxy);
    exchange(&stream, b"well");
    proxy.inject(Fault::Fin, Target::Open, None);
    stream.write_all(b"unread").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(matches!(upstream.next(), (all, Ok(())) if all == b"well"));
}

#[test]
fn refused_connections_are_refused_at_once_and_accepted_at_the_same_address_after_a_lift() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let old = connect(&proxy);
    exchange(&old, b"well");
    let id = proxy.inject(Fault::Refuse, Target::All, None);
    for _ in 0..10 {
        let refused = TcpStream::connect(proxy.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    exchange(&old, b"open connections stay");
    assert!(proxy.lift(id));
    exchange(&connect(&proxy), b"again");
}

#[test]
fn a_proxy_whose_address_was_taken_meanwhile_says_so_and_listens_again_when_it_is_free() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let id = proxy.inject(Fault::Refuse, Target::All, None);
    let other = std::net::TcpListener::bind(proxy.address()).unwrap();
    assert!(proxy.lift(id));
    wait_for(&proxy, "accept-failed");
    drop(other);
    wait_until(|| TcpStream::connect(proxy.address()).is_ok());
    exchange(&connect(&proxy), b"well");
}

#[test]
fn a_black_hole_that_is_lifted_stays_one_for_what_it_swallowed_and_new_connections_pass() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let mut old = connect(&proxy);
    exchange(&old, b"well");
    let id = proxy.inject(Fault::BlackHole(Direction::Both), Target::Open, None);
    old.write_all(b"gone").unwrap();
    wait_for(&proxy, "dead");
    assert!(proxy.lift(id));
    old.write_all(b"gone too").unwrap();
    exchange(&connect(&proxy), b"a connection that proves that time has passed");
    assert!(is_silent(&old));
    drop(proxy);
    let all = [upstream.next().0, upstream.next().0];
    assert!(all.iter().any(|all| all == b"well"), "nothing else of the old connection arrived: {all:?}");
}

#[test]
fn new_connections_that_are_stalled_go_on_when_the_fault_is_lifted() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let id = proxy.inject(Fault::Stall(Direction::Both), Target::New, None);
    let mut stream = connect(&proxy);
    stream.write_all(b"kept").unwrap();
    wait_for(&proxy, "connected");
    assert!(is_silent(&stream));
    assert!(proxy.lift(id));
    assert_eq!(read(&stream, 4), b"kept");
}

#[test]
fn a_mute_proxy_accepts_and_says_nothing_until_it_is_lifted() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    proxy.inject(Fault::Mute, Target::All, None);
    let mut stream = connect(&proxy);
    stream.write_all(b"kept").unwrap();
    wait_for(&proxy, "opened");
    assert!(is_silent(&stream));
    assert_eq!(proxy.connections()[0].state, "connecting");
    proxy.lift_all();
    assert_eq!(read(&stream, 4), b"kept");
}

#[test]
fn an_upstream_that_is_not_there_resets_the_client_and_is_in_the_timeline() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let old = connect(&proxy);
    exchange(&old, b"well");
    let nothing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    proxy.set_upstream(&nothing.to_string()).unwrap();
    let mut new = connect(&proxy);
    assert_eq!(new.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let failed = wait_for(&proxy, "upstream-failed");
    assert!(matches!(failed.what, What::UpstreamFailed { upstream, .. } if upstream == nothing.to_string()));
    exchange(&old, b"the old connection leads where it led");
}

#[test]
fn an_upstream_that_is_the_proxy_itself_is_refused_and_opens_no_second_connection() {
    let upstream = upstream();
    for (listen, host) in
        [("127.0.0.1:0", "localhost"), ("127.0.0.1:0", "0.0.0.0"), ("0.0.0.0:0", "127.0.0.1")]
    {
        let proxy = ChaosProxy::builder(upstream.address.to_string()).listen(listen).start().unwrap();
        let port = proxy.address().port();
        proxy.set_upstream(&format!("{host}:{port}")).unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let What::UpstreamFailed { reason, .. } = wait_for(&proxy, "upstream-failed").what else { panic!() };
        assert!(reason.contains("the proxy itself"), "{reason}");
        assert_eq!(proxy.accepted(), 1);
    }
}

#[test]
fn a_handshake_is_answered_with_a_status_that_never_reaches_the_upstream() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    proxy.inject(Fault::Status { code: 429, retry_after: Some(3) }, Target::All, None);
    let mut stream = connect(&proxy);
    stream.write_all(REQUEST).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{answer}");
    assert!(
        answer.contains("\r\nRetry-After: 3\r\n") && answer.ends_with("\r\n\r\n429 Too Many Requests\n"),
        "{answer}"
    );
    proxy.lift_all();
    open(&proxy);
    assert!(upstream.next().0 == REQUEST, "the first connection that the upstream saw is the second");
}

#[test]
fn a_cut_inside_a_frame_leaves_the_client_with_half_of_it() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let mut stream = open(&proxy);
    proxy.inject(Fault::CutInFrame(Direction::Down), Target::Open, None);
    stream.write_all(b"\x82\x08abcdefgh").unwrap();
    let mut received = Vec::new();
    assert_eq!(stream.read_to_end(&mut received).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(
        b"\x82\x08abcd".starts_with(&received),
        "a reset may overtake what is not yet read: {received:?}"
    );
}

#[test]
fn the_last_bytes_of_a_ghost_reach_the_upstream_after_those_of_the_newer_connection() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    let mut old = open(&proxy);
    proxy.inject(Fault::Ghost, Target::Open, None);
    old.write_all(b"\x81\x03old").unwrap();
    assert_eq!(old.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let new = open(&proxy);
    exchange(&new, b"\x81\x03new");
    let has_appeared = |id, up| proxy.connections().iter().any(|it| it.id == id && it.up > up);
    wait_until(|| has_appeared(1, REQUEST.len() as u64));
    drop(proxy);
    let (first, second) = (upstream.next().0, upstream.next().0);
    assert!([&first, &second].iter().any(|all| all.ends_with(b"\x81\x03old")));
}

#[test]
fn a_scenario_strikes_each_connection_at_its_times() {
    let rule = |fault, after| Rule { fault, when: When::After(after), lasts: None, share: 1.0 };
    let upstream = upstream();
    let scenario = Scenario { rules: vec![rule(Fault::Reset, Duration::from_millis(30))] };
    let proxy =
        mainstay_chaos::ChaosProxy::builder(upstream.address.to_string()).scenario(scenario).start().unwrap();
    for _ in 0..3 {
        let mut stream = connect(&proxy);
        assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    let strikes = proxy.timeline().into_iter().filter_map(|event| match event.what {
        What::Fault { due, .. } => Some((event.connection, due)),
        _ => None,
    });
    let due = Some(Duration::from_millis(30));
    assert_eq!(strikes.collect::<Vec<_>>(), [(Some(1), due), (Some(2), due), (Some(3), due)]);
}

#[test]
fn a_rule_of_the_whole_proxy_strikes_what_is_open_and_what_opens_while_it_lasts() {
    let at = When::At { at: Duration::ZERO, repeat: None };
    let rule = Rule { fault: Fault::Mute, when: at, lasts: None, share: 1.0 };
    let upstream = upstream();
    let proxy = upstream.proxy();
    proxy.set_scenario(Scenario { rules: vec![rule] });
    let mut stream = connect(&proxy);
    stream.write_all(b"kept").unwrap();
    wait_for(&proxy, "opened");
    assert_eq!(proxy.faults().len(), 1);
    assert!(is_silent(&stream));
    proxy.set_scenario(Scenario::default());
    assert_eq!(read(&stream, 4), b"kept");
    assert!(proxy.faults().is_empty());
}

#[test]
fn the_times_of_new_rules_count_from_their_replacement() {
    let upstream = upstream();
    let proxy = upstream.proxy();
    proxy.inject(Fault::Stall(Direction::Both), Target::Open, None);
    let replaced = wait_for(&proxy, "fault").at;
    let at = Duration::from_millis(50);
    let rule = Rule { fault: Fault::Fin, when: When::At { at, repeat: None }, lasts: None, share: 1.0 };
    proxy.set_scenario(Scenario { rules: vec![rule] });
    let is_fin = |event: &Event| matches!(event.what, What::Fault { fault: Fault::Fin, .. });
    let strike = proxy.wait_for(Duration::from_secs(30), is_fin).unwrap();
    assert!(strike.at >= replaced + at, "{strike:?}");
    assert!(matches!(strike.what, What::Fault { due, .. } if due == Some(at)), "{strike:?}");
}

#[test]
fn a_pause_of_the_proxy_is_no_silence_of_a_client_and_nothing_strikes_in_it() {
    let pause = Duration::from_secs(3);
    let rule = |fault, when| Rule { fault, when, lasts: None, share: 1.0 };
    let after = Duration::from_secs(2);
    let idle = Fault::IdleCut { direction: Direction::Both, after, silent: false };
    let twice_a_second = When::At { at: Duration::ZERO, repeat: Some(Duration::from_millis(500)) };
    let rules = vec![rule(idle, When::Always), rule(Fault::CutInFrame(Direction::Down), twice_a_second)];
    let upstream = upstream();
    let proxy = mainstay_chaos::ChaosProxy::builder(upstream.address.to_string())
        .scenario(Scenario { rules })
        .on_event(move |event| {
            // The thread stands still, as a stopped process does.
            if event.what.name() == "handshake" {
                std::thread::sleep(pause);
            }
        })
        .start()
        .unwrap();
    let stream = open(&proxy);
    exchange(&stream, b"\x89\0");
    let event = wait_for(&proxy, "paused");
    assert!(matches!(event.what, What::Paused { lasted } if lasted > pause / 2), "{event:?}");
    let timeline = proxy.timeline();
    assert!(timeline.iter().all(|event| event.what.name() != "closed"), "{timeline:#?}");
    let at_once = timeline.iter().filter(|other| other.number > event.number && other.at == event.at);
    assert!(at_once.filter(|event| event.what.name() == "fault").count() < 3, "{timeline:#?}");
}
