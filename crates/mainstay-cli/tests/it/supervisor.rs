//! Under a supervisor such as systemd: listeners that it passes, and what it learns of the process.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use mainstay::client::Event;
use mainstay::{Client, Message};

use crate::frames::Frames;
use crate::listeners::Folder;
use crate::support::{Callers, Gateway, mainstay, run, without_variables};

/// `mainstay serve` with these arguments and this socket as descriptor 3, as a supervisor passes it.
fn activated(socket: impl Into<OwnedFd>, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let shell = r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve "$@" 3<&0 </dev/null"#;
    command.args(["-c", shell, env!("CARGO_BIN_EXE_mainstay")]).args(arguments);
    command.stdin(Stdio::from(socket.into())).stdout(Stdio::piped()).stderr(Stdio::piped());
    without_variables(&mut command);
    command
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn no_connection_is_refused_between_two_processes_that_a_supervisor_gives_the_same_listener() {
    let (listener, address) = listener();
    let mut old = Gateway::begin(activated(listener.try_clone().unwrap(), &[]));
    assert_eq!(old.address(), address);
    let client = Frames::connect(address, "/echo", "").await;
    let callers = Callers::start(address);
    callers.are_served("before").await;
    old.signal("TERM");
    assert_eq!(old.ended().await, Some(0));
    let new = Gateway::begin(activated(listener.try_clone().unwrap(), &[]));
    callers.are_served("again").await;
    callers.finish();
    drop((new, client));
}

#[tokio::test]
async fn a_session_continues_over_a_restart_under_a_supervisor_and_its_client_is_never_refused() {
    let (listener, address) = listener();
    let folder = std::env::temp_dir().join(format!("mainstay-supervised-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let arguments = ["--state-dir", folder.to_str().unwrap(), "--movable"];
    let mut old = Gateway::begin(activated(listener.try_clone().unwrap(), &arguments));
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send("before").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("before")));
    old.signal("TERM");
    assert_eq!(old.ended().await, Some(0));
    let new = Gateway::begin(activated(listener, &arguments));
    client.send("after").await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text("after")));
    while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, client.event()).await {
        let is_expected = matches!(event, Event::Attached { .. } | Event::Detached { .. });
        assert!(is_expected, "{event:?}");
    }
    drop(new);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_unix_socket_of_a_supervisor_serves_clients_and_its_file_stays() {
    let folder = Folder::new("activated");
    let listener = UnixListener::bind(folder.path("a.sock")).unwrap();
    let mut gateway = Gateway::begin(activated(listener.try_clone().unwrap(), &[]));
    let url = format!("unix:{}", folder.path("a.sock"));
    assert_eq!(gateway.url, url);
    let output = run(&["connect", &format!("{url}:/echo")], b"hello\n");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\n"[..]));
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await, Some(0));
    assert!(std::path::Path::new(&folder.path("a.sock")).exists());
}

#[tokio::test]
async fn a_listener_that_the_supervisor_did_not_pass_is_opened_beside_those_that_it_passed() {
    let (passed, address) = listener();
    let folder = Folder::new("beside");
    let socket = format!("unix:{}", folder.path("a.sock"));
    let listen = ["--listen", &address.to_string(), "--listen", &socket];
    let gateway = Gateway::begin(activated(passed, &listen));
    assert_eq!(crate::support::connect(gateway.address()).unwrap(), "101");
    let output = run(&["connect", &format!("{socket}:/echo")], b"hello\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_socket_that_fits_no_flag_is_a_usage_error_of_one_line() {
    let check = |socket: OwnedFd, names: &str, arguments: &[&str], expected: &[&str]| {
        let output = activated(socket, arguments).env("LISTEN_FDNAMES", names).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(expected.iter().all(|words| stderr.contains(words)), "{expected:?}: {stderr}");
    };
    let tcp = || listener().0.into();
    check(
        UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        "dns",
        &[],
        &["\"dns\"", "is no TCP listener and no Unix one", "ListenStream="],
    );
    let (accepting, address) = listener();
    let connected = TcpStream::connect(address).unwrap();
    check(connected.into(), "mainstay", &[], &["no TCP listener", "Accept=no"]);
    drop(accepting);
    check(
        tcp(),
        "mainstay",
        &["--listen", "127.0.0.1:1"],
        &["--listen 127.0.0.1:1", "LISTEN_FDS", "same address"],
    );
    check(tcp(), "admin", &[], &["FileDescriptorName=admin", "add --admin 127.0.0.1:"]);
    check(tcp(), "admin", &["--admin", "127.0.0.1:1"], &["--admin 127.0.0.1:1", "same address"]);
}

#[test]
fn an_activated_socket_named_admin_serves_the_metrics() {
    let (listener, address) = listener();
    let mut command = activated(listener, &["--listen", "127.0.0.1:0", "--admin", &address.to_string()]);
    command.env("LISTEN_FDNAMES", "admin");
    let gateway = Gateway::begin(command);
    assert!(Gateway::get_at(address, "/readyz", "").ends_with("ready\n"));
    drop(gateway);
}

#[tokio::test]
async fn a_supervisor_learns_that_the_process_serves_lives_and_drains() {
    let folder = std::env::temp_dir().join(format!("mainstay-notify-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let next = || {
        let mut message = [0; 512];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut command = mainstay(&["serve", "--listen", "127.0.0.1:0", "--drain", "2s"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    let mut gateway = Gateway::begin(command);
    let ready = next();
    assert!(ready.starts_with("READY=1\nSTATUS=serving clients at 127.0.0.1:"), "{ready}");
    assert_eq!((next(), next()), ("WATCHDOG=1\n".to_owned(), "WATCHDOG=1\n".to_owned()));
    gateway.signal("TERM");
    let stopping = std::iter::repeat_with(next).find(|message| message != "WATCHDOG=1\n").unwrap();
    let lines: Vec<&str> = stopping.lines().collect();
    assert_eq!(lines[..2], ["STOPPING=1", "EXTEND_TIMEOUT_USEC=12000000"], "{stopping}");
    assert!(lines[2].starts_with("STATUS=draining 0 sessions"), "{stopping}");
    assert_eq!(gateway.ended().await, Some(0));
    std::fs::remove_dir_all(&folder).unwrap();
}
