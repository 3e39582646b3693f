//! Which rule is turned back: a property of the thread, so that tests do not meet.

use std::cell::Cell;

thread_local! {
    static TURNED_BACK: Cell<Option<Rule>> = const { Cell::new(None) };
}

/// Turns one rule back on this thread; `None`: all hold.
pub fn turn_back(rule: Option<Rule>) {
    TURNED_BACK.set(rule);
}

/// Whether this rule is turned back on this thread.
pub fn turned_back(rule: Rule) -> bool {
    TURNED_BACK.get() == Some(rule)
}
