//! Progress for people, on standard error: a table that fills in on a terminal, and a line for each result elsewhere.
//!
//! The table is painted in place, within the size of the terminal, and removed at the end: [`page`](super::page) is what stays. Marks
//! carry the meaning; colours repeat it, unless `NO_COLOR` is set.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use rustix::termios::tcgetwinsize;
use tokio::sync::mpsc::Receiver;
use tokio::time::{MissedTickBehavior, interval};

use super::progress::{State, Update};
use super::words::age;
use crate::observe::{log, log_text};

/// The shortest time between two paintings.
const REPAINT: Duration = Duration::from_millis(100);
/// For a terminal that does not say its size.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };
/// The widest name of a row that is aligned with the others.
const NAMES: usize = 24;

/// Shows progress until the sender is dropped. Without `is_shown` nothing is written.
pub(crate) async fn show(updates: Receiver<Update>, is_shown: bool) {
    match is_shown {
        true if is_capable() => paint(updates).await,
        _ => write_lines(updates, is_shown).await,
    }
}

/// Whether standard error is a terminal that obeys sequences.
fn is_capable() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether colours may be used: <https://no-color.org>.
pub(super) fn may_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

async fn write_lines(mut updates: Receiver<Update>, is_shown: bool) {
    let mut table = Table::default();
    while let Some(update) = updates.recv().await {
        let line = format!("{}  {}: {}", mark(update.state), update.row, update.words);
        let is_result = update.state != State::Running;
        if table.apply(update) && is_result && is_shown {
            log::write_raw(format!("{}\n", log_text::escape(&line, false, false)));
        }
    }
    log::flush(Duration::from_secs(1));
}

async fn paint(mut updates: Receiver<Update>) {
    let (began, colours) = (Instant::now(), may_colour());
    let (mut table, mut canvas) = (Table::default(), Canvas::default());
    let mut ticks = interval(REPAINT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_stale, mut second) = (true, 0);
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => is_stale |= table.apply(update),
                None => break,
            },
            _ = ticks.tick() => {
                let elapsed = began.elapsed();
                if is_stale || elapsed.as_secs() != second {
                    let lines = table.lines(elapsed, size(std::io::stderr()), colours);
                    log::write_raw(canvas.paint(&lines));
                    (is_stale, second) = (false, elapsed.as_secs());
                }
            }
        }
    }
    log::write_raw(canvas.paint(&[]));
    log::flush(Duration::from_secs(1));
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

pub(super) fn size(terminal: impl std::os::fd::AsFd) -> Size {
    match tcgetwinsize(terminal) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => USUAL_SIZE,
    }
}

/// The rows in the order in which they came.
#[derive(Default)]
struct Table(Vec<Update>);

impl Table {
    /// Takes an update. Returns whether it changes anything.
    fn apply(&mut self, update: Update) -> bool {
        match self.0.iter_mut().find(|row| row.row == update.row) {
            Some(row) if row.state == update.state && row.words == update.words => return false,
            Some(row) => *row = update,
            None => self.0.push(update),
        }
        true
    }

    /// Returns the lines to paint: the last rows that fit, and how long it takes so far.
    fn lines(&self, elapsed: Duration, size: Size, colours: bool) -> Vec<String> {
        // The cursor stands below the last line.
        let fitting = size.rows.saturating_sub(2);
        let skipped = self.0.len().saturating_sub(fitting);
        let names = self.0.iter().map(|row| row.row.chars().count()).max().unwrap_or(0).min(NAMES);
        let mut lines: Vec<String> =
            self.0[skipped..].iter().map(|row| line(row, names, size.columns, colours)).collect();
        let footer = format!("{} so far. Ctrl-C ends it, and shows what is known.", age(elapsed));
        lines.push(cut(&footer, size.columns));
        lines
    }
}

fn line(row: &Update, names: usize, columns: usize, colours: bool) -> String {
    let words = log_text::escape(&row.words, false, false);
    let text = cut(&format!("  {:names$}  {words}", row.row), columns.saturating_sub(mark(row.state).len()));
    format!("{}{text}", coloured(row.state, colours))
}

/// Two characters that say what a row says.
pub(super) fn mark(state: State) -> &'static str {
    match state {
        State::Running => "..",
        State::Good => "ok",
        State::Bad => "!!",
        State::Done => "--",
    }
}

/// The mark, in colours that repeat it.
pub(super) fn coloured(state: State, colours: bool) -> String {
    let code = match state {
        _ if !colours => return mark(state).to_owned(),
        State::Running => "36",
        State::Good => "32",
        State::Bad => "1;31",
        State::Done => "2",
    };
    format!("\x1b[{code}m{}\x1b[0m", mark(state))
}

/// Cuts a text to this many characters.
fn cut(text: &str, columns: usize) -> String {
    match text.char_indices().nth(columns) {
        Some((at, _)) => text[..at].to_owned(),
        None => text.to_owned(),
    }
}

/// What is painted now.
#[derive(Default)]
struct Canvas {
    lines: usize,
}

impl Canvas {
    /// Returns the sequences that put these lines in place of the last ones.
    fn paint(&mut self, lines: &[String]) -> String {
        let mut out = String::new();
        if self.lines > 0 {
            out.push_str(&format!("\x1b[{}A", self.lines));
        }
        // Wide characters do not wrap to a line that is not counted.
        out.push_str("\r\x1b[?7l");
        for line in lines {
            out.push_str(&format!("{line}\x1b[K\r\n"));
        }
        out.push_str("\x1b[J\x1b[?7h");
        self.lines = lines.len();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(row: &'static str, state: State, words: &str) -> Update {
        Update { row, state, words: words.to_owned() }
    }

    fn table(updates: &[Update]) -> Table {
        let mut table = Table::default();
        for update in updates {
            table.apply(update.clone());
        }
        table
    }

    fn lines(table: &Table, columns: usize, rows: usize) -> Vec<String> {
        table.lines(Duration::from_secs(7), Size { columns, rows }, false)
    }

    #[test]
    fn a_row_keeps_its_place_and_shows_its_latest_state() {
        let table = table(&[
            update("TLS", State::Running, ""),
            update("Pings", State::Running, ""),
            update("TLS", State::Good, "TLS 1.3"),
        ]);
        let lines = lines(&table, 80, 24);
        assert_eq!(lines[..2], ["ok  TLS    TLS 1.3", "..  Pings  "]);
        assert!(lines[2].starts_with("7 s so far"));
    }

    #[test]
    fn an_update_that_changes_nothing_is_not_painted() {
        let mut table = table(&[update("TLS", State::Good, "1")]);
        assert!(!table.apply(update("TLS", State::Good, "1")));
        assert!(table.apply(update("TLS", State::Bad, "1")));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let table = table(&[update("idle, silent", State::Running, &"ö".repeat(200))]);
        for columns in [1, 10, 40, 80] {
            let widest = lines(&table, columns, 24).iter().map(|line| line.chars().count()).max();
            assert!(widest <= Some(columns.max(2)), "{columns}: {widest:?}");
        }
    }

    #[test]
    fn a_table_that_is_higher_than_the_terminal_shows_its_last_rows() {
        const ROWS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
        let updates: Vec<Update> = ROWS.iter().map(|row| update(row, State::Good, "")).collect();
        let shown = lines(&table(&updates), 80, 5);
        assert_eq!(shown.len(), 4);
        assert!(shown[0].contains(" d "), "{shown:?}");
    }

    #[test]
    fn what_a_server_sent_moves_no_cursor() {
        let table = table(&[update("Close", State::Bad, "\u{1b}[2Jhidden\u{9b}31m")]);
        let shown = lines(&table, 80, 24).concat();
        assert!(!shown.contains(['\u{1b}', '\u{9b}']), "{shown:?}");
    }

    #[test]
    fn colours_repeat_the_marks_and_say_nothing_alone() {
        for state in [State::Running, State::Good, State::Bad, State::Done] {
            assert_eq!(coloured(state, false), mark(state));
            assert!(coloured(state, true).contains(mark(state)));
        }
    }

    #[test]
    fn a_painting_takes_the_place_of_the_last_one_and_the_end_removes_it() {
        let mut canvas = Canvas::default();
        let first = canvas.paint(&["one".into(), "two".into()]);
        assert!(!first.contains("\x1b[2A"), "{first:?}");
        let second = canvas.paint(&["three".into()]);
        assert!(second.starts_with("\x1b[2A"), "{second:?}");
        let end = canvas.paint(&[]);
        assert!(end.starts_with("\x1b[1A") && end.contains("\x1b[J"), "{end:?}");
    }
}
