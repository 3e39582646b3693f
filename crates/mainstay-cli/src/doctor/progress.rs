//! Progress on its way to the screen.

use tokio::sync::mpsc;

/// How many updates may wait for the screen. The next one replaces what is lost: a row shows its latest state.
const WAITING: usize = 1024;

/// A row of the table has a new state.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    /// The name of the row, such as `TLS` or `idle, our Pings`.
    pub(crate) row: &'static str,
    /// The state, in a few words.
    pub(crate) words: String,
    pub(crate) state: State,
}

/// What a row of the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It goes on.
    Running,
    /// It is done, and healthy.
    Good,
    /// It is done, and a finding.
    Bad,
    /// It is done, or was left out, without a judgement.
    Done,
}

/// Sends updates. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Progress(mpsc::Sender<Update>);

impl Progress {
    /// Creates the two ends.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Update>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Reports the state of a row. An update is lost if too many wait.
    pub(crate) fn report(&self, row: &'static str, state: State, words: impl Into<String>) {
        let _ = self.0.try_send(Update { row, words: words.into(), state });
    }
}
