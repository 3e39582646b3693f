//! Which web pages may open a WebSocket here: the defence against cross-site WebSocket hijacking.
//!
//! A browser opens a WebSocket for any page, to any host, and adds the host's cookies. The only sign of the page is
//! `Origin`, which scripts cannot change. So a request with credentials that a browser adds by itself (`Cookie`,
//! `Authorization`) is judged by its origin. A request without `Origin` comes from no page: a program that sends a
//! cookie owns it.
//!
//! Source: RFC 6455 section 10.2, RFC 6454 section 7.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, COOKIE, HOST, ORIGIN},
    uri::Authority,
};

use super::handshake::HandshakeError;

/// Which pages may open a WebSocket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origins {
    /// A request with credentials must come from a page of the host and port that it asks for, in `Host` or, because
    /// a proxy may have replaced that, in `X-Forwarded-Host`. Other requests may come from anywhere. The default.
    #[default]
    SameHost,
    /// Every page: the backend decides.
    Any,
    /// A request with an `Origin` must have one of these: `https://example.com`, `http://localhost:3000`. Scheme,
    /// host and port must be the same; `null` is none of them.
    Only(Vec<String>),
}

/// A header that a page cannot set and a proxy may, so it may vouch for the page.
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

impl Origins {
    /// Judges a request by its headers.
    ///
    /// # Errors
    /// The page may not open a WebSocket here: [`HandshakeError::Origin`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), HandshakeError> {
        let mut origins = headers.get_all(ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let is_allowed = match self {
            Self::Any => true,
            Self::SameHost => !has_credentials(headers) || is_same_host(origin, headers),
            Self::Only(allowed) => allowed.iter().any(|allowed| is_same(origin, allowed)),
        };
        let is_single = *self == Self::Any || origins.next().is_none();
        if is_allowed && is_single { Ok(()) } else { Err(HandshakeError::Origin) }
    }

    /// Whether `text` is an origin that [`Only`](Self::Only) can hold: scheme and host, and nothing behind them.
    #[must_use]
    pub fn is_origin(text: &str) -> bool {
        split(text).is_some()
    }
}

fn has_credentials(headers: &HeaderMap) -> bool {
    headers.contains_key(COOKIE) || headers.contains_key(AUTHORIZATION)
}

fn is_same(origin: &HeaderValue, allowed: &str) -> bool {
    origin.to_str().is_ok_and(|origin| match (split(origin), split(allowed)) {
        (Some(origin), Some(allowed)) => origin == allowed,
        _ => false,
    })
}

fn is_same_host(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let Some((scheme, host, port)) = origin.to_str().ok().and_then(split) else { return false };
    [HOST, X_FORWARDED_HOST].iter().flat_map(|name| headers.get_all(name)).any(|asked| {
        let asked = asked.to_str().ok().and_then(|asked| authority(&scheme, asked));
        asked.is_some_and(|asked| asked == (host.clone(), port))
    })
}

/// Scheme, host and port of an origin; the scheme's default port if none is named.
fn split(origin: &str) -> Option<(String, String, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let (host, port) = authority(&scheme, rest)?;
    Some((scheme, host, port))
}

/// Host and port. Returns `None` if there is a user name, a path or anything else.
fn authority(scheme: &str, text: &str) -> Option<(String, u16)> {
    let authority: Authority = text.parse().ok()?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return None;
    }
    let implied = if matches!(scheme, "https" | "wss") { 443 } else { 80 };
    let rest = authority.as_str().get(authority.host().len()..)?;
    let port = if rest.is_empty() { implied } else { authority.port_u16()? };
    Some((authority.host().to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(origins: &Origins, headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        origins.check(&map).is_ok()
    }

    #[test]
    fn a_page_of_another_host_may_not_use_the_visitors_cookies() {
        let with_cookie = |origin, host| {
            check(&Origins::SameHost, &[("host", host), ("cookie", "a=b"), ("origin", origin)])
        };
        for (origin, host) in [
            ("https://example.com", "example.com"),
            ("https://example.com", "example.com:443"),
            ("http://example.com", "example.com"),
            ("https://EXAMPLE.com:8443", "example.com:8443"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(with_cookie(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://evil-example.com", "example.com"),
            ("https://example.com.evil.org", "example.com"),
            ("https://example.com@evil.org", "example.com"),
            ("https://example.com:8443", "example.com"),
            ("https://example.com/", "example.com"),
            ("https://example.com:", "example.com"),
            ("https://sub.example.com", "example.com"),
            ("example.com", "example.com"),
            ("null", "null"),
            ("", ""),
            ("file://", ""),
            ("https://ex\u{e4}mple.com", "example.com"),
        ] {
            assert!(!with_cookie(origin, host), "{origin} {host}");
        }
    }

    #[test]
    fn without_credentials_or_origin_nothing_can_be_hijacked() {
        let foreign = ("origin", "https://evil.org");
        assert!(check(&Origins::SameHost, &[("host", "example.com"), foreign]));
        assert!(check(&Origins::SameHost, &[("host", "example.com"), ("cookie", "a=b")]));
        assert!(!check(
            &Origins::SameHost,
            &[("host", "example.com"), ("authorization", "Basic x"), foreign]
        ));
    }

    #[test]
    fn a_proxy_that_replaces_the_host_may_state_the_original() {
        let proxied = [
            ("host", "127.0.0.1:8080"),
            ("x-forwarded-host", "example.com"),
            ("cookie", "a=b"),
            ("origin", "https://example.com"),
        ];
        assert!(check(&Origins::SameHost, &proxied));
    }

    #[test]
    fn a_list_holds_for_every_request_with_an_origin() {
        let only = Origins::Only(vec!["https://example.com".into(), "http://localhost:3000".into()]);
        for origin in ["https://example.com", "https://Example.com:443", "http://localhost:3000"] {
            assert!(check(&only, &[("origin", origin)]), "{origin}");
        }
        for origin in ["http://example.com", "https://evil-example.com", "http://localhost", "null"] {
            assert!(!check(&only, &[("origin", origin)]), "{origin}");
        }
        assert!(!check(&only, &[("origin", "https://example.com"), ("origin", "https://evil.org")]));
        assert!(check(&only, &[("cookie", "a=b")]));
    }
}
