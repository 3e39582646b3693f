//! What waits while the backend cannot be reached: the operator's choice, and the patience with one client.
//!
//! [`Patience`] is a machine: how the link's connections went and whether messages wait goes in; the moment comes out at
//! which the client is closed or gets a new session, so that nothing waits longer than the operator wants.

use std::time::{Duration, Instant};

/// What happens while no address of the backend can be reached.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(crate) enum Policy {
    /// Clients and their messages wait.
    #[default]
    Queue,
    /// A new client is refused, and one that sends a message is closed.
    Reject,
    /// Every client is closed.
    Close,
}

/// The policy and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WhenDown {
    pub(crate) policy: Policy,
    /// Maximum payload of the messages of one client that wait. A client whose queue is full waits itself.
    pub(crate) queue_bytes: usize,
    /// How long a message may wait. `None`: as long as its client stays.
    pub(crate) queue_age: Option<Duration>,
}

impl Default for WhenDown {
    fn default() -> Self {
        Self { policy: Policy::Queue, queue_bytes: 4 * 1024 * 1024, queue_age: None }
    }
}

impl WhenDown {
    /// Returns whether clients wait for a backend that cannot be reached.
    pub(crate) fn waits(&self) -> bool {
        self.policy == Policy::Queue
    }

    /// Returns whether the messages of clients have to be watched.
    pub(crate) fn watches_messages(&self) -> bool {
        self.policy == Policy::Reject || self.queue_age.is_some()
    }
}

/// The patience with one client; see the module.
#[derive(Debug)]
pub(crate) struct Patience<'a> {
    when_down: &'a WhenDown,
    /// While the link has no connection: since when a message waits.
    waits_since: Option<Instant>,
    is_lost: bool,
    /// No address could be reached since.
    is_down: bool,
    /// When a plain client is closed in any case.
    give_up: Option<Instant>,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(when_down: &'a WhenDown) -> Self {
        Self { when_down, waits_since: None, is_lost: false, is_down: false, give_up: None }
    }

    /// A new client waits for the first connection, and what it sends waits with it.
    pub(crate) fn handle_opening(&mut self, now: Instant) {
        (self.is_lost, self.waits_since) = (true, Some(now));
    }

    /// The connection to the backend was lost. `has_unconfirmed`: messages wait already. `wait`: how long a plain client is kept.
    pub(crate) fn handle_lost(&mut self, now: Instant, has_unconfirmed: bool, wait: Option<Duration>) {
        self.is_lost = true;
        self.waits_since = has_unconfirmed.then_some(now);
        self.give_up = wait.map(|wait| now + wait);
    }

    /// An attempt failed, and it was the last address.
    pub(crate) fn handle_down(&mut self) {
        self.is_down |= self.is_lost;
    }

    /// A connection was opened.
    pub(crate) fn handle_attached(&mut self) {
        (self.is_lost, self.is_down, self.waits_since, self.give_up) = (false, false, None, None);
    }

    /// The client sent a message.
    pub(crate) fn handle_message(&mut self, now: Instant) {
        if self.is_lost {
            self.waits_since.get_or_insert(now);
        }
    }

    /// Returns when the client is closed.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let too_old = self.when_down.queue_age.and_then(|age| Some(self.waits_since? + age));
        let by_policy = match self.when_down.policy {
            Policy::Queue => too_old,
            Policy::Reject => self.waits_since.filter(|_| self.is_down),
            Policy::Close => self.is_down.then_some(now),
        };
        [by_policy, self.give_up].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn when_down(policy: Policy, age: Option<u64>) -> WhenDown {
        WhenDown { policy, queue_age: age.map(Duration::from_secs), ..WhenDown::default() }
    }

    #[test]
    fn a_queue_without_an_age_waits_as_long_as_the_client_stays_and_for_a_plain_client_as_long_as_it_is_kept()
    {
        let (when_down, now) = (when_down(Policy::Queue, None), Instant::now());
        let mut patience = Patience::new(&when_down);
        patience.handle_lost(now, true, None);
        patience.handle_down();
        assert_eq!(patience.poll_timeout(now), None);
        patience.handle_lost(now, false, Some(30 * SECOND));
        assert_eq!(patience.poll_timeout(now), Some(now + 30 * SECOND));
        patience.handle_attached();
        assert_eq!(patience.poll_timeout(now), None);
    }

    #[test]
    fn a_message_waits_no_longer_than_the_age_of_the_queue_and_an_idle_client_stays() {
        let (when_down, now) = (when_down(Policy::Queue, Some(5)), Instant::now());
        let mut patience = Patience::new(&when_down);
        patience.handle_message(now);
        patience.handle_lost(now, false, None);
        assert_eq!(patience.poll_timeout(now), None, "nothing waits");
        patience.handle_message(now + SECOND);
        patience.handle_message(now + 2 * SECOND);
        assert_eq!(patience.poll_timeout(now), Some(now + 6 * SECOND), "the oldest counts");
        patience.handle_attached();
        patience.handle_message(now + 3 * SECOND);
        assert_eq!(patience.poll_timeout(now), None);
        patience.handle_lost(now + 4 * SECOND, true, None);
        assert_eq!(patience.poll_timeout(now), Some(now + 9 * SECOND), "what was not confirmed waits, too");
    }

    #[test]
    fn a_new_client_waits_no_longer_than_the_age_of_the_queue_and_without_one_until_no_address_was_reached() {
        let now = Instant::now();
        for (policy, age, at_once, once_down) in [
            (Policy::Queue, Some(5), Some(5), Some(5)),
            (Policy::Queue, None, None, None),
            (Policy::Reject, None, None, Some(0)),
            (Policy::Close, None, None, Some(0)),
        ] {
            let when_down = when_down(policy, age);
            let mut patience = Patience::new(&when_down);
            patience.handle_opening(now);
            let in_seconds = |seconds: Option<u32>| seconds.map(|seconds| now + seconds * SECOND);
            assert_eq!(patience.poll_timeout(now), in_seconds(at_once), "{policy:?}");
            patience.handle_down();
            assert_eq!(patience.poll_timeout(now), in_seconds(once_down), "{policy:?}");
        }
    }

    #[test]
    fn a_rejected_client_is_closed_by_its_first_message_once_no_address_was_reached() {
        let (when_down, now) = (when_down(Policy::Reject, None), Instant::now());
        let mut patience = Patience::new(&when_down);
        patience.handle_lost(now, false, None);
        patience.handle_message(now);
        assert_eq!(patience.poll_timeout(now), None, "another address may be up");
        patience.handle_down();
        assert!(patience.poll_timeout(now).is_some_and(|at| at <= now));
        patience.handle_attached();
        patience.handle_lost(now, false, None);
        patience.handle_down();
        assert_eq!(patience.poll_timeout(now), None, "an idle client stays");
    }

    #[test]
    fn a_client_is_closed_at_once_when_no_address_was_reached_if_that_is_the_policy() {
        let (when_down, now) = (when_down(Policy::Close, None), Instant::now());
        let mut patience = Patience::new(&when_down);
        patience.handle_down();
        patience.handle_lost(now, false, None);
        assert_eq!(patience.poll_timeout(now), None);
        patience.handle_down();
        assert_eq!(patience.poll_timeout(now), Some(now));
    }
}
