//! TLS while the process runs: changed settings and files are taken into use as a whole, or not at all.
//!
//! Not here: when that is (`reload` of the gateway).

use std::sync::{Arc, Mutex, PoisonError};

use mainstay::server::Tls;
use mainstay::server::rustls::crypto::ring::Ticketer;
use mainstay::server::rustls::server::ProducesTickets;

use super::certificates::Expiry;
use super::{Loaded, TlsSection};

/// A certificate is reported in the log when it has fewer days left.
const SOON: f64 = 7.0;

/// TLS of all listeners that speak it.
pub(crate) struct ClientTls {
    pub(crate) tls: Tls,
    /// Makes tickets where no file has their keys; it stays over a reload, and so do its tickets.
    tickets: Arc<dyn ProducesTickets>,
}

/// When each certificate in use expires, for the metrics; this process has one TLS.
static EXPIRIES: Mutex<Vec<Expiry>> = Mutex::new(Vec::new());

/// Returns when each certificate in use expires.
pub(crate) fn expiries() -> Vec<Expiry> {
    EXPIRIES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl ClientTls {
    /// Reads the files of the section.
    ///
    /// # Errors
    /// One line that begins with the setting, and names the file and what is wrong with it.
    pub(crate) fn new(section: &TlsSection) -> Result<Self, String> {
        let tickets = Ticketer::new().map_err(|error| format!("ticket-keys: none can be made: {error}"))?;
        let loaded = section.load(&tickets)?;
        let tls = Tls::new(Arc::clone(&loaded.config));
        in_use(loaded);
        Ok(Self { tls, tickets })
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
        in_use(loaded);
    }
}

/// Files that were read and are right.
pub(crate) struct Prepared(Loaded);

/// Notes what is in use now, and logs which certificates must be renewed.
fn in_use(loaded: Loaded) {
    for expiry in loaded.expiries.iter().filter(|expiry| expiry.days_left() < SOON) {
        let (chain, days) = (expiry.chain.display(), expiry.days_left().floor());
        tracing::warn!(%chain, days, "this certificate expires soon, or has expired; renew it");
    }
    *EXPIRIES.lock().unwrap_or_else(PoisonError::into_inner) = loaded.expiries;
}
