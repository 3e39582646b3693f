//! A room: a message of one member reaches all members, in one order, and none of them waits for the slowest.

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
/// All members share the payload of a message, and its compressed form. All members get the messages of a room in the same
/// order. A member that is away gets them when it is back. A member that does not keep up is a [`SlowMember`].
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
    /// The members, and how often each joined.
    members: Mutex<HashMap<Sender, u32>>,
    skipped: AtomicU64,
    disconnected: AtomicU64,
}

/// What a room does with a member whose window ([`Config::keep`](super::Config::keep)) is full.
///
/// ```
/// use mainstay::server::{Room, SlowMember};
///
/// let feed = Room::with_slow_members(SlowMember::DropOldest);
/// assert_eq!(feed.send("to an empty room"), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SlowMember {
    /// Ends its session: with 4413 for a client that speaks `mainstay.v1`, which comes back to a new session and learns the
    /// fate of its messages, and with 1013 for a plain one. The default, as in the Fastify plugin: every client notices.
    #[default]
    Disconnect,
    /// Drops the oldest of its messages that were never written, and reports the gap to the client in their place. A plain
    /// client, to which no gap can be reported, is disconnected.
    DropOldest,
    /// Leaves the message out, and the client does not notice.
    Skip,
}

/// A session's membership of a [`Room`]. Its drop leaves the room.
#[must_use = "its drop leaves the room"]
pub struct Membership {
    room: Room,
    member: Sender,
}

impl Room {
    /// Creates an empty room that disconnects slow members.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty room with another treatment of slow members.
    #[must_use]
    pub fn with_slow_members(slow: SlowMember) -> Self {
        Self { shared: Arc::new(Shared { slow, ..Shared::default() }) }
    }

    /// Adds a session: `room.join(&session)`. A session that joins twice gets each message once, and leaves with the last of
    /// its memberships.
    pub fn join(&self, member: impl Into<Sender>) -> Membership {
        let member = member.into();
        *self.lock().entry(member.clone()).or_default() += 1;
        Membership { room: self.clone(), member }
    }

    /// Sends a message to every member, and returns how many accepted it.
    pub fn send(&self, message: impl Into<Message>) -> usize {
        self.send_to(&message.into(), |_| true)
    }

    /// As [`send`](Self::send), to every member except this one.
    pub fn send_except(&self, except: impl Into<Sender>, message: impl Into<Message>) -> usize {
        let except = except.into();
        self.send_to(&message.into(), |member| *member != except)
    }

    /// The number of sessions in the room.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether the room has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The members, in no order.
    #[must_use]
    pub fn members(&self) -> Vec<Sender> {
        self.lock().keys().cloned().collect()
    }

    /// How many members were disconnected because they were slow.
    #[must_use]
    pub fn disconnected(&self) -> u64 {
        self.shared.disconnected.load(Ordering::Relaxed)
    }

    /// How many messages were not sent to a member because it was slow, or because they are larger than it accepts.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.shared.skipped.load(Ordering::Relaxed)
    }

    /// Holds the lock from the first member to the last, so that all members see one order.
    fn send_to(&self, message: &Message, is_addressed: impl Fn(&Sender) -> bool) -> usize {
        let mut members = self.lock();
        let mut sent = 0;
        members.retain(|member, _| {
            if !is_addressed(member) {
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
    /// Sends a message to every other member of the room, and returns how many accepted it.
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
