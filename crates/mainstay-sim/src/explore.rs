//! Every run of a small world: the session machines under all orders of all events, within a budget.
//!
//! A seed of the simulator plays one long run; the explorer plays all short ones. Breadth first, so the first
//! counterexample is a shortest one. A 64-bit fingerprint distinguishes states. Time stands still, except for events
//! about time (an expiry, a heartbeat, a late acknowledgement).
//!
//! The invariants (`facts`): no duplicate, no hole, no reorder at either application; acknowledged means delivered;
//! no protocol error and no failed integrity check between correct ends; no session lost without an excuse; every
//! [`Fate`](mainstay_proto::session::Fate) true. And from every state some continuation without faults leads to a
//! good one: no client is locked out.
//!
//! Not here: byte windows, VOLATILE, GOAWAY, credentials, real time. The simulator covers those.

mod facts;
mod world;

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};

use world::World;

/// How often each fault may occur in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// A connection becomes silent, in one direction or both.
    pub cuts: u8,
    /// A client replaces a living connection.
    pub replacements: u8,
    /// A client gives up a connection that waits for WELCOME.
    pub abandons: u8,
    /// The server loses its state.
    pub restarts: u8,
    /// A parked session expires, or an END gets no answer.
    pub expiries: u8,
    /// Either application ends the session.
    pub ends: u8,
    /// A copy of the client appears.
    pub tabs: u8,
    /// Either end sends PING.
    pub pings: u8,
}

/// One scenario of the explorer, and its bounds.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The name, for reports.
    pub name: &'static str,
    /// Maximum number of messages that a client's application sends.
    pub client_messages: u64,
    /// Maximum number of messages that the server's application sends in a session.
    pub server_messages: u64,
    /// The window of both ends, in messages.
    pub window: u64,
    /// How many messages the server keeps; above it the oldest that were never written are dropped. 0: it keeps all.
    pub drops_above: u64,
    /// The faults.
    pub faults: Budget,
    /// The server's application acknowledges the messages that it has processed.
    pub manual: bool,
    /// Each write is an event of its own; otherwise everything is written at once.
    pub lazy: bool,
    /// Each message waits until the application receives it; otherwise it is received at once.
    pub slow: bool,
    /// An attacker has read the first HELLO of each session, and presents the key once the first epoch is established.
    pub overheard: bool,
    /// The number of nodes. With more than one, a HELLO without a token may reach any of them, and each may open a session
    /// under the client's key.
    pub nodes: usize,
    /// Whether to look for lock-outs, too.
    pub live: bool,
    /// The number of states after which the explorer stops.
    pub most_states: usize,
}

impl Scenario {
    /// One message in each direction, and no fault.
    pub const CALM: Self = Self {
        name: "calm",
        client_messages: 1,
        server_messages: 1,
        window: 16,
        drops_above: 0,
        faults: NONE,
        manual: false,
        lazy: true,
        slow: false,
        overheard: false,
        nodes: 1,
        live: true,
        most_states: 1_000_000,
    };
}

/// No fault at all.
pub const NONE: Budget =
    Budget { cuts: 0, replacements: 0, abandons: 0, restarts: 0, expiries: 0, ends: 0, tabs: 0, pings: 0 };

/// The outcome of an exploration.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The number of different states.
    pub states: usize,
    /// The number of events played.
    pub transitions: u64,
    /// The length of the longest run.
    pub depth: usize,
    /// Whether all states were visited.
    pub exhausted: bool,
    /// A shortest run that breaks something.
    pub counterexample: Option<Counterexample>,
}

/// A run that breaks something.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// The invariant that broke.
    pub what: String,
    /// The events up to it.
    pub trace: Vec<String>,
}

/// How a state was reached: from which state, by which of its events.
#[derive(Clone, Copy)]
struct Origin {
    parent: u32,
    event: u8,
}

/// Plays every run of `scenario`.
#[must_use]
pub fn explore(scenario: &Scenario) -> Outcome {
    Search::new(scenario).run()
}

struct Search {
    scenario: Scenario,
    seen: HashMap<u64, u32>,
    origins: Vec<Origin>,
    good: Vec<bool>,
    /// Steps of fault-free continuations, (to, from).
    progress: Vec<(u32, u32)>,
    transitions: u64,
}

impl Search {
    fn new(scenario: &Scenario) -> Self {
        Self {
            scenario: *scenario,
            seen: HashMap::new(),
            origins: Vec::new(),
            good: Vec::new(),
            progress: Vec::new(),
            transitions: 0,
        }
    }

    fn run(mut self) -> Outcome {
        let start = World::new(&self.scenario);
        self.note(&start, Origin { parent: 0, event: 0 });
        let mut front = vec![(0_u32, start)];
        let mut depth = 0;
        while !front.is_empty() && self.origins.len() < self.scenario.most_states {
            depth += 1;
            let mut next = Vec::new();
            for (number, world) in front {
                if let Err(broken) = self.expand(number, &world, &mut next) {
                    return self.outcome(depth, false, Some(broken));
                }
            }
            front = next;
        }
        let exhausted = front.is_empty();
        let locked_out = if exhausted && self.scenario.live { self.locked_out() } else { None };
        let broken = locked_out.map(|state| {
            let what = "lock-out: no continuation without faults leads to a good state".to_owned();
            Counterexample { what, trace: self.trace(state) }
        });
        self.outcome(depth, exhausted, broken)
    }

    /// Plays every event of a state.
    fn expand(
        &mut self,
        from: u32,
        world: &World,
        next: &mut Vec<(u32, World)>,
    ) -> Result<(), Counterexample> {
        for (index, (event, is_progress)) in world.events().into_iter().enumerate() {
            let after = world.after(event).map_err(|what| {
                let mut trace = self.trace(from);
                trace.push(world.describe(event));
                Counterexample { what, trace }
            })?;
            let Some(after) = after else { continue };
            self.transitions += 1;
            let (to, new) = self.note(&after, Origin { parent: from, event: index as u8 });
            if self.scenario.live && is_progress {
                self.progress.push((to, from));
            }
            if new {
                next.push((to, after));
            }
        }
        Ok(())
    }

    /// Returns the number of a state, and whether it is new.
    fn note(&mut self, world: &World, origin: Origin) -> (u32, bool) {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        match self.seen.entry(hasher.finish()) {
            Entry::Occupied(known) => (*known.get(), false),
            Entry::Vacant(vacant) => {
                let number = self.origins.len() as u32;
                vacant.insert(number);
                self.origins.push(origin);
                self.good.push(world.is_good());
                (number, true)
            }
        }
    }

    /// Returns the first state from which no fault-free continuation leads to a good one.
    fn locked_out(&mut self) -> Option<u32> {
        self.progress.sort_unstable();
        let mut reached = self.good.clone();
        let mut open: Vec<u32> =
            (0..).zip(&self.good).filter(|(_, good)| **good).map(|(state, _)| state).collect();
        while let Some(state) = open.pop() {
            let first = self.progress.partition_point(|(to, _)| *to < state);
            for (_, from) in self.progress[first..].iter().take_while(|(to, _)| *to == state) {
                if !std::mem::replace(&mut reached[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        (0..).zip(&reached).find(|(_, reached)| !**reached).map(|(state, _)| state)
    }

    /// Returns the events that lead to a state, played once more.
    fn trace(&self, mut state: u32) -> Vec<String> {
        let mut choices = Vec::new();
        while state != 0 {
            let Origin { parent, event } = self.origins[state as usize];
            choices.push(event);
            state = parent;
        }
        let mut world = World::new(&self.scenario);
        let mut trace = Vec::new();
        for choice in choices.into_iter().rev() {
            let Some((event, _)) = world.events().get(usize::from(choice)).copied() else { break };
            trace.push(world.describe(event));
            let Ok(Some(after)) = world.after(event) else { break };
            world = after;
        }
        trace
    }

    fn outcome(self, depth: usize, exhausted: bool, counterexample: Option<Counterexample>) -> Outcome {
        let (states, transitions) = (self.origins.len(), self.transitions);
        Outcome { states, transitions, depth, exhausted, counterexample }
    }
}

impl Scenario {
    fn new(name: &'static str, client_messages: u64, server_messages: u64, faults: Budget) -> Self {
        Self { name, client_messages, server_messages, faults, ..Self::CALM }
    }

    /// Writes everything at once: there are fewer orders, so more messages and faults fit.
    fn at_once(self) -> Self {
        Self { lazy: false, ..self }
    }

    fn slow(self) -> Self {
        Self { slow: true, ..self }
    }

    /// Two nodes behind a balancer that may pick either.
    fn two_nodes(self) -> Self {
        Self { nodes: 2, ..self }
    }

    fn manual(self) -> Self {
        Self { manual: true, ..self }
    }
}

/// Returns what `cargo test` plays. The two numbers are the messages of client and server.
#[must_use]
pub fn small() -> Vec<Scenario> {
    let new = Scenario::new;
    vec![
        new("cut, 1+1", 1, 1, Budget { cuts: 1, ..NONE }),
        Scenario { window: 1, ..new("cut, window of 1, 2+1", 2, 1, Budget { cuts: 1, ..NONE }) },
        new("two cuts, 1+0", 1, 0, Budget { cuts: 2, ..NONE }),
        new("cut, ping, 1+1", 1, 1, Budget { cuts: 1, pings: 1, ..NONE }),
        new("abandon, cut, 1+0", 1, 0, Budget { cuts: 1, abandons: 1, ..NONE }),
        new("replace, 1+1", 1, 1, Budget { replacements: 1, ..NONE }),
        new("replace, abandon, cut, 0+1", 0, 1, Budget { cuts: 1, replacements: 1, abandons: 1, ..NONE }),
        new("replace, ping, 2+1", 2, 1, Budget { replacements: 1, pings: 1, ..NONE }),
        new("replace, two pings, 1+1", 1, 1, Budget { replacements: 1, pings: 2, ..NONE }).at_once(),
        new("two replace, abandon, 1+1", 1, 1, Budget { replacements: 2, abandons: 1, ..NONE }),
        new("restart, cut, 1+0", 1, 0, Budget { restarts: 1, cuts: 1, ..NONE }),
        new("restart, abandon, 1+0", 1, 0, Budget { restarts: 1, abandons: 1, ..NONE }),
        new("expiry, cut, 1+1", 1, 1, Budget { expiries: 1, cuts: 1, ..NONE }),
        new("expiry, replace, cut, 1+0", 1, 0, Budget { expiries: 1, replacements: 1, cuts: 1, ..NONE })
            .at_once(),
        new("end, cut, 1+0", 1, 0, Budget { ends: 1, cuts: 1, ..NONE }),
        new("two ends, 1+1", 1, 1, Budget { ends: 2, ..NONE }),
        new("end, replace, 1+1", 1, 1, Budget { ends: 1, replacements: 1, ..NONE }),
        new("end, replace, cut, 1+0", 1, 0, Budget { ends: 1, replacements: 1, cuts: 1, ..NONE }).at_once(),
        new("end, expiry, 1+1", 1, 1, Budget { ends: 1, expiries: 1, ..NONE }),
        Scenario { drops_above: 1, ..new("dropping above 1, cut, 0+3", 0, 3, Budget { cuts: 1, ..NONE }) },
        Scenario {
            drops_above: 2,
            ..new("dropping above 2, replace, ping, 0+3", 0, 3, Budget { replacements: 1, pings: 1, ..NONE })
        }
        .at_once(),
        Scenario {
            drops_above: 1,
            window: 1,
            ..new("dropping above 1, window of 1, cut, 0+3", 0, 3, Budget { cuts: 1, ..NONE })
        }
        .slow(),
        Scenario {
            drops_above: 1,
            ..new("dropping above 1, end, cut, 0+3", 0, 3, Budget { ends: 1, cuts: 1, ..NONE })
        }
        .at_once(),
        new("manual, expiry, cut, 1+0", 1, 0, Budget { expiries: 1, cuts: 1, ..NONE }).manual(),
        new("manual, end, cut, 1+0", 1, 0, Budget { ends: 1, cuts: 1, ..NONE }).manual(),
        new("manual, replace, ping, 1+0", 1, 0, Budget { replacements: 1, pings: 1, ..NONE }).manual(),
        new("slow, replace, 2+0", 2, 0, Budget { replacements: 1, ..NONE }).slow(),
        new("slow, end, 1+1", 1, 1, Budget { ends: 1, ..NONE }).slow(),
        new("slow, end, cut, 1+0", 1, 0, Budget { ends: 1, cuts: 1, ..NONE }).slow(),
        new("tab, 2+0", 2, 0, Budget { tabs: 1, ..NONE }),
        new("tab, cut, 1+0", 1, 0, Budget { tabs: 1, cuts: 1, ..NONE }).at_once(),
        new("tab, replace, 1+0", 1, 0, Budget { tabs: 1, replacements: 1, ..NONE }),
        new("tab, expiry, 1+0", 1, 0, Budget { tabs: 1, expiries: 1, cuts: 1, ..NONE }).at_once(),
        new("two cuts, 2+1", 2, 1, Budget { cuts: 2, ..NONE }).at_once(),
        Scenario { overheard: true, ..new("overheard key, two cuts, 1+0", 1, 0, Budget { cuts: 2, ..NONE }) },
        Scenario {
            overheard: true,
            ..new(
                "overheard key, replace, abandon, 0+1",
                0,
                1,
                Budget { replacements: 1, abandons: 1, ..NONE },
            )
        },
        new("two nodes, two cuts, 1+0", 1, 0, Budget { cuts: 2, ..NONE }).two_nodes().at_once(),
        new("two nodes, cut, 1+1", 1, 1, Budget { cuts: 1, ..NONE }).two_nodes(),
        new("two nodes, two abandons, 1+1", 1, 1, Budget { abandons: 2, ..NONE }).two_nodes(),
        new("two nodes, abandon, replace, 1+1", 1, 1, Budget { abandons: 1, replacements: 1, ..NONE })
            .two_nodes()
            .at_once(),
    ]
}

/// Returns what `mainstay-sim explore --large` plays in addition.
#[must_use]
pub fn large() -> Vec<Scenario> {
    let new = Scenario::new;
    let mut scenarios = vec![
        new("two cuts, 2+2", 2, 2, Budget { cuts: 2, ..NONE }).at_once(),
        new("two cuts, 1+1", 1, 1, Budget { cuts: 2, ..NONE }),
        new("cut, 2+2", 2, 2, Budget { cuts: 1, ..NONE }),
        new(
            "replace, abandon, cut, ping, 1+1",
            1,
            1,
            Budget { cuts: 1, replacements: 1, abandons: 1, pings: 1, ..NONE },
        )
        .at_once(),
        new("two replace, ping, 1+1", 1, 1, Budget { replacements: 2, pings: 1, ..NONE }),
        new("restart, abandon, cut, 1+1", 1, 1, Budget { restarts: 1, abandons: 1, cuts: 1, ..NONE })
            .at_once(),
        new("two restarts, cut, 2+0", 2, 0, Budget { restarts: 2, cuts: 1, ..NONE }).at_once(),
        new("expiry, abandon, cut, 2+1", 2, 1, Budget { expiries: 1, abandons: 1, cuts: 1, ..NONE })
            .at_once(),
        new("end, replace, cut, 1+1", 1, 1, Budget { ends: 1, replacements: 1, cuts: 1, ..NONE }).at_once(),
        new("two ends, cut, 1+1", 1, 1, Budget { ends: 2, cuts: 1, ..NONE }).at_once(),
        new("slow, end, cut, 1+1", 1, 1, Budget { ends: 1, cuts: 1, ..NONE }).slow(),
        new("slow, replace, cut, ping, 1+1", 1, 1, Budget { replacements: 1, cuts: 1, pings: 1, ..NONE })
            .slow()
            .at_once(),
        new("manual, expiry, end, cut, 2+0", 2, 0, Budget { expiries: 1, ends: 1, cuts: 1, ..NONE })
            .manual()
            .at_once(),
        new("tab, cut, 2+1", 2, 1, Budget { tabs: 1, cuts: 1, ..NONE }).at_once(),
        new("tab, two cuts, 1+1", 1, 1, Budget { tabs: 1, cuts: 2, ..NONE }).at_once(),
        new("tab, abandon, cut, 1+0", 1, 0, Budget { tabs: 1, abandons: 1, cuts: 1, ..NONE }).at_once(),
        new("two nodes, abandon, cut, 1+1", 1, 1, Budget { abandons: 1, cuts: 1, ..NONE })
            .two_nodes()
            .at_once(),
        new(
            "two nodes, expiry, abandon, cut, 1+0",
            1,
            0,
            Budget { expiries: 1, abandons: 1, cuts: 1, ..NONE },
        )
        .two_nodes()
        .at_once(),
        new("two nodes, two cuts, abandon, 1+1", 1, 1, Budget { cuts: 2, abandons: 1, ..NONE })
            .two_nodes()
            .at_once(),
        new("two nodes, two abandons, cut, 2+1", 2, 1, Budget { abandons: 2, cuts: 1, ..NONE })
            .two_nodes()
            .at_once(),
        new("two nodes, two cuts, 1+1", 1, 1, Budget { cuts: 2, ..NONE }).two_nodes(),
    ];
    scenarios.iter_mut().for_each(|scenario| scenario.most_states = 4_000_000);
    scenarios
}
