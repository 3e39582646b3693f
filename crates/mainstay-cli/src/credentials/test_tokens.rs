//! Tokens for tests, made by ring alone: what the gateway checks them with made none of them.
#![allow(clippy::unwrap_used)] // Two crates of tests use it, and `token_check`.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use ring::{hmac, rsa};
use serde_json::{Value, json};

/// A secret of 32 bytes.
pub(crate) const SECRET: &str = "an example of 32 bytes, a secret";
/// A private key for tests, PKCS #1 in base64: ring makes none.
const RSA_PRIVATE: &str = concat!(
    "MIIEowIBAAKCAQEAjlPrwzgBEz0+3PbiXyaE2J6QOBCsNmWDuZ3wtR0KcbL6sH/5EIvD4+tb4FcPHaD+P/wqzuBcOimt9WpR",
    "PFbvxNIbMeuvMMCjxQb2pgSBnxuFLJUHcc5ab31aCZrtG1jOvvq+rIf8SNdYoo6G3MhDYmbVChLnR0X+FLlfTUgFXqynB7tx",
    "ZBOC3p3MDLSXlB5B71sF+9BnOmtxMDIVVzRc73apUi34Jy7bns3hhdiWViWaS//3hMSrhlNyAzFp6GGpCwi8Z115Cbr4/WbF",
    "MDXD56i9iLgvWa1jUGjhFOi90mBD0xaUAPmS6Mpl8XX77laB434Ev+uMstJ37cTl+/7mcQIDAQABAoIBADiLPaSCmObAU7us",
    "d7Wuk2ON5yTm9svrm6AAD9OcVHxkSzUYumXo6OuhIxCm9bHjNm9MKuOiffF7gol38gsjTMFoaXZ1OFYJimapxA6jxq1j3Q4f",
    "rOP5Q7N8XOto+d798rEr49mecsurhiKathh7lU3AJc4JQYnu1Cj+lk6ZGM0J+dmKBak6gFJiwm7M15iyznrGQaFBophyDLf5",
    "96HdAG2xZnTDyxKwAYZXtEPs4qMOJt3Yf1QyRg4gKWeo0bY3qdthL8nKH4idzzTqDV3cS9pW+CYRCJuHC6LI5idKFMNVRmuH",
    "CA6WUfV9IPln7aA8XTfh/0Oh2I4gB3w2fXrpYUsCgYEAxPGe1VI/VMmtQsSahXaRjImzaa5x2ZuElD7MwMRfiiD26bDlxxBr",
    "BJau1yN6LCjUYeynRKditXVKjn6YTpZt1V86u26smqTvO2ceoGVLYujyvXOzSq5X2gVTJ2UUeq80ydnlNo9I29n9QLAoEXCr",
    "cMSkxWTnNRowATOm5tCCUksCgYEAuQG0upi8ppQPrphG7AtOgeO3x+JNYekDAGr2D75tOhk2OcaS2vUtSjMU2mp1mAplE9DX",
    "t1ivKtFumWTEv7Y1kLFVwKN8D5erhEvxGFxJBeMWtN6C/c4ZjWyvw7RC4Cz1Iq8Jp/8qDj+BSg/pmeI4B2EOu+kVYTowbBOC",
    "G5xklLMCgYAFaYJs6FK3OMebIx3/9u8vBoW4rMOSMFTnYgZscbkSaa9/Yo4d91SJjr6FSQNNfV3AxykdmN/8jpma6t2yoy2n",
    "hHNvvS3fHhM49a+AxufYcwBgtnJB5iKh6i2L0ppKeNAhj+xdoHhnGkl8YprnR8peUfkZN5mm+u5AyjOW+jnqmwKBgQCjcfFk",
    "JMoN9KLCIgAOS5LpR/A2ZCTvSjd/p/+JOzguatWwR1G4pYCEnAphSEppr01LK2dYsL3YezxVwmPb5zL9iN30mbph4CIEeD8g",
    "wW82B0EpO6fIaMvEWPATWu72NGHBaZiDVfemrM4hS1uauvO6+TFWK/7abdkXskhw8kMd5wKBgAo7gDDF6LvX45IgEZYmuqD+",
    "uohHyYXxzIcCGaE3fIO63V6m2+uCcdjCBSxz+snDI5spU6YW+f4KCD9GSxqgt4Q4V4oX7q79dY/3gICElHx14mof/63s4jlq",
    "sAlNwbkMx2JkHoNk3DSBWiv62fZRFdy0k40q7vazv8DsePQzz393",
);
/// Its public key.
pub(crate) const RSA_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAjlPrwzgBEz0+3PbiXyaE
2J6QOBCsNmWDuZ3wtR0KcbL6sH/5EIvD4+tb4FcPHaD+P/wqzuBcOimt9WpRPFbv
xNIbMeuvMMCjxQb2pgSBnxuFLJUHcc5ab31aCZrtG1jOvvq+rIf8SNdYoo6G3MhD
YmbVChLnR0X+FLlfTUgFXqynB7txZBOC3p3MDLSXlB5B71sF+9BnOmtxMDIVVzRc
73apUi34Jy7bns3hhdiWViWaS//3hMSrhlNyAzFp6GGpCwi8Z115Cbr4/WbFMDXD
56i9iLgvWa1jUGjhFOi90mBD0xaUAPmS6Mpl8XX77laB434Ev+uMstJ37cTl+/7m
cQIDAQAB
-----END PUBLIC KEY-----
";

/// What signs a token.
pub(crate) enum Signer {
    Hmac(String),
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn secret() -> Self {
        Self::Hmac(SECRET.to_owned())
    }

    pub(crate) fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::from_der(&STANDARD.decode(RSA_PRIVATE).unwrap()).unwrap()))
    }

    pub(crate) fn ec() -> Self {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self::Ec(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).unwrap())
    }

    pub(crate) fn ed() -> Self {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap())
    }

    pub(crate) fn alg(&self) -> &'static str {
        match self {
            Self::Hmac(_) => "HS256",
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Hmac(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), message).as_ref().to_vec()
            }
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// Makes a token with this header, whatever it says.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        format!("{message}.{}", base64url(self.sign(message.as_bytes())))
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.alg(), "typ": "JWT"}), claims)
    }

    /// Makes a token that names its key.
    pub(crate) fn token_of(&self, kid: &str, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.alg(), "kid": kid}), claims)
    }

    /// The public key as a JSON Web Key.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let mut jwk = match self {
            Self::Hmac(secret) => json!({"kty": "oct", "k": base64url(secret)}),
            Self::Rsa(key) => {
                let parts: rsa::PublicKeyComponents<Vec<u8>> = key.public().into();
                json!({"kty": "RSA", "n": base64url(parts.n), "e": base64url(parts.e)})
            }
            Self::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)})
            }
            Self::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key())}),
        };
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// The public key in PEM; a secret as it is.
    pub(crate) fn pem(&self) -> String {
        // The identifiers of the algorithms, as RFC 5480 and RFC 8410 have them.
        const EC: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
        const ED: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
        let der = match self {
            Self::Hmac(secret) => return secret.clone(),
            Self::Rsa(_) => return RSA_PUBLIC.to_owned(),
            Self::Ec(key) => [EC, key.public_key().as_ref()].concat(),
            Self::Ed(key) => [ED, key.public_key().as_ref()].concat(),
        };
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970, so many seconds from now.
pub(crate) fn in_seconds(seconds: i64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    now.saturating_add_signed(seconds)
}

/// Claims of a subject that expire in an hour.
pub(crate) fn claims_of(subject: &str) -> Value {
    json!({"sub": subject, "iat": in_seconds(0), "exp": in_seconds(3600)})
}
