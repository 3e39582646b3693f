//! How a node takes part in a cluster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_proto::ConfigError;

use super::{ClusterTls, Engine};

/// How a server takes part in a cluster, or how it passes its sessions to the next process on the same machine. Each
/// setter checks its value.
///
/// ```no_run
/// use mainstay::cluster::{ClusterConfig, Engine};
/// use mainstay::{Server, server::Config};
///
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::parse("redis://10.0.0.5:6379")?;
/// let server = Server::new(Config::new().cluster(ClusterConfig::new(engine).name("chat")?));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct ClusterConfig {
    pub(crate) store: Store,
    pub(crate) name: String,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) url: Option<String>,
    pub(crate) mark: String,
    pub(crate) tls: Option<ClusterTls>,
    pub(crate) notes_kept: Duration,
}

/// Where released sessions are kept.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Engine(Engine),
    StateDir(PathBuf),
    #[cfg(test)]
    Memory(super::tests::Memory),
}

/// The longest name of a cluster.
const LONGEST_NAME: usize = 64;
/// How long notes are kept, unless [`ClusterConfig::notes_kept`] sets it.
const NOTES_KEPT: Duration = Duration::from_secs(30 * DAY);
const DAY: u64 = 24 * 60 * 60;
/// The longest URL of a node.
const LONGEST_URL: usize = 512;

impl ClusterConfig {
    /// Creates the configuration of a node that shares this engine with the others.
    pub fn new(engine: Engine) -> Self {
        Self::with(Store::Engine(engine))
    }

    /// Creates the configuration of a server without an engine: at the end of a drain its
    /// [movable](crate::SessionUpgrade::movable) sessions and the accounts of the others go into a file in this folder, and
    /// the next server with the same folder continues from it. [`name`](Self::name) and the addresses do not matter then.
    pub fn state_dir(folder: impl AsRef<Path>) -> Self {
        Self::with(Store::StateDir(folder.as_ref().to_owned()))
    }

    pub(crate) fn with(store: Store) -> Self {
        Self {
            store,
            name: "mainstay".to_owned(),
            listen: None,
            advertise: None,
            url: None,
            mark: String::new(),
            tls: None,
            notes_kept: NOTES_KEPT,
        }
    }

    /// Sets the name of the cluster: nodes with the same engine and name serve one another's sessions. Default: `mainstay`.
    /// Range: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    ///
    /// # Errors
    /// The name is out of range.
    pub fn name(mut self, name: impl Into<String>) -> Result<Self, ConfigError> {
        let name = name.into();
        let is_valid = (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        ConfigError::unless(is_valid, "cluster.name", "1 to 64 of A-Z a-z 0-9 . _ -")?;
        self.name = name;
        Ok(self)
    }

    /// Sets where the peer listener accepts other nodes. Without [`tls`](Self::tls) nothing is encrypted there: choose an address
    /// of a private network. Default: a free port at the local address by which the node reaches the engine; on a loopback address if the engine is there or
    /// behind a Unix socket.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Sets the address by which other nodes reach the peer listener, where that is not the one it listens on: behind a
    /// forwarded port, in a container. Default: where it listens. Range: neither address nor port 0.
    ///
    /// # Errors
    /// The address is out of range.
    pub fn advertise(mut self, address: SocketAddr) -> Result<Self, ConfigError> {
        let is_valid = address.port() != 0 && !address.ip().is_unspecified();
        ConfigError::unless(
            is_valid,
            "cluster.advertise",
            "an address and a port that other nodes can reach",
        )?;
        self.advertise = Some(address);
        Ok(self)
    }

    /// Sets the URL by which clients reach this very node, `wss://n3.example.com`. Each WELCOME names it, and a client that
    /// follows comes straight back to its session. Default: none; any node forwards the client. Range: `ws://` or `wss://`,
    /// at most 512 bytes.
    ///
    /// # Errors
    /// The URL is out of range.
    pub fn url(mut self, url: impl Into<String>) -> Result<Self, ConfigError> {
        let url = url.into();
        let is_valid = (url.starts_with("ws://") || url.starts_with("wss://"))
            && url.len() <= LONGEST_URL
            && url.bytes().all(|byte| byte.is_ascii_graphic());
        ConfigError::unless(is_valid, "cluster.url", "a ws:// or wss:// URL of at most 512 bytes")?;
        self.url = Some(url);
        Ok(self)
    }

    /// Sets what all nodes of this cluster have in common and no other cluster has, such as the application's name. It is for
    /// one purpose: a node reports others of the same engine and [`name`](Self::name) whose mark differs, because two clusters
    /// under one name take sessions from each other. Default: empty.
    pub fn mark(mut self, mark: impl Into<String>) -> Self {
        self.mark = mark.into();
        self
    }

    /// Encrypts what nodes send to each other, and admits only nodes with a certificate of the same authority. A node with TLS and
    /// one without refuse each other, so all nodes of a cluster have it, or none. It costs a relay its cheap idle state: about
    /// 8 KB more at each node, instead of 250 B. Default: no encryption.
    pub fn tls(mut self, tls: ClusterTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how long the engine keeps [notes](crate::Server::keep_note) at least; at most it is two days longer. All nodes have the
    /// same value. Default: 30 days. Range: 1 to 366 days.
    ///
    /// # Errors
    /// The time is out of range.
    pub fn notes_kept(mut self, time: Duration) -> Result<Self, ConfigError> {
        let range = Duration::from_secs(DAY)..=Duration::from_secs(366 * DAY);
        ConfigError::unless(range.contains(&time), "cluster.notes_kept", "1 to 366 days")?;
        self.notes_kept = time;
        Ok(self)
    }

    /// Whether the node shares an engine with others.
    pub(crate) fn has_engine(&self) -> bool {
        !matches!(self.store, Store::StateDir(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setter_names_the_field_that_is_out_of_range_and_its_bound() {
        let config = || ClusterConfig::state_dir("/tmp");
        let check = |set: Result<ClusterConfig, ConfigError>, expected: &str| {
            assert_eq!(set.err().map(|error| error.to_string()).as_deref(), Some(expected));
        };
        check(config().name("a b"), "cluster.name must be 1 to 64 of A-Z a-z 0-9 . _ -");
        check(config().name(""), "cluster.name must be 1 to 64 of A-Z a-z 0-9 . _ -");
        check(config().url("http://x"), "cluster.url must be a ws:// or wss:// URL of at most 512 bytes");
        let nowhere = "cluster.advertise must be an address and a port that other nodes can reach";
        check(config().advertise(([0, 0, 0, 0], 5).into()), nowhere);
        check(config().advertise(([127, 0, 0, 1], 0).into()), nowhere);
        let days = |days: u64| config().notes_kept(Duration::from_secs(days * DAY));
        check(days(0), "cluster.notes_kept must be 1 to 366 days");
        check(days(367), "cluster.notes_kept must be 1 to 366 days");
        assert!(days(1).is_ok() && days(366).is_ok());
        assert!(config().name("chat.eu-1").and_then(|config| config.url("wss://n3.example.com/")).is_ok());
    }
}
