//! What a round must count, and what it prints.

use super::verdict::Verdict;
use crate::Result;

/// What a count must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Must {
    Anything,
    Be(u64),
    BeAtLeast(u64),
    BeAtMost(u64),
}

/// A count with a name.
pub(super) struct Row {
    name: String,
    count: u64,
    must: Must,
}

/// What a round may cost; everything else is 0 in each round.
pub(super) struct Allowed {
    pub(super) gaps: Must,
    /// Gaps of one client.
    pub(super) gaps_of_one: u64,
    /// Messages of the clients whose fate nobody knows.
    pub(super) unknown: Must,
    /// Messages of the backend that gaps explain.
    pub(super) missed: Must,
    pub(super) replaced: Must,
}

impl Allowed {
    /// Nothing is lost, and nothing is reported.
    pub(super) const NOTHING: Self = Self {
        gaps: Must::Be(0),
        gaps_of_one: 0,
        unknown: Must::Be(0),
        missed: Must::Be(0),
        replaced: Must::Anything,
    };
}

/// The rows of what clients and backend report about each other.
pub(super) fn of(verdict: &Verdict, allowed: &Allowed) -> Vec<Row> {
    use Must::{Anything, Be, BeAtLeast, BeAtMost};
    let never = Be(0);
    vec![
        row("clients", verdict.clients, BeAtLeast(1)),
        row("connections lost by clients", verdict.detached, Anything),
        row("attached", verdict.attached, Anything),
        row("... with a session begun anew", verdict.fresh, Be(verdict.clients + verdict.gaps)),
        row("gaps reported", verdict.gaps, allowed.gaps),
        row("gaps of one client, at most", verdict.most_gaps, BeAtMost(allowed.gaps_of_one)),
        row("replaced backend connections reported", verdict.replaced, allowed.replaced),
        row("clients that ended", verdict.ended, never),
        row("up: sent", verdict.sent, BeAtLeast(verdict.clients)),
        row("up: reported as delivered", verdict.delivered, Anything),
        row("up: reported as unknown", verdict.unknown, allowed.unknown),
        row("up: reported as not delivered", verdict.undelivered, Anything),
        row("up: without an outcome", verdict.pending, never),
        row("up: reported as delivered, not at the backend", verdict.lost_up, never),
        row("up: reported as not delivered, at the backend", verdict.wrongly_undelivered, never),
        row("up: at the backend twice", verdict.twice_up, never),
        row("up: out of order", verdict.disordered_up, never),
        row("down: sent", verdict.pushed, BeAtLeast(verdict.clients)),
        row("down: received", verdict.received, Anything),
        row("down: missed at a reported gap", verdict.missed_at_gaps, allowed.missed),
        row("down: missed at a replaced backend connection", verdict.missed_at_replacements, never),
        row("down: missed without a report", verdict.lost_down, never),
        row("down: twice", verdict.twice_down, never),
        row("down: out of order", verdict.disordered_down, never),
        row("down: never sent", verdict.invented, never),
    ]
}

pub(super) fn row(name: &str, count: u64, must: Must) -> Row {
    Row { name: name.to_owned(), count, must }
}

/// Prints a round. An error names each count that is not as it must be.
pub(super) fn judge(round: &str, rows: &[Row]) -> Result<()> {
    // At once: another round may print, too.
    let lines = rows.iter().map(|row| format!("    {:48} {:>8}{}\n", row.name, row.count, row.mark()));
    print!("--- {round}\n{}", lines.collect::<String>());
    let wrong: Vec<String> = rows.iter().filter_map(Row::failure).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("{round}: {}", wrong.join("; ")).into()) }
}

impl Row {
    fn failure(&self) -> Option<String> {
        let (name, count) = (&self.name, self.count);
        let (is_right, wanted) = match self.must {
            Must::Anything => (true, String::new()),
            Must::Be(exact) => (count == exact, exact.to_string()),
            Must::BeAtLeast(least) => (count >= least, format!("{least} or more")),
            Must::BeAtMost(most) => (count <= most, format!("{most} or less")),
        };
        (!is_right).then(|| format!("{name}: {count}, not {wanted}"))
    }

    fn mark(&self) -> String {
        match (self.failure(), self.must) {
            (Some(_), _) => "  FAILED".to_owned(),
            (None, Must::Be(exact)) => format!("  (must be {exact})"),
            (None, _) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_is_not_as_it_must_be_is_named() {
        for (must, right, wrong) in [
            (Must::Be(3), 3, Some(4)),
            (Must::BeAtLeast(3), 4, Some(2)),
            (Must::BeAtMost(3), 2, Some(4)),
            (Must::Anything, 9, None),
        ] {
            assert_eq!(row("gaps", right, must).failure(), None);
            if let Some(wrong) = wrong {
                assert!(
                    row("gaps", wrong, must).failure().unwrap().starts_with(&format!("gaps: {wrong}, not 3"))
                );
            }
        }
    }

    #[test]
    fn a_silent_loss_fails_the_strictest_and_the_loosest_round() {
        let loose = Allowed {
            gaps: Must::Anything,
            gaps_of_one: 9,
            unknown: Must::Anything,
            missed: Must::Anything,
            replaced: Must::Anything,
        };
        for allowed in [Allowed::NOTHING, loose] {
            let good = Verdict { clients: 1, fresh: 1, sent: 1, pushed: 1, ..Verdict::default() };
            assert!(judge("good", &of(&good, &allowed)).is_ok());
            for bad in [
                Verdict { lost_down: 1, ..good.clone() },
                Verdict { lost_up: 1, ..good.clone() },
                Verdict { twice_up: 1, ..good.clone() },
                Verdict { twice_down: 1, ..good.clone() },
                Verdict { wrongly_undelivered: 1, ..good.clone() },
                Verdict { fresh: 2, ..good.clone() },
            ] {
                assert!(judge("bad", &of(&bad, &allowed)).is_err());
            }
        }
    }
}
