//! A client's request as it is forwarded: its target, its fields, and the fields that describe the client.
//!
//! Any client can send any field. Fields that describe the client (`X-Forwarded-For` and its like) are therefore accepted
//! from trusted proxies only and removed from every other request, so that the backend can trust them.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Extensions, StatusCode};
use mainstay::server::{Encrypted, Proxies};

use crate::clients::client_tls;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
/// The part of the path that was removed, as other proxies name it.
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// How requests are forwarded.
pub(crate) struct Forwarding {
    pub(crate) upstream: Uri,
    /// Removed from the beginning of the client's path; no slash at its end.
    pub(crate) strips: Option<Box<str>>,
    /// The Host header for the backend; `None`: the client's.
    pub(crate) host: Option<HeaderValue>,
    /// Fields to set on every request; they replace the client's of the same name.
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
    /// The proxies whose fields about the client are accepted.
    pub(crate) proxies: Proxies,
}

/// The scheme of a request, for `X-Forwarded-Proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    WebSocket,
    Http,
    SecureWebSocket,
    SecureHttp,
}

impl Scheme {
    /// Returns the scheme over TLS, if the client's connection is encrypted.
    pub(crate) fn seen_by_client(self, extensions: &Extensions) -> Self {
        match self {
            _ if extensions.get::<Encrypted>().is_none() => self,
            Self::WebSocket | Self::SecureWebSocket => Self::SecureWebSocket,
            Self::Http | Self::SecureHttp => Self::SecureHttp,
        }
    }
}

impl Forwarding {
    /// Appends the client's path and query to the backend's path. `/` is the backend's path itself.
    ///
    /// # Errors
    /// The result is no valid target, or the path might lead out of the backend's.
    pub(crate) fn target(&self, requested: &Uri) -> Result<PathAndQuery, String> {
        let prefix = self.upstream.path();
        let stripped = match &self.strips {
            Some(own) => Some(stripped(requested, own).ok_or("the path cannot be forwarded")?),
            None => None,
        };
        let requested = stripped.as_ref().unwrap_or(requested);
        let path = requested.path_and_query().map_or("/", PathAndQuery::as_str);
        if prefix == "/" || prefix.is_empty() {
            return path.parse().map_err(|_| "the path cannot be forwarded".to_owned());
        }
        if !path.starts_with('/') {
            return Err("the request's target must be a path".to_owned());
        }
        if climbs(requested.path()) {
            return Err("the path must not contain the segment `..`".to_owned());
        }
        let joined = match requested.path() {
            "/" => format!("{prefix}{}", path.trim_start_matches('/')),
            _ => format!("{}{path}", prefix.trim_end_matches('/')),
        };
        joined.parse().map_err(|_| "the path cannot be forwarded".to_owned())
    }

    /// Returns the same as an absolute URL.
    ///
    /// # Errors
    /// As [`target`](Self::target).
    pub(crate) fn url(&self, requested: &Uri) -> Result<Uri, String> {
        let mut parts = self.upstream.clone().into_parts();
        parts.path_and_query = Some(self.target(requested)?);
        Uri::from_parts(parts).map_err(|_| "the path cannot be forwarded".to_owned())
    }

    /// Returns the fields for the backend: the client's without hop-by-hop fields, plus those that describe the client.
    /// `peer` is the address that connected.
    pub(crate) fn fields(&self, asked: &HeaderMap, peer: Option<SocketAddr>, scheme: Scheme) -> HeaderMap {
        let peer = peer.map(|peer| peer.ip().to_canonical());
        let is_trusted = self.proxies.trusts_peer(peer);
        let mut fields = HeaderMap::with_capacity(asked.len() + 4);
        let host = asked.get(header::HOST);
        if let Some(host) = self.host.as_ref().or(host).cloned().or_else(|| self.own_host()) {
            fields.insert(header::HOST, host);
        }
        // A proxy that forwards its client's `Connection` would let the client remove the proxy's own fields.
        let listed = if is_trusted { Vec::new() } else { connection_options(asked) };
        for (name, value) in asked {
            let is_hop_by_hop = is_hop_by_hop(name)
                || listed.iter().any(|listed| listed.eq_ignore_ascii_case(name.as_str()))
                    && !is_end_to_end(name);
            let is_claim = !is_trusted && describes_client(name);
            if !is_hop_by_hop && !is_claim && !is_disguised(name) && *name != FOR && *name != header::HOST {
                fields.append(name, value.clone());
            }
        }
        if let Some(chain) = forwarded_for(asked, peer, is_trusted) {
            fields.insert(FOR, chain);
        }
        if let Some(host) = host {
            fields.entry(HOST).or_insert_with(|| host.clone());
        }
        fields.entry(PROTO).or_insert(HeaderValue::from_static(match scheme {
            Scheme::WebSocket => "ws",
            Scheme::Http => "http",
            Scheme::SecureWebSocket => "wss",
            Scheme::SecureHttp => "https",
        }));
        if let Some(prefix) = self.strips.as_deref().and_then(|own| HeaderValue::try_from(own).ok()) {
            fields.insert(PREFIX, prefix);
        }
        for (name, _) in &self.fields {
            fields.remove(name);
        }
        fields.extend(self.fields.iter().cloned());
        fields
    }

    /// Removes what a client says about itself and only a trusted proxy may say.
    pub(crate) fn remove_claims(&self, asked: &mut HeaderMap, peer: Option<SocketAddr>) {
        if self.proxies.trusts_peer(peer.map(|peer| peer.ip().to_canonical())) {
            return;
        }
        let is_claim = |name: &&HeaderName| describes_client(name) || is_disguised(name);
        let claims: Vec<HeaderName> = asked.keys().filter(is_claim).cloned().collect();
        claims.iter().for_each(|name| drop(asked.remove(name)));
    }

    fn own_host(&self) -> Option<HeaderValue> {
        self.upstream.authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok())
    }
}

/// Adds the certificate that the client presented to this gateway, in place of what a proxy in front says of one.
pub(crate) fn describe_certificate(extensions: &Extensions, fields: &mut HeaderMap) {
    if let Some(certificate) = client_tls::client_cert(extensions) {
        fields.remove(CLIENT_CERT_CHAIN);
        fields.insert(CLIENT_CERT, certificate);
    }
}

/// Returns `X-Forwarded-For` as one line: not every backend reads several.
fn forwarded_for(asked: &HeaderMap, peer: Option<IpAddr>, is_trusted: bool) -> Option<HeaderValue> {
    let mut chain = String::new();
    let claimed = asked.get_all(FOR).iter().filter(|_| is_trusted).filter_map(|hops| hops.to_str().ok());
    let peer = peer.map(|peer| peer.to_string());
    for hops in claimed.chain(peer.as_deref()) {
        if !chain.is_empty() {
            chain.push_str(", ");
        }
        chain.push_str(hops);
    }
    HeaderValue::try_from(chain).ok().filter(|chain| !chain.is_empty())
}

/// Removes the hop-by-hop fields of a response.
pub(crate) fn response_fields(fields: &mut HeaderMap, status: StatusCode) {
    if fields.contains_key(header::TRANSFER_ENCODING) {
        // The body was read by its chunks; the other length must not mislead the client (RFC 9112 section 6.3).
        fields.remove(header::CONTENT_LENGTH);
    }
    // In a 426 response, `Upgrade` names the required protocol (RFC 9110 section 15.5.22).
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

/// Removes the fields of a 101 that the gateway sets itself, and those that a 101 cannot have.
pub(crate) fn switching_fields(fields: &mut HeaderMap) {
    response_fields(fields, StatusCode::SWITCHING_PROTOCOLS);
    fields.remove(header::CONTENT_LENGTH);
    for name in
        [&header::SEC_WEBSOCKET_ACCEPT, &header::SEC_WEBSOCKET_PROTOCOL, &header::SEC_WEBSOCKET_EXTENSIONS]
    {
        fields.remove(name);
    }
}

/// Returns the field names that `Connection` lists; options such as `close` are left out.
fn connection_options(fields: &HeaderMap) -> Vec<&str> {
    let lines = fields.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let options = lines.flat_map(|line| line.split(',')).map(str::trim);
    let is_flag = |option: &str| {
        ["close", "keep-alive", "upgrade", "te"].iter().any(|flag| option.eq_ignore_ascii_case(flag))
    };
    options.filter(|option| !option.is_empty() && !is_flag(option)).collect()
}

/// Returns whether the client accepts trailers.
pub(crate) fn accepts_trailers(fields: &HeaderMap) -> bool {
    let lines = fields.get_all(header::TE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Returns a target without `own` at the beginning of its path.
fn stripped(requested: &Uri, own: &str) -> Option<Uri> {
    let rest = requested.path().strip_prefix(own).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    let path = if rest.is_empty() { "/" } else { rest };
    let query = requested.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{path}{query}").parse().ok()
}

/// Returns whether a backend may read a segment of this path as `..`: some backends decode the path first, treat `\` as
/// `/`, or cut a segment at `;`.
pub(crate) fn climbs(path: &str) -> bool {
    let decoded = decode(path.as_bytes());
    let parts = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    parts.map(|part| part.split(|byte| *byte == b';').next()).any(|part| part == Some(b".."))
}

pub(crate) fn decode(mut path: &[u8]) -> Vec<u8> {
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

/// Copies the values. The originals share the buffer of the whole request, which would live as long as the link.
pub(crate) fn copied(fields: &HeaderMap) -> HeaderMap {
    let copy =
        |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    let mut copies = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        copies.append(name.clone(), copy(value));
    }
    copies
}

/// Returns whether a field describes the client; only a trusted proxy may send it.
pub(crate) fn describes_client(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "client-cert" | "client-cert-chain" | "forwarded" | "x-real-ip")
        || name.starts_with("x-forwarded-")
}

/// Returns whether a field is one of these with `_` for `-`, which CGI treats as the same. No proxy writes it that way.
fn is_disguised(name: &HeaderName) -> bool {
    let plain = name.as_str().contains('_').then(|| name.as_str().replace('_', "-").parse());
    plain.is_some_and(|plain| plain.is_ok_and(|plain| describes_client(&plain)))
}

/// Returns whether a field is hop-by-hop: those of RFC 9110 section 7.6.1, `Expect`, which the gateway answers, and those of
/// the opening handshake (RFC 6455 section 4.1). `Trailer` is not hop-by-hop: it belongs to the message.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
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

/// Returns whether a field must reach the backend even if `Connection` lists it: without it the backend would decide
/// differently.
fn is_end_to_end(name: &HeaderName) -> bool {
    let text = name.as_str();
    describes_client(name)
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
    use mainstay::server::{ForwardedBy, Network};

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
            strips: None,
            host: None,
            fields: Vec::new(),
            proxies: Proxies::new(
                trusted.iter().map(|network| Network::parse(network).unwrap()),
                ForwardedBy::default(),
            ),
        }
    }

    /// The forwarded fields that describe the client.
    fn described(extra: &[(&'static str, &'static str)], peer: &str, trusted: &[&str]) -> Vec<String> {
        let forwarding = to("ws://backend", trusted);
        let headers = forwarding.fields(&asked(extra), Some(peer.parse().unwrap()), Scheme::WebSocket);
        let describing =
            headers.iter().filter(|(name, _)| describes_client(name) || name.as_str().contains('_'));
        let mut found: Vec<_> =
            describing.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        found.sort_unstable();
        found
    }

    const OURS: [&str; 3] =
        ["x-forwarded-for: 192.0.2.7", "x-forwarded-host: example.com", "x-forwarded-proto: ws"];
    const CLAIMED: [(&str, &str); 11] = [
        ("client-cert", ":Zm9yZ2Vk:"),
        ("client-cert-chain", ":Zm9yZ2Vk:"),
        ("client_cert", ":Zm9yZ2Vk:"),
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
    fn hop_by_hop_fields_are_not_forwarded() {
        let peer = Some(([127, 0, 0, 1], 5000).into());
        let headers = to("ws://backend", &[]).fields(&asked(&[]), peer, Scheme::WebSocket);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected =
            ["authorization", "cookie", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(names, expected);
    }

    #[test]
    fn fields_that_a_client_claims_about_itself_are_not_forwarded() {
        assert_eq!(described(&[], "192.0.2.7:5000", &[]), OURS);
        assert_eq!(described(&CLAIMED, "192.0.2.7:5000", &[]), OURS);
        assert_eq!(described(&CLAIMED, "192.0.2.7:5000", &["192.0.2.8", "10.0.0.0/8"]), OURS);
        assert_eq!(described(&CLAIMED, "[::ffff:192.0.2.7]:5000", &[]), OURS);
    }

    #[test]
    fn the_fields_of_a_trusted_proxy_are_forwarded_and_its_address_is_added() {
        let expected = [
            "client-cert-chain: :Zm9yZ2Vk:",
            "client-cert: :Zm9yZ2Vk:",
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
            assert_eq!(described(&CLAIMED, peer, &[network]), expected, "{peer} {network}");
        }
        assert_eq!(described(&[], "192.0.2.7:5000", &["192.0.2.7"]), OURS);
    }

    fn joined(upstream: &'static str, requested: &'static str) -> Result<String, String> {
        to(upstream, &[]).url(&Uri::from_static(requested)).map(|url| url.to_string())
    }

    #[test]
    fn the_path_of_a_route_is_removed_and_reported() {
        let forwarding = Forwarding { strips: Some("/chat".into()), ..to("ws://backend/app", &[]) };
        for (requested, expected) in [
            ("/chat", "/app"),
            ("/chat/", "/app"),
            ("/chat/room?a=b", "/app/room?a=b"),
            ("/chat?a=b", "/app?a=b"),
        ] {
            assert_eq!(forwarding.target(&Uri::from_static(requested)).unwrap(), expected, "{requested}");
        }
        for wrong in ["/chatter", "/%63hat", "/"] {
            assert!(forwarding.target(&Uri::from_static(wrong)).is_err(), "{wrong}");
        }
        let root = Forwarding { strips: Some("".into()), ..to("ws://backend", &[]) };
        assert_eq!(root.target(&Uri::from_static("/a?b")).unwrap(), "/a?b");
        let fields = forwarding.fields(&asked(&[("x-forwarded-prefix", "/forged")]), None, Scheme::Http);
        assert_eq!(fields.get_all(PREFIX).iter().collect::<Vec<_>>(), ["/chat"]);
    }

    #[test]
    fn the_clients_path_is_appended_to_the_backends() {
        let check =
            |upstream, expected: &str| assert_eq!(joined(upstream, "/room/7?user=x").unwrap(), expected);
        check("ws://backend:3000", "ws://backend:3000/room/7?user=x");
        check("ws://backend:3000/app/", "ws://backend:3000/app/room/7?user=x");
    }

    #[test]
    fn the_root_is_the_backends_path_itself() {
        let check = |upstream, requested, expected: &str| {
            assert_eq!(joined(upstream, requested).unwrap(), expected, "{upstream} {requested}");
        };
        check("ws://b/ws", "/", "ws://b/ws");
        check("ws://b/ws", "/?a=1", "ws://b/ws?a=1");
        check("ws://b/ws/", "/", "ws://b/ws/");
        check("ws://b/ws/", "/?a=1", "ws://b/ws/?a=1");
        check("ws://b/a/b", "/", "ws://b/a/b");
        check("ws://b", "/?a=1", "ws://b/?a=1");
        check("ws://b/ws", "//", "ws://b/ws//");
        check("ws://b/ws", "/ws", "ws://b/ws/ws");
        assert!(joined("ws://b/ws", "*").is_err());
    }

    #[test]
    fn connection_removes_no_field_that_the_backend_relies_on() {
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
        let (trusted, other) = (fields(&["192.0.2.7"]), fields(&[]));
        for (name, value) in
            [("x-real-ip", "10.0.0.1"), ("forwarded", "for=10.0.0.1"), ("x-forwarded-proto", "https")]
        {
            assert_eq!(trusted[name], value);
        }
        // Other fields of the proxy stay too, for example the user's name.
        assert_eq!(trusted["x-mine"], "hop");
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
    fn the_host_is_kept_or_replaced_and_added_for_http_1_0() {
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
    fn a_response_loses_its_hop_by_hop_fields() {
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
            assert!(joined("ws://backend/app", path).is_err(), "{path}");
            assert_eq!(joined("ws://backend", path).unwrap(), format!("ws://backend{path}"));
        }
        for path in ["/...", "/a..b", "/..a", "/%2", "/a?x=/../b", "/%e2%82%ac"] {
            assert_eq!(joined("ws://backend/app", path).unwrap(), format!("ws://backend/app{path}"));
        }
    }
}
