//! The keys that may sign tokens, each with the one algorithm that it is for.
//!
//! A token states its algorithm itself, and an attacker may state another: a public RSA key, taken as the secret of HS256,
//! would verify whatever the attacker signs with it. Therefore the algorithm follows from the key, and the token's must
//! be the same.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::{Deserialize, Serialize};

/// Keys of one set. More are refused.
const MAX_KEYS: usize = 100;
/// How many keys are tried for a token that names none.
const MAX_TRIES: usize = 4;
/// The shortest secret of HS256, in bytes (RFC 7518 section 3.2).
const MIN_SECRET: usize = 32;
/// The shortest modulus of RSA that is verified, in bytes.
const MIN_MODULUS: usize = 256;

/// How a token may be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub(crate) enum Signing {
    /// HMAC with SHA-256: a secret that the issuer and the gateway share.
    HS256,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl Signing {
    pub(crate) const ALL: [Self; 4] = [Self::HS256, Self::RS256, Self::ES256, Self::EdDSA];

    pub(crate) fn algorithm(self) -> Algorithm {
        match self {
            Self::HS256 => Algorithm::HS256,
            Self::RS256 => Algorithm::RS256,
            Self::ES256 => Algorithm::ES256,
            Self::EdDSA => Algorithm::EdDSA,
        }
    }

    fn in_jwk(self) -> KeyAlgorithm {
        match self {
            Self::HS256 => KeyAlgorithm::HS256,
            Self::RS256 => KeyAlgorithm::RS256,
            Self::ES256 => KeyAlgorithm::ES256,
            Self::EdDSA => KeyAlgorithm::EdDSA,
        }
    }
}

/// A key and what it is for.
pub(crate) struct Key {
    /// Its name; `None`: it may have signed a token that names any key, or none.
    id: Option<Box<str>>,
    pub(crate) signing: Signing,
    pub(crate) key: DecodingKey,
}

/// Keys that may sign tokens.
#[derive(Default)]
pub(crate) struct KeySet(Vec<Key>);

/// Why a set has no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoKey {
    /// The key of this name is for another algorithm, or no key is for this one.
    OtherAlgorithm,
    /// No key has this name.
    Unknown,
}

impl KeySet {
    /// Reads a file: public keys in PEM, a JSON Web Key or a set of them, or else the secret of HS256 itself, without the
    /// line break behind it.
    ///
    /// # Errors
    /// One line that says what is wrong, without anything of the content.
    pub(crate) fn of_file(content: &[u8], allowed: &[Signing]) -> Result<Self, String> {
        let keys = match content.trim_ascii_start() {
            [b'{', ..] => Self::of_json(content, allowed, Origin::File)?,
            text if text.starts_with(b"-----BEGIN ") => Self::of_pem(content)?.only(allowed),
            _ => Self::of_secret(content.trim_ascii_end())?.only(allowed),
        };
        if keys.0.is_empty() {
            return Err(format!(
                "no key for the algorithms {allowed:?}; name the key's algorithm, or another file"
            ));
        }
        Ok(keys)
    }

    /// Reads the answer of a JWKS URL. Keys that are for something else are left out.
    ///
    /// # Errors
    /// It is no set of keys, or none of them can be used.
    pub(crate) fn of_url(body: &[u8], allowed: &[Signing]) -> Result<Self, String> {
        let keys = Self::of_json(body, allowed, Origin::Url)?;
        if keys.0.is_empty() {
            return Err(format!("the set has no key for the algorithms {allowed:?}"));
        }
        Ok(keys)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the keys that may have signed a token that states this algorithm and names this key.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn find<'a>(
        &'a self,
        signing: Option<Signing>,
        id: Option<&'a str>,
    ) -> Result<impl Iterator<Item = &'a Key>, NoKey> {
        let is_named = move |key: &&Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
        let fits = move |key: &&Key| is_named(key) && Some(key.signing) == signing;
        if self.0.iter().any(|key| fits(&key)) {
            return Ok(self.0.iter().filter(fits).take(MAX_TRIES));
        }
        Err(if self.0.iter().any(|key| is_named(&key)) { NoKey::OtherAlgorithm } else { NoKey::Unknown })
    }

    fn only(self, allowed: &[Signing]) -> Self {
        Self(self.0.into_iter().filter(|key| allowed.contains(&key.signing)).collect())
    }

    fn of_secret(secret: &[u8]) -> Result<Self, String> {
        if secret.len() < MIN_SECRET {
            return Err(format!(
                "a secret for HS256 must have at least {MIN_SECRET} bytes; it has {}",
                secret.len()
            ));
        }
        let key = DecodingKey::from_secret(secret).map_err(|error| error.to_string())?;
        Ok(Self(vec![Key { id: None, signing: Signing::HS256, key }]))
    }

    fn of_pem(content: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(content).map_err(|_| "the PEM file is no text".to_owned())?;
        let blocks = text.split("-----BEGIN ").skip(1).map(|block| format!("-----BEGIN {block}"));
        let keys: Vec<Key> = blocks.map(|block| of_pem_block(&block)).collect::<Result<_, _>>()?;
        if keys.len() > MAX_KEYS {
            return Err(format!("more than {MAX_KEYS} keys"));
        }
        Ok(Self(keys))
    }

    fn of_json(content: &[u8], allowed: &[Signing], origin: Origin) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let value: serde_json::Value =
            serde_json::from_slice(content).map_err(|error| format!("no JSON Web Key set: {error}"))?;
        let keys = match value.get("keys") {
            Some(_) => {
                serde_json::from_value::<Set>(value)
                    .map_err(|_| "no JSON Web Key set: `keys` must be a list".to_owned())?
                    .keys
            }
            None if origin == Origin::File => vec![value],
            None => return Err("no JSON Web Key set: it has no `keys`".to_owned()),
        };
        if keys.len() > MAX_KEYS {
            return Err(format!("more than {MAX_KEYS} keys"));
        }
        let mut found = Vec::new();
        for key in keys {
            // Only the issuer may have a private key, and symmetric ones have no `d`.
            if key.get("d").is_some() {
                return Err(match origin {
                    Origin::Url => {
                        "the set has a private key (`d`), and everyone can read it: tell the issuer"
                            .to_owned()
                    }
                    Origin::File => {
                        "this is a private key (`d`), which only the issuer may have; write its public key"
                            .to_owned()
                    }
                });
            }
            // One that this program does not know is for something else.
            let Some(key) = serde_json::from_value(key).ok().and_then(|jwk: Jwk| of_jwk(&jwk)) else {
                continue;
            };
            if key.signing == Signing::HS256 && origin == Origin::Url {
                return Err(
                    "the set has a secret (`kty` is `oct`), and everyone can read it: tell the issuer"
                        .to_owned(),
                );
            }
            found.push(key);
        }
        Ok(Self(found).only(allowed))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    File,
    Url,
}

fn of_pem_block(block: &str) -> Result<Key, String> {
    if block.starts_with("-----BEGIN CERTIFICATE") {
        return Err(
            "certificates are not read; write their public key: openssl x509 -pubkey -noout".to_owned()
        );
    }
    if block.lines().next().is_some_and(|line| line.contains("PRIVATE KEY")) {
        return Err("this is a private key, which only the issuer may have; write its public key: openssl pkey -pubout".to_owned());
    }
    let bytes = block.as_bytes();
    let (signing, key) = if let Ok(key) = DecodingKey::from_ec_pem(bytes) {
        (Signing::ES256, key)
    } else if let Ok(key) = DecodingKey::from_ed_pem(bytes) {
        (Signing::EdDSA, key)
    } else if let Ok(key) = DecodingKey::from_rsa_pem(bytes) {
        (Signing::RS256, key)
    } else {
        return Err("no public key of RSA, P-256 or Ed25519".to_owned());
    };
    let length = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    let fits = match signing {
        Signing::ES256 => length == 65,
        Signing::EdDSA => length == 32,
        // The exponent and their lengths are beside the modulus.
        _ => length >= MIN_MODULUS,
    };
    if !fits {
        return Err(
            "a key of this length is not accepted: RSA of 2048 bits or more, P-256 or Ed25519".to_owned()
        );
    }
    Ok(Key { id: None, signing, key })
}

/// Returns the key of a JWK; `None`: it is for something else.
fn of_jwk(jwk: &Jwk) -> Option<Key> {
    let signing = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => Signing::HS256,
        AlgorithmParameters::RSA(_) => Signing::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Signing::ES256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Signing::EdDSA,
        _ => return None,
    };
    let common = &jwk.common;
    if common.key_algorithm.is_some_and(|stated| stated != signing.in_jwk())
        || !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
        || common.key_operations.as_ref().is_some_and(|uses| !uses.contains(&KeyOperations::Verify))
    {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let is_long_enough = match (key.kind(), signing) {
        (jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. }, _) => n.len() >= MIN_MODULUS,
        (jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes), Signing::HS256) => bytes.len() >= MIN_SECRET,
        (jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes), Signing::ES256) => bytes.len() == 65,
        (jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes), _) => bytes.len() == 32,
    };
    is_long_enough.then(|| Key { id: jwk.common.key_id.as_deref().map(Box::from), signing, key })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::test_tokens::{RSA_PUBLIC, Signer};
    use super::*;

    fn of_file(content: &str) -> Result<usize, String> {
        KeySet::of_file(content.as_bytes(), &Signing::ALL).map(|keys| keys.len())
    }

    #[test]
    fn a_file_has_one_key_or_several() {
        assert_eq!(of_file("0123456789abcdef0123456789abcdef\n"), Ok(1));
        assert_eq!(of_file(&format!("{}{}{RSA_PUBLIC}", Signer::ec().pem(), Signer::ed().pem())), Ok(3));
        assert_eq!(
            of_file(&json!({"keys": [Signer::ec().jwk("1"), Signer::secret().jwk("2")]}).to_string()),
            Ok(2)
        );
        assert_eq!(of_file(&Signer::rsa().jwk("1").to_string()), Ok(1));
    }

    #[test]
    fn a_file_that_has_no_usable_key_is_refused_in_words_that_quote_nothing_of_it() {
        let private = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----\n";
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIEvQ\n-----END CERTIFICATE-----\n";
        let short = json!({"kty": "oct", "k": "c2hvcnQ"}).to_string();
        let many = json!({"keys": vec![Signer::secret().jwk("1"); 101]}).to_string();
        for (content, part) in [
            ("", "at least 32 bytes; it has 0"),
            ("hunter2", "at least 32 bytes; it has 7"),
            (private, "private key"),
            (certificate, "openssl x509 -pubkey"),
            ("-----BEGIN PUBLIC KEY-----\naGk=\n-----END PUBLIC KEY-----\n", "no public key"),
            ("{", "no JSON Web Key set"),
            ("{}", "no key for the algorithms"),
            (r#"{"keys": 1}"#, "must be a list"),
            (r#"{"kty": "OKP", "d": "hunter2"}"#, "private key"),
            (&short, "no key for the algorithms"),
            (&many, "more than 100 keys"),
        ] {
            let error = of_file(content).unwrap_err();
            assert!(
                error.contains(part) && !error.contains("hunter2") && !error.contains("c2hv"),
                "{content}: {error}"
            );
        }
        let only = KeySet::of_file(RSA_PUBLIC.as_bytes(), &[Signing::ES256]).err().unwrap();
        assert!(only.contains("[ES256]"), "{only}");
    }

    #[test]
    fn keys_for_something_else_are_left_out_of_a_set_and_a_published_secret_refuses_it() {
        let with = |changes: &[(&str, &str)]| {
            let mut key = Signer::rsa().jwk("1");
            changes.iter().for_each(|(field, value)| key[*field] = (*value).into());
            key
        };
        let of_url = |keys: &[serde_json::Value]| {
            let body = json!({"keys": keys}).to_string();
            KeySet::of_url(body.as_bytes(), &Signing::ALL).map(|keys| keys.len())
        };
        assert_eq!(of_url(&[with(&[]), with(&[("alg", "RS256")])]), Ok(2));
        let mut to_encrypt = with(&[]);
        to_encrypt["key_ops"] = json!(["encrypt"]);
        let others = [
            to_encrypt,
            with(&[("use", "enc")]),
            with(&[("use", "other")]),
            with(&[("alg", "PS256")]),
            with(&[("alg", "HS256")]),
            with(&[("n", "AQAB")]),
            with(&[("kty", "new")]),
            json!({"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}),
            json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}),
            json!(1),
        ];
        assert!(of_url(&others).unwrap_err().contains("no key"));
        assert_eq!(of_url(&[&others[..], &[Signer::ec().jwk("2")]].concat()), Ok(1));
        assert!(of_url(&[Signer::ec().jwk("1"), Signer::secret().jwk("2")]).unwrap_err().contains("secret"));
        let private = of_url(&[Signer::ec().jwk("1"), with(&[("d", "AQAB")])]).unwrap_err();
        assert!(private.contains("private key") && !private.contains("AQAB"), "{private}");
        assert!(
            KeySet::of_url(Signer::ec().jwk("1").to_string().as_bytes(), &Signing::ALL).is_err(),
            "no set"
        );
    }
}
