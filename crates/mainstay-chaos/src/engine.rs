//! What runs on the proxy's thread: it listens, gives each connection its machine and its task, and spreads the faults of the proxy.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc as answers;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep_until;

use crate::clock::TICK;
use crate::connection::Connection;
use crate::event::{Cause, Event, FaultId, Lift, What};
use crate::fault::Fault;
use crate::pair::Pair;
use crate::scenario::Scenario;
use crate::schedule::{self, Schedule, Strike};
use crate::shared::{OnEvent, Shared, reason};
use crate::state::{ActiveFault, ConnectionInfo, Target};

/// Runs on the proxy's thread.
pub(crate) type Command = Box<dyn FnOnce(&mut Engine) + Send>;

/// How long the proxy waits before it tries again to listen or to accept.
const AGAIN: Duration = Duration::from_millis(100);
/// A failure that comes again so soon is the same one, and is not noted again.
const GOES_ON: Duration = Duration::from_secs(1);

/// How a proxy starts.
pub(crate) struct Settings {
    pub(crate) upstream: String,
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    pub(crate) on_event: Option<OnEvent>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstream: String::new(),
            seed: getrandom::u64().unwrap_or_default(),
            scenario: Scenario::default(),
            on_event: None,
        }
    }
}

/// The state of a proxy.
pub(crate) struct Engine {
    shared: Rc<Shared>,
    address: SocketAddr,
    seed: u64,
    scenario: Scenario,
    /// `None`: nothing listens.
    listener: Option<TcpListener>,
    /// When to try again to listen or to accept.
    again: Option<Duration>,
    /// Why that failed, and when it did last.
    failed: Option<(String, Duration)>,
    pairs: Rc<RefCell<BTreeMap<u64, Rc<RefCell<Pair>>>>>,
    accepted: u64,
    /// The schedules of the rules that strike the whole proxy.
    schedules: Vec<Schedule>,
    /// The lasting faults of the whole proxy, and those of single connections that were commanded.
    standing: Vec<Standing>,
    faults: u64,
    has_ended: bool,
}

struct Standing {
    id: FaultId,
    by: Cause,
    fault: Fault,
    target: Target,
    until: Option<Duration>,
    /// The share of connections that a rule strikes.
    share: f64,
    /// The newest connection when it began.
    newest: u64,
}

impl Engine {
    /// Runs a proxy until it is ended, and reports through `ready` where it listens.
    pub(crate) fn run(
        listen: &str,
        settings: Settings,
        mut commands: mpsc::UnboundedReceiver<Command>,
        ready: &answers::Sender<io::Result<SocketAddr>>,
    ) {
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let local = LocalSet::new();
        local.block_on(&runtime, async {
            match bind(listen).await {
                Err(error) => drop(ready.send(Err(error))),
                Ok((address, listener)) => {
                    let mut engine = Self::new(settings, address, listener);
                    let _ = ready.send(Ok(address));
                    engine.serve(&mut commands).await;
                }
            }
        });
        drop(local);
        // A name that is being looked up must not keep the thread.
        runtime.shutdown_background();
    }

    fn new(settings: Settings, address: SocketAddr, listener: TcpListener) -> Self {
        let Settings { upstream, seed, scenario, on_event } = settings;
        let shared = Rc::new(Shared::new(address, upstream.clone(), on_event));
        shared.event(None, What::Started { listen: address, upstream, seed });
        let mut engine = Self {
            shared,
            address,
            seed,
            scenario: Scenario::default(),
            listener: Some(listener),
            again: None,
            failed: None,
            pairs: Rc::default(),
            accepted: 0,
            schedules: Vec::new(),
            standing: Vec::new(),
            faults: 0,
            has_ended: false,
        };
        engine.begin_scenario(scenario, Duration::ZERO);
        engine.handle_time();
        engine
    }

    async fn serve(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let shared = Rc::clone(&self.shared);
        while !self.has_ended {
            let tick = shared.now() + TICK;
            let next = self.next_time().map_or(tick, |at| at.min(tick));
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => command(self),
                    None => self.has_ended = true,
                },
                () = sleep_until(shared.instant(next).into()) => self.handle_time(),
                () = shared.has_newcomer.notified() => self.show_ghosts(),
                accepted = accept(self.listener.as_ref().filter(|_| self.again.is_none())) => self.accept(accepted),
            }
        }
        self.listener = None;
        self.for_each(|_, machine| machine.end_with_proxy());
        self.shared.event(None, What::Ended);
    }

    fn accept(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let now = self.shared.now();
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return self.try_again(&error),
        };
        self.accepted += 1;
        let id = self.accepted;
        self.shared.event_at(now, Some(id), What::Opened { client });
        let mut machine = Connection::new(id, now, self.seed);
        machine.set_rules(&self.scenario, now);
        for standing in self.standing.iter().filter(|standing| standing.strikes_newcomer(self.seed, id)) {
            machine.handle_fault(now, &standing.fault, standing.id);
        }
        let pair = Rc::new(RefCell::new(Pair::new(id, stream, client, machine)));
        self.pairs.borrow_mut().insert(id, Rc::clone(&pair));
        let (shared, pairs) = (Rc::clone(&self.shared), Rc::clone(&self.pairs));
        spawn_local(async move {
            poll_fn(|context| pair.borrow_mut().poll(context, &shared)).await;
            pairs.borrow_mut().remove(&id);
        });
    }

    /// Faults begin and end that are due; the listener follows them.
    fn handle_time(&mut self) {
        let now = self.shared.now();
        self.again = self.again.filter(|again| *again > now);
        let due = |standing: &mut Standing| standing.until.is_some_and(|until| until <= now);
        let ended: Vec<_> = self.standing.extract_if(.., due).collect();
        for standing in ended {
            self.stopped(&standing, Lift::End);
        }
        for index in 0..self.schedules.len() {
            while let Some(strike) = self.schedules[index].pop(now) {
                self.strike(self.schedules[index].rule, strike);
            }
        }
        self.listen_or_not();
    }

    /// A rule strikes the whole proxy.
    fn strike(&mut self, number: usize, strike: Strike) {
        let Some(rule) = self.scenario.rules.get(number - 1) else { return };
        let (fault, by, share) = (rule.fault.clone(), Cause::Rule(number), rule.share);
        let lasts = strike.until.map(|until| until.saturating_sub(strike.at));
        self.shared.event(None, What::Fault { fault: fault.clone(), by, lasts, due: Some(strike.due) });
        self.faults += 1;
        let id = FaultId(self.faults);
        let standing = Standing {
            id,
            by,
            fault,
            target: Target::All,
            until: strike.until,
            share,
            newest: self.accepted,
        };
        self.begin(standing);
    }

    fn begin(&mut self, standing: Standing) {
        let (now, seed) = (self.shared.now(), self.seed);
        let Standing { id: fault_id, ref fault, .. } = standing;
        self.for_each(|id, machine| {
            if standing.strikes_open(seed, id) {
                machine.handle_fault(now, fault, fault_id);
            }
        });
        self.forget_gone();
        if !standing.fault.is_of_a_moment() {
            self.standing.push(standing);
        }
        self.listen_or_not();
    }

    /// Faults of connections alone that are gone are in force no more.
    fn forget_gone(&mut self) {
        let pairs = self.pairs.borrow();
        self.standing.retain(|standing| match standing.target {
            Target::New | Target::All => true,
            Target::Connection(id) => pairs.contains_key(&id),
            Target::Open => pairs.range(..=standing.newest).next().is_some(),
        });
    }

    /// The timeline has the end of a fault before what passes because of it.
    fn stopped(&mut self, standing: &Standing, why: Lift) {
        let now = self.shared.now();
        let connection = match standing.target {
            Target::Connection(id) => Some(id),
            _ => None,
        };
        self.shared.event(connection, What::Lifted { fault: standing.fault.name(), by: standing.by, why });
        self.for_each(|_, machine| machine.handle_lift(now, standing.id, why));
    }

    /// Opens or closes the listener, as the fault `refuse` says.
    fn listen_or_not(&mut self) {
        let refuses = self.standing.iter().any(|standing| standing.fault == Fault::Refuse);
        if refuses {
            self.listener = None;
        } else if self.listener.is_none() && self.again.is_none() && !self.has_ended {
            match listen_again(self.address) {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => self.try_again(&error),
            }
        }
    }

    fn try_again(&mut self, error: &io::Error) {
        let (now, reason) = (self.shared.now(), reason(error));
        let goes_on = |(before, at): &(String, Duration)| *before == reason && now - *at < GOES_ON;
        if !self.failed.as_ref().is_some_and(goes_on) {
            self.shared.event(None, What::AcceptFailed { reason: reason.clone() });
        }
        self.failed = Some((reason, now));
        self.again = Some(now + AGAIN);
    }

    fn next_time(&self) -> Option<Duration> {
        let ends = self.standing.iter().filter_map(|standing| standing.until);
        ends.chain(self.schedules.iter().filter_map(Schedule::next)).chain(self.again).min()
    }

    /// Ghosts that are older than the newest connection appear.
    fn show_ghosts(&mut self) {
        if let Some(newest) = self.shared.take_newcomer() {
            self.for_each(|id, machine| {
                if id < newest {
                    machine.handle_newcomer();
                }
            });
        }
    }

    fn begin_scenario(&mut self, scenario: Scenario, now: Duration) {
        let rules = scenario.rules.iter().enumerate().map(|(index, rule)| (index + 1, rule));
        self.schedules = rules
            .filter(|(_, rule)| schedule::is_of_the_proxy(rule))
            .map(|(number, rule)| {
                Schedule::new(number, rule, now, schedule::random(self.seed, 0, number as u64))
            })
            .collect();
        self.scenario = scenario;
    }

    /// Lets every open connection take in what `change` does to it, and carries that out.
    fn for_each(&self, mut change: impl FnMut(u64, &mut Connection)) {
        let pairs: Vec<_> = self.pairs.borrow().values().cloned().collect();
        for pair in pairs {
            let mut pair = pair.borrow_mut();
            if !pair.is_closed() {
                change(pair.id, &mut pair.machine);
                pair.carry_out(&self.shared);
            }
        }
    }
}

/// What the handle asks for.
impl Engine {
    pub(crate) fn inject(&mut self, fault: Fault, target: Target, lasts: Option<Duration>) -> FaultId {
        self.faults += 1;
        let id = FaultId(self.faults);
        let by = Cause::Command(id);
        let lasts = lasts.filter(|_| !fault.is_of_a_moment());
        let until = lasts.and_then(|lasts| self.shared.now().checked_add(lasts));
        let connection = match target {
            Target::Connection(id) => Some(id),
            _ => None,
        };
        self.shared.event(connection, What::Fault { fault: fault.clone(), by, lasts, due: None });
        self.begin(Standing { id, by, fault, target, until, share: 1.0, newest: self.accepted });
        id
    }

    pub(crate) fn lift(&mut self, id: FaultId) -> bool {
        let found = self.standing.iter().position(|standing| standing.id == id);
        if let Some(found) = found {
            let standing = self.standing.remove(found);
            self.stopped(&standing, Lift::Command);
            self.listen_or_not();
        }
        found.is_some()
    }

    pub(crate) fn lift_all(&mut self) {
        for standing in std::mem::take(&mut self.standing) {
            self.stopped(&standing, Lift::Command);
        }
        let now = self.shared.now();
        self.for_each(|_, machine| machine.handle_lift_of_rules(now, Lift::Command));
        self.listen_or_not();
    }

    pub(crate) fn set_upstream(&mut self, upstream: String) {
        self.shared.set_upstream(upstream);
    }

    pub(crate) fn set_scenario(&mut self, scenario: Scenario) {
        let of_a_rule = |standing: &mut Standing| matches!(standing.by, Cause::Rule(_));
        let ended: Vec<_> = self.standing.extract_if(.., of_a_rule).collect();
        for standing in ended {
            self.stopped(&standing, Lift::Scenario);
        }
        let now = self.shared.now();
        self.begin_scenario(scenario, now);
        let scenario = self.scenario.clone();
        self.for_each(|_, machine| {
            machine.handle_lift_of_rules(now, Lift::Scenario);
            machine.set_rules(&scenario, now);
        });
        self.handle_time();
    }

    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        let pairs = self.pairs.borrow();
        let open = pairs.values().map(|pair| pair.borrow()).filter(|pair| !pair.is_closed());
        open.map(|pair| {
            let (up, down) = pair.machine.bytes();
            ConnectionInfo {
                id: pair.id,
                client: pair.client,
                opened: pair.machine.opened(),
                up,
                down,
                state: pair.machine.state(),
                faults: pair.machine.faults(),
            }
        })
        .collect()
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    pub(crate) fn faults(&mut self) -> Vec<ActiveFault> {
        self.forget_gone();
        let now = self.shared.now();
        let active = |standing: &Standing| ActiveFault {
            id: standing.id,
            fault: standing.fault.clone(),
            target: standing.target,
            rest: standing.until.map(|until| until.saturating_sub(now)),
        };
        self.standing.iter().map(active).collect()
    }

    pub(crate) fn timeline(&self) -> Vec<Event> {
        self.shared.timeline()
    }

    pub(crate) fn follow(&self) -> (Vec<Event>, answers::Receiver<Event>) {
        self.shared.follow()
    }

    pub(crate) fn end(&mut self) {
        self.has_ended = true;
    }
}

impl Standing {
    /// Whether it strikes a connection that is open when it begins.
    fn strikes_open(&self, seed: u64, id: u64) -> bool {
        let is_meant = match self.target {
            Target::Open | Target::All => true,
            Target::New => false,
            Target::Connection(meant) => meant == id,
        };
        is_meant && self.is_drawn(seed, id)
    }

    /// Whether it strikes a connection that opens while it lasts.
    fn strikes_newcomer(&self, seed: u64, id: u64) -> bool {
        matches!(self.target, Target::New | Target::All) && self.is_drawn(seed, id)
    }

    fn is_drawn(&self, seed: u64, id: u64) -> bool {
        match self.by {
            Cause::Rule(number) => schedule::is_struck(seed, id, number, self.share),
            Cause::Command(_) => true,
        }
    }
}

async fn bind(listen: &str) -> io::Result<(SocketAddr, TcpListener)> {
    let bound = TcpListener::bind(listen).await.and_then(|bound| {
        lengthen_queue(&bound)?;
        Ok((bound.local_addr()?, bound))
    });
    bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}")))
}

/// Listens at the same address as before, though connections of then may still be open.
fn listen_again(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    lengthen_queue(&listener)?;
    Ok(listener)
}

/// Lets as many connections wait to be accepted as the system allows. `bind` lets 128; if more come at once, some wait for seconds or are
/// reset, which is no fault that anybody asked for.
fn lengthen_queue(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).listen(65_535)
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}
