//! The observation of one link.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mainstay::SessionId;
use mainstay::client::{Event, Lost, ReasonCode, Report};
use mainstay::server::timeline::{self, Loss};

use super::{Dialled, Links, is_unavailable};
use crate::observe::access_log;
use crate::observe::spans::LinkSpans;
use crate::upstream::backend_health::Failure;

/// Observes one link: counts the messages that may not have reached the backend, and logs them in one line when it is
/// dropped. One line a link, so that a failing backend does not fill the log.
pub(crate) struct LinkMonitor {
    links: Links,
    slot: usize,
    session: Option<SessionId>,
    /// The addresses that the link dials, if there are several.
    dialled: Option<Arc<Dialled>>,
    spans: LinkSpans,
    is_attached: bool,
    /// The latest attempt failed, and another address is left to try.
    tries_another: bool,
    /// The outage is noted in the timeline.
    is_failing: bool,
    unknown: u64,
    not_delivered: u64,
    /// The numbers of undeliverable messages. A later report may cover them again.
    undeliverable: Vec<u64>,
}

impl LinkMonitor {
    /// Starts the observation. `slot`: the link's place in the list of links.
    pub(super) fn new(
        links: Links,
        slot: usize,
        session: Option<SessionId>,
        dialled: Option<Arc<Dialled>>,
        spans: LinkSpans,
    ) -> Self {
        Self {
            links,
            slot,
            session,
            dialled,
            spans,
            is_attached: false,
            tries_another: false,
            is_failing: false,
            unknown: 0,
            not_delivered: 0,
            undeliverable: Vec::new(),
        }
    }

    /// Counts what an event of the link reports.
    pub(crate) fn observe(&mut self, event: &Event) {
        self.spans.observe(event);
        match event {
            Event::Attached { .. } => {
                self.attached(true);
                self.is_failing = false;
                self.links.note(self.session, timeline::Event::BackendReached);
                let address = self.dialled.as_ref().and_then(|dialled| dialled.attached());
                self.links.answered(address.unwrap_or_default());
            }
            Event::Rested => {
                self.attached(false);
                self.links.note(self.session, timeline::Event::BackendRested);
                self.dialled.as_ref().map(|dialled| dialled.detached());
                self.links.0.figures.rested.fetch_add(1, Relaxed);
            }
            Event::AttemptFailed { why, .. } => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    self.links.note(self.session, timeline::Event::BackendUnreachable(Loss::of(why)));
                }
                self.attempt_failed(why);
            }
            Event::Detached { why, next_attempt_in } => {
                self.attached(false);
                self.links.note(self.session, timeline::Event::BackendLost(Loss::of(why)));
                let figures = &self.links.0.figures;
                figures.lost.fetch_add(1, Relaxed);
                if let Lost::Dead(evidence) = why {
                    figures.dead(*evidence).fetch_add(1, Relaxed);
                    if self.links.answers_pings() == Some(true) {
                        // Another backend may be running there by now.
                        self.links.note_pings(None);
                    }
                }
                let why = format!("{why:?}");
                let waits = !next_attempt_in.is_zero();
                let address =
                    self.dialled.as_ref().and_then(|dialled| dialled.detached()).unwrap_or_default();
                self.links.lost(address, &why, waits);
            }
            Event::Ended(end) => {
                self.attached(false);
                if let Some(status) = end.code.and_then(ReasonCode::status) {
                    let address = self.dialled.as_ref().and_then(|dialled| dialled.last());
                    self.links.refused(address.unwrap_or_default(), status);
                }
            }
            Event::PingsUnanswered => self.links.note_pings(Some(false)),
            Event::PingsAnswered => self.links.note_pings(Some(true)),
            Event::Report(Report::Unknown(range)) => {
                let count = self.newly_reported(range);
                self.unknown += count;
                self.links.0.figures.unknown.fetch_add(count, Relaxed);
            }
            Event::Report(Report::NotDelivered(range)) => {
                self.not_delivered(self.newly_reported(range));
            }
            Event::Report(Report::Undeliverable { number, .. }) => {
                self.undeliverable.push(*number);
                self.links.0.figures.undeliverable.fetch_add(1, Relaxed);
            }
            _ => {}
        }
    }

    fn attempt_failed(&mut self, why: &Lost) {
        let Some(failure) = Failure::of(why) else { return };
        let status = match why {
            Lost::Unavailable { code, .. } => code.status(),
            Lost::Refused { status, .. } => *status,
            _ => None,
        };
        let answered = !failure.reason.is_down();
        let failed = self.dialled.as_ref().map(|dialled| dialled.failed(self.links.count()));
        // Without an open attempt the link was given up before it chose an address.
        let Some((address, is_other_left)) = failed.unwrap_or(Some((0, false))) else { return };
        self.links.failed(address, failure);
        match status {
            Some(status) => self.links.refused(address, status),
            None if answered => self.links.reached(address),
            None => {}
        }
        self.tries_another = is_other_left && status.is_none_or(is_unavailable);
        if self.tries_another {
            self.links.dial_now(self.slot);
        }
    }

    /// Returns whether the latest attempt failed, and another address is tried now.
    pub(crate) fn tries_another(&self) -> bool {
        self.tries_another
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

    /// Counts messages of the client that the link did not accept any more.
    pub(crate) fn not_delivered(&mut self, count: u64) {
        self.not_delivered += count;
        self.links.0.figures.not_delivered.fetch_add(count, Relaxed);
    }

    fn newly_reported(&self, range: &RangeInclusive<u64>) -> u64 {
        let before = self.undeliverable.iter().filter(|number| range.contains(number)).count();
        (range.end() + 1 - range.start()).saturating_sub(before as u64)
    }
}

impl Drop for LinkMonitor {
    fn drop(&mut self) {
        self.attached(false);
        let sender = self.links.list().try_remove(self.slot);
        if sender.is_some_and(|sender| sender.answers_pings() == Some(true)) {
            self.links.note_pings(Some(true));
        }
        let (unknown, not_delivered) = (self.unknown, self.not_delivered);
        let undeliverable = self.undeliverable.len();
        if unknown + not_delivered > 0 || undeliverable > 0 {
            let session = access_log::session_name(self.session);
            tracing::warn!(
                session,
                unknown,
                not_delivered,
                undeliverable,
                "messages of a client may not have reached the backend"
            );
        }
    }
}
