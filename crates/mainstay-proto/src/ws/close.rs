//! Close codes: those of the RFC, those of Mainstay, and what a client does about each.
//!
//! Mainstay's codes lie in 4000-4999 (private use). The range carries the advice, so that an old client handles a new
//! code: after 4000-4499 it comes back, after 4500-4999 it does not. END, GOAWAY and REFUSE carry the meaning of a
//! session's end; a close code only repeats it, except for SUPERSEDED.
//!
//! Source: RFC 6455 section 7.4, `docs/PROTOCOL.md` "Closing".

use std::fmt;
use std::time::Duration;

/// A close code of a Close frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(u16);

#[allow(missing_docs, reason = "names of RFC 6455 section 7.4.1")]
impl CloseCode {
    pub const NORMAL: Self = Self(1000);
    pub const GOING_AWAY: Self = Self(1001);
    pub const PROTOCOL_ERROR: Self = Self(1002);
    pub const UNSUPPORTED: Self = Self(1003);
    /// A Close frame without a code: written as an empty body, and never as a number.
    pub const NO_STATUS: Self = Self(1005);
    pub const INVALID_DATA: Self = Self(1007);
    pub const POLICY: Self = Self(1008);
    pub const TOO_BIG: Self = Self(1009);
    pub const INTERNAL_ERROR: Self = Self(1011);
    pub const RESTART: Self = Self(1012);
    pub const TRY_AGAIN: Self = Self(1013);
    /// A message that `mainstay.v1` does not allow. The session is kept: the client comes back.
    pub const PROTOCOL_VIOLATION: Self = Self(4400);
    /// The peer was silent for too long.
    pub const HEARTBEAT_TIMEOUT: Self = Self(4408);
    /// A later attach has the session.
    pub const SUPERSEDED: Self = Self(4409);
    /// A later attempt of the same client arrived first.
    pub const STALE_ATTEMPT: Self = Self(4410);
    /// The client key cannot name a new session: the client takes another.
    pub const KEY_REFUSED: Self = Self(4411);
    /// No HELLO within the opening deadline.
    pub const OPENING_TIMEOUT: Self = Self(4412);
    /// The server has no room now.
    pub const OVERLOADED: Self = Self(4413);
    /// The backend behind the server cannot be reached now.
    pub const UPSTREAM_UNAVAILABLE: Self = Self(4414);
    /// The session was ended on purpose.
    pub const SESSION_ENDED: Self = Self(4500);
    /// The credentials were refused.
    pub const UNAUTHORIZED: Self = Self(4501);
}

/// What a client does after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseAction {
    /// Reconnect; other clients are probably doing the same.
    Reconnect,
    /// Reconnect; this connection alone is concerned.
    ReconnectAlone,
    /// Stay away: the same would happen again.
    Stop,
}

impl CloseCode {
    /// Returns the code if it may stand in a Close frame: 1000-1003, 1007-1014, 3000-4999.
    #[must_use]
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// Whether a server that closes with `code` expects its client to come back, having lost only the connection: a
    /// Close without a code (which frameworks write when they are deployed), 1001, 1011 to 1014, 4000 to 4499. Every
    /// other code is the application's final decision.
    ///
    /// Source: `docs/PROTOCOL.md` "Plain peers".
    #[must_use]
    pub const fn is_restart(code: Option<Self>) -> bool {
        let Some(Self(code)) = code else { return true };
        matches!(code, 1001 | 1005 | 1011..=1014 | 4000..=4499)
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns when a server wants its client back: 1013 with a reason that begins with `retry_ms=` and a number of
    /// milliseconds. This is for clients in browsers, which cannot read the `Retry-After` of a refused handshake.
    #[must_use]
    pub fn retry_after(self, reason: &str) -> Option<Duration> {
        let number = reason.strip_prefix("retry_ms=").filter(|_| self == Self::TRY_AGAIN)?;
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        number[..end].parse().ok().map(Duration::from_millis)
    }

    /// Returns what a client does about a connection that ended with `code`; `None` is a connection that was lost
    /// without a Close frame (1006).
    #[must_use]
    pub const fn action(code: Option<Self>) -> CloseAction {
        let Some(Self(code)) = code else { return CloseAction::Reconnect };
        match code {
            // A server that is merely restarting may close so: 1000 is what developer tools produce, and only END
            // states that a session is over.
            1000 | 1001 | 1005 | 1006 | 1011..=1014 => CloseAction::Reconnect,
            // The server would refuse the same bytes again.
            1002 | 1003 | 1007 | 1008 | 1009 | 1010 => CloseAction::ReconnectAlone,
            3000 | 3003 => CloseAction::Stop,
            3008 => CloseAction::ReconnectAlone,
            // Only this client's message, or this connection, is affected.
            4400 | 4408..=4411 => CloseAction::ReconnectAlone,
            4500..=4999 => CloseAction::Stop,
            _ => CloseAction::Reconnect,
        }
    }
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> Self {
        code.0
    }
}

impl From<CloseCode> for u64 {
    fn from(code: CloseCode) -> Self {
        code.0.into()
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloseCode({})", self.0)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_code_determines_whether_to_come_back() {
        for code in 4000..=4999 {
            let stop = CloseCode::action(CloseCode::new(code)) == CloseAction::Stop;
            assert_eq!(stop, code >= 4500, "{code}");
        }
        assert_eq!(CloseCode::action(None), CloseAction::Reconnect);
    }

    #[test]
    fn an_overloaded_server_may_advise_when_to_come_back() {
        let at = |code: CloseCode, reason| code.retry_after(reason).map(|at| at.as_millis());
        assert_eq!(at(CloseCode::TRY_AGAIN, "retry_ms=1500"), Some(1500));
        assert_eq!(at(CloseCode::TRY_AGAIN, "retry_ms=20, the backend is away"), Some(20));
        for reason in ["", "retry_ms=", "retry_ms=-5", "later", "retry_ms=99999999999999999999999"] {
            assert_eq!(at(CloseCode::TRY_AGAIN, reason), None, "{reason}");
        }
        assert_eq!(at(CloseCode::RESTART, "retry_ms=1500"), None);
    }

    #[test]
    fn a_close_of_a_server_that_restarts_is_not_final() {
        let restarts = |code| CloseCode::is_restart(CloseCode::new(code));
        assert!([1001, 1011, 1012, 1013, 1014, 4000, 4499].into_iter().all(restarts));
        assert!(
            ![1000, 1002, 1003, 1007, 1008, 1009, 1010, 3000, 3999, 4500, 4999].into_iter().any(restarts)
        );
        assert!(CloseCode::is_restart(None) && CloseCode::is_restart(Some(CloseCode::NO_STATUS)));
    }

    #[test]
    fn codes_that_only_describe_what_happened_locally_are_no_close_codes() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            assert_eq!(CloseCode::new(code), None, "{code}");
        }
    }
}
