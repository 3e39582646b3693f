//! Several listeners, and Unix sockets for clients.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use crate::support::{Gateway, connect, connect_unix, mainstay, run, until};

/// A directory for sockets that is removed with this value.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mainstay-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn socket(&self) -> String {
        format!("unix:{}", self.path("a.sock"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn clients_are_served_on_every_listener_and_all_of_them_drain() {
    let folder = Folder::new("every");
    let second = free();
    let socket = folder.socket();
    let listen = ["--listen", "127.0.0.1:0", "--listen", &second.to_string(), "--listen", &socket];
    let mut gateway = Gateway::at(&listen);
    assert_eq!(connect(gateway.address()).unwrap(), "101");
    assert_eq!(connect(second).unwrap(), "101");
    assert_eq!(connect_unix(&folder.path("a.sock")).unwrap(), "101");
    let output = run(&["connect", &format!("{socket}:/echo")], b"hello\n");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\n"[..]));
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await, Some(0), "{}", gateway.log());
    assert!(connect(second).is_err());
    assert!(!PathBuf::from(folder.path("a.sock")).exists(), "the file of the socket goes with its process");
}

#[test]
fn a_socket_file_has_the_mode_that_was_asked_for_and_is_closed_to_others_otherwise() {
    let folder = Folder::new("mode");
    for (option, expected) in [("", 0o660), ("?mode=600", 0o600), ("?mode=666", 0o666)] {
        let gateway = Gateway::at(&["--listen", &format!("{}{option}", folder.socket())]);
        let mode = std::fs::metadata(folder.path("a.sock")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, expected, "{option}");
        drop(gateway);
    }
}

#[test]
fn the_socket_file_of_a_process_that_was_killed_is_replaced_and_that_of_another_program_is_not() {
    let folder = Folder::new("stale");
    let killed = Gateway::at(&["--listen", &folder.socket()]);
    drop(killed);
    assert!(PathBuf::from(folder.path("a.sock")).exists());
    let next = Gateway::at(&["--listen", &folder.socket()]);
    assert_eq!(connect_unix(&folder.path("a.sock")).unwrap(), "101");
    let refused = |listen: &str, words: &[&str]| {
        let output = mainstay(&["serve", "--listen", listen]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
        assert!(words.iter().all(|words| stderr.contains(words)), "{stderr}");
    };
    refused(&folder.socket(), &["mainstay runs there as process", &next.id().to_string()]);
    drop(next);
    let _other = UnixListener::bind(folder.path("b.sock")).unwrap();
    refused(&format!("unix:{}", folder.path("b.sock")), &["another program listens there"]);
    std::fs::write(folder.path("file"), "mine").unwrap();
    refused(&format!("unix:{}", folder.path("file")), &["no socket", "choose another path"]);
    refused(&format!("unix:{}", folder.path("none/a.sock")), &["choose a path in a directory"]);
}

#[tokio::test]
async fn a_successor_inherits_tcp_and_unix_listeners_and_no_client_is_refused() {
    let folder = Folder::new("successor");
    let (listen, socket) = (free().to_string(), folder.socket());
    let addresses = ["--listen", &listen, "--listen", &socket];
    let mut old = Gateway::at(&[&addresses[..], &["--drain", "40s"]].concat());
    let clients = (UnixStream::connect(folder.path("a.sock")).unwrap(), old.address());
    let held = crate::frames::Frames::connect(clients.1, "/echo", "").await;
    let held = (held, crate::frames::Frames::connect(clients.1, "/echo", "").await);
    old.signal("TERM");
    until("the old process drains", || old.log().contains("draining")).await;
    let new = Gateway::at(&addresses);
    for _ in 0..20 {
        assert_eq!(connect_unix(&folder.path("a.sock")).unwrap(), "101");
        assert_eq!(connect(new.address()).unwrap(), "101");
    }
    drop((held, clients));
    assert_eq!(old.ended().await, Some(0));
    assert_eq!(
        connect_unix(&folder.path("a.sock")).unwrap(),
        "101",
        "the old process leaves the file to the new one"
    );
}

#[test]
fn a_wrong_address_is_a_usage_error_of_one_line() {
    for (listen, words) in [
        ("localhost:80", "unix:/run/mainstay.sock"),
        ("unix:a.sock", "absolute"),
        ("unix:/run/a?mode=9", "?mode=660"),
    ] {
        let output = mainstay(&["serve", "--listen", listen]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains("--listen") && stderr.contains(words), "{stderr}");
    }
}
