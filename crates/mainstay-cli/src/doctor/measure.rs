//! Runs the experiments side by side.

use super::Plan;
use super::measured::Measured;
use super::progress::Progress;
use super::target::Target;

/// Returns what the experiments will do to the server, one line each: the question to the user shows it.
pub(crate) fn announced(plan: &Plan) -> Vec<String> {
    vec![format!("up to {} connections at once, for {} s", plan.connections, plan.lasts.as_secs())]
}

/// Runs the experiments and writes each result as soon as it is known.
///
/// # Cancel safety
/// Safe: what is known so far is in `measured`.
pub(crate) async fn measure(_target: &Target, _plan: &Plan, _measured: &mut Measured, _progress: &Progress) {}
