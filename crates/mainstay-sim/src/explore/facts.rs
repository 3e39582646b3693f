//! What the applications of a small world sent, got and were told; and what must hold of it.
//!
//! Judged from outside, like [`oracle`](crate::oracle), but for few messages and for copies of a
//! client: a message is known by its author and a count that the author's copies continue.

use std::collections::BTreeSet;

use mainstay_proto::session::{Fate, Message};

/// A message of a client: who wrote it first (0 is `A`), and its count.
pub(super) type Mark = (usize, u64);

/// See the module.
#[derive(Clone, Hash, Default)]
pub(super) struct Facts {
    clients: Vec<ClientFacts>,
    sessions: Vec<SessionFacts>,
    /// Client messages that a server's application got.
    delivered: BTreeSet<Mark>,
    /// Client messages that were reported as not delivered, for good.
    undelivered: BTreeSet<Mark>,
    /// Something happened that may cost a session: expiry, restart, END, a second tab.
    excused: bool,
}

#[derive(Clone, Hash, Default)]
struct ClientFacts {
    /// What the numbers 1, 2, 3, ... of the current session stand for.
    numbers: Vec<Mark>,
    /// The session it last got a message from, and that message's number.
    heard: Option<(usize, u64)>,
    /// A session was reported lost since then.
    told: bool,
    /// How many of the server's messages it was told were dropped.
    dropped: u64,
}

#[derive(Clone, Hash, Default)]
struct SessionFacts {
    /// Messages that the server's application sent.
    sent: u64,
    /// The count of the last client message handed over.
    last: Option<u64>,
    /// The highest number of the server's that some copy of the client handed over.
    heard: u64,
    /// Its application ended it.
    closed: bool,
    /// The client's END said that it handed over no more than this.
    closed_at: Option<u64>,
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

    pub(super) fn add_session(&mut self) {
        self.sessions.push(SessionFacts::default());
    }

    pub(super) fn excuse(&mut self) {
        self.excused = true;
    }

    /// The next message of a server's application.
    pub(super) fn server_sends(&mut self, session: usize) -> Message {
        let facts = &mut self.sessions[session];
        facts.sent += 1;
        Message::text(format!("{session}.{}", facts.sent))
    }

    /// The message of a client's application with this mark.
    pub(super) fn client_message((author, count): Mark) -> Message {
        Message::text(format!("{}{count}", char::from(b'A' + author as u8)))
    }

    /// How many messages of the server's application a session was given.
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

    /// The server's application got a client's message.
    pub(super) fn server_got(&mut self, session: usize, message: &Message) -> Result<(), String> {
        let mark = parse_mark(message).ok_or("a message that nobody sent")?;
        if !self.delivered.insert(mark) {
            return Err(format!("duplicate: the server's application got {mark:?} twice"));
        }
        if self.undelivered.contains(&mark) {
            return Err(format!("untrue: {mark:?} was reported not delivered and came later"));
        }
        let last = self.sessions[session].last.replace(mark.1);
        match last {
            Some(last) if mark.1 != last + 1 => Err(format!("hole or reorder: {mark:?} after count {last}")),
            _ => Ok(()),
        }
    }

    /// A client's application got a server's message.
    pub(super) fn client_got(&mut self, client: usize, message: &Message) -> Result<(), String> {
        let (session, number) = parse_number(message).ok_or("a message that nobody sent")?;
        let facts = &mut self.clients[client];
        let expected = match facts.heard {
            Some((heard, last)) if heard == session => last + 1,
            Some(_) if !facts.told => return Err("another session's message without a gap event".into()),
            _ => 1,
        };
        (facts.heard, facts.told) = (Some((session, number)), false);
        if number != expected {
            return Err(format!("duplicate, hole or reorder: server message {number}, expected {expected}"));
        }
        let of_session = &mut self.sessions[session];
        of_session.heard = of_session.heard.max(number);
        self.check_closed(session)
    }

    /// A client's application was told that the server dropped messages. All sessions together dropped so
    /// many, as far as they still live; no more can be told than that. A gap from 1 begins the newest session.
    pub(super) fn client_got_gap(
        &mut self,
        client: usize,
        first: u64,
        count: u64,
        dropped: Option<u64>,
    ) -> Result<(), String> {
        let facts = &mut self.clients[client];
        let newest = (self.sessions.len() - 1, 0);
        let (session, last) = facts.heard.filter(|_| first > 1).unwrap_or(newest);
        if facts.heard.is_some_and(|(heard, _)| heard != session) && !std::mem::take(&mut facts.told) {
            return Err("another session's gap without a gap event".into());
        }
        if first != last + 1 {
            return Err(format!("duplicate, hole or reorder: a gap from {first} after {last}"));
        }
        facts.heard = Some((session, last + count));
        facts.dropped += count;
        if dropped.is_some_and(|dropped| facts.dropped > dropped) {
            return Err(format!("untrue: {} were reported dropped, {dropped:?} were", facts.dropped));
        }
        let of_session = &mut self.sessions[session];
        of_session.heard = of_session.heard.max(last + count);
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
            Some(last) if facts.heard > last => {
                Err(format!("untrue: END said received = {last}, the application got {}", facts.heard))
            }
            _ => Ok(()),
        }
    }

    /// A client was told that its session is over, and what became of what it sent.
    pub(super) fn told(&mut self, client: usize, fate: &Fate) -> Result<(), String> {
        if !self.excused {
            return Err(format!("session lost without an excuse: {fate:?}"));
        }
        let facts = &mut self.clients[client];
        facts.told = true;
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

    /// What a client counts as acknowledged was handed over.
    pub(super) fn check_client(&self, client: usize, acknowledged: u64) -> Result<(), String> {
        let numbers = &self.clients[client].numbers;
        match numbers.iter().take(acknowledged as usize).find(|mark| !self.delivered.contains(mark)) {
            Some(mark) => Err(format!("{mark:?} is acknowledged and was not handed over")),
            None => Ok(()),
        }
    }

    /// What a session counts as acknowledged was handed over, and no session outlives its end.
    pub(super) fn check_session(&self, session: usize, acknowledged: u64, open: bool) -> Result<(), String> {
        let facts = &self.sessions[session];
        if acknowledged > facts.heard {
            return Err(format!(
                "session {session}: {acknowledged} acknowledged, {} handed over",
                facts.heard
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
