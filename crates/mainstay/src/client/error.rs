//! The errors of making a client, of connecting it, and of its credentials.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use mainstay_proto::ConfigError;
use mainstay_proto::connect::{End, EndCause, Lost, ReasonCode};
use mainstay_proto::failure::Failure;
use mainstay_proto::ws::handshake::InvalidProtocol;

use super::rejection::Rejection;

/// Any error that the application returns to the client, for example from [`Builder::request`](super::Builder::request).
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A URL that cannot be dialled. As an error its source is the error of the parser or of the operating system, where one
/// caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UrlError {
    /// The part of the URL that is wrong.
    pub kind: UrlErrorKind,
    failure: Failure,
}

/// The part of a URL that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UrlErrorKind {
    /// It is not a URL.
    Syntax,
    /// Its scheme is none of `ws`, `wss`, `http`, `https` and `unix`.
    Scheme,
    /// It names no host.
    NoHost,
    /// Its host is beyond ASCII, and the program has not the feature `idn` or there is no such name in DNS.
    Host,
    /// Its port is not a number from 1 to 65535.
    Port,
    /// It contains credentials, which the client would not send.
    Credentials,
    /// The path of its Unix socket is missing, or cannot be one.
    Socket,
    /// A certificate cannot be for its host, or for the name that was given to
    /// [`Connector::server_name`](super::Connector::server_name).
    ServerName,
    /// It asks for TLS, and the program was built without the feature `tls`.
    NoTls,
    /// It is the URL of a [`Proxy`](super::Proxy), and not `http://host:port`.
    Proxy,
}

impl UrlError {
    pub(super) fn new(kind: UrlErrorKind, failure: impl Into<Failure>) -> Self {
        Self { kind, failure: failure.into() }
    }

    /// The same error, with the place where the URL was found in front of its message.
    pub(super) fn found_in(&self, place: &str) -> Self {
        Self { kind: self.kind, failure: self.failure.context(place) }
    }

    pub(super) fn into_failure(self) -> Failure {
        self.failure
    }
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl Error for UrlError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failure.source()
    }
}

/// Why a client could not be made, or did not connect: the one error type for a function that does both.
///
/// ```no_run
/// use std::time::Duration;
///
/// use mainstay::Client;
/// use mainstay::client::ConnectError;
///
/// async fn connect(url: &str) -> Result<Client, ConnectError> {
///     let builder = Client::builder(url)?.max_attempts(5)?.subprotocols(["chat"])?;
///     builder.connect_ready(Duration::from_secs(30)).await
/// }
/// ```
///
/// As an error its source is what the last attempt failed with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL cannot be dialled.
    Url(UrlError),
    /// A setting is out of range.
    Config(ConfigError),
    /// A subprotocol cannot be offered.
    Subprotocol(InvalidProtocol),
    /// The client ended before a connection was attached.
    Ended {
        /// Why. Its code is `None` where no server responded, or where another attempt may succeed (503, 4413).
        end: Box<End>,
        /// The HTTP response to the last attempt, where it opened no WebSocket.
        rejection: Option<Box<Rejection>>,
    },
    /// No connection was attached within the time that [`Builder::connect_ready`](super::Builder::connect_ready) had.
    TimedOut {
        /// The time.
        within: Duration,
        /// How the last attempt failed; `None`: the first one was still under way.
        last: Option<Box<Lost>>,
        /// The HTTP response to the last attempt, where it opened no WebSocket.
        rejection: Option<Box<Rejection>>,
    },
}

impl ConnectError {
    /// Why the client ended; `None`: it was not made, or ran out of time.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        match self {
            Self::Ended { end, .. } => Some(end),
            _ => None,
        }
    }

    /// The kind of end; `None`: the client was not made, or ran out of time.
    #[must_use]
    pub fn cause(&self) -> Option<EndCause> {
        Some(self.end()?.cause)
    }

    /// The status or the close code with which the server refused, as in [`End::code`].
    #[must_use]
    pub fn code(&self) -> Option<ReasonCode> {
        self.end()?.code
    }

    /// How the last attempt failed.
    #[must_use]
    pub fn lost(&self) -> Option<&Lost> {
        match self {
            Self::Ended { end, .. } => end.lost.as_deref(),
            Self::TimedOut { last, .. } => last.as_deref(),
            _ => None,
        }
    }

    /// The HTTP response to the last attempt, where it opened no WebSocket.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Ended { rejection, .. } | Self::TimedOut { rejection, .. } => rejection.as_deref(),
            _ => None,
        }
    }
}

impl From<UrlError> for ConnectError {
    fn from(error: UrlError) -> Self {
        Self::Url(error)
    }
}

impl From<ConfigError> for ConnectError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<InvalidProtocol> for ConnectError {
    fn from(error: InvalidProtocol) -> Self {
        Self::Subprotocol(error)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
            Self::Subprotocol(error) => error.fmt(f),
            Self::Ended { end, .. } => end.fmt(f),
            Self::TimedOut { within, last: Some(last), .. } => {
                write!(f, "no connection within {within:?}; the last attempt: {last}")
            }
            Self::TimedOut { within, last: None, .. } => {
                write!(f, "no connection within {within:?}; the first attempt is still under way")
            }
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Url(error) => error.source(),
            Self::Config(_) | Self::Subprotocol(_) => None,
            Self::Ended { .. } | Self::TimedOut { .. } => self.lost().map(|lost| lost as _),
        }
    }
}

/// Why new credentials did not take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthenticateError {
    /// The server refused them. A live session continues with the credentials before; in HELLO a refusal ends the client.
    #[error("the server refused the credentials")]
    Refused,
    /// The application presented newer credentials before the server judged these.
    #[error("newer credentials took their place")]
    Replaced,
    /// The peer speaks plain WebSocket, where only the request carries credentials: see
    /// [`Builder::request`](super::Builder::request).
    #[error("a plain peer accepts no credentials after the request")]
    Plain,
    /// The client has ended.
    #[error("the client has ended")]
    Closed,
}
