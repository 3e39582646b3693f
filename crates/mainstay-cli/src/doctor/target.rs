//! What the doctor examines: where it connects, what it adds to the request, and what it never shows.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use http::uri::Uri;
use http::{HeaderMap, HeaderName, HeaderValue};
use mainstay::client::Place;
use mainstay::client::rustls::client::danger::ServerCertVerifier;
use mainstay::client::rustls::client::{ClientConfig, Resumption};
use mainstay::client::rustls::crypto::ring;
use mainstay::client::rustls::pki_types::ServerName;

use super::first_message::FirstMessage;
use super::report::TargetFacts;
use crate::observe::log_text;
use crate::tls;

/// The longest text of a server that the report shows, in characters.
const MAX_TEXT: usize = 256;
/// A value that is shorter is hidden only where it is the whole text: it would be found everywhere.
const SHORT: usize = 4;

/// Where and how to connect. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Target {
    shared: Arc<Shared>,
    /// The address that all connections go to; `None`: it is not known yet.
    address: Option<SocketAddr>,
    /// Whether the server answers a first message, as far as is known.
    answers_first: bool,
}

struct Shared {
    place: Place,
    host: String,
    port: u16,
    is_secure: bool,
    headers: HeaderMap,
    subprotocols: Vec<String>,
    first_message: Option<FirstMessage>,
    verifier: Arc<dyn ServerCertVerifier>,
    config: Arc<ClientConfig>,
    secrets: Vec<String>,
}

impl Target {
    /// Creates a target. `headers` are added to the request. Each connection sends `first_message`. `ca`: trust these certificates
    /// instead of the system's.
    ///
    /// # Errors
    /// Begins with the flag or the field, and says what to do.
    pub(crate) fn new(
        place: Place,
        headers: Vec<(HeaderName, HeaderValue)>,
        subprotocols: Vec<String>,
        first_message: Option<FirstMessage>,
        ca: Option<&Path>,
    ) -> Result<Self, String> {
        let verifier = tls::verifier(ca).map_err(|error| error.replacen("ca", "--cacert", 1))?;
        let config = config(&verifier, &[b"http/1.1"])?;
        let is_secure = place.url.scheme_str() == Some("wss");
        let (host, port) = place.host_and_port().map_err(|error| error.to_string())?;
        let secrets = secrets(&place.url, &headers, first_message.as_ref());
        let headers = headers.into_iter().fold(HeaderMap::new(), |mut map, (name, mut value)| {
            value.set_sensitive(true);
            map.append(name, value);
            map
        });
        let shared = Shared {
            place,
            host,
            port,
            is_secure,
            headers,
            subprotocols,
            first_message,
            verifier,
            config,
            secrets,
        };
        let answers_first = shared.first_message.is_some();
        Ok(Self { shared: Arc::new(shared), address: None, answers_first })
    }

    /// Returns the same target at one address of its name.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        Self { address: Some(address), ..self.clone() }
    }

    /// Returns the same target, whose server does not answer a first message.
    pub(crate) fn without_answer(&self) -> Self {
        Self { answers_first: false, ..self.clone() }
    }

    /// Returns whether a first message is sent and its answer is worth waiting for.
    pub(super) fn answers_first(&self) -> bool {
        self.answers_first
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Returns the Unix socket, if the target is one.
    pub(crate) fn socket(&self) -> Option<&Path> {
        self.shared.place.socket.as_deref()
    }

    pub(crate) fn url(&self) -> &Uri {
        &self.shared.place.url
    }

    pub(super) fn host_field(&self) -> String {
        self.shared.place.host_field()
    }

    pub(crate) fn host(&self) -> &str {
        &self.shared.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.shared.port
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.shared.is_secure
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.shared.headers
    }

    pub(crate) fn subprotocols(&self) -> &[String] {
        &self.shared.subprotocols
    }

    pub(super) fn first_message(&self) -> Option<&FirstMessage> {
        self.shared.first_message.as_ref()
    }

    pub(super) fn config(&self) -> &Arc<ClientConfig> {
        &self.shared.config
    }

    pub(super) fn verifier(&self) -> &Arc<dyn ServerCertVerifier> {
        &self.shared.verifier
    }

    /// Returns the name to verify; `None`: the host is neither a name nor an address.
    pub(super) fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.shared.host.clone()).ok()
    }

    /// Returns text of a server for the report: cut, without what the user wants to keep secret, and with escapes for what a
    /// terminal acts on.
    pub(crate) fn shown(&self, text: &str) -> String {
        let mut out: String = text.chars().take(MAX_TEXT).collect();
        let is_cut = out.len() < text.len();
        for secret in &self.shared.secrets {
            if secret.len() >= SHORT {
                out = out.replace(secret, "...");
                // The cut may have left its beginning.
                let begun = (SHORT..secret.len()).rev().filter_map(|end| secret.get(..end));
                if is_cut && let Some(begun) = begun.into_iter().find(|begun| out.ends_with(begun)) {
                    out.truncate(out.len() - begun.len());
                }
            } else if out == *secret {
                return "...".to_owned();
            }
        }
        if is_cut {
            out.push_str("...");
        }
        // It leaves the newline at the end of a line.
        out.push('\n');
        log_text::escape(&out, false, false).trim_end_matches('\n').to_owned()
    }

    /// Returns what the report says of the target.
    pub(crate) fn facts(&self, is_near: bool) -> TargetFacts {
        let shared = &self.shared;
        let path = shared.place.url.path_and_query();
        let shown = path.map_or_else(|| "/".to_owned(), |path| without_values(path.as_str()));
        let url = match &shared.place.socket {
            Some(socket) => {
                let scheme = if shared.is_secure { "wss+unix" } else { "unix" };
                format!("{scheme}:{}:{shown}", socket.display())
            }
            None => {
                let authority = shared.place.url.authority().map_or("", |authority| authority.as_str());
                format!("{}://{authority}{shown}", if shared.is_secure { "wss" } else { "ws" })
            }
        };
        TargetFacts {
            url,
            host: shared.host.clone(),
            port: shared.port,
            secure: shared.is_secure,
            added_fields: shared.headers.keys().map(ToString::to_string).collect(),
            subprotocols: shared.subprotocols.clone(),
            sends_first_message: shared.first_message.is_some(),
            is_near,
        }
    }
}

/// Builds a configuration of TLS that resumes nothing, so that every connection shows the certificates.
///
/// # Errors
/// The versions of TLS do not fit the cryptography, which does not happen.
pub(super) fn config(
    verifier: &Arc<dyn ServerCertVerifier>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::clone(verifier));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Returns whether an address is of this machine or of a private network: loopback, private, link-local, unique local.
pub(crate) fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_unspecified()
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_unspecified()
        }
    }
}

/// Replaces the values of a query by dots: they are often tokens.
pub(crate) fn without_values(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let hidden = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) => format!("{name}=..."),
        None if pair.is_empty() => String::new(),
        None => "...".to_owned(),
    });
    format!("{path}?{}", hidden.collect::<Vec<_>>().join("&"))
}

/// Returns 32 random bytes.
pub(crate) fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    // Its randomness protects caches on the way; without it the frames are still right.
    let _ = getrandom::fill(&mut seed);
    seed
}

/// Returns everything that must not appear in the output, even if the server sends it back; the longest first.
fn secrets(
    url: &Uri,
    headers: &[(HeaderName, HeaderValue)],
    first_message: Option<&FirstMessage>,
) -> Vec<String> {
    let values = headers.iter().filter_map(|(_, value)| value.to_str().ok());
    // The server may send back a token without its scheme, or one cookie of several.
    let parts =
        values.flat_map(|value| std::iter::once(value).chain(value.split([' ', ';', ',', '=']).skip(1)));
    let query = url.query().unwrap_or_default();
    let pairs = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    let decoded = form_urlencoded::parse(query.as_bytes()).map(|(_, value)| value.into_owned());
    let given = parts.chain(pairs).map(|text| text.trim().to_owned());
    let sent = first_message.into_iter().flat_map(FirstMessage::secrets);
    let mut all: Vec<String> = given.chain(decoded).chain(sent).collect();
    all.retain(|secret| !secret.is_empty());
    all.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str, header: Option<(&str, &str)>) -> Target {
        let headers = header.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Target::new(url.parse().unwrap(), headers.into_iter().collect(), Vec::new(), None, None).unwrap()
    }

    #[test]
    fn text_of_a_server_is_cut_and_shows_no_value_of_the_request() {
        let target = target("ws://h/a?token=geheim%21x&n=1", Some(("authorization", "Bearer s3cret")));
        let check = |text: &str, expected: &str| assert_eq!(target.shown(text), expected);
        check("you sent Bearer s3cret", "you sent ...");
        check("token s3cret is old", "token ... is old");
        check("geheim!x, geheim%21x", "..., ...");
        check("1", "...");
        check("HTTP/1.1", "HTTP/1.1");
        check("a\u{1b}[2J\u{9b}b\n\n", "a\\u{1b}[2J\\u{9b}b\\n\\n");
        let cut = format!("{}s3cret", "x".repeat(MAX_TEXT - 5));
        assert!(!target.shown(&cut).contains("s3cr"));
        assert_eq!(target.shown(&"ä".repeat(1000)).chars().count(), MAX_TEXT + 3);
    }

    #[test]
    fn the_url_in_the_report_has_no_values_of_the_query() {
        let check = |url: &str, expected: &str| assert_eq!(target(url, None).facts(true).url, expected);
        check("wss://h:1/a?token=x&b", "wss://h:1/a?token=...&...");
        check("ws://[::1]/", "ws://[::1]/");
        check("unix:/run/app.sock:/a?t=x", "unix:/run/app.sock:/a?t=...");
        check("wss+unix:/run/app.sock", "wss+unix:/run/app.sock:/");
    }

    #[test]
    fn addresses_of_this_machine_and_of_private_networks_are_near() {
        for near in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "169.254.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "0.0.0.0",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_near(near.parse().unwrap()), "{near}");
        }
        for foreign in ["192.0.2.1", "100.64.0.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            assert!(!is_near(foreign.parse().unwrap()), "{foreign}");
        }
    }
}
