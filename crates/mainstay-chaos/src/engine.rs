//! What runs on the proxy's thread.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc as answers;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::event::{Event, FaultId, What};
use crate::fault::Fault;
use crate::scenario::Scenario;
use crate::state::{ActiveFault, ConnectionInfo, Target};

/// Runs on the proxy's thread.
pub(crate) type Command = Box<dyn FnOnce(&mut Engine) + Send>;

/// Receives each event.
pub(crate) type OnEvent = Box<dyn FnMut(&Event) + Send>;

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

/// How many events are kept.
const TIMELINE: usize = 100_000;

/// The state of a proxy.
pub(crate) struct Engine {
    since: Instant,
    settings: Settings,
    timeline: VecDeque<Event>,
    events: u64,
    accepted: u64,
    faults: u64,
    has_ended: bool,
}

impl Engine {
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
            let bound = TcpListener::bind(listen).await.and_then(|bound| Ok((bound.local_addr()?, bound)));
            let (address, listener) = match bound {
                Ok(bound) => bound,
                Err(error) => {
                    let message = format!("cannot listen on {listen}: {error}");
                    return drop(ready.send(Err(io::Error::new(error.kind(), message))));
                }
            };
            let mut engine = Self::new(settings);
            engine.event(
                None,
                What::Started {
                    listen: address,
                    upstream: engine.settings.upstream.clone(),
                    seed: engine.settings.seed,
                },
            );
            let _ = ready.send(Ok(address));
            while !engine.has_ended {
                tokio::select! {
                    command = commands.recv() => match command {
                        Some(command) => command(&mut engine),
                        None => break,
                    },
                    Ok((mut client, address)) = listener.accept() => {
                        engine.accepted += 1;
                        engine.event(Some(engine.accepted), What::Opened { client: address });
                        let upstream = engine.settings.upstream.clone();
                        tokio::task::spawn_local(async move {
                            let Ok(mut upstream) = TcpStream::connect(&upstream).await else { return };
                            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                        });
                    }
                }
            }
            engine.event(None, What::Ended);
        });
    }

    fn new(settings: Settings) -> Self {
        Self {
            since: Instant::now(),
            settings,
            timeline: VecDeque::new(),
            events: 0,
            accepted: 0,
            faults: 0,
            has_ended: false,
        }
    }

    pub(crate) fn inject(&mut self, _fault: Fault, _target: Target, _lasts: Option<Duration>) -> FaultId {
        self.faults += 1;
        FaultId(self.faults)
    }

    pub(crate) fn lift(&mut self, _id: FaultId) -> bool {
        false
    }

    pub(crate) fn lift_all(&mut self) {}

    pub(crate) fn set_upstream(&mut self, upstream: String) {
        self.settings.upstream = upstream;
    }

    pub(crate) fn set_scenario(&mut self, scenario: Scenario) {
        self.settings.scenario = scenario;
    }

    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        Vec::new()
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    pub(crate) fn faults(&self) -> Vec<ActiveFault> {
        Vec::new()
    }

    pub(crate) fn timeline(&self) -> Vec<Event> {
        self.timeline.iter().cloned().collect()
    }

    pub(crate) fn end(&mut self) {
        self.has_ended = true;
    }

    fn event(&mut self, connection: Option<u64>, what: What) {
        self.events += 1;
        let event = Event { number: self.events, at: self.since.elapsed(), connection, what };
        if let Some(receive) = &mut self.settings.on_event {
            receive(&event);
        }
        if self.timeline.len() == TIMELINE {
            self.timeline.pop_front();
        }
        self.timeline.push_back(event);
    }
}
