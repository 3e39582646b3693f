//! Why a request got no response of the backend.

use mainstay::client::{ConnectFailure, FailureKind};

use crate::request::request_body::Broken;

/// Why a request got no response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UpstreamError {
    /// No connection was opened.
    Connect(ConnectFailure),
    /// The backend accepted the connection and did not respond in time.
    ResponseTimeout,
    /// The backend ended the connection without a response.
    NoAnswer(String),
    /// The response is not HTTP, or cannot be forwarded.
    BadResponse(String),
    /// The client did not finish its own request.
    Client(Broken),
}

impl UpstreamError {
    /// Whether another address may be reached: no connection was opened, or it ended without a response.
    pub(crate) fn is_of_address(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::NoAnswer(_))
    }

    /// Whether another attempt may succeed soon: a backend that is not there, or that ends the connection without a
    /// response. Some port forwarders accept connections for a backend that is not there.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Connect(failure) => {
                !matches!(failure.kind, FailureKind::TimedOut | FailureKind::Certificate | FailureKind::Tls)
            }
            Self::NoAnswer(_) => true,
            Self::ResponseTimeout | Self::BadResponse(_) | Self::Client(_) => false,
        }
    }
}

impl std::fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(failure) => failure.fmt(f),
            Self::ResponseTimeout => write!(f, "no response within --upstream-answer-timeout"),
            Self::NoAnswer(why) => write!(f, "the backend ended the connection: {why}"),
            Self::BadResponse(why) => write!(f, "the response cannot be forwarded: {why}"),
            Self::Client(broken) => broken.fmt(f),
        }
    }
}
