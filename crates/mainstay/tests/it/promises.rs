//! R1 to R17 for the library: an axum server and a client, over real sockets. `docs/GUARANTEES.md` "R1 to R17" states
//! what each promises, and which tests show it for the gateway and the plugin.
//!
//! Time is tokio's, which leaps whenever nothing is left to do: an hour costs what happens in it.

mod heartbeat;
mod kept;
mod life;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use mainstay::client::Event;
use mainstay::{Client, HeartbeatConfig, Message, Server};
use tokio::net::TcpListener;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn every(interval: Duration) -> HeartbeatConfig {
    HeartbeatConfig::every(interval).unwrap()
}

/// Serves these routes.
async fn serve(mainstay: &Server, app: Router<Server>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = mainstay::serve(listener, app.with_state(mainstay.clone()), mainstay);
    tokio::spawn(async move { server.await.unwrap() });
    address
}

fn client_at(address: SocketAddr) -> Client {
    Client::builder(&format!("ws://{address}/echo")).unwrap().connect()
}

async fn comes_back(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await.unwrap();
    assert_eq!(client.recv().await, Some(Message::text(text)));
}

/// The first event of this kind; what comes before it is passed over.
async fn event<T>(client: &Client, mut is_meant: impl FnMut(&Event) -> Option<T>) -> T {
    loop {
        let event = client.event().await.expect("ended before that");
        if let Some(found) = is_meant(&event) {
            return found;
        }
    }
}

/// Waits for the attach with this epoch, and returns whether it resumed the session.
async fn attached(client: &Client, meant: u64) -> bool {
    event(client, |event| match event {
        Event::Attached { epoch, resumed, .. } if *epoch == meant => Some(*resumed),
        _ => None,
    })
    .await
}

/// Time leaps to the next timer, also while bytes are on their way between two sockets. This bounds each leap.
fn small_leaps(most: Duration) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(most).await;
        }
    });
}

/// Numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}
