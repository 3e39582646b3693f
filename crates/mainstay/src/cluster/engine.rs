//! The URL of an engine.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An engine that nodes share: Redis 6.2 or later, or Valkey.
///
/// | URL | Engine |
/// |---|---|
/// | `redis://host:6379` | one server |
/// | `rediss://host:6379` | the same over TLS |
/// | `redis+unix:///run/redis.sock` | one server on this machine |
/// | `redis+sentinel://host:26379,host:26379/name` | the server that Sentinel calls the master of this name |
/// | `redis+cluster://host:6379,host:6379` | Redis Cluster, found through any of these servers |
///
/// `rediss+sentinel://` and `rediss+cluster://` use TLS. `valkey` stands for `redis` in each. `user:password@` goes before the
/// first host; special characters are written as `%40`. A database follows the hosts, or Sentinel's name: `/2`; behind the path
/// of a Unix socket it is `?db=2`. The default ports are 6379 and, for Sentinel, 26379.
///
/// TLS trusts the system's certificates; the variable `SSL_CERT_FILE` names others.
///
/// ```
/// use mainstay::cluster::Engine;
///
/// # fn main() -> Result<(), mainstay::cluster::EngineError> {
/// let engine = Engine::parse("redis://node:secret@10.0.0.7")?;
/// assert_eq!(engine.to_string(), "redis://node@10.0.0.7:6379");
/// # Ok(())
/// # }
/// ```
///
/// # What the engine must allow
///
/// The user needs these rules, where `NAME` is the cluster's name; without INFO a node serves, and does not notice every
/// fail-over:
///
/// ```text
/// ~mainstay:NAME:* +hset +hgetall +hdel +hmget +exists +del +rpush +ltrim +llen +lrange +pexpire +eval +evalsha +script|load +info
/// ```
///
/// In addition `+select` for a database other than 0, and `+cluster|slots` for Redis Cluster.
#[derive(Clone)]
pub struct Engine {
    pub(super) place: Place,
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u16,
}

/// Where the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Server(Host),
    Unix(PathBuf),
    Sentinel { hosts: Vec<Host>, master: String },
    Cluster(Vec<Host>),
}

/// A name or an address, without the brackets of IPv6, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

impl Host {
    const PORT: u16 = 6379;
    const SENTINEL_PORT: u16 = 26379;

    /// A host as it stands in a URL: `name`, `name:port`, `[::1]:port`.
    pub(super) fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) if address.contains(':') => {
                (address, port.strip_prefix(':').or(Some("").filter(|_| port.is_empty()))?)
            }
            Some(_) => return None,
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let port = if port.is_empty() { default_port } else { port.parse().ok().filter(|port| *port > 0)? };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        (!name.is_empty() && name.chars().all(is_plain)).then(|| Self { name: name.to_owned(), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

impl Engine {
    /// Reads the URL of an engine. Connects to nothing.
    ///
    /// # Errors
    ///
    /// The URL is not one of an engine; [`EngineError::is_permanent`] is true.
    pub fn parse(url: &str) -> Result<Self, EngineError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| EngineError::url("it has no scheme"))?;
        let (tls, kind) = Self::scheme(scheme)?;
        if rest.contains('#') {
            return Err(EngineError::url("it has a part behind `#`, which has no meaning here"));
        }
        // A password may contain `@`, as people write it; a path may not.
        let before_path =
            if kind == "unix" { rest } else { rest.split_once('/').map_or(rest, |(hosts, _)| hosts) };
        let (login, rest) = match before_path.rfind('@') {
            Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
            None => (None, rest),
        };
        let (user, password) = login.map_or(Ok((None, None)), credentials)?;
        let (place, database) = match kind {
            "unix" => unix(rest)?,
            _ if rest.contains('?') => {
                return Err(EngineError::url("it has a part behind `?`, which has no meaning here"));
            }
            kind => hosts(kind, rest)?,
        };
        Ok(Self { place, tls, user, password, database })
    }

    /// Whether TLS is used, and the part of the scheme behind `+`.
    fn scheme(scheme: &str) -> Result<(bool, &str), EngineError> {
        let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match base {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(EngineError::url("it begins with another scheme")),
        };
        match kind {
            "unix" if tls => Err(EngineError::url("a Unix socket has no TLS: write redis+unix://")),
            "" | "unix" | "sentinel" | "cluster" => Ok((tls, kind)),
            _ => Err(EngineError::url("it begins with another scheme")),
        }
    }

    /// Sets the password, in place of the one in the URL: from a file or the environment, where other users of the machine do not
    /// see it.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The hosts of the URL; none for a Unix socket.
    pub(super) fn hosts(&self) -> &[Host] {
        match &self.place {
            Place::Server(host) => std::slice::from_ref(host),
            Place::Unix(_) => &[],
            Place::Sentinel { hosts, .. } | Place::Cluster(hosts) => hosts,
        }
    }
}

/// `user:password`, `:password` or `user`.
fn credentials(login: &str) -> Result<(Option<String>, Option<String>), EngineError> {
    let (user, password) =
        login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
    let part = |text: &str| {
        unescaped(text).ok_or_else(|| {
            EngineError::url(
                "its user or password has a `%` that two hexadecimal digits do not follow: write `%25`",
            )
        })
    };
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok((given(part(user)?), password.map(part).transpose()?.and_then(given)))
}

fn unix(rest: &str) -> Result<(Place, u16), EngineError> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(EngineError::url("it has no absolute path of a socket: redis+unix:///run/redis.sock"));
    }
    let database = match query.strip_prefix("db=") {
        Some(number) => database(number)?,
        None if query.is_empty() => 0,
        None => return Err(EngineError::url("only `?db=2` may follow the path of a socket")),
    };
    let path = unescaped(path).ok_or_else(|| EngineError::url("its path has a `%` that is not `%25`"))?;
    Ok((Place::Unix(Path::new(&path).to_owned()), database))
}

fn hosts(kind: &str, rest: &str) -> Result<(Place, u16), EngineError> {
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let default_port = if kind == "sentinel" { Host::SENTINEL_PORT } else { Host::PORT };
    let hosts =
        hosts.split(',').map(|host| Host::parse(host.trim(), default_port)).collect::<Option<Vec<_>>>();
    let mut hosts =
        hosts.ok_or_else(|| EngineError::url("a host is missing, or is not `host` or `host:port`"))?;
    let path = path.trim_end_matches('/');
    match kind {
        "sentinel" => {
            let (master, number) = path.split_once('/').unwrap_or((path, ""));
            if master.is_empty() {
                return Err(EngineError::url(
                    "Sentinel's name of the master is missing: redis+sentinel://host:26379/mymaster",
                ));
            }
            Ok((Place::Sentinel { hosts, master: master.to_owned() }, database(number)?))
        }
        "cluster" if !path.is_empty() && path != "0" => {
            Err(EngineError::url("Redis Cluster has one database: leave out what follows the hosts"))
        }
        "cluster" => Ok((Place::Cluster(hosts), 0)),
        _ if hosts.len() > 1 => Err(EngineError::url(
            "it names several hosts: write redis+sentinel:// or redis+cluster:// for what they are",
        )),
        _ => Ok((Place::Server(hosts.remove(0)), database(path)?)),
    }
}

fn database(number: &str) -> Result<u16, EngineError> {
    match number {
        "" => Ok(0),
        number => {
            number.parse().map_err(|_| EngineError::url("its database is no number: redis://host:6379/2"))
        }
    }
}

/// Decodes `%40`; `None` if a `%` is not followed by two hexadecimal digits, or if the result is not UTF-8.
fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
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
        let kind = match self.place {
            Place::Server(_) => "",
            Place::Unix(_) => "+unix",
            Place::Sentinel { .. } => "+sentinel",
            Place::Cluster(_) => "+cluster",
        };
        write!(f, "redis{}{kind}://", if self.tls { "s" } else { "" })?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        for (index, host) in self.hosts().iter().enumerate() {
            write!(f, "{}{host}", if index > 0 { "," } else { "" })?;
        }
        match &self.place {
            Place::Sentinel { master, .. } => write!(f, "/{master}")?,
            Place::Unix(path) => write!(f, "{}", path.display())?,
            Place::Server(_) | Place::Cluster(_) => {}
        }
        match (self.database, &self.place) {
            (0, _) => Ok(()),
            (number, Place::Unix(_)) => write!(f, "?db={number}"),
            (number, _) => write!(f, "/{number}"),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({self})")
    }
}

/// An engine that cannot serve, in one line that names what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct EngineError {
    words: String,
    permanent: bool,
}

impl EngineError {
    /// Returns whether waiting changes nothing: a wrong URL, a refused password, a version or a role that cannot serve. Otherwise
    /// the engine is away, and a node serves alone until it answers.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }

    /// Waiting changes nothing.
    pub(super) fn wrong(words: impl Into<String>) -> Self {
        Self { words: words.into(), permanent: true }
    }

    /// Waiting may help.
    pub(super) fn away(words: impl Into<String>) -> Self {
        Self { words: words.into(), permanent: false }
    }

    /// The URL is wrong. It may contain a password, so that no error repeats it.
    fn url(why: &str) -> Self {
        Self::wrong(format!("not the URL of an engine, as redis://host:6379 is one: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        #[track_caller]
        fn check(url: &str, shown: &str, user: Option<&str>, password: Option<&str>) {
            let engine = Engine::parse(url).unwrap();
            assert_eq!(
                (engine.to_string().as_str(), engine.user.as_deref(), engine.password.as_deref()),
                (shown, user, password)
            );
            assert_eq!(format!("{engine:?}"), format!("Engine({shown})"));
        }
        check("redis://localhost", "redis://localhost:6379", None, None);
        check("redis://localhost/", "redis://localhost:6379", None, None);
        check("valkey://10.0.0.7:7000/3", "redis://10.0.0.7:7000/3", None, None);
        check("rediss://u:p%40s%25@h", "rediss://u@h:6379", Some("u"), Some("p@s%"));
        check("valkeys://:secret@h:1", "rediss://h:1", None, Some("secret"));
        check("redis://:a@b:c@h", "redis://h:6379", None, Some("a@b:c"));
        check("redis://u@[::1]:7/1", "redis://u@[::1]:7/1", Some("u"), None);
        check("redis+unix:///run/r.sock", "redis+unix:///run/r.sock", None, None);
        check("valkey+unix://u:p@/run/r.sock?db=2", "redis+unix://u@/run/r.sock?db=2", Some("u"), Some("p"));
        check("redis+sentinel://a,b:7/main", "redis+sentinel://a:26379,b:7/main", None, None);
        check("rediss+sentinel://u:p@a/main/4", "rediss+sentinel://u@a:26379/main/4", Some("u"), Some("p"));
        check("redis+cluster://a,[fe80::1]:7,c", "redis+cluster://a:6379,[fe80::1]:7,c:6379", None, None);
    }

    #[test]
    fn a_wrong_url_is_refused_for_its_reason_and_not_repeated() {
        #[track_caller]
        fn check(url: &str, reason: &str) {
            let error = Engine::parse(url).unwrap_err();
            assert!(error.is_permanent());
            let words = error.to_string();
            assert!(words.contains(reason), "{words}");
            assert!(!words.contains("hunter2"), "{words}");
            assert!(!words.contains('\n'), "{words}");
        }
        check("", "no scheme");
        check("u:hunter2@host:6379", "no scheme");
        check("http://u:hunter2@host", "another scheme");
        check("redis+tls://host", "another scheme");
        check("rediss+unix:///run/r.sock", "no TLS");
        check("redis://", "a host is missing");
        check("redis://h:port", "a host is missing");
        check("redis://h:0", "a host is missing");
        check("redis://h:70000", "a host is missing");
        check("redis://[::1", "a host is missing");
        check("redis://::1", "a host is missing");
        check("redis://[::1]7", "a host is missing");
        check("redis://a b", "a host is missing");
        check("redis://:hunter2/@host", "a host is missing");
        check("redis://a,,b", "a host is missing");
        check("redis://a,b", "several hosts");
        check("redis://u:hunter2%4@h", "`%`");
        check("redis://u:hunter2%zz@h", "`%`");
        check("redis://h/two", "no number");
        check("redis://h/99999999", "no number");
        check("redis://h/-1", "no number");
        check("redis://h?protocol=resp3", "behind `?`");
        check("rediss://h/#insecure", "behind `#`");
        check("redis+unix://run/r.sock", "absolute path");
        check("redis+unix:///run/", "absolute path");
        check("redis+unix:///run/r.sock?database=2", "`?db=2`");
        check("redis+sentinel://a:26379", "Sentinel's name");
        check("redis+cluster://a/2", "one database");
    }

    #[test]
    fn a_password_that_is_set_replaces_the_one_of_the_url() {
        let engine = Engine::parse("redis://u:old@h").unwrap().password("new");
        assert_eq!(engine.password.as_deref(), Some("new"));
        assert!(!format!("{engine} {engine:?}").contains("new"));
    }

    #[test]
    fn any_piece_of_a_url_is_an_engine_or_an_error() {
        for url in [
            "rediss+sentinel://ü%40:p%25@[::1]:7,b:8/main/4",
            "redis+unix://u:p@/run/é.sock?db=2",
            "redis://u:p@h:7/1#?",
        ] {
            let edges: Vec<usize> = url.char_indices().map(|(at, _)| at).chain([url.len()]).collect();
            for from in &edges {
                for to in edges.iter().filter(|to| *to >= from) {
                    for scheme in ["", "redis://", "redis+unix://", "redis+cluster://"] {
                        let _ = Engine::parse(&format!("{scheme}{}", &url[*from..*to]))
                            .map(|engine| engine.to_string());
                    }
                }
            }
        }
    }
}
