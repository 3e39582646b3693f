//! A client's request as it is passed on: where to, with which fields, and whose word is taken for who is behind it.
//!
//! Anybody can write a field. What tells of the client (`X-Forwarded-For` and its kin) is therefore taken from listed
//! proxies only, and taken out of every other request; the backend may then believe what it gets.

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

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

/// How requests are passed on.
pub(crate) struct Forwarding {
    pub(crate) upstream: Uri,
    /// What the backend gets as Host; `None`: what the client sent.
    pub(crate) host: Option<HeaderValue>,
    /// Fields that each request to the backend has, instead of the client's of the same name.
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
    /// Whose word is taken for who the client is.
    pub(crate) trusted_proxies: Vec<Network>,
}

/// What a request asks for, as `X-Forwarded-Proto` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    WebSocket,
    Http,
}

impl Forwarding {
    /// The client's path and query behind the backend's path. `/` is the backend's path itself.
    ///
    /// # Errors
    /// They cannot stand there, or the path might lead out of the backend's.
    pub(crate) fn target(&self, requested: &Uri) -> Result<PathAndQuery, String> {
        let prefix = self.upstream.path();
        let path = requested.path_and_query().map_or("/", PathAndQuery::as_str);
        if prefix == "/" || prefix.is_empty() {
            return path.parse().map_err(|_| "the path cannot be forwarded".to_owned());
        }
        if !path.starts_with('/') {
            return Err("the request's target must be a path".to_owned());
        }
        if climbs(requested.path()) {
            return Err("the path must not have a part that is `..`".to_owned());
        }
        let joined = match requested.path() {
            "/" => format!("{prefix}{}", path.trim_start_matches('/')),
            _ => format!("{}{path}", prefix.trim_end_matches('/')),
        };
        joined.parse().map_err(|_| "the path cannot be forwarded".to_owned())
    }

    /// The same as a whole URL.
    ///
    /// # Errors
    /// As [`target`](Self::target).
    pub(crate) fn url(&self, requested: &Uri) -> Result<Uri, String> {
        let mut parts = self.upstream.clone().into_parts();
        parts.path_and_query = Some(self.target(requested)?);
        Uri::from_parts(parts).map_err(|_| "the path cannot be forwarded".to_owned())
    }

    /// The client's fields, without those that speak of its own connection, and with those that tell the backend who
    /// is behind it. `peer` is who connected.
    pub(crate) fn fields(&self, asked: &HeaderMap, peer: Option<SocketAddr>, scheme: Scheme) -> HeaderMap {
        let peer = peer.map(|peer| peer.ip().to_canonical());
        let is_believed =
            peer.is_some_and(|peer| self.trusted_proxies.iter().any(|network| network.contains(peer)));
        let mut fields = HeaderMap::with_capacity(asked.len() + 4);
        let host = asked.get(header::HOST);
        if let Some(host) = self.host.as_ref().or(host).cloned().or_else(|| self.own_host()) {
            fields.insert(header::HOST, host);
        }
        // A proxy that passes its clients' `Connection` on would have them say what of its own word is taken away.
        let listed = if is_believed { Vec::new() } else { connection_options(asked) };
        for (name, value) in asked {
            let is_hop_by_hop = is_hop_by_hop(name)
                || listed.iter().any(|listed| listed.eq_ignore_ascii_case(name.as_str()))
                    && !is_end_to_end(name);
            let is_claim = !is_believed && tells_of_client(name);
            if !is_hop_by_hop && !is_claim && !is_disguised(name) && *name != FOR && *name != header::HOST {
                fields.append(name, value.clone());
            }
        }
        if let Some(chain) = forwarded_for(asked, peer, is_believed) {
            fields.insert(FOR, chain);
        }
        if let Some(host) = host {
            fields.entry(HOST).or_insert_with(|| host.clone());
        }
        fields.entry(PROTO).or_insert(HeaderValue::from_static(match scheme {
            Scheme::WebSocket => "ws",
            Scheme::Http => "http",
        }));
        for (name, _) in &self.fields {
            fields.remove(name);
        }
        fields.extend(self.fields.iter().cloned());
        fields
    }

    fn own_host(&self) -> Option<HeaderValue> {
        self.upstream.authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok())
    }
}

/// One line, however many came: not every backend reads more.
fn forwarded_for(asked: &HeaderMap, peer: Option<IpAddr>, is_believed: bool) -> Option<HeaderValue> {
    let mut chain = String::new();
    let said = asked.get_all(FOR).iter().filter(|_| is_believed).filter_map(|hops| hops.to_str().ok());
    let peer = peer.map(|peer| peer.to_string());
    for hops in said.chain(peer.as_deref()) {
        if !chain.is_empty() {
            chain.push_str(", ");
        }
        chain.push_str(hops);
    }
    HeaderValue::try_from(chain).ok().filter(|chain| !chain.is_empty())
}

/// Takes out of an answer's fields what speaks of the connection to the backend.
pub(crate) fn response_fields(fields: &mut HeaderMap, status: StatusCode) {
    if fields.contains_key(header::TRANSFER_ENCODING) {
        // It was not read by the other one, which must not lead anybody else (RFC 9112 section 6.3).
        fields.remove(header::CONTENT_LENGTH);
    }
    // Of 426 it is what the client is asked for (RFC 9110 section 15.5.22).
    let required = fields.remove(header::UPGRADE).filter(|_| status == StatusCode::UPGRADE_REQUIRED);
    let listed: Vec<HeaderName> =
        connection_options(fields).into_iter().filter_map(|name| name.parse().ok()).collect();
    for name in listed.iter().filter(|name| !is_end_to_end(name)) {
        fields.remove(name);
    }
    for name in [&header::CONNECTION, &header::TRANSFER_ENCODING, &KEEP_ALIVE, &PROXY_CONNECTION] {
        fields.remove(name);
    }
    if let Some(required) = required {
        fields.insert(header::UPGRADE, required);
    }
}

/// Takes out of the fields of a 101 what the gateway says itself, besides what no 101 can have.
pub(crate) fn switching_fields(fields: &mut HeaderMap) {
    response_fields(fields, StatusCode::SWITCHING_PROTOCOLS);
    fields.remove(header::CONTENT_LENGTH);
    for name in
        [&header::SEC_WEBSOCKET_ACCEPT, &header::SEC_WEBSOCKET_PROTOCOL, &header::SEC_WEBSOCKET_EXTENSIONS]
    {
        fields.remove(name);
    }
}

/// The names that `Connection` lists, apart from those that are no fields.
fn connection_options(fields: &HeaderMap) -> Vec<&str> {
    let lines = fields.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let options = lines.flat_map(|line| line.split(',')).map(str::trim);
    let is_flag = |option: &str| {
        ["close", "keep-alive", "upgrade", "te"].iter().any(|flag| option.eq_ignore_ascii_case(flag))
    };
    options.filter(|option| !option.is_empty() && !is_flag(option)).collect()
}

/// Whether these fields say that the client takes trailers.
pub(crate) fn accepts_trailers(fields: &HeaderMap) -> bool {
    let lines = fields.get_all(header::TE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
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

/// Values as they came share the buffer of their whole request, which would live as long as a link that has them.
pub(crate) fn copied(fields: &HeaderMap) -> HeaderMap {
    let copy =
        |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    let mut copies = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        copies.append(name.clone(), copy(value));
    }
    copies
}

/// Only a proxy may say these.
fn tells_of_client(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "forwarded" | "x-real-ip") || name.starts_with("x-forwarded-")
}

/// The same with `_`, which CGI and its heirs read as `-`. No proxy writes it so.
fn is_disguised(name: &HeaderName) -> bool {
    let plain = name.as_str().contains('_').then(|| name.as_str().replace('_', "-").parse());
    plain.is_some_and(|plain| plain.is_ok_and(|plain| tells_of_client(&plain)))
}

/// RFC 9110 section 7.6.1, what is answered here (Expect), and the opening handshake's own (RFC 6455 section 4.1).
/// `Trailer` is not one of them: it is of the message.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "expect"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    ) || name.as_str().starts_with("sec-websocket-")
}

/// What `Connection` must not take out: it is for the backend, which would decide otherwise without it.
fn is_end_to_end(name: &HeaderName) -> bool {
    let text = name.as_str();
    tells_of_client(name)
        || matches!(
            text,
            "host"
                | "cookie"
                | "authorization"
                | "origin"
                | "referer"
                | "user-agent"
                | "cache-control"
                | "trailer"
        )
        || matches!(text, "set-cookie" | "location" | "www-authenticate" | "date" | "vary")
        || ["content-", "sec-", "access-control-", "if-"].iter().any(|kin| text.starts_with(kin))
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

    fn to(upstream: &'static str, trusted: &[&str]) -> Forwarding {
        Forwarding {
            upstream: Uri::from_static(upstream),
            host: None,
            fields: Vec::new(),
            trusted_proxies: trusted.iter().map(|network| Network::parse(network).unwrap()).collect(),
        }
    }

    /// What of it tells of the client, as it is passed on.
    fn told(extra: &[(&'static str, &'static str)], peer: &str, trusted: &[&str]) -> Vec<String> {
        let forwarding = to("ws://backend", trusted);
        let headers = forwarding.fields(&asked(extra), Some(peer.parse().unwrap()), Scheme::WebSocket);
        let telling = headers.iter().filter(|(name, _)| tells_of_client(name) || name.as_str().contains('_'));
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
    fn what_speaks_of_the_clients_connection_is_not_forwarded() {
        let peer = Some(([127, 0, 0, 1], 5000).into());
        let headers = to("ws://backend", &[]).fields(&asked(&[]), peer, Scheme::WebSocket);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected =
            ["authorization", "cookie", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_a_client_claims_of_itself_is_not_passed_on() {
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

    fn join(upstream: &'static str, requested: &'static str) -> Result<String, String> {
        to(upstream, &[]).url(&Uri::from_static(requested)).map(|url| url.to_string())
    }

    #[test]
    fn the_clients_path_goes_behind_the_backends() {
        let check =
            |upstream, expected: &str| assert_eq!(join(upstream, "/room/7?user=x").unwrap(), expected);
        check("ws://backend:3000", "ws://backend:3000/room/7?user=x");
        check("ws://backend:3000/app/", "ws://backend:3000/app/room/7?user=x");
    }

    #[test]
    fn the_root_is_the_backends_path_itself() {
        let check = |upstream, requested, expected: &str| {
            assert_eq!(join(upstream, requested).unwrap(), expected, "{upstream} {requested}");
        };
        check("ws://b/ws", "/", "ws://b/ws");
        check("ws://b/ws", "/?a=1", "ws://b/ws?a=1");
        check("ws://b/ws/", "/", "ws://b/ws/");
        check("ws://b/ws/", "/?a=1", "ws://b/ws/?a=1");
        check("ws://b/a/b", "/", "ws://b/a/b");
        check("ws://b", "/?a=1", "ws://b/?a=1");
        check("ws://b/ws", "//", "ws://b/ws//");
        check("ws://b/ws", "/ws", "ws://b/ws/ws");
        assert!(join("ws://b/ws", "*").is_err());
    }

    #[test]
    fn connection_takes_out_nothing_that_is_for_the_backend() {
        let all = "Upgrade, X-Real-IP, x-forwarded-proto, X-Forwarded-For, Forwarded, Cookie, Authorization, Host, X-Mine";
        let asked = asked(&[
            ("connection", all),
            ("x-real-ip", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-proto", "https"),
        ]);
        let fields = |trusted: &[&str]| {
            to("ws://backend", trusted).fields(&asked, Some(([192, 0, 2, 7], 1).into()), Scheme::Http)
        };
        let (believed, other) = (fields(&["192.0.2.7"]), fields(&[]));
        for (name, value) in
            [("x-real-ip", "10.0.0.1"), ("forwarded", "for=10.0.0.1"), ("x-forwarded-proto", "https")]
        {
            assert_eq!(believed[name], value);
        }
        // Nor anything else that the proxy says, for example who the user is.
        assert_eq!(believed["x-mine"], "hop");
        assert_eq!(
            (&other["cookie"], &other["authorization"], &other["host"]),
            (&"a=b".parse().unwrap(), &"Bearer t".parse().unwrap(), &"example.com".parse().unwrap())
        );
        assert_eq!(
            (other["x-forwarded-proto"].as_bytes(), other.get("x-mine"), other.get("x-real-ip")),
            (&b"http"[..], None, None)
        );
    }

    #[test]
    fn the_host_is_kept_or_replaced_and_there_is_one_for_http_1_0() {
        let mut forwarding = to("ws://backend:3000", &[]);
        let host = |forwarding: &Forwarding, asked: &HeaderMap| {
            let fields = forwarding.fields(asked, None, Scheme::Http);
            (fields["host"].clone(), fields.get("x-forwarded-host").cloned())
        };
        let named = HeaderValue::from_static("example.com");
        assert_eq!(host(&forwarding, &asked(&[])), (named.clone(), Some(named.clone())));
        let own = HeaderValue::from_static("backend:3000");
        assert_eq!(host(&forwarding, &HeaderMap::new()), (own, None));
        let other = HeaderValue::from_static("other");
        forwarding.host = Some(other.clone());
        assert_eq!(host(&forwarding, &asked(&[])), (other, Some(named)));
    }

    #[test]
    fn the_operators_fields_replace_the_clients() {
        let field = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut forwarding = to("ws://backend", &[]);
        forwarding.fields = vec![field("cookie", "mine"), field("x-a", "1"), field("x-a", "2")];
        let fields = forwarding.fields(&asked(&[("x-a", "0")]), None, Scheme::Http);
        let values = |name: &str| fields.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert!(values("cookie") == ["mine"] && values("x-a") == ["1", "2"], "{fields:?}");
    }

    #[test]
    fn an_answer_loses_what_speaks_of_the_backends_connection() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Hop, Set-Cookie"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "h2c"),
            ("set-cookie", "a=b"),
            ("trailer", "x-sum"),
            ("date", "today"),
        ] {
            fields.append(name, value.parse().unwrap());
        }
        let mut required = fields.clone();
        response_fields(&mut fields, StatusCode::OK);
        let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["date", "set-cookie", "trailer"]);
        response_fields(&mut required, StatusCode::UPGRADE_REQUIRED);
        assert_eq!(required["upgrade"], "h2c");
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
