//! The invariants, judged from outside: only by what applications send and receive, and by the events they get.
//!
//! A client's messages carry an index that continues from session to session; a server's messages carry the session
//! and a number within it. From these follow the invariants:
//!
//! 1. *Prefix* and 2. *no duplicate*: an application receives what the other sent, in order, once.
//! 3. *Explicit gap*: an index may be missing only if a gap event put it among the unknown or the not delivered
//!    messages; and a message that was reported as delivered or as not delivered was so.
//! 4. *Acknowledged means delivered*: no count that an end announces is above what the application received.
//! 5. *Convergence*: after healing no accepted message is outstanding.
//!
//! A message outside the stream ([`Volatile`]) may be lost, but arrives once and in order.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_proto::session::Fate;

/// What one client sent, and what became of it.
#[derive(Debug, Default)]
pub struct Sent {
    next: u64,
    /// Index of each message of the current session, by number - 1.
    numbers: Vec<u64>,
    /// How many of them, from the first, were acknowledged.
    acknowledged: u64,
    /// Indices that may be missing: unknown, or reported as not delivered and not sent again.
    excused: BTreeSet<u64>,
    /// Indices that were reported as not delivered and not sent again.
    undelivered: BTreeSet<u64>,
    /// The indices that the server's application received.
    got: BTreeSet<u64>,
    /// Those that it has acknowledged, by itself or by receiving them.
    confirmed: BTreeSet<u64>,
    /// The last index that each of the server's sessions received. (A HELLO that was in transit for long may open a
    /// session that its client has given up: messages on it were reported as unknown.)
    last: BTreeMap<usize, u64>,
}

impl Sent {
    /// Returns the index of the next message.
    pub fn next_index(&self) -> u64 {
        self.next
    }

    /// The client accepted the message with the next index under this number.
    pub fn accepted(&mut self, number: u64) -> Result<(), String> {
        if number != self.numbers.len() as u64 + 1 {
            return Err(format!("message accepted as {number}, expected {}", self.numbers.len() + 1));
        }
        self.numbers.push(self.next);
        self.next += 1;
        Ok(())
    }

    /// The server's application received this index.
    pub fn delivered(&mut self, session: usize, index: u64) -> Result<(), String> {
        if !self.got.insert(index) {
            return Err(format!("duplicate: client message {index} delivered twice"));
        }
        if let Some(last) = self.last.insert(session, index).filter(|last| *last > index) {
            return Err(format!("order: client message {index} after {last}"));
        }
        if self.undelivered.contains(&index) {
            return Err(format!("client message {index} arrived after it was reported not delivered"));
        }
        Ok(())
    }

    /// The server's application acknowledged these.
    pub fn confirmed(&mut self, indices: impl IntoIterator<Item = u64>) {
        self.confirmed.extend(indices);
    }

    /// The session left its node: what was delivered there and not acknowledged is delivered again.
    pub fn moved(&mut self, session: usize, unconfirmed: &[u64]) {
        for index in unconfirmed {
            self.got.remove(index);
        }
        if let (Some(first), Some(last)) = (unconfirmed.iter().min(), self.last.get_mut(&session)) {
            *last = (*last).min(first.saturating_sub(1));
        }
    }

    /// The client learned that the first `count` messages of its session were delivered.
    pub fn acknowledged(&mut self, number: u64) -> Result<(), String> {
        while self.acknowledged < number {
            let index = self.numbers.get(self.acknowledged as usize);
            if index.is_none_or(|index| !self.got.contains(index)) {
                return Err(format!("acknowledged: client message {index:?}, and it was not delivered"));
            }
            if index.is_none_or(|index| !self.confirmed.contains(index)) {
                return Err(format!(
                    "acknowledged: client message {index:?}, and its receiver has not confirmed it"
                ));
            }
            self.acknowledged += 1;
        }
        Ok(())
    }

    /// The client is gone, and its state with it: its messages may be missing.
    pub fn forgotten(&mut self) {
        self.excused.extend(self.numbers.drain(..));
        self.acknowledged = 0;
    }

    /// The client received the fate of its session.
    pub fn lost(&mut self, fate: &Fate) -> Result<(), String> {
        if fate.last != self.numbers.len() as u64 {
            return Err(format!("fate speaks of {} messages, {} were sent", fate.last, self.numbers.len()));
        }
        for (number, index) in (1..).zip(&self.numbers) {
            let arrived = self.got.contains(index);
            if number <= fate.delivered {
                if !arrived {
                    return Err(format!("client message {index} was reported delivered and is not"));
                }
            } else if number <= fate.unknown {
                self.excused.insert(*index);
            } else if arrived {
                return Err(format!("client message {index} was reported not delivered and is"));
            } else if !fate.resent {
                self.excused.insert(*index);
                self.undelivered.insert(*index);
            }
        }
        self.acknowledged = 0;
        let keep = if fate.resent { fate.unknown as usize } else { self.numbers.len() };
        self.numbers.drain(..keep.min(self.numbers.len()));
        Ok(())
    }

    /// After healing: every message arrived, or its loss was reported.
    pub fn settled(&self) -> Result<(), String> {
        match (0..self.next).find(|index| !self.got.contains(index) && !self.excused.contains(index)) {
            Some(index) => Err(format!("silent loss: client message {index} of {}", self.next)),
            None => Ok(()),
        }
    }
}

/// What one client's application received from the server: 1, 2, 3, ... in each session.
#[derive(Debug, Default)]
pub struct Got {
    session: Option<usize>,
    last: u64,
    gaps: u64,
    gaps_used: u64,
    /// Messages dropped at the beginning of a session from which none was delivered yet.
    skipped: u64,
}

impl Got {
    /// A message of this session with this number was delivered.
    pub fn delivered(&mut self, session: usize, number: u64) -> Result<(), String> {
        if self.session != Some(session) {
            if self.session.is_some() {
                if self.gaps == self.gaps_used {
                    return Err(format!("session {session} follows {:?} without a gap event", self.session));
                }
                self.gaps_used = self.gaps;
            }
            (self.session, self.last) = (Some(session), std::mem::take(&mut self.skipped));
        }
        if number != self.last + 1 {
            return Err(format!("server message {number} of session {session} after {}", self.last));
        }
        self.last = number;
        Ok(())
    }

    /// The client received a gap: the server dropped these messages. Nothing but the gap shows the session that
    /// begins with it.
    pub fn dropped(&mut self, first: u64, count: u64) -> Result<(), String> {
        let last = if first == 1 || self.skipped > 0 { &mut self.skipped } else { &mut self.last };
        if first != *last + 1 {
            return Err(format!("a gap of server messages from {first} after {last}"));
        }
        *last += count;
        Ok(())
    }

    /// The client received the loss of its session.
    pub fn gap(&mut self) {
        self.gaps += 1;
        self.skipped = 0;
    }

    /// Returns the session that the client is in, and the last number that it received.
    pub fn position(&self) -> (Option<usize>, u64) {
        (self.session, self.last)
    }
}

/// The messages that arrived outside the stream.
#[derive(Debug, Default)]
pub struct Volatile {
    last: u64,
}

impl Volatile {
    /// The message with this number of its sender was delivered.
    pub fn delivered(&mut self, number: u64) -> Result<(), String> {
        if number <= self.last {
            return Err(format!("volatile message {number} after {}", self.last));
        }
        self.last = number;
        Ok(())
    }
}
