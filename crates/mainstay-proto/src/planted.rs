//! Rules of `mainstay.v1` that a test can turn back, to show that the explorer notices.
//!
//! Without the feature `planted-bugs` `turned_back` is `false` at compile time and nothing of this
//! remains in a build. With it the rule is a property of the thread, so that tests do not meet.

/// A rule, named by what holds while it is not turned back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the rules; docs/PROTOCOL.md explains them")]
pub enum Rule {
    PresentedTokenStaysValid,
    DataConfirmsNothing,
    NewSessionIsNotReplayed,
    OneKeyOneSession,
    YoungKeyIsNotRefused,
    OldKeyIsRefused,
    OldConnectionIsOnlyRead,
    SupersededNamesTheWinner,
    StaleAttemptIsRefused,
    ContradictionChangesNothing,
    SentInHelloIsCompared,
    SentInPingIsThePosition,
    PingIsComparedWithThePosition,
    TombstoneHasAllNames,
    AccountStatesDelivered,
    EndedIsNotAttached,
    NothingIsDeliveredAfterEnd,
    CopyNumbersNothing,
    KeyIsNotCopied,
    CopyingCountsAsWriting,
    RepetitionIsJudgedByReceived,
    AcknowledgedIsKeptUntilWritten,
    EndWaitsForTheAttempt,
    SupersededIsFinalBeforeWelcome,
    AccountIsForOneInstance,
    GapTakesOverNumbers,
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static TURNED_BACK: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Turns one rule back on this thread; `None`: all hold.
    pub fn turn_back(rule: Option<Rule>) {
        TURNED_BACK.set(rule);
    }

    pub(crate) fn turned_back(rule: Rule) -> bool {
        TURNED_BACK.get() == Some(rule)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::turn_back;
#[cfg(feature = "planted-bugs")]
pub(crate) use switch::turned_back;

#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn turned_back(_: Rule) -> bool {
    false
}
