//! What must hold, judged from outside: only what applications send, receive and are told.
//!
//! A client's messages carry an index that counts on over session after session; a server's carry
//! the session and a number within it. From these follow the invariants:
//!
//! 1. *Prefix* and 2. *no duplicate*: what an application gets is what the other sent, in order, once.
//! 3. *Explicit gap*: an index may be missing only if a gap event put it among the unknown or the not
//!    delivered; and what was reported delivered or not delivered was so.
//! 4. *Acknowledged is handed over*: no count that an end is told is above what the other application got.
//! 5. *Convergence*: after healing nothing that was accepted is outstanding.
//!
//! What is outside the stream ([`Volatile`]) may be lost, but comes once and in order.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_proto::session::Fate;

/// One client's account of what it sent and what became of it.
#[derive(Debug, Default)]
pub struct Sent {
    next: u64,
    /// Index of each message of the current session, by number - 1.
    numbers: Vec<u64>,
    /// The first so many of them were acknowledged.
    acknowledged: u64,
    /// Indices that may be missing: unknown, or reported as not delivered and not sent again.
    excused: BTreeSet<u64>,
    /// Indices that were reported as not delivered and not sent again.
    undelivered: BTreeSet<u64>,
    /// What the server's application got.
    got: BTreeSet<u64>,
    /// The last index that each of the server's sessions got. (A HELLO that was long under way may open
    /// a session that its client has given up: what it brings was reported unknown.)
    last: BTreeMap<usize, u64>,
}

impl Sent {
    /// The index of the next message.
    pub fn next_index(&self) -> u64 {
        self.next
    }

    /// The client accepted the message with the next index as this number.
    pub fn accepted(&mut self, number: u64) -> Result<(), String> {
        if number != self.numbers.len() as u64 + 1 {
            return Err(format!("message accepted as {number}, expected {}", self.numbers.len() + 1));
        }
        self.numbers.push(self.next);
        self.next += 1;
        Ok(())
    }

    /// The server's application got this index.
    pub fn delivered(&mut self, session: usize, index: u64) -> Result<(), String> {
        if !self.got.insert(index) {
            return Err(format!("duplicate: client message {index} handed over twice"));
        }
        if let Some(last) = self.last.insert(session, index).filter(|last| *last > index) {
            return Err(format!("order: client message {index} after {last}"));
        }
        if self.undelivered.contains(&index) {
            return Err(format!("client message {index} arrived after it was reported not delivered"));
        }
        Ok(())
    }

    /// The client learned that the first so many messages of its session were delivered.
    pub fn acknowledged(&mut self, number: u64) -> Result<(), String> {
        while self.acknowledged < number {
            let index = self.numbers.get(self.acknowledged as usize);
            if index.is_none_or(|index| !self.got.contains(index)) {
                return Err(format!("acknowledged: client message {index:?}, and it was not handed over"));
            }
            self.acknowledged += 1;
        }
        Ok(())
    }

    /// The client is gone, and with it what it knew of its messages: they may be missing.
    pub fn forgotten(&mut self) {
        self.excused.extend(self.numbers.drain(..));
        self.acknowledged = 0;
    }

    /// The client was told what became of its session.
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

    /// After healing: everything arrived, or its loss was told.
    pub fn settled(&self) -> Result<(), String> {
        match (0..self.next).find(|index| !self.got.contains(index) && !self.excused.contains(index)) {
            Some(index) => Err(format!("silent loss: client message {index} of {}", self.next)),
            None => Ok(()),
        }
    }
}

/// What one client's application got from the server: per session 1, 2, 3, ...
#[derive(Debug, Default)]
pub struct Got {
    session: Option<usize>,
    last: u64,
    gaps: u64,
    gaps_used: u64,
    /// Dropped at the beginning of a session that nothing was heard of yet.
    skipped: u64,
}

impl Got {
    /// A message of this session with this number was handed over.
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

    /// The client was told that the server dropped these. A gap from 1 begins a session of which nothing
    /// else says which one it is.
    pub fn dropped(&mut self, first: u64, count: u64) -> Result<(), String> {
        let last = if first == 1 || self.skipped > 0 { &mut self.skipped } else { &mut self.last };
        if first != *last + 1 {
            return Err(format!("a gap of server messages from {first} after {last}"));
        }
        *last += count;
        Ok(())
    }

    /// The client was told that its session is lost.
    pub fn gap(&mut self) {
        self.gaps += 1;
        self.skipped = 0;
    }

    /// The session that the client is in, and the last number it got.
    pub fn position(&self) -> (Option<usize>, u64) {
        (self.session, self.last)
    }
}

/// What came outside the stream.
#[derive(Debug, Default)]
pub struct Volatile {
    last: u64,
}

impl Volatile {
    /// The how-manieth of its sender was handed over.
    pub fn delivered(&mut self, number: u64) -> Result<(), String> {
        if number <= self.last {
            return Err(format!("volatile message {number} after {}", self.last));
        }
        self.last = number;
        Ok(())
    }
}
