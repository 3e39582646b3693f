//! Signals that end the process, in order or at once, and signals that are ignored.
//!
//! Not here: SIGHUP (`reload`).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Interrupt,
    Quit,
    Terminate,
}

impl Stop {
    /// Returns the exit code of a process that this signal ended at once: 128 plus its number.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Quit => 131,
            Self::Terminate => 143,
        }
    }
}

/// Receives SIGINT, SIGQUIT and SIGTERM.
pub(crate) struct Stops {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Stops {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Returns the next signal.
    pub(crate) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.quit.recv() => Stop::Quit,
            _ = self.terminate.recv() => Stop::Terminate,
        }
    }
}

/// Signals that would end the process by default and are sent for other reasons, such as log rotation. Each is logged with the signal that does what the sender probably wanted.
const IGNORED: [(&str, SignalKind, &str); 3] = [
    (
        "SIGUSR1",
        SignalKind::user_defined1(),
        "there is no log file to reopen: the log goes to standard error",
    ),
    ("SIGUSR2", SignalKind::user_defined2(), "to upgrade, send SIGTERM and start the successor at once"),
    ("SIGALRM", SignalKind::alarm(), "no alarm is set; SIGTERM ends the process in order"),
];

/// Logs and ignores these signals from now on. Rust's runtime ignores SIGPIPE from the start.
pub(crate) fn ignore_the_others() -> io::Result<()> {
    for (name, kind, instead) in IGNORED {
        let mut signal = signal(kind)?;
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                tracing::info!(signal = name, instead, "signal ignored");
            }
        });
    }
    Ok(())
}
