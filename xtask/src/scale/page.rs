//! `docs/SCALE.md`.

use std::fmt::Write;

use super::idle::{Found, Load, generator_words, server_words};
use super::{MILLIONS_INTERVAL, nodes, relay, storm};
use crate::Result;
use crate::bench::machine;
use crate::programs::MAINSTAY;

type Column = (&'static str, fn(&Found) -> String);

const TOTALS: &[Column] = &[
    ("connections", |f| grouped(f.connections.into())),
    ("a heartbeat every", |f| format!("{} s", f.interval)),
    ("servers, as many generators", |f| f.processes.to_string()),
    ("servers, user memory", |f| mib(f.servers)),
    ("before the first connection", |f| mib(f.servers_empty)),
    ("generators, user memory", |f| mib(f.generators)),
    ("kernel: slab, both ends", |f| mib(f.slab)),
    ("kernel: TCP buffers, both ends", |f| mib(f.buffers)),
    ("memory no longer available", |f| mib(f.all)),
    ("opened a second", |f| grouped((f64::from(f.connections) / f.opening.as_secs_f64()) as u64)),
    ("heartbeats in one interval", |f| grouped(f.heartbeats)),
    ("servers, of one core", |f| format!("{:.1} %", f.percent(f.servers_cpu))),
    ("generators, of one core", |f| format!("{:.1} %", f.percent(f.generators_cpu))),
    ("connections lost", |_| "0".to_owned()), // otherwise there is no page
];

const EACH: &[Column] = &[
    ("connections", |f| grouped(f.connections.into())),
    ("server, user memory, B", |f| whole(f.each(f.servers.saturating_sub(f.servers_empty)))),
    ("generator, user memory, B", |f| whole(f.each(f.generators))),
    ("kernel's slab, both ends, B", |f| whole(f.each(f.slab))),
    ("memory no longer available, B", |f| whole(f.each(f.all))),
    ("server CPU per heartbeat, us", |f| format!("{:.1}", f.us_per_heartbeat(f.servers_cpu))),
    ("generator CPU per heartbeat, us", |f| format!("{:.1}", f.us_per_heartbeat(f.generators_cpu))),
];

/// The whole page.
pub(super) fn write(idle: &[Found], load: &Load, storms: &[storm::Found], quick: bool) -> Result<String> {
    let mut page = String::from("# Scale and storms\n\nWritten by `cargo xtask scale`; do not edit.\n\n");
    if quick {
        page += "**A smoke test (`--quick`): these figures mean nothing.**\n\n";
    }
    page += "| | |\n|---|---|\n";
    for (what, value) in machine().iter().filter(|(what, _)| !matches!(*what, "Node.js" | "Python")) {
        writeln!(page, "| {what} | {value} |")?;
    }
    if !idle.is_empty() {
        idle_connections(&mut page, idle, load)?;
    }
    storms.iter().try_for_each(|storm| one_storm(&mut page, storm))?;
    commands(&mut page, load)?;
    Ok(page)
}

fn idle_connections(page: &mut String, idle: &[Found], load: &Load) -> Result<()> {
    write!(
        page,
        "\n## Idle connections\n\n\
         Plain connections to `mainstay serve`, both ends on this machine, with a heartbeat every {} s. A million\n\
         connections have one every {MILLIONS_INTERVAL} s, because both ends of 40,000 heartbeats a second need more than this machine has. A process holds\n\
         at most {} connections, so there are several servers, each at its own loopback address. After all connections are open, one\n\
         interval passes; CPU and heartbeats are those of the interval after it. CPU includes the kernel's share, and on loopback the\n\
         kernel charges the delivery of a packet to its sender. User memory is the proportional set size of all processes. The kernel's\n\
         figures and the memory that is no longer available are differences of the whole machine since before the first process was\n\
         started. A lost connection is an error.\n\n",
        load.interval,
        grouped(load.per_process.into()),
    )?;
    table(page, TOTALS, idle)?;
    page.push_str("\nFor one connection, or one heartbeat:\n\n");
    table(page, EACH, idle)
}

/// A row for each name, a column for each number of connections.
fn table(page: &mut String, columns: &[Column], idle: &[Found]) -> Result<()> {
    for (number, (name, value)) in columns.iter().enumerate() {
        let values: Vec<String> = idle.iter().map(value).collect();
        writeln!(page, "| {name} | {} |", values.join(" | "))?;
        if number == 0 {
            writeln!(page, "|---|{}", "---:|".repeat(idle.len()))?;
        }
    }
    Ok(())
}

fn one_storm(page: &mut String, storm: &storm::Found) -> Result<()> {
    writeln!(page, "\n## {}\n\n{}\n\n| | |\n|---|---:|", storm.title, storm.about())?;
    let back = |name: &str| storm.back[name].as_u64().map_or("-".to_owned(), grouped);
    writeln!(page, "| clients | {} |", back("attached"))?;
    let seconds = storm.back["seconds"].as_f64().unwrap_or(0.0);
    writeln!(page, "| from the first loss until all were back | {seconds:.2} s |")?;
    for (what, name) in [("half of them", "seconds_until_half"), ("99 % of them", "seconds_until_99_percent")]
    {
        writeln!(page, "| until {what} were back | {:.1} s |", storm.back[name].as_f64().unwrap_or(0.0))?;
    }
    for (what, name) in [
        ("attempts", "attempts"),
        ("attempts in the worst 100 ms", "attempts_in_worst_100ms"),
        ("clients back in the worst 100 ms", "back_in_worst_100ms"),
        ("clients back in the worst second", "back_in_worst_second"),
    ] {
        writeln!(page, "| {what} | {} |", back(name))?;
    }
    let took = storm.cost.took.as_secs_f64();
    for (whose, cpu) in [("the server", storm.cost.server), ("all clients", storm.cost.clients)] {
        let cpu = cpu.as_secs_f64();
        writeln!(page, "| CPU of {whose} meanwhile | {cpu:.2} s, {:.0} % of a core |", 100.0 * cpu / took)?;
    }
    for row in &storm.rows {
        let must = row.must.map_or(String::new(), |must| format!(" (must be {})", grouped(must)));
        writeln!(page, "| {}{must} | {} |", row.name, grouped(row.count))?;
    }
    Ok(())
}

fn commands(page: &mut String, load: &Load) -> Result<()> {
    let (serve, bench) =
        (server_words("127.0.1.N:0", load), generator_words("URL", "SHARE", "SHARE-OF-RATE"));
    write!(
        page,
        "\n## Commands\n\n`cargo xtask scale --million` repeats all of it. The commands of each server and each generator, which together open {}\n\
         connections a second:\n\n\
         ```text\n{} {}\n{} {}\n```\n\nThe storms:\n\n\
         ```text\n{} --listen ADDRESS --record FILE\n{} --url ws://ADDRESS/ --clients COUNT --every SECONDS --fates FILE\n\
         ss -K --tcp --numeric state established sport = :PORT\n```\n",
        grouped(load.rate.into()),
        MAINSTAY,
        serve.join(" "),
        MAINSTAY,
        bench.join(" "),
        storm::SERVER,
        storm::CLIENT,
    )?;
    Ok(())
}

/// Between these the chapter on clusters stands, which has a run of its own.
const CHAPTER: [&str; 2] = ["<!-- cluster: `cargo xtask scale --cluster` -->\n", "<!-- end of cluster -->\n"];

/// The chapter on clusters.
pub(super) fn chapter(tables: &[nodes::Table]) -> Result<String> {
    let mut chapter =
        String::from("\n## Clusters\n\n`cargo xtask scale --cluster` measures this chapter alone:\n\n");
    chapter += "| | |\n|---|---|\n";
    for (what, value) in machine().iter().filter(|(what, _)| *what != "Python") {
        writeln!(chapter, "| {what} | {value} |")?;
    }
    writeln!(chapter, "| nginx | {} |", relay::nginx_version()?)?;
    tables.iter().try_for_each(|table| one_table(&mut chapter, table))?;
    write!(
        chapter,
        "\nA relay at rest takes at most 250 B of the node between client and owner: `cargo xtask test memory`.\n\n\
         The programs of the tables above; a file names the servers, and each attempt of a client goes to one at random:\n\n\
         ```text\n\
         {} --listen ADDRESS --record FILE --cluster URL [--movable]\n\
         {} --listen ADDRESS --record FILE --movable --state-dir FOLDER\n\
         {} --nodes FILE --clients COUNT --every SECONDS --fates FILE\n\
         node {}/socketio.mjs --listen ADDRESS --redis URL --record FILE\n\
         node {}/socketio-clients.mjs --nodes FILE --clients COUNT --every SECONDS --list FILE\n\
         {} --first URL --then URL --clients COUNT --reconnects COUNT --every SECONDS --messages SECONDS\n```\n",
        storm::SERVER,
        storm::SERVER,
        storm::CLIENT,
        nodes::PEERS,
        nodes::PEERS,
        relay::CLIENT,
    )?;
    Ok(chapter)
}

/// Rows in the order of the first column; a column without such a row has a dash.
fn one_table(page: &mut String, table: &nodes::Table) -> Result<()> {
    write!(page, "\n### {}\n\n{}\n\n|", table.title, table.about)?;
    table.columns.iter().try_for_each(|column| write!(page, " | {}", column.title))?;
    writeln!(page, " |\n|---|{}", "---:|".repeat(table.columns.len()))?;
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in table.columns.iter().flat_map(|column| &column.values) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    for name in names {
        write!(page, "| {name}")?;
        for column in &table.columns {
            let value = column.values.iter().find(|(named, _)| *named == name);
            let value = value.map_or("-", |(_, value)| value);
            write!(page, " | {}", value.parse().map_or_else(|_| value.to_owned(), grouped))?;
        }
        page.push_str(" |\n");
    }
    Ok(())
}

/// The chapter on clusters that a page has.
pub(super) fn chapter_of(page: &str) -> Option<String> {
    let (_, rest) = page.split_once(CHAPTER[0])?;
    rest.split_once(CHAPTER[1]).map(|(chapter, _)| chapter.to_owned())
}

/// The page with this chapter in place of its own, or at its end.
pub(super) fn with_chapter(page: &str, chapter: &str) -> String {
    let before = page.split_once(CHAPTER[0]).map_or(page, |(before, _)| before);
    if chapter.is_empty() { before.to_owned() } else { [before, CHAPTER[0], chapter, CHAPTER[1]].concat() }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

fn whole(value: f64) -> String {
    grouped(value.round() as u64)
}

/// Formats a number with a comma before each three digits.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_one_chapter_on_clusters_at_its_end() {
        let first = with_chapter("page\n", "one\n");
        assert_eq!(chapter_of(&first).as_deref(), Some("one\n"));
        assert_eq!(chapter_of("page\n"), None);
        let second = with_chapter(&first, "two\n");
        assert_eq!(second.matches("<!-- cluster").count(), 1);
        assert_eq!((chapter_of(&second).as_deref(), second.contains("one")), (Some("two\n"), false));
        assert_eq!(with_chapter("new\n", ""), "new\n");
    }

    #[test]
    fn digits_come_in_threes() {
        for (value, expected) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(value), expected);
        }
    }
}
