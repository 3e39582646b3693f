//! The page of the built-in backend, as a browser receives it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::support::Gateway;

/// Requests the page; returns status line with headers, and body.
fn request(gateway: &Gateway, method: &str) -> (String, String) {
    request_for(gateway, method, "/", "")
}

/// The same for another target, with additional header fields, each with its line end.
fn request_for(gateway: &Gateway, method: &str, target: &str, fields: &str) -> (String, String) {
    let address: SocketAddr = gateway.url.trim_start_matches("ws://").parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: {address}\r\n{fields}Connection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Returns the content of the only element of this name.
fn inside<'a>(page: &'a str, element: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("<{element}>")).unwrap();
    rest.split_once(&format!("</{element}>")).unwrap().0
}

#[test]
fn the_page_may_run_its_own_script_and_style_and_nothing_else_in_every_language() {
    let gateway = Gateway::start(&[]);
    for language in ["en", "zh-CN"] {
        let (head, body) = request_for(&gateway, "GET", "/", &format!("Accept-Language: {language}\r\n"));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("content-language", language),
            ("vary", "accept-language"),
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
        assert!(body.contains(&format!("<html lang=\"{language}\">")));
    }
}

#[test]
fn the_page_is_in_the_language_of_the_browser_or_of_its_link() {
    let gateway = Gateway::start(&[]);
    let language = |target, fields| {
        let (head, _) = request_for(&gateway, "GET", target, fields);
        header(&head, "content-language").map(str::to_owned)
    };
    assert_eq!(language("/", "").as_deref(), Some("en"));
    let chinese = "Accept-Language: zh-CN,zh;q=0.9,en;q=0.8\r\n";
    assert_eq!(language("/", chinese).as_deref(), Some("zh-CN"));
    assert_eq!(language("/?lang=en", chinese).as_deref(), Some("en"));
    assert_eq!(language("/?lang=zh", "").as_deref(), Some("zh-CN"));
    assert_eq!(language("/?lang=xx&lang", chinese).as_deref(), Some("en"));
}

#[test]
fn the_page_is_served_for_get_and_head() {
    let gateway = Gateway::start(&[]);
    let (head, body) = request(&gateway, "HEAD");
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
    assert!(header(&head, "content-security-policy").is_some());
    let (head, body) = request(&gateway, "POST");
    assert!(head.starts_with("HTTP/1.1 405") && body.is_empty(), "{head}");
}

#[test]
fn with_an_upstream_the_page_is_not_served() {
    let gateway = Gateway::start(&["--upstream", "ws://127.0.0.1:1"]);
    let (head, body) = request(&gateway, "GET");
    assert!(!head.starts_with("HTTP/1.1 200") && !body.contains("<script>"), "{head}");
}
