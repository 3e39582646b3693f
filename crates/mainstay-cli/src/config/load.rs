//! Reading the configuration from its sources: file, environment, flags.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use serde::Deserialize;
use serde_json::Value;

use super::flags::{self, Given};
use super::guess::{unknown, unknown_keys};
use super::layers::Tree;
use super::problem::{KeyPath, Origin, Problem, split};
use super::schema::{Kind, Node, node_at};
use super::{Config, NEEDS_RESTART, RouteSection};
use crate::process::variables::{self, UnknownVariable};
use crate::protocols::profiles::BackendLoss;

/// Where settings come from. The file is read again for a reload; the rest is as it was when the process started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) file: Option<PathBuf>,
    /// Variables with two underscores, by their names.
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) flags: Vec<Given>,
}

/// A valid configuration, and where each value came from.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) tree: Tree,
    pub(crate) has_file: bool,
    /// A file or a variable names the routes, and not flags alone. Metrics then have their names.
    pub(crate) names_routes: bool,
}

impl Sources {
    /// Takes the sources from the command line and the environment. Returns unknown variables, too, that are no mistake.
    ///
    /// # Errors
    /// A variable is misspelt, or a flag has no effect without another one.
    pub(crate) fn new(serve: &clap::Command, given: &ArgMatches) -> Result<(Self, Vec<String>), String> {
        let file = given.get_one::<PathBuf>("config").cloned();
        let all = std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text)));
        let all: Vec<(String, String)> =
            all.map(|(name, text)| (name, text.to_string_lossy().into_owned())).collect();
        let mut warnings = Vec::new();
        let others = all.iter().map(|(name, _)| name.clone()).filter(|name| !variables::is_setting(name));
        for variable in variables::unknown_variables(serve, others) {
            match variable {
                UnknownVariable::Misspelt(name, meant) => {
                    return Err(format!("{name} is not a variable of mainstay; write {meant}, or unset it"));
                }
                UnknownVariable::Unrelated(name) => warnings.push(name),
            }
        }
        if file.is_none() {
            variables::check_backend(given)?;
        }
        let variables = all.into_iter().filter(|(name, _)| variables::is_setting(name)).collect();
        Ok((Self { file, variables, flags: flags::given(given) }, warnings))
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// All mistakes, those of the file first.
    pub(crate) fn load(&self) -> Result<Loaded, Vec<Problem>> {
        let mut tree = match &self.file {
            Some(file) => Tree::parse(&read(file)?, file).map_err(|problem| vec![problem])?,
            None => Tree::default(),
        };
        let mut wrong: Vec<Problem> = Vec::new();
        for (name, text) in &self.variables {
            wrong.extend(set_variable(&mut tree, name, text).err());
        }
        let names_routes = !tree.routes().is_empty();
        wrong.extend(flags::apply(&mut tree, &self.flags).err());
        wrong.splice(0..0, unknown_keys(&tree));
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let config = deserialize(&tree).map_err(|problem| vec![problem])?;
        let loaded = Loaded { config, tree, has_file: self.file.is_some(), names_routes };
        let wrong = loaded.check();
        if wrong.is_empty() { Ok(loaded) } else { Err(wrong) }
    }
}

/// Reads the file.
fn read(file: &Path) -> Result<String, Vec<Problem>> {
    std::fs::read_to_string(file).map_err(|error| {
        let what = format!("--config {}: {error}; name a readable file in TOML", file.display());
        vec![Problem { origin: Origin::Default, key: KeyPath::new(), what }]
    })
}

fn deserialize(tree: &Tree) -> Result<Config, Problem> {
    let mut track = serde_path_to_error::Track::new();
    let from = serde_path_to_error::Deserializer::new(tree.root(), &mut track);
    Config::deserialize(from).map_err(|error| {
        let key = key_of(&track.path());
        Problem { origin: tree.origin(&key), key, what: error.to_string() }
    })
}

/// Returns the names on the path to what could not be read.
fn key_of(path: &serde_path_to_error::Path) -> KeyPath {
    use serde_path_to_error::Segment;
    let name = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(name).collect()
}

/// Sets the key of a variable such as `MAINSTAY_ROUTES__CHAT__HEARTBEAT__INTERVAL`: two underscores separate the names, and
/// one stands for `-`.
fn set_variable(tree: &mut Tree, name: &str, text: &str) -> Result<(), Problem> {
    let origin = Origin::Variable(name.to_owned());
    let key = key_of_variable(tree, name);
    let Some(node) = node_at(&key) else { return Err(unknown(origin, &key)) };
    let value =
        value_of(node, text).map_err(|what| Problem { origin: origin.clone(), key: key.clone(), what })?;
    tree.set(&key, value, origin);
    Ok(())
}

/// Returns the key that a variable names. A name that the file gave, such as that of a route, is found whatever its case.
fn key_of_variable(tree: &Tree, name: &str) -> KeyPath {
    if name == "MAINSTAY_LOG" {
        return split("log.filter");
    }
    let mut key = KeyPath::new();
    let words = name.trim_start_matches("MAINSTAY_").split("__");
    for word in words.map(|word| word.to_ascii_lowercase().replace('_', "-")) {
        let written = tree.get(&key).and_then(Value::as_object).into_iter().flatten();
        let same =
            written.map(|(name, _)| name).find(|name| name.to_ascii_lowercase().replace('_', "-") == word);
        key.push(same.cloned().unwrap_or(word));
    }
    key
}

/// Reads the text of a variable: a list as in TOML or separated by commas or line breaks, a table as in TOML.
fn value_of(node: Node, text: &str) -> Result<Value, String> {
    let as_toml = |text: &str| {
        let file = Path::new("");
        let tree = Tree::parse(&format!("value = {text}"), file).map_err(|problem| problem.what)?;
        tree.get(&["value"]).cloned().ok_or_else(|| "write one value".to_owned())
    };
    match node.kind() {
        Kind::List if !text.trim_start().starts_with('[') => {
            let separator = if text.contains('\n') { '\n' } else { ',' };
            let items = text.split(separator).map(str::trim).filter(|item| !item.is_empty());
            Ok(items.map(|item| Value::String(item.to_owned())).collect())
        }
        Kind::List | Kind::Table | Kind::Names => as_toml(text),
        Kind::Any => Ok(as_toml(text).unwrap_or_else(|_| text.into())),
        Kind::Boolean | Kind::Number | Kind::Text => Ok(flags::scalar(node, text)),
    }
}

impl Loaded {
    /// Returns whether the gateway serves the demonstration: nothing but flags describes a route, and none names a backend.
    pub(crate) fn is_demonstration(&self) -> bool {
        let routes: Vec<_> = self.config.routes.values().collect();
        match routes.as_slice() {
            [] => true,
            [only] => only.upstream.addresses.is_empty() && !self.names_routes,
            _ => false,
        }
    }

    /// Returns whether a layer sets this key.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.tree.sets(&split(key))
    }

    /// As [`problem`](Self::problem), for a key with dots.
    pub(crate) fn problem_at(&self, key: &str, what: &str) -> Problem {
        self.problem(split(key), what)
    }

    /// Describes a mistake in a section. The text begins with the field.
    pub(crate) fn problem_in(&self, section: &str, what: &str) -> Problem {
        let (field, what) = what.split_once(": ").unwrap_or(("", what));
        let key = [section, field].into_iter().filter(|part| !part.is_empty());
        self.problem(key.flat_map(split).collect(), what)
    }

    /// Describes a mistake at a key, in the words of the source that set it.
    pub(crate) fn problem(&self, key: KeyPath, what: &str) -> Problem {
        let route = match key.as_slice() {
            [routes, route, ..] if routes == "routes" => Some(route.as_str()),
            _ => None,
        };
        let what = flags::with_names(what, route, self.has_file);
        let origin = self.tree.origin_within(&key).cloned().unwrap_or_else(|| self.tree.origin(&key));
        Problem { origin, key, what }
    }

    /// Returns the keys of settings that differ from those in force and need a restart.
    pub(crate) fn changed_for_restart(&self, in_force: &Self) -> Vec<String> {
        // Without the routes, none of which needs one: there may be thousands.
        let values = |loaded: &Self| serde_json::to_value(loaded.config.without_routes()).unwrap_or_default();
        let (new, old) = (values(self), values(in_force));
        let of =
            |value: &Value, key: &[&str]| key.iter().try_fold(value, |value, name| value.get(name)).cloned();
        let changed = NEEDS_RESTART.iter().filter(|key| of(&new, key) != of(&old, key));
        changed.map(|key| key.join(".")).collect()
    }

    /// Checks the sections, and then what they say together.
    fn check(&self) -> Vec<Problem> {
        let mut wrong: Vec<Problem> = Vec::new();
        wrong.extend(
            self.config.check_sections().iter().map(|(section, what)| self.problem_in(section, what)),
        );
        if wrong.is_empty() {
            wrong.extend(self.contradictions());
        }
        wrong
    }

    /// Returns what the sections contradict in each other.
    fn contradictions(&self) -> Vec<Problem> {
        let (config, has_backend) = (&self.config, !self.is_demonstration());
        let mut wrong = Vec::new();
        if config.state_dir.is_some() && config.cluster.engine.is_some() {
            let what = "<state-dir> contradicts <cluster.engine>: in a cluster another node continues the sessions at \
                        once, and a session in a file would wait for this node; remove one of them";
            wrong.push(self.problem_at("state-dir", what));
        }
        if self.names_routes && config.cluster.engine.is_some() && !self.is_set("cluster.name") {
            let what = "is required where routes have names: gateways with the same name continue each other's sessions, and \
                        others must have another; write for example \"chat\"";
            wrong.push(self.problem_at("cluster.name", what));
        }
        for (name, route) in &config.routes {
            let problem =
                |key: &str, what: &str| self.problem(flags::in_route(&format!("routes.*.{key}"), name), what);
            if has_backend && route.upstream.addresses.is_empty() {
                let what = "is missing; name a backend, for example [\"ws://127.0.0.1:3000\"]";
                wrong.push(problem("upstream.addresses", what));
            }
            if route.credentials.client_certificate.is_some() && config.tls.client_ca.is_none() {
                let what = "requires <tls.client-ca>, the authorities that issue the certificates of clients";
                wrong.push(problem("credentials.client-certificate", what));
            }
            wrong.extend(self.cannot_move(route, has_backend).map(|what| problem("session.movable", what)));
        }
        wrong.extend(self.same_rules());
        wrong
    }

    /// Returns why the sessions of a route cannot move, if they are said to.
    fn cannot_move(&self, route: &RouteSection, has_backend: bool) -> Option<&'static str> {
        let has_place = self.config.cluster.engine.is_some() || self.config.state_dir.is_some();
        let keeps = || {
            let settings = route.profile.settings();
            settings.is_ok_and(|settings| settings.on_backend_loss == BackendLoss::Keep)
        };
        match route.session.movable {
            true if !has_place => Some(
                "<session.movable> requires a place for the sessions: add <cluster.engine> URL, or <state-dir> DIR for one node",
            ),
            true if has_backend && !keeps() => Some(
                "<session.movable> requires <profile.on-backend-loss> keep, or a profile with it: a session that moves gets a \
                 new connection to the backend, and with renew its client would start again anyway",
            ),
            _ => None,
        }
    }

    /// Returns the routes that take exactly what another one takes.
    fn same_rules(&self) -> Vec<Problem> {
        let mut seen: HashMap<String, &str> = HashMap::new();
        let routes = self.config.routes.iter();
        let again = routes.filter_map(|(name, route)| {
            let known = |rule: String| match seen.entry(rule) {
                Entry::Occupied(other) => Some((other.key().clone(), *other.get())),
                Entry::Vacant(place) => {
                    place.insert(name);
                    None
                }
            };
            let (same, other) = route.rules().into_iter().find_map(known)?;
            let what =
                format!("takes {same}, and so does routes.{other}; give one of them another host or path");
            Some(self.problem(vec!["routes".to_owned(), name.clone()], &what))
        });
        again.collect()
    }
}

/// Returns the keys of a tree and their values, tables taken apart.
pub(super) fn leaves(value: &Value) -> Vec<(KeyPath, Value)> {
    let mut found = Vec::new();
    collect(&mut KeyPath::new(), value, &mut found);
    found
}

fn collect(key: &mut KeyPath, value: &Value, found: &mut Vec<(KeyPath, Value)>) {
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                key.push(name.clone());
                collect(key, value, found);
                key.pop();
            }
        }
        Value::Null => {}
        value => found.push((key.clone(), value.clone())),
    }
}
