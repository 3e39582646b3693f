//! Open files and local ports: a client takes one file, its link to the backend another and a port, and those stay
//! while the client is away.

use std::fs::File;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes as many as the process may have, and returns how many these are. What a shell gives by itself, often 1,024,
/// is for programs that cannot deal with more. `None`: no limit.
pub(crate) fn take_all() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            current
        }
    }
}

/// How many connections of clients there may be at a time, and how many sessions, so that neither takes the files that
/// others come in by.
pub(crate) fn clients(files: Option<u64>, has_backend: bool) -> usize {
    const MOST: usize = 1_000_000;
    let Some(files) = files else { return MOST };
    // An eighth, and not too few, for listeners, for the log, for /metrics, for who is refused.
    let kept = (files / 8).max(KEPT).min(files / 2);
    let each = if has_backend { 2 } else { 1 };
    usize::try_from((files - kept) / each).unwrap_or(MOST).clamp(1, MOST)
}

/// What the process has open by itself, the few connections that are being refused, and those to the admin listener.
const KEPT: u64 = 64;

/// Files that are open for nothing but to be closed, for the admin listener: when clients, links and whatever else
/// took all there are, whoever asks for the health of the process is still answered.
pub(crate) struct Spare(Vec<File>);

impl Spare {
    const MOST: usize = 8;

    pub(crate) fn new() -> Self {
        let mut spare = Self(Vec::new());
        spare.refill();
        spare
    }

    /// Gives one back to the process. `false`: there is none.
    pub(crate) fn release(&mut self) -> bool {
        self.0.pop().is_some()
    }

    /// Takes those again that were given back, as far as there are some.
    pub(crate) fn refill(&mut self) {
        while self.0.len() < Self::MOST {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }
}

/// Whether an error says that the process, or the system, has no file left.
pub(crate) fn are_used_up(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE))
}

/// How many connections may be open to one address of a backend: each takes a local port of this range.
pub(crate) fn ports() -> Option<u64> {
    parse_ports(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn parse_ports(range: &str) -> Option<u64> {
    let mut ends = range.split_ascii_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    last.checked_sub(first).map(|count| count + 1)
}

/// How many sessions there may be, so that those of absent clients do not take the files that others come in by, nor
/// the ports. `ports`: those towards a backend over TCP.
pub(crate) fn sessions(files: Option<u64>, has_backend: bool, ports: Option<u64>) -> usize {
    const MOST: usize = 1_000_000;
    let each = if has_backend { 2 } else { 1 };
    // An eighth is kept: for listeners, for /metrics, for plain clients, for a client that is refused.
    let kept = |count: u64| count - count / 8;
    let bounds = [files.map(|files| kept(files) / each), ports.map(kept)];
    let least = bounds.into_iter().flatten().min().unwrap_or(u64::MAX);
    usize::try_from(least).unwrap_or(MOST).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_files_for_who_comes_in() {
        assert_eq!((clients(Some(1024), true), clients(Some(1024), false)), (448, 896));
        assert_eq!((clients(Some(256), true), clients(Some(256), false)), (96, 192));
        assert_eq!((clients(None, true), clients(Some(u64::MAX), true)), (1_000_000, 1_000_000));
        assert_eq!((clients(Some(40), true), clients(Some(1), true)), (10, 1));
    }

    #[test]
    fn spare_files_are_given_back_one_by_one_and_taken_again() {
        let mut spare = Spare::new();
        let released = std::iter::from_fn(|| spare.release().then_some(())).count();
        assert_eq!((released, spare.0.len()), (Spare::MOST, 0));
        spare.refill();
        assert_eq!(spare.0.len(), Spare::MOST);
    }

    #[test]
    fn sessions_leave_files_for_who_comes_in() {
        assert_eq!((sessions(Some(1024), true, None), sessions(Some(1024), false, None)), (448, 896));
        assert_eq!(
            (sessions(None, true, None), sessions(Some(u64::MAX), true, None)),
            (1_000_000, 1_000_000)
        );
        assert_eq!(sessions(Some(1), true, None), 1);
    }

    #[test]
    fn sessions_leave_local_ports_for_who_comes_in() {
        assert_eq!(parse_ports("32768\t60999\n"), Some(28_232));
        assert_eq!((parse_ports("9 8"), parse_ports("9"), parse_ports("a b")), (None, None, None));
        assert_eq!(sessions(Some(1 << 20), true, Some(28_232)), 24_703);
        assert_eq!(sessions(Some(1024), true, Some(28_232)), 448);
        assert_eq!(sessions(None, true, Some(1)), 1);
    }
}
