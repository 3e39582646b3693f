//! Log lines that peers can cause as often as they like: one for a while, with the number of those that were left out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two lines.
const PAUSE: Duration = Duration::from_secs(30);

/// When the last line was written, and how many were left out since.
#[derive(Debug, Default)]
pub(super) struct PacedLog(Mutex<(Option<Instant>, u64)>);

impl PacedLog {
    /// Returns how many lines were left out before this one; `None`: this one is left out.
    pub(super) fn due(&self) -> Option<u64> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, left_out) = &mut *log;
        let now = Instant::now();
        if last.is_some_and(|last| now < last + PAUSE) {
            *left_out += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_is_due_every_30_s_and_has_the_number_of_the_others() {
        let log = PacedLog::default();
        assert_eq!((log.due(), log.due(), log.due()), (Some(0), None, None));
        tokio::time::advance(PAUSE).await;
        assert_eq!((log.due(), log.due()), (Some(2), None));
    }
}
