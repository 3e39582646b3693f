//! A server to test against, and a proxy that breaks connections on command.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::server::Config;
use mainstay::{BackoffConfig, Server, Session, SessionUpgrade};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// An echo server at `/echo`.
pub(crate) async fn echo_server(config: Config) -> (SocketAddr, Server) {
    handled(Server::new(config), echo).await
}

/// A server that handles its sessions at `/echo` by `handler`.
pub(crate) async fn handled<H, F>(mainstay: Server, handler: H) -> (SocketAddr, Server)
where
    H: Fn(Session) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    serve(mainstay, move |upgrade| upgrade.on_session(handler.clone())).await
}

/// A server at `/echo`, and at `/nested/echo`, whose sessions `on_upgrade` makes.
pub(crate) async fn server<F>(config: Config, on_upgrade: F) -> (SocketAddr, Server)
where
    F: Fn(SessionUpgrade) -> axum::response::Response + Clone + Send + Sync + 'static,
{
    serve(Server::new(config), on_upgrade).await
}

async fn serve<F>(mainstay: Server, on_upgrade: F) -> (SocketAddr, Server)
where
    F: Fn(SessionUpgrade) -> axum::response::Response + Clone + Send + Sync + 'static,
{
    let route = any(move |upgrade: SessionUpgrade| std::future::ready(on_upgrade(upgrade)));
    let echo = Router::new().route("/echo", route);
    let app = echo.clone().nest("/nested", echo).with_state(mainstay.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = mainstay::serve(listener, app, &mainstay);
    tokio::spawn(async move { server.await.unwrap() });
    (address, mainstay)
}

/// A backoff so short that a test does not notice it.
pub(crate) fn quick() -> BackoffConfig {
    let ms = Duration::from_millis;
    BackoffConfig::new(ms(20), ms(100)).and_then(|backoff| backoff.first(ms(20), ms(20))).unwrap()
}

/// An address that accepts connections and stays silent.
pub(crate) async fn silence() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    (listener, url)
}

/// Sends back what comes.
pub(crate) async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            break;
        }
    }
}

/// The number that a message of a test carries as its text.
pub(crate) fn number(message: &mainstay::Message) -> u64 {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

/// Forwards TCP to `to` until a test cuts it: then every connection is dropped, without HTTP or
/// WebSocket. It is no `mainstay_chaos::ChaosProxy`: that has a clock of its own, for which a paused clock does not wait.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cut: broadcast::Sender<()>,
    is_open: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, _) = broadcast::channel(1);
        let cuts = cut.clone();
        let is_open = Arc::new(AtomicBool::new(true));
        let open = Arc::clone(&is_open);
        tokio::spawn(async move {
            loop {
                let (mut down, _) = listener.accept().await.unwrap();
                if !open.load(Ordering::Relaxed) {
                    continue;
                }
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let Ok(mut up) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut down, &mut up) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        });
        Self { address, cut, is_open }
    }

    pub(crate) fn cut(&self) {
        let _ = self.cut.send(());
    }

    /// Cuts, and drops every later connection until it is opened again.
    pub(crate) fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
        self.cut();
    }

    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

/// Waits until `condition` holds; panics with `what` after half a minute.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// As [`until`], where time is paused and leaps: looks again and again for an hour of it.
pub(crate) async fn until_quiet(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..36_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}");
}
