//! What is measured by waiting.

use serde::Serialize;

/// The results of the experiments.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Measured {}
