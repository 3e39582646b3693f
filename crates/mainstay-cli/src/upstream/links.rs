//! All links to the backend: their figures, their failures, and the messages that each of them may have lost.
//!
//! Links and requests choose an address here, and report every attempt. This is the driver of [`BackendHealth`], one for each
//! address, and of [`Pool`].

mod addresses;
mod dialled;
mod monitor;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use mainstay::client::{Sender, State};
use mainstay::server::timeline::{self, ClientName, Timeline};
use mainstay::{Evidence, SessionId};
use slab::Slab;
use tokio::task::AbortHandle;

pub(crate) use self::addresses::{AddressFigures, DueProbes, Lease, hash};
use self::addresses::{Addresses, Health};
pub(crate) use self::dialled::Dialled;
pub(crate) use self::monitor::LinkMonitor;
use crate::observe::spans::LinkSpans;
use crate::upstream::backend_health::{Failure, Reason};
use crate::upstream::error::UpstreamError;
use crate::upstream::pool::PoolConfig;

/// Waiting links dial spread over at most this time once the backend can be reached.
const RECONNECT_SPREAD: Duration = Duration::from_secs(1);

/// All links. Cheap to clone; clones share everything.
#[derive(Clone)]
pub(crate) struct Links(Arc<Shared>);

struct Shared {
    addresses: Addresses,
    /// The tasks that probe the addresses.
    probing: Mutex<Probing>,
    figures: Arc<Counters>,
    open: Arc<Mutex<Slab<Sender>>>,
    /// Where the links of sessions are noted.
    timeline: OnceLock<Timeline>,
}

/// The probes of the addresses.
#[derive(Default)]
enum Probing {
    #[default]
    NotYet,
    By(Vec<AbortHandle>),
    /// No route of the table goes to this backend any more.
    Ended,
}

#[derive(Default)]
struct Counters {
    attached: AtomicU64,
    failed: [AtomicU64; Reason::ALL.len()],
    /// Responses of the backend that refused an opening handshake, by class of status: 3xx, 4xx, 5xx.
    refused: [AtomicU64; 3],
    /// Clients that got 503 or 1013 because the backend cannot be reached.
    unreached: AtomicU64,
    lost: AtomicU64,
    /// Connections that were closed because their client was idle.
    rested: AtomicU64,
    dead_silent: AtomicU64,
    dead_frozen: AtomicU64,
    dead_stalled: AtomicU64,
    unknown: AtomicU64,
    not_delivered: AtomicU64,
    undeliverable: AtomicU64,
    prologues: AtomicU64,
    prologues_failed: AtomicU64,
    recorded_bytes: AtomicU64,
    /// Responses to clients, by class of status: 1xx first.
    requests: [AtomicU64; 5],
    /// Requests that got no complete response of the backend.
    unanswered: AtomicU64,
    pings_unanswered: AtomicU64,
    slow_lost: AtomicU64,
    slow_closed: AtomicU64,
    /// Whether the backend answers Pings, as the latest link observed that found out.
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

/// A snapshot of all figures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// Whether the backend is up: one address at least.
    pub(crate) up: bool,
    /// The figures of each address, if there are several.
    pub(crate) addresses: Vec<AddressFigures>,
    /// Links whose connection is open now.
    pub(crate) attached: u64,
    /// Failed attempts, in the order of [`Reason::ALL`].
    pub(crate) failed: [u64; Reason::ALL.len()],
    /// Clients that were refused with the backend's own status: 3xx, 4xx, 5xx.
    pub(crate) refused: [u64; 3],
    /// Clients that were refused because the backend cannot be reached.
    pub(crate) unreached: u64,
    /// Connections to the backend that were lost.
    pub(crate) lost: u64,
    /// Connections to the backend that were closed because their client was idle.
    pub(crate) rested: u64,
    /// Lost connections that the heartbeat declared dead, by evidence.
    pub(crate) dead_silent: u64,
    pub(crate) dead_frozen: u64,
    pub(crate) dead_stalled: u64,
    /// Messages that may or may not have reached the backend.
    pub(crate) unknown: u64,
    /// Messages that were never written to the backend.
    pub(crate) not_delivered: u64,
    /// Messages that ended three connections of a link.
    pub(crate) undeliverable: u64,
    /// Prologues that were replayed to a new connection completely.
    pub(crate) prologues: u64,
    /// Prologues whose replay failed.
    pub(crate) prologues_failed: u64,
    /// Links that found that the backend answers no Ping.
    pub(crate) pings_unanswered: u64,
    /// Payload bytes kept for the backend.
    pub(crate) kept_bytes: u64,
    /// Payload bytes that links have read and clients have not received.
    pub(crate) unread_bytes: u64,
    /// Responses to clients, by class of status: 1xx first.
    pub(crate) requests: [u64; 5],
    /// Requests that got no complete response of the backend.
    pub(crate) unanswered: u64,
    /// Messages that slow clients lost: dropped, or replaced by later ones.
    pub(crate) slow_lost: u64,
    /// Slow clients that were closed.
    pub(crate) slow_closed: u64,
}

impl Figures {
    /// Adds the figures of several links up. The backends are up if each is.
    pub(crate) fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self { up: true, ..Self::default() }, |sum, one| Self {
            up: sum.up && one.up,
            addresses: Vec::new(),
            attached: sum.attached + one.attached,
            failed: added(sum.failed, one.failed),
            refused: added(sum.refused, one.refused),
            unreached: sum.unreached + one.unreached,
            lost: sum.lost + one.lost,
            rested: sum.rested + one.rested,
            dead_silent: sum.dead_silent + one.dead_silent,
            dead_frozen: sum.dead_frozen + one.dead_frozen,
            dead_stalled: sum.dead_stalled + one.dead_stalled,
            unknown: sum.unknown + one.unknown,
            not_delivered: sum.not_delivered + one.not_delivered,
            undeliverable: sum.undeliverable + one.undeliverable,
            prologues: sum.prologues + one.prologues,
            prologues_failed: sum.prologues_failed + one.prologues_failed,
            pings_unanswered: sum.pings_unanswered + one.pings_unanswered,
            kept_bytes: sum.kept_bytes + one.kept_bytes,
            unread_bytes: sum.unread_bytes + one.unread_bytes,
            requests: added(sum.requests, one.requests),
            unanswered: sum.unanswered + one.unanswered,
            slow_lost: sum.slow_lost + one.slow_lost,
            slow_closed: sum.slow_closed + one.slow_closed,
        })
    }
}

fn added<const N: usize>(one: [u64; N], other: [u64; N]) -> [u64; N] {
    std::array::from_fn(|at| one.get(at).zip(other.get(at)).map_or(0, |(one, other)| one + other))
}

impl Default for Links {
    /// Links to the only address.
    fn default() -> Self {
        Self::new(&["".into()], PoolConfig::default(), None)
    }
}

impl Links {
    /// Links to these addresses, one at least. `interval`: of probes while an address is up.
    pub(crate) fn new(addresses: &[Box<str>], pool: PoolConfig, interval: Option<Duration>) -> Self {
        let addresses = Addresses::new(Instant::now(), addresses, pool, interval);
        let (probing, figures, open) = (Mutex::default(), Arc::default(), Arc::default());
        Self(Arc::new(Shared { addresses, probing, figures, open, timeline: OnceLock::new() }))
    }

    /// Lets these links continue the figures of others, which went to other addresses.
    pub(crate) fn continuing(self, others: &Self) -> Self {
        let figures = Arc::clone(&others.0.figures);
        let open = Arc::clone(&others.0.open);
        match Arc::try_unwrap(self.0) {
            Ok(shared) => Self(Arc::new(Shared { figures, open, ..shared })),
            Err(shared) => Self(shared),
        }
    }

    /// Sets the timeline in which the links of sessions are noted. Call it once, before the first link.
    pub(crate) fn note_in(&self, timeline: &Timeline) {
        let _ = self.0.timeline.set(timeline.clone());
    }

    /// Notes an event of a session's link.
    fn note(&self, session: Option<SessionId>, event: timeline::Event) {
        if let (Some(timeline), Some(session)) = (self.0.timeline.get(), session) {
            timeline.note(Some(ClientName::Session(session)), event);
        }
    }

    /// Returns for each address whether it is up, and why the latest attempt to reach it failed.
    pub(crate) fn backends(&self) -> Vec<(bool, Option<String>)> {
        self.0.addresses.states()
    }

    /// Returns a number that links have in common if they report to the health of one backend.
    pub(crate) fn backend_id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Returns a number that links have in common if they have one set of figures.
    pub(crate) fn figures_id(&self) -> usize {
        Arc::as_ptr(&self.0.figures).addr()
    }

    /// Starts the tasks that probe the addresses. Does nothing if they run or were ended.
    pub(crate) fn start_probing(&self, start: impl FnOnce() -> Vec<AbortHandle>) {
        let mut probing = self.0.probing.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*probing, Probing::NotYet) {
            *probing = Probing::By(start());
        }
    }

    /// Ends the probes for good.
    pub(crate) fn stop_probing(&self) {
        let mut probing = self.0.probing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Probing::By(tasks) = std::mem::replace(&mut *probing, Probing::Ended) {
            tasks.iter().for_each(AbortHandle::abort);
        }
    }

    /// Counts one more link until its monitor is dropped. Call it before the link dials. `dialled`: its addresses, if there are
    /// several.
    pub(crate) fn open(
        &self,
        sender: Sender,
        session: Option<SessionId>,
        dialled: Option<Arc<Dialled>>,
        spans: LinkSpans,
    ) -> LinkMonitor {
        let slot = self.list().insert(sender);
        spans.belongs_to(session);
        LinkMonitor::new(self.clone(), slot, session, dialled, spans)
    }

    /// A connection to an address was opened. Waiting links dial now.
    pub(crate) fn reached(&self, address: usize) {
        self.note_up(address, |health| health.pool.handle_connected(Instant::now(), address));
    }

    /// An address responded properly.
    pub(crate) fn answered(&self, address: usize) {
        self.note_up(address, |health| health.pool.handle_answered(Instant::now(), address));
    }

    fn note_up(&self, address: usize, note: impl FnOnce(&mut Health)) {
        let addresses = &self.0.addresses;
        let were_waiting = addresses.update(address, |health| {
            note(health);
            health.backend(address).is_some_and(|backend| backend.handle_reached(Instant::now()))
        });
        if were_waiting {
            tokio::spawn(self.clone().dial_waiting());
        }
    }

    /// An attempt to reach an address failed.
    pub(crate) fn failed(&self, address: usize, failure: Failure) {
        if let Some(counter) = self.0.figures.failed.get(failure.reason.index()) {
            counter.fetch_add(1, Relaxed);
        }
        self.0.addresses.update(address, |health| health.handle_failed(Instant::now(), address, failure));
    }

    /// An address responded to an opening handshake with this status instead of 101, and its client gets it.
    pub(crate) fn refused(&self, address: usize, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).checked_sub(3);
        if let Some(counter) = class.and_then(|class| self.0.figures.refused.get(class)) {
            counter.fetch_add(1, Relaxed);
        }
        self.responded_with(address, status);
    }

    /// As [`refused`](Self::refused), and another address is tried for the client.
    pub(crate) fn responded_with(&self, address: usize, status: StatusCode) {
        if is_unavailable(status) {
            self.reached(address);
        } else {
            self.answered(address);
        }
        self.0.addresses.update(address, |health| health.handle_status(Instant::now(), address, status));
    }

    /// A client was refused because the backend cannot be reached.
    pub(crate) fn refused_unreachable(&self) {
        self.0.figures.unreached.fetch_add(1, Relaxed);
    }

    /// Returns why no client should be sent here yet; `None` once an address was reached.
    pub(crate) fn not_ready(&self) -> Option<String> {
        self.0.addresses.not_ready()
    }

    /// Chooses an address for a request or an attempt; see [`Pool::choose`](crate::upstream::pool::Pool::choose).
    pub(crate) fn choose(&self, key: Option<u64>, tried: &[usize]) -> Lease {
        Lease::new(self.clone(), self.0.addresses.choose(key, tried))
    }

    /// Returns the probes of an address, as they become due.
    pub(crate) fn probes(&self, address: usize) -> DueProbes {
        DueProbes::new(self, address)
    }

    /// Returns how many addresses there are.
    pub(crate) fn count(&self) -> usize {
        self.0.addresses.count()
    }

    /// An open connection to an address was lost.
    fn lost(&self, address: usize, why: &str, waits: bool) {
        self.0.addresses.update(address, |health| {
            if let Some(backend) = health.backend(address) {
                backend.handle_lost(Instant::now(), why, waits);
            }
        });
    }

    /// Makes a link dial that waits for its next attempt: another address is left to try.
    fn dial_now(&self, slot: usize) {
        let sender = self.list().get(slot).cloned();
        if let Some(sender) = sender.filter(|sender| matches!(sender.state(), State::Waiting { .. })) {
            sender.probe_now();
        }
    }

    /// Makes links dial that wait for their next attempt: a thousand links within one second, fewer in less time.
    async fn dial_waiting(self) {
        let is_waiting = |sender: &Sender| matches!(sender.state(), State::Waiting { .. });
        let senders: Vec<Sender> = self.list().iter().map(|(_, sender)| sender.clone()).collect();
        let senders: Vec<Sender> = senders.into_iter().filter(is_waiting).collect();
        let count = u32::try_from(senders.len()).unwrap_or(u32::MAX);
        let spread = RECONNECT_SPREAD.min(Duration::from_millis(1).saturating_mul(count));
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

    /// Returns a snapshot. Walks the list of links.
    pub(crate) fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let figures = &self.0.figures;
        Figures {
            up: self.0.addresses.is_up(),
            addresses: self.0.addresses.figures(),
            attached: read(&figures.attached),
            failed: figures.failed.each_ref().map(read),
            refused: figures.refused.each_ref().map(read),
            unreached: read(&figures.unreached),
            lost: read(&figures.lost),
            rested: read(&figures.rested),
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
            slow_lost: read(&self.0.figures.slow_lost),
            slow_closed: read(&self.0.figures.slow_closed),
        }
    }

    /// A slow client lost messages.
    pub(crate) fn slow_lost(&self, messages: u64) {
        self.0.figures.slow_lost.fetch_add(messages, Relaxed);
    }

    /// A slow client is closed. Returns how many were before.
    pub(crate) fn slow_closed(&self) -> u64 {
        self.0.figures.slow_closed.fetch_add(1, Relaxed)
    }

    /// A client got a response, from the backend or from the gateway.
    pub(crate) fn responded(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.0.figures.requests.get(class) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// A request got no complete response of the backend.
    pub(crate) fn unanswered(&self, address: usize, error: &UpstreamError) {
        if self.attempt_failed(address, error) {
            self.0.figures.unanswered.fetch_add(1, Relaxed);
        }
    }

    /// An attempt of a request failed, and it may go to another address. Returns whether it was not the client's fault.
    pub(crate) fn attempt_failed(&self, address: usize, error: &UpstreamError) -> bool {
        let Some(failure) = Failure::of_request(error) else {
            tracing::debug!(%error, "the client did not finish its request");
            return false;
        };
        let was_reached = !failure.reason.is_down();
        self.failed(address, failure);
        if was_reached {
            self.reached(address);
        }
        true
    }

    /// Returns the payload bytes kept for the backend now.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.0.figures.recorded_bytes.load(Relaxed) + self.sum(Sender::kept_bytes)
    }

    fn sum(&self, bytes: impl Fn(&Sender) -> u64) -> u64 {
        // The list is copied, so that no link waits for the lock meanwhile.
        let open: Vec<Sender> = self.list().iter().map(|(_, sender)| sender.clone()).collect();
        open.iter().map(bytes).sum()
    }

    /// A prologue was replayed to a new connection.
    pub(crate) fn count_prologue(&self) {
        self.0.figures.prologues.fetch_add(1, Relaxed);
    }

    /// The replay of a prologue failed.
    pub(crate) fn count_failed_prologue(&self) {
        self.0.figures.prologues_failed.fetch_add(1, Relaxed);
    }

    /// The recorded bytes of one client changed.
    pub(crate) fn recorded(&self, before: usize, now: usize) {
        self.0.figures.recorded_bytes.fetch_add(now as u64, Relaxed);
        self.0.figures.recorded_bytes.fetch_sub(before as u64, Relaxed);
    }

    /// Returns whether the backend answers Pings, if a link found out.
    pub(crate) fn answers_pings(&self) -> Option<bool> {
        *self.0.figures.answers_pings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores what a link found out about Pings; logs it if it is news.
    fn note_pings(&self, answered: Option<bool>) {
        if answered == Some(false) {
            self.0.figures.pings_unanswered.fetch_add(1, Relaxed);
        }
        let mut known = self.0.figures.answers_pings.lock().unwrap_or_else(PoisonError::into_inner);
        match (answered, std::mem::replace(&mut *known, answered)) {
            (Some(false), None | Some(true)) => tracing::warn!(
                "the backend answers no Ping (RFC 6455 section 5.5.2): messages of clients may be lost with its connection \
                 and are not sent again"
            ),
            (Some(true), Some(false)) => tracing::info!("the backend answers Pings again"),
            _ => {}
        }
    }

    fn list(&self) -> MutexGuard<'_, Slab<Sender>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a status says that this address cannot serve now, which another one may: nginx's `http_502`, `http_503`
/// and `http_504`.
pub(crate) fn is_unavailable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use mainstay::client::{Event, FailureKind, Lost, Report};
    use mainstay::{Link, Message};

    use super::*;

    #[tokio::test]
    async fn each_message_is_counted_once_by_its_first_fate_and_open_links_by_their_bytes() {
        let links = Links::default();
        let link = Link::builder("ws://127.0.0.1:1/").unwrap().connect();
        link.send(Message::text("four")).await.unwrap();
        let mut monitor = links.open(link.sender(), None, None, LinkSpans::default());
        assert_eq!(links.figures().kept_bytes, 4);
        let report = |report| Event::Report(report);
        monitor.observe(&report(Report::Undeliverable { number: 3, message: Message::text("x") }));
        monitor.observe(&report(Report::Unknown(1..=5)));
        monitor.observe(&report(Report::NotDelivered(6..=6)));
        monitor.not_delivered(1);
        for why in [Lost::Dead(Evidence::Frozen), Lost::Broken("reset".into())] {
            monitor.observe(&Event::Detached { why, next_attempt_in: std::time::Duration::ZERO });
        }
        monitor.observe(&Event::PingsUnanswered);
        assert_eq!((links.answers_pings(), links.figures().pings_unanswered), (Some(false), 1));
        monitor.observe(&Event::PingsAnswered);
        assert_eq!(links.answers_pings(), Some(true));
        let found = links.figures();
        assert_eq!((found.unknown, found.not_delivered, found.undeliverable), (4, 2, 1));
        assert_eq!((found.lost, found.dead_silent, found.dead_frozen), (2, 0, 1));
        drop(monitor);
        assert_eq!((links.figures().kept_bytes, links.figures().unknown), (0, 4));
    }

    #[tokio::test]
    async fn links_that_wait_dial_when_the_backend_is_reached_by_another() {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let links = Links::default();
        let hour = Duration::from_secs(3600);
        // Without help the link dials again in an hour.
        let backoff =
            mainstay::BackoffConfig::new(hour, hour).and_then(|backoff| backoff.first(hour, hour)).unwrap();
        let link = Link::builder(&format!("ws://{address}")).unwrap().backoff(backoff).connect();
        let mut monitor = links.open(link.sender(), None, None, LinkSpans::default());
        let failed = link.event().await.unwrap();
        monitor.observe(&failed);
        assert!(matches!(failed, Event::AttemptFailed { .. }), "{failed:?}");
        assert_eq!(links.figures().failed[Reason::Connect(FailureKind::Refused).index()], 1);
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        links.reached(0);
        let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await;
        assert!(accepted.is_ok(), "the link dials");
    }
}
