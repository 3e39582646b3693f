//! Rules that select messages, and their syntax on the command line.
//!
//! A message is parsed as JSON at most once, however many rules need it. A message above [`MAX_MATCHED`] matches no
//! pattern: a login or its answer is never that large.

use std::borrow::Cow;
use std::cell::OnceCell;

use mainstay::Message;
use regex::bytes::Regex;
use serde_json::Value;

/// Larger messages match no pattern.
pub(crate) const MAX_MATCHED: usize = 256 * 1024;
/// Maximum of `first=N`.
const MAX_FIRST: u64 = 256;

/// Selects messages of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Rule {
    /// The first messages, this many.
    First(u64),
    /// All messages up to the first match, and the match.
    Until(Pattern),
    /// Each message that matches.
    Each(Pattern),
}

/// Matches one message.
#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    /// The expression matches somewhere in the payload.
    Regex(Regex),
    /// The payload is JSON with a value at the pointer (RFC 6901); if `value` is set, with this value.
    Json { pointer: String, value: Option<String> },
}

impl Rule {
    /// Parses `first=N`, `until=REGEX`, `match=REGEX` or `json=/pointer[=value]`.
    ///
    /// # Errors
    /// Names the invalid part and the syntax.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let how =
            "write first=N, until=REGEX, match=REGEX or json=/POINTER[=VALUE], for example json=/type=hello";
        let (kind, rest) = text.split_once('=').ok_or(how)?;
        match kind {
            "first" => {
                let count = rest.parse().ok().filter(|count| (1..=MAX_FIRST).contains(count));
                count.map(Self::First).ok_or_else(|| format!("first={rest}: must be from 1 to {MAX_FIRST}"))
            }
            "until" => regex(rest).map(|regex| Self::Until(Pattern::Regex(regex))),
            "match" | "json" => Pattern::parse(text).map(Self::Each),
            _ => Err(how.to_owned()),
        }
    }
}

impl Pattern {
    /// Parses `match=REGEX` or `json=/pointer[=value]`.
    ///
    /// # Errors
    /// Names the invalid part and the syntax.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let how = "write match=REGEX or json=/POINTER[=VALUE], for example json=/type=goodbye";
        match text.split_once('=').ok_or(how)? {
            ("match", rest) => regex(rest).map(Self::Regex),
            ("json", rest) => {
                let (at, value) = rest.split_once('=').map_or((rest, None), |(at, value)| (at, Some(value)));
                Ok(Self::Json { pointer: pointer(at)?, value: value.map(str::to_owned) })
            }
            _ => Err(how.to_owned()),
        }
    }

    /// Returns whether a message matches.
    pub(crate) fn matches(&self, view: &MessageView<'_>) -> bool {
        match self {
            _ if view.message.len() > MAX_MATCHED => false,
            Self::Regex(regex) => regex.is_match(view.message.payload()),
            Self::Json { pointer, value } => {
                let found = view.at(pointer);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| shown(found) == *value))
            }
        }
    }
}

/// Parses a JSON pointer (RFC 6901).
///
/// # Errors
/// The text does not begin with a slash.
pub(crate) fn pointer(text: &str) -> Result<String, String> {
    let is_pointer = text.starts_with('/');
    is_pointer
        .then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} is not a JSON pointer; write for example /type"))
}

fn regex(text: &str) -> Result<Regex, String> {
    if text.is_empty() {
        return Err(
            "an empty regular expression matches everything; write first=N or a longer one".to_owned()
        );
    }
    // The error has several lines; the last one says what is wrong.
    Regex::new(text).map_err(|error| {
        let error = error.to_string();
        let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("{text:?} is not a regular expression: {why}")
    })
}

/// Returns a string as it is, and any other value as JSON.
fn shown(found: &Value) -> Cow<'_, str> {
    match found {
        Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
}

/// One message, parsed as JSON when a rule first needs it.
pub(crate) struct MessageView<'a> {
    message: &'a Message,
    json: OnceCell<Option<Value>>,
}

impl<'a> MessageView<'a> {
    /// Creates the view. The message is not parsed yet.
    pub(crate) fn new(message: &'a Message) -> Self {
        Self { message, json: OnceCell::new() }
    }

    /// Returns the value at a pointer.
    pub(crate) fn at(&self, pointer: &str) -> Option<&Value> {
        self.json()?.pointer(pointer)
    }

    /// Returns the value at a pointer, as a key that two messages may share.
    pub(crate) fn key(&self, pointer: &str) -> Option<String> {
        Some(shown(self.at(pointer)?).into_owned())
    }

    fn json(&self) -> Option<&Value> {
        let payload = self.message.payload();
        let read = || (payload.len() <= MAX_MATCHED).then(|| serde_json::from_slice(payload).ok()).flatten();
        self.json.get_or_init(read).as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(rule: &str, payload: &str) -> bool {
        let pattern = Pattern::parse(rule).unwrap();
        pattern.matches(&MessageView::new(&Message::text(payload)))
    }

    #[test]
    fn a_message_matches_by_expression_or_by_the_value_at_a_json_pointer() {
        for (rule, payload, expected) in [
            ("match=^CONNECT", "CONNECT\n", true),
            ("match=^CONNECT", "DISCONNECT\n", false),
            ("json=/type", r#"{"type":null}"#, true),
            ("json=/type", r#"{"kind":1}"#, false),
            ("json=/type=hello", r#"{ "type" : "h\u0065llo" }"#, true),
            ("json=/type=hello", r#"{"type":"hello again"}"#, false),
            ("json=/type=1", r#"{"type":1}"#, true),
            ("json=/type=true", r#"{"type":true}"#, true),
            ("json=/3=phx_join", r#"["1","1","room:a","phx_join",{}]"#, true),
            ("json=/a/b=c=d", r#"{"a":{"b":"c=d"}}"#, true),
            ("json=/type=hello", "no JSON at all", false),
        ] {
            assert_eq!(matches(rule, payload), expected, "{rule} {payload}");
        }
    }

    #[test]
    fn binary_messages_are_matched_as_bytes() {
        let pattern = Pattern::parse("match=(?-u)^\\x10").unwrap();
        assert!(pattern.matches(&MessageView::new(&Message::binary(&b"\x10\xff"[..]))));
        assert!(!pattern.matches(&MessageView::new(&Message::binary(&b"\x30\xff"[..]))));
    }

    #[test]
    fn a_message_above_the_limit_matches_no_pattern() {
        let long = format!(r#"{{"type":"hello","rest":"{}"}}"#, "x".repeat(MAX_MATCHED));
        assert!(!matches("json=/type=hello", &long) && !matches("match=hello", &long));
    }

    #[test]
    fn the_error_of_an_invalid_rule_has_the_syntax() {
        for (wrong, expected) in [
            ("", "write first=N"),
            ("first", "write first=N"),
            ("last=3", "write first=N"),
            ("first=0", "from 1 to 256"),
            ("first=-1", "from 1 to 256"),
            ("first=257", "from 1 to 256"),
            ("until=", "empty"),
            ("match=(", "not a regular expression"),
            ("json=type", "not a JSON pointer"),
            ("json=", "not a JSON pointer"),
        ] {
            let error = Rule::parse(wrong).unwrap_err();
            assert!(error.contains(expected) && error.lines().count() == 1, "{wrong}: {error}");
        }
        for wrong in ["first=1", "until=x", "x"] {
            assert!(Pattern::parse(wrong).unwrap_err().contains("match=REGEX"), "{wrong}");
        }
        for right in ["first=256", "until=a|b", "match=.", "json=/a", "json=/a=", "json=/a=b"] {
            assert!(Rule::parse(right).is_ok(), "{right}");
        }
    }
}
