//! `[routes.NAME.credentials]`: the settings, and what is wrong with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use mainstay::client::Place;

use super::certificate::{self, Part};
use super::hook;
use super::jwks::{Jwks, Lives};
use super::jwt::{RuleBook, Rules};
use super::key_source::KeySource;
use super::keys::Signing;
use super::token::Place as TokenPlace;
use crate::config::duration;
use crate::config::text::{Expected, Text, Written};
use crate::http_client::HttpClient;
use crate::request::forward;
use crate::values;

/// The clients that may use a route: those with a client certificate, those whose token is valid, or that the connect hook
/// admits. With several, all of them must agree, in this order.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// Requires a certificate of <tls.client-ca>, also where TLS does not. Default: none is required.
    pub(crate) client_certificate: Option<ClientCertificate>,
    /// Requires a JSON Web Token. Default: none is required.
    pub(crate) jwt: Option<Jwt>,
    /// Asks a backend of yours about each opening. Default: none is asked.
    pub(crate) connect_hook: Option<ConnectHook>,
    /// Where the token stands, in the order of preference: `session` (the credentials of a client that speaks mainstay.v1),
    /// `header:NAME` (behind `Bearer`), `cookie:NAME`, `query:NAME`. A query appears in the logs of proxies on the way; the
    /// gateway removes it from the request. Default: `session` and `header:Authorization`.
    pub(crate) from: Vec<Text<TokenPlace>>,
    /// Whether a client must present a token. `false`: one without a token is admitted without a subject and without the headers
    /// of claims; a token that is presented must be valid all the same. Belongs to `jwt`. Default: true.
    pub(crate) required: bool,
    /// Requires credentials of plain HTTP requests, too. `false`: they pass without the headers that credentials set, for a
    /// route that also serves pages. Default: true.
    pub(crate) check_http: bool,
    /// Passes a token that was accepted on to the backend: in its header or cookie, one from elsewhere in `Authorization`.
    /// Default: true.
    pub(crate) forward_token: bool,
    /// How long after the expiry of its credentials a client that speaks mainstay.v1 may present others before its session
    /// ends with 4501. A plain connection has no such way and is closed at the expiry. Default: 30s. Range: 0s to 10m.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) grace: Duration,
}

/// What is made of the certificate of a client.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct ClientCertificate {
    /// The part that names the user: sessions belong to it, and limits and revocations go by it, unless a token names the
    /// user. `subject` (the whole distinguished name), `common-name`, `uri`, `dns`, `email` (of the alternative names), or
    /// `fingerprint` (SHA-256). A certificate that does not have exactly one is refused. Default: subject.
    pub(crate) subject: Part,
    /// The headers that the backend gets, each with the part that it holds. A client's own headers of these names are
    /// removed. The whole certificate is in `Client-Cert` in any case. Default: none.
    pub(crate) parts_as_headers: BTreeMap<String, Part>,
}

/// Which tokens are valid.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Jwt {
    /// A file with the keys: public keys in PEM, a JSON Web Key or a set of them, or else the secret of HS256 itself, of at
    /// least 32 bytes. Read again at each reload. Default: none; this or `jwks-url` is required.
    pub(crate) keys_file: Option<PathBuf>,
    /// The https:// URL of the issuer's keys (JWKS); http:// only on this machine. While the issuer is away, the keys known
    /// before stay in use for `jwks-max-stale`. Redirects are not followed. Default: none.
    pub(crate) jwks_url: Option<String>,
    /// Trusts the certificates in this file (PEM) for `jwks-url` instead of the system's. Default: the system's.
    pub(crate) jwks_ca_file: Option<PathBuf>,
    /// How long the keys are fresh where the issuer does not say so by `Cache-Control` or `Expires`. They are fetched again a
    /// little before; a token of an unknown key has them fetched at once, at most every 10 s. Default: 10m. Range: 10s to 1day.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) jwks_refresh: Duration,
    /// How long the keys are fresh at least, whatever the issuer says. Default: 1m. Range: 10s to 1day.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) jwks_min_refresh: Duration,
    /// How long the keys are fresh at most, whatever the issuer says: a key that it withdraws is accepted for this long.
    /// Default: 1h. Range: `jwks-min-refresh` to 30days.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) jwks_max_refresh: Duration,
    /// How long keys that are no longer fresh stay in use while the issuer is away. After that clients get 503, sessions 4414,
    /// until the keys can be fetched. Default: 1day. Range: 0s to 30days.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) jwks_max_stale: Duration,
    /// How tokens may be signed: HS256, RS256, ES256, EdDSA. A key is used for its own algorithm only. Default: all four.
    pub(crate) algorithms: Vec<Signing>,
    /// The issuers that are accepted (`iss`); with one, each token must name one. Default: none, `iss` is not looked at.
    pub(crate) issuer: Vec<String>,
    /// The audiences that are accepted (`aud`); with one, each token must name one. Default: none, `aud` is not looked at.
    pub(crate) audience: Vec<String>,
    /// How far the clocks of the issuer and of this machine may differ: added to `exp`, taken from `nbf`. Default: 30s.
    /// Range: 0s to 10m, in whole seconds.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) leeway: Duration,
    /// The claims that each token must have. Default: `exp`.
    pub(crate) required_claims: Vec<String>,
    /// The claim that names the user: sessions belong to it, and limits and revocations go by it. Default: `sub`.
    pub(crate) subject_claim: String,
    /// The headers that the backend gets, each with the claim that it holds: a name, or a JSON pointer such as
    /// `/realm_access/roles`. A text is passed as it is, anything else as JSON. A client's own headers of these names are
    /// removed. Default: none.
    pub(crate) claims_as_headers: BTreeMap<String, String>,
}

/// The backend of yours that decides about each opening.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct ConnectHook {
    /// Where to send the POST with the client's request as JSON, for example http://127.0.0.1:3000/connect. Required.
    pub(crate) url: String,
    /// Trusts the certificates in this file (PEM) for an https:// URL instead of the system's. Default: the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// How long the hook may take. Default: 3s. Range: 10ms to 4s, less than the opening deadline.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) timeout: Duration,
    /// Headers of the request to the hook. A value `@/path` is read from that file: write secrets so. Default: none.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) headers: BTreeMap<String, String>,
    /// The headers for the backend that the hook may set in its answer. A client's own headers of these names are removed.
    /// Default: none.
    pub(crate) sets_headers: Vec<String>,
    /// Admits clients, without a subject, while the hook does not decide: it is away, too slow, or its answer is none of 2xx,
    /// 401 and 403. `false`: they get 503, sessions 4414, and come back. Default: false.
    pub(crate) allow_on_failure: bool,
    /// How many requests may be under way; others wait, within `timeout`. Default: 64. Range: 1 to 10000.
    pub(crate) concurrency: usize,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            client_certificate: None,
            jwt: None,
            connect_hook: None,
            from: ["session", "header:Authorization"]
                .iter()
                .filter_map(|place| Text::new(place).ok())
                .collect(),
            required: true,
            check_http: true,
            forward_token: true,
            grace: Duration::from_secs(30),
        }
    }
}

impl Default for ClientCertificate {
    fn default() -> Self {
        Self { subject: Part::Subject, parts_as_headers: BTreeMap::new() }
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            keys_file: None,
            jwks_url: None,
            jwks_ca_file: None,
            jwks_refresh: Duration::from_secs(600),
            jwks_min_refresh: Duration::from_secs(60),
            jwks_max_refresh: Duration::from_secs(3600),
            jwks_max_stale: DAY,
            algorithms: Signing::ALL.to_vec(),
            issuer: Vec::new(),
            audience: Vec::new(),
            leeway: Duration::from_secs(30),
            required_claims: vec!["exp".into()],
            subject_claim: "sub".into(),
            claims_as_headers: BTreeMap::new(),
        }
    }
}

impl Default for ConnectHook {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca_file: None,
            timeout: Duration::from_secs(3),
            headers: BTreeMap::new(),
            sets_headers: Vec::new(),
            allow_on_failure: false,
            concurrency: 64,
        }
    }
}

/// The longest grace and leeway.
const TEN_MINUTES: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Section {
    /// Whether the route asks for credentials at all.
    pub(crate) fn is_active(&self) -> bool {
        self.client_certificate.is_some() || self.jwt.is_some() || self.connect_hook.is_some()
    }

    /// Checks every field, and the files that they name.
    ///
    /// # Errors
    /// One line that names the field, its bound and what to write.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.from.is_empty() && self.jwt.is_some() {
            return Err("from: must name a place of the token, write for example [\"session\"]".into());
        }
        if !self.required && self.jwt.is_none() {
            return Err("required: belongs to jwt, and a connect-hook decides itself; remove it".into());
        }
        if self.grace > TEN_MINUTES {
            return Err("grace: must be at most 10m, write for example \"30s\"".into());
        }
        if let Some(certificate) = &self.client_certificate {
            certificate.rules().map_err(|error| format!("client-certificate.{error}"))?;
        }
        if let Some(jwt) = &self.jwt {
            jwt.check().and_then(|()| jwt.keys()).map_err(|error| format!("jwt.{error}"))?;
        }
        if let Some(hook) = &self.connect_hook {
            hook.check().and_then(|()| hook.hook()).map_err(|error| format!("connect-hook.{error}"))?;
        }
        Ok(())
    }

    /// Returns the files that a change of which takes effect at a reload.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let jwt = self.jwt.iter().flat_map(|jwt| [&jwt.keys_file, &jwt.jwks_ca_file]);
        let hook = self.connect_hook.iter();
        let named =
            hook.clone().flat_map(|hook| hook.headers.values()).filter_map(|value| value.strip_prefix('@'));
        let named = named.map(PathBuf::from);
        jwt.chain(hook.map(|hook| &hook.ca_file)).flatten().cloned().chain(named).collect()
    }

    /// Returns where the token may stand.
    pub(super) fn places(&self) -> Vec<TokenPlace> {
        self.from.iter().map(|place| (**place).clone()).collect()
    }
}

impl ClientCertificate {
    pub(super) fn rules(&self) -> Result<certificate::Rules, String> {
        let field = |(name, part): (&String, &Part)| {
            let name = backend_header(name).map_err(|error| format!("parts-as-headers: {error}"))?;
            Ok((name, *part))
        };
        let fields = self.parts_as_headers.iter().map(field).collect::<Result<_, String>>()?;
        Ok(certificate::Rules { subject: self.subject, fields })
    }
}

impl Jwt {
    fn check(&self) -> Result<(), String> {
        match (&self.keys_file, &self.jwks_url) {
            (None, None) => {
                return Err(
                    "keys-file: this or jwks-url is required, write for example \"/etc/mainstay/jwt.pem\""
                        .into(),
                );
            }
            (Some(_), Some(_)) => {
                return Err("jwks-url: cannot be set together with keys-file; remove one".into());
            }
            (None, Some(_)) => drop(self.url()?),
            (Some(_), None) if self.jwks_ca_file.is_some() => {
                return Err("jwks-ca-file: belongs to jwks-url; remove it".into());
            }
            (Some(_), None) => {}
        }
        self.check_lives()?;
        if self.algorithms.is_empty() {
            return Err("algorithms: must name at least one of HS256, RS256, ES256, EdDSA".into());
        }
        if self.leeway > TEN_MINUTES || self.leeway.subsec_nanos() > 0 {
            return Err("leeway: must be whole seconds, at most 10m, write for example \"30s\"".into());
        }
        for (field, names) in [
            ("issuer", &self.issuer),
            ("audience", &self.audience),
            ("required-claims", &self.required_claims),
        ] {
            if names.iter().any(String::is_empty) {
                return Err(format!("{field}: must not have an empty name; remove it"));
            }
        }
        if self.subject_claim.is_empty() {
            return Err("subject-claim: must name a claim, write for example \"sub\"".into());
        }
        self.fields().map(drop)
    }

    fn check_lives(&self) -> Result<(), String> {
        let often = Duration::from_secs(10)..=DAY;
        if !often.contains(&self.jwks_refresh) {
            return Err("jwks-refresh: must be between 10s and 1day, write for example \"10m\"".into());
        }
        if !often.contains(&self.jwks_min_refresh) {
            return Err("jwks-min-refresh: must be between 10s and 1day, write for example \"1m\"".into());
        }
        if !(self.jwks_min_refresh..=30 * DAY).contains(&self.jwks_max_refresh) {
            return Err(
                "jwks-max-refresh: must be between jwks-min-refresh and 30days, write for example \"1h\""
                    .into(),
            );
        }
        if self.jwks_max_stale > 30 * DAY {
            return Err("jwks-max-stale: must be at most 30days, write for example \"1day\"".into());
        }
        Ok(())
    }

    pub(super) fn rules(&self) -> Result<Rules, String> {
        Ok(Rules::new(RuleBook {
            issuers: &self.issuer,
            audiences: &self.audience,
            leeway: self.leeway,
            subject_claim: &self.subject_claim,
            required: &self.required_claims,
            fields: self.fields()?,
        }))
    }

    fn fields(&self) -> Result<Vec<(HeaderName, Box<str>)>, String> {
        let field = |(name, claim): (&String, &String)| {
            if claim.is_empty() {
                return Err(format!(
                    "claims-as-headers: {name}: must name a claim, write for example \"sub\""
                ));
            }
            let name = backend_header(name).map_err(|error| format!("claims-as-headers: {error}"))?;
            Ok((name, claim.as_str().into()))
        };
        self.claims_as_headers.iter().map(field).collect()
    }

    /// Returns the URL of the keys and the way to them.
    fn url(&self) -> Result<Place, String> {
        let text = self.jwks_url.as_deref().unwrap_or_default();
        let wrong = |why: &str| {
            format!("jwks-url: {why}, write for example \"https://issuer.example/.well-known/jwks.json\"")
        };
        let place: Place = text.parse().map_err(|error| wrong(&format!("{error}")))?;
        let is_here = place.socket.is_some()
            || matches!(place.url.host(), Some("localhost" | "127.0.0.1" | "[::1]" | "::1"));
        let is_secure = matches!(place.url.scheme_str(), Some("https" | "wss"));
        if !is_secure && !is_here {
            return Err(wrong("must be https:// (http:// only for 127.0.0.1, [::1] and localhost)"));
        }
        Ok(place)
    }

    /// Reads the file of the keys, or prepares the requests to the issuer.
    pub(super) fn keys(&self) -> Result<KeySource, String> {
        if let Some(path) = &self.keys_file {
            return KeySource::file(path, &self.algorithms);
        }
        let (url, client) = HttpClient::to(&self.url()?, self.jwks_ca_file.as_deref())
            .map_err(|error| format!("jwks-{error}"))?;
        let lives = Lives {
            unsaid: self.jwks_refresh,
            least: self.jwks_min_refresh,
            most: self.jwks_max_refresh,
            stale: self.jwks_max_stale,
        };
        Ok(KeySource::Url(Jwks::new(url, client, &self.algorithms, lives)))
    }
}

impl ConnectHook {
    fn check(&self) -> Result<(), String> {
        self.place()?;
        if !(Duration::from_millis(10)..=Duration::from_secs(4)).contains(&self.timeout) {
            return Err("timeout: must be between 10ms and 4s, write for example \"3s\"".into());
        }
        if !(1..=10_000).contains(&self.concurrency) {
            return Err("concurrency: must be between 1 and 10000, write for example 64".into());
        }
        self.sets().map(drop)
    }

    fn place(&self) -> Result<Place, String> {
        let parsed = self.url.parse();
        parsed.map_err(|error| format!("url: {error}, write for example \"http://127.0.0.1:3000/connect\""))
    }

    fn sets(&self) -> Result<Vec<HeaderName>, String> {
        let names = self.sets_headers.iter().map(|name| backend_header(name));
        names.collect::<Result<_, _>>().map_err(|error| format!("sets-headers: {error}"))
    }

    /// Returns what the hook needs; reads the files that the headers name.
    pub(super) fn hook(&self) -> Result<hook::Hook, String> {
        let (url, client) = HttpClient::to(&self.place()?, self.ca_file.as_deref())?;
        let header = |(name, value): (&String, &String)| {
            values::upstream_header(&format!("{name}: {value}")).map_err(|error| format!("headers: {error}"))
        };
        let headers: Vec<(HeaderName, HeaderValue)> =
            self.headers.iter().map(header).collect::<Result<_, _>>()?;
        let settings = hook::Settings {
            url,
            timeout: self.timeout,
            concurrency: self.concurrency,
            headers,
            sets: self.sets()?,
            allows_on_failure: self.allow_on_failure,
        };
        Ok(hook::Hook::new(settings, client))
    }
}

/// Parses the name of a header for the backend that says something about the client.
fn backend_header(name: &str) -> Result<HeaderName, String> {
    let parsed: HeaderName =
        name.parse().map_err(|_| format!("{name:?} is no name of a header, write for example X-User"))?;
    let text = parsed.as_str();
    // Those that describe the client are removed from the requests of clients that no proxy vouches for.
    let is_taken = matches!(text, "host" | "content-length" | "trailer" | "cookie")
        || forward::is_hop_by_hop(&parsed)
        || forward::describes_client(&parsed);
    if is_taken || text.contains('_') {
        return Err(format!("{name} cannot be set for the backend; choose another name, for example X-User"));
    }
    Ok(parsed)
}

impl Written for TokenPlace {
    const EXPECTED: Expected = Expected { kind: "place of a token", example: "header:Authorization" };

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}
