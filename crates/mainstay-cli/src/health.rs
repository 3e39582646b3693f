//! `mainstay health`: asks a running `mainstay serve` whether it is ready, for container images without curl.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mainstay::client::rustls::pki_types::ServerName;
use mainstay::client::rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::clients::listen_address::{ListenAddress, Place};
use crate::observe::log;
use crate::{tls, values};

/// Timeout of the connection, and of each read and write.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the response, which is a status and one line.
const MAX_RESPONSE: u64 = 4096;

/// The end of `mainstay health --help`.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay health 127.0.0.1:9090
      exit with 0 if the process with --admin 127.0.0.1:9090 is ready
  mainstay health unix:/run/mainstay-admin.sock
      the same over a Unix socket
  mainstay health 127.0.0.1:9090 --cacert ca.pem --name node.example
      the same over TLS, where [admin.tls] has a certificate for that name

Exit codes:
  0  ready
  1  not ready, or not reachable; standard error has the reason
  2  the arguments are wrong";

/// Flags of `mainstay health`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The --admin address of the gateway.
    #[arg(value_parser = values::listen, env = "MAINSTAY_ADMIN")]
    address: ListenAddress,
    /// Speak TLS, and trust the certificates in this file (PEM): those of certificate authorities, or the gateway's own if it
    /// is self-signed. Default: no TLS.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The name to expect in the certificate. Default: the address.
    #[arg(long, value_name = "NAME", requires = "cacert")]
    name: Option<String>,
}

/// Returns success if the gateway is ready; otherwise writes the reason to standard error.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let place = &arguments.address.place;
    let tls = match arguments.tls() {
        Ok(tls) => tls,
        Err(line) => {
            log::write_line(&line);
            return ExitCode::from(2);
        }
    };
    let answer = match ask(place, tls) {
        Ok(answer) => answer,
        Err(error) => {
            log::write_line(&format!("{place}: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if answer.starts_with("HTTP/1.1 200 ") {
        return ExitCode::SUCCESS;
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let first_line = |text: &str| text.lines().next().unwrap_or_default().escape_debug().to_string();
    log::write_line(&format!("{place}: {} {}", first_line(head), first_line(body)));
    ExitCode::FAILURE
}

impl Arguments {
    /// Returns TLS, and the name to expect.
    fn tls(&self) -> Result<Option<(Arc<ClientConfig>, ServerName<'static>)>, String> {
        let (Some(file), Place::Tcp(address)) = (&self.cacert, &self.address.place) else {
            return match self.cacert {
                Some(_) => Err("--cacert: a Unix socket has no TLS; leave it out".to_owned()),
                None => Ok(None),
            };
        };
        let name = match &self.name {
            Some(name) => ServerName::try_from(name.clone())
                .map_err(|_| "--name: must be the name of a host, such as node.example".to_owned())?,
            None => ServerName::from(address.ip()),
        };
        let config = tls::config(Some(file), None).map_err(|error| error.replacen("ca", "--cacert", 1))?;
        Ok(Some((config, name)))
    }
}

/// Requests /readyz and returns the response.
fn ask(place: &Place, tls: Option<(Arc<ClientConfig>, ServerName<'static>)>) -> io::Result<String> {
    match place {
        Place::Tcp(address) => {
            let connection = TcpStream::connect_timeout(address, TIMEOUT)?;
            connection.set_read_timeout(Some(TIMEOUT))?;
            connection.set_write_timeout(Some(TIMEOUT))?;
            let Some((config, name)) = tls else {
                return ask_over(connection, &address.to_string());
            };
            let tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
            ask_over(StreamOwned::new(tls, connection), &address.to_string())
        }
        Place::Unix(path) => {
            let connection = UnixStream::connect(path)?;
            connection.set_read_timeout(Some(TIMEOUT))?;
            connection.set_write_timeout(Some(TIMEOUT))?;
            ask_over(connection, "localhost")
        }
    }
}

fn ask_over(mut connection: impl Read + Write, host: &str) -> io::Result<String> {
    write!(connection, "GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    connection.take(MAX_RESPONSE).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
