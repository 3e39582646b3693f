//! `docs/PERFORMANCE.md`: a table per figure, the machine, the commands.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use super::field::{self, DIRECT, Place, Server};
use super::figures::{FIGURES, Figure, SCENARIOS, shown};
use super::{Results, Scale, plugin};
use crate::Result;
use crate::run::output;

/// The whole page.
pub(super) fn write(
    servers: &[Server],
    results: &Results,
    plugin: Option<&plugin::Found>,
    scale: &Scale,
    rounds: u32,
) -> Result<String> {
    let mut page = String::new();
    writeln!(page, "# Performance\n\nWritten by `cargo xtask bench`; do not edit.\n")?;
    if scale.quick {
        writeln!(page, "**A smoke test (`--quick`): these figures mean nothing.**\n")?;
    }
    writeln!(page, "![Every figure as bars, one for each server](performance.svg)\n")?;
    writeln!(page, "Very many idle connections, and ten thousand clients at once: [SCALE.md](SCALE.md).\n")?;
    write!(
        page,
        "## How\n\n\
         Every server answers at `/echo` and `/broadcast`, pings each connection every 4 s and ends a connection that did\n\
         not answer. Release builds, `TCP_NODELAY`, no compression. {}\n\
         In each round every server runs every scenario, in a fresh process; tables show the median of the rounds ({rounds})\n\
         and, behind ±, half their range. CPU is the scheduler's run time of the whole server, including the kernel's share\n\
         for its sockets; memory is resident memory. If the generator is busy all the time, it limits the messages per\n\
         second, and CPU is the figure to trust. Figures of different machines are not comparable; a difference below 15 % is\n\
         noise.\n\n",
        if scale.pinned {
            "The server has one core, the generator\nanother (`taskset`), over loopback."
        } else {
            "Server and generator share\nthe cores, over loopback."
        },
    )?;
    writeln!(page, "| | |\n|---|---|")?;
    for (what, value) in machine() {
        writeln!(page, "| {what} | {value} |")?;
    }
    writeln!(page, "\n| server | what it is |\n|---|---|")?;
    for server in servers {
        writeln!(page, "| {} | {} |", server.name, server.about)?;
    }
    if servers.iter().any(|server| server.name == field::SOCKETIFY) {
        writeln!(
            page,
            "\n`{}` calls into CPython for each message: its figures show that cost, not uWebSockets itself.\n\
             `uWebSockets` is the C++ server, one thread with one loop.",
            field::SOCKETIFY
        )?;
    }
    if servers.iter().any(|server| server.place == Place::Server) {
        writeln!(page, "\n## Figures")?;
        tables(&mut page, false, servers, results, rounds)?;
    }
    if servers.iter().any(|server| server.place != Place::Server) {
        writeln!(page, "\n## Through a gateway\n\n{}", gateways(scale))?;
        tables(&mut page, true, servers, results, rounds)?;
    }
    if let Some(found) = plugin {
        page += &plugin::section(found)?;
    }
    commands(&mut page, servers, scale)?;
    for (title, lines) in [("Not measured here", &results.missing), ("Failed", &results.failures)] {
        if !lines.is_empty() {
            writeln!(page, "\n## {title}\n")?;
            lines.iter().try_for_each(|line| writeln!(page, "- {line}"))?;
        }
    }
    Ok(page)
}

/// The section about how gateways are measured.
fn gateways(scale: &Scale) -> String {
    let cores = if scale.pinned {
        "\n\nThe gateway has the first core; generator and upstream share the second. Where a gateway is slower than these\n\
         two together, messages per second are the gateway's. In runs with a rate the generator is never idle, so the upstream\n\
         shares the gateway's core, which has time for both."
    } else {
        ""
    };
    format!(
        "Each message goes through a gateway to one upstream, the same for all, which sends it back the same way: one\n\
         message here is two passes. The upstream is an echo by tokio-websockets, not by Mainstay, and answers all messages of a\n\
         read with one write. With many in flight a gateway that only copies bytes waits for the upstream too, so CPU is\n\
         the figure to trust. `{DIRECT}` is the upstream without a gateway; a gateway adds the difference between its latency\n\
         and that.{cores}\n\n\
         Ours is `mainstay serve --upstream` with its defaults: heartbeats on both legs, and every message is kept until the\n\
         upstream has confirmed it. nginx has one worker and passes bytes on without parsing them, by default 4 KiB at a\n\
         time."
    )
}

fn tables(
    page: &mut String,
    of_gateways: bool,
    servers: &[Server],
    results: &Results,
    rounds: u32,
) -> Result<()> {
    let mut figures = FIGURES.iter().filter(|figure| figure.is_of_gateways() == of_gateways);
    figures.try_for_each(|figure| table(page, figure, servers, results, rounds))
}

/// One figure of all servers, the best first; the last column compares ours with each.
fn table(
    page: &mut String,
    figure: &Figure,
    servers: &[Server],
    results: &Results,
    rounds: u32,
) -> Result<()> {
    let mut rows: Vec<_> = servers
        .iter()
        .filter_map(|server| results.value(figure, server).map(|(median, spread)| (server, median, spread)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    // The first of ours is the plain one.
    let ours = rows.iter().find(|(server, ..)| field::is_ours(server.name)).map(|(_, median, _)| *median);
    rows.sort_by(|a, b| a.1.total_cmp(&b.1));
    if figure.more_is_better {
        rows.reverse();
    }
    let better = if figure.more_is_better { "more is better" } else { "less is better" };
    let above =
        results.measured(figure, DIRECT).filter(|_| figure.added).map_or(String::new(), |(base, _)| {
            format!(", above the {} that it takes without a gateway", shown(base / figure.per))
        });
    writeln!(
        page,
        "\n### {}\n\n{} ({better}){above}, from `{}`\n",
        figure.title, figure.unit, figure.scenario
    )?;
    writeln!(page, "| server | {} | ± | of mainstay's |\n|---|---:|---:|---:|", figure.unit)?;
    for (server, median, spread) in rows {
        let name =
            if field::is_ours(server.name) { format!("**{}**", server.name) } else { server.name.to_owned() };
        let ratio =
            ours.filter(|ours| *ours > 0.0).map_or("-".to_owned(), |ours| format!("{:.2} x", median / ours));
        // One round has no spread.
        let percent = 100.0 * spread / median;
        let spread = if rounds > 1 && median > 0.0 { format!("{percent:.0} %") } else { "-".to_owned() };
        writeln!(page, "| {name} | {} | {spread} | {ratio} |", shown(median / figure.per))?;
    }
    Ok(())
}

fn commands(page: &mut String, servers: &[Server], scale: &Scale) -> Result<()> {
    writeln!(
        page,
        "\n## Commands\n\n`cargo xtask bench` repeats all of it. The servers; `ADDRESS` stands for free addresses, `UPSTREAM` for the\n\
         upstream's address (core 0 in `gateway-rate`):\n"
    )?;
    writeln!(page, "```text")?;
    let pin = |core: &str| if scale.pinned { format!("taskset -c {core} ") } else { String::new() };
    let mut shown: Vec<String> = Vec::new();
    let interval = SCENARIOS.first().map_or(4, |scenario| scenario.interval(scale.quick));
    for server in servers {
        let line = server.command("ADDRESS", "UPSTREAM", interval).join(" ");
        // No path of this machine goes into the page: everything lies in the workspace.
        let line = line.replace(&format!("{}/", std::env::current_dir()?.display()), "");
        let line = pin(if server.place == Place::Upstream { "1" } else { "0" }) + &line;
        if !shown.contains(&line) {
            writeln!(page, "{line}")?;
            shown.push(line);
        }
    }
    writeln!(
        page,
        "```\n\nThe generator; `URL` is `ws://ADDRESS`, `PID` the server's process; `--session` if the row is a session's:\n"
    )?;
    writeln!(page, "```text")?;
    for scenario in SCENARIOS.iter().filter(|scenario| servers.iter().any(|server| scenario.has(server))) {
        writeln!(page, "{}{} --pid PID --json", pin("1"), scenario.shown(scale))?;
    }
    writeln!(page, "```")?;
    Ok(())
}

/// The machine of this run.
pub(crate) fn machine() -> Vec<(&'static str, String)> {
    let first = |program: &str, arguments: &[&str]| {
        let text = output(Command::new(program).args(arguments)).unwrap_or_default();
        text.lines().next().unwrap_or("not here").to_owned()
    };
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':').map(str::to_owned));
        line.unwrap_or_default().trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: f64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    vec![
        ("processor", format!("{cores} x {}", field("/proc/cpuinfo", "model name"))),
        ("memory", format!("{:.1} GiB", memory / 1048576.0)),
        ("kernel", first("uname", &["-sr"])),
        ("Rust", first("rustc", &["--version"])),
        ("Node.js", first("node", &["--version"])),
        ("Python", first("python3", &["--version"])),
        ("mainstay", first("git", &["describe", "--always", "--dirty"])),
        (
            "others at work",
            format!("load average {}", first("cut", &["-d", " ", "-f", "1-3", "/proc/loadavg"])),
        ),
    ]
}
