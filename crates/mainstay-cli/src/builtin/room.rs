//! A room: what one says, everyone in it hears.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay::server::Sender;
use mainstay::{CloseCode, Message, SendError};

/// Everyone connected to one path.
#[derive(Clone, Default)]
pub(super) struct Room {
    members: Arc<Mutex<BTreeMap<u64, Sender>>>,
    next: Arc<AtomicU64>,
}

impl Room {
    pub(super) fn enter(&self, sender: Sender) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        self.members.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        id
    }

    pub(super) fn leave(&self, id: u64) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub(super) fn say(&self, message: &Message) {
        for sender in self.members.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // Nobody waits for the slowest, and nobody misses a message unawares.
            if let Err(SendError::Full(_)) = sender.try_send(message.clone()) {
                sender.close(CloseCode::OVERLOADED, "too slow for this room");
            }
        }
    }
}
