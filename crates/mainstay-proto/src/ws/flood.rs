//! Limits on frames that carry nothing: Pings, Pongs, and fragments of no bytes.
//!
//! Messages need no such limit, however small: while their reader is not ready, their sender waits. Frames that no
//! reader ever receives hold no sender back, so they are counted here. Each of them spends one of 2,000; a frame that
//! carries data, and every tenth of a second, returns one. So a peer that pings after every message, at any rate,
//! spends nothing, and neither does one whose Pings piled up while this process was paused. Only a stream of nothing
//! else is refused.
//!
//! An honest connection reads no clock for this and stores no time: that begins with the 64th frame.

use std::time::{Duration, Instant};

use super::ProtocolError;

/// How many frames may be spent at once: more than the fragments of one message.
const BURST: u16 = 2000;
/// How long it takes to return one.
const EARNS_ONE: Duration = Duration::from_millis(100);
/// Up to this number no clock is read.
const UNTIMED: u16 = 64;

/// The count of one connection; the module describes it.
#[derive(Debug, Default)]
pub(super) struct Flood {
    spent: u16,
    /// The time from which returned frames are counted. Set only above [`UNTIMED`].
    since: Option<Box<Instant>>,
}

impl Flood {
    /// A frame arrived that carries nothing.
    pub(super) fn spend(&mut self) -> Result<(), ProtocolError> {
        if self.spent >= BURST {
            return Err(ProtocolError::Flood);
        }
        self.spent += 1;
        Ok(())
    }

    /// A frame arrived that carries data.
    pub(super) fn earn(&mut self) {
        self.spent = self.spent.saturating_sub(1);
    }

    /// Whether [`pass_time`](Self::pass_time) would do anything.
    pub(super) fn wants_time(&self) -> bool {
        self.spent > UNTIMED
    }

    /// Returns the frames that the time since the last call is worth.
    pub(super) fn pass_time(&mut self, now: Instant) {
        if !self.wants_time() {
            return;
        }
        let since = self.since.get_or_insert_with(|| Box::new(now));
        let earned = now.saturating_duration_since(**since).as_millis() / EARNS_ONE.as_millis();
        let earned = u16::try_from(earned).unwrap_or(u16::MAX).min(self.spent);
        **since += EARNS_ONE * u32::from(earned);
        self.spent -= earned;
        if !self.wants_time() {
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;

    /// Spends until a frame is refused, and returns how many passed.
    fn spend_all(flood: &mut Flood) -> u32 {
        (0..).take_while(|_| flood.spend().is_ok()).count().try_into().unwrap()
    }

    #[test]
    fn a_burst_of_2000_frames_of_nothing_passes_and_the_next_is_refused() {
        let mut flood = Flood::default();
        assert_eq!(spend_all(&mut flood), 2000);
        assert_eq!(flood.spend(), Err(ProtocolError::Flood));
    }

    #[test]
    fn ten_a_second_pass_for_ever_and_eleven_do_not() {
        for (pause, passes) in [(100, true), (90, false)] {
            let (mut now, mut flood) = (origin(), Flood::default());
            let all = (0..20_000).all(|_| {
                now += Duration::from_millis(pause);
                flood.pass_time(now);
                flood.spend().is_ok()
            });
            assert_eq!(all, passes, "one every {pause} ms");
        }
    }

    #[test]
    fn time_gives_back_no_more_than_was_spent() {
        let (now, mut flood) = (origin(), Flood::default());
        spend_all(&mut flood);
        flood.pass_time(now);
        flood.pass_time(now + Duration::from_secs(1));
        assert_eq!(spend_all(&mut flood), 10);
        flood.pass_time(now + Duration::from_secs(86_400));
        assert_eq!(spend_all(&mut flood), 2000);
    }

    #[test]
    fn a_ping_after_every_message_spends_nothing() {
        let mut flood = Flood::default();
        for _ in 0..1_000_000 {
            flood.earn();
            assert_eq!(flood.spend(), Ok(()));
        }
        assert!(!flood.wants_time());
    }

    #[test]
    fn a_connection_that_only_answers_heartbeats_holds_no_time() {
        let mut flood = Flood::default();
        let mut now = origin();
        for _ in 0..1000 {
            now += Duration::from_secs(25);
            flood.pass_time(now);
            flood.spend().unwrap();
            assert!(flood.spent <= UNTIMED + 2, "{flood:?}");
        }
    }
}
