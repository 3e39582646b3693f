//! The recipes of `deploy/proxies` before real nginx, HAProxy and Caddy, with their timeouts shortened: a heartbeat that is
//! shorter than them keeps a connection, a longer one does not, and a session outlives both that and a reload of the proxy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, sleep};
use std::time::Duration;

use serde_json::Value;

use crate::run::{Background, cargo, check, free_address, output};
use crate::{Outcome, Result, install};

const SCRATCH: &str = "target/xtask/proxies";
const MAINSTAY: &str = "target/release/mainstay";
const LIMIT: Duration = Duration::from_secs(30);
/// What takes the place of the recipes' 90 s, in seconds.
const IDLE_LIMIT: u32 = 3;
/// Silence between the two messages of a client, more than the limit.
const SILENCE: u32 = 7;

pub(crate) fn step() -> Result<Outcome> {
    check_alerts()?;
    cargo("build --release --package mainstay-cli")?;
    let proxies = [Proxy::nginx()?, Proxy::haproxy()?, Proxy::caddy()?];
    let played: Vec<_> = thread::scope(|scope| {
        let playing: Vec<_> =
            proxies.iter().map(|proxy| scope.spawn(|| proxy.play().map_err(|e| e.to_string()))).collect();
        playing.into_iter().map(|play| play.join().unwrap_or_else(|_| Err("it panicked".into()))).collect()
    });
    let failures: Vec<_> = proxies
        .iter()
        .zip(played)
        .filter_map(|(proxy, played)| Some(format!("{}: {}", proxy.name, played.err()?)))
        .collect();
    if failures.is_empty() { Ok(Outcome::Passed) } else { Err(failures.join("; ").into()) }
}

/// A proxy, and its recipe.
struct Proxy {
    name: &'static str,
    recipe: &'static str,
    program: PathBuf,
    libraries: Option<PathBuf>,
    /// Ends connections that are silent for too long.
    has_idle_limit: bool,
}

impl Proxy {
    fn nginx() -> Result<Self> {
        let program = install::nginx()?;
        Ok(Self { name: "nginx", recipe: "nginx.conf", program, libraries: None, has_idle_limit: true })
    }

    fn haproxy() -> Result<Self> {
        let (program, libraries) = install::haproxy()?;
        Ok(Self {
            name: "HAProxy",
            recipe: "haproxy.cfg",
            program,
            libraries: Some(libraries),
            has_idle_limit: true,
        })
    }

    fn caddy() -> Result<Self> {
        let program = install::caddy()?;
        Ok(Self { name: "Caddy", recipe: "Caddyfile", program, libraries: None, has_idle_limit: false })
    }

    fn play(&self) -> Result<()> {
        let folder = std::env::current_dir()?.join(SCRATCH).join(self.name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let kept = Stage::set(self, &folder.join("kept"), "1s")?.converse(|_| Ok(()))?;
        let cut = Stage::set(self, &folder.join("cut"), "60s")?.converse(|_| Ok(()))?;
        let reloaded = Stage::set(self, &folder.join("reloaded"), "1s")?.converse(Stage::reload)?;
        for (what, seen, expected) in [
            ("a heartbeat below the idle limit", &kept, Some(0)),
            ("a heartbeat above the idle limit", &cut, Some(usize::from(self.has_idle_limit))),
            ("a reload of the proxy", &reloaded, None),
        ] {
            println!(
                "    {:8} {what:34} {} of 2 messages, connections lost: {}, gaps: {}",
                self.name, seen.messages, seen.lost, seen.gaps
            );
            if seen.messages != 2
                || seen.gaps != 0
                || expected.is_some_and(|expected| (seen.lost > 0) != (expected > 0))
            {
                return Err(
                    format!("{what}: expected 2 messages, no gap and {expected:?} lost connections").into()
                );
            }
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }
}

/// A gateway with its demonstration, and a proxy in front of it.
struct Stage<'a> {
    proxy: &'a Proxy,
    folder: PathBuf,
    configuration: PathBuf,
    listening: SocketAddr,
    /// Where Caddy accepts a new configuration.
    control: SocketAddr,
    running: Background,
    /// HAProxy's next process.
    next: Option<Background>,
    _gateway: Background,
}

/// What a client saw.
struct Seen {
    messages: usize,
    lost: usize,
    gaps: usize,
}

impl<'a> Stage<'a> {
    fn set(proxy: &'a Proxy, folder: &Path, heartbeat: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mut serve = Command::new("setpriv");
        serve.args([
            "--pdeathsig",
            "KILL",
            MAINSTAY,
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ]);
        let mut gateway =
            Background::start_quietly(serve.args(["--heartbeat", heartbeat]), folder.join("gateway.log"))?;
        let at = gateway.announced(LIMIT, "listening on ws://")?;
        let admin: SocketAddr =
            gateway.announced(LIMIT, "admin on http://")?.trim_end_matches(':').parse()?;
        let (listening, control) = (free_address()?, free_address()?);
        let recipe = fs::read_to_string(Path::new("deploy/proxies").join(proxy.recipe))?;
        let text = recipe
            .replace("127.0.0.1:8080", &at)
            .replace("port 9090", &format!("port {}", admin.port()))
            .replace("listen 80;", &format!("listen {listening};"))
            .replace("bind :80", &format!("bind {listening}"))
            .replace(
                ":80 {",
                &format!("{{\n\tadmin {control}\n\tauto_https off\n}}\n\nhttp://{listening} {{"),
            )
            .replace("90s", &format!("{IDLE_LIMIT}s"));
        let configuration = folder.join(proxy.recipe);
        fs::write(&configuration, text)?;
        let mut command = proxy.command();
        match proxy.name {
            "nginx" => command
                .args(["-g", "daemon off; error_log stderr; pid nginx.pid;", "-e", "stderr", "-p"])
                .arg(folder)
                .arg("-c"),
            "HAProxy" => command.args(["-db", "-f"]),
            _ => command
                .args(["run", "--adapter", "caddyfile", "--config"])
                .env("XDG_DATA_HOME", folder)
                .env("XDG_CONFIG_HOME", folder),
        };
        let mut running = Background::start_quietly(command.arg(&configuration), folder.join("proxy.log"))?;
        running.wait_listening(LIMIT, listening)?;
        Ok(Self {
            proxy,
            folder: folder.into(),
            configuration,
            listening,
            control,
            running,
            next: None,
            _gateway: gateway,
        })
    }

    /// A client sends a message, is silent, and sends another one. `meanwhile` is done in the silence.
    fn converse(mut self, meanwhile: impl FnOnce(&mut Self) -> Result<()>) -> Result<Seen> {
        let log = self.folder.join("client.log");
        let script = format!(
            "(echo one; sleep {SILENCE}; echo two) | {MAINSTAY} connect --json --linger 3s ws://{}/echo",
            self.listening
        );
        let mut client = Background::start_quietly(Command::new("sh").args(["-c", &script]), log.clone())?;
        client.wait_until(LIMIT, |log| {
            fs::read_to_string(log).is_ok_and(|log| log.contains("\"message\":\"one\""))
        })?;
        meanwhile(&mut self)?;
        client.wait_success(LIMIT)?;
        let lines: Vec<Value> =
            fs::read_to_string(&log)?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
        let messages =
            lines.iter().filter(|line| ["one", "two"].iter().any(|text| line["message"] == *text)).count();
        Ok(Seen { messages, lost: count("detached"), gaps: count("gap") })
    }

    /// Makes the proxy read its configuration again, as its own operators do.
    fn reload(&mut self) -> Result<()> {
        match self.proxy.name {
            "nginx" => self.running.signal("HUP")?,
            "HAProxy" => {
                let mut next = self.proxy.command();
                next.args(["-db", "-sf", &self.running.id().to_string(), "-f"]).arg(&self.configuration);
                self.next = Some(Background::start_quietly(&mut next, self.folder.join("next.log"))?);
                self.running.wait_end(LIMIT)?;
            }
            _ => {
                // It does nothing if the configuration is the same.
                let text = fs::read_to_string(&self.configuration)?;
                fs::write(
                    &self.configuration,
                    text.replace("reverse_proxy", "header X-Reloaded yes\n\treverse_proxy"),
                )?;
                let mut reload = self.proxy.command();
                reload.args([
                    "reload",
                    "--adapter",
                    "caddyfile",
                    "--address",
                    &self.control.to_string(),
                    "--config",
                ]);
                output(reload.arg(&self.configuration))?;
            }
        }
        sleep(Duration::from_secs(1));
        Ok(())
    }
}

/// Lets Prometheus' own program check the rules of alerts.
fn check_alerts() -> Result<()> {
    check(Command::new(install::promtool()?).args(["check", "rules", "deploy/alerts.yaml"])).map(drop)
}
