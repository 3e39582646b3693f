//! Open files and local ports: a visitor takes one file, its link to the backend another and a port, and those stay
//! while the visitor is away.

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

/// How many connections may be open to one address of a backend: each takes a local port of this range.
pub(crate) fn ports() -> Option<u64> {
    parse_ports(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn parse_ports(range: &str) -> Option<u64> {
    let mut ends = range.split_ascii_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    last.checked_sub(first).map(|count| count + 1)
}

/// How many sessions there may be, so that those of absent visitors do not take the files that others come in by, nor
/// the ports. `ports`: those towards a backend over TCP.
pub(crate) fn sessions(files: Option<u64>, has_backend: bool, ports: Option<u64>) -> usize {
    const MOST: usize = 1_000_000;
    let each = if has_backend { 2 } else { 1 };
    // An eighth is kept: for listeners, for /metrics, for plain visitors, for a visitor that is refused.
    let kept = |count: u64| count - count / 8;
    let bounds = [files.map(|files| kept(files) / each), ports.map(kept)];
    let least = bounds.into_iter().flatten().min().unwrap_or(u64::MAX);
    usize::try_from(least).unwrap_or(MOST).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

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
