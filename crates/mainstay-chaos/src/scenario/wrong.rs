//! What is wrong with a scenario, in one line.

use std::fmt;

/// Why a scenario, a rule or the name of a profile is refused. One line: the line of the file if there is one, the field, its
/// bound, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScenarioError(pub(super) String);

/// A step from the root of a file to a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Name(String),
    /// Counted from 0.
    Index(usize),
}

/// A mistake, with the path to the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) path: Vec<Step>,
    what: String,
}

impl Wrong {
    pub(super) fn at(field: &str, what: impl Into<String>) -> Self {
        Self { path: vec![Step::Name(field.to_owned())], what: what.into() }
    }

    /// A mistake that belongs to no single field.
    pub(super) fn whole(what: impl Into<String>) -> Self {
        Self { path: Vec::new(), what: what.into() }
    }

    /// Puts a step before the path.
    pub(super) fn within(mut self, step: Step) -> Self {
        self.path.insert(0, step);
        self
    }
}

impl fmt::Display for Wrong {
    /// Writes `fault[1].for: must be ...`, on one line whatever the file quotes.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.path.iter().enumerate() {
            match step {
                Step::Name(name) if number == 0 => write!(to, "{}", name.escape_debug())?,
                Step::Name(name) => write!(to, ".{}", name.escape_debug())?,
                Step::Index(index) => write!(to, "[{index}]")?,
            }
        }
        let what = self.what.split_whitespace().collect::<Vec<_>>().join(" ");
        if self.path.is_empty() { to.write_str(&what) } else { write!(to, ": {what}") }
    }
}

impl From<Wrong> for ScenarioError {
    fn from(wrong: Wrong) -> Self {
        Self(wrong.to_string())
    }
}
