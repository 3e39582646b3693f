//! Limits on concurrent connections: the machine is [`Admission`], and a permit counts its connection until it is dropped.
//! [`Group`] has the limits on opening WebSockets. Refusals are counted by cause, and logged together.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_proto::admission::{Admission, AdmissionConfig, Admitted, OpeningConfig, Refused};
use mainstay_proto::proxies::Proxies;

use super::config::Config;
use super::group::Group;
use super::stats::Counters;
use crate::clock::now;
use crate::driver;

/// The limits on connections of one server.
pub(super) struct Gate {
    admission: Mutex<Admission>,
    /// Without a limit no connection is counted.
    is_limited: AtomicBool,
    /// Whether connections are counted by address.
    counts_addresses: AtomicBool,
    /// Where only the total is limited, each WebSocket counts by holding one more reference to this, and costs nothing else.
    tickets: Arc<driver::Permit>,
    /// The limits on opening WebSockets.
    pub(super) openings: Group,
    proxies: RwLock<Proxies>,
    log: RefusalLog,
}

/// Counts a connection until it is dropped.
pub(super) struct Permit {
    gate: Arc<Gate>,
    /// `None`: it counts in total only.
    address: Option<IpAddr>,
    verdict: Verdict,
    /// Whether the connection counts as a ticket.
    is_ticket: AtomicBool,
}

/// What a connection gets that was accepted.
#[derive(Clone, Copy)]
enum Verdict {
    Admitted,
    /// The requests that do not resume a session are refused.
    Resumes(Refusal),
    Refused(Refusal),
}

/// The response to a connection over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) why: Refused,
    pub(super) wait: Duration,
}

impl Gate {
    pub(super) fn new(config: &Config, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            admission: Mutex::new(Admission::new(config.admission, seed)),
            is_limited: AtomicBool::new(config.admission != AdmissionConfig::default()),
            counts_addresses: AtomicBool::new(config.admission.per_address.is_some()),
            tickets: Arc::default(),
            openings: Group::new(opening_limits(config.openings, config.admission)),
            proxies: RwLock::new(config.proxies.clone()),
            log: RefusalLog::default(),
        })
    }

    pub(super) fn set_limits(&self, admission: AdmissionConfig, openings: OpeningConfig) {
        self.admission().set_config(admission);
        self.is_limited.store(admission != AdmissionConfig::default(), Relaxed);
        self.counts_addresses.store(admission.per_address.is_some(), Relaxed);
        self.openings.set_limits(opening_limits(openings, admission));
    }

    pub(super) fn set_proxies(&self, proxies: Proxies) {
        *self.proxies.write().unwrap_or_else(PoisonError::into_inner) = proxies;
    }

    /// The address of the client whose request came over a connection from `peer`.
    pub(super) fn client(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<SocketAddr> {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner).client(peer, headers)
    }

    pub(super) fn is_proxy(&self, peer: Option<IpAddr>) -> bool {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner).trusts_peer(peer)
    }

    /// Counts a connection that was accepted. One of a trusted proxy counts in total only, because its requests may be of
    /// many clients.
    ///
    /// # Errors
    /// The connection must be dropped.
    pub(super) fn arrive(self: &Arc<Self>, address: IpAddr, stats: &Counters) -> Result<Option<Permit>, ()> {
        if !self.is_limited.load(Relaxed) {
            return Ok(None);
        }
        // A peer without an address counts as the unspecified one.
        let peer = Some(address).filter(|address| !address.is_unspecified());
        let counts = self.counts_addresses.load(Relaxed) && !self.is_proxy(peer);
        let mut admission = self.admission();
        let tickets = Arc::strong_count(&self.tickets) - 1;
        let admitted = match counts {
            true => admission.arrive_beside(address, tickets),
            false => admission.arrive_in_total(tickets),
        };
        drop(admission);
        let (verdict, refused) = match admitted {
            Admitted::Yes => (Some(Verdict::Admitted), None),
            Admitted::Resume(why, wait) => (Some(Verdict::Resumes(Refusal { why, wait })), None),
            Admitted::No(why, wait) => (Some(Verdict::Refused(Refusal { why, wait })), Some(why)),
            Admitted::Dropped(why) => (None, Some(why)),
        };
        refused.into_iter().for_each(|why| self.note_refused(why, false, stats));
        let verdict = verdict.ok_or(())?;
        let (gate, address) = (Arc::clone(self), counts.then_some(address));
        Ok(Some(Permit { gate, address, verdict, is_ticket: AtomicBool::new(false) }))
    }

    /// Counts a refusal, and logs it with others of its cause.
    pub(super) fn note_refused(&self, why: Refused, is_of_route: bool, stats: &Counters) {
        let counter = if is_of_route { &stats.refused_route } else { stats.refused(why) };
        Counters::add(counter, 1);
        self.log.note(why, is_of_route);
    }

    fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections of an address are limited when they are accepted, and again when they open a WebSocket: by then the
/// address behind a proxy is known, and whether a connection over the limit resumes a session.
fn opening_limits(openings: OpeningConfig, admission: AdmissionConfig) -> OpeningConfig {
    let limits = [openings.connections_per_address, admission.per_address];
    OpeningConfig { connections_per_address: limits.into_iter().flatten().min(), ..openings }
}

impl Permit {
    /// Set if this request only gets this response.
    pub(super) fn refused(&self, resumes: impl FnOnce() -> bool, stats: &Counters) -> Option<Refusal> {
        match self.verdict {
            Verdict::Admitted => None,
            Verdict::Refused(refusal) => Some(refusal),
            Verdict::Resumes(_) if resumes() => None,
            Verdict::Resumes(refusal) => {
                self.gate.note_refused(refusal.why, false, stats);
                Some(refusal)
            }
        }
    }

    /// Returns the permit of a connection that became a WebSocket: it may stay for days.
    pub(super) fn keep(self: Arc<Self>) -> Arc<driver::Permit> {
        if self.address.is_some() {
            return Arc::new(driver::Permit { _held: Some(self) });
        }
        let mut admission = self.gate.admission();
        let ticket = Arc::clone(&self.gate.tickets);
        if !self.is_ticket.swap(true, Relaxed) {
            admission.leave_total();
        }
        ticket
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut admission = self.gate.admission();
        match (self.verdict, self.address) {
            (Verdict::Refused(_), _) => admission.refused(),
            (_, Some(address)) => admission.leave(address),
            (_, None) if self.is_ticket.load(Relaxed) => {}
            (_, None) => admission.leave_total(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // 429 asks one client to be slower, 503 all of them.
        let (status, line) = match self.why {
            Refused::Full => {
                (StatusCode::SERVICE_UNAVAILABLE, "the server has too many connections, come back\n")
            }
            Refused::Rate => {
                (StatusCode::SERVICE_UNAVAILABLE, "too many clients are connecting, come back\n")
            }
            Refused::Address => {
                (StatusCode::TOO_MANY_REQUESTS, "your address has too many connections, come back\n")
            }
            Refused::AddressRate => {
                (StatusCode::TOO_MANY_REQUESTS, "your address connects too often, come back\n")
            }
            Refused::Principal => {
                (StatusCode::TOO_MANY_REQUESTS, "you have too many connections, come back\n")
            }
            Refused::PrincipalRate => (StatusCode::TOO_MANY_REQUESTS, "you connect too often, come back\n"),
        };
        let whole = self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0);
        let headers = [
            (header::RETRY_AFTER, HeaderValue::from(whole)),
            (header::CONNECTION, HeaderValue::from_static("close")),
        ];
        (status, headers, line).into_response()
    }
}

/// Logs refusals: the first of a cause at once, then at most one line every 10 s with their number, because a crowd is
/// refused by the thousand.
#[derive(Default)]
struct RefusalLog([Refusals; CAUSES.len()]);

#[derive(Default)]
struct Refusals {
    count: AtomicU64,
    logged: Mutex<Option<Instant>>,
}

const CAUSES: [&str; 7] =
    ["connections", "address", "principal", "address-rate", "principal-rate", "accept-rate", "route"];
const LOG_EVERY: Duration = Duration::from_secs(10);

impl RefusalLog {
    fn note(&self, why: Refused, is_of_route: bool) {
        let cause = match why {
            _ if is_of_route => 6,
            Refused::Full => 0,
            Refused::Address => 1,
            Refused::Principal => 2,
            Refused::AddressRate => 3,
            Refused::PrincipalRate => 4,
            Refused::Rate => 5,
        };
        let Some((refusals, cause)) = self.0.get(cause).zip(CAUSES.get(cause)) else { return };
        refusals.count.fetch_add(1, Relaxed);
        let now = now();
        let is_due = {
            let mut logged = refusals.logged.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_EVERY);
            *logged = logged.filter(|_| !is_due).or(Some(now));
            is_due
        };
        if is_due {
            let count = refusals.count.swap(0, Relaxed);
            tracing::warn!(
                cause,
                count,
                "clients are refused by a limit; `count` is the number since the last line"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(connections: Option<usize>, per_address: Option<usize>) -> Arc<Gate> {
        Gate::new(&Config::new().admission(AdmissionConfig { connections, per_address }), 1)
    }

    fn is_refused(permit: &Permit) -> bool {
        permit.refused(|| false, &Counters::default()).is_some()
    }

    #[test]
    fn a_connection_counts_once_before_and_after_it_became_a_websocket() {
        for per_address in [None, Some(100)] {
            let gate = gate(Some(2), per_address);
            let (stats, address) = (Counters::default(), [127, 0, 0, 1].into());
            let arrive = || gate.arrive(address, &stats).unwrap().map(Arc::new).unwrap();
            let http = arrive();
            let kept = Arc::clone(&http).keep();
            let second = arrive();
            assert!(!is_refused(&second), "the first counts once, though two permits exist");
            drop(http);
            assert!(is_refused(&arrive()));
            drop(second);
            assert!(!is_refused(&arrive()));
            drop(kept);
            let both = [arrive(), arrive()];
            assert!(both.iter().all(|permit| !is_refused(permit)), "no connection is counted any more");
        }
    }

    #[test]
    fn a_lock_that_a_panic_poisoned_goes_on_counting() {
        let gate = gate(Some(1), None);
        let held = Arc::clone(&gate);
        let panicked = std::thread::spawn(move || {
            let _guard = held.admission();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let (stats, address) = (Counters::default(), [127, 0, 0, 1].into());
        let arrive = || gate.arrive(address, &stats).unwrap().unwrap();
        let first = arrive();
        assert!(!is_refused(&first) && is_refused(&arrive()));
        drop(first);
        assert!(!is_refused(&arrive()));
        assert_eq!(stats.snapshot().refused_full, 1);
    }

    #[test]
    fn limits_change_while_connections_are_open_and_each_leaves_where_it_counted() {
        let gate = gate(None, None);
        let (stats, address) = (Counters::default(), [127, 0, 0, 1].into());
        assert!(gate.arrive(address, &stats).unwrap().is_none(), "without a limit nothing is counted");
        let set = |connections, per_address| {
            gate.set_limits(AdmissionConfig { connections, per_address }, OpeningConfig::default());
        };
        let arrive = || gate.arrive(address, &stats).unwrap().unwrap();
        set(Some(10), None);
        let in_total = arrive();
        set(Some(10), Some(1));
        let by_address = arrive();
        assert!(!is_refused(&by_address) && is_refused(&arrive()));
        drop(in_total);
        assert!(is_refused(&arrive()), "the one that left did not count for its address");
        drop(by_address);
        assert!(!is_refused(&arrive()));
    }

    #[test]
    fn a_connection_over_the_limit_of_its_address_may_only_resume_and_a_proxy_has_no_such_limit() {
        let proxies = Proxies::new(mainstay_proto::proxies::Network::parse("10.0.0.1"), Default::default());
        let admission = AdmissionConfig { connections: None, per_address: Some(1) };
        let gate = Gate::new(&Config::new().admission(admission).proxies(proxies), 1);
        let stats = Counters::default();
        let arrive = |address: [u8; 4]| gate.arrive(address.into(), &stats).unwrap().unwrap();
        let _first = arrive([192, 0, 2, 1]);
        let second = arrive([192, 0, 2, 1]);
        assert!(second.refused(|| true, &stats).is_none() && second.refused(|| false, &stats).is_some());
        assert_eq!(stats.snapshot().refused_address, 1);
        let of_proxy: Vec<_> = (0..20).map(|_| arrive([10, 0, 0, 1])).collect();
        assert!(of_proxy.iter().all(|permit| !is_refused(permit)));
    }
}
