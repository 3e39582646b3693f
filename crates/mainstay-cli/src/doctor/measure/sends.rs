//! What a server sends by itself, and how often.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use super::super::measured::ServerSends;

/// The intervals that are remembered.
const INTERVALS: usize = 512;

/// Counts what arrives on connections that `N` names.
#[derive(Debug)]
pub(crate) struct Sends<N> {
    pings: Kind<N>,
    messages: Kind<N>,
    /// A message that comes this soon after the opening is a greeting.
    greeting: Duration,
}

#[derive(Debug)]
struct Kind<N> {
    count: u32,
    last: HashMap<N, Duration>,
    intervals: Vec<Duration>,
}

impl<N: Eq + Hash> Sends<N> {
    pub(crate) fn new(greeting: Duration) -> Self {
        Self { pings: Kind::new(), messages: Kind::new(), greeting }
    }

    /// A Ping came.
    pub(crate) fn handle_ping(&mut self, name: N, now: Duration) {
        self.pings.handle(name, now);
    }

    /// Something else came, on a connection of this age.
    pub(crate) fn handle_message(&mut self, name: N, age: Duration, now: Duration) {
        if age > self.greeting {
            self.messages.handle(name, now);
        }
    }

    pub(crate) fn result(&self) -> ServerSends {
        ServerSends {
            pings: self.pings.count,
            ping_interval: self.pings.median(),
            messages: self.messages.count,
            message_interval: self.messages.median(),
        }
    }
}

impl<N: Eq + Hash> Kind<N> {
    fn new() -> Self {
        Self { count: 0, last: HashMap::new(), intervals: Vec::new() }
    }

    fn handle(&mut self, name: N, now: Duration) {
        self.count = self.count.saturating_add(1);
        if let Some(last) = self.last.insert(name, now)
            && self.intervals.len() < INTERVALS
        {
            self.intervals.push(now.saturating_sub(last));
        }
    }

    fn median(&self) -> Option<Duration> {
        let mut intervals = self.intervals.clone();
        let middle = intervals.len() / 2;
        (!intervals.is_empty()).then(|| *intervals.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_not_regular_and_intervals_are_those_of_one_connection() {
        let seconds = Duration::from_secs;
        let mut sends = Sends::new(seconds(2));
        for name in 0..3 {
            sends.handle_message(name, seconds(0), seconds(name));
            sends.handle_message(name, seconds(1), seconds(name + 1));
            sends.handle_ping(name, seconds(name + 30));
        }
        assert!(!sends.result().is_regular());
        sends.handle_ping(0, seconds(60));
        let result = sends.result();
        assert_eq!((result.pings, result.ping_interval, result.messages), (4, Some(seconds(30)), 0));
        assert!(result.is_regular());
    }
}
