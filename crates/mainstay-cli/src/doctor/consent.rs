//! The question whether a host beyond this machine and private networks may be measured.

use std::io::IsTerminal;

use super::report::Report;
use super::{Plan, measure};
use crate::observe::log;

/// Asks on the terminal.
///
/// # Errors
/// There is no terminal, or the answer is not yes: nothing was connected.
///
/// # Cancel safety
/// Not safe: the thread that reads the answer goes on.
pub(super) async fn ask(report: &Report, plan: &Plan) -> Result<(), String> {
    let url = &report.target.url;
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(format!(
            "{url} is beyond this machine and private networks, and there is no terminal to ask on: add --yes to \
             measure it, or --quick to examine one connection only"
        ));
    }
    log::write_raw(question(report, plan));
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let answer = read.await.ok().and_then(Result::ok).unwrap_or_default();
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err("not measured; answer y, add --yes, or examine one connection with --quick".to_owned()),
    }
}

/// Returns the text of the question: one screen.
fn question(report: &Report, plan: &Plan) -> String {
    let addresses: Vec<_> =
        report.facts.addresses.iter().take(4).map(|facts| facts.address.ip().to_string()).collect();
    let more = report.facts.addresses.len().saturating_sub(4);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let mut text = format!(
        "{} is beyond this machine and private networks ({}{more}).\n\
         Measure only servers that you run, or whose operator agrees. The doctor will open:\n\
         \x20 - one connection of TCP to each address, one WebSocket, and one connection of HTTP/2, to look at\n",
        report.target.url,
        addresses.join(", "),
    );
    for line in measure::announced(plan) {
        text.push_str(&format!("  - {line}\n"));
    }
    let messages = match (plan.echo, report.target.sends_first_message) {
        (false, false) => "No message is sent.",
        (false, true) => "Each WebSocket sends the message of --first-message, and no other.",
        (true, _) => "Messages are sent, because of --echo.",
    };
    text.push_str(&format!(
        "{messages} Ctrl-C ends it at any time. --quick opens only the first ones.\nMeasure? [y/N] "
    ));
    text
}
