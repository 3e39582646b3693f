//! A server to test against, and a proxy that breaks connections on command.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::server::Config;
use mainstay::{Mainstay, Session, SessionUpgrade};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// An echo server at `/echo`.
pub(crate) async fn echo_server(config: Config) -> (SocketAddr, Mainstay) {
    server(Mainstay::new(config), echo).await
}

/// A server whose sessions at `/echo` are handled by `handler`.
pub(crate) async fn server<H, F>(mainstay: Mainstay, handler: H) -> (SocketAddr, Mainstay)
where
    H: Fn(Session) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let upgrade = |upgrade: SessionUpgrade| async move { upgrade.on_session(handler) };
    let app = Router::new().route("/echo", any(upgrade)).with_state(mainstay.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = mainstay::serve(listener, app, &mainstay);
    tokio::spawn(async move { server.await.unwrap() });
    (address, mainstay)
}

async fn echo(mut session: Session) {
    while let Some(message) = session.recv().await {
        if session.send(message).await.is_err() {
            break;
        }
    }
}

/// Forwards TCP to `to` until told to cut: then every connection is dropped, without a word of HTTP
/// or WebSocket.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cut: broadcast::Sender<()>,
}

impl Proxy {
    pub(crate) async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, _) = broadcast::channel(1);
        let cuts = cut.clone();
        tokio::spawn(async move {
            loop {
                let (mut down, _) = listener.accept().await.unwrap();
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
        Self { address, cut }
    }

    pub(crate) fn cut(&self) {
        let _ = self.cut.send(());
    }
}

/// Waits until `condition` holds; panics with `what` after ten seconds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("{what}"));
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
