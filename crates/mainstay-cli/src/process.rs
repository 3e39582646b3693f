//! The process and its surroundings: signals, the supervisor, inherited listeners, limits, the environment.

pub(crate) mod activation;
pub(crate) mod descriptors;
pub(crate) mod process_metrics;
pub(crate) mod signals;
pub(crate) mod successor;
pub(crate) mod supervisor;
pub(crate) mod variables;
