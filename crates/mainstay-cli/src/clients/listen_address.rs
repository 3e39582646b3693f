//! An address to accept clients on, as `--listen` and the configuration write it.
//!
//! ```text
//! 127.0.0.1:8080                   TCP
//! plain:127.0.0.1:8080             TCP without TLS, where certificates are configured
//! unix:/run/mainstay.sock          a Unix socket; it never speaks TLS
//! unix:/run/mainstay.sock?mode=660 the same, with the mode of its file
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::config::text::{Expected, Written};

/// Where a listener is: what names it to its predecessor and to clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The mode of a Unix socket's file: its owner and its group may connect.
const MODE: u32 = 0o660;
/// The longest path of a Unix socket (Linux; the byte behind it is 0).
const LONGEST_PATH: usize = 107;

/// A place, and how clients are accepted there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenAddress {
    pub(crate) place: Place,
    /// TCP without TLS, although certificates are configured.
    pub(crate) is_plain: bool,
    /// The mode of a Unix socket's file. Default: 660.
    pub(crate) mode: u32,
}

impl ListenAddress {
    pub(crate) fn tcp(address: SocketAddr) -> Self {
        Self { place: Place::Tcp(address), is_plain: false, mode: MODE }
    }

    /// Whether clients speak TLS here, if certificates are configured.
    pub(crate) fn may_speak_tls(&self) -> bool {
        !self.is_plain && matches!(self.place, Place::Tcp(_))
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        let plain = text.strip_prefix("plain:");
        let address = plain.unwrap_or(text).parse().map_err(|_| {
            "write an IP address and a port, for example 127.0.0.1:8080 or [::1]:8080, or unix:/run/mainstay.sock"
        })?;
        Ok(Self { is_plain: plain.is_some(), ..Self::tcp(address) })
    }
}

impl Written for ListenAddress {
    const EXPECTED: Expected = Expected { kind: "address to listen on", example: "127.0.0.1:8080" };

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

fn unix(text: &str) -> Result<ListenAddress, String> {
    let (path, mode) = match text.split_once('?') {
        None => (text, MODE),
        Some((path, option)) => {
            let mode = option.strip_prefix("mode=").and_then(|mode| u32::from_str_radix(mode, 8).ok());
            let mode = mode.filter(|mode| *mode <= 0o777);
            (path, mode.ok_or("the only option of a Unix socket is its mode, for example ?mode=660")?)
        }
    };
    let wrong = |why: &str| Err(format!("{why}, for example unix:/run/mainstay.sock"));
    if !Path::new(path).is_absolute() || path.ends_with('/') {
        return wrong("the path of a Unix socket must be absolute and name a file");
    }
    if path.len() > LONGEST_PATH {
        return wrong("the path of a Unix socket must be at most 107 bytes long");
    }
    if path.contains('\0') {
        return wrong("the path of a Unix socket must not contain a zero byte");
    }
    Ok(ListenAddress { place: Place::Unix(path.into()), is_plain: false, mode })
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_plain {
            f.write_str("plain:")?;
        }
        self.place.fmt(f)?;
        match self.place {
            Place::Unix(_) if self.mode != MODE => write!(f, "?mode={:o}", self.mode),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in [
            "127.0.0.1:8080",
            "[::1]:0",
            "plain:127.0.0.1:8080",
            "unix:/run/mainstay.sock",
            "unix:/run/mainstay.sock?mode=666",
        ] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        let default: ListenAddress = "unix:/run/a?mode=0660".parse().unwrap();
        assert_eq!((default.mode, default.to_string().as_str()), (0o660, "unix:/run/a"));
    }

    #[test]
    fn a_wrong_address_says_what_to_write() {
        for (wrong, words) in [
            ("localhost:8080", "IP address"),
            ("8080", "127.0.0.1:8080"),
            ("plain:unix:/run/a", "IP address"),
            ("unix:run/a", "absolute"),
            ("unix:", "absolute"),
            ("unix:/run/", "name a file"),
            ("unix:/run/a?mode=999", "?mode=660"),
            ("unix:/run/a?mode=1777", "?mode=660"),
            ("unix:/run/a?user=x", "?mode=660"),
            ("unix:/run/a\0b", "zero byte"),
        ] {
            let error = wrong.parse::<ListenAddress>().unwrap_err();
            assert!(error.contains(words), "{wrong}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(long.parse::<ListenAddress>().unwrap_err().contains("107 bytes"));
    }
}
