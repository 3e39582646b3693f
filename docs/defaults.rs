//! `DEFAULTS.md` and the code state the same defaults. A field's row is the one whose first cell contains the given text,
//! and its second cell must contain the field's value as people write it.
//!
//! The values come from `Debug`, as fields need not be public. A field without an entry here fails its test: give it a row,
//! or the reason why it has none.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use As::{Bytes, Count, Nowhere, Time, Words};
use mainstay::server;
use mainstay_proto::cluster;
use mainstay_proto::connect::ConnectConfig;
use mainstay_proto::session::registry::RegistryConfig;

const DOCUMENT: &str = include_str!("DEFAULTS.md");

/// How the document writes a value.
enum As {
    Time,
    Count,
    Bytes,
    /// The value that `Debug` prints, and the words that stand for it.
    Words(&'static str, &'static str),
    /// The document has no row; the reason is for the reader of the table.
    Nowhere(#[expect(dead_code, reason = "it explains the entry")] &'static str),
}

/// A field, what the first cell of its row contains, and how the second one writes its value.
type Entry = (&'static str, &'static str, As);

#[test]
fn the_servers_defaults_are_those_of_the_document() {
    check(
        &server::Config::default(),
        &[
            ("heartbeat.interval", "heartbeat interval", Time),
            ("heartbeat.answer_limit", "answer limit", Time),
            ("resume_window", "resume window", Time),
            ("limits.max_message", "`--max-message`", Bytes),
            ("limits.max_fragments", "fragments of one message", Count),
            ("keep.messages", "`keep`)", Count),
            ("keep.bytes", "`keep`)", Bytes),
            ("accept.messages", "`accept`)", Count),
            ("accept.bytes", "`accept`)", Bytes),
            ("opening_deadline", "opening deadline", Time),
            ("admission.connections", "`--max-connections`", Words("None", "no limit")),
            ("admission.per_address", "`--max-per-ip`", Words("None", "no limit")),
            ("openings.connections", "(`openings`)", Words("None", "no limit")),
            ("openings.connections_per_address", "(`openings`)", Words("None", "no limit")),
            ("openings.connections_per_principal", "(`openings`)", Words("None", "no limit")),
            ("openings.per_address", "opening handshakes a minute", Words("None", "no limit")),
            ("openings.per_principal", "opening handshakes a minute", Words("None", "no limit")),
            ("openings.rate", "`accept-rate`", Words("Unlimited", "no limit")),
            ("proxies.trusted", "trusted proxies", Words("[]", "none")),
            ("proxies.trusts_unix", "trusted proxies", Words("false", "none")),
            ("proxies.reads", "`proxies.reads`", Words("XForwardedFor", "`X-Forwarded-For`")),
            ("lifetime.idle", "`--idle-timeout`", Words("None", "off")),
            ("lifetime.lifetime", "`--max-lifetime`", Words("None", "off")),
            ("max_sessions", "`max_sessions`", Count),
            ("max_parked_per_address", "`max_parked_per_address`", Words("None", "no limit")),
            ("budget.limit", "", Nowhere("it depends on the machine")),
            ("budget.used", "", Nowhere("no setting")),
            ("origins", "origins (`origins`)", Words("SameHost", "same host")),
            ("deflate", "permessage-deflate", Words("false", "off")),
            ("log_principal", "`Config::log_principal`", Words("false", "off")),
            ("timeline", "`Config::timeline`", Words("0", "off")),
            ("cluster", "`--cluster`", Words("None", "none")),
        ],
    );
}

#[test]
fn the_registrys_defaults_are_those_of_the_document() {
    check(
        &RegistryConfig::default(),
        &[
            ("sessions", "`max_sessions`", Count),
            ("parked_per_source", "`max_parked_per_address`", Words("None", "no limit")),
            ("tombstone_life", "tombstone life", Time),
            ("tombstones", "tombstones", Count),
            ("confirmation_first", "a new session delivers", Words("false", "otherwise at once")),
            ("node", "size of a resume token", Words("None", "24 bytes")),
        ],
    );
}

/// What is fixed in a cluster.
#[derive(Debug)]
#[expect(dead_code, reason = "its `Debug` is read")]
struct Cluster {
    node_heartbeat: Duration,
    dead_after: Duration,
    complete_after: Duration,
    silent_after: Duration,
    second_attempt: Duration,
    block_time: Duration,
    max_block: usize,
    wait_at_least: Duration,
    wait_at_most: Duration,
}

#[test]
fn what_is_fixed_in_a_cluster_is_in_the_document() {
    check(
        &Cluster {
            node_heartbeat: cluster::nodes::NODE_HEARTBEAT,
            dead_after: cluster::DEAD_AFTER,
            complete_after: cluster::COMPLETE_AFTER,
            silent_after: cluster::nodes::SILENT_AFTER,
            second_attempt: cluster::lookup::SECOND_ATTEMPT,
            block_time: cluster::peer::BLOCK_TIME,
            max_block: cluster::peer::MAX_BLOCK,
            wait_at_least: cluster::lookup::WAIT.min,
            wait_at_most: cluster::lookup::WAIT.max,
        },
        &[
            ("node_heartbeat", "node heartbeat", Time),
            ("dead_after", "a node is dead", Time),
            ("complete_after", "node table is complete", Time),
            ("silent_after", "the engine is unreachable", Time),
            ("second_attempt", "a peer listener is closed", Time),
            ("block_time", "block between nodes", Time),
            ("max_block", "block between nodes", Bytes),
            ("wait_at_least", "wait in band", Time),
            ("wait_at_most", "wait in band", Time),
        ],
    );
}

#[test]
fn the_clients_defaults_are_those_of_the_document() {
    check(
        &ConnectConfig::default(),
        &[
            ("link", "", Nowhere("the type of the builder decides")),
            ("session.flow.keep.messages", "kept and accepted by a client", Count),
            ("session.flow.keep.bytes", "kept and accepted by a client", Bytes),
            ("session.flow.accept.messages", "kept and accepted by a client", Count),
            ("session.flow.accept.bytes", "kept and accepted by a client", Bytes),
            ("session.flow.manual_ack", "manual ", Words("false", "off")),
            ("session.flow.max_message", "", Nowhere("`limits` decides")),
            ("session.credentials", "", Nowhere("the application's own")),
            ("session.resume_window", "resume window asked for", Words("None", "none")),
            ("session.resend_undelivered", "resend what was not delivered", Words("true", "on")),
            ("session.volatile_queue.messages", "volatile queue (client)", Count),
            ("session.volatile_queue.bytes", "volatile queue (client)", Bytes),
            ("confirm.confirm", "`confirm`", Words("Pong", "pong")),
            ("confirm.guarantee", "guarantee", Words("AtLeastOnce", "at-least-once")),
            ("confirm.when_full", "a link's queue is full", Words("Wait", "wait")),
            ("confirm.queue_messages", "kept by a link", Count),
            ("confirm.queue_bytes", "kept by a link", Bytes),
            ("confirm.min_ping_interval", "pause between confirming Pings", Words("0ns", "none")),
            ("confirm.pongs", "", Nowhere("it is found out")),
            ("heartbeat.interval", "heartbeat interval", Time),
            ("heartbeat.answer_limit", "answer limit", Time),
            ("backoff.base", "backoff base", Time),
            ("backoff.cap", "backoff cap", Time),
            ("backoff.first_individual", "first delay, individual cause", Time),
            ("backoff.first_shared", "first delay, shared cause", Time),
            ("backoff.reset_after", "`reset_after`", Words("None", "10 s")),
            ("once", "`once`", Words("false", "off")),
            ("max_attempts", "`max_attempts`", Words("None", "no limit")),
            ("silence", "`silence`", Words("None", "none")),
            ("ends_on", "", Nowhere("for gateways: it is what the backend's end means")),
            ("holds_replaced", "", Nowhere("for gateways")),
            ("continues", "", Nowhere("for gateways")),
            ("announces_restart", "", Nowhere("for gateways")),
            ("reads_while_closing", "", Nowhere("for gateways")),
            ("probes_unconfirmed", "`probes_unconfirmed`", Words("true", "on")),
            ("opening_timeout", "`connect_timeout`", Time),
        ],
    );
}

#[test]
fn the_rules_of_a_user_of_the_engine_are_those_of_the_code() {
    let code = include_str!("../crates/mainstay/src/cluster/engine.rs");
    let rules = code.lines().find_map(|line| line.strip_prefix("/// ~")).unwrap();
    assert!(include_str!("CLUSTER.md").contains(rules), "CLUSTER.md has other rules than {rules}");
}

#[test]
fn the_lines_of_the_log_that_operators_look_for_are_those_of_the_code() {
    let code = [
        include_str!("../crates/mainstay/src/cluster/node.rs"),
        include_str!("../crates/mainstay/src/cluster/listener.rs"),
        include_str!("../crates/mainstay/src/cluster/entry.rs"),
        include_str!("../crates/mainstay/src/cluster/state_dir.rs"),
        include_str!("../crates/mainstay/src/server/route.rs"),
        include_str!("../crates/mainstay/src/server/attach.rs"),
        include_str!("../crates/mainstay-cli/src/admin/revocations.rs"),
    ]
    .concat();
    let table = include_str!("CLUSTER.md").split_once("| Line (begins with) |").unwrap().1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
    let lines: Vec<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert!(lines.len() > 5, "{lines:?}");
    for line in lines {
        assert!(code.contains(line.trim_end_matches("...").trim_end()), "no code logs `{line}`");
    }
}

/// Compares the fields of a default configuration with the entries, and the entries with the document.
fn check(config: &impl Debug, entries: &[Entry]) {
    let mut fields = fields(&format!("{config:#?}"));
    let mut complaints = Vec::new();
    for (field, row, form) in entries {
        let Some(value) = fields.remove(*field) else {
            complaints.push(format!("`{field}` is no field any more"));
            continue;
        };
        let words = match form {
            Nowhere(_) => continue,
            Time => time(&value),
            Count => thousands(&value),
            Bytes => bytes(&value),
            Words(expected, words) if *expected == value => (*words).to_owned(),
            Words(expected, _) => format!("(an entry of its own: it is {value} and no longer {expected})"),
        };
        match default_in_row(row) {
            None => complaints.push(format!("`{field}`: no row has `{row}` in its first cell")),
            Some(cell) if !states(cell, &words) => {
                complaints.push(format!("`{field}` is {words}, and DEFAULTS.md says: {cell}"));
            }
            Some(_) => {}
        }
    }
    complaints.extend(fields.keys().map(|field| format!("`{field}` has no entry here")));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The default in the first row whose knob contains this text.
fn default_in_row(knob: &str) -> Option<&'static str> {
    let mut rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let (_, rest) = rows.find(|(first, _)| first.contains(knob))?;
    rest.split(" | ").next()
}

/// Whether the cell has these words, and not as the end of a longer number.
fn states(cell: &str, words: &str) -> bool {
    let is_part = |c: char| c.is_ascii_digit() || [',', '.'].contains(&c);
    cell.match_indices(words).any(|(at, _)| !cell[..at].ends_with(is_part))
}

/// The values of a pretty `Debug`, by their paths.
fn fields(printed: &str) -> BTreeMap<String, String> {
    let mut path = Vec::new();
    let mut found = BTreeMap::new();
    for line in printed.lines().skip(1).map(str::trim) {
        if let Some((name, value)) = line.split_once(": ") {
            match value.strip_suffix(['{', '(']) {
                Some(_) => path.push(name),
                None => {
                    drop(found.insert(
                        [&path[..], &[name]].concat().join("."),
                        value.trim_end_matches(',').to_owned(),
                    ))
                }
            }
        } else if line.starts_with(['}', ')']) {
            path.pop();
        } else if let Some(value) = line.strip_suffix(',') {
            found.insert(path.join("."), value.to_owned());
        }
    }
    found
}

/// `120s` as `2 minutes`, `500ms` as `0.5 s`.
fn time(value: &str) -> String {
    let millis: u64 = match value.strip_suffix("ms") {
        Some(millis) => millis.parse().unwrap(),
        None => value.strip_suffix('s').unwrap().parse::<u64>().unwrap() * 1000,
    };
    match millis {
        m if m % 3_600_000 == 0 => format!("{} hours", m / 3_600_000),
        m if m % 60_000 == 0 => format!("{} minutes", m / 60_000),
        m if m % 1000 == 0 => format!("{} s", m / 1000),
        m => format!("{} s", m as f64 / 1000.0),
    }
}

/// `1000000` as `1,000,000`.
fn thousands(value: &str) -> String {
    let grouped: Vec<&str> =
        value.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).unwrap()).collect();
    grouped.join(",")
}

/// `1048576` as `1 MiB`.
fn bytes(value: &str) -> String {
    let bytes: u64 = value.parse().unwrap();
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes")];
    let (unit, name) = units.into_iter().find(|(unit, _)| bytes.is_multiple_of(*unit)).unwrap();
    format!("{} {name}", bytes / unit)
}
