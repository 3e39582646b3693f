//! Drives the Autobahn fuzzing server with the library's client: `autobahn_client ws://HOST:PORT AGENT`.

use std::error::Error;

use std::time::Duration;

use mainstay::{CloseCode, HeartbeatConfig, Limits, Link};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, agent] = arguments.as_slice() else { return Err("usage: autobahn_client URL AGENT".into()) };
    let mut count = open(&format!("{url}/getCaseCount")).await?;
    let cases: u32 = count.recv().await.and_then(|m| m.as_text()?.parse().ok()).ok_or("no case count")?;
    for case in 1..=cases {
        // A case may end the connection at any point: that is what is being tested.
        if let Ok(mut client) = open(&format!("{url}/runCase?case={case}&agent={agent}")).await {
            while let Some(message) = client.recv().await {
                if client.send(message).await.is_err() {
                    break;
                }
            }
        }
    }
    open(&format!("{url}/updateReports?agent={agent}")).await?.close(CloseCode::NORMAL, "").await;
    Ok(())
}

async fn open(url: &str) -> Result<Link, Box<dyn Error>> {
    // The largest message of the suite, and the one in the most fragments.
    let limits = Limits { max_message: 16 << 20, max_fragments: 100_000 };
    // The suite answers a Ping in the middle of its own half-sent frame and then fails 6.4.3 and 6.4.4.
    let heartbeat = HeartbeatConfig::every(Duration::from_secs(3600))?;
    Ok(Link::builder(url)?.deflate(true).limits(limits).heartbeat(heartbeat).connect_once().await?)
}
