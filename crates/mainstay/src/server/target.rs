//! The resource of a request: its target and its Host, by the rules of RFC 9112 section 3.2.
//!
//! A server that reads them loosely disagrees about host and path with a proxy in front of it or a backend behind it; then
//! one of them serves what the other forbids.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Version, request};

/// Normalises a request to an origin-form target (or `*`, for OPTIONS) and one Host, that of the target.
///
/// # Errors
/// The request must be answered with 400; the error is the line for that response.
///
/// Source: RFC 9112 sections 3.2 and 3.2.1 to 3.2.4.
pub(super) fn settle(head: &mut request::Parts) -> Result<(), &'static str> {
    if head.version == Version::HTTP_2 {
        check_authority(head)?;
    } else {
        check_host(head.version, &head.headers)?;
    }
    match (head.uri.scheme_str(), head.uri.authority()) {
        (None, None) if head.uri == "*" && head.method == Method::OPTIONS => Ok(()),
        (None, None) if head.uri.path_and_query().is_some_and(|path| path.as_str().starts_with('/')) => {
            Ok(())
        }
        (None, None) => Err("the request's target must be a path; `*` is for OPTIONS only"),
        (Some("http" | "https" | "ws" | "wss"), Some(authority)) => {
            let host = host_of(authority)?;
            let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            head.uri = path.parse().map_err(|_| "the request's target cannot be read")?;
            head.headers.insert(HOST, host);
            Ok(())
        }
        // CONNECT too: this is no proxy of that kind.
        _ => Err("the request's target must be a path, or a URL of http or https"),
    }
}

/// Over HTTP/2 the target names the host, and a Host header must not name another.
///
/// Source: RFC 9113 section 8.3.1.
fn check_authority(head: &request::Parts) -> Result<(), &'static str> {
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let is_same = |host: &HeaderValue| Some(host.as_bytes()) == authority;
    match authority {
        None => Err("the request needs an :authority"),
        Some(_) if head.headers.get_all(HOST).iter().all(is_same) => Ok(()),
        Some(_) => Err("the Host header differs from :authority"),
    }
}

/// Returns the target's own host, which overrides that of the field.
fn host_of(authority: &Authority) -> Result<HeaderValue, &'static str> {
    let text = authority.as_str();
    let host = is_host(text.as_bytes()).then(|| HeaderValue::try_from(text).ok()).flatten();
    host.ok_or("the host in the request's target is not valid")
}

fn check_host(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version < Version::HTTP_11 => Ok(()),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err("the Host header is not valid: it must be a host, and a port if need be"),
        _ => Err("the request needs exactly one Host header"),
    }
}

/// `uri-host [ ":" port ]`, of at least one byte (RFC 3986 section 3.2.2).
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']').map(|end| rest.split_at(end)) {
            Some((address, [b']', port @ ..])) if is_address(address) => (&b"[]"[..], port),
            _ => return false,
        },
        _ => match value.iter().position(|byte| *byte == b':') {
            Some(colon) => value.split_at(colon),
            None => (value, &b""[..]),
        },
    };
    let port = match port {
        [] => &b""[..],
        [b':', digits @ ..] => digits,
        _ => return false,
    };
    let is_number = port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    let fits = |text: &str| text.is_empty() || text.parse::<u16>().is_ok();
    is_number && str::from_utf8(port).is_ok_and(fits) && (host == b"[]" || is_name(host))
}

fn is_address(text: &[u8]) -> bool {
    str::from_utf8(text).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

/// A registered name or an IPv4 address.
fn is_name(name: &[u8]) -> bool {
    let mut rest = name;
    loop {
        rest = match rest {
            [] => return !name.is_empty(),
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) => rest,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::*;

    /// Returns the path and the Host of a request with this target and these Host headers.
    fn settled(
        method: Method,
        target: &str,
        version: Version,
        hosts: &[&str],
    ) -> Result<(String, String), &'static str> {
        let uri: Uri = target.parse().unwrap();
        let request = http::Request::builder().method(method).uri(uri).version(version);
        let request = hosts.iter().fold(request, |request, host| request.header(HOST, *host));
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        settle(&mut head)?;
        let host = head.headers.get(HOST).map_or("", |host| host.to_str().unwrap());
        Ok((head.uri.to_string(), host.to_owned()))
    }

    fn get(target: &str, hosts: &[&str]) -> Result<(String, String), &'static str> {
        settled(Method::GET, target, Version::HTTP_11, hosts)
    }

    #[test]
    fn a_request_needs_exactly_one_valid_host() {
        for host in [
            "example.com",
            "example.com:8443",
            "EXAMPLE.com",
            "127.0.0.1",
            "[::1]:80",
            "[::1]",
            "a_b.example",
            "example.com:",
            "x",
            "h%41",
            "localhost:65535",
        ] {
            assert_eq!(get("/", &[host]), Ok(("/".to_owned(), host.to_owned())));
        }
        for host in [
            "a/b?c",
            "good.example evil.example",
            "",
            ":80",
            "a:b",
            "a:1:2",
            "a:65536",
            "user@host",
            "[::1",
            "[x]",
            "[::1]x",
            "::1",
            "a\"b",
            "a\\b",
            "a<b",
            "h%4",
            "h%zz",
            "http://a",
            "a#b",
            "a:00080000",
        ] {
            assert!(get("/", &[host]).is_err(), "{host}");
        }
        assert!(get("/", &[]).is_err() && get("/", &["a", "a"]).is_err() && get("/", &["a", "b"]).is_err());
    }

    #[test]
    fn only_a_request_of_http_1_0_may_have_no_host() {
        let old = |hosts| settled(Method::GET, "/x", Version::HTTP_10, hosts);
        assert_eq!(old(&[]), Ok(("/x".to_owned(), String::new())));
        assert!(old(&["a", "b"]).is_err() && old(&["a/b"]).is_err());
    }

    #[test]
    fn an_absolute_target_overrides_the_host_and_leaves_its_path() {
        let check = |target, path: &str, host: &str| {
            assert_eq!(get(target, &["other.example"]), Ok((path.to_owned(), host.to_owned())), "{target}");
        };
        check("http://example.com/a?b=c", "/a?b=c", "example.com");
        check("https://example.com:8443/", "/", "example.com:8443");
        check("ws://example.com", "/", "example.com");
        check("http://example.com?a=b", "/?a=b", "example.com");
        for target in ["http://user@example.com/", "ftp://example.com/", "http://a:b/"] {
            assert!(get(target, &["example.com"]).is_err(), "{target}");
        }
        assert!(get("http://example.com/", &[]).is_err(), "a Host is required all the same");
    }

    #[test]
    fn over_http_2_the_authority_is_the_host_and_no_header_may_differ() {
        let ask = |target, hosts| settled(Method::CONNECT, target, Version::HTTP_2, hosts);
        let right = Ok(("/a?b".to_owned(), "example.com".to_owned()));
        assert_eq!(ask("https://example.com/a?b", &[]), right);
        assert_eq!(ask("https://example.com/a?b", &["example.com"]), right);
        assert!(ask("https://example.com/", &["other.example"]).is_err() && ask("/a", &["a"]).is_err());
        assert!(ask("example.com:443", &[]).is_err(), "a tunnel");
    }

    #[test]
    fn a_target_that_is_no_path_is_refused() {
        assert!(get("*", &["a"]).is_err() && get("example.com", &["a"]).is_err());
        assert!(get("example.com:80", &["a"]).is_err());
        let ask = |method, target| settled(method, target, Version::HTTP_11, &["a"]);
        assert_eq!(ask(Method::OPTIONS, "*"), Ok(("*".to_owned(), "a".to_owned())));
        assert!(ask(Method::CONNECT, "example.com:443").is_err());
    }
}
