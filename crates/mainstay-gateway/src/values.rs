//! The values of flags. Each error says what may be written instead, in one line.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use mainstay::HeartbeatConfig;
use mainstay::server::{LifetimeConfig, Origins};

/// A duration such as `25s`, `2m` or `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 25s, 2m or 500ms"))
}

/// A size such as `64KiB`, `1MiB` or `4096`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("unknown unit {unit}; write for example 64KiB, 1MiB or 4096")),
    };
    let number: usize = digits.parse().map_err(|_| "write for example 64KiB, 1MiB or 4096".to_owned())?;
    number
        .checked_mul(unit)
        .filter(|size| (1..=1 << 30).contains(size))
        .ok_or_else(|| "must be between 1 B and 1 GiB".to_owned())
}

/// A heartbeat's interval.
pub(crate) fn heartbeat(text: &str) -> Result<HeartbeatConfig, String> {
    HeartbeatConfig::every(duration(text)?).map_err(|error| format!("must be {}", error.bound))
}

/// How long a connection may be without a message.
pub(crate) fn idle_timeout(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    let checked = LifetimeConfig::default().idle_timeout(duration);
    checked.map(|_| duration).map_err(|error| format!("must be {}", error.bound))
}

/// How long a connection may live.
pub(crate) fn max_lifetime(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    let checked = LifetimeConfig::default().max_lifetime(duration);
    checked.map(|_| duration).map_err(|error| format!("must be {}", error.bound))
}

/// A duration of at most an hour.
pub(crate) fn at_most_an_hour(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration > Duration::from_secs(3600) { Err("must be at most 1h".to_owned()) } else { Ok(duration) }
}

/// How long to wait for something; no time at all would be a refusal.
pub(crate) fn wait(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    let bounds = Duration::from_millis(10)..=Duration::from_secs(3600);
    if bounds.contains(&duration) { Ok(duration) } else { Err("must be between 10ms and 1h".to_owned()) }
}

/// An address to listen on.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, for example 127.0.0.1:8080 or [::1]:8080".into())
}

/// A header, as `Name: value`.
pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as \"Name: value\"")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is not a header name"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is not a header value"))?;
    Ok((name, value))
}

/// The name of a subprotocol (RFC 6455 section 4.1: a token of RFC 9110).
pub(crate) fn token(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let token = !text.is_empty() && text.bytes().all(allowed);
    token
        .then(|| text.to_owned())
        .ok_or_else(|| "must be letters, digits and !#$%&'*+-.^_`|~ only".to_owned())
}

/// Where to connect.
pub(crate) fn url(text: &str) -> Result<String, String> {
    upstream(text).map(|_| text.to_owned())
}

/// The backend: `ws://host:port[/path]`, or `wss://`.
pub(crate) fn upstream(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}; write ws://host:port"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("ws" | "wss"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err("must start with ws:// or wss:// and name a host, for example ws://127.0.0.1:3000".into()),
    }
}

/// A page's origin: scheme and host, and a port where it is not the scheme's own.
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
    fn sizes_are_read_with_their_units_and_bounds() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("4096"), Ok(4096));
        assert!(size("0").is_err_and(|error| error.contains("1 GiB")));
        assert!(size("64KB").is_err_and(|error| error.contains("unknown unit KB")));
        assert!(size("99999999999999999999GiB").is_err());
    }

    #[test]
    fn a_backend_is_a_websocket_url() {
        assert!(upstream("ws://127.0.0.1:3000/app").is_ok());
        for wrong in ["http://x", "127.0.0.1:3000", "ws://", "", "ws:///path"] {
            assert!(upstream(wrong).is_err(), "{wrong}");
        }
    }
}
