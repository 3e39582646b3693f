//! The address of a client behind proxies.
//!
//! A proxy connects in its own name and reports its client in a field of the request. Any client can write that field,
//! so it counts only on connections of a *trusted* proxy, and only as far as trusted proxies wrote it: the fields are
//! read from their end, where the nearest proxy added its entry, over the addresses of trusted proxies, up to the
//! first other address. That one is the client. An entry that is no address ends the reading: the proxy that added
//! it counts as the client.
//!
//! Source: RFC 7239; `X-Forwarded-For` is a convention.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// A network: one address, or `address/bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

/// The field in which trusted proxies report their client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ForwardedBy {
    /// `X-Forwarded-For`, to which each proxy appends. The default.
    #[default]
    XForwardedFor,
    /// `Forwarded`, to which each proxy appends.
    Forwarded,
    /// `X-Real-IP`, which the proxy replaces: one address.
    XRealIp,
}

/// The proxies in front of a server that report its clients. Default: none.
///
/// ```
/// use mainstay_proto::proxies::{ForwardedBy, Network, Proxies};
///
/// let proxies = Proxies::new([Network::parse("10.0.0.0/8").unwrap()], ForwardedBy::XForwardedFor);
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-forwarded-for", "198.51.100.9, 203.0.113.7, 10.0.0.2".parse().unwrap());
/// let client = proxies.client("10.0.0.1:5000".parse().ok(), &headers).unwrap();
/// assert_eq!(client.ip(), "203.0.113.7".parse::<std::net::IpAddr>().unwrap());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    trusted: Vec<Network>,
    trusts_unix: bool,
    reads: ForwardedBy,
}

impl Network {
    /// Reads a network; `None` if `text` is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(width), |bits| bits.parse().ok().filter(|bits| *bits <= width))?;
        // An IPv4-mapped address is compared as IPv4, so an IPv4-mapped network would never match.
        (address.to_canonical() == address).then_some(Self { address, bits })
    }

    /// Whether an address lies in it; one that is mapped into IPv6 counts as the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
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

impl Proxies {
    /// Trusts these networks, whose proxies report their clients in this field.
    #[must_use]
    pub fn new(trusted: impl IntoIterator<Item = Network>, reads: ForwardedBy) -> Self {
        Self { trusted: trusted.into_iter().collect(), trusts_unix: false, reads }
    }

    /// Trusts every peer that connects over a Unix socket, which has no address. Default: none of them.
    #[must_use]
    pub fn trust_unix(mut self, trusts_unix: bool) -> Self {
        self.trusts_unix = trusts_unix;
        self
    }

    /// Whether a peer is a trusted proxy; one that connects over a Unix socket has no address.
    #[must_use]
    pub fn trusts_peer(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.trusts_unix, |peer| self.trusts(peer))
    }

    /// Whether a connection from `peer` is one of a trusted proxy.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }

    /// Returns the address of the client whose request came over a connection from `peer`, which has none over a Unix
    /// socket. A reported address without a port has port 0.
    #[must_use]
    pub fn client(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<SocketAddr> {
        if !self.trusts_peer(peer.map(|peer| peer.ip())) {
            return peer;
        }
        match self.reads {
            ForwardedBy::XRealIp => self.reported_once(peer, headers),
            ForwardedBy::XForwardedFor => {
                self.first_other(peer, lines(headers, &X_FORWARDED_FOR).flat_map(|line| line.rsplit(',')))
            }
            ForwardedBy::Forwarded => {
                let elements =
                    lines(headers, &FORWARDED).flat_map(|line| split(line, b',').into_iter().rev());
                self.first_other(peer, elements.map(|element| forwarded_for(element).unwrap_or("unknown")))
            }
        }
    }

    /// Follows the entries from the nearest proxy to the first address that is none of a trusted proxy.
    fn first_other<'a>(
        &self,
        peer: Option<SocketAddr>,
        entries: impl Iterator<Item = &'a str>,
    ) -> Option<SocketAddr> {
        let mut client = peer;
        for entry in entries {
            let Some(address) = address(entry) else { break };
            client = Some(address);
            if !self.trusts(address.ip()) {
                break;
            }
        }
        client
    }

    /// Several fields are the client's doing: a proxy replaces them.
    fn reported_once(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<SocketAddr> {
        let mut all = lines(headers, &X_REAL_IP);
        match (all.next().and_then(address), all.next()) {
            (Some(reported), None) => Some(reported),
            _ => peer,
        }
    }
}

/// The lines of a field, the last one first. A line that is no text is an entry that is no address.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    headers.get_all(name).iter().rev().map(|line| line.to_str().unwrap_or("unknown"))
}

/// Reads an address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn address(entry: &str) -> Option<SocketAddr> {
    let entry = entry.trim();
    let bracketed = || entry.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let alone = entry.parse().ok().or_else(bracketed).map(|ip: IpAddr| SocketAddr::new(ip, 0));
    let address = alone.or_else(|| entry.parse().ok())?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Returns the `for` parameter of an element of `Forwarded`, without quotes.
fn forwarded_for(element: &str) -> Option<&str> {
    let mut pairs = split(element, b';').into_iter().filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// Splits at `separator` outside quoted strings.
fn split(text: &str, separator: u8) -> Vec<&str> {
    let (mut parts, mut from, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if byte == separator && !is_quoted => {
                parts.push(text.get(from..at).unwrap_or_default());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(from..).unwrap_or_default());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client of a request from 10.0.0.1, where 10.0.0.0/8 and 2001:db8:1::/48 are trusted.
    fn client(reads: ForwardedBy, fields: &[(&'static str, &'static str)]) -> String {
        client_from("10.0.0.1:5000", reads, fields)
    }

    fn client_from(peer: &str, reads: ForwardedBy, fields: &[(&'static str, &'static str)]) -> String {
        let trusted = ["10.0.0.0/8", "2001:db8:1::/48"].map(|network| Network::parse(network).unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Proxies::new(trusted, reads).client(peer.parse().ok(), &headers).unwrap().to_string()
    }

    #[test]
    fn a_network_contains_the_addresses_that_begin_with_its_bits() {
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

    #[test]
    fn the_rightmost_address_that_is_no_trusted_proxy_is_the_client() {
        for (fields, expected) in [
            (&[("x-forwarded-for", "203.0.113.7")][..], "203.0.113.7:0"),
            (&[("x-forwarded-for", "198.51.100.1, 203.0.113.7")], "203.0.113.7:0"),
            (&[("x-forwarded-for", "198.51.100.1, 203.0.113.7,10.0.0.2 , 10.1.1.1")], "203.0.113.7:0"),
            (&[("x-forwarded-for", "203.0.113.7"), ("x-forwarded-for", "10.0.0.2")], "203.0.113.7:0"),
            (&[("x-forwarded-for", "203.0.113.7:4711")], "203.0.113.7:4711"),
            (&[("x-forwarded-for", "2001:db8::7, 2001:db8:1::1")], "[2001:db8::7]:0"),
            (&[("x-forwarded-for", "[2001:db8::7]:4711")], "[2001:db8::7]:4711"),
            (&[("x-forwarded-for", "::ffff:203.0.113.7")], "203.0.113.7:0"),
            // All are trusted: the farthest of them.
            (&[("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3:0"),
        ] {
            assert_eq!(client(ForwardedBy::XForwardedFor, fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_reading_at_the_proxy_that_added_it() {
        for (fields, expected) in [
            (&[][..], "10.0.0.1:5000"),
            (&[("x-forwarded-for", "")], "10.0.0.1:5000"),
            (&[("x-forwarded-for", "unknown")], "10.0.0.1:5000"),
            (&[("x-forwarded-for", "203.0.113.7, unknown, 10.0.0.2")], "10.0.0.2:0"),
            (&[("x-forwarded-for", "203.0.113.7, 10.0.0.2,")], "10.0.0.1:5000"),
            (&[("x-forwarded-for", "203.0.113.7"), ("x-forwarded-for", "\u{e9}")], "10.0.0.1:5000"),
            (&[("forwarded", "for=203.0.113.7"), ("x-real-ip", "203.0.113.7")], "10.0.0.1:5000"),
        ] {
            assert_eq!(client(ForwardedBy::XForwardedFor, fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_peer_that_is_not_trusted_is_the_client_whatever_it_claims() {
        let claims = [
            ("x-forwarded-for", "203.0.113.7"),
            ("forwarded", "for=203.0.113.7"),
            ("x-real-ip", "203.0.113.7"),
        ];
        for reads in [ForwardedBy::XForwardedFor, ForwardedBy::Forwarded, ForwardedBy::XRealIp] {
            assert_eq!(client_from("192.0.2.1:80", reads, &claims), "192.0.2.1:80");
            assert_eq!(client_from("[::ffff:10.0.0.1]:80", reads, &claims), "203.0.113.7:0");
        }
        let none = Proxies::default();
        assert!(!none.trusts([127, 0, 0, 1].into()));
    }

    #[test]
    fn a_peer_of_a_unix_socket_is_trusted_by_choice() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", http::HeaderValue::from_static("203.0.113.7"));
        let client = |trusts: bool| Proxies::default().trust_unix(trusts).client(None, &headers);
        assert_eq!(client(true).map(|client| client.to_string()).as_deref(), Some("203.0.113.7:0"));
        assert_eq!(client(false), None);
    }

    #[test]
    fn the_elements_of_forwarded_are_read_as_rfc_7239_writes_them() {
        for (line, expected) in [
            ("for=203.0.113.7", "203.0.113.7:0"),
            ("For=203.0.113.7;proto=http;by=10.0.0.1", "203.0.113.7:0"),
            ("proto=https ; for=\"203.0.113.7:47011\"", "203.0.113.7:47011"),
            ("for=198.51.100.1, for=\"[2001:db8::7]\"", "[2001:db8::7]:0"),
            ("for=\"[2001:db8::7]:4711\", for=10.0.0.2", "[2001:db8::7]:4711"),
            ("for=203.0.113.7;by=\"a,b;for=1.2.3.4\"", "203.0.113.7:0"),
            ("for=203.0.113.7;by=\"\\\",for=1.2.3.4\"", "203.0.113.7:0"),
            ("for=203.0.113.7, for=unknown", "10.0.0.1:5000"),
            ("for=203.0.113.7, for=_hidden, for=10.0.0.2", "10.0.0.2:0"),
            ("for=203.0.113.7, proto=http", "10.0.0.1:5000"),
            ("for=\"203.0.113.7", "10.0.0.1:5000"),
        ] {
            assert_eq!(client(ForwardedBy::Forwarded, &[("forwarded", line)]), expected, "{line}");
        }
    }

    #[test]
    fn x_real_ip_counts_if_there_is_exactly_one() {
        let one = [("x-real-ip", "203.0.113.7"), ("x-forwarded-for", "198.51.100.1")];
        assert_eq!(client(ForwardedBy::XRealIp, &one), "203.0.113.7:0");
        let two = [("x-real-ip", "203.0.113.7"), ("x-real-ip", "198.51.100.1")];
        assert_eq!(client(ForwardedBy::XRealIp, &two), "10.0.0.1:5000");
        assert_eq!(client(ForwardedBy::XRealIp, &[("x-real-ip", "a, b")]), "10.0.0.1:5000");
    }
}
