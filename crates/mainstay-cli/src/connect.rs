//! `mainstay connect`: sends each line of standard input as a message and prints received messages; events of the
//! connection go to standard error.
//!
//! The command serves people and scripts. [`AFTER_HELP`] has its exit codes.

mod output;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mainstay::client::{Builder, ClientHandle, Event, Events, Place, State};
use mainstay::{Client, CloseCode, Fate, Limits, Link, Message};
use tokio::io::{AsyncBufReadExt, BufReader};

use self::output::{Output, escaped};
use crate::observe::log;
use crate::process::signals::Stops;
use crate::{tls, values};

/// The end of `mainstay connect --help`.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay connect ws://127.0.0.1:8080/echo
      send what you type, print what the server sends; Ctrl-D or Ctrl-C ends
  printf 'a\\nb\\n' | mainstay connect wss://example.com/feed --linger 5s
      send two messages, and end when nothing was received for 5 s
  mainstay connect wss://example.com/feed --json --plain | jq -r .message
      print the messages of a server that speaks plain WebSocket
  mainstay connect wss://localhost:8443/echo --cacert ca.pem
      trust a server's own certificate

Output:
  On a terminal, control characters in messages are shown as escapes such as
  \\u{1b}; --raw prints them as they are. In a pipe or a file messages are
  printed unchanged. Binary messages are printed in hexadecimal.

Exit codes:
  0    closed in order, and every message sent was delivered
  1    the server was never reached, refused the connection or closed it
  2    the arguments are wrong
  3    closed, but some messages sent may not have been delivered
  130, 131, 143  interrupted twice by SIGINT, SIGQUIT, SIGTERM";

/// Flags of `mainstay connect`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server, for example ws://127.0.0.1:8080/echo, wss://example.com/feed or unix:/run/app.sock:/echo.
    #[arg(value_parser = values::server)]
    url: Place,
    /// Print messages and events to standard output, one JSON object per line.
    #[arg(long)]
    json: bool,
    /// Print control characters in messages to a terminal as they are. The server can then move the cursor, set the
    /// window's title, and more.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
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
    /// Do not offer mainstay.v1: speak plain WebSocket, without sessions.
    #[arg(long)]
    plain: bool,
    /// Do not reconnect: end when the first connection is lost.
    #[arg(long)]
    once: bool,
    /// After the end of the input, close when nothing was received for this long.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "1s")]
    linger: Duration,
    /// Maximum size of a received message. Range: 1 to 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "16MiB")]
    max_message: usize,
}

pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let url = arguments.url.to_string();
    if arguments.plain {
        connect(Link::builder(&url), &arguments).await
    } else {
        connect(Client::builder(&url), &arguments).await
    }
}

async fn connect<P>(
    builder: Result<Builder<P>, mainstay::client::UrlError>,
    arguments: &Arguments,
) -> ExitCode {
    let mut builder = match builder {
        Ok(builder) => builder,
        Err(error) => return fail(&error, 2),
    };
    for (name, value) in &arguments.headers {
        builder = builder.header(name.clone(), value.clone());
    }
    for name in &arguments.subprotocols {
        builder = builder.subprotocol(name);
    }
    if let Some(file) = &arguments.cacert {
        match tls::config(Some(file), None) {
            Ok(config) => builder = builder.tls(config),
            Err(error) => return fail(&error.replacen("ca", "--cacert", 1), 2),
        }
    }
    builder = builder.limits(Limits { max_message: arguments.max_message, max_fragments: 4096 });
    let output = Output::new(arguments);
    output.greet(&arguments.url.to_string());
    let client = if arguments.once {
        match builder.connect_once().await {
            Ok(client) => client,
            Err(error) => return fail(&error, 1),
        }
    } else {
        builder.connect()
    };
    match Stops::listen() {
        Ok(interrupts) => ExitCode::from(talk(client, arguments.linger, &output, interrupts).await),
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &impl std::fmt::Display, code: u8) -> ExitCode {
    log::write_line(&escaped(&error.to_string(), |_| false));
    ExitCode::from(code)
}

/// What the exit code depends on.
#[derive(Default)]
struct Summary {
    /// The client was attached at least once.
    attached: bool,
    /// The server ended the connection with another code than 1000.
    refused: bool,
    /// A message was reported as unknown or not delivered.
    missing: bool,
}

impl Summary {
    fn exit_code(&self) -> u8 {
        match self {
            Self { refused: true, .. } => 1,
            Self { missing: true, .. } => 3,
            Self { attached: false, .. } => 1,
            _ => 0,
        }
    }

    fn observe(&mut self, event: &Event, closing: bool) {
        let undelivered = |fate: &Fate| fate.delivered < if fate.resent { fate.unknown } else { fate.last };
        match event {
            Event::Attached { .. } => self.attached = true,
            Event::Report(_) => self.missing = true,
            Event::Gap(fate) => self.missing |= undelivered(fate),
            Event::Ended(end) => {
                self.missing |= end.fate.as_ref().is_some_and(undelivered);
                self.refused = !closing && end.code != Some(CloseCode::NORMAL.into());
            }
            _ => {}
        }
    }
}

/// Copies input to messages and messages to output. Ends when the input has ended and nothing was received for `linger`,
/// when a signal arrives, when the output is closed, or when the client has ended. Returns the exit code.
async fn talk<P>(
    mut client: ClientHandle<P>,
    linger: Duration,
    output: &Output,
    mut interrupts: Stops,
) -> u8 {
    let (sender, events) = (client.sender(), client.events());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut input_open = true;
    // A line that waits for room in the queue. Messages are received meanwhile, or both ends could wait for ever.
    let mut waiting: Option<Message> = None;
    // With `--once` the client was attached before its events were read.
    let mut summary =
        Summary { attached: matches!(client.state(), State::Attached { .. }), ..Summary::default() };
    loop {
        let sending = async {
            match &waiting {
                Some(message) => sender.send(message.clone()).await,
                None => std::future::pending().await,
            }
        };
        let leaving = async {
            let more = input_open || waiting.is_some();
            if more { std::future::pending().await } else { tokio::time::sleep(linger).await }
        };
        tokio::select! {
            event = events.next() => match event {
                Some(event) => {
                    summary.observe(&event, false);
                    if output.event(&event).is_err() {
                        break;
                    }
                }
                None => return summary.exit_code(),
            },
            Some(message) = client.recv() => {
                if output.message(&message).is_err() {
                    break;
                }
            }
            line = lines.next_line(), if input_open && waiting.is_none() => match line {
                Ok(Some(line)) => waiting = Some(Message::text(line)),
                Ok(None) | Err(_) => input_open = false,
            },
            sent = sending => {
                input_open &= sent.is_ok();
                waiting = None;
            }
            _ = interrupts.next() => break,
            () = leaving => break,
        }
    }
    summary.missing |= waiting.is_some();
    tokio::select! {
        code = close(&client, &events, summary, output) => code,
        stop = interrupts.next() => stop.exit_code(),
    }
}

/// Closes in order: accepted messages are still delivered, and their fate is reported. Returns the exit code.
async fn close<P>(client: &ClientHandle<P>, events: &Events, mut summary: Summary, output: &Output) -> u8 {
    client.close(CloseCode::NORMAL, "").await;
    while let Some(event) = events.next().await {
        summary.observe(&event, true);
        let _ = output.event(&event);
    }
    summary.exit_code()
}

#[cfg(test)]
mod tests {
    use mainstay::client::{End, EndCause, ReasonCode, Report};

    use super::*;

    fn fate(delivered: u64, unknown: u64, last: u64, resent: bool) -> Fate {
        let mut fate = Fate::none_delivered(last);
        (fate.delivered, fate.unknown, fate.resent) = (delivered, unknown, resent);
        fate
    }

    #[test]
    fn the_exit_code_reports_whether_every_message_was_delivered() {
        let check = |events: &[Event], closing, expected| {
            let mut summary = Summary { attached: true, ..Summary::default() };
            events.iter().for_each(|event| summary.observe(event, closing));
            assert_eq!(summary.exit_code(), expected, "{events:?}");
        };
        let ended = |code, fate| {
            let mut end = End::new(EndCause::Peer, "");
            (end.code, end.fate) = (CloseCode::new(code).map(ReasonCode::Close), fate);
            Event::Ended(Box::new(end))
        };
        check(&[ended(1000, Some(fate(2, 2, 2, false)))], true, 0);
        assert_eq!(Summary::default().exit_code(), 1, "the server was never reached");
        check(&[ended(1000, Some(fate(1, 2, 2, false)))], true, 3);
        check(&[ended(1000, Some(fate(1, 1, 2, false)))], true, 3);
        check(&[ended(4501, None)], false, 1);
        check(&[ended(1000, None)], false, 0);
        check(&[Event::Gap(fate(1, 1, 2, true)), ended(1000, None)], true, 0);
        check(&[Event::Gap(fate(0, 1, 2, true)), ended(1000, None)], true, 3);
        check(&[Event::Report(Report::NotDelivered(1..=1)), ended(1000, None)], true, 3);
    }
}
