//! The principal of a session: only a request with the same credentials may resume it.
//!
//! The backend authenticates a client once, by the headers of the request that opened the session. The operator names the
//! headers and cookies that identify the user; a stolen resume token alone then does not resume the session.
//! `docs/adr/0012-what-a-session-of-the-gateway-is-bound-to.md` has the reasons.

use http::header::{COOKIE, HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

/// The headers and cookies that identify the user.
#[derive(Debug, Clone, Default)]
pub(crate) struct PrincipalSource {
    pub(crate) headers: Vec<HeaderName>,
    pub(crate) cookies: Vec<String>,
}

impl PrincipalSource {
    /// Returns a hash of the named headers and cookies; empty if the request has none of them.
    pub(crate) fn of(&self, request: &HeaderMap) -> Vec<u8> {
        let headers = self.headers.iter().flat_map(|name| {
            request
                .get_all(name)
                .iter()
                .map(move |value| (&b"header"[..], name.as_str().as_bytes(), value.as_bytes()))
        });
        let cookies = self.cookies.iter().flat_map(|name| {
            let name = name.as_bytes();
            values(request, name).map(move |value| (&b"cookie"[..], name, value))
        });
        let mut found = headers.chain(cookies).peekable();
        if found.peek().is_none() {
            return Vec::new();
        }
        let mut hash = Sha256::new();
        for part in found.flat_map(|(kind, name, value)| [kind, name, value]) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().to_vec()
    }
}

/// Returns the values of a cookie; a request may have several of one name (RFC 6265 section 4.2.2).
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// The principal of a request where `Authorization` and these cookies identify the user.
    fn principal(headers: &[(&'static str, &'static str)], cookies: &[&str]) -> Vec<u8> {
        let parsed = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in parsed {
            headers.append(name, value);
        }
        let cookies = cookies.iter().map(|name| (*name).to_owned()).collect();
        PrincipalSource { headers: vec![http::header::AUTHORIZATION], cookies }.of(&headers)
    }

    #[test]
    fn a_principal_is_empty_if_no_credential_is_named_or_sent() {
        assert_eq!(principal(&[], &[]), b"");
        assert_eq!(principal(&[("cookie", "sid=1")], &[]), b"");
        assert_eq!(principal(&[("cookie", "side=1; asid=1; sid")], &["sid"]), b"");
        let mut authorized = HeaderMap::new();
        authorized.append(http::header::AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert_eq!(PrincipalSource::default().of(&authorized), b"", "no header is named");
    }

    #[test]
    fn a_principal_changes_with_named_headers_and_cookies_and_with_nothing_else() {
        let first = principal(&[("authorization", "Bearer a"), ("cookie", "x=1; sid=1; csrf=1")], &["sid"]);
        let check =
            |headers: &[_], same| assert_eq!(principal(headers, &["sid"]) == first, same, "{headers:?}");
        check(&[("authorization", "Bearer a"), ("cookie", "csrf=2;sid=1"), ("origin", "o")], true);
        check(&[("authorization", "Bearer a"), ("cookie", "a=b"), ("cookie", "sid=1")], true);
        check(&[("authorization", "Bearer a"), ("cookie", "sid=2")], false);
        check(&[("authorization", "Bearer a"), ("cookie", "sid=1; sid=2")], false);
        check(&[("authorization", "Bearer b"), ("cookie", "sid=1")], false);
        check(&[("authorization", "Bearer a")], false);
        check(&[("cookie", "sid=1")], false);
        check(&[], false);
    }

    #[test]
    fn one_credential_never_hashes_like_another() {
        let cookie = principal(&[("cookie", "a=bc")], &["a", "ab"]);
        assert_ne!(cookie, principal(&[("cookie", "ab=c")], &["a", "ab"]));
        assert_ne!(cookie, principal(&[("authorization", "bc")], &["a", "ab"]));
    }
}
