//! Open files and local ports. A client uses one file descriptor; its link to the backend uses another and a local port,
//! which stay in use while the client is away.

use std::collections::BTreeSet;
use std::fs::File;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard limit and returns it; `None` is no limit. The soft limit, often 1,024,
/// protects programs that use `select`.
pub(crate) fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            current
        }
    }
}

/// Returns the default of `--max-connections`: as many as leave descriptors for everything else.
pub(crate) fn max_connections(files: Option<u64>, has_backend: bool) -> usize {
    const MOST: usize = 1_000_000;
    let Some(files) = files else { return MOST };
    // An eighth, but not too few, for listeners, the log, the admin listener and connections that are being refused.
    let kept = (files / 8).max(RESERVED).min(files / 2);
    let each = if has_backend { 2 } else { 1 };
    usize::try_from((files - kept) / each).unwrap_or(MOST).clamp(1, MOST)
}

/// Descriptors for the process itself, the admin listener and connections that are being refused.
const RESERVED: u64 = 64;

/// Descriptors that are held in reserve for the admin listener. When every other descriptor is in use, one is closed so
/// that a health check can be accepted.
pub(crate) struct Spare(Vec<File>);

impl Spare {
    const MOST: usize = 8;

    pub(crate) fn new() -> Self {
        let mut spare = Self(Vec::new());
        spare.refill();
        spare
    }

    /// Closes one reserved descriptor. Returns `false` if none is left.
    pub(crate) fn release(&mut self) -> bool {
        self.0.pop().is_some()
    }

    /// Opens the released descriptors again, as far as the limit allows.
    pub(crate) fn refill(&mut self) {
        while self.0.len() < Self::MOST {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }
}

/// Returns whether an error means that the process or the system has no descriptor left.
pub(crate) fn are_exhausted(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE))
}

/// Returns how many connections may be open to these addresses of backends: each uses a local port of a range that every address has
/// for itself. An address over a Unix socket is `None`; there is no bound if all are.
pub(crate) fn local_ports<'a>(addresses: impl Iterator<Item = Option<&'a str>>) -> Option<u64> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    ports_towards(parse_ports(&range)?, addresses)
}

fn ports_towards<'a>(of_each: u64, addresses: impl Iterator<Item = Option<&'a str>>) -> Option<u64> {
    let tcp: BTreeSet<&str> = addresses.flatten().collect();
    (!tcp.is_empty()).then(|| of_each.saturating_mul(tcp.len() as u64))
}

fn parse_ports(range: &str) -> Option<u64> {
    let mut ends = range.split_ascii_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    last.checked_sub(first).map(|count| count + 1)
}

/// Returns the default of `--max-sessions`: as many as leave descriptors and local ports for new clients. `ports`: the
/// local ports towards a backend over TCP.
pub(crate) fn max_sessions(files: Option<u64>, has_backend: bool, ports: Option<u64>) -> usize {
    const MOST: usize = 1_000_000;
    let each = if has_backend { 2 } else { 1 };
    // An eighth is left for listeners, the admin listener, plain clients and connections that are being refused.
    let kept = |count: u64| count - count / 8;
    let bounds = [files.map(|files| kept(files) / each), ports.map(kept)];
    let least = bounds.into_iter().flatten().min().unwrap_or(u64::MAX);
    usize::try_from(least).unwrap_or(MOST).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_of_connections_leaves_descriptors_for_everything_else() {
        assert_eq!((max_connections(Some(1024), true), max_connections(Some(1024), false)), (448, 896));
        assert_eq!((max_connections(Some(256), true), max_connections(Some(256), false)), (96, 192));
        assert_eq!(
            (max_connections(None, true), max_connections(Some(u64::MAX), true)),
            (1_000_000, 1_000_000)
        );
        assert_eq!((max_connections(Some(40), true), max_connections(Some(1), true)), (10, 1));
    }

    #[test]
    fn spare_descriptors_are_released_one_by_one_and_reserved_again() {
        let mut spare = Spare::new();
        let released = std::iter::from_fn(|| spare.release().then_some(())).count();
        assert_eq!((released, spare.0.len()), (Spare::MOST, 0));
        spare.refill();
        assert_eq!(spare.0.len(), Spare::MOST);
    }

    #[test]
    fn the_default_of_sessions_leaves_descriptors_for_new_clients() {
        assert_eq!((max_sessions(Some(1024), true, None), max_sessions(Some(1024), false, None)), (448, 896));
        assert_eq!(
            (max_sessions(None, true, None), max_sessions(Some(u64::MAX), true, None)),
            (1_000_000, 1_000_000)
        );
        assert_eq!(max_sessions(Some(1), true, None), 1);
    }

    #[test]
    fn the_default_of_sessions_leaves_local_ports_for_new_clients() {
        assert_eq!(parse_ports("32768\t60999\n"), Some(28_232));
        assert_eq!((parse_ports("9 8"), parse_ports("9"), parse_ports("a b")), (None, None, None));
        assert_eq!(max_sessions(Some(1 << 20), true, Some(28_232)), 24_703);
        assert_eq!(max_sessions(Some(1024), true, Some(28_232)), 448);
        assert_eq!(max_sessions(None, true, Some(1)), 1);
    }

    #[test]
    fn each_address_of_a_backend_has_all_local_ports_for_itself_and_a_unix_socket_needs_none() {
        let towards = |addresses: &[Option<&str>]| ports_towards(28_232, addresses.iter().copied());
        assert_eq!(towards(&[Some("127.0.0.1:3000")]), Some(28_232));
        assert_eq!(towards(&[Some("127.0.0.1:3000"), Some("127.0.0.2:3000")]), Some(56_464));
        // Two routes of one backend share its ports.
        assert_eq!(towards(&[Some("app:3000"), Some("app:3000"), None]), Some(28_232));
        assert_eq!((towards(&[None]), towards(&[])), (None, None));
    }
}
