//! What the metrics show of the credentials of all routes.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use super::Access;
use super::refusal::Reason;

/// The figures at one moment.
#[derive(Debug, Default)]
pub(crate) struct CredentialFigures {
    /// Clients that were admitted, and credentials that were renewed.
    pub(crate) accepted: u64,
    /// Clients that were admitted without a token.
    pub(crate) anonymous: u64,
    /// Refusals by the label of their reason.
    pub(crate) refused: Vec<(&'static str, u64)>,
    /// Revocations that are remembered.
    pub(crate) revoked: u64,
    /// Responses that broke off because their credentials had expired, and were revoked.
    pub(crate) ended_responses: (u64, u64),
    pub(crate) issuers: Vec<IssuerFigures>,
}

/// The keys of one route's issuer.
#[derive(Debug)]
pub(crate) struct IssuerFigures {
    pub(crate) route: Box<str>,
    pub(crate) fetched: u64,
    pub(crate) failed: u64,
    /// The age of the keys in use in seconds; `None` without any.
    pub(crate) age: Option<u64>,
    /// 1: they should have been replaced by newer ones. `None` before the first fetch.
    pub(crate) stale: Option<u64>,
}

impl Access {
    /// Reads the figures.
    pub(crate) fn figures(&self) -> CredentialFigures {
        let issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        let issuers = issuers.iter().filter_map(|(route, jwks)| {
            let jwks = jwks.upgrade()?;
            Some(IssuerFigures {
                route: route.clone(),
                fetched: jwks.fetched.load(Relaxed),
                failed: jwks.failed.load(Relaxed),
                age: jwks.age().map(|age| age.as_secs()),
                stale: jwks.is_stale().map(u64::from),
            })
        });
        CredentialFigures {
            accepted: self.figures.accepted.load(Relaxed),
            anonymous: self.figures.anonymous.load(Relaxed),
            refused: Reason::ALL.iter().map(|reason| (reason.label(), self.figures.count(*reason))).collect(),
            revoked: self.subjects.revoked() as u64,
            ended_responses: (self.responses.expired.load(Relaxed), self.responses.revoked.load(Relaxed)),
            issuers: issuers.collect(),
        }
    }
}
