//! Open files: a visitor takes one, its link to the backend another, and that stays while the visitor is away.

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

/// How many sessions there may be, so that those of absent visitors do not take the files that others come in by.
pub(crate) fn sessions(files: Option<u64>, has_backend: bool) -> usize {
    const MOST: usize = 1_000_000;
    let Some(files) = files else { return MOST };
    // An eighth for listeners, for /metrics, for who is refused.
    let each = if has_backend { 2 } else { 1 };
    usize::try_from((files - files / 8) / each).unwrap_or(MOST).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_leave_files_for_who_comes_in() {
        assert_eq!((sessions(Some(1024), true), sessions(Some(1024), false)), (448, 896));
        assert_eq!((sessions(None, true), sessions(Some(u64::MAX), true)), (1_000_000, 1_000_000));
        assert_eq!(sessions(Some(1), true), 1);
    }
}
