//! Signals: what ends the process, in order or at once, and what never does.

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
    /// The code of a process that this signal ended at once: 128 and its number.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Quit => 131,
            Self::Terminate => 143,
        }
    }
}

/// SIGINT, SIGQUIT and SIGTERM from now on.
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

    /// The next of them.
    pub(crate) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.quit.recv() => Stop::Quit,
            _ = self.terminate.recv() => Stop::Terminate,
        }
    }
}

/// Signals that would end the process and are sent for other reasons: by `systemctl reload`, by the rotation of logs, by
/// a terminal that is closed. Each gets one line that says what does what was probably meant.
const IGNORED: [(&str, SignalKind, &str); 4] = [
    (
        "SIGHUP",
        SignalKind::hangup(),
        "there is no configuration to read again; to change flags send SIGTERM and start the successor at once",
    ),
    (
        "SIGUSR1",
        SignalKind::user_defined1(),
        "there is no file of the log to open again: it is standard error",
    ),
    ("SIGUSR2", SignalKind::user_defined2(), "to upgrade send SIGTERM and start the successor at once"),
    ("SIGALRM", SignalKind::alarm(), "no alarm is set; SIGTERM ends in order"),
];

/// From now on they only make a line of the log. SIGPIPE is ignored from the start, by Rust's own runtime.
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
