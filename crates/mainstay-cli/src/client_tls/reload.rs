//! Takes changed files of TLS into use: at SIGHUP, and by itself when they change.
//!
//! Files are compared by what the file system says of them, every [`INTERVAL`], and loaded once they have not changed for one
//! interval: a certificate and its key are written one after the other. Wrong files change nothing, and are tried again when
//! one of them changes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mainstay::server::Tls;
use mainstay::server::rustls::crypto::ring::Ticketer;
use mainstay::server::rustls::server::ProducesTickets;

use super::certificates::Expiry;
use super::{Loaded, TlsSection};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// A certificate is reported in the log when it has fewer days left.
const SOON: f64 = 7.0;

/// TLS of all listeners that speak it.
pub(crate) struct ClientTls {
    pub(crate) tls: Tls,
    section: TlsSection,
    /// Makes tickets where no file has their keys; it stays over a reload, and so do its tickets.
    tickets: Arc<dyn ProducesTickets>,
    /// What the file system said of the files that were tried last.
    tried: Vec<Seen>,
}

/// What the file system says of a file. `None`: it cannot be read.
type Seen = Option<(SystemTime, u64, (u64, u64))>;

/// How often files were taken into use, and how often they were refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reloads {
    pub(crate) applied: u64,
    pub(crate) refused: u64,
}

/// What the metrics show; this process has one TLS.
static FIGURES: Mutex<(Vec<Expiry>, Reloads)> = Mutex::new((Vec::new(), Reloads { applied: 0, refused: 0 }));

/// Returns when each certificate in use expires, and the reloads.
pub(crate) fn figures() -> (Vec<Expiry>, Reloads) {
    FIGURES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl ClientTls {
    /// Reads the files of the section.
    ///
    /// # Errors
    /// One line that names the setting, the file and what is wrong with it.
    pub(crate) fn new(section: TlsSection) -> Result<Self, String> {
        section.check()?;
        let tickets = Ticketer::new().map_err(|error| format!("tls: no keys for tickets: {error}"))?;
        let tried = seen(&section.files());
        let loaded = section.load(&tickets)?;
        let tls = Tls::new(Arc::clone(&loaded.config));
        in_use(loaded, |_| {});
        Ok(Self { tls, section, tickets, tried })
    }

    /// Takes the files into use as they are now, with these settings. Wrong ones are refused, and the old ones kept; the log
    /// and the metrics say so.
    pub(crate) fn reload(&mut self, section: TlsSection) -> Result<(), String> {
        self.tried = seen(&section.files());
        let checked = match section.is_on() {
            true => section.check(),
            false => Err("tls.certificates: cannot be removed while the process runs; restart it".to_owned()),
        };
        match checked.and_then(|()| section.load(&self.tickets)) {
            Ok(loaded) => {
                self.tls.replace(Arc::clone(&loaded.config));
                self.section = section;
                in_use(loaded, |reloads| reloads.applied += 1);
                tracing::info!("TLS: the changed files are in use");
                Ok(())
            }
            Err(error) => {
                FIGURES.lock().unwrap_or_else(PoisonError::into_inner).1.refused += 1;
                tracing::error!(error, "TLS: the changed files are refused, and the old ones stay in use");
                Err(error)
            }
        }
    }

    /// Reloads the files whenever they have changed, until it is dropped.
    pub(crate) async fn watch(this: Arc<Mutex<Self>>) -> std::convert::Infallible {
        let mut last = Vec::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let this = Arc::clone(&this);
            let before = std::mem::take(&mut last);
            // Files may be on a slow disk, or behind a network.
            let looked = tokio::task::spawn_blocking(move || {
                let mut this = this.lock().unwrap_or_else(PoisonError::into_inner);
                let now = seen(&this.section.files());
                if now != this.tried && now == before {
                    let section = this.section.clone();
                    let _ = this.reload(section); // logged there
                }
                now
            });
            last = looked.await.unwrap_or_default();
        }
    }
}

/// Notes what is in use now, and says which certificates must be renewed.
fn in_use(loaded: Loaded, count: impl FnOnce(&mut Reloads)) {
    for expiry in loaded.expiries.iter().filter(|expiry| expiry.days_left() < SOON) {
        let (chain, days) = (expiry.chain.display(), expiry.days_left().floor());
        tracing::warn!(%chain, days, "TLS: this certificate expires soon, or has expired; renew it");
    }
    let mut figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    figures.0 = loaded.expiries;
    count(&mut figures.1);
}

fn seen(files: &[PathBuf]) -> Vec<Seen> {
    use std::os::unix::fs::MetadataExt;
    let each = |file: &PathBuf| {
        let found = std::fs::metadata(file).ok()?;
        Some((found.modified().ok()?, found.len(), (found.dev(), found.ino())))
    };
    files.iter().map(each).collect()
}
