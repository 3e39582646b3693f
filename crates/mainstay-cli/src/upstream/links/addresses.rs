//! The addresses of one backend: the health of each, and the pool that chooses among them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::Notify;

use super::{Links, is_unavailable};
use crate::upstream::backend_health::{self, BackendHealth, Failure, Line};
use crate::upstream::pool::{self, Fault, Pool, PoolConfig, PoolEvent};

/// The addresses, in the order of the configuration.
pub(super) struct Addresses {
    names: Box<[Box<str>]>,
    health: Mutex<Health>,
    /// For each: the time of the next probe changed.
    changed: Box<[Arc<Notify>]>,
}

pub(super) struct Health {
    backends: Vec<Backend>,
    pub(super) pool: Pool,
}

struct Backend {
    health: BackendHealth,
    failures: u64,
    ejections: u64,
}

/// The figures of one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AddressFigures {
    pub(crate) name: Box<str>,
    pub(crate) up: bool,
    pub(crate) ejected: bool,
    /// Links, requests and attempts that use it now.
    pub(crate) uses: u64,
    pub(crate) failures: u64,
    pub(crate) ejections: u64,
}

/// A use of an address: by a link, a request, or an attempt. Counted until it is dropped.
pub(crate) struct Lease {
    links: Links,
    pub(crate) address: usize,
}

impl Lease {
    pub(super) fn new(links: Links, address: usize) -> Self {
        Self { links, address }
    }
}

/// The probes of one address that are due.
pub(crate) struct DueProbes {
    links: Links,
    changed: Arc<Notify>,
    address: usize,
}

impl DueProbes {
    pub(super) fn new(links: &Links, address: usize) -> Self {
        let changed = links.0.addresses.changed.get(address).cloned().unwrap_or_default();
        Self { links: links.clone(), changed, address }
    }

    /// Waits for the next probe that is due.
    pub(crate) async fn next(&self) {
        loop {
            let due = {
                let mut health = self.links.0.addresses.health();
                if health.backend(self.address).is_some_and(|backend| backend.poll_probe(Instant::now())) {
                    return;
                }
                health.next_probe(self.address)
            };
            let due = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let addresses = &self.links.0.addresses;
        if addresses.count() > 1 {
            addresses.health().pool.release(self.address);
        }
    }
}

impl Addresses {
    pub(super) fn new(
        now: Instant,
        names: &[Box<str>],
        pool: PoolConfig,
        interval: Option<Duration>,
    ) -> Self {
        let backends = names.iter().map(|_| Backend {
            health: BackendHealth::new(now, interval),
            failures: 0,
            ejections: 0,
        });
        let health = Health {
            backends: backends.collect(),
            pool: Pool::new(pool, names.iter().map(|name| hash(name.as_bytes()))),
        };
        let changed = names.iter().map(|_| Arc::default()).collect();
        Self { names: names.into(), health: Mutex::new(health), changed }
    }

    pub(super) fn count(&self) -> usize {
        self.names.len()
    }

    pub(super) fn choose(&self, key: Option<u64>, tried: &[usize]) -> usize {
        if self.count() == 1 {
            return 0;
        }
        self.update(0, |health| health.pool.choose(Instant::now(), key, tried))
    }

    /// Feeds the machines one input about an address, and logs their lines.
    pub(super) fn update<R>(&self, address: usize, input: impl FnOnce(&mut Health) -> R) -> R {
        let mut health = self.health();
        let before = health.next_probe(address);
        let result = input(&mut health);
        let lines = health.lines(address);
        let events = health.events();
        let has_changed = health.next_probe(address) != before;
        drop(health);
        if let Some(changed) = self.changed.get(address).filter(|_| has_changed) {
            changed.notify_one();
        }
        let name = |address: usize| self.names.get(address).filter(|_| self.count() > 1).map(|name| &**name);
        lines.into_iter().for_each(|line| backend_health::log(line, name(address)));
        for event in events {
            pool::log(event, name(event.address()));
        }
        result
    }

    pub(super) fn not_ready(&self) -> Option<String> {
        let health = self.health();
        let reasons: Option<Vec<String>> =
            health.backends.iter().map(|backend| backend.health.not_ready()).collect();
        let mut reasons = reasons?.into_iter();
        match (self.count(), reasons.next()) {
            (1, Some(reason)) => Some(reason),
            (count, Some(reason)) => Some(format!("none of {count} addresses: {reason}")),
            (_, None) => None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.health().backends.iter().any(|backend| backend.health.is_up())
    }

    /// Returns for each whether it is up, and why the latest attempt failed.
    pub(super) fn states(&self) -> Vec<(bool, Option<String>)> {
        let state = |backend: &Backend| {
            let failure = backend.health.failure().map(|failure| failure.why.clone());
            (backend.health.is_up(), failure)
        };
        self.health().backends.iter().map(state).collect()
    }

    pub(super) fn figures(&self) -> Vec<AddressFigures> {
        if self.count() == 1 {
            return Vec::new();
        }
        let health = self.health();
        #[allow(clippy::borrowed_box)] // The iterator's item.
        let figures = |(index, (name, backend)): (usize, (&Box<str>, &Backend))| AddressFigures {
            name: name.clone(),
            up: backend.health.is_up(),
            ejected: health.pool.is_ejected(index),
            uses: health.pool.uses(index),
            failures: backend.failures,
            ejections: backend.ejections,
        };
        self.names.iter().zip(&health.backends).enumerate().map(figures).collect()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    pub(super) fn backend(&mut self, address: usize) -> Option<&mut BackendHealth> {
        self.backends.get_mut(address).map(|backend| &mut backend.health)
    }

    pub(super) fn handle_failed(&mut self, now: Instant, address: usize, failure: Failure) {
        if let Some(fault) = failure.reason.fault() {
            self.pool.handle_failed(now, address, fault);
        }
        if let Some(backend) = self.backends.get_mut(address) {
            backend.failures += 1;
            backend.health.handle_failed(now, failure);
        }
    }

    pub(super) fn handle_status(&mut self, now: Instant, address: usize, status: StatusCode) {
        if is_unavailable(status) {
            self.pool.handle_failed(now, address, Fault::Response);
        }
        if let Some(backend) = self.backend(address) {
            backend.handle_status(now, status.as_u16());
        }
    }

    fn next_probe(&self, address: usize) -> Option<Instant> {
        self.backends.get(address)?.health.poll_timeout()
    }

    fn lines(&mut self, address: usize) -> Vec<Line> {
        let Some(backend) = self.backend(address) else { return Vec::new() };
        std::iter::from_fn(|| backend.poll_line()).collect()
    }

    fn events(&mut self) -> Vec<PoolEvent> {
        let events: Vec<PoolEvent> = std::iter::from_fn(|| self.pool.poll_event()).collect();
        for event in &events {
            if let PoolEvent::Ejected { address, .. } = event
                && let Some(backend) = self.backends.get_mut(*address)
            {
                backend.ejections += 1;
            }
        }
        events
    }
}

/// Returns a hash that is the same in every process: gateways with the same addresses choose alike.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    use sha2::{Digest, Sha256};
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
