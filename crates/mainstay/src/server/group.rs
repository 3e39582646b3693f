//! WebSockets that count together: those of a server, and those of a route. The machine is [`Openings`].

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_proto::admission::{Opener, OpeningConfig, Openings, Place, Refused};
use mainstay_proto::session::message::Delay;

use crate::clock::now;
use crate::driver;

/// Limits that the WebSockets of one or several routes share, beside those of the server: see
/// [`SessionUpgrade::group`](crate::SessionUpgrade::group). Cheap to clone; every clone is the same group.
///
/// ```
/// use mainstay::server::{Group, OpeningConfig};
///
/// let chat = Group::new(OpeningConfig { connections: Some(10_000), ..OpeningConfig::default() });
/// assert_eq!(chat.connections(), 0);
/// chat.set_limits(OpeningConfig { connections: Some(20_000), ..OpeningConfig::default() });
/// ```
#[derive(Clone)]
pub struct Group(Arc<Shared>);

struct Shared {
    openings: Mutex<Openings>,
    /// Without a limit nothing is counted.
    is_limited: AtomicBool,
}

impl Group {
    /// Creates a group without connections.
    #[must_use]
    pub fn new(limits: OpeningConfig) -> Self {
        let openings = Mutex::new(Openings::new(limits, secret(), now()));
        Self(Arc::new(Shared { openings, is_limited: AtomicBool::new(is_limited(&limits)) }))
    }

    /// Changes the limits, for what is opened from now on. A connection counts for the limits that the group had when it
    /// was opened.
    pub fn set_limits(&self, limits: OpeningConfig) {
        let mut openings = self.openings();
        self.0.is_limited.store(is_limited(&limits), Relaxed);
        openings.set_config(limits, now());
    }

    /// The number of open WebSockets. Without a limit they are not counted.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.openings().connections()
    }

    /// How many new clients a second are accepted, as configured or as measured; `None`: no limit.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.openings().rate()
    }

    fn openings(&self) -> MutexGuard<'_, Openings> {
        self.0.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counts, if there is a limit.
    fn limited(&self) -> Option<MutexGuard<'_, Openings>> {
        self.0.is_limited.load(Relaxed).then(|| self.openings())
    }

    /// An accepted connection is served for the first time, so long after it was accepted.
    pub(super) fn handle_served(&self, waited: Duration) {
        if let Some(mut openings) = self.limited() {
            openings.handle_served(now(), waited);
        }
    }
}

/// Without a limit.
impl Default for Group {
    fn default() -> Self {
        Self::new(OpeningConfig::default())
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

fn is_limited(limits: &OpeningConfig) -> bool {
    *limits != OpeningConfig::default()
}

fn secret() -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = crate::random_seed();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The groups that a client belongs to: that of the server, and that of its route.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    pub(super) server: &'a Group,
    pub(super) route: Option<&'a Group>,
}

/// The limit that a client exceeds.
#[derive(Clone, Copy)]
pub(super) struct Exceeded<'a> {
    group: &'a Group,
    pub(super) why: Refused,
    /// Whether it is a limit of the route alone.
    pub(super) is_of_route: bool,
}

impl<'a> Groups<'a> {
    fn all(self) -> impl Iterator<Item = &'a Group> {
        std::iter::once(self.server).chain(self.route)
    }

    /// Returns whether a new client may open a WebSocket.
    pub(super) fn judge(self, opener: Opener<'_>) -> Result<(), Exceeded<'a>> {
        self.judge_by(|openings| openings.judge(now(), opener))
    }

    /// Returns whether a client may ask for its session, and counts it if it may.
    pub(super) fn judge_resume(self) -> Result<(), Exceeded<'a>> {
        self.judge_by(|openings| openings.judge_resume(now()))?;
        for group in self.all() {
            group.limited().into_iter().for_each(|mut openings| openings.open_resume(now()));
        }
        Ok(())
    }

    fn judge_by(self, judge: impl Fn(&Openings) -> Result<(), Refused>) -> Result<(), Exceeded<'a>> {
        for (group, is_of_route) in self.all().zip([false, true]) {
            let judged = group.limited().map_or(Ok(()), |openings| judge(&openings));
            judged.map_err(|why| Exceeded { group, why, is_of_route })?;
        }
        Ok(())
    }

    /// Counts the opening handshake of a new client.
    pub(super) fn open(self, opener: Opener<'_>) {
        for group in self.all() {
            group.limited().into_iter().for_each(|mut openings| openings.open(now(), opener));
        }
    }

    /// Counts an open WebSocket until the returned places are dropped; `None` without a limit.
    pub(super) fn enter(self, opener: Opener<'_>) -> Option<Places> {
        let mut places = Places(Vec::new());
        for group in self.all() {
            if let Some(mut openings) = group.limited() {
                places.0.push((group.clone(), openings.enter(opener)));
            }
        }
        (!places.0.is_empty()).then_some(places)
    }
}

impl Exceeded<'_> {
    /// Counts the refusal. Returns when the client may try again.
    pub(super) fn refuse(&self, opener: Opener<'_>) -> Delay {
        self.group.openings().refuse(now(), self.why, opener)
    }
}

/// What an open WebSocket counts for, until this is dropped.
pub(super) struct Places(Vec<(Group, Place)>);

impl Places {
    /// Keeps the places, and what counts the connection already, for as long as the connection exists.
    pub(super) fn keep(self, connection: Option<Arc<driver::Permit>>) -> Arc<driver::Permit> {
        Arc::new(driver::Permit { _held: Some(Arc::new((self, connection))) })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for (group, place) in self.0.drain(..) {
            group.openings().leave(place);
        }
    }
}
