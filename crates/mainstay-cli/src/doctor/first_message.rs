//! The message that each connection sends first, for servers that wait for one: a login, or the opening of a protocol.

use std::fs::File;
use std::io::Read;

use bytes::Bytes;
use mainstay_proto::ws::Kind;

/// The longest, in bytes.
const MOST: usize = 64 * 1024;

/// A message that is a secret: it has no `Debug`, and no error quotes it.
#[derive(Clone)]
pub(crate) struct FirstMessage {
    pub(super) kind: Kind,
    pub(super) body: Bytes,
}

impl FirstMessage {
    /// Reads the value of `--first-message`: the text itself, or the name of a file behind an `@`.
    ///
    /// # Errors
    /// One line that begins with the flag.
    pub(crate) fn read(value: &str) -> Result<Self, String> {
        let (place, message) = match value.strip_prefix('@') {
            None => ("--first-message".to_owned(), Self::of(value.as_bytes().to_vec())),
            Some(file) => {
                let place = format!("--first-message @{file}");
                let mut body = Vec::new();
                File::open(file)
                    .and_then(|file| file.take(MOST as u64 + 3).read_to_end(&mut body))
                    .map_err(|error| format!("{place}: {error}; name a readable file behind the @"))?;
                (place, Self::of(without_line_end(body)))
            }
        };
        match message.body.len() {
            0 => Err(format!("{place}: is empty; write the message that the server waits for")),
            1..=MOST => Ok(message),
            _ => Err(format!("{place}: must be at most 64 KiB")),
        }
    }

    fn of(body: Vec<u8>) -> Self {
        let is_text = !body.contains(&0) && std::str::from_utf8(&body).is_ok();
        Self { kind: if is_text { Kind::Text } else { Kind::Binary }, body: body.into() }
    }

    /// Returns what must not appear in the output: the whole, the values in it if it is JSON, and otherwise its words but the first.
    pub(super) fn secrets(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.body).trim().to_owned();
        let mut secrets = Vec::new();
        match serde_json::from_str(&text) {
            Ok(value) => values(&value, &mut secrets),
            Err(_) => secrets.extend(text.split_whitespace().skip(1).map(str::to_owned)),
        }
        secrets.push(text);
        secrets
    }
}

/// What to try where a first message may be missing.
pub(super) struct Hint {
    /// Why it may, in one sentence.
    pub(super) words: String,
    pub(super) advice: String,
}

/// Subprotocols that a client opens by a message, and the flag that sends it.
const OPENINGS: [(&str, &str); 3] = [
    ("graphql-transport-ws", r#"--first-message '{"type":"connection_init"}'"#),
    ("graphql-ws", r#"--first-message '{"type":"connection_init"}'"#),
    ("mqtt", "--first-message @FILE, a file that holds a CONNECT packet"),
];

/// Returns what to try if a server ended connections on which no first message was sent: by this code, if by a Close.
pub(super) fn hint(subprotocol: Option<&str>, code: Option<u16>) -> Option<Hint> {
    let again = |flag: &str| format!("Measure again with the first message of your clients: {flag}.");
    if let Some((name, flag)) = OPENINGS.into_iter().find(|(name, _)| subprotocol == Some(*name)) {
        let words = format!("A client of {name} has to send a message first, and the doctor sent none.");
        return Some(Hint { words, advice: again(flag) });
    }
    let code = code.filter(|code| matches!(code, 1008 | 4000..=4999))?;
    let words = format!(
        "With code {code} an application closes: it may have waited for a first message, such as a login, and the doctor sent \
         none."
    );
    Some(Hint { words, advice: again("--first-message TEXT, or @FILE if it contains a secret") })
}

/// Editors end a text with a line end, which servers do not expect.
fn without_line_end(mut body: Vec<u8>) -> Vec<u8> {
    if !body.contains(&0) && body.last() == Some(&b'\n') {
        body.pop();
        body.pop_if(|last| *last == b'\r');
    }
    body
}

/// Collects the texts and numbers in a value.
fn values(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) => found.push(text.clone()),
        serde_json::Value::Number(number) => found.push(number.to_string()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| values(item, found)),
        serde_json::Value::Object(fields) => fields.values().for_each(|field| values(field, found)),
        serde_json::Value::Null | serde_json::Value::Bool(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent for a file with this content.
    fn of_file(content: &[u8]) -> (Kind, Vec<u8>) {
        let message = FirstMessage::of(without_line_end(content.to_vec()));
        (message.kind, message.body.to_vec())
    }

    #[test]
    fn a_file_is_text_without_the_line_end_of_editors_or_binary_if_it_has_a_nul() {
        assert_eq!(of_file(b"LOGIN ann\r\n"), (Kind::Text, b"LOGIN ann".to_vec()));
        assert_eq!(of_file(b"a\n\n"), (Kind::Text, b"a\n".to_vec()));
        assert_eq!(of_file(b"{}\x1e"), (Kind::Text, b"{}\x1e".to_vec()));
        assert_eq!(of_file(b"\x10\x0c\0\x04MQTT\n"), (Kind::Binary, b"\x10\x0c\0\x04MQTT\n".to_vec()));
        assert_eq!(of_file(b"\xff").0, Kind::Binary);
    }

    #[test]
    fn a_protocol_that_begins_with_a_message_is_named_with_that_message() {
        let check = |subprotocol, code, part: &str| {
            let hint = hint(subprotocol, code);
            assert!(hint.is_some_and(|hint| hint.advice.contains(part)), "{subprotocol:?} {code:?}");
        };
        check(Some("graphql-transport-ws"), Some(4408), "connection_init");
        check(Some("mqtt"), None, "CONNECT");
        check(None, Some(1008), "--first-message TEXT");
        assert!(hint(None, Some(1001)).is_none() && hint(Some("chat"), None).is_none());
    }

    #[test]
    fn values_of_json_and_words_behind_a_command_are_secrets() {
        let secrets = |text: &str| FirstMessage::of(text.into()).secrets();
        assert_eq!(secrets("LOGIN ann s3cret"), ["ann", "s3cret", "LOGIN ann s3cret"]);
        let json = r#"{"type":"init","payload":{"tokens":["s3cret",4711],"new":true}}"#;
        assert_eq!(secrets(json), ["s3cret", "4711", "init", json]);
        assert_eq!(secrets("s3cret"), ["s3cret"]);
    }
}
