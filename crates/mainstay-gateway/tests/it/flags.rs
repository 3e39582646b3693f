//! What a mistake on the command line gets: one line that names it and what to write, and exit code 2.

use crate::support::run;

fn check(arguments: &[&str], expected: &[&str]) {
    let output = run(arguments, b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    for word in expected {
        assert!(said.contains(word), "{arguments:?} lacks {word:?}: {said}");
    }
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn mistakes_are_told_in_one_line_that_names_the_flag_and_what_to_write() {
    let url = "ws://127.0.0.1:1/";
    check(&["serve", "--listen", "8080"], &["--listen", "127.0.0.1:8080"]);
    check(&["serve", "--listen", "localhost:8080"], &["--listen", "IP address"]);
    check(&["serve", "--admin", "x"], &["--admin", "127.0.0.1:8080"]);
    check(&["serve", "--upstream", "http://x"], &["--upstream", "ws://"]);
    check(&["serve", "--upstream", "127.0.0.1:3000"], &["--upstream", "ws://127.0.0.1:3000"]);
    check(&["serve", "--heartbeat", "25"], &["--heartbeat", "25s"]);
    check(&["serve", "--heartbeat", "1ms"], &["--heartbeat", "between 100 ms and 1 hour"]);
    check(&["serve", "--max-message", "64KB"], &["--max-message", "64KiB"]);
    check(&["serve", "--max-message", "0"], &["--max-message", "between 1 B and 1 GiB"]);
    check(&["serve", "--max-fragments", "0"], &["--max-fragments", "1..="]);
    check(&["serve", "--max-fragments", "many"], &["--max-fragments", "invalid digit"]);
    check(&["serve", "--resume-window", "2h"], &["--resume-window", "at most 1h"]);
    check(&["serve", "--upstream-wait", "soon"], &["--upstream-wait", "500ms"]);
    check(&["serve", "--upstream-wait", "0s"], &["--upstream-wait", "between 10ms and 1h"]);
    check(&["serve", "--drain", "1day"], &["--drain", "at most 1h"]);
    check(&["serve", "--delivery", "once"], &["--delivery", "at-least-once", "at-most-once"]);
    check(&["serve", "--confirm", "ack"], &["--confirm", "pong+window", "reply"]);
    check(&["serve", "--heartbeet", "25s"], &["--heartbeet", "--heartbeat"]);
    check(&["connect"], &["<URL>"]);
    check(&["connect", "example.com"], &["<URL>", "ws://"]);
    check(&["connect", "http://example.com"], &["<URL>", "ws://"]);
    check(&["connect", url, "another"], &["another"]);
    check(&["connect", url, "--header", "no colon"], &["--header", "Name: value"]);
    check(&["connect", url, "--header", "a b: c"], &["--header", "not a header name"]);
    check(&["connect", url, "--subprotocol", "a b"], &["--subprotocol", "letters, digits"]);
    check(&["connect", url, "--linger", "soon"], &["--linger", "500ms"]);
    check(&["connect", url, "--max-message", "2GiB"], &["--max-message", "1 GiB"]);
    check(&["conect", url], &["conect", "connect"]);
    check(&["completions", "tcsh"], &["tcsh", "bash"]);
}

#[test]
fn an_address_in_use_is_no_mistake_of_the_command_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["serve", "--listen", &address], b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--listen") && said.contains(&address) && said.lines().count() == 1, "{said}");
}
