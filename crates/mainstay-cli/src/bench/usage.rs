//! What processes have used, from `/proc` (Linux).

use std::fs;
use std::path::Path;
use std::time::Duration;

/// CPU time and resident memory of some processes, summed.
#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) cpu: Duration,
    pub(super) resident: u64,
}

impl Usage {
    /// Of these processes now.
    ///
    /// # Errors
    ///
    /// One of them cannot be read; says which and why.
    pub(super) fn of(pids: &[u32]) -> Result<Self, String> {
        let mut sum = Self::default();
        for pid in pids {
            let (cpu, resident) = (cpu(*pid), resident(*pid));
            let (Some(cpu), Some(resident)) = (cpu, resident) else {
                return Err(format!("--pid {pid}: no such process, or it may not be read here"));
            };
            sum.cpu += cpu;
            sum.resident += resident;
        }
        Ok(sum)
    }

    /// What was used since `before`; resident memory is as it is now.
    pub(super) fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), resident: self.resident }
    }
}

/// The scheduler's run time of all threads, in nanoseconds and so finer than the ticks of `stat`. Of a thread that
/// ended in between, what it used is missing.
fn cpu(pid: u32) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let run = text.split_ascii_whitespace().next().and_then(|run| run.parse().ok());
        sum += Duration::from_nanos(run.unwrap_or(0));
    }
    Some(sum)
}

/// `smaps_rollup` counts pages; `status` is up to some hundred KiB behind on many cores, but may always be read.
fn resident(pid: u32) -> Option<u64> {
    let field = |file: &str, name: &str| -> Option<u64> {
        let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(1024 * line.split_ascii_whitespace().next()?.parse::<u64>().ok()?)
    };
    field("smaps_rollup", "Rss:").or_else(|| field("status", "VmRSS:"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_memory_and_has_run() {
        let usage = Usage::of(&[std::process::id()]).unwrap();
        assert!(usage.resident > 100_000 && usage.cpu > Duration::ZERO);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = Usage::of(&[u32::MAX]).err().unwrap();
        assert!(error.starts_with("--pid 4294967295: "), "{error}");
    }
}
