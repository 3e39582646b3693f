//! The end of a link, and what it means for the client's session. The operator's choice is [`BackendLoss`].
//!
//! This is a machine: the link's events go in, and a decision comes out.

use mainstay::CloseCode;
use mainstay::client::{Event, Lost, ReasonCode, Report};

use crate::protocols::profiles::{BackendLoss, Settings};
use crate::protocols::prologue::ReplayError;

/// How the backend ended a link.
#[derive(Debug, Default)]
pub(crate) struct BackendEnd {
    /// How the last connection ended; `None` if an opening handshake was refused.
    lost: Option<Lost>,
    /// The code or HTTP status that the link ended with.
    code: Option<ReasonCode>,
    reason: String,
    /// The last message whose delivery is unknown.
    last_unknown: Option<u64>,
    /// The first message that the backend did not confirm.
    first_unconfirmed: Option<u64>,
    /// Why the prologue could not be replayed to a new connection.
    prologue: Option<ReplayError>,
}

/// What the end of a link means for the client's session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClientEnd {
    /// Close it with this code and reason.
    Close(CloseCode, String),
    /// End it so that the client starts again: 1012, or a new session.
    Renew,
}

impl BackendEnd {
    /// Handles an event of the link; returns whether the link has ended.
    pub(crate) fn handle_event(&mut self, event: Event) -> bool {
        match event {
            Event::Detached { why, .. } => self.lost = Some(why),
            // Reports precede the `Detached` event of their connection, so earlier ones do not concern this one.
            Event::Attached { .. } => (self.last_unknown, self.first_unconfirmed) = (None, None),
            Event::Report(Report::Unknown(range)) => {
                self.last_unknown = self.last_unknown.max(Some(*range.end()));
                self.first_unconfirmed = self.first_unconfirmed.or(Some(*range.start()));
            }
            Event::Report(Report::NotDelivered(range)) => {
                self.first_unconfirmed = self.first_unconfirmed.or(Some(*range.start()));
            }
            Event::Ended(ended) => {
                (self.code, self.reason) = (ended.code, ended.reason);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Adds the error of the prologue's replay, if that is why the link ended.
    pub(crate) fn with(self, prologue: Option<ReplayError>) -> Self {
        Self { prologue, ..self }
    }

    /// Returns why the prologue could not be replayed.
    pub(crate) fn replay_error(&self) -> Option<ReplayError> {
        self.prologue
    }

    /// Returns what happens to the client's session.
    pub(crate) fn client_end(&self, settings: &Settings, is_resumable: bool) -> ClientEnd {
        match &self.lost {
            Some(Lost::Closed { code, reason }) if self.is_final(*code, settings, is_resumable) => {
                // END cannot carry "no code".
                let none = if is_resumable { CloseCode::NORMAL } else { CloseCode::NO_STATUS };
                ClientEnd::Close(code.unwrap_or(none), reason.clone())
            }
            // A new session would receive the same message again.
            Some(lost @ Lost::TooBig { .. }) => {
                ClientEnd::Close(CloseCode::TOO_BIG, format!("from the backend: {lost}"))
            }
            // Without a code the backend refused by HTTP: connecting again would not help the client.
            None if self.prologue.is_none() => {
                ClientEnd::Close(self.close_code().unwrap_or(CloseCode::POLICY), self.reason.clone())
            }
            _ => ClientEnd::Renew,
        }
    }

    /// Returns how many of the `sent` messages were delivered, and how many after those have an unknown fate.
    pub(crate) fn fates(&self, sent: u64) -> (u64, u64) {
        let delivered = self.first_unconfirmed.map_or(sent, |first| first - 1);
        let passed_on = self.last_unknown.unwrap_or(delivered);
        (delivered, passed_on.saturating_sub(delivered))
    }

    pub(crate) fn close_code(&self) -> Option<CloseCode> {
        self.code.and_then(ReasonCode::close_code)
    }

    /// Returns the cause, for the log.
    pub(crate) fn cause(&self) -> String {
        match &self.lost {
            Some(Lost::Closed { reason, .. }) => format!("the backend closed its connection: {reason}"),
            Some(lost) => format!("the connection to the backend was lost: {lost:?}"),
            None => format!("the backend refused: {}", self.reason),
        }
    }

    /// Returns whether the backend's Close also ends the client's session. A plain client gets every Close.
    fn is_final(&self, code: Option<CloseCode>, settings: &Settings, is_resumable: bool) -> bool {
        // With a status the backend refused the next connection, and only the client can send other credentials.
        let was_refused = self.code.and_then(ReasonCode::status).is_some();
        let general =
            !is_resumable || settings.on_backend_loss == BackendLoss::Keep || !CloseCode::is_restart(code);
        self.prologue.is_none() && !was_refused && (settings.closes.are_final(code) || general)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use mainstay::client::{End, EndCause};

    use super::*;
    use crate::config::profile::Section;

    fn closed(code: u16) -> Lost {
        Lost::Closed { code: CloseCode::new(code), reason: "bye".to_owned() }
    }

    /// The end of a link whose last connection was lost this way.
    fn after(lost: Option<Lost>, code: Option<ReasonCode>) -> BackendEnd {
        let mut end = BackendEnd::default();
        if let Some(why) = lost {
            assert!(!end.handle_event(Event::Detached { why, next_attempt_in: Duration::ZERO }));
        }
        let mut ended = End::new(EndCause::Peer, "no");
        ended.code = code;
        assert!(end.handle_event(Event::Ended(Box::new(ended))));
        end
    }

    #[test]
    fn a_restart_renews_a_session_and_any_other_close_ends_it() {
        let settings = Section::default().settings().unwrap();
        let close = |code| ClientEnd::Close(CloseCode::new(code).unwrap(), "bye".to_owned());
        for (code, is_resumable, expected) in [
            (1012, true, ClientEnd::Renew),
            (1012, false, close(1012)),
            (1000, true, close(1000)),
            (4401, true, ClientEnd::Renew),
            (4500, true, close(4500)),
        ] {
            let end = after(Some(closed(code)), None);
            assert_eq!(end.client_end(&settings, is_resumable), expected, "{code} {is_resumable}");
        }
        assert_eq!(
            after(Some(Lost::Broken("reset".into())), None).client_end(&settings, false),
            ClientEnd::Renew
        );
    }

    #[test]
    fn a_refusal_closes_a_new_client_and_renews_one_that_was_connected() {
        let settings = Section::default().settings().unwrap();
        let status = ReasonCode::from(StatusCode::UNAUTHORIZED);
        let refused = after(None, Some(status)).client_end(&settings, true);
        assert_eq!(refused, ClientEnd::Close(CloseCode::POLICY, "no".to_owned()));
        assert_eq!(after(Some(closed(1000)), Some(status)).client_end(&settings, true), ClientEnd::Renew);
    }

    #[test]
    fn messages_up_to_the_first_unconfirmed_are_delivered() {
        let mut end = BackendEnd::default();
        assert_eq!(end.fates(7), (7, 0));
        end.handle_event(Event::Report(Report::Unknown(3..=5)));
        end.handle_event(Event::Report(Report::NotDelivered(6..=7)));
        assert_eq!(end.fates(7), (2, 3));
        end.handle_event(Event::Report(Report::NotDelivered(1..=1)));
        assert_eq!(end.fates(7), (2, 3), "the first report counts");
    }
}
