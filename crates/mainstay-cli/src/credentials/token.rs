//! Where a client's token stands, and how the request looks without it.
//!
//! The first place that has a token decides. Every other one is removed before the request goes to the backend: what was not
//! judged must not look to the backend as if it had been.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};

use super::refusal::{Reason, Refusal};

/// The longest token, in bytes. A longer one is refused unread.
pub(crate) const MAX_TOKEN: usize = 16 * 1024;

/// Where a token may stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the credentials of a client that speaks `mainstay.v1`.
    Session,
    /// In a header, behind `Bearer` or alone. `Authorization` requires `Bearer`.
    Header(HeaderName),
    Cookie(String),
    /// In the query of the URL.
    Query(String),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?}: must be session, header:NAME, cookie:NAME or query:NAME, for example header:Authorization"
            )
        };
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        let is_token = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            !name.is_empty() && name.bytes().all(allowed)
        };
        match kind {
            "session" if name.is_empty() && !text.contains(':') => Ok(Self::Session),
            "header" => name.parse().map(Self::Header).map_err(|_| wrong()),
            "cookie" if is_token(name) => Ok(Self::Cookie(name.to_owned())),
            "query" if is_token(name) => Ok(Self::Query(name.to_owned())),
            _ => Err(wrong()),
        }
    }
}

/// A token, as the client presented it. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) Bytes);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A token and the place where it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) token: Token,
    pub(crate) place: Place,
}

/// Takes the token out of the request: the first in the order of `places`. The request keeps none.
///
/// # Errors
/// A place has several, so the backend could read another one than the gateway.
pub(crate) fn take(places: &[Place], head: &mut Parts) -> Result<Option<Found>, Refusal> {
    let mut found = None;
    for place in places {
        let taken = match place {
            Place::Session => continue,
            Place::Header(name) => from_header(name, &mut head.headers)?,
            Place::Cookie(name) => from_cookies(name, &mut head.headers)?,
            Place::Query(name) => from_query(name, &mut head.uri)?,
        };
        let taken = taken.map(|token| Found { token: Token(token), place: place.clone() });
        found = found.or(taken);
    }
    Ok(found)
}

/// Puts a token back for the backend: into its header or cookie, otherwise into `Authorization`.
pub(crate) fn put_back(found: &Found, fields: &mut HeaderMap) {
    let token = &found.token.0;
    let (name, value) = match &found.place {
        Place::Header(name) if *name != AUTHORIZATION => (name.clone(), HeaderValue::from_bytes(token)),
        Place::Cookie(name) => {
            let before = fields.get(COOKIE).map(|cookies| [cookies.as_bytes(), b"; "].concat());
            let cookies = [&before.unwrap_or_default(), name.as_bytes(), b"=", token].concat();
            (COOKIE, HeaderValue::from_bytes(&cookies))
        }
        _ => (AUTHORIZATION, HeaderValue::from_bytes(&[b"Bearer ", &token[..]].concat())),
    };
    // A token that was judged has only characters that a header may have.
    if let Ok(mut value) = value {
        value.set_sensitive(true);
        fields.insert(name, value);
    }
}

fn several(place: &str) -> Refusal {
    Refusal::new(Reason::Malformed, format!("several tokens in {place}"))
}

fn from_header(name: &HeaderName, headers: &mut HeaderMap) -> Result<Option<Bytes>, Refusal> {
    if headers.get_all(name).iter().count() > 1 {
        return Err(several(name.as_str()));
    }
    // `Bearer` alone is an empty token.
    let bearer = |value: &[u8]| {
        let (scheme, rest) = value.split_at_checked(6)?;
        let is_bearer =
            scheme.eq_ignore_ascii_case(b"Bearer") && rest.first().is_none_or(|byte| *byte == b' ');
        is_bearer.then(|| Bytes::copy_from_slice(rest.trim_ascii()))
    };
    let Some(value) = headers.get(name).map(|value| value.as_bytes()) else { return Ok(None) };
    let token = match bearer(value) {
        // Another scheme, such as Basic, is no token: the header is the backend's.
        None if *name == AUTHORIZATION => return Ok(None),
        None => Bytes::copy_from_slice(value),
        Some(token) => token,
    };
    headers.remove(name);
    Ok(Some(token))
}

fn from_cookies(name: &str, headers: &mut HeaderMap) -> Result<Option<Bytes>, Refusal> {
    let is_ours = |pair: &[u8]| pair.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    let lines = headers.get_all(COOKIE).iter();
    let pairs: Vec<&[u8]> =
        lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii)).collect();
    let mut ours = pairs.iter().filter(|pair| is_ours(pair));
    let Some(found) = ours.next() else { return Ok(None) };
    if ours.next().is_some() {
        return Err(several("cookies"));
    }
    let token = Bytes::copy_from_slice(&found[name.len() + 1..]);
    let rest: Vec<&[u8]> = pairs.iter().copied().filter(|pair| !is_ours(pair) && !pair.is_empty()).collect();
    match HeaderValue::from_bytes(&rest.join(&b"; "[..])) {
        Ok(cookies) if !rest.is_empty() => drop(headers.insert(COOKIE, cookies)),
        _ => drop(headers.remove(COOKIE)),
    }
    Ok(Some(token))
}

fn from_query(name: &str, uri: &mut Uri) -> Result<Option<Bytes>, Refusal> {
    let Some(query) = uri.query() else { return Ok(None) };
    let is_ours = |pair: &&str| pair.split_once('=').is_some_and(|(key, _)| key == name);
    let mut ours = query.split('&').filter(is_ours);
    let Some(found) = ours.next() else { return Ok(None) };
    if ours.next().is_some() {
        return Err(several("the query"));
    }
    let token = Bytes::copy_from_slice(&found.as_bytes()[name.len() + 1..]);
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_ours(pair)).collect();
    let target = match rest.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), rest.join("&")),
    };
    let mut parts = std::mem::take(uri).into_parts();
    let malformed = |_| Refusal::new(Reason::Malformed, "the query cannot be read");
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(malformed)?);
    *uri = Uri::from_parts(parts).map_err(|_| Refusal::from(Reason::Malformed))?;
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn places(texts: &[&str]) -> Vec<Place> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The token and what is left of a request.
    fn taken(from: &[&str], uri: &str, fields: &[(&str, &str)]) -> (Option<String>, Parts) {
        let mut head = head(uri, fields);
        let found = take(&places(from), &mut head).unwrap();
        (found.map(|found| String::from_utf8(found.token.0.to_vec()).unwrap()), head)
    }

    #[test]
    fn the_first_place_that_has_a_token_decides_and_no_other_token_is_left() {
        let all = ["session", "header:Authorization", "cookie:jwt", "query:token"];
        let fields = [("authorization", "bearer  a.b.c "), ("cookie", "x=1; jwt=d.e.f; y=2")];
        let (token, left) = taken(&all, "/p?x=1&token=g.h.i&y=2", &fields);
        assert_eq!(token.as_deref(), Some("a.b.c"));
        assert_eq!(
            (left.uri.to_string(), left.headers[COOKIE].as_bytes()),
            ("/p?x=1&y=2".into(), &b"x=1; y=2"[..])
        );
        assert!(!left.headers.contains_key(AUTHORIZATION));
        let (token, left) = taken(&all, "/p?token=g.h.i", &[("cookie", "jwt=d.e.f")]);
        assert_eq!((token.as_deref(), left.uri.to_string()), (Some("d.e.f"), "/p".into()));
        assert!(!left.headers.contains_key(COOKIE));
    }

    #[test]
    fn what_is_not_named_is_neither_read_nor_removed() {
        let fields = [("authorization", "Basic dTpw"), ("cookie", "ajwt=1; jwt; JWT=2"), ("x-token", "t")];
        let (token, left) =
            taken(&["header:Authorization", "cookie:jwt", "query:t"], "/?tt=1&T=2&t", &fields);
        assert_eq!(token, None);
        assert_eq!((left.uri.to_string(), left.headers.len()), ("/?tt=1&T=2&t".into(), 3));
        assert_eq!(taken(&["header:X-Token"], "/", &fields).0.as_deref(), Some("t"));
        for (value, token) in [("Bearer", Some("")), ("bearer ", Some("")), ("Bearerx", None)] {
            let taken = taken(&["header:Authorization"], "/", &[("authorization", value)]).0;
            assert_eq!(taken.as_deref(), token, "{value:?}");
        }
    }

    #[test]
    fn several_tokens_in_one_place_are_refused() {
        for (place, uri, fields) in [
            (
                "header:Authorization",
                "/",
                &[("authorization", "Bearer a"), ("authorization", "Bearer b")][..],
            ),
            ("cookie:t", "/", &[("cookie", "t=a; t=b")]),
            ("cookie:t", "/", &[("cookie", "t=a"), ("cookie", "t=b")]),
            ("query:t", "/?t=a&t=b", &[]),
        ] {
            let refused = take(&places(&[place]), &mut head(uri, fields)).unwrap_err();
            assert_eq!(refused.reason, Reason::Malformed, "{place}");
        }
    }

    #[test]
    fn a_judged_token_goes_back_where_it_stood_or_into_authorization() {
        let check = |place: &str, expected: (&str, &str)| {
            let mut fields = HeaderMap::new();
            fields.insert(COOKIE, HeaderValue::from_static("x=1"));
            let token = Token(Bytes::from_static(b"a.b.c"));
            put_back(&Found { token, place: place.parse().unwrap() }, &mut fields);
            assert_eq!(fields[expected.0], expected.1, "{place}");
        };
        check("session", ("authorization", "Bearer a.b.c"));
        check("query:t", ("authorization", "Bearer a.b.c"));
        check("header:Authorization", ("authorization", "Bearer a.b.c"));
        check("header:X-Token", ("x-token", "a.b.c"));
        check("cookie:t", ("cookie", "x=1; t=a.b.c"));
    }

    #[test]
    fn a_place_is_written_as_a_kind_and_a_name() {
        for wrong in [
            "",
            "header",
            "header:",
            "cookie:",
            "cookie:a b",
            "query:",
            "session:x",
            "session:",
            "url:t",
            "header:a b",
        ] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_does_not_show_in_debug_output() {
        let found = Found { token: Token(Bytes::from_static(b"secret")), place: Place::Session };
        assert!(!format!("{found:?}").contains("secret"));
    }
}
