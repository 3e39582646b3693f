//! A room: a message of one member goes to all members.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay::server::Sender;
use mainstay::{CloseCode, Message, SendError};

/// The clients of one path.
#[derive(Clone, Default)]
pub(super) struct Room {
    members: Arc<Mutex<BTreeMap<u64, Sender>>>,
    next: Arc<AtomicU64>,
}

impl Room {
    pub(super) fn join(&self, sender: Sender) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        self.members.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        id
    }

    pub(super) fn leave(&self, id: u64) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub(super) fn send(&self, message: &Message) {
        for sender in self.members.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // The room does not wait for a slow member; a member that would miss a message is closed.
            if let Err(SendError::Full(_)) = sender.try_send(message.clone()) {
                sender.close(CloseCode::OVERLOADED, "too slow for this room");
            }
        }
    }
}
