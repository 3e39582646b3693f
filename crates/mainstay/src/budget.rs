//! The byte budget that everything shares that keeps messages: sessions, links, connections with incomplete messages.
//!
//! Each *holder* is charged once for each poll, for the difference since its last poll, in whole KiB; a message costs
//! nothing. [`mainstay_proto::budget`] decides what a level means; here are the counters, the list of holders that wait
//! until the level falls, and the task that reclaims memory while it is short.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use mainstay_proto::budget::{Candidate, Pressure, Reclaim, Victims, in_order};
use tokio::runtime::Handle;

pub use mainstay_proto::budget::Level;

use crate::clock::now;
use crate::memory;

/// The default budget is this part of the memory that the process may use: one quarter.
const PART_OF_MEMORY: u64 = 4;
/// How often memory is reclaimed while it is short.
const RECLAIM_EVERY: Duration = Duration::from_millis(250);

/// Limits how many bytes all sessions and links that share it may keep together. Cheap to clone; every clone is the same
/// budget.
///
/// It covers messages that wait for an application, messages that are kept until a peer acknowledges or confirms them, bytes
/// that a socket did not accept, and incomplete messages. From 75 % of it on, connections that keep more than their fair
/// share read no more until the level falls; from 90 % new sessions are refused, and sessions whose clients are away are
/// given up, the largest first; when all is used, no connection reads more than 64 KiB. Each change of the level is logged.
///
/// The budget does not limit the memory of the process: the allocator, the sockets and the application need their own.
///
/// Default: one for the whole process, a quarter of the memory that it may use: of the limit of its control group, or of
/// the memory of the machine.
///
/// ```
/// use mainstay::{Budget, Server, server::Config};
///
/// let budget = Budget::new(256 << 20);
/// let server = Server::new(Config::new().budget(budget.clone()));
/// assert_eq!(server.budget().limit(), Some(256 << 20));
/// ```
#[derive(Clone)]
pub struct Budget(Arc<Ledger>);

struct Ledger {
    /// `u64::MAX` without a limit.
    limit: u64,
    /// In KiB, by [`Part`].
    used: [AtomicU64; PARTS.len()],
    /// The number of holders with a charge.
    holders: AtomicU64,
    level: AtomicU8,
    /// Holders that wait until the level falls.
    waiting: Mutex<Vec<Weak<dyn Holder>>>,
    /// Whether a task is reclaiming memory.
    reclaiming: AtomicBool,
    /// One for each server.
    reclaimers: Mutex<Vec<Reclaimer>>,
}

/// See [`Budget::add_reclaimer`].
type Reclaimer = Arc<dyn Fn(Duration, u64) -> Option<u64> + Send + Sync>;

/// The kind of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Queues of sessions.
    Sessions,
    /// Queues of clients and links.
    Links,
    /// Incomplete messages, and bytes that sockets did not accept.
    Sockets,
}

const PARTS: [&str; 3] = ["sessions", "links", "sockets"];

/// Something that keeps messages.
pub(crate) trait Holder: Send + Sync {
    /// The level fell: the holder checks again whether it may keep more.
    fn go_on(self: Arc<Self>);
    /// The holder's charge in bytes.
    fn charged(&self) -> u64;
    /// The holder must give up what it keeps.
    fn give_up(self: Arc<Self>);
}

/// The charge of one holder in KiB, under the holder's lock. Two words of 32 bits: every connection has them.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    queues: u32,
    /// [`WAITS`] is its highest bit.
    sockets: u32,
}

/// Set while the holder waits until the level falls.
const WAITS: u32 = 1 << 31;

/// The difference of a charge. Apply it while no holder's lock is held, because it may wake other holders.
#[must_use]
pub(crate) struct Change {
    queues: i64,
    sockets: i64,
    holders: i64,
}

impl Charge {
    /// Replaces the charge. Returns `None` if it has not changed by a KiB.
    pub(crate) fn set(&mut self, queues: u64, sockets: u64) -> Option<Change> {
        let kib = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX).min(WAITS - 1);
        let (queues, sockets) = (kib(queues), kib(sockets));
        let before = (self.queues, self.sockets & !WAITS);
        if (queues, sockets) == before {
            return None;
        }
        let holds = |charged| i64::from(charged != (0, 0));
        let change = Change {
            queues: i64::from(queues) - i64::from(before.0),
            sockets: i64::from(sockets) - i64::from(before.1),
            holders: holds((queues, sockets)) - holds(before),
        };
        (self.queues, self.sockets) = (queues, sockets | (self.sockets & WAITS));
        Some(change)
    }

    /// The charge in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        (u64::from(self.queues) + u64::from(self.sockets & !WAITS)) << 10
    }

    /// Notes that the holder waits. Returns whether it did before.
    pub(crate) fn begin_to_wait(&mut self) -> bool {
        let waited = self.sockets & WAITS != 0;
        self.sockets |= WAITS;
        waited
    }

    /// Notes that the holder was woken.
    pub(crate) fn end_waiting(&mut self) {
        self.sockets &= !WAITS;
    }
}

/// Bytes that an application keeps for one client, charged to a [`Budget`] with its links until this is dropped.
///
/// ```
/// let budget = mainstay::Budget::new(1 << 30);
/// let mut history = budget.keep();
/// history.set(64 << 10);
/// assert_eq!(budget.used(), 64 << 10);
/// ```
#[derive(Debug)]
pub struct Kept {
    budget: Budget,
    charge: Charge,
}

impl Kept {
    /// Sets how many bytes are kept now. Below 1 KiB they do not count.
    pub fn set(&mut self, bytes: u64) {
        let change = self.charge.set(bytes, 0);
        self.budget.apply(Part::Links, change);
    }

    /// Whether more may be kept: memory is not short.
    #[must_use]
    pub fn admits(&self) -> bool {
        self.budget.level().admits()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Budget {
    /// Creates a budget of this many bytes. Range: any; with less than 64 KiB for each busy connection they are slow.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(Ledger {
            limit: bytes,
            used: Default::default(),
            holders: AtomicU64::new(0),
            level: AtomicU8::new(0),
            waiting: Mutex::default(),
            reclaiming: AtomicBool::new(false),
            reclaimers: Mutex::default(),
        }))
    }

    /// Creates a budget without a limit: it counts, and only the windows of each connection bound what is kept.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// The limit in bytes; `None` without one.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        (self.0.limit < u64::MAX).then_some(self.0.limit)
    }

    /// The used bytes. Holders of less than 1 KiB do not count.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.parts().map(|(_, bytes)| bytes).iter().sum()
    }

    /// The used bytes by kind: queues of `sessions`, queues of `links` (and clients), and `sockets` with incomplete messages
    /// and bytes that were not accepted.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 3] {
        std::array::from_fn(|part| (PARTS[part], self.0.used[part].load(Relaxed) << 10))
    }

    /// The level: how short memory is.
    #[must_use]
    pub fn level(&self) -> Level {
        Level::ALL.into_iter().nth(self.0.level.load(Relaxed).into()).unwrap_or_default()
    }

    /// Returns a charge of zero bytes, for memory that an application uses for one client beside sessions and links.
    #[must_use]
    pub fn keep(&self) -> Kept {
        Kept { budget: self.clone(), charge: Charge::default() }
    }

    /// What the level demands of holders; `None` while it demands nothing.
    pub(crate) fn pressure(&self) -> Option<Pressure> {
        let level = self.level();
        (level > Level::Calm).then(|| Pressure::new(level, self.0.limit, self.0.holders.load(Relaxed)))
    }

    /// Applies the difference of a holder's charge. No holder's lock may be held.
    pub(crate) fn apply(&self, part: Part, change: Option<Change>) {
        let Some(Change { queues, sockets, holders }) = change else { return };
        // Sums of differences: a negative number wraps around, and back again.
        let add = |counter: &AtomicU64, amount: i64| {
            if amount != 0 {
                counter.fetch_add(amount.cast_unsigned(), Relaxed);
            }
        };
        add(&self.0.used[part as usize], queues);
        add(&self.0.used[Part::Sockets as usize], sockets);
        add(&self.0.holders, holders);
        self.look();
    }

    /// Updates the level, and acts on its change.
    fn look(&self) {
        if self.0.limit == u64::MAX {
            return;
        }
        let (before, used) = (self.level(), self.used());
        let after = before.after(used, self.0.limit);
        let changed = before != after
            && self.0.level.compare_exchange(before as u8, after as u8, Relaxed, Relaxed).is_ok();
        if !changed {
            return;
        }
        let (level, limit) = (after.name(), self.0.limit);
        if after > before {
            tracing::warn!(level, used, limit, "memory budget: the level rose");
        } else {
            tracing::info!(level, used, limit, "memory budget: the level fell");
            let waiting = std::mem::take(&mut *self.waiting());
            waiting.iter().filter_map(Weak::upgrade).for_each(Holder::go_on);
        }
        if !after.admits() {
            self.reclaim();
        }
    }

    /// Wakes `holder` when the level falls. Returns the pressure after the registration: the level may have fallen just before.
    pub(crate) fn wait(&self, holder: Weak<dyn Holder>) -> Option<Pressure> {
        self.waiting().push(holder);
        self.pressure()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Weak<dyn Holder>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a task that reclaims memory until it is no longer short.
    fn reclaim(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.0.reclaiming.swap(true, Relaxed) {
            runtime.spawn(self.clone().reclaim_until_calm());
        }
    }

    async fn reclaim_until_calm(self) {
        let running = Reclaiming(&self.0.reclaiming);
        let mut reclaim = Reclaim::default();
        while let Some(victims) = reclaim.poll(now(), self.level(), self.used(), self.0.limit) {
            self.take_from(&victims);
            tokio::time::sleep(RECLAIM_EVERY).await;
            self.look();
        }
        drop(running);
        if !self.level().admits() {
            // The level rose in between, and the poll that saw it relied on this task.
            self.reclaim();
        }
    }

    fn take_from(&self, victims: &Victims) {
        self.waiting().retain(|holder| holder.strong_count() > 0);
        let mut freed = 0;
        // Called without the lock, because a reclaimer changes this budget.
        let reclaimers = self.reclaimers().clone();
        for reclaimer in reclaimers {
            if freed < victims.bytes {
                freed += reclaimer(victims.away_for, victims.bytes - freed).unwrap_or(0);
            }
        }
        if !victims.waiting || freed >= victims.bytes {
            return;
        }
        let waiting: Vec<_> = self.waiting().iter().filter_map(Weak::upgrade).collect();
        let mut candidates: Vec<_> = waiting
            .into_iter()
            .map(|holder| Candidate { bytes: holder.charged(), since: now(), source: None, holder })
            .collect();
        in_order(&mut candidates);
        let mut count = 0_u32;
        for Candidate { bytes, holder, .. } in candidates {
            if freed >= victims.bytes {
                break;
            }
            (freed, count) = (freed + bytes, count + 1);
            holder.give_up();
        }
        if count > 0 {
            tracing::warn!(
                count,
                "memory budget: all is used, and connections that wait for memory are ended"
            );
        }
    }

    /// Adds a function that gives up sessions whose clients have been away for a time, until a number of bytes is free, and
    /// returns how many are. It returns `None` once its owner is gone.
    pub(crate) fn add_reclaimer(
        &self,
        reclaimer: impl Fn(Duration, u64) -> Option<u64> + Send + Sync + 'static,
    ) {
        let mut reclaimers = self.reclaimers();
        reclaimers.retain(|reclaimer| reclaimer(Duration::MAX, 0).is_some());
        reclaimers.push(Arc::new(reclaimer));
    }

    fn reclaimers(&self) -> MutexGuard<'_, Vec<Reclaimer>> {
        self.0.reclaimers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clears the flag when the task ends, also when it ends with its runtime: then another task may begin.
struct Reclaiming<'a>(&'a AtomicBool);

impl Drop for Reclaiming<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

impl Default for Budget {
    fn default() -> Self {
        static PROCESS: OnceLock<Budget> = OnceLock::new();
        let quarter =
            || memory::allowed().map_or_else(Self::unlimited, |all| Self::new(all / PART_OF_MEMORY));
        PROCESS.get_or_init(quarter).clone()
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records the calls that it gets.
    #[derive(Default)]
    struct Probe {
        charged: u64,
        calls: Mutex<Vec<&'static str>>,
    }

    impl Holder for Probe {
        fn go_on(self: Arc<Self>) {
            self.calls.lock().unwrap().push("go on");
        }

        fn charged(&self) -> u64 {
            self.charged
        }

        fn give_up(self: Arc<Self>) {
            self.calls.lock().unwrap().push("give up");
        }
    }

    impl Probe {
        fn waiting_at(budget: &Budget, charged: u64) -> Arc<Self> {
            let probe = Arc::new(Self { charged, ..Self::default() });
            let holder: Arc<dyn Holder> = Arc::<Self>::clone(&probe);
            let _ = budget.wait(Arc::downgrade(&holder));
            probe
        }

        fn calls(&self) -> Vec<&'static str> {
            self.calls.lock().unwrap().clone()
        }
    }

    #[test]
    fn a_holder_is_charged_for_the_difference_in_whole_kib() {
        let (budget, mut charge) = (Budget::new(1 << 20), Charge::default());
        for (queues, sockets, parts, holders) in [
            (1023, 1023, [0, 0, 0], 0),
            (10 << 10, 0, [0, 10 << 10, 0], 1),
            ((10 << 10) + 1, 5 << 10, [0, 10 << 10, 5 << 10], 1),
            (0, 1 << 10, [0, 0, 1 << 10], 1),
            (0, 0, [0, 0, 0], 0),
        ] {
            budget.apply(Part::Links, charge.set(queues, sockets));
            assert_eq!(budget.parts().map(|(_, bytes)| bytes), parts);
            assert_eq!(budget.0.holders.load(Relaxed), holders);
        }
    }

    #[test]
    fn a_waiting_holder_goes_on_once_when_the_level_falls() {
        let (budget, mut charge) = (Budget::new(100 << 10), Charge::default());
        budget.apply(Part::Sessions, charge.set(80 << 10, 0));
        assert_eq!(budget.level(), Level::Tight);
        let probe = Probe::waiting_at(&budget, 0);
        budget.apply(Part::Sessions, charge.set(66 << 10, 0));
        assert!(probe.calls().is_empty(), "ten percent below the mark, and not before");
        budget.apply(Part::Sessions, charge.set(60 << 10, 0));
        budget.apply(Part::Sessions, charge.set(80 << 10, 0));
        budget.apply(Part::Sessions, charge.set(0, 0));
        assert_eq!((probe.calls(), budget.used()), (vec!["go on"], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_waiting_holders_are_given_up_when_all_is_used_for_ten_seconds() {
        let (budget, mut charge) = (Budget::new(100 << 10), Charge::default());
        budget.apply(Part::Sessions, charge.set(100 << 10, 0));
        let probes = [1 << 10, 64 << 10, 8 << 10].map(|charged| Probe::waiting_at(&budget, charged));
        tokio::time::sleep(Duration::from_millis(9_900)).await;
        assert!(probes.iter().all(|probe| probe.calls().is_empty()));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let calls = probes.each_ref().map(|probe| probe.calls());
        assert_eq!(calls, [vec![], vec!["give up"], vec![]], "11 KiB are to be freed");
        budget.apply(Part::Sessions, charge.set(0, 0));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!budget.0.reclaiming.load(Relaxed), "nothing runs while nothing is short");
    }

    #[test]
    fn another_runtime_reclaims_memory_when_the_one_that_did_has_ended() {
        let (budget, mut charge) = (Budget::new(100 << 10), Charge::default());
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                budget.apply(Part::Sessions, charge.set(100 << 10, 0));
                tokio::task::yield_now().await;
                assert!(budget.0.reclaiming.load(Relaxed));
            });
            drop(runtime);
            assert!(!budget.0.reclaiming.load(Relaxed));
            budget.apply(Part::Sessions, charge.set(0, 0));
        }
    }

    #[test]
    fn a_budget_without_a_limit_counts_all_the_same() {
        let (budget, mut charge) = (Budget::unlimited(), Charge::default());
        budget.apply(Part::Sessions, charge.set(1 << 40, 0));
        assert_eq!((budget.level(), budget.limit(), budget.used()), (Level::Calm, None, 1 << 40));
    }

    #[test]
    fn memory_of_an_application_is_charged_until_the_charge_is_dropped() {
        let budget = Budget::new(1 << 20);
        let (mut one, mut other) = (budget.keep(), budget.keep());
        one.set(950 << 10);
        other.set(10 << 10);
        assert_eq!(budget.parts()[1], ("links", 960 << 10));
        assert!(!one.admits() && !other.admits());
        one.set(0);
        assert!(other.admits());
        drop((one, other));
        assert_eq!(budget.used(), 0);
    }
}
