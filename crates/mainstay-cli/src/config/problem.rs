//! What is wrong with a configuration: where, which key, and what to write instead.

use std::fmt;
use std::path::Path;

/// The names from the root of the tree to a setting: `routes`, `chat`, `heartbeat`, `interval`.
pub(crate) type KeyPath = Vec<String>;

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File {
        file: Box<Path>,
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(to, "default"),
            Self::File { file, line } => write!(to, "{}:{line}", file.display()),
            Self::Variable(name) | Self::Flag(name) => write!(to, "{name}"),
        }
    }
}

/// One mistake, as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) origin: Origin,
    /// The key; empty if the mistake belongs to no single key.
    pub(crate) key: KeyPath,
    /// The bound or the contradiction, and what to write instead.
    pub(crate) what: String,
}

impl fmt::Display for Problem {
    /// Writes the place and the key before the text, unless the text begins with them.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.what.split_whitespace().collect::<Vec<_>>().join(" ");
        let (place, key) = (self.origin.to_string(), joined(&self.key));
        match self.origin {
            // The place of a setting that is missing is nowhere.
            Origin::Default => {}
            // A flag or a variable stands for its key.
            Origin::Flag(_) | Origin::Variable(_) if words.starts_with(&place) => {
                return to.write_str(&words);
            }
            Origin::Flag(_) | Origin::Variable(_) => return write!(to, "{place}: {words}"),
            Origin::File { .. } => write!(to, "{place}: ")?,
        }
        match key.is_empty() || words.starts_with(&key) {
            true => to.write_str(&words),
            false => write!(to, "{key}: {words}"),
        }
    }
}

/// Returns a key as TOML writes it with dots.
pub(crate) fn joined(key: &[String]) -> String {
    let is_bare = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = |name: &String| if is_bare(name) { name.clone() } else { format!("{name:?}") };
    key.iter().map(name).collect::<Vec<_>>().join(".")
}

/// Returns a key as names, for a constant with dots.
pub(crate) fn split(key: &str) -> KeyPath {
    key.split('.').map(str::to_owned).collect()
}
