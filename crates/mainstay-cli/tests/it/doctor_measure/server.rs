//! A WebSocket server in this process with limits that are known.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use mainstay_proto::ws::handshake::accept_key;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// How long a server takes to answer a first message: longer than what any server sends at once, as a greeting.
const LOGIN_TAKES: Duration = Duration::from_millis(300);

/// How a server ends an idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cut {
    Fin,
    Reset,
    /// By code 4000.
    Close,
    /// It forgets the connection, and resets it once something comes.
    ResetOnSend,
}

/// What a server does. Default: it answers and echoes, and has no limit.
#[derive(Clone, Default)]
pub(super) struct Behaviour {
    pub(super) idle: Option<(Duration, Cut)>,
    /// Only messages renew the idle limit: so does a server that sets a deadline before it reads each message.
    pub(super) counts_messages: bool,
    /// It sends Pings, and cuts a client that did not answer the one before.
    pub(super) pings: Option<Duration>,
    pub(super) answers_no_ping: bool,
    /// A longer message is refused by 1009.
    pub(super) max_message: Option<usize>,
    /// A message of more frames is refused by 1009.
    pub(super) max_fragments: Option<usize>,
    /// It answers each Close by this code.
    pub(super) close_code: Option<u16>,
    /// A client whose first message is another, or does not come in time, is closed by 4408. The first message is answered, and not
    /// echoed; a message before that answer is refused.
    pub(super) login: Option<(&'static str, Duration)>,
    /// More connections at once are refused by 503.
    pub(super) max_open: Option<usize>,
    /// After so many connections that lived less than a second each, openings are refused by 429 for half a second.
    pub(super) max_short: Option<usize>,
}

/// A running server. Dropping it ends it.
pub(super) struct Server {
    pub(super) port: u16,
    shared: Arc<Shared>,
    _ends: oneshot::Sender<()>,
}

struct Shared {
    behaviour: Behaviour,
    open: AtomicUsize,
    most_open: AtomicUsize,
    short: std::sync::Mutex<VecDeque<Instant>>,
}

impl Server {
    pub(super) fn start(behaviour: Behaviour) -> Self {
        let (ends, ended) = oneshot::channel::<()>();
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let shared = Arc::new(Shared {
                    behaviour,
                    open: AtomicUsize::new(0),
                    most_open: AtomicUsize::new(0),
                    short: std::sync::Mutex::default(),
                });
                sender.send((listener.local_addr().unwrap().port(), Arc::clone(&shared))).unwrap();
                tokio::select! {
                    () = accept(listener, shared) => {}
                    _ = ended => {}
                }
            });
        });
        let (port, shared) = receiver.recv().unwrap();
        Self { port, shared, _ends: ends }
    }

    /// Returns how many connections are open.
    pub(super) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Returns how many were open at once.
    pub(super) fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let opened = Instant::now();
            let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
            shared.most_open.fetch_max(open, Ordering::SeqCst);
            let was_open = Connection { stream, shared: &shared, opened, input: Vec::new() }.run(open).await;
            shared.open.fetch_sub(1, Ordering::SeqCst);
            if was_open.is_some() && opened.elapsed() < Duration::from_secs(1) {
                shared.short.lock().unwrap().push_back(Instant::now());
            }
        });
    }
}

struct Connection<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    opened: Instant,
    input: Vec<u8>,
}

/// A frame: final or not, opcode, payload.
type Frame = (bool, u8, Vec<u8>);

impl Connection<'_> {
    /// Serves it. `None`: it did not get as far as a WebSocket.
    async fn run(mut self, open: usize) -> Option<()> {
        let head = self.head().await?;
        let refusal = if self.shared.behaviour.max_open.is_some_and(|most| open > most) {
            Some("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")
        } else if self.is_too_fast() {
            Some("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.stream.write_all(refusal.as_bytes()).await.ok()?;
            return None;
        }
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))?;
        let accept = accept_key(key.as_bytes());
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.stream.write_all(response.as_bytes()).await.ok()?;
        self.serve().await;
        Some(())
    }

    async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read_buf(&mut head).await.ok()? == 0 {
                return None;
            }
        }
        String::from_utf8(head).ok().filter(|head| head.starts_with("GET "))
    }

    fn is_too_fast(&self) -> bool {
        let Some(most) = self.shared.behaviour.max_short else { return false };
        let mut short = self.shared.short.lock().unwrap();
        if short.len() >= most && short.back().is_some_and(|last| last.elapsed() > Duration::from_millis(500))
        {
            short.clear();
        }
        short.len() >= most
    }

    /// Serves frames until a limit or the client ends it.
    async fn serve(mut self) {
        let behaviour = self.shared.behaviour.clone();
        let mut login = behaviour.login;
        let (mut last, mut next_ping, mut answered) = (Instant::now(), behaviour.pings, true);
        let (mut message, mut fragments) = (Vec::new(), 0);
        let far = Duration::from_secs(3600);
        loop {
            let idle = last + behaviour.idle.map_or(far, |(limit, _)| limit);
            let ping = self.opened + next_ping.unwrap_or(far);
            let logged_in = self.opened + login.map_or(far, |(_, within)| within);
            let frame = tokio::select! {
                biased;
                frame = self.frame() => frame,
                () = sleep_until(ping) => {
                    if !std::mem::take(&mut answered) {
                        return self.cut(Cut::Fin).await;
                    }
                    next_ping = next_ping.zip(behaviour.pings).map(|(now, every)| now + every);
                    self.send(9, b"").await;
                    last = Instant::now();
                    continue;
                }
                () = sleep_until(logged_in) => return self.end(bytes(4408)).await,
                () = sleep_until(idle) => return self.cut(behaviour.idle.unwrap().1).await,
            };
            let Some((fin, opcode, payload)) = frame else { return };
            if opcode < 8 || !behaviour.counts_messages {
                last = Instant::now();
            }
            match opcode {
                8 => return self.end(behaviour.close_code.map_or(payload, bytes)).await,
                9 if behaviour.answers_no_ping => {}
                9 => self.send(10, &payload).await,
                10 => answered = true,
                _ => {
                    message.extend(payload);
                    fragments += 1;
                    let is_long = behaviour.max_message.is_some_and(|most| message.len() > most);
                    if is_long || behaviour.max_fragments.is_some_and(|most| fragments > most) {
                        return self.end(bytes(1009)).await;
                    }
                    if fin {
                        let message = std::mem::take(&mut message);
                        let answer = match login.take() {
                            Some((expected, _)) if message != expected.as_bytes() => {
                                return self.end(bytes(4408)).await;
                            }
                            Some(_) => match self.log_in().await {
                                Some(()) => b"welcome".to_vec(),
                                None => return self.end(bytes(4408)).await,
                            },
                            None => message,
                        };
                        self.send(1, &answer).await;
                        fragments = 0;
                    }
                }
            }
        }
    }

    /// Takes its time for a login. `None`: a message came before it was over, or the client left.
    async fn log_in(&mut self) -> Option<()> {
        let over = Instant::now() + LOGIN_TAKES;
        while let Ok(frame) = timeout_at(over, self.frame()).await {
            match frame? {
                (_, 9, payload) => self.send(10, &payload).await,
                (_, 10, _) => {}
                _ => return None,
            }
        }
        Some(())
    }

    async fn cut(mut self, how: Cut) {
        match how {
            Cut::Fin => {}
            Cut::Reset => self.reset(),
            Cut::Close => self.end(bytes(4000)).await,
            Cut::ResetOnSend => {
                if self.frame().await.is_some() {
                    self.reset();
                }
            }
        }
    }

    fn reset(&self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Sends a Close, and closes TCP once the client did.
    async fn end(mut self, payload: Vec<u8>) {
        self.send(8, &payload).await;
        let _ = self.stream.shutdown().await;
        let _ = timeout(Duration::from_secs(5), async { while self.frame().await.is_some() {} }).await;
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()) {
            Ok(len @ 0..=125) => frame.push(u8::try_from(len).unwrap()),
            Ok(len) => {
                frame.push(126);
                frame.extend(len.to_be_bytes());
            }
            Err(_) => {
                frame.push(127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        let _ = self.stream.write_all(&frame).await;
    }

    /// Returns the next frame; `None`: the client closed. Cancel safe: what was read is kept.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = take_frame(&mut self.input) {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// The payload of a Close with this code.
fn bytes(code: u16) -> Vec<u8> {
    code.to_be_bytes().to_vec()
}

/// Takes a masked frame from the beginning, if it is whole.
fn take_frame(input: &mut Vec<u8>) -> Option<Frame> {
    let (first, second) = (*input.first()?, *input.get(1)?);
    let (len, at) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().unwrap())), 4),
        127 => (usize::try_from(u64::from_be_bytes(input.get(2..10)?.try_into().unwrap())).unwrap(), 10),
        len => (usize::from(len), 2),
    };
    let mask: [u8; 4] = input.get(at..at + 4)?.try_into().unwrap();
    let payload = input.get(at + 4..at + 4 + len)?;
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    input.drain(..at + 4 + len);
    Some((first & 0x80 != 0, first & 0xf, payload))
}
