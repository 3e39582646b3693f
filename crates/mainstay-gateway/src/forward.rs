//! A visitor's request as it is passed on: where to, with which headers, and whose word is taken for who is behind it.
//!
//! Anybody can write a header. What tells of the visitor (`X-Forwarded-For` and its kin) is therefore taken from listed
//! proxies only, and taken out of every other request; the backend may then believe what it gets.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Addresses that begin with the same bits: one address, or `address/bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(width), |bits| bits.parse().ok().filter(|bits| *bits <= width))?;
        // An IPv4 address in IPv6 is compared as IPv4, and would never be in such a network.
        (address.to_canonical() == address).then_some(Self { address, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros() >= self.bits
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

/// The visitor's path and query behind the backend's path.
///
/// # Errors
/// They cannot stand there, or the path might lead out of the backend's.
pub(crate) fn target(upstream: &Uri, visited: &Uri) -> Result<Uri, String> {
    let prefix = upstream.path().trim_end_matches('/');
    if !prefix.is_empty() && climbs(visited.path()) {
        return Err("the path must not have a part that is `..`".to_owned());
    }
    let path = visited.path_and_query().map_or("/", PathAndQuery::as_str);
    let wrong = |_| "the path cannot be forwarded".to_owned();
    let mut parts = upstream.clone().into_parts();
    parts.path_and_query = Some(format!("{prefix}{path}").parse().map_err(wrong)?);
    Uri::from_parts(parts).map_err(|_| "the path cannot be forwarded".to_owned())
}

/// Whether a backend may read a part of this path as `..`: some decode first, take `\` for `/`, or cut a part at `;`.
fn climbs(path: &str) -> bool {
    let decoded = decode(path.as_bytes());
    let parts = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    parts.map(|part| part.split(|byte| *byte == b';').next()).any(|part| part == Some(b".."))
}

fn decode(mut path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(path.len());
    loop {
        path = match path {
            [] => return out,
            [b'%', high, low, rest @ ..] if let (Some(high), Some(low)) = (digit(*high), digit(*low)) => {
                out.push(high << 4 | low);
                rest
            }
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        }
    }
}

/// The visitor's headers, without those that speak of its own connection, and with those that tell the backend who is
/// behind it. `peer` is who connected.
pub(crate) fn headers(asked: &HeaderMap, peer: Option<SocketAddr>, trusted: &[Network]) -> HeaderMap {
    let peer = peer.map(|peer| peer.ip().to_canonical());
    let is_believed = peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(peer)));
    let named = |value: &HeaderValue| -> Vec<String> {
        value.to_str().unwrap_or_default().split(',').map(|name| name.trim().to_ascii_lowercase()).collect()
    };
    let listed: Vec<String> = asked.get_all(header::CONNECTION).iter().flat_map(named).collect();
    let mut headers = HeaderMap::new();
    for (name, value) in asked {
        let is_hop_by_hop = is_hop_by_hop(name) || listed.iter().any(|listed| listed == name.as_str());
        if !is_hop_by_hop && *name != FOR && (is_believed || !tells_of_visitor(name)) && !is_disguised(name) {
            headers.append(name.clone(), copied(value));
        }
    }
    let chain = asked.get_all(FOR).iter().filter(|_| is_believed).filter_map(|hops| hops.to_str().ok());
    let chain: Vec<String> = chain.map(str::to_owned).chain(peer.map(|peer| peer.to_string())).collect();
    // One line, however many came: not every backend reads more.
    if let Some(chain) = HeaderValue::try_from(chain.join(", ")).ok().filter(|chain| !chain.is_empty()) {
        headers.insert(FOR, chain);
    }
    if let Some(host) = asked.get(header::HOST) {
        headers.entry(HOST).or_insert_with(|| copied(host));
    }
    headers.entry(PROTO).or_insert(HeaderValue::from_static("ws"));
    headers
}

/// A value as it came shares the buffer of its whole request, which would live as long as the link.
fn copied(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// Only a proxy may say these.
fn tells_of_visitor(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "forwarded" | "x-real-ip") || name.starts_with("x-forwarded-")
}

/// The same with `_`, which CGI and its heirs read as `-`. No proxy writes it so.
fn is_disguised(name: &HeaderName) -> bool {
    let plain = name.as_str().contains('_').then(|| name.as_str().replace('_', "-").parse());
    plain.is_some_and(|plain| plain.is_ok_and(|plain| tells_of_visitor(&plain)))
}

/// RFC 9110 section 7.6.1, and the opening handshake's own (RFC 6455 section 4.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "content-length"
            | "host"
    ) || name.as_str().starts_with("sec-websocket-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(extra: &[(&'static str, &'static str)]) -> HeaderMap {
        let usual = [
            ("host", "example.com"),
            ("connection", "Upgrade, X-Mine"),
            ("upgrade", "websocket"),
            ("x-mine", "hop"),
            ("cookie", "a=b"),
            ("authorization", "Bearer t"),
            ("sec-websocket-key", "k"),
        ];
        let named = usual.iter().chain(extra);
        let parsed =
            named.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in parsed {
            headers.append(name, value);
        }
        headers
    }

    /// What of it tells of the visitor, as it is passed on.
    fn told(extra: &[(&'static str, &'static str)], peer: &str, trusted: &[&str]) -> Vec<String> {
        let trusted: Vec<_> = trusted.iter().map(|network| Network::parse(network).unwrap()).collect();
        let headers = headers(&asked(extra), Some(peer.parse().unwrap()), &trusted);
        let telling =
            headers.iter().filter(|(name, _)| tells_of_visitor(name) || name.as_str().contains('_'));
        let mut told: Vec<_> =
            telling.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        told.sort_unstable();
        told
    }

    const OURS: [&str; 3] =
        ["x-forwarded-for: 192.0.2.7", "x-forwarded-host: example.com", "x-forwarded-proto: ws"];
    const CLAIMED: [(&str, &str); 8] = [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-for", "10.0.0.2"),
        ("x-forwarded-host", "bank.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "443"),
        ("x-real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x_forwarded_for", "10.0.0.1"),
    ];

    #[test]
    fn what_speaks_of_the_visitors_connection_is_not_forwarded() {
        let headers = headers(&asked(&[]), Some(([127, 0, 0, 1], 5000).into()), &[]);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected =
            ["authorization", "cookie", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_a_visitor_claims_of_itself_is_not_passed_on() {
        assert_eq!(told(&[], "192.0.2.7:5000", &[]), OURS);
        assert_eq!(told(&CLAIMED, "192.0.2.7:5000", &[]), OURS);
        assert_eq!(told(&CLAIMED, "192.0.2.7:5000", &["192.0.2.8", "10.0.0.0/8"]), OURS);
        assert_eq!(told(&CLAIMED, "[::ffff:192.0.2.7]:5000", &[]), OURS);
    }

    #[test]
    fn what_a_trusted_proxy_says_is_passed_on_and_its_address_added() {
        let expected = [
            "forwarded: for=10.0.0.1",
            "x-forwarded-for: 10.0.0.1, 10.0.0.2, 192.0.2.7",
            "x-forwarded-host: bank.example",
            "x-forwarded-port: 443",
            "x-forwarded-proto: https",
            "x-real-ip: 10.0.0.1",
        ];
        for (peer, network) in [
            ("192.0.2.7:5000", "192.0.2.7"),
            ("[::ffff:192.0.2.7]:5000", "192.0.2.0/24"),
            ("192.0.2.7:1", "0.0.0.0/0"),
        ] {
            assert_eq!(told(&CLAIMED, peer, &[network]), expected, "{peer} {network}");
        }
        assert_eq!(told(&[], "192.0.2.7:5000", &["192.0.2.7"]), OURS);
    }

    #[test]
    fn a_network_holds_the_addresses_that_begin_with_its_bits() {
        let check = |network: &str, address: &str, expected| {
            let network = Network::parse(network).unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{network:?} {address}");
        };
        check("10.1.0.0/15", "10.0.255.255", true);
        check("10.1.0.0/15", "10.2.0.0", false);
        check("10.1.2.3", "10.1.2.3", true);
        check("10.1.2.3", "10.1.2.2", false);
        check("::/0", "2001:db8::1", true);
        check("::/0", "10.0.0.1", false);
        check("2001:db8::/33", "2001:db8:7fff::1", true);
        check("2001:db8::/33", "2001:db8:8000::1", false);
        for wrong in
            ["", "localhost", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "/8", "::ffff:10.0.0.0/104"]
        {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }

    fn join(upstream: &'static str, visited: &'static str) -> Result<String, String> {
        target(&Uri::from_static(upstream), &Uri::from_static(visited)).map(|url| url.to_string())
    }

    #[test]
    fn the_visitors_path_goes_behind_the_backends() {
        let check =
            |upstream, expected: &str| assert_eq!(join(upstream, "/room/7?user=x").unwrap(), expected);
        check("ws://backend:3000", "ws://backend:3000/room/7?user=x");
        check("ws://backend:3000/app/", "ws://backend:3000/app/room/7?user=x");
    }

    #[test]
    fn no_path_leads_out_of_the_backends() {
        for path in [
            "/..",
            "/../admin",
            "/room/../../admin",
            "/%2e%2E/admin",
            "/.%2e/admin",
            "/..%2fadmin",
            "/..%5cadmin",
            "/..;x=y/admin",
        ] {
            assert!(join("ws://backend/app", path).is_err(), "{path}");
            assert_eq!(join("ws://backend", path).unwrap(), format!("ws://backend{path}"));
        }
        for path in ["/...", "/a..b", "/..a", "/%2", "/a?x=/../b", "/%e2%82%ac"] {
            assert_eq!(join("ws://backend/app", path).unwrap(), format!("ws://backend/app{path}"));
        }
    }
}
