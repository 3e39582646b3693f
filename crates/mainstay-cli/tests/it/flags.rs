//! Usage errors: one line that names the mistake and what to write, and exit code 2.

use crate::support::run;

pub(crate) fn check(arguments: &[&str], expected: &[&str]) {
    let output = run(arguments, b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    for word in expected {
        assert!(stderr.contains(word), "{arguments:?} lacks {word:?}: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn a_mistake_is_one_line_that_names_the_flag_and_what_to_write() {
    let url = "ws://127.0.0.1:1/";
    check(&["serve", "--listen", "8080"], &["--listen", "127.0.0.1:8080"]);
    check(&["serve", "--listen", "localhost:8080"], &["--listen", "IP address"]);
    check(&["serve", "--admin", "x"], &["--admin", "127.0.0.1:8080"]);
    check(&["serve", "--upstream", "ftp://x"], &["--upstream", "ws://"]);
    check(&["serve", "--upstream", "127.0.0.1:3000"], &["--upstream", "ws://127.0.0.1:3000"]);
    check(&["serve", "--heartbeat", "25"], &["--heartbeat", "25s"]);
    check(&["serve", "--heartbeat", "1ms"], &["--heartbeat", "between 100 ms and 1 hour"]);
    check(&["serve", "--route-heartbeat", "/prices"], &["--route-heartbeat", "/prices=5s"]);
    check(&["serve", "--route-heartbeat", "prices=5s"], &["--route-heartbeat", "begins with /"]);
    check(&["serve", "--route-heartbeat", "/a=1ms"], &["--route-heartbeat", "between 100 ms and 1 hour"]);
    check(&["serve", "--route-heartbeat", "/a=5s"], &["--route-heartbeat", "--upstream"]);
    check(&["serve", "--max-message", "64KB"], &["--max-message", "64KiB"]);
    check(&["serve", "--max-message", "0"], &["--max-message", "between 1 B and 1 GiB"]);
    for wrong in ["0", "many", "-1", "4294967296"] {
        check(&["serve", "--max-fragments", wrong], &["--max-fragments", "from 1 to 4294967295"]);
    }
    for flag in ["--max-connections", "--max-per-ip", "--max-sessions"] {
        for wrong in ["many", "-1", "1.5"] {
            check(&["serve", flag, wrong], &[flag, "whole number from 0"]);
        }
    }
    for wrong in ["ws://127.0.0.1:abc", "ws://127.0.0.1:99999", "ws://127.0.0.1:0"] {
        check(&["serve", "--upstream", wrong], &["--upstream", "from 1 to 65535"]);
        check(&["connect", wrong], &["<URL>", "from 1 to 65535"]);
        check(&["bench", "echo", wrong], &["<URL>", "from 1 to 65535"]);
    }
    check(&["serve", "--upstream", "ws://127.0.0.1:1/?a=b"], &["--upstream", "?query"]);
    check(&["serve", "--trusted-proxy", "proxy.example"], &["--trusted-proxy", "10.0.0.0/8"]);
    check(&["serve", "--session-cookie", "a=b"], &["--session-cookie", "letters, digits"]);
    check(&["serve", "--resume-window", "2h"], &["--resume-window", "at most 1h"]);
    check(&["serve", "--upstream-wait", "soon"], &["--upstream-wait", "500ms"]);
    check(&["serve", "--upstream-wait", "0s"], &["--upstream-wait", "between 10ms and 1h"]);
    check(&["serve", "--drain", "1day"], &["--drain", "at most 1h"]);
    check(&["serve", "--delivery", "once"], &["--delivery", "at-least-once", "at-most-once"]);
    check(&["serve", "--confirm", "ack"], &["--confirm", "pong+window", "reply"]);
    check(&["serve", "--heartbeet", "25s"], &["--heartbeet", "--heartbeat"]);
    check(&["serve", "--upstream-ca", "/x"], &["--upstream-ca", "--upstream ws://"]);
    let wss = "wss://127.0.0.1:1";
    check(&["serve", "--upstream", "ws://h", "--upstream-ca", "/x"], &["--upstream-ca", "wss://"]);
    check(&["serve", "--upstream", wss, "--upstream-ca", "/nowhere"], &["--upstream-ca", "/nowhere"]);
    check(
        &["serve", "--upstream", wss, "--upstream-ca", "/dev/null"],
        &["--upstream-ca", "no certificate found"],
    );
    check(&["serve", "--upstream", wss, "--upstream-cert", "/x"], &["--upstream-key"]);
    check(&["serve", "--upstream", wss, "--upstream-server-name", "a b"], &["--upstream-server-name", "a b"]);
    check(&["serve", "--upstream", "unix:"], &["--upstream", "unix:/run/app.sock"]);
    check(&["connect", url, "--cacert", "/dev/null"], &["--cacert", "no certificate found"]);
    check(&["connect"], &["<URL>"]);
    check(&["connect", "example.com"], &["<URL>", "ws://"]);
    check(&["connect", "ftp://example.com"], &["<URL>", "ws://"]);
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
fn a_password_in_a_url_is_refused_and_not_repeated() {
    for url in ["ws://ann:secret@127.0.0.1:1/", "ws://ann:sec/secret@127.0.0.1", "ann:secret@127.0.0.1"] {
        for words in [&["serve", "--upstream"][..], &["connect"], &["bench", "echo"], &["connect", "ws://x/"]]
        {
            let output = run(&[words, &[url]].concat(), b"");
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                (output.status.code(), stderr.lines().count()),
                (Some(2), 1),
                "{words:?} {url}: {stderr}"
            );
            assert!(!stderr.contains("secret") && !stderr.contains("ann"), "{words:?} {url}: {stderr}");
        }
    }
    check(&["serve", "--upstream", "ws://ann@127.0.0.1:1/"], &["--upstream", "header", "Authorization"]);
    check(&["connect", "ws://ann:x@127.0.0.1:1/"], &["<URL>", "header", "Authorization"]);
}

#[test]
fn an_address_in_use_exits_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["serve", "--listen", &address], b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("--listen") && stderr.contains(&address) && stderr.lines().count() == 1,
        "{stderr}"
    );
}

#[test]
fn flags_of_a_cluster_that_contradict_each_other_name_both_and_the_reason() {
    let (engine, file) = ("redis://127.0.0.1:1", "/dev/null");
    for (flag, value) in [
        ("--cluster-name", "a"),
        ("--cluster-listen", "127.0.0.1:0"),
        ("--cluster-advertise", "127.0.0.1:1"),
        ("--cluster-url", "ws://h"),
        ("--cluster-password-file", file),
        ("--cluster-tls", "/nowhere"),
    ] {
        check(&["serve", flag, value], &[flag, "needs --cluster"]);
    }
    for wrong in ["http://h", "redis://", "redis://u:geheim@h:x", "redis://h:6379/abc"] {
        check(&["serve", "--cluster", wrong], &["--cluster", "redis://host:6379"]);
    }
    check(&["serve", "--cluster", engine, "--cluster-listen", "x"], &["--cluster-listen", "127.0.0.1:8080"]);
    check(&["serve", "--cluster", engine, "--cluster-url", "http://h"], &["--cluster-url", "ws://"]);
    check(&["serve", "--cluster", engine, "--cluster-name", "a:b"], &["--cluster-name", "letters, digits"]);
    check(
        &["serve", "--cluster", engine, "--cluster-password-file", "/nowhere"],
        &["--cluster-password-file /nowhere", "readable file"],
    );
    check(&["serve", "--cluster", engine, "--cluster-password-file", file], &["password on one line"]);
    check(
        &["serve", "--cluster", engine, "--cluster-tls", "/nowhere"],
        &["--cluster-tls /nowhere/tls.crt", "holds tls.crt, tls.key, ca.crt"],
    );
    let folder = std::env::temp_dir();
    let folder = folder.to_str().unwrap();
    check(
        &["serve", "--cluster", engine, "--state-dir", folder],
        &["--state-dir contradicts --cluster", "remove one"],
    );
    check(&["serve", "--movable"], &["--movable requires", "--cluster URL", "--state-dir DIR"]);
    let backend = ["serve", "--movable", "--state-dir", folder, "--upstream", "ws://127.0.0.1:1"];
    check(&backend, &["--movable requires --on-backend-loss keep", "profile"]);
    check(&[&backend[..], &["--profile", "yjs"]].concat(), &["--movable requires --on-backend-loss keep"]);
}
