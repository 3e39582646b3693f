//! A room: what one says reaches all who are in it, in one order, and nobody waits for the slowest.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_proto::session::Message;
use mainstay_proto::ws::CloseCode;

use super::sender::Sender;
use super::session::Session;
use crate::SendError;

/// Sessions that get the same messages. Cheap to clone; every clone is the same room.
///
/// A message's payload is shared by all members, and what permessage-deflate makes of it, too. All members get the
/// messages of a room in the same order. Members that are away get them when they are back.
///
/// ```no_run
/// # use mainstay::{Session, server::Room};
/// async fn member(room: Room, mut session: Session) {
///     let _membership = room.join(&session);
///     while let Some(message) = session.recv().await {
///         room.send(message);
///     }
/// }
/// ```
#[derive(Clone, Default)]
pub struct Room {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    slow: SlowMember,
    /// How often each joined.
    members: Mutex<HashMap<Sender, u32>>,
    skipped: AtomicU64,
    disconnected: AtomicU64,
}

/// What becomes of a member whose window ([`Config::keep`](super::Config::keep)) is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SlowMember {
    /// The oldest of its messages that were never written are dropped, and it is told of the gap in their place. A plain
    /// client cannot be told, and is disconnected.
    #[default]
    DropOldest,
    /// Its session ends: 4413 for a client that speaks `mainstay.v1`, 1013 for a plain one.
    Disconnect,
    /// The message is not sent to it, and it does not know.
    Skip,
}

/// A session's place in a [`Room`]; dropping it leaves.
#[must_use = "dropping it leaves the room"]
pub struct Membership {
    room: Room,
    member: Sender,
}

impl Room {
    /// An empty room that drops the oldest messages of slow members.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty room that treats slow members so.
    #[must_use]
    pub fn with_slow_members(slow: SlowMember) -> Self {
        Self { shared: Arc::new(Shared { slow, ..Shared::default() }) }
    }

    /// Lets a session in: `room.join(&session)`. One that is in already gets each message once all the same, and leaves
    /// with the last of its memberships.
    pub fn join(&self, member: impl Into<Sender>) -> Membership {
        let member = member.into();
        *self.lock().entry(member.clone()).or_default() += 1;
        Membership { room: self.clone(), member }
    }

    /// Sends a message to every member, and returns how many these are.
    pub fn send(&self, message: impl Into<Message>) -> usize {
        self.send_to(&message.into(), |_| true)
    }

    /// As [`send`](Self::send), to every member but this one.
    pub fn send_except(&self, except: impl Into<Sender>, message: impl Into<Message>) -> usize {
        let except = except.into();
        self.send_to(&message.into(), |member| *member != except)
    }

    /// How many sessions are in the room.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nobody is in the room.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those who are in the room now, in no order.
    #[must_use]
    pub fn members(&self) -> Vec<Sender> {
        self.lock().keys().cloned().collect()
    }

    /// How many members were disconnected because they were slow.
    #[must_use]
    pub fn disconnected(&self) -> u64 {
        self.shared.disconnected.load(Ordering::Relaxed)
    }

    /// How many messages were not sent to a member because it was slow, or takes none that is as large.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.shared.skipped.load(Ordering::Relaxed)
    }

    /// Under the lock from the first member to the last, so that all see one order.
    fn send_to(&self, message: &Message, is_meant: impl Fn(&Sender) -> bool) -> usize {
        let mut members = self.lock();
        let mut sent = 0;
        members.retain(|member, _| {
            if !is_meant(member) {
                return true;
            }
            let outcome = self.deliver(member, message.clone());
            sent += usize::from(outcome.is_ok());
            !matches!(outcome, Err(SendError::Closed(_)))
        });
        sent
    }

    fn deliver(&self, member: &Sender, message: Message) -> Result<(), SendError> {
        let sent = match self.shared.slow {
            SlowMember::DropOldest => member.send_dropping_oldest(message),
            SlowMember::Disconnect | SlowMember::Skip => member.try_send(message),
        };
        match sent {
            Err(SendError::Full(message)) if self.shared.slow != SlowMember::Skip => {
                self.disconnect(member);
                Err(SendError::Closed(message))
            }
            Err(refused @ (SendError::Full(_) | SendError::TooLarge { .. })) => {
                self.shared.skipped.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(session = ?member.id(), "a message of a room is not sent to a member: {refused}");
                Err(refused)
            }
            other => other,
        }
    }

    fn disconnect(&self, member: &Sender) {
        self.shared.disconnected.fetch_add(1, Ordering::Relaxed);
        tracing::info!(session = ?member.id(), "too slow for its room: disconnected");
        let code = if member.id().is_some() { CloseCode::OVERLOADED } else { CloseCode::TRY_AGAIN };
        member.close(code, "too slow for this room");
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Sender, u32>> {
        self.shared.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// Sends a message to every other member of the room, and returns how many these are.
    pub fn send_to_others(&self, message: impl Into<Message>) -> usize {
        self.room.send_except(&self.member, message)
    }

    /// The room.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = self.room.lock();
        if let Some(count) = members.get_mut(&self.member) {
            *count -= 1;
            if *count == 0 {
                members.remove(&self.member);
            }
        }
    }
}

impl From<&Session> for Sender {
    fn from(session: &Session) -> Self {
        session.sender()
    }
}

impl From<&Self> for Sender {
    fn from(sender: &Self) -> Self {
        sender.clone()
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("slow", &self.shared.slow)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("room", &self.room).finish_non_exhaustive()
    }
}
