//! The page of the built-in backend, as a browser gets it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::support::Gateway;

/// Status line and headers, and the body.
fn ask(gateway: &Gateway, method: &str) -> (String, String) {
    let address: SocketAddr = gateway.url.trim_start_matches("ws://").parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// What stands in the only element of this name.
fn inside<'a>(page: &'a str, element: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("<{element}>")).unwrap();
    rest.split_once(&format!("</{element}>")).unwrap().0
}

#[test]
fn the_page_may_run_its_own_script_and_style_and_nothing_else() {
    let gateway = Gateway::start(&[]);
    let (head, body) = ask(&gateway, "GET");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-cache"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(header(&head, name), Some(value), "{name}");
    }
    let hash = |element| BASE64_STANDARD.encode(Sha256::digest(inside(&body, element)));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    );
    assert_eq!(header(&head, "content-security-policy"), Some(policy.as_str()));
}

#[test]
fn the_page_is_asked_for_with_get_or_head() {
    let gateway = Gateway::start(&[]);
    let (head, body) = ask(&gateway, "HEAD");
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
    assert!(header(&head, "content-security-policy").is_some());
    let (head, body) = ask(&gateway, "POST");
    assert!(head.starts_with("HTTP/1.1 405") && body.is_empty(), "{head}");
}

#[test]
fn there_is_no_page_in_front_of_an_upstream() {
    let gateway = Gateway::start(&["--upstream", "ws://127.0.0.1:1"]);
    let (head, body) = ask(&gateway, "GET");
    assert!(!head.starts_with("HTTP/1.1 200") && !body.contains("<script>"), "{head}");
}
