//! Connections through a proxy by CONNECT, and which servers are reached directly.
//!
//! Source: RFC 9110 section 9.3.6; RFC 7617 (Basic); curl's rules for the environment.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, Uri};
use mainstay_proto::reach::{ConnectFailure, FailureKind};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::place::Server;
use super::rejection::{Head, read_head};
use super::{Failure, UrlError, UrlErrorKind};

/// A proxy through which servers are reached, by CONNECT: for `ws://` as for `wss://`, so that no proxy parses the
/// WebSocket.
///
/// ```
/// use mainstay::client::Proxy;
///
/// let proxy = Proxy::at("http://alice:secret@proxy.example:3128")?.except("localhost, .internal.example, 10.0.0.0/8");
/// # Ok::<(), mainstay::client::UrlError>(())
/// ```
#[derive(Clone, Default)]
pub struct Proxy {
    /// The proxy for `wss://`, and the one for `ws://`.
    secure: Option<Arc<At>>,
    plain: Option<Arc<At>>,
    except: Arc<[Except]>,
}

/// The address of a proxy, and the credentials for it.
pub(super) struct At {
    pub(super) server: Server,
    authorization: Option<String>,
}

impl Proxy {
    /// The proxy at `http://host:port`; the default port is 80. User and password in front of the host are sent as
    /// `Proxy-Authorization: Basic`; a character in them that is no letter or digit is written as `%40`.
    ///
    /// # Errors
    /// The URL has another form. (A proxy that speaks TLS itself, `https://`, is not supported, nor is SOCKS.)
    pub fn at(url: &str) -> Result<Self, UrlError> {
        let at = Arc::new(At::parse(url)?);
        Ok(Self { secure: Some(Arc::clone(&at)), plain: Some(at), except: Arc::default() })
    }

    /// Reads the proxies from the environment, by curl's rules: `https_proxy` for `wss://`, `http_proxy` for `ws://`,
    /// `all_proxy` for both, and `no_proxy` for servers that are reached directly. The names may be in capitals, except
    /// `HTTP_PROXY`, which the client of a CGI program can set. Without any of them all servers are reached directly.
    ///
    /// # Errors
    /// One of them is not a URL that [`at`](Self::at) accepts.
    pub fn from_environment() -> Result<Self, UrlError> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, UrlError> {
        let find = |names: &[&str]| {
            let found = names.iter().filter_map(|name| Some((*name, variable(name)?)));
            found.map(|(name, url)| (name.to_owned(), url.trim().to_owned())).find(|(_, url)| !url.is_empty())
        };
        let parse = |found: Option<(String, String)>| {
            found.map(|(name, url)| At::parse(&url).map_err(|error| error.found_in(&name)))
        };
        let secure = parse(find(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])).transpose()?;
        let plain = parse(find(&["http_proxy", "all_proxy", "ALL_PROXY"])).transpose()?;
        let proxy = Self { secure: secure.map(Arc::new), plain: plain.map(Arc::new), except: Arc::default() };
        Ok(match find(&["no_proxy", "NO_PROXY"]) {
            Some((_, list)) => proxy.except(&list),
            None => proxy,
        })
    }

    /// Lists servers that are reached directly, in the form of `NO_PROXY`, instead of those before: names, which include
    /// every name below them, addresses, networks as `10.0.0.0/8`, or `*` for all.
    #[must_use]
    pub fn except(self, list: &str) -> Self {
        let words = list.split([',', ' ']).filter(|word| !word.is_empty());
        Self { except: words.map(Except::parse).collect(), ..self }
    }

    /// The proxy for this server; `None`: the server is reached directly.
    pub(super) fn towards(&self, server: &Server) -> Option<&At> {
        let at = if server.secure { &self.secure } else { &self.plain };
        let is_direct = self.except.iter().any(|except| except.covers(&server.host));
        at.as_deref().filter(|_| !is_direct)
    }
}

impl std::fmt::Debug for Proxy {
    /// Shows no credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = |at: &Option<Arc<At>>| at.as_ref().map(|at| at.server.authority());
        f.debug_struct("Proxy")
            .field("secure", &host(&self.secure))
            .field("plain", &host(&self.plain))
            .finish_non_exhaustive()
    }
}

impl At {
    fn parse(text: &str) -> Result<Self, UrlError> {
        // The text may contain credentials: no error repeats it.
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if !scheme.eq_ignore_ascii_case("http") {
            let known = scheme.chars().all(|letter| letter.is_ascii_alphanumeric());
            let scheme = if known { scheme } else { "another scheme" };
            let words = format!("a proxy must be http://host:port; {scheme}:// is not supported");
            return Err(UrlError::new(UrlErrorKind::Proxy, words));
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let url: Uri = format!("http://{place}/").parse().map_err(|_| {
            let words = format!("a proxy must be http://host:port, and `{place}` is not host:port");
            UrlError::new(UrlErrorKind::Proxy, words)
        })?;
        let authorization = user.map(|user| format!("Basic {}", STANDARD.encode(decoded(user))));
        Ok(Self { server: Server::of(&url)?, authorization })
    }

    /// Opens a tunnel to the server on a connection to this proxy.
    pub(super) async fn tunnel(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        server: &Server,
    ) -> Result<(), ConnectFailure> {
        let proxy = self.server.authority();
        let failed = |why: Failure| {
            ConnectFailure::new(FailureKind::Proxy, why.context(&format!("the proxy {proxy}")))
        };
        let to = server.authority();
        let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| failed(error.into()))?;
        let Head { status, rest, .. } = read_head(stream).await.map_err(failed)?;
        match status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED if self.authorization.is_none() => {
                Err(failed("it asks for a user and a password (407)".into()))
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(failed("it refuses this user and password (407)".into()))
            }
            status if !status.is_success() => {
                Err(failed(format!("it answered {status} to CONNECT {to}").into()))
            }
            _ if !rest.is_empty() => Err(failed("it sent bytes of its own through the tunnel".into())),
            _ => Ok(()),
        }
    }
}

/// The text with `%` and two hexadecimal digits decoded.
fn decoded(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).filter(|_| *first == b'%');
        let byte = digits.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    out
}

/// Servers that are reached directly.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Except {
    All,
    /// A name and everything below it.
    Name(String),
    /// An address, and how many of its first bits count.
    Network(IpAddr, u32),
}

impl Except {
    fn parse(word: &str) -> Self {
        let bare = word.trim_start_matches('[').trim_end_matches(']');
        let (address, bits) = match bare.split_once('/') {
            Some((address, bits)) => (address, bits.parse().ok()),
            None => (bare, Some(128)),
        };
        match (word, address.parse(), bits) {
            ("*", ..) => Self::All,
            (_, Ok(address), Some(bits)) => Self::Network(address, bits),
            _ => Self::Name(word.trim_matches('.').to_ascii_lowercase()),
        }
    }

    fn covers(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Name(name) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                host.strip_suffix(name).is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            Self::Network(network, bits) => match (network, host.parse()) {
                (IpAddr::V4(network), Ok(IpAddr::V4(address))) => {
                    let ignored = 32_u32.saturating_sub(*bits);
                    let first = |address: u32| address.checked_shr(ignored).unwrap_or(0);
                    first(network.to_bits()) == first(address.to_bits())
                }
                (IpAddr::V6(network), Ok(IpAddr::V6(address))) => {
                    let ignored = 128_u32.saturating_sub(*bits);
                    let first = |address: u128| address.checked_shr(ignored).unwrap_or(0);
                    first(network.to_bits()) == first(address.to_bits())
                }
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn server(url: &str) -> Server {
        Server::of(&url.parse().unwrap()).unwrap()
    }

    fn towards(proxy: &Proxy, url: &str) -> Option<String> {
        proxy.towards(&server(url)).map(|at| at.server.authority())
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it() {
        let environment = |set: &[(&str, &str)]| {
            let set: Vec<_> =
                set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Proxy::of(move |name| set.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
        };
        let check = |set: &[(&str, &str)], secure: Option<&str>, plain: Option<&str>| {
            let proxy = environment(set).unwrap();
            let found = (towards(&proxy, "wss://h/"), towards(&proxy, "ws://h/"));
            assert_eq!((found.0.as_deref(), found.1.as_deref()), (secure, plain), "{set:?}");
        };
        check(&[], None, None);
        check(&[("HTTPS_PROXY", "http://p:3128")], Some("p:3128"), None);
        check(&[("https_proxy", "p:1"), ("HTTPS_PROXY", "q:2")], Some("p:1"), None);
        check(&[("https_proxy", " "), ("ALL_PROXY", "a")], Some("a:80"), Some("a:80"));
        check(&[("http_proxy", "http://p:1/")], None, Some("p:1"));
        check(&[("HTTP_PROXY", "http://p:1")], None, None);
        check(&[("all_proxy", "p:1"), ("no_proxy", "h")], None, None);
        let wrong = environment(&[("HTTPS_PROXY", "socks5://u:hunter2@p:1")]).unwrap_err().to_string();
        assert!(
            wrong.contains("HTTPS_PROXY") && wrong.contains("socks5") && !wrong.contains("hunter2"),
            "{wrong}"
        );
    }

    #[test]
    fn a_server_that_is_listed_is_reached_directly() {
        let check = |list: &str, host: &str, direct: bool| {
            let proxy = Proxy::at("http://p:1").unwrap().except(list);
            assert_eq!(towards(&proxy, &format!("wss://{host}/")).is_none(), direct, "{list}: {host}");
        };
        check("*", "anything.example", true);
        check("a.example, b.example", "B.example", true);
        check("example.com", "api.example.com", true);
        check(".example.com", "example.com", true);
        check("example.com", "notexample.com", false);
        check("10.0.0.0/8,192.0.2.1", "10.20.30.40", true);
        check("10.0.0.0/8,192.0.2.1", "192.0.2.1", true);
        check("10.0.0.0/8,192.0.2.1", "192.0.2.2", false);
        check("0.0.0.0/0", "192.0.2.2", true);
        check("2001:db8::/32", "[2001:db8::1]", true);
        check("2001:db8::/32", "[2001:db9::1]", false);
        check("", "a.example", false);
    }

    #[tokio::test]
    async fn a_tunnel_is_requested_with_the_credentials_of_the_url_and_a_refusal_is_reported() {
        let ask = async |url: &str, to: &str, answer: &'static str| {
            let (mut ours, mut theirs) = tokio::io::duplex(4096);
            let answering = tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let count = theirs.read(&mut head).await.unwrap();
                theirs.write_all(answer.as_bytes()).await.unwrap();
                String::from_utf8(head[..count].to_vec()).unwrap()
            });
            let outcome = At::parse(url).unwrap().tunnel(&mut ours, &server(to)).await;
            (answering.await.unwrap(), outcome.map_err(|failure| failure.to_string()))
        };
        let fine = "HTTP/1.1 200 Connection established\r\n\r\n";
        let (asked, outcome) = ask("http://alice:p%40ss@p:1", "wss://h.example/", fine).await;
        // `alice:p@ss`
        let head = "CONNECT h.example:443 HTTP/1.1\r\nHost: h.example:443\r\nProxy-Authorization: Basic YWxpY2U6cEBzcw==\r\n\r\n";
        assert_eq!((asked.as_str(), outcome), (head, Ok(())));
        let (asked, outcome) = ask("p:1", "ws://[::1]:9/", fine).await;
        assert_eq!((asked.as_str(), outcome), ("CONNECT [::1]:9 HTTP/1.1\r\nHost: [::1]:9\r\n\r\n", Ok(())));
        for (answer, words) in [
            ("HTTP/1.1 407 No\r\n\r\n", "the proxy p:1: it asks for a user"),
            ("HTTP/1.1 403 No\r\n\r\n", "it answered 403 Forbidden to CONNECT h:443"),
            ("HTTP/1.1 200 OK\r\n\r\nhello", "bytes of its own"),
            ("SSH-2.0\r\n", "no HTTP"),
        ] {
            let (_, outcome) = ask("http://p:1", "wss://h/", answer).await;
            assert!(outcome.as_ref().is_err_and(|why| why.contains(words)), "{outcome:?}");
        }
    }

    #[test]
    fn a_url_that_is_no_proxys_is_refused_and_its_secret_is_not_repeated() {
        for url in [
            "",
            "http://",
            "https://u:hunter2@p:1",
            "socks5h://p",
            "http://u:hunter2@p:x",
            "http://u:hunter2@",
        ] {
            let error = Proxy::at(url).expect_err(url).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", Proxy::at("http://u:hunter2@p:1").unwrap());
        assert!(shown.contains("p:1") && !shown.contains("hunter2"), "{shown}");
    }
}
