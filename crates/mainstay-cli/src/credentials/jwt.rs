//! The check of a JSON Web Token: its signature by `jsonwebtoken`, its times, issuer and audience, and its subject.
//!
//! The header is read once before the signature is verified, for the name of the key. The rest of the token is read only
//! after that.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{HeaderName, HeaderValue};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Validation, decode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keys::{KeySet, NoKey, Signing};
use super::refusal::{Reason, Refusal};
use super::token::{MAX_TOKEN, Token};
use crate::clients::identity::Subject;

/// The longest value of a header that a claim becomes.
const MAX_FIELD: usize = 4096;
/// The longest name of a key and of a subject, in bytes.
const MAX_NAME: usize = 256;

/// What a token must have.
#[derive(Debug)]
pub(crate) struct Rules {
    /// One for each of [`Signing::ALL`].
    validations: [Validation; 4],
    leeway: Duration,
    subject_claim: Box<str>,
    /// Claims that `jsonwebtoken` does not know.
    required: Vec<Box<str>>,
    /// The headers for the backend, each with the claim that it holds: a name, or a JSON pointer.
    fields: Vec<(HeaderName, Box<str>)>,
}

/// What a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) subject: Subject,
    /// When it was issued, in seconds since 1970.
    pub(crate) issued: Option<u64>,
    /// How long it holds, leeway included; `None`: without a limit.
    pub(crate) expires_in: Option<Duration>,
    /// What the backend learns of it.
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
}

/// What the rules are made from, checked before.
pub(crate) struct RuleBook<'a> {
    pub(crate) issuers: &'a [String],
    pub(crate) audiences: &'a [String],
    pub(crate) leeway: Duration,
    pub(crate) subject_claim: &'a str,
    pub(crate) required: &'a [String],
    pub(crate) fields: Vec<(HeaderName, Box<str>)>,
}

impl Rules {
    pub(crate) fn new(book: RuleBook<'_>) -> Self {
        let validations = Signing::ALL.map(|signing| {
            let mut validation = Validation::new(signing.algorithm());
            validation.leeway = book.leeway.as_secs();
            validation.validate_nbf = true;
            validation.validate_aud = !book.audiences.is_empty();
            let mut required: Vec<&str> = book.required.iter().map(String::as_str).collect();
            if !book.audiences.is_empty() {
                validation.set_audience(book.audiences);
                required.push("aud");
            }
            if !book.issuers.is_empty() {
                validation.set_issuer(book.issuers);
                required.push("iss");
            }
            validation.set_required_spec_claims(&required);
            validation
        });
        let known = ["exp", "nbf", "aud", "iss", "sub"];
        let required = book.required.iter().map(String::as_str).filter(|claim| !known.contains(claim));
        Self {
            validations,
            leeway: book.leeway,
            subject_claim: book.subject_claim.into(),
            required: required.map(Box::from).collect(),
            fields: book.fields,
        }
    }

    /// Returns the names of the headers for the backend.
    pub(crate) fn field_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.fields.iter().map(|(name, _)| name)
    }

    /// Checks a token.
    ///
    /// # Errors
    /// It proves nothing.
    pub(crate) fn check(&self, token: &Token, keys: &KeySet, now: SystemTime) -> Result<Proof, Refusal> {
        let token = &*token.0;
        if token.len() > MAX_TOKEN {
            let detail = format!("{} bytes; the longest is {MAX_TOKEN}", token.len());
            return Err(Refusal::new(Reason::Malformed, detail));
        }
        let header = Header::of(token)?;
        let signing = Signing::ALL.into_iter().find(|signing| name(*signing) == &*header.alg);
        let found = keys.find(signing, header.kid.as_deref()).map_err(|no_key| header.refusal(no_key))?;
        let mut refused = None;
        for key in found {
            let validation = &self.validations[key.signing as usize];
            // A claim by any other name costs a list of all of them.
            let proof = if self.reads_all_claims() {
                decode(token, &key.key, validation).map(|data| self.proof_of_all(data.claims, now))
            } else {
                decode(token, &key.key, validation).map(|data| self.proof_of(data.claims, now))
            };
            match proof {
                Ok(proof) => return proof,
                // Another key may have signed it.
                Err(error) => refused = Some(refusal_of(&error)),
            }
            if refused.as_ref().is_some_and(|refused: &Refusal| refused.reason != Reason::Signature) {
                break;
            }
        }
        Err(refused.unwrap_or_else(|| Reason::Signature.into()))
    }

    fn reads_all_claims(&self) -> bool {
        !self.fields.is_empty() || !self.required.is_empty() || &*self.subject_claim != "sub"
    }

    fn proof_of(&self, claims: Registered, now: SystemTime) -> Result<Proof, Refusal> {
        let subject = subject_of(claims.sub.as_ref(), "sub")?;
        let expires_in = claims.exp.and_then(seconds).and_then(|exp| self.left(exp, now));
        Ok(Proof { subject, issued: claims.iat.and_then(seconds), expires_in, fields: Vec::new() })
    }

    fn proof_of_all(&self, claims: Map<String, Value>, now: SystemTime) -> Result<Proof, Refusal> {
        if let Some(missing) =
            self.required.iter().find(|claim| claims.get(&***claim).is_none_or(Value::is_null))
        {
            return Err(Refusal::new(Reason::Claims, format!("{missing} is missing")));
        }
        let subject = subject_of(claims.get(&*self.subject_claim), &self.subject_claim)?;
        let time = |claim: &str| claims.get(claim).and_then(Value::as_f64).and_then(seconds);
        let (issued, expires_in) = (time("iat"), time("exp").and_then(|exp| self.left(exp, now)));
        let claims = Value::Object(claims);
        let fields = self.fields.iter().filter_map(|(name, claim)| {
            let value = if claim.starts_with('/') { claims.pointer(claim) } else { claims.get(&**claim) };
            let value = value.filter(|value| !value.is_null())?;
            Some(field_of(value).map(|value| (name.clone(), value)).ok_or_else(|| {
                Refusal::new(Reason::Claims, format!("{claim} cannot be the value of the header {name}"))
            }))
        });
        let fields = fields.collect::<Result<_, _>>()?;
        Ok(Proof { subject, issued, expires_in, fields })
    }

    /// Returns how long a token holds that expires then.
    fn left(&self, exp: u64, now: SystemTime) -> Option<Duration> {
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(exp))?.checked_add(self.leeway)?;
        Some(at.duration_since(now).unwrap_or_default())
    }
}

/// The part of a token's header that selects the key.
#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    alg: Box<str>,
    kid: Option<Box<str>>,
}

impl Header {
    fn of(token: &[u8]) -> Result<Self, Refusal> {
        let malformed = |detail: &str| Refusal::new(Reason::Malformed, detail);
        let end = token.iter().position(|byte| *byte == b'.').ok_or_else(|| malformed("it has no parts"))?;
        let json =
            URL_SAFE_NO_PAD.decode(&token[..end]).map_err(|_| malformed("its header is no base64url"))?;
        let header: Self =
            serde_json::from_slice(&json).map_err(|_| malformed("its header is no JSON of a token"))?;
        if header.kid.as_ref().is_some_and(|kid| kid.len() > MAX_NAME) || header.alg.len() > MAX_NAME {
            return Err(malformed("its header has a name that is too long"));
        }
        Ok(header)
    }

    fn refusal(&self, no_key: NoKey) -> Refusal {
        let kid = self.kid.as_deref().map_or_else(|| "none".to_owned(), |kid| format!("{kid:?}"));
        match no_key {
            NoKey::OtherAlgorithm => {
                Refusal::new(Reason::Algorithm, format!("alg {:?}, kid {kid}", self.alg))
            }
            NoKey::Unknown => Refusal::new(Reason::UnknownKey, format!("kid {kid}")),
        }
    }
}

/// The claims that every check reads.
#[derive(Deserialize)]
struct Registered {
    sub: Option<Value>,
    exp: Option<f64>,
    iat: Option<f64>,
}

fn name(signing: Signing) -> &'static str {
    match signing {
        Signing::HS256 => "HS256",
        Signing::RS256 => "RS256",
        Signing::ES256 => "ES256",
        Signing::EdDSA => "EdDSA",
    }
}

/// Converts a NumericDate (RFC 7519 section 2) into whole seconds.
fn seconds(date: f64) -> Option<u64> {
    // The cast saturates.
    (date.is_finite() && date >= 0.0).then_some(date as u64)
}

fn subject_of(claim: Option<&Value>, name: &str) -> Result<Subject, Refusal> {
    let subject: Arc<str> = match claim {
        Some(Value::String(text)) if (1..=MAX_NAME).contains(&text.len()) => text.as_str().into(),
        Some(Value::Number(number)) => number.to_string().into(),
        _ => {
            let detail = format!("{name} must be a text of 1 to {MAX_NAME} bytes, or a number");
            return Err(Refusal::new(Reason::Claims, detail));
        }
    };
    Ok(Subject(subject))
}

/// Returns a claim as the value of a header: a text as it is, anything else as JSON. `None`: it is too long or has control
/// characters.
fn field_of(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let value = HeaderValue::from_bytes(text.as_bytes()).ok()?;
    (value.len() <= MAX_FIELD && !text.contains('\t')).then_some(value)
}

fn refusal_of(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Reason::Signature.into(),
        ErrorKind::ExpiredSignature => Reason::Expired.into(),
        ErrorKind::ImmatureSignature => Reason::NotYetValid.into(),
        ErrorKind::InvalidIssuer => Reason::Issuer.into(),
        ErrorKind::InvalidAudience => Reason::Audience.into(),
        ErrorKind::InvalidAlgorithm => Reason::Algorithm.into(),
        ErrorKind::MissingRequiredClaim(claim) => Refusal::new(Reason::Claims, format!("{claim} is missing")),
        ErrorKind::InvalidClaimFormat(claim) => {
            Refusal::new(Reason::Claims, format!("{claim} has a wrong format"))
        }
        // Their texts may quote the token.
        ErrorKind::Json(_) => Refusal::new(Reason::Malformed, "its content is no JSON of a token"),
        ErrorKind::Base64(_) => Refusal::new(Reason::Malformed, "a part of it is no base64url"),
        _ => Refusal::new(Reason::Malformed, "it does not have the form of a token"),
    }
}

#[cfg(test)]
mod tests;
