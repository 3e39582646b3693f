//! The binary as a process, and a backend to put it in front of.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use mainstay::server::Config;
use mainstay::{HeartbeatConfig, Server};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// `mainstay` with these arguments, and nothing from the environment that would change them.
pub(crate) fn mainstay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (variable, _) in std::env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"MAINSTAY_") {
            command.env_remove(variable);
        }
    }
    command
}

/// Runs it with this input until it ends.
pub(crate) fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = mainstay(arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// A gateway on a port of its own; killed when dropped.
pub(crate) struct Gateway {
    process: Child,
    pub(crate) url: String,
    /// Where `--admin` listens.
    pub(crate) admin: Option<SocketAddr>,
    /// What it wrote to standard error: read all the time, or a gateway that says much would wait for us.
    said: Arc<Mutex<String>>,
}

impl Gateway {
    /// `mainstay serve` with these arguments besides.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::at(&[&["--listen", "127.0.0.1:0"], arguments].concat())
    }

    /// `mainstay serve` with these arguments alone.
    pub(crate) fn at(arguments: &[&str]) -> Self {
        Self::begin(mainstay(&[&["serve"], arguments].concat()))
    }

    /// As [`start`](Self::start), with standard error going elsewhere.
    pub(crate) fn with_log(arguments: &[&str], stderr: Stdio) -> Self {
        let mut command = mainstay(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat());
        command.stderr(stderr);
        Self::begin(command)
    }

    /// As this command says; its standard output and error are pipes, unless it says otherwise.
    pub(crate) fn begin(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let (mut url, mut admin) = (None, None);
        for line in BufReader::new(process.stdout.as_mut().unwrap()).lines().map(Result::unwrap) {
            let mut words = line.split([' ', ',']);
            if let Some((_, said)) = line.split_once("listening on ") {
                url = Some(said.to_owned());
            } else if let Some((_, said)) = line.split_once("admin on http://") {
                admin = said.split(": ").next().map(|address| address.parse().unwrap());
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
        let said = Arc::new(Mutex::new(String::new()));
        let saying = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                *saying.lock().unwrap() += &format!("{line}\n");
            }
        });
        Self { process, url, admin, said }
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

    /// All that it wrote to standard error so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it ended by itself, and says with which code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        for _ in 0..1_500 {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not end: {}", self.said());
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(&self.process, name);
    }

    /// The answer of `--admin`, with further headers: status line, headers and body.
    pub(crate) fn ask(&self, path: &str, headers: &str) -> String {
        Self::ask_at(self.admin.unwrap(), path, headers)
    }

    /// As [`ask`](Self::ask), of a listener that is elsewhere.
    pub(crate) fn ask_at(admin: SocketAddr, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A sample of the metrics, by its name and labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.ask("/metrics", "");
        let sample = metrics.lines().find_map(|line| line.strip_prefix("mainstay_")?.strip_prefix(name));
        sample.unwrap_or_else(|| panic!("no {name} in {metrics}")).trim().parse().unwrap()
    }

    /// Waits until a metric has this value.
    pub(crate) async fn reaches(&self, name: &str, value: f64) {
        until(name, || self.metric(name) == value).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The number that a message of a test carries as its text.
pub(crate) fn number(message: &mainstay::Message) -> u64 {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

/// Waits until `condition` holds; panics after half a minute, far longer than anything here takes.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Serves `app`, which needs a [`Server`] as its state, in this process. It looks once an hour whether anybody is there:
/// a gateway that a test stops for a while is not called dead by it.
pub(crate) async fn backend(listener: TcpListener, app: Router<Server>) {
    let heartbeat = HeartbeatConfig::every(Duration::from_secs(3600)).unwrap();
    let mainstay = Server::new(Config::new().heartbeat(heartbeat));
    let app = app.with_state(mainstay.clone());
    tokio::spawn(async move { mainstay::serve(listener, app, &mainstay).await.unwrap() });
}

/// A way to the backend that can be shut: connections are dropped, and new ones as well.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    open: Arc<AtomicBool>,
    shut: Arc<Notify>,
}

impl Door {
    pub(crate) async fn to(backend: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, shut) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
        let door = Self { address, open: Arc::clone(&open), shut: Arc::clone(&shut) };
        tokio::spawn(async move {
            loop {
                let (mut down, _) = listener.accept().await.unwrap();
                if !open.load(Relaxed) {
                    continue;
                }
                let shut = Arc::clone(&shut);
                tokio::spawn(async move {
                    let mut up = tokio::net::TcpStream::connect(backend).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut down, &mut up) => {}
                        () = shut.notified() => {}
                    }
                });
            }
        });
        door
    }

    pub(crate) fn shut(&self) {
        self.open.store(false, Relaxed);
        self.shut.notify_waiters();
    }
    pub(crate) fn open(&self) {
        self.open.store(true, Relaxed);
    }
}

/// Sends a signal, by its name.
pub(crate) fn signal(process: &Child, name: &str) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}
