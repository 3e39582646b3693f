//! The load balancer of the cluster proof (`cargo xtask test cluster`): it leads each TCP connection to a node that it picks
//! at random, without looking inside, and cuts connections when it is asked to.
//!
//! ```text
//! cluster_balancer            # prints `listening ADDRESS` and `control ADDRESS`
//! ```
//!
//! One line to the control address is one command, and gets one line back:
//!
//! - `nodes ADDRESS ADDRESS ...`: new connections go to these nodes. Present ones stay where they are.
//! - `cut COUNT`: so many connections, at random, end now: half of them by a reset, the others by an ordinary end.
//! - `open`: the number of connections.
//!
//! A node that refuses a connection is skipped for that connection, as a balancer with health checks would skip it.

use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// Connections that wait to be accepted: all clients come at once after a cut.
const BACKLOG: u32 = 65_535;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let listener = socket.listen(BACKLOG)?;
    let control = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening {}", listener.local_addr()?);
    println!("control {}", control.local_addr()?);
    let balancer: Arc<Balancer> = Arc::default();
    tokio::spawn(run_commands(control, Arc::clone(&balancer)));
    loop {
        // Most errors concern one connection: the next call of accept is about another.
        let Ok((client, _)) = listener.accept().await else { continue };
        let balancer = Arc::clone(&balancer);
        tokio::spawn(async move { balancer.lead(client).await });
    }
}

async fn run_commands(control: TcpListener, balancer: Arc<Balancer>) {
    while let Ok((stream, _)) = control.accept().await {
        let (mut stream, mut line) = (BufReader::new(stream), String::new());
        if stream.read_line(&mut line).await.is_err() {
            continue;
        }
        let answer = match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("nodes", nodes) => balancer.lead_to(nodes),
            ("cut", count) => balancer.cut(count.parse().unwrap_or(0)),
            ("open", _) => balancer.inner().open.len().to_string(),
            _ => "unknown command".to_owned(),
        };
        let _ = stream.write_all(format!("{answer}\n").as_bytes()).await;
    }
}

#[derive(Default)]
struct Balancer {
    inner: Mutex<Inner>,
    dice: RandomState,
}

#[derive(Default)]
struct Inner {
    nodes: Vec<SocketAddr>,
    /// What ends a connection, by its number: whether it ends by a reset.
    open: HashMap<u64, oneshot::Sender<bool>>,
    /// How many numbers were given to connections, and how often the dice were thrown.
    last: u64,
    thrown: u64,
}

impl Balancer {
    /// Leads one connection until either side ends it or it is cut.
    async fn lead(&self, mut client: TcpStream) {
        let Some(mut node) = self.connect().await else { return };
        let _ = (client.set_nodelay(true), node.set_nodelay(true));
        let (number, cut) = self.begin();
        let by_reset = tokio::select! {
            _ = copy_bidirectional(&mut client, &mut node) => false,
            by_reset = cut => by_reset.unwrap_or(false),
        };
        self.inner().open.remove(&number);
        if by_reset {
            let _ = (client.set_zero_linger(), node.set_zero_linger());
        }
    }

    /// Connects to a node at random, or to another one if it refuses.
    async fn connect(&self) -> Option<TcpStream> {
        let mut nodes = self.inner().nodes.clone();
        while !nodes.is_empty() {
            let node = nodes.swap_remove(self.throw(nodes.len()));
            if let Ok(stream) = TcpStream::connect(node).await {
                return Some(stream);
            }
        }
        None
    }

    fn begin(&self) -> (u64, oneshot::Receiver<bool>) {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.inner();
        inner.last += 1;
        let number = inner.last;
        inner.open.insert(number, sender);
        (number, receiver)
    }

    fn lead_to(&self, nodes: &str) -> String {
        let parsed: Result<Vec<SocketAddr>, _> = nodes.split_whitespace().map(str::parse).collect();
        match parsed {
            Ok(nodes) => {
                self.inner().nodes = nodes;
                "done".to_owned()
            }
            Err(error) => error.to_string(),
        }
    }

    /// Cuts `count` connections at random. Returns how many there were to cut.
    fn cut(&self, count: usize) -> String {
        let mut numbers: Vec<u64> = self.inner().open.keys().copied().collect();
        let mut cut = 0;
        while cut < count && !numbers.is_empty() {
            let number = numbers.swap_remove(self.throw(numbers.len()));
            if let Some(end) = self.inner().open.remove(&number) {
                cut += usize::from(end.send(cut % 2 == 0).is_ok());
            }
        }
        cut.to_string()
    }

    /// A number below `sides`.
    fn throw(&self, sides: usize) -> usize {
        let mut inner = self.inner();
        inner.thrown += 1;
        let thrown = self.dice.hash_one(inner.thrown);
        usize::try_from(thrown % sides.max(1) as u64).unwrap_or(0)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
