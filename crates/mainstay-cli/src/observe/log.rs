//! The log on standard error, written by a thread of its own.
//!
//! No task that serves a client waits for the reader of the log. Lines go into a bounded queue, and one thread writes
//! them. If the queue is full or a write fails, the line is lost and counted; after the next successful write one line
//! reports the count. Everything that the program writes to standard error takes this path: `eprintln!` would panic on a
//! full disk, and block on a reader that stalls.
//!
//! `tracing-appender` was rejected: at exit it prints to standard error itself, which may block or panic, and it does not
//! count lines that could not be written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::observe::log_text;

/// Maximum number of queued lines, and of their bytes.
const LINES: usize = 4096;
const BYTES: usize = 1 << 20;
/// The filter without `MAINSTAY_LOG`: warnings, and info lines about the process and its backend. Info lines about single
/// clients are not shown, and neither is the span of a session, which would cost some 300 bytes for each session. (A
/// directive matches every target that begins with it, so `mainstay::serve` alone would include the library's
/// `mainstay::server`.)
const DEFAULT: &str = "warn,mainstay::process=info,mainstay::serve=info,mainstay::server=warn,mainstay::admin=info,\
                       mainstay::upstream::backend_health=info,mainstay::upstream::pool=info,mainstay::cluster=info,\
                       mainstay::routes::reload=info,mainstay::observe::spans=info,mainstay::server::leave=info";

/// The format of log lines.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    ValueEnum,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// A message and name=value fields.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Flags of the log.
#[derive(clap::Args, Clone)]
pub(crate) struct LogArguments {
    /// Format of the log. MAINSTAY_LOG selects what is logged: a level (error, warn, info, debug, trace, off) or
    /// TARGET=LEVEL, several separated by commas. With info, each client that ends or resumes is one line.
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub(crate) log_format: Format,
}

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Starts the thread that writes. Lines logged before this call are lost.
pub(crate) fn start() {
    let queue = Arc::new(Queue::default());
    if QUEUE.set(Arc::clone(&queue)).is_err() {
        return;
    }
    // A separate descriptor: `std::io::stderr` holds its lock for as long as a write blocks.
    let Ok(output) = io::stderr().as_fd().try_clone_to_owned() else { return queue.fail() };
    let write = {
        let queue = Arc::clone(&queue);
        move || queue.write_to(File::from(output))
    };
    if std::thread::Builder::new().name("log".into()).spawn(write).is_err() {
        queue.fail();
    }
}

/// Installs the subscriber for the lines of the program and its libraries.
///
/// # Errors
/// `MAINSTAY_LOG`, or `other` in its place, is not a valid filter.
pub(crate) fn listen(format: Format, other: Option<&str>) -> Result<(), String> {
    let variable = std::env::var_os("MAINSTAY_LOG");
    let filter = match variable.as_deref().map(std::ffi::OsStr::to_string_lossy) {
        Some(variable) => filter(Some(variable))?,
        None => filter(other)?,
    };
    use_format(format);
    let colours = format == Format::Text && io::stderr().is_terminal();
    let line = move || Line { json: format == Format::Json, colours };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(line);
    match format {
        Format::Text => builder.with_ansi(colours).init(),
        Format::Json => {
            builder.json().flatten_event(true).init();
        }
    }
    // The default hook writes to standard error directly, and may block.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, what, "a thread panicked");
    }));
    Ok(())
}

/// Sets the format of the lines that the program itself writes.
pub(crate) fn use_format(format: Format) {
    if let Some(queue) = QUEUE.get() {
        queue.lock().json = format == Format::Json;
    }
}

/// Parses the filter.
pub(crate) fn filter(variable: Option<impl AsRef<str>>) -> Result<EnvFilter, String> {
    let text = variable.as_ref().map_or("", |text| text.as_ref().trim());
    let text = if text.is_empty() { DEFAULT } else { text };
    let wrong = |what: &str| {
        format!(
            "MAINSTAY_LOG={text}: {what}; write a level (error, warn, info, debug, trace, off) or TARGET=LEVEL, \
             for example info or warn,mainstay::server=debug"
        )
    };
    // `EnvFilter` reads a single word as a target, so a misspelt level would show nothing.
    let is_level = |word: &str| {
        ["error", "warn", "info", "debug", "trace", "off"].contains(&word.to_ascii_lowercase().as_str())
    };
    let mut words = text.split(',').map(str::trim);
    if !text.contains('[')
        && let Some(word) = words.find(|word| !word.contains('=') && !is_level(word))
    {
        return Err(wrong(&format!("{word:?} is not a level")));
    }
    EnvFilter::builder().parse(text).map_err(|error| wrong(&error.to_string()))
}

/// Writes one line whatever `MAINSTAY_LOG` selects: why the program does not start, or how it ended.
pub(crate) fn write_line(line: &str) {
    let Some(queue) = QUEUE.get() else { return };
    let json = queue.lock().json;
    let written = if json { in_json(line) } else { format!("mainstay: {line}\n") };
    // Several problems of a configuration are a line each.
    let lines = written.split_inclusive('\n').map(|line| log_text::escape(line, json, false));
    queue.push(lines.collect::<String>().into_bytes());
}

/// Writes text unchanged, for a terminal.
pub(crate) fn write_raw(text: String) {
    if let Some(queue) = QUEUE.get() {
        queue.push(text.into_bytes());
    }
}

fn in_json(line: &str) -> String {
    let timestamp = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let object =
        serde_json::json!({"timestamp": timestamp, "level": "INFO", "message": line, "target": "mainstay"});
    format!("{object}\n")
}

/// Returns the number of lines lost since the start.
pub(crate) fn lines_lost() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.lock().lost)
}

/// Waits until every line is written, at most for `at_most`.
///
/// It waits in steps: a process or a machine that stands still uses up one step, and the writer has its turn in the next.
pub(crate) fn flush(at_most: Duration) {
    const STEPS: u32 = 20;
    let Some(queue) = QUEUE.get() else { return };
    let has_lines = |state: &mut State| !state.has_failed && (state.is_writing || !state.lines.is_empty());
    let mut state = queue.lock();
    for _ in 0..STEPS {
        let step = queue.changed.wait_timeout_while(state, at_most / STEPS, has_lines);
        let (after, waited) = step.unwrap_or_else(PoisonError::into_inner);
        if !waited.timed_out() {
            return;
        }
        state = after;
    }
}

/// Writes a formatted event into the queue.
struct Line {
    json: bool,
    colours: bool,
}

impl Write for Line {
    /// The subscriber calls this once for each event.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            let text = String::from_utf8_lossy(line);
            queue.push(log_text::escape(&text, self.json, self.colours).into_owned().into_bytes());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines that wait to be written.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Signals a new line, or that all lines are written.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    is_writing: bool,
    /// There is no writer: every line is lost.
    has_failed: bool,
    json: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.has_failed || state.lines.len() >= LINES || state.bytes + line.len() > BYTES {
            state.lost += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_all();
    }

    fn fail(&self) {
        self.lock().has_failed = true;
    }

    /// Writes lines until the process ends.
    fn write_to(&self, mut output: impl Write) {
        let (mut reported, mut torn) = (0, false);
        loop {
            let line = self.next();
            let written = write_one(&mut output, &line, &mut torn);
            let mut state = self.lock();
            state.is_writing = false;
            if written.is_err() {
                state.lost += 1;
            }
            let (lost, is_idle) = (state.lost - reported, state.lines.is_empty());
            if written.is_ok() && lost > 0 {
                reported = state.lost;
            }
            drop(state);
            if written.is_ok() && lost > 0 {
                // This line takes the queue like any other: if that is full, it is lost and counted too.
                tracing::warn!(
                    lines = lost,
                    "log lines were lost: standard error could not be written, or not fast enough"
                );
            } else if is_idle {
                self.changed.notify_all();
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes one line with one write call, unless the output accepts only part of it. `torn`: the previous line was cut
/// short.
fn write_one(output: &mut impl Write, line: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        write_all(output, b"\n", &mut false)?;
        *torn = false;
    }
    write_all(output, line, torn)
}

fn write_all(output: &mut impl Write, mut rest: &[u8], torn: &mut bool) -> io::Result<()> {
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                rest = rest.get(count..).unwrap_or_default();
                *torn = !rest.is_empty();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process made the shared descriptor non-blocking. This thread only writes, so it may wait.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Accepts `room` bytes, then nothing until it has room again.
    struct Disk {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.written.extend_from_slice(&bytes[..count]);
            if count > 0 { Ok(count) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_default_log_shows_lines_about_the_gateway_and_none_about_single_clients() {
        let shown = |variable: Option<&str>| {
            let subscriber = tracing_subscriber::registry().with(filter(variable).unwrap());
            tracing::subscriber::with_default(subscriber, || {
                (
                    tracing::enabled!(target: "mainstay::serve", tracing::Level::INFO),
                    tracing::enabled!(target: "mainstay::server::core", tracing::Level::INFO),
                )
            })
        };
        assert_eq!((shown(None), shown(Some("info"))), ((true, false), (true, true)));
    }

    #[test]
    fn each_module_that_the_default_log_names_is_there() {
        let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for directive in DEFAULT.split(',').filter_map(|directive| directive.strip_prefix("mainstay::")) {
            let module = directive.split('=').next().unwrap().replace("::", "/");
            let is_in = |source: &str| {
                let path = sources.join(source).join(&module);
                path.is_dir() || path.with_extension("rs").is_file()
            };
            assert!(is_in("src") || is_in("../mainstay/src"), "{directive}");
        }
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_run_into_the_next() {
        let (mut disk, mut torn) = (Disk { written: Vec::new(), room: 3 }, false);
        assert!(write_one(&mut disk, b"first\n", &mut torn).is_err());
        assert!(write_one(&mut disk, b"second\n", &mut torn).is_err());
        disk.room = 100;
        write_one(&mut disk, b"third\n", &mut torn).unwrap();
        write_one(&mut disk, b"fourth\n", &mut torn).unwrap();
        assert_eq!(String::from_utf8(disk.written).unwrap(), "fir\nthird\nfourth\n");
    }

    #[test]
    fn a_queue_without_a_reader_is_bounded_by_lines_and_by_bytes() {
        for (size, kept) in [(10, LINES), (BYTES / 4, 4)] {
            let queue = Queue::default();
            (0..LINES + 5).for_each(|_| queue.push(vec![b'x'; size]));
            let state = queue.lock();
            assert_eq!(
                (state.lines.len(), state.lost),
                (kept, (LINES + 5 - kept) as u64),
                "{size} bytes each"
            );
        }
    }

    #[test]
    fn a_filter_is_a_level_or_targets_with_levels_and_anything_else_is_an_error() {
        for right in
            ["", "info", "WARN", "off", "mainstay=debug", "warn,mainstay::server=trace", "[span]=debug"]
        {
            assert!(filter(Some(right)).is_ok(), "{right}");
        }
        for wrong in ["verbose", "infoo", "mainstay=verbose", "info,mainstay", "debug;warn"] {
            let error = filter(Some(wrong)).unwrap_err();
            assert!(error.contains("MAINSTAY_LOG") && error.contains("for example info"), "{error}");
        }
        assert!(filter(None::<&str>).is_ok());
    }

    #[test]
    fn a_line_in_json_is_one_object_whatever_text_it_holds() {
        let line = in_json("a \"quoted\"\nword");
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], "a \"quoted\"\nword");
        assert_eq!(line.matches('\n').count(), 1);
    }
}
