//! Which faults strike when.
//!
//! `table` reads a rule as people write it, `file` a whole file of them, and `profile` has those that come with the program.

mod file;
mod guess;
mod profile;
mod table;
mod wrong;

pub use self::file::ScenarioFile;
pub use self::profile::Profile;
pub use self::wrong::ScenarioError;

use std::time::Duration;

use crate::fault::Fault;

/// The greatest number of rules in a file, and of a run of `mainstay chaos`: each connection keeps the times of all.
pub const MAX_RULES: usize = 1000;

/// The faults of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scenario {
    /// In the order in which they apply.
    pub rules: Vec<Rule>,
}

/// One fault, and when it strikes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What strikes.
    pub fault: Fault,
    /// When it strikes.
    pub when: When,
    /// How long it lasts; `None`: until the connection ends, or until it is lifted. Faults of one moment ignore it.
    pub lasts: Option<Duration>,
    /// The share of connections that it strikes, drawn from the seed when a connection opens. Range: 0 to 1. Default: 1.
    pub share: f64,
}

/// When a fault strikes. `refuse` and `mute` are about connections that are not open yet: the schedule of their rule is the proxy's, and
/// counts from its start.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum When {
    /// Always: from the start, and each connection from its opening.
    Always,
    /// Once, so long after the start of the proxy or the replacement of its rules, all connections that are open then, and while it
    /// lasts also those that open; and again each `repeat`.
    At {
        /// Since then.
        at: Duration,
        /// The time between two strikes; `None`: once.
        repeat: Option<Duration>,
    },
    /// So long after the opening of each connection.
    After(Duration),
    /// At random times of each connection, drawn from the seed: this long apart on average.
    Every(Duration),
}
