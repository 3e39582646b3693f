//! Inspects the messages between one client and its backend, for the prologue and for GraphQL mutations.
//!
//! Messages of the client are recorded; messages of the backend are matched, and some are withheld from the client. A
//! backend that needs neither has an inactive filter, which costs one comparison per message.
//!
//! The filter connects [`Prologue`] and [`Mutations`] to the link: a new connection is held while the prologue is replayed
//! to it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay::client::Incoming;
use mainstay::{Confirm, Kept, Link, Message};
use tokio::time::{Instant, sleep_until};

use crate::protocols::graphql::Mutations;
use crate::protocols::prologue::{Prologue, ReplayError, Verdict};
use crate::protocols::saved::Writer;
use crate::routes::route::Route;
use crate::upstream::links::Links;

/// See the module.
pub(crate) struct MessageFilter {
    /// `--confirm reply`: each message of the backend confirms one of the client.
    replies_confirm: bool,
    links: Links,
    memory: Option<Mutex<Memory>>,
}

struct Memory {
    prologue: Option<Prologue>,
    operations: Option<Mutations>,
    /// The number of the link's current connection.
    replacement: u64,
    /// The recorded bytes in the memory budget.
    kept: Kept,
    /// The recorded bytes in the figures of all links.
    counted_bytes: usize,
}

impl MessageFilter {
    /// Creates the filter before the first message. `restored`: the prologue of a session that moved here.
    pub(crate) fn new(route: &Route, restored: Option<Box<Prologue>>) -> Self {
        let (settings, links) = (&route.settings, route.links.clone());
        let prologue =
            restored.map(|prologue| *prologue).or_else(|| settings.prologue.clone().map(Prologue::new));
        let operations = settings.answers_mutations.then(Mutations::default);
        let is_active = prologue.is_some() || operations.is_some();
        let memory = is_active.then(|| {
            let kept = route.server.budget().keep();
            let mut memory = Memory { prologue, operations, replacement: 0, kept, counted_bytes: 0 };
            memory.count(&links);
            Mutex::new(memory)
        });
        Self { replies_confirm: settings.confirm == Confirm::Reply, links, memory }
    }

    /// Writes the prologue after message `settled`, if there is one.
    pub(crate) fn save(&self, settled: u64, to: &mut Writer) {
        let memory = self.memory();
        let prologue = memory.as_ref().and_then(|memory| memory.prologue.as_ref());
        to.flag(prologue.is_some());
        if let Some(prologue) = prologue {
            prologue.save(settled, to);
        }
    }

    /// Returns whether messages of the client are recorded.
    pub(crate) fn is_active(&self) -> bool {
        self.memory.is_some()
    }

    /// The link accepted a message of the client as `number`.
    pub(crate) fn handle_client(&self, number: u64, message: &Message) {
        let Some(mut memory) = self.memory() else { return };
        let admits = memory.kept.admits();
        if let Some(prologue) = &mut memory.prologue {
            prologue.handle_client(number, message);
            if !admits {
                prologue.give_up();
            }
        }
        if let Some(operations) = &mut memory.operations {
            operations.handle_client(message);
        }
        memory.count(&self.links);
    }

    /// Returns the next message for the client; messages that the client must not receive again are withheld. `None`: the
    /// link has ended.
    ///
    /// # Errors
    /// The prologue cannot be replayed. The link must be abandoned.
    ///
    /// # Cancel safety
    /// Safe: a message leaves the link only when it is returned.
    pub(crate) async fn next(&self, link: &mut Link) -> Result<Option<Incoming>, ReplayError> {
        loop {
            let Some(incoming) = self.receive(link).await? else {
                return if self.is_replaying() { Err(ReplayError::Closed) } else { Ok(None) };
            };
            if self.is_for_client(&incoming, link)? {
                return Ok(Some(incoming));
            }
        }
    }

    /// Returns whether a replay is in progress.
    pub(crate) fn is_replaying(&self) -> bool {
        self.memory().is_some_and(|memory| memory.is_replaying())
    }

    /// The client accepted a message only after this time, in which no answer could be read: extends the deadline.
    pub(crate) fn postpone(&self, waited: Duration) {
        if let Some(prologue) = self.memory().as_mut().and_then(|memory| memory.prologue.as_mut()) {
            prologue.postpone(waited);
        }
    }

    /// Returns the messages that the client receives before it is closed because the backend was lost.
    pub(crate) fn final_messages(&self) -> Vec<Message> {
        let mut memory = self.memory();
        let operations = memory.as_mut().and_then(|memory| memory.operations.as_mut());
        operations.map(Mutations::handle_lost).unwrap_or_default()
    }

    async fn receive(&self, link: &mut Link) -> Result<Option<Incoming>, ReplayError> {
        let deadline = self.memory().and_then(|memory| memory.prologue.as_ref()?.poll_timeout());
        let Some(deadline) = deadline else { return Ok(link.recv_any().await) };
        tokio::select! {
            biased; // a message that has arrived counts, even if the deadline has passed
            incoming = link.recv_any() => Ok(incoming),
            () = sleep_until(deadline.into()) => Err(ReplayError::NoAnswer),
        }
    }

    fn is_for_client(&self, incoming: &Incoming, link: &Link) -> Result<bool, ReplayError> {
        let mut memory = self.memory();
        let Some(memory) = memory.as_mut() else {
            if self.replies_confirm && matches!(incoming, Incoming::Message(_)) {
                link.confirm_reply();
            }
            return Ok(true);
        };
        match incoming {
            Incoming::Message(message) => {
                let was_replaying = memory.is_replaying();
                let verdict = memory.handle_backend(message);
                memory.advance(link, &self.links);
                if self.replies_confirm && !was_replaying && verdict == Verdict::Pass {
                    link.confirm_reply();
                }
                Ok(verdict == Verdict::Pass)
            }
            Incoming::FreshPeer { count } => {
                memory.replacement = *count;
                if let Some(prologue) = &mut memory.prologue {
                    prologue.handle_lost();
                    prologue.begin(Instant::now().into_std(), link.settled_now())?;
                }
                memory.advance(link, &self.links);
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    fn memory(&self) -> Option<MutexGuard<'_, Memory>> {
        Some(self.memory.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Memory {
    fn is_replaying(&self) -> bool {
        self.prologue.as_ref().is_some_and(Prologue::is_replaying)
    }

    fn handle_backend(&mut self, message: &Message) -> Verdict {
        if let Some(operations) = &mut self.operations {
            operations.handle_backend(message);
        }
        self.prologue.as_mut().map_or(Verdict::Pass, |prologue| prologue.handle_backend(message))
    }

    /// Writes the frames that may be written now, and releases the connection after the last of them.
    fn advance(&mut self, link: &Link, links: &Links) {
        let Some(prologue) = self.prologue.as_mut().filter(|prologue| prologue.is_replaying()) else {
            return;
        };
        while let Some(message) = prologue.poll_transmit() {
            link.send_ahead(self.replacement, message);
        }
        if prologue.is_done() {
            link.release(self.replacement);
            links.count_prologue();
        }
        self.count(links);
    }

    fn count(&mut self, links: &Links) {
        let bytes = self.prologue.as_ref().map_or(0, Prologue::bytes);
        if bytes == self.counted_bytes {
            return;
        }
        self.kept.set(bytes as u64);
        links.recorded(self.counted_bytes, bytes);
        self.counted_bytes = bytes;
    }
}

impl Drop for MessageFilter {
    fn drop(&mut self) {
        if let Some(memory) = self.memory() {
            self.links.recorded(memory.counted_bytes, 0);
        }
    }
}
