//! The address of a server, in the forms that users write.

use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

use super::{Failure, UrlError, UrlErrorKind, ascii};

/// The address of a server: a URL, and the Unix socket to connect to, if there is one.
///
/// It is parsed from `ws://host:port/path` or `wss://...` (`http` and `https` mean the same), or with a Unix socket from
/// `unix:/run/app.sock`, with the path of the request behind it as `unix:/run/app.sock:/path`. The forms of nginx
/// (`http://unix:/run/app.sock:/path`) and of Node (`ws+unix:/run/app.sock:/path`) are read, too; with `wss` or `https` in
/// front the socket carries TLS.
///
/// The URL is converted as browsers do it: a path and a query beyond ASCII, and their spaces, are percent-encoded, and with the feature
/// `idn` a host beyond ASCII gets its name that begins with `xn--`. Without the feature such a host is an error. A fragment is one, too:
/// a WebSocket sends none (RFC 6455 section 3).
///
/// ```
/// let place: mainstay::client::Place = "unix:/run/app.sock:/chat".parse()?;
/// assert_eq!(place.url, "ws://localhost/chat");
/// assert_eq!(place.socket.as_deref(), Some("/run/app.sock".as_ref()));
/// # Ok::<(), mainstay::client::UrlError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The URL of the request. With a Unix socket its host is `localhost`.
    pub url: Uri,
    /// The socket in the file system; `None`: TCP.
    pub socket: Option<PathBuf>,
}

impl FromStr for Place {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = with_small_scheme(text.trim_ascii());
        if let Some((secure, rest)) = unix(&text) {
            return Self::on_socket(secure, rest);
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Err(no_scheme(&text)) };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        without_credentials(authority)?;
        // A password with a slash ends what is taken for the authority, whose port is then a part of the password.
        if port_of(authority).is_some_and(|port| parse_port(port).is_none()) {
            without_credentials(rest)?;
        }
        let authority = ascii::authority(authority)?;
        if authority.is_empty() {
            return Err(no_host(&text));
        }
        let url = parsed(&format!("{scheme}://{authority}{}", in_ascii(path)?), &text)?;
        Server::of(&url)?;
        Ok(Self { url, socket: None })
    }
}

impl std::fmt::Display for Place {
    /// Writes a form that can be parsed again.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(socket) = &self.socket else { return self.url.fmt(f) };
        let scheme = if self.url.scheme_str() == Some("wss") { "wss+unix" } else { "unix" };
        write!(f, "{scheme}:{}", socket.display())?;
        match self.url.path_and_query().map_or("/", |path| path.as_str()) {
            "/" => Ok(()),
            path => write!(f, ":{path}"),
        }
    }
}

impl Place {
    /// Returns the host and the port that are looked up and dialled: without brackets, the interface of a link-local address as the
    /// system reads it (`fe80::1%eth0`), and the scheme's port if the URL names none.
    ///
    /// # Errors
    /// The URL, which a program may have built itself, is not one of a server.
    pub fn host_and_port(&self) -> Result<(String, u16), UrlError> {
        let Server { host, port, .. } = Server::of(&self.url)?;
        Ok((host, port))
    }

    /// Returns the `Host` field for the server, without the interface of a link-local address: that means something to this machine
    /// alone (RFC 6874 section 1).
    pub fn host_field(&self) -> String {
        host_field(&self.url)
    }

    fn on_socket(secure: bool, rest: &str) -> Result<Self, UrlError> {
        let (socket, path) = match rest.split_once(":/") {
            Some((socket, path)) => (socket, path),
            None => (rest.trim_end_matches(':'), ""),
        };
        if socket.is_empty() {
            let words = "the URL names no socket, for example unix:/run/app.sock";
            return Err(UrlError::new(UrlErrorKind::Socket, words));
        }
        // Usually it is too long: the system allows 107 bytes.
        std::os::unix::net::SocketAddr::from_pathname(socket).map_err(|error| {
            UrlError::new(UrlErrorKind::Socket, Failure::from(error).context(&format!("unix:{rest}")))
        })?;
        let scheme = if secure { "wss" } else { "ws" };
        let url = parsed(&format!("{scheme}://localhost/{}", in_ascii(path)?), &format!("unix:{rest}"))?;
        Ok(Self { url, socket: Some(PathBuf::from(socket)) })
    }
}

/// A path and its query in ASCII.
fn in_ascii(path: &str) -> Result<String, UrlError> {
    if path.contains('#') {
        let words = "the URL has a fragment, which is not sent: remove it, or write %23 where # is part of the path or the query";
        return Err(UrlError::new(UrlErrorKind::Syntax, words));
    }
    Ok(ascii::path_and_query(path))
}

fn parsed(url: &str, written: &str) -> Result<Uri, UrlError> {
    url.parse().map_err(|error: http::uri::InvalidUri| {
        let words = format!("{}: not a URL: {error}", shown(&written));
        UrlError::new(UrlErrorKind::Syntax, Failure::caused_by(error, words))
    })
}

/// The same text with its scheme in lower case: schemes are case-insensitive (RFC 3986 section 3.1).
fn with_small_scheme(text: &str) -> String {
    let end = text.find(':').filter(|end| text.get(..*end).is_some_and(is_scheme)).unwrap_or(0);
    let (scheme, rest) = text.split_at(end);
    let scheme = scheme.to_ascii_lowercase();
    // `HTTP://UNIX:` does not name a host; the socket follows.
    match rest.get(..8) {
        Some(behind) if behind.eq_ignore_ascii_case("://unix:") => {
            format!("{scheme}://unix:{}", rest.get(8..).unwrap_or_default())
        }
        _ => format!("{scheme}{rest}"),
    }
}

fn is_scheme(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// The text behind `unix:`, and whether the socket carries TLS.
fn unix(text: &str) -> Option<(bool, &str)> {
    const FORMS: [(&str, bool); 9] = [
        ("unix:", false),
        ("ws+unix:", false),
        ("wss+unix:", true),
        ("http+unix:", false),
        ("https+unix:", true),
        ("ws://unix:", false),
        ("wss://unix:", true),
        ("http://unix:", false),
        ("https://unix:", true),
    ];
    let found = FORMS.iter().find_map(|(form, secure)| Some((*secure, text.strip_prefix(form)?)));
    // `unix:///run/app.sock` has an empty host in front of its path.
    found.map(|(secure, rest)| {
        (secure, rest.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(rest))
    })
}

/// The server of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether it speaks TLS.
    pub(super) secure: bool,
}

impl Server {
    /// Host and port, in the form of CONNECT.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
    /// Checks a URL before anything is dialled.
    pub(super) fn of(url: &Uri) -> Result<Self, UrlError> {
        let authority = url.authority().map_or("", |authority| authority.as_str());
        without_credentials(authority)?;
        // A `Uri` of the application may have capitals here, and they mean the same (RFC 3986 section 3.1).
        let scheme = url.scheme_str().map(str::to_ascii_lowercase);
        let (secure, usual) = match scheme.as_deref() {
            Some("ws" | "http") => (false, 80),
            Some("wss" | "https") => (true, 443),
            _ => return Err(no_scheme(url)),
        };
        let host = url.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| no_host(url))?;
        // The interface of a link-local address is written `%25eth0` (RFC 6874), and the system reads `%eth0`.
        let host = host.trim_start_matches('[').trim_end_matches(']').replacen("%25", "%", 1);
        let port = match port_of(authority) {
            None | Some("") => usual,
            Some(port) => parse_port(port).ok_or_else(|| {
                let words = format!("{}: the port `{port}` is not a number from 1 to 65535", shown(url));
                UrlError::new(UrlErrorKind::Port, words)
            })?,
        };
        Ok(Self { host, port, secure })
    }
}

pub(super) fn host_field(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    match authority.split_once('%').and_then(|(address, rest)| Some((address, rest.split_once(']')?.1))) {
        Some((address, port)) => format!("{address}]{port}"),
        None => authority.to_owned(),
    }
}

fn without_credentials(authority: &str) -> Result<(), UrlError> {
    let Some((_, place)) = authority.rsplit_once('@') else { return Ok(()) };
    // The rest of the URL is a secret.
    let place = shown(&place);
    let words =
        format!("the URL of {place} has credentials, which are not sent: use a header, as `Authorization`");
    Err(UrlError::new(UrlErrorKind::Credentials, words))
}

fn no_scheme(url: &dyn std::fmt::Display) -> UrlError {
    let words =
        format!("{}: the URL must start with ws://, wss:// or unix:, as ws://127.0.0.1:3000", shown(url));
    UrlError::new(UrlErrorKind::Scheme, words)
}

fn no_host(url: &dyn std::fmt::Display) -> UrlError {
    UrlError::new(UrlErrorKind::NoHost, format!("{}: the URL names no host", shown(url)))
}

/// A URL for an error: in one line, without its query, in which tokens are common, and without what may be a password.
fn shown(url: &dyn std::fmt::Display) -> String {
    let url = url.to_string();
    let url = url.split('?').next().unwrap_or_default();
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("...@{}", rest.escape_debug()),
        None => url.escape_debug().to_string(),
    }
}

/// The port as it is written. `Uri` accepts any text there, and then has no port at all. An empty one is the
/// default (RFC 3986 section 3.2.3).
fn port_of(authority: &str) -> Option<&str> {
    let behind_ipv6 = authority.rsplit(']').next().unwrap_or_default();
    behind_ipv6.rsplit_once(':').map(|(_, port)| port)
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_may_have_the_forms_of_nginx_and_node() {
        let check = |text: &str, url: &str| {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.to_string().parse(), Ok(place.clone()), "{text}");
            assert_eq!(
                (place.url.to_string().as_str(), place.socket),
                (url, Some("/run/app.sock".into())),
                "{text}"
            );
        };
        check("unix:/run/app.sock", "ws://localhost/");
        check("unix:/run/app.sock:", "ws://localhost/");
        check("unix:/run/app.sock:/", "ws://localhost/");
        check("unix:/run/app.sock:/a/b?c=d:/e", "ws://localhost/a/b?c=d:/e");
        check("unix:///run/app.sock:/a", "ws://localhost/a");
        check("ws+unix:/run/app.sock:/a", "ws://localhost/a");
        check("ws+unix:///run/app.sock:/a", "ws://localhost/a");
        check("http://unix:/run/app.sock:/a", "ws://localhost/a");
        check("https://unix:/run/app.sock:/a", "wss://localhost/a");
        check("wss+unix:/run/app.sock", "wss://localhost/");
        check("UNIX:/run/app.sock", "ws://localhost/");
        check("Http://Unix:/run/app.sock:/A", "ws://localhost/A");
    }

    #[test]
    fn a_link_local_address_is_dialled_at_its_interface_which_the_server_does_not_learn() {
        let check = |text: &str, host: &str, port, field: &str| {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.host_and_port().unwrap(), (host.to_owned(), port), "{text}");
            assert_eq!(place.host_field(), field, "{text}");
        };
        check("ws://[fe80::1%25eth0]:81/a", "fe80::1%eth0", 81, "[fe80::1]:81");
        check("ws://[fe80::1%eth0]", "fe80::1%eth0", 80, "[fe80::1]");
        check("wss://h", "h", 443, "h");
        check("ws://h:81", "h", 81, "h:81");
    }

    #[test]
    fn a_path_is_sent_as_browsers_send_it() {
        let check = |text: &str, url: &str| assert_eq!(text.parse::<Place>().unwrap().url, url, "{text}");
        check("ws://h/ü?q=ä b", "ws://h/%C3%BC?q=%C3%A4%20b");
        check("ws://h?日", "ws://h/?%E6%97%A5");
        check("ws://h/a%20b/?c%", "ws://h/a%20b/?c%");
        check("ws://h/\"<>`{}^|'?\"<>`{}^|'", "ws://h/%22%3C%3E%60%7B%7D%5E|'?%22%3C%3E`{}^|%27");
        check("ws://h/\u{7f}", "ws://h/%7F");
        check(" ws://h/a\n", "ws://h/a");
        check("unix:/run/ä b.sock:/ö x", "ws://localhost/%C3%B6%20x");
        assert_eq!("unix:/run/ä b.sock".parse::<Place>().unwrap().socket, Some("/run/ä b.sock".into()));
    }

    #[test]
    #[cfg(feature = "idn")]
    fn a_host_is_looked_up_as_browsers_do_it() {
        let check = |text: &str, url: &str| assert_eq!(text.parse::<Place>().unwrap().url, url, "{text}");
        check("ws://münchen.example", "ws://xn--mnchen-3ya.example/");
        check("WSS://MÜNCHEN.example:8443/x", "wss://xn--mnchen-3ya.example:8443/x");
        check("ws://日本語。example/", "ws://xn--wgv71a119e.example/");
        check("ws://１２７.0.0.1:80?a", "ws://127.0.0.1:80/?a");
        for wrong in ["ws://mün chen.example/", "ws://xn--ü/", "ws://[::ü]/", "ws://a\u{ad}%ü/"] {
            assert_eq!(wrong.parse::<Place>().unwrap_err().kind, UrlErrorKind::Host, "{wrong}");
        }
        assert_eq!("ws://ü:0/".parse::<Place>().unwrap_err().kind, UrlErrorKind::Port);
        assert_eq!("ws://\u{ad}/".parse::<Place>().unwrap_err().kind, UrlErrorKind::NoHost);
    }

    #[test]
    #[cfg(not(feature = "idn"))]
    fn a_host_beyond_ascii_is_refused_with_what_to_do() {
        let error = "ws://münchen.example/".parse::<Place>().unwrap_err();
        assert_eq!(error.kind, UrlErrorKind::Host);
        assert_eq!(
            error.to_string(),
            "münchen.example: a host beyond ASCII needs the feature `idn` of the crate `mainstay`, \
             or its name that begins with xn--"
        );
    }

    #[test]
    fn the_error_of_a_url_is_one_line_without_what_may_be_secret() {
        for wrong in [
            "ws://user:gehäim@h/",
            "ws://user:ge häim@h/",
            "ws://user:gehäim@ü\n/",
            "ws://user:gehäim/gehäim@h",
            "user:gehäim@h",
            "ws://h:x/?token=gehäim",
            "ws://h/\n?gehäim",
            "ftp://h/?gehäim",
            "?gehäim",
            "ws:///?gehäim",
            "ws://h/a#gehäim",
            "unix:/a:/\n?gehäim",
        ] {
            let error = wrong.parse::<Place>().unwrap_err().to_string();
            assert!(!error.contains("häim") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_dialled_is_refused() {
        let server = |text: &str| text.parse::<Place>().map(|place| Server::of(&place.url).unwrap());
        let found = |host: &str, port, secure| Ok(Server { host: host.to_owned(), port, secure });
        assert_eq!(server("ws://example.com/a"), found("example.com", 80, false));
        assert_eq!(server("https://[::1]:8443"), found("::1", 8443, true));
        assert_eq!(server("ws://[fe80::1%25eth0]:81"), found("fe80::1%eth0", 81, false));
        assert_eq!(server("ws://[fe80::1%eth0]/"), found("fe80::1%eth0", 80, false));
        assert_eq!(server("WS://Example.com/"), found("Example.com", 80, false));
        assert_eq!(server("Wss://example.com:1/"), found("example.com", 1, true));
        assert_eq!(server("wss://example.com:/"), found("example.com", 443, true));
        let made: Uri = "WSS://example.com".parse().unwrap();
        assert!(Server::of(&made).unwrap().secure);
        let long = format!("unix:/{}", "x".repeat(200));
        for wrong in [
            "",
            "ftp://h/",
            "h:1",
            "ws://h:0/",
            "ws://h:x/",
            "ws://",
            "ws://u:p@h/",
            "ws://h/a#b",
            "ws://h#",
            "unix:/run/app.sock:/a#b",
            "unix:",
            "unix::/a",
            &long,
        ] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }
}
