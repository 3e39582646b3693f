//! Where in a server's stream the connection behind the server was replaced, as long as the client may not know it.
//!
//! A mark has no number of its own. It stands behind a message. Every connection that passes this place writes the
//! mark, until the client acknowledges a later message: that message came behind the mark on the same connection, so
//! the client has received the mark. If that message is dropped, the mark stands behind the gap that takes its place.
//!
//! Source: `docs/PROTOCOL.md` "80 REPLACED".

use std::collections::VecDeque;

use super::message::Control;
use super::transmit::Transmit;

/// The marks of one stream; the module describes them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Replacements {
    count: u64,
    /// In the order of the stream, at most one for each place.
    marks: VecDeque<Mark>,
    /// The highest count that the current connection wrote.
    written: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Mark {
    after: u64,
    count: u64,
}

impl Replacements {
    /// The connection behind the server is replaced now, after message `after`; the client has acknowledged up to
    /// `acknowledged`.
    pub(super) fn add(&mut self, after: u64, acknowledged: u64) {
        self.count += 1;
        let count = self.count;
        match self.marks.back_mut() {
            Some(last) if last.after == after => last.count = count,
            _ => self.marks.push_back(Mark { after, count }),
        }
        // Each further mark stands behind another message that is kept, so the window bounds their number.
        while self.marks.front().is_some_and(|mark| mark.after < acknowledged) {
            self.marks.pop_front();
        }
    }

    /// Returns the marks for another node: each as the message before it and its count, in order.
    pub(super) fn to_state(&self) -> Vec<(u64, u64)> {
        self.marks.iter().map(|mark| (mark.after, mark.count)).collect()
    }

    /// Continues with the marks of another node. The last one has the count of all.
    pub(super) fn from_state(marks: &[(u64, u64)]) -> Self {
        let marks: VecDeque<_> = marks.iter().map(|&(after, count)| Mark { after, count }).collect();
        Self { count: marks.back().map_or(0, |mark| mark.count), marks, written: 0 }
    }

    /// Another connection is attached, and begins behind message `wrote`. The client has the marks before it.
    pub(super) fn begin_connection(&mut self, wrote: u64) {
        let before = self.marks.partition_point(|mark| mark.after < wrote);
        self.written = self.marks.range(..before).last().map_or(0, |mark| mark.count);
    }

    /// Returns the mark behind message `wrote`, if the connection has to write it now. Marks in a gap that ends there
    /// become one.
    pub(super) fn transmit(&mut self, wrote: u64) -> Option<Transmit> {
        let written = self.marks.partition_point(|mark| mark.count <= self.written);
        let reached = self.marks.partition_point(|mark| mark.after <= wrote);
        let last = reached.checked_sub(1).filter(|last| *last >= written)?;
        let Mark { after, count } = self.marks.get_mut(last)?;
        *after = wrote;
        self.written = *count;
        let mark = Control::Replaced { after: wrote, count: *count };
        self.marks.drain(written..last);
        Some(Transmit::control(&mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(replacements: &mut Replacements, from: u64, to: u64) -> Vec<Transmit> {
        replacements.begin_connection(from);
        (from..=to).flat_map(|wrote| replacements.transmit(wrote)).collect()
    }

    fn mark(after: u64, count: u64) -> Transmit {
        Transmit::control(&Control::Replaced { after, count })
    }

    #[test]
    fn a_mark_is_written_in_its_place_on_every_connection_that_passes_there() {
        let mut replacements = Replacements::default();
        replacements.add(0, 0);
        replacements.add(3, 0);
        replacements.add(3, 0);
        assert_eq!(marks(&mut replacements, 0, 5), [mark(0, 1), mark(3, 3)]);
        assert_eq!(marks(&mut replacements, 1, 5), [mark(3, 3)], "a connection that begins behind the first");
        assert_eq!(marks(&mut replacements, 4, 5), []);
    }

    #[test]
    fn a_mark_is_forgotten_once_a_later_message_is_acknowledged() {
        let mut replacements = Replacements::default();
        replacements.add(1, 0);
        replacements.add(2, 1);
        assert_eq!(
            replacements.marks.len(),
            2,
            "the first message is acknowledged, and the mark behind it may be unseen"
        );
        replacements.add(5, 2);
        assert_eq!(marks(&mut replacements, 0, 9), [mark(2, 2), mark(5, 3)]);
    }

    #[test]
    fn marks_in_a_gap_are_one_behind_the_gap_on_every_connection() {
        let mut replacements = Replacements::default();
        replacements.add(1, 0);
        replacements.add(2, 0);
        replacements.add(6, 0);
        replacements.begin_connection(0);
        assert_eq!([0, 4, 5].map(|wrote| replacements.transmit(wrote)), [None, Some(mark(4, 2)), None]);
        assert_eq!(marks(&mut replacements, 4, 7), [mark(4, 2), mark(6, 3)]);
        assert_eq!(marks(&mut replacements, 5, 7), [mark(6, 3)]);
    }

    #[test]
    fn a_connection_that_stands_still_gets_a_later_mark_too() {
        let mut replacements = Replacements::default();
        replacements.add(2, 0);
        assert_eq!(replacements.transmit(2), Some(mark(2, 1)));
        assert_eq!(replacements.transmit(2), None);
        replacements.add(2, 0);
        assert_eq!(replacements.transmit(2), Some(mark(2, 2)));
    }
}
