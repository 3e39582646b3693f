//! The path of an inbound message, as ARCHITECTURE.md lists it, beside the code.

use std::collections::BTreeSet;
use std::fs;

use crate::Result;

const DOCUMENT: &str = "ARCHITECTURE.md";
const HEADING: &str = "### Path of an inbound message";

/// The files that a message crosses from the socket to the queue of its session. More is a detour.
const MOST: usize = 10;

/// Returns what is wrong with the list: a function that is not in its file or that no earlier file calls, a file that the
/// message crosses twice, and too many files.
pub(crate) fn check() -> Result<Vec<String>> {
    let document = fs::read_to_string(DOCUMENT)?;
    let stops = stops(&document);
    let mut code = Vec::new();
    for (path, _) in &stops {
        code.push(fs::read_to_string(path).map_err(|error| format!("{DOCUMENT}: {path}: {error}"))?);
    }
    println!("an inbound message crosses {} files on its way to the queue of its session", stops.len());
    let complaints = faults(&stops, &code);
    Ok(complaints.into_iter().map(|what| format!("{DOCUMENT}: {HEADING}: {what}")).collect())
}

/// The rows of the table: a file and a function of it.
fn stops(document: &str) -> Vec<(String, String)> {
    let section = document.lines().skip_while(|line| *line != HEADING).skip(1);
    let rows = section.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| {
        let mut quoted = row.split('`').skip(1).step_by(2);
        Some((quoted.next()?.to_owned(), quoted.next()?.to_owned()))
    })
    .collect()
}

fn faults(stops: &[(String, String)], code: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for (n, ((path, function), text)) in stops.iter().zip(code).enumerate() {
        let defines = ['(', '<'].iter().any(|next| text.contains(&format!("fn {function}{next}")));
        if !defines {
            faults.push(format!("`{path}` has no function `{function}`"));
        }
        let call = format!("{function}(");
        let is_called = code[..n]
            .iter()
            .any(|text| text.match_indices(&call).any(|(at, _)| text[..at].ends_with(['.', ':'])));
        if n > 0 && !is_called {
            faults.push(format!("no file before `{path}` calls `{function}`"));
        }
        if !seen.insert(path) {
            faults.push(format!("the message crosses `{path}` twice"));
        }
    }
    if stops.is_empty() || seen.len() > MOST {
        faults.push(format!("{} files, and 1 to {MOST} are allowed", seen.len()));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(document: &str, code: &[&str]) -> Vec<String> {
        let code: Vec<_> = code.iter().map(|text| (*text).to_owned()).collect();
        faults(&stops(&format!("{HEADING}\n\n{document}")), &code)
    }

    #[test]
    fn a_path_whose_functions_call_each_other_is_right() {
        let found = checked(
            "| `a.rs` | `read` | |\n| `b.rs` | `parse` | |",
            &["fn read() { codec.parse() }", "fn parse(x: u8) {}"],
        );
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_missing_function_an_uncalled_one_and_a_file_that_is_crossed_twice_are_found() {
        let found = checked(
            "| `a.rs` | `read` | |\n| `b.rs` | `parse` | |\n| `a.rs` | `take` | |",
            &["fn read() {}", "fn parse() {}", "fn read() {}"],
        );
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn a_document_without_the_list_is_a_fault() {
        assert_eq!(checked("none", &[]).len(), 1);
    }
}
