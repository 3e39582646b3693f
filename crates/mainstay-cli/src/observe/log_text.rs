//! Characters that a terminal obeys, and that a client, a backend or a file may have chosen, in lines of the log.
//!
//! The formatters escape most of them: quotation of text fields, JSON. What they leave is escaped here, for every line at once:
//! controls in fields that are displayed as they are, and the controls above ASCII (C1), of which one alone begins a sequence of a
//! terminal, and which JSON allows. Marks that reorder text would make a line look like another one.

use std::borrow::Cow;

/// Escapes what a terminal obeys, but for the newline at the end. `colours`: the line was coloured for a terminal, so the
/// sequences in it are ours.
pub(crate) fn escape(line: &str, json: bool, colours: bool) -> Cow<'_, str> {
    let text = line.strip_suffix('\n').unwrap_or(line);
    let is_bad = |c: char| obeys(c) && !(colours && c == '\u{1b}');
    if !text.contains(is_bad) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_bad(c) => escaped.push(c),
            // Only within its strings, as JSON's own text has none of these.
            c if json => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.extend(c.escape_default()),
        }
    }
    escaped.push_str(&line[text.len()..]);
    Cow::Owned(escaped)
}

/// Whether a terminal does something other than to show this character, or shows the others in another order.
fn obeys(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_plain_text_is_not_copied() {
        let line = "2026 WARN x path=\"/ä/漢字\"\n";
        assert!(matches!(escape(line, false, false), Cow::Borrowed(same) if same == line));
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_a_line_stays_one_line() {
        let check = |line: &str, json: bool, expected: &str| assert_eq!(escape(line, json, false), expected);
        check("a\u{1b}[2Jb\n", false, "a\\u{1b}[2Jb\n");
        check("a\r\nforged\tb\n", false, "a\\r\\nforged\\tb\n");
        check("a\u{9b}31m\u{202e}\u{7f}b\n", false, "a\\u{9b}31m\\u{202e}\\u{7f}b\n");
        check("no end\u{7}", false, "no end\\u{7}");
        let object = "{\"path\":\"/\u{9b}31m\u{7f}\"}\n";
        check(object, true, "{\"path\":\"/\\u009b31m\\u007f\"}\n");
        let value: serde_json::Value = serde_json::from_str(&escape(object, true, false)).unwrap();
        assert_eq!(value["path"], "/\u{9b}31m\u{7f}", "it means the same");
    }

    #[test]
    fn colours_of_our_own_stay() {
        let line = "\u{1b}[33mWARN\u{1b}[0m a\u{9b}b\n";
        assert_eq!(escape(line, false, true), "\u{1b}[33mWARN\u{1b}[0m a\\u{9b}b\n");
    }
}
