//! The handle: a proxy in this process, on a thread of its own.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc as answers;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::engine::{Command, Engine, Settings};
use crate::event::{Event, FaultId};
use crate::fault::Fault;
use crate::scenario::Scenario;
use crate::state::{ActiveFault, ConnectionInfo, Target};

/// A proxy between clients and an upstream that breaks their connections on command, and as its [`Scenario`] says.
///
/// It runs on its own thread with its own clock, so every method may be called from any code: with tokio or without, and in tests whose
/// time is paused. A method returns once it is in effect. Dropping the proxy ends it: its thread and its sockets are gone then, and open
/// connections are closed.
pub struct ChaosProxy {
    address: SocketAddr,
    seed: u64,
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a [`ChaosProxy`].
#[must_use]
pub struct Builder {
    upstream: String,
    listen: String,
    settings: Settings,
}

impl ChaosProxy {
    /// Returns what starts a proxy to `upstream`: `HOST:PORT`, or `ws://HOST:PORT`.
    pub fn builder(upstream: impl Into<String>) -> Builder {
        Builder { upstream: upstream.into(), listen: "127.0.0.1:0".into(), settings: Settings::default() }
    }

    /// Returns where the proxy listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL for clients of this machine, with a path such as `/ws`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let to = SocketAddr::new(ip, self.address.port());
        format!("ws://{to}/{}", path.strip_prefix('/').unwrap_or(path))
    }

    /// Returns the seed: with it, and with the same order of connections, the same faults strike again.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Injects a fault. `lasts` is how long it is in force; `None`: until it is lifted, or the connection ends. Faults of a moment ignore
    /// `lasts`.
    pub fn inject(&self, fault: Fault, target: Target, lasts: Option<Duration>) -> FaultId {
        self.ask(move |engine| engine.inject(fault, target, lasts))
    }

    /// Stops a fault that lasts, and returns whether it was in force. What a black hole has swallowed stays lost, and the direction that
    /// lost it stays dead; what a stall or a jam holds back passes.
    pub fn lift(&self, id: FaultId) -> bool {
        self.ask(move |engine| engine.lift(id))
    }

    /// Stops every fault that is in force, also those of rules: they strike again when they are due again.
    pub fn lift_all(&self) {
        self.ask(Engine::lift_all);
    }

    /// Connects new connections to another upstream.
    ///
    /// # Errors
    ///
    /// The upstream is not `HOST:PORT` or `ws://HOST:PORT`.
    pub fn set_upstream(&self, upstream: &str) -> io::Result<()> {
        let upstream = host_and_port(upstream)?;
        self.ask(move |engine| engine.set_upstream(upstream));
        Ok(())
    }

    /// Replaces the rules. Faults of the old ones are lifted; the times of the new ones count from now on, for `at` and for connections
    /// that are open.
    pub fn set_scenario(&self, scenario: Scenario) {
        self.ask(move |engine| engine.set_scenario(scenario));
    }

    /// Returns the connections that are open, in the order in which they opened.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.ask(|engine| engine.connections())
    }

    /// Returns the number of connections so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.ask(|engine| engine.accepted())
    }

    /// Returns the faults in force on the proxy.
    #[must_use]
    pub fn faults(&self) -> Vec<ActiveFault> {
        self.ask(|engine| engine.faults())
    }

    /// Returns the events so far, the oldest first; of more than 100,000 the last 100,000.
    #[must_use]
    pub fn timeline(&self) -> Vec<Event> {
        self.ask(|engine| engine.timeline())
    }

    /// Returns the first event of the timeline for which `is_meant` returns true, and waits until there is one; `None`: there was none
    /// within `limit`. Blocks the calling thread.
    #[must_use]
    pub fn wait_for(&self, limit: Duration, mut is_meant: impl FnMut(&Event) -> bool) -> Option<Event> {
        let until = Instant::now().checked_add(limit);
        let (so_far, follow) = self.ask(|engine| engine.follow());
        if let Some(event) = so_far.into_iter().find(|event| is_meant(event)) {
            return Some(event);
        }
        loop {
            let rest = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            let event = follow.recv_timeout(rest).ok()?;
            if is_meant(&event) {
                return Some(event);
            }
        }
    }

    /// Runs something on the proxy's thread.
    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&mut Engine) -> T + Send + 'static) -> T {
        let is_within =
            self.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id());
        assert!(
            !is_within,
            "the function given to on_event must not call the proxy: it runs on the proxy's thread"
        );
        let (answer, answered) = answers::channel();
        let command: Command = Box::new(move |engine| drop(answer.send(question(engine))));
        let sent = self.commands.send(command).is_ok();
        match answered.recv() {
            Ok(answer) if sent => answer,
            _ => panic!("the thread of the chaos proxy has ended: the function given to on_event panicked"),
        }
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        let _ = self.commands.send(Box::new(Engine::end));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for ChaosProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChaosProxy")
            .field("address", &self.address)
            .field("seed", &self.seed)
            .finish()
    }
}

impl Builder {
    /// Listens here. Default: `127.0.0.1:0`, a free port of loopback.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    /// Draws all random values from this. Default: at random; [`ChaosProxy::seed`] returns it.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Which faults strike when. Default: none.
    pub fn scenario(mut self, scenario: Scenario) -> Self {
        self.settings.scenario = scenario;
        self
    }

    /// Receives every event, in order, on the proxy's thread: it must return soon, and must not call the proxy.
    pub fn on_event(mut self, receive: impl FnMut(&Event) + Send + 'static) -> Self {
        self.settings.on_event = Some(Box::new(receive));
        self
    }

    /// Starts the proxy.
    ///
    /// # Errors
    ///
    /// The upstream is not `HOST:PORT` or `ws://HOST:PORT`, or the proxy cannot listen; the error names the address.
    pub fn start(self) -> io::Result<ChaosProxy> {
        let Self { upstream, listen, mut settings } = self;
        settings.upstream = host_and_port(&upstream)?;
        let seed = settings.seed;
        let (commands, receiver) = mpsc::unbounded_channel();
        let (ready, started) = answers::channel();
        let thread = thread::Builder::new()
            .name("mainstay-chaos".into())
            .spawn(move || Engine::run(&listen, settings, receiver, &ready))?;
        let address = started.recv().unwrap_or_else(|_| Err(io::Error::other("the proxy's thread ended")))?;
        Ok(ChaosProxy { address, seed, commands, thread: Some(thread) })
    }
}

/// Returns the `HOST:PORT` of an upstream.
fn host_and_port(upstream: &str) -> io::Result<String> {
    let wrong = |why: &str| {
        let message = format!("upstream: {upstream:?} {why}: write HOST:PORT or ws://HOST:PORT");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    let (scheme, rest) =
        upstream.split_once("://").map_or((None, upstream), |(scheme, rest)| (Some(scheme), rest));
    // Schemes are case-insensitive (RFC 3986 section 3.1).
    let authority = match scheme.map(str::to_ascii_lowercase).as_deref() {
        None => rest,
        Some("ws" | "http" | "tcp") => rest.strip_suffix('/').unwrap_or(rest),
        Some("wss" | "https") => return Err(wrong("has TLS, which the proxy passes on as it is")),
        Some(_) => return Err(wrong("has another scheme than ws")),
    };
    if authority.contains('/') {
        return Err(wrong("has a path, which the client chooses"));
    }
    let Some((host, port)) = authority.rsplit_once(':') else { return Err(wrong("has no port")) };
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err(wrong("has an IPv6 address, which needs brackets and a port, as in [::1]:3000"));
    }
    if !host.is_ascii() {
        return Err(wrong("has a host beyond ASCII, whose name in DNS begins with xn--"));
    }
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong("has no host"));
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(authority.to_owned()),
        _ => Err(wrong("has no port of 1 to 65535")),
    }
}
