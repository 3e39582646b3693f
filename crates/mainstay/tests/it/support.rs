//! A server to test against, and a proxy that breaks connections on command.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mainstay::server::Config;
use mainstay::{Mainstay, SessionUpgrade};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// An echo server at `/echo`.
pub(crate) async fn echo_server(config: Config) -> (SocketAddr, Mainstay) {
    let mainstay = Mainstay::new(config);
    let app = Router::new().route("/echo", any(echo)).with_state(mainstay.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = mainstay::serve(listener, app, &mainstay);
    tokio::spawn(async move { server.await.unwrap() });
    (address, mainstay)
}

async fn echo(upgrade: SessionUpgrade) -> axum::response::Response {
    upgrade.on_session(|mut session| async move {
        while let Some(message) = session.recv().await {
            if session.send(message).await.is_err() {
                break;
            }
        }
    })
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
