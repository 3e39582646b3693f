//! One connection that keeps a habit for the whole time: it sends Pings at an interval, or nothing at all, and is watched.
//!
//! A machine: times count from the start of the experiments.

use std::time::Duration;

use super::super::measured::CutHow;
use super::lifetime::Life;

/// A watched connection.
#[derive(Debug)]
pub(crate) struct Steady {
    opened: Duration,
    /// Between two Pings. `None`: it sends only the last one.
    every: Option<Duration>,
    /// When the next Ping is due.
    next: Duration,
    /// No Ping is sent after this.
    last_ping: Duration,
    patience: Duration,
    /// When the oldest Ping was sent that has no Pong yet.
    unanswered: Option<Duration>,
    /// The last sign of life from the server.
    heard: Duration,
    pongs: u32,
    cut: Option<(Duration, CutHow)>,
}

impl Steady {
    /// Creates one that was opened at `opened`. Its last Ping is sent at `last_ping`; a Pong may take `patience`.
    pub(crate) fn new(
        opened: Duration,
        every: Option<Duration>,
        last_ping: Duration,
        patience: Duration,
    ) -> Self {
        let next = every.map_or(last_ping, |_| opened);
        Self {
            opened,
            every,
            next,
            last_ping,
            patience,
            unanswered: None,
            heard: opened,
            pongs: 0,
            cut: None,
        }
    }

    /// The server sent something.
    pub(crate) fn handle_bytes(&mut self, now: Duration) {
        self.heard = now;
    }

    /// The server answered a Ping.
    pub(crate) fn handle_pong(&mut self, now: Duration) {
        self.heard = now;
        self.pongs += 1;
        self.unanswered = None;
        if matches!(self.cut, Some((_, CutHow::Silent))) {
            self.cut = None;
        }
    }

    /// The connection ended, not by this client.
    pub(crate) fn handle_end(&mut self, now: Duration, how: CutHow) {
        let was_forgotten = matches!(self.cut, Some((_, CutHow::Silent)));
        self.cut = match how {
            CutHow::Reset if was_forgotten => Some((self.heard, CutHow::ResetOnSend)),
            how => Some((now, how)),
        };
    }

    /// Returns whether a Ping is to be sent.
    pub(crate) fn poll(&mut self, now: Duration) -> bool {
        let late = self.unanswered.filter(|sent| now >= *sent + self.patience);
        // It was cut before that Ping, and not only when the patience with it ended.
        if let Some(sent) = late
            && self.pongs > 0
            && self.cut.is_none()
        {
            self.cut = Some((sent, CutHow::Silent));
        }
        if self.cut.is_some() || now < self.next || self.next > self.last_ping {
            return false;
        }
        self.unanswered.get_or_insert(now);
        self.next = match self.every {
            Some(every) => now + every,
            None => Duration::MAX,
        };
        true
    }

    /// Returns when to poll again; `None`: only when something happens.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        if self.cut.is_some() {
            return None;
        }
        let late = self.unanswered.filter(|_| self.pongs > 0).map(|sent| sent + self.patience);
        late.into_iter().chain(Some(self.next).filter(|next| *next <= self.last_ping)).min()
    }

    /// Returns whether the server answers Pings; `None`: not known yet.
    pub(crate) fn answers(&self, now: Duration) -> Option<bool> {
        match self.unanswered {
            _ if self.pongs > 0 => Some(true),
            Some(sent) if self.cut.is_none() && now >= sent + self.patience => Some(false),
            _ => None,
        }
    }

    /// Returns the life so far. `is_alive`: the connection is still open, and nothing is known to be wrong with it.
    pub(crate) fn life(&self, now: Duration, is_busy: bool) -> Life {
        // A cut that nothing announced is somewhere between the last sign of life and now. Where no Ping is answered, an open connection
        // is all there is to see.
        let last = if self.pongs > 0 || self.cut.is_some() { self.heard } else { now };
        Life { opened: self.opened, last, cut: self.cut.clone(), is_busy }
    }

    pub(crate) fn cut(&self) -> Option<&(Duration, CutHow)> {
        self.cut.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(value: u64) -> Duration {
        Duration::from_secs(value)
    }

    fn steady() -> Steady {
        Steady::new(seconds(0), Some(seconds(20)), seconds(100), seconds(5))
    }

    #[test]
    fn pings_are_sent_at_the_interval_and_the_last_one_in_time() {
        let mut steady = steady();
        let mut sent = Vec::new();
        for now in (0..200).map(seconds) {
            if steady.poll(now) {
                sent.push(now.as_secs());
                steady.handle_pong(now);
            }
        }
        assert_eq!(sent, [0, 20, 40, 60, 80, 100]);
        let mut silent = Steady::new(seconds(0), None, seconds(100), seconds(5));
        assert_eq!((0..200).filter(|now| silent.poll(seconds(*now))).collect::<Vec<_>>(), [100]);
    }

    #[test]
    fn a_ping_without_a_pong_is_a_silent_cut_until_the_pong_comes() {
        let mut steady = steady();
        assert!(steady.poll(seconds(0)));
        steady.handle_pong(seconds(1));
        assert!(steady.poll(seconds(20)));
        assert_eq!(steady.poll_timeout(), Some(seconds(25)));
        assert!(!steady.poll(seconds(25)));
        assert_eq!(steady.cut(), Some(&(seconds(20), CutHow::Silent)));
        assert_eq!(steady.life(seconds(30), true).last, seconds(1));
        steady.handle_pong(seconds(31));
        assert_eq!(steady.cut(), None);
        assert!(steady.poll(seconds(40)));
    }

    #[test]
    fn a_server_that_answers_no_ping_is_not_taken_for_a_cut() {
        let mut steady = steady();
        assert!(steady.poll(seconds(0)));
        assert_eq!((steady.answers(seconds(4)), steady.answers(seconds(5))), (None, Some(false)));
        assert!(!steady.poll(seconds(6)));
        assert_eq!(steady.cut(), None);
        assert_eq!(steady.life(seconds(90), true).last, seconds(90));
    }
}
