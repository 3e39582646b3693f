//! The sessions of all nodes, and their applications.
//!
//! A session that moves is another machine at another node ([`Hosted`]), and still the same [`Stream`] to its
//! applications: numbers continue.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::session::{ConnectionId, ServerSession, Sessions};

use crate::oracle::Volatile;

/// A session at one node.
pub(super) struct Hosted {
    pub(super) machine: Option<ServerSession>,
    pub(super) node: usize,
    pub(super) stream: usize,
    /// The newest epoch in which bytes were written, and the connection.
    pub(super) writer: Option<(u64, ConnectionId)>,
    /// When its application receives its next message.
    pub(super) next_take: Option<Instant>,
    /// When it acknowledges what it received.
    pub(super) confirms_at: Option<Instant>,
    /// What it received and has not acknowledged, where it does so by itself.
    pub(super) unconfirmed: Vec<u64>,
    /// It was released.
    pub(super) left: Option<Left>,
    /// The session after its release: its old handler may still hold it, and gets nothing.
    pub(super) released: Option<ServerSession>,
}

/// What a release gave to the engine.
pub(super) struct Left {
    /// The names of its tokens.
    pub(super) names: [[u8; 16]; 2],
    /// How long the engine keeps it.
    pub(super) keep: Duration,
    /// When the node learned that the engine has it.
    pub(super) stored: Option<Instant>,
}

/// A session as its applications see it, wherever it is.
#[derive(Default)]
pub(super) struct Stream {
    /// The number of the last message that the server's application sent.
    pub(super) sent: u64,
    /// The highest of them that the client's application received.
    pub(super) delivered: u64,
    /// The client that owns it, and the instance.
    pub(super) owner: (usize, u64),
    pub(super) principal: Vec<u8>,
    pub(super) volatile: Volatile,
    /// The client key under which it was opened.
    pub(super) key: Option<Bytes>,
    /// When a node last took it over.
    pub(super) adopted: Option<Instant>,
    /// When a copy of its client last attached to it: the client's own token may be void since.
    pub(super) copied: Option<Instant>,
    /// The engine forgot that a node took it over, and gave it to another one.
    pub(super) is_forked: bool,
}

impl Stream {
    /// The client's application received everything up to this number, or a gap in its place.
    pub(super) fn delivered(&mut self, number: u64) {
        self.delivered = self.delivered.max(number);
    }
}

/// The sessions of all nodes.
#[derive(Default)]
pub(super) struct Arena {
    pub(super) hosted: Vec<Hosted>,
    /// Those that were not over at the last [`sweep`](Self::sweep), and those that came since.
    active: Vec<usize>,
    pub(super) streams: Vec<Stream>,
    by_id: BTreeMap<[u8; 8], usize>,
    /// The node that creates sessions now.
    pub(super) creator: usize,
}

impl Arena {
    pub(super) fn machine(&mut self, session: usize) -> Option<&mut ServerSession> {
        self.hosted[session].machine.as_mut()
    }

    /// Returns the stream of the session with this id, if it was ever created.
    pub(super) fn by_id(&self, id: [u8; 8]) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn stream_of(&mut self, session: usize) -> &mut Stream {
        &mut self.streams[self.hosted[session].stream]
    }

    /// Leaves out what is over: the run never looks at it again.
    pub(super) fn sweep(&mut self) {
        let hosted = &self.hosted;
        self.active
            .retain(|session| hosted[*session].machine.is_some() || hosted[*session].released.is_some());
    }

    /// Returns the sessions that are not over, and perhaps some that are, the oldest first.
    pub(super) fn active(&self) -> impl Iterator<Item = (usize, &Hosted)> + Clone {
        self.active.iter().map(|session| (*session, &self.hosted[*session]))
    }

    /// Returns those of a node.
    pub(super) fn of_node(&self, node: usize) -> Vec<usize> {
        self.active().filter(|(_, hosted)| hosted.node == node).map(|(session, _)| session).collect()
    }

    /// Whether some node has the session.
    pub(super) fn lives(&self, stream: usize) -> bool {
        self.active().any(|(_, hosted)| hosted.stream == stream && hosted.machine.is_some())
    }

    /// Returns the number of sessions that live at a node.
    pub(super) fn live(&self, node: usize) -> usize {
        self.active().filter(|(_, hosted)| hosted.node == node && hosted.machine.is_some()).count()
    }
}

impl Sessions for Arena {
    type Handle = usize;

    fn with<R>(&mut self, handle: &usize, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        #[allow(clippy::expect_used, reason = "a dangling name is a bug that the run must stop at")]
        f(self.machine(*handle).expect("the registry names a session that is gone"))
    }

    fn create(&mut self, session: ServerSession) -> usize {
        let stream = *self.by_id.entry(session.id().0).or_insert_with(|| {
            self.streams.push(Stream::default());
            self.streams.len() - 1
        });
        self.active.push(self.hosted.len());
        self.hosted.push(Hosted {
            machine: Some(session),
            node: self.creator,
            stream,
            writer: None,
            next_take: None,
            confirms_at: None,
            unconfirmed: Vec::new(),
            left: None,
            released: None,
        });
        self.hosted.len() - 1
    }
}
