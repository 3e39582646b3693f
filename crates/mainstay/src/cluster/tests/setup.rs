//! Nodes, a balancer that picks as the test says, and clients.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::routing::any;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use super::Memory;
use crate::client::{Event, Incoming};
use crate::cluster::config::Store;
use crate::cluster::{ClusterConfig, ClusterFigures};
use crate::server::Config;
use crate::{BackoffConfig, Client, Fate, Message, Server, Session, SessionUpgrade};

/// For everything that is waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// A server of a cluster, at `/`.
pub(super) struct TestNode {
    pub(super) server: Server,
    pub(super) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl TestNode {
    /// A node with this engine and default configuration.
    pub(super) async fn start<F>(memory: &Memory, on_upgrade: F) -> Self
    where
        F: Fn(SessionUpgrade) -> Response + Clone + Send + Sync + 'static,
    {
        Self::with(Config::new(), ClusterConfig::with(Store::Memory(memory.clone())), on_upgrade).await
    }

    pub(super) async fn with<F>(config: Config, cluster: ClusterConfig, on_upgrade: F) -> Self
    where
        F: Fn(SessionUpgrade) -> Response + Clone + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, config, cluster, on_upgrade).await
    }

    pub(super) async fn on<F>(
        listener: TcpListener,
        config: Config,
        cluster: ClusterConfig,
        on_upgrade: F,
    ) -> Self
    where
        F: Fn(SessionUpgrade) -> Response + Clone + Send + Sync + 'static,
    {
        let server = Server::new(config.cluster(cluster));
        let route = any(move |upgrade: SessionUpgrade| std::future::ready(on_upgrade(upgrade)));
        let app = Router::new().route("/", route);
        let address = listener.local_addr().unwrap();
        server.join().await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = crate::serve(listener, app, &server).with_graceful_shutdown(
            async move {
                let _ = stopped.await;
            },
            Duration::from_secs(2),
        );
        let serving = tokio::spawn(async move { serve.await.unwrap() });
        Self { server, address, stop: Some(stop), serving }
    }

    /// Drains the node, and waits until it has ended.
    pub(super) async fn drain(mut self) -> ClusterFigures {
        self.begin_to_drain();
        tokio::time::timeout(LIMIT, &mut self.serving).await.expect("the drain ends").unwrap();
        self.figures()
    }

    pub(super) fn begin_to_drain(&mut self) {
        drop(self.stop.take());
    }

    pub(super) fn figures(&self) -> ClusterFigures {
        self.server.cluster().unwrap().figures
    }

    /// Has the node write its heartbeat now, and so read which others there are.
    pub(super) fn beat(&self) {
        self.server.shared.node.as_ref().unwrap().beat();
    }

    pub(super) fn peer_address(&self) -> SocketAddr {
        self.server.cluster().unwrap().address.unwrap()
    }
}

/// Waits until each node has seen the others.
pub(super) async fn meet(nodes: &[&TestNode]) {
    let others = nodes.len() - 1;
    until("the nodes see each other", || {
        nodes.iter().for_each(|node| node.beat());
        nodes.iter().all(|node| node.server.cluster().unwrap().alive >= others)
    })
    .await;
}

/// Sends each new connection to the node that the test has picked, until the test cuts all.
pub(super) struct Balancer {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<Balancing>>,
    cut: broadcast::Sender<()>,
}

struct Balancing {
    targets: Vec<SocketAddr>,
    picked: usize,
    is_open: bool,
}

impl Balancer {
    pub(super) async fn over(nodes: &[&TestNode]) -> Self {
        Self::to(nodes.iter().map(|node| node.address).collect()).await
    }

    pub(super) async fn to(targets: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(Balancing { targets, picked: 0, is_open: true }));
        let this = Self { address, state: Arc::clone(&state), cut: broadcast::channel(1).0 };
        let cut = this.cut.clone();
        tokio::spawn(async move {
            loop {
                let (mut down, _) = listener.accept().await.unwrap();
                let target = {
                    let state = state.lock().unwrap();
                    state.is_open.then(|| state.targets[state.picked % state.targets.len()])
                };
                let (Some(target), mut cut) = (target, cut.subscribe()) else { continue };
                tokio::spawn(async move {
                    let Ok(mut up) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut down, &mut up) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        });
        this
    }

    /// New connections go to this node from now on.
    pub(super) fn pick(&self, node: usize) {
        self.state.lock().unwrap().picked = node;
    }

    /// New connections go to the next node.
    pub(super) fn pick_next(&self) {
        self.state.lock().unwrap().picked += 1;
    }

    pub(super) fn picked(&self) -> usize {
        self.state.lock().unwrap().picked
    }

    /// Another node takes the place of this one.
    pub(super) fn replace(&self, at: usize, node: &TestNode) {
        self.state.lock().unwrap().targets[at] = node.address;
    }

    pub(super) fn cut(&self) {
        let _ = self.cut.send(());
    }

    /// Cuts, and drops each new connection until it is open again.
    pub(super) fn close(&self) {
        self.state.lock().unwrap().is_open = false;
        self.cut();
    }

    pub(super) fn open(&self) {
        self.state.lock().unwrap().is_open = true;
    }

    pub(super) fn client(&self) -> Client {
        client(self.address)
    }
}

pub(super) fn client(address: SocketAddr) -> Client {
    let ms = Duration::from_millis;
    let quick = BackoffConfig::new(ms(10), ms(50)).and_then(|backoff| backoff.first(ms(5), ms(10))).unwrap();
    Client::builder(&format!("ws://{address}/")).unwrap().backoff(quick).connect()
}

/// Sends back what comes.
pub(super) async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            break;
        }
    }
}

pub(super) fn echoes(upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(echo)
}

/// The next message; panics after a while.
pub(super) async fn next(client: &mut Client) -> Message {
    tokio::time::timeout(LIMIT, client.recv()).await.expect("a message in time").expect("no end")
}

/// The next event; panics after a while.
pub(super) async fn event(client: &Client) -> Option<Event> {
    tokio::time::timeout(LIMIT, client.event()).await.expect("an event in time")
}

/// Waits for a gap, in place of the next message.
pub(super) async fn gap(client: &mut Client) -> Fate {
    let next = async {
        match client.recv_any().await {
            Some(Incoming::Gap(fate)) => *fate,
            other => panic!("{other:?}"),
        }
    };
    tokio::time::timeout(LIMIT, next).await.expect("a gap in time")
}

/// Sends a message and waits for its echo.
pub(super) async fn exchange(client: &mut Client, text: &str) {
    client.send(text).await.unwrap();
    assert_eq!(next(client).await.as_text(), Some(text));
}

/// Waits until `condition` holds; panics with `what` after a while.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}
