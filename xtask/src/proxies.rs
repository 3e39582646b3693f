//! What `deploy` has, played: each recipe of a proxy before the real program, with its timeouts shortened, and the demonstration of
//! Compose without containers. What cannot be run is checked by schemas.
//!
//! A heartbeat that is shorter than a proxy's limit keeps a connection, a longer one does not, and a session outlives both that and a
//! reload of the proxy. `mainstay doctor` looks through each of them, and has to find the limit and what has it. nginx, HAProxy, Caddy and Prometheus come from Debian, Envoy and Traefik from PyPI: where those cannot be
//! installed, the step prints that they were skipped.

mod demo;
mod doctor;
mod proxy;
mod schemas;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::programs::{self, MAINSTAY};
use crate::run::{Background, check};
use crate::{Outcome, Result, install};
use proxy::Proxy;

const SCRATCH: &str = "target/xtask/proxies";
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn step() -> Result<Outcome> {
    let preparing = install::alone()?;
    check_alerts()?;
    install::curl()?;
    install::node_packages("proof")?;
    programs::mainstay()?;
    install::nginx_stream()?;
    let mut skipped = Skipped::default();
    let mut proxies = vec![Proxy::nginx()?, Proxy::haproxy()?, Proxy::caddy()?];
    proxies.extend(skipped.unless(Proxy::traefik(), "Traefik"));
    proxies.extend(skipped.unless(Proxy::envoy(), "Envoy"));
    if skipped.unless(install::kubernetes_validate(), "the schemas of Kubernetes").is_some() {
        schemas::check_kubernetes()?;
    }
    if skipped.unless(install::compose_spec(), "the specification of Compose").is_some() {
        schemas::check_compose()?;
    }
    if skipped.unless(install::systemd_analyze(), "the exposure of the unit").is_some() {
        schemas::check_unit(&scratch()?)?;
    }
    drop(preparing);
    run_tests()?;
    println!("    Images: not built here; the files that packaging/Dockerfile copies are there");
    play(&proxies)?;
    Ok(skipped.outcome())
}

/// Plays all recipes and the demonstration at a time: nearly all of it is waiting. The doctor, which measures times, comes after.
fn play(proxies: &[Proxy]) -> Result<()> {
    let scratch = scratch()?;
    let (_echo, backend) = start_echo(&scratch)?;
    let (scratch, backend) = (&scratch, &backend);
    let recipes = proxies
        .iter()
        .map(|proxy| (proxy.name, Box::new(move || text(stage::play(proxy, scratch, backend))) as Play<'_>));
    let demonstration = ("the demonstration", Box::new(move || text(demo::play(scratch))) as Play<'_>);
    at_a_time(recipes.chain([demonstration]))?;
    at_a_time(
        proxies.iter().map(|proxy| {
            (proxy.name, Box::new(move || text(doctor::play(proxy, scratch, backend))) as Play<'_>)
        }),
    )
}

type Play<'a> = Box<dyn FnOnce() -> std::result::Result<(), String> + Send + 'a>;

/// Plays all of these at a time. The error has what each of them complains about.
fn at_a_time<'a>(plays: impl Iterator<Item = (&'static str, Play<'a>)>) -> Result<()> {
    let failures: Vec<String> = thread::scope(|scope| {
        let playing: Vec<_> = plays.map(|(name, play)| (name, scope.spawn(play))).collect();
        let ended = playing
            .into_iter()
            .map(|(name, play)| (name, play.join().unwrap_or_else(|_| Err("it panicked".into()))));
        ended.filter_map(|(name, played)| Some(format!("{name}: {}", played.err()?))).collect()
    });
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

fn scratch() -> Result<PathBuf> {
    let scratch = std::env::current_dir()?.join(SCRATCH);
    fs::create_dir_all(&scratch)?;
    Ok(scratch)
}

/// A failure as text, which another thread may have.
fn text(played: Result<()>) -> std::result::Result<(), String> {
    played.map_err(|error| error.to_string())
}

/// The backend of all recipes, and its URL.
fn start_echo(scratch: &Path) -> Result<(Background, String)> {
    let mut serve = Command::new("setpriv");
    serve.args(["--pdeathsig", "KILL", MAINSTAY, "serve", "--listen", "127.0.0.1:0"]);
    let mut echo = Background::start_quietly(&mut serve, scratch.join("backend.log"))?;
    let at = echo.announced(LIMIT, "listening on ")?;
    Ok((echo, at))
}

/// What could not be installed.
#[derive(Default)]
struct Skipped(Vec<String>);

impl Skipped {
    /// What was installed, or none after saying why.
    fn unless<T>(&mut self, installed: Result<T>, name: &str) -> Option<T> {
        match installed {
            Ok(installed) => Some(installed),
            Err(error) => {
                println!("    SKIPPED: {name}: {error}");
                self.0.push(name.to_owned());
                None
            }
        }
    }

    fn outcome(self) -> Outcome {
        match self.0.as_slice() {
            [] => Outcome::Passed,
            names => Outcome::Skipped(format!("{}; all else passed", names.join(", "))),
        }
    }
}

/// Runs the tests that `cargo test` leaves out because not every machine has the proxies.
fn run_tests() -> Result<()> {
    let (nginx, stream) = install::nginx_stream()?;
    let (haproxy, libraries) = install::haproxy()?;
    let here = std::env::current_dir()?;
    let folders =
        [&nginx, &haproxy].into_iter().filter_map(|program| program.parent()).map(|folder| here.join(folder));
    let known = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(folders.chain(std::env::split_paths(&known)))?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--workspace", "--test", "it", "real_proxies", "--", "--ignored"]);
    cargo.env("PATH", path).env("NGINX_STREAM", stream).env("LD_LIBRARY_PATH", libraries);
    check(&mut cargo).map(drop)
}

/// Lets Prometheus' own program check the rules of alerts.
fn check_alerts() -> Result<()> {
    check(Command::new(install::promtool()?).args(["check", "rules", "deploy/alerts.yaml"])).map(drop)
}
