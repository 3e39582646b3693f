//! Whether to connect where a server redirects its client: WELCOME's `resume at`, GOAWAY's `endpoint`.
//!
//! The next HELLO carries the resume token, and the request carries its headers and cookies: the server at the
//! endpoint receives all of them. Therefore an endpoint is followed only if its connection is no less protected than
//! the one that named it, and by default only to the same host.
//!
//! Source: `docs/PROTOCOL.md` "Closing".

use http::Uri;

/// Which of a server's endpoints the client follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Follow {
    /// None: every attempt goes to the URL of the application.
    Never,
    /// Those on the host of the application's URL, on any port.
    #[default]
    SameHost,
    /// All: the application trusts the server to choose which host receives the token, the headers and the cookies.
    Anywhere,
}

impl Follow {
    /// Returns where to connect instead of `own`; `None`: to `own`. The endpoint must be an absolute URL of the same
    /// scheme (`ws` never follows `wss`, nor the other way round), without credentials in it. One without a path of its
    /// own gets the path and query of `own`: a session belongs to the path at which it was opened.
    #[must_use]
    pub fn allows(self, own: &Uri, endpoint: &str) -> Option<Uri> {
        let named: Uri = endpoint.parse().ok()?;
        let same_scheme = is_secure(own).is_some_and(|secure| is_secure(&named) == Some(secure));
        let clean = named.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        let (ours, theirs) = (own.host()?, named.host().filter(|host| !host.is_empty())?);
        let near = match self {
            Self::Never => false,
            Self::SameHost => ours.eq_ignore_ascii_case(theirs),
            Self::Anywhere => true,
        };
        let is_bare = named.path_and_query().is_none_or(|path| path == "/");
        let place = if is_bare { with_path_of(own, named) } else { Some(named) };
        place.filter(|_| same_scheme && clean && near)
    }
}

fn with_path_of(own: &Uri, named: Uri) -> Option<Uri> {
    let mut parts = named.into_parts();
    parts.path_and_query = own.path_and_query().cloned().or(parts.path_and_query);
    Uri::from_parts(parts).ok()
}

fn is_secure(url: &Uri) -> Option<bool> {
    match url.scheme_str()? {
        "ws" | "http" => Some(false),
        "wss" | "https" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(follow: Follow, own: &'static str, endpoint: &str, followed: bool) {
        let outcome = follow.allows(&Uri::from_static(own), endpoint);
        assert_eq!(outcome.is_some(), followed, "{follow:?}: {own} -> {endpoint}");
        assert!(outcome.is_none_or(|url| url == *endpoint), "dialled as it was named");
    }

    #[test]
    fn an_endpoint_is_followed_to_the_same_host_unless_configured_otherwise() {
        let own = "wss://example.com/chat";
        check(Follow::default(), own, "wss://example.com:8443/chat?node=7", true);
        check(Follow::SameHost, own, "wss://EXAMPLE.com/other", true);
        check(Follow::SameHost, own, "wss://node7.example.com/chat", false);
        check(Follow::Anywhere, own, "wss://node7.example.com/chat", true);
        check(Follow::Never, own, "wss://example.com/chat", false);
    }

    #[test]
    fn an_endpoint_without_a_path_gets_the_path_and_query_of_the_own_url() {
        let own = Uri::from_static("wss://example.com/chat?room=1");
        for bare in ["wss://n3.example.com", "wss://n3.example.com/"] {
            let followed = Follow::Anywhere.allows(&own, bare).unwrap();
            assert_eq!(followed, "wss://n3.example.com/chat?room=1");
        }
        let followed = Follow::Anywhere.allows(&own, "wss://n3.example.com/?node=3").unwrap();
        assert_eq!(followed, "wss://n3.example.com/?node=3", "it has a query of its own");
    }

    #[test]
    fn no_endpoint_takes_tls_away_or_is_anything_but_a_websocket_url() {
        for endpoint in [
            "ws://example.com/",
            "http://example.com/",
            "ftp://example.com/",
            "//example.com/",
            "/chat",
            "wss://",
            "wss://user:secret@example.com/",
            "wss://example.com@evil.example/",
            "",
            "not a url",
            "wss://\u{1F608}/",
        ] {
            check(Follow::Anywhere, "wss://example.com/", endpoint, false);
        }
        check(Follow::Anywhere, "ws://example.com/", "wss://example.com/", false);
    }
}
