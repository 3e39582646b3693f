//! The output of `mainstay connect`: messages on standard output, events on standard error, or both as JSON.

use std::io::{IsTerminal, Write};
use std::ops::RangeInclusive;
use std::time::Duration;

use mainstay::client::{End, Event, Lost, Mode, ReasonCode, Report};
use mainstay::{CloseCode, Fate, Message};
use serde_json::{Value, json};

use super::Arguments;
use crate::observe::log;

/// Prints messages and events.
pub(super) struct Output {
    json: bool,
    /// A person types the input.
    interactive: bool,
    /// Control characters in messages are escaped.
    escapes: bool,
}

impl Output {
    pub(super) fn new(arguments: &Arguments) -> Self {
        Self {
            json: arguments.json,
            interactive: std::io::stdin().is_terminal(),
            escapes: std::io::stdout().is_terminal() && !arguments.raw,
        }
    }

    pub(super) fn greet(&self, url: &str) {
        if self.interactive && !self.json {
            log::write_line(&format!(
                "connecting to {url}; each line is sent as a message; Ctrl-D or Ctrl-C ends"
            ));
        }
    }

    pub(super) fn message(&self, message: &Message) -> std::io::Result<()> {
        match (self.json, message) {
            (true, Message::Text(text)) => json_line(&json!({"message": text.as_str()})),
            (true, Message::Binary(payload)) => json_line(&json!({"binary": hex(payload)})),
            (false, Message::Text(text)) if self.escapes => {
                line(&escaped(text, |c| matches!(c, '\n' | '\t')))
            }
            (false, Message::Text(text)) => line(text),
            (false, Message::Binary(payload)) => line(&hex(payload)),
        }
    }

    pub(super) fn event(&self, event: &Event) -> std::io::Result<()> {
        let (name, detail, mut facts) = describe(event);
        if self.json {
            facts["event"] = json!(name);
            facts["detail"] = json!(detail);
            return json_line(&facts);
        }
        log::write_line(&format!("{name}: {}", escaped(&detail, |_| false)));
        Ok(())
    }
}

/// Prints one line.
fn line(what: &impl std::fmt::Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}")?;
    out.flush()
}

/// Prints an object with every control character as `\u00XX`: JSON itself lets DEL and the C1 set pass.
fn json_line(object: &Value) -> std::io::Result<()> {
    let text = object.to_string();
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match acts_on_terminal(character) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => out.push(character),
        }
    }
    line(&out)
}

/// Returns an event's name, its description and its fields.
fn describe(event: &Event) -> (&'static str, String, Value) {
    match event {
        Event::Attached { mode, resumed, epoch } => {
            let (mode, how) = match mode {
                Mode::Session if *resumed => ("session", "session resumed, no message was lost"),
                Mode::Session => ("session", "new session"),
                // `Mode` may grow; today the other one is plain.
                _ => ("plain", "plain WebSocket, without resume"),
            };
            let facts = json!({"mode": mode, "resumed": resumed, "epoch": epoch});
            ("attached", format!("{how}; epoch {epoch}"), facts)
        }
        Event::Detached { why, next_attempt_in } => waiting("detached", why, *next_attempt_in),
        Event::AttemptFailed { why, next_attempt_in } => waiting("waiting", why, *next_attempt_in),
        Event::Gap(fate) => gap(fate),
        Event::PingsUnanswered => (
            "no pongs",
            "the server answers no Ping: messages sent from now on may or may not arrive".to_owned(),
            json!({}),
        ),
        Event::PingsAnswered => ("pongs", "the server answers Pings again".to_owned(), json!({})),
        Event::FreshPeer => (
            "fresh",
            "a new connection to a plain server: messages that it sent meanwhile are lost".to_owned(),
            json!({}),
        ),
        Event::Report(Report::Unknown(range)) => report("unknown", range, "may or may not have arrived"),
        Event::Report(Report::NotDelivered(range)) => report("not delivered", range, "were not delivered"),
        Event::Report(Report::Undeliverable { number, .. }) => {
            report("undeliverable", &(*number..=*number), "ended three connections and were dropped")
        }
        Event::Dropped { first, count, .. } => (
            "dropped",
            format!("the server dropped {count} messages, from number {first} on: its queue was full"),
            json!({"first": first, "count": count}),
        ),
        Event::Replaced { count } => (
            "replaced",
            format!(
                "the gateway replaced its connection to the backend, {count} so far: messages that the backend sent \
                 meanwhile may be missing"
            ),
            json!({"count": count}),
        ),
        Event::Authenticated { accepted } => {
            ("authenticated", format!("accepted={accepted}"), json!({"accepted": accepted}))
        }
        Event::Volatile(message) => {
            let text = message.as_text().map_or_else(|| hex(message.payload()), str::to_owned);
            ("volatile", text.clone(), json!({"message": text}))
        }
        Event::Ended(end) => ended(end),
        other => ("other", format!("{other:?}"), json!({})),
    }
}

/// Describes the loss of a session.
fn gap(fate: &Fate) -> (&'static str, String, Value) {
    let lost = fate.lost.map(|lost| lost.count);
    let detail = format!(
        "sent {}: delivered {}, unknown {}, {} {}; lost from the server: {}",
        fate.last,
        fate.delivered,
        fate.unknown - fate.delivered,
        fate.last - fate.unknown,
        if fate.resent { "sent again" } else { "not delivered" },
        lost.map_or_else(|| "unknown".to_owned(), |count| count.to_string()),
    );
    ("gap", detail, json!({"sent": sent(fate), "lost": lost}))
}

/// Describes the end of the client.
fn ended(end: &End) -> (&'static str, String, Value) {
    let (code, reason) = (end.code.map(ReasonCode::get), &end.reason);
    let code_words = code.map(|code| format!("code {code}"));
    let words: Vec<_> = code_words.into_iter().chain((!reason.is_empty()).then(|| reason.clone())).collect();
    let facts = json!({"code": code, "reason": reason, "sent": end.fate.as_ref().map(sent)});
    ("ended", words.join(", "), facts)
}

/// Returns the fates of the sent messages as JSON.
fn sent(fate: &Fate) -> Value {
    json!({
        "delivered": fate.delivered,
        "unknown": fate.unknown - fate.delivered,
        "not_delivered": fate.last - fate.unknown,
        "sent_again": fate.resent,
    })
}

/// Describes a connection that was lost or could not be opened.
fn waiting(name: &'static str, why: &Lost, next_attempt_in: Duration) -> (&'static str, String, Value) {
    let (why, code) = match why {
        Lost::TooBig { limit } => {
            (format!("the server sent a message of more than {limit} bytes; raise --max-message"), None)
        }
        Lost::Closed { code, reason } => {
            let words = code.map_or_else(|| "no code".to_owned(), |code| code.to_string());
            (
                format!("closed by the server: {words} {reason}").trim_end().to_owned(),
                code.map(CloseCode::get),
            )
        }
        other => (other.to_string(), None),
    };
    let facts = json!({"why": why, "code": code, "next_attempt_in_ms": next_attempt_in.as_millis()});
    (name, format!("{why}; next attempt in {next_attempt_in:.1?}"), facts)
}

/// Describes the fate of some messages.
fn report(fate: &str, range: &RangeInclusive<u64>, words: &str) -> (&'static str, String, Value) {
    let (first, last) = (range.start(), range.end());
    let facts = json!({"fate": fate, "first": first, "last": last});
    ("report", format!("messages {first} to {last} {words}"), facts)
}

/// Escapes what a terminal would act on, except what `keeps` allows. A server controls the text.
pub(super) fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match acts_on_terminal(character) && !keeps(character) {
            true => out.extend(character.escape_default()),
            false => out.push(character),
        }
    }
    out
}

/// Returns whether a terminal may act on a character instead of showing it: controls (C0, DEL, C1) and those that change
/// the direction of the text around them.
fn acts_on_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_as_escapes() {
        let visible = |text| escaped(text, |_| false);
        assert_eq!(visible("bye \u{1b}[31m\r\n\u{9b}2J\u{7f}"), r"bye \u{1b}[31m\r\n\u{9b}2J\u{7f}");
        assert_eq!(visible("a\u{202e}b"), r"a\u{202e}b");
        assert_eq!(visible("再见, \"tschüß\""), "再见, \"tschüß\"");
        assert_eq!(escaped("a\n\tb\u{7}", |c| c == '\n' || c == '\t'), "a\n\tb\\u{7}");
    }
}
