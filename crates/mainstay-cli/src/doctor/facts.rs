//! The facts of one connection.

use super::progress::Progress;
use super::report::Facts;
use super::target::Target;

/// Gathers the facts, and writes each one as soon as it is known. Returns the target at the address that answered.
///
/// # Cancel safety
/// Safe: what is known so far is in `facts`.
pub(super) async fn gather(target: &Target, facts: &mut Facts, _progress: &Progress) -> Target {
    match target.open().await {
        Ok(probe) => facts.handshake = Some(probe.handshake().clone()),
        Err(error) => facts.failed = Some(error),
    }
    target.clone()
}
