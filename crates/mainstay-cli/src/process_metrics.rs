//! Metrics of the process, under the names that Prometheus' client libraries use. A metric that the system does not
//! provide is left out; most exist on Linux only.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

static STARTED: OnceLock<Duration> = OnceLock::new();

/// Records the start time of the process.
pub(crate) fn started() {
    let _ = STARTED.set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
}

/// Appends the metric families.
pub(crate) fn render(out: &mut String) {
    let mut family = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(
                out,
                "# HELP process_{name} {help}\n# TYPE process_{name} {kind}\nprocess_{name} {value}"
            );
        }
    };
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    family("cpu_seconds_total", "counter", "CPU time of the process, user and system.", Some(seconds));
    family("open_fds", "gauge", "Open files of the process.", open_files());
    let most = getrlimit(Resource::Nofile).current.map(|files| files as f64);
    family("max_fds", "gauge", "Open files that the process may have.", most);
    family("resident_memory_bytes", "gauge", "Resident memory of the process.", resident());
    let started = STARTED.get().map(Duration::as_secs_f64);
    family("start_time_seconds", "gauge", "Start of the process, in seconds since 1970.", started);
}

fn open_files() -> Option<f64> {
    let files = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the directory that is being read.
    Some(files.saturating_sub(1) as f64)
}

fn resident() -> Option<f64> {
    let sizes = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}
