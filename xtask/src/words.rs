//! The words of the project: CONTRIBUTING.md lists what is retired, and no file uses it.

use std::fs;

use regex::Regex;

use crate::Result;

/// The document that holds the list. It may name what it retires.
const LIST: &str = "CONTRIBUTING.md";

/// The heading of the table. The first column has the retired words in backticks.
const HEADING: &str = "### Retired words";

/// Files that people read or write. Lock files, pictures and page bundles are not among them.
const KINDS: [&str; 10] = [".rs", ".ts", ".tsx", ".mjs", ".js", ".py", ".md", ".toml", ".yml", ".json"];

/// What no file may say.
pub(crate) struct Words {
    retired: Regex,
    /// A sentence that begins with one of these hides its actor.
    opening: Regex,
    /// The same as the first word of a test's name.
    test_name: Regex,
}

impl Words {
    /// Reads the list.
    pub(crate) fn read() -> Result<Self> {
        Self::of(&fs::read_to_string(LIST)?)
    }

    fn of(list: &str) -> Result<Self> {
        let table = list.lines().skip_while(|line| *line != HEADING).skip(1);
        let rows = table.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with("| `"));
        let words: Vec<_> = rows.flat_map(retired_in).collect();
        if words.is_empty() {
            return Err(format!("{LIST}: no table of words under `{HEADING}`").into());
        }
        Ok(Self {
            retired: Regex::new(&format!(r"\b({})\b", words.join("|")))?,
            opening: Regex::new(r"(?:^|[^`\w-])(Of|Who|Whoever|Nobody|Somebody) ")?,
            test_name: Regex::new(r#"(?:\bfn |\btest\(")(of|who|whoever|nobody|somebody)(?: |_\w+_\w+_)"#)?,
        })
    }

    /// Returns a complaint, with its line, for each retired word, and for each sentence and test that begins with a
    /// forbidden one.
    pub(crate) fn check(&self, path: &str, text: &str) -> Vec<(usize, String)> {
        let mut complaints = Vec::new();
        if [LIST, "xtask/src/words.rs"].contains(&path)
            || !KINDS.iter().any(|kind| path.ends_with(kind))
            || path.ends_with("lock.json")
        {
            return complaints;
        }
        for (number, line) in (1..).zip(text.lines()) {
            for found in self.retired.find_iter(line) {
                complaints
                    .push((number, format!("`{}` is retired; {LIST} has the word for it", found.as_str())));
            }
            for rule in [&self.opening, &self.test_name] {
                if let Some(found) = rule.captures(line) {
                    complaints.push((number, format!("begins with `{}`: name the actor", &found[1])));
                }
            }
        }
        complaints
    }
}

/// The words in backticks in the first column of a row.
fn retired_in(row: &str) -> impl Iterator<Item = String> {
    let cell = row.trim_start_matches('|').split('|').next().unwrap_or_default();
    cell.split('`').skip(1).step_by(2).map(regex::escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(text: &str) -> Vec<String> {
        let list = "### Retired words\n\n| Retired | Word |\n|---|---|\n| `hand_over`, `visitor` | deliver, client |\n";
        let found = Words::of(list).unwrap().check("docs/X.md", text);
        found.into_iter().map(|(line, what)| format!("{line}: {what}")).collect()
    }

    #[test]
    fn a_retired_word_is_found_wherever_it_stands_alone() {
        assert_eq!(complaints("a visitor\n`hand_over()` visitors hand_over_all").len(), 2);
    }

    #[test]
    fn a_sentence_or_a_test_that_begins_with_a_forbidden_word_is_found() {
        assert_eq!(
            complaints(
                "/// Of all peers.\n// It ends. Nobody knows.\n- Who asks\nfn of_two_peers_one_wins() {}"
            )
            .len(),
            4
        );
        assert!(complaints("a proof of it, `Who ` and Whose\nfn office() {}").is_empty());
    }

    #[test]
    fn a_list_without_words_is_an_error() {
        assert!(Words::of("### Retired words\n\nnone\n").is_err());
    }
}
