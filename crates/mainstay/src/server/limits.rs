//! Limits on concurrent connections: the machine is [`Admission`], and a permit counts its connection until it is dropped.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use mainstay_proto::admission::{Admission, AdmissionConfig, Admitted, Refused};

use super::stats::Counters;
use crate::driver;

/// The limits on connections of one server.
pub(super) struct Gate {
    /// `None` without limits: then no connection is counted.
    admission: Option<Mutex<Admission>>,
    /// Whether connections are counted by address.
    counts_addresses: bool,
    /// Where only the total is limited, each WebSocket counts by holding one more reference to this, and costs nothing else.
    tickets: Arc<driver::Permit>,
}

/// Counts a connection until it is dropped.
pub(super) struct Permit {
    gate: Arc<Gate>,
    address: IpAddr,
    refused: Option<Refusal>,
    /// Whether the connection counts as a ticket.
    is_ticket: AtomicBool,
}

/// The response to a connection over a limit.
#[derive(Clone, Copy)]
pub(super) struct Refusal {
    why: Refused,
    wait: Duration,
}

impl Gate {
    pub(super) fn new(config: AdmissionConfig, seed: u64) -> Arc<Self> {
        let is_limited = config != AdmissionConfig::default();
        Arc::new(Self {
            admission: is_limited.then(|| Mutex::new(Admission::new(config, seed))),
            counts_addresses: config.per_address.is_some(),
            tickets: Arc::default(),
        })
    }

    /// Counts a connection that was accepted.
    ///
    /// # Errors
    /// The connection must be dropped.
    pub(super) fn arrive(self: &Arc<Self>, address: IpAddr, stats: &Counters) -> Result<Option<Permit>, ()> {
        let Some(mut admission) = self.admission() else { return Ok(None) };
        let tickets = Arc::strong_count(&self.tickets) - 1;
        let (refused, dropped) = match admission.arrive_beside(address, tickets) {
            Admitted::Yes => (None, None),
            Admitted::No(why, wait) => (Some(Refusal { why, wait }), None),
            Admitted::Dropped(why) => (None, Some(why)),
        };
        drop(admission);
        if let Some(why) = dropped.or(refused.map(|refused| refused.why)) {
            Counters::add(stats.refused(why), 1);
            tracing::debug!(%address, ?why, "connection refused");
        }
        match dropped {
            Some(_) => Err(()),
            None => {
                let is_ticket = AtomicBool::new(false);
                Ok(Some(Permit { gate: Arc::clone(self), address, refused, is_ticket }))
            }
        }
    }

    fn admission(&self) -> Option<MutexGuard<'_, Admission>> {
        Some(self.admission.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Permit {
    /// Set if the connection only gets this response.
    pub(super) fn refused(&self) -> Option<Refusal> {
        self.refused
    }

    /// Returns the permit of a connection that became a WebSocket: it may stay for days.
    pub(super) fn keep(self: Arc<Self>) -> Arc<driver::Permit> {
        let Some(mut admission) = self.gate.admission().filter(|_| !self.gate.counts_addresses) else {
            return Arc::new(driver::Permit { _held: Some(self) });
        };
        let ticket = Arc::clone(&self.gate.tickets);
        if !self.is_ticket.swap(true, Relaxed) {
            admission.leave(self.address);
        }
        ticket
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(mut admission) = self.gate.admission() else { return };
        match self.refused {
            None if self.is_ticket.load(Relaxed) => {}
            None => admission.leave(self.address),
            Some(_) => admission.refused(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let line = match self.why {
            Refused::Full => "the server has too many connections, come back\n",
            Refused::Address => "your address has too many connections, come back\n",
        };
        let headers = [
            (header::RETRY_AFTER, HeaderValue::from(self.wait.as_secs())),
            (header::CONNECTION, HeaderValue::from_static("close")),
        ];
        (StatusCode::SERVICE_UNAVAILABLE, headers, line).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_once_before_and_after_it_became_a_websocket() {
        for per_address in [None, Some(100)] {
            let gate = Gate::new(AdmissionConfig { connections: Some(2), per_address }, 1);
            let (stats, address) = (Counters::default(), [127, 0, 0, 1].into());
            let arrive = || gate.arrive(address, &stats).unwrap().map(Arc::new).unwrap();
            let http = arrive();
            let kept = Arc::clone(&http).keep();
            let second = arrive();
            assert!(second.refused().is_none(), "the first counts once, though two permits exist");
            drop(http);
            assert!(arrive().refused().is_some());
            drop(second);
            assert!(arrive().refused().is_none());
            drop(kept);
            let both = [arrive(), arrive()];
            assert!(
                both.iter().all(|permit| permit.refused().is_none()),
                "no connection is counted any more"
            );
        }
    }

    #[test]
    fn a_lock_that_a_panic_poisoned_goes_on_counting() {
        let gate = Gate::new(AdmissionConfig { connections: Some(1), per_address: None }, 1);
        let held = Arc::clone(&gate);
        let panicked = std::thread::spawn(move || {
            let _guard = held.admission();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let (stats, address) = (Counters::default(), [127, 0, 0, 1].into());
        let refused =
            |permit: &Option<Permit>| permit.as_ref().is_some_and(|permit| permit.refused().is_some());
        let first = gate.arrive(address, &stats).unwrap();
        assert!(!refused(&first) && refused(&gate.arrive(address, &stats).unwrap()));
        drop(first);
        assert!(!refused(&gate.arrive(address, &stats).unwrap()));
        assert_eq!(stats.snapshot().refused_full, 1);
    }
}
