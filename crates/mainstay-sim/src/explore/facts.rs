//! What the applications of a small world sent, received and were notified of, and the invariants of it.
//!
//! Judged from outside, like [`oracle`](crate::oracle), but for few messages and for copies of a client: a message is
//! identified by its author and a count that copies of the author continue.

use std::collections::BTreeSet;

use mainstay_proto::session::{Fate, Message};

/// A message of a client: the author that wrote it first (0 is `A`), and its count.
pub(super) type Mark = (usize, u64);

/// The facts of one state; the module describes them.
#[derive(Clone, Hash, Default)]
pub(super) struct Facts {
    clients: Vec<ClientFacts>,
    sessions: Vec<SessionFacts>,
    /// Client messages that a server's application received.
    delivered: BTreeSet<Mark>,
    /// Client messages that were finally reported as not delivered.
    undelivered: BTreeSet<Mark>,
    /// An event occurred that may cost a session: expiry, restart, END, a second tab.
    excused: bool,
}

#[derive(Clone, Hash, Default)]
struct ClientFacts {
    /// The messages behind the numbers 1, 2, 3, ... of the current session.
    numbers: Vec<Mark>,
    /// The session from which it last received a message, and the number of that message.
    delivered: Option<(usize, u64)>,
    /// A session was reported lost since then.
    loss_reported: bool,
    /// How many of the server's messages were reported dropped.
    dropped: u64,
}

#[derive(Clone, Hash, Default)]
struct SessionFacts {
    /// Messages that the server's application sent.
    sent: u64,
    /// The count of the last client message that was delivered.
    last: Option<u64>,
    /// The highest number of the server's that some copy of the client received.
    delivered: u64,
    /// Its application ended it.
    closed: bool,
    /// The number that the client's END gave as its last delivery.
    closed_at: Option<u64>,
    /// The client key under which it was opened, where another node may have opened one under it too.
    key: Option<[u8; 16]>,
    /// Something was delivered in it, at either end.
    delivers: bool,
}

impl Facts {
    pub(super) fn add_client(&mut self) {
        self.clients.push(ClientFacts::default());
    }

    /// A copy of the first client appears.
    pub(super) fn add_copy(&mut self) {
        self.clients.push(self.clients[0].clone());
        self.excused = true;
    }

    pub(super) fn add_session(&mut self, key: Option<[u8; 16]>) {
        self.sessions.push(SessionFacts { key, ..SessionFacts::default() });
    }

    /// At most one of all sessions under one key delivers anything.
    fn check_key(&mut self, session: usize) -> Result<(), String> {
        let Some(key) = self.sessions[session].key else { return Ok(()) };
        self.sessions[session].delivers = true;
        let delivers = |facts: &&SessionFacts| facts.key == Some(key) && facts.delivers;
        if self.sessions.iter().filter(delivers).count() > 1 {
            return Err("two sessions of one key deliver".into());
        }
        Ok(())
    }

    pub(super) fn excuse(&mut self) {
        self.excused = true;
    }

    /// Returns the next message of a server's application.
    pub(super) fn server_sends(&mut self, session: usize) -> Message {
        let facts = &mut self.sessions[session];
        facts.sent += 1;
        Message::text(format!("{session}.{}", facts.sent))
    }

    /// Returns the message of a client's application with this mark.
    pub(super) fn client_message((author, count): Mark) -> Message {
        Message::text(format!("{}{count}", char::from(b'A' + author as u8)))
    }

    /// Returns how many messages of the server's application a session was given.
    pub(super) fn sent(&self, session: usize) -> u64 {
        self.sessions[session].sent
    }

    pub(super) fn accepted(&mut self, client: usize, mark: Mark, number: u64) -> Result<(), String> {
        let numbers = &mut self.clients[client].numbers;
        numbers.push(mark);
        if numbers.len() as u64 == number {
            Ok(())
        } else {
            Err(format!("message accepted as number {number}"))
        }
    }

    /// The server's application received a client's message.
    pub(super) fn server_got(&mut self, session: usize, message: &Message) -> Result<(), String> {
        let mark = parse_mark(message).ok_or("a message that no application sent")?;
        if !self.delivered.insert(mark) {
            return Err(format!("duplicate: the server's application got {mark:?} twice"));
        }
        if self.undelivered.contains(&mark) {
            return Err(format!("untrue: {mark:?} was reported not delivered and came later"));
        }
        self.check_key(session)?;
        let last = self.sessions[session].last.replace(mark.1);
        match last {
            Some(last) if mark.1 != last + 1 => Err(format!("hole or reorder: {mark:?} after count {last}")),
            _ => Ok(()),
        }
    }

    /// A client's application received a server's message.
    pub(super) fn client_got(&mut self, client: usize, message: &Message) -> Result<(), String> {
        let (session, number) = parse_number(message).ok_or("a message that no application sent")?;
        let facts = &mut self.clients[client];
        let expected = match facts.delivered {
            Some((delivered, last)) if delivered == session => last + 1,
            Some(_) if !facts.loss_reported => {
                return Err("another session's message without a gap event".into());
            }
            _ => 1,
        };
        (facts.delivered, facts.loss_reported) = (Some((session, number)), false);
        if number != expected {
            return Err(format!("duplicate, hole or reorder: server message {number}, expected {expected}"));
        }
        let of_session = &mut self.sessions[session];
        of_session.delivered = of_session.delivered.max(number);
        self.check_key(session)?;
        self.check_closed(session)
    }

    /// A client's application received a gap: the server dropped messages. The sum of all reported gaps is at most
    /// what the living sessions dropped. A gap from 1 begins the newest session.
    pub(super) fn client_got_gap(
        &mut self,
        client: usize,
        first: u64,
        count: u64,
        dropped: Option<u64>,
    ) -> Result<(), String> {
        let facts = &mut self.clients[client];
        let newest = (self.sessions.len() - 1, 0);
        let (session, last) = facts.delivered.filter(|_| first > 1).unwrap_or(newest);
        if facts.delivered.is_some_and(|(delivered, _)| delivered != session)
            && !std::mem::take(&mut facts.loss_reported)
        {
            return Err("another session's gap without a gap event".into());
        }
        if first != last + 1 {
            return Err(format!("duplicate, hole or reorder: a gap from {first} after {last}"));
        }
        facts.delivered = Some((session, last + count));
        facts.dropped += count;
        if dropped.is_some_and(|dropped| facts.dropped > dropped) {
            return Err(format!("untrue: {} were reported dropped, {dropped:?} were", facts.dropped));
        }
        let of_session = &mut self.sessions[session];
        of_session.delivered = of_session.delivered.max(last + count);
        self.check_closed(session)
    }

    /// The server's application ends a session.
    pub(super) fn server_closes(&mut self, session: usize) {
        self.sessions[session].closed = true;
        self.excused = true;
    }

    /// A client's END reached the session, with its final count.
    pub(super) fn client_ended(&mut self, session: usize, acknowledged: u64) -> Result<(), String> {
        self.sessions[session].closed_at = Some(acknowledged);
        self.check_closed(session)
    }

    fn check_closed(&self, session: usize) -> Result<(), String> {
        let facts = &self.sessions[session];
        match facts.closed_at {
            Some(last) if facts.delivered > last => {
                Err(format!("untrue: END stated delivered = {last}, the application got {}", facts.delivered))
            }
            _ => Ok(()),
        }
    }

    /// A client received the end of its session, and the fate of what it sent.
    pub(super) fn learned(&mut self, client: usize, fate: &Fate) -> Result<(), String> {
        if !self.excused {
            return Err(format!("session lost without an excuse: {fate:?}"));
        }
        let facts = &mut self.clients[client];
        facts.loss_reported = true;
        if fate.last != facts.numbers.len() as u64 {
            return Err(format!("untrue: {} messages were accepted, {fate:?}", facts.numbers.len()));
        }
        for (number, mark) in (1..).zip(&facts.numbers) {
            let arrived = self.delivered.contains(mark);
            if number <= fate.delivered && !arrived {
                return Err(format!("untrue: {mark:?} was reported delivered and is not"));
            }
            if number > fate.unknown && arrived {
                return Err(format!("untrue: {mark:?} was reported not delivered and is"));
            }
            if number > fate.unknown && !fate.resent {
                self.undelivered.insert(*mark);
            }
        }
        let keep = if fate.resent { fate.unknown as usize } else { facts.numbers.len() };
        facts.numbers.drain(..keep.min(facts.numbers.len()));
        Ok(())
    }

    /// Checks that a message that a client counts as acknowledged was delivered.
    pub(super) fn check_client(&self, client: usize, acknowledged: u64) -> Result<(), String> {
        let numbers = &self.clients[client].numbers;
        match numbers.iter().take(acknowledged as usize).find(|mark| !self.delivered.contains(mark)) {
            Some(mark) => Err(format!("{mark:?} is acknowledged and was not delivered")),
            None => Ok(()),
        }
    }

    /// Checks that a message that a session counts as acknowledged was delivered, and that no session outlives its
    /// end.
    pub(super) fn check_session(&self, session: usize, acknowledged: u64, open: bool) -> Result<(), String> {
        let facts = &self.sessions[session];
        if acknowledged > facts.delivered {
            return Err(format!(
                "session {session}: {acknowledged} acknowledged, {} delivered",
                facts.delivered
            ));
        }
        if facts.closed && open {
            return Err(format!("session {session} was ended and goes on"));
        }
        Ok(())
    }
}

fn parse_mark(message: &Message) -> Option<Mark> {
    let text = message.as_text()?;
    let author = text.bytes().next()?.checked_sub(b'A')?;
    Some((author.into(), text.get(1..)?.parse().ok()?))
}

fn parse_number(message: &Message) -> Option<(usize, u64)> {
    let (session, number) = message.as_text()?.split_once('.')?;
    Some((session.parse().ok()?, number.parse().ok()?))
}
