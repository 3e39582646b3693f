//! The two kinds of peer, and the questions whose answer depends on the kind.
//!
//! A client starts with a [`ClientSession`], unless its peer is known to speak plain WebSocket. The first connection
//! shows the kind of the peer; after that a client never changes its kind.

use std::time::Instant;

use crate::budget::{Held, held};
use crate::confirm::{ConfirmConfig, Confirmer};
use crate::queue::ByteQueue;
use crate::session::{ClientSession, Delivery, Message, Volatiles};

/// The peer of a client, and the machine for it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a client has one peer, and keeps it where it is")]
pub(super) enum Peer {
    /// The peer speaks `mainstay.v1`, or has not shown yet what it speaks.
    Session(ClientSession),
    /// The peer speaks WebSocket without sessions.
    Plain(Plain),
}

/// The state towards a peer without sessions.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) confirmer: Confirmer<Message>,
    /// Messages, and marks where the connection was replaced.
    pub(super) inbox: ByteQueue<Delivery>,
    /// The current connection carried a message of the peer or a confirmation.
    pub(super) progressed: bool,
    /// How many connections in a row the peer closed without one.
    pub(super) barren: u32,
    /// Set while the current connection is held back, and until the messages ahead of the stream are written.
    pub(super) ahead: Option<Box<Ahead>>,
    /// How many attaches of a fresh peer events have reported.
    pub(super) reported_fresh: u64,
    /// The peer announced its restart.
    pub(super) restarts: bool,
    /// Messages that are written once, and neither confirmed nor written again.
    pub(super) volatiles: Volatiles,
}

/// Messages that go ahead of the stream on a connection.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) queue: ByteQueue<Message>,
    /// The stream may follow.
    pub(super) released: bool,
}

impl Plain {
    pub(super) fn new(config: ConfirmConfig) -> Self {
        Self {
            confirmer: Confirmer::new(config),
            inbox: ByteQueue::default(),
            progressed: false,
            barren: 0,
            ahead: None,
            reported_fresh: 0,
            restarts: false,
            volatiles: Volatiles::default(),
        }
    }
}

impl Peer {
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    pub(super) fn plain(&self) -> Option<&Plain> {
        match self {
            Self::Plain(plain) => Some(plain),
            Self::Session(_) => None,
        }
    }

    pub(super) fn plain_mut(&mut self) -> Option<&mut Plain> {
        match self {
            Self::Plain(plain) => Some(plain),
            Self::Session(_) => None,
        }
    }

    pub(super) fn session(&self) -> Option<&ClientSession> {
        match self {
            Self::Session(session) => Some(session),
            Self::Plain(_) => None,
        }
    }

    pub(super) fn session_mut(&mut self) -> Option<&mut ClientSession> {
        match self {
            Self::Session(session) => Some(session),
            Self::Plain(_) => None,
        }
    }

    /// Returns when an acknowledgement or a confirming Ping is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Session(session) => session.poll_timeout(),
            Self::Plain(plain) => plain.confirmer.poll_timeout(),
        }
    }

    /// Returns the number of the last message that was accepted.
    pub(super) fn last(&self) -> u64 {
        match self {
            Self::Session(session) => session.last_sent(),
            Self::Plain(plain) => plain.confirmer.last(),
        }
    }

    /// Returns the number up to which every message is acknowledged (sessions) or confirmed (plain peers).
    pub(super) fn settled(&self) -> u64 {
        match self {
            Self::Session(session) => session.acknowledged(),
            Self::Plain(plain) => plain.confirmer.settled(),
        }
    }

    /// Returns what is kept in memory, including the overhead of each message.
    pub(super) fn held(&self) -> Held {
        let plain = match self {
            Self::Session(session) => return session.held(),
            Self::Plain(plain) => plain,
        };
        let ahead = plain.ahead.as_ref().map_or(0, |ahead| ahead.queue.bytes());
        let kept = plain.confirmer.kept_bytes() + plain.volatiles.bytes() + ahead;
        Held {
            unread: held(plain.inbox.bytes(), plain.inbox.items().len()),
            kept: held(kept, plain.confirmer.kept()),
        }
    }
}
