//! Compares the logs of one lane.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value, json};

use crate::Result;

/// The lines that the processes wrote: each is an object; other lines are for people.
pub(super) struct Logs {
    pub(super) client: String,
    pub(super) servers: Vec<String>,
}

/// The effect of one fault on one lane. Times are seconds.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    /// From the client to the server.
    pub(super) up: Direction,
    pub(super) down: Direction,
    /// How many messages are without an outcome at the client.
    pub(super) pending: u64,
    /// From the fault's begin until the client notices; `None`: never.
    pub(super) client_noticed: Option<f64>,
    pub(super) server_noticed: Option<f64>,
    /// From the fault's end until a message arrives at the server that was sent since.
    pub(super) back: Option<f64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Direction {
    pub(super) sent: u64,
    pub(super) lost: u64,
    /// Lost, and reported to the application.
    pub(super) reported: u64,
    pub(super) twice: u64,
}

impl Logs {
    pub(super) fn size(&self) -> usize {
        self.client.len() + self.servers.iter().map(String::len).sum::<usize>()
    }

    /// Messages that were not refused and have no outcome.
    pub(super) fn pending(&self) -> Result<u64> {
        let client = Log::read(&self.client)?;
        let settled = client.refused.len() + client.fates.len();
        Ok((client.sent.len() as u64).saturating_sub(settled as u64))
    }
}

impl Measured {
    /// The begin and end of the fault, in milliseconds.
    pub(super) fn of(logs: &Logs, from: u64, until: u64) -> Result<Self> {
        let client = Log::read(&logs.client)?;
        let servers: Vec<_> = logs.servers.iter().map(|log| Log::read(log)).collect::<Result<_>>()?;
        let mut received = BTreeMap::new();
        for (n, at) in servers.iter().flat_map(|server| &server.got) {
            let first = received.entry(*n).or_insert(*at);
            *first = (*first).min(*at);
        }
        let back = client.sent.iter().filter(|(_, at)| **at >= until).find_map(|(n, _)| received.get(n));
        let since_fault = |at: u64, begin| at.saturating_sub(begin) as f64 / 1000.0;
        let noticed = |log: &Log| log.lost.iter().find(|at| **at >= from).map(|at| since_fault(*at, from));
        Ok(Self {
            up: up(&client, &servers),
            down: down(&client, &servers),
            pending: logs.pending()?,
            client_noticed: noticed(&client),
            server_noticed: servers.first().and_then(noticed),
            back: back.map(|at| since_fault(*at, until)),
        })
    }

    pub(super) fn sent(&self) -> u64 {
        self.up.sent + self.down.sent
    }

    pub(super) fn lost(&self) -> u64 {
        self.up.lost + self.down.lost
    }

    /// Lost, and reported to no application.
    pub(super) fn silently(&self) -> u64 {
        self.lost() - self.up.reported - self.down.reported
    }

    pub(super) fn to_json(self) -> Value {
        let direction = |direction: Direction| {
            let Direction { sent, lost, reported, twice } = direction;
            json!({ "sent": sent, "lost": lost, "reported": reported, "twice": twice })
        };
        json!({
            "client_to_server": direction(self.up),
            "server_to_client": direction(self.down),
            "pending": self.pending,
            "client_noticed_s": self.client_noticed,
            "server_noticed_s": self.server_noticed,
            "back_s": self.back,
        })
    }
}

/// A client's message is lost if no server received it. The loss is reported if `send` threw or the message has an outcome.
fn up(client: &Log, servers: &[Log]) -> Direction {
    let mut times = BTreeMap::<u64, u64>::new();
    for (n, _) in servers.iter().flat_map(|server| &server.got) {
        *times.entry(*n).or_default() += 1;
    }
    let lost: Vec<_> = client.sent.keys().filter(|n| !times.contains_key(n)).collect();
    let is_reported =
        |n: &u64| client.refused.contains(n) || client.fates.get(n).is_some_and(|fate| fate != "delivered");
    Direction {
        sent: client.sent.len() as u64,
        lost: lost.len() as u64,
        reported: lost.iter().filter(|n| is_reported(n)).count() as u64,
        twice: times.values().map(|times| times - 1).sum(),
    }
}

/// A server's message since the client first received something is lost if the client did not receive it. A gap event
/// reports all such losses: it states that messages are lost, not how many.
fn down(client: &Log, servers: &[Log]) -> Direction {
    let got: BTreeSet<_> = client.got.iter().map(|(n, _)| *n).collect();
    let Some(first) = got.first() else { return Direction::default() };
    let sent: BTreeSet<_> =
        servers.iter().flat_map(|server| server.sent.keys()).filter(|n| *n >= first).collect();
    let lost = sent.iter().filter(|n| !got.contains(n)).count() as u64;
    Direction {
        sent: sent.len() as u64,
        lost,
        reported: if client.gaps > 0 { lost } else { 0 },
        twice: (client.got.len() - got.len()) as u64,
    }
}

/// The log of one process: numbers, with their times.
#[derive(Default)]
struct Log {
    sent: BTreeMap<u64, u64>,
    got: Vec<(u64, u64)>,
    refused: BTreeSet<u64>,
    fates: BTreeMap<u64, String>,
    lost: Vec<u64>,
    gaps: u64,
}

impl Log {
    fn read(text: &str) -> Result<Self> {
        let mut log = Self::default();
        for line in text.lines().filter(|line| line.starts_with('{')) {
            let entry: Value = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
            let at = entry["at"].as_u64().unwrap_or(0);
            if let Some(n) = entry["sent"].as_u64() {
                log.sent.insert(n, at);
            } else if let Some(n) = entry["got"].as_u64() {
                log.got.push((n, at));
            } else if let Some(n) = entry["refused"].as_u64() {
                log.refused.insert(n);
            } else if let (Some(n), Some(fate)) = (entry["of"].as_u64(), entry["fate"].as_str()) {
                log.fates.insert(n, fate.to_owned());
            } else {
                match entry["event"].as_str() {
                    Some("lost") => log.lost.push(at),
                    Some("gap") => log.gaps += 1,
                    _ => {}
                }
            }
        }
        Ok(log)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Option<f64>| time.map_or("never".to_owned(), |time| format!("{time:.1} s"));
        for (way, direction) in [("up", self.up), ("down", self.down)] {
            let Direction { sent, lost, reported, twice } = direction;
            write!(f, "{way}: {lost} of {sent} lost")?;
            if reported > 0 {
                write!(f, " ({reported} reported)")?;
            }
            if twice > 0 {
                write!(f, ", {twice} twice")?;
            }
            write!(f, "; ")?;
        }
        let (client, server) = (seconds(self.client_noticed), seconds(self.server_noticed));
        write!(
            f,
            "noticed by the client: {client}, by the server: {server}; flows again: {}",
            seconds(self.back)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(client: &[&str], server: &[&str]) -> Measured {
        let logs = Logs { client: client.join("\n"), servers: vec![server.join("\n")] };
        Measured::of(&logs, 100, 200).unwrap()
    }

    #[test]
    fn what_no_server_received_is_lost_and_reported_only_by_its_outcome_or_a_throw() {
        let sent = |n: u64| format!("{{\"at\":{n},\"sent\":{n}}}");
        let (one, two, three) = (sent(1), sent(2), sent(3));
        let fates = [r#"{"fate":"delivered","of":1}"#, r#"{"fate":"unknown","of":2}"#, r#"{"refused":3}"#];
        let client = [&*one, &*two, &*three, fates[0], fates[1], fates[2]];
        let found = measured(&client, &[]);
        assert_eq!(found.up, Direction { sent: 3, lost: 3, reported: 2, twice: 0 });
        assert_eq!((found.silently(), found.pending), (1, 0));
        assert_eq!(measured(&[&one], &[r#"{"at":2,"got":1}"#]).up.lost, 0);
    }

    #[test]
    fn what_a_server_sent_counts_from_the_first_that_arrived_and_a_gap_reports_the_rest() {
        let server = [r#"{"sent":7}"#, r#"{"sent":8}"#, r#"{"sent":9}"#];
        let found = measured(&[r#"{"got":8}"#, r#"{"got":8}"#], &server);
        assert_eq!(found.down, Direction { sent: 2, lost: 1, reported: 0, twice: 1 });
        assert_eq!(measured(&[r#"{"got":8}"#, r#"{"event":"gap"}"#], &server).down.reported, 1);
    }

    #[test]
    fn it_is_noticed_from_the_faults_begin_and_flows_again_from_its_end() {
        let client = [r#"{"at":150,"sent":1}"#, r#"{"at":1100,"event":"lost"}"#, r#"{"at":250,"sent":2}"#];
        let found = measured(&client, &["listening 127.0.0.1:1", r#"{"at":1200,"got":2}"#]);
        assert_eq!((found.client_noticed, found.server_noticed, found.back), (Some(1.0), None, Some(1.0)));
    }
}
