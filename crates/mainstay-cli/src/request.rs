//! One request of a client: the opening handshake or plain HTTP, forwarded, and then the messages of its connection.

pub(crate) mod client_request;
pub(crate) mod exchange;
pub(crate) mod forward;
pub(crate) mod handshake;
pub(crate) mod http_proxy;
pub(crate) mod idle_timeout;
pub(crate) mod request_body;
pub(crate) mod response_body;
pub(crate) mod retry_after;
pub(crate) mod session;
