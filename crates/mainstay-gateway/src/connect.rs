//! `mainstay connect`: lines in, messages out; what happens to the connection goes to standard error.
//!
//! Exit codes: 0 ended in order, 1 the server ended or refused it, 2 the arguments are wrong.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mainstay::client::{Event, Lost, Report};
use mainstay::{Client, CloseCode, Kind, Limits, Message};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::values;

/// Flags of `mainstay connect`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to, for example ws://127.0.0.1:8080/echo.
    url: String,
    /// Print messages and events as one JSON object a line, all on standard output.
    #[arg(long)]
    json: bool,
    /// A header for the request, as "Name: value". May be repeated.
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// An application subprotocol to offer. May be repeated.
    #[arg(long = "subprotocol", value_name = "NAME")]
    subprotocols: Vec<String>,
    /// Do not offer mainstay.v1.
    #[arg(long)]
    plain: bool,
    /// End when the first connection is lost.
    #[arg(long)]
    once: bool,
    /// After the input's end, leave when nothing has come for this long.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "1s")]
    linger: Duration,
    /// The largest message to accept.
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "16MiB")]
    max_message: usize,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as \"Name: value\"")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is not a header name"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is not a header value"))?;
    Ok((name, value))
}

pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let mut builder = match Client::builder(&arguments.url) {
        Ok(builder) if arguments.plain => builder.plain(),
        Ok(builder) => builder,
        Err(error) => {
            eprintln!("mainstay: {error}");
            return ExitCode::from(2);
        }
    };
    for (name, value) in &arguments.headers {
        builder = builder.header(name.clone(), value.clone());
    }
    for name in &arguments.subprotocols {
        builder = builder.subprotocol(name);
    }
    builder = builder.limits(Limits { max_message: arguments.max_message, ..Limits::default() });
    let client = if arguments.once {
        match builder.connect_once().await {
            Ok(client) => client,
            Err(error) => {
                eprintln!("mainstay: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        builder.connect()
    };
    talk(client, &arguments).await
}

/// Pairs the three streams until the input has ended and nothing more comes, or the client has ended.
async fn talk(mut client: Client, arguments: &Arguments) -> ExitCode {
    let (sender, events) = (client.sender(), client.events());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut input_open = true;
    let output = Output { json: arguments.json };
    loop {
        let leaving = async {
            if input_open { std::future::pending().await } else { tokio::time::sleep(arguments.linger).await }
        };
        tokio::select! {
            event = events.next() => match event {
                Some(Event::Ended { code, reason, .. }) => {
                    output.event(&Event::Ended { code, reason, fate: None });
                    return if code == Some(1000) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
                }
                Some(event) => output.event(&event),
                None => return ExitCode::SUCCESS,
            },
            Some(message) = client.recv() => {
                if output.message(&message).is_err() {
                    // Whoever read our output is gone.
                    return ExitCode::SUCCESS;
                }
            }
            line = lines.next_line(), if input_open => match line {
                Ok(Some(line)) => {
                    if sender.send(Message::text(line)).await.is_err() {
                        input_open = false;
                    }
                }
                Ok(None) | Err(_) => input_open = false,
            },
            () = leaving => {
                client.close(CloseCode::NORMAL, "").await;
                return ExitCode::SUCCESS;
            }
        }
    }
}

struct Output {
    json: bool,
}

impl Output {
    fn message(&self, message: &Message) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        match (self.json, message.kind, message.as_text()) {
            (true, Kind::Text, Some(text)) => writeln!(out, "{}", json!({"message": text}))?,
            (true, ..) => writeln!(out, "{}", json!({"binary": hex(&message.payload)}))?,
            (false, Kind::Text, Some(text)) => writeln!(out, "{text}")?,
            (false, ..) => writeln!(out, "{}", hex(&message.payload))?,
        }
        out.flush()
    }

    fn event(&self, event: &Event) {
        let (name, detail) = describe(event);
        if self.json {
            println!("{}", json!({"event": name, "detail": detail}));
        } else {
            eprintln!("mainstay: {name}: {detail}");
        }
    }
}

fn describe(event: &Event) -> (&'static str, String) {
    match event {
        Event::Attached { mode, resumed, epoch } => {
            let how = if *resumed { "nothing was lost" } else { "new session" };
            ("attached", format!("{mode:?}, {how}, epoch {epoch}").to_lowercase())
        }
        Event::Detached { why, retry_in } => {
            ("detached", format!("{}; next attempt in {retry_in:.1?}", cause(why)))
        }
        Event::AttemptFailed { why, retry_in } => {
            ("waiting", format!("{}; next attempt in {retry_in:.1?}", cause(why)))
        }
        Event::Gap(fate) => (
            "gap",
            format!(
                "sent {}: delivered {}, unknown {}, {} {}; lost from the server: {}",
                fate.last,
                fate.delivered,
                fate.unknown - fate.delivered,
                fate.last - fate.unknown,
                if fate.resent { "sent again" } else { "not delivered" },
                fate.lost.map_or_else(|| "unknown".to_owned(), |(_, count)| count.to_string()),
            ),
        ),
        Event::FreshPeer => ("fresh", "a plain server: what it sent meanwhile is lost".to_owned()),
        Event::Report(Report::Unknown(first, last)) => {
            ("report", format!("messages {first} to {last} may or may not have arrived"))
        }
        Event::Report(Report::Undeliverable(number, _)) => {
            ("report", format!("message {number} ended three connections and is given up"))
        }
        Event::Dropped { first, count, .. } => {
            ("dropped", format!("{count} messages from number {first} on, by the server: it was full"))
        }
        Event::Authenticated { accepted } => ("authenticated", format!("accepted={accepted}")),
        Event::Volatile(message) => ("volatile", message.as_text().unwrap_or("(binary)").to_owned()),
        Event::Ended { code, reason, .. } => {
            ("ended", code.map_or_else(|| reason.clone(), |code| format!("code {code} {reason}")))
        }
    }
}

fn cause(why: &Lost) -> String {
    match why {
        Lost::Unreachable(what) | Lost::Refused(what) | Lost::Broken(what) => what.clone(),
        Lost::Closed { code, reason } => {
            let code = code.map_or_else(|| "no code".to_owned(), |code| code.to_string());
            format!("closed by the server: {code} {reason}")
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
