//! Environment variables: one for every flag of `serve`, and a check for unknown ones.
//!
//! `--max-sessions` is `MAINSTAY_MAX_SESSIONS`. A misspelt variable would silently leave a default in place, so a name within
//! two edits of a known one is an error, and any other unknown name is a warning. Kubernetes injects names such as
//! `MAINSTAY_SERVICE_HOST` and `MAINSTAY_PORT` for a service called `mainstay`; these are ignored.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

const PREFIX: &str = "MAINSTAY_";
/// Variables without a flag: the log's, and those that cargo passes from `build.rs` when it runs the program.
const OTHERS: [&str; 4] = ["MAINSTAY_LOG", "MAINSTAY_COMMIT", "MAINSTAY_FEATURES", "MAINSTAY_TARGET"];
/// Variables of keys without a flag at the top of the tree, and that of `log.filter`.
const AT_THE_TOP: [&str; 2] = ["MAINSTAY_WATCH", "MAINSTAY_LOG"];
/// Repeatable flags whose values contain no comma: their variable separates values by commas, others by line breaks.
const LISTS: [&str; 6] =
    ["listen", "trusted_proxy", "session_cookie", "session_header", "allow_origin", "admin_host"];
/// Flags that require `--upstream`, by name or by prefix.
const OF_BACKEND: [&str; 6] =
    ["delivery", "confirm", "trusted_proxy", "profile", "on_backend_loss", "route_heartbeat"];
const OF_BACKEND_PREFIXES: [&str; 4] = ["upstream_", "session_", "prologue", "backend_"];

/// Adds a variable to each flag of the command.
pub(crate) fn with_variables(command: Command) -> Command {
    command.mut_args(|argument| {
        let Some(variable) = variable_of(&argument) else { return argument };
        let (action, id) = (argument.get_action().clone(), argument.get_id().to_string());
        let argument = argument.env(variable).hide_env_values(true);
        match action {
            // Users set such a variable to 1 as often as to true.
            ArgAction::SetTrue => argument.value_parser(clap::builder::BoolishValueParser::new()),
            ArgAction::Append => {
                argument.value_delimiter(if LISTS.contains(&id.as_str()) { ',' } else { '\n' })
            }
            _ => argument,
        }
    })
}

/// Returns the variable of an argument; `None` for arguments such as `--help`.
fn variable_of(argument: &Arg) -> Option<String> {
    let takes_part = matches!(
        argument.get_action(),
        ArgAction::Set | ArgAction::Append | ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count
    );
    argument.get_long().filter(|_| takes_part).map(variable)
}

/// Returns the variable of a flag.
pub(crate) fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.trim_start_matches('-').to_ascii_uppercase().replace('-', "_"))
}

/// A variable with our prefix that is not known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UnknownVariable {
    /// The first name is probably a misspelling of the second.
    Misspelt(String, String),
    Unrelated(String),
}

/// Returns the variables among `names` that have our prefix and are not known.
pub(crate) fn unknown_variables(
    serve: &Command,
    names: impl Iterator<Item = String>,
) -> Vec<UnknownVariable> {
    let flags = serve.get_arguments().filter_map(variable_of);
    let known: Vec<String> = flags.chain(OTHERS.map(str::to_owned)).collect();
    let classify = |name: String| {
        let upper = name.to_ascii_uppercase();
        if !upper.starts_with(PREFIX) || known.contains(&name) || is_injected_by_kubernetes(&upper) {
            return None;
        }
        let nearest = known.iter().min_by_key(|known| edits(known, &upper))?;
        Some(match edits(nearest, &upper) {
            ..=2 => UnknownVariable::Misspelt(name, nearest.clone()),
            _ => UnknownVariable::Unrelated(name),
        })
    };
    names.filter_map(classify).collect()
}

/// Returns whether a variable sets a key of the configuration that has no flag: its names have two underscores between them,
/// or it is at the top of the tree.
pub(crate) fn is_setting(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let Some(rest) = upper.strip_prefix(PREFIX) else { return false };
    let has_levels = rest.contains("__") && !is_injected_by_kubernetes(&upper);
    has_levels || AT_THE_TOP.contains(&name)
}

/// Returns whether Kubernetes injects a name for services called `mainstay` or `mainstay-something`.
fn is_injected_by_kubernetes(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    let of_port = |rest: &str| {
        let mut words = rest.split('_').skip_while(|word| *word != "PORT").skip(1);
        match (words.next(), words.next()) {
            (None, _) => rest.ends_with("_PORT"),
            (Some(number), Some("TCP" | "UDP" | "SCTP")) => number.parse::<u16>().is_ok(),
            _ => false,
        }
    };
    rest.starts_with("SERVICE_")
        || rest.starts_with("PORT")
        || rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || of_port(rest)
}

/// Returns the Levenshtein distance of two names.
pub(crate) fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, have) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, want) in to.iter().enumerate() {
            let cheapest =
                (diagonal + usize::from(have != *want)).min(row[column] + 1).min(row[column + 1] + 1);
            diagonal = std::mem::replace(&mut row[column + 1], cheapest);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Rejects flags about the backend without `--upstream`: the operator forgot the backend and does not want the
/// demonstration.
///
/// # Errors
/// Names the flag, or the variable that it came from.
pub(crate) fn check_backend(serve: &ArgMatches) -> Result<(), String> {
    let given = |id: &str| serve.value_source(id).filter(|source| *source != ValueSource::DefaultValue);
    if given("upstream").is_some() {
        return Ok(());
    }
    let is_of_backend =
        |id: &&str| OF_BACKEND.contains(id) || OF_BACKEND_PREFIXES.iter().any(|begin| id.starts_with(begin));
    let ids: Vec<&str> = serve.ids().map(clap::Id::as_str).collect();
    for id in ids.into_iter().filter(is_of_backend) {
        let Some(source) = given(id) else { continue };
        let name = match source {
            ValueSource::EnvVariable => variable(id),
            _ => format!("--{}", id.replace('_', "-")),
        };
        return Err(format!(
            "{name} needs --upstream: without a backend it has no effect; \
             add for example --upstream ws://127.0.0.1:3000, or remove {name}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn serve() -> Command {
        crate::Arguments::command().find_subcommand("serve").unwrap().clone()
    }

    fn unknown(names: &[&str]) -> Vec<UnknownVariable> {
        unknown_variables(&serve(), names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn a_misspelt_variable_is_an_error_that_names_both() {
        for (written, meant) in [
            ("MAINSTAY_UPSTREEM", "MAINSTAY_UPSTREAM"),
            ("MAINSTAY_UPSTREM", "MAINSTAY_UPSTREAM"),
            ("MAINSTAY_LISTNE", "MAINSTAY_LISTEN"),
            ("MAINSTAY_MAX_SESSION", "MAINSTAY_MAX_SESSIONS"),
            ("MAINSTAY_TRUSTED_PROXYS", "MAINSTAY_TRUSTED_PROXY"),
            ("MAINSTAY_LOGS", "MAINSTAY_LOG"),
            ("MAINSTAY_LOG_FORMATT", "MAINSTAY_LOG_FORMAT"),
            ("mainstay_upstream", "MAINSTAY_UPSTREAM"),
        ] {
            assert_eq!(unknown(&[written]), [UnknownVariable::Misspelt(written.into(), meant.into())]);
        }
    }

    #[test]
    fn other_unknown_variables_are_reported_and_those_of_kubernetes_are_not() {
        assert_eq!(
            unknown(&["MAINSTAY_BACKUP_DIR"]),
            [UnknownVariable::Unrelated("MAINSTAY_BACKUP_DIR".into())]
        );
        let injected = [
            "MAINSTAY_SERVICE_HOST",
            "MAINSTAY_SERVICE_PORT",
            "MAINSTAY_SERVICE_PORT_HTTP",
            "MAINSTAY_PORT",
            "MAINSTAY_PORT_8080_TCP",
            "MAINSTAY_PORT_8080_TCP_ADDR",
            "MAINSTAY_ADMIN_SERVICE_HOST",
            "MAINSTAY_ADMIN_PORT",
            "MAINSTAY_ADMIN_PORT_9090_TCP_PROTO",
        ];
        assert_eq!(unknown(&injected), []);
        assert_eq!(unknown(&["MAINSTAY_EXPORT"]), [UnknownVariable::Unrelated("MAINSTAY_EXPORT".into())]);
        assert_eq!(unknown(&["MAINSTAY", "PATH", "MAINSTAY_LOG", "MAINSTAY_LISTEN"]), []);
    }

    #[test]
    fn no_flag_has_a_variable_that_kubernetes_injects() {
        for argument in serve().get_arguments() {
            let variable = variable_of(argument);
            assert!(!variable.as_deref().is_some_and(is_injected_by_kubernetes), "{variable:?}");
        }
    }

    #[test]
    fn edits_are_counted() {
        for (from, to, expected) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "ac", 1), ("ab", "ba", 2), ("", "abc", 3)]
        {
            assert_eq!((edits(from, to), edits(to, from)), (expected, expected), "{from} {to}");
        }
    }
}
