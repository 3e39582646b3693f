//! GraphQL mutations in flight, over `graphql-transport-ws`.
//!
//! A client of this protocol that loses its connection sends every open operation again on the next one, mutations
//! included. A mutation that the backend had executed and not yet answered would run twice. The gateway therefore answers
//! every mutation in flight before it closes the client: with `complete` if the result had arrived, otherwise with an
//! `error` that states that the outcome is unknown. Queries and subscriptions are left to the client, which sends them
//! again. So are persisted operations, whose text is not in the message: the gateway cannot see whether they are
//! mutations.
//!
//! Source: the "GraphQL over WebSocket Protocol" of enisdenjo/graphql-ws; GraphQL (October 2021) sections 2.1 to 2.3.

use mainstay::Message;
use serde::Deserialize;
use serde_json::json;

/// Maximum number of tracked mutations. Further ones are left to the client, as without a gateway.
const MAX_MUTATIONS: usize = 256;
/// Mutations with a longer id are not tracked; clients use a few bytes.
const MAX_ID: usize = 256;

/// The mutations of one client that are in flight. See the module.
#[derive(Debug, Default)]
pub(crate) struct Mutations {
    in_flight: Vec<Mutation>,
}

#[derive(Debug)]
struct Mutation {
    id: String,
    has_result: bool,
}

impl Mutations {
    /// The client sent a message to the backend.
    pub(crate) fn handle_client(&mut self, message: &Message) {
        // Most messages are neither, and are not parsed.
        if !contains(message, b"subscribe") && !contains(message, b"complete") {
            return;
        }
        let Ok(Frame { kind, id }) = serde_json::from_slice(message.payload()) else { return };
        match kind.as_str() {
            "subscribe"
                if is_mutation(message) && self.in_flight.len() < MAX_MUTATIONS && id.len() <= MAX_ID =>
            {
                self.in_flight.push(Mutation { id, has_result: false });
            }
            "complete" => self.forget(&id),
            _ => {}
        }
    }

    /// The backend sent a message to the client.
    pub(crate) fn handle_backend(&mut self, message: &Message) {
        if self.in_flight.is_empty() {
            return;
        }
        let Ok(Frame { kind, id }) = serde_json::from_slice(message.payload()) else { return };
        match kind.as_str() {
            "next" => {
                let asked = self.in_flight.iter_mut().filter(|mutation| mutation.id == id);
                asked.for_each(|mutation| mutation.has_result = true);
            }
            "complete" | "error" => self.forget(&id),
            _ => {}
        }
    }

    /// The backend's connection is lost. Returns an answer for each mutation, in the order in which they were sent.
    pub(crate) fn handle_lost(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.in_flight).into_iter().map(answer).collect()
    }

    fn forget(&mut self, id: &str) {
        self.in_flight.retain(|mutation| mutation.id != id);
    }
}

fn answer(Mutation { id, has_result }: Mutation) -> Message {
    if has_result {
        return Message::text(json!({ "id": id, "type": "complete" }).to_string());
    }
    let error = json!({
        "message": "the connection to the server was lost: this mutation may or may not have been executed",
        "extensions": { "code": "OUTCOME_UNKNOWN" },
    });
    Message::text(json!({ "id": id, "type": "error", "payload": [error] }).to_string())
}

fn contains(message: &Message, word: &[u8]) -> bool {
    message.payload().windows(word.len()).any(|window| window == word)
}

/// The fields that every message about an operation has.
#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    id: String,
}

#[derive(Deserialize)]
struct Subscribe {
    payload: Payload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    query: String,
    operation_name: Option<String>,
}

fn is_mutation(subscribe: &Message) -> bool {
    let Ok(Subscribe { payload }) = serde_json::from_slice(subscribe.payload()) else { return false };
    let chosen = payload.operation_name.as_deref().filter(|name| !name.is_empty());
    // A document without a chosen name must have one operation; the backend refuses any other.
    let is_chosen = |name: Option<&str>| chosen.is_none() || name == chosen;
    definitions(&payload.query).any(|(kind, name)| kind == "mutation" && is_chosen(name))
}

/// Returns keyword and name of each definition in a document, fragments included.
fn definitions(document: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut tokens = Tokens(document);
    std::iter::from_fn(move || {
        let first = tokens.next()?;
        let kind = if first == "{" { "query" } else { first };
        let mut name = None;
        let mut depth = usize::from(first == "{");
        let mut is_second = first != "{";
        for token in tokens.by_ref() {
            match token {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && token == "}" {
                        break;
                    }
                }
                word if is_second && is_name(word) => name = Some(word),
                _ => {}
            }
            is_second = false;
        }
        Some((kind, name))
    })
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Iterates over the names and brackets of a document. Everything else separates them.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let first = self.0.chars().next()?;
            let length = match first {
                '#' => self.0.find(['\n', '\r']).unwrap_or(self.0.len()),
                '"' => string_length(self.0),
                _ if is_name(self.0) => {
                    let end = self.0.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    end.unwrap_or(self.0.len())
                }
                _ => first.len_utf8(),
            };
            let (token, rest) = self.0.split_at(length);
            self.0 = rest;
            if is_name(token) || matches!(first, '{' | '}' | '(' | ')' | '[' | ']' | '@') {
                return Some(token);
            }
        }
    }
}

/// Returns the length of the string at the start of `text`, its quotes included.
fn string_length(text: &str) -> usize {
    let is_block = text.starts_with("\"\"\"");
    let (open, escape) = if is_block { ("\"\"\"", "\\\"\"\"") } else { ("\"", "\\") };
    let mut at = open.len();
    loop {
        let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) else { return text.len() };
        if rest.starts_with(escape) {
            // Skips the first character of any escape sequence.
            let escaped = if is_block { "" } else { rest.get(1..).unwrap_or_default() };
            at += escape.len() + escaped.chars().next().map_or(0, char::len_utf8);
        } else if rest.starts_with(open) {
            return at + open.len();
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn subscribe(id: &str, payload: Value) -> Message {
        Message::text(json!({ "id": id, "type": "subscribe", "payload": payload }).to_string())
    }

    fn from_backend(id: &str, kind: &str) -> Message {
        Message::text(json!({ "id": id, "type": kind, "payload": { "data": null } }).to_string())
    }

    /// The answer that the client gets for each id.
    fn answers(operations: &mut Mutations) -> Vec<(String, String)> {
        let answers = operations.handle_lost();
        let read = |message: &Message| serde_json::from_slice(message.payload()).unwrap();
        answers.iter().map(read).map(|Frame { kind, id }| (id, kind)).collect()
    }

    fn check(payload: Value, expected: bool) {
        let mut operations = Mutations::default();
        operations.handle_client(&subscribe("1", payload.clone()));
        assert_eq!(!operations.handle_lost().is_empty(), expected, "{payload}");
    }

    #[test]
    fn an_operation_is_a_mutation_by_its_document_and_its_name() {
        for (query, expected) in [
            ("mutation { pay }", true),
            (
                "mutation Pay($to: ID! = \"query {\", $o: In = {a: [1]}) @d(x: 1) { pay(to: $to) { id } }",
                true,
            ),
            ("# query {\n, mutation{pay}", true),
            ("fragment F on T { a } mutation { pay { ...F } }", true),
            ("\u{feff}mutation { pay }", true),
            ("{ mutation { id } }", false),
            ("query mutation { a }", false),
            ("subscription { ticks }", false),
            ("query Q { a(s: \"} mutation { pay }\") }", false),
            ("query Q { a(s: \"\"\"\\\"\"\" } mutation { pay }\"\"\") }", false),
            ("query Q { a(s: \"\\\\\\\"} mutation { pay }\") }", false),
            ("query Q { a # } mutation { pay }\n }", false),
            ("fragment mutation on T { a } { b }", false),
            ("", false),
            ("mutation", true),
            ("\"", false),
        ] {
            check(json!({ "query": query }), expected);
            check(json!({ "query": query, "operationName": null }), expected);
        }
        let both = "query Read { a } mutation Pay @x { pay } fragment Pay on T { a }";
        check(json!({ "query": both, "operationName": "Read" }), false);
        check(json!({ "query": both, "operationName": "Pay" }), true);
        check(json!({ "extensions": { "persistedQuery": { "sha256Hash": "x" } } }), false);
        check(json!({ "query": 5 }), false);
        check(json!(null), false);
    }

    #[test]
    fn a_mutation_in_flight_is_answered_when_the_backend_is_lost_and_no_other_operation_is() {
        let mut operations = Mutations::default();
        let mutation = || json!({ "query": "mutation { pay }" });
        operations.handle_client(&Message::text(r#"{"type":"connection_init"}"#));
        for id in ["answered", "given up", "refused", "has its result", "in flight"] {
            operations.handle_client(&subscribe(id, mutation()));
        }
        operations.handle_client(&subscribe("query", json!({ "query": "{ a }" })));
        operations.handle_client(&subscribe("ticks", json!({ "query": "subscription { ticks }" })));
        operations.handle_client(&from_backend("given up", "complete"));
        for (id, kind) in [
            ("answered", "next"),
            ("answered", "complete"),
            ("refused", "error"),
            ("has its result", "next"),
            ("ticks", "next"),
        ] {
            operations.handle_backend(&from_backend(id, kind));
        }
        operations.handle_backend(&Message::text(r#"{"type":"ping"}"#));
        let expected = [("has its result", "complete"), ("in flight", "error")];
        assert_eq!(answers(&mut operations), expected.map(|(id, kind)| (id.to_owned(), kind.to_owned())));
        assert_eq!(answers(&mut operations), [], "each mutation is answered once");
    }

    #[test]
    fn the_tracked_mutations_of_a_client_are_bounded() {
        let mut operations = Mutations::default();
        for id in 0..MAX_MUTATIONS + 10 {
            operations.handle_client(&subscribe(&id.to_string(), json!({ "query": "mutation { pay }" })));
        }
        assert_eq!(operations.handle_lost().len(), MAX_MUTATIONS);
        operations.handle_client(&subscribe(&"x".repeat(MAX_ID + 1), json!({ "query": "mutation { a }" })));
        assert!(operations.handle_lost().is_empty());
    }

    #[test]
    fn a_mutation_is_recognised_however_long_its_variables_are() {
        check(json!({ "variables": { "file": "x".repeat(1 << 20) }, "query": "mutation { put }" }), true);
    }
}
