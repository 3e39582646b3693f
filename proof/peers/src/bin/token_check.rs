//! Checks one token again and again, as the gateway does or by `jsonwebtoken` alone, for `cargo xtask test instructions`.
//!
//! ```text
//! token_check gateway ES256 100
//! ```
#![allow(dead_code)] // The gateway uses more of its files.

#[path = "../../../../crates/mainstay-cli/src/clients"]
mod clients {
    pub(crate) mod identity;
}

#[path = "../../../../crates/mainstay-cli/src/request"]
mod request {
    pub(crate) mod retry_after;
}

#[path = "../../../../crates/mainstay-cli/src/credentials"]
mod credentials {
    pub(crate) mod jwt;
    pub(crate) mod keys;
    pub(crate) mod refusal;
    pub(crate) mod ring_provider;
    pub(crate) mod test_tokens;
    pub(crate) mod token;
}

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jsonwebtoken::{DecodingKey, Validation, decode};
use serde::Deserialize;

use credentials::jwt::{RuleBook, Rules};
use credentials::keys::{KeySet, Signing};
use credentials::ring_provider;
use credentials::test_tokens::{SECRET, Signer, claims_of};
use credentials::token::Token;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [check, algorithm, count] = words.as_slice() else {
        return Err("write: token_check bare|gateway HS256|ES256 COUNT".into());
    };
    let (signing, signer) = match algorithm.as_str() {
        "HS256" => (Signing::HS256, Signer::secret()),
        "ES256" => (Signing::ES256, Signer::ec()),
        other => return Err(format!("{other}: must be HS256 or ES256").into()),
    };
    ring_provider::install();
    match check.as_str() {
        "bare" => bare(signing, &signer, count.parse()?),
        "gateway" => gateway(&signer, count.parse()?),
        other => Err(format!("{other}: must be bare or gateway").into()),
    }
}

/// What a program does that uses `jsonwebtoken` itself.
fn bare(signing: Signing, signer: &Signer, count: u32) -> Result<(), Box<dyn Error>> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
        iat: u64,
        exp: u64,
    }
    let key = match signing {
        Signing::HS256 => DecodingKey::from_secret(SECRET.as_bytes())?,
        _ => DecodingKey::from_ec_pem(signer.pem().as_bytes())?,
    };
    let (token, validation) = (signer.token(&claims_of("ann")), Validation::new(signing.algorithm()));
    for _ in 0..count {
        let claims: Claims = decode(black_box(token.as_bytes()), &key, &validation)?.claims;
        if claims.sub != "ann" || claims.exp < claims.iat {
            return Err("the token proves something else".into());
        }
    }
    Ok(())
}

/// What the gateway does with its defaults.
fn gateway(signer: &Signer, count: u32) -> Result<(), Box<dyn Error>> {
    let keys = KeySet::of_file(signer.pem().as_bytes(), &Signing::ALL)?;
    let rules = Rules::new(RuleBook {
        issuers: &[],
        audiences: &[],
        leeway: Duration::from_secs(30),
        subject_claim: "sub",
        required: &["exp".to_owned()],
        fields: Vec::new(),
    });
    let token = Token(Bytes::from(signer.token(&claims_of("ann"))));
    for _ in 0..count {
        let proof = rules.check(black_box(&token), &keys, SystemTime::now());
        let proof = proof.map_err(|refusal| refusal.to_string())?;
        if &*proof.subject.0 != "ann" || proof.expires_in.is_none() {
            return Err("the token proves something else".into());
        }
    }
    Ok(())
}
