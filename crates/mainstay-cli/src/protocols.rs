//! What the gateway knows of application protocols above WebSocket, so that a session survives a lost link.

pub(crate) mod backend_end;
pub(crate) mod graphql;
pub(crate) mod message_filter;
pub(crate) mod moving;
pub(crate) mod profiles;
pub(crate) mod prologue;
pub(crate) mod rules;
pub(crate) mod saved;
