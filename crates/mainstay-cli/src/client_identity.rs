//! The client of a request: the address of its client, and the subject of its credentials. They travel in the extensions
//! of the request, from the part that establishes them to those that count, log and decide by them.

use std::net::IpAddr;
use std::sync::Arc;

/// The address of a request's client: that of the connection, or the one that trusted proxies report. Set on every request
/// that came over IP, before a route is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// The client by its credentials, for example the `sub` of its JWT. Absent where a route has no credentials, or where
/// they come later, in the session's HELLO.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(dead_code)] // Set by the credentials of a route.
pub(crate) struct Subject(pub(crate) Arc<str>);
