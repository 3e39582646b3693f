//! Events that wait for their listener. An application need not listen, so the number of events is bounded, and so are the
//! bytes of the volatile messages among them.

use std::collections::VecDeque;

use mainstay_proto::connect::{Event, Report};
use mainstay_proto::session::Window;

/// Events that are kept for a slow listener.
const EVENTS: usize = 1024;

/// See the module.
#[derive(Default)]
pub(super) struct EventQueue {
    events: VecDeque<Event>,
    /// The number of volatile messages among them.
    messages: u64,
    bytes: u64,
}

impl EventQueue {
    /// Appends an event. Above 1,024 events drops the oldest that reports no loss, so that losses reach even a slow listener.
    /// The newest 64 volatile messages (256 KiB) are kept, as everywhere.
    pub(super) fn push(&mut self, event: Event) {
        if self.joins_last(&event) {
            return;
        }
        if let Event::Volatile(message) = &event {
            self.messages += 1;
            self.bytes += message.len() as u64;
        }
        self.events.push_back(event);
        let limit = Window::VOLATILE;
        while self.messages > limit.messages || (self.messages > 1 && self.bytes > limit.bytes) {
            self.remove_first(|event| matches!(event, Event::Volatile(_)));
        }
        if self.events.len() > EVENTS {
            self.remove_first(|event| !reports_loss(event));
        }
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.remove_first(|_| true)
    }

    /// Whether an event waits that reports a place between two messages.
    pub(super) fn reports_a_place(&self) -> bool {
        use Event::{Dropped, FreshPeer, Gap, Replaced};
        self.events.iter().any(|event| matches!(event, Gap(_) | FreshPeer | Dropped { .. } | Replaced { .. }))
    }

    /// Joins a report with the last one if their ranges touch. A link's queue that drops its oldest reports that for each new
    /// message, and these reports would push every other event out.
    fn joins_last(&mut self, event: &Event) -> bool {
        use Report::NotDelivered;
        match (self.events.back_mut(), event) {
            (Some(Event::Report(NotDelivered(before))), Event::Report(NotDelivered(range)))
                if *before.end() + 1 == *range.start() =>
            {
                *before = *before.start()..=*range.end();
                true
            }
            _ => false,
        }
    }

    /// Removes the first event that `is_meant`, or the first of all.
    fn remove_first(&mut self, is_meant: impl Fn(&Event) -> bool) -> Option<Event> {
        let at = self.events.iter().position(is_meant).unwrap_or(0);
        let event = self.events.remove(at)?;
        if let Event::Volatile(message) = &event {
            self.messages -= 1;
            self.bytes -= message.len() as u64;
        }
        Some(event)
    }
}

fn reports_loss(event: &Event) -> bool {
    use Event::{Dropped, Ended, FreshPeer, Gap, Replaced, Report};
    matches!(event, Gap(_) | FreshPeer | Report(_) | Dropped { .. } | Replaced { .. } | Ended(_))
}

#[cfg(test)]
mod tests {
    use mainstay_proto::connect::Mode;
    use mainstay_proto::session::Message;

    use super::*;

    fn attached(epoch: u64) -> Event {
        Event::Attached { mode: Mode::Session, resumed: true, epoch }
    }

    fn volatile(size: usize) -> Event {
        Event::Volatile(Message::binary(vec![0; size]))
    }

    #[test]
    fn a_loss_reaches_even_a_slow_listener() {
        let mut queue = EventQueue::default();
        queue.push(attached(1));
        queue.push(Event::FreshPeer);
        (2..2 * EVENTS as u64).for_each(|epoch| queue.push(attached(epoch)));
        assert_eq!(queue.events.len(), EVENTS);
        assert_eq!(queue.pop(), Some(Event::FreshPeer));
        assert_eq!(queue.events.back(), Some(&attached(2 * EVENTS as u64 - 1)));
    }

    #[test]
    fn ranges_that_touch_are_one_report() {
        let mut queue = EventQueue::default();
        for range in [1..=1, 2..=5, 7..=7] {
            queue.push(Event::Report(Report::NotDelivered(range)));
        }
        let reported = [queue.pop(), queue.pop(), queue.pop()];
        let expected = [Some(1..=5), Some(7..=7), None];
        assert_eq!(
            reported,
            expected.map(|range| range.map(|range| Event::Report(Report::NotDelivered(range))))
        );
    }

    #[test]
    fn the_newest_volatile_messages_are_kept_by_number_and_by_bytes() {
        for (size, kept) in [(1, 64), (64 * 1024, 4), (1024 * 1024, 1)] {
            let mut queue = EventQueue::default();
            queue.push(attached(1));
            (0..200).for_each(|_| queue.push(volatile(size)));
            assert_eq!(queue.events.len(), 1 + kept, "{size} bytes each");
            assert_eq!(queue.pop(), Some(attached(1)), "no other event was dropped for them");
            while queue.pop().is_some() {}
            assert_eq!((queue.messages, queue.bytes), (0, 0));
        }
    }
}
