//! Why a client is not admitted, in words for the client, for the log and for metrics.
//!
//! The client learns the reason in a few words. The log has the details, and never a token: one line for each reason at once,
//! and then every 10 s with a count, because anyone may send wrong tokens.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

use crate::request::retry_after;

/// The least time between two lines about one reason.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $label:literal $words:literal,)*) => {
        /// Why a client is not admitted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the label in metrics and in the log.
            pub(crate) fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            /// Returns what the client learns.
            pub(crate) fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }
        }
    };
}

reasons! {
    /// There is no token where the route expects it.
    Missing "missing" "credentials are required",
    /// What stands there is no token.
    Malformed "malformed" "the token is malformed",
    /// Its algorithm is none that its key has.
    Algorithm "algorithm" "the token has an algorithm that is not accepted",
    /// No key of that name is known.
    UnknownKey "unknown_key" "the token is signed by an unknown key",
    /// The signature is wrong.
    Signature "signature" "the token has a wrong signature",
    /// Its time is over.
    Expired "expired" "the token has expired",
    /// Its time has not come.
    NotYetValid "not_yet_valid" "the token is not valid yet",
    /// Another issuer made it.
    Issuer "issuer" "the token is of another issuer",
    /// It is for another audience.
    Audience "audience" "the token is for another audience",
    /// A claim is missing or has no usable value.
    Claims "claims" "the token lacks a claim",
    /// The operator revoked it.
    Revoked "revoked" "the credentials were revoked",
    /// A refresh on a live session proves another subject.
    OtherSubject "other_subject" "the token is of another subject",
    /// The route requires a certificate, and the client presented none.
    NoCertificate "no_certificate" "a client certificate is required",
    /// The certificate is not valid now, or does not name the user as the settings require.
    Certificate "certificate" "the client certificate is not accepted",
    /// The connect hook refused.
    Hook "hook" "the connection is refused",
    /// The issuer's keys are not known now.
    KeysUnavailable "keys_unavailable" "the credentials cannot be judged now",
    /// The connect hook did not decide.
    HookUnavailable "hook_unavailable" "the credentials cannot be judged now",
}

impl Reason {
    /// Whether the same credentials may be accepted later.
    pub(crate) fn is_temporary(self) -> bool {
        matches!(self, Self::KeysUnavailable | Self::HookUnavailable)
    }
}

/// A client that is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// What the operator has to know beside the reason; may be empty. Nothing of it comes from the client unescaped.
    pub(crate) detail: String,
    /// What the hook says to the client.
    pub(crate) words: Option<String>,
    /// The status for a client without `mainstay.v1`.
    pub(crate) status: StatusCode,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let status = match reason {
            _ if reason.is_temporary() => StatusCode::SERVICE_UNAVAILABLE,
            // No challenge of HTTP asks for a certificate (RFC 9110 section 15.5.2).
            Reason::NoCertificate | Reason::Certificate => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        Self { reason, detail: detail.into(), words: None, status }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::new(reason, "")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words.as_deref().unwrap_or(self.reason.words()))
    }
}

/// Responds to a client without `mainstay.v1`, as RFC 6750 section 3 says.
impl IntoResponse for &Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, format!("{self}\n")).into_response();
        let (name, value) = match self.status {
            StatusCode::SERVICE_UNAVAILABLE => (RETRY_AFTER, Ok(retry_after::seconds())),
            StatusCode::UNAUTHORIZED if self.reason == Reason::Missing => {
                (WWW_AUTHENTICATE, Ok(HeaderValue::from_static("Bearer")))
            }
            StatusCode::UNAUTHORIZED => {
                let words = self.reason.words();
                let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{words}\"");
                (WWW_AUTHENTICATE, HeaderValue::try_from(challenge))
            }
            _ => return response,
        };
        if let Ok(value) = value {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// How many clients were admitted and refused, and what was logged about it.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) accepted: AtomicU64,
    /// Those that were admitted without a token.
    pub(crate) anonymous: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    logged: Mutex<[Logged; Reason::ALL.len()]>,
}

/// The lines about one reason.
#[derive(Clone, Copy, Default)]
struct Logged {
    last: Option<Instant>,
    left_out: u64,
}

impl Figures {
    /// Counts a refusal, and logs it unless a line about its reason was written just now.
    pub(crate) fn refused(&self, route: &str, client: Option<IpAddr>, refusal: &Refusal, now: Instant) {
        self.refused[refusal.reason as usize].fetch_add(1, Relaxed);
        let Some(left_out) = self.may_log(refusal.reason, now) else { return };
        let client = client.map(tracing::field::display);
        let (reason, detail) = (refusal.reason.label(), &*refusal.detail);
        tracing::warn!(route, client, reason, detail, left_out, "client refused: {}", refusal.reason.words());
    }

    /// Returns how many clients were refused for this reason.
    pub(crate) fn count(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Relaxed)
    }

    /// Returns how many lines were left out, if there may be one now.
    fn may_log(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let logged = &mut logged[reason as usize];
        if logged.last.is_some_and(|last| now.saturating_duration_since(last) < LOG_INTERVAL) {
            logged.left_out += 1;
            return None;
        }
        logged.last = Some(now);
        Some(std::mem::take(&mut logged.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_logged_at_once_and_then_every_ten_seconds_with_a_count() {
        let (figures, start) = (Figures::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(figures.may_log(Reason::Expired, at(0)), Some(0));
        for millis in 1..=3 {
            assert_eq!(figures.may_log(Reason::Expired, at(millis)), None);
        }
        assert_eq!(figures.may_log(Reason::Signature, at(4)), Some(0), "another reason");
        assert_eq!(figures.may_log(Reason::Expired, at(9_999)), None);
        assert_eq!(figures.may_log(Reason::Expired, at(10_000)), Some(4));
        assert_eq!(figures.may_log(Reason::Expired, at(20_000)), Some(0));
    }

    #[test]
    fn every_reason_is_counted_under_a_label_of_its_own() {
        let figures = Figures::default();
        for reason in Reason::ALL {
            figures.refused("r", None, &Refusal::from(*reason), Instant::now());
            assert_eq!(figures.count(*reason), 1);
        }
        let labels: std::collections::HashSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
    }
}
