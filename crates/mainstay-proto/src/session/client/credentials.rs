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
    /// The connection on which HELLO or AUTH presented them.
    pub(super) on: Option<ConnectionId>,
}

impl ClientSession {
    /// Presents new credentials: on the attached connection, or in the next HELLO if there is none.
    /// [`ClientEvent::Authenticated`] reports the verdict; a HELLO that is refused ends the session. If several
    /// credentials wait for a verdict, only the newest are presented and get an event.
    pub fn authenticate(&mut self, credentials: Bytes) {
        self.fresh = Some(Fresh { credentials: Credentials(credentials), on: None });
        self.present();
    }

    /// Sets the credentials that every HELLO presents from now on, except while others wait for their verdict.
    pub fn set_credentials(&mut self, credentials: Bytes) {
        self.config.credentials = Some(Credentials(credentials));
    }

    /// Sends AUTH, unless a HELLO has presented the credentials, or another AUTH waits for its result.
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

    /// The connection on which they were presented ended without an answer: presents them again.
    pub(super) fn present_again(&mut self, connection: ConnectionId) {
        if let Some(fresh) = self.fresh.as_mut().filter(|fresh| fresh.on == Some(connection)) {
            fresh.on = None;
        }
        self.present();
    }

    /// Handles the verdict for the credentials that were presented on this connection. Newer credentials follow.
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
