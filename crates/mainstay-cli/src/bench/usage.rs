//! CPU time and memory of processes, from `/proc` (Linux).

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
    /// Reads the current usage of these processes.
    ///
    /// # Errors
    ///
    /// Names the process that cannot be read.
    pub(super) fn of(pids: &[u32]) -> Result<Self, String> {
        let mut sum = Self::default();
        for pid in pids {
            let (cpu, resident) = (cpu(*pid), resident(*pid));
            let (Some(cpu), Some(resident)) = (cpu, resident) else {
                return Err(format!("--pid {pid}: no such process, or its /proc entries cannot be read"));
            };
            sum.cpu += cpu;
            sum.resident += resident;
        }
        Ok(sum)
    }

    /// Returns the CPU time since `before`, and the current resident memory.
    pub(super) fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), resident: self.resident }
    }
}

/// Returns the scheduler's run time of all threads: in nanoseconds, finer than the ticks of `stat`. The time of threads
/// that have ended is missing.
fn cpu(pid: u32) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let run = text.split_ascii_whitespace().next().and_then(|run| run.parse().ok());
        sum += Duration::from_nanos(run.unwrap_or(0));
    }
    Some(sum)
}

/// Returns the resident memory. `smaps_rollup` counts pages; `status` lags by up to some hundred KiB on many cores, but is
/// always readable.
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
    fn the_own_process_uses_memory_and_cpu_time() {
        let usage = Usage::of(&[std::process::id()]).unwrap();
        assert!(usage.resident > 100_000 && usage.cpu > Duration::ZERO);
    }

    #[test]
    fn a_process_that_does_not_exist_is_named() {
        let error = Usage::of(&[u32::MAX]).err().unwrap();
        assert!(error.starts_with("--pid 4294967295: "), "{error}");
    }
}
