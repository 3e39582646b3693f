//! What is known of all links to the backend together, and what is told of one when it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use mainstay::client::{Event, Lost, Sender};
use mainstay::{Evidence, Report, SessionId};
use slab::Slab;

use crate::upstream::Failure;

/// Figures of all links. Cheap to clone; every clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Links(Arc<Shared>);

#[derive(Default)]
struct Shared {
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
    /// The last request was one of them.
    is_failing: AtomicBool,
    pings_unanswered: AtomicU64,
    /// Whether the backend answers Pings, by what the newest link that found out has seen.
    answers_pings: Mutex<Option<bool>>,
    open: Mutex<Slab<Sender>>,
}

impl Shared {
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

impl Links {
    /// Counts one more link, from here until the account is dropped.
    pub(crate) fn open(&self, sender: Sender, session: Option<SessionId>) -> Account {
        let slot = self.list().insert(sender);
        Account {
            links: self.clone(),
            slot,
            session,
            unknown: 0,
            not_delivered: 0,
            undeliverable: Vec::new(),
        }
    }

    /// Walks the list of links.
    pub(crate) fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Figures {
            lost: read(&self.0.lost),
            dead_silent: read(&self.0.dead_silent),
            dead_frozen: read(&self.0.dead_frozen),
            dead_stalled: read(&self.0.dead_stalled),
            unknown: read(&self.0.unknown),
            not_delivered: read(&self.0.not_delivered),
            undeliverable: read(&self.0.undeliverable),
            prologues: read(&self.0.prologues),
            prologues_failed: read(&self.0.prologues_failed),
            pings_unanswered: read(&self.0.pings_unanswered),
            kept_bytes: self.kept_bytes(),
            unread_bytes: self.sum(Sender::unread_bytes),
            requests: self.0.requests.each_ref().map(read),
            unanswered: read(&self.0.unanswered),
        }
    }

    /// A request was answered, by the backend or for it.
    pub(crate) fn passed(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.0.requests.get(class) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// The backend answered a request. Logs that it does again.
    pub(crate) fn answered(&self) {
        if self.0.is_failing.load(Relaxed) && self.0.is_failing.swap(false, Relaxed) {
            tracing::warn!("the backend answers requests again");
        }
    }

    /// The backend did not answer a request. Logs the first of a row.
    pub(crate) fn failed(&self, failure: &Failure) {
        if matches!(failure, Failure::Client(_)) {
            tracing::debug!(%failure, "a request was not passed on to its end");
            return;
        }
        self.0.unanswered.fetch_add(1, Relaxed);
        if !self.0.is_failing.swap(true, Relaxed) {
            tracing::warn!(%failure, "the backend does not answer requests; the next line says when it does");
        }
    }

    /// Payload bytes kept for the backend now.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.0.recorded_bytes.load(Relaxed) + self.sum(Sender::kept_bytes)
    }

    fn sum(&self, bytes: impl Fn(&Sender) -> u64) -> u64 {
        // Links come and go meanwhile: none of them waits for this.
        let open: Vec<Sender> = self.list().iter().map(|(_, sender)| sender.clone()).collect();
        open.iter().map(bytes).sum()
    }

    /// A new connection was told its prologue.
    pub(crate) fn count_prologue(&self) {
        self.0.prologues.fetch_add(1, Relaxed);
    }

    /// A new connection could not be told its prologue.
    pub(crate) fn count_failed_prologue(&self) {
        self.0.prologues_failed.fetch_add(1, Relaxed);
    }

    /// What one client's prologue holds has changed.
    pub(crate) fn recorded(&self, before: usize, now: usize) {
        self.0.recorded_bytes.fetch_add(now as u64, Relaxed);
        self.0.recorded_bytes.fetch_sub(before as u64, Relaxed);
    }

    /// Whether the backend answers Pings, so that not every link has to find out.
    pub(crate) fn answers_pings(&self) -> Option<bool> {
        *self.0.answers_pings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one link found out is told once, and taken for granted by the next.
    fn note_pings(&self, answered: Option<bool>) {
        if answered == Some(false) {
            self.0.pings_unanswered.fetch_add(1, Relaxed);
        }
        let mut known = self.0.answers_pings.lock().unwrap_or_else(PoisonError::into_inner);
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
    unknown: u64,
    not_delivered: u64,
    /// Their numbers: a later report of what surrounds them covers them once more.
    undeliverable: Vec<u64>,
}

impl Account {
    /// Counts what an event of the link says.
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Detached { why, .. } => {
                self.links.0.lost.fetch_add(1, Relaxed);
                if let Lost::Dead(evidence) = why {
                    self.links.0.dead(*evidence).fetch_add(1, Relaxed);
                    if self.links.answers_pings() == Some(true) {
                        // Another may stand there by now.
                        self.links.note_pings(None);
                    }
                }
            }
            Event::PingsUnanswered => self.links.note_pings(Some(false)),
            Event::PingsAnswered => self.links.note_pings(Some(true)),
            Event::Report(Report::Unknown(first, last)) => {
                let count = self.not_told_before(*first, *last);
                self.unknown += count;
                self.links.0.unknown.fetch_add(count, Relaxed);
            }
            Event::Report(Report::NotDelivered(first, last)) => {
                self.not_delivered(self.not_told_before(*first, *last));
            }
            Event::Report(Report::Undeliverable(number, _)) => {
                self.undeliverable.push(*number);
                self.links.0.undeliverable.fetch_add(1, Relaxed);
            }
            _ => {}
        }
    }

    /// Messages of the visitor that the link did not take any more.
    pub(crate) fn not_delivered(&mut self, count: u64) {
        self.not_delivered += count;
        self.links.0.not_delivered.fetch_add(count, Relaxed);
    }

    fn not_told_before(&self, first: u64, last: u64) -> u64 {
        let before = self.undeliverable.iter().filter(|number| (first..=last).contains(number)).count();
        (last + 1 - first).saturating_sub(before as u64)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
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
        let link = Link::to("ws://127.0.0.1:1/").unwrap().connect();
        link.send(Message::text("four")).await.unwrap();
        let mut account = links.open(link.sender(), None);
        assert_eq!(links.figures().kept_bytes, 4);
        let report = |report| Event::Report(report);
        account.note(&report(Report::Undeliverable(3, Message::text("x"))));
        account.note(&report(Report::Unknown(1, 5)));
        account.note(&report(Report::NotDelivered(6, 6)));
        account.not_delivered(1);
        for why in [Lost::Dead(Evidence::Frozen), Lost::Broken(String::new())] {
            account.note(&Event::Detached { why, retry_in: std::time::Duration::ZERO });
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
}
