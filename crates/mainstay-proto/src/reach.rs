//! Reaching a server: which of its addresses to try next, when, and why none of them was reached.
//!
//! A name has several addresses, and the first may never answer; most often it is an IPv6 address that is announced and not
//! routed. So the families alternate. The next attempt begins 250 ms after the one before, or at once when an attempt failed,
//! and the first connection that comes about is used.
//!
//! Not here: the look-up of the name, which returns all addresses at once, in the system's order of preference (RFC 6724);
//! and the limit of the whole time, at which the driver drops the attempts that are still under way. That bounds the number
//! of attempts, too: four more begin in each second.
//!
//! Source: RFC 8305 sections 4 and 5.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// The time between the beginnings of two attempts.
///
/// Source: RFC 8305 section 8, "Connection Attempt Delay".
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The number of failures that a message names one by one.
const NAMED: usize = 4;

/// Why no byte stream to a server came about. Another attempt may bring one. As an error its source is the operating
/// system's or the TLS library's error, where one caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectFailure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// In words, with the address or the name, and the error behind it.
    pub failure: Failure,
}

/// Kinds of failures to reach a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The server's name has no address, or cannot be looked up.
    UnknownName,
    /// The server's machine answered that no process listens there.
    Refused,
    /// No answer came in time.
    TimedOut,
    /// This machine has no route to the address.
    NoRoute,
    /// Every local port towards the address is in use, by connections that are open or were closed just now.
    NoLocalPort,
    /// This process or this machine has no file descriptors left.
    NoDescriptor,
    /// The server's certificate is not trusted, has expired or is for another name.
    Certificate,
    /// The TLS handshake failed for another reason, such as a server that speaks no TLS.
    Tls,
    /// The proxy refused, or its answer was invalid.
    Proxy,
    /// Anything else; the message states what.
    Other,
}

impl FailureKind {
    /// A word for logs and for labels of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownName => "unknown_name",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::NoRoute => "no_route",
            Self::NoLocalPort => "no_local_port",
            Self::NoDescriptor => "no_descriptor",
            Self::Certificate => "certificate",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::Other => "other",
        }
    }

    /// Orders the failures of several addresses: the highest stands for all. What this process can fix comes first, then a
    /// server's answer, then silence.
    fn rank(self) -> u8 {
        match self {
            Self::NoLocalPort | Self::NoDescriptor => 4,
            Self::Refused => 3,
            Self::TimedOut => 2,
            Self::NoRoute => 0,
            _ => 1,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ConnectFailure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(kind: FailureKind, failure: impl Into<Failure>) -> Self {
        Self { kind, failure: failure.into() }
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl Error for ConnectFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failure.source()
    }
}

/// The attempts to reach one server. See the module.
#[derive(Debug)]
pub struct Attempts {
    /// The addresses that were not tried yet, in order.
    waiting: VecDeque<SocketAddr>,
    under_way: Vec<SocketAddr>,
    next_at: Instant,
    failed: Vec<(SocketAddr, ConnectFailure)>,
}

impl Attempts {
    /// The first attempt is due. `addresses`: in the order of preference.
    #[must_use]
    pub fn new(now: Instant, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { waiting: interleaved(addresses), under_way: Vec::new(), next_at: now, failed: Vec::new() }
    }

    /// The next address to connect to; `None`: no attempt is due.
    pub fn poll_attempt(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.next_at > now {
            return None;
        }
        let address = self.waiting.pop_front()?;
        self.under_way.push(address);
        self.next_at = now + ATTEMPT_DELAY;
        Some(address)
    }

    /// Notes that an attempt failed: the next one is due at once.
    pub fn handle_failed(&mut self, now: Instant, address: SocketAddr, failure: ConnectFailure) {
        self.under_way.retain(|open| *open != address);
        self.failed.push((address, failure));
        self.next_at = now;
    }

    /// When the next attempt is due; `None` after the last address.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next_at)
    }

    /// Whether every attempt failed and no address is left.
    #[must_use]
    pub fn are_over(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// The failure of all attempts. Those that are still under way count as timed out after `after`.
    #[must_use]
    pub fn into_failure(self, after: Duration) -> ConnectFailure {
        let silent = |address: &SocketAddr| {
            (*address, ConnectFailure::new(FailureKind::TimedOut, format!("no answer within {after:?}")))
        };
        let failed: Vec<_> = self.under_way.iter().map(silent).chain(self.failed).collect();
        // The first of equals: `max_by_key` takes the last.
        let worst = failed.iter().rev().max_by_key(|(_, failure)| failure.kind.rank());
        let Some(kind) = worst.map(|(_, failure)| failure.kind) else {
            return ConnectFailure::new(FailureKind::UnknownName, "the name has no address");
        };
        let mut reason = String::new();
        for (address, failure) in failed.iter().take(NAMED) {
            let separator = if reason.is_empty() { "" } else { "; " };
            // Writing to a string does not fail.
            let _ = write!(reason, "{separator}{address}: {failure}");
        }
        if let Some(more) = failed.len().checked_sub(NAMED).filter(|more| *more > 0) {
            let _ = write!(reason, "; and {more} more addresses");
        }
        // One error alone is the source; several are words.
        match failed.as_slice() {
            [(address, only)] => ConnectFailure::new(kind, only.failure.context(&address.to_string())),
            _ => ConnectFailure::new(kind, reason),
        }
    }
}

/// The addresses with their families in turns, beginning with the family of the first; each address once.
fn interleaved(addresses: impl IntoIterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    let first_is_ipv4 = all.first().is_some_and(SocketAddr::is_ipv4);
    let (mut preferred, mut others): (VecDeque<_>, VecDeque<_>) =
        all.into_iter().partition(|address| address.is_ipv4() == first_is_ipv4);
    let mut order = VecDeque::with_capacity(preferred.len() + others.len());
    while let Some(address) = preferred.pop_front() {
        order.push_back(address);
        order.extend(others.pop_front());
    }
    order.append(&mut others);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;

    fn v4(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn v6(last: u16) -> SocketAddr {
        SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last], 80))
    }

    fn failure(kind: FailureKind) -> ConnectFailure {
        ConnectFailure::new(kind, "words")
    }

    /// All that is due at one moment.
    fn due(attempts: &mut Attempts, now: Instant) -> Vec<SocketAddr> {
        std::iter::from_fn(|| attempts.poll_attempt(now)).collect()
    }

    #[test]
    fn families_alternate_and_no_address_is_tried_twice() {
        let order = |addresses: &[SocketAddr]| Vec::from(interleaved(addresses.iter().copied()));
        assert_eq!(order(&[v6(1), v6(2), v4(1), v4(2)]), [v6(1), v4(1), v6(2), v4(2)]);
        assert_eq!(order(&[v4(1), v6(1), v6(2), v6(3)]), [v4(1), v6(1), v6(2), v6(3)]);
        assert_eq!(order(&[v4(1), v4(2), v4(3), v6(1)]), [v4(1), v6(1), v4(2), v4(3)]);
        assert_eq!(order(&[v4(1), v4(1), v4(2), v4(1)]), [v4(1), v4(2)]);
        assert_eq!(order(&[]), []);
    }

    #[test]
    fn the_next_attempt_begins_a_quarter_of_a_second_after_one_that_stays_unanswered() {
        let start = origin();
        let mut attempts = Attempts::new(start, [v6(1), v4(1), v4(2)]);
        assert_eq!(due(&mut attempts, start), [v6(1)]);
        assert_eq!(attempts.poll_timeout(), Some(start + ATTEMPT_DELAY));
        assert_eq!(due(&mut attempts, start + ATTEMPT_DELAY - Duration::from_nanos(1)), []);
        assert_eq!(due(&mut attempts, start + ATTEMPT_DELAY), [v4(1)]);
        assert_eq!(due(&mut attempts, start + 2 * ATTEMPT_DELAY), [v4(2)]);
        assert_eq!(attempts.poll_timeout(), None, "there are no more");
        assert!(!attempts.are_over(), "each may still succeed");
    }

    #[test]
    fn after_a_refusal_the_next_attempt_is_due_at_once_and_after_a_late_one_too() {
        let start = origin();
        let mut attempts = Attempts::new(start, [v6(1), v4(1), v6(2), v4(2)]);
        assert_eq!(due(&mut attempts, start), [v6(1)]);
        attempts.handle_failed(start, v6(1), failure(FailureKind::Refused));
        assert_eq!(due(&mut attempts, start), [v4(1)]);
        let later = start + ATTEMPT_DELAY;
        assert_eq!(due(&mut attempts, later), [v6(2)]);
        attempts.handle_failed(later, v4(1), failure(FailureKind::NoRoute));
        assert_eq!(due(&mut attempts, later), [v4(2)]);
        for address in [v6(2), v4(2)] {
            assert!(!attempts.are_over());
            attempts.handle_failed(later, address, failure(FailureKind::Refused));
        }
        assert!(attempts.are_over());
    }

    #[test]
    fn a_failure_names_its_addresses_and_has_the_kind_of_the_highest_rank() {
        let check = |failed: &[(SocketAddr, FailureKind)], under_way: &[SocketAddr], kind, words: &str| {
            let start = origin();
            let all = failed.iter().map(|(address, _)| *address).chain(under_way.iter().copied());
            let mut attempts = Attempts::new(start, all);
            for round in 0..10 {
                due(&mut attempts, start + round * ATTEMPT_DELAY);
            }
            for (address, kind) in failed {
                attempts.handle_failed(start, *address, failure(*kind));
            }
            assert_eq!(attempts.into_failure(Duration::from_secs(3)), ConnectFailure::new(kind, words));
        };
        use FailureKind::{NoLocalPort, NoRoute, Refused, TimedOut, UnknownName};
        check(&[], &[], UnknownName, "the name has no address");
        check(&[(v4(1), Refused)], &[], Refused, "10.0.0.1:80: words");
        check(&[(v6(1), NoRoute), (v4(1), Refused)], &[], Refused, "[fd00::1]:80: words; 10.0.0.1:80: words");
        check(
            &[(v4(1), Refused), (v4(2), NoLocalPort)],
            &[],
            NoLocalPort,
            "10.0.0.1:80: words; 10.0.0.2:80: words",
        );
        check(
            &[(v6(1), NoRoute)],
            &[v4(1)],
            TimedOut,
            "10.0.0.1:80: no answer within 3s; [fd00::1]:80: words",
        );
        let many: Vec<_> = (1..=6).map(|last| (v4(last), NoRoute)).collect();
        let four = "10.0.0.1:80: words; 10.0.0.2:80: words; 10.0.0.3:80: words; 10.0.0.4:80: words";
        check(&many, &[], NoRoute, &format!("{four}; and 2 more addresses"));
    }
}
