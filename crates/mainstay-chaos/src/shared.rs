//! What the connections and the engine share on the proxy's thread: the clock, the upstream, the timeline, and a buffer to read into.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::event::{Event, What};

/// Receives each event.
pub(crate) type OnEvent = Box<dyn FnMut(&Event) + Send>;

/// How many events are kept.
const TIMELINE: usize = 100_000;
/// How much is read at once.
const SCRATCH: usize = 64 * 1024;

pub(crate) struct Shared {
    since: Instant,
    clock: RefCell<Clock>,
    /// Where the proxy listens.
    pub(crate) address: SocketAddr,
    upstream: RefCell<String>,
    timeline: RefCell<Timeline>,
    newcomer: Cell<Option<u64>>,
    /// Notified when a connection has come up.
    pub(crate) has_newcomer: Notify,
    scratch: RefCell<Vec<u8>>,
}

struct Timeline {
    events: VecDeque<Event>,
    count: u64,
    receive: Option<OnEvent>,
    /// Callers that wait for an event.
    waiting: Vec<mpsc::Sender<Event>>,
}

impl Shared {
    pub(crate) fn new(address: SocketAddr, upstream: String, receive: Option<OnEvent>) -> Self {
        Self {
            since: Instant::now(),
            clock: RefCell::default(),
            address,
            upstream: RefCell::new(upstream),
            timeline: RefCell::new(Timeline {
                events: VecDeque::new(),
                count: 0,
                receive,
                waiting: Vec::new(),
            }),
            newcomer: Cell::new(None),
            has_newcomer: Notify::new(),
            scratch: RefCell::new(vec![0; SCRATCH]),
        }
    }

    /// Returns the time since the start of the proxy, without its pauses.
    pub(crate) fn now(&self) -> Duration {
        let mut clock = self.clock.borrow_mut();
        let pause = clock.handle_time(self.since.elapsed());
        let now = clock.now();
        drop(clock);
        if let Some(lasted) = pause {
            self.event_at(now, None, What::Paused { lasted });
        }
        now
    }

    /// Returns the moment of a time since the start; one that the clock cannot show is far away.
    pub(crate) fn instant(&self, at: Duration) -> Instant {
        const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
        self.since + self.clock.borrow().shows_at(at.min(FAR))
    }

    /// Returns where new connections lead.
    pub(crate) fn upstream(&self) -> String {
        self.upstream.borrow().clone()
    }

    pub(crate) fn set_upstream(&self, upstream: String) {
        *self.upstream.borrow_mut() = upstream;
    }

    pub(crate) fn event(&self, connection: Option<u64>, what: What) {
        self.event_at(self.now(), connection, what);
    }

    /// An event that was decided at this time: the thread may have waited for a core since then.
    pub(crate) fn event_at(&self, at: Duration, connection: Option<u64>, what: What) {
        let mut timeline = self.timeline.borrow_mut();
        timeline.count += 1;
        let event = Event { number: timeline.count, at, connection, what };
        if let Some(receive) = &mut timeline.receive {
            receive(&event);
        }
        timeline.waiting.retain(|waiting| waiting.send(event.clone()).is_ok());
        if timeline.events.len() == TIMELINE {
            timeline.events.pop_front();
        }
        timeline.events.push_back(event);
    }

    pub(crate) fn timeline(&self) -> Vec<Event> {
        self.timeline.borrow().events.iter().cloned().collect()
    }

    /// Returns the events so far, and what receives those that follow.
    pub(crate) fn follow(&self) -> (Vec<Event>, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        self.timeline.borrow_mut().waiting.push(sender);
        (self.timeline(), receiver)
    }

    pub(crate) fn newcomer(&self, id: u64) {
        self.newcomer.set(self.newcomer.get().max(Some(id)));
        self.has_newcomer.notify_one();
    }

    pub(crate) fn take_newcomer(&self) -> Option<u64> {
        self.newcomer.take()
    }

    pub(crate) fn scratch(&self) -> RefMut<'_, Vec<u8>> {
        self.scratch.borrow_mut()
    }
}

/// Returns why the proxy could not open, accept or connect, in words. A lack of open files is its own, and not the other side's.
pub(crate) fn reason(error: &io::Error) -> String {
    /// ENFILE and EMFILE, on every Unix.
    const NO_FILES: [Option<i32>; 2] = [Some(23), Some(24)];
    match NO_FILES.contains(&error.raw_os_error()) && cfg!(unix) {
        true => format!("the proxy itself has too many open files; raise its limit (ulimit -n): {error}"),
        false => error.to_string(),
    }
}
