//! The rule of a route: which requests it takes, by their host and their path.
//!
//! The rule with the most specific host wins (a name before a wildcard, a wildcard before any host); among those an exact path
//! wins, then the longest prefix. `rank` defines this, and tests hold [`Lookup`](crate::routes::lookup::Lookup) against it.

use std::borrow::Cow;

use crate::request::forward;

/// The requests that a route takes. The default takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MatchRule {
    /// The hosts, without a port; empty: any host.
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) path: PathPattern,
    /// The matching part of the path is removed before the request is forwarded.
    pub(crate) strips_path: bool,
}

/// A host in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostPattern {
    Exact(Box<str>),
    /// `*.example.com`: all names below a name, which is held without the `*.`.
    Below(Box<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathPattern {
    /// This path and everything below it. Whole segments are compared.
    Prefix(Box<str>),
    Exact(Box<str>),
}

impl Default for PathPattern {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

impl HostPattern {
    /// Parses `example.com`, `10.0.0.7`, `[::1]` or `*.example.com`.
    ///
    /// # Errors
    /// What to write instead.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (is_below, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        let is_address = || {
            name.strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
        };
        if !is_name(name) && (is_below || !is_address()) {
            return Err(format!(
                "{text:?} is not a host; write a name without scheme, port and path, for example example.com or \
                 *.example.com"
            ));
        }
        let name = name.to_ascii_lowercase().into();
        Ok(if is_below { Self::Below(name) } else { Self::Exact(name) })
    }

    /// Returns whether a host matches, and how specific the pattern is.
    #[cfg(test)]
    fn rank(&self, host: &str) -> Option<usize> {
        match self {
            Self::Exact(name) => name.eq_ignore_ascii_case(host).then_some(usize::MAX),
            Self::Below(name) => {
                let (head, tail) = host.split_at_checked(host.len().checked_sub(name.len())?)?;
                (head.ends_with('.') && tail.eq_ignore_ascii_case(name)).then_some(name.len())
            }
        }
    }
}

impl PathPattern {
    /// Returns whether a path matches, and how specific the pattern is.
    #[cfg(test)]
    fn rank(&self, path: &str) -> Option<usize> {
        match self {
            Self::Exact(own) => (**own == *path).then_some(usize::MAX),
            Self::Prefix(own) => {
                let own = own.trim_end_matches('/');
                let rest = path.strip_prefix(own)?;
                (rest.is_empty() || rest.starts_with('/')).then_some(own.len())
            }
        }
    }
}

impl MatchRule {
    /// Returns the part of a path that is removed before a request is forwarded, without a slash at its end.
    pub(crate) fn stripped(&self) -> Option<Box<str>> {
        let (PathPattern::Prefix(own) | PathPattern::Exact(own)) = &self.path;
        self.strips_path.then(|| own.trim_end_matches('/').into())
    }

    /// Returns how specific the match is, host before path; `None`: the rule does not take the request.
    #[cfg(test)]
    pub(crate) fn rank(&self, host: &str, path: &str) -> Option<(usize, usize)> {
        let host = match self.hosts.as_slice() {
            [] => Some(0),
            hosts => hosts.iter().filter_map(|pattern| pattern.rank(host)).max(),
        };
        Some((host?, self.path.rank(path)?))
    }
}

/// Returns a path as most backends read it: decoded, with one slash where there are several. A client could otherwise reach
/// one route's paths by way of another route to the same backend. `None`: a segment `..` leads elsewhere, so no rule takes it.
pub(crate) fn canonical(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains(['%', '\\', ';']) && !path.contains("//") && !path.contains("/.") {
        return Some(Cow::Borrowed(path));
    }
    if forward::climbs(path) {
        return None;
    }
    let decoded = forward::decode(path.as_bytes());
    let mut canonical = String::with_capacity(decoded.len());
    for segment in String::from_utf8_lossy(&decoded).split(['/', '\\']) {
        let segment = segment.split(';').next().unwrap_or_default();
        if !segment.is_empty() && segment != "." {
            canonical.extend(["/", segment]);
        }
    }
    if canonical.is_empty() || decoded.ends_with(b"/") {
        canonical.push('/');
    }
    Some(Cow::Owned(canonical))
}

/// Returns a host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(hosts: &[HostPattern], path: PathPattern, asked: (&str, &str)) -> Option<(usize, usize)> {
        let rule = MatchRule { hosts: hosts.to_vec(), path, strips_path: false };
        rule.rank(without_port(asked.0), asked.1)
    }

    #[test]
    fn a_host_matches_by_its_name_or_below_a_wildcard_whatever_its_port_and_case() {
        let exact = [HostPattern::Exact("example.com".into())];
        let below = [HostPattern::Below("example.com".into())];
        let matches =
            |hosts: &[HostPattern], host| rank(hosts, PathPattern::default(), (host, "/")).is_some();
        for host in ["example.com", "EXAMPLE.com:8080", "example.com:"] {
            assert!(matches(&exact, host) && !matches(&below, host), "{host}");
        }
        for host in ["a.example.com", "b.a.Example.Com:1"] {
            assert!(matches(&below, host) && !matches(&exact, host), "{host}");
        }
        for host in ["aexample.com", ".com", "", "[::1]:80", "é.com"] {
            assert!(!matches(&below, host) && !matches(&exact, host) && matches(&[], host), "{host}");
        }
    }

    #[test]
    fn a_path_is_compared_as_a_backend_reads_it() {
        for (path, expected) in [
            ("/a/b", Some("/a/b")),
            ("/a/", Some("/a/")),
            ("//a///b", Some("/a/b")),
            ("/%61dmin", Some("/admin")),
            ("/a%2Fb/", Some("/a/b/")),
            ("/a;x=1/b", Some("/a/b")),
            ("/./a", Some("/a")),
            ("/a\\b", Some("/a/b")),
            ("//", Some("/")),
            ("/a/../b", None),
            ("/a/%2e%2e/b", None),
        ] {
            assert_eq!(canonical(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_host_pattern_is_a_name_an_address_or_a_wildcard_at_the_beginning() {
        for right in ["example.com", "*.example.com", "localhost", "10.0.0.7", "[::1]", "a_b.c"] {
            assert!(HostPattern::parse(right).is_ok(), "{right}");
        }
        for wrong in ["", "*", "*.", "a.*", "example.com:80", "http://a", "a/b", "*.[::1]", "[x]", "a b"] {
            assert!(HostPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_matches_whole_segments_and_the_more_specific_rule_has_the_higher_rank() {
        let path = |pattern: PathPattern, path| rank(&[], pattern, ("h", path));
        let prefix = |own: &str| PathPattern::Prefix(own.into());
        assert_eq!(path(prefix("/a"), "/ab"), None);
        assert!(path(prefix("/a/"), "/a").is_some() && path(prefix("/a"), "/a/b").is_some());
        assert!(path(PathPattern::Exact("/a".into()), "/a/").is_none());
        assert!(path(PathPattern::Exact("/a".into()), "/a") > path(prefix("/a"), "/a"));
        assert!(path(prefix("/a"), "/a") > path(prefix("/"), "/a"));
        let host = rank(&[HostPattern::Exact("h".into())], PathPattern::default(), ("h", "/a"));
        assert!(host > path(PathPattern::Exact("/a".into()), "/a"), "the host comes before the path");
    }
}
