//! The binary as a process, and a backend to put it in front of.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};

use axum::Router;
use mainstay::Mainstay;
use tokio::net::TcpListener;

/// `mainstay` with these arguments, and nothing from the environment that would change them.
pub(crate) fn mainstay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in ["MAINSTAY_LISTEN", "MAINSTAY_UPSTREAM", "MAINSTAY_ADMIN", "MAINSTAY_LOG"] {
        command.env_remove(variable);
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
}

impl Gateway {
    /// `mainstay serve` with these arguments besides.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let arguments = [&["serve", "--listen", "127.0.0.1:0"], arguments].concat();
        let mut process = mainstay(&arguments).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("ws://"));
        let Some(url) = url.map(str::to_owned) else {
            let mut why = String::new();
            process.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("{line}{why}");
        };
        Self { process, url }
    }

    pub(crate) fn in_front_of(backend: SocketAddr, arguments: &[&str]) -> Self {
        Self::start(&[&["--upstream", &format!("ws://{backend}")], arguments].concat())
    }

    pub(crate) fn is_up(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves `app`, which needs a [`Mainstay`] as its state, in this process.
pub(crate) async fn backend(listener: TcpListener, app: Router<Mainstay>) {
    let mainstay = Mainstay::default();
    let app = app.with_state(mainstay.clone());
    tokio::spawn(async move { mainstay::serve(listener, app, &mainstay).await.unwrap() });
}

/// Sends a signal, by its name.
pub(crate) fn signal(process: &Child, name: &str) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}
