//! TLS of one kind of listeners while the process runs: changed settings and files are taken into use as a whole, or not at all.
//!
//! Not here: when that is (`reload` of the gateway).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mainstay::server::Tls;
use mainstay::server::rustls::crypto::ring::Ticketer;
use mainstay::server::rustls::server::ProducesTickets;

use super::certificates::Expiry;
use super::{Loaded, TlsSection};

/// A certificate is reported in the log when it has fewer days left.
const SOON: f64 = 7.0;

/// TLS of all listeners for clients, or of the admin listener.
pub(crate) struct ClientTls {
    /// What the certificates are for.
    purpose: &'static str,
    pub(crate) tls: Tls,
    /// Makes tickets where no file has their keys; it stays over a reload, and so do its tickets.
    tickets: Arc<dyn ProducesTickets>,
    /// The hosts that the certificates in use are for.
    hosts: Arc<RwLock<Vec<String>>>,
}

/// When each certificate in use expires, by purpose, for the metrics.
static EXPIRIES: Mutex<BTreeMap<&str, Vec<Expiry>>> = Mutex::new(BTreeMap::new());

/// Returns when each certificate in use expires, each file once.
pub(crate) fn expiries() -> Vec<Expiry> {
    let all = EXPIRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut expiries: Vec<Expiry> = Vec::new();
    for expiry in all.values().flatten() {
        if !expiries.iter().any(|known| known.chain == expiry.chain) {
            expiries.push(expiry.clone());
        }
    }
    expiries
}

impl ClientTls {
    /// Reads the files of the section. `purpose`: what the listeners are for, a word of its own for each.
    ///
    /// # Errors
    /// One line that begins with the setting, and names the file and what is wrong with it.
    pub(crate) fn new(section: &TlsSection, purpose: &'static str) -> Result<Self, String> {
        let tickets = Ticketer::new().map_err(|error| format!("ticket-keys: none can be made: {error}"))?;
        let loaded = section.load(&tickets)?;
        let tls = Tls::new(Arc::clone(&loaded.config));
        let this = Self { purpose, tls, tickets, hosts: Arc::default() };
        this.note_in_use(loaded);
        Ok(this)
    }

    /// Reads the files of the section as they are now. What is returned is not in use yet.
    ///
    /// # Errors
    /// As [`new`](Self::new): the old files stay in use.
    pub(crate) fn prepare(&self, section: &TlsSection) -> Result<Prepared, String> {
        match section.is_on() {
            true => section.load(&self.tickets).map(Prepared),
            false => {
                Err("certificate: TLS cannot be turned off while the process runs; restart it".to_owned())
            }
        }
    }

    /// Takes prepared files into use for every handshake from now on.
    pub(crate) fn replace(&self, Prepared(loaded): Prepared) {
        self.tls.replace(Arc::clone(&loaded.config));
        self.note_in_use(loaded);
    }

    /// Returns what knows the hosts that the certificates in use are for.
    pub(crate) fn hosts(&self) -> Hosts {
        Hosts(Arc::clone(&self.hosts))
    }

    /// Notes what is in use now, and logs which certificates must be renewed.
    fn note_in_use(&self, loaded: Loaded) {
        for expiry in loaded.expiries.iter().filter(|expiry| expiry.days_left() < SOON) {
            let (chain, days) = (expiry.chain.display(), expiry.days_left().floor());
            tracing::warn!(%chain, days, "this certificate expires soon, or has expired; renew it");
        }
        EXPIRIES.lock().unwrap_or_else(PoisonError::into_inner).insert(self.purpose, loaded.expiries);
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = loaded.hosts;
    }
}

/// The hosts that the certificates in use are for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hosts(Arc<RwLock<Vec<String>>>);

impl Hosts {
    /// Returns whether a certificate in use is for this name or address, given in lower case and without brackets.
    pub(crate) fn contain(&self, host: &str) -> bool {
        let hosts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // A wildcard stands for one label.
        let parent = host.split_once('.').map(|(_, parent)| parent);
        hosts.iter().any(|known| match known.strip_prefix("*.") {
            Some(known) => parent == Some(known),
            None => known == host,
        })
    }
}

/// Files that were read and are right.
pub(crate) struct Prepared(Loaded);
