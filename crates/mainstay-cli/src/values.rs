//! Parsers of flag values. Each error is one line and says what to write.

use std::net::SocketAddr;
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri};
use mainstay::client::{Place, UrlError};
use mainstay::server::{LifetimeConfig, Origins};
use mainstay::{Budget, HeartbeatConfig};

use crate::clients::listen_address::ListenAddress;
use mainstay::server::Network;

/// Parses a duration such as `25s`, `2m` or `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 25s, 2m or 500ms"))
}

/// Parses a size such as `64KiB`, `1MiB` or `4096`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let size = bytes(text)?.filter(|size| (1..=1 << 30).contains(size));
    size.and_then(|size| usize::try_from(size).ok()).ok_or_else(|| "must be between 1 B and 1 GiB".to_owned())
}

/// Parses a size from 1 MiB on, or `off`.
pub(crate) fn memory_budget(text: &str) -> Result<Budget, String> {
    if text == "off" {
        return Ok(Budget::unlimited());
    }
    let size = bytes(text).map_err(|error| format!("{error}, or off"))?;
    size.filter(|size| (1 << 20..=1 << 50).contains(size))
        .map(Budget::new)
        .ok_or_else(|| "must be between 1 MiB and 1024 TiB, or off".to_owned())
}

/// Parses a number with a unit. `None`: the size does not fit into 64 bits.
fn bytes(text: &str) -> Result<Option<u64>, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => return Err(format!("unknown unit {unit}; write for example 64KiB, 1MiB or 4096")),
    };
    let number: u64 = digits.parse().map_err(|_| "write for example 64KiB, 1MiB or 4096".to_owned())?;
    Ok(number.checked_mul(unit))
}

/// Parses the interval of a heartbeat.
pub(crate) fn heartbeat(text: &str) -> Result<HeartbeatConfig, String> {
    HeartbeatConfig::every(duration(text)?).map_err(|error| format!("must be {}", error.bound))
}

/// Parses an idle timeout.
pub(crate) fn idle_timeout(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    let checked = LifetimeConfig::default().idle_timeout(duration);
    checked.map(|_| duration).map_err(|error| format!("must be {}", error.bound))
}

/// Parses a maximum lifetime.
pub(crate) fn max_lifetime(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    let checked = LifetimeConfig::default().max_lifetime(duration);
    checked.map(|_| duration).map_err(|error| format!("must be {}", error.bound))
}

/// Parses a duration of at most an hour.
pub(crate) fn at_most_an_hour(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration > Duration::from_secs(3600) { Err("must be at most 1h".to_owned()) } else { Ok(duration) }
}

/// Parses how long to wait for something, from 10 ms to an hour.
pub(crate) fn wait(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    let bounds = Duration::from_millis(10)..=Duration::from_secs(3600);
    if bounds.contains(&duration) { Ok(duration) } else { Err("must be between 10ms and 1h".to_owned()) }
}

/// Parses an address to listen on.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, for example 127.0.0.1:8080 or [::1]:8080".into())
}

/// Parses an address to accept clients on.
pub(crate) fn listen(text: &str) -> Result<ListenAddress, String> {
    text.parse()
}

/// Parses a header, as `Name: value`.
pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as \"Name: value\"")?;
    let name: HeaderName = name.trim().parse().map_err(|_| format!("{name:?} is not a header name"))?;
    // The value may be a secret, and is not quoted.
    let value = value.trim().parse();
    let value =
        value.map_err(|_| format!("the value of {name} cannot be a header's; remove control characters"))?;
    Ok((name, value))
}

/// Parses a header for the backend, as `Name: value`, or `Name: @/path` with the value in a file.
pub(crate) fn upstream_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = match text.split_once(':').map(|(name, value)| (name, value.trim())) {
        Some((name, value)) if value.starts_with("@/") => {
            let file = value.trim_start_matches('@');
            let read = std::fs::read_to_string(file);
            let read = read.map_err(|error| format!("{file}: {error}; name a readable file"))?;
            // The content may be a secret, and is not quoted.
            let value = HeaderValue::from_str(read.trim_end_matches(['\r', '\n']));
            let value = value.map_err(|_| format!("{file}: must hold one line, the header's value"))?;
            let name = name.trim().parse().map_err(|_| format!("{name:?} is not a header name"))?;
            (name, value)
        }
        _ => header(text)?,
    };
    if is_not_for_flags(&name) {
        return Err(format!("{name} belongs to the connection or the handshake and cannot be set by a flag"));
    }
    Ok((name, value))
}

/// Returns whether a header is hop-by-hop or has a flag of its own.
fn is_not_for_flags(name: &HeaderName) -> bool {
    let name = name.as_str();
    let hop =
        ["connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade", "expect"];
    hop.contains(&name) || name.starts_with("sec-websocket-")
}

/// Parses a Host header.
pub(crate) fn host(text: &str) -> Result<HeaderValue, String> {
    let wrong =
        || "write a host, optionally with a port, for example app.internal or app.internal:8080".to_owned();
    let authority: http::uri::Authority = text.parse().map_err(|_| wrong())?;
    if authority.host().is_empty() || text.contains('@') {
        return Err(wrong());
    }
    HeaderValue::from_str(text).map_err(|_| wrong())
}

/// Parses the size of a body, which may be larger than memory.
pub(crate) fn body_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("unknown unit {unit}; write for example 64KiB, 10MiB or 1GiB")),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    size.ok_or_else(|| "write for example 64KiB, 10MiB or 1GiB".to_owned())
}

/// Parses a token of RFC 9110, such as the name of a subprotocol (RFC 6455 section 4.1).
pub(crate) fn token(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let token = !text.is_empty() && text.bytes().all(allowed);
    token
        .then(|| text.to_owned())
        .ok_or_else(|| "must be letters, digits and !#$%&'*+-.^_`|~ only".to_owned())
}

/// Parses a maximum; 0 is allowed.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "must be a whole number from 0, for example 1000".to_owned())
}

/// Parses a maximum number of fragments.
pub(crate) fn fragments(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| format!("must be a whole number from 1 to {}, for example 1024", u32::MAX))
}

/// Parses an IP address or a network.
pub(crate) fn network(text: &str) -> Result<Network, String> {
    Network::parse(text)
        .ok_or_else(|| "write an IP address or a network, for example 10.0.0.7 or 10.0.0.0/8".to_owned())
}

/// Parses the URL of a server: `ws://host[:port][/path][?query]`, or `wss://`.
pub(crate) fn url(text: &str) -> Result<String, String> {
    let Place { url, socket } = place(text)?;
    match (socket, url.scheme_str()) {
        (None, Some("ws" | "wss")) => Ok(url.to_string()),
        _ => {
            Err("must start with ws:// or wss:// and name a host, for example ws://127.0.0.1:3000".to_owned())
        }
    }
}

/// Parses the address of a server: as [`url`], or `unix:/run/app.sock[:/path][?query]`. `http://` and `https://` mean the same as
/// `ws://` and `wss://`.
pub(crate) fn server(text: &str) -> Result<Place, String> {
    let mut place = place(text)?;
    let mut parts = place.url.into_parts();
    parts.scheme = match parts.scheme.as_ref().map(Scheme::as_str) {
        Some("https" | "wss") => "wss".parse().ok(),
        _ => "ws".parse().ok(),
    };
    place.url = Uri::from_parts(parts).map_err(|error| error.to_string())?;
    Ok(place)
}

/// Parses the address of the backend, which receives both kinds of requests: as [`server`], without a query.
pub(crate) fn upstream(text: &str) -> Result<Place, String> {
    let place = server(text)?;
    match place.url.query() {
        None => Ok(place),
        Some(_) => Err("must have no ?query, because each client's own is forwarded; remove it".to_owned()),
    }
}

fn place(text: &str) -> Result<Place, String> {
    let place: Place = text.parse().map_err(|error: UrlError| error.to_string())?;
    // On a command line it is a variable that is not set.
    if place.url.authority().is_some_and(|authority| authority.as_str().ends_with(':')) {
        return Err("the port is empty: write a number from 1 to 65535, or no colon".to_owned());
    }
    Ok(place)
}

/// Parses the origin of a page: scheme and host, and a port that is not the scheme's default.
pub(crate) fn origin(text: &str) -> Result<String, String> {
    if Origins::is_origin(text) {
        Ok(text.to_owned())
    } else {
        Err("write scheme and host without a path, for example https://example.com".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        assert!(origin("https://example.com").is_ok() && origin("http://localhost:3000").is_ok());
        for wrong in ["example.com", "https://example.com/", "null", "https://", "*"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_server_is_found_by_its_name_in_any_language() {
        let check = |text: &str, expected: &str| {
            assert_eq!(server(text).unwrap().to_string(), expected, "{text}");
        };
        check("ws://münchen.example", "ws://xn--mnchen-3ya.example/");
        check("HTTPS://example.com/ü", "wss://example.com/%C3%BC");
        check("unix:/run/ä b.sock:/x", "unix:/run/ä b.sock:/x");
        assert_eq!(upstream("http://bücher.example/").unwrap().url, "ws://xn--bcher-kva.example/");
        assert_eq!(url("ws://bücher.example").as_deref(), Ok("ws://xn--bcher-kva.example/"));
        for wrong in ["ws://mün chen.example/", "ws://ü:0/", "ftp://ü/", "ws://ann:gehäim@h/", "ws://h/ü#a"]
        {
            let error = server(wrong).unwrap_err();
            assert!(!error.contains("gehäim") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("4096"), Ok(4096));
        assert!(size("0").is_err_and(|error| error.contains("1 GiB")));
        assert!(size("64KB").is_err_and(|error| error.contains("unknown unit KB")));
        assert!(size("99999999999999999999GiB").is_err());
    }

    #[test]
    fn a_header_for_the_backend_is_not_hop_by_hop_and_may_come_from_a_file() {
        let read = |text: &str| {
            upstream_header(text).map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        };
        assert_eq!(read("X-A: b: c"), Ok("x-a: b: c".to_owned()));
        for wrong in [
            "Host: h",
            "Connection: close",
            "Sec-WebSocket-Key: x",
            "content-length: 1",
            "x",
            "X-A: @/nowhere/x",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let file = std::env::temp_dir().join(format!("mainstay-header-{}", std::process::id()));
        std::fs::write(&file, "Bearer secret\n").unwrap();
        assert_eq!(
            read(&format!("Authorization: @{}", file.display())),
            Ok("authorization: Bearer secret".to_owned())
        );
        std::fs::write(&file, "Bearer secret\nmore\n").unwrap();
        let error = read(&format!("Authorization: @{}", file.display())).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_host_for_the_backend_is_a_host() {
        assert!(
            host("app.internal").is_ok() && host("app.internal:8080").is_ok() && host("[::1]:80").is_ok()
        );
        for wrong in ["", "a b", "a/b", "user@host", "http://a"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_backend_is_a_websocket_url() {
        assert!(upstream("ws://127.0.0.1:3000/app").is_ok());
        assert_eq!(upstream("http://127.0.0.1:3000/app").unwrap().url, "ws://127.0.0.1:3000/app");
        assert_eq!(upstream("https://h").unwrap().url, "wss://h/");
        assert!(upstream("unix:/run/app.sock:/app").is_ok() && server("unix:/run/app.sock:/a?b").is_ok());
        let too_long = format!("unix:/{}", "x".repeat(200));
        for wrong in [
            "ftp://x",
            "http://",
            "127.0.0.1:3000",
            "ws://",
            "",
            "ws:///path",
            "unix:",
            "unix:/a:/b?c",
            &too_long,
        ] {
            assert!(upstream(wrong).is_err(), "{wrong}");
        }
        assert!(url("unix:/run/app.sock").is_err(), "bench connects over TCP only");
    }

    #[test]
    fn a_port_is_a_number_from_1_to_65535() {
        for right in ["ws://h", "ws://h:1", "wss://h:65535/a", "ws://[::1]:80", "ws://[::1]"] {
            assert!(url(right).is_ok(), "{right}");
        }
        for wrong in ["ws://h:", "ws://h:abc", "ws://h:0", "ws://h:65536", "ws://h:99999/a", "ws://[::1]:x"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_url_of_a_server_may_have_a_query_and_the_backends_may_not() {
        assert!(url("ws://h/a?b=c").is_ok());
        assert!(upstream("ws://h/a?b=c").is_err_and(|error| error.contains("?query")));
        assert!(upstream("ws://h/a?").is_err());
    }
}
