//! The URL of an engine, and what a start with it learns.

use std::fmt;
use std::str::FromStr;

/// An engine that nodes share: Redis 7 or later, or Valkey.
///
/// | URL | Engine |
/// |---|---|
/// | `redis://host:6379` | one server |
/// | `rediss://host:6379` | the same over TLS |
/// | `redis+unix:///run/redis.sock` | one server on this machine |
/// | `redis+sentinel://host:26379,host:26379/name` | the server that Sentinel calls the master of this name |
/// | `redis+cluster://host:6379,host:6379` | Redis Cluster |
///
/// `rediss+sentinel://` and `rediss+cluster://` use TLS. `valkey` stands for `redis` in each. `user:password@` goes before the first
/// host, `/2` behind the hosts (and Sentinel's name) selects a database.
#[derive(Clone)]
pub struct Engine {
    url: String,
    password: Option<String>,
}

impl Engine {
    /// Reads the URL of an engine. Connects to nothing.
    ///
    /// # Errors
    ///
    /// The URL is not one of an engine; [`EngineError::is_permanent`] is true.
    pub fn parse(url: &str) -> Result<Self, EngineError> {
        Ok(Self { url: url.to_owned(), password: None })
    }

    /// Sets the password, in place of the one in the URL.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Connects once and does what a node of the cluster `name` does, so that a node starts only with an engine that can serve it.
    ///
    /// # Errors
    ///
    /// The engine does not answer, or cannot serve: see [`EngineError::is_permanent`].
    ///
    /// # Cancel safety
    ///
    /// It may be dropped at any time; the connection closes.
    pub async fn check(&self, name: &str) -> Result<EngineFacts, EngineError> {
        let _ = (name, &self.password);
        Err(EngineError { words: "not yet".to_owned(), permanent: false })
    }
}

impl FromStr for Engine {
    type Err = EngineError;

    fn from_str(url: &str) -> Result<Self, EngineError> {
        Self::parse(url)
    }
}

/// The URL without its password.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({self})")
    }
}

/// What a node learns of its engine at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineFacts {
    /// The server and its version, as `Redis 7.0.15`.
    pub server: String,
    /// One lifetime of the engine's primary; `None`: the engine does not allow INFO.
    pub incarnation: Option<String>,
    /// What the operator should know, a line each.
    pub warnings: Vec<String>,
}

/// An engine that cannot serve, in one line that names what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct EngineError {
    words: String,
    permanent: bool,
}

impl EngineError {
    /// Returns whether waiting changes nothing: a wrong URL, a refused password, a version or a role that cannot serve. Otherwise the
    /// engine is away, and a node serves alone until it answers.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }
}
