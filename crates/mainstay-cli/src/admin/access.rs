//! Which requests the admin listener answers: from whom, for which host, and which of them may change something.
//!
//! - Health checks and the console's page are for everyone. The page holds no data.
//! - Everything else needs the token or a certificate of the client, where one of them is set: either of the two is enough.
//!   Wrong tokens are limited by address (`guesses`); a wrong certificate fails in the handshake.
//! - Without the token, the Host must be a name of this machine or of its certificate: a page whose name was rebound to this
//!   address sends its own name (DNS rebinding). What changes something also needs a header or a content type that a page of
//!   another site cannot send without this listener's consent (CSRF), and no Origin of another site. Browsers send
//!   certificates by themselves, as they do nothing of a token.
//!
//! A Unix socket has neither problem: no page can reach it, and the mode of its file decides who can.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::foreign::{bare, hosts, is_json, is_local, is_same_site};
use super::guesses::Guesses;
use crate::clients::client_tls::Hosts;
use crate::observe::refusals::{Refusal, Refusals};

/// The header that a request without a token needs to change something; its value does not matter.
pub(super) const INTENT: &str = "x-mainstay-admin";

/// How a connection reached the admin listener.
#[derive(Debug, Clone, Copy)]
pub(super) enum CameBy {
    /// Over TCP: the address that it came in by, that of the peer, and whether the peer presented a certificate of the
    /// configured authorities.
    Tcp { local: Option<IpAddr>, peer: Option<IpAddr>, has_certificate: bool },
    /// Over a Unix socket.
    Unix,
}

impl CameBy {
    pub(super) fn tcp(local: Option<SocketAddr>, peer: Option<SocketAddr>) -> Self {
        let (local, peer) = (local.map(|local| local.ip()), peer.map(|peer| peer.ip()));
        Self::Tcp { local, peer, has_certificate: false }
    }

    pub(super) fn with_certificate(self) -> Self {
        match self {
            Self::Tcp { local, peer, .. } => Self::Tcp { local, peer, has_certificate: true },
            Self::Unix => self,
        }
    }
}

/// The rules of the module, and what they count. Cheap to clone.
#[derive(Clone)]
pub(super) struct Access {
    keys: Keys,
    guesses: Arc<Mutex<Guesses>>,
    refusals: Refusals,
}

impl Access {
    pub(super) fn new(keys: Keys, refusals: Refusals) -> Self {
        Self { keys, guesses: Arc::default(), refusals }
    }

    /// Passes a request on, or responds why not.
    pub(super) async fn check(State(access): State<Self>, request: Request, next: Next) -> Response {
        match access.judge(&request) {
            Ok(()) => next.run(request).await,
            Err((refusal, response)) => {
                refusal.into_iter().for_each(|why| access.refusals.count(why));
                *response
            }
        }
    }

    fn judge(&self, request: &Request) -> Result<(), (Option<Refusal>, Box<Response>)> {
        let refuse = |why, status: StatusCode, line: &str| {
            Err((why, Box::new((status, format!("{line}\n")).into_response())))
        };
        let Some(names) = hosts(request) else {
            let line = "the request needs one valid Host, and a path or a URL as its target";
            return refuse(None, StatusCode::BAD_REQUEST, line);
        };
        let nowhere = CameBy::tcp(None, None);
        let came_by = request.extensions().get().copied().unwrap_or(nowhere);
        let is_open = matches!(request.uri().path(), "/healthz" | "/readyz" | "/");
        let Keys { token, asks_for_certificates, hosts } = &self.keys;
        let has_certificate = matches!(came_by, CameBy::Tcp { has_certificate: true, .. });
        let is_locked = token.is_some() || *asks_for_certificates;
        if is_locked && is_open {
            return Ok(());
        }
        if is_locked && !has_certificate {
            return self.judge_token(token.as_ref(), request.headers(), came_by);
        }
        if let Some(token) = token
            && token.is_presented(request.headers())
        {
            return Ok(());
        }
        let CameBy::Tcp { local, .. } = came_by else { return Ok(()) };
        if !names.iter().all(|name| is_local(name.host(), local) || hosts.contain(&bare(name.host()))) {
            let line = "the Host of this request is neither a local name nor one of the certificate of this listener: use \
                        localhost or this listener's address, or start with --admin-token-file to accept any name";
            return refuse(Some(Refusal::Host), StatusCode::MISDIRECTED_REQUEST, line);
        }
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        if changes && !(shows_intent(request.headers()) && is_same_site(request.headers(), &names)) {
            let line = "a request that changes something needs the header X-Mainstay-Admin (any value) or the content \
                        type application/json, and no Origin of another site";
            return refuse(Some(Refusal::Intent), StatusCode::FORBIDDEN, line);
        }
        Ok(())
    }

    fn judge_token(
        &self,
        token: Option<&Token>,
        headers: &HeaderMap,
        came_by: CameBy,
    ) -> Result<(), (Option<Refusal>, Box<Response>)> {
        let peer = match came_by {
            CameBy::Tcp { peer, .. } => peer,
            CameBy::Unix => None,
        };
        let (now, address) = (Instant::now(), peer.unwrap_or(IpAddr::from([0; 4])).to_canonical());
        let mut guesses = self.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = guesses.wait(now, address) {
            return Err((Some(Refusal::Guesses), Box::new(too_many(wait))));
        }
        if token.is_some_and(|token| token.is_presented(headers)) {
            return Ok(());
        }
        // A request without a token is no guess: a browser, or a scraper that lacks its configuration.
        if token.is_some()
            && headers.contains_key(header::AUTHORIZATION)
            && let Some(count) = guesses.handle_wrong(now, address)
        {
            tracing::warn!(%address, count, "wrong tokens at the admin listener");
        }
        Err((Some(Refusal::Token), Box::new(self.unauthorized())))
    }
}

impl Access {
    fn unauthorized(&self) -> Response {
        let Keys { token, asks_for_certificates, .. } = &self.keys;
        let by_token = "send the token of --admin-token-file as Authorization: Bearer TOKEN";
        let by_certificate = "present a certificate of the authorities of admin.tls.client-ca";
        let line = match (token, asks_for_certificates) {
            (Some(_), true) => format!("{by_token}, or {by_certificate}\n"),
            (Some(_), false) => format!("{by_token}\n"),
            _ => format!("{by_certificate}\n"),
        };
        let status = StatusCode::UNAUTHORIZED;
        match token {
            Some(_) => (status, [(header::WWW_AUTHENTICATE, "Bearer")], line).into_response(),
            None => (status, line).into_response(),
        }
    }
}

/// What opens the admin listener, and the hosts that its certificates are for.
#[derive(Clone, Default)]
pub(crate) struct Keys {
    pub(crate) token: Option<Token>,
    /// A certificate of the client opens it, too.
    pub(crate) asks_for_certificates: bool,
    pub(crate) hosts: Hosts,
}

fn too_many(wait: Duration) -> Response {
    let seconds = wait.as_secs_f64().ceil() as u64;
    let line = format!("too many wrong tokens from this address: wait {seconds} s\n");
    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())], line).into_response()
}

/// Returns whether the request has what a page of another site may send only after a preflight, which this listener refuses.
fn shows_intent(headers: &HeaderMap) -> bool {
    headers.contains_key(INTENT) || is_json(headers)
}

/// The secret that the admin listener requires. Only its hash is kept. All clones change together.
#[derive(Clone)]
pub(crate) struct Token {
    file: PathBuf,
    hash: Arc<RwLock<TokenHash>>,
}

/// What is kept of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenHash([u8; 32]);

/// Length of a token in bytes. Shorter tokens can be guessed.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 16..=1024;

impl Token {
    /// Reads a token from the only line of a file.
    ///
    /// # Errors
    /// Names the file and what is wrong; never quotes its content.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let hash = Arc::new(RwLock::new(TokenHash::read(file)?));
        Ok(Self { file: file.to_owned(), hash })
    }

    /// Reads the file again, and changes nothing yet.
    ///
    /// # Errors
    /// As [`Token::read`].
    pub(crate) fn read_again(&self) -> Result<TokenHash, String> {
        TokenHash::read(&self.file)
    }

    /// Requires another token from now on. Returns whether it is another one.
    pub(crate) fn replace(&self, by: TokenHash) -> bool {
        let mut hash = self.hash.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *hash, by) != by
    }

    /// Compares in constant time.
    fn is_presented(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let (scheme, token) = value.split_at_checked(b"Bearer ".len()).unwrap_or_default();
        let TokenHash(presented) = TokenHash::of(token.trim_ascii());
        let TokenHash(ours) = *self.hash.read().unwrap_or_else(PoisonError::into_inner);
        let differs = presented.iter().zip(ours).fold(0, |differs, (theirs, ours)| differs | (theirs ^ ours));
        scheme.eq_ignore_ascii_case(b"Bearer ") && differs == 0
    }
}

impl TokenHash {
    fn read(file: &Path) -> Result<Self, String> {
        let wrong = |what: &str| format!("{}: {what}", file.display());
        let mut text = String::new();
        std::fs::File::open(file)
            .and_then(|file| file.take(*TOKEN_LENGTH.end() as u64 + 2).read_to_string(&mut text))
            .map_err(|error| wrong(&format!("{error}; name a readable file")))?;
        let token = text.trim_end_matches(['\r', '\n']);
        if !TOKEN_LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong(
                "must hold one line of 16 to 1024 letters, digits and punctuation, without spaces",
            ));
        }
        Ok(Self::of(token.as_bytes()))
    }

    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_accepted() {
        let hash = Arc::new(RwLock::new(TokenHash::of(b"0123456789abcdef")));
        let token = Token { file: PathBuf::new(), hash };
        let check = |value: &str, expected| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(token.is_presented(&headers), expected, "{value}");
        };
        check("Bearer 0123456789abcdef", true);
        check("bearer 0123456789abcdef", true);
        for wrong in
            ["", "Bearer", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer 0123456789abcde"]
        {
            check(wrong, false);
        }
        assert!(!token.is_presented(&HeaderMap::new()));
    }

    #[test]
    fn a_page_of_another_site_shows_no_intent() {
        let check = |fields: &[(&str, &str)], expected| {
            let fields = fields.iter().map(|(name, value)| {
                (header::HeaderName::try_from(*name).unwrap(), header::HeaderValue::from_str(value).unwrap())
            });
            let headers = HeaderMap::from_iter(fields);
            let names = ["localhost:9090".parse().unwrap()];
            assert_eq!(shows_intent(&headers) && is_same_site(&headers, &names), expected, "{headers:?}");
        };
        let (json, local) =
            (("content-type", "application/json; charset=utf-8"), ("origin", "http://localhost:9090"));
        check(&[], false);
        check(&[("content-type", "text/plain")], false);
        check(&[("content-type", "application/json+x")], false);
        check(&[("content-type", "text/plain;application/json")], false);
        check(&[json], true);
        check(&[(INTENT, "")], true);
        check(&[json, local], true);
        check(&[json, ("origin", "http://localhost:3000")], false);
        check(&[json, ("origin", "http://evil.example")], false);
        check(&[json, ("origin", "null")], false);
    }
}
