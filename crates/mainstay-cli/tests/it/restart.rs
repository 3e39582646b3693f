//! A process and its successor, on the same addresses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::frames::Frames;
use crate::support::{Gateway, mainstay, until};

fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The status of the answer to one newcomer; an error if it was refused, reset, or not answered.
fn newcomer(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(
        b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(String::from_utf8_lossy(&status[9..]).into_owned())
}

#[tokio::test]
async fn a_successor_gets_both_listeners_while_the_old_process_drains_and_nobody_is_refused_or_reset() {
    let (listen, admin) = (free(), free());
    let addresses = ["--listen", &listen, "--admin", &admin];
    let old = Gateway::at(&[&addresses[..], &["--drain", "40s"]].concat());
    let address = old.address();
    // Two plain clients: they are sent away one after the other, so it drains for some seconds at least.
    let clients = (Frames::connect(address, "/echo", "").await, Frames::connect(address, "/echo", "").await);
    let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let newcomers = std::thread::spawn({
        let (done, served) = (Arc::clone(&done), Arc::clone(&served));
        move || {
            while !done.load(Relaxed) {
                let status = newcomer(address).unwrap();
                assert!(status == "101" || status == "503", "{status}");
                served.fetch_add(usize::from(status == "101"), Relaxed);
            }
        }
    });
    until("newcomers are served", || served.load(Relaxed) > 3).await;
    old.signal("TERM");
    until("it drains", || old.said().contains("draining")).await;
    let new = Gateway::at(&addresses);
    let before = served.load(Relaxed);
    until("newcomers are served again", || served.load(Relaxed) > before + 3).await;
    done.store(true, Relaxed);
    newcomers.join().unwrap();
    // Each tells of itself.
    assert_eq!((new.metric("draining"), new.admin), (0.0, old.admin));
    let elsewhere = || old.said().lines().find_map(|line| line.split_once("address=")?.1.parse().ok());
    until("it says where it is", || elsewhere().is_some()).await;
    let moved = Gateway::ask_at(elsewhere().unwrap(), "/metrics", "");
    assert!(moved.contains("mainstay_draining 1\n"), "{moved}");
    drop(clients);
}

#[test]
fn a_successor_may_be_started_in_the_moment_of_the_signal() {
    let listen = free();
    let old = Gateway::at(&["--listen", &listen]);
    let clients = [TcpStream::connect(old.address()).unwrap(), TcpStream::connect(old.address()).unwrap()];
    old.signal("TERM");
    let new = Gateway::at(&["--listen", &listen]);
    assert_eq!(newcomer(new.address()).unwrap(), "101");
    drop(clients);
}

#[test]
fn a_second_process_beside_one_that_runs_is_told_which_and_what_to_do() {
    let listen = free();
    let old = Gateway::at(&["--listen", &listen]);
    let output = mainstay(&["serve", "--listen", &listen]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    for words in [&listen, &format!("process {}", old.id()), "SIGTERM"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(newcomer(old.address()).unwrap(), "101");
}
