//! The Autobahn test suite as an outside judge of our WebSocket server and client.
//!
//! For each role: write the suite's specification, start one side as a child, run the other to its end, then read
//! the report ourselves. A case that did not run has failed, so a server that dies cannot pass. Each command under
//! test gets its address from its environment (`AUTOBAHN_ADDR`; `AUTOBAHN_URL` and `AUTOBAHN_AGENT`).
//!
//! The server must echo text and binary messages unchanged, take messages of 16 MiB and of 65,536 fragments, and
//! send no Ping: the suite answers one inside its own half-sent frame and then fails 6.4.3 and 6.4.4. The client
//! asks `/getCaseCount`, echoes on `/runCase?case=N&agent=A` for each case, then calls `/updateReports?agent=A`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::run::{Background, free_address, output};
use crate::{Depth, Outcome, Result, install, programs};

/// Cases we mean to fail, each with its reason. One that passes again fails the run until its entry is gone.
const ALLOWED: &[(&str, &str)] = &[];

// The server sends nothing before its first heartbeat; the suite answers a Ping in the middle of
// its own half-sent frame.
const SERVER: &str = r#"exec target/release/mainstay serve --listen "$AUTOBAHN_ADDR" \
    --heartbeat 1h --max-message 16MiB --max-fragments 100000 --deflate"#;
const CLIENT: &str = r#"exec target/release/autobahn_client "$AUTOBAHN_URL" "$AUTOBAHN_AGENT""#;

const AGENT: &str = "mainstay";

/// At most this many failures are printed one by one.
const LISTED: usize = 30;

/// How long a side may take until it listens: a command that is given may build first.
const START_LIMIT: Duration = Duration::from_secs(600);

/// How long all cases of one role may take. The whole suite takes a quarter of an hour, half of it the suite's own work.
const RUN_LIMIT: Duration = Duration::from_secs(3600);

#[derive(Args)]
pub(crate) struct Options {
    /// Which of our two sides to judge [default: both]
    #[arg(long)]
    role: Option<Role>,
    /// How many cases: 301 without deflate, a sample of 36 deflate cases more, or all 517
    #[arg(long, default_value = "quick")]
    set: Set,
    /// Run these cases instead, for example `7.*,9.1.1`
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Shell command that echoes at $AUTOBAHN_ADDR until it is killed
    #[arg(long, default_value = SERVER)]
    server: String,
    /// Shell command that runs every case of $AUTOBAHN_URL as $AUTOBAHN_AGENT
    #[arg(long, default_value = CLIENT)]
    client: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Server,
    Client,
}

#[derive(Clone, Copy, ValueEnum)]
enum Set {
    NoDeflate,
    Quick,
    All,
}

pub(crate) fn step(depth: Depth) -> Result<Outcome> {
    let set = if depth == Depth::Nightly { Set::All } else { Set::Quick };
    run(&Options { role: None, set, cases: Vec::new(), server: SERVER.into(), client: CLIENT.into() })
}

/// Judges the chosen roles. A case that failed in any of them is an error.
pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let Some(suite) = install::autobahn()? else {
        println!("!!! The Autobahn test suite did NOT run: it needs Python 2.7, and none was found.");
        println!(
            "!!! Set AUTOBAHN_PYTHON to one, or put python2.7, pypy2.7 or pyenv's 2.7 where they are looked for."
        );
        return Ok(Outcome::Skipped("no Python 2.7 (set AUTOBAHN_PYTHON)".into()));
    };
    // The default commands run these.
    programs::mainstay()?;
    programs::peers(&["autobahn_client"])?;
    let roles = options.role.map_or(vec![Role::Server, Role::Client], |role| vec![role]);
    // At a time: each keeps one core busy, that of the suite.
    let judged: Vec<_> = thread::scope(|scope| {
        let judge = |role| {
            let suite = &suite;
            scope.spawn(move || judge(role, options, suite).map_err(|error| error.to_string()))
        };
        let judging: Vec<_> = roles.iter().map(|role| judge(*role)).collect();
        judging.into_iter().map(|role| role.join().unwrap_or_else(|_| Err("it panicked".into()))).collect()
    });
    let mut failed = Vec::new();
    for (role, judged) in roles.iter().zip(judged) {
        let Judged { folder, verdict, seconds, ran } = judged?;
        println!("{role:?}, {seconds:.0} s, reports in {}", folder.display());
        if verdict.passed > 0 || ran.is_ok() {
            verdict.print(); // even if a side died: it shows how far the run got
        }
        ran?;
        if verdict.passed == 0 || !verdict.failures.is_empty() {
            failed.push(format!("{} cases as {role:?}", verdict.failures.len()));
        }
    }
    if failed.is_empty() {
        Ok(Outcome::Passed)
    } else {
        Err(format!("Autobahn: {}", failed.join(", ")).into())
    }
}

/// What came of a role.
struct Judged {
    folder: PathBuf,
    verdict: Verdict,
    seconds: f64,
    /// Whether both sides ended well.
    ran: std::result::Result<(), String>,
}

fn judge(role: Role, options: &Options, suite: &Path) -> Result<Judged> {
    let trial = Trial::new(role, options, suite)?;
    let started = Instant::now();
    let ran = match role {
        Role::Server => trial.judge_server(&options.server),
        Role::Client => trial.judge_client(&options.client),
    };
    Ok(Judged {
        verdict: trial.verdict(),
        folder: trial.folder,
        seconds: started.elapsed().as_secs_f64(),
        ran: ran.map_err(|error| error.to_string()),
    })
}

/// One role's run: the suite's specification and reports are in `folder`.
struct Trial<'a> {
    programs: &'a Path,
    folder: PathBuf,
    address: std::net::SocketAddr,
    expected: Vec<String>,
}

impl<'a> Trial<'a> {
    fn new(role: Role, options: &Options, programs: &'a Path) -> Result<Self> {
        let folder = std::env::current_dir()?.join(format!("target/xtask/autobahn/{role:?}").to_lowercase());
        let _ = fs::remove_dir_all(&folder); // a report of an earlier run must not be taken for this one's
        fs::create_dir_all(&folder)?;
        let address = free_address()?;
        let (cases, excluded) = chosen(options);
        let mut spec = json!({
            "outdir": folder,
            "options": { "failByDrop": false },
            "cases": cases,
            "exclude-cases": excluded,
            "exclude-agent-cases": {},
        });
        // Our server echoes at /echo; the suite's server wants the bare address.
        let path = if matches!(role, Role::Server) { "/echo" } else { "" };
        let url = format!("ws://{address}{path}");
        match role {
            Role::Server => {
                spec["servers"] = json!([{ "agent": AGENT, "url": url, "options": { "version": 18 } }])
            }
            Role::Client => spec["url"] = json!(url),
        }
        fs::write(folder.join("spec.json"), serde_json::to_vec_pretty(&spec)?)?;
        let expected = expected_cases(programs, &folder)?;
        println!("{} cases, {role:?} at {url}", expected.len());
        Ok(Self { programs, folder, address, expected })
    }

    fn judge_server(&self, command: &str) -> Result<()> {
        let mut server = self.start_ours(command)?;
        server.wait_listening(START_LIMIT, self.address)?;
        self.start_suite("fuzzingclient")?.wait_success(RUN_LIMIT)
    }

    fn judge_client(&self, command: &str) -> Result<()> {
        let mut suite = self.start_suite("fuzzingserver")?;
        suite.wait_listening(START_LIMIT, self.address)?;
        self.start_ours(command)?.wait_success(RUN_LIMIT)
    }

    fn start_ours(&self, command: &str) -> Result<Background> {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .env("AUTOBAHN_ADDR", self.address.to_string())
            .env("AUTOBAHN_URL", format!("ws://{}", self.address))
            .env("AUTOBAHN_AGENT", AGENT);
        Background::start(&mut shell, self.folder.join("ours.log"))
    }

    fn start_suite(&self, mode: &str) -> Result<Background> {
        let mut wstest = Command::new(self.programs.join("wstest"));
        wstest.args(["-m", mode, "-u", "0", "-s"]).arg(self.folder.join("spec.json"));
        Background::start(&mut wstest, self.folder.join("wstest.log"))
    }

    fn verdict(&self) -> Verdict {
        let report = fs::read(self.folder.join("index.json")).unwrap_or_default();
        let report: Value = serde_json::from_slice(&report).unwrap_or_default();
        Verdict::of(&self.expected, &report[AGENT], ALLOWED)
    }
}

/// What a report states about the cases that should have run.
#[derive(Default)]
struct Verdict {
    passed: usize,
    failures: Vec<String>,
    /// The cases that passed with a remark of the suite, by remark.
    remarks: BTreeMap<String, Vec<String>>,
}

impl Verdict {
    fn of(expected: &[String], report: &Value, allowed: &[(&str, &str)]) -> Self {
        let mut verdict = Self::default();
        for case in expected {
            let field = |key: &str| report[case][key].as_str().unwrap_or("NOT RUN").to_owned();
            let (behavior, close) = (field("behavior"), field("behaviorClose"));
            let good = matches!(behavior.as_str(), "OK" | "NON-STRICT" | "INFORMATIONAL")
                && matches!(close.as_str(), "OK" | "INFORMATIONAL");
            match (good, allowed.iter().find(|(id, _)| id == case)) {
                (true, None) => verdict.passed += 1,
                (true, Some(_)) => verdict.failures.push(format!("{case}: passes, yet is on the allow-list")),
                (false, None) => verdict.failures.push(format!("{case}: {behavior}, closing {close}")),
                (false, Some((_, reason))) => {
                    verdict.passed += 1;
                    verdict.remarks.entry(format!("allowed, {reason}")).or_default().push(case.clone());
                }
            }
            if good && behavior != "OK" {
                verdict.remarks.entry(behavior.to_lowercase()).or_default().push(case.clone());
            }
        }
        verdict
    }

    fn print(&self) {
        println!("{} passed, {} failed", self.passed, self.failures.len());
        for (remark, cases) in &self.remarks {
            println!("{remark}: {}", cases.join(" "));
        }
        self.failures.iter().take(LISTED).for_each(|failure| println!("FAILED {failure}"));
        if self.failures.len() > LISTED {
            println!("FAILED ... and {} more", self.failures.len() - LISTED);
        }
    }
}

/// The patterns of cases to run and to leave out. 12 and 13 are deflate, each group with 18 message sizes and
/// fragmentations, of which the sample takes the smallest, 4 KiB whole and 8 KiB fragmented.
fn chosen(options: &Options) -> (Vec<String>, Vec<&'static str>) {
    if !options.cases.is_empty() {
        return (options.cases.clone(), Vec::new());
    }
    let deflate = vec!["12.*", "13.*"];
    match options.set {
        Set::All => (vec!["*".into()], Vec::new()),
        Set::NoDeflate => (vec!["*".into()], deflate),
        Set::Quick => {
            let plain = [1, 2, 3, 4, 5, 6, 7, 9, 10].map(|chapter| format!("{chapter}.*"));
            let groups = (1..=5).map(|group| (12, group)).chain((1..=7).map(|group| (13, group)));
            let sample =
                groups.flat_map(|(chapter, group)| [1, 5, 11].map(|n| format!("{chapter}.{group}.{n}")));
            (plain.into_iter().chain(sample).collect(), Vec::new())
        }
    }
}

/// Asks the suite itself which cases a specification means.
fn expected_cases(programs: &Path, folder: &Path) -> Result<Vec<String>> {
    let script = "\
import json, sys
from autobahntestsuite import case, caseset
cases = caseset.CaseSet(case.CaseSetname, case.CaseBasename, case.Cases, case.CaseCategories, case.CaseSubCategories)
print('\\n'.join(cases.parseSpecCases(json.load(open(sys.argv[1])))))";
    let listed =
        output(Command::new(programs.join("python")).args(["-c", script]).arg(folder.join("spec.json")))?;
    Ok(listed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(report: &Value, allowed: &[(&str, &str)]) -> Verdict {
        Verdict::of(&["1.1.1".into(), "6.4.3".into()], report, allowed)
    }

    fn field(behavior: &str, close: &str) -> Value {
        json!({ "behavior": behavior, "behaviorClose": close })
    }

    #[test]
    fn a_case_that_did_not_run_has_failed() {
        let verdict = verdict(&json!({ "1.1.1": field("OK", "OK") }), &[]);
        assert_eq!((verdict.passed, verdict.failures), (1, vec!["6.4.3: NOT RUN, closing NOT RUN".into()]));
    }

    #[test]
    fn no_report_at_all_fails_every_case() {
        assert_eq!(verdict(&Value::Null, &[]).failures.len(), 2);
    }

    #[test]
    fn non_strict_passes_and_is_listed() {
        let verdict =
            verdict(&json!({ "1.1.1": field("OK", "OK"), "6.4.3": field("NON-STRICT", "OK") }), &[]);
        assert_eq!(verdict.passed, 2);
        assert_eq!(verdict.remarks["non-strict"], ["6.4.3"]);
    }

    #[test]
    fn unimplemented_and_a_wrong_close_fail() {
        let report = json!({ "1.1.1": field("UNIMPLEMENTED", "OK"), "6.4.3": field("OK", "WRONG CODE") });
        assert_eq!(verdict(&report, &[]).failures.len(), 2);
    }

    #[test]
    fn an_allowed_failure_passes_with_its_reason_until_it_is_mended() {
        let allowed = [("6.4.3", "because")];
        let failing =
            verdict(&json!({ "1.1.1": field("OK", "OK"), "6.4.3": field("FAILED", "OK") }), &allowed);
        assert_eq!((failing.passed, failing.failures.len()), (2, 0));
        assert_eq!(failing.remarks["allowed, because"], ["6.4.3"]);
        let mended = verdict(&json!({ "1.1.1": field("OK", "OK"), "6.4.3": field("OK", "OK") }), &allowed);
        assert_eq!(mended.failures, ["6.4.3: passes, yet is on the allow-list"]);
    }
}
