//! Thousands of clients of one server, to see how they come back.
//!
//! ```text
//! storm_client --url ws://127.0.0.1:9000/echo --clients 10000 --every 5 [--fates FILE]
//! storm_client --nodes FILE ...
//! ```
//!
//! With `--nodes`, the file names servers, `HOST:PORT` each, separated by white space; every attempt goes to one of them at
//! random, as behind a load balancer, and reads the file anew.
//!
//! The server must return each message to its sender. Every client sends a numbered one each `--every`
//! seconds, with the library's defaults throughout. Cut the network meanwhile, or kill the server and start
//! it again: whenever all clients are attached, one JSON line says how that went. SIGTERM or ctrl-c ends the
//! sending; when everything is settled, the last line says what became of all messages, and `--fates` has a
//! line for each: client, number, fate.

use std::error::Error;
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay::client::{Builder, Event, Request};
use mainstay::{Client, CloseCode, Message, Outcome, Receipt};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

/// Clients that begin in a second: the beginning is no storm.
const BEGIN: f64 = 2_000.0;
/// For what is under way when the sending ends.
const LAST: Duration = Duration::from_secs(60);
/// Attempts are counted in windows of this length, in milliseconds.
const WINDOW: u128 = 100;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (builder, fates) = (builder()?, flag("--fates"));
    let count: u32 = flag("--clients").ok_or(USAGE)?.parse()?;
    let every = Duration::try_from_secs_f64(flag("--every").ok_or(USAGE)?.parse()?)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (stop, stopped) = watch::channel(false);
    let storm = Arc::new(Storm { count, tally: Mutex::default() });
    let mut lives = JoinSet::new();
    for id in 0..count {
        let (builder, storm, stopped) = (builder.clone(), Arc::clone(&storm), stopped.clone());
        lives.spawn(async move {
            sleep(Duration::from_secs_f64(f64::from(id) / BEGIN)).await;
            let phase = every.mul_f64(f64::from(id) / f64::from(count));
            Life::new(id).live(builder.connect(), (phase, every), &storm, stopped).await
        });
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send(true)?;
    let done = timeout(LAST, lives.join_all()).await.map_err(|_| "clients still wait for their messages")?;
    println!("{}", summary(&done));
    if let Some(path) = fates {
        std::fs::write(path, listed(&done))?;
    }
    Ok(())
}

const USAGE: &str =
    "usage: storm_client --url URL | --nodes FILE --clients COUNT --every SECONDS [--fates FILE]";

/// Clients of one URL, or of a node at random.
fn builder() -> Result<Builder, Box<dyn Error>> {
    let Some(file) = flag("--nodes") else { return Ok(Client::builder(&flag("--url").ok_or(USAGE)?)?) };
    let dice = Arc::new((RandomState::new(), AtomicU64::new(0)));
    Ok(Client::builder("ws://127.0.0.1/")?.request(move || {
        let (file, dice) = (file.clone(), Arc::clone(&dice));
        async move {
            let text = std::fs::read_to_string(file)?;
            let nodes: Vec<&str> = text.split_whitespace().collect();
            let thrown = dice.0.hash_one(dice.1.fetch_add(1, Relaxed));
            let at = usize::try_from(thrown % nodes.len().max(1) as u64).unwrap_or(0);
            Ok(Request::default().url(format!("ws://{}/", nodes.get(at).ok_or("no node")?).parse()?))
        }
    }))
}

fn flag(name: &str) -> Option<String> {
    std::env::args().skip_while(|word| word != name).nth(1)
}

/// What one client did and saw.
struct Life {
    id: u32,
    sent: Vec<Receipt>,
    fates: Vec<Outcome>,
    /// The number that came back last.
    last: usize,
    gaps: u64,
    /// Numbers that were jumped over: at most one jump a gap, or something is lost without a word.
    jumps: u64,
    /// Numbers that came again, or late.
    repeated: u64,
    is_attached: bool,
    /// When the connection was lost, and how long each such time lasted.
    lost_at: Option<Instant>,
    interruptions: Vec<Duration>,
}

impl Life {
    fn new(id: u32) -> Self {
        Self {
            id,
            sent: Vec::new(),
            fates: Vec::new(),
            last: 0,
            gaps: 0,
            jumps: 0,
            repeated: 0,
            is_attached: false,
            lost_at: None,
            interruptions: Vec::new(),
        }
    }

    /// Sends until it is told to stop, and ends once the last message is back.
    async fn live(
        mut self,
        mut client: Client,
        (phase, every): (Duration, Duration),
        storm: &Storm,
        mut stopped: watch::Receiver<bool>,
    ) -> Self {
        let events = client.events();
        let mut ticks = interval_at(Instant::now() + phase, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        while !stopping || self.last < self.sent.len() {
            tokio::select! {
                _ = ticks.tick(), if !stopping => {
                    let message = Message::text(format!("{} {}", self.id, self.sent.len() + 1));
                    match client.send_tracked(message).await {
                        Ok(tracked) => self.sent.push(tracked),
                        Err(_) => break,
                    }
                }
                Some(message) = client.recv() => self.came_back(&message),
                Some(event) = events.next() => {
                    storm.happened(&event, self.is_attached);
                    self.happened(&event);
                }
                _ = stopped.changed(), if !stopping => stopping = true,
                else => break,
            }
        }
        client.close(CloseCode::NORMAL, "").await;
        for tracked in std::mem::take(&mut self.sent) {
            self.fates.push(tracked.await);
        }
        self
    }

    fn happened(&mut self, event: &Event) {
        match event {
            Event::Gap(_) => self.gaps += 1,
            Event::Detached { .. } => {
                self.is_attached = false;
                self.lost_at = self.lost_at.or(Some(Instant::now()));
            }
            Event::Attached { .. } => {
                self.is_attached = true;
                self.interruptions.extend(self.lost_at.take().map(|at| at.elapsed()));
            }
            _ => {}
        }
    }

    fn came_back(&mut self, message: &Message) {
        let number = message.as_text().and_then(|text| text.split_once(' ')?.1.parse().ok()).unwrap_or(0);
        self.jumps += u64::from(number > self.last + 1);
        self.repeated += u64::from(number <= self.last);
        self.last = self.last.max(number);
    }
}

/// How all clients are.
struct Storm {
    count: u32,
    tally: Mutex<Tally>,
}

/// Since the first of them was lost.
#[derive(Default)]
struct Tally {
    attached: u32,
    /// When the first was lost; `None` before the first storm.
    began: Option<Instant>,
    lost: u32,
    failed: u32,
    resumed: u32,
    fresh: u32,
    /// Connections that were replaced before they were lost.
    replaced: u32,
    /// Attempts that failed, and clients that came back, by the window in which they did.
    windows: Vec<(u32, u32)>,
}

impl Storm {
    /// Counts an event of a client that `was_attached` before it.
    fn happened(&self, event: &Event, was_attached: bool) {
        let mut tally = self.tally();
        match event {
            Event::Detached { .. } => {
                if tally.attached == self.count {
                    *tally = Tally { attached: self.count, began: Some(Instant::now()), ..Tally::default() };
                }
                (tally.attached, tally.lost) = (tally.attached.saturating_sub(1), tally.lost + 1);
            }
            Event::AttemptFailed { .. } => {
                tally.failed += 1;
                tally.window().0 += 1;
            }
            Event::Attached { .. } if was_attached => tally.replaced += 1,
            Event::Attached { resumed, .. } => {
                tally.attached += 1;
                *(if *resumed { &mut tally.resumed } else { &mut tally.fresh }) += 1;
                tally.window().1 += 1;
                if tally.attached == self.count {
                    println!("{}", tally.shown());
                }
            }
            _ => {}
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    fn window(&mut self) -> &mut (u32, u32) {
        let now = Instant::now();
        let window = (now - *self.began.get_or_insert(now)).as_millis() / WINDOW;
        let window = usize::try_from(window).unwrap_or(usize::MAX - 1);
        self.windows.resize(self.windows.len().max(window + 1), (0, 0));
        &mut self.windows[window]
    }

    fn shown(&self) -> serde_json::Value {
        let took = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        let most = |windows: usize, of: fn(&(u32, u32)) -> u32| {
            let from = |first| self.windows.iter().skip(first).take(windows).map(of).sum::<u32>();
            (0..self.windows.len()).map(from).max().unwrap_or(0)
        };
        json!({
            "attached": self.attached,
            "seconds": took,
            "seconds_until_half": self.until(self.attached / 2),
            "seconds_until_99_percent": self.until(self.attached - self.attached / 100),
            "lost": self.lost,
            "resumed": self.resumed,
            "fresh": self.fresh,
            "replaced": self.replaced,
            "attempts": self.failed + self.resumed + self.fresh,
            "attempts_in_worst_100ms": most(1, |(failed, back)| failed + back),
            "back_in_worst_100ms": most(1, |(_, back)| *back),
            "back_in_worst_second": most(10, |(_, back)| *back),
        })
    }

    /// Until so many were back, in windows.
    fn until(&self, count: u32) -> f64 {
        let mut back = 0;
        let windows = self.windows.iter().take_while(|(_, now)| {
            back += now;
            back < count
        });
        (windows.count() + 1) as f64 * WINDOW as f64 / 1000.0
    }
}

/// Figures of all messages.
fn summary(lives: &[Life]) -> serde_json::Value {
    let fates = |wanted: Outcome| {
        lives.iter().map(|life| life.fates.iter().filter(|fate| **fate == wanted).count()).sum::<usize>()
    };
    let sum = |of: fn(&Life) -> u64| lives.iter().map(of).sum::<u64>();
    let mut interruptions: Vec<Duration> = lives.iter().flat_map(|life| life.interruptions.clone()).collect();
    interruptions.sort_unstable();
    let within = |percent: usize| {
        let at = (interruptions.len() * percent).div_ceil(100).saturating_sub(1);
        interruptions.get(at).map_or(0, Duration::as_millis)
    };
    json!({
        "clients": lives.len(),
        "sent": lives.iter().map(|life| life.fates.len()).sum::<usize>(),
        "delivered": fates(Outcome::Delivered),
        "lost": fates(Outcome::NotDelivered),
        "unknown": fates(Outcome::Unknown),
        "gaps": sum(|life| life.gaps),
        "clients_told_of_a_gap": sum(|life| u64::from(life.gaps > 0)),
        "jumps": sum(|life| life.jumps),
        "jumps_without_a_gap": sum(|life| life.jumps.saturating_sub(life.gaps)),
        "repeated": sum(|life| life.repeated),
        "interruptions": interruptions.len(),
        "interrupted_50": within(50),
        "interrupted_99": within(99),
        "interrupted_most": within(100),
        "last_message_not_back": sum(|life| u64::from(life.last != life.fates.len())),
    })
}

/// A line for each message: client, number, fate.
fn listed(lives: &[Life]) -> String {
    let mut lines = String::new();
    for life in lives {
        for (number, fate) in (1..).zip(&life.fates) {
            let fate = match fate {
                Outcome::Delivered => "delivered",
                Outcome::NotDelivered => "lost",
                _ => "unknown",
            };
            let (id, number): (u32, u32) = (life.id, number);
            let _ = writeln!(lines, "{id} {number} {fate}");
        }
    }
    lines
}
