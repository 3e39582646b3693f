//! The clients that may use a route: those with a client certificate or a valid token, or that the operator's connect hook
//! admits.
//!
//! A client that speaks `mainstay.v1` is judged by its HELLO, at every attach, and again when it presents other credentials
//! on the live session; the library ends the session once they have expired. Any other client is judged by its request, before
//! the backend hears of it. What was proved becomes the session's principal and headers for the backend, which no client can
//! forge: its own headers of these names are removed first, also where `_` stands for `-`, which CGI treats as the same.
//!
//! `certificate` reads a client certificate, `jwt` checks a token, `hook` asks a backend, `token` finds the token in a request,
//! `subjects` has what is open by subject, `open_response` ends plain responses, and `refusal` has what is said about clients that are not admitted.

mod certificate;
mod figures;
mod hook;
mod jwks;
mod jwt;
mod key_source;
mod keys;
mod open_response;
mod refusal;
mod ring_provider;
mod section;
mod subjects;
#[cfg(test)]
mod test_tokens;
mod token;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode, Uri};
use mainstay::server::rustls::pki_types::CertificateDer;
use mainstay::server::{AuthError, Identity};
use mainstay::{CloseCode, Session};

use self::certificate::Certified;
pub(crate) use self::figures::{CredentialFigures, IssuerFigures};
use self::hook::{Hook, Question};
use self::jwks::Jwks;
use self::jwt::{Proof, Rules};
use self::key_source::KeySource;
use self::open_response::{EndedResponses, Ends};
use self::refusal::{Figures, Reason, Refusal};
pub(crate) use self::section::Section;
pub(crate) use self::subjects::Subjects;
use self::token::{Found, Place, Token};
use crate::clients::client_tls;
use crate::clients::identity::{ClientAddress, Subject};
use crate::request::forward;

/// What the credentials of all routes share.
#[derive(Default)]
pub(crate) struct Access {
    /// What is open by subject, and what was revoked.
    pub(crate) subjects: Arc<Subjects>,
    figures: Figures,
    responses: Arc<EndedResponses>,
    /// The issuers of routes, for metrics.
    issuers: Mutex<Vec<(Box<str>, Weak<Jwks>)>>,
}

/// The credentials of one route.
pub(crate) struct Credentials {
    route: Box<str>,
    places: Vec<Place>,
    /// Whether a client must present a token.
    required: bool,
    check_http: bool,
    forward_token: bool,
    grace: Duration,
    certificate: Option<certificate::Rules>,
    jwt: Option<(Rules, KeySource)>,
    hook: Option<Hook>,
    /// The headers for the backend that credentials set.
    names: Vec<HeaderName>,
    access: Arc<Access>,
    /// The credentials of this route that are in force. They judge also the clients that came before a reload.
    current: Arc<RwLock<Weak<Credentials>>>,
}

/// A client that is admitted.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    pub(crate) subject: Option<Subject>,
    /// The name in the certificate of a client whose token names another subject. Both must be the same for a resume.
    certified: Option<Subject>,
    /// When the credentials were issued, in seconds since 1970.
    issued: Option<u64>,
    /// For how long; `None`: for as long as the connection.
    expires_in: Option<Duration>,
    fields: Vec<(HeaderName, HeaderValue)>,
    /// The token for the backend.
    token: Option<Found>,
}

/// A request without what its credentials set and prove, and what was taken out of it.
pub(crate) struct Presented {
    found: Option<Found>,
    certificate: Option<CertificateDer<'static>>,
    client: Option<IpAddr>,
    /// For the hook.
    request: Option<Box<Asked>>,
}

/// The request that the hook is asked about.
struct Asked {
    method: Method,
    host: String,
    uri: Uri,
    headers: HeaderMap,
}

impl Credentials {
    /// Reads the files that the settings name. `None`: the route asks for no credentials. `before`: those of the same route
    /// in the table that this one replaces.
    ///
    /// # Errors
    /// One line that names the field.
    pub(crate) fn new(
        route: &str,
        section: &Section,
        access: &Arc<Access>,
        before: Option<&Arc<Self>>,
    ) -> Result<Option<Arc<Self>>, String> {
        section.check()?;
        if !section.is_active() {
            return Ok(None);
        }
        ring_provider::install();
        let certificate = section.client_certificate.as_ref().map(section::ClientCertificate::rules);
        let certificate = certificate.transpose().map_err(|error| format!("client-certificate.{error}"))?;
        let jwt = section.jwt.as_ref().map(|jwt| Ok((jwt.rules()?, jwt.keys()?))).transpose();
        let jwt = jwt.map_err(|error: String| format!("jwt.{error}"))?;
        if let (Some((_, KeySource::Url(jwks))), Some((_, KeySource::Url(earlier)))) =
            (&jwt, before.and_then(|before| before.jwt.as_ref()))
        {
            jwks.continues(earlier);
        }
        let hook = section.connect_hook.as_ref().map(section::ConnectHook::hook).transpose();
        let hook = hook.map_err(|error| format!("connect-hook.{error}"))?;
        let certified = certificate.iter().flat_map(certificate::Rules::field_names);
        let claimed = jwt.iter().flat_map(|(rules, _)| rules.field_names());
        let set = hook.iter().flat_map(Hook::field_names);
        let credentials = Self {
            route: route.into(),
            places: section.places(),
            required: section.required,
            check_http: section.check_http,
            forward_token: section.forward_token,
            grace: section.grace,
            names: certified.chain(claimed).chain(set).cloned().collect(),
            certificate,
            jwt,
            hook,
            access: Arc::clone(access),
            current: before.map_or_else(Arc::default, |before| Arc::clone(&before.current)),
        };
        Ok(Some(Arc::new(credentials)))
    }

    /// Puts these credentials in force for their route, and fetches the keys of a JWKS URL from now on, until the last holder
    /// is gone. A second call does nothing.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if std::ptr::eq(current.as_ptr(), Arc::as_ptr(self)) {
            return;
        }
        if let Some((_, KeySource::Url(replaced))) =
            current.upgrade().as_ref().and_then(|before| before.jwt.as_ref())
        {
            replaced.stop();
        }
        *current = Arc::downgrade(self);
        if let Some((_, KeySource::Url(jwks))) = &self.jwt {
            jwks.start();
            let mut issuers = self.access.issuers.lock().unwrap_or_else(PoisonError::into_inner);
            // Sessions may still hold the keys that these replace.
            issuers.retain(|(route, jwks)| *route != self.route && jwks.strong_count() > 0);
            issuers.push((self.route.clone(), Arc::downgrade(jwks)));
        }
    }

    /// Returns the credentials that are in force for the route; these, if it has none any more.
    fn current(self: &Arc<Self>) -> Arc<Self> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.upgrade().unwrap_or_else(|| Arc::clone(self))
    }

    /// Whether plain HTTP requests need credentials, too.
    pub(crate) fn check_http(&self) -> bool {
        self.check_http
    }

    /// Admits a client by its request alone, which then has the headers for the backend.
    ///
    /// # Errors
    /// The response for a client that is not admitted.
    pub(crate) async fn admit(&self, head: &mut Parts) -> Result<Admitted, Response> {
        let presented = match self.present(head) {
            Ok(presented) => presented,
            Err(refusal) => return Err(self.refuse(client_of(head), &refusal).into_response()),
        };
        let found = presented.found.clone();
        match self.judge("connect", found, None, &presented).await {
            Ok(admitted) => {
                admitted.set_fields(&mut head.headers);
                admitted.subject.iter().for_each(|subject| drop(head.extensions.insert(subject.clone())));
                Ok(admitted)
            }
            Err(refusal) => Err(self.refuse(presented.client, &refusal).into_response()),
        }
    }

    /// Removes from a request what only the gateway may set. A client must not have the gateway do that by `Connection`
    /// either, where it names hop-by-hop headers.
    pub(crate) fn strip(&self, headers: &mut HeaderMap) {
        let is_ours = |name: &str| {
            let plain = name.replace('_', "-");
            self.names.iter().any(|ours| ours.as_str().eq_ignore_ascii_case(&plain))
        };
        let forged: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name.as_str())).cloned().collect();
        forged.iter().for_each(|name| drop(headers.remove(name)));
        let lines = headers.get_all(CONNECTION).iter().filter_map(|line| line.to_str().ok());
        let options: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
        if options.iter().any(|option| is_ours(option)) {
            let rest: Vec<&str> = options.into_iter().filter(|option| !is_ours(option)).collect();
            let rest = HeaderValue::try_from(rest.join(", "));
            headers.remove(CONNECTION);
            headers.extend(rest.ok().map(|rest| (CONNECTION, rest)));
        }
    }

    /// Takes what the client presents out of its request.
    ///
    /// # Errors
    /// It cannot be read without a doubt.
    pub(crate) fn present(&self, head: &mut Parts) -> Result<Presented, Refusal> {
        self.strip(&mut head.headers);
        let request = self.hook.is_some().then(|| Box::new(Asked::of(head)));
        // Without a token to check, all of the request is the backend's and the hook's.
        let found = if self.jwt.is_some() { token::take(&self.places, head)? } else { None };
        let certificate = self.certificate.as_ref().and(client_tls::client_certificate(&head.extensions));
        Ok(Presented { found, certificate: certificate.cloned(), client: client_of(head), request })
    }

    /// Counts and logs a client that is not admitted.
    pub(crate) fn refuse<'a>(&self, client: Option<IpAddr>, refusal: &'a Refusal) -> &'a Refusal {
        self.access.figures.refused(&self.route, client, refusal, Instant::now());
        refusal
    }

    /// Judges a client. `credentials`: what it sent in its session.
    async fn judge(
        &self,
        event: &'static str,
        found: Option<Found>,
        credentials: Option<&[u8]>,
        presented: &Presented,
    ) -> Result<Admitted, Refusal> {
        let certified = self.certified(presented)?;
        let is_anonymous = self.jwt.is_some() && found.is_none() && certified.is_none();
        let mut admitted = match (&self.jwt, found) {
            (Some((rules, source)), Some(found)) => {
                let proof = proof(rules, source, &found.token).await?;
                let token = self.forward_token.then_some(found);
                let Proof { subject, issued, expires_in, fields } = proof;
                Admitted { subject: Some(subject), certified: None, issued, expires_in, fields, token }
            }
            // Without a token a client may begin, but not renew.
            (Some(_), None) if self.required || event != "connect" => return Err(Reason::Missing.into()),
            // The hook decides from now on, if there is one.
            _ => Admitted {
                subject: None,
                certified: None,
                issued: seconds_since_1970(SystemTime::now()),
                expires_in: None,
                fields: Vec::new(),
                token: None,
            },
        };
        admitted.add_certified(certified);
        let is_revoked = |admitted: &Admitted| {
            let subject = admitted.subject.as_ref();
            subject.is_some_and(|subject| self.access.subjects.is_revoked(&subject.0, admitted.issued))
        };
        if is_revoked(&admitted) {
            return Err(self.revoked());
        }
        if let (Some(hook), Some(request)) = (&self.hook, &presented.request) {
            let question = request.question(event, &self.route, presented.client);
            let subject = admitted.subject.as_ref().map(|subject| &*subject.0);
            let question = Question { subject, ..question }.with_credentials(credentials);
            admitted.add(hook.ask(&question).await?);
        }
        let figures = &self.access.figures;
        let count = if is_anonymous { &figures.anonymous } else { &figures.accepted };
        count.fetch_add(1, Relaxed);
        Ok(admitted)
    }

    /// Returns what the client's certificate proves; `None`: the route asks for none.
    fn certified(&self, presented: &Presented) -> Result<Option<Certified>, Refusal> {
        let certificate = presented.certificate.as_ref();
        self.certificate.as_ref().map(|rules| rules.check(certificate, SystemTime::now())).transpose()
    }

    fn revoked(&self) -> Refusal {
        let refusal = Refusal::from(Reason::Revoked);
        match &self.jwt {
            // Another token would be accepted.
            Some(_) => refusal,
            None => Refusal { status: StatusCode::FORBIDDEN, ..refusal },
        }
    }

    /// Returns what judges the credentials of a session's client: those in HELLO, or what its request presented, and then
    /// those that come on the live session. `admitted` gets what the HELLO proved.
    pub(crate) fn judges_session(
        self: &Arc<Self>,
        presented: Presented,
        own_principal: Vec<u8>,
        admitted: Arc<OnceLock<Admitted>>,
    ) -> impl Fn(Option<Bytes>) -> Judging + Send + Sync + 'static {
        let session =
            Arc::new(JudgedSession { credentials: Arc::clone(self), presented, own_principal, admitted });
        move |credentials| {
            let session = Arc::clone(&session);
            Box::pin(async move { session.judge(credentials).await })
        }
    }

    /// Returns what the library is told about an admitted client.
    pub(crate) fn identity(&self, admitted: &Admitted, own_principal: &[u8]) -> Identity {
        let names = [admitted.subject.as_ref(), admitted.certified.as_ref()];
        let principal: Vec<u8> = match (names, own_principal) {
            ([Some(subject), None], []) => subject.0.as_bytes().to_vec(),
            (names, _) => {
                // Each with its length, so that none ends where another begins.
                let with_length =
                    |name: &Subject| [&(name.0.len() as u64).to_be_bytes(), name.0.as_bytes()].concat();
                names.into_iter().flatten().flat_map(with_length).collect()
            }
        };
        // A client may send any cookie: limits count by the subject alone, if there is one.
        let identity = Identity::new(principal).bound_to(own_principal).grace(self.grace);
        match admitted.expires_in {
            Some(time) => identity.expires_in(time),
            None => identity,
        }
    }

    /// Waits for the response to an admitted client. It ends once the credentials do.
    ///
    /// # Errors
    /// The response for a client whose credentials were revoked before.
    pub(crate) async fn respond(
        &self,
        admitted: &Admitted,
        client: Option<IpAddr>,
        response: impl Future<Output = Response>,
    ) -> Result<Response, Response> {
        let revoked = || self.refuse(client, &self.revoked()).into_response();
        let Ok(mut ends) = self.ends(admitted) else { return Err(revoked()) };
        tokio::select! {
            biased;
            response = response => Ok(ends.bind(response)),
            () = ends.revoked() => Err(revoked()),
        }
    }

    /// Returns what ends the response to an admitted client.
    fn ends(&self, admitted: &Admitted) -> Result<Ends, subjects::Revoked> {
        let Admitted { subject, issued, expires_in, .. } = admitted;
        let subject = subject.as_ref();
        let present =
            subject.map(|subject| self.access.subjects.enter_response(subject, *issued)).transpose()?;
        let expires = expires_in.and_then(|time| tokio::time::Instant::now().checked_add(time));
        Ok(Ends { figures: Arc::clone(&self.access.responses), present, expires })
    }

    /// Runs the handler of an admitted client, which is listed under its subject meanwhile; closes the session if the
    /// credentials were revoked since they were judged.
    pub(crate) async fn serve<F: Future<Output = ()>>(
        self: Arc<Self>,
        admitted: Option<Admitted>,
        session: Session,
        handler: impl FnOnce(Session) -> F,
    ) {
        let subject = admitted.as_ref().and_then(|admitted| admitted.subject.as_ref());
        let issued = admitted.as_ref().and_then(|admitted| admitted.issued);
        let subjects = &self.access.subjects;
        let present = subject.map(|subject| subjects.enter(subject, issued, session.sender()));
        match present.transpose() {
            Ok(_present) => handler(session).await,
            Err(subjects::Revoked) => {
                self.refuse(session.peer().address.map(|address| address.ip()), &Reason::Revoked.into());
                session.abort(CloseCode::UNAUTHORIZED, Reason::Revoked.words());
            }
        }
    }
}

/// A verdict under way.
pub(crate) type Judging = std::pin::Pin<Box<dyn Future<Output = Result<Identity, AuthError>> + Send>>;

/// Judges the client of one connection of a session.
struct JudgedSession {
    credentials: Arc<Credentials>,
    presented: Presented,
    own_principal: Vec<u8>,
    /// What the HELLO proved; from then on the session is live.
    admitted: Arc<OnceLock<Admitted>>,
}

impl JudgedSession {
    async fn judge(&self, credentials: Option<Bytes>) -> Result<Identity, AuthError> {
        let by = self.credentials.current();
        let first = self.admitted.get();
        let event = if first.is_some() { "refresh" } else { "connect" };
        let found = self.token(credentials.as_ref(), first.is_some());
        let admitted = by.judge(event, found, credentials.as_deref(), &self.presented).await;
        let admitted = admitted.and_then(|admitted| match first {
            Some(first) if first.subject != admitted.subject => Err(Reason::OtherSubject.into()),
            _ => Ok(admitted),
        });
        match admitted {
            Ok(admitted) => {
                let identity = by.identity(&admitted, &self.own_principal);
                let _ = self.admitted.set(admitted);
                Ok(identity)
            }
            Err(refusal) => {
                by.refuse(self.presented.client, &refusal);
                Err(if refusal.reason.is_temporary() { AuthError::Unavailable } else { AuthError::Refused })
            }
        }
    }

    /// Returns the token by the order of the places. On a live session only those that come on it count.
    fn token(&self, credentials: Option<&Bytes>, is_live: bool) -> Option<Found> {
        let places = &self.credentials.places;
        let rank = |place: &Place| places.iter().position(|other| other == place);
        let of_session = credentials.filter(|_| rank(&Place::Session).is_some());
        let of_session = of_session.map(|token| Found { token: Token(token.clone()), place: Place::Session });
        let of_request = self.presented.found.clone().filter(|_| !is_live);
        of_session.into_iter().chain(of_request).min_by_key(|found| rank(&found.place))
    }
}

async fn proof(rules: &Rules, source: &KeySource, token: &Token) -> Result<Proof, Refusal> {
    let keys = source.keys().await?;
    match rules.check(token, &keys, SystemTime::now()) {
        Err(unknown) if unknown.reason == Reason::UnknownKey => {
            let keys = source.newer(&keys, unknown).await?;
            rules.check(token, &keys, SystemTime::now())
        }
        decided => decided,
    }
}

impl Admitted {
    /// Sets the headers for the backend, and the token if it is passed on.
    pub(crate) fn set_fields(&self, headers: &mut HeaderMap) {
        self.token.iter().for_each(|found| token::put_back(found, headers));
        for (name, value) in &self.fields {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// Adds what a certificate proves. A token's subject stays.
    fn add_certified(&mut self, certified: Option<Certified>) {
        let Some(Certified { subject, issued, expires_in, fields }) = certified else { return };
        self.fields.extend(fields);
        self.expires_in = Some(self.expires_in.map_or(expires_in, |earlier| earlier.min(expires_in)));
        if self.subject.is_some() {
            self.certified = Some(subject);
        } else {
            (self.subject, self.issued) = (Some(subject), issued);
        }
    }

    /// Adds what the hook decided. The subject of a token or certificate stays; the earlier expiry counts.
    fn add(&mut self, by_hook: hook::Admission) {
        self.subject = self.subject.take().or(by_hook.subject);
        self.expires_in = [self.expires_in, by_hook.expires_in].into_iter().flatten().min();
        self.fields.extend(by_hook.fields);
    }
}

impl Asked {
    fn of(head: &Parts) -> Self {
        let mut headers = forward::copied(&head.headers);
        forward::describe_certificate(&head.extensions, &mut headers);
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        Self { method: head.method.clone(), host: host.to_owned(), uri: head.uri.clone(), headers }
    }

    fn question<'a>(&'a self, event: &'static str, route: &'a str, client: Option<IpAddr>) -> Question<'a> {
        Question {
            event,
            route,
            method: self.method.as_str(),
            host: &self.host,
            path: self.uri.path(),
            query: self.uri.query(),
            address: client.map(|client| client.to_canonical().to_string()),
            headers: hook::fields(&self.headers),
            subject: None,
            credentials: None,
            credentials_base64: None,
        }
    }
}

/// Returns the address of a request's client.
pub(crate) fn client_of(head: &Parts) -> Option<IpAddr> {
    let behind_proxies = head.extensions.get::<ClientAddress>().map(|client| client.0);
    let connected = || head.extensions.get::<ConnectInfo<SocketAddr>>().map(|client| client.0.ip());
    behind_proxies.or_else(connected)
}

fn seconds_since_1970(now: SystemTime) -> Option<u64> {
    now.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}
