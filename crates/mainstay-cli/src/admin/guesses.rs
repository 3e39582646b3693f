//! Wrong tokens, by the address that presents them: a bounded number of tries, then one every few seconds.
//!
//! A machine: time is an argument. While an address has no try left, its tokens are not compared at all, so a right one among
//! many guesses is not found either. Another address is not affected.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Wrong tokens that an address may present at once.
const BURST: u32 = 10;
/// The time after which it may present one more.
const ONE_MORE_AFTER: Duration = Duration::from_secs(6);
/// The most addresses that are remembered. Above it, the one whose tries return first is forgotten.
const ADDRESSES: usize = 1024;
/// The shortest time between two lines of the log.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    /// When each address has all its tries back.
    recovered_at: HashMap<IpAddr, Instant>,
    next_line: Option<Instant>,
    unreported: u64,
}

impl Guesses {
    /// Returns how long an address has to wait until its token is compared again; `None`: compare it now.
    pub(super) fn wait(&self, now: Instant, address: IpAddr) -> Option<Duration> {
        let recovered_at = self.recovered_at.get(&address)?;
        let missing = recovered_at.saturating_duration_since(now);
        let allowed = ONE_MORE_AFTER * (BURST - 1);
        (missing > allowed).then(|| missing - allowed)
    }

    /// An address presented a wrong token. Returns the number of wrong tokens to report, if a line may be logged now.
    pub(super) fn handle_wrong(&mut self, now: Instant, address: IpAddr) -> Option<u64> {
        self.recovered_at.retain(|_, at| *at > now);
        if self.recovered_at.len() >= ADDRESSES
            && !self.recovered_at.contains_key(&address)
            && let Some(first) = self.recovered_at.iter().min_by_key(|(_, at)| **at).map(|(first, _)| *first)
        {
            self.recovered_at.remove(&first);
        }
        *self.recovered_at.entry(address).or_insert(now) += ONE_MORE_AFTER;
        self.unreported += 1;
        if self.next_line.is_some_and(|at| now < at) {
            return None;
        }
        self.next_line = Some(now + LINE_INTERVAL);
        Some(std::mem::take(&mut self.unreported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u16) -> IpAddr {
        IpAddr::from([10, 0, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn an_address_has_ten_tries_and_then_one_every_six_seconds() {
        let (mut guesses, mut now) = (Guesses::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(guesses.wait(now, address(1)), None);
            guesses.handle_wrong(now, address(1));
        }
        assert_eq!(guesses.wait(now, address(1)), Some(ONE_MORE_AFTER));
        assert_eq!(guesses.wait(now, address(2)), None, "another address is not affected");
        now += ONE_MORE_AFTER;
        assert_eq!(guesses.wait(now, address(1)), None);
        guesses.handle_wrong(now, address(1));
        assert_eq!(guesses.wait(now, address(1)), Some(ONE_MORE_AFTER));
        assert_eq!(guesses.wait(now + ONE_MORE_AFTER * 10, address(1)), None);
    }

    #[test]
    fn one_line_a_minute_counts_what_was_left_out() {
        let (mut guesses, now) = (Guesses::default(), Instant::now());
        assert_eq!(guesses.handle_wrong(now, address(1)), Some(1));
        for number in 0..5 {
            assert_eq!(guesses.handle_wrong(now, address(number)), None);
        }
        assert_eq!(guesses.handle_wrong(now + LINE_INTERVAL, address(1)), Some(6));
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let (mut guesses, now) = (Guesses::default(), Instant::now());
        for number in 0..5000 {
            guesses.handle_wrong(now, address(number));
        }
        assert_eq!(guesses.recovered_at.len(), ADDRESSES);
        guesses.handle_wrong(now + ONE_MORE_AFTER * 2, address(1));
        assert_eq!(guesses.recovered_at.len(), 1, "the others have their tries back");
    }
}
