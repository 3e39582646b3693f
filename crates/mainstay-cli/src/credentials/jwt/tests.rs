use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::DecodingKey;
use serde_json::json;

use super::super::ring_provider;
use super::super::test_tokens::{RSA_PUBLIC, SECRET, Signer, base64url, claims_of, in_seconds};
use super::*;

fn keys(content: &str) -> KeySet {
    ring_provider::install();
    KeySet::of_file(content.as_bytes(), &Signing::ALL).unwrap()
}

fn book<'a>() -> RuleBook<'a> {
    RuleBook {
        issuers: &[],
        audiences: &[],
        leeway: Duration::from_secs(30),
        subject_claim: "sub",
        required: &[],
        fields: Vec::new(),
    }
}

fn exp() -> Vec<String> {
    vec!["exp".to_owned()]
}

fn token(text: impl Into<String>) -> Token {
    Token(text.into().into_bytes().into())
}

/// Checks a token with rules that require `exp` and nothing else.
fn check(text: &str, keys: &KeySet) -> Result<Proof, Refusal> {
    let required = exp();
    let rules = Rules::new(RuleBook { required: &required, ..book() });
    rules.check(&token(text), keys, SystemTime::now())
}

fn refused(text: &str, keys: &KeySet) -> Reason {
    check(text, keys).unwrap_err().reason
}

#[test]
fn each_algorithm_is_verified_by_a_key_from_a_pem_file_and_from_a_json_web_key() {
    for signer in [Signer::secret(), Signer::rsa(), Signer::ec(), Signer::ed()] {
        let (claims, name) = (claims_of("alice"), signer.alg());
        for content in
            [signer.pem(), signer.jwk("1").to_string(), json!({"keys": [signer.jwk("1")]}).to_string()]
        {
            let keys = keys(&content);
            let proof = check(&signer.token(&claims), &keys).unwrap();
            assert_eq!((&*proof.subject.0, proof.issued), ("alice", claims["iat"].as_u64()), "{name}");
            let left = proof.expires_in.unwrap().as_secs();
            assert!((3620..=3630).contains(&left), "an hour and the leeway: {left}");
            let mut wrong = signer.token(&claims).into_bytes();
            let at = wrong.iter().rposition(|byte| *byte == b'.').unwrap() + 5;
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(refused(std::str::from_utf8(&wrong).unwrap(), &keys), Reason::Signature, "{name}");
            let (head, signature) = wrong.split_at(wrong.iter().rposition(|byte| *byte == b'.').unwrap());
            assert!(!signature.is_empty());
            assert_eq!(
                refused(&format!("{}.", String::from_utf8_lossy(head)), &keys),
                Reason::Signature,
                "{name}"
            );
        }
    }
}

/// The examples of RFC 7515 appendix A.1 to A.3 and RFC 8037 appendix A.4: key, algorithm, token.
const EXAMPLES: [(&str, Signing, &str); 4] = [
    (
        r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#,
        Signing::HS256,
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    ),
    (
        r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#,
        Signing::RS256,
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    ),
    (
        r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
        Signing::ES256,
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
    (
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        Signing::EdDSA,
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    ),
];

#[test]
fn the_examples_of_the_rfcs_are_verified() {
    for (key, signing, text) in EXAMPLES {
        let keys = keys(key);
        let (message, signature) = text.rsplit_once('.').unwrap();
        let key = &keys.find(Some(signing), None).ok().unwrap().next().unwrap().key;
        let verify = |message: &str| {
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, signing.algorithm()).unwrap()
        };
        assert!(verify(message) && !verify(&format!("{message}A")), "{signing:?}");
        // Its signature is right, and so what follows is read: it expired in 2011. That of EdDSA has no claims.
        let expected = if signing == Signing::EdDSA { Reason::Malformed } else { Reason::Expired };
        assert_eq!(refused(text, &keys), expected, "{signing:?}");
    }
}

#[test]
fn a_token_cannot_choose_another_algorithm_than_that_of_its_key() {
    let claims = claims_of("mallory");
    let rsa = keys(RSA_PUBLIC);
    // The public key, which everyone has, as the secret of HS256: the text of the file, and its bytes.
    let der = STANDARD
        .decode(RSA_PUBLIC.lines().filter(|line| !line.starts_with('-')).collect::<String>())
        .unwrap();
    let trimmed = RSA_PUBLIC.trim_end().to_owned();
    let DerKey(inner) = DerKey::of_rsa();
    for secret in [RSA_PUBLIC.as_bytes().to_vec(), trimmed.into_bytes(), der, inner] {
        let message = format!("{}.{}", base64url(r#"{"alg":"HS256"}"#), base64url(claims.to_string()));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        let forged = format!("{message}.{}", base64url(ring::hmac::sign(&key, message.as_bytes())));
        assert_eq!(refused(&forged, &rsa), Reason::Algorithm);
    }
    let both = keys(&json!({"keys": [Signer::rsa().jwk("rsa"), Signer::secret().jwk("secret")]}).to_string());
    let other = Signer::secret().token_with(&json!({"alg": "HS256", "kid": "rsa"}), &claims);
    assert_eq!(refused(&other, &both), Reason::Algorithm, "the key of this name is for RS256");
    assert!(check(&Signer::secret().token_of("secret", &claims), &both).is_ok());
    for alg in ["none", "None", "NONE", "", "HS384", "HS512", "RS512", "PS256", "ES384", "ES256K", "hs256"] {
        let unsigned =
            format!("{}.{}.", base64url(json!({"alg": alg}).to_string()), base64url(claims.to_string()));
        assert_eq!(refused(&unsigned, &both), Reason::Algorithm, "{alg}");
        let signed = Signer::secret().token_with(&json!({"alg": alg, "kid": "secret"}), &claims);
        assert_eq!(refused(&signed, &both), Reason::Algorithm, "{alg}");
    }
}

/// The bytes of an RSA key as they are held.
struct DerKey(Vec<u8>);

impl DerKey {
    fn of_rsa() -> Self {
        Self(DecodingKey::from_rsa_pem(RSA_PUBLIC.as_bytes()).unwrap().try_get_as_bytes().unwrap().to_vec())
    }
}

#[test]
fn a_key_that_the_token_brings_along_is_not_used() {
    let own = Signer::ec();
    let header = json!({"alg": "ES256", "jwk": own.jwk("x"), "jku": "https://evil.example/", "x5u": "https://evil.example/"});
    assert_eq!(
        refused(&own.token_with(&header, &claims_of("mallory")), &keys(&Signer::ec().pem())),
        Reason::Signature
    );
}

#[test]
fn the_key_is_that_of_the_tokens_name_and_a_token_without_a_name_is_tried_with_each() {
    let (first, second) = (Signer::ec(), Signer::ec());
    let keys = keys(&json!({"keys": [first.jwk("1"), second.jwk("2")]}).to_string());
    let claims = claims_of("alice");
    assert!(check(&first.token_of("1", &claims), &keys).is_ok());
    assert!(check(&second.token(&claims), &keys).is_ok());
    assert_eq!(refused(&first.token_of("2", &claims), &keys), Reason::Signature);
    let unknown = check(&first.token_of("3\n\"x", &claims), &keys).unwrap_err();
    assert_eq!(
        (unknown.reason, &*unknown.detail),
        (Reason::UnknownKey, r#"kid "3\n\"x""#),
        "escaped for the log"
    );
    let critical = first.token_with(&json!({"alg": "ES256", "kid": "1", "crit": ["exp"]}), &claims);
    assert_eq!(refused(&critical, &keys), Reason::Malformed, "RFC 7515 section 4.1.11");
}

#[test]
fn what_is_no_token_is_malformed() {
    let (keys, claims) = (keys(SECRET), claims_of("a"));
    let good = Signer::secret().token(&claims);
    let (head, rest) = good.split_once('.').unwrap();
    let long =
        Signer::secret().token(&json!({"sub": "a", "exp": in_seconds(60), "x": "x".repeat(MAX_TOKEN)}));
    let deep = format!("{}.{rest}", base64url("[".repeat(5000)));
    for text in [
        "",
        ".",
        "..",
        "a.b.c",
        head,
        &format!("{head}."),
        &format!("{head}.."),
        &format!("{good}.x"),
        &format!(" {good}"),
        &format!("{good}="),
        &good.replace('.', ".."),
        &long,
        &deep,
        &format!("{}.{rest}", base64url("null")),
        &format!("{}.{rest}", base64url(r#"{"alg":1}"#)),
        &format!("{}.{rest}", base64url(json!({"alg": "HS256", "kid": "k".repeat(257)}).to_string())),
    ] {
        let reason = refused(text, &keys);
        assert!(
            matches!(reason, Reason::Malformed | Reason::Signature | Reason::Algorithm),
            "{text}: {reason:?}"
        );
        assert!(reason == Reason::Malformed || text.contains(&head[..10]), "{text}");
    }
    for claims in [json!([]), json!("x"), json!(null), json!({"sub": "a", "exp": "soon"})] {
        let reason = refused(&Signer::secret().token(&claims), &keys);
        assert!(matches!(reason, Reason::Malformed | Reason::Claims), "{claims}: {reason:?}");
    }
}

#[test]
fn times_are_checked_with_the_leeway() {
    let keys = keys(SECRET);
    let at = |field: &str, seconds: i64| {
        let mut claims = claims_of("alice");
        claims[field] = in_seconds(seconds).into();
        check(&Signer::secret().token(&claims), &keys)
    };
    assert_eq!(at("exp", -60).unwrap_err().reason, Reason::Expired);
    let left = at("exp", -10).unwrap().expires_in.unwrap().as_secs();
    assert!((15..=20).contains(&left), "the rest of the leeway: {left}");
    assert_eq!(at("nbf", 90).unwrap_err().reason, Reason::NotYetValid);
    assert!(at("nbf", 10).is_ok());
    let far = json!({"sub": "alice", "exp": 1e300});
    assert_eq!(refused(&Signer::secret().token(&far), &keys), Reason::Claims);
    let never = json!({"sub": "alice", "exp": u64::MAX});
    assert_eq!(check(&Signer::secret().token(&never), &keys).unwrap().expires_in, None, "beyond every clock");
    let fraction = json!({"sub": "alice", "exp": in_seconds(60) as f64 + 0.5, "iat": 5.7});
    assert_eq!(check(&Signer::secret().token(&fraction), &keys).unwrap().issued, Some(5));
    let without = check(&Signer::secret().token(&json!({"sub": "alice"})), &keys).unwrap_err();
    assert_eq!((without.reason, &*without.detail), (Reason::Claims, "exp is missing"));
    let rules = Rules::new(book());
    let without = token(Signer::secret().token(&json!({"sub": "alice"})));
    assert_eq!(
        rules.check(&without, &keys, SystemTime::now()).unwrap().expires_in,
        None,
        "if it is not required"
    );
}

#[test]
fn issuer_audience_and_required_claims_must_be_there_and_be_right() {
    let keys = keys(SECRET);
    let (issuers, audiences) = (["https://a".to_owned(), "https://b".to_owned()], ["chat".to_owned()]);
    let required = ["exp".to_owned(), "tenant".to_owned()];
    let rules =
        Rules::new(RuleBook { issuers: &issuers, audiences: &audiences, required: &required, ..book() });
    let good =
        json!({"sub": "a", "exp": in_seconds(60), "iss": "https://b", "aud": ["x", "chat"], "tenant": 1});
    let check = |field: &str, value: Value, reason: Option<Reason>| {
        let mut claims = good.clone();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(field)),
            value => claims[field] = value,
        }
        let checked = rules.check(&token(Signer::secret().token(&claims)), &keys, SystemTime::now());
        assert_eq!(checked.err().map(|refusal| refusal.reason), reason, "{claims}");
    };
    check("aud", json!("chat"), None);
    check("iss", json!("https://a"), None);
    check("iss", json!("https://c"), Some(Reason::Issuer));
    check("iss", Value::Null, Some(Reason::Claims));
    check("aud", json!("other"), Some(Reason::Audience));
    check("aud", json!(["other"]), Some(Reason::Audience));
    check("aud", Value::Null, Some(Reason::Claims));
    check("tenant", Value::Null, Some(Reason::Claims));
    for subject in [json!(""), json!("x".repeat(257)), json!(true), Value::Null] {
        check("sub", subject, Some(Reason::Claims));
    }
    check("sub", json!(["a"]), Some(Reason::Malformed));
    check("sub", json!(7), None);
    check("sub", json!("x".repeat(256)), None);
}

#[test]
fn claims_become_headers_if_they_can() {
    let keys = keys(SECRET);
    let fields = |claim: &str| vec![(HeaderName::from_static("x-it"), Box::from(claim))];
    let check = |claim: &str, value: Value, expected: Result<Option<&str>, Reason>| {
        let rules = Rules::new(RuleBook { fields: fields(claim), subject_claim: "user", ..book() });
        let claims = json!({"user": "a", "it": value});
        let proof = rules.check(&token(Signer::secret().token(&claims)), &keys, SystemTime::now());
        let found = proof.map(|proof| proof.fields.first().map(|(_, value)| value.as_bytes().to_vec()));
        let expected = expected.map(|text| text.map(|text| text.as_bytes().to_vec()));
        assert_eq!(found.map_err(|refusal| refusal.reason), expected, "{claims}");
    };
    check("it", json!("Alice"), Ok(Some("Alice")));
    check("it", json!("Zoë"), Ok(Some("Zoë")));
    check("it", json!(7), Ok(Some("7")));
    check("it", json!(["a,b", "c"]), Ok(Some(r#"["a,b","c"]"#)));
    check("/it/roles/0", json!({"roles": ["admin"]}), Ok(Some("admin")));
    check("other", json!("x"), Ok(None));
    check("it", json!(null), Ok(None));
    check("it", json!("a\r\nX-Admin: 1"), Err(Reason::Claims));
    check("it", json!("a\tb"), Err(Reason::Claims));
    check("it", json!("x".repeat(4097)), Err(Reason::Claims));
    check("it", json!("x".repeat(4096)), Ok(Some(&"x".repeat(4096))));
}

/// Keys and tokens that strangers made: `others/make.mjs` with the npm package `jose`, `others/make.py` with PyJWT.
#[test]
fn tokens_and_key_sets_that_jose_and_pyjwt_made_are_verified() {
    for made in [include_str!("others/jose.json"), include_str!("others/pyjwt.json")] {
        let made: Value = serde_json::from_str(made).unwrap();
        ring_provider::install();
        let set = KeySet::of_url(made["jwks"].to_string().as_bytes(), &Signing::ALL).unwrap();
        assert_eq!((set.len(), made["cases"].as_array().unwrap().len()), (3, 4));
        for case in made["cases"].as_array().unwrap() {
            let text = |field: &str| case[field].as_str().unwrap();
            let of_file = keys(text("pem"));
            let by = if text("algorithm") == "HS256" { vec![&of_file] } else { vec![&of_file, &set] };
            for keys in by {
                for token in [text("token"), text("unnamed")] {
                    let proof = check(token, keys).unwrap();
                    assert_eq!((&*proof.subject.0, proof.issued), ("alice", Some(1_700_000_000)), "{case}");
                    let (message, _) = token.rsplit_once('.').unwrap();
                    assert_eq!(refused(&format!("{message}.AAAA"), keys), Reason::Signature, "{case}");
                }
            }
            // The set verifies nothing of the secret.
            if text("algorithm") == "HS256" {
                assert_eq!(refused(text("unnamed"), &set), Reason::Algorithm, "{case}");
            }
        }
    }
}
