//! The task that executes the machines' requests on Redis or Valkey, and reports whether the engine answers.
//!
//! It has one connection, or one for each server of Redis Cluster. Requests are pipelined, each with a deadline: a request that
//! gets no answer in time is [`Response::Unknown`], and the machines repeat it as it was. Every second the task reads the
//! incarnation; an engine that does not answer that within a second is unreachable. The connection is then closed, what was in
//! progress is `Unknown`, and the task connects anew with growing waits. Until a connection is ready, every request is
//! `Unknown` at once: nothing waits here for the engine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::cluster::request::{EngineEvent, Request, RequestId, Response};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use super::connect::{self, Link};
use super::engine::{Engine, EngineError, Place};
use super::fault::{self, Verdict};
use super::scripts::Scripts;

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// How often the task reads the incarnation. It is the definition of *unreachable* together with [`DEADLINE`].
const WATCH: Duration = Duration::from_secs(1);

/// How often the task asks Sentinel whether the master is still the one that it is connected to, in watches.
const SENTINEL_EVERY: u32 = 5;

/// The waits between attempts to connect: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How many requests are in progress at a time, and how many bytes of them: enough to keep an engine busy, and so little that a
/// watch behind them is answered in time.
const IN_PROGRESS: (usize, usize) = (256, 4 << 20);

/// What the task reports.
#[derive(Debug)]
pub enum Report {
    /// The answer to a request. Each request gets one.
    Response(RequestId, Response),
    /// The engine was reached, was lost, or is another incarnation.
    Event(EngineEvent),
}

/// The task's handle. Dropping it ends the task and closes the connection.
#[derive(Debug)]
pub struct Driver {
    requests: UnboundedSender<(RequestId, Request)>,
    task: JoinHandle<()>,
}

impl Driver {
    /// Queues a request. It is answered within a second of its turn, at once while the engine is unreachable. The machines bound
    /// how many they issue: the queue has no bound of its own.
    pub fn send(&self, id: RequestId, request: Request) {
        // The task ends only with this handle.
        let _ = self.requests.send((id, request));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts the task for the cluster `name` on the current tokio runtime. It connects, and connects again after each loss, until the
/// handle is dropped. `report` is called on the task and must not block.
pub fn start(engine: Engine, name: &str, report: impl Fn(Report) + Send + Sync + 'static) -> Driver {
    let (requests, queue) = mpsc::unbounded_channel();
    let task = Task {
        scripts: Arc::new(Scripts::new(name)),
        engine,
        queue,
        report: Box::new(report),
        failures: 0,
        reason: None,
    };
    Driver { requests, task: tokio::spawn(task.run()) }
}

struct Task {
    engine: Engine,
    scripts: Arc<Scripts>,
    queue: UnboundedReceiver<(RequestId, Request)>,
    report: Box<dyn Fn(Report) + Send + Sync>,
    /// Attempts to connect since the last connection that lasted.
    failures: u32,
    /// Why the engine is unreachable, as it was reported.
    reason: Option<String>,
}

/// What ended on a connection.
enum Done {
    Request(RequestId, usize, Result<Response, Verdict>),
    Watch(Result<Option<String>, EngineError>),
}

impl Task {
    async fn run(mut self) {
        loop {
            let started = Instant::now();
            match self.connect().await {
                Some(Ok(link)) => {
                    let Some(reason) = self.serve(link).await else { return };
                    self.unreachable(reason);
                    if started.elapsed() > WATCH {
                        self.failures = 0;
                    }
                }
                Some(Err(error)) => self.unreachable(error.to_string()),
                None => return,
            }
            let again = Instant::now() + wait(self.failures);
            self.failures = self.failures.saturating_add(1);
            if !self.decline_until(sleep_until(again)).await {
                return;
            }
        }
    }

    /// Connects, and declines requests meanwhile. `None`: the handle was dropped.
    async fn connect(&mut self) -> Option<Result<Link, EngineError>> {
        let (engine, scripts) = (self.engine.clone(), Arc::clone(&self.scripts));
        let mut link = None;
        let connected = async { link = Some(connect::connect(&engine, &scripts).await) };
        if !self.decline_until(connected).await {
            return None;
        }
        link
    }

    /// Answers each request by "unknown" until `end`. Returns false once the handle was dropped.
    async fn decline_until(&mut self, end: impl Future<Output = ()>) -> bool {
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return true,
                request = self.queue.recv() => match request {
                    Some((id, _)) => (self.report)(Report::Response(id, Response::Unknown)),
                    None => return false,
                },
            }
        }
    }

    /// Executes requests on one connection until it is lost, and returns why; `None`: the handle was dropped.
    async fn serve(&mut self, mut link: Link) -> Option<String> {
        let mut incarnation = link.info.as_ref().and_then(super::info::Info::incarnation);
        self.reachable(incarnation.clone());
        let mut running = Running::default();
        let mut watch = interval_at(Instant::now() + WATCH, WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watches = 0;
        let reason = loop {
            tokio::select! {
                biased;
                Some(done) = running.tasks.join_next(), if !running.tasks.is_empty() => match done {
                    Ok(Done::Request(id, bytes, outcome)) => {
                        let (response, lost) = match outcome {
                            Ok(response) => (response, None),
                            Err(Verdict::Refused(why)) => (Response::Refused(why), None),
                            Err(Verdict::Lost(why)) => (Response::Unknown, Some(why)),
                        };
                        if let Some(why) = lost {
                            break format!("{}: {why}", self.engine);
                        }
                        running.ended(id, bytes);
                        (self.report)(Report::Response(id, response));
                    }
                    Ok(Done::Watch(Ok(now))) => {
                        if now != incarnation {
                            incarnation = now;
                            self.reachable(incarnation.clone());
                        }
                        running.watching = false;
                    }
                    Ok(Done::Watch(Err(error))) => break error.to_string(),
                    Err(panicked) => break panicked.to_string(),
                },
                () = &mut link.moving => break format!("{}: the engine closed the connection", self.engine),
                _ = watch.tick(), if !running.watching => {
                    watches += 1;
                    running.watch(&self.engine, &link, watches % SENTINEL_EVERY == 0);
                }
                request = self.queue.recv(), if running.has_room() => {
                    let (id, request) = request?;
                    running.request(&self.scripts, &link, incarnation.clone(), id, request);
                }
            }
        };
        self.unreachable(reason.clone());
        for id in running.requests {
            (self.report)(Report::Response(id, Response::Unknown));
        }
        Some(reason)
    }

    fn reachable(&mut self, incarnation: Option<String>) {
        self.reason = None;
        (self.report)(Report::Event(EngineEvent::Reachable { incarnation }));
    }

    /// Reports the loss, and again only if the reason is another.
    fn unreachable(&mut self, reason: String) {
        if self.reason.as_ref() != Some(&reason) {
            self.reason = Some(reason.clone());
            (self.report)(Report::Event(EngineEvent::Unreachable { reason }));
        }
    }
}

/// What is in progress on a connection.
#[derive(Default)]
struct Running {
    tasks: JoinSet<Done>,
    requests: BTreeSet<RequestId>,
    bytes: usize,
    watching: bool,
}

impl Running {
    /// A request that is larger than the bound runs alone.
    fn has_room(&self) -> bool {
        self.requests.len() < IN_PROGRESS.0 && self.bytes < IN_PROGRESS.1
    }

    fn request(
        &mut self,
        scripts: &Arc<Scripts>,
        link: &Link,
        incarnation: Option<String>,
        id: RequestId,
        request: Request,
    ) {
        let (scripts, mut commands, bytes) = (Arc::clone(scripts), link.commands.clone(), size(&request));
        self.bytes += bytes;
        self.requests.insert(id);
        self.tasks.spawn(async move {
            let incarnation = incarnation.unwrap_or_default();
            let executing = scripts.execute(&mut commands, &request, &incarnation);
            let outcome = match timeout(DEADLINE, executing).await {
                Ok(outcome) => outcome.map_err(|error| fault::verdict(&error)),
                // The watch decides whether the engine answers anything at all.
                Err(_) => Ok(Response::Unknown),
            };
            Done::Request(id, bytes, outcome)
        });
    }

    fn ended(&mut self, id: RequestId, bytes: usize) {
        self.requests.remove(&id);
        self.bytes -= bytes;
    }

    fn watch(&mut self, engine: &Engine, link: &Link, ask_sentinel: bool) {
        let (engine, commands, master) = (engine.clone(), link.commands.clone(), link.master.clone());
        self.watching = true;
        self.tasks.spawn(async move {
            let silent = EngineError::away(format!("{engine}: no answer within {DEADLINE:?}"));
            let reading = Link::incarnation(engine.clone(), commands);
            let incarnation = timeout(DEADLINE, reading).await.unwrap_or(Err(silent));
            if ask_sentinel
                && incarnation.is_ok()
                && let (Place::Sentinel { hosts, master: name }, Some(ours)) = (&engine.place, master)
                // A Sentinel that is away says nothing about the master.
                && let Ok(theirs) = connect::ask_sentinels(&engine, hosts, name).await
                && theirs != ours
            {
                let words = format!("{engine}: Sentinel names {theirs} as the master, and no longer {ours}");
                return Done::Watch(Err(EngineError::away(words)));
            }
            Done::Watch(incarnation)
        });
    }
}

/// The bytes of a request that are worth counting.
fn size(request: &Request) -> usize {
    match request {
        Request::Release { record, .. } => {
            let messages: usize = record.messages.iter().map(|message| message.len()).sum();
            record.head.len() + record.saved.as_ref().map_or(0, bytes::Bytes::len) + messages
        }
        Request::Heartbeat { value, .. } => value.len(),
        Request::Note { note, .. } => note.key.len() + note.value.len(),
        Request::Forget { .. } | Request::Claim { .. } | Request::Notes { .. } => 0,
    }
}

/// The wait before the next attempt: doubled by each failure, and half of it by chance, so that the nodes of a cluster do not come
/// back in one moment.
fn wait(failures: u32) -> Duration {
    let (first, longest) = WAITS;
    let ceiling = first.saturating_mul(1 << failures.min(16)).min(longest);
    let [chance, ..] = crate::random_seed();
    ceiling / 2 + ceiling * u32::from(chance) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_ceiling() {
        for failures in 0..40 {
            let ceiling = (50 << failures.min(16)).min(2000);
            let wait = wait(failures).as_millis();
            assert!((ceiling / 2..=ceiling).contains(&wait), "{failures}: {wait}");
        }
    }
}
