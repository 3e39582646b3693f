//! `mainstay health`: asks a running `mainstay serve` whether clients should be sent to it. Images without a shell have
//! no curl for that.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use crate::{log, values};

/// For the connection, and for each piece of the answer.
const LIMIT: Duration = Duration::from_secs(2);
/// The answer is a status and a line; no more of it is read.
const LONGEST: u64 = 4096;

/// Flags of `mainstay health`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The address that the gateway has as --admin.
    #[arg(value_parser = values::address, env = "MAINSTAY_ADMIN")]
    address: SocketAddr,
}

/// Ends with success if the gateway is ready; else one line on standard error has the reason.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let answer = match ask(arguments.address) {
        Ok(answer) => answer,
        Err(error) => {
            log::say(&format!("{}: {error}", arguments.address));
            return ExitCode::FAILURE;
        }
    };
    if answer.starts_with("HTTP/1.1 200 ") {
        return ExitCode::SUCCESS;
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let first_line = |text: &str| text.lines().next().unwrap_or_default().escape_debug().to_string();
    log::say(&format!("{}: {} {}", arguments.address, first_line(head), first_line(body)));
    ExitCode::FAILURE
}

/// What the gateway answers to a request for /readyz.
fn ask(address: SocketAddr) -> io::Result<String> {
    let mut connection = TcpStream::connect_timeout(&address, LIMIT)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.set_write_timeout(Some(LIMIT))?;
    write!(connection, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    connection.take(LONGEST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
