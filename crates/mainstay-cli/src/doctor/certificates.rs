//! The certificates of a server: recorded while TLS verifies them, so that they are known also when they are not trusted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mainstay::client::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use mainstay::client::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use mainstay::client::rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::report::{CertificateFacts, Untrusted, UntrustedKind};
use super::target::Target;

/// How many certificates of a chain, and how many names of each, the report shows.
const MAX_CHAIN: usize = 10;
const MAX_NAMES: usize = 50;
const DAY: i64 = 24 * 3600;
/// The key of "CA Issuers" in the extension "Authority Information Access".
///
/// Source: RFC 5280 section 4.2.2.1.
const CA_ISSUERS: &str = "1.3.6.1.5.5.7.48.2";

/// Verifies as another verifier does, and remembers what it saw.
#[derive(Debug)]
pub(super) struct Recording {
    verifier: Arc<dyn ServerCertVerifier>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    refusal: Option<Error>,
}

impl Recording {
    pub(super) fn new(verifier: &Arc<dyn ServerCertVerifier>) -> Self {
        Self { verifier: Arc::clone(verifier), seen: Mutex::default() }
    }

    /// Returns the chain that the server sent, and why it is not trusted.
    pub(super) fn facts(&self, target: &Target) -> (Vec<CertificateFacts>, Option<Untrusted>) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let chain: Vec<_> =
            seen.chain.iter().take(MAX_CHAIN).filter_map(|der| certificate(der, target)).collect();
        let untrusted = seen.refusal.as_ref().map(|error| untrusted(error, &chain, target));
        (chain, untrusted)
    }
}

impl ServerCertVerifier for Recording {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let chain = std::iter::once(end_entity).chain(intermediates);
        let chain = chain.take(MAX_CHAIN).map(|der| der.clone().into_owned()).collect();
        let refusal = verified.as_ref().err().cloned();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { chain, refusal };
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Reads a certificate; `None`: it is none.
fn certificate(der: &CertificateDer<'_>, target: &Target) -> Option<CertificateFacts> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let not_after = parsed.validity().not_after.timestamp();
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let constraints = parsed.basic_constraints().ok().flatten();
    Some(CertificateFacts {
        subject: target.shown(&parsed.subject().to_string()),
        issuer: target.shown(&parsed.issuer().to_string()),
        names: names.filter_map(name).take(MAX_NAMES).map(|name| target.shown(&name)).collect(),
        not_before: parsed.validity().not_before.timestamp(),
        not_after,
        days_left: not_after.saturating_sub(now).div_euclid(DAY),
        is_self_signed: parsed.subject() == parsed.issuer(),
        is_authority: constraints.is_some_and(|constraints| constraints.value.ca),
        says_where_issuer_is: parsed.extensions().iter().any(|extension| {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityInfoAccess(access) => {
                    access.accessdescs.iter().any(|place| place.access_method.to_id_string() == CA_ISSUERS)
                }
                _ => false,
            }
        }),
    })
}

/// Returns a name that a server's certificate may be for.
fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => {
                <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())
            }
        },
        _ => None,
    }
}

/// Says why a certificate is not trusted.
fn untrusted(error: &Error, chain: &[CertificateFacts], target: &Target) -> Untrusted {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, Revoked, UnknownIssuer,
    };
    let own = chain.first();
    let days = own.map_or(0, |own| own.days_left);
    let issuer = own.map_or("", |own| own.issuer.as_str());
    let (kind, words) = match error {
        Error::InvalidCertificate(Expired | ExpiredContext { .. }) if days < 0 => {
            let ago = if days == -1 { "less than a day".to_owned() } else { format!("{} days", -days - 1) };
            (UntrustedKind::Expired, format!("the server's certificate expired {ago} ago"))
        }
        Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            (UntrustedKind::Expired, "a certificate in the server's chain has expired".to_owned())
        }
        Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => (
            UntrustedKind::NotYetValid,
            "the server's certificate is not valid yet; is the clock of this machine right?".to_owned(),
        ),
        Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            (UntrustedKind::WrongName, wrong_name(own, target))
        }
        _ if own.is_some_and(|own| own.is_self_signed) => {
            (UntrustedKind::SelfSigned, "the server's certificate is signed by itself".to_owned())
        }
        Error::InvalidCertificate(UnknownIssuer) if is_intermediate_missing(chain) => (
            UntrustedKind::MissingIntermediate,
            format!(
                "the server sends its own certificate without the intermediate one of its issuer, {issuer}; \
                 browsers may fetch it, and other clients do not"
            ),
        ),
        Error::InvalidCertificate(UnknownIssuer) => (
            UntrustedKind::UnknownIssuer,
            format!("the issuer of the server's certificate, {issuer}, is not trusted"),
        ),
        Error::InvalidCertificate(BadSignature) => {
            (UntrustedKind::Other, "a signature in the server's chain of certificates is wrong".to_owned())
        }
        Error::InvalidCertificate(Revoked) => {
            (UntrustedKind::Other, "the server's certificate is revoked".to_owned())
        }
        other => (UntrustedKind::Other, target.shown(&other.to_string())),
    };
    Untrusted { kind, words }
}

/// Returns whether only the server's own certificate came, and it says where its issuer's is: the issuer is not a root then.
fn is_intermediate_missing(chain: &[CertificateFacts]) -> bool {
    matches!(chain, [own] if own.says_where_issuer_is)
}

fn wrong_name(own: Option<&CertificateFacts>, target: &Target) -> String {
    let host = target.host();
    let names = own.map_or(&[][..], |own| &own.names);
    let shown: Vec<_> = names.iter().take(5).map(String::as_str).collect();
    match shown.as_slice() {
        [] => format!("the server's certificate is for no name at all, and so not for {host}"),
        shown => {
            let more = if names.len() > shown.len() { ", ..." } else { "" };
            format!("the server's certificate is for {}{more}, and not for {host}", shown.join(", "))
        }
    }
}
