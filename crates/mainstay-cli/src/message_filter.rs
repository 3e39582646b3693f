//! What the gateway remembers of one client's filter with its backend, and what the link brings in its light.
//!
//! Both arms of a relay take part: what the client sends is recorded, what the backend sends is looked at. A backend
//! that needs neither a prologue nor answers for lost mutations has an empty filter, which costs a comparison per
//! message.
//!
//! Here [`Prologue`] and [`Mutations`] meet the link: a new connection is held back while the prologue is written to it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay::client::Incoming;
use mainstay::{Confirm, Kept, Link, Message};
use tokio::time::{Instant, sleep_until};

use crate::graphql::Mutations;
use crate::links::Links;
use crate::prologue::{Failure, Prologue, Verdict};
use crate::session::LinkConfig;

/// See the module.
pub(crate) struct MessageFilter {
    /// Each answer of the backend confirms a message.
    replies: bool,
    links: Links,
    memory: Option<Mutex<Memory>>,
}

struct Memory {
    prologue: Option<Prologue>,
    operations: Option<Mutations>,
    /// Names the link's current connection.
    replacement: u64,
    /// What is recorded, in the memory budget.
    kept: Kept,
    /// Counted with all that is kept for backends.
    counted_bytes: usize,
}

impl MessageFilter {
    /// Nothing was said yet.
    pub(crate) fn new(config: &LinkConfig) -> Self {
        let (settings, links) = (&config.settings, config.links.clone());
        let prologue = settings.prologue.clone().map(Prologue::new);
        let operations = settings.answers_mutations.then(Mutations::default);
        let remembers = prologue.is_some() || operations.is_some();
        let memory = remembers.then(|| {
            let kept = config.mainstay.budget().keep();
            Mutex::new(Memory { prologue, operations, replacement: 0, kept, counted_bytes: 0 })
        });
        Self { replies: settings.confirm == Confirm::Reply, links, memory }
    }

    /// Whether what the client sends is looked at.
    pub(crate) fn listens(&self) -> bool {
        self.memory.is_some()
    }

    /// The link accepted a message of the client as `number`.
    pub(crate) fn note_client(&self, number: u64, message: &Message) {
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

    /// The next of what the link brings for the client: what it had before is left out. `None`: the link has ended.
    ///
    /// # Errors
    /// The backend cannot be told again what it must know. The link is of no use any more.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only when it is returned.
    pub(crate) async fn next(&self, link: &mut Link) -> Result<Option<Incoming>, Failure> {
        loop {
            let Some(incoming) = self.receive(link).await? else {
                return if self.is_replaying() { Err(Failure::Closed) } else { Ok(None) };
            };
            if self.is_for_client(&incoming, link)? {
                return Ok(Some(incoming));
            }
        }
    }

    /// Whether answers are awaited.
    pub(crate) fn is_replaying(&self) -> bool {
        self.memory().is_some_and(|memory| memory.is_replaying())
    }

    /// The client took a message only after this time, in which no answer could be read.
    pub(crate) fn postpone(&self, waited: Duration) {
        if let Some(prologue) = self.memory().as_mut().and_then(|memory| memory.prologue.as_mut()) {
            prologue.postpone(waited);
        }
    }

    /// The backend is lost, and the client's connection ends: what the client is told before.
    pub(crate) fn final_messages(&self) -> Vec<Message> {
        let mut memory = self.memory();
        let operations = memory.as_mut().and_then(|memory| memory.operations.as_mut());
        operations.map(Mutations::handle_lost).unwrap_or_default()
    }

    async fn receive(&self, link: &mut Link) -> Result<Option<Incoming>, Failure> {
        let deadline = self.memory().and_then(|memory| memory.prologue.as_ref()?.poll_timeout());
        let Some(deadline) = deadline else { return Ok(link.recv_any().await) };
        tokio::select! {
            biased; // what has arrived is looked at before it is said to be late
            incoming = link.recv_any() => Ok(incoming),
            () = sleep_until(deadline.into()) => Err(Failure::NoAnswer),
        }
    }

    fn is_for_client(&self, incoming: &Incoming, link: &Link) -> Result<bool, Failure> {
        let mut memory = self.memory();
        let Some(memory) = memory.as_mut() else {
            if self.replies && matches!(incoming, Incoming::Message(_)) {
                link.confirm_reply();
            }
            return Ok(true);
        };
        match incoming {
            Incoming::Message(message) => {
                let was_replaying = memory.is_replaying();
                let verdict = memory.handle_backend(message);
                memory.advance(link, &self.links);
                if self.replies && !was_replaying && verdict == Verdict::Pass {
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

    /// Writes what may be written now, and lets the stream flow behind the whole of it.
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
