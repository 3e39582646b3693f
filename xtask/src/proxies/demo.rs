//! The demonstration of `deploy/compose.yaml` without containers: its commands, its nginx and its Prometheus configuration as they
//! are written, with addresses of loopback in place of the names that Compose gives. A client keeps its session while each node is
//! restarted, Prometheus scrapes both nodes, and the figures of each alert and of each panel of the dashboard are there.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use saphyr::{LoadableYamlNode, Yaml};
use serde_json::Value;

use crate::engines::{Brand, Program, Server};
use crate::programs::MAINSTAY;
use crate::run::{Background, free_address, output};
use crate::{Result, install, metrics};

use super::LIMIT;
use super::stage::converse;

/// How long the client of the demonstration is silent, in seconds: the time for two restarts.
const SILENCE: u32 = 8;
const TOKEN: &str = "a-token-of-the-demonstration-alone";
/// Services of the file that are not played, and why.
const NOT_PLAYED: &[(&str, &str)] = &[("grafana", "no package has it; its queries are asked of Prometheus")];

/// Plays the demonstration.
pub(super) fn play(scratch: &Path) -> Result<()> {
    let folder = scratch.join("demo");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let mut stage = Stage::set(&folder)?;
    stage.prometheus.wait_for(&format!("count(up{{job=\"mainstay\"}} == 1) == {}", stage.nodes.len()))?;
    println!("    demo     Prometheus scrapes both nodes, with the token");
    let (at, log) = (stage.balancer_at, folder.join("client.log"));
    let seen = converse(at, log, SILENCE, || stage.restart_each_node())?;
    println!(
        "    demo     each node restarted: {} of 2 messages, connections lost: {}, gaps: {}",
        seen.messages, seen.lost, seen.gaps
    );
    if (seen.messages, seen.gaps) != (2, 0) || seen.lost == 0 {
        return Err("expected 2 messages, no gap, and a lost connection".into());
    }
    stage.prometheus.check_alerts()?;
    stage.prometheus.check_dashboard()?;
    drop(stage.backend.take());
    // A gateway without work does not ask whether its backend lives: the next client shows it.
    metrics::get(stage.balancer_at, "/")?;
    stage.prometheus.wait_for("ALERTS{alertname=\"MainstayBackendDown\"}")?;
    println!("    demo     without its backend the alert MainstayBackendDown begins");
    for (service, why) in NOT_PLAYED {
        println!("    demo     not played: {service}: {why}");
    }
    Ok(())
}

struct Stage {
    nodes: Vec<Node>,
    balancer_at: SocketAddr,
    prometheus: Prometheus,
    backend: Option<Background>,
    _balancer: Background,
    _engine: Server,
}

impl Stage {
    fn set(folder: &Path) -> Result<Self> {
        let text = fs::read_to_string("deploy/compose.yaml")?;
        let compose = Compose::read(&text)?;
        let engine = Program::install(Brand::Valkey)?.start(&folder.join("valkey"), &[])?;
        let (backend, backend_at) = start_backend(folder)?;
        let token = folder.join("admin-token");
        fs::write(&token, TOKEN)?;
        let mut nodes = Vec::new();
        for name in ["node-1", "node-2"] {
            let admin = free_address()?;
            let arguments = replaced(
                &compose.command(name)?,
                &[
                    ("redis://valkey:6379", engine.url()),
                    ("backend:3000", backend_at.clone()),
                    ("0.0.0.0:9090", admin.to_string()),
                    ("/run/secrets/admin-token", token.display().to_string()),
                    ("10.92.0.0/16", "127.0.0.1".into()),
                ],
            )?;
            let arguments = arguments.lines().map(str::to_owned).collect();
            nodes.push(Node::start(folder.join(name), free_address()?, admin, arguments)?);
        }
        let [one, two] = nodes.as_slice() else { return Err("two nodes are played".into()) };
        let balancer_at = free_address()?;
        let balancer = replaced(
            &compose.content("balancer")?,
            &[
                ("listen 8080;", format!("listen {balancer_at};")),
                ("node-1:8080", one.listening.to_string()),
                ("node-2:8080", two.listening.to_string()),
            ],
        )?;
        let balancer = start_balancer(folder, &balancer, balancer_at)?;
        let prometheus = Prometheus::start(folder, &token, [one.admin, two.admin])?;
        let backend = Some(backend);
        Ok(Self { nodes, balancer_at, prometheus, backend, _balancer: balancer, _engine: engine })
    }

    fn restart_each_node(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::restart)
    }
}

/// The file, with what a reader of it needs.
struct Compose<'a>(Yaml<'a>);

impl<'a> Compose<'a> {
    fn read(text: &'a str) -> Result<Self> {
        let document = Yaml::load_from_str(text)?.into_iter().next();
        Ok(Self(document.ok_or("deploy/compose.yaml is empty")?))
    }

    fn get(&self, path: &[&str]) -> Result<&Yaml<'a>> {
        let mut at = &self.0;
        for name in path {
            at = at.as_mapping_get(name).ok_or_else(|| format!("deploy/compose.yaml has no {path:?}"))?;
        }
        Ok(at)
    }

    /// The command of a service, a word a line.
    fn command(&self, service: &str) -> Result<String> {
        let words = self.get(&["services", service, "command"])?.as_sequence();
        let words = words.ok_or_else(|| format!("the command of {service} is no list"))?;
        Ok(words.iter().filter_map(Yaml::as_str).collect::<Vec<_>>().join("\n"))
    }

    /// The content of a configuration, as a container gets it.
    fn content(&self, config: &str) -> Result<String> {
        let content = self.get(&["configs", config, "content"])?.as_str();
        Ok(content.ok_or_else(|| format!("{config} has no content"))?.replace("$$", "$"))
    }
}

/// A text with values in place of what is written. It is an error if the text does not have it.
fn replaced(text: &str, changes: &[(&str, String)]) -> Result<String> {
    let mut text = text.to_owned();
    for (written, value) in changes {
        if !text.contains(written) {
            return Err(format!("nothing says {written:?} any more in:\n{text}").into());
        }
        text = text.replace(written, value);
    }
    Ok(text)
}

struct Node {
    folder: PathBuf,
    listening: SocketAddr,
    admin: SocketAddr,
    arguments: Vec<String>,
    process: Background,
}

impl Node {
    fn start(
        folder: PathBuf,
        listening: SocketAddr,
        admin: SocketAddr,
        arguments: Vec<String>,
    ) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let process = Self::run(&folder, listening, admin, &arguments)?;
        Ok(Self { folder, listening, admin, arguments, process })
    }

    fn run(
        folder: &Path,
        listening: SocketAddr,
        admin: SocketAddr,
        arguments: &[String],
    ) -> Result<Background> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", MAINSTAY]).args(arguments);
        // The image sets it.
        command.env("MAINSTAY_LISTEN", listening.to_string());
        let mut process = Background::start_quietly(&mut command, folder.join("log"))?;
        process.wait_until(LIMIT, |_| {
            metrics::get(admin, "/readyz").is_ok_and(|response| response.starts_with("HTTP/1.1 200"))
        })?;
        Ok(process)
    }

    /// `docker compose restart`: SIGTERM, the end, and the next process at the same address.
    fn restart(&mut self) -> Result<()> {
        self.process.signal("TERM")?;
        self.process.wait_success(LIMIT)?;
        self.process = Self::run(&self.folder, self.listening, self.admin, &self.arguments)?;
        Ok(())
    }
}

/// Starts the Fastify application with the packages that the proofs have installed, which its manifest must name. Returns its address.
fn start_backend(folder: &Path) -> Result<(Background, String)> {
    let read = |path: &str| -> Result<Value> { Ok(serde_json::from_str(&fs::read_to_string(path)?)?) };
    let (wanted, installed) = (read("deploy/fastify/package.json")?, read("proof/package.json")?);
    for (name, version) in wanted["dependencies"].as_object().ok_or("deploy/fastify needs no package")? {
        if installed["dependencies"][name] != *version {
            return Err(
                format!("deploy/fastify/package.json: {name} is not what proof/package.json has").into()
            );
        }
    }
    let here = folder.join("fastify");
    fs::create_dir_all(&here)?;
    fs::copy("deploy/fastify/package.json", here.join("package.json"))?;
    fs::copy("deploy/fastify/server.mjs", here.join("server.mjs"))?;
    std::os::unix::fs::symlink(fs::canonicalize("proof/node_modules")?, here.join("node_modules"))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "node"]).arg(here.join("server.mjs"));
    command.env("HOST", "127.0.0.1").env("PORT", "0");
    let mut backend = Background::start_quietly(&mut command, folder.join("fastify.log"))?;
    let at = backend.announced(LIMIT, "listening on http://")?;
    Ok((backend, at))
}

fn start_balancer(folder: &Path, configuration: &str, at: SocketAddr) -> Result<Background> {
    let home = folder.join("nginx");
    fs::create_dir_all(&home)?;
    let file = home.join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(install::nginx()?);
    command.args(["-g", "daemon off; error_log stderr; pid nginx.pid;", "-e", "stderr", "-p"]);
    command.arg(&home).arg("-c").arg(file);
    let mut balancer = Background::start_quietly(&mut command, folder.join("nginx.log"))?;
    balancer.wait_listening(LIMIT, at)?;
    Ok(balancer)
}

/// Figures of alerts that a gateway without an issuer of tokens does not serve. A test of the gateway compares its figures with
/// docs/METRICS.md.
const ELSEWHERE: [&str; 1] = ["mainstay_jwks_stale"];

/// Prometheus with the configuration and the alert rules of `deploy`.
struct Prometheus {
    process: Background,
    at: SocketAddr,
}

impl Prometheus {
    fn start(folder: &Path, token: &Path, nodes: [SocketAddr; 2]) -> Result<Self> {
        let home = folder.join("prometheus");
        fs::create_dir_all(&home)?;
        let text = fs::read_to_string("deploy/prometheus.yaml")?;
        let [one, two] = nodes.map(|node| node.to_string());
        let changes = [
            ("node-1:9090", one),
            ("node-2:9090", two),
            ("/run/secrets/admin-token", token.display().to_string()),
            ("interval: 5s", "interval: 1s".into()),
        ];
        let file = home.join("prometheus.yaml");
        fs::write(&file, replaced(&text, &changes)?)?;
        fs::copy("deploy/alerts.yaml", home.join("alerts.yaml"))?;
        output(Command::new(install::promtool()?).args(["check", "config"]).arg(&file))?;
        let at = free_address()?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(install::prometheus()?);
        command.arg("--config.file").arg(&file).arg("--storage.tsdb.path").arg(home.join("data"));
        command.args(["--web.listen-address", &at.to_string()]);
        let mut process = Background::start_quietly(&mut command, home.join("log"))?;
        process.wait_listening(LIMIT, at)?;
        Ok(Self { process, at })
    }

    /// Waits until a query has a result.
    fn wait_for(&mut self, expression: &str) -> Result<()> {
        let at = self.at;
        let has_result = |_: &Path| {
            get(at, "query", &[("query", expression)]).is_ok_and(|found| {
                found["data"]["result"].as_array().is_some_and(|series| !series.is_empty())
            })
        };
        let waited = self.process.wait_until(LIMIT, has_result);
        waited.map_err(|error| format!("Prometheus has no result for {expression}: {error}").into())
    }

    /// Each alert is evaluated without an error, and each figure that it looks at is there.
    fn check_alerts(&mut self) -> Result<()> {
        let groups = get(self.at, "rules", &[("type", "alert")])?["data"]["groups"].take();
        let rules: Vec<Value> = groups
            .as_array()
            .map(|groups| {
                groups.iter().flat_map(|group| group["rules"].as_array().cloned()).flatten().collect()
            })
            .unwrap_or_default();
        let selector = Regex::new(r"\b(?:mainstay|process)_[a-z_]+(?:\{[^}]*\})?|\bup\{[^}]*\}")?;
        let mut figures = BTreeSet::new();
        for rule in &rules {
            if rule["health"] != "ok" {
                return Err(format!("the alert {} fails: {}", rule["name"], rule["lastError"]).into());
            }
            let query = rule["query"].as_str().unwrap_or_default();
            figures.extend(selector.find_iter(query).map(|found| found.as_str().to_owned()));
        }
        let documented = fs::read_to_string("docs/METRICS.md")?;
        if let Some(unknown) = ELSEWHERE.iter().find(|figure| !documented.contains(**figure)) {
            return Err(format!("an alert looks at {unknown}, which docs/METRICS.md does not have").into());
        }
        figures.retain(|figure| !ELSEWHERE.contains(&figure.as_str()));
        for figure in &figures {
            self.wait_for(figure)?;
        }
        println!(
            "    demo     {} alerts are evaluated, and their {} figures are there",
            rules.len(),
            figures.len()
        );
        if rules.is_empty() { Err("Prometheus has loaded no alert".into()) } else { Ok(()) }
    }

    /// Each query of the dashboard has a result.
    fn check_dashboard(&mut self) -> Result<()> {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string("deploy/grafana.json")?)?;
        let panels = dashboard["panels"].as_array().ok_or("deploy/grafana.json has no panels")?;
        let mut queries = 0;
        for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
            let query = target["expr"].as_str().ok_or("a target without an expression")?;
            let query = query.replace("$job", ".*").replace("$instance", ".*");
            self.wait_for(&query.replace("$__rate_interval", "1m"))?;
            queries += 1;
        }
        println!("    demo     the {queries} queries of the dashboard have results");
        if queries == 0 { Err("the dashboard asks nothing".into()) } else { Ok(()) }
    }
}

/// What Prometheus at this address responds to a question.
fn get(at: SocketAddr, what: &str, parameters: &[(&str, &str)]) -> Result<Value> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--get"]);
    for (name, value) in parameters {
        curl.args(["--data-urlencode", &format!("{name}={value}")]);
    }
    let response = output(curl.arg(format!("http://{at}/api/v1/{what}")))?;
    let response: Value = serde_json::from_str(&response)?;
    if response["status"] != "success" {
        return Err(format!("Prometheus: {what} {parameters:?}: {response}").into());
    }
    Ok(response)
}
