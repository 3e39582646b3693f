//! What the verdict says, as `--json` prints it.

use serde::Serialize;

/// The verdict.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verdict {
    /// What to know, in plain words.
    pub(crate) summary: String,
    /// One for each limit that cuts.
    pub(crate) cuts: Vec<CutVerdict>,
    /// `None`: nothing was measured.
    pub(crate) heartbeat: Option<Heartbeat>,
}

/// What may have made one of the cuts.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CutVerdict {
    /// The id of the finding that it belongs to.
    pub(crate) finding: &'static str,
    /// The most probable first.
    pub(crate) suspects: Vec<Suspect>,
}

/// Something that may have ended the connections.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Suspect {
    /// The id of a cutter, or `server`, or `network`.
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    pub(crate) certainty: Certainty,
    pub(crate) reasons: Vec<String>,
    /// How its limit is changed, or what helps.
    pub(crate) remedy: &'static str,
    /// Lines of configuration that raise the limit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) lines: Vec<&'static str>,
    /// Where its figures are written.
    pub(crate) source: Option<&'static str>,
}

/// How sure a guess is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Certainty {
    Possible,
    Probable,
    MostProbable,
}

impl Certainty {
    /// Returns it as an adverb.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Possible => "possibly",
            Self::Probable => "probably",
            Self::MostProbable => "most probably",
        }
    }
}

/// The heartbeat that keeps connections on the path open, and what to set where.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Heartbeat {
    pub(crate) interval_ms: f64,
    /// The longest interval that still leaves room for one that is late.
    pub(crate) at_most_ms: Option<f64>,
    pub(crate) server: String,
    pub(crate) client: String,
    pub(crate) mainstay: String,
}
