//! Runs other programs to their end, or keeps them running in the background and always ends them by process id.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Outcome, Result};

/// How often a background program is checked.
const POLL: Duration = Duration::from_millis(50);

/// Lines of a program's log that its errors quote.
const TAIL: usize = 12;

/// Makes the workspace's folder the current one: every path in this crate is relative to it.
pub(crate) fn enter_workspace() -> Result<()> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").ok_or("run me as `cargo xtask`")?;
    let root = Path::new(&manifest).parent().ok_or("xtask is not inside a workspace")?;
    Ok(env::set_current_dir(root)?)
}

/// Runs cargo with arguments separated by spaces.
pub(crate) fn cargo(arguments: &str) -> Result<Outcome> {
    check(Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(arguments.split(' ')))
}

/// Runs a command to its end and passes its output on. Anything but success is an error that names the command.
pub(crate) fn check(command: &mut Command) -> Result<Outcome> {
    let line = shown(command);
    println!("$ {line}");
    let status = command.stdin(Stdio::null()).status().map_err(|error| format!("`{line}`: {error}"))?;
    if status.success() { Ok(Outcome::Passed) } else { Err(format!("`{line}`: {status}").into()) }
}

/// Returns what a command prints on its standard output, if it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("`{line}`: {error}"))?;
    if !output.status.success() {
        return Err(
            format!("`{line}`: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The existing files that git tracks or would track.
pub(crate) fn tracked_files() -> Result<Vec<String>> {
    let listed =
        output(Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let files: BTreeSet<_> = listed.lines().filter(|path| Path::new(path).is_file()).collect();
    Ok(files.into_iter().map(str::to_owned).collect())
}

/// Whether a command can be started and succeeds. Discards its output.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// A loopback address that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A background program, leader of its own process group. Dropping this value ends the group.
///
/// Its errors contain the last lines of its log.
pub(crate) struct Background {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Background {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Starts `command` with both its outputs going to `log`.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        println!("$ {}", shown(command));
        Self::start_quietly(command, log)
    }

    /// The same, but prints nothing.
    pub(crate) fn start_quietly(command: &mut Command, log: PathBuf) -> Result<Self> {
        let name = shown(command);
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().map_err(|error| format!("`{name}`: {error}"))?;
        Ok(Self { child, name, log })
    }

    /// Waits until `ready` is true. It is an error if the program ends first, or if `limit` passes.
    pub(crate) fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut(&Path) -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready(&self.log) {
            self.check_running()?;
            if started.elapsed() > limit {
                return Err(self.error(&format!("was not ready after {limit:?}")));
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// An error if the program has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.error(&format!("ended early, {status}"))),
            None => Ok(()),
        }
    }

    /// Waits for `label` in the program's log, and returns the word behind it.
    pub(crate) fn announced(&mut self, limit: Duration, label: &str) -> Result<String> {
        let mut found = None;
        self.wait_until(limit, |log| {
            let log = fs::read_to_string(log).unwrap_or_default();
            let line = log.split_once(label).and_then(|(_, rest)| rest.split_once('\n'));
            found = line.and_then(|(line, _)| line.split_whitespace().next()).map(str::to_owned);
            found.is_some()
        })?;
        found.ok_or_else(|| format!("no {label:?} in its log").into())
    }

    /// Waits until something accepts connections at `address`.
    pub(crate) fn wait_listening(&mut self, limit: Duration, address: SocketAddr) -> Result<()> {
        self.wait_until(limit, |_| TcpStream::connect(address).is_ok())
    }

    /// Waits until the program ends by itself. A failure is an error, and so is `limit`.
    pub(crate) fn wait_success(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait_end(limit)?;
        if status.success() { Ok(()) } else { Err(self.error(&status.to_string())) }
    }

    /// Waits until the program ends by itself, with any status. It is an error if `limit` passes.
    pub(crate) fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(status),
                None if started.elapsed() > limit => {
                    return Err(self.error(&format!("still ran after {limit:?}")));
                }
                None => sleep(POLL),
            }
        }
    }

    /// Sends the program itself a signal, for example `STOP`.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().to_string();
        output(Command::new("kill").args(["-s", signal, &id])).map(drop)
    }

    fn error(&self, what: &str) -> Box<dyn Error> {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        format!("`{}`: {what}\n{tail}", self.name).into()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// A command as a person would type it; for a shell, its script alone.
fn shown(command: &Command) -> String {
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    match words.as_slice() {
        [shell, _, script] if shell == "sh" => script.trim().to_owned(),
        words => words.join(" "),
    }
}
