//! Stickiness: which clients go to the same address of a backend with several.
//!
//! Some protocols spread one client over several requests that one server must get: Engine.IO polls before it upgrades,
//! SignalR negotiates first, and a Jupyter kernel lives in one server. The key is of the client, not of the connection; a
//! request without one goes to any address.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use http::request::Parts;

use crate::clients::identity::ClientAddress;
use crate::clients::principal;
use crate::upstream::links::hash;

/// What a client sticks by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Stickiness {
    /// Nothing: each request goes to the address with the fewest uses.
    #[default]
    Off,
    /// The client's address: all clients of one IPv4 address, or of one /64 in IPv6.
    Address,
    /// The value of this cookie.
    Cookie(Box<str>),
    /// The value of this parameter of the query.
    Query(Box<str>),
}

impl Stickiness {
    /// Parses `off`, `address`, `cookie:NAME` or `query:NAME`.
    ///
    /// # Errors
    /// It is none of them, or the name is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "write off, address, cookie:NAME or query:NAME, for example cookie:io".to_owned();
        match (text, text.split_once(':')) {
            ("off", _) => Ok(Self::Off),
            ("address", _) => Ok(Self::Address),
            (_, Some(("cookie", name))) => {
                crate::values::token(name).map(|name| Self::Cookie(name.into())).map_err(|_| wrong())
            }
            (_, Some(("query", name))) if !name.is_empty() && !name.contains(['&', '=', '#', ' ']) => {
                Ok(Self::Query(name.into()))
            }
            _ => Err(wrong()),
        }
    }

    /// Returns the key of a request; `None` if it has none.
    pub(crate) fn key(&self, head: &Parts) -> Option<u64> {
        match self {
            Self::Off => None,
            Self::Address => {
                // Behind trusted proxies it is what they report, else the one that connected.
                let reported = head.extensions.get::<ClientAddress>().map(|client| client.0);
                let peer = || head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
                Some(match reported.or_else(peer)?.to_canonical() {
                    IpAddr::V4(address) => hash(&address.octets()),
                    IpAddr::V6(address) => hash(&address.octets()[..8]),
                })
            }
            Self::Cookie(name) => principal::values(&head.headers, name.as_bytes()).next().map(hash),
            Self::Query(name) => {
                let pairs = head.uri.query()?.split('&');
                let mut values = pairs.filter_map(|pair| pair.strip_prefix(&**name)?.strip_prefix('='));
                values.next().map(|value| hash(value.as_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(stickiness: &str, uri: &str, cookie: &str, peer: &str) -> Option<u64> {
        let request = http::Request::builder().uri(uri).header("cookie", cookie);
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        head.extensions.insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
        Stickiness::parse(stickiness).unwrap().key(&head)
    }

    #[test]
    fn the_key_is_of_the_client_and_of_nothing_else() {
        let same = |stickiness: &str, one: (&str, &str, &str), other: (&str, &str, &str)| {
            let (one, other) =
                (key(stickiness, one.0, one.1, one.2), key(stickiness, other.0, other.1, other.2));
            assert!(one.is_some() && other.is_some(), "{stickiness}");
            one == other
        };
        assert!(same("address", ("/a", "x=1", "10.0.0.1"), ("/b", "x=2", "::ffff:10.0.0.1")));
        assert!(!same("address", ("/a", "x=1", "10.0.0.1"), ("/a", "x=1", "10.0.0.2")));
        assert!(same("address", ("/", "", "2001:db8::1"), ("/", "", "2001:db8::2")));
        assert!(same("cookie:io", ("/", "a=b; io=7", "10.0.0.1"), ("/c", "io=7", "10.0.0.2")));
        assert!(!same("cookie:io", ("/", "io=7", "10.0.0.1"), ("/", "io=8", "10.0.0.1")));
        assert!(same("query:sid", ("/?x=1&sid=7", "", "10.0.0.1"), ("/y?sid=7&z", "", "10.0.0.2")));
        assert!(!same("query:sid", ("/?sid=7", "", "10.0.0.1"), ("/?sid=8", "", "10.0.0.1")));
    }

    #[test]
    fn behind_a_trusted_proxy_the_clients_own_address_counts() {
        let key = |reported: &str, peer: &str| {
            let (mut head, ()) = http::Request::new(()).into_parts();
            head.extensions.insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
            head.extensions.insert(ClientAddress(reported.parse().unwrap()));
            Stickiness::Address.key(&head)
        };
        assert_eq!(key("192.0.2.1", "10.0.0.1"), key("192.0.2.1", "10.0.0.2"));
        assert_ne!(key("192.0.2.1", "10.0.0.1"), key("192.0.2.2", "10.0.0.1"));
    }

    #[test]
    fn a_request_without_the_value_has_no_key() {
        assert_eq!(key("off", "/?sid=7", "io=7", "10.0.0.1"), None);
        assert_eq!(key("cookie:io", "/", "ioo=7", "10.0.0.1"), None);
        assert_eq!(key("query:sid", "/?xsid=7&side=1", "", "10.0.0.1"), None);
    }

    #[test]
    fn anything_else_is_an_error_that_says_what_to_write() {
        for wrong in ["", "cookie", "cookie:", "cookie:a b", "query:", "query:a=b", "header:x", "Address"] {
            let error = Stickiness::parse(wrong).unwrap_err();
            assert!(error.contains("cookie:NAME"), "{wrong}: {error}");
        }
    }
}
