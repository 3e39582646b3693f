//! Real engines for proofs: Redis from Debian and Valkey from PyPI, started on loopback and ended by process id.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::run::{Background, check, free_address};
use crate::{Result, install};

/// How long an engine may take to start, or to answer a command.
const LIMIT: Duration = Duration::from_secs(60);

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brand {
    Redis,
    Valkey,
}

/// An installed server.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) brand: Brand,
    /// The server's program.
    pub(crate) path: PathBuf,
    /// Its libraries where the system lacks them, for `LD_LIBRARY_PATH`.
    pub(crate) libraries: Option<PathBuf>,
}

impl Program {
    /// Installs the server if it is not here yet.
    pub(crate) fn install(brand: Brand) -> Result<Self> {
        let (path, libraries) = match brand {
            Brand::Redis => install::redis().map(|(path, libraries)| (path, Some(libraries)))?,
            Brand::Valkey => (install::valkey()?, None),
        };
        Ok(Self { brand, path, libraries })
    }

    /// A command that starts the server.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Starts a server on a free port of loopback that keeps nothing on disk, and waits until it answers. `options` are lines
    /// of its configuration as arguments, for example `["--maxmemory", "10mb"]`; its log goes to `home`.
    pub(crate) fn start(&self, home: &Path, options: &[&str]) -> Result<Server> {
        self.start_at(free_address()?, home, options)
    }

    /// The same at a known address, as a server that was killed comes back.
    pub(crate) fn start_at(&self, address: SocketAddr, home: &Path, options: &[&str]) -> Result<Server> {
        fs::create_dir_all(home)?;
        let port = address.port().to_string();
        let mut command = self.command();
        command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no", "--dir"]);
        command.arg(home).args(options);
        let mut process = Background::start_quietly(&mut command, home.join(format!("engine-{port}.log")))?;
        process.wait_until(LIMIT, |_| is_ready(address))?;
        Ok(Server { process, address })
    }
}

/// A running server. Dropping this value kills it.
pub(crate) struct Server {
    process: Background,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Returns its URL.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Returns its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops the process (SIGSTOP): connections stay, and nothing is answered.
    pub(crate) fn pause(&self) -> Result<()> {
        self.process.signal("STOP")
    }

    /// Lets a paused process continue.
    pub(crate) fn resume(&self) -> Result<()> {
        self.process.signal("CONT")
    }

    /// Runs one command and returns its answer as text: `PONG`, a number, the elements of an array in lines. An error answer is an
    /// error.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        command(self.address, words)
    }

    /// Reports each command that clients run from now on, a line each (MONITOR).
    pub(crate) fn monitor(&self) -> Result<Receiver<String>> {
        let mut stream = connect(self.address)?;
        send(&mut stream, &["MONITOR"])?;
        let mut lines = BufReader::new(stream);
        read(&mut lines)?;
        lines.get_ref().set_read_timeout(None)?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.lines().map_while(std::result::Result::ok) {
                if sender.send(line.trim_start_matches('+').to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

/// Runs the tests of the driver of engines against this one: `crates/mainstay/tests/engine`.
pub(crate) fn drive(program: &Program) -> Result<()> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--workspace", "--features", "mainstay/cluster", "--test", "engine"]);
    cargo.env("MAINSTAY_ENGINE", &program.path);
    if let Some(libraries) = &program.libraries {
        cargo.env("MAINSTAY_ENGINE_LIBRARIES", libraries);
    }
    if program.brand == Brand::Valkey {
        // The wheel's server was built without TLS.
        cargo.args(["--", "--skip", "tls_is_spoken"]);
    }
    check(&mut cargo).map(drop)
}

fn is_ready(address: SocketAddr) -> bool {
    command(address, &["PING"]).is_ok_and(|answer| answer == "PONG")
}

/// Runs one command at `address` and returns its answer as text.
pub(crate) fn command(address: SocketAddr, words: &[&str]) -> Result<String> {
    let mut stream = connect(address)?;
    send(&mut stream, words)?;
    read(&mut BufReader::new(stream))
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn send(stream: &mut TcpStream, words: &[&str]) -> Result<()> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    Ok(stream.write_all(request.as_bytes())?)
}

/// Reads one answer of RESP2.
fn read(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into());
    }
    let line = line.trim_end();
    let count = || line[1..].parse::<usize>().ok();
    match line.as_bytes().first() {
        Some(b'+' | b':') => Ok(line[1..].to_owned()),
        Some(b'-') => Err(line[1..].into()),
        Some(b'$') => {
            let Some(length) = count() else { return Ok(String::new()) }; // -1: nil
            let mut text = vec![0; length + 2];
            stream.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text[..length]).into_owned())
        }
        Some(b'*') => {
            let elements = (0..count().unwrap_or(0)).map(|_| read(stream));
            Ok(elements.collect::<Result<Vec<_>>>()?.join("\n"))
        }
        _ => Err(format!("no answer of an engine: {line:?}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_read_to_its_end_and_no_further() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 21];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(b"*3\r\n$2\r\nab\r\n$-1\r\n:7\r\n+next\r\n").unwrap();
            request
        });
        assert_eq!(command(address, &["HLEN", "k"]).unwrap(), "ab\n\n7");
        assert_eq!(&peer.join().unwrap(), b"*2\r\n$4\r\nHLEN\r\n$1\r\nk\r\n");
    }
}
