//! The side of the clients: the addresses and sockets, TLS, who the client is, and how much it may and does take.

pub(crate) mod client_listeners;
pub(crate) mod client_tls;
pub(crate) mod identity;
pub(crate) mod limits;
pub(crate) mod listen_address;
pub(crate) mod listeners;
pub(crate) mod principal;
pub(crate) mod slow_clients;
