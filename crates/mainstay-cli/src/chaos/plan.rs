//! The flags of `mainstay chaos`, read and checked once.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use mainstay_chaos::{MAX_RULES, Rule, Scenario, ScenarioFile};

use super::Arguments;
use super::timeline::Shown;

/// The largest scenario file.
const MAX_FILE: u64 = 1 << 20;
/// The greatest seed: programs in JavaScript read it from JSON, too.
const MAX_SEED: u64 = (1 << 53) - 1;

/// What the command does.
pub(super) struct Plan {
    pub(super) upstream: String,
    pub(super) listen: SocketAddr,
    pub(super) scenario: Scenario,
    pub(super) seed: u64,
    pub(super) lasts: Option<Duration>,
    pub(super) api: Option<SocketAddr>,
    pub(super) api_hosts: Vec<String>,
    pub(super) shown: Shown,
    pub(super) until_stdin_closes: bool,
}

impl Plan {
    /// Reads the scenario: the rules of the profiles first, then those of the file, then those of `--fault`.
    ///
    /// # Errors
    /// One line: the flag or the file with the field, its bound, and what to write.
    pub(super) fn new(arguments: Arguments) -> Result<Self, String> {
        let file = arguments.scenario.as_deref().map(read).transpose()?.unwrap_or_default();
        let mut scenario = Scenario::default();
        for name in &arguments.profiles {
            let profile = file.profile(name).map_err(|error| format!("--profile: {error}"))?;
            scenario.rules.extend(profile.rules);
        }
        scenario.rules.extend(file.scenario.rules);
        for line in &arguments.faults {
            let rule: Rule = line.parse().map_err(|error| format!("--fault {line:?}: {error}"))?;
            scenario.rules.push(rule);
        }
        if scenario.rules.len() > MAX_RULES {
            let count = scenario.rules.len();
            return Err(format!(
                "--profile, --scenario and --fault have {count} rules together; at most {MAX_RULES} are allowed"
            ));
        }
        if let Some(api) = arguments.api.filter(|api| !api.ip().is_loopback())
            && arguments.api_hosts.is_empty()
        {
            return Err(format!(
                "--api {api}: other machines reach this address, and everything that reaches it may break connections; \
                 write 127.0.0.1:{}, or name the host that they use: --api-host NAME",
                api.port()
            ));
        }
        let upstream = arguments.upstream.unwrap_or_default();
        without_password(&upstream).map_err(|what| format!("--upstream: {what}"))?;
        Ok(Self {
            upstream,
            listen: arguments.listen,
            scenario,
            seed: arguments.seed.or(file.seed).unwrap_or_else(short_seed),
            lasts: arguments.lasts,
            api: arguments.api,
            api_hosts: arguments.api_hosts,
            shown: Shown { json: arguments.json, quiet: arguments.quiet },
            until_stdin_closes: arguments.until_stdin_closes,
        })
    }
}

/// Refuses an address with `user:password@`, without quoting it.
pub(super) fn without_password(upstream: &str) -> Result<(), &'static str> {
    match upstream.contains('@') {
        true => Err("must have no user:password@, which would not be sent; write HOST:PORT"),
        false => Ok(()),
    }
}

/// Draws a seed that people can copy by hand.
fn short_seed() -> u64 {
    getrandom::u32().map_or(1, u64::from) % 1_000_000
}

/// Reads a scenario file.
fn read(path: &Path) -> Result<ScenarioFile, String> {
    let wrong = |what: String| format!("--scenario {}: {what}", path.display());
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(format!("{error}; name a readable file in TOML")))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(wrong("is larger than 1 MiB; name a scenario file in TOML".to_owned()));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| wrong("is no text in UTF-8; name a scenario file in TOML".to_owned()))?;
    ScenarioFile::parse_toml(&text).map_err(|error| wrong(error.to_string()))
}

/// Parses a seed.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().filter(|seed| *seed <= MAX_SEED);
    seed.ok_or_else(|| format!("must be a whole number from 0 to {MAX_SEED}, for example 7"))
}

/// Parses a host without a port.
pub(super) fn host(text: &str) -> Result<String, String> {
    let wrong =
        || "write a host name or an IP address without a port, for example chaos or 10.0.0.7".to_owned();
    let authority: http::uri::Authority = text.parse().map_err(|_| wrong())?;
    let is_bare = authority.port().is_none() && !text.contains('@') && authority.host() == text;
    if is_bare { Ok(text.to_owned()) } else { Err(wrong()) }
}
