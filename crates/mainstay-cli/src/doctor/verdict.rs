//! The verdict: findings and advice from what was measured.

use super::report::{Finding, Report, Verdict};

/// Returns the findings that the measurements show, beside those of the facts, and the verdict on everything.
pub(crate) fn judge(_report: &Report) -> (Vec<Finding>, Option<Verdict>) {
    (Vec::new(), None)
}
