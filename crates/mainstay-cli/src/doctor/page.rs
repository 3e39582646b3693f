//! The report as text for people: what was seen, the findings, what may have cut, and at the end, where a reader of a terminal looks
//! first, the verdict.
//!
//! Everything that a server sent is escaped.

use std::io::IsTerminal;

use super::Plan;
use super::judgement::{CutVerdict, Suspect, Verdict};
use super::progress::State;
use super::report::{Finding, Report, Severity};
use super::rows::{self, Row};
use super::screen;
use crate::observe::log_text;

/// The width of a page that no terminal bounds.
const WIDTH: usize = 100;
/// The widest page that is read with ease.
const WIDEST: usize = 110;
const NARROWEST: usize = 40;
/// What may follow a number.
const UNITS: [&str; 9] = ["ms", "s", "min", "h", "day", "days", "bytes", "KiB", "MiB"];

/// Returns the report as text for standard output.
pub(crate) fn text(report: &Report, plan: &Plan) -> String {
    let output = std::io::stdout();
    let is_terminal = output.is_terminal();
    let width = if is_terminal { screen::size(output).columns.clamp(NARROWEST, WIDEST) } else { WIDTH };
    render(report, plan, width, is_terminal && screen::may_colour())
}

/// Returns the report as text of this width.
fn render(report: &Report, plan: &Plan, width: usize, colours: bool) -> String {
    let mut page = Page { text: String::new(), width, colours };
    page.heading(&report.target.url);
    page.rows("Facts", &rows::of_facts(report));
    if let Some(measured) = &report.measured {
        page.rows("Measured", &rows::of_measured(measured));
        for words in &measured.left_out {
            page.paragraph("  not measured: ", words);
        }
    }
    page.findings(&report.findings);
    if let Some(verdict) = &report.verdict {
        page.verdict(verdict);
    }
    page.notes(report, plan);
    page.text
}

/// Returns the words of a text. A number stays with its unit.
fn unbroken(text: &str) -> Vec<String> {
    let is_number = |word: &String| word.chars().all(|letter| letter.is_ascii_digit() || letter == '.');
    text.split_whitespace().fold(Vec::new(), |mut words, word| {
        let unit = word.trim_end_matches(['.', ',', ';', ':', ')']);
        match words.last_mut().filter(|last| is_number(last) && UNITS.contains(&unit)) {
            Some(number) => *number = format!("{number} {word}"),
            None => words.push(word.to_owned()),
        }
        words
    })
}

/// A page that grows.
struct Page {
    text: String,
    width: usize,
    colours: bool,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(&log_text::escape(line, false, false));
        self.text.push('\n');
    }

    fn heading(&mut self, words: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let words = log_text::escape(words, false, false);
        let line = if self.colours { format!("\x1b[1m{words}\x1b[0m\n") } else { format!("{words}\n") };
        self.text.push_str(&line);
    }

    /// Writes words in lines of the page's width; the lines below the first are indented like the first one's words.
    fn paragraph(&mut self, first: &str, words: &str) {
        let indent = first.chars().count();
        let mut line = first.to_owned();
        let mut is_empty = true;
        for word in unbroken(words) {
            let width = line.chars().count() + usize::from(!is_empty) + word.chars().count();
            if !is_empty && width > self.width {
                self.line(&line);
                line = " ".repeat(indent);
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(&word);
            is_empty = false;
        }
        self.line(&line);
    }

    fn rows(&mut self, heading: &str, rows: &[Row]) {
        if rows.is_empty() {
            return;
        }
        self.heading(heading);
        let names = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in rows {
            let at = self.text.len();
            self.paragraph(&format!("{}  {:names$}  ", screen::mark(row.state), row.name), &row.words);
            if self.colours {
                let mark = screen::mark(row.state).len();
                self.text.replace_range(at..at + mark, &screen::coloured(row.state, true));
            }
        }
    }

    fn findings(&mut self, findings: &[Finding]) {
        if findings.is_empty() {
            return;
        }
        self.heading("Findings");
        for finding in findings {
            let state = if finding.severity == Severity::Note { State::Done } else { State::Bad };
            let at = self.text.len();
            self.paragraph(
                &format!("{}  ", screen::mark(state)),
                &format!("{}: {}", finding.id, finding.words),
            );
            if self.colours {
                let mark = screen::mark(state).len();
                self.text.replace_range(at..at + mark, &screen::coloured(state, true));
            }
            for step in &finding.advice {
                self.paragraph("    - ", step);
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        for CutVerdict { finding, suspects } in &verdict.cuts {
            self.heading(&format!("What may have cut ({finding}), the most probable first"));
            for suspect in suspects {
                self.suspect(suspect);
            }
        }
        if let Some(heartbeat) = &verdict.heartbeat {
            self.heading("Heartbeat");
            self.paragraph("  the server  ", &heartbeat.server);
            self.paragraph("  a client    ", &heartbeat.client);
            self.paragraph("  Mainstay    ", &heartbeat.mainstay);
        }
        self.heading("Verdict");
        self.paragraph("  ", &verdict.summary);
    }

    fn suspect(&mut self, suspect: &Suspect) {
        let because = suspect.reasons.join("; ");
        self.paragraph("  ", &format!("{} {}: {because}", suspect.certainty.word(), suspect.name));
        self.paragraph("      to change it: ", suspect.remedy);
        for line in &suspect.lines {
            self.line(&format!("        {}", line.replace('\t', "  ")));
        }
        if let Some(source) = suspect.source {
            self.line(&format!("      {source}"));
        }
    }

    fn notes(&mut self, report: &Report, plan: &Plan) {
        if !report.complete {
            self.text.push('\n');
            self.paragraph("", "The command was interrupted: this is what was known by then.");
        }
        if plan.quick && report.facts.failed.is_none() {
            self.text.push('\n');
            self.paragraph("", "Nothing was measured by waiting: --quick.");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::measured::CutHow;
    use super::super::verdict;
    use super::super::verdict::tests::{report, silent_for};
    use super::*;

    const PLAN: Plan = Plan { lasts: Duration::from_secs(130), connections: 200, echo: false, quick: false };

    fn judged(how: CutHow) -> Report {
        let mut report = report(Some(silent_for(60, how)), &["nginx"]);
        (report.findings, report.verdict) = verdict::judge(&report);
        report
    }

    #[test]
    fn the_verdict_is_last_and_the_cut_and_its_remedy_are_before_it() {
        let page = render(&judged(CutHow::Fin), &PLAN, 100, false);
        let places = [
            "!!  idle, silent ",
            "idle-limit: Something between you",
            "  most probably nginx: ",
            "proxy_read_timeout 1h;",
            "Heartbeat",
            "Verdict\n  Something between you and the server ends connections after 60 s of silence.",
        ]
        .map(|part| page.find(part));
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{page}");
        assert!(page.ends_with("as here.\n"), "{page}");
    }

    #[test]
    fn a_number_stays_with_its_unit() {
        assert_eq!(
            unbroken("after 3 s, or 64 KiB; 10 of 10"),
            ["after", "3 s,", "or", "64 KiB;", "10", "of", "10"]
        );
    }

    #[test]
    fn no_line_of_words_is_wider_than_the_terminal() {
        let page = render(&judged(CutHow::Fin), &PLAN, 60, false);
        let is_whole = |line: &&str| line.contains("https://") || line.starts_with("        ");
        let wide: Vec<&str> =
            page.lines().filter(|line| !is_whole(line) && line.chars().count() > 60).collect();
        assert!(wide.is_empty(), "{wide:?}");
    }

    #[test]
    fn what_a_server_sent_is_escaped_with_and_without_colours() {
        let reason = "\u{1b}]0;title\u{7}\u{9b}2J".to_owned();
        let report = judged(CutHow::Close { code: Some(1001), reason });
        let plain = render(&report, &PLAN, 100, false);
        assert!(!plain.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{plain:?}");
        let coloured = render(&report, &PLAN, 100, true);
        assert!(!coloured.contains("\u{1b}]") && !coloured.contains(['\u{7}', '\u{9b}']), "{coloured:?}");
    }

    #[test]
    fn colours_change_no_word() {
        let report = judged(CutHow::Fin);
        let coloured = render(&report, &PLAN, 80, true);
        let mut without = String::new();
        for (number, part) in coloured.split("\u{1b}[").enumerate() {
            without.push_str(if number == 0 {
                part
            } else {
                part.split_once('m').map_or("", |(_, rest)| rest)
            });
        }
        assert_eq!(without, render(&report, &PLAN, 80, false));
    }

    #[test]
    fn an_interrupted_report_says_that_it_is_one() {
        let mut report = judged(CutHow::Fin);
        report.complete = false;
        assert!(render(&report, &PLAN, 100, false).contains("was interrupted"));
    }
}
