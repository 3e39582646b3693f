//! A process and its successor on the same addresses.

use std::net::{TcpListener, TcpStream};

use crate::frames::Frames;
use crate::support::{Callers, Gateway, connect, mainstay, until};

fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn a_successor_inherits_both_listeners_while_the_old_process_drains_and_no_client_is_refused_or_reset()
{
    let (listen, admin) = (free(), free());
    let addresses = ["--listen", &listen, "--admin", &admin];
    let old = Gateway::at(&[&addresses[..], &["--drain", "40s"]].concat());
    let address = old.address();
    // Two plain clients, which are drained one after the other, so that the drain takes some seconds.
    let clients = (Frames::connect(address, "/echo", "").await, Frames::connect(address, "/echo", "").await);
    let callers = Callers::start(address);
    callers.are_served("before").await;
    old.signal("TERM");
    until("the old process drains", || old.log().contains("draining")).await;
    let new = Gateway::at(&addresses);
    callers.are_served("again").await;
    callers.finish();
    // Each process serves its own metrics.
    assert_eq!((new.metric("draining"), new.admin), (0.0, old.admin));
    let elsewhere = || old.log().lines().find_map(|line| line.split_once("address=")?.1.parse().ok());
    until("the old process logs its new address", || elsewhere().is_some()).await;
    let moved = Gateway::get_at(elsewhere().unwrap(), "/metrics", "");
    assert!(moved.contains("mainstay_draining 1\n"), "{moved}");
    drop(clients);
}

#[test]
fn a_successor_may_start_immediately_after_the_signal() {
    let listen = free();
    let old = Gateway::at(&["--listen", &listen]);
    let clients = [TcpStream::connect(old.address()).unwrap(), TcpStream::connect(old.address()).unwrap()];
    old.signal("TERM");
    let new = Gateway::at(&["--listen", &listen]);
    assert_eq!(connect(new.address()).unwrap(), "101");
    drop(clients);
}

#[test]
fn a_second_process_on_the_same_address_exits_and_names_the_first() {
    let listen = free();
    let old = Gateway::at(&["--listen", &listen]);
    let output = mainstay(&["serve", "--listen", &listen]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    for words in [&listen, &format!("process {}", old.id()), "SIGTERM"] {
        assert!(stderr.contains(words), "{stderr}");
    }
    assert_eq!(connect(old.address()).unwrap(), "101");
}
