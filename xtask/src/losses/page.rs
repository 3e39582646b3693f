//! The tables: the first one of the READMEs, between two comments, and `docs/LOSSES.md`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use clap::ValueEnum;

use super::{Fault, LANES, WHOLE};
use crate::Result;
use crate::bench::machine;
use crate::losses::verdict::{Direction, Measured};

const BEGIN: &str = "<!-- cargo xtask losses writes from here -->";
const END: &str = "<!-- to here -->";

/// The words of one README.
struct Language {
    file: &'static str,
    head: &'static str,
    fault: fn(Fault) -> &'static str,
    /// The words after a number: "so many of so many", and "reported".
    of: fn(u64, u64) -> String,
    reported: fn(u64) -> String,
}

const LANGUAGES: [Language; 2] = [
    Language {
        file: "README.md",
        head: "| Messages lost, when | ping and reconnect by hand | Mainstay in the server | Mainstay in front of it |",
        fault: |fault| match fault {
            Fault::Cut => "the network changes: 20 s without",
            Fault::Minute => "the client is offline for a minute",
            Fault::Offline => "the client is offline for 2 minutes (the resume window)",
            Fault::Stopped => "the client sleeps for 60 s",
            Fault::Restart => "the server restarts",
            Fault::Kill => "the server crashes",
            Fault::Deploy => "a new version is deployed",
        },
        of: |lost, sent| format!("**{lost}** of {sent}"),
        reported: |lost| format!("{lost}, each reported"),
    },
    Language {
        file: "README.zh-CN.md",
        head: "| 丢失的消息数 | 手写心跳加重连 | Mainstay 插件 | 应用前面放 Mainstay 网关 |",
        fault: |fault| match fault {
            Fault::Cut => "网络切换，中断 20 秒",
            Fault::Minute => "客户端离线 1 分钟",
            Fault::Offline => "客户端离线 2 分钟（恢复窗口的时长）",
            Fault::Stopped => "客户端休眠 60 秒",
            Fault::Restart => "服务器重启",
            Fault::Kill => "服务器崩溃",
            Fault::Deploy => "部署新版本",
        },
        of: |lost, sent| format!("**{lost}** / {sent}"),
        reported: |lost| format!("{lost}，均已告知"),
    },
];

/// Writes what was measured into the READMEs and `docs/LOSSES.md` below this folder.
pub(super) fn write(folder: &Path, found: &[(Fault, [Measured; 3])]) -> Result<()> {
    fs::create_dir_all(folder.join("docs"))?;
    for language in &LANGUAGES {
        let text = fs::read_to_string(language.file)?;
        fs::write(folder.join(language.file), replaced(&text, &table(language, found))?)?;
    }
    let page = folder.join("docs/LOSSES.md");
    fs::write(&page, losses(found)?)?;
    println!("{} is written, and the tables of the READMEs", page.display());
    Ok(())
}

/// Checks that the READMEs' tables fit the measurement: every fault, losses by hand, no unreported loss by Mainstay, and
/// no loss at all if both processes live.
pub(super) fn check(folder: &Path) -> Result<()> {
    for language in &LANGUAGES {
        let text = fs::read_to_string(folder.join(language.file))?;
        let table = between(&text).ok_or_else(|| format!("{}: no table of losses", language.file))?;
        check_table(language, table).map_err(|what| format!("{}: {what}", language.file))?;
    }
    Ok(())
}

fn check_table(language: &Language, table: &str) -> std::result::Result<(), String> {
    for &fault in Fault::value_variants() {
        let label = format!("| {} |", (language.fault)(fault));
        let row =
            table.lines().find_map(|line| line.strip_prefix(&label)).ok_or(format!("no row `{label}`"))?;
        let cells: Vec<_> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        let [recipe, ours @ ..] = cells.as_slice() else { return Err(format!("`{label}` has no cells")) };
        if !recipe.starts_with("**") || recipe.starts_with("**0") {
            return Err(format!("`{label}`: it states no loss by hand"));
        }
        for cell in ours {
            let lost: u64 =
                cell.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(u64::MAX);
            let is_right = *cell == "0" || (!fault.is_survived() && *cell == (language.reported)(lost));
            if !is_right || ours.len() != LANES.len() - 1 {
                return Err(format!("`{label}`: `{cell}` is not what is measured"));
            }
        }
    }
    Ok(())
}

fn table(language: &Language, found: &[(Fault, [Measured; 3])]) -> String {
    let mut table = format!("{}\n|---|--:|--:|--:|\n", language.head);
    for (fault, [recipe, ours @ ..]) in found {
        let cell = |measured: &Measured| match measured.lost() {
            0 => "0".to_owned(),
            lost if measured.silently() == 0 => (language.reported)(lost),
            lost => (language.of)(lost, measured.sent()),
        };
        let cells: Vec<_> = ours.iter().map(cell).collect();
        let by_hand = (language.of)(recipe.lost(), recipe.sent());
        table += &format!("| {} | {by_hand} | {} |\n", (language.fault)(*fault), cells.join(" | "));
    }
    table
}

fn between(text: &str) -> Option<&str> {
    Some(text.split_once(BEGIN)?.1.split_once(END)?.0)
}

fn replaced(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).ok_or("no place for the table of losses")?;
    let (_, after) = rest.split_once(END).ok_or("the table of losses has no end")?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

/// `docs/LOSSES.md`.
fn losses(found: &[(Fault, [Measured; 3])]) -> Result<String> {
    let mut page = format!(
        "# What a fault costs\n\nWritten by `cargo xtask losses`; do not edit.\n\n\
         Client and server each send ten numbered messages a second through a TCP proxy. The path is undisturbed for {} s, then\n\
         one fault happens, then the run goes on for {} s, and messages in flight arrive. The same fault happens at the same\n\
         moment in three lanes:\n\n\
         | | Client | Server |\n|---|---|---|\n\
         | by hand | `new WebSocket` 3 s after `close`; sends if it is open | `@fastify/websocket`, a ping every 7.5 s, \
         `close(1000)` if no pong comes within 5 s |\n\
         | plugin | `@mainstay/client` | `@mainstay/fastify` |\n\
         | gateway | `@mainstay/client` | `mainstay serve` in front of the server by hand, which is unchanged |\n\n\
         Mainstay runs with its defaults. A message is lost if one end sent it and the application of the other end never received\n\
         it during the whole run. Messages that a server sends while its client has no session count, and so do messages for which a\n\
         client's queue had no room. A loss is reported if the sending or receiving application learned of it: towards the server for\n\
         each message (`delivered`), towards the client by a `gap` event.\n\n\
         After a cut the old connection stays dead, as after a change of networks or after a NAT dropped it; an attempt in\n\
         progress gets through as soon as the path is back. A path that comes back together with its connection is not shown here: TCP\n\
         then retransmits the data in flight.\n\n",
        WHOLE.calm.as_secs(),
        WHOLE.watched.as_secs(),
    );
    page += "| | |\n|---|---|\n";
    for (what, value) in machine().iter().filter(|(what, _)| *what != "Python") {
        writeln!(page, "| {what} | {value} |")?;
    }
    for (fault, lanes) in found {
        write!(page, "\n## {}\n\n{}.\n\n", title(*fault), fault.words())?;
        page += "| | lost to the server | lost to the client | reported | twice | client notices | server notices | flows again |\n";
        page += "|---|--:|--:|--:|--:|--:|--:|--:|\n";
        for (lane, measured) in ["by hand", "plugin", "gateway"].iter().zip(lanes) {
            let of = |direction: Direction| format!("{} of {}", direction.lost, direction.sent);
            let reported = measured.up.reported + measured.down.reported;
            let twice = measured.up.twice + measured.down.twice;
            let seconds = |time: Option<f64>| time.map_or("never".to_owned(), |time| format!("{time:.1} s"));
            writeln!(
                page,
                "| {lane} | {} | {} | {reported} | {twice} | {} | {} | {} |",
                of(measured.up),
                of(measured.down),
                seconds(measured.client_noticed),
                seconds(measured.server_noticed),
                seconds(measured.back),
            )?;
        }
    }
    page += "\n## Notes\n\n\
             \"Notices\" is the time from the beginning of the fault (`never`: not before the end of the run, or there was nothing to notice).\n\
             \"Flows again\" is the time from the end of the fault until the server receives a message that was sent after it. In the\n\
             gateway's lane, \"server notices\" is the server behind the gateway. Messages may arrive twice where the gateway\n\
             sends messages again that a lost backend had not confirmed (`--delivery at-least-once`).\n\n\
             Two minutes offline are exactly the resume window: if the client comes back later (by then it dials at random within 30 s), its\n\
             session is lost, and the loss is reported. By default a client keeps 1,024 messages while it is away, and reports each message\n\
             that it does not accept.\n\n\
             ```sh\ncargo xtask losses                # all of it, 20 minutes; writes this page and the READMEs' tables\n\
             cargo xtask losses --fault cut --quick --json\n```\n";
    Ok(page.replace("```sh\n", "<!-- run: skip, it is what wrote this -->\n\n```sh\n"))
}

fn title(fault: Fault) -> String {
    let words = (LANGUAGES[0].fault)(fault);
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plausible result: everything lost by hand, and by Mainstay only the reported losses of ended processes.
    fn found(lost_in_a_crash: Direction) -> Vec<(Fault, [Measured; 3])> {
        let by_hand =
            Measured { up: Direction { sent: 10, lost: 9, reported: 0, twice: 0 }, ..Measured::default() };
        let ours = |fault| match fault {
            Fault::Kill => Measured { up: lost_in_a_crash, ..Measured::default() },
            _ => Measured::default(),
        };
        Fault::value_variants().iter().map(|&fault| (fault, [by_hand, ours(fault), ours(fault)])).collect()
    }

    #[test]
    fn a_table_that_was_measured_has_the_right_shape() {
        for language in &LANGUAGES {
            let reported = found(Direction { sent: 10, lost: 2, reported: 2, twice: 0 });
            let text =
                replaced(&format!("before\n{BEGIN}\nold\n{END}\nafter\n"), &table(language, &reported))
                    .unwrap();
            assert!(text.starts_with("before\n") && text.ends_with("after\n") && !text.contains("old"));
            assert_eq!(check_table(language, between(&text).unwrap()), Ok(()));
        }
    }

    #[test]
    fn a_table_with_a_silent_loss_or_without_a_row_is_refused() {
        for language in &LANGUAGES {
            let silent = found(Direction { sent: 10, lost: 2, reported: 0, twice: 0 });
            assert!(check_table(language, &table(language, &silent)).is_err());
            let table = table(language, &found(Direction::default()));
            let (without, _) = table.trim_end().rsplit_once('\n').unwrap();
            assert!(check_table(language, without).is_err());
            assert!(check_table(language, &table.replace("**9**", "**0**")).is_err());
        }
    }

    #[test]
    fn the_readmes_of_the_workspace_have_the_table() {
        check(Path::new("..")).unwrap();
    }
}
