//! The certificate that a client presented to this gateway's TLS, as its credentials.
//!
//! TLS has verified it: it is of `tls.client-ca` and not revoked. Here is which part of it names the user and what the backend
//! learns of it. Its times are checked again, because a client that continues an earlier handshake is not asked for it anew.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{HeaderName, HeaderValue};
use mainstay::server::rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::refusal::{Reason, Refusal};
use crate::clients::identity::Subject;

/// The longest part of a certificate that is used, in bytes.
const MAX_PART: usize = 1024;

/// A part of a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// The whole distinguished name of its subject, as RFC 4514 writes it: `CN=alice,O=Example`.
    Subject,
    /// The common name in it.
    CommonName,
    /// The URI in the subject's alternative names, such as `spiffe://example.com/billing`.
    Uri,
    /// The name of a host in the subject's alternative names.
    Dns,
    /// The address in the subject's alternative names.
    Email,
    /// The SHA-256 of the certificate, in hexadecimal digits.
    Fingerprint,
}

/// What is made of a certificate.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The part that names the user.
    pub(crate) subject: Part,
    /// The headers for the backend, each with the part that it holds.
    pub(crate) fields: Vec<(HeaderName, Part)>,
}

/// What a certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certified {
    pub(crate) subject: Subject,
    /// When it became valid, in seconds since 1970.
    pub(crate) issued: Option<u64>,
    /// How long it is still valid.
    pub(crate) expires_in: Duration,
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
}

impl Rules {
    /// Returns the names of the headers for the backend.
    pub(crate) fn field_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.fields.iter().map(|(name, _)| name)
    }

    /// Checks the certificate of a client.
    ///
    /// # Errors
    /// There is none, or it proves nothing.
    pub(crate) fn check(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        now: SystemTime,
    ) -> Result<Certified, Refusal> {
        let der = certificate.ok_or(Reason::NoCertificate)?;
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| refused("it cannot be read"))?;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = since.as_secs();
        let at = |time: i64| u64::try_from(time).unwrap_or_default();
        let (from, until) =
            (at(parsed.validity().not_before.timestamp()), at(parsed.validity().not_after.timestamp()));
        if !(from..=until).contains(&now) {
            return Err(refused("it is not valid now"));
        }
        let part = |part: Part| part.of(der, &parsed);
        let subject =
            part(self.subject)?.ok_or_else(|| refused(&format!("it has no {}", self.subject.name())))?;
        let fields = self.fields.iter().filter_map(|(name, wanted)| {
            let value = part(*wanted).transpose()?;
            Some(value.and_then(|value| {
                let value = HeaderValue::try_from(value);
                let value = value.map_err(|_| refused(&format!("its {} is no header", wanted.name())))?;
                Ok((name.clone(), value))
            }))
        });
        let fields = fields.collect::<Result<_, _>>()?;
        // It is valid up to the end of its last second.
        let expires_in = Duration::from_secs(until.saturating_add(1)).saturating_sub(since);
        Ok(Certified { subject: Subject(Arc::from(subject)), issued: Some(from), expires_in, fields })
    }
}

impl Part {
    /// Returns its name in the settings.
    fn name(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::CommonName => "common-name",
            Self::Uri => "uri",
            Self::Dns => "dns",
            Self::Email => "email",
            Self::Fingerprint => "fingerprint",
        }
    }

    /// Returns this part of a certificate; `None`: the certificate does not have it.
    ///
    /// # Errors
    /// It is there several times, too long, or no text.
    fn of(self, der: &CertificateDer<'_>, parsed: &X509Certificate<'_>) -> Result<Option<String>, Refusal> {
        let text = |attribute: &AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).map_err(|_| self.unusable())
        };
        let found: Vec<String> = match self {
            Self::Subject => distinguished_name(parsed.subject()).ok_or_else(|| self.unusable())?,
            Self::CommonName => parsed.subject().iter_common_name().map(text).collect::<Result<_, _>>()?,
            Self::Fingerprint => vec![hexadecimal(&Sha256::digest(der))],
            Self::Uri | Self::Dns | Self::Email => {
                let names = parsed.subject_alternative_name().map_err(|_| self.unusable())?;
                let names = names.map(|names| names.value.general_names.iter());
                names.into_iter().flatten().filter_map(|name| self.alternative(name)).collect()
            }
        };
        match found.as_slice() {
            [] => Ok(None),
            [one] if one.len() <= MAX_PART && !one.chars().any(char::is_control) && !one.is_empty() => {
                Ok(Some(one.clone()))
            }
            [_] => Err(self.unusable()),
            // Any choice among them would be a guess at what the authority means.
            _ => Err(refused(&format!("it has more than one {}", self.name()))),
        }
    }

    fn alternative(self, name: &GeneralName<'_>) -> Option<String> {
        match (self, name) {
            (Self::Uri, GeneralName::URI(name))
            | (Self::Dns, GeneralName::DNSName(name))
            | (Self::Email, GeneralName::RFC822Name(name)) => Some((*name).to_owned()),
            _ => None,
        }
    }

    fn unusable(self) -> Refusal {
        refused(&format!("its {} must be a text of 1 to {MAX_PART} bytes", self.name()))
    }
}

fn refused(detail: &str) -> Refusal {
    Refusal::new(Reason::Certificate, detail)
}

/// Returns a distinguished name as RFC 4514 writes it, the most specific part first. It is escaped, so that no certificate
/// reads like another. Empty if the name is empty; `None` if a value is in an encoding of before UTF-8.
fn distinguished_name(name: &X509Name<'_>) -> Option<Vec<String>> {
    let parts = name.iter_rdn().map(|part| {
        let attributes: Option<Vec<String>> = part.iter().map(attribute).collect();
        attributes.map(|attributes| attributes.join("+"))
    });
    let mut parts: Vec<String> = parts.collect::<Option<_>>()?;
    parts.reverse();
    Some(if parts.is_empty() { Vec::new() } else { vec![parts.join(",")] })
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let number = attribute.attr_type().to_id_string();
    let name = match number.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        other => other,
    };
    Some(format!("{name}={}", escaped(attribute.as_str().ok()?)))
}

/// Source: RFC 4514 section 2.4.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (at, character) in value.char_indices() {
        let is_last = at + character.len_utf8() == value.len();
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', character]),
            '#' if at == 0 => out.push_str("\\#"),
            ' ' if at == 0 || is_last => out.push_str("\\ "),
            _ if character.is_control() => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(out, "\\{byte:02X}");
                }
            }
            _ => out.push(character),
        }
    }
    out
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

    fn certificate(names: &[(DnType, &str)], alternatives: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), DnValue::Utf8String((*value).to_owned()));
        }
        params.subject_alt_names = alternatives;
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2030, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn check(der: &CertificateDer<'_>, subject: Part) -> Result<String, String> {
        let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let certified = Rules { subject, fields: Vec::new() }.check(Some(der), at);
        certified.map(|certified| certified.subject.0.to_string()).map_err(|refusal| refusal.detail)
    }

    #[test]
    fn each_part_of_a_certificate_may_name_the_user() {
        let names = [(DnType::OrganizationName, "Example"), (DnType::CommonName, "alice")];
        let alternatives = vec![
            SanType::URI("spiffe://example.com/a".try_into().unwrap()),
            SanType::Rfc822Name("alice@example.com".try_into().unwrap()),
            SanType::DnsName("a.example.com".try_into().unwrap()),
        ];
        let der = certificate(&names, alternatives);
        let found = |part| check(&der, part).unwrap();
        assert_eq!(found(Part::Subject), "CN=alice,O=Example");
        assert_eq!(found(Part::CommonName), "alice");
        assert_eq!(found(Part::Uri), "spiffe://example.com/a");
        assert_eq!(found(Part::Email), "alice@example.com");
        assert_eq!(found(Part::Dns), "a.example.com");
        assert_eq!(found(Part::Fingerprint), hexadecimal(&Sha256::digest(&der)));
    }

    #[test]
    fn no_two_names_read_alike() {
        let one = |names: &[(DnType, &str)]| check(&certificate(names, Vec::new()), Part::Subject).unwrap();
        let forged = one(&[(DnType::CommonName, "alice,O=Example")]);
        assert_eq!(forged, "CN=alice\\,O=Example");
        assert_eq!(one(&[(DnType::CommonName, " #a+b ")]), "CN=\\ #a\\+b\\ ");
        assert_eq!(one(&[(DnType::CommonName, "#a\r\n")]), "CN=\\#a\\0D\\0A");
        assert_eq!(one(&[(DnType::CommonName, "Žofie")]), "CN=Žofie");
    }

    #[test]
    fn a_certificate_without_exactly_one_usable_name_is_refused_and_the_reason_names_the_part() {
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let der = certificate(&[(DnType::CommonName, "a\nb")], vec![dns("a.example"), dns("b.example")]);
        for (part, words) in [
            (Part::Dns, "it has more than one dns"),
            (Part::Uri, "it has no uri"),
            (Part::CommonName, "its common-name must be a text of 1 to 1024 bytes"),
        ] {
            assert_eq!(check(&der, part).unwrap_err(), words);
        }
        assert_eq!(check(&certificate(&[], Vec::new()), Part::Subject).unwrap_err(), "it has no subject");
        let long = certificate(&[(DnType::CommonName, &"x".repeat(1024))], Vec::new());
        assert_eq!(check(&long, Part::Subject).unwrap_err(), "its subject must be a text of 1 to 1024 bytes");
        assert_eq!(check(&CertificateDer::from(vec![1, 2, 3]), Part::Dns).unwrap_err(), "it cannot be read");
    }

    #[test]
    fn a_certificate_counts_only_while_it_is_valid() {
        let der = certificate(&[(DnType::CommonName, "alice")], Vec::new());
        let rules = Rules { subject: Part::CommonName, fields: Vec::new() };
        let at = |seconds| rules.check(Some(&der), UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(1_577_836_800).unwrap().issued, Some(1_577_836_800));
        for outside in [1_577_836_799, 1_893_456_001] {
            assert_eq!(at(outside).unwrap_err().detail, "it is not valid now");
        }
        assert_eq!(rules.check(None, SystemTime::now()).unwrap_err().reason, Reason::NoCertificate);
    }
}
