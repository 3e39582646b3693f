//! The experiments that wait: the two searches for idle limits and the watched connections, side by side. It moves events and time
//! between the connections and the machines.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::measured::{CutHow, Idle, Lifetime, Limit, Measured};
use super::super::probe::Options;
use super::super::progress::{Progress, State};
use super::super::target::Target;
use super::super::words::span;
use super::LeftOut;
use super::hold::{Command, Event, hold};
use super::idle::{Do, Search};
use super::lifetime::{self, Explained, Life};
use super::schedule::{Habit, Schedule};
use super::sends::Sends;
use super::steady::Steady;

/// The results are written this often.
const PUBLISH: Duration = Duration::from_millis(250);
/// The events that may wait for the driver. A connection whose event does not fit waits.
const EVENTS: usize = 256;
/// The commands that may wait for a connection.
const COMMANDS: usize = 4;
/// How long everything may take to close.
const CLOSING: Duration = Duration::from_secs(2);
/// The most times that a busy connection is opened again.
const AGAIN: u32 = 8;
/// The shortest time between two Pings or Pongs.
const SHORTEST: Duration = Duration::from_millis(50);
/// The lives of connections that ended are remembered up to this number.
const LIVES: usize = 256;

/// The name of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Name {
    /// On which nothing is sent.
    Silent(usize),
    /// On which this client sends Pongs.
    Up(usize),
    /// A watched one: its index, and how often it was opened.
    Habit(usize, u32),
}

/// Why an experiment has no result.
const TOO_LATE: &str =
    "the idle limit is shorter than the time between two of them, and was found too late to send more often";

const OTHERWISE: &str =
    "connections were cut after a shorter time than silent ones live, so it was not for the server's silence";

/// Where the results go.
pub(super) struct Results<'a> {
    pub(super) waited: &'a mut Duration,
    pub(super) idle: &'a mut Option<Idle>,
    pub(super) lifetime: &'a mut Option<Lifetime>,
    pub(super) left_out: &'a LeftOut<'a>,
}

/// Waits until the schedule ends the waiting. The results are up to date every 250 ms.
pub(super) async fn wait(
    target: &Target,
    schedule: &Schedule,
    mut results: Results<'_>,
    progress: &Progress,
) {
    let (sender, mut events) = mpsc::channel(EVENTS);
    let mut waits = Waits::new(target, schedule, sender);
    let mut publish = Duration::ZERO;
    loop {
        let now = waits.began.elapsed();
        waits.act(now);
        if now >= publish || now >= schedule.waiting {
            publish = now + PUBLISH;
            waits.publish(now, &mut results, progress);
        }
        if now >= schedule.waiting {
            break;
        }
        let due = waits.began + waits.poll_timeout(now).min(publish);
        tokio::select! {
            biased;
            Some((name, at, event)) = events.recv() => {
                if let Event::Failed(error) = &event && waits.failures == 0 {
                    results.left_out.note(format!("some of the connections that wait: {error}"));
                }
                waits.handle(at.saturating_duration_since(waits.began), name, event);
            }
            () = sleep_until(due) => {}
        }
    }
    waits.close(&mut events).await;
}

struct Waits<'a> {
    target: &'a Target,
    schedule: &'a Schedule,
    began: Instant,
    /// Dropping it closes all sockets.
    tasks: JoinSet<()>,
    events: Sender<(Name, Instant, Event)>,
    commands: HashMap<Name, Sender<Command>>,
    silent: Search,
    up: Search,
    /// Between two Pings or Pongs of the connections that send as clients do.
    every: Duration,
    /// Since when an idle limit is known for which that is too long.
    too_long_since: Option<Duration>,
    /// When the next Pong is due.
    next_pongs: HashMap<usize, Duration>,
    habits: Vec<Slot>,
    /// When connections of the searches were opened.
    opened: HashMap<Name, Duration>,
    /// The lives of connections that ended.
    lives: Vec<Life>,
    explained: Explained,
    sends: Sends<Name>,
    /// The openings that failed.
    failures: u32,
}

/// A watched connection.
struct Slot {
    habit: Habit,
    /// When it is opened; `None`: it was.
    due: Option<Duration>,
    again: u32,
    machine: Option<Steady>,
    first_ping: Option<Duration>,
}

impl<'a> Waits<'a> {
    fn new(target: &'a Target, schedule: &'a Schedule, events: Sender<(Name, Instant, Event)>) -> Self {
        let due = |(index, habit): (usize, &Habit)| match habit {
            Habit::SecondBusy => schedule.second_busy,
            _ => schedule.apart * index as u32,
        };
        let slot = |entry: (usize, &Habit)| Slot {
            habit: *entry.1,
            due: Some(due(entry)),
            again: 0,
            machine: None,
            first_ping: None,
        };
        Self {
            target,
            schedule,
            began: Instant::now(),
            tasks: JoinSet::new(),
            events,
            commands: HashMap::new(),
            silent: Search::new(schedule.silent_bounds()),
            up: Search::new(schedule.up_bounds()),
            every: schedule.every,
            too_long_since: None,
            next_pongs: HashMap::new(),
            habits: schedule.habits.iter().enumerate().map(slot).collect(),
            opened: HashMap::new(),
            lives: Vec::new(),
            explained: Explained::default(),
            sends: Sends::new(schedule.waiting / 20),
            failures: 0,
        }
    }

    /// Does everything that is due.
    fn act(&mut self, now: Duration) {
        while self.tasks.try_join_next().is_some() {}
        self.adapt(now);
        self.act_habits(now);
        while let Some(what) = self.silent.poll(now) {
            self.perform(what, Name::Silent);
        }
        while let Some(what) = self.up.poll(now) {
            if let Do::Open(number) = what {
                self.next_pongs.insert(number, now + self.every);
            }
            self.perform(what, Name::Up);
        }
        let due: Vec<_> =
            self.next_pongs.iter().filter(|(_, due)| **due <= now).map(|(number, _)| *number).collect();
        for number in due {
            self.command(Name::Up(number), Command::Pong);
            self.next_pongs.insert(number, now + self.every);
        }
    }

    /// Sends more often if the idle limit turns out to be shorter than the interval: what that is for, to see what keeps a connection, could
    /// not be seen. Waits for a while first, as another connection may explain the cuts.
    fn adapt(&mut self, now: Duration) {
        let after = match self.silent.limit() {
            Limit::Cut { after, .. } if after < self.every.mul_f64(1.5) => after,
            _ => return self.too_long_since = None,
        };
        let since = *self.too_long_since.get_or_insert(now);
        let is_time_left = now + after * 2 + self.schedule.patience < self.schedule.waiting;
        if now < since + self.schedule.patience || !is_time_left {
            return;
        }
        self.too_long_since = None;
        self.every = (after / 3).max(SHORTEST);
        self.up.restart();
        self.next_pongs.clear();
        self.commands.retain(|name, _| !matches!(name, Name::Up(_)));
        for slot in self.habits.iter_mut().filter(|slot| slot.habit == Habit::Pings) {
            (slot.machine, slot.due, slot.again) = (None, Some(now), slot.again + 1);
        }
    }

    fn act_habits(&mut self, now: Duration) {
        for index in 0..self.habits.len() {
            let Some(slot) = self.habits.get_mut(index) else { continue };
            let name = Name::Habit(index, slot.again);
            if slot.due.is_some_and(|due| due <= now) {
                slot.due = None;
                let options = Options { answer_pings: slot.habit != Habit::Mute, ..quiet() };
                self.open(name, options);
            } else if slot.machine.as_mut().is_some_and(|machine| machine.poll(now)) {
                let what = if slot.habit == Habit::Talks { Command::Message } else { Command::Ping };
                self.command(name, what);
            }
        }
        let answers = self.busy().find_map(|machine| machine.answers(now));
        if let Some(answers) = answers {
            self.silent.handle_answers(answers);
            self.up.handle_answers(answers);
        }
        self.open_again(now);
    }

    /// Opens a busy connection that was cut once more, to see whether that happens at the same age.
    fn open_again(&mut self, now: Duration) {
        let is_over = now + self.schedule.patience >= self.schedule.waiting;
        for slot in &mut self.habits {
            let is_busy = matches!(slot.habit, Habit::Busy | Habit::SecondBusy);
            let Some((at, how)) = slot.machine.as_ref().and_then(Steady::cut) else { continue };
            // A Pong that is late, which is noticed only after the patience, gets some more time.
            let patience = self.schedule.patience * if *how == CutHow::Silent { 2 } else { 1 };
            if is_busy && !is_over && slot.again < AGAIN && now >= *at + patience {
                let life = slot.machine.take().map(|machine| machine.life(now, true));
                self.lives.extend(life);
                slot.again += 1;
                slot.due = Some(now);
            }
        }
        let current: Vec<_> = self.habits.iter().map(|slot| slot.again).collect();
        self.commands.retain(
            |name, _| !matches!(name, Name::Habit(index, again) if current.get(*index) != Some(again)),
        );
    }

    fn poll_timeout(&self, now: Duration) -> Duration {
        let habits = self
            .habits
            .iter()
            .flat_map(|slot| [slot.due, slot.machine.as_ref().and_then(Steady::poll_timeout)]);
        let searches = [self.silent.poll_timeout(now), self.up.poll_timeout(now)];
        habits.flatten().chain(searches).chain(self.next_pongs.values().copied()).min().unwrap_or_default()
    }

    fn perform(&mut self, what: Do, name: impl Fn(usize) -> Name) {
        match what {
            Do::Open(number) => self.open(name(number), quiet()),
            Do::Check(number) => self.command(name(number), Command::Ping),
            Do::Close(number) => {
                self.commands.remove(&name(number));
            }
        }
    }

    fn open(&mut self, name: Name, options: Options) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        self.commands.insert(name, sender);
        self.tasks.spawn(hold(self.target.clone(), options, name, commands, self.events.clone()));
    }

    /// A connection that takes no more commands is one whose bytes do not leave: nothing is missed.
    fn command(&self, name: Name, command: Command) {
        if let Some(sender) = self.commands.get(&name) {
            let _ = sender.try_send(command);
        }
    }

    fn handle(&mut self, now: Duration, name: Name, event: Event) {
        match (&event, name) {
            (Event::Opened, _) => drop(self.opened.insert(name, now)),
            (Event::Failed(_), _) => self.failures += 1,
            (Event::Ping, _) => self.sends.handle_ping(name, now),
            (Event::Data, _) => self.sends.handle_message(name, now.saturating_sub(self.age_zero(name)), now),
            _ => {}
        }
        match name {
            Name::Silent(number) => pass(&mut self.silent, now, number, &event),
            Name::Up(number) => pass(&mut self.up, now, number, &event),
            Name::Habit(index, again) => self.handle_habit(now, index, again, &event),
        }
        if let Event::Ended(_) | Event::Failed(_) = event {
            self.handle_end(now, name, event);
        }
    }

    fn handle_habit(&mut self, now: Duration, index: usize, again: u32, event: &Event) {
        let (schedule, every) = (self.schedule, self.every);
        let Some(slot) = self.habits.get_mut(index).filter(|slot| slot.again == again) else { return };
        match event {
            Event::Opened => slot.machine = Some(machine(slot.habit, now, every, schedule)),
            Event::Failed(_) => slot.due = Some(now + schedule.apart * 20).filter(|_| slot.again < AGAIN),
            Event::Ping => drop(slot.first_ping.get_or_insert(now)),
            _ => {}
        }
        if let Event::Failed(_) = event {
            slot.again += 1;
        }
        let Some(machine) = &mut slot.machine else { return };
        match event {
            Event::Answer => machine.handle_pong(now),
            Event::Ping | Event::Data | Event::Greeting => machine.handle_bytes(now),
            Event::Ended(how) => machine.handle_end(now, how.clone()),
            Event::Opened | Event::Failed(_) => {}
        }
    }

    fn handle_end(&mut self, now: Duration, name: Name, event: Event) {
        self.commands.remove(&name);
        if let Name::Up(number) = name {
            self.next_pongs.remove(&number);
        }
        let opened = self.opened.remove(&name);
        if let (Event::Ended(how), Some(opened), Name::Silent(_) | Name::Up(_)) = (event, opened, name)
            && self.lives.len() < LIVES
        {
            self.lives.push(Life { opened, last: now, cut: Some((now, how)), is_busy: false });
        }
        self.explained = lifetime::explain(&self.lives(now));
        self.silent.explain(&self.explained);
        self.up.explain(&self.explained);
    }

    fn age_zero(&self, name: Name) -> Duration {
        self.opened.get(&name).copied().unwrap_or_default()
    }

    fn busy(&self) -> impl Iterator<Item = &Steady> {
        self.habits.iter().filter(|slot| slot.habit == Habit::Busy).filter_map(|slot| slot.machine.as_ref())
    }

    fn lives(&self, now: Duration) -> Vec<Life> {
        let watched = self.habits.iter().filter_map(|slot| {
            let is_busy = matches!(slot.habit, Habit::Busy | Habit::SecondBusy);
            // Messages may keep a connection that Pings do not.
            let machine = slot.machine.as_ref().filter(|_| slot.habit != Habit::Talks);
            machine.map(|machine| machine.life(now, is_busy))
        });
        watched.chain(self.lives.iter().cloned()).collect()
    }

    fn publish(&mut self, now: Duration, results: &mut Results<'_>, progress: &Progress) {
        let lives = self.lives(now);
        self.explained = lifetime::explain(&lives);
        self.silent.explain(&self.explained);
        self.up.explain(&self.explained);
        let lifetime = lifetime::judge(&lives, now);
        let idle = self.idle(now);
        let is_over = now >= self.schedule.waiting;
        *results.waited = now;
        *results.idle = Some(idle.clone());
        *results.lifetime = Some(lifetime.clone());
        let part = Measured { idle: Some(idle), lifetime: Some(lifetime), ..Measured::default() };
        super::show(progress, &part, is_over);
        if !is_over {
            let left = self.schedule.waiting.saturating_sub(now);
            progress.report("waiting", State::Running, format!("{} left", span(left)));
        } else {
            progress.report("waiting", State::Done, span(self.schedule.waiting));
        }
    }

    fn idle(&self, now: Duration) -> Idle {
        let server = self.sends.result();
        let server_sends = if server.is_regular() {
            self.habit_limit(Habit::Answers, now)
        } else {
            Limit::unknown("the server sends nothing by itself")
        };
        let unanswered_pings =
            if server.pings > 0 { self.unanswered(now) } else { Limit::unknown("the server sends no Pings") };
        // Where the interval is too long, connections are cut between two of their Pings.
        let in_time = |limit| match limit {
            Limit::Cut { .. } if self.too_long_since.is_some() => Limit::unknown(TOO_LATE),
            limit => limit,
        };
        let (our_pings, up_only) = (in_time(self.habit_limit(Habit::Pings, now)), in_time(self.up.limit()));
        let silent = self.silent.limit();
        let up_only = if silent.outlives(&up_only) { Limit::unknown(OTHERWISE) } else { up_only };
        let talks = self.habits.iter().any(|slot| slot.habit == Habit::Talks);
        let our_messages = talks.then(|| self.habit_limit(Habit::Talks, now));
        Idle {
            silent,
            our_pings,
            up_only,
            our_messages,
            server_sends,
            unanswered_pings,
            every: self.every,
            server,
        }
    }

    /// How long a watched connection lived, where nothing else explains its end.
    fn habit_limit(&self, habit: Habit, now: Duration) -> Limit {
        let slot = self.habits.iter().find(|slot| slot.habit == habit);
        let Some(machine) = slot.and_then(|slot| slot.machine.as_ref()) else {
            return Limit::unknown("no connection could be watched");
        };
        let life = machine.life(now, false);
        let alive = life.last.saturating_sub(life.opened);
        match life.cut {
            Some((at, how)) if !self.explained.covers(life.opened, life.from(), at) => {
                let cut = at.saturating_sub(life.opened);
                let after = if how == CutHow::Silent { alive + cut.saturating_sub(alive) / 2 } else { cut };
                Limit::Cut { after, between: (alive, cut), how, seen: 1 }
            }
            Some((at, how)) if how != CutHow::Silent => {
                Limit::Holds { for_at_least: at.saturating_sub(life.opened) }
            }
            _ if machine.answers(now) == Some(false) && habit == Habit::Pings => {
                Limit::unknown("the server answers no Ping")
            }
            _ if machine.answers(now) == Some(false) && habit == Habit::Talks => {
                Limit::unknown("the server returns no message")
            }
            _ if alive.is_zero() => Limit::unknown("it is too early"),
            _ => Limit::Holds { for_at_least: alive },
        }
    }

    /// How long a server keeps a client that does not answer, from the first Ping that this client did not answer.
    fn unanswered(&self, now: Duration) -> Limit {
        let slot = self.habits.iter().find(|slot| slot.habit == Habit::Mute);
        let Some((machine, first)) = slot.and_then(|slot| Some((slot.machine.as_ref()?, slot.first_ping?)))
        else {
            return Limit::unknown("the server sent no Ping to the connection that does not answer");
        };
        let life = machine.life(now, false);
        match life.cut {
            Some((at, how)) if !self.explained.covers(life.opened, life.from(), at) => {
                let after = at.saturating_sub(first);
                Limit::Cut { after, between: (life.last.saturating_sub(first), after), how, seen: 1 }
            }
            Some((at, _)) => Limit::Holds { for_at_least: at.saturating_sub(first) },
            None => Limit::Holds { for_at_least: now.saturating_sub(first) },
        }
    }

    /// Closes everything in order.
    async fn close(mut self, events: &mut Receiver<(Name, Instant, Event)>) {
        self.commands.clear();
        events.close();
        let _ = timeout(CLOSING, async { while self.tasks.join_next().await.is_some() {} }).await;
        self.tasks.shutdown().await;
    }
}

/// The options of a connection that sends no messages.
fn quiet() -> Options {
    Options::default()
}

fn machine(habit: Habit, now: Duration, every: Duration, schedule: &Schedule) -> Steady {
    let last_ping = schedule.waiting.saturating_sub(schedule.patience);
    match habit {
        Habit::Busy | Habit::SecondBusy | Habit::Talks => {
            Steady::new(now, Some(schedule.busy_every), last_ping, schedule.patience)
        }
        Habit::Pings => Steady::new(now, Some(every), last_ping, schedule.patience),
        Habit::Answers => Steady::new(now, None, last_ping, schedule.patience),
        Habit::Mute => Steady::new(now, None, Duration::MAX, schedule.patience),
    }
}

fn pass(search: &mut Search, now: Duration, number: usize, event: &Event) {
    match event {
        Event::Opened => search.handle_open(now, number),
        Event::Failed(_) => search.handle_failure(now, number),
        Event::Answer => search.handle_pong(now, number),
        Event::Ping | Event::Data | Event::Greeting => search.handle_bytes(now, number),
        Event::Ended(how) => search.handle_end(now, number, how.clone()),
    }
}
