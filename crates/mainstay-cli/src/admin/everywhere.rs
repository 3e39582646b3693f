//! A question of the operator to all nodes of a cluster, and their answers in one.
//!
//! The node that the operator asked answers itself and asks the others, all at once, for at most a second. The answer names each
//! node that did not answer, and whether this node knows all nodes: it is never less without a word. A page takes rows from one
//! node after the other, in the order of their ids, and names the node and the place where the next page continues.

use axum::http::StatusCode;
use mainstay::Server;
use mainstay::cluster::NodeAnswer;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Operated;
use super::query::{Query, Wrong, bad};
use super::question::{Ended, Found, Here, Listing, Question, Row, Rows, node_of, now};
use super::revocations;

/// The parameters by which a request chooses nodes.
pub(super) const CHOICE: [&str; 2] = ["node", "local"];

/// Which nodes a request concerns.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Choice {
    /// This process, which is no node of several.
    Alone,
    /// The node that was asked, which has this id.
    Local(String),
    /// Another node.
    Other(String),
    /// All, and the id of the node that was asked.
    All(String),
}

impl Choice {
    pub(super) fn of(query: &Query, server: &Server) -> Result<Self, Wrong> {
        let is_local = match query.get("local") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(bad("local: must be true or false")),
        };
        match (node_of(server), query.get("node")) {
            (_, Some(_)) if is_local => Err(bad("local: contradicts node; write one of them")),
            (None, Some(_)) => Err(bad("node: this process is in no cluster; leave it out")),
            (None, None) => Ok(Self::Alone),
            (Some(me), None) if is_local => Ok(Self::Local(me)),
            (Some(me), None) => Ok(Self::All(me)),
            (Some(me), Some(node)) if node == me => Ok(Self::Local(me)),
            (Some(_), Some(node)) => Ok(Self::Other(node.to_owned())),
        }
    }

    /// Plain connections have names that are unique at their node only.
    pub(super) fn check_name(&self, id: &str) -> Result<(), Wrong> {
        match self {
            Self::All(_) if id.starts_with("plain-") => Err(bad(
                "node: must name the node of a plain connection, whose name is unique only there; the list has it",
            )),
            _ => Ok(()),
        }
    }

    fn me(&self) -> Option<&str> {
        match self {
            Self::Local(me) | Self::All(me) => Some(me),
            Self::Alone | Self::Other(_) => None,
        }
    }
}

/// The answers of all nodes that were asked, in the order of their ids.
struct Answers<T> {
    answered: Vec<(String, T)>,
    unreachable: Vec<Value>,
    is_complete: bool,
}

impl<T: DeserializeOwned> Answers<T> {
    /// Takes what this node answers, asks the other nodes of the choice, and sorts.
    async fn of(
        operated: &Operated,
        choice: &Choice,
        question: &Question,
        here: impl FnOnce(Here<'_>) -> T,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, Wrong> {
        let mut all = Self { answered: Vec::new(), unreachable: Vec::new(), is_complete: true };
        let is_asked = match choice {
            Choice::Alone | Choice::Local(_) => true,
            Choice::Other(_) => false,
            Choice::All(me) => is_wanted(me),
        };
        // First: what it changes does not wait for the others, nor for an operator who gives up.
        if is_asked {
            let here = here(Here { server: &operated.server, routes: &operated.routes, room: usize::MAX });
            all.answered.push((choice.me().unwrap_or_default().to_owned(), here));
        }
        let is_meant = |node: &str| match choice {
            Choice::Alone | Choice::Local(_) => false,
            Choice::Other(other) => node == other,
            Choice::All(_) => is_wanted(node),
        };
        if matches!(choice, Choice::All(_) | Choice::Other(_)) {
            let question = serde_json::to_vec(question).map_err(bad)?;
            let asked = operated.server.ask_nodes(question.into(), is_meant).await.map_err(bad)?;
            if let (Choice::Other(node), true) = (choice, asked.answers.is_empty()) {
                let line = format!(
                    "node: this node knows none with the id {}, or it has ended\n",
                    node.escape_debug()
                );
                return Err((StatusCode::NOT_FOUND, line));
            }
            all.is_complete = asked.is_complete || matches!(choice, Choice::Other(_));
            asked.answers.into_iter().for_each(|answer| all.add(answer));
        }
        all.answered.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(all)
    }

    fn add(&mut self, NodeAnswer { node, address, answer, .. }: NodeAnswer) {
        let read = answer.map_err(|error| error.to_string()).and_then(|answer| {
            let wrong = |error| format!("its answer cannot be read: {error}");
            let value: Value = serde_json::from_slice(&answer).map_err(wrong)?;
            match value["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => serde_json::from_value(value).map_err(wrong),
            }
        });
        match read {
            Ok(answer) => self.answered.push((node, answer)),
            Err(why) => {
                let address = address.map(|address| address.to_string());
                self.unreachable.push(json!({ "node": node, "address": address, "why": why }));
            }
        }
    }

    /// Whether every node was asked and has answered.
    fn are_all(&self) -> bool {
        self.is_complete && self.unreachable.is_empty()
    }

    /// Adds which nodes are missing, in a cluster.
    fn note_missing(&self, choice: &Choice, answer: &mut Value) {
        if *choice != Choice::Alone {
            answer["unreachable"] = self.unreachable.clone().into();
            answer["table_complete"] = self.is_complete.into();
        }
    }

    /// Returns the end of a line about something that was not found: which nodes it may be at.
    fn missing(&self) -> String {
        let names: Vec<_> = self.unreachable.iter().filter_map(|node| node["node"].as_str()).collect();
        match names.is_empty() {
            true => "this node may not know all nodes yet: ask again in 10 s".to_owned(),
            false => format!("not answered by {}", names.join(", ")),
        }
    }
}

/// Returns a page of the sessions of all nodes.
pub(super) async fn list(operated: &Operated, choice: &Choice, listing: Listing) -> Result<Value, Wrong> {
    let from = listing.after.as_ref().map(|(node, _)| node.clone());
    let limit = listing.limit;
    let here = |here: Here<'_>| here.list(&listing);
    let is_wanted = |node: &str| from.as_deref().is_none_or(|from| node >= from);
    let question = Question::List(listing.clone());
    let answers = Answers::<Rows>::of(operated, choice, &question, here, is_wanted).await?;
    let mut answer = json!({});
    answers.note_missing(choice, &mut answer);
    let (sessions, next) = page(answers.answered, limit);
    answer["sessions"] = sessions.into();
    answer["next"] = match next {
        None => Value::Null,
        Some((_, place)) if *choice == Choice::Alone => place.into(),
        Some((node, place)) => format!("{node}:{place}").into(),
    };
    Ok(answer)
}

/// Joins the rows of nodes, in their order, to one page; returns where the next one continues.
fn page(answered: Vec<(String, Rows)>, limit: usize) -> (Vec<Value>, Option<(String, u32)>) {
    let mut sessions = Vec::new();
    let mut last: Option<(String, u32)> = None;
    for (node, Rows { rows, next }) in answered {
        for Row { place, session } in rows {
            if sessions.len() >= limit {
                return (sessions, last);
            }
            sessions.push(session);
            last = Some((node.clone(), place));
        }
        if let Some(next) = next {
            // A page that was full before it came to this node continues where that was.
            let is_untouched = sessions.len() >= limit && last.as_ref().is_some_and(|(at, _)| *at != node);
            return (sessions, if is_untouched { last } else { Some((node, next)) });
        }
    }
    (sessions, None)
}

/// Reads where a page continues, as the one before named it.
pub(super) fn after(query: &Query, choice: &Choice) -> Result<Option<(String, u32)>, Wrong> {
    if *choice == Choice::Alone {
        return Ok(query.number("after", 0, u32::MAX)?.map(|place| (String::new(), place)));
    }
    let Some(text) = query.get("after") else { return Ok(None) };
    let read = text.split_once(':').and_then(|(node, place)| Some((node.to_owned(), place.parse().ok()?)));
    read.map(Some).ok_or_else(|| bad("after: must be the `next` of the page before, as 5f3c9a0e71d24b88:120"))
}

/// Returns a session with what all nodes have of its timeline.
pub(super) async fn one(operated: &Operated, choice: &Choice, id: String) -> Result<Value, Wrong> {
    let question = Question::One { id: id.clone() };
    let answers = Answers::<Found>::of(operated, choice, &question, |here| here.one(&id), |_| true).await?;
    let mut answer = json!({});
    answers.note_missing(choice, &mut answer);
    let missing = (!answers.are_all()).then(|| answers.missing());
    let mut all = Found::default();
    for (_, found) in answers.answered {
        all.session = all.session.or(found.session);
        all.reconnects.extend(found.reconnects);
        all.timeline.extend(found.timeline);
        all.left_out += found.left_out;
    }
    if all.session.is_none() && all.timeline.is_empty() {
        return Err(unknown(missing));
    }
    // Both begin with their time, by the clock of their node.
    all.reconnects.sort();
    all.timeline.sort_by(|one, other| one["at"].as_str().cmp(&other["at"].as_str()));
    answer["session"] = all.session.into();
    answer["reconnects"] = all.reconnects.into();
    answer["timeline"] = all.timeline.into();
    if all.left_out > 0 {
        answer["left_out"] = all.left_out.into();
    }
    Ok(answer)
}

fn unknown(missing: Option<String>) -> Wrong {
    match missing {
        None => {
            let line = "no such session is here, and the timeline has none of its events\n";
            (StatusCode::NOT_FOUND, line.to_owned())
        }
        Some(missing) => {
            let line = format!("no node that answered knows this session; {missing}\n");
            (StatusCode::SERVICE_UNAVAILABLE, line)
        }
    }
}

/// Ends one session, wherever it is.
pub(super) async fn end(
    operated: &Operated,
    choice: &Choice,
    (id, code, reason): (String, u16, String),
) -> Result<(StatusCode, Value), Wrong> {
    let question = Question::End { id: id.clone(), code, reason: reason.clone() };
    let here = |here: Here<'_>| here.end(&id, code, &reason);
    let answers = Answers::of(operated, choice, &question, here, |_| true).await?;
    let (_, answer) = ended(choice, &answers);
    if answer["ended"] == 0 {
        return Err(unknown((!answers.are_all()).then(|| answers.missing())));
    }
    Ok((StatusCode::OK, answer))
}

/// Ends all sessions of a subject.
pub(super) async fn end_subject(
    operated: &Operated,
    choice: &Choice,
    (subject, code, reason): (String, u16, String),
) -> Result<(StatusCode, Value), Wrong> {
    let here = |here: Here<'_>| here.end_subject(&subject, code, &reason);
    let question = Question::EndSubject { subject: subject.clone(), code, reason: reason.clone() };
    let answers = Answers::of(operated, choice, &question, here, |_| true).await?;
    Ok(ended(choice, &answers))
}

/// Ends all sessions of a subject and its credentials, at all nodes and at those that start later.
pub(super) async fn revoke(
    operated: &Operated,
    choice: &Choice,
    subject: String,
) -> Result<(StatusCode, Value), Wrong> {
    let at = now();
    let question = Question::Revoke { subject: subject.clone(), at };
    let asking = Answers::of(operated, choice, &question, |here| here.revoke(&subject, at), |_| true);
    if *choice == Choice::Alone {
        return Ok(ended(choice, &asking.await?));
    }
    let (answers, is_kept) = tokio::join!(asking, revocations::keep(&operated.server, &subject, at));
    let (status, mut answer) = ended(choice, &answers?);
    answer["stored"] = is_kept.into();
    Ok((if is_kept { status } else { StatusCode::MULTI_STATUS }, answer))
}

/// Returns how many sessions were ended. The status says whether every node did.
fn ended(choice: &Choice, answers: &Answers<Ended>) -> (StatusCode, Value) {
    let ended: usize = answers.answered.iter().map(|(_, answer)| answer.ended).sum();
    let mut answer = json!({ "ended": ended });
    answers.note_missing(choice, &mut answer);
    let status = if answers.are_all() { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    (status, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes with so many sessions each, whose places are 10, 20 and so on.
    struct World(Vec<(&'static str, u32)>);

    impl World {
        /// One page, as each node would answer: at most `limit` rows, or fewer where its answer is short of room.
        fn page(
            &self,
            after: Option<&(String, u32)>,
            limit: usize,
            room: usize,
        ) -> (Vec<u64>, Option<(String, u32)>) {
            let answers = self.0.iter().filter(|(node, _)| after.is_none_or(|(at, _)| *node >= at.as_str()));
            let answered = answers.map(|(node, count)| {
                let from = after.filter(|(at, _)| at == node).map_or(0, |(_, place)| *place);
                let all = (1..=*count).map(|number| number * 10).filter(|place| *place > from);
                let taken: Vec<u32> = all.clone().take(limit.min(room)).collect();
                let next = (taken.len() < all.count() || taken.len() == limit).then(|| taken.last().copied());
                let row = |place| Row { place, session: json!(format!("{node}{place}")) };
                (node.to_string(), Rows { rows: taken.into_iter().map(row).collect(), next: next.flatten() })
            });
            let (rows, next) = page(answered.collect(), limit);
            assert!(rows.len() <= limit, "{rows:?}");
            let number = |row: &Value| {
                let text = row.as_str().unwrap();
                u64::from_str_radix(text, 16).unwrap()
            };
            (rows.iter().map(number).collect(), next)
        }
    }

    #[test]
    fn pages_have_every_session_of_all_nodes_once_and_end() {
        for counts in [[0, 0, 0], [1, 0, 1], [5, 0, 7], [10, 10, 10], [0, 3, 0], [3, 3, 0]] {
            let world = World(["a", "b", "c"].into_iter().zip(counts).collect());
            for limit in [1, 2, 3, 5, 6, 10, 100] {
                for room in [1, 2, 4, 100] {
                    let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
                    loop {
                        let (rows, next) = world.page(after.as_ref(), limit, room);
                        all.extend(rows);
                        pages += 1;
                        assert!(pages < 100, "{counts:?} {limit} {room}: no end");
                        after = next;
                        if after.is_none() {
                            break;
                        }
                    }
                    let before = all.len();
                    all.sort_unstable();
                    all.dedup();
                    let expected: u32 = counts.iter().sum();
                    assert_eq!(
                        (before, all.len()),
                        (expected as usize, expected as usize),
                        "{counts:?} {limit} {room}"
                    );
                }
            }
        }
    }
}
