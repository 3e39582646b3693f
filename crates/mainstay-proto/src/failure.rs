//! What went wrong, in one line, and the error behind it.
//!
//! An `io::Error` cannot be cloned and an error of a library is not comparable, but what failed is stored in events, in the
//! end of a client and in logs. [`Failure`] shares the error, and is compared by its message.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// A failure: one line for people, and the error that caused it, if there is one. Cheap to clone.
///
/// The line is complete: it contains the words of the error. [`source`](Error::source) returns the error itself, to be
/// downcast. Two failures are equal if their lines are.
///
/// ```
/// use std::io;
///
/// use mainstay_proto::failure::Failure;
///
/// let reset = io::Error::from(io::ErrorKind::ConnectionReset);
/// let failure = Failure::from(reset).context("opening handshake");
/// assert_eq!(failure.message(), "opening handshake: connection reset");
/// assert_eq!(failure.io_error().map(io::Error::kind), Some(io::ErrorKind::ConnectionReset));
/// ```
#[derive(Clone)]
pub struct Failure(Arc<Inner>);

struct Inner {
    message: String,
    source: Option<Source>,
}

type Source = Arc<dyn Error + Send + Sync>;

impl Failure {
    /// A failure without an error behind it.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self::made(message.into(), None)
    }

    /// A failure that `source` caused. `message` should contain the words of `source`.
    #[must_use]
    pub fn caused_by(source: impl Into<Box<dyn Error + Send + Sync>>, message: impl Into<String>) -> Self {
        Self::made(message.into(), Some(Arc::from(source.into())))
    }

    /// The same failure, with what was attempted in front of its message.
    #[must_use]
    pub fn context(&self, attempted: &str) -> Self {
        self.with_message(format!("{attempted}: {}", self.message()))
    }

    /// The same failure, with another message.
    #[must_use]
    pub fn with_message(&self, message: impl Into<String>) -> Self {
        Self::made(message.into(), self.0.source.clone())
    }

    fn made(message: String, source: Option<Source>) -> Self {
        Self(Arc::new(Inner { message, source }))
    }

    /// The line for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The operating system's error, if that is what caused this failure.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        self.0.source.as_deref()?.downcast_ref()
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let message = error.to_string();
        Self::caused_by(error, message)
    }
}

impl From<Box<dyn Error + Send + Sync>> for Failure {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        let message = error.to_string();
        Self::caused_by(error, message)
    }
}

impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        self.message() == other.message()
    }
}

impl Eq for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.message(), f)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
