//! Metrics of the process, under the names that Prometheus' client libraries use. A metric that the system does not
//! provide is left out; most exist on Linux only.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

static STARTED: OnceLock<Duration> = OnceLock::new();

/// Records the start time of the process.
pub(crate) fn started() {
    let _ = STARTED.set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
}

/// One metric.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) is_counter: bool,
    pub(crate) value: f64,
}

/// Returns the metrics.
pub(crate) fn read() -> Vec<Metric> {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    let most = getrlimit(Resource::Nofile).current.map(|files| files as f64);
    let started = STARTED.get().map(Duration::as_secs_f64);
    let gauges = [
        ("process_open_fds", "Open files of the process.", open_files()),
        ("process_max_fds", "Open files that the process may have.", most),
        ("process_resident_memory_bytes", "Resident memory of the process.", resident()),
        ("process_start_time_seconds", "Start of the process, in seconds since 1970.", started),
    ];
    let gauges = gauges
        .into_iter()
        .filter_map(|(name, help, value)| Some(Metric { name, help, is_counter: false, value: value? }));
    let (name, help) = ("process_cpu_seconds_total", "CPU time of the process, user and system.");
    [Metric { name, help, is_counter: true, value: seconds }].into_iter().chain(gauges).collect()
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
