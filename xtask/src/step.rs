//! Runs a step as a process of its own: one that hangs ends with an error, and two can run side by side.
//!
//! The process prints as usual. Each line is passed on, and the last ones are remembered for the error. All that a step
//! starts inherits a mark in its environment, by which it is found and killed, whichever process group it is in.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::{Depth, Outcome, Result};

/// The variable that everything which a step starts inherits. It is none of `MAINSTAY_`, of which the gateway reports unknown ones.
const MARK: &str = "XTASK_STEP";

/// Lines of the step's output that the error quotes.
const TAIL: usize = 12;

/// How often the process is checked.
const POLL: Duration = Duration::from_millis(50);

/// Runs the step `name` in a process within `limit`. With a `label`, each of its lines begins with the step's name.
pub(crate) fn run(name: &str, depth: Depth, limit: Duration, label: bool) -> Result<Outcome> {
    let outcome = outcome_file(name);
    let _ = fs::remove_file(&outcome);
    let mut command = Command::new(this_program()?);
    command.args(["step", name]).args((depth == Depth::Nightly).then_some("--nightly"));
    for name in names_of_this_package() {
        command.env_remove(name);
    }
    if io::IsTerminal::is_terminal(&io::stderr()) {
        command.env("CARGO_TERM_COLOR", "always"); // it writes to a pipe now
    }
    let started = Instant::now();
    let watched = watch(name, &mut command, label, || started.elapsed() > limit)?;
    match watched {
        Watched::Ended(status) => match fs::read_to_string(&outcome) {
            Ok(text) => parse(&text),
            Err(_) => Err(format!("its process ended without a result, {status}").into()),
        },
        Watched::Killed { last } => {
            let minutes = limit.as_secs() / 60;
            Err(format!("it still ran after {minutes} minutes and was killed; it printed last:\n{last}")
                .into())
        }
    }
}

/// The variables by which cargo describes xtask to itself. A build script that reads one of them, as ring's does, would run again
/// under a step, and again outside of it, and everything above it would be compiled anew each time.
fn names_of_this_package() -> impl Iterator<Item = String> {
    let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
}

/// Writes down how the step of this process ended, for [`run`].
pub(crate) fn report(name: &str, outcome: &Result<Outcome>) -> Result<()> {
    let file = outcome_file(name);
    fs::create_dir_all(file.parent().ok_or("no folder for the outcome")?)?;
    let text = match outcome {
        Ok(Outcome::Passed) => "passed\n".to_owned(),
        Ok(Outcome::Skipped(why)) => format!("skipped\n{why}"),
        Err(error) => format!("failed\n{error}"),
    };
    Ok(fs::write(file, text)?)
}

fn parse(text: &str) -> Result<Outcome> {
    match text.split_once('\n') {
        Some(("passed", _)) => Ok(Outcome::Passed),
        Some(("skipped", why)) => Ok(Outcome::Skipped(why.to_owned())),
        Some(("failed", error)) => Err(error.into()),
        _ => Err("its process wrote no result".into()),
    }
}

fn outcome_file(name: &str) -> PathBuf {
    PathBuf::from("target/xtask/steps").join(name)
}

/// This program, also after a step has compiled it anew.
fn this_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { env::current_exe() }
}

enum Watched {
    Ended(ExitStatus),
    Killed { last: String },
}

/// Runs a command until it ends or `is_over`, and kills what it leaves running.
fn watch(
    name: &str,
    command: &mut Command,
    label: bool,
    mut is_over: impl FnMut() -> bool,
) -> Result<Watched> {
    let mark = format!("{name}-{}", std::process::id());
    let (reader, writer) = io::pipe()?;
    let label = if label { format!("{name:11} | ") } else { String::new() };
    command.env(MARK, &mark).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().map_err(|error| format!("`{name}`: {error}"))?;
    // The command has the other end of the pipe, too.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let passing_on = thread::spawn(move || pass_on(reader, &label));
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if is_over() => break None,
            None => sleep(POLL),
        }
    };
    kill_all(&mark, &mut child);
    let last = passing_on.join().unwrap_or_default();
    Ok(status.map_or(Watched::Killed { last }, Watched::Ended))
}

/// Prints each line behind `label`, and returns the last ones.
fn pass_on(reader: PipeReader, label: &str) -> String {
    let mut last = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n').map_while(io::Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        println!("{label}{line}");
        last.push_back(line);
        if last.len() > TAIL {
            last.pop_front();
        }
    }
    Vec::from(last).join("\n")
}

/// Kills the process and everything that has the mark, until nothing has it: what is killed may just have started something.
/// Where there is no `/proc`, only the process.
fn kill_all(mark: &str, child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
    let mut found = marked(mark);
    while !found.is_empty() {
        let _ = Command::new("kill").arg("-KILL").args(&found).stderr(Stdio::null()).status();
        sleep(POLL);
        found = marked(mark);
    }
}

/// The processes whose environment has the mark. A process that has ended has no environment.
fn marked(mark: &str) -> Vec<String> {
    let entry = format!("{MARK}={mark}");
    let has_it = |id: &String| {
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == entry.as_bytes())
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = all.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(has_it).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-euc", script]);
        shell
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_step_that_hangs_is_killed_with_all_it_started_and_its_last_lines_are_quoted() {
        let file = env::temp_dir().join(format!("mainstay-hangs-{}", std::process::id()));
        // The first `sleep` is in a group of its own and has lost its parent.
        let script = format!(
            "seq 20; (setsid sleep 600 &); echo here it hangs; echo > '{}'; sleep 600",
            file.display()
        );
        let watched = watch("hangs", &mut shell(&script), false, || file.exists()).unwrap();
        let _ = fs::remove_file(&file);
        let Watched::Killed { last } = watched else { panic!("it ended by itself") };
        assert!(last.starts_with("10\n11\n") && last.ends_with("20\nhere it hangs"), "{last}");
        assert_eq!(marked(&format!("hangs-{}", std::process::id())), [""; 0]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_step_leaves_running_does_not_outlive_it() {
        let watched = watch("leaves", &mut shell("sleep 600 & exit 3"), false, || false).unwrap();
        assert!(matches!(watched, Watched::Ended(status) if status.code() == Some(3)));
        assert_eq!(marked(&format!("leaves-{}", std::process::id())), [""; 0]);
    }

    #[test]
    fn what_describes_xtask_itself_is_kept_from_a_step() {
        let names: Vec<String> = names_of_this_package().collect();
        assert!(
            ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"].iter().all(|name| names.contains(&name.to_string()))
        );
        assert!(!names.iter().any(|name| name == "CARGO" || name == "CARGO_HOME"));
    }

    #[test]
    fn an_outcome_is_read_as_it_was_written() {
        assert!(matches!(parse("passed\n"), Ok(Outcome::Passed)));
        assert!(matches!(parse("skipped\nno man\nhere"), Ok(Outcome::Skipped(why)) if why == "no man\nhere"));
        assert_eq!(parse("failed\na\nb").err().unwrap().to_string(), "a\nb");
        assert!(parse("").is_err());
    }
}
