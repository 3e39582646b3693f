//! A relay: a client's connection that this node forwards to the owner of its session, byte for byte.
//!
//! A relay is a task of a worker with two sockets and no buffer at rest. It reads into the worker's scratch buffer and writes
//! to the other side. While bytes wait that the other side did not accept, it reads no further, so TCP holds back whichever
//! end is too fast. Heartbeats, windows and replay run between client and owner: a relay knows nothing of them.
//!
//! Source: `docs/CLUSTER.md`.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::session::NodeId;
use slab::Slab;
use tokio::net::TcpStream;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::figures::Figures;
use crate::clock::now;
use crate::driver::Permit;
use crate::transport::Transport;
use crate::worker::{self, Signal, Task, TaskContext, TaskPoll, with_scratch};

/// Reads of each side for each poll.
const ROUNDS: usize = 4;
/// The most bytes of one read, and so the most that waits for a side that accepts nothing.
const PIECE: usize = 16 * 1024;
/// How long the other side has to follow, once one has ended.
const LINGER: Duration = Duration::from_secs(5);
/// How long a side may accept nothing while bytes wait for it. While they wait, the relay does not read the other side, and does not
/// see its end: an owner has given such a client up long before, after 8 minutes at most.
const JAMMED: Duration = Duration::from_secs(8 * 60);

/// The relays of one node.
#[derive(Default)]
pub(super) struct Relays {
    handles: Mutex<Slab<Arc<Handle>>>,
}

/// Wakes a relay, or cuts it.
struct Handle {
    signal: Signal,
    is_cut: AtomicBool,
    owner: NodeId,
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        self.signal.wake();
    }
}

/// What a relay begins with.
pub(crate) struct Beginning {
    pub(crate) client: Transport,
    pub(crate) permit: Option<Arc<Permit>>,
    pub(crate) node: NodeId,
    pub(crate) owner: Transport,
    /// What the owner sent behind its answer.
    pub(crate) to_client: Bytes,
}

/// See the module.
struct Relay {
    handle: Arc<Handle>,
    client: Side,
    owner: Side,
    /// When both sides are dropped, because one has ended, or accepts nothing.
    until: Option<Instant>,
    _listed: Listed,
    _permit: Option<Arc<Permit>>,
    _token: TaskTrackerToken,
}

/// One of the two connections.
struct Side {
    transport: Transport,
    /// What it did not accept yet.
    unsent: Option<Box<Bytes>>,
    /// Nothing more comes from it.
    has_ended: bool,
    /// Nothing more goes to it.
    is_shut: bool,
}

/// A relay's place in the list of its node.
struct Listed {
    relays: Arc<Relays>,
    figures: Arc<Figures>,
    slot: u32,
}

impl Relays {
    /// Spawns a relay at a worker.
    pub(super) fn begin(
        self: &Arc<Self>,
        beginning: Beginning,
        figures: &Arc<Figures>,
        token: TaskTrackerToken,
    ) {
        let Beginning { client, permit, node, owner, to_client } = beginning;
        let (signal, is_cut) = (Signal::new(worker::mailbox()), AtomicBool::new(false));
        let handle = Arc::new(Handle { signal, is_cut, owner: node });
        let relay = Relay {
            client: Side::new(client, to_client),
            owner: Side::new(owner, Bytes::new()),
            until: None,
            _listed: self.list(Arc::clone(&handle), Arc::clone(figures)),
            _permit: permit,
            _token: token,
            handle: Arc::clone(&handle),
        };
        handle.signal.spawn(Box::pin(relay));
    }

    fn list(self: &Arc<Self>, handle: Arc<Handle>, figures: Arc<Figures>) -> Listed {
        let slot = self.handles.lock().unwrap_or_else(PoisonError::into_inner).insert(handle);
        Figures::add(&figures.relays, 1);
        Figures::add(&figures.relayed, 1);
        // Four thousand million relays do not fit any machine.
        Listed { relays: Arc::clone(self), figures, slot: u32::try_from(slot).unwrap_or(u32::MAX) }
    }

    /// Returns the nodes that own the sessions of the relayed clients.
    pub(super) fn owners(&self) -> BTreeSet<NodeId> {
        let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.iter().map(|(_, handle)| handle.owner).collect()
    }

    /// Cuts all relays, one by one, over this time. Their clients come back to another node, and to the same owner.
    pub(super) async fn cut_over(&self, spread: Duration) {
        let handles: Vec<_> = {
            let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            handles.iter().map(|(_, handle)| Arc::clone(handle)).collect()
        };
        let pause = spread / u32::try_from(handles.len()).unwrap_or(u32::MAX).max(1);
        // By the clock, as a sleep is a millisecond too long.
        let mut next = tokio::time::Instant::now();
        for handle in handles {
            handle.is_cut.store(true, Ordering::Release);
            handle.signal.wake();
            next += pause;
            tokio::time::sleep_until(next).await;
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut handles = self.relays.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.try_remove(self.slot as usize);
        if handles.is_empty() {
            *handles = Slab::new();
        }
        drop(handles);
        Figures::subtract(&self.figures.relays, 1);
    }
}

impl Task for Relay {
    fn signal(&self) -> &Signal {
        &self.handle.signal
    }

    fn poll_task(self: Pin<&mut Self>, context: &TaskContext<'_>) -> TaskPoll {
        let this = self.get_mut();
        let waker = Waker::from(Arc::clone(&this.handle));
        this.handle.signal.take_wake();
        let before = this.waiting();
        match this.forward(context, &mut Context::from_waker(&waker)) {
            Ok(more) => {
                let moved = this.waiting() != before;
                this.rest(more, moved)
            }
            Err(error) => {
                tracing::debug!(%error, "a relay ends");
                TaskPoll::Done
            }
        }
    }
}

impl Relay {
    /// Forwards what both sides sent. `true`: there may be more.
    fn forward(&mut self, context: &TaskContext<'_>, cx: &mut Context<'_>) -> io::Result<bool> {
        self.client.transport.register(context)?;
        self.owner.transport.register(&context.other_side())?;
        for _ in 0..ROUNDS {
            let up = forward_once(&mut self.client, &mut self.owner, cx)?;
            let down = forward_once(&mut self.owner, &mut self.client, cx)?;
            if !up && !down {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends a poll.
    fn rest(&mut self, more: bool, moved: bool) -> TaskPoll {
        self.until = self.deadline(now(), moved);
        let is_over = self.client.is_shut && self.owner.is_shut;
        self.handle.signal.end_poll();
        if is_over || self.until.is_some_and(|at| at <= now()) || self.handle.is_cut.load(Ordering::Acquire) {
            return TaskPoll::Done;
        }
        if more || self.handle.signal.is_woken() { TaskPoll::Again } else { TaskPoll::Until(self.until) }
    }
}

impl Relay {
    /// How many bytes wait for a side.
    fn waiting(&self) -> usize {
        [&self.client, &self.owner]
            .into_iter()
            .filter_map(|side| side.unsent.as_deref())
            .map(Bytes::len)
            .sum()
    }

    /// When both sides are dropped if nothing changes. `moved`: a side has accepted bytes.
    fn deadline(&self, now: Instant, moved: bool) -> Option<Instant> {
        let is_one_sided = self.client.has_ended || self.owner.has_ended;
        match (is_one_sided, self.waiting() > 0) {
            (true, _) => Some(self.until.map_or(now + LINGER, |until| until.min(now + LINGER))),
            (false, true) if moved => Some(now + JAMMED),
            (false, true) => self.until.or(Some(now + JAMMED)),
            (false, false) => None,
        }
    }
}

impl Side {
    fn new(transport: Transport, unsent: Bytes) -> Self {
        let unsent = (!unsent.is_empty()).then(|| Box::new(unsent));
        Self { transport, unsent, has_ended: false, is_shut: false }
    }

    /// Writes `bytes`, and keeps what the socket does not accept.
    fn write(&mut self, mut bytes: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        match self.transport.poll_write_all(cx, &mut bytes) {
            Poll::Ready(done) => return done,
            Poll::Pending => self.unsent = Some(Box::new(Bytes::copy_from_slice(bytes))),
        }
        Ok(())
    }

    /// Writes what was not accepted before. `false`: some of it still waits.
    fn write_unsent(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let Some(unsent) = &mut self.unsent else { return Ok(true) };
        match self.transport.poll_write_all(cx, unsent.as_mut()) {
            Poll::Pending => return Ok(false),
            Poll::Ready(done) => done?,
        }
        self.unsent = None;
        Ok(true)
    }
}

/// Reads once from one side and writes to the other. `true`: there may be more.
fn forward_once(from: &mut Side, to: &mut Side, cx: &mut Context<'_>) -> io::Result<bool> {
    if !to.write_unsent(cx)? {
        return Ok(false);
    }
    if from.has_ended {
        // Best effort: a side that cannot be shut down is dropped soon.
        to.is_shut = to.is_shut || to.transport.poll_shutdown(cx).is_ready();
        return Ok(false);
    }
    if !from.transport.may_read() {
        return Ok(false);
    }
    with_scratch(|scratch| {
        let piece = scratch.read.get_mut(..PIECE).unwrap_or_default();
        match from.transport.poll_read(cx, piece) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => {
                from.has_ended = true;
                Ok(true)
            }
            Poll::Ready(Ok(count)) => {
                to.write(piece.get(..count).unwrap_or_default(), cx)?;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(error),
        }
    })
}

/// Detects an owner whose host vanished: probes after 5 s of silence, and gives up after three, 2 s apart. Best effort.
pub(super) fn keep_alive(owner: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let _ = socket2::SockRef::from(owner).set_tcp_keepalive(&keepalive);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};
    use tokio_util::task::TaskTracker;

    use super::*;

    /// The far ends of a relay: the client's and the owner's.
    struct Far {
        client: TcpStream,
        owner: TcpStream,
        relays: Arc<Relays>,
        figures: Arc<Figures>,
        tracker: TaskTracker,
    }

    /// Two connected sockets with small buffers, so that a relay is jammed soon.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.set_send_buffer_size(4096).unwrap();
        let far = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        (far, listener.accept().await.unwrap().0)
    }

    async fn relay(to_client: &'static [u8]) -> Far {
        let ((client, near), (owner, far)) = (pair().await, pair().await);
        let (relays, figures, tracker) = (Arc::<Relays>::default(), Arc::default(), TaskTracker::new());
        let beginning = Beginning {
            client: Transport::tcp(near),
            permit: None,
            node: NodeId([1; 8]),
            owner: Transport::tcp(far),
            to_client: Bytes::from_static(to_client),
        };
        relays.begin(beginning, &figures, tracker.token());
        Far { client, owner, relays, figures, tracker }
    }

    impl Far {
        /// Waits until the relay has ended.
        async fn ended(&self) {
            self.tracker.close();
            tokio::time::timeout(Duration::from_secs(10), self.tracker.wait()).await.expect("the relay ends");
            assert_eq!(self.figures.snapshot().relays, 0);
            assert!(self.relays.handles.lock().unwrap().is_empty());
        }
    }

    fn pattern(from: u8, len: usize) -> Vec<u8> {
        (0..len).map(|at| from.wrapping_add((at % 251) as u8)).collect()
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_both_ways_while_both_readers_are_slow() {
        const LEN: usize = 2 << 20;
        let mut far = relay(b"behind the answer").await;
        let (mut read, mut write) = far.client.split();
        let (mut owner_read, mut owner_write) = far.owner.split();
        let mut first = [0; 17];
        read.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"behind the answer");
        // Each end writes all before it reads anything, in pieces that fill no buffer evenly.
        let (up, down) = (pattern(1, LEN), pattern(7, LEN));
        let (mut at_owner, mut at_client) = (Vec::new(), Vec::new());
        let slow = async |from: &mut tokio::net::tcp::ReadHalf<'_>, into: &mut Vec<u8>| {
            while into.len() < LEN {
                tokio::task::yield_now().await;
                let mut piece = [0; 1733];
                let count = from.read(&mut piece).await.unwrap();
                into.extend_from_slice(&piece[..count]);
            }
        };
        let all = async {
            tokio::join!(
                async { write.write_all(&up).await.unwrap() },
                async { owner_write.write_all(&down).await.unwrap() },
                slow(&mut owner_read, &mut at_owner),
                slow(&mut read, &mut at_client),
            )
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("all in time");
        assert!(at_owner == up && at_client == down);
        drop(far.client);
        assert_eq!(far.owner.read(&mut [0; 8]).await.unwrap(), 0, "the owner sees that the client has ended");
    }

    #[tokio::test]
    async fn a_relay_reads_no_further_while_bytes_wait_for_the_other_side() {
        let far = relay(b"").await;
        // The client reads nothing. What the owner can write is bounded: by the kernel's buffers and one read.
        let mut written = 0;
        while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_millis(300), async {
            far.owner.writable().await.unwrap();
            Ok::<_, ()>(far.owner.try_write(&[7; 64 << 10]).unwrap_or(0))
        })
        .await
        {
            written += count;
            if count == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(written < 8 << 20, "{written}");
    }

    #[tokio::test]
    async fn an_end_of_one_side_reaches_the_other_behind_all_bytes() {
        let mut far = relay(b"").await;
        far.owner.write_all(b"the last words").await.unwrap();
        far.owner.shutdown().await.unwrap();
        let mut all = Vec::new();
        far.client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"the last words");
        far.client.write_all(b"an answer").await.unwrap();
        far.client.shutdown().await.unwrap();
        let mut all = Vec::new();
        far.owner.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"an answer", "half closed is half open");
        far.ended().await;
    }

    #[tokio::test]
    async fn a_client_of_tls_is_relayed_as_any_other_stream() {
        let (client, near) = tokio::io::duplex(16);
        let (owner, far) = pair().await;
        let (relays, figures, tracker) = (Arc::<Relays>::default(), Arc::default(), TaskTracker::new());
        let client_side = Transport::other(near);
        let node = NodeId([1; 8]);
        let beginning = Beginning {
            client: client_side,
            permit: None,
            node,
            owner: Transport::tcp(far),
            to_client: Bytes::new(),
        };
        relays.begin(beginning, &figures, tracker.token());
        let (mut read, mut write) = tokio::io::split(client);
        let (mut owner_read, mut owner_write) = owner.into_split();
        let (up, down) = (pattern(1, 100_000), pattern(7, 100_000));
        let (mut at_owner, mut at_client) = (vec![0; up.len()], vec![0; down.len()]);
        let all = async {
            tokio::join!(
                async { write.write_all(&up).await.unwrap() },
                async { owner_write.write_all(&down).await.unwrap() },
                async { owner_read.read_exact(&mut at_owner).await.unwrap() },
                async { read.read_exact(&mut at_client).await.unwrap() },
            )
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("all in time");
        assert!(at_owner == up && at_client == down);
    }

    #[tokio::test]
    async fn a_side_that_accepts_nothing_for_eight_minutes_ends_its_relay() {
        let far = relay(b"").await;
        // The owner writes more than all buffers hold, gives the client up, and ends. The relay cannot read that.
        while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(300), async {
            far.owner.writable().await.unwrap();
            Ok::<_, ()>(far.owner.try_write(&[7; 64 << 10]).unwrap_or(0))
        })
        .await
        {}
        tokio::time::pause();
        let start = tokio::time::Instant::now();
        drop(far.owner);
        far.tracker.close();
        tokio::time::timeout(Duration::from_secs(1200), far.tracker.wait()).await.expect("the relay ends");
        let took = start.elapsed();
        assert!((Duration::from_secs(470)..=Duration::from_secs(490)).contains(&took), "{took:?}");
    }

    #[tokio::test]
    async fn a_cut_ends_relays_one_by_one() {
        let mut far = relay(b"").await;
        far.relays.cut_over(Duration::from_millis(1)).await;
        far.ended().await;
        assert_eq!(far.client.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(far.owner.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[test]
    fn a_relay_at_rest_is_two_sockets_and_less_than_250_bytes() {
        // An `Arc`'s counts, the entry and the deadline that the worker keeps, the slot in the list.
        const BESIDE: usize = 16 + 24 + 16 + 16;
        let sum = size_of::<Relay>() + size_of::<Handle>() + BESIDE;
        assert!(sum <= 250, "{sum}");
    }
}
