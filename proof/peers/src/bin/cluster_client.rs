//! The clients of the cluster proof (`cargo xtask test cluster`), and their list of what happened.
//!
//! ```text
//! cluster_client --url ws://127.0.0.1:9000/ws --clients 1000 --every 2 --status FILE --list FILE
//! ```
//!
//! Client K connects to `URL?client=K` and sends `{"id": 1}`, `{"id": 2}`, ..., one each `--every` seconds. It expects
//! messages `{"conn", "seq"}`, with `"re": id` in an answer and `"end": true` in the last one; `proof/cluster/backend.mjs`
//! explains them. SIGUSR1 ends the sending, SIGTERM the process.
//!
//! The status is one line of JSON, written anew each 100 ms. The list is written at the end. Each line begins with the client
//! and stands in the order in which that client saw things:
//!
//! ```text
//! K got CONN SEQ ID           a message came; ID 0: no answer
//! K attached RESUMED AT       RESUMED true or false; AT in milliseconds since the start
//! K detached AT
//! K gap DELIVERED UNKNOWN LAST FIRST COUNT CAUSE
//! K replaced COUNT            also `dropped`, `ended` with what the library says
//! K sent ID OUTCOME           at the end of the client's lines
//! ```

use std::error::Error;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay::client::{Event, Events};
use mainstay::{BackoffConfig, Client, CloseCode, Message, Outcome, Receipt};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep, timeout};

/// Clients that begin in a second: the beginning is no storm.
const BEGIN: f64 = 1_000.0;
const BETWEEN_STATUSES: Duration = Duration::from_millis(100);
/// How long the closing of all clients may take.
const LAST: Duration = Duration::from_secs(20);

const USAGE: &str =
    "usage: cluster_client --url URL --clients COUNT --every SECONDS --status FILE --list FILE";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flag = |name: &str| std::env::args().skip_while(|word| word != name).nth(1).ok_or(USAGE);
    let (url, status, list) = (flag("--url")?, flag("--status")?, flag("--list")?);
    let count: u32 = flag("--clients")?.parse()?;
    let every = Duration::try_from_secs_f64(flag("--every")?.parse()?)?;
    // Far quicker than the default, which would wait longer at each of a dozen cuts in a minute.
    let backoff = BackoffConfig::new(Duration::from_millis(50), Duration::from_millis(500))?;
    let (mut stop_sending, mut end) =
        (signal(SignalKind::user_defined1())?, signal(SignalKind::terminate())?);
    let (control, controlled) = watch::channel(Phase::Sending);
    let crowd = Arc::new(Crowd::default());
    let mut lives = JoinSet::new();
    for id in 1..=count {
        let builder = Client::builder(&format!("{url}?client={id}"))?.backoff(backoff);
        let (crowd, controlled) = (Arc::clone(&crowd), controlled.clone());
        lives.spawn(async move {
            sleep(Duration::from_secs_f64(f64::from(id) / BEGIN)).await;
            let phase = every.mul_f64(f64::from(id) / f64::from(count));
            let ticks = interval_at(Instant::now() + phase, every);
            Life::new(id, builder.connect(), crowd).live(ticks, controlled).await
        });
    }
    let mut ticks = interval(BETWEEN_STATUSES);
    loop {
        tokio::select! {
            _ = ticks.tick() => write_status(&status, &crowd)?,
            _ = stop_sending.recv() => drop(control.send(Phase::Silent)),
            _ = end.recv() => break,
        }
    }
    control.send(Phase::Over)?;
    let lives = lives.join_all().await;
    std::fs::write(&list, lives.iter().map(Life::listed).collect::<String>())?;
    let closing: JoinSet<()> = lives.into_iter().map(Life::close).collect();
    let _ = timeout(LAST, closing.join_all()).await;
    Ok(())
}

/// A reader never sees half of it.
fn write_status(path: &str, crowd: &Crowd) -> std::io::Result<()> {
    let unfinished = format!("{path}.new");
    std::fs::write(&unfinished, format!("{}\n", crowd.shown()))?;
    std::fs::rename(unfinished, path)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Sending,
    Silent,
    Over,
}

/// What all clients count together.
struct Crowd {
    started: Instant,
    attached: AtomicU64,
    resumed: AtomicU64,
    fresh: AtomicU64,
    detached: AtomicU64,
    failed: AtomicU64,
    gaps: AtomicU64,
    replaced: AtomicU64,
    sent: AtomicU64,
    settled: AtomicU64,
    got: AtomicU64,
    /// Clients whose newest message is the last one that there will be.
    ended: AtomicU64,
}

impl Default for Crowd {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            started: Instant::now(),
            attached: zero(),
            resumed: zero(),
            fresh: zero(),
            detached: zero(),
            failed: zero(),
            gaps: zero(),
            replaced: zero(),
            sent: zero(),
            settled: zero(),
            got: zero(),
            ended: zero(),
        }
    }
}

impl Crowd {
    fn shown(&self) -> Value {
        let read = |count: &AtomicU64| count.load(Relaxed);
        json!({
            "attached": read(&self.attached), "resumed": read(&self.resumed), "fresh": read(&self.fresh),
            "detached": read(&self.detached), "failed": read(&self.failed), "gaps": read(&self.gaps),
            "replaced": read(&self.replaced), "sent": read(&self.sent), "settled": read(&self.settled),
            "got": read(&self.got), "ended": read(&self.ended),
        })
    }

    fn at(&self) -> u128 {
        self.started.elapsed().as_millis()
    }
}

type Outcomes = Arc<Mutex<Vec<Outcome>>>;

/// One client, and what it did and saw.
struct Life {
    id: u32,
    client: Client,
    crowd: Arc<Crowd>,
    sent: u64,
    receipts: mpsc::UnboundedSender<Receipt>,
    outcomes: Outcomes,
    is_attached: bool,
    has_ended: bool,
    lines: String,
}

impl Life {
    fn new(id: u32, client: Client, crowd: Arc<Crowd>) -> Self {
        let (receipts, outcomes) = (mpsc::unbounded_channel(), Outcomes::default());
        tokio::spawn(settle(receipts.1, Arc::clone(&outcomes), Arc::clone(&crowd)));
        Self {
            id,
            client,
            crowd,
            sent: 0,
            receipts: receipts.0,
            outcomes,
            is_attached: false,
            has_ended: false,
            lines: String::new(),
        }
    }

    /// Sends until it is told to be silent, and receives until all is over.
    async fn live(mut self, mut ticks: Interval, mut control: watch::Receiver<Phase>) -> Self {
        let events: Events = self.client.events();
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let phase = *control.borrow_and_update();
            if phase == Phase::Over {
                return self;
            }
            tokio::select! {
                biased; // a gap stands before the messages behind it
                Some(event) = events.next() => self.happened(&event),
                Some(message) = self.client.recv() => self.came(&message),
                _ = control.changed() => {}
                _ = ticks.tick(), if phase == Phase::Sending => self.send().await,
                else => return self,
            }
        }
    }

    async fn send(&mut self) {
        let message = Message::text(json!({ "id": self.sent + 1 }).to_string());
        if let Ok(receipt) = self.client.send_tracked(message).await {
            self.sent += 1;
            self.crowd.sent.fetch_add(1, Relaxed);
            let _ = self.receipts.send(receipt);
        }
    }

    fn came(&mut self, message: &Message) {
        let value: Value =
            message.as_text().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let number = |name: &str| value[name].as_u64().unwrap_or(0);
        self.line(format_args!("got {} {} {}", number("conn"), number("seq"), number("re")));
        self.crowd.got.fetch_add(1, Relaxed);
        let is_end = value["end"] == true;
        count(&self.crowd.ended, &mut self.has_ended, is_end);
    }

    fn happened(&mut self, event: &Event) {
        let (crowd, at) = (Arc::clone(&self.crowd), self.crowd.at());
        match event {
            Event::Attached { resumed, .. } => {
                count(&crowd.attached, &mut self.is_attached, true);
                (if *resumed { &crowd.resumed } else { &crowd.fresh }).fetch_add(1, Relaxed);
                self.line(format_args!("attached {resumed} {at}"));
            }
            Event::Detached { .. } => {
                count(&crowd.attached, &mut self.is_attached, false);
                crowd.detached.fetch_add(1, Relaxed);
                self.line(format_args!("detached {at}"));
            }
            Event::AttemptFailed { .. } => drop(crowd.failed.fetch_add(1, Relaxed)),
            Event::Gap(fate) => {
                crowd.gaps.fetch_add(1, Relaxed);
                let (first, lost) = fate.lost.map_or((0, 0), |lost| (lost.first, lost.count));
                let (delivered, unknown, last) = (fate.delivered, fate.unknown, fate.last);
                let cause = fate.cause;
                self.line(format_args!("gap {delivered} {unknown} {last} {first} {lost} {cause:?}"));
            }
            Event::Replaced { count } => {
                crowd.replaced.fetch_add(1, Relaxed);
                self.line(format_args!("replaced {count}"));
            }
            Event::Dropped { first, count, .. } => self.line(format_args!("dropped {first} {count}")),
            Event::Ended(end) => self.line(format_args!("ended {end}")),
            _ => {}
        }
    }

    fn line(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.lines, "{} {what}", self.id);
    }

    /// All lines of this client; for a message without an outcome, `pending`.
    fn listed(&self) -> String {
        let mut lines = self.lines.clone();
        let outcomes = lock(&self.outcomes);
        for number in 0..self.sent {
            let outcome = usize::try_from(number).ok().and_then(|at| outcomes.get(at));
            let outcome = match outcome {
                None => "pending",
                Some(Outcome::Delivered) => "delivered",
                Some(Outcome::NotDelivered) => "undelivered",
                Some(_) => "unknown",
            };
            let _ = writeln!(lines, "{} sent {} {outcome}", self.id, number + 1);
        }
        lines
    }

    async fn close(self) {
        self.client.close(CloseCode::NORMAL, "").await;
    }
}

/// Writes down what becomes of the messages of one client, in their order.
async fn settle(mut receipts: mpsc::UnboundedReceiver<Receipt>, outcomes: Outcomes, crowd: Arc<Crowd>) {
    while let Some(receipt) = receipts.recv().await {
        let outcome = receipt.await;
        lock(&outcomes).push(outcome);
        crowd.settled.fetch_add(1, Relaxed);
    }
}

/// Keeps `total` in step with one client's `state`.
fn count(total: &AtomicU64, state: &mut bool, now: bool) {
    match (std::mem::replace(state, now), now) {
        (false, true) => drop(total.fetch_add(1, Relaxed)),
        (true, false) => drop(total.fetch_sub(1, Relaxed)),
        _ => {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
