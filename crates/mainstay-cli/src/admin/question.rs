//! What an operator asks of the sessions of all nodes, and the answer of one node.
//!
//! In a cluster the node that the operator asked puts the question to the others (`everywhere`), as JSON. An answer to another node
//! is at most [`LONGEST_QUESTION`] long: a page of sessions ends early, and a timeline lacks its oldest events.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use mainstay::cluster::LONGEST_QUESTION;
use mainstay::server::ClientInfo;
use mainstay::server::timeline::ClientName;
use mainstay::{CloseCode, Server};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{client, mentions, subject};
use super::words::{Calendar, object, reconnects};
use crate::clients::identity::subject_of;
use crate::routes::Routes;

/// What the envelope of an answer takes, at most.
const ENVELOPE: usize = 1024;

/// What is asked of each node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(super) enum Question {
    /// A page of sessions.
    List(Listing),
    /// A session with its timeline.
    One { id: String },
    /// The end of a session.
    End { id: String, code: u16, reason: String },
    /// The end of all sessions of a subject.
    EndSubject { subject: String, code: u16, reason: String },
    /// The end of them, and of the credentials that were issued until then (seconds since 1970).
    Revoke { subject: String, at: u64 },
}

/// Which sessions are listed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Listing {
    /// The node at which the page before ended, and the place there.
    pub(super) after: Option<(String, u32)>,
    pub(super) limit: usize,
    pub(super) state: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) search: Option<String>,
}

/// The answer of a node to a page, as it is joined with those of others.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    /// Where to continue at this node.
    pub(super) next: Option<u32>,
}

/// A session, and its place in the list of its node.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) place: u32,
    pub(super) session: Value,
}

/// What one node has of a session.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) session: Option<Value>,
    pub(super) reconnects: Vec<String>,
    pub(super) timeline: Vec<Value>,
    /// How many older events did not fit.
    pub(super) left_out: usize,
}

/// How many sessions and connections one node ended.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) ended: usize,
}

/// A node, as far as it answers questions.
#[derive(Clone, Copy)]
pub(super) struct Here<'a> {
    pub(super) server: &'a Server,
    pub(super) routes: &'a Arc<Routes>,
    /// How long an answer may be.
    pub(super) room: usize,
}

/// Answers another node.
pub(super) fn answer_node(server: &Server, routes: &Arc<Routes>, question: &[u8]) -> Bytes {
    let here = Here { server, routes, room: LONGEST_QUESTION - ENVELOPE };
    let answer = match serde_json::from_slice(question) {
        Ok(Question::List(listing)) => to_json(&here.list(&listing)),
        Ok(Question::One { id }) => to_json(&here.one(&id)),
        Ok(Question::End { id, code, reason }) => to_json(&here.end(&id, code, &reason)),
        Ok(Question::EndSubject { subject, code, reason }) => {
            to_json(&here.end_subject(&subject, code, &reason))
        }
        Ok(Question::Revoke { subject, at }) => to_json(&here.revoke(&subject, at)),
        Err(error) => json!({ "error": format!("this node does not know the question: {error}") }),
    };
    answer.to_string().into()
}

fn to_json(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

impl Here<'_> {
    pub(super) fn list(&self, listing: &Listing) -> Rows {
        let Listing { after, limit, state, subject: wanted_subject, search } = listing;
        let node = node_of(self.server);
        let after = after.as_ref().filter(|(at, _)| node.as_ref().is_none_or(|node| node == at));
        let search = search.as_deref().map(str::to_lowercase);
        let wanted = |client: &ClientInfo| {
            state.as_deref().is_none_or(|state| client.presence.as_str() == state)
                && wanted_subject.as_deref().is_none_or(|wanted| subject(client).as_deref() == Some(wanted))
                && search.as_deref().is_none_or(|search| mentions(client, search))
        };
        let page = self.server.list(after.map(|(_, place)| *place), *limit, wanted);
        let (mut rows, mut room, mut next) = (Vec::new(), self.room, page.next);
        for found in &page.clients {
            let session = client(found, node.as_deref());
            let length = session.to_string().len() + 32;
            if length > room && !rows.is_empty() {
                next = rows.last().map(|row: &Row| row.place);
                break;
            }
            room = room.saturating_sub(length);
            rows.push(Row { place: found.place, session });
        }
        Rows { rows, next }
    }

    pub(super) fn one(&self, id: &str) -> Found {
        let Ok(name) = id.parse::<ClientName>() else { return Found::default() };
        let (calendar, node) = (Calendar::now(), node_of(self.server));
        let found = self.server.client(name).map(|found| client(&found, node.as_deref()));
        let entries = self.server.timeline().of(name);
        let mut reconnects = reconnects(&entries, calendar);
        let events = entries.iter().map(|entry| {
            let mut event = object(entry, calendar);
            if let Some(node) = &node {
                event["node"] = node.as_str().into();
            }
            event
        });
        let mut timeline: Vec<Value> = events.collect();
        let (mut left_out, mut room) = (0, self.room.saturating_sub(4 * ENVELOPE));
        // The newest are what was asked for: half of the room for each of the two lists.
        keep_newest(&mut reconnects, room / 2, |sentence| sentence.len());
        room -= reconnects.iter().map(|sentence| sentence.len() + 8).sum::<usize>().min(room);
        left_out += keep_newest(&mut timeline, room, |event| event.to_string().len());
        Found { session: found, reconnects, timeline, left_out }
    }

    pub(super) fn end(&self, id: &str, code: u16, reason: &str) -> Ended {
        let (Ok(name), Some(code)) = (id.parse::<ClientName>(), CloseCode::new(code)) else {
            return Ended::default();
        };
        let was_here = self.server.end_client(name, code, reason);
        if was_here {
            tracing::info!(session = %name, code = code.get(), "an operator ended a session");
        }
        Ended { ended: usize::from(was_here) }
    }

    pub(super) fn end_subject(&self, subject: &str, code: u16, reason: &str) -> Ended {
        let Some(code) = CloseCode::new(code) else { return Ended::default() };
        let theirs = |client: &ClientInfo| subject_of(&client.peer().principal).as_deref() == Some(subject);
        let ended = self.server.end_clients(theirs, code, reason);
        tracing::info!(ended, code = code.get(), "an operator ended the sessions of a subject");
        Ended { ended }
    }

    pub(super) fn revoke(&self, subject: &str, at: u64) -> Ended {
        Ended { ended: self.routes.access.subjects.revoke(subject, at) }
    }
}

/// Returns the id of a node that shares an engine with others.
pub(super) fn node_of(server: &Server) -> Option<String> {
    server.cluster().filter(|cluster| cluster.engine.is_some()).map(|cluster| cluster.node)
}

/// Removes the oldest of a list until the rest fits; returns how many.
fn keep_newest<T>(list: &mut Vec<T>, room: usize, length: impl Fn(&T) -> usize) -> usize {
    let mut taken = 0;
    let fit = list.iter().rev().take_while(|one| {
        taken += length(one) + 8;
        taken <= room
    });
    let left_out = list.len() - fit.count();
    list.drain(..left_out);
    left_out
}

/// Returns the time as revocations have it: in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_this_version_does_not_know_has_an_error_as_its_answer() {
        let (server, routes) = (Server::default(), Arc::default());
        for question in [
            &b""[..],
            b"\xff",
            b"null",
            b"{}",
            br#"{"ask":"reboot"}"#,
            br#"{"ask":"list"}"#,
            br#"{"ask":"revoke","subject":"alice","at":-1}"#,
            "[".repeat(100_000).as_bytes(),
        ] {
            let answer = answer_node(&server, &routes, question);
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert!(answer["error"].as_str().unwrap().starts_with("this node does not know"), "{answer}");
        }
        let end = br#"{"ask":"end","id":"x","code":7,"reason":""}"#;
        assert_eq!(&answer_node(&server, &routes, end)[..], br#"{"ended":0}"#);
    }

    #[test]
    fn the_newest_of_a_list_are_kept() {
        let mut list = vec!["a".repeat(50), "b".repeat(50), "c".repeat(50)];
        assert_eq!(keep_newest(&mut list, 120, String::len), 1);
        assert_eq!((list.len(), list[0].as_bytes()[0]), (2, b'b'));
        assert_eq!(keep_newest(&mut list, 10, String::len), 2);
    }
}
