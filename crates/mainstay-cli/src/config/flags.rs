//! The flags of `mainstay serve` as a layer: each sets one key. They describe one route.

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde_json::{Map, Value};

use super::layers::Tree;
use super::problem::{KeyPath, Origin, Problem, joined, split};
use super::schema::{Kind, Node, node_at};
use crate::process::variables;

/// Stands for the name of the route that a flag is about.
const ROUTE: &str = "*";
/// The route that flags describe if no other layer names one.
pub(super) const DEFAULT_ROUTE: &str = "default";

/// Each flag by its id, and the key that it sets.
const FLAGS: [(&str, &str); 57] = [
    ("listen", "listen"),
    ("tls_certificate", "tls.certificate"),
    ("tls_key", "tls.key"),
    ("drain", "drain"),
    ("state_dir", "state-dir"),
    ("admin", "admin.listen"),
    ("admin_token_file", "admin.token-file"),
    ("max_connections", "limits.connections"),
    ("max_per_ip", "limits.connections-per-address"),
    ("max_sessions", "limits.sessions"),
    ("max_parked_per_ip", "limits.parked-per-address"),
    ("memory_budget", "limits.memory-budget"),
    ("trusted_proxy", "proxies.trusted"),
    ("log_format", "log.format"),
    ("cluster", "cluster.engine"),
    ("cluster_name", "cluster.name"),
    ("cluster_listen", "cluster.listen"),
    ("cluster_advertise", "cluster.advertise"),
    ("cluster_url", "cluster.url"),
    ("cluster_tls", "cluster.tls"),
    ("cluster_password_file", "cluster.password-file"),
    ("upstream", "routes.*.upstream.addresses"),
    ("upstream_wait", "routes.*.upstream.wait"),
    ("upstream_answer_timeout", "routes.*.upstream.answer-timeout"),
    ("upstream_host", "routes.*.upstream.host"),
    ("upstream_headers", "routes.*.upstream.headers"),
    ("upstream_deflate", "routes.*.upstream.deflate"),
    ("upstream_ca", "routes.*.upstream.tls.ca"),
    ("upstream_cert", "routes.*.upstream.tls.certificate"),
    ("upstream_key", "routes.*.upstream.tls.key"),
    ("upstream_server_name", "routes.*.upstream.tls.server-name"),
    ("heartbeat", "routes.*.heartbeat.interval"),
    ("route_heartbeat", "routes.*.heartbeat.paths"),
    ("max_message", "routes.*.limits.message"),
    ("max_fragments", "routes.*.limits.fragments"),
    ("max_request_body", "routes.*.limits.request-body"),
    ("deflate", "routes.*.session.deflate"),
    ("resume_window", "routes.*.session.resume-window"),
    ("idle_timeout", "routes.*.session.idle-timeout"),
    ("max_lifetime", "routes.*.session.max-lifetime"),
    ("session_cookie", "routes.*.session.cookies"),
    ("session_header", "routes.*.session.headers"),
    ("movable", "routes.*.session.movable"),
    ("allow_origin", "routes.*.origins.allow"),
    ("profile", "routes.*.profile.protocol"),
    ("on_backend_loss", "routes.*.profile.on-backend-loss"),
    ("delivery", "routes.*.profile.delivery"),
    ("confirm", "routes.*.profile.confirm"),
    ("prologue", "routes.*.profile.prologue.record"),
    ("prologue_key", "routes.*.profile.prologue.key"),
    ("prologue_forget", "routes.*.profile.prologue.forget"),
    ("prologue_hide", "routes.*.profile.prologue.hide"),
    ("prologue_await", "routes.*.profile.prologue.await"),
    // Not flags of their own: how a message names a group of them, and a flag of the command `health`.
    ("prologue*", "routes.*.profile.prologue"),
    ("upstream-*", "routes.*.upstream"),
    ("cluster-*", "cluster"),
    ("admin-*", "admin"),
];

/// Returns the key of a flag, by its long name without dashes.
pub(super) fn key_of_flag(name: &str) -> Option<&'static str> {
    let id = if name == "upstream-header" { "upstream_headers".to_owned() } else { name.replace('-', "_") };
    FLAGS.iter().find(|(flag, key)| *flag == id && *key != name).map(|(_, key)| *key)
}

/// Returns the flag of a key, with its dashes, if it has one.
pub(super) fn flag_of_key(key: &[String]) -> Option<String> {
    let is_it = |written: &str| {
        let names: Vec<&str> = written.split('.').collect();
        names.len() == key.len()
            && names.iter().zip(key).all(|(written, name)| *written == ROUTE || *written == name.as_str())
    };
    FLAGS.iter().find(|(_, written)| is_it(written)).map(|(id, _)| long(id))
}

fn long(id: &str) -> String {
    if id == "upstream_headers" {
        "--upstream-header".to_owned()
    } else {
        format!("--{}", id.replace('_', "-"))
    }
}

/// Returns a key with the name of the route in its place.
pub(super) fn in_route(key: &str, route: &str) -> KeyPath {
    let named = |name: String| if name == ROUTE { route.to_owned() } else { name };
    split(key).into_iter().map(named).collect()
}

/// A flag that was given, on the command line or by its variable.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    key: &'static str,
    texts: Vec<String>,
    origin: Origin,
}

/// Returns the flags that were given: those of variables first, as the command line wins.
pub(crate) fn given(serve: &ArgMatches) -> Vec<Given> {
    let known = serve.ids().map(clap::Id::as_str).collect::<Vec<_>>();
    let read = |(id, key): &(&'static str, &'static str)| {
        let source = known.contains(id).then(|| serve.value_source(id)).flatten()?;
        let origin = match source {
            ValueSource::CommandLine => Origin::Flag(long(id)),
            ValueSource::EnvVariable => Origin::Variable(variables::variable(&long(id))),
            _ => return None,
        };
        let raw = serve.get_raw(id)?.map(|text| text.to_string_lossy().into_owned());
        Some(Given { key, texts: raw.collect(), origin })
    };
    let mut given: Vec<Given> = FLAGS.iter().filter_map(read).collect();
    given.sort_by_key(|given| matches!(given.origin, Origin::Flag(_)));
    given
}

/// Sets what the flags say.
///
/// # Errors
/// A flag is about a route, and the file has several.
pub(super) fn apply(tree: &mut Tree, given: &[Given]) -> Result<(), Problem> {
    let routes = tree.routes();
    let route = routes.first().map_or(DEFAULT_ROUTE, String::as_str);
    for Given { key, texts, origin } in given {
        if key.contains(ROUTE) && routes.len() > 1 {
            let names = routes.join(", ");
            let right = joined(&in_route(key, route));
            let what = format!(
                "is for one route, and the configuration has several ({names}); set {right}, or the same of another route, \
                 in the file"
            );
            return Err(Problem { origin: origin.clone(), key: split(key), what });
        }
        let key = in_route(key, route);
        let value = node_at(&key).map_or(Value::Null, |node| value_of(node, texts));
        tree.set(&key, value, origin.clone());
    }
    Ok(())
}

/// Reads the texts of a flag as the type that its key has.
fn value_of(node: Node, texts: &[String]) -> Value {
    match (node.kind(), texts) {
        (Kind::List, texts) => texts.iter().map(|text| Value::String(text.clone())).collect(),
        // `--route-heartbeat PATH=DURATION`.
        (Kind::Names, texts) => {
            let entries = texts.iter().filter_map(|text| text.rsplit_once('='));
            Value::Object(entries.map(|(name, text)| (name.to_owned(), text.into())).collect::<Map<_, _>>())
        }
        (_, texts) => texts.last().map_or(Value::Null, |text| scalar(node, text)),
    }
}

/// Reads a text as a single value of the type that its key has. What does not fit is left for the reader of the tree to
/// refuse.
pub(super) fn scalar(node: Node, text: &str) -> Value {
    match node.kind() {
        Kind::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "y" | "t" => Value::Bool(true),
            "false" | "0" | "no" | "off" | "n" | "f" => Value::Bool(false),
            _ => text.into(),
        },
        Kind::Number => {
            let number = text.parse::<u64>().map(Value::from);
            let number = number.or_else(|_| text.parse::<i64>().map(Value::from));
            let number = number.or_else(|_| text.parse::<f64>().map(Value::from));
            number.unwrap_or_else(|_| text.into())
        }
        _ => text.into(),
    }
}

/// Replaces the keys in angle brackets of a message by what the user writes: flags, unless a file is used. `<profile.confirm>`
/// in a message about the route `chat` becomes `--confirm`, or `routes.chat.profile.confirm`.
pub(super) fn with_names(message: &str, route: Option<&str>, uses_file: bool) -> String {
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, behind)) = rest.split_once('<') {
        text.push_str(before);
        let Some((name, after)) = behind.split_once('>') else {
            text.push('<');
            rest = behind;
            continue;
        };
        match named(name, route, uses_file) {
            Some(name) => text.push_str(&name),
            None => text.extend(["<", name, ">"]),
        }
        rest = after;
    }
    text + rest
}

fn named(name: &str, route: Option<&str>, uses_file: bool) -> Option<String> {
    let of_route = route.map(|route| in_route(&format!("routes.{ROUTE}.{name}"), route));
    let key = of_route.filter(|key| node_at(key).is_some()).or_else(|| {
        let key = split(name);
        node_at(&key).map(|_| key)
    })?;
    match flag_of_key(&key) {
        Some(flag) if !uses_file => Some(flag),
        _ => Some(joined(&key)),
    }
}
