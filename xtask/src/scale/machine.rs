//! Counts of the kernel (Linux), and its limits that are too low for the run.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;

/// The run ends below this much available memory, before the machine fails.
const LEAST_AVAILABLE: u64 = 2 << 30;
/// Sockets of an earlier run that may still wait for their end: below 10 MiB of memory.
const FEW: u64 = 20_000;
const LOWEST_PORT: u32 = 10_000;
/// How long such sockets may take: TIME_WAIT lasts a minute.
const FORGOTTEN: Duration = Duration::from_secs(100);

/// Memory of the whole machine, in bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) available: u64,
    pub(super) slab: u64,
    /// TCP's buffers.
    pub(super) buffers: u64,
}

impl Memory {
    pub(super) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let sockets = fs::read_to_string("/proc/net/sockstat")?;
        let missing = "/proc/meminfo is not as expected";
        Ok(Self {
            available: 1024 * number_behind(&text, "MemAvailable:").ok_or(missing)?,
            slab: 1024 * number_behind(&text, "Slab:").ok_or(missing)?,
            buffers: 4096 * tcp(&sockets, "mem"),
        })
    }
}

/// An error if the machine is about to run out of memory.
pub(super) fn check_memory() -> Result<Memory> {
    let memory = Memory::now()?;
    if memory.available < LEAST_AVAILABLE {
        return Err("less than 2 GiB of memory are available; this machine is too small for as many".into());
    }
    Ok(memory)
}

/// Waits until few sockets of an earlier run are left.
pub(super) fn wait_until_forgotten() -> Result<()> {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string("/proc/net/sockstat")?;
        let left: u64 = ["inuse", "orphan", "tw"].iter().map(|name| tcp(&text, name)).sum();
        if left < FEW || started.elapsed() > FORGOTTEN {
            return Ok(());
        }
        sleep(Duration::from_secs(1));
    }
}

/// Memory of processes in bytes. Shared pages count once.
pub(crate) fn memory(pids: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        sum += 1024 * number_behind(&text, "Pss:").ok_or("smaps_rollup has no Pss")?;
    }
    Ok(sum)
}

/// CPU time of all threads of processes.
pub(crate) fn cpu(pids: &[u32]) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let run = text.split_ascii_whitespace().next().and_then(|run| run.parse().ok());
            sum += Duration::from_nanos(run.unwrap_or(0));
        }
    }
    Ok(sum)
}

fn number_behind(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// A number from the line `TCP: inuse 3 orphan 0 tw 0 alloc 5 mem 1` of sockstat.
fn tcp(text: &str, name: &str) -> u64 {
    let words = text.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let mut words = words.split_ascii_whitespace().skip_while(|word| *word != name).skip(1);
    words.next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Limits of the kernel that are raised while this lives.
///
/// A shell restores them once its input closes, so it works even if this process is killed.
pub(super) struct Raised(Option<Child>);

impl Raised {
    /// Raises what both ends of `connections` need; most machines allow it already.
    pub(super) fn for_connections(connections: u32) -> Result<Self> {
        let ends = 2 * u64::from(connections) + 50_000;
        let mut back = widen_ports()?;
        for path in ["/proc/sys/fs/file-max", "/proc/sys/fs/epoll/max_user_watches"] {
            back += &raise(path, ends)?;
        }
        // The kernel counts connections only if a firewall rule asks for it: then this connection is counted by now.
        let tracked = "/proc/sys/net/netfilter/nf_conntrack_count";
        if fs::read_to_string(tracked).is_ok_and(|count| count.trim() != "0") {
            back += &raise("/proc/sys/net/netfilter/nf_conntrack_max", ends)?;
        }
        if back.is_empty() {
            return Ok(Self(None));
        }
        let script = format!("trap '' INT TERM HUP\ncat > /dev/null\n{back}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).process_group(0);
        Ok(Self(Some(shell.spawn()?)))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(shell) = &mut self.0 {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}

/// Raises a limit if it is below `least`. Returns the shell line that restores it.
fn raise(path: &str, least: u64) -> Result<String> {
    let text = fs::read_to_string(path)?;
    let old: u64 = text.trim().parse()?;
    if old >= least {
        return Ok(String::new());
    }
    set(path, &old.to_string(), &least.to_string())
}

/// The kernel looks for a free port among every other one first, and one by one: where nearly all of those
/// are taken by connections to one server, each connect costs milliseconds.
fn widen_ports() -> Result<String> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(path)?;
    let bounds: Vec<&str> = text.split_ascii_whitespace().collect();
    if bounds.first().and_then(|low| low.parse().ok()) <= Some(LOWEST_PORT) {
        return Ok(String::new());
    }
    set(path, &bounds.join(" "), &format!("{LOWEST_PORT} 65535"))
}

/// Changes a setting. Returns the shell line that restores it.
fn set(path: &str, old: &str, new: &str) -> Result<String> {
    fs::write(path, new).map_err(|error| format!("{path} is {old}, and {new} is needed: {error}"))?;
    let name = Path::new(path).strip_prefix("/proc/sys").unwrap_or(Path::new(path)).display();
    println!("--- {name}: {old}, {new} until the end");
    Ok(format!("echo {old} > {path}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_what_the_kernel_prints() {
        assert_eq!(number_behind("MemFree: 1 kB\nSlab:     87064 kB\n", "Slab:"), Some(87_064));
        let sockets = "sockets: used 11\nTCP: inuse 3 orphan 0 tw 7 alloc 5 mem 215\nUDP: inuse 9\n";
        assert_eq!((tcp(sockets, "inuse"), tcp(sockets, "tw"), tcp(sockets, "mem")), (3, 7, 215));
    }

    #[test]
    fn our_own_process_has_memory_and_has_run() {
        let ours = [std::process::id()];
        assert!(memory(&ours).unwrap() > 100_000 && cpu(&ours).unwrap() > Duration::ZERO);
        assert!(Memory::now().unwrap().available > 0);
    }
}
