//! The programs in front of the gateway, each with its recipe in `deploy/proxies`: how it starts, which addresses and limits a
//! proof puts into the recipe, and how its operators reload it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::run::{Background, output};
use crate::{Result, install, metrics};

use super::LIMIT;

/// What takes the place of the recipes' 90 s, in seconds.
const IDLE_LIMIT: &str = "3s";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nginx,
    HAProxy,
    Caddy,
    Traefik,
    Envoy,
}

/// A proxy, and its recipe.
pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    /// The files of the recipe. The program is started with the first one.
    recipe: &'static [&'static str],
    program: PathBuf,
    libraries: Option<PathBuf>,
    /// It ends connections that are silent for too long.
    pub(super) has_idle_limit: bool,
    /// Its connections stay open while it is reloaded.
    pub(super) keeps_at_reload: bool,
    /// Its recipe accepts HTTP/2 without TLS.
    pub(super) speaks_http2: bool,
}

/// What a recipe is filled with.
pub(super) struct Place<'a> {
    pub(super) folder: &'a Path,
    /// Where the gateway listens.
    pub(super) gateway: &'a str,
    /// Where the gateway's admin listener is.
    pub(super) admin: SocketAddr,
    /// Where the proxy listens.
    pub(super) listening: SocketAddr,
    /// Where Caddy accepts a new configuration.
    pub(super) control: SocketAddr,
}

impl Proxy {
    pub(super) fn nginx() -> Result<Self> {
        Ok(Self::new(Kind::Nginx, "nginx", &["nginx.conf"], install::nginx()?))
    }

    pub(super) fn haproxy() -> Result<Self> {
        let (program, libraries) = install::haproxy()?;
        let libraries = Some(libraries);
        Ok(Self { libraries, ..Self::new(Kind::HAProxy, "HAProxy", &["haproxy.cfg"], program) })
    }

    pub(super) fn caddy() -> Result<Self> {
        let proxy = Self::new(Kind::Caddy, "Caddy", &["Caddyfile"], install::caddy()?);
        Ok(Self { has_idle_limit: false, ..proxy })
    }

    pub(super) fn traefik() -> Result<Self> {
        let recipe = &["traefik.yaml", "traefik-routes.yaml"];
        let proxy = Self::new(Kind::Traefik, "Traefik", recipe, install::traefik()?);
        Ok(Self { has_idle_limit: false, keeps_at_reload: true, ..proxy })
    }

    pub(super) fn envoy() -> Result<Self> {
        let proxy = Self::new(Kind::Envoy, "Envoy", &["envoy.yaml"], install::envoy()?);
        Ok(Self { speaks_http2: true, ..proxy })
    }

    fn new(kind: Kind, name: &'static str, recipe: &'static [&'static str], program: PathBuf) -> Self {
        Self {
            kind,
            name,
            recipe,
            program,
            libraries: None,
            has_idle_limit: true,
            keeps_at_reload: false,
            speaks_http2: false,
        }
    }

    /// Writes the recipe with the addresses and limits of a proof into the folder. Returns the file to start with.
    pub(super) fn configure(&self, place: &Place) -> Result<PathBuf> {
        for file in self.recipe {
            let mut text = fs::read_to_string(Path::new("deploy/proxies").join(file))?;
            for (written, value) in self.changes(file, place) {
                if !text.contains(written) {
                    return Err(format!("deploy/proxies/{file} has no {written:?}").into());
                }
                text = text.replace(written, &value);
            }
            fs::write(place.folder.join(file), text)?;
        }
        Ok(place.folder.join(self.recipe.first().copied().unwrap_or_default()))
    }

    /// What is written in a file of the recipe, and what takes its place.
    fn changes(&self, file: &str, place: &Place) -> Vec<(&'static str, String)> {
        let Place { gateway, listening, control, .. } = place;
        let (ip, port, admin) = (listening.ip(), listening.port(), place.admin.port());
        let backend = ("127.0.0.1:8080", (*gateway).to_owned());
        let idle = ("90s", IDLE_LIMIT.to_owned());
        match (self.kind, file) {
            (Kind::Nginx, _) => vec![backend, ("listen 80;", format!("listen {listening};")), idle],
            (Kind::HAProxy, _) => vec![
                backend,
                ("port 9090", format!("port {admin}")),
                ("bind :80", format!("bind {listening}")),
                idle,
            ],
            (Kind::Caddy, _) => {
                let global = format!("{{\n\tadmin {control}\n\tauto_https off\n}}\n\nhttp://{listening} {{");
                vec![backend, (":80 {", global)]
            }
            (Kind::Traefik, "traefik.yaml") => vec![
                ("address: \":80\"", format!("address: \"{listening}\"")),
                ("/etc/traefik", place.folder.display().to_string()),
                ("60s", IDLE_LIMIT.to_owned()),
            ],
            (Kind::Traefik, _) => vec![backend, ("port: 9090", format!("port: {admin}"))],
            (Kind::Envoy, _) => {
                let after = |port: &str| format!("127.0.0.1, port_value: {port} ");
                let gateway = gateway.rsplit(':').next().unwrap_or_default();
                vec![
                    ("127.0.0.1, port_value: 8080 ", after(gateway)),
                    ("0.0.0.0, port_value: 80 ", format!("{ip}, port_value: {port} ")),
                    ("port_value: 9090", format!("port_value: {admin}")),
                    idle,
                ]
            }
        }
    }

    pub(super) fn start(&self, configuration: &Path, place: &Place) -> Result<Background> {
        let mut command = self.command();
        match self.kind {
            Kind::Nginx => command
                .args(["-g", "daemon off; error_log stderr; pid nginx.pid;", "-e", "stderr", "-p"])
                .arg(place.folder)
                .arg("-c"),
            Kind::HAProxy => command.args(["-db", "-f"]),
            Kind::Caddy => command
                .args(["run", "--adapter", "caddyfile", "--config"])
                .env("XDG_DATA_HOME", place.folder)
                .env("XDG_CONFIG_HOME", place.folder),
            Kind::Traefik => command.arg("--configFile"),
            Kind::Envoy => command
                .args(["--concurrency", "1", "--use-dynamic-base-id", "--base-id-path"])
                .arg(place.folder.join("base-id"))
                .arg("--config-path"),
        };
        let log = place.folder.join("proxy.log");
        let mut running = Background::start_quietly(command.arg(configuration), log)?;
        // Traefik listens before it has its routes, and a client that gets 404 does not come back.
        let serves = |_: &Path| {
            metrics::get(place.listening, "/").is_ok_and(|response| response.starts_with("HTTP/1.1 200"))
        };
        running.wait_until(LIMIT, serves)?;
        Ok(running)
    }

    /// Makes the running proxy read its configuration again, as its own operators do. Returns the process that takes its place, if
    /// there is another one.
    pub(super) fn reload(
        &self,
        running: &mut Background,
        configuration: &Path,
        place: &Place,
    ) -> Result<Option<Background>> {
        match self.kind {
            Kind::Nginx => running.signal("HUP")?,
            Kind::HAProxy => {
                let mut next = self.command();
                next.args(["-db", "-sf", &running.id().to_string(), "-f"]).arg(configuration);
                return Self::replace(running, &mut next, place).map(Some);
            }
            Kind::Envoy => {
                // The old process is asked to end after a second: by default it serves its connections for another 15 minutes.
                let base = fs::read_to_string(place.folder.join("base-id"))?;
                let mut next = self.command();
                next.args(["--concurrency", "1", "--base-id", base.trim(), "--restart-epoch", "1"]);
                next.args(["--drain-time-s", "1", "--parent-shutdown-time-s", "1", "--config-path"]);
                return Self::replace(running, next.arg(configuration), place).map(Some);
            }
            Kind::Caddy => {
                // It does nothing if the configuration is the same.
                change(configuration, "reverse_proxy", "header X-Reloaded yes\n\treverse_proxy")?;
                let mut reload = self.command();
                reload.args(["reload", "--adapter", "caddyfile", "--address", &place.control.to_string()]);
                output(reload.arg("--config").arg(configuration))?;
            }
            Kind::Traefik => {
                // It watches the file of routes.
                let header = "service: mainstay\n      middlewares: [reloaded]\n  middlewares:\n    reloaded:\n      \
                              headers: { customResponseHeaders: { X-Reloaded: \"yes\" } }";
                change(&place.folder.join("traefik-routes.yaml"), "service: mainstay", header)?;
                let is_new = |_: &Path| {
                    metrics::get(place.listening, "/")
                        .is_ok_and(|response| response.to_lowercase().contains("x-reloaded"))
                };
                running.wait_until(LIMIT, is_new)?;
            }
        }
        sleep(Duration::from_secs(1));
        Ok(None)
    }

    /// Lets the program check a configuration with these lines, which the doctor writes for its operator. It starts nothing: `listening`
    /// may be in use.
    pub(super) fn check_lines(&self, lines: &[&str], listening: SocketAddr, folder: &Path) -> Result<()> {
        // Envoy goes by the end of the name.
        let (file, lines) = (folder.join("lines.yaml"), lines.join("\n"));
        let mut command = self.command();
        let text = match self.kind {
            Kind::Nginx => {
                command.args(["-t", "-e", "stderr", "-p"]).arg(folder).arg("-c");
                let location = format!("location / {{\n{lines}\n}}");
                format!("pid lines.pid; events {{}} http {{ server {{ listen {listening}; {location} }} }}")
            }
            Kind::HAProxy => {
                command.args(["-c", "-f"]);
                let times = "timeout client 1s\ntimeout connect 1s\ntimeout server 1s";
                format!("defaults\n{times}\n{lines}\nlisten all\nbind {listening}\n")
            }
            Kind::Envoy => {
                command.args(["--mode", "validate", "--config-path"]);
                let line = |name| lines.lines().find(|line| line.starts_with(name)).unwrap_or("no such line");
                let recipe = fs::read_to_string("deploy/proxies/envoy.yaml")?;
                let recipe = recipe.replace("stream_idle_timeout: 90s", line("stream_idle_timeout"));
                recipe.replace("timeout: 0s", line("idle_timeout"))
            }
            Kind::Caddy | Kind::Traefik => return Ok(()),
        };
        fs::write(&file, text)?;
        output(command.arg(&file)).map(drop)
    }

    /// Starts the next process, and waits for the end of the one that it asks to end.
    fn replace(running: &mut Background, next: &mut Command, place: &Place) -> Result<Background> {
        let next = Background::start_quietly(next, place.folder.join("next.log"))?;
        running.wait_end(LIMIT)?;
        Ok(next)
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

/// Changes a configuration where it says `written`.
fn change(file: &Path, written: &str, value: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    // The file is replaced at once, so that a program that watches it never reads half of it.
    let next = file.with_extension("next");
    fs::write(&next, text.replacen(written, value, 1))?;
    Ok(fs::rename(next, file)?)
}
