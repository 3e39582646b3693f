//! `mainstay connect`: pipes, terminals, signals and exit codes.

use std::io::{BufRead, BufReader, Read, Write};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::support::{Gateway, mainstay, run, signal};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn each_line_is_sent_and_each_answer_printed_and_the_connection_closes_in_order() {
    let gateway = Gateway::start(&[]);
    let url = format!("{}/echo", gateway.url);
    for flags in [&[][..], &["--plain"], &["--once"], &["--plain", "--once"]] {
        let output = run(&[&["connect", &url][..], flags].concat(), b"hello\n\nlast without a newline");
        assert_eq!(text(&output.stdout), "hello\n\nlast without a newline\n", "{flags:?}");
        assert_eq!(output.status.code(), Some(0), "{flags:?}: {}", text(&output.stderr));
    }
}

#[test]
fn more_lines_than_any_window_holds_come_back_in_order() {
    let gateway = Gateway::start(&[]);
    let input: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    let output = run(&["connect", &format!("{}/echo", gateway.url)], input.as_bytes());
    assert!(text(&output.stdout) == input, "{} bytes of {}", output.stdout.len(), input.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn with_json_every_line_is_an_object_with_fields() {
    let gateway = Gateway::start(&[]);
    let output = run(&["connect", &format!("{}/echo", gateway.url), "--json"], b"hello\n");
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    assert_eq!(events, ["attached", "ended"]);
    let attached = lines.iter().find(|line| line["event"] == "attached").unwrap();
    assert_eq!(
        (&attached["mode"], &attached["resumed"], &attached["epoch"]),
        (&"session".into(), &false.into(), &1.into())
    );
    let ended = lines.iter().find(|line| line["event"] == "ended").unwrap();
    assert_eq!((&ended["code"], &ended["sent"]["delivered"]), (&1000.into(), &1.into()));
    assert!(lines.iter().any(|line| line["message"] == "hello"));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_refusal_exits_with_1_and_names_the_status() {
    let gateway = Gateway::start(&[]);
    for flags in [&[][..], &["--once"]] {
        let output = run(&[&["connect", &format!("{}/nowhere", gateway.url)][..], flags].concat(), b"x\n");
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(text(&output.stderr).contains("404"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_server_that_was_never_reached_exits_with_1() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("ws://{closed}/"), "unix:/nowhere/at.sock".to_owned()] {
        let output = run(&["connect", &url, "--linger", "100ms"], b"");
        assert_eq!(output.status.code(), Some(1), "{url}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains("refused") || stderr.contains("No such file"), "{stderr}");
    }
}

#[test]
fn a_signal_closes_in_order() {
    let gateway = Gateway::start(&[]);
    for name in ["INT", "TERM"] {
        let mut process = mainstay(&["connect", &format!("{}/echo", gateway.url)]).spawn().unwrap();
        let input = process.stdin.take();
        let mut errors = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            assert_ne!(errors.read_line(&mut line).unwrap(), 0);
        }
        signal(&process, name);
        assert_eq!(process.wait().unwrap().code(), Some(0), "{name}");
        let mut rest = String::new();
        errors.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("ended: code 1000"), "{rest}");
        drop(input);
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    // The server accepts and sends nothing: an orderly end has to wait for the queue.
    let silence = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", silence.local_addr().unwrap());
    let mut process = mainstay(&["connect", &url, "--linger", "1ms"]).spawn().unwrap();
    // More than a pipe holds: once all is written, the client has queued lines.
    let lines = [vec![b'x'; 999], vec![b'\n']].concat().repeat(150);
    std::io::Write::write_all(process.stdin.as_mut().unwrap(), &lines).unwrap();
    let connection = silence.accept().unwrap();
    // Two signals that arrive before the first is handled count as one.
    while process.try_wait().unwrap().is_none() {
        signal(&process, "INT");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(process.wait().unwrap().code(), Some(130));
    drop(connection);
}

#[test]
fn help_has_examples_and_exit_codes_and_shells_get_their_completion() {
    let commands = [
        &["serve"][..],
        &["connect"],
        &["bench"],
        &["bench", "echo"],
        &["chaos"],
        &["completions"],
        &["doctor"],
        &["health"],
    ];
    for command in commands {
        let help = run(&[command, &["--help"]].concat(), b"");
        assert_eq!(help.status.code(), Some(0), "{command:?}");
        let shown = format!("mainstay {}", command[0]);
        for expected in ["Examples:", &shown, "Exit codes:"] {
            assert!(text(&help.stdout).contains(expected), "{command:?}: {expected}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell], b"");
        assert!(script.status.success() && text(&script.stdout).contains("linger"), "{shell}");
    }
}

/// The output of `mainstay connect` on a terminal, for one message that is sent and echoed.
fn on_a_terminal(message: &[u8], flags: &[&str]) -> String {
    let gateway = Gateway::start(&[]);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let device = std::fs::File::options().write(true).open(name.to_str().unwrap()).unwrap();
    let url = format!("{}/echo", gateway.url);
    let mut process = mainstay(&[&["connect", &url][..], flags].concat()).stdout(device).spawn().unwrap();
    process.stdin.take().unwrap().write_all(message).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
    let (mut terminal, mut output) = (std::fs::File::from(terminal), Vec::new());
    // The terminal's last writer is gone: reading ends with an error after what was written.
    let _ = terminal.read_to_end(&mut output);
    text(&output)
}

#[test]
fn a_terminal_gets_no_control_character_of_the_server_unless_a_flag_asks_for_it() {
    let message = "\u{1b}]0;title\u{7}\u{9b}2J\u{202e}\tend".as_bytes();
    let shown = on_a_terminal(message, &[]);
    assert_eq!(shown.trim_end(), "\\u{1b}]0;title\\u{7}\\u{9b}2J\\u{202e}\tend");
    let raw = on_a_terminal(message, &["--raw"]);
    assert_eq!(raw.trim_end().as_bytes(), message);
    let json = on_a_terminal(message, &["--json"]);
    assert!(!json.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{json:?}");
    let line = json.lines().find(|line| line.contains("title")).unwrap();
    let object: Value = serde_json::from_str(line).unwrap();
    assert_eq!(object["message"].as_str().unwrap().as_bytes(), message);
}

#[test]
fn a_pipe_gets_messages_unchanged() {
    let gateway = Gateway::start(&[]);
    let output = run(&["connect", &format!("{}/echo", gateway.url)], b"\x1b]0;title\x07\n");
    assert_eq!(output.stdout, b"\x1b]0;title\x07\n");
}
