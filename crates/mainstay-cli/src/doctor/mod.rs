//! `mainstay doctor`: finds out why WebSocket connections to a URL drop.
//!
//! [`facts`] looks at one connection, [`measure`] waits on several, [`verdict`] says what it means, [`screen`] shows it.

#![allow(dead_code, reason = "the parts are being built")]

mod advice;
mod answer;
mod cutters;
mod dial;
mod facts;
mod findings;
mod heartbeat;
mod idle;
mod lifetime;
mod measure;
mod measured;
mod probe;
mod products;
mod progress;
mod report;
mod screen;
mod suspects;
mod target;
mod verdict;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::values;

/// What the user asked for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How long the experiments wait. Default: 130 s.
    pub(crate) lasts: Duration,
    /// How many connections may be open at once. Default: 200.
    pub(crate) connections: usize,
    /// Whether the server echoes messages, and may be sent some.
    pub(crate) echo: bool,
}

/// Flags of `mainstay doctor`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server, for example wss://example.com/feed or unix:/run/app.sock:/echo.
    #[arg(value_parser = values::server)]
    url: String,
    /// Add this header to the opening handshake, as "Name: value". May be repeated.
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = values::header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Offer this application subprotocol. May be repeated.
    #[arg(long = "subprotocol", value_name = "NAME", value_parser = values::token)]
    subprotocols: Vec<String>,
    /// Trust the certificates in this file (PEM) instead of the system's: those of certificate authorities, or the
    /// server's own if it is self-signed.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
}

pub(crate) async fn run(_arguments: Arguments) -> ExitCode {
    ExitCode::SUCCESS
}
