//! The process: its log, its signals, its environment.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::flags::check;
use crate::frames::{CLOSE, Frames};
use crate::support::{Gateway, mainstay, run, signal, until};

/// Starts `mainstay serve` with this standard error; returns its listen address too.
fn serve(arguments: &[&str], stderr: Stdio) -> (Child, SocketAddr) {
    let arguments = [&["serve", "--listen", "127.0.0.1:0"], arguments].concat();
    let mut process = mainstay(&arguments).stderr(stderr).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit_once("ws://").unwrap().1.parse().unwrap();
    (process, address)
}

/// The writing end of a full pipe, and its reading end.
fn full_pipe() -> (Stdio, std::io::PipeReader) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while writer.write(&vec![b'.'; size]).is_ok() {}
    }
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (writer.into(), reader)
}

async fn is_drained_in_order(what: &str, mut process: Child, address: SocketAddr) {
    let (_, mut client) = Frames::connect(address, "/echo", "").await;
    signal(&process, "TERM");
    let close = client.read().await.unwrap();
    assert_eq!((close.0, &close.1[..2]), (CLOSE, &1012_u16.to_be_bytes()[..]), "{what}");
    drop(client);
    assert_eq!(process.wait().unwrap().code(), Some(0), "{what}");
}

#[tokio::test]
async fn a_drain_is_in_order_even_if_the_log_cannot_be_written() {
    let full_disk = File::options().write(true).open("/dev/full").unwrap();
    let (process, address) = serve(&[], full_disk.into());
    is_drained_in_order("the disk is full", process, address).await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (process, address) = serve(&[], writer.into());
    is_drained_in_order("the reader is gone", process, address).await;
    let (stderr, _stalled) = full_pipe();
    let (process, address) = serve(&[], stderr);
    is_drained_in_order("the reader stalls", process, address).await;
}

#[tokio::test]
async fn a_banner_that_is_not_read_stops_no_client() {
    let (stdout, _stalled) = full_pipe();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let arguments = ["serve", "--listen", &free.to_string()];
    let process = mainstay(&arguments).stdout(stdout).spawn().unwrap();
    until("the gateway serves", || TcpStream::connect(free).is_ok()).await;
    is_drained_in_order("the banner is not read", process, free).await;
}

#[tokio::test]
async fn lost_log_lines_are_counted_and_reported_when_the_log_can_be_written_again() {
    let folder = std::env::temp_dir().join(format!("mainstay-log-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let fifo = folder.join("stderr");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let read = || {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        File::options().read(true).custom_flags(flags).open(&fifo).unwrap()
    };
    let reader = read();
    let stderr = File::options().write(true).open(&fifo).unwrap();
    let mut gateway = Gateway::with_log(&["--admin", "127.0.0.1:0"], stderr.into());
    drop(reader);
    gateway.signal("HUP");
    gateway.wait_for_metric("log_lines_lost_total", 1.0).await;
    let mut reader = read();
    gateway.signal("HUP");
    let log = std::cell::RefCell::new(String::new());
    let mut says = |words: &str| {
        let _ = reader.read_to_string(&mut log.borrow_mut());
        log.borrow().contains(words)
    };
    let says = std::cell::RefCell::new(&mut says);
    until("the count of lost lines is logged", || says.borrow_mut()("log lines were lost")).await;
    assert!(log.borrow().contains("lines=1") && log.borrow().contains("SIGHUP"), "{}", log.borrow());
    assert!(gateway.is_up());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn other_signals_do_not_end_the_process_and_are_logged_in_one_line() {
    let mut gateway = Gateway::start(&[]);
    let (_, mut client) = Frames::connect(gateway.address(), "/echo", "").await;
    for name in ["HUP", "USR1", "USR2", "ALRM", "PIPE"] {
        gateway.signal(name);
        client.write(crate::frames::TEXT, name.as_bytes()).await;
        assert_eq!(client.text().await.as_deref(), Some(name));
    }
    let lines = |name: &str| {
        let stderr = gateway.log();
        stderr
            .lines()
            .filter(|line| line.contains(&format!("SIG{name}")))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    until("HUP", || lines("HUP").len() == 1).await;
    assert!(lines("HUP")[0].contains("reloaded"), "{:?}", lines("HUP"));
    for (name, instead) in [("USR1", "standard error"), ("USR2", "SIGTERM")] {
        until(name, || lines(name).len() == 1).await;
        assert!(lines(name)[0].contains("ignored") && lines(name)[0].contains(instead), "{:?}", lines(name));
    }
    assert!(gateway.is_up());
}

#[tokio::test]
async fn the_first_signal_drains_and_the_second_ends_at_once_with_its_code() {
    for (first, second, code) in [("QUIT", "TERM", 143), ("TERM", "INT", 130), ("INT", "QUIT", 131)] {
        let (mut process, address) = serve(&["--drain", "1h"], Stdio::piped());
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(Frames::connect(address, "/echo", "").await.1);
        }
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        signal(&process, first);
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("draining; send the signal again to end at once"), "{line}");
        signal(&process, second);
        assert_eq!(process.wait().unwrap().code(), Some(code), "{first}, {second}");
    }
}

#[test]
fn with_log_format_json_every_line_is_json_and_so_is_a_startup_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["serve", "--listen", &address, "--log-format", "json"], b"");
    let object: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(object["message"].as_str().unwrap().contains(&address), "{object}");
    let output = mainstay(&["serve", "--listen", &address])
        .env("MAINSTAY_LOG_FORMAT", "json")
        .env("MAINSTAY_BACKUP", "x")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let first: serde_json::Value = serde_json::from_str(stderr.lines().next().unwrap()).unwrap();
    assert_eq!((&first["level"], &first["name"]), (&"WARN".into(), &"MAINSTAY_BACKUP".into()), "{stderr}");
    check(&["serve", "--log-format", "xml"], &["--log-format", "text", "json"]);
}

/// Exit code and standard error with these variables.
fn with_variables(variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let output =
        mainstay(&[&["serve"], arguments].concat()).envs(variables.iter().copied()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_mistake_in_the_environment_is_one_line_that_names_the_variable() {
    for (name, value, words) in [
        ("MAINSTAY_UPSTREEM", "ws://127.0.0.1:3000", "MAINSTAY_UPSTREAM"),
        ("MAINSTAY_DRIAN", "5s", "MAINSTAY_DRAIN"),
        ("MAINSTAY_LOG", "verbose", "for example info"),
        ("MAINSTAY_LOG_FORMAT", "xml", "json"),
        ("MAINSTAY_DRAIN", "soon", "--drain"),
        ("MAINSTAY_MAX_SESSIONS", "many", "whole number"),
        ("MAINSTAY_TRUSTED_PROXY", "10.0.0.1,proxy.example", "10.0.0.0/8"),
        ("MAINSTAY_DEFLATE", "perhaps", "--deflate"),
    ] {
        let (code, stderr) = with_variables(&[(name, value)], &["--listen", "127.0.0.1:0"]);
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{name}: {stderr}");
        assert!(stderr.contains(name) && stderr.contains(words), "{name}: {stderr}");
    }
}

#[test]
fn each_option_has_a_variable_and_those_of_kubernetes_are_ignored() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // The process gets as far as listening on an address in use.
    let variables = [
        ("MAINSTAY_LISTEN", address.as_str()),
        ("MAINSTAY_UPSTREAM", "ws://127.0.0.1:1"),
        ("MAINSTAY_TRUSTED_PROXY", "10.0.0.1,10.0.0.0/8"),
        ("MAINSTAY_SESSION_COOKIE", "sid"),
        ("MAINSTAY_DEFLATE", "1"),
        ("MAINSTAY_DRAIN", "7s"),
        ("MAINSTAY_PORT", "tcp://10.0.0.9:8080"),
        ("MAINSTAY_PORT_8080_TCP_ADDR", "10.0.0.9"),
        ("MAINSTAY_SERVICE_HOST", "10.0.0.9"),
    ];
    let (code, stderr) = with_variables(&variables, &[]);
    assert!(code == Some(1) && stderr.contains(&address) && stderr.lines().count() == 1, "{code:?} {stderr}");
    let (code, stderr) =
        with_variables(&[("MAINSTAY_DRAIN", "soon")], &["--listen", &address, "--drain", "1s"]);
    assert!(code == Some(1) && stderr.contains(&address), "the command line wins: {code:?} {stderr}");
}

#[test]
fn flags_about_the_backend_require_upstream() {
    for (flag, value) in [
        ("--session-cookie", "sid"),
        ("--session-header", "x-user"),
        ("--trusted-proxy", "10.0.0.1"),
        ("--delivery", "at-most-once"),
        ("--confirm", "reply"),
        ("--upstream-wait", "3s"),
    ] {
        check(&["serve", flag, value], &[flag, "needs --upstream"]);
        let variable = format!("MAINSTAY_{}", flag[2..].to_uppercase().replace('-', "_"));
        let (code, stderr) = with_variables(&[(&variable, value)], &[]);
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(&variable) && stderr.contains("needs --upstream"), "{stderr}");
    }
}
