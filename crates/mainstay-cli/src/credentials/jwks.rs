//! The keys behind a JWKS URL: fetched in the background, and kept while the issuer is away.
//!
//! An issuer changes its keys at any time. A token that names an unknown key therefore has the keys fetched anew, but no
//! sooner than 10 s after the fetch before: anyone may send such tokens. A token that comes in between is not refused for
//! good; its client is asked to come back.
//!
//! `schedule` decides when, and for how long keys are used; `freshness` reads what the issuer says about that.

mod freshness;
mod schedule;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{Request, StatusCode, Uri};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

pub(crate) use self::schedule::Lives;
use self::schedule::{Asked, Due, Schedule};
use super::keys::{KeySet, Signing};
use crate::http_client::HttpClient;

/// How long a fetch may take, and how large the set may be.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_SET: usize = 1 << 20;
/// How long a client waits for the keys. Less than the opening deadline.
const CLIENT_WAIT: Duration = Duration::from_secs(3);

/// What the last fetches brought.
#[derive(Clone, Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// When the issuer last said that `keys` are its own.
    since: Option<Instant>,
    /// The version of `keys`, by which the issuer need not send them again.
    tag: Option<HeaderValue>,
    /// The last fetch failed.
    has_failed: bool,
}

/// The keys of an issuer.
pub(crate) struct Jwks {
    url: Uri,
    /// The URL without its query, for the log: some have a secret there.
    name: String,
    client: HttpClient,
    allowed: Vec<Signing>,
    lives: Lives,
    state: watch::Sender<State>,
    schedule: Mutex<Schedule>,
    wake: Arc<Notify>,
    pub(crate) fetched: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// Why the issuer's keys do not decide about a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undecided {
    /// They were fetched for this token, and the key is not among them.
    NotThere,
    /// They cannot be fetched now, or not again so soon.
    NotNow,
}

/// What the issuer answered.
enum Answer {
    Keys(KeySet, Option<HeaderValue>),
    /// The keys are those that are known.
    Unchanged,
}

impl Jwks {
    pub(crate) fn new(url: Uri, client: HttpClient, allowed: &[Signing], lives: Lives) -> Arc<Self> {
        let name = url.to_string();
        Arc::new(Self {
            name: name.split('?').next().unwrap_or_default().to_owned(),
            url,
            client,
            allowed: allowed.to_vec(),
            lives,
            state: watch::Sender::default(),
            schedule: Mutex::new(Schedule::new(Instant::now(), lives)),
            wake: Arc::default(),
            fetched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Goes on with the keys of `before`, where both are those of one URL, so that a reload while the issuer is away refuses
    /// no client. Call it before [`start`](Self::start).
    pub(crate) fn continues(&self, before: &Self) {
        if self.url != before.url || self.allowed != before.allowed {
            return;
        }
        *self.schedule() = Schedule::continuing(Instant::now(), self.lives, &before.schedule());
        self.state.send_replace(before.state.borrow().clone());
        self.fetched.store(before.fetched.load(Relaxed), Relaxed);
        self.failed.store(before.failed.load(Relaxed), Relaxed);
    }

    /// Fetches the keys from now on, until the last holder is gone or others take their place.
    pub(crate) fn start(self: &Arc<Self>) {
        tokio::spawn(run(Arc::downgrade(self), Arc::clone(&self.wake)));
    }

    /// Fetches nothing any more: others have taken the place of these keys.
    pub(crate) fn stop(&self) {
        self.schedule().handle_replaced();
        self.wake.notify_one();
    }

    /// Returns the keys; waits for the first ones, for a while.
    pub(crate) async fn keys(&self) -> Option<Arc<KeySet>> {
        if let Some(keys) = &self.state.borrow().keys {
            return Some(Arc::clone(keys));
        }
        let mut changes = self.state.subscribe();
        let first = changes.wait_for(|state| state.keys.is_some());
        timeout(CLIENT_WAIT, first).await.ok()?.ok()?.keys.clone()
    }

    /// A token names a key that `known` has not. Returns newer keys.
    ///
    /// # Errors
    /// There are none.
    pub(crate) async fn newer(&self, known: &Arc<KeySet>) -> Result<Arc<KeySet>, Undecided> {
        let mut changes = self.state.subscribe();
        let newer = |state: &State| state.keys.clone().filter(|keys| !Arc::ptr_eq(keys, known));
        if let Some(keys) = newer(&changes.borrow_and_update()) {
            return Ok(keys);
        }
        let asked = self.schedule().handle_unknown_key(Instant::now());
        match asked {
            Asked::TooSoon => return Err(Undecided::NotNow),
            Asked::Begins => self.wake.notify_one(),
            Asked::UnderWay => {}
        }
        let not_there = if asked == Asked::Begins { Undecided::NotThere } else { Undecided::NotNow };
        match timeout(CLIENT_WAIT, changes.changed()).await {
            Ok(Ok(())) => {
                let state = changes.borrow();
                if state.has_failed { Err(Undecided::NotNow) } else { newer(&state).ok_or(not_there) }
            }
            _ => Err(Undecided::NotNow),
        }
    }

    /// Returns how old the keys in use are; `None` without any.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.state.borrow().since.map(|since| since.elapsed())
    }

    /// Whether the keys should have been replaced by newer ones; `None` before the first fetch.
    pub(crate) fn is_stale(&self) -> Option<bool> {
        self.schedule().is_stale(Instant::now())
    }

    async fn handle_timeout(&self) {
        let due = self.schedule().handle_timeout(Instant::now());
        match due {
            Due::Fetch => {
                let outcome = self.request().await;
                let fresh_for = outcome.as_ref().ok().map(|(_, fresh_for)| *fresh_for);
                self.schedule().handle_fetched(Instant::now(), fresh_for);
                self.note(outcome.map(|(answer, _)| answer));
            }
            Due::Forget => {
                tracing::error!(
                    url = self.name,
                    "the issuer's keys are too old and not used any more; clients are asked to come back until they can be fetched"
                );
                self.state.send_modify(|state| {
                    (state.keys, state.since, state.tag) = (None, None, None);
                });
            }
            Due::Nothing => {}
        }
    }

    /// Asks the issuer. Returns for how long it says that its keys are fresh.
    async fn request(&self) -> Result<(Answer, Option<Duration>), String> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"));
        let known = self.state.borrow().tag.clone();
        headers.extend(known.iter().map(|tag| (IF_NONE_MATCH, tag.clone())));
        let (head, body) = self.client.send(request, MAX_SET, FETCH_TIMEOUT).await?.into_parts();
        let fresh_for = freshness::of(&head.headers, SystemTime::now());
        match head.status {
            StatusCode::OK => {
                let keys = KeySet::of_url(&body, &self.allowed)?;
                Ok((Answer::Keys(keys, head.headers.get(ETAG).cloned()), fresh_for))
            }
            StatusCode::NOT_MODIFIED if known.is_some() => Ok((Answer::Unchanged, fresh_for)),
            status if status.is_redirection() => Err(format!(
                "the issuer answered with status {}, and redirects are not followed: write the final URL",
                status.as_u16()
            )),
            status => Err(format!("the issuer answered with status {}", status.as_u16())),
        }
    }

    fn note(&self, outcome: Result<Answer, String>) {
        let url = &*self.name;
        let has_failed = self.state.borrow().has_failed;
        match outcome {
            Ok(answer) => {
                self.fetched.fetch_add(1, Relaxed);
                self.state.send_modify(|state| {
                    if let Answer::Keys(keys, tag) = answer {
                        (state.keys, state.tag) = (Some(Arc::new(keys)), tag);
                    }
                    (state.since, state.has_failed) = (Some(Instant::now()), false);
                });
                if has_failed {
                    let keys = self.state.borrow().keys.as_ref().map_or(0, |keys| keys.len());
                    tracing::info!(url, keys, "the issuer's keys are fetched again");
                }
            }
            Err(error) => {
                self.failed.fetch_add(1, Relaxed);
                if !has_failed {
                    let kept = self.state.borrow().keys.as_ref().map_or(0, |keys| keys.len());
                    let at_most_stale_for = self.lives.stale;
                    tracing::warn!(
                        url,
                        error,
                        kept,
                        ?at_most_stale_for,
                        "the issuer's keys cannot be fetched; those known before stay in use"
                    );
                }
                self.state.send_modify(|state| state.has_failed = true);
            }
        }
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(jwks: Weak<Jwks>, wake: Arc<Notify>) {
    loop {
        let next = jwks.upgrade().and_then(|jwks| jwks.schedule().poll_timeout());
        let Some(next) = next else { return };
        tokio::select! {
            () = sleep_until(next) => {
                let Some(jwks) = jwks.upgrade() else { return };
                jwks.handle_timeout().await;
            }
            // The time has changed.
            () = wake.notified() => {}
        }
    }
}

impl Drop for Jwks {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}
