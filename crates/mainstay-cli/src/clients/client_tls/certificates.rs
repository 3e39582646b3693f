//! Certificates with their keys, and which of them a client gets.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use mainstay::server::rustls::crypto::CryptoProvider;
use mainstay::server::rustls::pki_types::pem::PemObject;
use mainstay::server::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use mainstay::server::rustls::server::{ClientHello, ResolvesServerCert};
use mainstay::server::rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Named;

/// When a certificate expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// The file of its chain.
    pub(crate) chain: PathBuf,
    /// In seconds since 1970.
    pub(crate) not_after: i64,
}

impl Expiry {
    /// Returns the days until then, negative once it has passed.
    pub(crate) fn days_left(&self) -> f64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (self.not_after as f64 - now.as_secs_f64()) / (24.0 * 60.0 * 60.0)
    }
}

/// All certificates, by the names that they are for.
#[derive(Debug)]
pub(super) struct Certificates {
    all: Vec<(Arc<CertifiedKey>, Expiry)>,
    /// By name in lower case; `*.example.com` stands under `.example.com`. The values are indices, in the given order.
    by_name: HashMap<Box<str>, Vec<usize>>,
}

impl Certificates {
    /// Reads all files.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub(super) fn load(files: &[Named], provider: &CryptoProvider) -> Result<Self, String> {
        let mut certificates = Self { all: Vec::with_capacity(files.len()), by_name: HashMap::new() };
        for named in files {
            let index = certificates.all.len();
            let (key, names, not_after) = load(named, provider)?;
            for name in names {
                let name = name.strip_prefix('*').unwrap_or(&name).to_ascii_lowercase();
                certificates.by_name.entry(name.into()).or_default().push(index);
            }
            certificates.all.push((Arc::new(key), Expiry { chain: named.files.chain.clone(), not_after }));
        }
        Ok(certificates)
    }

    /// Returns the hosts that the certificates are for, in lower case: names, `*.example.com` among them, and addresses.
    pub(super) fn hosts(&self) -> Vec<String> {
        let names = self.by_name.keys();
        names.map(|name| if name.starts_with('.') { format!("*{name}") } else { name.to_string() }).collect()
    }

    pub(super) fn expiries(&self) -> Vec<Expiry> {
        self.all.iter().map(|(_, expiry)| expiry.clone()).collect()
    }

    /// Returns the certificates for a name, the exact ones first; all of them where none is for it.
    fn for_name(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase).unwrap_or_default();
        // A wildcard stands for one label.
        let parent = name.find('.').filter(|dot| *dot > 0).and_then(|dot| name.get(dot..));
        let exact = self.by_name.get(name.as_str()).filter(|_| !name.starts_with('.'));
        let found = [exact, parent.and_then(|parent| self.by_name.get(parent))];
        let found: Vec<usize> = found.into_iter().flatten().flatten().copied().collect();
        let all = if found.is_empty() { 0..self.all.len() } else { 0..0 };
        found.into_iter().chain(all).filter_map(|index| self.all.get(index)).map(|(key, _)| key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let mut for_name = self.for_name(hello.server_name());
        for_name.find(|certified| certified.key.choose_scheme(schemes).is_some()).cloned()
    }
}

/// Reads a chain and its key; returns the names that the certificate is for, and when it expires.
fn load(named: &Named, provider: &CryptoProvider) -> Result<(CertifiedKey, Vec<String>, i64), String> {
    let Named { settings: [chain_setting, key_setting], files } = named;
    let (chain_file, key_file) = (files.chain.display(), files.key.display());
    let chain = read(&files.chain, chain_setting)?;
    let (names, not_after) = chain
        .first()
        .and_then(|certificate| describe(certificate))
        .ok_or_else(|| format!("{chain_setting}: {chain_file}: its first certificate cannot be read"))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("{key_setting}: {key_file}: no private key found: {error}"))?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        format!(
            "{key_setting}: {key_file}: must be the key of the first certificate of {chain_file}: {error}"
        )
    })?;
    Ok((certified, names, not_after))
}

/// Reads the certificates of a file.
///
/// # Errors
/// One line that begins with `setting` and names the file.
pub(super) fn read(file: &Path, setting: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| format!("{setting}: {}: {error}", file.display()))?;
    if found.is_empty() {
        return Err(format!(
            "{setting} {}: no certificate found (-----BEGIN CERTIFICATE-----)",
            file.display()
        ));
    }
    Ok(found)
}

/// Returns the names of hosts that a certificate is for, and when it expires.
fn describe(certificate: &CertificateDer<'_>) -> Option<(Vec<String>, i64)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.map(|extension| extension.value.general_names.iter());
    let names = alternatives.into_iter().flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    });
    Some((names.collect(), parsed.validity().not_after.timestamp()))
}

/// Returns the address of 4 or 16 bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use mainstay::server::rustls::crypto::ring;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificates(folder: &Path, names: &[&[&str]]) -> Certificates {
        std::fs::create_dir_all(folder).unwrap();
        let files: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(at, names)| {
                let key = KeyPair::generate().unwrap();
                let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
                let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
                let files = super::super::CertificateFiles {
                    chain: folder.join(format!("{at}.pem")),
                    key: folder.join(format!("{at}.key")),
                };
                std::fs::write(&files.chain, certificate.pem()).unwrap();
                std::fs::write(&files.key, key.serialize_pem()).unwrap();
                Named { settings: ["certificates"; 2], files }
            })
            .collect();
        Certificates::load(&files, &ring::default_provider()).unwrap()
    }

    #[test]
    fn a_client_gets_the_certificate_for_its_name_and_else_the_first() {
        let folder = std::env::temp_dir().join(format!("mainstay-sni-{}", std::process::id()));
        let found = certificates(
            &folder,
            &[&["default.example"], &["a.example", "*.b.example"], &["x.b.example"], &["a.example"]],
        );
        let check = |name: Option<&str>, expected: &[usize]| {
            let index = |key: &Arc<CertifiedKey>| {
                found.all.iter().position(|(one, _)| Arc::ptr_eq(one, key)).unwrap()
            };
            assert_eq!(found.for_name(name).map(index).collect::<Vec<_>>(), expected, "{name:?}");
        };
        check(Some("a.example"), &[1, 3]);
        check(Some("A.Example"), &[1, 3]);
        check(Some("y.b.example"), &[1]);
        check(Some("x.b.example"), &[2, 1]);
        check(Some("b.example"), &[0, 1, 2, 3]);
        check(Some("z.y.b.example"), &[0, 1, 2, 3]);
        check(Some(".b.example"), &[0, 1, 2, 3]);
        check(Some("other.example"), &[0, 1, 2, 3]);
        check(None, &[0, 1, 2, 3]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
