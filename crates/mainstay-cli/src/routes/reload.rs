//! The configuration while the process runs: read again at SIGHUP, and when its file or a file that it names changes.
//!
//! A new configuration is built as a whole, by a thread that serves nothing, before anything changes. A wrong one changes nothing: the one in force stays, the
//! log has one line for each mistake, and a metric shows it until a reload succeeds. Requests that come after a reload find
//! the new table of routes. What is open keeps the route that it came by, so a reload closes nothing.
//!
//! Files are compared every [`INTERVAL`], by polling: inotify does not see the changes of mounted volumes, and a
//! Kubernetes ConfigMap changes by a symbolic link two folders above the file.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use mainstay::Server;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::Token;
use crate::clients::client_tls::{ClientTls, Prepared, TlsSection};
use crate::config::{Loaded, Problem, Sources};
use crate::process::supervisor;
use crate::routes::Routes;
use crate::routes::route::Route;
use crate::routes::table;

/// How often the files are compared. A change must be the same in two comparisons: half of a file is no configuration.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a reload changes.
pub(crate) struct Live {
    pub(crate) server: Server,
    pub(crate) routes: Arc<Routes>,
    /// The token of the admin listener.
    pub(crate) admin_token: Option<Token>,
    /// How many connections the limit of open files allows.
    pub(crate) most: usize,
    /// TLS towards clients.
    pub(crate) tls: Option<ClientTls>,
    /// TLS of the admin listener.
    pub(crate) admin_tls: Option<ClientTls>,
    /// The supervisor's line about this process.
    pub(crate) status: String,
}

impl Live {
    /// Builds everything that a configuration describes, and then puts it in force: one line for each part.
    fn apply(&self, loaded: &Loaded) -> Result<Changes, Problem> {
        let token = self.admin_token.as_ref().map(|token| Ok((token, token.read_again()?))).transpose();
        let token =
            token.map_err(|what: String| loaded.problem_in("admin", &format!("token-file: {what}")))?;
        let before = self.routes.all();
        let routes = table::build(loaded, &self.server, &self.routes.access, &before)?;
        let tls = prepare_tls(self.tls.as_ref(), &loaded.config.tls);
        let tls = tls.map_err(|what| loaded.problem_in("tls", &what))?;
        let admin_tls = prepare_tls(self.admin_tls.as_ref(), &loaded.config.admin.tls.section());
        let admin_tls = admin_tls.map_err(|what| loaded.problem_in("admin.tls", &what))?;
        let changes = Changes::between(&before, &routes);
        table::start_credentials(&routes);
        table::set_limits(&routes);
        self.server.set_limits(loaded.config.limits.admission(self.most), loaded.config.limits.openings());
        if token.is_some_and(|(token, next)| token.replace(next)) {
            tracing::info!("the admin listener requires the token that its file has now");
        }
        self.server.set_proxies(loaded.config.proxies.proxies());
        table::stop_probing(&before, &routes);
        tokio::spawn(probe_soon(routes.iter().map(Arc::downgrade).collect()));
        self.routes.replace(routes, loaded.names_routes);
        tls.into_iter().chain(admin_tls).for_each(|(tls, prepared)| tls.replace(prepared));
        Ok(changes)
    }
}

/// Reads certificates and keys again.
fn prepare_tls<'a>(
    tls: Option<&'a ClientTls>,
    section: &TlsSection,
) -> Result<Option<(&'a ClientTls, Prepared)>, String> {
    match tls {
        Some(tls) => tls.prepare(section).map(|prepared| Some((tls, prepared))),
        None if section.is_on() => {
            Err("certificate: TLS cannot be turned on while the process runs; restart it".to_owned())
        }
        None => Ok(None),
    }
}

/// Probes the backends of a new table, those of a few routes at a time: all at once would be a burst of connections. The next
/// reload does not wait for the end, so nothing here keeps the table.
async fn probe_soon(table: Vec<Weak<Route>>) {
    for some in table.chunks(PROBED_AT_A_TIME) {
        some.iter().filter_map(Weak::upgrade).for_each(|route| route.start_probing());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a reload changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    added: usize,
    changed: usize,
    removed: usize,
}

impl Changes {
    fn between(before: &[Arc<Route>], after: &[Arc<Route>]) -> Self {
        let mut changes = Self::default();
        let names: HashMap<&str, _> = before.iter().map(|route| (&*route.name, route)).collect();
        for route in after {
            match names.get(&*route.name) {
                None => changes.added += 1,
                Some(same) if Arc::ptr_eq(same, route) => {}
                Some(_) => changes.changed += 1,
            }
        }
        changes.removed = before.len() + changes.added - after.len();
        changes
    }
}

/// Receives SIGHUP.
pub(crate) struct Reloads(Signal);

impl Reloads {
    pub(crate) fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

/// Reloads until the process ends. `read`: what the files were before the gateway started from them.
pub(crate) async fn run(live: Live, sources: Sources, first: Loaded, read: Stamps, mut signals: Reloads) {
    let mut state = State { live, sources, in_force: first };
    let mut changes = watch(&state, read);
    loop {
        let cause = tokio::select! {
            signal = signals.0.recv() => match signal {
                Some(()) => "SIGHUP",
                None => return,
            },
            Some(()) = changes.recv() => "a file has changed",
        };
        supervisor::reloading();
        let before = now(&state.sources, &state.in_force).await;
        state = match tokio::task::spawn_blocking(|| state.reload(cause)).await {
            Ok(state) => state,
            // The panic is in the log.
            Err(_) => return,
        };
        supervisor::ready(&state.live.status);
        changes = watch(&state, before);
    }
}

struct State {
    live: Live,
    sources: Sources,
    in_force: Loaded,
}

impl State {
    /// Reads the configuration and puts it in force, or keeps the one before.
    fn reload(mut self, cause: &'static str) -> Self {
        let started = Instant::now();
        let figures = &self.live.routes.reloads;
        let applied = self.sources.load().and_then(|loaded| {
            let is_possible = loaded.is_demonstration() == self.in_force.is_demonstration();
            let changes = match is_possible {
                true => self.live.apply(&loaded).map_err(|problem| vec![problem])?,
                false => Changes::default(),
            };
            Ok((loaded, changes, is_possible))
        });
        let (loaded, Changes { added, changed, removed }, is_possible) = match applied {
            Ok(applied) => applied,
            Err(problems) => {
                figures.count_refused();
                for problem in problems.iter().take(MAX_LINES) {
                    tracing::error!(cause, %problem, "the configuration is wrong, and the one before stays in force");
                }
                return self;
            }
        };
        figures.count_done();
        let millis = started.elapsed().as_millis() as u64;
        tracing::info!(cause, added, changed, removed, millis, "the configuration was reloaded");
        let mut waiting = loaded.changed_for_restart(&self.in_force);
        if !is_possible {
            waiting.push("the first or the last of the routes".to_owned());
        }
        if !waiting.is_empty() {
            let settings = waiting.join(", ");
            tracing::warn!(settings, "these settings have changed and take effect at the next start");
        }
        self.in_force = loaded;
        self
    }
}

/// Returns the files whose change is a reload.
fn files(sources: &Sources, loaded: &Loaded) -> Vec<PathBuf> {
    let own = sources.file.iter().cloned();
    let mut files: Vec<PathBuf> = own.chain(loaded.config.files()).collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// Returns what the files of a configuration are now.
pub(crate) async fn now(sources: &Sources, loaded: &Loaded) -> Stamps {
    stamps(files(sources, loaded)).await
}

/// Routes whose backends are probed first at a time.
const PROBED_AT_A_TIME: usize = 16;

/// Lines of the log about one wrong configuration, at most.
const MAX_LINES: usize = 20;

/// Starts a task that reports when a file has changed, until its receiver is dropped. `read`: what the files were before they
/// were read; a change since then is reported, too.
fn watch(state: &State, read: Stamps) -> mpsc::Receiver<()> {
    let (changed, changes) = mpsc::channel(1);
    let files = files(&state.sources, &state.in_force);
    let is_watching = state.in_force.config.watch && !files.is_empty();
    tokio::spawn(async move {
        if !is_watching {
            // Kept open, or the receiver would report its end.
            return changed.closed().await;
        }
        let mut known = stamps(files.clone()).await;
        known.extend(read.into_iter().filter(|(file, _)| files.contains(file)));
        let mut candidate = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = changed.closed() => return,
            }
            let now = stamps(files.clone()).await;
            if now == known {
                candidate = None;
            } else if candidate.as_ref() == Some(&now) {
                (known, candidate) = (now, None);
                let _ = changed.try_send(());
            } else {
                candidate = Some(now);
            }
        }
    });
    changes
}

/// What changes when a file does: its inode, size and time.
pub(crate) type Stamps = HashMap<PathBuf, Option<(u64, u64, SystemTime)>>;

async fn stamps(files: Vec<PathBuf>) -> Stamps {
    let stamp = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((std::os::unix::fs::MetadataExt::ino(&metadata), metadata.len(), metadata.modified().ok()?))
    };
    let read = move || files.into_iter().map(|file| (file.clone(), stamp(&file))).collect();
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const ROUTES: usize = 20;

    /// Routes to backends that do not exist: each version has other ones.
    fn version(file: &std::path::Path, version: usize) -> Loaded {
        let mut text = String::new();
        for number in 0..ROUTES {
            write!(
                text,
                "[routes.r{number}]\npath = \"/r{number}\"\n\
                 upstream.addresses = [\"ws://127.0.0.1:1/{version}\"]\n"
            )
            .unwrap();
        }
        std::fs::write(file, text).unwrap();
        let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
        sources.load().unwrap()
    }

    #[tokio::test]
    async fn fifty_reloads_leave_nothing_but_the_table_and_the_routes_that_are_in_use() {
        let file = std::env::temp_dir().join(format!("mainstay-reloads-{}.toml", std::process::id()));
        let live = Live {
            server: Server::new(mainstay::server::Config::new()),
            routes: Arc::default(),
            admin_token: None,
            most: 100,
            tls: None,
            admin_tls: None,
            status: String::new(),
        };
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let (mut built, mut in_use) = (Vec::new(), Vec::new());
        for number in 0..50 {
            live.apply(&version(&file, number)).unwrap();
            built.extend(live.routes.all().iter().map(Arc::downgrade));
            if number % 10 == 0 {
                in_use.extend(live.routes.find("x", "/r3/below"));
            }
        }
        let alive = || built.iter().filter(|route| route.strong_count() > 0).count();
        assert_eq!((built.len(), alive(), in_use.len()), (50 * ROUTES, ROUTES + 5, 5));
        assert_eq!(
            live.routes.links().len(),
            ROUTES,
            "a route and those that it replaced have one set of figures"
        );
        in_use.clear();
        assert_eq!(alive(), ROUTES);
        // One probe for each backend of the table. Those of the earlier ones end as soon as the runtime sees it.
        let waiting = async {
            while tasks() != before + ROUTES {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(ended.is_ok(), "{} tasks instead of {}", tasks(), before + ROUTES);
        std::fs::remove_file(file).unwrap();
    }
}
