//! The fault `ghost`: what the client sends next is kept back, the client is cut off, and the upstream receives it once a newer connection
//! is up.

use super::{Action, Connection};
use crate::fault::Side;
use crate::pipe::ROOM;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ghost {
    None,
    /// The client's next frame is kept back; then the client is cut off.
    Waits,
    /// The client is cut off; the upstream has not noticed.
    Hidden,
    /// The upstream receives what was kept back.
    Appears,
}

impl Connection {
    /// A newer connection is up.
    pub(crate) fn handle_newcomer(&mut self) {
        if self.ghost == Ghost::Hidden {
            self.ghost = Ghost::Appears;
        }
    }

    pub(super) fn begin_ghost(&mut self) {
        if self.ghost == Ghost::None {
            self.ghost = Ghost::Waits;
            self.check_ghost();
        }
    }

    /// Cuts the client off as soon as a whole frame is kept back, or all that fits.
    pub(super) fn check_ghost(&mut self) {
        let pipe = &self.lanes[Side::Client as usize].pipe;
        let has_whole = !pipe.is_empty() && self.dialogue.is_between(Side::Client);
        let is_full = pipe.room(&self.lanes[Side::Client as usize].gates) == 0 && pipe.waiting() >= ROOM;
        if self.ghost == Ghost::Waits && (has_whole || is_full) {
            self.ghost = Ghost::Hidden;
            self.actions.push_back(Action::Reset(Side::Client));
            self.lanes[Side::Client as usize].is_gone = true;
            self.lanes[Side::Client as usize].has_ended = true;
            self.first_end.get_or_insert("ghost");
            self.lanes[Side::Upstream as usize].pipe.kill();
        }
    }

    /// Whether what `side` wrote is kept back.
    pub(super) fn withholds(&self, side: Side) -> bool {
        side == Side::Client && matches!(self.ghost, Ghost::Waits | Ghost::Hidden)
    }
}
