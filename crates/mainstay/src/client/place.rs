//! The address of a server, in the forms that users write.

use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

use super::{Failure, UrlError, UrlErrorKind};

/// The address of a server: a URL, and the Unix socket to connect to, if there is one.
///
/// It is parsed from `ws://host:port/path` or `wss://...` (`http` and `https` mean the same), or with a Unix socket from
/// `unix:/run/app.sock`, with the path of the request behind it as `unix:/run/app.sock:/path`. The forms of nginx
/// (`http://unix:/run/app.sock:/path`) and of Node (`ws+unix:/run/app.sock:/path`) are read, too; with `wss` or `https` in
/// front the socket carries TLS.
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
        let text = with_small_scheme(text);
        if let Some((secure, rest)) = unix(&text) {
            return Self::on_socket(secure, rest);
        }
        if matches!(text.split_once("://"), Some((_, "" | "/"))) {
            return Err(no_host(&text));
        }
        let url: Uri = text.parse().map_err(|error| {
            let words = format!("{text}: not a URL: {error}");
            UrlError::new(UrlErrorKind::Syntax, Failure::caused_by(error, words))
        })?;
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
        let url =
            format!("{scheme}://localhost/{path}").parse().map_err(|error: http::uri::InvalidUri| {
                let words = format!("unix:{rest}: {error}");
                UrlError::new(UrlErrorKind::Syntax, Failure::caused_by(error, words))
            })?;
        Ok(Self { url, socket: Some(PathBuf::from(socket)) })
    }
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
        if let Some((_, place)) = authority.rsplit_once('@') {
            // The rest of the URL is a secret.
            let words = format!(
                "the URL of {place} has credentials, which are not sent: use a header, as `Authorization`"
            );
            return Err(UrlError::new(UrlErrorKind::Credentials, words));
        }
        // A `Uri` of the application may have capitals here, and they mean the same (RFC 3986 section 3.1).
        let scheme = url.scheme_str().map(str::to_ascii_lowercase);
        let (secure, usual) = match scheme.as_deref() {
            Some("ws" | "http") => (false, 80),
            Some("wss" | "https") => (true, 443),
            _ => {
                let words = format!("{url}: the URL must start with ws://, wss:// or unix:");
                return Err(UrlError::new(UrlErrorKind::Scheme, words));
            }
        };
        let host = url.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| no_host(url))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match port_of(authority) {
            "" => usual,
            port => parse_port(port).ok_or_else(|| {
                let words = format!("{url}: the port `{port}` is not a number from 1 to 65535");
                UrlError::new(UrlErrorKind::Port, words)
            })?,
        };
        Ok(Self { host, port, secure })
    }
}

fn no_host(url: &dyn std::fmt::Display) -> UrlError {
    UrlError::new(UrlErrorKind::NoHost, format!("{url}: the URL names no host"))
}

/// The port as it is written. `Uri` accepts any text there, and then has no port at all.
fn port_of(authority: &str) -> &str {
    let behind_ipv6 = authority.rsplit(']').next().unwrap_or_default();
    behind_ipv6.rsplit_once(':').map_or("", |(_, port)| port)
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
    fn a_url_that_cannot_be_dialled_is_refused() {
        let server = |text: &str| text.parse::<Place>().map(|place| Server::of(&place.url).unwrap());
        let found = |host: &str, port, secure| Ok(Server { host: host.to_owned(), port, secure });
        assert_eq!(server("ws://example.com/a"), found("example.com", 80, false));
        assert_eq!(server("https://[::1]:8443"), found("::1", 8443, true));
        assert_eq!(server("WS://Example.com/"), found("Example.com", 80, false));
        assert_eq!(server("Wss://example.com:1/"), found("example.com", 1, true));
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
            "unix:",
            "unix::/a",
            &long,
        ] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
        let secret = server("ws://user:password@h/").unwrap_err().to_string();
        assert!(!secret.contains("password"), "{secret}");
    }
}
