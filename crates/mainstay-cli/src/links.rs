//! What is known of all links to the backend together, and what is told of one when it ends.
//!
//! Every dial of a link and every request is reported here, and so to [`Backend`]: this is its driver.

use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{StatusCode, Uri};
use mainstay::client::{Connector, Event, Lost, ReasonCode, Report, Sender, State};
use mainstay::{Evidence, SessionId};
use slab::Slab;
use tokio::sync::Notify;

use crate::backend::{Backend, Failure, Line, Reason};
use crate::upstream;

/// Over how long links dial that waited for the backend, once it is there.
const WAKE: Duration = Duration::from_secs(1);

/// Figures of all links. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub(crate) struct Links(Arc<Shared>);

struct Shared {
    backend: Mutex<Backend>,
    /// A probe may be due.
    changed: Notify,
    figures: Counters,
    open: Mutex<Slab<Sender>>,
}

#[derive(Default)]
struct Counters {
    attached: AtomicU64,
    failed: [AtomicU64; Reason::ALL.len()],
    /// Answers of the backend that refused a visitor, by the hundreds of their status: 3xx, 4xx, 5xx.
    refused: [AtomicU64; 3],
    /// Visitors that got 503 or 1013 because it cannot be reached.
    unreached: AtomicU64,
    lost: AtomicU64,
    dead_silent: AtomicU64,
    dead_frozen: AtomicU64,
    dead_stalled: AtomicU64,
    unknown: AtomicU64,
    not_delivered: AtomicU64,
    undeliverable: AtomicU64,
    prologues: AtomicU64,
    prologues_failed: AtomicU64,
    recorded_bytes: AtomicU64,
    /// Requests that were answered, by the class of the status: 1xx first.
    requests: [AtomicU64; 5],
    /// Requests that the backend did not answer.
    unanswered: AtomicU64,
    pings_unanswered: AtomicU64,
    /// Whether the backend answers Pings, by what the newest link that found out has seen.
    answers_pings: Mutex<Option<bool>>,
}

impl Counters {
    fn dead(&self, evidence: Evidence) -> &AtomicU64 {
        match evidence {
            Evidence::Silent => &self.dead_silent,
            Evidence::Frozen => &self.dead_frozen,
            Evidence::Stalled => &self.dead_stalled,
        }
    }
}

/// The figures at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Whether the backend is up.
    pub(crate) up: bool,
    /// Connections of links that are open now.
    pub(crate) attached: u64,
    /// Connections that did not come about, in the order of [`Reason::ALL`].
    pub(crate) failed: [u64; Reason::ALL.len()],
    /// Visitors that were refused with the backend's own status: 3xx, 4xx, 5xx.
    pub(crate) refused: [u64; 3],
    /// Visitors that were refused because it cannot be reached.
    pub(crate) unreached: u64,
    /// Connections to the backend that were lost.
    pub(crate) lost: u64,
    /// Of these, called dead, by evidence.
    pub(crate) dead_silent: u64,
    pub(crate) dead_frozen: u64,
    pub(crate) dead_stalled: u64,
    /// Messages that may or may not have reached it.
    pub(crate) unknown: u64,
    /// Messages that were never written to it.
    pub(crate) not_delivered: u64,
    /// Messages that ended three of its connections.
    pub(crate) undeliverable: u64,
    /// Prologues that were written to a new connection, to their end.
    pub(crate) prologues: u64,
    /// Prologues that could not be.
    pub(crate) prologues_failed: u64,
    /// Links that found that the backend answers no Ping.
    pub(crate) pings_unanswered: u64,
    /// Payload bytes kept for the backend.
    pub(crate) kept_bytes: u64,
    /// Payload bytes read ahead of visitors.
    pub(crate) unread_bytes: u64,
    /// Requests answered, by the class of the status: 1xx first.
    pub(crate) requests: [u64; 5],
    /// Requests that the backend did not answer.
    pub(crate) unanswered: u64,
}

impl Default for Links {
    fn default() -> Self {
        let shared = Shared {
            backend: Mutex::new(Backend::new(Instant::now())),
            changed: Notify::new(),
            figures: Counters::default(),
            open: Mutex::default(),
        };
        Self(Arc::new(shared))
    }
}

impl Links {
    /// Counts one more link, from here until the account is dropped. Call it before the link has dialled.
    pub(crate) fn open(&self, sender: Sender, session: Option<SessionId>) -> Account {
        let slot = self.list().insert(sender);
        Account {
            links: self.clone(),
            slot,
            session,
            is_attached: false,
            unknown: 0,
            not_delivered: 0,
            undeliverable: Vec::new(),
        }
    }

    /// A connection to the backend came about. Links that wait for one dial now.
    pub(crate) fn reached(&self) {
        if self.tell(|backend| backend.handle_reached(Instant::now())) {
            tokio::spawn(self.clone().wake());
        }
    }

    /// A connection to the backend did not come about.
    pub(crate) fn failed(&self, failure: Failure) {
        if let Some(counter) = self.0.figures.failed.get(failure.reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
        self.tell(|backend| backend.handle_failed(Instant::now(), failure));
    }

    /// The backend answered a visitor with this status instead of what was asked for.
    pub(crate) fn refused(&self, status: StatusCode) {
        self.reached();
        let class = usize::from(status.as_u16() / 100).checked_sub(3);
        if let Some(counter) = class.and_then(|class| self.0.figures.refused.get(class)) {
            counter.fetch_add(1, Relaxed);
        }
        self.tell(|backend| backend.handle_status(Instant::now(), status.as_u16()));
    }

    /// A visitor was sent away because the backend cannot be reached.
    pub(crate) fn turned_away(&self) {
        self.0.figures.unreached.fetch_add(1, Relaxed);
    }

    /// Why no visitor should be sent here yet; see [`Backend::not_ready`].
    pub(crate) fn not_ready(&self) -> Option<String> {
        self.backend().not_ready()
    }

    /// Probes the backend when that is due, for as long as the process lives: connects, with TLS where its URL says so,
    /// and that is all.
    pub(crate) async fn probe(self, connector: Connector, upstream: Uri) {
        loop {
            let due = self.backend().poll_timeout();
            let due = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.0.changed.notified() => continue,
            }
            if self.backend().poll_probe(Instant::now()) {
                match connector.connect(&upstream).await {
                    Ok(_) => self.reached(),
                    Err(failure) => self.failed(failure.into()),
                }
            }
        }
    }

    /// Has links dial that wait for their next attempt: a thousand of them over a second, fewer in less.
    async fn wake(self) {
        let is_waiting = |sender: &Sender| matches!(sender.state(), State::Waiting { .. });
        let senders: Vec<Sender> = self.list().iter().map(|(_, sender)| sender.clone()).collect();
        let senders: Vec<Sender> = senders.into_iter().filter(is_waiting).collect();
        let count = u32::try_from(senders.len()).unwrap_or(u32::MAX);
        let spread = WAKE.min(Duration::from_millis(1).saturating_mul(count));
        let random = RandomState::new();
        let part = |number: usize| (random.hash_one(number) >> 32) as f64 / f64::from(u32::MAX);
        let mut waiting: Vec<_> = senders
            .into_iter()
            .enumerate()
            .map(|(number, sender)| (spread.mul_f64(part(number)), sender))
            .collect();
        waiting.sort_by_key(|(after, _)| *after);
        let start = tokio::time::Instant::now();
        for (after, sender) in waiting {
            tokio::time::sleep_until(start + after).await;
            if is_waiting(&sender) {
                sender.probe_now();
            }
        }
    }

    /// Tells the machine what happened, and logs what it says.
    fn tell<R>(&self, what: impl FnOnce(&mut Backend) -> R) -> R {
        let mut backend = self.backend();
        let (before, result) = (backend.poll_timeout(), what(&mut backend));
        let lines: Vec<Line> = std::iter::from_fn(|| backend.poll_line()).collect();
        let has_changed = backend.poll_timeout() != before;
        drop(backend);
        if has_changed {
            self.0.changed.notify_one();
        }
        lines.into_iter().for_each(crate::backend::log);
        result
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        self.0.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Walks the list of links.
    pub(crate) fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let figures = &self.0.figures;
        Figures {
            up: self.backend().is_up(),
            attached: read(&figures.attached),
            failed: figures.failed.each_ref().map(read),
            refused: figures.refused.each_ref().map(read),
            unreached: read(&figures.unreached),
            lost: read(&figures.lost),
            dead_silent: read(&figures.dead_silent),
            dead_frozen: read(&figures.dead_frozen),
            dead_stalled: read(&figures.dead_stalled),
            unknown: read(&figures.unknown),
            not_delivered: read(&figures.not_delivered),
            undeliverable: read(&figures.undeliverable),
            pings_unanswered: read(&figures.pings_unanswered),
            prologues: read(&figures.prologues),
            prologues_failed: read(&figures.prologues_failed),
            kept_bytes: self.kept_bytes(),
            unread_bytes: self.sum(Sender::unread_bytes),
            requests: self.0.figures.requests.each_ref().map(read),
            unanswered: read(&self.0.figures.unanswered),
        }
    }

    /// A request was answered, by the backend or for it.
    pub(crate) fn passed(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.0.figures.requests.get(class) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// The backend answered a request.
    pub(crate) fn answered(&self) {
        self.reached();
    }

    /// The backend did not answer a request.
    pub(crate) fn unanswered(&self, failure: &upstream::Failure) {
        match Failure::of_request(failure) {
            None => tracing::debug!(%failure, "a request was not passed on to its end"),
            Some(known) => {
                self.0.figures.unanswered.fetch_add(1, Relaxed);
                let was_reached = !known.reason.is_down();
                self.failed(known);
                if was_reached {
                    self.reached();
                }
            }
        }
    }

    /// Payload bytes kept for the backend now.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.0.figures.recorded_bytes.load(Relaxed) + self.sum(Sender::kept_bytes)
    }

    fn sum(&self, bytes: impl Fn(&Sender) -> u64) -> u64 {
        // Links come and go meanwhile: none of them waits for this.
        let open: Vec<Sender> = self.list().iter().map(|(_, sender)| sender.clone()).collect();
        open.iter().map(bytes).sum()
    }

    /// A new connection was told its prologue.
    pub(crate) fn count_prologue(&self) {
        self.0.figures.prologues.fetch_add(1, Relaxed);
    }

    /// A new connection could not be told its prologue.
    pub(crate) fn count_failed_prologue(&self) {
        self.0.figures.prologues_failed.fetch_add(1, Relaxed);
    }

    /// What one client's prologue holds has changed.
    pub(crate) fn recorded(&self, before: usize, now: usize) {
        self.0.figures.recorded_bytes.fetch_add(now as u64, Relaxed);
        self.0.figures.recorded_bytes.fetch_sub(before as u64, Relaxed);
    }

    /// Whether the backend answers Pings, so that not every link has to find out.
    pub(crate) fn answers_pings(&self) -> Option<bool> {
        *self.0.figures.answers_pings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one link found out is told once, and taken for granted by the next.
    fn note_pings(&self, answered: Option<bool>) {
        if answered == Some(false) {
            self.0.figures.pings_unanswered.fetch_add(1, Relaxed);
        }
        let mut known = self.0.figures.answers_pings.lock().unwrap_or_else(PoisonError::into_inner);
        match (answered, std::mem::replace(&mut *known, answered)) {
            (Some(false), None | Some(true)) => tracing::warn!(
                "the backend answers no Ping (RFC 6455 section 5.5.2): what visitors send may be lost with its connection, \
                 and is not sent again"
            ),
            (Some(true), Some(false)) => tracing::info!("the backend answers Pings"),
            _ => {}
        }
    }

    fn list(&self) -> MutexGuard<'_, Slab<Sender>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of the messages of one link that did not certainly reach the backend. Counted as it is reported, and told
/// in one line when the account is dropped: a backend that fails must not fill the log as well.
pub(crate) struct Account {
    links: Links,
    slot: usize,
    session: Option<SessionId>,
    is_attached: bool,
    unknown: u64,
    not_delivered: u64,
    /// Their numbers: a later report of what surrounds them covers them once more.
    undeliverable: Vec<u64>,
}

impl Account {
    /// Counts what an event of the link says.
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Attached { .. } => {
                self.attached(true);
                self.links.reached();
            }
            Event::AttemptFailed { why, .. } => self.attempt_failed(why),
            Event::Detached { why, next_attempt_in } => {
                self.attached(false);
                let figures = &self.links.0.figures;
                figures.lost.fetch_add(1, Relaxed);
                if let Lost::Dead(evidence) = why {
                    figures.dead(*evidence).fetch_add(1, Relaxed);
                    if self.links.answers_pings() == Some(true) {
                        // Another may stand there by now.
                        self.links.note_pings(None);
                    }
                }
                let why = format!("{why:?}");
                let waits = !next_attempt_in.is_zero();
                self.links.tell(|backend| backend.handle_lost(Instant::now(), &why, waits));
            }
            Event::Ended(end) => {
                self.attached(false);
                if let Some(status) = end.code.and_then(ReasonCode::status) {
                    self.links.refused(status);
                }
            }
            Event::PingsUnanswered => self.links.note_pings(Some(false)),
            Event::PingsAnswered => self.links.note_pings(Some(true)),
            Event::Report(Report::Unknown(range)) => {
                let count = self.not_told_before(range);
                self.unknown += count;
                self.links.0.figures.unknown.fetch_add(count, Relaxed);
            }
            Event::Report(Report::NotDelivered(range)) => {
                self.not_delivered(self.not_told_before(range));
            }
            Event::Report(Report::Undeliverable { number, .. }) => {
                self.undeliverable.push(*number);
                self.links.0.figures.undeliverable.fetch_add(1, Relaxed);
            }
            _ => {}
        }
    }

    fn attempt_failed(&self, why: &Lost) {
        let Some(failure) = Failure::of(why) else { return };
        let status = match why {
            Lost::Unavailable { code, .. } => code.status(),
            Lost::Refused { status, .. } => *status,
            _ => None,
        };
        let answered = !failure.reason.is_down();
        self.links.failed(failure);
        match status {
            Some(status) => self.links.refused(status),
            None if answered => self.links.reached(),
            None => {}
        }
    }

    fn attached(&mut self, is_attached: bool) {
        if std::mem::replace(&mut self.is_attached, is_attached) != is_attached {
            let counter = &self.links.0.figures.attached;
            if is_attached {
                counter.fetch_add(1, Relaxed)
            } else {
                counter.fetch_sub(1, Relaxed)
            };
        }
    }

    /// Messages of the visitor that the link did not take any more.
    pub(crate) fn not_delivered(&mut self, count: u64) {
        self.not_delivered += count;
        self.links.0.figures.not_delivered.fetch_add(count, Relaxed);
    }

    fn not_told_before(&self, range: &RangeInclusive<u64>) -> u64 {
        let before = self.undeliverable.iter().filter(|number| range.contains(number)).count();
        (range.end() + 1 - range.start()).saturating_sub(before as u64)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.attached(false);
        let sender = self.links.list().try_remove(self.slot);
        if sender.is_some_and(|sender| sender.answers_pings() == Some(true)) {
            self.links.note_pings(Some(true));
        }
        let (unknown, not_delivered) = (self.unknown, self.not_delivered);
        let undeliverable = self.undeliverable.len();
        if unknown + not_delivered > 0 || undeliverable > 0 {
            let session = self.session.map_or_else(|| "plain".to_owned(), |id| id.to_string());
            tracing::warn!(
                session,
                unknown,
                not_delivered,
                undeliverable,
                "messages of a visitor that the backend did not certainly get"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use mainstay::{Link, Message};

    use super::*;

    #[tokio::test]
    async fn each_message_is_counted_by_its_first_fate_and_links_while_they_are_open() {
        let links = Links::default();
        let link = Link::builder("ws://127.0.0.1:1/").unwrap().connect();
        link.send(Message::text("four")).await.unwrap();
        let mut account = links.open(link.sender(), None);
        assert_eq!(links.figures().kept_bytes, 4);
        let report = |report| Event::Report(report);
        account.note(&report(Report::Undeliverable { number: 3, message: Message::text("x") }));
        account.note(&report(Report::Unknown(1..=5)));
        account.note(&report(Report::NotDelivered(6..=6)));
        account.not_delivered(1);
        for why in [Lost::Dead(Evidence::Frozen), Lost::Broken("reset".into())] {
            account.note(&Event::Detached { why, next_attempt_in: std::time::Duration::ZERO });
        }
        account.note(&Event::PingsUnanswered);
        assert_eq!((links.answers_pings(), links.figures().pings_unanswered), (Some(false), 1));
        account.note(&Event::PingsAnswered);
        assert_eq!(links.answers_pings(), Some(true));
        let found = links.figures();
        assert_eq!((found.unknown, found.not_delivered, found.undeliverable), (4, 2, 1));
        assert_eq!((found.lost, found.dead_silent, found.dead_frozen), (2, 0, 1));
        drop(account);
        assert_eq!((links.figures().kept_bytes, links.figures().unknown), (0, 4));
    }
    #[tokio::test]
    async fn links_that_wait_dial_when_the_backend_is_reached_by_another() {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        let links = Links::default();
        let hour = Duration::from_secs(3600);
        // By itself it dials once more in an hour.
        let backoff =
            mainstay::BackoffConfig::new(hour, hour).and_then(|backoff| backoff.first(hour, hour)).unwrap();
        let link = Link::builder(&format!("ws://{address}")).unwrap().backoff(backoff).connect();
        let mut account = links.open(link.sender(), None);
        let failed = link.event().await.unwrap();
        account.note(&failed);
        assert!(matches!(failed, Event::AttemptFailed { .. }), "{failed:?}");
        assert_eq!(links.figures().failed[Reason::Refused as usize], 1);
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        links.reached();
        let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await;
        assert!(accepted.is_ok(), "it dials");
    }
}
