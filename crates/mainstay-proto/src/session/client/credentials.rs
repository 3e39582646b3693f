//! Credentials: what HELLO presents, and new ones for the live session.
//!
//! Source: `docs/PROTOCOL.md` "Credentials".

use bytes::Bytes;

use super::{ClientEvent, ClientSession, Life};
use crate::session::message::{Control, Credentials};
use crate::session::transmit::{ConnectionId, Transmit};

/// Credentials that the server has not judged yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fresh {
    pub(super) credentials: Credentials,
    /// Where they were presented, in HELLO or in AUTH.
    pub(super) on: Option<ConnectionId>,
}

impl ClientSession {
    /// Presents new credentials: on the live connection, or in the next HELLO where there is none. What
    /// became of them is a [`ClientEvent::Authenticated`]; a HELLO that is refused ends the session. Of
    /// credentials that wait for a verdict the newest count, and only they get an event.
    pub fn authenticate(&mut self, credentials: Bytes) {
        self.fresh = Some(Fresh { credentials: Credentials(credentials), on: None });
        self.present();
    }

    /// What every HELLO from here on presents, except while others wait for their verdict.
    pub fn set_credentials(&mut self, credentials: Bytes) {
        self.config.credentials = Some(Credentials(credentials));
    }

    /// Writes AUTH, unless a HELLO has presented them, or another AUTH still waits for its result.
    fn present(&mut self) {
        let (Some(fresh), Some(current), None) = (&mut self.fresh, &mut self.current, &self.pending) else {
            return;
        };
        if fresh.on.is_none() && !current.judging && matches!(self.life, Life::Open | Life::Closing { .. }) {
            (fresh.on, current.judging) = (Some(current.connection), true);
            let auth = Control::Auth { credentials: fresh.credentials.clone() };
            current.queue.push_back(Transmit::control(&auth));
        }
    }

    /// The connection that they were presented on got no answer.
    pub(super) fn present_again(&mut self, connection: ConnectionId) {
        if let Some(fresh) = self.fresh.as_mut().filter(|fresh| fresh.on == Some(connection)) {
            fresh.on = None;
        }
        self.present();
    }

    /// What was presented on this connection is accepted or refused; newer credentials have their turn.
    pub(super) fn judged(&mut self, connection: ConnectionId, accepted: bool) {
        if let Some(fresh) = self.fresh.take_if(|fresh| fresh.on == Some(connection)) {
            if accepted {
                self.config.credentials = Some(fresh.credentials);
            }
            self.events.push_back(ClientEvent::Authenticated { accepted });
        }
        self.present();
    }
}
