//! The client of a request: the address of its client, and the subject of its credentials. They travel in the extensions
//! of the request, from the part that establishes them to those that count, log and decide by them.

use std::net::IpAddr;
use std::sync::Arc;

/// The address of a request's client: that of the connection, or the one that trusted proxies report. Set on every request
/// that came over IP, before a route is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// The client by its credentials, for example the `sub` of its JWT or a name in its certificate. Absent where a route has no credentials, or where
/// they come later, in the session's HELLO.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Subject(pub(crate) Arc<str>);

/// Returns the subject in a principal, for the operator: the whole of it, or what follows its own length where other
/// credentials are bound too. Cookies and headers alone are a hash, of which the beginning tells clients apart.
pub(crate) fn subject_of(principal: &[u8]) -> Option<String> {
    let readable = |bytes| {
        let text = std::str::from_utf8(bytes).ok()?;
        (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
    };
    let with_length = || {
        let (length, rest) = principal.split_first_chunk()?;
        readable(rest.get(..usize::try_from(u64::from_be_bytes(*length)).ok()?)?)
    };
    let hash = || {
        let digits: String = principal.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("hash-{digits}")
    };
    if principal.is_empty() {
        return None;
    }
    readable(principal).or_else(with_length).or_else(|| Some(hash()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_shown_as_text_and_a_hash_by_its_beginning() {
        let check = |principal: &[u8], expected: Option<&str>| {
            assert_eq!(subject_of(principal).as_deref(), expected, "{principal:?}");
        };
        check(b"", None);
        check(b"alice", Some("alice"));
        check(&[&5_u64.to_be_bytes(), &b"alice"[..], &[0xff; 32]].concat(), Some("alice"));
        check(&[0xab; 32], Some("hash-abababababababab"));
        check(&[&99_u64.to_be_bytes(), &b"alice"[..]].concat(), Some("hash-0000000000000063"));
        check(b"alice\n", Some("hash-616c6963650a"));
    }
}
