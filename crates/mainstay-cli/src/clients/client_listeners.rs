//! Serves clients on every listener, and ends with the drain.
//!
//! Each listener has an accept loop, a drain and a successor of its own; they share the server, and so its limits and its
//! sessions.

use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use mainstay::Server;
use mainstay::server::{MakeService, ProxyProtocol, Tls};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clients::listen_address::{ListenAddress, Place};
use crate::clients::listeners::{Listening, Socket, SocketFile};
use crate::process::successor::{self, Predecessor};

/// Maximum size of a request's head, and number of its fields: nginx's limits, which leave room for cookies.
const MAX_HEAD: usize = 32 * 1024;
const MAX_FIELDS: usize = 100;
/// How long a connection may stay idle between requests; nginx's `keepalive_timeout`.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

type Passed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A listener that is not served yet. Its connections wait in its queue.
pub(crate) struct Prepared {
    socket: Socket,
    address: ListenAddress,
    place: Place,
    predecessor: Option<Predecessor>,
    file: Option<SocketFile>,
    /// Completes when the listener belongs to the next process.
    passed: Passed,
}

impl Prepared {
    /// Stops the process that the listener was inherited from. Blocks the thread until that accepts nothing more.
    pub(crate) fn stop_predecessor(&mut self) {
        self.predecessor.take().into_iter().for_each(Predecessor::stop_accepting);
    }

    /// Returns what a client connects to. `speaks_tls`: there are certificates.
    pub(crate) fn url(&self, speaks_tls: bool) -> String {
        match &self.place {
            Place::Tcp(address) if speaks_tls && self.address.may_speak_tls() => format!("wss://{address}"),
            Place::Tcp(address) => format!("ws://{address}"),
            unix => unix.to_string(),
        }
    }
}

/// Returns all places, for the supervisor's status.
pub(crate) fn places(listeners: &[Prepared]) -> String {
    listeners.iter().map(|listener| listener.place.to_string()).collect::<Vec<_>>().join(", ")
}

/// Makes the listeners ready to be passed on.
pub(crate) fn prepare(
    listeners: Vec<Listening>,
    server: &Server,
    draining: &watch::Receiver<bool>,
) -> Vec<Prepared> {
    let each = |listening: Listening| {
        let passed = passed_on(&listening, server, draining.clone());
        let Listening { socket, address, place, predecessor, file, .. } = listening;
        Prepared { socket, address, place, predecessor, file, passed }
    };
    listeners.into_iter().map(each).collect()
}

/// Completes when the listener belongs to the next process: once a successor accepts from it, or, if a supervisor keeps a
/// copy of it for the next process, as soon as this one drains. Connections that come then wait in its queue.
fn passed_on(listening: &Listening, server: &Server, draining: watch::Receiver<bool>) -> Passed {
    if listening.is_activated {
        return Box::pin(drains(draining));
    }
    Box::pin(successor::pass_listener(listening.socket.as_fd(), listening.place.clone(), server.clone()))
}

/// Completes when the process begins to drain.
async fn drains(mut draining: watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        // The sender is gone only when the process ends.
        std::future::pending().await
    }
}

/// What all listeners share.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) app: Router,
    pub(crate) server: Server,
    /// Becomes true when the process is to drain.
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) drain: Duration,
    /// Whether the spelling of each field name is kept, for a backend.
    pub(crate) keeps_spelling: bool,
    /// For the listeners that speak TLS.
    pub(crate) tls: Option<Tls>,
    /// The proxies whose PROXY header names the client.
    pub(crate) proxies: Option<ProxyProtocol>,
}

impl Serving {
    /// Serves clients until the drain is over on every listener.
    ///
    /// # Errors
    /// A listener cannot be served.
    pub(crate) async fn serve_all(self, listeners: Vec<Prepared>) -> Result<(), String> {
        let mut serving = JoinSet::new();
        for listener in listeners {
            serving.spawn(self.clone().serve(listener));
        }
        while let Some(served) = serving.join_next().await {
            served.map_err(|error| error.to_string()).flatten()?;
        }
        Ok(())
    }

    async fn serve(self, listener: Prepared) -> Result<(), String> {
        let Prepared { socket, address, place, file, passed, .. } = listener;
        let tls = self.tls.clone().filter(|_| address.may_speak_tls());
        let is_passed = Arc::new(AtomicBool::new(false));
        let noticed = Arc::clone(&is_passed);
        let passed = async move {
            passed.await;
            noticed.store(true, Ordering::Relaxed);
        };
        let served = match socket {
            Socket::Tcp(listener) => self.run(listener, tls, passed).await,
            Socket::Unix(listener) => self.run(listener, tls, passed).await,
        };
        if !is_passed.load(Ordering::Relaxed) {
            file.into_iter().for_each(SocketFile::remove);
        }
        served.map_err(|error| format!("{place}: {error}"))
    }

    async fn run<L>(
        self,
        listener: L,
        tls: Option<Tls>,
        passed: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()>
    where
        L: Listener<Addr: 'static>,
        Router: MakeService<L::Addr>,
    {
        let mut server = mainstay::serve(listener, self.app, &self.server)
            .head_limits(MAX_HEAD, MAX_FIELDS)
            .keep_alive(KEEP_ALIVE);
        if self.keeps_spelling {
            server = server.preserve_header_case();
        }
        if let Some(tls) = tls {
            server = server.tls(tls);
        }
        if let Some(proxies) = self.proxies {
            server = server.proxy_protocol(proxies);
        }
        server.with_graceful_shutdown(drains(self.draining), self.drain).with_successor(passed).await
    }
}
