//! The keys behind a JWKS URL: fetched in the background, and kept while the issuer is away.
//!
//! An issuer changes its keys at any time. A token that names an unknown key therefore has the keys fetched anew, but no
//! sooner than 10 s after the fetch before: anyone may send such tokens. A token that comes in between is not refused for
//! good; its client is asked to come back.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use http::header::{ACCEPT, HeaderValue};
use http::{Request, StatusCode, Uri};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::keys::{KeySet, Signing};
use crate::http_client::HttpClient;

/// The least time between two fetches.
const PAUSE: Duration = Duration::from_secs(10);
/// The wait after the first failure; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a fetch may take, and how large the set may be.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_SET: usize = 1 << 20;
/// How long a client waits for the keys. Less than the opening deadline.
const CLIENT_WAIT: Duration = Duration::from_secs(3);

/// When the keys are fetched.
#[derive(Debug)]
struct Schedule {
    every: Duration,
    next: Instant,
    failures: u32,
    /// When the last fetch began.
    began: Option<Instant>,
    is_fetching: bool,
}

/// What becomes of a token that names an unknown key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The keys are fetched for it.
    Begins,
    /// They are being fetched, since before it came.
    UnderWay,
    /// They were fetched just now.
    TooSoon,
}

impl Schedule {
    fn new(now: Instant, every: Duration) -> Self {
        Self { every, next: now, failures: 0, began: None, is_fetching: false }
    }

    /// A token names an unknown key.
    fn handle_unknown_key(&mut self, now: Instant) -> Asked {
        if self.is_fetching {
            return Asked::UnderWay;
        }
        if self.began.is_some_and(|began| now < began + PAUSE) {
            return Asked::TooSoon;
        }
        self.next = now;
        Asked::Begins
    }

    fn handle_begun(&mut self, now: Instant) {
        (self.began, self.is_fetching) = (Some(now), true);
    }

    fn handle_fetched(&mut self, now: Instant, succeeded: bool) {
        self.is_fetching = false;
        self.failures = if succeeded { 0 } else { self.failures + 1 };
        let wait = match self.failures {
            0 => self.every,
            failures => {
                (FIRST_WAIT * 2_u32.saturating_pow(failures - 1).min(1024)).min(LONGEST_WAIT).min(self.every)
            }
        };
        self.next = now + wait;
    }

    fn poll_timeout(&self) -> Instant {
        self.next
    }
}

/// What the last fetches brought.
#[derive(Clone, Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// When `keys` were fetched.
    since: Option<Instant>,
    /// The last fetch failed.
    has_failed: bool,
}

/// The keys of an issuer.
pub(crate) struct Jwks {
    url: Uri,
    client: HttpClient,
    allowed: Vec<Signing>,
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

impl Jwks {
    pub(crate) fn new(url: Uri, client: HttpClient, allowed: &[Signing], every: Duration) -> Arc<Self> {
        Arc::new(Self {
            url,
            client,
            allowed: allowed.to_vec(),
            state: watch::Sender::default(),
            schedule: Mutex::new(Schedule::new(Instant::now(), every)),
            wake: Arc::default(),
            fetched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Fetches the keys from now on, until the last holder is gone.
    pub(crate) fn start(self: &Arc<Self>) {
        tokio::spawn(run(Arc::downgrade(self), Arc::clone(&self.wake)));
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

    /// Returns how old the keys are; `None` before the first fetch.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.state.borrow().since.map(|since| since.elapsed())
    }

    async fn fetch(&self) {
        self.schedule().handle_begun(Instant::now());
        let outcome = self.request().await;
        self.schedule().handle_fetched(Instant::now(), outcome.is_ok());
        self.note(outcome);
    }

    async fn request(&self) -> Result<KeySet, String> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.url.clone();
        request
            .headers_mut()
            .insert(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"));
        let (status, body) = self.client.send(request, MAX_SET, FETCH_TIMEOUT).await?;
        if status != StatusCode::OK {
            return Err(format!("the issuer answered with status {}", status.as_u16()));
        }
        KeySet::of_url(&body, &self.allowed)
    }

    fn note(&self, outcome: Result<KeySet, String>) {
        let url = &self.url;
        let has_failed = self.state.borrow().has_failed;
        match outcome {
            Ok(keys) => {
                self.fetched.fetch_add(1, Relaxed);
                if has_failed {
                    tracing::info!(%url, keys = keys.len(), "the issuer's keys are fetched again");
                }
                let (keys, since) = (Some(Arc::new(keys)), Some(Instant::now()));
                self.state.send_replace(State { keys, since, has_failed: false });
            }
            Err(error) => {
                self.failed.fetch_add(1, Relaxed);
                if !has_failed {
                    let kept = self.state.borrow().keys.as_ref().map_or(0, |keys| keys.len());
                    tracing::warn!(%url, error, kept, "the issuer's keys cannot be fetched; those known before stay in use");
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
        let Some(next) = jwks.upgrade().map(|jwks| jwks.schedule().poll_timeout()) else { return };
        tokio::select! {
            () = sleep_until(next) => {
                let Some(jwks) = jwks.upgrade() else { return };
                jwks.fetch().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn keys_are_fetched_at_once_and_then_in_regular_intervals() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 600 * SECOND);
        assert_eq!(schedule.poll_timeout(), start);
        schedule.handle_begun(start);
        schedule.handle_fetched(start + SECOND, true);
        assert_eq!(schedule.poll_timeout(), start + 601 * SECOND);
    }

    #[test]
    fn an_unknown_key_has_them_fetched_at_most_every_ten_seconds() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 600 * SECOND);
        schedule.handle_begun(start);
        schedule.handle_fetched(start, true);
        assert_eq!(schedule.handle_unknown_key(start + 9 * SECOND), Asked::TooSoon);
        assert_eq!(schedule.poll_timeout(), start + 600 * SECOND);
        assert_eq!(schedule.handle_unknown_key(start + 10 * SECOND), Asked::Begins);
        assert_eq!(schedule.poll_timeout(), start + 10 * SECOND);
        schedule.handle_begun(start + 10 * SECOND);
        assert_eq!(schedule.handle_unknown_key(start + 11 * SECOND), Asked::UnderWay);
        schedule.handle_fetched(start + 12 * SECOND, true);
        assert_eq!(schedule.handle_unknown_key(start + 12 * SECOND), Asked::TooSoon);
    }

    #[test]
    fn a_failure_is_repeated_after_doubling_waits_of_at_most_a_minute() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 600 * SECOND);
        let mut waits = Vec::new();
        for _ in 0..9 {
            schedule.handle_fetched(start, false);
            waits.push((schedule.poll_timeout() - start).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        schedule.handle_fetched(start, true);
        assert_eq!(schedule.poll_timeout(), start + 600 * SECOND);
        let mut often = Schedule::new(start, 10 * SECOND);
        (0..40).for_each(|_| often.handle_fetched(start, false));
        assert_eq!(often.poll_timeout(), start + 10 * SECOND, "never later than without a failure");
    }
}
