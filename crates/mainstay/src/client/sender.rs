//! Sending through a client from elsewhere.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use mainstay_proto::session::message::SessionId;
use mainstay_proto::ws::CloseCode;

use super::core::Core;
use super::verbs::shared_verbs;
use crate::clock::now;

/// Sends through a client from elsewhere. Cheap to clone; does not keep the client open.
///
/// Two senders are equal if they send through the same client.
///
/// ```no_run
/// # async fn run(mut client: mainstay::Client) {
/// let sender = client.sender();
/// tokio::spawn(async move {
///     while sender.send("tick").await.is_ok() {
///         tokio::time::sleep(std::time::Duration::from_secs(1)).await;
///     }
/// });
/// while let Some(message) = client.recv().await {
///     println!("{message:?}");
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Sender {
    core: Arc<Core>,
}

shared_verbs!([] Sender);

impl Sender {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// Lets a link rest, as [`Link::rest`](crate::Link::rest). Returns `false` in a session.
    #[must_use]
    pub fn rest(&self, code: CloseCode, reason: &str) -> bool {
        self.core.change(|inner| inner.machine.rest(now(), code, reason))
    }

    /// The public name of the session, for logs; `None` before the first attach and towards a plain peer.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.core.lock().machine.id()
    }
}

impl PartialEq for Sender {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core)
    }
}

impl Eq for Sender {}

impl Hash for Sender {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.core).hash(state);
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
}
