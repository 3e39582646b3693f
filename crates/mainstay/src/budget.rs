//! The byte budget that everything which keeps messages shares: sessions, links, connections that assemble.
//!
//! Each *holder* is charged once a turn for what it keeps more or less than at its last turn, in whole KiB; nothing is
//! done for each message. What a level means is decided by [`mainstay_proto::budget`]; here are the counters, the list
//! of holders that wait until the level falls, and the task that takes memory back while it is short.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use mainstay_proto::budget::{Candidate, Pressure, Reclaim, Victims, in_order};
use tokio::runtime::Handle;

pub use mainstay_proto::budget::Level;

use crate::clock::now;
use crate::memory;

/// The default budget is one part in so many of the memory that the process may use.
const PART_OF_MEMORY: u64 = 4;
/// How often somebody has to give memory back while it is short.
const RECLAIM_EVERY: Duration = Duration::from_millis(250);

/// How many bytes all sessions and links that are given it may keep together. Cheap to clone; every clone is the same.
///
/// It covers what waits for an application, what is kept until a peer acknowledges or confirms it, what a socket did not
/// take, and messages that are not complete. From 75 % of it on, connections that keep more than their fair share take
/// in no more until the level falls; from 90 % new sessions are refused and those whose clients are away are given up,
/// the largest first; when all is used nobody takes in more than 64 KiB. Each change of the level is logged.
///
/// The budget is no limit of the process's memory: the allocator, the sockets and the application have their own.
///
/// Default: one for the whole process, a quarter of the memory that it may use: of its control group's limit, or of
/// what the machine has.
#[derive(Clone)]
pub struct Budget(Arc<Ledger>);

struct Ledger {
    /// `u64::MAX`: none.
    limit: u64,
    /// In KiB, by [`Part`].
    used: [AtomicU64; PARTS.len()],
    /// Holders that are charged for anything.
    holders: AtomicU64,
    level: AtomicU8,
    /// Those that wait until the level falls.
    waiting: Mutex<Vec<Weak<dyn Holder>>>,
    /// A task is taking memory back.
    reclaiming: AtomicBool,
    /// One for each server.
    reclaimers: Mutex<Vec<Reclaimer>>,
}

/// See [`Budget::add_reclaimer`].
type Reclaimer = Arc<dyn Fn(Duration, u64) -> Option<u64> + Send + Sync>;

/// What is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Queues of sessions.
    Sessions,
    /// Queues of clients and links.
    Links,
    /// Messages that are not complete, and what sockets did not take.
    Sockets,
}

const PARTS: [&str; 3] = ["sessions", "links", "sockets"];

/// Something that keeps messages.
pub(crate) trait Holder: Send + Sync {
    /// The level fell: it looks again whether it may take more in.
    fn go_on(self: Arc<Self>);
    /// What it is charged for, in bytes.
    fn charged(&self) -> u64;
    /// It is to give up what it keeps.
    fn give_up(self: Arc<Self>);
}

/// What one holder is charged for, in KiB; under the holder's lock. Two words of 32 bits: every connection has them.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    queues: u32,
    /// With [`WAITS`] in its highest bit.
    sockets: u32,
}

/// The holder is in the list of those that wait.
const WAITS: u32 = 1 << 31;

/// What a charge changed by: to be applied once no holder's lock is held, as others may be woken by it.
#[must_use]
pub(crate) struct Change {
    queues: i64,
    sockets: i64,
    holders: i64,
}

impl Charge {
    /// Charges for these bytes instead of those before. `None`: no change worth telling.
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

    /// In bytes.
    pub(crate) fn bytes(&self) -> u64 {
        (u64::from(self.queues) + u64::from(self.sockets & !WAITS)) << 10
    }

    /// Notes that the holder waits, and says whether it did before.
    pub(crate) fn begin_to_wait(&mut self) -> bool {
        let waited = self.sockets & WAITS != 0;
        self.sockets |= WAITS;
        waited
    }

    /// It was woken.
    pub(crate) fn end_waiting(&mut self) {
        self.sockets &= !WAITS;
    }
}

/// Bytes that an application keeps for one client, charged to a [`Budget`] with its links until this is dropped.
#[derive(Debug)]
pub struct Kept {
    budget: Budget,
    charge: Charge,
}

impl Kept {
    /// So many bytes are kept now. Below 1 KiB they do not count.
    pub fn set(&mut self, bytes: u64) {
        let change = self.charge.set(bytes, 0);
        self.budget.apply(Part::Links, change);
    }

    /// Whether more may be kept: the budget is not short.
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
    /// A budget of so many bytes. Range: any; with less than 64 KiB for each connection that is busy they go slowly.
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

    /// What is kept is counted, and bounded by the windows of each connection alone.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// How many bytes it has; `None`: no limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        (self.0.limit < u64::MAX).then_some(self.0.limit)
    }

    /// How many bytes are used. Holders of less than 1 KiB do not count.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.parts().map(|(_, bytes)| bytes).iter().sum()
    }

    /// What is used, in bytes: by queues of `sessions`, by queues of `links` (and clients), and by `sockets`, where
    /// messages are not complete or were not taken.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 3] {
        std::array::from_fn(|part| (PARTS[part], self.0.used[part].load(Relaxed) << 10))
    }

    /// How much of it is used.
    #[must_use]
    pub fn level(&self) -> Level {
        Level::ALL.into_iter().nth(self.0.level.load(Relaxed).into()).unwrap_or_default()
    }

    /// For what an application keeps beside sessions and links: nothing yet.
    #[must_use]
    pub fn keep(&self) -> Kept {
        Kept { budget: self.clone(), charge: Charge::default() }
    }

    /// What holders are asked to bear; `None`: nothing.
    pub(crate) fn pressure(&self) -> Option<Pressure> {
        let level = self.level();
        (level > Level::Calm).then(|| Pressure::new(level, self.0.limit, self.0.holders.load(Relaxed)))
    }

    /// Applies what a holder's charge changed by. No holder's lock may be held.
    pub(crate) fn apply(&self, part: Part, change: Option<Change>) {
        let Some(Change { queues, sockets, holders }) = change else { return };
        // Sums of differences: what is added as a negative number wraps to what it was before.
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

    /// Follows the level to where it is by now.
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

    /// `holder` is to be woken when the level falls. Returns the pressure after that: it may have fallen just before.
    pub(crate) fn wait(&self, holder: Weak<dyn Holder>) -> Option<Pressure> {
        self.waiting().push(holder);
        self.pressure()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Weak<dyn Holder>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has memory taken back until it is short no more.
    fn reclaim(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.0.reclaiming.swap(true, Relaxed) {
            runtime.spawn(self.clone().take_back());
        }
    }

    async fn take_back(self) {
        let running = Reclaiming(&self.0.reclaiming);
        let mut reclaim = Reclaim::default();
        while let Some(victims) = reclaim.poll(now(), self.level(), self.used(), self.0.limit) {
            self.take_from(&victims);
            tokio::time::sleep(RECLAIM_EVERY).await;
            self.look();
        }
        drop(running);
        if !self.level().admits() {
            // It rose in between, and the turn that saw it left it to this task.
            self.reclaim();
        }
    }

    fn take_from(&self, victims: &Victims) {
        self.waiting().retain(|holder| holder.strong_count() > 0);
        let mut freed = 0;
        // Called without the lock: what they give up changes this budget.
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

    /// Adds a function that gives up what has been away for at least a time, until so many bytes are free, and returns how
    /// many are; `None`: its owner is gone.
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

/// Set while a task takes memory back; also a task that ends with its runtime makes way for another.
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

    /// Notes what it is told.
    #[derive(Default)]
    struct Probe {
        charged: u64,
        told: Mutex<Vec<&'static str>>,
    }

    impl Holder for Probe {
        fn go_on(self: Arc<Self>) {
            self.told.lock().unwrap().push("go on");
        }

        fn charged(&self) -> u64 {
            self.charged
        }

        fn give_up(self: Arc<Self>) {
            self.told.lock().unwrap().push("give up");
        }
    }

    impl Probe {
        fn waiting_at(budget: &Budget, charged: u64) -> Arc<Self> {
            let probe = Arc::new(Self { charged, ..Self::default() });
            let holder: Arc<dyn Holder> = Arc::<Self>::clone(&probe);
            let _ = budget.wait(Arc::downgrade(&holder));
            probe
        }

        fn told(&self) -> Vec<&'static str> {
            self.told.lock().unwrap().clone()
        }
    }

    #[test]
    fn a_holder_is_charged_for_what_changed_in_whole_kib() {
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
    fn whoever_waits_goes_on_once_the_level_falls_and_is_told_once() {
        let (budget, mut charge) = (Budget::new(100 << 10), Charge::default());
        budget.apply(Part::Sessions, charge.set(80 << 10, 0));
        assert_eq!(budget.level(), Level::Tight);
        let probe = Probe::waiting_at(&budget, 0);
        budget.apply(Part::Sessions, charge.set(66 << 10, 0));
        assert!(probe.told().is_empty(), "ten percent below the mark, and not before");
        budget.apply(Part::Sessions, charge.set(60 << 10, 0));
        budget.apply(Part::Sessions, charge.set(80 << 10, 0));
        budget.apply(Part::Sessions, charge.set(0, 0));
        assert_eq!((probe.told(), budget.used()), (vec!["go on"], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_that_wait_are_given_up_when_all_is_used_for_ten_seconds() {
        let (budget, mut charge) = (Budget::new(100 << 10), Charge::default());
        budget.apply(Part::Sessions, charge.set(100 << 10, 0));
        let probes = [1 << 10, 64 << 10, 8 << 10].map(|charged| Probe::waiting_at(&budget, charged));
        tokio::time::sleep(Duration::from_millis(9_900)).await;
        assert!(probes.iter().all(|probe| probe.told().is_empty()));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let told = probes.each_ref().map(|probe| probe.told());
        assert_eq!(told, [vec![], vec!["give up"], vec![]], "11 KiB are to be freed");
        budget.apply(Part::Sessions, charge.set(0, 0));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!budget.0.reclaiming.load(Relaxed), "nothing runs while nothing is short");
    }

    #[test]
    fn where_the_runtime_that_took_memory_back_has_ended_another_goes_on() {
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
    fn without_a_limit_what_is_kept_is_counted_all_the_same() {
        let (budget, mut charge) = (Budget::unlimited(), Charge::default());
        budget.apply(Part::Sessions, charge.set(1 << 40, 0));
        assert_eq!((budget.level(), budget.limit(), budget.used()), (Level::Calm, None, 1 << 40));
    }

    #[test]
    fn what_an_application_keeps_is_charged_until_it_is_dropped() {
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
