//! The proxy's clock, which stands still while the process does.
//!
//! A process that is stopped (SIGSTOP, a frozen container, a debugger, no free core) finds afterwards that much time has passed. That is
//! no evidence about a client: it may have been stopped with the proxy, as on the same laptop, and had no time to send. And what was due
//! meanwhile would all strike at once. So the time of a pause does not count: no silence and no age grows, and what was due is due after
//! it as before.
//!
//! The proxy's thread reads the clock at least every [`TICK`]. A reading that is late by more than [`LATEST`] shows a pause, the same
//! bound as the heartbeat's in `mainstay-proto`: on a busy machine a thread may wait so long for a core, again and again.

use std::time::Duration;

/// The thread reads the clock no less often.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How late a reading may be without a pause.
const LATEST: Duration = Duration::from_millis(250);

/// Times are since the start of the proxy.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// What the machine's clock showed at the last reading.
    read: Duration,
    /// The time that does not count.
    paused: Duration,
}

impl Clock {
    /// Reads the clock when the machine's shows `time`. Returns the length of the pause since the last reading, if there was one.
    pub(crate) fn handle_time(&mut self, time: Duration) -> Option<Duration> {
        let since = time.saturating_sub(std::mem::replace(&mut self.read, time));
        let pause = since.saturating_sub(TICK);
        if pause <= LATEST {
            return None;
        }
        self.paused += pause;
        Some(pause)
    }

    /// Returns the proxy's time of the last reading.
    pub(crate) fn now(&self) -> Duration {
        self.read.saturating_sub(self.paused)
    }

    /// Returns what the machine's clock will show at a time of the proxy, if there is no further pause.
    pub(crate) fn shows_at(&self, at: Duration) -> Duration {
        at.saturating_add(self.paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_clock_stands_still_in_a_pause_and_goes_on_after_it() {
        let mut clock = Clock::default();
        assert_eq!((clock.handle_time(ms(250)), clock.now()), (None, ms(250)));
        assert_eq!((clock.handle_time(ms(10_250)), clock.now()), (Some(ms(9750)), ms(500)));
        assert_eq!((clock.handle_time(ms(10_300)), clock.now()), (None, ms(550)));
        assert_eq!(clock.shows_at(ms(1000)), ms(10_750));
        assert_eq!((clock.handle_time(ms(70_300)), clock.now()), (Some(ms(59_750)), ms(800)));
    }

    #[test]
    fn a_thread_that_waited_for_a_core_is_late_and_had_no_pause() {
        let mut clock = Clock::default();
        for time in [500, 1000, 1000, 1500] {
            assert_eq!((clock.handle_time(ms(time)), clock.now()), (None, ms(time)));
        }
        assert_eq!(clock.handle_time(ms(2001)), Some(ms(251)));
    }
}
