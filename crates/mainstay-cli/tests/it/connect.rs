//! `mainstay connect`: pipes, people, signals and exit codes.

use std::io::{BufRead, BufReader, Read};

use serde_json::Value;

use crate::support::{Gateway, mainstay, run, signal};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn lines_go_out_and_come_back_and_the_end_is_in_order() {
    let gateway = Gateway::start(&[]);
    let url = format!("{}/echo", gateway.url);
    for flags in [&[][..], &["--plain"], &["--once"], &["--plain", "--once"]] {
        let output = run(&[&["connect", &url][..], flags].concat(), b"hello\n\nlast without a newline");
        assert_eq!(text(&output.stdout), "hello\n\nlast without a newline\n", "{flags:?}");
        assert_eq!(output.status.code(), Some(0), "{flags:?}: {}", text(&output.stderr));
    }
}

#[test]
fn more_than_fits_any_window_goes_through_in_order() {
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
fn a_refusal_ends_with_1_and_says_why() {
    let gateway = Gateway::start(&[]);
    for flags in [&[][..], &["--once"]] {
        let output = run(&[&["connect", &format!("{}/nowhere", gateway.url)][..], flags].concat(), b"x\n");
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(text(&output.stderr).contains("404"), "{}", text(&output.stderr));
    }
}

#[test]
fn an_end_before_anybody_was_reached_is_1() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("ws://{closed}/"), "unix:/nowhere/at.sock".to_owned()] {
        let output = run(&["connect", &url, "--linger", "100ms"], b"");
        assert_eq!(output.status.code(), Some(1), "{url}");
        let said = text(&output.stderr);
        assert!(said.contains("refused") || said.contains("No such file"), "{said}");
    }
}

#[test]
fn an_interrupt_ends_in_order() {
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
fn a_second_interrupt_waits_for_nothing() {
    // Accepts and says nothing: an orderly end has to wait for what was sent.
    let silence = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", silence.local_addr().unwrap());
    let mut process = mainstay(&["connect", &url, "--linger", "1ms"]).spawn().unwrap();
    // More than a pipe holds: once all is written, lines have been read and accepted.
    let lines = [vec![b'x'; 999], vec![b'\n']].concat().repeat(150);
    std::io::Write::write_all(process.stdin.as_mut().unwrap(), &lines).unwrap();
    let connection = silence.accept().unwrap();
    // Both signals may arrive before the first is looked at, and count as one.
    while process.try_wait().unwrap().is_none() {
        signal(&process, "INT");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(process.wait().unwrap().code(), Some(130));
    drop(connection);
}

#[test]
fn help_shows_examples_and_exit_codes_and_shells_get_their_completion() {
    let help = run(&["connect", "--help"], b"");
    assert_eq!(help.status.code(), Some(0));
    for expected in ["Examples:", "mainstay connect ws://127.0.0.1:8080/echo", "Exit codes:"] {
        assert!(text(&help.stdout).contains(expected), "{expected}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell], b"");
        assert!(script.status.success() && text(&script.stdout).contains("linger"), "{shell}");
    }
}
