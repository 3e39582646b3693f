//! Each fault as a real client and a real server see it, through the real program: by rule, by schedule and by command.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use mainstay::Link;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Chaos, listener, pair};
use crate::frames::{CLOSE, Frames, PING, PONG, TEXT};
use crate::support::until;

/// How long a test waits for what must not come.
const SILENCE: Duration = Duration::from_millis(200);

/// Nothing arrives here.
async fn is_silent(frames: &mut Frames) {
    assert!(timeout(SILENCE, frames.read()).await.is_err(), "something arrived");
}

/// How the connection ended.
async fn end(frames: &mut Frames) -> ErrorKind {
    loop {
        if let Err(error) = frames.read().await {
            return error.kind();
        }
    }
}

/// A text passes from one end to the other.
async fn passes(from: &mut Frames, to: &mut Frames, text: &str) {
    from.write(TEXT, text.as_bytes()).await;
    assert_eq!(to.read().await.unwrap(), (TEXT, text.as_bytes().to_vec()));
}

/// A proxy with these rules in front of a server, and a client through it. A rule that strikes by time leaves the opening
/// handshake a second, on a busy machine too.
async fn broken(rules: &[&str]) -> (Chaos, Frames, Frames) {
    let (listener, upstream) = listener().await;
    let flags: Vec<&str> = rules.iter().flat_map(|rule| ["--fault", rule]).collect();
    let chaos = Chaos::before(upstream, &flags);
    let (client, server) = pair(&listener, &chaos).await;
    (chaos, client, server)
}

#[tokio::test]
async fn reset_reaches_both_sides_as_a_reset_and_fin_as_an_end() {
    for (kind, expected) in [("reset", ErrorKind::ConnectionReset), ("fin", ErrorKind::UnexpectedEof)] {
        let (chaos, mut client, mut server) = broken(&[]).await;
        passes(&mut client, &mut server, "before").await;
        chaos.inject(json!({"kind": kind}));
        assert_eq!((end(&mut client).await, end(&mut server).await), (expected, expected), "{kind}");
        drop((client, server));
        let (fault, closed) = (chaos.event("fault").await, chaos.event("closed").await);
        assert_eq!((&fault["fault"], &fault["by"]), (&json!(kind), &json!("command 1")));
        assert_eq!((&closed["connection"], &closed["reason"]), (&json!(1), &json!(kind)));
    }
}

#[tokio::test]
async fn one_connection_is_reset_by_its_number_and_the_others_stay() {
    let (listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &[]);
    let (mut first, _first_server) = pair(&listener, &chaos).await;
    let (mut second, mut second_server) = pair(&listener, &chaos).await;
    assert_eq!(chaos.ask("DELETE /connections/1", None).0, 200);
    assert_eq!(end(&mut first).await, ErrorKind::ConnectionReset);
    passes(&mut second, &mut second_server, "still here").await;
    until("one is left", || chaos.ask("GET /connections", None).1.as_array().unwrap().len() == 1).await;
    assert_eq!(chaos.ask("GET /connections", None).1[0]["id"], 2);
}

#[tokio::test]
async fn a_black_hole_up_swallows_what_the_client_sends_and_lets_the_rest_pass() {
    let (chaos, mut client, mut server) = broken(&[]).await;
    let id = chaos.inject(json!({"kind": "black-hole", "direction": "up"}));
    client.write(TEXT, b"lost").await;
    passes(&mut server, &mut client, "down").await;
    is_silent(&mut server).await;
    chaos.lift(id);
    // What was swallowed is lost, and TCP has no way to go on without it.
    client.write(TEXT, b"late").await;
    is_silent(&mut server).await;
}

#[tokio::test]
async fn after_a_black_hole_both_ways_neither_side_learns_that_the_other_has_gone() {
    let (chaos, client, mut server) = broken(&["black-hole,after=1s"]).await;
    assert_eq!(chaos.event("fault").await["by"], "rule 1");
    drop(client);
    is_silent(&mut server).await;
    assert_eq!(chaos.ask("GET /connections", None).1[0]["state"], "dead");
}

#[tokio::test]
async fn what_a_stall_and_a_jam_held_back_arrives_when_they_end() {
    for kind in ["stall", "jam"] {
        let (chaos, mut client, mut server) = broken(&[]).await;
        let id = chaos.inject(json!({"kind": kind, "direction": "up"}));
        client.write(TEXT, b"held back").await;
        is_silent(&mut server).await;
        passes(&mut server, &mut client, "down").await;
        assert_eq!(chaos.ask("GET /faults", None).1[0]["kind"], kind);
        chaos.lift(id);
        assert_eq!(server.read().await.unwrap().1, b"held back", "{kind}");
        assert_eq!(chaos.event("lifted").await["why"], "command");
        assert_eq!(chaos.ask("GET /faults", None).1, json!([]));
    }
}

#[tokio::test]
async fn a_jam_fills_the_socket_of_the_writer() {
    let (chaos, mut client, mut server) = broken(&[]).await;
    let id = chaos.inject(json!({"kind": "jam", "direction": "up"}));
    // More than the buffers of three sockets hold.
    let payload = vec![b'x'; 32 << 20];
    let mut writing = Box::pin(client.write(TEXT, &payload));
    assert!(timeout(SILENCE, &mut writing).await.is_err(), "the writer is not held back");
    chaos.lift(id);
    let ((), read) = tokio::join!(writing, server.read());
    assert_eq!(read.unwrap().1.len(), payload.len());
}

#[tokio::test]
async fn delayed_bytes_arrive_later_and_in_order() {
    let (_chaos, mut client, mut server) = broken(&["delay,direction=up,latency=200ms,jitter=100ms"]).await;
    let sent = Instant::now();
    for number in 0..50 {
        client.write(TEXT, format!("{number}").as_bytes()).await;
    }
    for number in 0..50 {
        assert_eq!(server.read().await.unwrap().1, format!("{number}").as_bytes());
        assert!(sent.elapsed() >= SILENCE, "{number} came after {:?}", sent.elapsed());
    }
}

#[tokio::test]
async fn bandwidth_lets_only_so_many_bytes_pass_each_second() {
    let (_chaos, mut client, mut server) = broken(&["bandwidth,direction=down,bytes-per-second=64KiB"]).await;
    let sent = Instant::now();
    server.write(TEXT, &vec![b'x'; 48 << 10]).await;
    assert_eq!(client.read().await.unwrap().1.len(), 48 << 10);
    // The handshake and the first bytes may come out of what was saved up before.
    assert!(sent.elapsed() >= Duration::from_millis(300), "it took {:?}", sent.elapsed());
}

#[tokio::test]
async fn trickled_bytes_arrive_whole() {
    let (chaos, mut client, mut server) = broken(&["trickle,bytes=1"]).await;
    passes(&mut client, &mut server, "byte by byte").await;
    passes(&mut server, &mut client, "and back").await;
    assert_eq!(chaos.event("fault").await["bytes"], 1);
}

#[tokio::test]
async fn corruption_inverts_one_bit() {
    let (chaos, mut client, mut server) = broken(&[]).await;
    chaos.inject(json!({"kind": "corrupt", "direction": "down"}));
    let sent = [[0x82, 100].as_slice(), &[0; 100]].concat();
    server.write_bytes(&sent).await;
    let mut received = vec![0; sent.len()];
    client.stream().read_exact(&mut received).await.unwrap();
    let changed: u32 =
        sent.iter().zip(&received).map(|(sent, received)| (sent ^ received).count_ones()).sum();
    assert_eq!(changed, 1);
}

#[tokio::test]
async fn a_cut_within_a_frame_leaves_the_receiver_with_a_part_of_it() {
    let (chaos, mut client, mut server) = broken(&[]).await;
    chaos.inject(json!({"kind": "cut-in-frame", "direction": "down"}));
    // A control frame is no data frame.
    server.write(PING, b"whole").await;
    assert_eq!(client.read().await.unwrap(), (PING, b"whole".to_vec()));
    server.write(TEXT, &[b'x'; 1000]).await;
    let mut received = Vec::new();
    let _ = client.stream().read_to_end(&mut received).await;
    assert!(received.len() < 1000, "{} bytes", received.len());
    assert_eq!(chaos.event("closed").await["connection"], 1);
}

#[tokio::test]
async fn a_connection_is_cut_after_so_many_bytes() {
    let (chaos, mut client, mut server) = broken(&["cut-after,direction=down,bytes=1000"]).await;
    server.write(TEXT, &[b'x'; 5000]).await;
    let mut received = Vec::new();
    let _ = client.stream().read_to_end(&mut received).await;
    assert!(received.len() < 1000, "{} bytes", received.len());
    assert!(chaos.event("closed").await["down"].as_u64() <= Some(1000));
}

#[tokio::test]
async fn new_connections_are_refused_until_the_fault_is_lifted() {
    let (listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &[]);
    let (mut client, mut server) = pair(&listener, &chaos).await;
    let id = chaos.inject(json!({"kind": "refuse"}));
    let refused = TcpStream::connect(chaos.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    passes(&mut client, &mut server, "open ones stay").await;
    chaos.lift(id);
    let _second = pair(&listener, &chaos).await;
}

#[tokio::test]
async fn a_mute_listener_accepts_and_says_nothing() {
    let (listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &["--fault", "mute,at=0s,for=400ms"]);
    let mut stream = TcpStream::connect(chaos.address()).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let fault = chaos.event("fault").await;
    assert_eq!(
        (&fault["fault"], &fault["by"], &fault["for"]),
        (&json!("mute"), &json!("rule 1"), &json!("400ms"))
    );
    // When it ends, the connection goes on.
    let (_, mut server) = Frames::serve(&listener).await;
    assert_eq!(chaos.event("lifted").await["why"], "end");
    let mut client = Frames::from(stream);
    crate::frames::head(client.stream()).await.unwrap();
    passes(&mut server, &mut client, "late").await;
}

#[tokio::test]
async fn frames_of_one_kind_are_dropped_and_all_others_pass() {
    for (kind, dropped, passed) in
        [("swallow-close", CLOSE, PING), ("drop-pings", PING, PONG), ("drop-pongs", PONG, PING)]
    {
        let (_chaos, mut client, mut server) = broken(&[kind]).await;
        for (from, to) in [(&mut client, &mut server)] {
            for (first, payload) in [(dropped, &b"\x03\xe8"[..]), (passed, b"passes"), (TEXT, b"too")] {
                from.write(first, payload).await;
            }
            assert_eq!(to.read().await.unwrap(), (passed, b"passes".to_vec()), "{kind}");
            assert_eq!(to.read().await.unwrap(), (TEXT, b"too".to_vec()), "{kind}");
        }
    }
}

#[tokio::test]
async fn an_idle_connection_ends_after_its_time_as_proxies_end_it() {
    let (chaos, mut client, mut server) = broken(&["idle-cut,idle=1s"]).await;
    assert_eq!(end(&mut client).await, ErrorKind::UnexpectedEof);
    assert_eq!(end(&mut server).await, ErrorKind::UnexpectedEof);
    drop((client, server));
    let at = |event: Value| event["at"].as_f64().unwrap();
    let (opened, closed) = (chaos.event("handshake").await, chaos.event("closed").await);
    assert_eq!(closed["reason"], "idle-cut");
    assert!(at(closed) - at(opened) >= 0.999);
}

#[tokio::test]
async fn a_silent_idle_cut_notifies_neither_side() {
    let (chaos, mut client, mut server) = broken(&["idle-cut,idle=1s,silent=true"]).await;
    until("the connection is dead", || chaos.ask("GET /connections", None).1[0]["state"] == "dead").await;
    client.write(TEXT, b"lost").await;
    is_silent(&mut server).await;
    is_silent(&mut client).await;
}

#[tokio::test]
async fn a_connection_is_cut_at_its_age_however_busy_it_is() {
    let (chaos, mut client, mut server) = broken(&["lifetime-cut,age=1s"]).await;
    let mut count = 0;
    loop {
        client.write(TEXT, b"busy").await;
        match timeout(Duration::from_millis(20), server.read()).await {
            Ok(Err(_)) => break,
            _ => count += 1,
        }
    }
    assert!(count > 0);
    assert!(chaos.event("closed").await["at"].as_f64() >= Some(1.0));
}

#[tokio::test]
async fn the_opening_handshake_is_answered_with_a_status_in_the_upstreams_place() {
    let (_listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &["--fault", "status,code=503,retry-after=7"]);
    let (head, client) = Frames::connect(chaos.address(), "/", "").await;
    drop(client);
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.to_lowercase().contains("retry-after: 7\r\n"),
        "{head}"
    );
    assert_eq!(chaos.event("handshake").await["status"], 503);
    chaos.event("closed").await;
    assert!(chaos.events("connected").is_empty(), "the request did not reach the upstream");
}

#[tokio::test]
async fn the_last_bytes_of_a_ghost_arrive_after_a_new_connection_is_up() {
    let (listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &[]);
    let (mut old, mut old_server) = pair(&listener, &chaos).await;
    // They are on their way, somewhere in the proxy, when the client is cut off.
    chaos.inject(json!({"kind": "delay", "direction": "up", "latency": "2s"}));
    old.write(TEXT, b"late").await;
    tokio::time::sleep(SILENCE).await;
    chaos.inject(json!({"kind": "ghost", "connection": 1}));
    end(&mut old).await;
    is_silent(&mut old_server).await;
    let _new = pair(&listener, &chaos).await;
    assert_eq!(old_server.read().await.unwrap(), (TEXT, b"late".to_vec()));
}

#[tokio::test]
async fn a_schedule_counts_from_the_start_or_from_each_opening() {
    let (listener, upstream) = listener().await;
    let rules = ["--fault", "stall,at=200ms,repeat=300ms,for=100ms", "--fault", "reset,after=1s"];
    let chaos = Chaos::before(upstream, &rules);
    let (mut client, _server) = pair(&listener, &chaos).await;
    assert_eq!(end(&mut client).await, ErrorKind::ConnectionReset);
    let due = |rule: &str| {
        let faults = chaos.events("fault").into_iter().filter(|event| event["by"] == rule);
        faults.map(|event| event["due"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    until("the reset is in the timeline", || !due("rule 2").is_empty()).await;
    assert_eq!(due("rule 2"), [1.0]);
    assert!(due("rule 1").starts_with(&[0.2, 0.5, 0.8]), "{:?}", due("rule 1"));
}

#[tokio::test]
async fn the_same_seed_has_the_same_timeline() {
    let run = async |seed: &str| -> Vec<Value> {
        let (listener, upstream) = listener().await;
        let rules =
            ["--fault", "stall,every=40ms,for=5ms", "--fault", "drop-pongs,share=0.5", "--seed", seed];
        let chaos = Chaos::before(upstream, &rules);
        let mut open = Vec::new();
        for _ in 0..6 {
            open.push(pair(&listener, &chaos).await);
        }
        let of = |connection: u64, fault: &str| {
            let all = chaos.events("fault").into_iter();
            let mine = all.filter(|event| event["connection"] == connection && event["fault"] == fault);
            mine.map(|event| event["due"].clone()).collect::<Vec<_>>()
        };
        until("each has stalled three times", || (1..=6).all(|number| of(number, "stall").len() >= 3)).await;
        (1..=6).map(|number| json!([of(number, "stall")[..3], of(number, "drop-pongs")])).collect()
    };
    let (first, again, other) = (run("7").await, run("7").await, run("8").await);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[tokio::test]
async fn other_rules_take_effect_on_command() {
    let (listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &["--fault", "drop-pings"]);
    let (mut client, mut server) = pair(&listener, &chaos).await;
    let scenario = json!({"fault": [{"kind": "drop-pongs"}, {"kind": "status", "code": 429}]});
    let (status, rules) = chaos.ask("PUT /scenario", Some(scenario));
    assert_eq!((status, &rules["rules"][1]["code"]), (200, &json!(429)));
    client.write(PONG, b"dropped").await;
    client.write(PING, b"passes").await;
    assert_eq!(server.read().await.unwrap(), (PING, b"passes".to_vec()));
    let (head, _refused) = Frames::connect(chaos.address(), "/", "").await;
    assert!(head.contains("429"), "{head}");
    assert_eq!(chaos.ask("PUT /scenario", Some(json!({"use": ["alb"]}))).1["rules"][0]["idle"], "1m");
    assert_eq!(chaos.event("lifted").await["why"], "scenario");
}

#[tokio::test]
async fn bytes_that_are_no_websocket_pass_and_are_named_once() {
    let (listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &["--fault", "drop-pings"]);
    let mut client = TcpStream::connect(chaos.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    // The beginning of a TLS handshake.
    let hello = [&[22, 3, 1, 0, 200][..], &[7; 200]].concat();
    client.write_all(&hello).await.unwrap();
    let mut received = vec![0; hello.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, hello);
    assert_eq!(chaos.event("unreadable").await["connection"], 1);
}

#[tokio::test]
async fn our_own_client_comes_back_through_it_without_a_loss() {
    let gateway = crate::support::Gateway::start(&[]);
    let chaos = Chaos::before(gateway.address(), &[]);
    let url = format!("ws://{}/echo", chaos.address());
    let mut client = mainstay::Client::builder(&url).unwrap().connect();
    for number in 0..6u32 {
        client.sender().send(number.to_string()).await.unwrap();
        assert_eq!(client.recv().await.unwrap(), number.to_string().into());
        let kind = ["reset", "fin", "cut-in-frame"][number as usize % 3];
        chaos.inject(json!({"kind": kind, "target": "open"}));
    }
    // A plain client has no session: its connection is lost for good.
    let plain = Link::builder(&url).unwrap().connect_once().await.unwrap();
    drop((client, plain));
}
