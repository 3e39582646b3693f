//! When a client is asked to come back: `Retry-After` of an HTTP response, `retry_ms=` in the reason of a Close.
//!
//! Each client gets another time, so that the clients of a backend that was lost do not return all at once.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use http::HeaderValue;

/// Clients come back spread over this time, after the first second.
pub(crate) const SPREAD: Duration = Duration::from_secs(10);

/// The value of `Retry-After`, in seconds.
pub(crate) fn seconds() -> HeaderValue {
    HeaderValue::from(1 + jitter(SPREAD).as_secs())
}

/// The reason of a Close. Source: `docs/PROTOCOL.md` "Closing".
pub(crate) fn close_reason() -> String {
    let after = Duration::from_secs(1) + jitter(SPREAD);
    format!("retry_ms={}, the backend cannot be reached", after.as_millis())
}

/// A random time, uniform below `spread`. The standard library's hasher is seeded randomly; spreading clients needs
/// nothing better.
pub(crate) fn jitter(spread: Duration) -> Duration {
    let part = RandomState::new().hash_one(0) >> 32;
    spread.mul_f64(part as f64 / f64::from(u32::MAX))
}
