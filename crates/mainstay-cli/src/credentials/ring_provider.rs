//! The signatures of tokens, checked by ring, which TLS uses too. `jsonwebtoken` does the rest.
//!
//! Its own two providers were rejected: each brings a second library of cryptography, one of them a large one in C.
//! `docs/adr/0030-credentials-are-judged-with-their-hello.md` has the reasons.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has `jsonwebtoken` use ring, in the whole process.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    // Another provider is installed nowhere.
    INSTALLED.call_once(|| {
        let _ = PROVIDER.install_default();
    });
}

/// The gateway signs nothing.
fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let key = match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => {
            Key::Hmac(hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?))
        }
        (Algorithm::RS256, AlgorithmFamily::Rsa) => match key.kind() {
            DecodingKeyKind::SecretOrDer(der) => Key::RsaDer(der.clone()),
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                Key::RsaParts(RsaPublicKeyComponents { n: n.clone(), e: e.clone() })
            }
        },
        (Algorithm::ES256, AlgorithmFamily::Ec) => Key::Ec(key.try_get_as_bytes()?.to_vec()),
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => Key::Ed(key.try_get_as_bytes()?.to_vec()),
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    Ok(Box::new(RingVerifier { algorithm: *algorithm, key }))
}

enum Key {
    Hmac(hmac::Key),
    RsaDer(Vec<u8>),
    RsaParts(RsaPublicKeyComponents<Vec<u8>>),
    Ec(Vec<u8>),
    Ed(Vec<u8>),
}

struct RingVerifier {
    algorithm: Algorithm,
    key: Key,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match &self.key {
            Key::Hmac(key) => hmac::verify(key, message, signature),
            Key::RsaDer(der) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).verify(message, signature)
            }
            Key::RsaParts(parts) => parts.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
            Key::Ec(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Key::Ed(point) => UnparsedPublicKey::new(&ED25519, point).verify(message, signature),
        };
        verified.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
