//! The binary as a process, and backends for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use mainstay::server::Config;
use mainstay::{HeartbeatConfig, Server, SessionUpgrade};
use mainstay_chaos::{ChaosProxy, Fault, Target};
use tokio::net::TcpListener;

/// `mainstay` with these arguments, and without any `MAINSTAY_*` variable.
pub(crate) fn mainstay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    without_variables(&mut command);
    command
}

/// Removes every `MAINSTAY_*` variable.
pub(crate) fn without_variables(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"MAINSTAY_") {
            command.env_remove(variable);
        }
    }
}

/// Runs `mainstay` with this input until it ends.
pub(crate) fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = mainstay(arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// A running gateway on its own port; killed when dropped.
pub(crate) struct Gateway {
    process: Child,
    pub(crate) url: String,
    /// The address of `--admin`.
    pub(crate) admin: Option<SocketAddr>,
    /// Its standard error, read all the time: the pipe must not fill up.
    log: Arc<Mutex<String>>,
}

impl Gateway {
    /// Runs `mainstay serve` on a free port with these arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::at(&[&["--listen", "127.0.0.1:0"], arguments].concat())
    }

    /// Runs `mainstay serve` with these arguments alone.
    pub(crate) fn at(arguments: &[&str]) -> Self {
        Self::begin(mainstay(&[&["serve"], arguments].concat()))
    }

    /// As [`start`](Self::start), with another standard error.
    pub(crate) fn with_log(arguments: &[&str], stderr: Stdio) -> Self {
        let mut command = mainstay(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat());
        command.stderr(stderr);
        Self::begin(command)
    }

    /// Runs this command; its standard output and error are pipes unless the command sets them.
    pub(crate) fn begin(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let (mut url, mut admin) = (None, None);
        for line in BufReader::new(process.stdout.as_mut().unwrap()).lines().map(Result::unwrap) {
            let mut words = line.split([' ', ',']);
            if let Some((_, found)) = line.split_once("listening on ") {
                url = Some(found.to_owned());
            } else if let Some((_, found)) = line.split_once("admin on http") {
                let found = found.trim_start_matches('s').trim_start_matches("://");
                admin = found.split(": ").next().map(|address| address.parse().unwrap());
            } else if words.any(|word| word == "try:") {
                break;
            }
        }
        let errors: Box<dyn Read + Send> = match process.stderr.take() {
            Some(errors) => Box::new(errors),
            None => Box::new(std::io::empty()),
        };
        let mut errors = BufReader::new(errors);
        let Some(url) = url else {
            let mut why = String::new();
            errors.read_to_string(&mut why).unwrap();
            panic!("{why}");
        };
        let log = Arc::new(Mutex::new(String::new()));
        let writing = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                *writing.lock().unwrap() += &format!("{line}\n");
            }
        });
        Self { process, url, admin, log }
    }

    pub(crate) fn in_front_of(backend: SocketAddr, arguments: &[&str]) -> Self {
        Self::start(&[&["--upstream", &format!("ws://{backend}")], arguments].concat())
    }

    pub(crate) fn is_up(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("ws://").parse().unwrap()
    }

    /// Waits until the log has this text so many times: its lines come through a pipe, later than responses and figures.
    pub(crate) async fn logged(&self, text: &str, count: usize) {
        let what = format!("{text} is logged {count} times");
        until(&what, || self.log().matches(text).count() >= count).await;
    }

    /// Its standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the process ends by itself; returns its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        for _ in 0..1_500 {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the process does not end: {}", self.log());
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(&self.process, name);
    }

    /// Requests a path from the admin listener; returns status line, headers and body.
    pub(crate) fn get(&self, path: &str, headers: &str) -> String {
        Self::get_at(self.admin.unwrap(), path, headers)
    }

    /// As [`get`](Self::get), from a listener at another address.
    pub(crate) fn get_at(admin: SocketAddr, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Returns a sample of the metrics, by name and labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics", "");
        let sample = metrics.lines().find_map(|line| line.strip_prefix("mainstay_")?.strip_prefix(name));
        sample.unwrap_or_else(|| panic!("no {name} in {metrics}")).trim().parse().unwrap()
    }

    /// Returns a sample of the metrics that every program has.
    pub(crate) fn metric_of_process(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics", "");
        let sample = metrics.lines().find_map(|line| line.strip_prefix(name));
        sample.unwrap_or_else(|| panic!("no {name} in {metrics}")).trim().parse().unwrap()
    }

    /// Waits until a metric has this value.
    pub(crate) async fn wait_for_metric(&self, name: &str, value: f64) {
        until(name, || self.metric(name) == value).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connects a client; returns the status of the response, or an error if the connection was refused or reset.
pub(crate) fn connect(address: SocketAddr) -> std::io::Result<String> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    opened(stream)
}

/// As [`connect`], over a Unix socket.
pub(crate) fn connect_unix(path: &str) -> std::io::Result<String> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    opened(stream)
}

fn opened(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(
        b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(String::from_utf8_lossy(&status[9..]).into_owned())
}

/// Clients that connect one after the other, in a thread of their own. None may be refused or reset.
pub(crate) struct Callers {
    done: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Callers {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (done, served) = (Arc::clone(&done), Arc::clone(&served));
            move || {
                while !done.load(Relaxed) {
                    // 503: the old process had accepted the connection, and drained before it read the request.
                    let status = connect(address).unwrap();
                    assert!(status == "101" || status == "503", "{status}");
                    served.fetch_add(usize::from(status == "101"), Relaxed);
                }
            }
        });
        Self { done, served, thread }
    }

    /// Waits until more clients are served.
    pub(crate) async fn are_served(&self, when: &str) {
        let before = self.served.load(Relaxed);
        until(&format!("clients are served {when}"), || self.served.load(Relaxed) > before + 3).await;
    }

    /// Stops, and fails if a client was refused or reset.
    pub(crate) fn finish(self) {
        self.done.store(true, Relaxed);
        self.thread.join().unwrap();
    }
}

/// Returns the number in the text of a message.
pub(crate) fn number(message: &mainstay::Message) -> u64 {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

/// Waits until `condition` holds; panics after half a minute, far longer than any test needs.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Returns each message of a session.
pub(crate) async fn echo(upgrade: SessionUpgrade) -> Response {
    upgrade.on_session(|mut session| async move {
        while let Some(message) = session.recv().await {
            if session.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// Serves `app` in this process, with a heartbeat of an hour: this backend never declares a gateway dead that a test stops
/// for a while.
pub(crate) async fn backend(listener: TcpListener, app: Router<Server>) {
    let heartbeat = HeartbeatConfig::every(Duration::from_secs(3600)).unwrap();
    let mainstay = Server::new(Config::new().heartbeat(heartbeat));
    let app = app.with_state(mainstay.clone());
    tokio::spawn(async move { mainstay::serve(listener, app, &mainstay).await.unwrap() });
}

/// A proxy that can be cut.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    chaos: ChaosProxy,
}

impl Proxy {
    pub(crate) fn to(backend: SocketAddr) -> Self {
        let chaos = ChaosProxy::builder(backend.to_string()).start().unwrap();
        Self { address: chaos.address(), chaos }
    }

    /// Resets the connections, and refuses new ones.
    pub(crate) fn cut(&self) {
        self.chaos.inject(Fault::Refuse, Target::New, None);
        self.chaos.inject(Fault::Reset, Target::Open, None);
    }

    pub(crate) fn restore(&self) {
        self.chaos.lift_all();
    }
}

/// Sends a signal to a process.
pub(crate) fn signal(process: &Child, name: &str) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}
