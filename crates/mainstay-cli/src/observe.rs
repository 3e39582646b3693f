//! What the operator sees: logs, metrics and traces.

pub(crate) mod access_log;
pub(crate) mod log;
pub(crate) mod log_text;
pub(crate) mod metrics;
pub(crate) mod refusals;
pub(crate) mod spans;
