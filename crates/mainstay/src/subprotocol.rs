//! The subprotocol names of `mainstay.v1`: the name alone, or with a `+` and the application's subprotocol behind it.
//!
//! Source: `docs/PROTOCOL.md` "Negotiation".

use http::HeaderMap;
use http::header::SEC_WEBSOCKET_PROTOCOL;

/// The subprotocol of a session whose application has none.
const SESSION: &str = "mainstay.v1";

/// Whether this is the name of a session's subprotocol.
pub(crate) fn is_session(name: &str) -> bool {
    name.strip_prefix(SESSION).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// Whether a request offers a session.
pub(crate) fn is_offered(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|name| is_session(name.trim()))
}

/// The application's part of the name: all of it where it is not a session's.
pub(crate) fn application(name: &str) -> Option<&str> {
    if !is_session(name) {
        return Some(name);
    }
    name.strip_prefix(SESSION)?.strip_prefix('+')
}

/// The names that offer a session for these subprotocols of the application.
pub(crate) fn session_names(application: &[String]) -> Vec<String> {
    match application {
        [] => vec![SESSION.to_owned()],
        names => names.iter().map(|name| format!("{SESSION}+{name}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subprotocol_of_a_session_is_recognised_by_its_whole_name() {
        for (name, expected) in [
            ("mainstay.v1", (true, None)),
            ("mainstay.v1+chat", (true, Some("chat"))),
            ("mainstay.v1x", (false, Some("mainstay.v1x"))),
            ("chat", (false, Some("chat"))),
        ] {
            assert_eq!((is_session(name), application(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_session_is_offered_once_for_each_subprotocol_of_the_application() {
        assert_eq!(session_names(&[]), ["mainstay.v1"]);
        let names = session_names(&["a".to_owned(), "b".to_owned()]);
        assert_eq!(names, ["mainstay.v1+a", "mainstay.v1+b"]);
    }
}
