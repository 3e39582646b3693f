//! The timeline of a server: the ring of [`mainstay_proto::timeline`] behind one lock, which no message takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mainstay_proto::timeline::Timeline as Ring;
pub use mainstay_proto::timeline::{Attach, ClientName, Entry, Event, Loss, NotAName, Resource};

/// What happened to the clients of a server, the newest events. Cheap to clone; every clone is the same timeline. Without
/// [`Config::timeline`](super::Config::timeline) it is off: it notes nothing and returns nothing.
///
/// ```
/// use mainstay::server::Config;
/// use mainstay::Server;
///
/// let server = Server::new(Config::new().timeline(1024));
/// assert_eq!(server.timeline().since(0, 100), []);
/// ```
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<Mutex<Ring>>>);

impl Timeline {
    pub(super) fn new(now: Instant, room: usize) -> Self {
        Self((room > 0).then(|| Arc::new(Mutex::new(Ring::new(now, room)))))
    }

    /// Whether events are noted.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Notes an event that happens now. The server notes what it observes itself; this is for what an application knows of
    /// its clients, for example that a gateway lost its connection to the backend.
    pub fn note(&self, client: Option<ClientName>, event: Event) {
        self.note_at(crate::clock::now(), client, event);
    }

    #[cold] // no message is noted: this stays out of the code that messages run
    pub(super) fn note_at(&self, at: Instant, client: Option<ClientName>, event: Event) {
        if let Some(mut ring) = self.ring() {
            ring.note(at, client, event);
        }
    }

    /// Returns the entries of one client that are not forgotten, the oldest first. Walks the ring.
    #[must_use]
    pub fn of(&self, client: ClientName) -> Vec<Entry> {
        self.ring().map_or_else(Vec::new, |ring| ring.of(client).copied().collect())
    }

    /// Returns the newest entries from this number on, at most `limit`, with their numbers, the oldest first. The entry that
    /// is noted next has the number after the last one.
    #[must_use]
    pub fn since(&self, number: u64, limit: usize) -> Vec<(u64, Entry)> {
        self.ring().map_or_else(Vec::new, |ring| {
            let from = number.max(ring.noted().saturating_sub(limit as u64));
            ring.since(from).map(|(number, entry)| (number, *entry)).collect()
        })
    }

    /// Returns how many entries were ever noted, and how many of them are forgotten.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.ring().map_or((0, 0), |ring| (ring.noted(), ring.oldest()))
    }

    fn ring(&self) -> Option<MutexGuard<'_, Ring>> {
        self.0.as_ref().map(|ring| ring.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (noted, forgotten) = self.counts();
        f.debug_struct("Timeline").field("noted", &noted).field("forgotten", &forgotten).finish()
    }
}
