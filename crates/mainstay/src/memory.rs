//! How much memory this process may use: the limits of its control groups, and at most the memory of the machine.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the limit in bytes; `None` where the system reports none.
pub(crate) fn allowed() -> Option<u64> {
    allowed_under(Path::new("/"))
}

fn allowed_under(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|line| limit_files(&root.join("sys/fs/cgroup"), line));
    let limits = limits.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.chain(machine(root)).min()
}

/// Returns the files with the limits of a group that a line of `/proc/self/cgroup` names, and with those of the groups around
/// it. In a container the path may be the one outside of it; then only the root exists.
fn limit_files(mounted: &Path, line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
        return Vec::new();
    };
    let (mounted, file) = match controllers {
        // "max" means no limit.
        "" => (mounted.to_owned(), "memory.max"),
        _ if controllers.split(',').any(|controller| controller == "memory") => {
            (mounted.join("memory"), "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|group| mounted.join(group).join(file)).collect()
}

fn machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the limit of a system with these files.
    fn allowed_with(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = std::env::temp_dir().join(format!("mainstay-memory-{}-{name}", std::process::id()));
        for (path, text) in files {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let found = allowed_under(&root);
        let _ = fs::remove_dir_all(root);
        found
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemFree: 1 kB\nMemTotal:       1000 kB\n");

    #[test]
    fn without_control_groups_the_machines_memory_is_the_limit() {
        assert_eq!(allowed_with("none", &[]), None);
        assert_eq!(allowed_with("machine", &[MACHINE]), Some(1_024_000));
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_around_it_counts() {
        let group = ("proc/self/cgroup", "0::/system.slice/mainstay.service\n");
        let own = ("sys/fs/cgroup/system.slice/mainstay.service/memory.max", "max\n");
        let around = ("sys/fs/cgroup/system.slice/memory.max", "5000\n");
        assert_eq!(allowed_with("parent", &[MACHINE, group, own, around]), Some(5000));
        let own = (own.0, "4000\n");
        assert_eq!(allowed_with("own", &[MACHINE, group, own, around]), Some(4000));
        assert_eq!(allowed_with("unlimited", &[MACHINE, group, (own.0, "max\n")]), Some(1_024_000));
    }

    #[test]
    fn in_a_container_the_root_of_the_mounted_groups_counts() {
        let group = ("proc/self/cgroup", "0::/docker/0123\n");
        assert_eq!(
            allowed_with("container", &[MACHINE, group, ("sys/fs/cgroup/memory.max", "6000")]),
            Some(6000)
        );
    }

    #[test]
    fn the_first_version_of_control_groups_counts_too() {
        let group = ("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/a/b\n");
        let own = ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
        let around = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "7000\n");
        assert_eq!(allowed_with("v1", &[MACHINE, group, own, around]), Some(7000));
        assert_eq!(allowed_with("v1-unlimited", &[MACHINE, group, own]), Some(1_024_000));
    }
}
